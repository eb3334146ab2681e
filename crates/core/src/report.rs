//! How far a node's log reaches, and which of two logs is ahead.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Lsn, Term, TimelineId};

/// The end of a node's log, read after it was frozen (rule R3). Valid for one term only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The term whose election this answers.
    pub term: Term,
    /// Timeline of the newest log the node has.
    pub timeline: TimelineId,
    /// End of that log.
    pub lsn: Lsn,
    /// Where each ancestor of `timeline` ended, oldest first (its history file).
    pub forks: Vec<(TimelineId, Lsn)>,
}

/// A log position that can be compared across nodes: the reign that wrote it, then the bytes (R8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The term whose writer wrote the log at `lsn`.
    pub wal_term: Term,
    /// End of the log.
    pub lsn: Lsn,
}

impl Report {
    /// The timeline that owns the log at its end. A node may already stream a new timeline while it
    /// still lacks bytes from before the fork: those belong to the ancestor.
    pub fn owner(&self) -> TimelineId {
        owner(self.timeline, self.lsn, &self.forks)
    }

    /// The same with no more of the history than its owner is found by, for messages whose size must
    /// not grow with the cluster's age.
    #[must_use]
    pub fn trimmed(&self) -> Self {
        let settled = self.forks.iter().rposition(|(_, end)| *end < self.lsn).unwrap_or_default();
        Self { forks: self.forks[settled..].to_vec(), ..self.clone() }
    }

    /// This report as a comparable position. Timelines no reign is known for predate the cluster,
    /// or their reigns are forgotten: those keep their order among each other.
    pub fn position(&self, reign_of: &BTreeMap<TimelineId, Term>) -> Position {
        let owner = self.owner();
        let wal_term = match (reign_of.get(&owner), reign_of.first_key_value()) {
            (Some(term), _) => *term,
            // Each grant takes one timeline and at least one term, so this never exceeds the
            // forgotten reign's own term, and it grows with the timeline.
            (None, Some((oldest, term))) if owner < *oldest => {
                Term(term.0.saturating_sub(u64::from(oldest.0 - owner.0)))
            }
            (None, _) => Term::default(),
        };
        Position { wal_term, lsn: self.lsn }
    }
}

fn owner(timeline: TimelineId, lsn: Lsn, forks: &[(TimelineId, Lsn)]) -> TimelineId {
    // From the newest ancestor back: the first one that ended at or after `lsn` and whose own
    // ancestors did not is the owner.
    let mut owner = timeline;
    for (ancestor, end) in forks.iter().rev() {
        if lsn > *end {
            break;
        }
        owner = *ancestor;
    }
    owner
}

/// Where a timeline of a history ended. PostgreSQL may write that an ancestor ended after its
/// descendant did: the descendant was promoted before it had reached its own beginning.
fn end_of(timeline: TimelineId, history: &[(TimelineId, Lsn)]) -> Option<Lsn> {
    let at = history.iter().position(|(t, _)| *t == timeline)?;
    history[at..].iter().map(|(_, end)| *end).min()
}

/// Whether a log that ends at (`timeline`, `lsn`) is a prefix of the writer's history, so that it
/// may be continued by streaming from that writer (rule R4).
///
/// `history` is the writer's timeline history, oldest first; `current` is the timeline it writes.
pub fn on_history(
    standby: &Report,
    current: TimelineId,
    history: &[(TimelineId, Lsn)],
) -> Result<(), Lsn> {
    let owner = standby.owner();
    if owner == current {
        return Ok(());
    }
    match end_of(owner, history) {
        Some(fork) if standby.lsn <= fork => Ok(()),
        Some(fork) => Err(fork),
        None => Err(common_ancestor(standby, current, history)),
    }
}

