//! What is done to a world, and the plans that chance makes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_core::{Because, Change, NodeId, Term};
use quorate_scenario::random::Random;
use quorate_scenario::{Deed, Shape, Who};

use crate::agent::Agent;
use crate::host::Host;
use crate::world::{At, MS, SECOND, World, nanos};

impl World {
    fn whom(&self, who: Who) -> Option<usize> {
        match who {
            Who::Node(name) => self.index(name),
            Who::Writer => self.serving(),
            Who::Leader => self.leader(),
        }
    }

    /// Something is done. A deed that does not fit the moment does nothing.
    pub(crate) fn perform_deed(&mut self, deed: &Deed) {
        self.trace.note(self.now, &deed.to_string());
        match deed {
            Deed::LoseAll => (0..self.hosts.len()).for_each(|node| self.end_host(node)),
            Deed::StartAll => (0..self.hosts.len()).for_each(|node| self.start(node)),
            Deed::Partition(sides) => self.partition(sides),
            Deed::Cut(from, to) => {
                if let (Some(from), Some(to)) = (self.index(*from), self.index(*to)) {
                    self.network.cut.insert((from, to));
                }
            }
            Deed::Lossy(permille) => self.network.lossy = *permille,
            Deed::Heal => {
                self.network.cut.clear();
                self.network.slow.clear();
                self.network.mute.clear();
                self.network.lossy = 0;
            }
            Deed::Switchover(target) => self.switch_over(*target),
            Deed::Set(field, value) => {
                self.ask(|world, node| world.change_document(node, field, value));
            }
            Deed::Pause | Deed::Resume => {
                let because = Because::new("op-pause", "an operator said so");
                let change = Change::Pause { paused: *deed == Deed::Pause, because };
                self.ask(|world, node| world.propose(node, "", change));
            }
            one => {
                if let Some(node) = one.whom().and_then(|who| self.whom(who)) {
                    self.perform_on(node, deed);
                }
            }
        }
    }

    fn perform_on(&mut self, node: usize, deed: &Deed) {
        let now = self.now;
        match deed {
            Deed::Kill(_) => self.end_process(node),
            Deed::KillPostgres(_) => self.end_server(node),
            Deed::Lose(_) => self.end_host(node),
            Deed::Start(_) => self.start(node),
            Deed::Stop(_) => self.hosts[node].agent_stopped = self.hosts[node].agent.is_some(),
            Deed::Continue(_) => {
                self.hosts[node].agent_stopped = false;
                self.release(node);
                self.release_commits(node);
            }
            Deed::Suspend(_, time) if self.hosts[node].up && !self.hosts[node].suspended => {
                self.hosts[node].suspended = true;
                self.wake_host_after(node, *time);
            }
            Deed::StopPostgres(_) => {
                if let Some(server) = &mut self.hosts[node].server {
                    server.stopped = true;
                }
            }
            Deed::ContinuePostgres(_) => {
                if let Some(server) = &mut self.hosts[node].server {
                    server.stopped = false;
                    self.release(node);
                }
            }
            Deed::Slow(_, time) => {
                self.network.slow.insert(node, *time);
            }
            Deed::StallDisk(_) => {
                self.hosts[node].disk.stalled.get_or_insert(now);
            }
            Deed::FillDisk(_) => self.hosts[node].disk.full = true,
            Deed::FreeDisk(_) => self.free_disk(node),
            Deed::ForgetPromise(_) => self.hosts[node].disk.forgets = true,
            Deed::Mute(_) => drop(self.network.mute.insert(node)),
            Deed::Drift(_, permille) => self.hosts[node].clock.change(now, *permille),
            Deed::PauseReplay(_) => {
                if let Some(server) = &mut self.hosts[node].server {
                    server.replay_paused = !server.writes;
                }
            }
            Deed::ResumeReplay(_) => {
                let depth = self.hosts[node].disk.data.flushed;
                if let Some(server) = self.hosts[node].server.as_mut().filter(|s| !s.writes) {
                    server.replay_paused = false;
                    server.replayed = server.replayed.max(depth);
                }
            }
            _ => {}
        }
    }

