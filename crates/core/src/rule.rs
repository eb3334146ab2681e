//! The commit rule: which copies make a commit safe, and which reports make an election safe.
//!
//! One predicate, "is this set of holders a commit set?", serves both sides. It is monotone, so an
//! election is safe exactly when the members that did *not* report hold no commit set among them
//! (rule R5), and the safe position is the highest one that a commit set has reached.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Lsn, NodeId};

/// A commit rule. Replaced as a whole, never edited: `generation` says which one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// Grows by one with each rule the cluster adopts.
    pub generation: u64,
    /// The nodes whose copies count and whose reports elect.
    pub cohort: BTreeSet<NodeId>,
    /// What makes a set of copies a commit set.
    pub policy: Policy,
}

/// What makes a set of cohort members a commit set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Any `copies` members, the writer included when it is a member (rule R7). At least one.
    Copies(u8),
    /// `copies` members, and every one of the named nodes that is a member.
    Named {
        /// Least number of members.
        copies: u8,
        /// Members that must hold the commit.
        all_of: BTreeSet<NodeId>,
    },
    /// `copies` members in at least `zones` failure domains. The rule says where each member stands,
    /// so that everybody judges it alike.
    Zones {
        /// Least number of members.
        copies: u8,
        /// Least number of zones that they stand in.
        zones: u8,
        /// The zone of each member; one that is not named here counts for none.
        zone_of: BTreeMap<NodeId, String>,
    },
    /// The writer alone; an election accepts the loss of what lay beyond the best report.
    WriterOnly,
}

impl Rule {
    /// Whether these holders make a commit safe. Holders outside the cohort do not count (R7).
    pub fn is_commit_set(&self, holders: &BTreeSet<NodeId>) -> bool {
        let members = holders.intersection(&self.cohort).count();
        match &self.policy {
            Policy::Copies(copies) => members >= usize::from((*copies).max(1)),
            Policy::Named { copies, all_of } => {
                members >= usize::from((*copies).max(1))
                    && all_of.intersection(&self.cohort).all(|n| holders.contains(n))
            }
            Policy::Zones { copies, zones, zone_of } => {
                let inside = holders.intersection(&self.cohort);
                let held: BTreeSet<&String> = inside.filter_map(|n| zone_of.get(n)).collect();
                members >= usize::from((*copies).max(1)) && held.len() >= usize::from(*zones)
            }
            Policy::WriterOnly => true,
        }
    }

    /// Whether an election may conclude from these reporters: no commit set can have formed among
    /// the members that are missing (rule R5). [`Policy::WriterOnly`] needs one member; how much
    /// may be lost is the caller's question there.
    pub fn election_satisfied(&self, reporters: &BTreeSet<NodeId>) -> bool {
        if self.policy == Policy::WriterOnly {
            return !reporters.is_disjoint(&self.cohort);
        }
        let missing: BTreeSet<NodeId> = self.cohort.difference(reporters).copied().collect();
        !self.is_commit_set(&missing)
    }