/// Where two histories part when the standby's timeline is unknown to the writer.
fn common_ancestor(standby: &Report, current: TimelineId, history: &[(TimelineId, Lsn)]) -> Lsn {
    standby
        .forks
        .iter()
        .rev()
        .find_map(|(timeline, _)| {
            let mine = end_of(*timeline, &standby.forks)?;
            if *timeline == current {
                return Some(mine);
            }
            Some(end_of(*timeline, history)?.min(mine))
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(timeline: u32, lsn: u64, forks: &[(u32, u64)]) -> Report {
        let forks = forks.iter().map(|&(t, l)| (TimelineId(t), Lsn(l))).collect();
        Report { term: Term(9), timeline: TimelineId(timeline), lsn: Lsn(lsn), forks }
    }

    #[test]
    fn bytes_before_the_fork_belong_to_the_ancestor() {
        let reigns = BTreeMap::from([(TimelineId(2), Term(1)), (TimelineId(5), Term(4))]);
        let r = report(5, 90, &[(1, 10), (2, 100)]);
        assert_eq!(r.position(&reigns), Position { wal_term: Term(1), lsn: Lsn(90) });
        let r = report(5, 101, &[(1, 10), (2, 100)]);
        assert_eq!(r.position(&reigns), Position { wal_term: Term(4), lsn: Lsn(101) });
    }

    #[test]
    fn a_later_reign_beats_a_longer_log() {
        let reigns = BTreeMap::from([(TimelineId(2), Term(1)), (TimelineId(3), Term(2))]);
        let stale = report(2, 9000, &[(1, 10)]).position(&reigns);
        let fresh = report(3, 500, &[(1, 10), (2, 400)]).position(&reigns);
        assert!(fresh > stale);
    }

    #[test]
    fn lineage() {
        let history = [(TimelineId(1), Lsn(10)), (TimelineId(2), Lsn(100))];
        let check = |r: Report| on_history(&r, TimelineId(7), &history);
        assert_eq!(check(report(7, 500, &history_pairs())), Ok(()));
        assert_eq!(check(report(2, 100, &[(1, 10)])), Ok(()));
        assert_eq!(check(report(2, 101, &[(1, 10)])), Err(Lsn(100)), "a tail past the fork");
        assert_eq!(check(report(3, 60, &[(1, 10), (2, 50)])), Err(Lsn(50)), "another branch");
        assert_eq!(check(report(3, 40, &[(1, 10), (2, 50)])), Ok(()), "still before the branch");
    }

    #[test]
    fn a_node_promoted_before_it_reached_the_timeline_it_followed() {
        // It followed timeline 3, which left 2 at 50, and was promoted to 4 at 40.
        let forks = [(1, 10), (2, 50), (3, 40)];
        assert_eq!(report(4, 40, &forks).owner(), TimelineId(2));
        assert_eq!(report(4, 45, &forks).owner(), TimelineId(4));
        let history = forks.map(|(t, l)| (TimelineId(t), Lsn(l)));
        let check = |r: Report| on_history(&r, TimelineId(4), &history);
        assert_eq!(check(report(2, 45, &[(1, 10)])), Err(Lsn(40)), "never part of timeline 4");
        assert_eq!(check(report(2, 40, &[(1, 10)])), Ok(()));
    }

    #[test]
    fn a_branch_off_the_writers_own_timeline() {
        let history = [(TimelineId(1), Lsn(10)), (TimelineId(2), Lsn(100))];
        let branch = report(9, 700, &[(1, 10), (2, 100), (7, 500)]);
        assert_eq!(on_history(&branch, TimelineId(7), &history), Err(Lsn(500)));
    }

    #[test]
    fn forgotten_reigns_keep_their_order() {
        let reigns = BTreeMap::from([(TimelineId(30), Term(90)), (TimelineId(31), Term(95))]);
        let old = report(7, 900, &[]).position(&reigns);
        let newer = report(8, 100, &[]).position(&reigns);
        let kept = report(30, 50, &[]).position(&reigns);
        assert!(old < newer && newer < kept, "{old:?} {newer:?} {kept:?}");
        let foreign = report(99, 5000, &[]).position(&reigns);
        assert!(foreign < kept, "nobody granted that timeline");
    }

    proptest::proptest! {
        #[test]
        fn a_trimmed_report_has_the_same_owner(
            steps in proptest::collection::vec((1u32..4, 0u64..50), 0..12), lsn in 0u64..400,
        ) {
            let (mut timeline, mut end, mut forks) = (0, 0, Vec::new());
            for (up, on) in steps {
                timeline += up;
                end += on;
                forks.push((timeline, end));
            }
            let full = report(timeline + 1, lsn, &forks);
            let trimmed = full.trimmed();
            proptest::prop_assert_eq!(trimmed.owner(), full.owner());
            proptest::prop_assert_eq!(trimmed.forks.is_empty(), full.forks.is_empty());
        }
    }

    fn history_pairs() -> Vec<(u32, u64)> {
        vec![(1, 10), (2, 100)]
    }
}
