//! The scenarios, and what each removed rule leads to.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::Instant;

use quorate_core::Policy;
use quorate_core::invariant::Invariant;
use stateright::{Checker, HasDiscoveries, Model};

use super::Happening::{self, *};
use super::world::name;
use super::{Flaw, Protocol, Rules, Scenario};

const ALWAYS: [&str; 3] = [
    Invariant::AcknowledgedKept.sentence(),
    Invariant::ShownKept.sentence(),
    Invariant::OneWriterPerTerm.sentence(),
];

const ABC: &[usize] = &[0, 1, 2];
const AB: &[usize] = &[0, 1];
const ABCD: &[usize] = &[0, 1, 2, 3];
const TWO: Policy = Policy::Copies(2);
const THREE: Policy = Policy::Copies(3);

const FIXED: Rules = &[(ABC, TWO)];
const MORE_COPIES: Rules = &[(ABC, TWO), (ABC, THREE)];
const FEWER_COPIES: Rules = &[(ABC, THREE), (ABC, TWO)];
const SHRINK: Rules = &[(ABC, TWO), (AB, TWO)];
const PAIR: Rules = &[(AB, TWO), (&[0], Policy::Copies(1)), (AB, TWO)];
const ALONE: Rules = &[(AB, TWO), (AB, Policy::WriterOnly), (AB, TWO)];
const WITHOUT_WRITER: Rules = &[(ABC, TWO), (&[1, 2], TWO)];
const FOUR: Rules = &[(ABCD, THREE)];
const GROW_FOUR: Rules = &[(ABC, TWO), (ABCD, THREE)];
const SWAP: Rules = &[(ABC, TWO), (&[0, 1, 3], TWO)];
const GROW: Rules = &[(AB, TWO), (ABC, TWO)];

fn scenario(title: &'static str, rules: Rules, terms: u8, writes: u8, crashes: u8) -> Scenario {
    Scenario {
        title,
        nodes: 3,
        rules,
        supersede: false,
        degrade: false,
        terms,
        writes,
        crashes,
        forgets: 0,
        unsent: 0,
        before: Vec::new(),
    }
}

pub(crate) fn full() -> bool {
    std::env::var("QUORATE_MODEL").is_ok_and(|v| v == "full")
}

