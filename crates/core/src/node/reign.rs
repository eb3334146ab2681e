//! What a writer has come to in its term.

use crate::status::SurrenderReason;
use crate::{Rule, Term};

/// A writer's own progress in its term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnReign {
    /// The term.
    pub term: Term,
    /// The rule in effect.
    pub rule: u64,
    /// The generation for which a marker is known to be held by a commit set.
    pub marked: Option<u64>,
    /// Whether clients are served.
    pub open: bool,
    /// Whether the lease runs; `Some(true)`: it has been out for so long that it is lost.
    pub lease_lost: bool,
    /// Whether the disk or the server is stuck.
    pub stuck: Option<SurrenderReason>,
    /// Whether clients are held and the target of a switchover has everything.
    pub drained: bool,
}

impl OwnReign {
    /// A term that begins with this rule.
    pub fn begun(term: Term, rule: &Rule) -> Self {
        Self {
            term,
            rule: rule.generation,
            marked: None,
            open: false,
            lease_lost: false,
            stuck: None,
            drained: false,
        }
    }
}
