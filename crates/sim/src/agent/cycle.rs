//! The loop: gather, decide, perform, say.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::authority::Phase;
use quorate_core::health::{Effect, GateWord};
use quorate_core::lease::Voters;
use quorate_core::node::{self, Action, Data, Feed, Job, NodeView, Promise, Server};
use quorate_core::report::Report;
use quorate_core::state::{Change, NodeKind};
use quorate_core::status::{
    Doing, NodeStatus, ServerStatus, StandbyLink, Surrender, SurrenderReason, Vitals, WriterStatus,
};
use quorate_core::{Because, NodeId, State, Term, limits};

use super::{Agent, JobEnd, Running};
use quorate_core::limits::{
    CYCLE, DISK_HEALTHY, DISK_STUCK_AFTER, FEEDBACK_SILENCE, HUNG_AFTER, REJOIN_WAIT, YIELD,
};

use crate::event::{AgentEvent, Event, Message};
use crate::flaw::Flaw;
use crate::wal::lsn;
use crate::world::World;

impl World {
    pub(super) fn cycle_event(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        let asked = std::mem::take(&mut agent.cycle_due);
        self.cycle(node);
        if !asked {
            self.agent_event(node, CYCLE, AgentEvent::Cycle);
        }
    }

    pub(super) fn cycle(&mut self, node: usize) {
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

    pub(super) fn take_in(&mut self, node: usize) {
        let now = self.moment(node);
        let names = self.hosts.iter().map(|h| h.name).collect();
        let voters = Voters { names, ..Voters::default() };
        let stuck = self.disk_stuck(node) >= DISK_STUCK_AFTER;
        let incomplete = self.hosts[node].disk.data.rewound.is_some();
        let Some(agent) = self.hosts[node].agent.as_mut() else { return };
        let state = Rc::clone(&agent.state);
        let term = state.authority.term;
        let members: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
        let promised = matches!(agent.promise, Promise::Kept(_));
        let effect = agent.table.set_cluster(term, voters, &members, promised);
        agent.table.set_strict(state.document().strict_reads);
        let breach = agent.watch.record(&state.authority).cloned();
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
                disk.is_some_and(|ms| u128::from(ms) < DISK_HEALTHY.as_millis())
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
        self.noticed(breach);
        if let Some(change) = drop_plan {
            self.propose(node, "drop-switchover", change);
        }
        self.watch_stream(node, now);
    }

    /// How long the disk has not answered.
    pub(super) fn disk_stuck(&self, node: usize) -> Duration {
        let since = self.hosts[node].disk.stalled;
        since.map_or(Duration::ZERO, |at| Duration::from_nanos(self.now - at))
    }

    pub(super) fn view<'a>(&self, node: usize, agent: &'a Agent, state: &'a State) -> NodeView<'a> {
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
            current: agent.raft.applied() >= agent.agreed,
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
            upstream: None,
            restart: false,
            starved: false,
            yields: agent.stepped_down.is_some_and(|at| now.since(at) < YIELD)
                && !word.is_some_and(|w| w.serving),
        }
    }

    pub(super) fn perform(&mut self, node: usize, action: &Action) {
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
            Action::CloseFeed if self.keeps_feed(node) => {}
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
            Action::Follow { from, term } => self.follow(node, *from, *term),
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
                let (fork, next_xid) = (reign.fork, reign.next_id);
                let change = Change::Opened { term: *term, fork, next_xid, because };
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

    /// Whether a feed stays that R3 would cut: until a writer serves.
    pub(super) fn keeps_feed(&self, node: usize) -> bool {
        let phase = self.hosts[node].agent.as_ref().map(|a| a.state.authority.phase);
        self.flaw == Flaw::NoCut && phase != Some(Phase::Serving)
    }

    pub(super) fn fence(&mut self, node: usize) {
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

    pub(super) fn surrender(&mut self, node: usize, term: Term, reason: SurrenderReason) {
        self.fence(node);
        let now = self.moment(node);
        if let Some(agent) = self.agent(node) {
            agent.surrender = Some(Surrender { term, reason, released: true });
            agent.stepped_down = Some(now);
        }
    }

    /// Says what this node does, with the next heartbeat or at once when it matters.
    pub(super) fn publish(&mut self, node: usize, state: &State, doing: Doing, because: Because) {
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
                ..WriterStatus::default()
            }
        });
        let status = NodeStatus {
            vitals: Vitals::default(),
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
            upstream: None,
            disk: None,
            carries: BTreeMap::new(),
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
}
