//! Registers that several sessions read and write at will, and that must behave as one register
//! would: linearizable.
//!
//! Wing and Gong's search as Lowe and Knossos do it: going through the history in order of time, all
//! states are kept that may be, each with the operations under way that took effect in it already.
//! When an operation ends that took effect, it must have done so in every state that is kept. No
//! state left: no order of the operations explains the history. Each key is judged by itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::limits::STATES_MAX;
use crate::operation::{History, Outcome};
use crate::report::{Anomaly, Report};

/// One operation. A register holds 0 at first, and each value is written at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Writes.
    Write {
        /// Key.
        key: i64,
        /// Value.
        value: i64,
    },
    /// Reads.
    Read {
        /// Key.
        key: i64,
        /// What was read.
        value: i64,
    },
    /// Replaces one value by another, where it is that one. Where it is not, the operation failed.
    Swap {
        /// Key.
        key: i64,
        /// The value that must be there.
        from: i64,
        /// The value that replaces it.
        to: i64,
    },
}

/// Judges a history.
pub fn check(history: &History<Action>) -> Report {
    let mut report = Report::of(history.tally());
    let mut keys: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let reads_unknown = matches!(operation.action, Action::Read { .. }) && !operation.is_ok();
        if operation.outcome != Outcome::Failed && !reads_unknown {
            keys.entry(operation.action.key()).or_default().push(index);
        }
    }
    for (key, operations) in keys {
        match Search::new(history, operations).run() {
            Verdict::Explained => {}
            Verdict::TooMany => {
                report.inconclusive(format!("key {key} has more than {STATES_MAX} states at once"));
            }
            Verdict::Stuck { at, held } => {
                let operation = &history.operations[at];
                let words = format!(
                    "{} of {}, from {} to {}, fits nowhere: key {key} could only hold {held:?}",
                    operation.action.words(),
                    operation.process,
                    operation.invoked,
                    operation.completed
                );
                report.broken(Anomaly::NotLinearizable, vec![at], words);
            }
        }
    }
    report
}

enum Verdict {
    Explained,
    TooMany,
    Stuck { at: usize, held: BTreeSet<i64> },
}

/// A state that may be: the register's value, and the operations under way that took effect.
type State = (BTreeSet<usize>, i64);

struct Search<'a> {
    history: &'a History<Action>,
    /// Moments in order: beginnings before ends at the same one.
    events: Vec<(u64, bool, usize)>,
}

impl<'a> Search<'a> {
    fn new(history: &'a History<Action>, operations: Vec<usize>) -> Self {
        // Until when anybody's answer depends on a value.
        let mut wanted: BTreeMap<i64, u64> = BTreeMap::new();
        for index in &operations {
            let operation = &history.operations[*index];
            if let Some(value) = operation.action.needs() {
                let until = operation.ended().map_or(u64::MAX, |m| m.0);
                let latest = wanted.entry(value).or_default();
                *latest = until.max(*latest);
            }
        }
        let mut events = Vec::new();
        for index in operations {
            let operation = &history.operations[index];
            // What nobody ever depends on need not have happened.
            let value = operation.action.leaves();
            let matters = operation.is_ok() || value.is_some_and(|v| wanted.contains_key(&v));
            if matters {
                events.push((operation.invoked.0, false, index));
                let gone = || {
                    let until = value.and_then(|v| wanted.get(&v)).copied().unwrap_or_default();
                    until.max(operation.invoked.0).saturating_add(1)
                };
                events.push((operation.ended().map_or_else(gone, |m| m.0), true, index));
            }
        }
        events.sort_unstable();
        Self { history, events }
    }

    fn run(&self) -> Verdict {
        let mut pending: BTreeSet<usize> = BTreeSet::new();
        let mut states: BTreeSet<State> = BTreeSet::from([(BTreeSet::new(), 0)]);
        for (_, ends, index) in &self.events {
            if !ends {
                pending.insert(*index);
                continue;
            }
            let operation = &self.history.operations[*index];
            if operation.is_ok() {
                let Some(next) = self.take_effect(&states, &pending, *index) else {
                    return Verdict::TooMany;
                };
                if next.is_empty() {
                    let held = states.into_iter().map(|(_, value)| value).collect();
                    return Verdict::Stuck { at: *index, held };
                }
                states = next;
            } else {
                // Nobody depends on its value any more: that it takes effect now or later is as if
                // it never did.
                let forget = |(mut effective, value): State| {
                    effective.remove(index);
                    (effective, value)
                };
                states = states.into_iter().map(forget).collect();
            }
            pending.remove(index);
        }
        Verdict::Explained
    }

    /// All states in which the operation has taken effect.
    fn take_effect(
        &self,
        states: &BTreeSet<State>,
        pending: &BTreeSet<usize>,
        index: usize,
    ) -> Option<BTreeSet<State>> {
        let mut done = BTreeSet::new();
        let mut known = states.clone();
        let mut open: Vec<State> = states.iter().cloned().collect();
        while let Some((effective, value)) = open.pop() {
            if effective.contains(&index) {
                let mut effective = effective;
                effective.remove(&index);
                done.insert((effective, value));
                continue;
            }
            for next in pending.iter().filter(|p| !effective.contains(p)) {
                let Some(after) = self.history.operations[*next].action.on(value) else { continue };
                let mut effective = effective.clone();
                effective.insert(*next);
                let state = (effective, after);
                if known.insert(state.clone()) {
                    open.push(state);
                }
            }
            if known.len() > STATES_MAX {
                return None;
            }
        }
        Some(done)
    }
}

impl Action {
    fn key(&self) -> i64 {
        match self {
            Action::Write { key, .. } | Action::Read { key, .. } | Action::Swap { key, .. } => *key,
        }
    }

    /// The register's value after it, where it can take effect.
    fn on(&self, held: i64) -> Option<i64> {
        match self {
            Action::Write { value, .. } => Some(*value),
            Action::Read { value, .. } => (held == *value).then_some(held),
            Action::Swap { from, to, .. } => (held == *from).then_some(*to),
        }
    }

    /// The value that must be there for it.
    fn needs(&self) -> Option<i64> {
        match self {
            Action::Write { .. } => None,
            Action::Read { value, .. } => Some(*value),
            Action::Swap { from, .. } => Some(*from),
        }
    }

    /// The value that it leaves.
    fn leaves(&self) -> Option<i64> {
        match self {
            Action::Write { value, .. } => Some(*value),
            Action::Read { .. } => None,
            Action::Swap { to, .. } => Some(*to),
        }
    }

    fn words(&self) -> String {
        match self {
            Action::Write { value, .. } => format!("the write of {value}"),
            Action::Read { value, .. } => format!("the read of {value}"),
            Action::Swap { from, to, .. } => format!("the swap of {from} for {to}"),
        }
    }
}
