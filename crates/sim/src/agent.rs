//! A node's process: gathers facts, calls the real decisions, performs their actions on the world.
//!
//! The counterpart of the agent crate's loop. What is decided is decided by `quorate_core`; what is
//! here is the order of things, and how long they take.

mod consensus;
mod cycle;
mod feeds;
mod handover;
mod jobs;
mod reign;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::authority::Phase;
use quorate_core::coordinator::{self};
use quorate_core::document::Document;
use quorate_core::health::{Beat, Effect, GateWord, Table};
use quorate_core::invariant::{Breach, Watch};
use quorate_core::limits::{HEARTBEAT_EVERY, PROBE_EVERY};
use quorate_core::node::{Feed, Job, OwnReign, Promise};
use quorate_core::report::Report;
use quorate_core::state::Change;
use quorate_core::status::{Doing, Surrender};
use quorate_core::{Because, Lsn, Moment, NodeId, Rule, State, Term, TimelineId};

use crate::event::{AgentEvent, Message};
use crate::flaw::Flaw;
use crate::raft::Raft;
use crate::world::World;

/// What a stream has sent and nobody has is sent again after this.
const RESEND: Duration = Duration::from_millis(400);

/// The response gate.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    pub(crate) term: Option<Term>,
    deadline: Moment,
    draining: bool,
}

impl Gate {
    fn open(&mut self, term: Term) {
        *self = Self { term: Some(term), ..Self::default() };
    }

    /// Whether answers of sessions of this term pass, wait, or never leave.
    pub(crate) fn check(&self, term: Term, now: Moment) -> Passage {
        match self.term == Some(term) {
            false => Passage::Cut,
            true if now < self.deadline => Passage::Pass,
            true => Passage::Hold,
        }
    }

    pub(crate) fn admits(&self) -> Option<Term> {
        self.term.filter(|_| !self.draining)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    Pass,
    Hold,
    Cut,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub(crate) enum JobEnd {
    Start,
    Stop,
    Freeze(Term),
    Promote(Term, TimelineId),
    Clone(usize, Term),
    Rewind(usize, Term),
    Pause,
}

#[derive(Debug)]
struct Running {
    id: u64,
    job: Job,
    term: Term,
}

/// A standby's stream from a writer.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u64,
    writer: usize,
    term: Term,
    welcome: bool,
    /// When something came over it last.
    heard: Moment,
}

/// A writer's end of it.
#[derive(Debug)]
struct Link {
    stream: u64,
    flushed: Option<u64>,
    applied: u64,
    heard: Moment,
    /// Records sent, and when the last of them were.
    sent: u64,
    sent_at: Moment,
}

/// The commit rule at work.
#[derive(Debug, Default)]
pub(crate) struct Aggregator {
    term: Term,
    open: bool,
    rule: Option<Rule>,
    own: u64,
    links: BTreeMap<NodeId, Link>,
    pub(crate) held: u64,
}

#[derive(Debug)]
struct Reign {
    own: OwnReign,
    timeline: TimelineId,
    forks: Rc<[(TimelineId, Lsn)]>,
    fork: Lsn,
    next_id: u64,
    /// The rule whose marker is under way, and where the marker ends.
    marker: Option<(u64, u64)>,
    drain: Option<Drain>,
    gave_up: Option<String>,
    leased_until: Moment,
}

#[derive(Debug)]
struct Drain {
    target: Option<NodeId>,
    until: Moment,
    /// Where the log ended when the last client was cut off.
    end: Option<u64>,
}

/// What a promotion made.
#[derive(Debug, Clone)]
struct Promoted {
    term: Term,
    timeline: TimelineId,
    fork: Lsn,
    next_id: u64,
    forks: Rc<[(TimelineId, Lsn)]>,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) life: u64,
    pub(crate) raft: Raft,
    pub(crate) election: u64,
    state: Rc<State>,
    /// Entries that were applied anywhere when the process began.
    agreed: usize,
    promise: Promise,
    /// A promise is being written: the loop waits.
    pub(crate) writing: bool,
    pub(crate) table: Table,
    pub(crate) watch: Watch,
    coordinator: coordinator::Memory,
    word: Because,
    job: Option<Running>,
    jobs: u64,
    feed: Feed,
    pub(crate) stream: Option<Stream>,
    report: Option<Report>,
    surrender: Option<Surrender>,
    stepped_down: Option<Moment>,
    promoted: Option<Promoted>,
    reign: Option<Reign>,
    pub(crate) gate: Gate,
    pub(crate) aggregator: Aggregator,
    proposing: BTreeMap<&'static str, u64>,
    proposals: BTreeSet<u64>,
    writer_waits: Option<Moment>,
    said: Because,
    doing: Doing,
    reluctant: bool,
    cycle_due: bool,
    look_due: bool,
}

