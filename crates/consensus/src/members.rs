//! Who votes: what the leader does to add and to remove a node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, LogIdOptionExt, StoredMembership};
use quorate_core::NodeId;
use quorate_core::lease::VotersVersion;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::limits;
use crate::log::Node;
use crate::machine::Machine;
use crate::raft::{Member, Name, StoreId};
use crate::wire::{Ask, No, Reply};

type Change = ChangeMembers<Name, Member>;

impl<M: Machine> Node<M> {
    /// Makes `node` a voter: first a learner, then, once it has the log, a voter.
    pub(crate) async fn add_here(&self, node: NodeId, until: Instant) -> Result<(), No> {
        let _changing = self.lock_changes(until).await?;
        let store = self.store_of(node, until).await?;
        let members = self.membership();
        let known = members.get_node(&Name(node)).map(|member| member.store);
        if members.voter_ids().any(|voter| voter.0 == node) {
            return match (known, store) {
                (Some(joined), Some(now)) if joined != now => Err(replaced(node, joined, now)),
                _ => Ok(()),
            };
        }
        let store = store.ok_or_else(|| not_accepted(format!("{node} cannot be reached")))?;
        if known.is_some_and(|known| known != store) {
            // A learner may lose its store: it has promised nothing yet.
            let gone = ChangeMembers::RemoveNodes(BTreeSet::from([Name(node)]));
            self.change(gone, until).await?;
        }
        let learner = ChangeMembers::AddNodes(BTreeMap::from([(Name(node), Member { store })]));
        self.change(learner, until).await?;
        self.caught_up(node, until).await?;
        self.change_voters(ChangeMembers::AddVoterIds(BTreeSet::from([Name(node)])), until).await
    }

    /// Makes `node` no member at all.
    pub(crate) async fn remove_here(&self, node: NodeId, until: Instant) -> Result<(), No> {
        let _changing = self.lock_changes(until).await?;
        let members = self.membership();
        let voters: BTreeSet<NodeId> = members.voter_ids().map(|voter| voter.0).collect();
        if voters.contains(&node) {
            if voters.len() == 1 {
                return Err(No::LastVoter { node });
            }
            let leaves = ChangeMembers::RemoveVoters(BTreeSet::from([Name(node)]));
            return self.change_voters(leaves, until).await;
        }
        if members.get_node(&Name(node)).is_none() {
            return Ok(());
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([Name(node)])), until).await
    }

    async fn lock_changes(&self, until: Instant) -> Result<tokio::sync::OwnedMutexGuard<()>, No> {
        if !self.leads() {
            return Err(No::NotLeader);
        }
        timeout_at(until, self.changing.clone().lock_owned())
            .await
            .map_err(|_| not_accepted("another change of members is under way".to_owned()))
    }

    pub(crate) fn membership(&self) -> openraft::Membership<Name, Member> {
        self.raft.metrics().borrow().membership_config.membership().clone()
    }

    /// Which store the node has now; `None` if it does not say.
    async fn store_of(&self, node: NodeId, until: Instant) -> Result<Option<StoreId>, No> {
        if node == self.me {
            return Ok(Some(self.store));
        }
        let within = limits::DIAL_WITHIN.min(until - Instant::now());
        match self.peers.ask(node, None, Ask::Identify, Vec::new(), within).await {
            Ok(Reply::Identity { node: name, store }) if name == node => Ok(Some(store)),
            Ok(Reply::Identity { node: name, .. }) => {
                Err(not_accepted(format!("what answers for {node} is {name}")))
            }
            Ok(_) | Err(_) => Ok(None),
        }
    }

    async fn caught_up(&self, node: NodeId, until: Instant) -> Result<(), No> {
        let mut metrics = self.raft.metrics();
        let until = until.min(Instant::now() + limits::CATCH_UP_WITHIN);
        let ready = metrics.wait_for(|seen| match &seen.replication {
            // No longer the leader.
            None => true,
            Some(progress) => {
                let matched = progress.get(&Name(node)).copied().flatten();
                let wanted = seen.last_log_index.unwrap_or(0);
                matched.is_some()
                    && matched.index().unwrap_or(0) + limits::CATCH_UP_ENTRIES >= wanted
            }
        });
        match timeout_at(until, ready).await {
            Ok(Ok(seen)) if seen.replication.is_some() => Ok(()),
            Ok(Ok(_)) => Err(No::NotLeader),
            Ok(Err(_)) => Err(self.stopped()),
            Err(_) => Err(No::Behind { node, because: "it took too long".to_owned() }),
        }
    }

    /// One change of voters, when leases of the voters before the present ones are over
    /// ([`limits::VOTERS_REST`]).
    async fn change_voters(&self, change: Change, until: Instant) -> Result<(), No> {
        loop {
            let rested = self.note_voters().rested(self.me);
            if Instant::now() >= rested {
                return self.change(change, until).await;
            }
            if rested > until {
                let because = "the voters changed a moment ago; try again in 3 s".to_owned();
                return Err(not_accepted(because));
            }
            sleep_until(rested).await;
        }
    }

    /// Looks who votes, so that a change is noticed when it happens.
    pub(crate) fn note_voters(&self) -> LastChange {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow();
        let members = &seen.membership_config;
        let voters = members.membership().voter_ids().map(|voter| voter.0).collect();
        let committed = seen.last_applied >= *members.log_id();
        let mut last = self.last_change.lock().unwrap_or_else(PoisonError::into_inner);
        last.note(voters, committed, Instant::now());
        last.clone()
    }

    /// One change of members; a removed voter leaves altogether.
    async fn change(&self, change: Change, until: Instant) -> Result<(), No> {
        loop {
            let done = timeout_at(until, self.raft.change_membership(change.clone(), false)).await;
            let refused = match done {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(RaftError::APIError(refused))) => refused,
                Ok(Err(RaftError::Fatal(_))) => return Err(self.stopped()),
                Err(_) => {
                    return Err(No::Unknown { because: "no majority in time".to_owned() });
                }
            };
            match refused {
                ClientWriteError::ForwardToLeader(_) => return Err(No::NotLeader),
                ClientWriteError::ChangeMembershipError(err) => match err {
                    // The previous change is not committed yet.
                    ChangeMembershipError::InProgress(_) => sleep(limits::RETRY_PAUSE).await,
                    err => return Err(not_accepted(err.to_string())),
                },
            }
        }
    }
}

