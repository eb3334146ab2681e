//! The loop of a node: gather, decide, perform, wait.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_core::authority::Phase;
use quorate_core::lease::Voters;
use quorate_core::node::{self, Data, Decision, Feed, Job, NodeView, Promise, Server};
use quorate_core::report::Report;
use quorate_core::state::{Change, State};
use quorate_core::status::{
    Doing, NodeStatus, ServerStatus, StandbyLink, Surrender, SurrenderReason, WriterStatus,
};
use quorate_core::upstream::{Upstream, feeds};
use quorate_core::{Because, Lsn, Moment, NodeId, Term, TimelineId};
use quorate_link::clock;
use quorate_postgres::{Promoted, history as timeline_history};
use tokio::sync::{mpsc, oneshot};

use crate::feed::FeedNews;
use crate::limits::{CONFIRM_RETRY, CYCLE, FEEDBACK_SILENCE, MESSAGES_MAX, REJOIN_WAIT, YIELD};
use crate::node::{Node, Order};
use crate::perform::{self, Message, Outcome, Running, spawn_proposal};
use crate::reign::Reign;

/// A timeline's history: where each ancestor ended, oldest first.
pub type Forks = Vec<(TimelineId, Lsn)>;

/// What the loop knows beside what it gathers anew each time.
pub struct Memory {
    /// The promise file's content.
    pub promise: Promise,
    /// Whether the state is known to have all that was agreed before this process began.
    current: bool,
    /// The job in progress.
    pub job: Option<Running>,
    /// Jobs begun so far.
    pub jobs: u64,
    /// What the job is at.
    pub progress: Option<String>,
    /// Why the last job failed; forgotten when one succeeds.
    trouble: Option<String>,
    /// The feed.
    pub feed: Feed,
    /// Where feeds tell their news.
    pub feed_news: mpsc::Sender<FeedNews>,
    /// Whom to follow.
    pub upstream: Upstream,
    /// When the local server was last found to want a timeline that is none of the writer's.
    pub astray: Option<Moment>,
    /// Where the local log left the writer's history, when it was refused for that.
    pub fork: Option<Lsn>,
    /// The frozen log end of the present term.
    pub report: Option<Report>,
    /// What was surrendered.
    pub surrender: Option<Surrender>,
    /// When a term was given up last.
    pub stepped_down: Option<Moment>,
    /// What the promotion of a term made, and its timeline's history.
    pub promoted: Option<(Term, Promoted, Forks)>,
    /// This node's reign.
    pub reign: Option<Reign>,
    /// Proposals under way.
    pub proposing: BTreeSet<&'static str>,
    /// What the data directory holds.
    pub data: Data,
    /// Since when the present writer is open and serves nobody: it lacks copies.
    writer_waits: Option<Moment>,
    /// Since when a server that is starting asks for log, and nobody feeds it.
    pub start_asks: Option<Moment>,
    restart: Option<oneshot::Sender<Result<(), String>>>,
    restarting: bool,
    document: u64,
    /// Whether the server tells its writer which rows it needs for slots.
    feedback: bool,
    said: Because,
}

/// Runs a node until the process ends.
pub async fn run(node: Arc<Node>, mut orders: mpsc::Receiver<Order>) -> std::io::Result<()> {
    let (messages, mut inbox) = mpsc::channel(MESSAGES_MAX);
    let (feed_news, mut feeds) = mpsc::channel(MESSAGES_MAX);
    let mut memory = Memory::new(&node, feed_news)?;
    let mut state = node.parts.consensus.watch();
    let mut facts = node.parts.database.as_ref().map(|d| d.facts());
    let mut server = node.parts.database.as_ref().map(|d| d.server.status());
    if let Some(database) = node.parts.database.clone() {
        tokio::spawn(crate::knock::run(Arc::clone(&database)));
        tokio::spawn(database.watch_server());
    }
    tokio::spawn(crate::lag::run(Arc::clone(&node)));
    tokio::spawn(crate::slots::run(Arc::clone(&node)));
    tokio::spawn(crate::validation::run(Arc::clone(&node)));
    tokio::spawn(crate::alerts::run(Arc::clone(&node)));
    if memory.promise == Promise::Lost {
        tokio::spawn(confirm(Arc::clone(&node), messages.clone()));
    }
    loop {
        let now = Arc::clone(&state.borrow_and_update());
        cycle(&node, &mut memory, &messages, &now).await;
        tokio::select! {
            _ = state.changed() => {}
            () = node.wake.notified() => {}
            () = changed(&mut facts) => {}
            () = changed(&mut server) => {}
            Some(message) = inbox.recv() => memory.take(&node, message),
            Some(news) = feeds.recv() => memory.take_feed(&node, news),
            Some(order) = orders.recv() => memory.take_order(&node, order).await,
            () = tokio::time::sleep(CYCLE) => {}
        }
    }
}