impl Agent {
    pub(crate) fn new(
        life: u64,
        me: NodeId,
        promise: Option<Term>,
        raft: Raft,
        agreed: usize,
        now: Moment,
    ) -> Self {
        Self {
            life,
            raft,
            election: 0,
            state: Rc::default(),
            agreed,
            promise: promise.map_or(Promise::Lost, Promise::Kept),
            writing: false,
            table: Table::new(me, promise.unwrap_or_default(), now),
            watch: Watch::default(),
            coordinator: coordinator::Memory::default(),
            word: Because::default(),
            job: None,
            jobs: 0,
            feed: Feed::Closed,
            stream: None,
            report: None,
            surrender: None,
            stepped_down: None,
            promoted: None,
            reign: None,
            gate: Gate::default(),
            aggregator: Aggregator::default(),
            proposing: BTreeMap::new(),
            proposals: BTreeSet::new(),
            writer_waits: None,
            said: Because::default(),
            doing: Doing::Starting,
            reluctant: false,
            cycle_due: false,
            look_due: false,
        }
    }

    pub(crate) fn state(&self) -> &Rc<State> {
        &self.state
    }

    /// What this node said of itself last.
    pub(crate) fn doing(&self) -> (Doing, &Because) {
        (self.doing, &self.said)
    }

    /// The coordinator's sentence, as far as this node decided it.
    pub(crate) fn word(&self) -> &Because {
        &self.word
    }

    fn leads(&self) -> bool {
        self.raft.leads()
    }
}

impl World {
    fn agent(&mut self, node: usize) -> Option<&mut Agent> {
        self.hosts[node].agent.as_mut()
    }

    pub(crate) fn agent_happens(&mut self, node: usize, what: AgentEvent) {
        match what {
            AgentEvent::Cycle => self.cycle_event(node),
            AgentEvent::Coordinate => self.coordinate(node),
            AgentEvent::Beat => {
                self.beat(node);
                self.agent_event(node, HEARTBEAT_EVERY, AgentEvent::Beat);
            }
            AgentEvent::Probe => {
                self.probe(node);
                self.agent_event(node, PROBE_EVERY, AgentEvent::Probe);
                self.wake(node);
            }
            AgentEvent::Election { epoch } => self.campaign(node, epoch),
            AgentEvent::LeaderBeat => self.leader_beat(node),
            AgentEvent::Stored { stored, words } => {
                self.hosts[node].disk.raft = (*stored).clone();
                if let Some(agent) = self.agent(node) {
                    agent.raft.kept(&stored);
                }
                for (to, word) in words {
                    self.send(node, to, Message::Raft(word));
                }
                self.apply(node);
            }
            AgentEvent::Promised { term } => {
                let full = self.hosts[node].disk.full;
                if !full {
                    self.hosts[node].disk.promise = Some(term);
                }
                let Some(agent) = self.agent(node) else { return };
                agent.writing = false;
                if !full {
                    agent.promise = Promise::Kept(term);
                    agent.report = None;
                }
                self.cycle(node);
            }
            AgentEvent::JobDone { job, end } => self.job_done(node, job, end),
            AgentEvent::FeedRetry { stream } => self.feed_retry(node, stream),
            AgentEvent::MarkerRetry { term } => self.write_marker(node, term),
            AgentEvent::DrainStep { term } => self.drain_step(node, term),
            AgentEvent::ProposalLate { proposal } => {
                if let Some(agent) = self.agent(node) {
                    agent.proposals.remove(&proposal);
                    agent.proposing.retain(|_, p| *p != proposal);
                }
            }
        }
    }

