//! Drills: rehearsed failures on a running cluster.
//!
//! ```text
//! plan (pure: may it be, what will be done) ─▶ conduct (on a node that is not hurt)
//!        ├─ record it in consensus, so that there is one at a time
//!        ├─ canary: clients of our own through every gateway, in a schema of their own
//!        ├─ the plan's steps: failures are begun at their nodes, each of which ends by itself
//!        ├─ put everything back, whatever happened
//!        └─ compare what clients were told with what is there, judge, record
//! ```
//!
//! Nothing is hurt that the node itself does not put right in time: a conductor may die.

mod canary;
pub mod conduct;
pub mod encryption;
pub mod faults;
pub mod page;
pub mod plan;
mod run;
mod watch;

use std::time::Duration;

use quorate_core::drill::Record;
use quorate_core::state::Event;
use serde::{Deserialize, Serialize};

/// Longest that any failure lasts: its node ends it then by itself.
pub const FAULT_MAX: Duration = Duration::from_secs(60);
/// Longest that a drill may take with everything put back, unless the operator says otherwise.
pub const WAIT: Duration = Duration::from_secs(300);
/// The most that an operator may say.
pub const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long a drill may last in any case: conditions are waited for while it goes on, and again
/// when everything is put back.
pub fn lasts(wait: Duration) -> Duration {
    wait * 2 + FAULT_MAX * 2
}

/// Width of a column of [`Report::rate`].
pub const COLUMN: Duration = Duration::from_millis(100);
/// Columns kept: what comes later is not drawn.
pub const COLUMNS_MAX: usize = 3000;

/// A line of a drill's course.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since its clients began.
    pub ms: u64,
    /// What happened.
    pub text: String,
    /// Whether it belongs into the picture.
    pub marked: bool,
}

/// What clients were told in a [`COLUMN`] of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Writes acknowledged.
    pub written: u32,
    /// Errors of any kind.
    pub errors: u32,
}

/// All of a finished drill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What is remembered of it.
    pub record: Record,
    /// Identity of the cluster.
    pub cluster: String,
    /// What it was to show.
    pub intent: String,
    /// What was to be done, in the words of scenarios.
    pub steps: Vec<String>,
    /// What was done and seen.
    pub course: Vec<Line>,
    /// When the failure began, in milliseconds since its clients began.
    pub hurt_ms: Option<u64>,
    /// What clients were told.
    pub rate: Vec<Column>,
    /// The cluster's own history of it.
    pub events: Vec<Event>,
}

/// What a conductor says of a drill.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// The number of the drill under way, or of the last one.
    pub id: u64,
    /// Lines so far.
    pub course: Vec<Line>,
    /// Once it has ended.
    pub report: Option<Box<Report>>,
}
