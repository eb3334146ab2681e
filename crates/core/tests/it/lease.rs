//! A model of the lease whose transitions are the production functions: every word that is sent,
//! heard, answered and believed goes through [`Table`], and the gate through what the table says.
//!
//! Three or more nodes with clocks of their own, each as fast or slow as the timing allows. n0 writes
//! in term 1; the others may learn of term 2 at any time, and one of them serves as soon as its table
//! says that older leases are over. The checker tries every order and, within a scenario's steps, every
//! time of requests, deliveries, answers, news, restarts and changes of voters.
//!
//! The invariant ([`RULE`]): while somebody serves in term 2, nothing leaves n0 any more, the bytes
//! on their way within the margin included.
//!
//! Abstracted: consensus (one record that nodes learn of late), elections (a later term begins at any
//! time), commits (the model of authority has those).

use std::time::{Duration, Instant};

use quorate_core::health::{Beat, BeatAnswer, GateWord, Table};
use quorate_core::invariant::Invariant;
use quorate_core::lease::{LeaseTiming, VOTERS_REST, Voters, VotersVersion};
use quorate_core::status::{Doing, NodeStatus};
use quorate_core::{Moment, NodeId, Term};
use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::model::{full, verdict};

/// R12 and R13 together.
const RULE: &str = Invariant::OldWriterSilent.sentence();

const OLD: Term = Term(1);
const NEW: Term = Term(2);
/// All clocks have run so long when it begins: leases of earlier processes are over.
const BEGUN_MS: u64 = 1_000_000;

/// What is left out, or assumed and not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The writer counts its lease from the answer rather than from the question.
    CountedFromAnswer,
    /// The writer counts on the whole length: neither drift nor margin is taken off.
    NoMargin,
    /// A voter that promised the later term still grants the older one.
    GrantsBelow,
    /// A voter that restarts knows nothing of what its earlier process granted.
    ForgetsGrants,
    /// The next writer does not wait (R13).
    NoWait,
    /// A refused connection comes from something that only stands before the host of the writer.
    RefusedByAnother,
    /// Clocks differ by more than the timing allows.
    WildClocks,
    /// A writer says that it is fenced and is not.
    ReleasedOpen,
    /// A voter grants to a writer that knows less of who votes.
    GrantsForgottenVoters,
    /// Voters change twice in a row.
    HastyVoters,
}

