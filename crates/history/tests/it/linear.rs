//! The search for an order against all orders, one by one.

use quorate_history::linear::{Action, check};
use quorate_history::{History, Operation, Outcome};

use crate::simulator::{Random, operation};

/// Whether some order explains a small history.
fn explained(operations: &[Operation<Action>], used: u32, held: i64) -> bool {
    let left = |i: usize| used & (1 << i) == 0;
    if operations.iter().enumerate().all(|(i, o)| !left(i) || !o.is_ok()) {
        return true;
    }
    (0..operations.len()).filter(|i| left(*i)).any(|i| {
        let this = &operations[i];
        let early = |other: &Operation<Action>| other.is_ok() && other.completed < this.invoked;
        if (0..operations.len()).any(|j| left(j) && early(&operations[j])) {
            return false;
        }
        let after = match this.action {
            _ if this.outcome == Outcome::Failed => None,
            Action::Write { value, .. } => Some(value),
            Action::Read { value, .. } => (this.is_ok() && held == value).then_some(held),
            Action::Swap { from, to, .. } => (held == from).then_some(to),
        };
        after.is_some_and(|after| explained(operations, used | (1 << i), after))
    })
}

fn drawn(random: &mut Random) -> Vec<Operation<Action>> {
    let mut next = 0;
    (0..2 + random.below(6))
        .map(|process| {
            let begin = random.below(12);
            let span = (begin, begin + 1 + random.below(6));
            next += 1;
            let old = random.below(next + 1) as i64;
            let action = match random.below(5) {
                0 | 1 => Action::Write { key: 0, value: next as i64 },
                2 => Action::Swap { key: 0, from: old, to: next as i64 },
                _ => Action::Read { key: 0, value: old },
            };
            let outcomes =
                [Outcome::Ok, Outcome::Ok, Outcome::Ok, Outcome::Unknown, Outcome::Failed];
            operation(process, span, *random.pick(&outcomes), action)
        })
        .collect()
}

#[test]
fn the_search_agrees_with_trying_all_orders() {
    let mut random = Random(1);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..20_000 {
        let operations = drawn(&mut random);
        if !operations.iter().any(Operation::is_ok) {
            continue;
        }
        let wanted = explained(&operations, 0, 0);
        let history = History { operations, faults: Vec::new() };
        let report = check(&history);
        assert_eq!(report.is_good(), wanted, "{:#?}\n{report}", history.operations);
        *if wanted { &mut good } else { &mut bad } += 1;
    }
    assert!(good > 2000 && bad > 2000, "{good} good and {bad} bad histories prove little");
}

#[test]
fn too_many_states_are_no_pass() {
    let mut operations: Vec<_> = (1..=40)
        .map(|value| {
            operation(value as u64, (0, 1), Outcome::Unknown, Action::Write { key: 0, value })
        })
        .collect();
    operations.extend((1..=40).map(|value| {
        operation(100, (100 + value as u64, 1000), Outcome::Ok, Action::Read { key: 0, value })
    }));
    let report = check(&History { operations, faults: Vec::new() });
    assert_eq!(report.names(), ["inconclusive"]);
}
