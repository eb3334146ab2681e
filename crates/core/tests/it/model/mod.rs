//! A model of the authority protocol whose transitions are the production functions.
//!
//! Nodes take their steps by `node::decide`, the record changes only by `State::apply` (so by
//! `authority::judge`), links are judged by `report::on_history`, commits by `Rule::safe_position`.
//! The checker explores every order of writes, deliveries, crashes, late news, elections and rule
//! changes within the bounds of a scenario. The coordinator is whatever proposes at the worst
//! moment: its guards are in the record, so none of its judgement is needed for safety.
//!
//! Abstracted: consensus (one register that nodes learn of late), bytes (a log is a list of
//! records, a position their count), clocks and leases, files. Feedback survives the cut of its
//! link; whatever can be lost is modelled by not happening.
//!
//! Each [`Flaw`] removes one rule; a test asserts that its absence is found.

mod checks;
mod step;
mod world;

use std::collections::BTreeMap;

use quorate_core::authority::{Phase, Reign, judge};
use quorate_core::invariant::Invariant;
use quorate_core::{Because, Change, NodeId, Policy, Report, Term, TimelineId};
use stateright::{Model, Property};

pub(crate) use checks::{full, verdict};
use step::{adopt, open, settle, step};
use world::{Node, Own, Process, World, founded, name, rule, shared_rule};

/// A rule of the protocol that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    /// R3: a node that promised keeps its link.
    NoCut,
    /// R3: a node reports before it is frozen.
    ReportBeforeCut,
    /// R5: an election concludes with one reporter too few.
    SmallQuorum,
    /// R5: whoever wrote once, and is on its timeline still, is believed to have every commit.
    AnyWriter,
    /// R5: so is the last writer that opened, although another one was granted since.
    LastOpened,
    /// R8: positions compare by bytes alone.
    LsnOnly,
    /// R4: a link is accepted whatever the standby's history.
    NoLineage,
    /// A rule change closes before its barrier is held.
    NoBarrier,
    /// A writer adopts a rule before consensus has it.
    ApplyBeforeRecord,
    /// R2: a crash forgets the promise.
    VolatilePromise,
    /// R2: a node that lost its promise takes the one of the record for it.
    AmnesiaTrusted,
    /// R2: a node that lost its promise believes an old record that no commit depends on it.
    OldRecord,
    /// R10: clients are let in before the marker is held.
    ServeEarly,
    /// R11: a restarted server serves in the same term without a marker.
    ServeAfterRestart,
    /// R2: a link of a lower term than the promised one is opened.
    FollowStale,
    /// R6: a writer adopts a rule that was opened in a later term.
    RuleUnbound,
    /// R6: a grantee reads the rule at promotion rather than from its grant, and opens unrecorded.
    /// (Without the second the first does no harm: a rule opens only after the term is recorded.)
    GrantUnbound,
    /// R7: a writer outside the cohort counts as a copy.
    WriterOutside,
    /// R7: copies count wherever they stand, where the rule asks for zones.
    ZonesUncounted,
}

/// Who commits and elects: members by number, and the policy.
pub(crate) type Rules = &'static [(&'static [usize], Policy)];

/// Bounds of an exploration.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) title: &'static str,
    pub(crate) nodes: usize,
    /// The rule at the start and those opened later, in this order.
    pub(crate) rules: Rules,
    /// Whether a rule may be opened while another change is open.
    pub(crate) supersede: bool,
    /// Whether the coordinator may degrade to the writer alone right after a grant.
    pub(crate) degrade: bool,
    pub(crate) terms: u8,
    pub(crate) writes: u8,
    pub(crate) crashes: u8,
    /// How many promise files may be lost while their nodes are down.
    pub(crate) forgets: u8,
    /// Records the first writer has written already; no standby has them.
    pub(crate) unsent: u8,
    /// What has happened before the exploration begins.
    pub(crate) before: Vec<Happening>,
}

