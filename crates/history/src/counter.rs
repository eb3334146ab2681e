//! A counter that only grows: every read lies between what was surely added and what may have been.

use serde::{Deserialize, Serialize};

use crate::operation::{History, Outcome};
use crate::report::{Anomaly, Report};

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Adds so much, which is more than nothing.
    Add(i64),
    /// Reads the count as it is now, on the writer.
    Read(i64),
    /// Reads it on a replica: it may be that of an earlier moment.
    ReadOld(i64),
}

/// Judges a history.
pub fn check(history: &History<Action>) -> Report {
    let mut report = Report::of(history.tally());
    let mut added: Vec<(u64, i64)> = Vec::new();
    let mut begun: Vec<(u64, i64)> = Vec::new();
    for operation in &history.operations {
        let Action::Add(amount) = operation.action else { continue };
        if operation.is_ok() {
            added.push((operation.completed.0, amount));
        }
        if operation.outcome != Outcome::Failed {
            begun.push((operation.invoked.0, amount));
        }
    }
    let (added, begun) = (Sums::of(added), Sums::of(begun));
    let (mut newest, mut read) = (0, false);
    for (index, operation) in history.done() {
        let (count, least) = match operation.action {
            Action::Add(_) => continue,
            Action::Read(count) => (count, added.before(operation.invoked.0)),
            Action::ReadOld(count) => (count, 0),
        };
        if matches!(operation.action, Action::Read(_)) {
            read = true;
            newest = newest.max(operation.invoked.0);
        }
        let most = begun.before(operation.completed.0 + 1);
        if count < least || count > most {
            let words = format!(
                "{count} was read at {}, where {least} to {most} may be",
                operation.completed
            );
            report.broken(Anomaly::WrongCount, vec![index], words);
        }
    }
    let after_all = |o: &crate::Operation<Action>| {
        !matches!(o.action, Action::Add(_)) || !o.is_ok() || o.completed.0 < newest
    };
    if !read || !history.operations.iter().all(after_all) {
        report.inconclusive("nobody looked what is there at the end".to_owned());
    }
    report
}

/// Sums of what came before a moment.
struct Sums(Vec<(u64, i64)>);

impl Sums {
    fn of(mut amounts: Vec<(u64, i64)>) -> Self {
        amounts.sort_unstable();
        let mut sum = 0;
        for (_, amount) in &mut amounts {
            sum += *amount;
            *amount = sum;
        }
        Self(amounts)
    }

    fn before(&self, moment: u64) -> i64 {
        let count = self.0.partition_point(|(at, _)| *at < moment);
        count.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}
