//! Operations, their outcomes, and the history they make up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Microseconds since the history began, by one monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

/// One session with the database. It has one operation at a time; after a lost connection the same
/// client goes on as another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Process(pub u64);

/// What is known of an operation's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect, and its answer is part of the action.
    Ok,
    /// It surely did not take effect.
    Failed,
    /// It may have taken effect, or may still.
    Unknown,
}

/// A server that answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Server {
    /// Its node.
    pub node: String,
    /// Whether it was a standby then.
    pub replica: bool,
}

/// One thing that a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<A> {
    /// Who asked.
    pub process: Process,
    /// When it was sent.
    pub invoked: Moment,
    /// When the client had an answer, or gave up.
    pub completed: Moment,
    /// What is known of its effect.
    pub outcome: Outcome,
    /// What was asked and, where it took effect, what came back.
    pub action: A,
    /// Words of an error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Something that was done to the cluster meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When.
    pub at: Moment,
    /// In words: `kill n1`, `partition n1 | n2 n3`.
    pub fault: String,
}

/// All operations of one workload, and the faults under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History<A> {
    /// In any order.
    pub operations: Vec<Operation<A>>,
    /// In order of time.
    pub faults: Vec<Fault>,
}

/// How many operations came out how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Took effect.
    pub ok: usize,
    /// Surely did not.
    pub failed: usize,
    /// Not known.
    pub unknown: usize,
}

impl<A> Operation<A> {
    /// When its effect was there at the latest; nothing where that is not known.
    pub fn ended(&self) -> Option<Moment> {
        (self.outcome != Outcome::Unknown).then_some(self.completed)
    }

    /// Whether it took effect.
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }
}

impl<A> Default for History<A> {
    fn default() -> Self {
        Self { operations: Vec::new(), faults: Vec::new() }
    }
}

impl<A> History<A> {
    /// How many operations came out how.
    pub fn tally(&self) -> Tally {
        let count = |outcome| self.operations.iter().filter(|o| o.outcome == outcome).count();
        Tally {
            ok: count(Outcome::Ok),
            failed: count(Outcome::Failed),
            unknown: count(Outcome::Unknown),
        }
    }

    /// Operations that took effect, with their places in the history.
    pub fn done(&self) -> impl Iterator<Item = (usize, &Operation<A>)> {
        self.operations.iter().enumerate().filter(|(_, o)| o.is_ok())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6} s", self.0 as f64 / 1e6)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.node, if self.replica { " as a replica" } else { " as the writer" })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ok, {} failed, {} unknown", self.ok, self.failed, self.unknown)
    }
}