    /// Whether elections could conclude without a node. Where commits may be on it alone, losing
    /// its promise needs a person, and so would every history in which that happened.
    pub(crate) fn is_dispensable(&self, node: usize) -> bool {
        let whole = |host: &&Host| {
            let data = &host.disk.data;
            data.end.is_some() && !data.spoilt && data.rewound.is_none()
        };
        let others = self.hosts.iter().filter(whole).map(|h| h.name);
        let others: BTreeSet<NodeId> = others.filter(|n| *n != self.hosts[node].name).collect();
        self.newest.authority.quorum(&others)
    }

    fn free_disk(&mut self, node: usize) {
        let disk = &mut self.hosts[node].disk;
        disk.full = false;
        disk.stalled = None;
        // In the order in which they were written: a log that is stored again later wins.
        let mut at = self.now;
        for event in std::mem::take(&mut disk.waiting) {
            at += nanos(self.some_us(300, 5_000));
            self.at(at, event);
        }
        self.hosts[node].disk.raft_until = at;
    }

    fn partition(&mut self, sides: &[BTreeSet<NodeId>]) {
        let names: Vec<NodeId> = self.hosts.iter().map(|h| h.name).collect();
        let together =
            |a: &NodeId, b: &NodeId| sides.iter().any(|s| s.contains(a) && s.contains(b));
        for (i, a) in names.iter().enumerate() {
            for (j, b) in names.iter().enumerate() {
                if i != j && !together(a, b) {
                    self.network.cut.insert((i, j));
                }
            }
        }
    }

    /// Something is asked of the cluster, through a node that may answer.
    fn ask(&mut self, ask: impl FnOnce(&mut Self, usize)) {
        let able = |world: &Self, node: &usize| {
            world.hosts[*node].agent.is_some() && !world.hosts[*node].stands_still()
        };
        let node = self.leader().filter(|node| able(self, node));
        let node = node.or_else(|| (0..self.hosts.len()).find(|node| able(self, node)));
        if let Some(node) = node {
            ask(self, node);
        }
    }

    fn switch_over(&mut self, target: Option<NodeId>) {
        let term = |agent: &Agent| agent.state().authority.term;
        let newest: Option<Term> =
            self.hosts.iter().filter_map(|h| h.agent.as_ref().map(term)).max();
        if let Some(term) = newest {
            let change = Change::PlanSwitchover { term, target };
            self.ask(|world, node| world.propose(node, "", change));
        }
    }

    fn wake_host_after(&mut self, node: usize, time: Duration) {
        let at = self.now + nanos(time);
        self.wakes.push((at, node));
    }

    /// Hosts whose time to stand still is over go on.
    pub(crate) fn wake_hosts(&mut self) {
        let now = self.now;
        let due: Vec<usize> =
            self.wakes.iter().filter(|(at, _)| *at <= now).map(|(_, node)| *node).collect();
        self.wakes.retain(|(at, _)| *at > now);
        for node in due {
            self.hosts[node].suspended = false;
            self.trace.say(now, node, "the host goes on");
            self.release(node);
        }
    }

    /// Whatever was done is undone.
    pub(crate) fn repair(&mut self) {
        self.trace.note(self.now, "everything is repaired");
        self.perform_deed(&Deed::Heal);
        self.wakes.iter_mut().for_each(|(at, _)| *at = self.now);
        self.wake_hosts();
        for node in 0..self.hosts.len() {
            self.free_disk(node);
            let who = Who::Node(self.hosts[node].name);
            self.perform_on(node, &Deed::Continue(who));
            self.perform_on(node, &Deed::ContinuePostgres(who));
            self.perform_on(node, &Deed::ResumeReplay(who));
            self.start(node);
        }
        self.repaired = true;
    }

