//! A scenario and its steps.

use std::fmt;
use std::time::Duration;

use quorate_core::NodeId;

use crate::deed::{Deed, Span, either};

/// What is done to a cluster and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// What it shows, for people. One line or several.
    pub intent: String,
    /// The cluster it begins with.
    pub shape: Shape,
    /// In this order.
    pub steps: Vec<Step>,
}

/// A cluster at its beginning: nodes `n1`, `n2` and so on, the first one writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Nodes with a database.
    pub data: u8,
    /// Whether a witness follows them.
    pub witness: bool,
}

/// A step of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Something is done.
    Do(Deed),
    /// Time passes.
    Wait(Duration),
    /// It goes on once this is so; it fails when that takes too long for whoever runs it.
    WaitUntil(Condition),
    /// It fails unless this is so now.
    Expect(Expectation),
}

/// Something that can be waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// One of these serves as the writer.
    Writer(Vec<NodeId>),
    /// Some writer serves.
    AnyWriter,
    /// The node follows the writer.
    Follows(NodeId),
    /// Every node writes, follows or votes.
    Whole,
}

/// Something that must be so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// This holds at once.
    Now(Condition),
    /// No acknowledged write is missing, and no answer contradicted another one.
    NoLoss,
    /// Nobody serves as the writer.
    NoWriter,
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.intent)?;
        writeln!(f, "{}", self.shape)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {}{}", self.data, if self.witness { " and a witness" } else { "" })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Do(deed) => deed.fmt(f),
            Self::Wait(time) => write!(f, "wait {}", Span(*time)),
            Self::WaitUntil(condition) => write!(f, "wait until {condition}"),
            Self::Expect(Expectation::Now(condition)) => write!(f, "expect {condition}"),
            Self::Expect(Expectation::NoLoss) => f.write_str("expect no loss"),
            Self::Expect(Expectation::NoWriter) => f.write_str("expect no writer"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writer(nodes) => write!(f, "{} is writer", either(nodes)),
            Self::AnyWriter => f.write_str("a writer serves"),
            Self::Follows(node) => write!(f, "{node} follows"),
            Self::Whole => f.write_str("the cluster is whole"),
        }
    }
}