/// Asks until a majority has confirmed what was agreed so far, and this node knows it.
async fn confirm(node: Arc<Node>, messages: mpsc::Sender<Message>) {
    while let Err(e) = node.parts.consensus.read().await {
        tracing::debug!(error = %e, "what was agreed so far is not known yet");
        tokio::time::sleep(CONFIRM_RETRY).await;
    }
    let _ = messages.send(Message::Current).await;
}

async fn changed<T>(watched: &mut Option<tokio::sync::watch::Receiver<T>>) {
    if let Some(watched) = watched
        && watched.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn cycle(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    state: &State,
) {
    take_in(node, memory, messages, state);
    let upstream = memory.upstream_of(node, state);
    let decision = node::decide(&memory.view(node, state, upstream));
    memory.tell(&decision);
    // Said before it is done where others must know early, and after where they must not: the
    // heartbeat's word never runs ahead of the fence, which is why actions come first.
    perform::perform(node, memory, messages, &decision.actions).await;
    admit_reads(node, memory, state);
    publish(node, memory, state, &decision);
}

/// Opens the door for reads while the server is a standby that shows all it has replayed and nothing is
/// done to it; the door is closed before anything begins that ends this ([`perform::perform`]), and here when it ended by
/// itself.
fn admit_reads(node: &Node, memory: &Memory, state: &State) {
    let reads = &node.parts.reads;
    let standby = node.parts.database.as_ref().is_some_and(|d| d.is_standby_that_shows_all());
    let quiet = memory.job.as_ref().is_none_or(|r| r.job == Job::Freeze);
    // Named as the writer: what was seen of the server may be from before it was promoted.
    let named =
        state.authority.phase != Phase::Electing && state.authority.writer == Some(node.parts.me);
    match (standby && quiet && !named && memory.reign.is_none(), reads.term()) {
        (true, None) => {
            let term = reads.next_term();
            reads.open(term);
            reads.renew(term, Moment(u64::MAX));
        }
        (false, Some(_)) => reads.close(),
        (true, Some(_)) | (false, None) => {}
    }
}

/// Brings everything that follows the replicated state up to date.
fn take_in(node: &Arc<Node>, memory: &mut Memory, messages: &mpsc::Sender<Message>, state: &State) {
    let parts = &node.parts;
    let term = state.authority.term;
    let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
    let consensus = parts.consensus.status();
    let voters = Voters { names: consensus.voters, version: consensus.voters_version };
    let promised = matches!(memory.promise, Promise::Kept(_));
    parts.health.set_cluster(term, voters, &members, promised);
    node.look_out(&state.authority);
    let document = state.document();
    parts.health.set_strict(document.strict_reads);
    if memory.surrender.as_ref().is_some_and(|s| s.term < term) {
        memory.surrender = None;
    }
    if memory.report.as_ref().is_some_and(|r| r.term != term) {
        memory.report = None;
    }
    let incomplete = memory.data == Data::Incomplete;
    let stale = |r: &Running| {
        r.term < term
            && (matches!(r.job, Job::Clone | Job::Rewind) || incomplete && r.job == Job::Start)
    };
    if memory.job.as_ref().is_some_and(stale)
        && let Some(running) = memory.job.take()
    {
        tracing::info!(job = ?running.job, "given up: another term began");
        running.cancel();
        memory.data = perform::data_of(node);
    }
    // Its server may have died without a job.
    if memory.job.is_none() && memory.data == Data::Incomplete {
        memory.data = perform::data_of(node);
    }
    if let Some(reign) = &mut memory.reign {
        reign.observe(node);
        match (&state.authority.switchover, &reign.gave_up) {
            (None, _) => {
                reign.gave_up = None;
                if reign.drains() {
                    reign.resume(node);
                }
            }
            (Some(_), Some(why)) => {
                let text = format!("switchover given up: {why}");
                let because = Because::new("op-switchover", text);
                let change = Change::DropSwitchover { term: reign.own.term, because };
                spawn_proposal(node, memory, messages, "drop-switchover", change);
            }
            (Some(_), None) => {}
        }
    }
    let version = state.document_version();
    let feedback =
        parts.database.as_ref().is_some_and(|d| d.is_asked_for_feedback(state, parts.me));
    if (version != memory.document || feedback != memory.feedback)
        && members.contains(&parts.me)
        && let Some(database) = &parts.database
        && memory.data == Data::Ready
        && memory.job.is_none()
    {
        let settings = database.settings(state, parts.me);
        match quorate_postgres::write_settings(&database.options, &settings) {
            Ok(quorate_postgres::Written::Changed) => database.server.reload(),
            Ok(quorate_postgres::Written::Same) => {}
            Err(e) => tracing::error!(error = %e, "cannot write the server's settings"),
        }
        (memory.document, memory.feedback) = (version, feedback);
    }
    let word = state.authority.writer.and_then(|w| parts.health.status_of(w)?.writer);
    let word = word.filter(|word| word.term == term);
    let (open, serves) = (word.is_some(), word.is_some_and(|word| word.serving));
    memory.writer_waits = (open && !serves).then(|| memory.writer_waits.unwrap_or_else(clock::now));
    memory.start_with_log(node, (open, serves));
    identify(node, memory, messages, state);
}

/// Tells the cluster the database's identity once, and checks ours against it ever after.
fn identify(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    state: &State,
) {
    let Some(database) = &node.parts.database else { return };
    let facts = database.facts();
    let Some(ours) = facts.borrow().probe.as_ref().map(|p| p.system_id) else { return };
    match state.system_id {
        Some(theirs) if theirs != ours => {
            memory.data = Data::Refused(format!(
                "the data directory holds another database ({ours}) than the cluster's \
                 ({theirs}): move it away, the node will copy the cluster's"
            ));
        }
        Some(_) => {}
        None => {
            let change = Change::SystemId { system_id: ours };
            spawn_proposal(node, memory, messages, "system-id", change);
        }
    }
}

impl Memory {
    fn new(node: &Node, feed_news: mpsc::Sender<FeedNews>) -> std::io::Result<Self> {
        let data = perform::data_of(node);
        // `init` makes the first node's file. A node that joined has promised nothing, and is
        // told so by not being in any commit rule yet.
        let promise = node.parts.promise.read()?.unwrap_or(Promise::Lost);
        Ok(Self {
            promise,
            current: false,
            job: None,
            jobs: 0,
            progress: None,
            trouble: None,
            feed: Feed::Closed,
            feed_news,
            upstream: Upstream::default(),
            astray: None,
            fork: None,
            report: None,
            surrender: None,
            stepped_down: None,
            promoted: None,
            reign: None,
            proposing: BTreeSet::new(),
            data,
            writer_waits: None,
            start_asks: None,
            restart: None,
            restarting: false,
            document: 0,
            feedback: false,
            said: Because::default(),
        })
    }

    fn view<'a>(&'a self, node: &Node, state: &'a State, upstream: Option<NodeId>) -> NodeView<'a> {
        let term = state.authority.term;
        let writer_word = state
            .authority
            .writer
            .and_then(|w| node.parts.health.status_of(w))
            .and_then(|s| s.writer);
        let word = writer_word.filter(|w| w.term == term);
        NodeView {
            me: node.parts.me,
            kind: node.parts.kind,
            state,
            promise: self.promise,
            current: self.current,
            server: node.parts.database.as_ref().map_or(Server::Down, |d| d.fact()),
            data: self.data.clone(),
            job: self.job.as_ref().map(|r| r.job),
            feed: self.feed,
            report: self.report.as_ref(),
            surrender: self.surrender.as_ref(),
            reign: self.reign.as_ref().map(|r| &r.own),
            writer_open: word.is_some(),
            writer_serving: word.as_ref().is_some_and(|w| w.serving),
            writer_waits: self.writer_waits.is_some_and(|at| clock::now().since(at) > REJOIN_WAIT),
            lease_clear: node.parts.health.lease_clear(term),
            upstream,
            restart: self.restart.is_some() && !self.restarting,
            starved: node.parts.database.as_ref().is_some_and(|d| d.starves()),
            yields: self.stepped_down.is_some_and(|at| clock::now().since(at) < YIELD)
                && !word.is_some_and(|w| w.serving),
        }
    }

    /// Logs a sentence when it changes.
    fn tell(&mut self, decision: &Decision) {
        if decision.because != self.said {
            tracing::info!(
                rule = decision.because.rule,
                doing = ?decision.doing,
                "{}", decision.because.sentence
            );
            self.said = decision.because.clone();
        }
    }

    fn take(&mut self, node: &Arc<Node>, message: Message) {
        match message {
            Message::JobDone { job, outcome } => {
                // A job that was given up may have ended before it heard of that.
                if self.job.as_ref().is_some_and(|running| running.id == job) {
                    self.job_done(node, outcome);
                }
            }
            Message::Current => self.current = true,
            Message::Progress(text) => self.progress = Some(text),
            Message::Marked { term, rule } => {
                if let Some(reign) = self.reign.as_mut().filter(|r| r.own.term == term)
                    && reign.own.rule == rule
                {
                    reign.own.marked = Some(rule);
                }
            }
            Message::Drained { term, failed } => self.drained(node, term, failed),
            Message::Proposed { what } => {
                self.proposing.remove(what);
            }
        }
    }

    fn drained(&mut self, node: &Arc<Node>, term: Term, failed: Option<String>) {
        let Some(reign) = self.reign.as_mut().filter(|r| r.own.term == term) else { return };
        let Some(why) = failed else {
            reign.own.drained = true;
            return;
        };
        tracing::warn!(%term, why, "switchover given up, clients are let in again");
        reign.gave_up = Some(why);
        reign.resume(node);
    }

    fn job_done(&mut self, node: &Arc<Node>, outcome: Outcome) {
        let job = self.job.take().map(|r| r.job);
        self.progress = None;
        self.data = match (&self.data, perform::data_of(node)) {
            (Data::Refused(why), Data::Ready) => Data::Refused(why.clone()),
            (_, found) => found,
        };
        if let Some(database) = &node.parts.database {
            database.look();
        }
        self.trouble = match &outcome {
            Outcome::Failed { what, why } => Some(format!("could not {what}: {why}")),
            Outcome::Spoilt { why } => Some(why.clone()),
            Outcome::Done
            | Outcome::Frozen(_)
            | Outcome::Promoted { .. }
            | Outcome::NotPromoted { .. } => None,
        };
        match outcome {
            Outcome::Done if job == Some(Job::Start) => {
                self.restarting = false;
                if let Some(answer) = self.restart.take() {
                    let _ = answer.send(Ok(()));
                }
            }
            Outcome::Done if job == Some(Job::Stop) => self.restarting = self.restart.is_some(),
            Outcome::Done => {}
            Outcome::Frozen(report) => {
                tracing::info!(term = %report.term, lsn = %report.lsn, "frozen");
                self.report = Some(report);
            }
            Outcome::Promoted { term, promoted } => {
                let forks = self.history(node, &promoted);
                self.promoted = Some((term, promoted, forks));
            }
            Outcome::NotPromoted { term, why } => {
                tracing::warn!(%term, why, "the promotion failed");
                perform::surrender(node, self, term, SurrenderReason::BadPromotion);
            }
            Outcome::Failed { .. } => {}
            Outcome::Spoilt { why } => tracing::warn!(why, "the rewind failed: cloning instead"),
        }
    }

    /// The new timeline's history: that of the log it was promoted from, and the fork itself.
    fn history(&self, node: &Node, promoted: &Promoted) -> Vec<(TimelineId, Lsn)> {
        let Some(report) = &self.report else {
            // This process began after the report was made: the server's own file says it.
            let file =
                node.parts.database.as_ref().map(|d| timeline_history(&d.options, promoted.tli));
            return file
                .and_then(|f| f.inspect_err(|e| tracing::error!(error = %e, "no history")).ok())
                .unwrap_or_default();
        };
        let owner = report.owner();
        let mut forks: Vec<_> =
            report.forks.iter().copied().take_while(|(t, _)| *t != owner).collect();
        forks.push((owner, promoted.fork_lsn));
        forks
    }

    async fn take_order(&mut self, node: &Arc<Node>, order: Order) {
        match order {
            Order::Restart(answer) => self.restart = Some(answer),
            Order::Rebuild(answer) => {
                let result = self.rebuild(node).await;
                let _ = answer.send(result);
            }
        }
    }

    async fn rebuild(&mut self, node: &Arc<Node>) -> Result<(), String> {
        let Some(database) = &node.parts.database else {
            return Err("a witness has no data".to_owned());
        };
        let state = node.parts.consensus.state();
        if state.authority.writer == Some(node.parts.me) {
            return Err("this node is the writer: switch over first".to_owned());
        }
        if let Some(running) = self.job.take() {
            running.cancel();
        }
        database.feed.close().await;
        self.feed = Feed::Closed;
        database.spoil().map_err(|e| e.to_string())?;
        self.data = Data::Spoilt;
        Ok(())
    }
}

/// Says what this node does, with the next heartbeat or at once when it matters.
fn publish(node: &Arc<Node>, memory: &Memory, state: &State, decision: &Decision) {
    let parts = &node.parts;
    let database = parts.database.as_ref();
    let status = NodeStatus {
        node: parts.me,
        kind: parts.kind,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        term: state.authority.term,
        promised: match memory.promise {
            Promise::Kept(term) => Some(term),
            Promise::Lost => None,
        },
        doing: attached(node, memory, decision.doing),
        because: decision.because.clone(),
        progress: memory.progress.clone().or_else(|| memory.trouble.clone()),
        report: memory.report.as_ref().map(Report::trimmed),
        surrender: memory.surrender.clone(),
        server: database.and_then(|d| {
            let reads = parts.reads.term().is_some() && d.is_admitted(state.authority.term);
            Some(ServerStatus { reads, ..d.status()? })
        }),
        writer: memory.reign.as_ref().map(|r| writer_status(node, r)),
        hears: Default::default(),
        hold_ms: 0,
        disk_ms: database.map(|d| {
            let health = d.disk.health();
            let waiting = d.disk_stuck_for();
            health.latency.unwrap_or_default().max(waiting).as_millis() as u64
        }),
        upstream: match memory.feed {
            Feed::Open { from, .. } if state.authority.writer != Some(from) => Some(from),
            _ => None,
        },
        disk: node.slots.disk(),
        carries: node.carry.told(),
        document: memory.document,
        coordinating: parts.consensus.is_leader().then(|| node.coordinator_word()),
        vitals: node.vitals.now(node),
    };
    #[cfg(feature = "sabotage")]
    let status = {
        let mut status = status;
        crate::sabotage::distort(&mut status);
        status
    };
    let follows = feeds(&status, status.term).then_some(status.term);
    node.follows.send_if_modified(|now| std::mem::replace(now, follows) != follows);
    let urgent = parts.health.set_status(status);
    if urgent {
        parts.heartbeats.kick();
    }
}

/// "Following" only when the tunnel is up.
fn attached(node: &Node, memory: &Memory, doing: Doing) -> Doing {
    let live = node.parts.database.as_ref().is_some_and(|d| *d.feed.live().borrow() > 0);
    match (doing, memory.feed) {
        (Doing::Following, Feed::Open { .. }) if !live => Doing::Detached,
        (doing, _) => doing,
    }
}

fn writer_status(node: &Node, reign: &Reign) -> WriterStatus {
    let snapshot = node.parts.aggregator.snapshot();
    let standbys = snapshot
        .links
        .iter()
        .filter_map(|(n, word)| {
            let word = word.filter(|w| w.silent < FEEDBACK_SILENCE)?;
            let at = word.at;
            let (written, flushed, applied) = (at.write, at.flush, at.apply);
            Some((*n, StandbyLink { written, flushed, applied }))
        })
        .collect();
    WriterStatus {
        term: reign.own.term,
        serving: reign.own.open && !reign.own.drained && !node.parts.gate.is_draining(),
        leased: node.parts.health.lease_until().is_some_and(|at| at > clock::now()),
        rule: reign.own.rule,
        safe: snapshot.quorum.flush,
        standbys,
        lags: node.lags.judged(reign.own.term),
        drained: reign.own.drained,
        slots: node.slots.word(reign.own.term),
    }
}