    /// A node has seen what must never be.
    pub(crate) fn noticed(&mut self, breach: Option<Breach>) {
        if let Some(breach) = breach {
            let text = format!("{}: {}", breach.invariant.sentence(), breach.seen);
            self.checks.fail(self.now, &text);
        }
    }

    pub(crate) fn agent_hears(&mut self, from: usize, to: usize, message: Message) {
        let now = self.moment(to);
        let name = self.hosts[from].name;
        let Some(agent) = self.hosts[to].agent.as_mut() else { return };
        match message {
            Message::Beat { beat, sent } => {
                let (answer, effect) = agent.table.heard(name, Some(Beat::clone(&beat)), now);
                let breach = agent.watch.hear(&beat.status, &agent.state.authority).cloned();
                self.noticed(breach);
                self.effect(to, effect);
                self.send(to, from, Message::BeatAnswer { answer, sent });
            }
            Message::BeatAnswer { answer, sent } => {
                let effect = agent.table.answered(name, sent, Some(answer), now);
                self.effect(to, effect);
            }
            Message::Refused => {
                let effect = agent.table.refused(name);
                self.effect(to, effect);
            }
            Message::Raft(word) => {
                let output = agent.raft.hear(from, word);
                self.raft_output(to, output);
            }
            Message::Propose { proposal, command } => {
                match agent.raft.propose(proposal, *command) {
                    Some(output) => self.raft_output(to, output),
                    None => self.send(to, from, Message::Proposed { proposal }),
                }
            }
            Message::Proposed { proposal } => self.proposed(to, proposal),
            Message::Hello { stream, term, end } => self.hello(from, to, stream, term, &end),
            Message::Welcome { stream, timeline, forks } => {
                self.welcome(to, stream, timeline, &forks);
            }
            Message::Unwelcome { stream, why } => self.unwelcome(to, stream, why),
            Message::Wal { stream, end } => {
                match agent.stream.as_mut().filter(|s| s.id == stream) {
                    Some(s) if s.welcome => {
                        s.heard = now;
                        self.receive(to, end);
                    }
                    // The welcome is lost: it is asked for again.
                    Some(_) => {}
                    None => self.send(to, from, Message::Closed { stream }),
                }
            }
            Message::Feedback { stream, flushed, applied } => {
                if let Some(link) = agent.aggregator.links.get_mut(&name)
                    && link.stream == stream
                {
                    link.heard = now;
                    link.flushed = link.flushed.max(Some(flushed));
                    link.applied = link.applied.max(applied);
                    // A stream repeats what did not come through.
                    let lost = flushed < link.sent && now.since(link.sent_at) > RESEND;
                    if lost {
                        link.sent = flushed;
                    }
                    self.release_commits(to);
                    if lost {
                        self.feed_standbys(to);
                    }
                } else {
                    self.send(to, from, Message::Closed { stream });
                }
            }
            Message::Closed { stream } => {
                let links = &mut agent.aggregator.links;
                if links.get(&name).is_some_and(|l| l.stream == stream) {
                    links.remove(&name);
                    self.wake(to);
                }
                self.stream_ended(to, stream);
            }
            Message::Request { operation, term } => self.request(from, to, operation, term),
            Message::Reply { operation, served } => self.reply(operation, served),
            Message::Ask { operation, transaction } => {
                if let Some(fate) = self.look_up(to, transaction) {
                    self.send(to, from, Message::Fate { operation, fate });
                }
            }
            Message::Fate { operation, fate } => self.told(operation, fate),
        }
    }

