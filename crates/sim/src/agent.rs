//! A node's process: gathers facts, calls the real decisions, performs their actions on the world.
//!
//! The counterpart of the agent crate's loop. What is decided is decided by `quorate_core`; what is
//! here is the order of things, and how long they take.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::authority::Phase;
use quorate_core::coordinator::{self, ClusterView, Peer};
use quorate_core::document::Document;
use quorate_core::health::{Beat, Effect, GateWord, Table};
use quorate_core::node::{self, Action, Data, Feed, Job, NodeView, OwnReign, Promise, Server};
use quorate_core::report::{Report, on_history};
use quorate_core::state::{Change, NodeKind};
use quorate_core::status::{
    Doing, NodeStatus, ServerStatus, StandbyLink, Surrender, SurrenderReason, WriterStatus,
};
use quorate_core::{
    Answer, Because, Command, Lsn, Moment, NodeId, Rule, State, Term, TimelineId, limits,
};

use crate::raft::{self, Output, Raft};
use crate::server::records;
use crate::wal::lsn;
use crate::world::{AgentEvent, Event, Flaw, Message, Unwelcome, World, nanos};

const CYCLE: Duration = Duration::from_millis(250);
const COORDINATE_EVERY: Duration = Duration::from_millis(100);
const ATTEND_EVERY: Duration = Duration::from_millis(400);
const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);
const PROBE_EVERY: Duration = Duration::from_millis(250);
const HUNG_AFTER: Duration = Duration::from_millis(1800);
const DISK_STUCK_AFTER: Duration = Duration::from_secs(3);
const JOB_RETRY: Duration = Duration::from_secs(1);
const YIELD: Duration = Duration::from_millis(300);
const REJOIN_WAIT: Duration = Duration::from_secs(5);
const FEEDBACK_SILENCE: Duration = Duration::from_secs(3);
const MARKER_RETRY: Duration = Duration::from_millis(20);
/// What a stream has sent and nobody has is sent again after this.
const RESEND: Duration = Duration::from_millis(400);
const FEED_RETRY: Duration = Duration::from_millis(50);
/// How long a stream that hears nothing is kept before it is opened anew.
const STREAM_SILENCE: Duration = Duration::from_secs(10);
const DRAIN_STEP: Duration = Duration::from_millis(4);
const DRAIN_WAIT: Duration = Duration::from_secs(4);
const PROPOSE_WITHIN: Duration = Duration::from_secs(5);

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
struct Aggregator {
    term: Term,
    open: bool,
    rule: Option<Rule>,
    own: u64,
    links: BTreeMap<NodeId, Link>,
    held: u64,
}