/// The last change of voters that this process saw. Its first look counts as one.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastChange {
    voters: BTreeSet<NodeId>,
    /// Who voted before, if that was seen.
    before: BTreeSet<NodeId>,
    /// When; no earlier than a majority knew of it.
    at: Option<Instant>,
}

impl LastChange {
    fn note(&mut self, voters: BTreeSet<NodeId>, committed: bool, now: Instant) {
        if voters != self.voters {
            let before = std::mem::replace(&mut self.voters, voters);
            (self.before, self.at) = (before, None);
        }
        if committed && self.at.is_none() {
            self.at = Some(now);
        }
    }

    /// When the next one may begin. Where this node is or was the only voter, it belongs to every
    /// majority of the sets around, and knows of the changes.
    fn rested(&self, me: NodeId) -> Instant {
        let alone = BTreeSet::from([me]);
        let at = self.at.unwrap_or_else(Instant::now);
        let free = self.voters == alone || self.before == alone;
        if free { at } else { at + limits::VOTERS_REST }
    }
}

/// Which change the members here come from.
pub(crate) fn version(members: &StoredMembership<Name, Member>) -> VotersVersion {
    let id = members.log_id().as_ref();
    id.map_or_else(VotersVersion::default, |id| VotersVersion {
        raft_term: id.leader_id.term,
        index: id.index,
    })
}

fn not_accepted(because: String) -> No {
    No::NotAccepted { because }
}

/// The refusal to treat a new store as the old one.
pub(crate) fn replaced(node: NodeId, joined: StoreId, now: StoreId) -> No {
    let because = format!("it joined with store {joined} and now has store {now}");
    No::Replaced { node, because }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|n| NodeId::new(n).unwrap()).collect()
    }

    #[test]
    fn voters_rest_after_a_change_that_a_majority_knows() {
        let me = NodeId::new("n1").unwrap();
        let begun = Instant::now();
        let mut last = LastChange::default();
        last.note(names(&["n1", "n2", "n3"]), true, begun);
        assert_eq!(last.rested(me), begun + limits::VOTERS_REST);
        // Looking again changes nothing, another change does once it is committed.
        let later = begun + limits::VOTERS_REST * 2;
        last.note(names(&["n1", "n2", "n3"]), true, later);
        assert_eq!(last.rested(me), begun + limits::VOTERS_REST);
        last.note(names(&["n1", "n2"]), false, later);
        assert!(last.rested(me) > Instant::now());
        last.note(names(&["n1", "n2"]), true, later);
        assert_eq!(last.rested(me), later + limits::VOTERS_REST);
    }

    #[test]
    fn a_cluster_grows_from_one_node_without_a_pause() {
        let me = NodeId::new("n1").unwrap();
        let now = Instant::now();
        let mut last = LastChange::default();
        for voters in [&["n1"][..], &["n1", "n2"]] {
            last.note(names(voters), true, now);
            assert_eq!(last.rested(me), now, "{voters:?}");
        }
        last.note(names(&["n1", "n2", "n3"]), true, now);
        assert_eq!(last.rested(me), now + limits::VOTERS_REST);
    }
}
