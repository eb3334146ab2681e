//! Transactions that read lists and append to them, as in Elle (Kingsbury and Alvaro, VLDB 2020).
//!
//! Every element is appended once. So a list that was read names the order in which its elements
//! were written, and every read names the last write that it saw and the first that it missed:
//!
//! ```text
//! T1 appends 1 to x, T2 appends 2 to x, T3 reads x: [1], T4 reads x: [1, 2]
//!   T1 ─ww▶ T2   its write followed
//!   T1 ─wr▶ T3   its write was read
//!   T3 ─rw▶ T2   did not see its write
//! ```
//!
//! A circle of such steps is an anomaly; which one, its kinds of steps say. What a level of isolation
//! forbids is what PostgreSQL documents: `repeatable read` is snapshot isolation there.
//!
//! Transactions that only read may have been served by replicas. Each server's reads are judged
//! together with all transactions that write; what only the reads of several servers together show
//! is a long fork, and called so.

mod circles;
mod orders;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::limits::QUOTED_MAX;
use crate::operation::{History, Operation, Server};
use crate::report::{Anomaly, Report};
use orders::Orders;

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Appends this element to the list of this key.
    Append(i64, i64),
    /// Reads the list of this key; nothing where the answer is not known.
    Read(i64, Option<Vec<i64>>),
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Action {
    /// Its steps, in order.
    pub steps: Vec<Step>,
    /// The replica that served it; nothing for the writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Server>,
    /// Whether it reads all that there is, after everything else has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub last: bool,
}

/// What transactions asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// PostgreSQL's default.
    ReadCommitted,
    /// Snapshot isolation, in PostgreSQL.
    RepeatableRead,
    /// As if one after the other.
    Serializable,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The level of all transactions.
    pub isolation: Isolation,
    /// Whether what the writer served is in order of time, too.
    #[serde(default)]
    pub real_time: bool,
}

impl Isolation {
    /// Whether transactions at this level may show this.
    pub fn permits(self, anomaly: Anomaly) -> bool {
        use Anomaly::{
            G2Item, G2ItemRealTime, GNonadjacent, GNonadjacentRealTime, GSingle, GSingleRealTime,
            LongFork,
        };
        let skew = matches!(anomaly, G2Item | G2ItemRealTime | LongFork);
        let torn =
            matches!(anomaly, GSingle | GSingleRealTime | GNonadjacent | GNonadjacentRealTime);
        match self {
            Isolation::Serializable => false,
            Isolation::RepeatableRead => skew,
            Isolation::ReadCommitted => skew || torn,
        }
    }

    /// As SQL names it.
    pub fn sql(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "READ COMMITTED",
            Isolation::RepeatableRead => "REPEATABLE READ",
            Isolation::Serializable => "SERIALIZABLE",
        }
    }
}

impl Action {
    /// Whether it appends anything.
    pub fn writes(&self) -> bool {
        self.steps.iter().any(|s| matches!(s, Step::Append(..)))
    }
}

/// Judges a history.
pub fn check(history: &History<Action>, promise: Promise) -> Report {
    let mut report = Report::of(history.tally());
    let orders = Orders::infer(history, promise.isolation, &mut report);
    orders.lost(&mut report);
    if promise.real_time {
        orders.stale(&mut report);
    }
    circles::find(history, &orders, promise, &mut report);
    report
}

/// A transaction in words.
fn told(index: usize, operation: &Operation<Action>) -> String {
    let mut words = format!("T{index} ({}", operation.process);
    if let Some(server) = &operation.action.replica {
        let _ = write!(words, " at {}", server.node);
    }
    words.push(')');
    for (i, step) in operation.action.steps.iter().enumerate() {
        let gap = if i == 0 { ": " } else { ", " };
        let _ = match step {
            Step::Append(key, element) => write!(words, "{gap}append {element} to {key}"),
            Step::Read(key, Some(list)) => write!(words, "{gap}read {key}: {}", quoted(list)),
            Step::Read(key, None) => write!(words, "{gap}read {key}"),
        };
    }
    words
}

/// A list, or its end.
fn quoted(list: &[i64]) -> String {
    let from = list.len().saturating_sub(QUOTED_MAX);
    let words: Vec<_> = list[from..].iter().map(i64::to_string).collect();
    format!("[{}{}]", if from > 0 { "… " } else { "" }, words.join(" "))
}