#[derive(Debug)]
struct Reign {
    own: OwnReign,
    timeline: TimelineId,
    forks: Rc<[(TimelineId, Lsn)]>,
    fork: Lsn,
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

/// A process.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) life: u64,
    pub(crate) raft: Raft,
    pub(crate) election: u64,
    state: Rc<State>,
    promise: Promise,
    /// A promise is being written: the loop waits.
    pub(crate) writing: bool,
    pub(crate) table: Table,
    coordinator: coordinator::Memory,
    word: Because,
    job: Option<Running>,
    jobs: u64,
    feed: Feed,
    pub(crate) stream: Option<Stream>,
    report: Option<Report>,
    surrender: Option<Surrender>,
    stepped_down: Option<Moment>,
    promoted: Option<(Term, TimelineId, Lsn, Rc<[(TimelineId, Lsn)]>)>,
    reign: Option<Reign>,
    pub(crate) gate: Gate,
    aggregator: Aggregator,
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
        now: Moment,
    ) -> Self {
        Self {
            life,
            raft,
            election: 0,
            state: Rc::default(),
            promise: promise.map_or(Promise::Lost, Promise::Kept),
            writing: false,
            table: Table::new(me, promise.unwrap_or_default(), now),
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
                if !full && self.flaw != Flaw::VolatilePromise {
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

    pub(crate) fn agent_hears(&mut self, from: usize, to: usize, message: Message) {
        let now = self.moment(to);
        let name = self.hosts[from].name;
        let Some(agent) = self.hosts[to].agent.as_mut() else { return };
        match message {
            Message::Beat { beat, sent } => {
                let (answer, effect) = agent.table.heard(name, Some(Beat::clone(&beat)), now);
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
            Message::Propose { proposal, command } => match agent.raft.propose(proposal, *command) {
                Some(output) => self.raft_output(to, output),
                None => self.send(to, from, Message::Proposed { proposal, answer: None }),
            },
            Message::Proposed { proposal, answer } => self.proposed(to, proposal, answer.is_some()),
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

    // Consensus.

    pub(crate) fn set_election_timer(&mut self, node: usize) {
        let span = nanos(raft::ELECTION_MAX - raft::ELECTION_MIN) as usize;
        let wait = raft::ELECTION_MIN + Duration::from_nanos(self.random.below(span) as u64);
        let Some(agent) = self.agent(node) else { return };
        agent.election += 1;
        let epoch = agent.election;
        let wait = if agent.reluctant { wait + raft::RELUCTANCE } else { wait };
        self.agent_event(node, wait, AgentEvent::Election { epoch });
    }

    fn campaign(&mut self, node: usize, epoch: u64) {
        let Some(agent) = self.agent(node) else { return };
        if agent.election != epoch {
            return;
        }
        if agent.leads() {
            return self.set_election_timer(node);
        }
        let output = agent.raft.campaign();
        self.raft_output(node, output);
    }

    fn leader_beat(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        if !agent.leads() {
            return;
        }
        for (to, word) in agent.raft.news() {
            self.send(node, to, Message::Raft(word));
        }
        self.agent_event(node, raft::HEARTBEAT, AgentEvent::LeaderBeat);
    }

    fn raft_output(&mut self, node: usize, output: Output) {
        let Some(agent) = self.agent(node) else { return };
        let stored = agent.raft.stored.clone();
        if output.rests {
            self.set_election_timer(node);
        }
        if output.leads {
            self.agent_event(node, raft::HEARTBEAT, AgentEvent::LeaderBeat);
        }
        let pending = self.hosts[node].disk.raft_until > self.now;
        let stalled = self.hosts[node].disk.stalled.is_some() || self.hosts[node].disk.full;
        if output.writes || (pending || stalled) && !output.words.is_empty() {
            let took = nanos(self.some_us(300, 2_000));
            let now = self.now;
            let disk = &mut self.hosts[node].disk;
            let done = disk.raft_until.max(now) + if output.writes { took } else { 0 };
            disk.raft_until = done;
            let life = self.hosts[node].agent.as_ref().map_or(0, |a| a.life);
            let what = AgentEvent::Stored { stored: Box::new(stored), words: output.words };
            let event = Event::Agent { node, life, what };
            let disk = &mut self.hosts[node].disk;
            match stalled {
                true => disk.waiting.push(event),
                false => self.at(done, event),
            }
        } else {
            for (to, word) in output.words {
                self.send(node, to, Message::Raft(word));
            }
            self.apply(node);
        }
    }

    fn apply(&mut self, node: usize) {
        let mut changed = false;
        while let Some(entry) = self.agent(node).and_then(|a| a.raft.next_applied()) {
            changed = true;
            let Some(agent) = self.agent(node) else { return };
            let (state, answer) = entry.apply(&agent.state).clone();
            agent.state = Rc::clone(&state);
            let (leads, applied) = (agent.leads(), agent.raft.applied());
            if applied > self.applied {
                (self.newest, self.applied) = (state, applied);
            }
            if entry.proposal > 0 && leads {
                self.answer(node, entry.proposal, answer);
            }
        }
        if changed {
            self.wake(node);
            self.attend(node);
        }
    }

    /// Tells whoever proposed; proposals are numbered for all nodes.
    fn answer(&mut self, node: usize, proposal: u64, answer: Answer) {
        for to in 0..self.hosts.len() {
            let asked =
                self.hosts[to].agent.as_ref().is_some_and(|a| a.proposals.contains(&proposal));
            if asked {
                let answer = Some(answer.clone());
                self.send(node, to, Message::Proposed { proposal, answer });
            }
        }
    }

    pub(crate) fn propose(&mut self, node: usize, what: &'static str, change: Change) {
        let proposal = self.number();
        let Some(agent) = self.agent(node) else { return };
        if !what.is_empty() {
            if agent.proposing.contains_key(what) {
                return;
            }
            agent.proposing.insert(what, proposal);
        }
        agent.proposals.insert(proposal);
        let Some(leader) = agent.raft.leader else {
            return self.agent_event(node, raft::HEARTBEAT, AgentEvent::ProposalLate { proposal });
        };
        let command = Box::new(Command { at: 0, change });
        self.send(node, leader, Message::Propose { proposal, command });
        self.agent_event(node, PROPOSE_WITHIN, AgentEvent::ProposalLate { proposal });
    }

    fn proposed(&mut self, node: usize, proposal: u64, _answered: bool) {
        let Some(agent) = self.agent(node) else { return };
        agent.proposals.remove(&proposal);
        agent.proposing.retain(|_, p| *p != proposal);
        self.wake(node);
        self.attend(node);
    }

    /// The coordinator's look, and whether this node should rather not lead.
    fn coordinate(&mut self, node: usize) {
        let now = self.moment(node);
        let voters: BTreeSet<NodeId> = self.hosts.iter().map(|h| h.name).collect();
        let me = self.hosts[node].name;
        let Some(agent) = self.agent(node) else { return };
        let asked = std::mem::take(&mut agent.look_due);
        let state = Rc::clone(&agent.state);
        let peers = agent.table.peers(now);
        agent.reluctant = reluctant(me, now, &state, &peers);
        let leads = agent.leads();
        let mut change = None;
        if leads {
            let view = ClusterView { me, now, state: &state, voters: &voters, peers: &peers };
            let verdict = coordinator::decide(&view, &mut agent.coordinator);
            agent.word = verdict.because;
            change = verdict.change;
        } else {
            agent.coordinator = coordinator::Memory::default();
            let gone = |leader: usize| {
                let name = self.hosts[leader].name;
                peers.get(&name).is_some_and(|p| p.gone)
            };
            let leader = self.hosts[node].agent.as_ref().and_then(|a| a.raft.leader);
            let reluctant = self.hosts[node].agent.as_ref().is_some_and(|a| a.reluctant);
            if leader.is_some_and(gone) && !reluctant {
                self.hurry_election(node);
            }
        }
        if let Some(change) = change {
            self.propose(node, "coordinate", change);
        }
        if !asked {
            let wait = if leads { COORDINATE_EVERY } else { ATTEND_EVERY };
            self.agent_event(node, wait, AgentEvent::Coordinate);
        }
    }

    /// A leader that is seen to be gone is replaced without waiting for its silence.
    fn hurry_election(&mut self, node: usize) {
        let wait = self.some_us(10_000, 150_000);
        let Some(agent) = self.agent(node) else { return };
        agent.raft.leader = None;
        agent.election += 1;
        let epoch = agent.election;
        self.agent_event(node, wait, AgentEvent::Election { epoch });
    }

    // Heartbeats.

    fn beat(&mut self, node: usize) {
        let now = self.moment(node);
        let members: Vec<usize> = (0..self.hosts.len()).filter(|n| *n != node).collect();
        let Some(agent) = self.agent(node) else { return };
        let Some(beat) = agent.table.beat(now).map(Rc::new) else { return };
        for to in members {
            self.send(node, to, Message::Beat { beat: Rc::clone(&beat), sent: now });
        }
    }

    // The loop.

    fn cycle_event(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        let asked = std::mem::take(&mut agent.cycle_due);
        self.cycle(node);
        if !asked {
            self.agent_event(node, CYCLE, AgentEvent::Cycle);
        }
    }

    fn cycle(&mut self, node: usize) {
        if self.hosts[node].agent.as_ref().is_none_or(|a| a.writing) {
            return;
        }
        self.take_in(node);
        let Some(agent) = self.hosts[node].agent.as_ref() else { return };
        let state = Rc::clone(&agent.state);
        let decision = node::decide(&self.view(node, agent, &state));
        if let Some(agent) = self.agent(node)
            && agent.said != decision.because
        {
            agent.said = decision.because.clone();
            if self.trace.on() {
                let line = format!("{:?}: {}", decision.doing, decision.because);
                self.trace.say(self.now, node, &line);
            }
        }
        for action in &decision.actions {
            self.perform(node, action);
        }
        self.publish(node, &state, decision.doing, decision.because);
    }

    fn take_in(&mut self, node: usize) {
        let now = self.moment(node);
        let voters: BTreeSet<NodeId> = self.hosts.iter().map(|h| h.name).collect();
        let stuck = self.disk_stuck(node) >= DISK_STUCK_AFTER;
        let incomplete = self.hosts[node].disk.data.rewound.is_some();
        let Some(agent) = self.hosts[node].agent.as_mut() else { return };
        let state = Rc::clone(&agent.state);
        let term = state.authority.term;
        let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        let promised = matches!(agent.promise, Promise::Kept(_));
        let effect = agent.table.set_cluster(term, voters, &members, promised);
        agent.table.set_strict(state.document().strict_reads);
        if agent.surrender.as_ref().is_some_and(|s| s.term < term) {
            agent.surrender = None;
        }
        if agent.report.as_ref().is_some_and(|r| r.term != term) {
            agent.report = None;
        }
        let stale = |r: &Running| {
            r.term < term
                && (matches!(r.job, Job::Clone | Job::Rewind) || incomplete && r.job == Job::Start)
        };
        if agent.job.as_ref().is_some_and(stale) {
            agent.job = None;
        }
        let mut drop_plan = None;
        if let Some(reign) = &mut agent.reign {
            if let Some(until) = agent.table.lease_until(now) {
                reign.leased_until = reign.leased_until.max(until);
            }
            let patience = agent.table.lease_length() * limits::LEASELESS_STOP;
            reign.own.lease_lost = now > reign.leased_until + patience;
            let healthy = agent.aggregator.links.keys().any(|n| {
                let disk = agent.table.status_of(*n).and_then(|s| s.disk_ms);
                disk.is_some_and(|ms| ms < 500)
            });
            reign.own.stuck = (stuck && healthy).then_some(SurrenderReason::Disk);
            match (&state.authority.switchover, &reign.gave_up) {
                (None, _) => {
                    reign.gave_up = None;
                    if reign.drain.take().is_some() {
                        reign.own.drained = false;
                        agent.gate.draining = false;
                        if reign.own.open
                            && agent.gate.term.is_none()
                            && agent.table.asks(reign.own.term)
                        {
                            agent.gate.open(reign.own.term);
                            if let GateWord::Renew(_, until) = agent.table.renewal(now) {
                                agent.gate.deadline = until;
                            }
                        }
                    }
                }
                (Some(_), Some(why)) => {
                    let because = Because::new("op-switchover", why.clone());
                    drop_plan = Some(Change::DropSwitchover { term: reign.own.term, because });
                }
                (Some(_), None) => {}
            }
        }
        let word = state.authority.writer.and_then(|w| agent.table.status_of(w)?.writer.clone());
        let waits = word.is_some_and(|w| w.term == term && !w.serving);
        agent.writer_waits = waits.then(|| agent.writer_waits.unwrap_or(now));
        self.effect(node, effect);
        if let Some(change) = drop_plan {
            self.propose(node, "drop-switchover", change);
        }
        self.watch_stream(node, now);
    }

    /// How long the disk has not answered.
    fn disk_stuck(&self, node: usize) -> Duration {
        let since = self.hosts[node].disk.stalled;
        since.map_or(Duration::ZERO, |at| Duration::from_nanos(self.now - at))
    }

    fn view<'a>(&self, node: usize, agent: &'a Agent, state: &'a State) -> NodeView<'a> {
        let now = self.moment(node);
        let host = &self.hosts[node];
        let term = state.authority.term;
        let word = state
            .authority
            .writer
            .and_then(|w| agent.table.status_of(w)?.writer.as_ref())
            .filter(|w| w.term == term);
        let data = match &host.disk.data {
            d if d.spoilt => Data::Spoilt,
            d if d.rewound.is_some() => Data::Incomplete,
            d if d.end.is_none() => Data::Missing,
            _ => Data::Ready,
        };
        let server = match host.server.as_ref() {
            None => Server::Down,
            Some(server) => match server.facts {
                None => Server::Starting,
                Some(facts) if now.since(facts.answered) > HUNG_AFTER => Server::Hung,
                Some(facts) if facts.writes => Server::Writer(facts.timeline),
                Some(_) => Server::Standby,
            },
        };
        NodeView {
            me: host.name,
            kind: host.kind,
            state,
            promise: agent.promise,
            server,
            data,
            job: agent.job.as_ref().map(|r| r.job),
            feed: agent.feed,
            report: agent.report.as_ref(),
            surrender: agent.surrender.as_ref(),
            reign: agent.reign.as_ref().map(|r| &r.own),
            writer_open: word.is_some(),
            writer_serving: word.is_some_and(|w| w.serving),
            writer_waits: agent.writer_waits.is_some_and(|at| now.since(at) > REJOIN_WAIT),
            lease_clear: self.flaw == Flaw::NoLeaseWait || agent.table.lease_clear(term, now),
            restart: false,
            starved: false,
            yields: agent.stepped_down.is_some_and(|at| now.since(at) < YIELD)
                && !word.is_some_and(|w| w.serving),
        }
    }

    fn perform(&mut self, node: usize, action: &Action) {
        match action {
            Action::Promise { term } => {
                if let Some(agent) = self.agent(node) {
                    agent.writing = true;
                    let life = agent.life;
                    let wait = self.some_us(300, 3_000);
                    let what = AgentEvent::Promised { term: *term };
                    self.disk_event(node, wait, Event::Agent { node, life, what });
                }
            }
            Action::Fence => self.fence(node),
            Action::CloseFeed if self.flaw == Flaw::NoCut => {}
            Action::CloseFeed => self.close_feed(node),
            Action::Bootstrap => {}
            Action::StartServer => self.job(node, Job::Start, JobEnd::Start, (60, 600)),
            Action::StopServer => self.job(node, Job::Stop, JobEnd::Stop, (20, 120)),
            Action::ShutServer => self.job(node, Job::Stop, JobEnd::Stop, (50, 300)),
            Action::Freeze { term } => {
                self.job(node, Job::Freeze, JobEnd::Freeze(*term), (10, 90));
            }
            Action::Promote { term, timeline } => {
                self.job(node, Job::Promote, JobEnd::Promote(*term, *timeline), (40, 300));
            }
            Action::Follow { writer, term } => self.follow(node, *writer, *term),
            Action::Clone { from, term } => {
                if let Some(from) = self.index(*from) {
                    self.job(node, Job::Clone, JobEnd::Clone(from, *term), (1_500, 5_000));
                }
            }
            Action::Rewind { from, term } => {
                if let Some(from) = self.index(*from) {
                    let idle = self.hosts[node].agent.as_ref().is_some_and(|a| a.job.is_none());
                    if idle {
                        self.end_server(node);
                        self.hosts[node].disk.data.spoilt = true;
                    }
                    self.job(node, Job::Rewind, JobEnd::Rewind(from, *term), (800, 3_000));
                }
            }
            Action::BeginReign { term, rule } => self.begin_reign(node, *term, rule),
            Action::AdoptRule { term, rule } => {
                let Some(agent) = self.agent(node) else { return };
                if agent.aggregator.term == *term
                    && let Some(reign) = &mut agent.reign
                {
                    agent.aggregator.rule = Some(rule.clone());
                    reign.own.rule = rule.generation;
                    self.release_commits(node);
                }
            }
            Action::Mark { term, .. } => self.write_marker(node, *term),
            Action::ProposeOpened { term } => {
                let Some(agent) = self.agent(node) else { return };
                let Some(reign) = &agent.reign else { return };
                let because = Because::new("R9", "promoted");
                let fork = reign.fork;
                let change = Change::Opened { term: *term, fork, next_xid: 1, because };
                self.propose(node, "opened", change);
            }
            Action::CloseRule { term, generation } => {
                let change = Change::CloseRule { term: *term, generation: *generation };
                self.propose(node, "close-rule", change);
            }
            Action::Open { term } => self.open(node, *term),
            Action::Drain { target, .. } => self.drain(node, *target),
            Action::Surrender { term, reason } => self.surrender(node, *term, *reason),
        }
    }

    fn fence(&mut self, node: usize) {
        let now = self.moment(node);
        let flaw = self.flaw;
        let Some(agent) = self.agent(node) else { return };
        if flaw != Flaw::NoGate {
            agent.gate.term = None;
        }
        agent.aggregator.open = false;
        let effect = agent.table.ask(None, now);
        let links = std::mem::take(&mut agent.aggregator.links);
        let reigned = agent.reign.take().is_some();
        self.effect(node, effect);
        for (name, link) in links {
            if let Some(to) = self.index(name) {
                self.send(node, to, Message::Closed { stream: link.stream });
            }
        }
        if reigned {
            self.trace.say(self.now, node, "fenced");
        }
    }

    fn surrender(&mut self, node: usize, term: Term, reason: SurrenderReason) {
        self.fence(node);
        let now = self.moment(node);
        if let Some(agent) = self.agent(node) {
            agent.surrender = Some(Surrender { term, reason, released: true });
            agent.stepped_down = Some(now);
        }
    }

    fn job(&mut self, node: usize, job: Job, end: JobEnd, (least, most): (u64, u64)) {
        let wait = self.some_us(least * 1000, most * 1000);
        let Some(agent) = self.agent(node) else { return };
        if agent.job.is_some() {
            return;
        }
        agent.jobs += 1;
        let (id, life) = (agent.jobs, agent.life);
        agent.job = Some(Running { id, job, term: agent.state.authority.term });
        let what = AgentEvent::JobDone { job: id, end };
        self.disk_event(node, wait, Event::Agent { node, life, what });
    }

    /// A job that did not succeed ends after a pause, so that it is not tried at once again.
    fn job_fails(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        let Some(id) = agent.job.as_ref().map(|r| r.id) else { return };
        let end = JobEnd::Pause;
        self.agent_event(node, JOB_RETRY, AgentEvent::JobDone { job: id, end });
    }

    fn job_done(&mut self, node: usize, job: u64, end: JobEnd) {
        let Some(agent) = self.agent(node) else { return };
        if agent.job.as_ref().is_none_or(|r| r.id != job) {
            return;
        }
        let full = self.hosts[node].disk.full;
        match end {
            JobEnd::Pause => {}
            JobEnd::Stop => self.end_server(node),
            JobEnd::Start | JobEnd::Promote(..) | JobEnd::Clone(..) | JobEnd::Rewind(..)
                if full =>
            {
                if matches!(end, JobEnd::Start) {
                    self.end_server(node);
                }
                return self.job_fails(node);
            }
            JobEnd::Start => {
                let data = &self.hosts[node].disk.data;
                if data.rewound.is_some_and(|need| data.depth() < need) {
                    // It answers once the writer has sent what it lacks.
                    if self.hosts[node].server.is_none() {
                        self.begin_server(node);
                        if let Some(server) = &mut self.hosts[node].server {
                            server.facts = None;
                        }
                    }
                    let what = AgentEvent::JobDone { job, end: JobEnd::Start };
                    return self.agent_event(node, Duration::from_millis(20), what);
                }
                self.hosts[node].disk.data.rewound = None;
                match self.hosts[node].server.is_none() {
                    true => self.begin_server(node),
                    false => self.probe(node),
                }
            }
            JobEnd::Freeze(term) => {
                self.receiver_ended(node);
                let Some(server) = &self.hosts[node].server else {
                    return self.job_fails(node);
                };
                let data = &self.hosts[node].disk.data;
                if server.stopped || server.writes {
                    return self.job_fails(node);
                }
                let mut report = data.report(term);
                if self.flaw == Flaw::NoCut {
                    report.lsn = lsn(data.flushed);
                }
                if let Some(agent) = self.agent(node) {
                    agent.report = Some(report);
                }
            }
            JobEnd::Promote(term, timeline) => {
                let able = self.hosts[node].server.as_ref().is_some_and(|s| !s.stopped);
                if !able {
                    self.end_server(node);
                    if let Some(agent) = self.agent(node) {
                        agent.job = None;
                    }
                    self.surrender(node, term, SurrenderReason::BadPromotion);
                    return self.cycle(node);
                }
                self.promoted(node, term, timeline);
            }
            JobEnd::Clone(from, term) => {
                if !self.may_copy(node, from, term) {
                    return self.job_fails(node);
                }
                self.end_server(node);
                self.clone_to(node, from);
            }
            JobEnd::Rewind(from, term) => {
                if !self.may_copy(node, from, term) {
                    return self.job_fails(node);
                }
                self.rewind_to(node, from);
                self.hosts[node].disk.data.spoilt = false;
            }
        }
        if let Some(agent) = self.agent(node) {
            agent.job = None;
        }
        self.cycle(node);
    }

    fn may_copy(&self, node: usize, from: usize, term: Term) -> bool {
        let reigns = |a: &Agent| a.reign.as_ref().is_some_and(|r| r.own.term == term);
        !self.is_cut(node, from)
            && !self.is_cut(from, node)
            && self.hosts[from].agent.as_ref().is_some_and(reigns)
            && self.hosts[from].server.as_ref().is_some_and(|s| s.writes && !s.stopped)
    }

    fn promoted(&mut self, node: usize, term: Term, timeline: TimelineId) {
        let before = self.hosts[node].disk.data.clone();
        let fork = lsn(before.depth());
        let report = self.hosts[node].agent.as_ref().and_then(|a| a.report.clone());
        // A record ahead: promotion writes its own checkpoint, which nobody waits for.
        let end = self.hosts[node].disk.data.depth();
        self.promote_server(node, timeline);
        debug_assert_eq!(self.hosts[node].disk.data.depth(), end);
        self.probe(node);
        let report = report.unwrap_or_else(|| before.report(term));
        let owner = report.owner();
        let mut forks: Vec<_> =
            report.forks.iter().copied().take_while(|(t, _)| *t != owner).collect();
        forks.push((owner, fork));
        if let Some(agent) = self.agent(node) {
            agent.promoted = Some((term, timeline, fork, forks.into()));
        }
        self.append(node);
    }

    // Feeds.

    fn follow(&mut self, node: usize, writer: NodeId, term: Term) {
        let Some(to) = self.index(writer) else { return };
        let id = self.number();
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        agent.feed = Feed::Open { from: writer, term };
        agent.stream = Some(Stream { id, writer: to, term, welcome: false, heard: now });
        self.feed_retry(node, id);
    }

    /// Asks the writer for its log, again and again until it answers.
    fn feed_retry(&mut self, node: usize, stream: u64) {
        let data = &self.hosts[node].disk.data;
        let mut end = data.report(Term::default());
        if data.rewound.is_none() && self.hosts[node].server.is_none() {
            // A server that does not run has no end to tell, and receives nothing.
            return self.agent_event(node, FEED_RETRY, AgentEvent::FeedRetry { stream });
        }
        let Some(agent) = self.hosts[node].agent.as_ref() else { return };
        let Some(s) = agent.stream.as_ref().filter(|s| s.id == stream && !s.welcome) else {
            return;
        };
        let (to, term) = (s.writer, s.term);
        end.term = term;
        self.send(node, to, Message::Hello { stream, term, end });
        let wait = FEED_RETRY * 4;
        self.agent_event(node, wait, AgentEvent::FeedRetry { stream });
    }

    fn hello(&mut self, from: usize, to: usize, stream: u64, term: Term, end: &Report) {
        let now = self.moment(to);
        let name = self.hosts[from].name;
        let serving = self.hosts[to].server.as_ref().is_some_and(|s| s.writes && !s.stopped);
        let lineage = self.flaw != Flaw::NoLineage;
        let Some(agent) = self.hosts[to].agent.as_mut() else { return };
        let reign = agent.reign.as_ref().filter(|r| r.own.term == term && serving);
        let Some(reign) = reign.filter(|_| agent.aggregator.term == term) else {
            let why = Unwelcome::NotServing;
            return self.send(to, from, Message::Unwelcome { stream, why });
        };
        if let Err(fork) = on_history(end, reign.timeline, &reign.forks)
            && lineage
        {
            let why = Unwelcome::Diverged { fork };
            return self.send(to, from, Message::Unwelcome { stream, why });
        }
        let forks = Rc::clone(&reign.forks);
        let timeline = reign.timeline;
        let sent = records(end.lsn);
        let link = Link { stream, flushed: None, applied: 0, heard: now, sent, sent_at: now };
        agent.aggregator.links.insert(name, link);
        self.send(to, from, Message::Welcome { stream, timeline, forks });
        self.feed_standbys(to);
    }

    fn welcome(
        &mut self,
        node: usize,
        stream: u64,
        timeline: TimelineId,
        forks: &[(TimelineId, Lsn)],
    ) {
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let Some(s) = agent.stream.as_mut().filter(|s| s.id == stream) else { return };
        s.welcome = true;
        s.heard = now;
        // The receiver takes the writer's history at once, before any byte of its timeline.
        let data = &mut self.hosts[node].disk.data;
        data.timeline = timeline;
        data.forks = forks.to_vec();
        self.feed_back(node);
        self.wake(node);
    }

    fn unwelcome(&mut self, node: usize, stream: u64, why: Unwelcome) {
        let Some(agent) = self.agent(node) else { return };
        let Some(s) = agent.stream.as_ref().filter(|s| s.id == stream) else { return };
        let term = s.term;
        match why {
            Unwelcome::NotServing => return,
            Unwelcome::Diverged { .. } => agent.feed = Feed::Diverged { term },
        }
        agent.stream = None;
        // A start that waits for that log would wait for ever.
        if self.hosts[node].disk.data.rewound.is_some()
            && let Some(agent) = self.agent(node)
        {
            agent.job = None;
        }
        self.wake(node);
    }

    fn close_feed(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        agent.feed = Feed::Closed;
        if let Some(s) = agent.stream.take() {
            self.send(node, s.writer, Message::Closed { stream: s.id });
        }
    }

    /// The receiver of a standby is gone: its stream is opened anew while it is wanted.
    pub(crate) fn receiver_ended(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        if let Some(id) = agent.stream.as_ref().map(|s| s.id) {
            let writer = agent.stream.as_ref().map_or(0, |s| s.writer);
            self.send(node, writer, Message::Closed { stream: id });
            self.stream_ended(node, id);
        }
    }

    fn stream_ended(&mut self, node: usize, stream: u64) {
        let id = self.number();
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let Some(s) = agent.stream.as_mut().filter(|s| s.id == stream) else { return };
        *s = Stream { id, writer: s.writer, term: s.term, welcome: false, heard: now };
        self.agent_event(node, FEED_RETRY, AgentEvent::FeedRetry { stream: id });
        self.wake(node);
    }

    /// Nothing came for long: the connection is dead although nobody said so.
    fn watch_stream(&mut self, node: usize, now: Moment) {
        let silent = |s: &Stream| s.welcome && now.since(s.heard) > STREAM_SILENCE;
        let Some(agent) = self.agent(node) else { return };
        let dead = agent.stream.as_ref().filter(|s| silent(s)).map(|s| s.id);
        if let Some(id) = dead {
            self.stream_ended(node, id);
        }
    }

    /// A writer sends what it has flushed to the standbys that follow it.
    pub(crate) fn feed_standbys(&mut self, node: usize) {
        let Some(agent) = self.hosts[node].agent.as_ref() else { return };
        if self.hosts[node].agent_stopped || agent.reign.is_none() {
            return;
        }
        let links: Vec<(NodeId, u64, u64)> =
            agent.aggregator.links.iter().map(|(n, l)| (*n, l.stream, l.sent)).collect();
        let now = self.moment(node);
        for (name, stream, sent) in links {
            let Some(to) = self.index(name) else { continue };
            let Some(end) = self.log_between(node, sent) else { continue };
            if let Some(agent) = self.agent(node)
                && let Some(link) = agent.aggregator.links.get_mut(&name)
            {
                link.sent = end.depth;
                link.sent_at = now;
            }
            self.send(node, to, Message::Wal { stream, end });
        }
    }

    /// A standby says where it is.
    pub(crate) fn feed_back(&mut self, node: usize) {
        let host = &self.hosts[node];
        let (Some(agent), Some(server)) = (&host.agent, &host.server) else { return };
        let Some(s) = agent.stream.as_ref().filter(|s| s.welcome) else { return };
        if host.agent_stopped || server.writes || server.stopped {
            return;
        }
        let (stream, to) = (s.id, s.writer);
        let (flushed, applied) = (host.disk.data.flushed, server.replayed);
        self.send(node, to, Message::Feedback { stream, flushed, applied });
    }

    // The reign.

    fn begin_reign(&mut self, node: usize, term: Term, rule: &Rule) {
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let facts = agent.promoted.clone().filter(|(t, ..)| *t == term);
        let Some((_, timeline, fork, forks)) = facts else {
            return self.surrender(node, term, SurrenderReason::BadPromotion);
        };
        if term < agent.aggregator.term {
            return;
        }
        if term > agent.aggregator.term {
            agent.aggregator = Aggregator { term, ..Aggregator::default() };
        }
        agent.aggregator.rule = Some(rule.clone());
        agent.aggregator.open = true;
        let effect = agent.table.ask(Some(term), now);
        let own = OwnReign {
            term,
            rule: rule.generation,
            marked: None,
            open: false,
            lease_lost: false,
            stuck: None,
            drained: false,
        };
        agent.reign = Some(Reign {
            own,
            timeline,
            forks,
            fork,
            marker: None,
            drain: None,
            gave_up: None,
            leased_until: now + agent.table.lease_length(),
        });
        self.effect(node, effect);
        self.beat(node);
        self.release_commits(node);
        self.wake(node);
    }

    /// One record, and the proof that a commit set of the rule in effect holds it (R10).
    fn write_marker(&mut self, node: usize, term: Term) {
        let Some(agent) = self.agent(node) else { return };
        let Some(reign) = agent.reign.as_ref().filter(|r| r.own.term == term) else { return };
        let rule = reign.own.rule;
        if reign.own.marked == Some(rule) || reign.marker.is_some_and(|(r, _)| r == rule) {
            return;
        }
        let able = self.hosts[node].server.as_ref().is_some_and(|s| s.writes && !s.stopped);
        if !able {
            return self.agent_event(node, MARKER_RETRY, AgentEvent::MarkerRetry { term });
        }
        let Some(end) = self.append(node) else { return };
        let early = self.flaw == Flaw::NoMarker;
        if let Some(agent) = self.agent(node)
            && let Some(reign) = &mut agent.reign
        {
            reign.marker = Some((rule, end.depth));
            if early {
                reign.own.marked = Some(rule);
            }
        }
        self.release_commits(node);
    }

    /// What a commit set holds now is released: to PostgreSQL, and to the marker.
    pub(crate) fn release_commits(&mut self, node: usize) {
        let flushed = self.hosts[node].disk.data.flushed;
        let me = self.hosts[node].name;
        let stands = self.hosts[node].stands_still();
        let writes = self.hosts[node].server.as_ref().is_some_and(|s| s.writes && !s.stopped);
        let Some(agent) = self.agent(node) else { return };
        let aggregator = &mut agent.aggregator;
        if stands || !writes || !aggregator.open {
            return;
        }
        aggregator.own = aggregator.own.max(flushed);
        let Some(rule) = &aggregator.rule else { return };
        let mut reached: BTreeMap<NodeId, Lsn> = aggregator
            .links
            .iter()
            .filter_map(|(n, l)| Some((*n, lsn(l.flushed?))))
            .collect();
        reached.insert(me, lsn(aggregator.own));
        let safe = rule.safe_position(me, &reached).map_or(0, records);
        aggregator.held = aggregator.held.max(safe);
        let held = aggregator.held;
        let mut marked = false;
        if let Some(reign) = &mut agent.reign
            && let Some((rule, end)) = reign.marker
            && rule == reign.own.rule
            && reign.own.marked != Some(rule)
            && held >= end
        {
            reign.own.marked = Some(rule);
            marked = true;
        }
        self.released(node, held);
        if marked {
            self.wake(node);
        }
    }

    /// Whether commits that are released now may be lost by a failover: the operator chose that.
    pub(crate) fn is_lossy(&self, node: usize) -> bool {
        self.hosts[node].agent.as_ref().is_some_and(|a| {
            a.aggregator.rule.as_ref().is_some_and(|r| r.policy == quorate_core::Policy::WriterOnly)
                || a.state.authority.rules.iter().any(|r| r.policy == quorate_core::Policy::WriterOnly)
        })
    }

    fn open(&mut self, node: usize, term: Term) {
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let Some(reign) = &mut agent.reign else { return };
        if std::mem::replace(&mut reign.own.open, true) {
            return;
        }
        agent.gate.open(term);
        if let GateWord::Renew(_, until) = agent.table.renewal(now) {
            agent.gate.deadline = until;
        }
        self.trace.say(self.now, node, "serves clients");
        let end = self.hosts[node].disk.data.end;
        let lossy = self.is_lossy(node);
        if let Some(end) = end {
            self.checks.opened(self.now, &self.tree, node, term, end, lossy);
        }
    }

    // Handing over.

    fn drain(&mut self, node: usize, target: Option<NodeId>) {
        let now = self.moment(node);
        let flushed = self.hosts[node].disk.data.flushed;
        let Some(agent) = self.agent(node) else { return };
        let links = &agent.aggregator.links;
        let Some(reign) = &mut agent.reign else { return };
        if reign.drain.is_some() || reign.gave_up.is_some() {
            return;
        }
        let follows = match target {
            Some(target) => links.contains_key(&target),
            None => !links.is_empty(),
        };
        let best = best(links, target, &agent.state.authority.cohort());
        let behind = best.map_or(u64::MAX, |at| lsn(flushed).bytes_since(lsn(at)));
        let term = reign.own.term;
        if !follows || behind > limits::SWITCHOVER_LAG {
            reign.gave_up = Some("the target is not close enough".to_owned());
            return self.wake(node);
        }
        reign.drain = Some(Drain { target, until: now + DRAIN_WAIT, end: None });
        agent.gate.draining = true;
        self.agent_event(node, DRAIN_STEP * 3, AgentEvent::DrainStep { term });
    }

    fn drain_step(&mut self, node: usize, term: Term) {
        let now = self.moment(node);
        let depth = self.hosts[node].disk.data.depth();
        let busy = self.hosts[node].server.as_ref().is_some_and(|s| !s.waiting.is_empty());
        let Some(agent) = self.agent(node) else { return };
        let cohort = agent.state.authority.cohort();
        let Some(reign) = agent.reign.as_mut().filter(|r| r.own.term == term) else { return };
        let Some(drain) = &mut reign.drain else { return };
        let held_long = now + DRAIN_WAIT / 2 > drain.until;
        if drain.end.is_none() && (!busy || held_long) {
            agent.gate.term = None;
            drain.end = Some(depth);
        }
        // Statements of sessions that were cut off may still commit.
        if drain.end.is_some() {
            drain.end = Some(depth);
        }
        let caught_up = drain.end.is_some_and(|end| {
            best(&agent.aggregator.links, drain.target, &cohort) >= Some(end) && !busy
        });
        if caught_up {
            reign.own.drained = true;
            return self.wake(node);
        }
        if now > drain.until {
            reign.gave_up = Some("the target did not catch up".to_owned());
            reign.drain = None;
            agent.gate.draining = false;
            if reign.own.open && agent.gate.term.is_none() && agent.table.asks(term) {
                agent.gate.open(term);
                if let GateWord::Renew(_, until) = agent.table.renewal(now) {
                    agent.gate.deadline = until;
                }
            }
            return self.wake(node);
        }
        self.agent_event(node, DRAIN_STEP, AgentEvent::DrainStep { term });
    }

    /// Says what this node does, with the next heartbeat or at once when it matters.
    fn publish(&mut self, node: usize, state: &State, doing: Doing, because: Because) {
        let now = self.moment(node);
        let disk_ms = self.disk_stuck(node).as_millis() as u64;
        let host = &mut self.hosts[node];
        let Some(agent) = host.agent.as_mut() else { return };
        let live = agent.stream.as_ref().is_some_and(|s| s.welcome);
        let doing = match (doing, agent.feed) {
            (Doing::Following, Feed::Open { .. }) if !live => Doing::Detached,
            (doing, _) => doing,
        };
        agent.doing = doing;
        let server = host.server.as_ref().and_then(|s| s.facts).map(|facts| ServerStatus {
            in_recovery: !facts.writes,
            timeline: Some(facts.timeline),
            flushed: facts.flushed,
            replayed: facts.replayed,
            sampled: facts.answered,
            ..ServerStatus::default()
        });
        let writer = agent.reign.as_ref().map(|reign| {
            let standbys = agent.aggregator.links.iter().filter_map(|(n, l)| {
                let flushed = lsn(l.flushed?);
                let fresh = now.since(l.heard) < FEEDBACK_SILENCE;
                let applied = lsn(l.applied);
                fresh.then_some((*n, StandbyLink { written: flushed, flushed, applied }))
            });
            WriterStatus {
                term: reign.own.term,
                serving: reign.own.open && !reign.own.drained && !agent.gate.draining,
                leased: agent.table.lease_until(now).is_some_and(|at| at > now),
                rule: reign.own.rule,
                safe: Some(lsn(agent.aggregator.held)),
                standbys: standbys.collect(),
                drained: reign.own.drained,
            }
        });
        let status = NodeStatus {
            node: host.name,
            kind: host.kind,
            version: String::new(),
            term: state.authority.term,
            promised: match agent.promise {
                Promise::Kept(term) => Some(term),
                Promise::Lost => None,
            },
            doing,
            because,
            progress: None,
            report: agent.report.as_ref().map(Report::trimmed),
            surrender: agent.surrender.clone(),
            server,
            writer,
            hears: BTreeMap::new(),
            hold_ms: 0,
            disk_ms: (host.kind == NodeKind::Data).then_some(disk_ms),
            document: state.document_version(),
            coordinating: agent.leads().then(|| agent.word.clone()),
        };
        let effect = agent.table.set_status(status, now);
        let urgent = effect.news;
        self.effect(node, Effect { news: false, ..effect });
        if urgent {
            self.attend(node);
            self.beat(node);
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

/// A document with another value in one field.
pub(crate) fn with(document: &Document, field: &str, value: &str) -> Result<Document, String> {
    let mut fields = serde_json::to_value(document).map_err(|e| e.to_string())?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    fields[field] = value;
    let changed: Document = serde_json::from_value(fields).map_err(|e| e.to_string())?;
    match changed.validate().first() {
        Some(problem) => Err(problem.to_string()),
        None => Ok(changed),
    }
}

/// The furthest copy that a switchover would go to.
fn best(
    links: &BTreeMap<NodeId, Link>,
    target: Option<NodeId>,
    cohort: &BTreeSet<NodeId>,
) -> Option<u64> {
    let counts = |n: &NodeId| target.map_or_else(|| cohort.contains(n), |t| t == *n);
    links.iter().filter(|(n, _)| counts(n)).filter_map(|(_, l)| l.flushed).max()
}

/// The writer would rather not lead consensus, nor would a node that cannot hear the writer while
/// another can.
fn reluctant(
    me: NodeId,
    now: Moment,
    state: &State,
    peers: &BTreeMap<NodeId, Peer>,
) -> bool {
    let Some(writer) = state.authority.writer else { return false };
    if writer == me {
        return true;
    }
    let suspect = Duration::from_millis(state.document().suspect_after_ms);
    let fresh = |p: &Peer| !p.gone && p.heard.is_some_and(|at| now.since(at) < suspect);
    let hears = |p: &Peer| {
        fresh(p)
            && p.status.as_ref().and_then(|s| s.hears.get(&writer)).is_some_and(|h| {
                !h.gone && h.silent_ms.is_some_and(|ms| u128::from(ms) < suspect.as_millis())
            })
    };
    !peers.get(&writer).is_some_and(fresh)
        && peers.iter().any(|(n, p)| *n != me && *n != writer && hears(p))
}
