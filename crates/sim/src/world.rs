//! The simulated world: hosts, the network between them, and time.
//!
//! Everything that happens is an event with a moment; the queue gives them in order, and the seed
//! decides all that chance decides. The same seed makes the same history, event for event.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::document::Document;
use quorate_core::report::Report;
use quorate_core::state::{CertificateAuthority, Node as Member, NodeKind};
use quorate_core::{
    Answer, Because, Change, Command, Moment, NodeId, Policy, Rule, State, Term, TimelineId,
};
use quorate_scenario::random::Random;
use quorate_scenario::{Deed, Shape};

use crate::agent::Agent;
use crate::check::Checks;
use crate::client::Client;
use crate::event::{AgentEvent, Event, Message, ServerEvent};
use crate::flaw::Flaw;
use crate::host::{Clock, Disk, Host, Network};
use crate::raft::{self, Raft, Stored};
use crate::server::Data;
use crate::trace::Trace;
use crate::wal::Tree;

/// Nanoseconds since the history began, by a clock that no host has.
pub(crate) type At = u64;

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000 * MS;

/// A world in which a history happens.
pub(crate) struct World {
    pub(crate) now: At,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,
    pub(crate) random: Random,
    pub(crate) hosts: Vec<Host>,
    pub(crate) network: Network,
    pub(crate) tree: Tree,
    pub(crate) clients: Vec<Client>,
    pub(crate) operations: u64,
    pub(crate) checks: Checks,
    pub(crate) trace: Trace,
    pub(crate) flaw: Flaw,
    /// Numbers for streams and proposals, so that no two are taken for each other.
    pub(crate) numbers: u64,
    pub(crate) plan: Vec<(At, Deed)>,
    /// When hosts that stand still go on.
    pub(crate) wakes: Vec<(At, usize)>,
    /// Whether nothing more is done to it.
    pub(crate) repaired: bool,
    /// The record as far as anybody has applied it.
    pub(crate) newest: Rc<State>,
    pub(crate) applied: usize,
    pub(crate) events: u64,
}

struct Queued {
    at: At,
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

impl World {
    /// A cluster that has just been made: the first node writes and the others follow it.
    pub(crate) fn new(
        shape: Shape,
        document: Document,
        seed: u64,
        flaw: Flaw,
        trace: Trace,
    ) -> Self {
        let (tree, root) = Tree::new();
        let mut world = Self {
            now: SECOND,
            queue: BinaryHeap::new(),
            queued: 0,
            random: Random::new(seed),
            hosts: Vec::new(),
            network: Network::default(),
            tree,
            clients: Vec::new(),
            operations: 0,
            checks: Checks::default(),
            trace,
            flaw,
            numbers: 0,
            plan: Vec::new(),
            wakes: Vec::new(),
            repaired: false,
            newest: Rc::default(),
            applied: 0,
            events: 0,
        };
        let total = usize::from(shape.data) + usize::from(shape.witness);
        let names: Vec<NodeId> =
            (1..=total).map(|n| NodeId::new(&format!("n{n}")).unwrap_or_default()).collect();
        let kind = |i: usize| match i < usize::from(shape.data) {
            true => NodeKind::Data,
            false => NodeKind::Witness,
        };
        let state = founded(&names, kind, document);
        let first = raft::Entry::new(1, 0, Some(Command { at: 0, change: adopt(state) }));
        for (i, name) in names.iter().enumerate() {
            let base = SECOND * (1 + world.random.below(100_000) as u64);
            let mut disk = Disk { promise: Some(Term(1)), ..Disk::default() };
            disk.raft = Stored::founded(Rc::clone(&first));
            if kind(i) == NodeKind::Data {
                disk.data = Data::founded(root);
            }
            world.hosts.push(Host {
                name: *name,
                kind: kind(i),
                up: true,
                clock: Clock { base, from: 0, permille: 0 },
                disk,
                agent: None,
                server: None,
                lives: 0,
                deferred: Vec::new(),
                agent_stopped: false,
                suspended: false,
            });
        }
        for i in 0..total {
            world.start(i);
        }
        world.after(Duration::from_millis(250), Event::Look);
        world
    }

    pub(crate) fn index(&self, name: NodeId) -> Option<usize> {
        self.hosts.iter().position(|h| h.name == name)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// This host's clock.
    pub(crate) fn moment(&self, node: usize) -> Moment {
        self.hosts[node].clock.read(self.now)
    }

    pub(crate) fn at(&mut self, at: At, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse(Queued { at: at.max(self.now), order: self.queued, event }));
    }

