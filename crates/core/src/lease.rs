//! Lease arithmetic: how long a writer may act unheard.
//!
//! A voter that answers a writer's heartbeat promises not to help a later writer *serve* for the
//! lease's length (it may help elect one). Only reads depend on this; commits are safe without a
//! clock (rules R2 to R5).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Moment, NodeId};

/// Lengths of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseTiming {
    /// How long a voter's answer holds, on the voter's clock, from receipt.
    pub length: Duration,
    /// Worst relative difference between two hosts' clock rates, in parts per thousand.
    pub drift_permille: u32,
    /// Fixed margin for scheduling between the check and the bytes leaving.
    pub margin: Duration,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            length: Duration::from_millis(1500),
            drift_permille: 5,
            margin: Duration::from_millis(50),
        }
    }
}

impl LeaseTiming {
    /// The part of the lease that the writer may use on its own clock.
    fn usable(&self) -> Duration {
        let drift = self.length * self.drift_permille / 1000;
        self.length.saturating_sub(drift).saturating_sub(self.margin)
    }
}

/// Least time between two changes of the voters.
///
/// Majorities of two sets in a row meet; of the set before the last one, perhaps not, so that its
/// leases must be over before the next change. They are one length after the last change is known
/// to a majority, for from then on one of every majority refuses ([`Voters::version`]); as much again
/// is for the time that the change takes from a node's log to its heartbeats.
pub const VOTERS_REST: Duration = Duration::from_millis(3000);

/// Whose majority grants leases, as a node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Voters {
    /// Who votes.
    pub names: BTreeSet<NodeId>,
    /// Which change of consensus' members made them voters.
    pub version: VotersVersion,
}

/// Position of a change of members in the log of consensus: a later change is greater. A voter grants
/// nothing to a writer that knows fewer changes than itself: that one would count the answer into a
/// majority that decides nothing any more.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct VotersVersion {
    /// Term of the log, not of a writer.
    pub raft_term: u64,
    /// Index in the log.
    pub index: u64,
}

/// Until when the writer may answer, from when it *sent* the last beat that each voter granted.
/// `None` without a majority of voters. The writer grants to itself at `now` when it is a voter.
pub fn deadline(
    timing: &LeaseTiming,
    me: NodeId,
    now: Moment,
    voters: &BTreeSet<NodeId>,
    granted: &BTreeMap<NodeId, Moment>,
) -> Option<Moment> {
    let mut sent: Vec<Moment> = voters
        .iter()
        .filter_map(|v| if *v == me { Some(now) } else { granted.get(v).copied() })
        .collect();
    sent.sort_unstable_by(|a, b| b.cmp(a));
    let majority = voters.len() / 2 + 1;
    sent.get(majority - 1).map(|oldest| *oldest + timing.usable())
}

/// Whether an older writer's lease is surely over: a majority of voters know the new term (so they
/// grant nothing older) and their last grant has run out.
pub fn clear(voters: &BTreeSet<NodeId>, clear_at: &BTreeMap<NodeId, Moment>, now: Moment) -> bool {
    let clear = voters.iter().filter(|v| clear_at.get(v).is_some_and(|at| *at <= now)).count();
    clear > voters.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn voters(n: usize) -> Vec<NodeId> {
        (0..n).map(|i| NodeId::new(&format!("v{i}")).unwrap()).collect()
    }

    #[test]
    fn lease_needs_a_majority() {
        let v = voters(3);
        let all: BTreeSet<_> = v.iter().copied().collect();
        let timing = LeaseTiming::default();
        let now = Moment(10_000_000_000);
        assert_eq!(deadline(&timing, v[0], now, &all, &BTreeMap::new()), None);
        let sent = Moment(9_000_000_000);
        let got = deadline(&timing, v[0], now, &all, &BTreeMap::from([(v[1], sent)]));
        assert_eq!(got, Some(sent + timing.usable()));
        let one: BTreeSet<_> = [v[0]].into();
        assert!(deadline(&timing, v[0], now, &one, &BTreeMap::new()) > Some(now));
    }

    proptest! {
        /// Perfect clocks: the old writer's deadline is past whenever a majority is clear.
        #[test]
        fn no_overlap(n in 1usize..=5, sent in proptest::collection::vec(0u64..3000, 5),
                      delay in proptest::collection::vec(0u64..500, 5),
                      answered in proptest::collection::vec(any::<bool>(), 5), at in 0u64..8000) {
            let timing = LeaseTiming::default();
            let ms = |m: u64| Moment(m * 1_000_000);
            let v = voters(n);
            let all: BTreeSet<_> = v.iter().copied().collect();
            // The old writer v0 grants to itself until the moment it learns of the new term.
            let fenced_at = sent[0];
            let granted: BTreeMap<_, _> =
                (1..n).filter(|&i| answered[i]).map(|i| (v[i], ms(sent[i]))).collect();
            let old = deadline(&timing, v[0], ms(fenced_at), &all, &granted);
            let clear_at: BTreeMap<_, _> = (0..n).map(|i| {
                let receipt = if i == 0 { fenced_at } else { sent[i] + delay[i] };
                (v[i], ms(receipt) + timing.length)
            }).collect();
            if clear(&all, &clear_at, ms(at)) {
                prop_assert!(old.is_none_or(|d| d <= ms(at)));
            }
        }
    }
}
