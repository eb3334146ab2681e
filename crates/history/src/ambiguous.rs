//! COMMITs whose connection was lost: whatever the client is told at last must be true.
//!
//! A transaction writes a row with an id of its own. `ok` says that its client was told it is
//! committed, `failed` that it was rolled back, `unknown` that it cannot be known (SQLSTATE 08007,
//! or no answer at all).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::operation::{History, Outcome};
use crate::report::{Anomaly, Report};

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A transaction that writes this row.
    Transaction {
        /// Its row.
        id: i64,
        /// Whether its outcome is the answer to a COMMIT that was sent.
        at_commit: bool,
    },
    /// The ids of all rows, after everything else has ended.
    All(Vec<i64>),
}

/// Answers to COMMITs, without those that simply succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    /// COMMITs that were sent.
    pub sent: usize,
    /// Told that they are committed.
    pub committed: usize,
    /// Told that they are rolled back.
    pub rolled_back: usize,
    /// Told that it cannot be known, or nothing.
    pub unknown: usize,
    /// Told something that is not true.
    pub wrong: usize,
}

/// Judges a history.
pub fn check(history: &History<Action>) -> Report {
    let mut report = Report::of(history.tally());
    let Some(held) = held(history) else {
        report.inconclusive("nobody looked what is there at the end".to_owned());
        return report;
    };
    let mut tried = BTreeMap::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let Action::Transaction { id, at_commit } = operation.action else { continue };
        if tried.insert(id, index).is_some() {
            report.inconclusive(format!("{id} was written twice"));
        }
        let there = held.contains(&id);
        let words = match (operation.outcome, at_commit) {
            (Outcome::Ok, _) if !there => "was told it is committed, and its row is not there",
            (Outcome::Failed, true) if there => {
                "was told at its COMMIT that it is rolled back, and its row is there"
            }
            (Outcome::Failed, false) if there => {
                "was told before its COMMIT that it is rolled back, and its row is there"
            }
            _ => continue,
        };
        let words = format!("transaction {id} {words} ({})", operation.note);
        report.broken(Anomaly::WrongAnswer, vec![index], words);
    }
    for id in held.iter().filter(|id| !tried.contains_key(id)) {
        report.broken(Anomaly::FromNowhere, Vec::new(), format!("nobody wrote row {id}"));
    }
    report
}

/// What was answered to COMMITs.
pub fn answers(history: &History<Action>) -> Answers {
    let held = held(history).unwrap_or_default();
    let mut answers = Answers::default();
    for operation in &history.operations {
        let Action::Transaction { id, at_commit: true } = operation.action else { continue };
        let there = held.contains(&id);
        answers.sent += 1;
        let (counter, wrong) = match operation.outcome {
            Outcome::Ok => (&mut answers.committed, !there),
            Outcome::Failed => (&mut answers.rolled_back, there),
            Outcome::Unknown => (&mut answers.unknown, false),
        };
        *counter += 1;
        answers.wrong += usize::from(wrong);
    }
    answers
}

fn held(history: &History<Action>) -> Option<BTreeSet<i64>> {
    history.done().find_map(|(_, operation)| match &operation.action {
        Action::All(rows) => Some(rows.iter().copied().collect()),
        Action::Transaction { .. } => None,
    })
}
