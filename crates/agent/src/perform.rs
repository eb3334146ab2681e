//! Performing: one arm per action. What takes time becomes a job, and its end a message.

use std::sync::{Arc, Mutex};

use quorate_core::Term;
use quorate_core::node::{Action, Data, Feed, Job};
use quorate_core::report::Report;
use quorate_core::state::Change;
use quorate_core::status::{Surrender, SurrenderReason};
use quorate_core::{Because, Lsn, NodeId, TimelineId};
use quorate_postgres::{Mode, Promoted};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::database::Database;
use crate::feed::{Copy, Follow};
use crate::limits::JOB_RETRY;
use crate::node::Node;
use crate::reign::Reign;
use crate::run::Memory;

/// What jobs and tasks tell the loop.
#[derive(Debug)]
pub enum Message {
    /// The job ended.
    JobDone {
        /// Its number.
        job: u64,
        /// How.
        outcome: Outcome,
    },
    /// The state has all that was agreed before this process began.
    Current,
    /// What the job is at, in words.
    Progress(String),
    /// A commit set holds the marker that was written under this rule.
    Marked { term: Term, rule: u64 },
    /// The preparation of a switchover ended.
    Drained { term: Term, failed: Option<String> },
    /// A proposal to consensus ended.
    Proposed { what: &'static str },
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    /// As wanted.
    Done,
    /// With the frozen log end.
    Frozen(Report),
    /// With the promotion's facts.
    Promoted { term: Term, promoted: Promoted },
    /// The promotion failed: the term is given up.
    NotPromoted { term: Term, why: String },
    /// Not as wanted; tried again where the decision says so.
    Failed { what: &'static str, why: String },
    /// A rewind that left the data unusable.
    Spoilt { why: String },
}

/// A job in progress.
pub struct Running {
    /// Its number.
    pub id: u64,
    /// Which.
    pub job: Job,
    /// The term it was decided in.
    pub term: Term,
    task: JoinHandle<()>,
}

impl Running {
    /// Ends it early. The processes it started end with it.
    pub fn cancel(self) {
        self.task.abort();
    }
}

/// Performs the actions of one decision, in order.
pub async fn perform(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    actions: &[Action],
) {
    for action in actions {
        perform_one(node, memory, messages, action).await;
    }
}

async fn perform_one(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    action: &Action,
) {
    let parts = &node.parts;
    if ends_reads(action) {
        // Before it begins: a session that outlived its server's promotion could write (R10).
        parts.reads.close();
    }
    match action {
        Action::Promise { term } => promise(node, memory, *term).await,
        Action::Fence => fence(node, memory),
        Action::CloseFeed => close_feed(node, memory).await,
        Action::Bootstrap => spawn_job(node, memory, messages, Job::Bootstrap, Plan::Bootstrap),
        Action::StartServer => spawn_job(node, memory, messages, Job::Start, Plan::Start),
        Action::StopServer => {
            spawn_job(node, memory, messages, Job::Stop, Plan::Stop(Mode::Immediate));
        }
        Action::ShutServer => {
            spawn_job(node, memory, messages, Job::Stop, Plan::Stop(Mode::Fast));
        }
        Action::Freeze { term } => {
            spawn_job(node, memory, messages, Job::Freeze, Plan::Freeze(*term));
        }
        Action::Promote { term, timeline } => {
            let plan = Plan::Promote(*term, *timeline, memory.report.as_ref().map(|r| r.timeline));
            spawn_job(node, memory, messages, Job::Promote, plan);
        }
        Action::Follow { from, term } => follow(node, memory, *from, *term),
        Action::Clone { from, term } => {
            spawn_job(node, memory, messages, Job::Clone, Plan::Clone(*from, *term));
        }
        Action::Rewind { from, term } => {
            spawn_job(node, memory, messages, Job::Rewind, Plan::Rewind(*from, *term));
        }
        Action::BeginReign { term, rule } => {
            let facts = memory.promoted.clone().filter(|(t, _, _)| t == term);
            if let Some((_, promoted, forks)) = facts {
                memory.reign = Reign::begin(node, *term, rule, promoted, forks);
            } else {
                surrender(node, memory, *term, SurrenderReason::BadPromotion);
            }
        }
        Action::AdoptRule { term, rule } => {
            if parts.aggregator.set_rule(*term, rule.clone())
                && let Some(reign) = &mut memory.reign
            {
                reign.own.rule = rule.generation;
            }
        }
        Action::Mark { term: _, rule } => {
            if let Some(reign) = &mut memory.reign {
                reign.mark(node, *rule, messages.clone());
            }
        }
        Action::ProposeOpened { term } => propose_opened(node, memory, messages, *term),
        Action::CloseRule { term, generation } => {
            let change = Change::CloseRule { term: *term, generation: *generation };
            spawn_proposal(node, memory, messages, "close-rule", change);
        }
        Action::Open { term } => {
            if let Some(reign) = &mut memory.reign {
                reign.own.open = true;
                parts.gate.open(*term);
                parts.health.renew_gate();
                tracing::info!(%term, "serving clients");
            }
        }
        Action::Drain { term: _, target } => {
            if let Some(reign) = &mut memory.reign {
                reign.drain(node, *target, messages.clone());
            }
        }
        Action::Surrender { term, reason } => surrender(node, memory, *term, *reason),
    }
}

/// Whether the server is not a standby that may answer reads any more once this has begun.
fn ends_reads(action: &Action) -> bool {
    match action {
        Action::Bootstrap
        | Action::StopServer
        | Action::ShutServer
        | Action::Promote { .. }
        | Action::Clone { .. }
        | Action::Rewind { .. }
        | Action::BeginReign { .. } => true,
        Action::Promise { .. }
        | Action::Fence
        | Action::CloseFeed
        | Action::StartServer
        | Action::Freeze { .. }
        | Action::Follow { .. }
        | Action::AdoptRule { .. }
        | Action::Mark { .. }
        | Action::ProposeOpened { .. }
        | Action::CloseRule { .. }
        | Action::Open { .. }
        | Action::Drain { .. }
        | Action::Surrender { .. } => false,
    }
}

async fn promise(node: &Arc<Node>, memory: &mut Memory, term: Term) {
    #[cfg(feature = "sabotage")]
    if crate::sabotage::is("promise") {
        memory.promise = quorate_core::node::Promise::Kept(term);
        return;
    }
    let shared = Arc::clone(node);
    let written = tokio::task::spawn_blocking(move || shared.parts.promise.write(term)).await;
    match written {
        Ok(Ok(())) => {
            memory.promise = quorate_core::node::Promise::Kept(term);
            memory.report = None;
            tracing::info!(%term, "promised");
        }
        Ok(Err(e)) => tracing::error!(error = %e, %term, "cannot write the promise file"),
        Err(e) => tracing::error!(error = %e, %term, "cannot write the promise file"),
    }
}

/// Stops acknowledging, answering and feeding, in this order of importance.
fn fence(node: &Arc<Node>, memory: &mut Memory) {
    node.parts.gate.close();
    node.parts.aggregator.fence();
    node.parts.health.ask(None);
    node.reigning.send_replace(None);
    if memory.reign.take().is_some() {
        tracing::warn!("fenced: no answer leaves this node any more");
    }
}

async fn close_feed(node: &Arc<Node>, memory: &mut Memory) {
    #[cfg(feature = "sabotage")]
    if crate::sabotage::is("promise") && matches!(memory.feed, Feed::Open { .. }) {
        return;
    }
    if let Some(database) = &node.parts.database
        && memory.feed != Feed::Closed
    {
        database.feed.close().await;
    }
    memory.feed = Feed::Closed;
}

fn follow(node: &Arc<Node>, memory: &mut Memory, from: NodeId, term: Term) {
    let Some(database) = &node.parts.database else { return };
    #[cfg(feature = "sabotage")]
    if matches!(memory.feed, Feed::Open { term: old, .. } if old < term)
        && crate::sabotage::lingers()
    {
        return;
    }
    let cascaded = node.parts.consensus.state().authority.writer != Some(from);
    let target = Follow {
        from,
        cascaded,
        term,
        links: node.parts.links.clone(),
        database: Arc::clone(database),
        news: memory.feed_news.clone(),
        timelines: Mutex::default(),
    };
    database.feed.set_target(Some(Arc::new(target)));
    memory.feed = Feed::Open { from, term };
    tracing::info!(%from, %term, "attaching");
}

pub fn surrender(node: &Arc<Node>, memory: &mut Memory, term: Term, reason: SurrenderReason) {
    fence(node, memory);
    tracing::warn!(%term, reason = reason.words(), "gave the term up");
    memory.surrender = Some(Surrender { term, reason, released: true });
    memory.stepped_down = Some(quorate_link::clock::now());
}

fn propose_opened(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    term: Term,
) {
    let Some(reign) = &memory.reign else { return };
    let promoted = &reign.promoted;
    let text =
        format!("{} writes on timeline {} from {}", node.parts.me, promoted.tli, promoted.fork_lsn);
    let change = Change::Opened {
        term,
        fork: promoted.fork_lsn,
        next_xid: promoted.next_xid,
        because: Because::new("R9", text),
    };
    spawn_proposal(node, memory, messages, "opened", change);
}

/// Proposes a change unless the same proposal is under way.
pub fn spawn_proposal(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    what: &'static str,
    change: Change,
) {
    if !memory.proposing.insert(what) {
        return;
    }
    let (node, messages) = (Arc::clone(node), messages.clone());
    tokio::spawn(async move {
        match node.propose(change).await {
            Ok(quorate_core::Answer::Done) => {}
            Ok(quorate_core::Answer::Refused { because }) => {
                tracing::debug!(what, because, "proposal refused");
            }
            Err(e) => tracing::debug!(what, error = %e, "proposal failed"),
        }
        let _ = messages.send(Message::Proposed { what }).await;
    });
}

/// A job with what it needs.
enum Plan {
    Bootstrap,
    Start,
    Stop(Mode),
    Freeze(Term),
    /// Term, timeline, and the timeline of the log that it is promoted from.
    Promote(Term, TimelineId, Option<TimelineId>),
    Clone(NodeId, Term),
    Rewind(NodeId, Term),
}

fn spawn_job(
    node: &Arc<Node>,
    memory: &mut Memory,
    messages: &mpsc::Sender<Message>,
    job: Job,
    plan: Plan,
) {
    if memory.job.is_some() {
        return;
    }
    let Some(database) = node.parts.database.clone() else { return };
    let term = node.parts.consensus.state().authority.term;
    memory.progress = None;
    memory.jobs += 1;
    let id = memory.jobs;
    let (node, messages) = (Arc::clone(node), messages.clone());
    let rejoins = matches!(plan, Plan::Clone(..) | Plan::Rewind(..));
    let fork = if rejoins { memory.fork.take() } else { None };
    let task = tokio::spawn(async move {
        if let (Plan::Clone(_, term) | Plan::Rewind(_, term), Some(fork)) = (&plan, fork) {
            keep_tail(&database, *term, fork).await;
        }
        let outcome = match plan {
            Plan::Bootstrap => bootstrap(&node, &database).await,
            Plan::Start => start(&node, &database).await,
            Plan::Stop(mode) => match database.stop(mode).await {
                Ok(()) => Outcome::Done,
                Err(e) => failed("stop the server", &e),
            },
            Plan::Freeze(term) => match database.freeze(term).await {
                Ok(report) => Outcome::Frozen(report),
                Err(e) => failed("freeze", &e),
            },
            Plan::Promote(term, timeline, from) => {
                promote(&node, &database, term, timeline, from).await
            }
            Plan::Clone(from, term) => clone(&node, &database, (from, term), &messages).await,
            Plan::Rewind(from, term) => rewind(&node, &database, (from, term), &messages).await,
        };
        if let Outcome::Failed { what, why } = &outcome {
            tracing::warn!(what, why, "a step failed and is tried again");
            tokio::time::sleep(JOB_RETRY).await;
        }
        let _ = messages.send(Message::JobDone { job: id, outcome }).await;
    });
    memory.job = Some(Running { id, job, term, task });
}

/// What is about to be dropped is kept aside. Rejoining does not wait for a full disk, though.
async fn keep_tail(database: &Database, term: Term, fork: Lsn) {
    match database.keep_tail(term, fork).await {
        Ok(path) => tracing::info!(%fork, path = %path.display(), "kept the log that diverged"),
        Err(e) => tracing::warn!(%fork, error = %e, "the log that diverged could not be kept"),
    }
}

fn failed(what: &'static str, error: &quorate_postgres::Error) -> Outcome {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        why += &format!(": {cause}");
        source = cause.source();
    }
    Outcome::Failed { what, why: format!("{why}. {}", error.hint()) }
}

async fn bootstrap(node: &Node, database: &Database) -> Outcome {
    let state = node.parts.consensus.state();
    let Some(password) = &node.parts.superuser_password else {
        let why = "the superuser's password file is missing: `quorate init` makes it".to_owned();
        return Outcome::Failed { what: "make the database", why };
    };
    match database.bootstrap(password, &database.settings(&state, node.parts.me)).await {
        Ok(()) => Outcome::Done,
        Err(e) => failed("make the database", &e),
    }
}

async fn start(node: &Node, database: &Database) -> Outcome {
    let state = node.parts.consensus.state();
    match database.start(&database.settings(&state, node.parts.me)).await {
        Ok(()) => Outcome::Done,
        Err(e) => {
            database.server.stop(Mode::Immediate).await;
            failed("start the server", &e)
        }
    }
}

async fn promote(
    node: &Node,
    database: &Database,
    term: Term,
    timeline: TimelineId,
    from: Option<TimelineId>,
) -> Outcome {
    let state = node.parts.consensus.state();
    let settings = database.settings(&state, node.parts.me);
    // Lowering costs a restart: only when nobody waits for a failover.
    let anew = match from.filter(|_| state.authority.planned) {
        Some(from) if database.lowers(&settings).await.unwrap_or(false) => Some(from),
        Some(_) | None => None,
    };
    let promoted = match anew {
        Some(from) => {
            tracing::info!(%from, "promoting by a restart, to lower settings");
            database.promote_anew(from, timeline, &settings).await
        }
        None => database.promote(timeline).await,
    };
    match promoted {
        Ok(promoted) => Outcome::Promoted { term, promoted },
        Err(e) => {
            // It may still become a writer: not by itself, then.
            database.server.stop(Mode::Immediate).await;
            Outcome::NotPromoted { term, why: e.to_string() }
        }
    }
}

fn lead_copies(node: &Node, database: &Database, (writer, term): (NodeId, Term)) {
    let target = Copy { writer, term, links: node.parts.links.clone() };
    database.copy.set_target(Some(Arc::new(target)));
}

async fn clone(
    node: &Node,
    database: &Database,
    source: (NodeId, Term),
    messages: &mpsc::Sender<Message>,
) -> Outcome {
    lead_copies(node, database, source);
    // Slots are not copied.
    if let Err(e) = node.carry.forget_all() {
        return Outcome::Failed { what: "forget its slots", why: e.to_string() };
    }
    let state = node.parts.consensus.state();
    tracing::info!(from = %source.0, "copying the database");
    let progress = |done: u64, total: u64| {
        let percent = (done * 100).checked_div(total).unwrap_or(0).min(100);
        let text = format!("{percent} % of {} MB copied", total / 1_048_576);
        let _ = messages.try_send(Message::Progress(text));
    };
    let result = database.clone_from(&database.settings(&state, node.parts.me), progress).await;
    database.copy.set_target(None);
    match result {
        Ok(()) => Outcome::Done,
        Err(e) => failed("copy the database", &e),
    }
}

async fn rewind(
    node: &Node,
    database: &Database,
    source: (NodeId, Term),
    messages: &mpsc::Sender<Message>,
) -> Outcome {
    lead_copies(node, database, source);
    // Slots are not rewound: what they decoded may be no part of the log any more.
    if let Err(e) = node.carry.forget_all() {
        return Outcome::Failed { what: "forget its slots", why: e.to_string() };
    }
    let state = node.parts.consensus.state();
    tracing::info!(to = %source.0, "rewinding");
    let line = |text: &str| {
        let _ = messages.try_send(Message::Progress(text.to_owned()));
    };
    let result = database.rewind(&database.settings(&state, node.parts.me), line).await;
    database.copy.set_target(None);
    match result {
        Ok(()) => Outcome::Done,
        Err(e) if matches!(e.retry(), quorate_postgres::Retry::Never) => {
            Outcome::Spoilt { why: e.to_string() }
        }
        Err(e) => failed("rewind", &e),
    }
}

/// The data directory after a job.
pub fn data_of(node: &Node) -> Data {
    node.parts.database.as_ref().map_or(Data::Missing, |d| d.data())
}