/// Prints what a finished run came to. The way to a failure of what must always be so is returned as its
/// steps.
pub(crate) fn verdict<M: Model>(
    checker: &impl Checker<M>,
    run: &str,
    always: &[&'static str],
    (cap, began): (usize, Instant),
) -> Option<String>
where
    M::State: Clone + Debug + PartialEq + Hash,
    M::Action: Clone + Debug + PartialEq,
{
    let found = checker.discoveries();
    let failure = always.iter().find_map(|property| {
        let path = found.get(property)?.clone().into_actions();
        Some(format!("{property}, {} steps: {path:?}", path.len()))
    });
    let reached = found.len() - usize::from(failure.is_some());
    println!(
        "{run} | {} states, depth {}, {} | {:.1} s | {reached} reached | {}",
        checker.unique_state_count(),
        checker.max_depth(),
        if checker.state_count() >= cap { "capped" } else { "complete" },
        began.elapsed().as_secs_f64(),
        failure.as_deref().unwrap_or("holds"),
    );
    failure
}

/// Explores within the bounds; a discovery of a failure is returned as its steps.
fn explore(scenario: Scenario, flaw: Flaw, cap: usize) -> Option<String> {
    let began = Instant::now();
    let title = scenario.title;
    let finish =
        if flaw == Flaw::None { HasDiscoveries::AllFailures } else { HasDiscoveries::AnyFailures };
    let checker = Protocol::new(scenario, flaw)
        .checker()
        .target_state_count(cap)
        .finish_when(finish)
        .spawn_bfs()
        .join();
    verdict(&checker, &format!("{flaw:?} | {title}"), &ALWAYS, (cap, began))
}

/// An election of `voters` that ends with the grant of `winner`.
fn election(voters: &[usize], winner: usize) -> Vec<Happening> {
    let answers = voters.iter().flat_map(|&i| [Learn(i), Step(i), Step(i)]);
    [Begin].into_iter().chain(answers).chain([Grant(winner)]).collect()
}

fn after(before: &[&[Happening]], scenario: Scenario) -> Scenario {
    Scenario { before: before.concat(), ..scenario }
}

/// States generated before a run is cut off.
fn cap(default: usize) -> usize {
    if full() { default * 20 } else { default }
}

fn holds(scenario: Scenario) {
    let failure = explore(scenario, Flaw::None, cap(300_000));
    assert_eq!(failure, None);
}

/// With the rule removed the checker finds a failure; with the rule it finds none there.
fn needed(flaw: Flaw, scenario: Scenario) {
    assert!(explore(scenario.clone(), flaw, 2_000_000).is_some(), "{flaw:?} went unnoticed");
    let failure = explore(scenario, Flaw::None, cap(60_000));
    assert_eq!(failure, None);
}

fn fixed(terms: u8, writes: u8, crashes: u8) -> Scenario {
    scenario("three nodes, two copies", FIXED, terms, writes, crashes)
}

/// The first writer wrote two records that nobody has.
fn unsent() -> Scenario {
    Scenario { unsent: 2, ..scenario("unsent tail", FIXED, 3, 3, 0) }
}

#[test]
fn two_copies_of_three_nodes() {
    holds(fixed(2, 1, 0));
    holds(fixed(2, 1, 1));
    holds(fixed(3, 1, 0));
}

#[test]
fn rule_changes() {
    for (title, rules) in [
        ("more copies", MORE_COPIES),
        ("fewer copies", FEWER_COPIES),
        ("shrink", SHRINK),
        ("grow", GROW),
        ("drop the writer", WITHOUT_WRITER),
        ("to the writer alone and back", ALONE),
    ] {
        holds(scenario(title, rules, 2, 1, 0));
    }
}

#[test]
fn interrupted_rule_changes() {
    let first = [&[OpenRule, Write(0)][..], &election(&[0, 1, 2], 1), &[Learn(1), Step(1)]];
    for (title, rules) in [
        ("more copies, interrupted", MORE_COPIES),
        ("fewer copies, interrupted", FEWER_COPIES),
        ("shrink, interrupted", SHRINK),
        ("grow, interrupted", GROW),
    ] {
        holds(after(&first, scenario(title, rules, 3, 1, 0)));
    }
}

#[test]
fn two_data_nodes_and_a_witness() {
    let pair = |title, crashes| Scenario {
        nodes: 2,
        degrade: true,
        ..scenario(title, PAIR, 3, 2, crashes)
    };
    holds(pair("pair", 0));
    // The writer dies, the standby is granted and goes on alone by a rule opened at once.
    let alone = [
        &[Write(0), Replicate(1), Feedback(1), Crash(0)][..],
        &election(&[1], 1),
        &[Learn(1), Step(1), Step(1), Degrade],
    ];
    holds(after(&alone, pair("pair, degraded after a grant", 2)));
}

#[test]
fn a_rule_change_that_cannot_close_is_superseded() {
    let rules: Rules = &[(ABC, TWO), (ABC, THREE), (AB, TWO)];
    let stuck = &[OpenRule, Learn(0), Step(0), Crash(2)];
    let base = Scenario { supersede: true, ..scenario("superseded", rules, 2, 1, 1) };
    holds(base.clone());
    holds(after(&[stuck], base));
}

#[test]
fn four_nodes() {
    let four = |title, rules| Scenario { nodes: 4, ..scenario(title, rules, 2, 1, 0) };
    holds(four("four nodes, three copies", FOUR));
    holds(four("four nodes, grow", GROW_FOUR));
    holds(four("four nodes, swap", SWAP));
}

/// Nodes 0 and 1 stand in one zone, 2 and 3 in another.
fn zones(copies: u8) -> Policy {
    let zone = |i: usize| (name(i), if i < 2 { "west" } else { "east" }.to_owned());
    Policy::Zones { copies, zones: 2, zone_of: (0..4).map(zone).collect() }
}

fn rules(rules: Vec<(&'static [usize], Policy)>) -> Rules {
    Box::leak(rules.into_boxed_slice())
}

#[test]
fn copies_in_two_zones() {
    let four = |title, rules| Scenario { nodes: 4, ..scenario(title, rules, 2, 1, 0) };
    holds(four("two zones", rules(vec![(ABCD, zones(2))])));
    holds(four("to two zones", rules(vec![(ABCD, TWO), (ABCD, zones(2))])));
    holds(four("to one zone", rules(vec![(ABCD, zones(2)), (AB, TWO)])));
    needed(Flaw::ZonesUncounted, four("two zones", rules(vec![(ABCD, zones(2))])));
}

#[test]
fn freezing_before_the_report_is_needed() {
    needed(Flaw::NoCut, fixed(2, 1, 0));
    needed(Flaw::ReportBeforeCut, fixed(2, 1, 0));
}

#[test]
fn every_commit_set_must_be_met() {
    needed(Flaw::SmallQuorum, fixed(2, 1, 0));
}

/// The last writer alone may report; one behind which another one was granted may not, for that one
/// releases commits, if only of local sessions, before it opens.
#[test]
fn only_the_last_writer_has_every_commit() {
    let before = [&election(&[1, 2], 1)[..], &[Learn(1), Step(1), Step(1), Learn(2), Step(2)]];
    needed(Flaw::AnyWriter, after(&before, fixed(3, 1, 0)));
    let before = [&election(&[1, 2], 1)[..], &[Learn(1), Step(1), Learn(2), Step(2)]];
    needed(Flaw::LastOpened, after(&before, fixed(3, 1, 0)));
}

#[test]
fn the_term_must_come_first() {
    let before = [&election(&[1, 2], 1)[..], &[Learn(1), Step(1), Step(1)]];
    needed(Flaw::LsnOnly, after(&before, unsent()));
}

#[test]
fn lineage_must_be_checked() {
    let before = [&election(&[1, 2], 2)[..], &[Learn(2), Step(2), Step(2)]];
    needed(Flaw::NoLineage, after(&before, unsent()));
}

/// Loses its promise file, leaves the rule and comes back.
fn forgetful(title: &'static str, rules: Rules, terms: u8) -> Scenario {
    Scenario { forgets: 1, ..scenario(title, rules, terms, 1, 1) }
}

#[test]
fn a_promise_that_is_lost() {
    holds(forgetful("a lost promise", FIXED, 2));
    holds(forgetful("a lost promise, grow", GROW, 2));
    let back: Rules = &[(ABC, TWO), (AB, TWO), (ABC, TWO)];
    holds(forgetful("a lost promise, out and in again", back, 2));
    needed(Flaw::AmnesiaTrusted, forgetful("a lost promise", FIXED, 2));
}

/// A node that entered the cohort, answered an election and lost its promise knows at first only
/// of the time when no commit depended on it.
#[test]
fn a_lost_promise_and_an_old_record() {
    let before = [
        &[OpenRule, Learn(0), Step(0), Step(0), Replicate(2), Feedback(2), Step(0)][..],
        &[Replicate(1), Feedback(1), Step(0), Step(0)],
        &[Begin, Learn(1), Step(1), Step(1), Learn(2), Step(2), Step(2)],
        &[Crash(2), Forget(2), Restart(2)],
    ];
    needed(Flaw::OldRecord, after(&before, forgetful("a lost promise, an old record", GROW, 2)));
}

#[test]
fn promises_must_last() {
    needed(Flaw::VolatilePromise, fixed(2, 1, 1));
    needed(Flaw::FollowStale, fixed(2, 1, 1));
}

#[test]
fn serving_must_wait_for_the_marker() {
    let before = [&[Write(0)][..], &election(&[0, 1], 0)];
    needed(Flaw::ServeEarly, after(&before, fixed(3, 1, 0)));
    needed(Flaw::ServeAfterRestart, fixed(2, 1, 1));
}

#[test]
fn rule_changes_need_their_order() {
    needed(Flaw::NoBarrier, scenario("more copies", MORE_COPIES, 2, 1, 0));
    needed(Flaw::ApplyBeforeRecord, scenario("fewer copies", FEWER_COPIES, 2, 1, 0));
}

#[test]
fn rules_must_be_bound_to_terms() {
    needed(Flaw::RuleUnbound, scenario("fewer copies", FEWER_COPIES, 2, 1, 0));
    // n0 is granted term 2 and slow to promote; n1 writes in term 3 and grows the cohort.
    let before = [
        &[Write(0), Replicate(2)][..],
        &election(&[0], 0),
        &[Learn(0), Learn(2), Step(2)],
        &election(&[1], 1),
        &[Learn(1), Step(1), Step(1), OpenRule],
    ];
    needed(Flaw::GrantUnbound, after(&before, scenario("grow", GROW, 3, 1, 0)));
}

#[test]
fn copies_count_inside_the_cohort_only() {
    needed(Flaw::WriterOutside, scenario("drop the writer", WITHOUT_WRITER, 2, 1, 0));
}
