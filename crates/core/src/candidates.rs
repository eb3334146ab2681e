//! Who would write next, and why not the others (capability A4). Only a forecast: an election
//! decides from frozen reports.

use serde::{Deserialize, Serialize};

use crate::coordinator::ClusterView;
use crate::role::Role;
use crate::state::NodeKind;
use crate::status::Doing;
use crate::{Lsn, NodeId};

/// A node's prospects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Whether it could be promoted now.
    pub eligible: bool,
    /// Why it stands where it stands.
    pub because: String,
}

/// Every data node but the writer, best candidate first.
pub fn candidates(view: &ClusterView<'_>) -> Vec<Candidate> {
    let authority = &view.state.authority;
    let document = view.state.document();
    let mut ranked: Vec<(bool, Lsn, u8, Candidate)> = view
        .state
        .data_nodes()
        .filter(|n| Some(*n) != authority.writer)
        .map(|node| {
            let (eligible, end, because) = prospects(view, node);
            let priority = document.node(node).priority;
            (eligible, end, priority, Candidate { node, eligible, because })
        })
        .collect();
    ranked.sort_by(|a, b| {
        (b.0, b.1, b.2).cmp(&(a.0, a.1, a.2)).then_with(|| a.3.node.cmp(&b.3.node))
    });
    let best = ranked.first().filter(|r| r.0).map(|r| r.1);
    ranked
        .into_iter()
        .enumerate()
        .map(|(place, (eligible, end, _, mut candidate))| {
            if eligible {
                let behind = best.unwrap_or_default().bytes_since(end);
                candidate.because = match (place, behind) {
                    (0, _) => "next in line: the most advanced log".to_owned(),
                    (_, 0) => "equal log; comes later by priority or name".to_owned(),
                    (_, bytes) => format!("{bytes} bytes behind the next in line"),
                };
            }
            candidate
        })
        .collect()
}

fn prospects(view: &ClusterView<'_>, node: NodeId) -> (bool, Lsn, String) {
    let no = |why: &str| (false, Lsn(0), why.to_owned());
    let state = view.state;
    if state.nodes.get(&node).is_none_or(|n| n.kind == NodeKind::Witness) {
        return no("holds no data");
    }
    let document = state.document();
    let spec = document.node(node);
    if spec.role != Role::Ha {
        let text = format!("its role ({}) does not allow it to write", spec.role);
        return (false, Lsn(0), text);
    }
    if !spec.may_write() {
        return no("the document says that it must not write (promotable = false)");
    }
    if !spec.counts(document.timing) {
        return no("commits do not wait for it (sync = false): it may lack acknowledged ones");
    }
    if state.leaving.contains(&node) {
        return no("it is leaving the cluster");
    }
    if !state.authority.cohort().contains(&node) {
        return no("not in the commit rule: its copy may lack acknowledged commits");
    }
    let Some(peer) = view.peers.get(&node) else {
        return no("never heard");
    };
    let fresh = peer
        .heard
        .is_some_and(|at| view.now.since(at).as_millis() < u128::from(document.suspect_after_ms));
    if peer.gone || !fresh {
        return no("not heard");
    }
    let Some(status) = &peer.status else {
        return no("never heard");
    };
    if status.promised.is_none() {
        return no("its promise file is lost");
    }
    let Some(server) = &status.server else {
        return no("its server is down");
    };
    match status.doing {
        Doing::Following | Doing::Frozen | Doing::Freezing | Doing::Detached => {
            (true, server.flushed, String::new())
        }
        Doing::Starting
        | Doing::Witness
        | Doing::Recovering
        | Doing::Promoting
        | Doing::Opening
        | Doing::Writing
        | Doing::Cloning
        | Doing::Rewinding
        | Doing::Fenced
        | Doing::Broken => no(&status.because.sentence),
    }
}