#[derive(Clone, Debug)]
struct Scenario {
    title: &'static str,
    nodes: usize,
    /// Those who vote, one set after the other.
    voters: &'static [&'static [usize]],
    /// Clocks against true time, in parts per million.
    drift_ppm: &'static [i64],
    /// By how much time may go on at once, in true milliseconds.
    steps: &'static [u64],
    until_ms: u64,
    /// How often the old writer may ask for its lease.
    asks: u8,
    /// How often the others may tell the next writer how they are.
    tells: u8,
    restarts: u8,
    strict: bool,
    /// What has happened before the exploration begins.
    before: Vec<Happening>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    table: Table,
    /// What it has learned of the record: the term, and which set of voters.
    knows: (Term, usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Word {
    Beat(Box<Beat>),
    /// With the local moment at which the question was sent.
    Answer(BeatAnswer, Moment),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Letter {
    from: usize,
    to: usize,
    sent: Moment,
    word: Word,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now_ms: u64,
    record: (Term, usize),
    /// When a majority knew the present voters.
    voted_ms: Option<u64>,
    nodes: Vec<Node>,
    /// The gate of n0 in its term: closed, or open so long by its own clock.
    gate: Option<Moment>,
    post: Vec<Letter>,
    asks: u8,
    tells: u8,
    restarts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Happening {
    Wait(u64),
    /// n0 asks this node for its lease.
    Ask(usize),
    /// A node beats to the next writer.
    Tell(usize, usize),
    Deliver(usize),
    Begin,
    Vote,
    Learn(usize),
    Restart(usize),
    Refused(usize),
    ReleaseOpen,
}

struct Leases {
    scenario: Scenario,
    flaw: Flaw,
}

fn name(i: usize) -> NodeId {
    NodeId::new(&format!("n{i}")).unwrap()
}

impl Leases {
    fn clock(&self, i: usize, now_ms: u64) -> Moment {
        let drift = self.scenario.drift_ppm[i] * if self.flaw == Flaw::WildClocks { 8 } else { 1 };
        let rate = (1_000_000 + drift) as u64;
        Moment(BEGUN_MS * 1_000_000 + now_ms * rate)
    }

    fn local(&self, world: &World, i: usize) -> Moment {
        self.clock(i, world.now_ms)
    }

    fn voters(&self, set: usize) -> Voters {
        let names = self.scenario.voters[set].iter().map(|i| name(*i)).collect();
        let index = if self.flaw == Flaw::GrantsForgottenVoters { 0 } else { set as u64 };
        Voters { names, version: VotersVersion { raft_term: 1, index } }
    }

    /// Notes when enough nodes know the present voters: a majority of them, and of those before.
    fn count(&self, world: &mut World) {
        let sets = &self.scenario.voters[world.record.1.saturating_sub(1)..=world.record.1];
        let knows = |i: &&usize| world.nodes[**i].knows.1 == world.record.1;
        let known = sets.iter().all(|set| set.iter().filter(knows).count() > set.len() / 2);
        if known && world.voted_ms.is_none() {
            world.voted_ms = Some(world.now_ms);
        }
    }

    fn told(&self, world: &mut World, i: usize, word: GateWord) {
        if i != 0 {
            return;
        }
        match word {
            GateWord::Keep => {}
            GateWord::Close => world.gate = None,
            GateWord::Renew(term, until) if term == OLD && world.gate.is_some() => {
                let whole = LeaseTiming::default();
                let off = whole.length * whole.drift_permille / 1000 + whole.margin;
                let more = if self.flaw == Flaw::NoMargin { off } else { Duration::ZERO };
                world.gate = Some(until + more);
            }
            GateWord::Renew(..) => {}
        }
    }

    fn learn(&self, world: &mut World, i: usize) {
        let now = self.local(world, i);
        let known = world.record;
        let node = &mut world.nodes[i];
        node.knows = known;
        let voters = self.voters(known.1);
        let members = (0..self.scenario.nodes).map(name).collect();
        let of_table = if self.flaw == Flaw::GrantsBelow && i != 0 { OLD } else { known.0 };
        let effect = node.table.set_cluster(of_table, voters, &members, true);
        node.table.set_strict(self.scenario.strict);
        let said = node.table.set_status(status(i, known.0), now);
        self.told(world, i, effect.gate);
        self.told(world, i, said.gate);
        self.count(world);
    }

    fn post(&self, world: &mut World, from: usize, to: usize) -> Option<()> {
        let sent = self.local(world, from);
        let beat = world.nodes[from].table.beat(sent)?;
        mail(world, Letter { from, to, sent, word: Word::Beat(Box::new(beat)) });
        Some(())
    }

    fn deliver(&self, world: &mut World, which: usize) {
        let Letter { from, to, sent, word } = world.post.remove(which);
        let now = self.local(world, to);
        let table = &mut world.nodes[to].table;
        let effect = match word {
            Word::Beat(beat) => {
                let (answer, effect) = table.heard(name(from), Some(*beat), now);
                // Only the answers to n0 have a meaning for leases.
                if from == 0 {
                    let word = Word::Answer(answer, sent);
                    mail(world, Letter { from: to, to: from, sent: now, word });
                }
                effect
            }
            Word::Answer(answer, asked) => {
                let asked = if self.flaw == Flaw::CountedFromAnswer { now } else { asked };
                table.answered(name(from), asked, Some(answer), now)
            }
        };
        self.told(world, to, effect.gate);
    }

    /// Whether a node may serve in the new term.
    fn serves(&self, world: &World, i: usize) -> bool {
        let node = &world.nodes[i];
        let now = self.local(world, i);
        i != 0
            && node.knows.0 == NEW
            && self.voters(node.knows.1).names.contains(&name(i))
            && (self.flaw == Flaw::NoWait || node.table.lease_clear(NEW, now))
    }

    fn broken(&self, world: &World) -> bool {
        let margin = LeaseTiming::default().margin;
        let leaves = world.gate.is_some_and(|until| self.local(world, 0) < until + margin);
        leaves && (1..self.scenario.nodes).any(|i| self.serves(world, i))
    }
}

/// Posts a letter. They lie in an order of their own, so that the one in which they came makes no
/// other state.
fn mail(world: &mut World, letter: Letter) {
    let key = |l: &Letter| (l.from, l.to, l.sent, matches!(l.word, Word::Beat(_)));
    let at = world.post.partition_point(|l| key(l) <= key(&letter));
    world.post.insert(at, letter);
}

fn status(i: usize, term: Term) -> NodeStatus {
    NodeStatus { term, promised: Some(term), doing: Doing::Following, ..NodeStatus::new(name(i)) }
}

impl Model for Leases {
    type State = World;
    type Action = Happening;

    fn init_states(&self) -> Vec<World> {
        let begun = Moment(0);
        let node = |i| Node { table: Table::new(name(i), OLD, begun), knows: (OLD, 0) };
        let mut world = World {
            now_ms: 0,
            record: (OLD, 0),
            voted_ms: Some(0),
            nodes: (0..self.scenario.nodes).map(node).collect(),
            gate: Some(Moment(0)),
            post: Vec::new(),
            asks: 0,
            tells: 0,
            restarts: 0,
        };
        for i in 0..self.scenario.nodes {
            self.learn(&mut world, i);
        }
        let now = self.local(&world, 0);
        let effect = world.nodes[0].table.ask(Some(OLD), now);
        self.told(&mut world, 0, effect.gate);
        for happening in &self.scenario.before {
            world = self.next_state(&world, *happening).unwrap_or(world);
        }
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happening>) {
        let bounds = &self.scenario;
        let more = bounds.steps.iter().filter(|step| world.now_ms + **step <= bounds.until_ms);
        actions.extend(more.map(|step| Happening::Wait(*step)));
        actions.extend((0..world.post.len()).map(Happening::Deliver));
        if world.asks < bounds.asks && world.nodes[0].table.asks(OLD) {
            actions.extend((1..bounds.nodes).map(Happening::Ask));
        }
        if world.record.0 == OLD {
            actions.push(Happening::Begin);
        }
        let rest = if self.flaw == Flaw::HastyVoters { 0 } else { VOTERS_REST.as_millis() as u64 };
        let rested = world.voted_ms.is_some_and(|at| world.now_ms >= at + rest);
        if world.record.1 + 1 < bounds.voters.len() && (rested || world.record.1 == 0) {
            actions.push(Happening::Vote);
        }
        // One of the others is as good a next writer as another; n0 is the last to learn.
        let next = bounds.nodes - 1;
        for i in 1..bounds.nodes {
            if world.nodes[i].knows != world.record {
                actions.push(Happening::Learn(i));
            }
            if world.tells < bounds.tells && i != next && world.nodes[i].knows.0 == NEW {
                actions.push(Happening::Tell(i, next));
            }
            if world.restarts < bounds.restarts {
                actions.push(Happening::Restart(i));
            }
        }
        if self.flaw == Flaw::RefusedByAnother {
            actions.extend((1..bounds.nodes).map(Happening::Refused));
        }
        if self.flaw == Flaw::ReleasedOpen {
            actions.push(Happening::ReleaseOpen);
        }
    }

    fn next_state(&self, last: &World, action: Happening) -> Option<World> {
        let mut world = last.clone();
        match action {
            Happening::Wait(ms) => world.now_ms += ms,
            Happening::Ask(to) => {
                world.asks += 1;
                self.post(&mut world, 0, to)?;
            }
            Happening::Tell(from, to) => {
                world.tells += 1;
                self.post(&mut world, from, to)?;
            }
            Happening::Deliver(which) => self.deliver(&mut world, which),
            Happening::Begin => world.record.0 = NEW,
            Happening::Vote => {
                world.record.1 += 1;
                world.voted_ms = None;
            }
            Happening::Learn(i) => self.learn(&mut world, i),
            Happening::Restart(i) => {
                world.restarts += 1;
                let now = self.local(&world, i);
                let since = match self.flaw {
                    Flaw::ForgetsGrants => now - LeaseTiming::default().length,
                    _ => now,
                };
                let promised = world.nodes[i].knows.0;
                world.nodes[i].table = Table::new(name(i), promised, since);
                self.learn(&mut world, i);
            }
            Happening::Refused(i) => {
                let effect = world.nodes[i].table.refused(name(0));
                self.told(&mut world, i, effect.gate);
            }
            Happening::ReleaseOpen => {
                let now = self.local(&world, 0);
                let term = world.nodes[0].knows.0;
                let surrender = quorate_core::status::Surrender {
                    term: OLD,
                    reason: quorate_core::status::SurrenderReason::LeaseLost,
                    released: true,
                };
                let status = NodeStatus { surrender: Some(surrender), ..status(0, term) };
                let _ = world.nodes[0].table.set_status(status, now);
            }
        }
        (world != *last).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(RULE, |model: &Self, world: &World| !model.broken(world)),
            Property::sometimes("the old writer answers", |model: &Self, world: &World| {
                world.now_ms > 0 && world.gate.is_some_and(|u| model.local(world, 0) < u)
            }),
            Property::sometimes("the next writer serves", |model: &Self, world: &World| {
                (1..model.scenario.nodes).any(|i| model.serves(world, i))
            }),
        ]
    }
}

/// Explores; the way to a broken rule is returned as its steps.
fn explore(scenario: Scenario, flaw: Flaw) -> Option<String> {
    let began = Instant::now();
    let title = scenario.title;
    let finish =
        if flaw == Flaw::None { HasDiscoveries::AllFailures } else { HasDiscoveries::AnyFailures };
    let cap = if full() { 20_000_000 } else { 200_000 };
    let checker = Leases { scenario, flaw }
        .checker()
        .target_state_count(cap)
        .finish_when(finish)
        .spawn_bfs()
        .join();
    verdict(&checker, &format!("{flaw:?} | {title}"), &[RULE], (cap, began))
}

/// The writer's clock as slow, the others' as fast as the timing allows.
const APART: &[i64] = &[-2_490, 2_490, 2_490, 2_490, 2_490];
const ABC: &[&[usize]] = &[&[0, 1, 2]];

fn three(title: &'static str) -> Scenario {
    Scenario {
        title,
        nodes: 3,
        voters: ABC,
        drift_ppm: APART,
        // What n1 granted at 0 is over after 1496.3 ms; the word of it is rounded up to the next.
        steps: &[1, 1496],
        until_ms: 1498,
        asks: 1,
        tells: 1,
        restarts: 0,
        strict: true,
        before: Vec::new(),
    }
}

/// n1 has granted a lease, and n0 knows; then the later term begins.
const GRANTED: &[Happening] =
    &[Happening::Ask(1), Happening::Deliver(0), Happening::Deliver(0), Happening::Begin];

fn restarts() -> Scenario {
    Scenario { restarts: 1, before: GRANTED.to_vec(), ..three("three voters, one restarts") }
}

/// n3 takes the place of n0 among the voters, right after n1 has granted a lease.
fn soon() -> Scenario {
    let voters: &[&[usize]] = &[&[0, 1, 2], &[0, 1, 2, 3], &[1, 2, 3]];
    let title = "n3 votes and n0 no longer, at once";
    Scenario { nodes: 4, voters, before: GRANTED.to_vec(), ..three(title) }
}

/// The same with a pause between the two, and without a word of either to n0.
fn later() -> Scenario {
    let rest = Happening::Wait(VOTERS_REST.as_millis() as u64);
    let learn = [Happening::Learn(1), Happening::Learn(2), Happening::Learn(3)];
    let before = [Happening::Vote].into_iter().chain(learn);
    let before = before.chain([rest, Happening::Begin, Happening::Vote]).collect();
    Scenario { title: "n3 votes, n0 no longer, later", until_ms: 5000, before, ..soon() }
}

fn lax() -> Scenario {
    Scenario { strict: false, before: GRANTED.to_vec(), ..three("a refusal releases") }
}

fn asked_twice() -> Scenario {
    Scenario { asks: 2, before: GRANTED.to_vec(), ..three("asked twice") }
}

fn needed(flaw: Flaw, scenario: Scenario) {
    assert!(explore(scenario, flaw).is_some(), "{flaw:?} went unnoticed");
}

#[test]
fn a_lease_ends_before_another_serves() {
    for scenario in [three("three voters"), restarts(), soon(), later(), lax(), asked_twice()] {
        assert_eq!(explore(scenario, Flaw::None), None);
    }
    let strict = Scenario { strict: true, ..lax() };
    assert_eq!(explore(strict, Flaw::RefusedByAnother), None);
}

#[test]
fn a_lease_counts_from_the_question_and_not_to_its_end() {
    needed(Flaw::CountedFromAnswer, three("three voters"));
    needed(Flaw::NoMargin, three("three voters"));
}

#[test]
fn voters_keep_their_word() {
    needed(Flaw::GrantsBelow, three("three voters"));
    needed(Flaw::GrantsForgottenVoters, later());
    needed(Flaw::HastyVoters, soon());
    needed(Flaw::ForgetsGrants, restarts());
}

#[test]
fn the_next_writer_waits_for_them() {
    needed(Flaw::NoWait, three("three voters"));
    needed(Flaw::ReleasedOpen, asked_twice());
}

/// What is assumed, and what comes of it where it is not so.
#[test]
fn what_leases_depend_on() {
    needed(Flaw::WildClocks, three("three voters"));
    needed(Flaw::RefusedByAnother, lax());
}