    /// What an operator asks for may not come through: then it is asked again.
    pub(crate) fn insist(&mut self) {
        let paused =
            |node: usize| self.hosts[node].agent.as_ref().is_some_and(|a| a.state().paused);
        if self.repaired && self.leader().is_some_and(paused) {
            self.perform_deed(&Deed::Resume);
        }
    }
}

/// A plan of faults for so long, and their ends for most of them.
pub(crate) fn plan(random: &mut Random, shape: Shape, from: At, length: At) -> Vec<(At, Deed)> {
    let count = usize::from(shape.data) + usize::from(shape.witness);
    let names: Vec<NodeId> =
        (1..=count).filter_map(|n| NodeId::new(&format!("n{n}")).ok()).collect();
    let mut plan = Vec::new();
    let mut forgotten = false;
    let mut at = from;
    loop {
        at += random.between(50 * MS, 6 * SECOND);
        if at > from + length {
            break;
        }
        let until = at + random.between(50 * MS, 9 * SECOND);
        let (deed, end) = some_deed(random, &names, shape, &mut forgotten);
        plan.push((at, deed));
        if let Some(end) = end {
            plan.push((until, end));
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn some_deed(
    random: &mut Random,
    names: &[NodeId],
    shape: Shape,
    forgotten: &mut bool,
) -> (Deed, Option<Deed>) {
    let node = *random.pick(names);
    let who = match random.below(4) {
        0 => Who::Writer,
        _ => Who::Node(node),
    };
    let named = Who::Node(node);
    let some = |ms: u64| Duration::from_millis(ms);
    match random.below(32) {
        0 | 1 => (Deed::Kill(who), Some(Deed::StartAll)),
        2 => (Deed::Kill(Who::Leader), Some(Deed::StartAll)),
        3 | 4 => (Deed::KillPostgres(who), None),
        5 => (Deed::Lose(who), Some(Deed::StartAll)),
        6 => (Deed::LoseAll, Some(Deed::StartAll)),
        7 => (Deed::Stop(named), Some(Deed::Continue(named))),
        8 => (Deed::Suspend(who, some(random.between(100, 8_000))), None),
        9 => (Deed::StopPostgres(named), Some(Deed::ContinuePostgres(named))),
        10..=12 => (Deed::Partition(sides(random, names)), Some(Deed::Heal)),
        13 | 28..=31 => {
            let other = *random.pick(names);
            (Deed::Cut(node, other), random.chance(500).then_some(Deed::Heal))
        }
        14 => (Deed::Slow(named, some(random.between(5, 1_500))), Some(Deed::Heal)),
        15 => (Deed::Lossy(random.between(1, 300) as u16), Some(Deed::Heal)),
        16 | 17 => (Deed::StallDisk(named), Some(Deed::FreeDisk(named))),
        18 => (Deed::FillDisk(named), Some(Deed::FreeDisk(named))),
        19 if !*forgotten => {
            *forgotten = true;
            (Deed::ForgetPromise(named), None)
        }
        19 | 20 => (Deed::Drift(named, random.between(0, 4) as i16 - 2), None),
        21 => (Deed::PauseReplay(named), Some(Deed::ResumeReplay(named))),
        22 | 23 => (Deed::Switchover(None), None),
        24 => (Deed::Switchover(Some(node)), None),
        25 => (set_copies(random.between(1, shape.data.into())), Some(set_copies(2))),
        26 => (Deed::Pause, Some(Deed::Resume)),
        _ => (Deed::Heal, None),
    }
}

fn set_copies(copies: u64) -> Deed {
    Deed::Set("copies".to_owned(), copies.to_string())
}

fn sides(random: &mut Random, names: &[NodeId]) -> Vec<BTreeSet<NodeId>> {
    let count = 1 + random.below(3);
    let mut sides = vec![BTreeSet::new(); count];
    for name in names {
        // A node on no side stands alone.
        if let Some(side) = sides.get_mut(random.below(count + usize::from(count == 1))) {
            side.insert(*name);
        }
    }
    sides.retain(|side| !side.is_empty());
    sides
}
