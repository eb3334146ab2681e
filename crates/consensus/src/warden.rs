//! Watches leadership: whom to believe the leader, and whether this node should lead.
//!
//! Two pure functions and the loop that feeds them. The Raft library names as leader whoever last
//! was one; [`believed`] adds whether that is still fresh. [`stance`] is what reluctance means.

use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::{ChangeMembers, LogIdOptionExt, RaftMetrics, ServerState};
use quorate_core::NodeId;
use tokio::time::{Instant, sleep};

use crate::limits;
use crate::log::Node;
use crate::machine::Machine;
use crate::poll;
use crate::raft::{Member, Name};

type Metrics = RaftMetrics<Name, Member>;

/// The leader, if one is known to have been there within `fresh`.
pub(crate) fn believed(
    metrics: &Metrics,
    me: NodeId,
    heard: Option<Duration>,
    fresh: Duration,
) -> Option<NodeId> {
    let leader = metrics.current_leader?.0;
    let age = if leader != me {
        heard?
    } else if metrics.membership_config.voter_ids().count() <= 1 {
        Duration::ZERO
    } else {
        Duration::from_millis(metrics.millis_since_quorum_ack?)
    };
    (age <= fresh).then_some(leader)
}

/// What [`stance`] looks at.
#[derive(Debug, Clone, Copy)]
struct View {
    /// Whether this node should rather not lead.
    reluctant: bool,
    /// How many voters there are.
    voters: usize,
    /// Whether this node leads.
    leads: bool,
    /// Whether another voter has everything that this leader has.
    successor: bool,
    /// How long no leader has been believed in.
    leaderless: Duration,
    /// Where handing over is, and for how long it has been there.
    handover: Handover,
    since: Duration,
}

/// A reluctant leader's way out: it falls silent, so that another campaigns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handover {
    /// Not handing over.
    No,
    /// Sending no heartbeats.
    Silent,
    /// Leading on for a while, since nobody took over.
    Resting,
}

/// How this node behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stance {
    elect: bool,
    heartbeat: bool,
    handover: Handover,
}

fn stance(view: View) -> Stance {
    let willing = Stance { elect: true, heartbeat: true, handover: Handover::No };
    if !view.reluctant || view.voters <= 1 {
        return willing;
    }
    if !view.leads {
        // Better a reluctant leader than none.
        return Stance { elect: view.leaderless >= limits::RELUCTANCE_MAX, ..willing };
    }
    let handover = match view.handover {
        Handover::No if view.successor => Handover::Silent,
        Handover::Silent if view.since >= limits::HANDOVER_WITHIN => Handover::Resting,
        Handover::Resting if view.since >= limits::HANDOVER_PAUSE => Handover::No,
        unchanged => unchanged,
    };
    Stance { elect: false, heartbeat: handover != Handover::Silent, handover }
}

/// The loop. Ends with the node.
pub(crate) async fn run<M: Machine>(node: Weak<Node<M>>) {
    let mut led = Instant::now();
    let mut handover = (Handover::No, Instant::now());
    let mut metrics = match node.upgrade() {
        Some(node) => node.raft.metrics(),
        None => return,
    };
    loop {
        let Some(node) = node.upgrade().filter(|node| !node.closed()) else { return };
        let now = Instant::now();
        let seen = metrics.borrow_and_update().clone();
        if let Err(fault) = &seen.running_state {
            tracing::error!(error = %fault, "consensus has stopped on this node");
            node.leader.send_replace(None);
            return;
        }
        node.note_voters();
        let heard = node.heard().map(|at| now - at);
        let leader = believed(&seen, node.me, heard, node.timing.election_max);
        node.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
        if leader.is_some() {
            led = now;
        }
        let view = View {
            reluctant: node.is_reluctant(),
            voters: seen.membership_config.voter_ids().count(),
            leads: seen.state == ServerState::Leader,
            successor: has_successor(&seen, node.me),
            leaderless: now - led,
            handover: handover.0,
            since: now - handover.1,
        };
        let stance = stance(view);
        // A node that a leader speaks to needs no poll; the library's own timer is longer still.
        let led = node.led();
        if !led && stance.elect && view.voters > 1 && node.begin_poll() {
            tokio::spawn(poll::run(node.clone()));
        }
        let may = view.voters <= 1 || !led && node.cleared();
        node.raft.runtime_config().elect(stance.elect && may);
        node.raft.runtime_config().heartbeat(stance.heartbeat);
        if stance.handover != handover.0 {
            tracing::info!(from = ?handover.0, to = ?stance.handover, "reluctant leader");
            handover = (stance.handover, now);
        }
        finish_change(&node, &seen);
        node.log.seal_if_due();
        drop(node);
        tokio::select! {
            () = sleep(limits::WARDEN_CYCLE) => {}
            _ = metrics.changed() => {}
        }
    }
}

fn has_successor(metrics: &Metrics, me: NodeId) -> bool {
    metrics.replication.as_ref().is_some_and(|progress| {
        let mut others = metrics.membership_config.voter_ids().filter(|voter| voter.0 != me);
        others.any(|voter| {
            let matched = progress.get(&voter).copied().flatten();
            matched.index() >= metrics.last_log_index
        })
    })
}

/// Completes a change of members whose leader was lost between its two steps.
fn finish_change<M: Machine>(node: &Arc<Node<M>>, metrics: &Metrics) {
    let membership = &metrics.membership_config;
    let halfway = membership.membership().get_joint_config().len() > 1;
    let committed = metrics.last_applied >= *membership.log_id();
    if metrics.state != ServerState::Leader || !halfway || !committed {
        return;
    }
    // Whoever holds this is changing the members right now.
    let Ok(changing) = node.changing.clone().try_lock_owned() else { return };
    let raft = node.raft.clone();
    tokio::spawn(async move {
        let nobody = ChangeMembers::AddVoterIds(Default::default());
        match raft.change_membership(nobody, false).await {
            Ok(_) => tracing::info!("completed a change of members that was cut off"),
            Err(err) => tracing::warn!(error = %err, "could not complete a change of members"),
        }
        drop(changing);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            reluctant: true,
            voters: 3,
            leads: false,
            successor: true,
            leaderless: Duration::ZERO,
            handover: Handover::No,
            since: Duration::ZERO,
        }
    }

    #[test]
    fn the_willing_and_the_only_voter_lead() {
        let willing = Stance { elect: true, heartbeat: true, handover: Handover::No };
        assert_eq!(stance(View { reluctant: false, leads: true, ..view() }), willing);
        assert_eq!(stance(View { voters: 1, leads: true, ..view() }), willing);
    }

    #[test]
    fn the_reluctant_campaigns_only_when_nobody_else_does() {
        assert!(!stance(view()).elect);
        assert!(stance(View { leaderless: limits::RELUCTANCE_MAX, ..view() }).elect);
    }

    #[test]
    fn the_reluctant_leader_falls_silent_for_a_bounded_time_and_rests() {
        let leads = View { leads: true, ..view() };
        let alone = stance(View { successor: false, ..leads });
        assert_eq!((alone.heartbeat, alone.handover), (true, Handover::No));
        let silent = stance(leads);
        assert_eq!((silent.heartbeat, silent.handover), (false, Handover::Silent));
        let late = View { handover: Handover::Silent, since: limits::HANDOVER_WITHIN, ..leads };
        let resting = stance(late);
        assert_eq!((resting.heartbeat, resting.handover), (true, Handover::Resting));
        let again = View { handover: Handover::Resting, since: limits::HANDOVER_PAUSE, ..leads };
        assert_eq!(stance(again).handover, Handover::No);
    }
}