#[derive(Debug)]
pub(crate) struct Protocol {
    scenario: Scenario,
    flaw: Flaw,
    genesis: World,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Write(usize),
    Replicate(usize),
    Feedback(usize),
    Learn(usize),
    Step(usize),
    Crash(usize),
    Restart(usize),
    /// The promise file of a node that is down is lost.
    Forget(usize),
    Begin,
    Grant(usize),
    OpenRule,
    Degrade,
    /// Only with a flaw: the thing that the removed rule forbids.
    Forbidden(usize),
}

impl Model for Protocol {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        let mut world = self.genesis.clone();
        for id in 1..=self.scenario.unsent {
            world.nodes[0].wal.push((1, id));
            world.next_id = id + 1;
        }
        settle(&mut world, self.flaw, 0);
        for happening in &self.scenario.before {
            world = self.next_state(&world, *happening).unwrap_or(world);
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happening>) {
        for i in 0..self.scenario.nodes {
            self.node_actions(world, i, actions);
        }
        let record = &world.record.value.authority;
        if world.term() < self.scenario.terms {
            actions.push(Happening::Begin);
        }
        match record.phase {
            Phase::Electing => actions.extend(
                (0..self.scenario.nodes)
                    .filter(|i| world.reports.contains_key(&name(*i)))
                    .map(Happening::Grant),
            ),
            Phase::Granted => {}
            Phase::Serving if record.rules.len() == 1 || self.scenario.supersede => {
                if self.next_rule(world).is_some() {
                    actions.push(Happening::OpenRule);
                }
                if self.scenario.degrade {
                    actions.push(Happening::Degrade);
                }
            }
            Phase::Serving => {}
        }
    }

    fn next_state(&self, last: &World, action: Happening) -> Option<World> {
        let mut world = last.clone();
        match action {
            Happening::Write(i) => {
                let node = &mut world.nodes[i];
                node.wal.push((node.own.as_ref()?.term, world.next_id));
                world.next_id += 1;
                settle(&mut world, self.flaw, i);
            }
            Happening::Replicate(i) => replicate(&mut world, i)?,
            Happening::Feedback(i) => {
                let (writer, term, at) = world.nodes[i].feedback.take()?;
                let writer = writer as usize;
                if world.nodes[writer].reigns_in(term)
                    && let Some(Some(link)) =
                        world.nodes[writer].own.as_mut().map(|o| o.links[i].as_mut())
                {
                    *link = at.max(*link);
                    settle(&mut world, self.flaw, writer);
                }
            }
            Happening::Learn(i) => {
                let record = world.record.clone();
                world.nodes[i].known = record;
                world.nodes[i].current = true;
            }
            Happening::Step(i) => step(&mut world, self.flaw, i),
            Happening::Crash(i) => self.crash(&mut world, i),
            Happening::Restart(i) => self.restart(&mut world, i),
            Happening::Forget(i) => {
                world.forgets += 1;
                world.nodes[i].promised = 0;
            }
            Happening::Begin => {
                let expect_term = Term(u64::from(world.term()));
                let because = Because::default();
                let last_seen = None;
                let planned = false;
                world.apply(Change::BeginElection { expect_term, last_seen, planned, because });
            }
            Happening::Grant(i) => self.grant(&mut world, i)?,
            Happening::OpenRule => {
                let rule = self.next_rule(&world)?;
                self.open_rule(&mut world, rule)?;
            }
            Happening::Degrade => {
                let authority = &world.record.value.authority;
                let current = authority.rule()?;
                let cohort = [authority.writer?].into();
                if current.cohort == cohort {
                    return None;
                }
                let generation = current.generation + 1;
                let policy = Policy::Copies(1);
                let rule = quorate_core::Rule { generation, cohort, policy };
                self.open_rule(&mut world, rule)?;
            }
            Happening::Forbidden(i) => self.forbidden(&mut world, i)?,
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let always =
            |what: Invariant, so: fn(&Self, &World) -> bool| Property::always(what.sentence(), so);
        vec![
            always(Invariant::AcknowledgedKept, |_, w| w.survives(&w.acked)),
            always(Invariant::ShownKept, |_, w| w.survives(&w.shown)),
            always(Invariant::OneWriterPerTerm, |_, w| w.one_writer_per_term()),
            Property::sometimes("a later term acknowledges", |_, w: &World| {
                w.acked.iter().any(|a| a.1 > 1)
            }),
            Property::sometimes("the last rule is in force alone", |m: &Self, w: &World| {
                m.scenario.rules.len() == 1
                    || m.next_rule(w).is_none() && w.record.value.authority.rules.len() == 1
            }),
        ]
    }
}

impl Protocol {
    pub(crate) fn new(scenario: Scenario, flaw: Flaw) -> Self {
        let (cohort, policy) = &scenario.rules[0];
        let first = rule(first_generation(&scenario), cohort, policy.clone());
        let genesis = founded(scenario.nodes, &first);
        Self { scenario, flaw, genesis }
    }

