//! Rows with ids of their own: what was acknowledged is there at the end, once; what was refused is
//! not; what is not known may be.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::limits::QUOTED_MAX;
use crate::operation::{History, Outcome};
use crate::report::{Anomaly, Report};

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Adds a row with this id. Each id is added once.
    Add(i64),
    /// The ids of all rows, after everything else has ended.
    All(Vec<i64>),
}

/// Judges a history.
pub fn check(history: &History<Action>) -> Report {
    let mut report = Report::of(history.tally());
    let mut tried: BTreeMap<i64, Outcome> = BTreeMap::new();
    for operation in &history.operations {
        if let Action::Add(id) = operation.action
            && tried.insert(id, operation.outcome).is_some()
        {
            report.inconclusive(format!("{id} was added twice"));
        }
    }
    let mut looked = false;
    for (index, operation) in history.done() {
        if let Action::All(rows) = &operation.action {
            looked = true;
            compare(&tried, rows, index, &mut report);
        }
    }
    if !looked {
        report.inconclusive("nobody looked what is there at the end".to_owned());
    }
    report
}

/// Compares what was told with what is there.
fn compare(tried: &BTreeMap<i64, Outcome>, rows: &[i64], index: usize, report: &mut Report) {
    let held: BTreeSet<i64> = rows.iter().copied().collect();
    let ids = |wanted: Outcome| tried.iter().filter(move |(_, o)| **o == wanted).map(|(id, _)| *id);
    let mut seen = BTreeSet::new();
    let kinds = [
        (Anomaly::Lost, ids(Outcome::Ok).filter(|id| !held.contains(id)).collect::<Vec<_>>()),
        (
            Anomaly::FailedYetPresent,
            ids(Outcome::Failed).filter(|id| held.contains(id)).collect::<Vec<_>>(),
        ),
        (Anomaly::Duplicate, rows.iter().copied().filter(|id| !seen.insert(*id)).collect()),
        (Anomaly::FromNowhere, held.iter().copied().filter(|id| !tried.contains_key(id)).collect()),
    ];
    for (anomaly, ids) in kinds {
        if !ids.is_empty() {
            let some = &ids[..ids.len().min(QUOTED_MAX)];
            report.broken(anomaly, vec![index], format!("{} rows, such as {some:?}", ids.len()));
        }
    }
}