    pub(crate) fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + nanos(wait), event);
    }

    /// Some time between two, in microseconds.
    pub(crate) fn some_us(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.random.between(least, most))
    }

    pub(crate) fn agent_event(&mut self, node: usize, wait: Duration, what: AgentEvent) {
        let life = self.hosts[node].agent.as_ref().map_or(0, |a| a.life);
        self.after(wait, Event::Agent { node, life, what });
    }

    pub(crate) fn server_event(&mut self, node: usize, wait: Duration, what: ServerEvent) {
        let life = self.hosts[node].server.as_ref().map_or(0, |s| s.life);
        self.after(wait, Event::Server { node, life, what });
    }

    /// Something that ends when the disk has written it: later on a stalled disk.
    pub(crate) fn disk_event(&mut self, node: usize, wait: Duration, event: Event) {
        let disk = &mut self.hosts[node].disk;
        match disk.stalled {
            Some(_) => disk.waiting.push(event),
            None => self.after(wait, event),
        }
    }

    /// Lets the next thing happen, if it is due by then.
    pub(crate) fn step(&mut self, until: At) -> bool {
        let Some(Reverse(next)) = self.queue.peek() else { return false };
        if next.at > until {
            self.now = until;
            return false;
        }
        let Some(Reverse(next)) = self.queue.pop() else { return false };
        self.now = next.at;
        self.events += 1;
        self.happen(next.event);
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, message } => self.deliver(from, to, message),
            Event::Agent { node, life, what } => {
                if self.hosts[node].agent.as_ref().is_none_or(|a| a.life != life) {
                    return;
                }
                if self.hosts[node].stands_still() {
                    self.hosts[node].deferred.push(Event::Agent { node, life, what });
                    return;
                }
                self.agent_happens(node, what);
            }
            Event::Server { node, life, what } => {
                let host = &mut self.hosts[node];
                match host.server.as_mut().filter(|s| s.life == life) {
                    None => {}
                    Some(server) if server.stopped || host.suspended => {
                        host.deferred.push(Event::Server { node, life, what });
                    }
                    Some(_) => self.server_happens(node, what),
                }
            }
            Event::Client { client, operation, what } => {
                self.client_happens(client, operation, what);
            }
            Event::Do(at) => {
                let (_, deed) = self.plan[at].clone();
                self.perform_deed(&deed);
            }
            Event::Look => self.look(),
        }
    }

    /// Sends a message. It may be late, lost or doubled.
    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        if from == to {
            let wait = self.some_us(20, 80);
            return self.after(wait, Event::Deliver { from, to, message });
        }
        let mute = |n| matches!(message, Message::Raft(_)) && self.network.mute.contains(n);
        if self.network.cut.contains(&(from, to)) || mute(&from) || mute(&to) {
            return self.checks.lost_messages += 1;
        }
        let lossy = usize::from(self.network.lossy);
        if lossy > 0 && self.random.chance(lossy) {
            return self.checks.lost_messages += 1;
        }
        let wait = self.way(from, to);
        if lossy > 0 && self.random.chance(lossy) {
            let late = wait + self.some_us(0, 200_000);
            self.after(late, Event::Deliver { from, to, message: message.clone() });
        }
        self.after(wait, Event::Deliver { from, to, message });
    }

    /// How long a message is on its way.
    fn way(&mut self, from: usize, to: usize) -> Duration {
        let slow = |n: &usize| self.network.slow.get(n).copied().unwrap_or_default();
        let slow = slow(&from) + slow(&to);
        let overtaken = self.network.lossy > 0 && self.random.chance(self.network.lossy.into());
        let extra = if overtaken { self.some_us(0, 300_000) } else { Duration::ZERO };
        self.some_us(100, 900) + slow + extra
    }

    fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let host = &mut self.hosts[to];
        if !host.up {
            return;
        }
        if host.suspended || host.agent_stopped && host.agent.is_some() {
            // The kernel keeps what comes for a process that stands still.
            return host.deferred.push(Event::Deliver { from, to, message });
        }
        if host.agent.is_none() {
            match message {
                Message::Beat { .. } => self.send(to, from, Message::Refused),
                Message::Hello { stream, .. } | Message::Wal { stream, .. } => {
                    self.send(to, from, Message::Closed { stream });
                }
                Message::Request { operation, .. } => {
                    self.send(to, from, Message::Reply { operation, served: false });
                }
                _ => {}
            }
            return;
        }
        self.agent_hears(from, to, message);
    }

    /// Whatever stood still goes on.
    pub(crate) fn release(&mut self, node: usize) {
        for event in std::mem::take(&mut self.hosts[node].deferred) {
            self.at(self.now, event);
        }
    }

    /// A node's process starts.
    pub(crate) fn start(&mut self, node: usize) {
        let now = self.moment(node);
        let voters = (0..self.hosts.len()).collect();
        if self.hosts[node].agent.is_some() || self.hosts[node].suspended {
            return;
        }
        if std::mem::take(&mut self.hosts[node].disk.forgets) && self.is_dispensable(node) {
            self.hosts[node].disk.promise = None;
        }
        let host = &mut self.hosts[node];
        host.up = true;
        host.agent_stopped = false;
        host.lives += 1;
        let raft = Raft::new(node, voters, host.disk.raft.clone());
        host.agent =
            Some(Agent::new(host.lives, host.name, host.disk.promise, raft, self.applied, now));
        self.trace.say(self.now, node, "the process starts");
        self.set_election_timer(node);
        self.agent_event(node, Duration::ZERO, AgentEvent::Cycle);
        self.agent_event(node, Duration::from_millis(1), AgentEvent::Beat);
        self.agent_event(node, Duration::from_millis(2), AgentEvent::Coordinate);
        self.agent_event(node, Duration::from_millis(1), AgentEvent::Probe);
    }

    /// A node's process ends, and its server with it.
    pub(crate) fn end_process(&mut self, node: usize) {
        self.end_server(node);
        let host = &mut self.hosts[node];
        let Some(agent) = host.agent.take() else { return };
        host.agent_stopped = false;
        self.hang_up(node, &agent);
        self.trace.say(self.now, node, "the process ends");
    }

    /// A host loses power.
    pub(crate) fn end_host(&mut self, node: usize) {
        let mut kept = self.hosts[node].disk.data.flushed;
        let written = self.hosts[node].disk.data.end.map_or(0, |e| e.depth);
        if written > kept {
            kept += self.random.below((written - kept) as usize + 1) as u64;
        }
        let tree = &self.tree;
        let host = &mut self.hosts[node];
        host.agent = None;
        host.server = None;
        host.up = false;
        host.suspended = false;
        host.agent_stopped = false;
        host.deferred.clear();
        host.disk.waiting.clear();
        host.disk.raft_until = 0;
        if let Some(end) = &mut host.disk.data.end {
            *end = tree.prefix(*end, kept);
        }
        host.disk.data.flushed = kept.min(host.disk.data.end.map_or(0, |e| e.depth));
        self.trace.say(self.now, node, "the host loses power");
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.network.cut.contains(&(from, to))
    }
}