    /// The highest position that a commit set holds, from the position each node has reached.
    ///
    /// `writer` holds everything it sent: its entry is its own flushed position. `None` when no
    /// commit set exists among the nodes that have a position at all.
    pub fn safe_position(&self, writer: NodeId, reached: &BTreeMap<NodeId, Lsn>) -> Option<Lsn> {
        if self.policy == Policy::WriterOnly {
            return reached.get(&writer).copied();
        }
        let mut candidates: Vec<Lsn> = reached.values().copied().collect();
        candidates.sort_unstable_by(|a, b| b.cmp(a));
        candidates.dedup();
        // A copy of a record exists on the writer before it exists anywhere else.
        let holds = |node: NodeId, at: Lsn, lsn: Lsn| node == writer || at >= lsn;
        candidates.into_iter().find(|&lsn| {
            let holders =
                reached.iter().filter(|&(&n, &at)| holds(n, at, lsn)).map(|(&n, _)| n).collect();
            self.is_commit_set(&holders)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(names: &str) -> BTreeSet<NodeId> {
        names.split_whitespace().map(|n| NodeId::new(n).unwrap()).collect()
    }

    fn rule(cohort: &str, copies: u8) -> Rule {
        Rule { generation: 1, cohort: nodes(cohort), policy: Policy::Copies(copies) }
    }

    #[test]
    fn two_of_three_commit_and_two_of_three_elect() {
        let rule = rule("a b c", 2);
        assert!(rule.is_commit_set(&nodes("a b")));
        assert!(!rule.is_commit_set(&nodes("a d")));
        assert!(rule.election_satisfied(&nodes("b c")));
        assert!(!rule.election_satisfied(&nodes("b")));
    }

    #[test]
    fn a_named_member_is_needed_to_commit_and_enough_to_elect() {
        let policy = Policy::Named { copies: 2, all_of: nodes("b") };
        let rule = Rule { generation: 1, cohort: nodes("a b c"), policy };
        assert!(!rule.is_commit_set(&nodes("a c")));
        assert!(rule.is_commit_set(&nodes("a b")));
        assert!(rule.election_satisfied(&nodes("b")));
    }

    fn two_zones() -> Rule {
        let zone = |n: &NodeId| (*n, n.as_str()[..1].to_owned());
        let cohort = nodes("a1 a2 b1 b2");
        let zone_of = cohort.iter().map(zone).collect();
        Rule { generation: 1, cohort, policy: Policy::Zones { copies: 2, zones: 2, zone_of } }
    }

    #[test]
    fn a_zone_may_be_lost_as_a_whole() {
        let rule = two_zones();
        assert!(!rule.is_commit_set(&nodes("a1 a2")));
        assert!(rule.is_commit_set(&nodes("a1 b2")));
        assert!(!rule.is_commit_set(&nodes("a1 c1")));
        assert!(rule.election_satisfied(&nodes("b1 b2")));
        // One of each zone is missing: a commit may be on just these.
        assert!(!rule.election_satisfied(&nodes("a1 b1")));
        let at = |n: &str, lsn| (NodeId::new(n).unwrap(), Lsn(lsn));
        let reached = BTreeMap::from([at("a1", 9), at("a2", 8), at("b1", 5), at("b2", 3)]);
        assert_eq!(rule.safe_position(NodeId::new("a1").unwrap(), &reached), Some(Lsn(5)));
    }

    #[test]
    fn safe_position_is_the_writers_commit_set() {
        let at = |n: &str, lsn| (NodeId::new(n).unwrap(), Lsn(lsn));
        let a = NodeId::new("a").unwrap();
        let rule = rule("a b c", 2);
        assert_eq!(rule.safe_position(a, &BTreeMap::from([at("a", 9)])), None);
        let reached = BTreeMap::from([at("a", 9), at("b", 5), at("c", 7)]);
        assert_eq!(rule.safe_position(a, &reached), Some(Lsn(7)));
        // The writer's own sample may be older than a copy's word: the copy came from the writer.
        let reached = BTreeMap::from([at("a", 3), at("b", 5)]);
        assert_eq!(rule.safe_position(a, &reached), Some(Lsn(5)));
        // A node outside the cohort is no copy.
        let reached = BTreeMap::from([at("a", 9), at("d", 8)]);
        assert_eq!(rule.safe_position(a, &reached), None);
    }

    fn subset() -> impl Strategy<Value = BTreeSet<NodeId>> {
        proptest::collection::btree_set(
            prop::sample::select(vec!["a", "b", "c", "d", "e"])
                .prop_map(|n| NodeId::new(n).unwrap()),
            0..=5,
        )
    }

    proptest! {
        /// The heart of R5: an election that is satisfied meets every possible commit set.
        #[test]
        fn every_commit_set_meets_every_election(
            cohort in subset(), holders in subset(), reporters in subset(),
            copies in 1u8..5, all_of in subset(), zones in 1u8..4, kind in 0..3,
            places in proptest::collection::vec(0u8..3, 5),
        ) {
            let names = ["a", "b", "c", "d", "e"].map(|n| NodeId::new(n).unwrap());
            let zone_of = names.into_iter().zip(places.iter().map(u8::to_string)).collect();
            let policy = match kind {
                0 => Policy::Copies(copies),
                1 => Policy::Named { copies, all_of },
                _ => Policy::Zones { copies, zones, zone_of },
            };
            let rule = Rule { generation: 1, cohort: cohort.clone(), policy };
            if rule.is_commit_set(&holders) && rule.election_satisfied(&reporters) {
                let met = holders.intersection(&reporters).any(|n| cohort.contains(n));
                prop_assert!(met, "{rule:?} {holders:?} {reporters:?}");
            }
        }
    }
}