    fn node_actions(&self, world: &World, i: usize, actions: &mut Vec<Happening>) {
        let node = &world.nodes[i];
        if node.feedback.is_some() {
            actions.push(Happening::Feedback(i));
        }
        if !node.up {
            actions.push(Happening::Restart(i));
            if world.forgets < self.scenario.forgets {
                actions.push(Happening::Forget(i));
            }
            return;
        }
        if node.own.is_some() && world.next_id <= self.scenario.writes {
            actions.push(Happening::Write(i));
        }
        if node.feed.is_some() {
            actions.push(Happening::Replicate(i));
        }
        if node.known != world.record || !node.current {
            actions.push(Happening::Learn(i));
        }
        actions.push(Happening::Step(i));
        if world.crashes < self.scenario.crashes {
            actions.push(Happening::Crash(i));
        }
        match self.flaw {
            Flaw::ReportBeforeCut
            | Flaw::ApplyBeforeRecord
            | Flaw::RuleUnbound
            | Flaw::GrantUnbound => {
                actions.push(Happening::Forbidden(i));
            }
            _ => {}
        }
    }

    fn next_rule(&self, world: &World) -> Option<quorate_core::Rule> {
        let current = world.record.value.authority.rule()?;
        let next = current.generation + 1 - first_generation(&self.scenario);
        let (cohort, policy) = self.scenario.rules.get(next as usize)?;
        Some(rule(current.generation + 1, cohort, policy.clone()))
    }

    fn open_rule(&self, world: &mut World, rule: quorate_core::Rule) -> Option<()> {
        let term = Term(u64::from(world.term()));
        let because = Because::default();
        world.apply(Change::OpenRule { term, rule, because }).then_some(())
    }

    fn grant(&self, world: &mut World, i: usize) -> Option<()> {
        let mut reports = world.reports.clone();
        let record = &world.record.value.authority;
        match self.flaw {
            Flaw::LsnOnly => {
                for report in reports.values_mut() {
                    report.timeline = TimelineId(1);
                    report.forks.clear();
                }
            }
            Flaw::SmallQuorum if judge(record, &reports, 0).is_err() => {
                let missing = record.cohort().into_iter().find(|n| !reports.contains_key(n))?;
                forge(&mut reports, missing)?;
            }
            Flaw::AnyWriter | Flaw::LastOpened if judge(record, &reports, 0).is_err() => {
                let on_its_own =
                    |r: &Reign| reports.get(&r.node).is_some_and(|told| told.owner() == r.timeline);
                let last = record.reigns.iter().rfind(|r| r.fork.is_some())?.term;
                let believed = |r: &Reign| self.flaw == Flaw::AnyWriter || r.term >= last;
                record.reigns.iter().find(|r| believed(r) && on_its_own(r))?;
                for member in record.cohort() {
                    if !reports.contains_key(&member) {
                        forge(&mut reports, member)?;
                    }
                }
            }
            _ => {}
        }
        let election = judge(record, &reports, 0).ok()?;
        if !election.candidates.contains_key(&name(i)) {
            return None;
        }
        let (term, node) = (record.term, name(i));
        world
            .apply(Change::Grant { term, node, reports, because: Because::default() })
            .then_some(())
    }