fn adopt(state: State) -> Change {
    Change::Adopt { state: Box::new(state) }
}

/// The record of a cluster with these members, in term 1, by the changes that make one.
fn founded(names: &[NodeId], kind: impl Fn(usize) -> NodeKind, document: Document) -> State {
    let member = |i: usize| Member {
        kind: kind(i),
        link: String::new(),
        gateway: String::new(),
        web: String::new(),
        zone: String::new(),
    };
    let mut state = State::default();
    let mut changes = vec![Change::Found {
        cluster_id: "0000000000000001".to_owned(),
        ca: CertificateAuthority::default(),
        name: names[0],
        node: member(0),
        document,
    }];
    for (i, name) in names.iter().enumerate().skip(1) {
        let hash = i.to_string();
        changes.push(Change::AddToken { hash: hash.clone(), expires: 1 });
        changes.push(Change::Admit { name: *name, node: member(i), token_hash: hash });
    }
    changes.push(Change::SystemId { system_id: 1 });
    let term = Term(1);
    let base = Report { term, timeline: TimelineId(1), lsn: crate::wal::lsn(1), forks: Vec::new() };
    let because = || Because::new("op-init", "");
    let reports = [(names[0], base)].into();
    changes.push(Change::Grant { term, node: names[0], reports, because: because() });
    for change in changes {
        let answer = state.apply(&Command { at: 0, change });
        debug_assert_eq!(answer, Answer::Done);
    }
    debug_assert_eq!(
        state.authority.rule(),
        Some(&Rule { generation: 1, cohort: [names[0]].into(), policy: Policy::Copies(1) })
    );
    state
}
