//! Asking before campaigning, so that a node that was cut off disturbs nobody when it returns.
//!
//! The Raft library campaigns on a timer, and each campaign raises the term, on which a healthy
//! leader steps down as soon as it hears of it. So a node lets the library campaign only once a
//! majority has said that it has no leader either and that this node's log is good enough. This is
//! Raft's "pre-vote"; it changes nothing on either side and decides nothing about safety.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::ServerState;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::log::Node;
use crate::machine::Machine;
use crate::raft::{LogId, Name};
use crate::wire::{Ask, Reply};

impl<M: Machine> Node<M> {
    /// Whether a majority would listen to this node as a candidate now.
    pub(crate) async fn would_win(&self) -> bool {
        let members = self.membership();
        let me = Name(self.me);
        let mut yes = BTreeSet::from([me]);
        let last_log = self.log.last();
        let mut polls = JoinSet::new();
        for voter in members.voter_ids().filter(|voter| *voter != me) {
            let store = members.get_node(&voter).map(|member| member.store);
            let (peers, within) = (self.peers.clone(), self.timing.vote_within());
            polls.spawn(async move {
                let ask = Ask::Poll { last_log };
                let reply = peers.ask(voter.0, store, ask, Vec::new(), within).await;
                matches!(reply, Ok(Reply::Poll { listens: true })).then_some(voter)
            });
        }
        let configs = members.get_joint_config();
        let won = |yes: &BTreeSet<Name>| {
            configs.iter().all(|config| config.intersection(yes).count() * 2 > config.len())
        };
        while !won(&yes) {
            match polls.join_next().await {
                Some(Ok(Some(voter))) => drop(yes.insert(voter)),
                Some(_) => {}
                None => return false,
            }
        }
        members.voter_ids().any(|voter| voter == me)
    }

    /// Whether this voter would listen to a candidate whose log ends there.
    pub(crate) fn listens(&self, last_log: Option<LogId<Name>>) -> bool {
        !self.led() && last_log >= self.log.last()
    }

    /// Whether a leader was here within the lease.
    pub(crate) fn led(&self) -> bool {
        let lease = self.timing.lease();
        let metrics = self.raft.metrics();
        let seen = metrics.borrow();
        if seen.state == ServerState::Leader {
            let silence = seen.millis_since_quorum_ack;
            return silence.is_some_and(|millis| u128::from(millis) <= lease.as_millis());
        }
        self.heard().is_some_and(|heard| heard.elapsed() <= lease)
    }
}

/// Asks the others, and notes when a majority would listen.
pub(crate) async fn run<M: Machine>(node: Arc<Node<M>>) {
    let cleared = node.would_win().await.then(Instant::now);
    node.note_poll(cleared);
}