    fn crash(&self, world: &mut World, i: usize) {
        world.crashes += 1;
        let node = &mut world.nodes[i];
        node.up = false;
        node.process = Process::Down;
        node.feed = None;
        node.own = None;
        node.diverged = 0;
        node.reported = 0;
        node.surrendered = 0;
        // It will learn the record again from an old snapshot.
        node.known = self.genesis.record.clone();
        node.current = false;
        if self.flaw == Flaw::VolatilePromise {
            node.promised = 1;
        }
    }

    fn restart(&self, world: &mut World, i: usize) {
        let authority = world.record.value.authority.clone();
        let node = &mut world.nodes[i];
        node.up = true;
        let serves = authority.phase == Phase::Serving && authority.writer == Some(name(i));
        if self.flaw != Flaw::ServeAfterRestart
            || !serves
            || u64::from(node.promised) != authority.term.0
        {
            return;
        }
        let Some(rule) = authority.rule() else { return };
        node.process = Process::Writer(node.line);
        let generation = rule.generation;
        node.own = Some(Own {
            term: node.promised,
            rule: shared_rule(rule),
            mark: None,
            marked: Some(generation),
            open: false,
            links: vec![None; self.scenario.nodes],
        });
        open(world, i);
    }

    fn forbidden(&self, world: &mut World, i: usize) -> Option<()> {
        match self.flaw {
            Flaw::ReportBeforeCut => {
                let (term, node) = (world.term(), &world.nodes[i]);
                if world.phase() != Phase::Electing || node.promised >= term {
                    return None;
                }
                let report = node.report(term);
                world.reports.entry(name(i)).or_insert(report);
            }
            Flaw::ApplyBeforeRecord => {
                let rule = self.next_rule(world)?;
                world.nodes[i].own.as_ref()?;
                adopt(world, i, &rule);
                settle(world, self.flaw, i);
            }
            Flaw::RuleUnbound => {
                let rule = world.record.value.authority.rule()?.clone();
                world.nodes[i].own.as_ref()?;
                adopt(world, i, &rule);
                settle(world, self.flaw, i);
            }
            Flaw::GrantUnbound => {
                let own = world.nodes[i].own.as_ref()?;
                if own.open || own.marked != Some(own.rule.value.generation) {
                    return None;
                }
                open(world, i);
            }
            _ => return None,
        }
        Some(())
    }
}

/// The report of an empty log, for a node that has not reported.
fn forge(reports: &mut BTreeMap<NodeId, Report>, missing: NodeId) -> Option<()> {
    let mut forged = reports.values().next()?.clone();
    forged.timeline = TimelineId(1);
    forged.lsn = quorate_core::Lsn(0);
    reports.insert(missing, forged);
    Some(())
}

/// A cluster is founded with a rule of its first node alone.
fn first_generation(scenario: &Scenario) -> u64 {
    if scenario.rules[0].0 == [0] { 1 } else { 2 }
}

/// A standby receives and flushes the next record of the writer it follows.
fn replicate(world: &mut World, i: usize) -> Option<()> {
    let (from, term) = world.nodes[i].feed?;
    let writer: &Node = &world.nodes[from as usize];
    let mine = &world.nodes[i].wal;
    if !writer.reigns_in(term) || !writer.wal.starts_with(mine) {
        return None;
    }
    let next = *writer.wal.get(mine.len())?;
    let node = &mut world.nodes[i];
    node.wal.push(next);
    node.feedback = Some((from, term, node.wal.len() as u8));
    Some(())
}
