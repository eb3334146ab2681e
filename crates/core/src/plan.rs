//! `quorate plan`: how many nodes, which timing and which roles, from what is wanted of a cluster.
//!
//! Arithmetic from figures to figures. It measures nothing and asks no node: a plan is as good as
//! the rates and the round-trips that it was made from. Every result carries the sentence that
//! explains it; what was not given is assumed, and said; and a plan says what it cannot promise.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::NodeId;
use crate::document::Document;

mod ask;
mod commit;
mod document;
mod place;
mod promise;
pub mod quorum;
mod reads;
mod recovery;
mod trips;

pub use ask::{Domain, Loss, Reads, Request};
pub use commit::{CommitCost, Commits};
pub use place::Votes;
pub use reads::ReadCapacity;
pub use recovery::{Recoveries, Recovery};

/// What two wishes have against each other, or what is wrong with one, and what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}. {change}")]
pub struct Contradiction {
    /// What cannot be.
    pub problem: String,
    /// What would make it possible.
    pub change: String,
}

impl Contradiction {
    fn new(problem: impl Into<String>, change: impl Into<String>) -> Self {
        Self { problem: problem.into(), change: change.into() }
    }
}

/// What a planned node is for. The cluster document knows `ha` and `read` only: nodes of the
/// other purposes that hold data have the role `read` there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A copy that counts and may become the writer. Answers reads while it does not write.
    Ha,
    /// Answers reads; its copy never counts.
    Read,
    /// Answers reports, which are kept away from the others.
    Reporting,
    /// A copy elsewhere, for the day on which all else is lost.
    Dr,
    /// Votes and holds no data.
    Witness,
}

impl Purpose {
    /// Whether it holds a database.
    pub fn has_data(self) -> bool {
        self != Self::Witness
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ha => "ha",
            Self::Read => "read",
            Self::Reporting => "reporting",
            Self::Dr => "dr",
            Self::Witness => "witness",
        })
    }
}

/// One node of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedNode {
    /// Its name.
    pub name: NodeId,
    /// What it is for.
    pub purpose: Purpose,
    /// The region it stands in.
    pub region: String,
    /// What its `zone` should say.
    pub zone: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The nodes, in the order in which they would be made.
    pub nodes: Vec<PlannedNode>,
    /// How reads are carried.
    pub reads: ReadCapacity,
    /// When a commit is acknowledged, and what that costs.
    pub commits: Commits,
    /// Who votes.
    pub votes: Votes,
    /// How long each kind of failure takes.
    pub recovery: Recoveries,
    /// What this choice cannot promise.
    pub cannot: Vec<String>,
    /// What was not given and therefore assumed.
    pub assumed: Vec<String>,
    /// The cluster document that goes with it.
    pub document: Document,
}

/// Makes a plan.
///
/// # Errors
/// When wishes contradict each other, or one makes no sense.
pub fn plan(request: &Request) -> Result<Plan, Contradiction> {
    let mut needs = ask::Needs::resolve(request)?;
    let mut layout = place::Layout::copies(&needs)?;
    let rule = commit::choose(&mut needs, &layout)?;
    let reads = reads::place(&needs, &mut layout)?;
    place::disaster_copies(&needs, &mut layout);
    let votes = place::votes(&needs, &mut layout)?;
    let commits = commit::cost(&needs, &layout, rule)?;
    let recovery = recovery::all(&needs, &layout, commits.timing)?;
    let cannot = promise::cannot(&needs, &layout, &commits, &recovery.faults);
    let document = document::of(&needs, &layout, &commits);
    let assumed = needs.assumed;
    let nodes = layout.nodes;
    Ok(Plan { nodes, reads, commits, votes, recovery, cannot, assumed, document })
}

/// Milliseconds in JSON.
fn as_ms<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(duration.as_secs_f64() * 1000.0)
}

/// A count and its noun: `1 replica`, `3 copies`.
fn many(count: usize, noun: &str) -> String {
    match (count, noun) {
        (1, noun) => format!("1 {noun}"),
        (count, "copy") => format!("{count} copies"),
        (count, noun) => format!("{count} {noun}s"),
    }
}

/// A duration for people: `0.4 ms`, `85 ms`, `2.1 s`.
pub fn time_words(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    match ms {
        ms if ms >= 1000.0 => format!("{} s", one_place(ms / 1000.0)),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{} ms", one_place(ms)),
    }
}

/// Bytes for people, in powers of 1024 as PostgreSQL has them.
pub fn byte_words(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
    match UNITS.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{} {unit}", one_place(bytes as f64 / *size as f64)),
        None => format!("{bytes} B"),
    }
}

fn one_place(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}
