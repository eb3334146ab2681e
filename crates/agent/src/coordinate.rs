//! The coordinator: on the leader of consensus, judges the cluster and proposes the next change.
//! On every node, keeps consensus itself in shape.

use std::sync::Arc;
use std::time::Duration;

use quorate_core::coordinator::{Memory, Peer, decide};
use quorate_core::state::Change;
use quorate_core::{Answer, Because, NodeId};
use quorate_link::clock;
use tokio::time::Instant;

use crate::limits::{ATTEND_EVERY, COORDINATE_EVERY, MEMBERSHIP_RETRY};
use crate::node::Node;

/// Runs until the process ends.
pub async fn run(node: Arc<Node>) {
    let mut memory = Memory::default();
    let mut membership = Membership::default();
    let mut state = node.parts.consensus.watch();
    let mut leader = node.parts.consensus.leader();
    loop {
        state.borrow_and_update();
        let led_by = *leader.borrow_and_update();
        prefer(&node, led_by);
        let leads = node.parts.consensus.is_leader();
        if leads {
            if let Some(change) = look(&node, &mut memory) {
                propose(&node, change).await;
            }
            membership.reconcile(&node);
        } else {
            memory = Memory::default();
            let word = led_by
                .and_then(|l| node.parts.health.status_of(l))
                .and_then(|s| s.coordinating)
                .unwrap_or_else(|| Because::new("leader", "the coordinator has not been heard"));
            node.set_coordinator_word(word);
        }
        tokio::select! {
            _ = state.changed() => {}
            _ = leader.changed() => {}
            () = node.parts.health.changed.notified() => { node.wake.notify_one(); }
            () = tokio::time::sleep(if leads { COORDINATE_EVERY } else { ATTEND_EVERY }) => {}
        }
    }
}

/// The writer would rather not lead, so that losing it costs no election of consensus first; nor
/// would a node that cannot hear the writer while another voter can; and a leader whose process is
/// seen to be gone is replaced at once.
fn prefer(node: &Node, led_by: Option<NodeId>) {
    let parts = &node.parts;
    let state = parts.consensus.state();
    let writer = state.authority.writer;
    let peers = parts.health.peers();
    let suspect = Duration::from_millis(state.document().suspect_after_ms);
    let fresh = |p: &Peer| !p.gone && p.heard.is_some_and(|at| clock::now().since(at) < suspect);
    let hears_writer = |p: &Peer, w: NodeId| {
        fresh(p)
            && p.status.as_ref().and_then(|s| s.hears.get(&w)).is_some_and(|h| {
                !h.gone && h.silent_ms.is_some_and(|ms| u128::from(ms) < suspect.as_millis())
            })
    };
    let deaf = writer.is_some_and(|w| {
        w != parts.me
            && !peers.get(&w).is_some_and(fresh)
            && peers.iter().any(|(n, p)| *n != parts.me && *n != w && hears_writer(p, w))
    });
    parts.consensus.reluctant(writer == Some(parts.me) || deaf);
    let gone = |n: NodeId| peers.get(&n).is_some_and(|p| p.gone);
    if led_by.is_some_and(gone) {
        parts.consensus.elect_now();
    }
}

fn look(node: &Node, memory: &mut Memory) -> Option<Change> {
    let verdict = node.with_view(|view| decide(view, memory));
    if node.coordinator_word() != verdict.because {
        tracing::info!(rule = verdict.because.rule, "coordinator: {}", verdict.because.sentence);
        node.set_coordinator_word(verdict.because);
        node.wake.notify_one();
    }
    verdict.change
}

async fn propose(node: &Node, change: Change) {
    match node.propose(change).await {
        Ok(Answer::Done) => {}
        Ok(Answer::Refused { because }) => {
            // The view was older than the record; the next look sees the present one.
            tracing::debug!(because, "the record did not take a change");
            tokio::task::yield_now().await;
        }
        Err(e) => tracing::warn!(error = %e, "consensus did not take a change"),
    }
}

/// Brings consensus' members in line with the cluster's nodes.
#[derive(Default)]
struct Membership {
    next: Option<Instant>,
}

impl Membership {
    fn reconcile(&mut self, node: &Arc<Node>) {
        if self.next.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let state = node.parts.consensus.state();
        let status = node.parts.consensus.status();
        let peers = node.parts.health.peers();
        let heard = |n: &NodeId| {
            peers
                .get(n)
                .and_then(|p| p.heard)
                .is_some_and(|at| clock::now().since(at) < Duration::from_secs(1))
        };
        let join = state.nodes.keys().find(|n| !status.voters.contains(n) && heard(n)).copied();
        let leave =
            status.voters.union(&status.learners).find(|n| !state.nodes.contains_key(n)).copied();
        if join.is_none() && leave.is_none() {
            return;
        }
        self.next = Some(Instant::now() + MEMBERSHIP_RETRY);
        let node = Arc::clone(node);
        tokio::spawn(async move {
            let consensus = &node.parts.consensus;
            if let Some(name) = leave {
                log(name, "leave", consensus.remove(name).await);
            }
            if let Some(name) = join {
                log(name, "join", consensus.add(name).await);
            }
        });
    }
}

fn log(node: NodeId, what: &str, result: Result<(), quorate_consensus::Error>) {
    match result {
        Ok(()) => tracing::info!(%node, what, "membership of consensus changed"),
        Err(e) => tracing::warn!(%node, what, error = %e, "membership of consensus did not change"),
    }
}