    fn effect(&mut self, node: usize, effect: Effect) {
        let flaw = self.flaw;
        let Some(agent) = self.agent(node) else { return };
        match effect.gate {
            GateWord::Keep => {}
            GateWord::Close if flaw == Flaw::NoGate => {}
            GateWord::Close => agent.gate.term = None,
            GateWord::Renew(term, until) if agent.gate.term == Some(term) => {
                agent.gate.deadline = until;
            }
            GateWord::Renew(..) => {}
        }
        if effect.news {
            self.wake(node);
            self.attend(node);
        }
    }

    /// Lets the coordinator look at the cluster soon.
    fn attend(&mut self, node: usize) {
        if let Some(agent) = self.agent(node)
            && !std::mem::replace(&mut agent.look_due, true)
        {
            self.agent_event(node, Duration::from_micros(50), AgentEvent::Coordinate);
        }
    }

    /// Lets the loop look at everything soon.
    pub(crate) fn wake(&mut self, node: usize) {
        if let Some(agent) = self.agent(node)
            && !std::mem::replace(&mut agent.cycle_due, true)
        {
            self.agent_event(node, Duration::from_micros(200), AgentEvent::Cycle);
        }
    }

    /// The streams of a process that ended: the kernel closes them, if the network lets it.
    pub(crate) fn hang_up(&mut self, node: usize, agent: &Agent) {
        if let Some(s) = &agent.stream {
            self.send(node, s.writer, Message::Closed { stream: s.id });
        }
        for (name, link) in &agent.aggregator.links {
            if let Some(to) = self.index(*name) {
                self.send(node, to, Message::Closed { stream: link.stream });
            }
        }
    }

    /// Whom this node takes for the writer that serves.
    pub(crate) fn writer_known_to(&self, node: usize) -> Option<(usize, Term)> {
        let authority = &self.hosts[node].agent.as_ref()?.state.authority;
        let serving = authority.phase == Phase::Serving;
        let writer = authority.writer.filter(|_| serving)?;
        Some((self.index(writer)?, authority.term))
    }

    /// The node that serves clients in the newest term.
    pub(crate) fn serving(&self) -> Option<usize> {
        let open = |i: &usize| {
            let host = &self.hosts[*i];
            let agent = host.agent.as_ref()?;
            let term = agent.gate.admits()?;
            (agent.reign.as_ref()?.own.open && host.server.as_ref()?.writes).then_some(term)
        };
        (0..self.hosts.len()).filter(|i| open(i).is_some()).max_by_key(open)
    }

    /// Whoever leads consensus, as far as a majority could agree.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.hosts.len())
            .filter(|i| self.hosts[*i].agent.as_ref().is_some_and(Agent::leads))
            .max_by_key(|i| self.hosts[*i].agent.as_ref().map(|a| a.raft.stored.term()))
    }

    /// An operator asks for another document, through some node. One that is not valid is refused
    /// there, as the command line does.
    pub(crate) fn change_document(&mut self, node: usize, field: &str, value: &str) {
        let Some(agent) = self.agent(node) else { return };
        let expect_version = agent.state.document_version();
        match with(&agent.state.document(), field, value) {
            Ok(document) => {
                self.propose(node, "", Change::SetDocument { expect_version, document });
            }
            Err(problem) => self.trace.note(self.now, &problem),
        }
    }
}

/// A document with another value in one field, which may be one of another: `nodes.n3.role`.
pub(crate) fn with(document: &Document, field: &str, value: &str) -> Result<Document, String> {
    let mut fields = serde_json::to_value(document).map_err(|e| e.to_string())?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    let mut place = &mut fields;
    for name in field.split('.') {
        place = &mut place[name];
    }
    *place = value;
    let changed: Document = serde_json::from_value(fields).map_err(|e| e.to_string())?;
    match changed.validate().first() {
        Some(problem) => Err(problem.to_string()),
        None => Ok(changed),
    }
}
