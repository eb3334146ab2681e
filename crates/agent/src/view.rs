//! The cluster as one node sees it: what `status`, the API and the page show.

use std::collections::{BTreeMap, BTreeSet};

use quorate_core::authority::{Authority, Phase};
use quorate_core::because::list;
use quorate_core::candidates::Candidate;
use quorate_core::contract::Contract;
use quorate_core::document::Document;
use quorate_core::invariant::Breach;
use quorate_core::lag::{Cause, Percentiles};
use quorate_core::role::Role;
use quorate_core::slots::DiskLevel;
use quorate_core::state::{Node, State, WallMillis};
use quorate_core::status::{Lag, NodeStatus};
use quorate_core::{Because, NodeId, Policy, Term, validation};
use serde::{Deserialize, Serialize};

use crate::alerts::Told;

/// The cluster as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Identity of the cluster.
    pub cluster_id: String,
    /// The node that answers.
    pub me: NodeId,
    /// Wall clock of the node that answers.
    pub at: WallMillis,
    /// The current term.
    pub term: Term,
    /// Where it stands.
    pub phase: Phase,
    /// Its writer, when one is granted.
    pub writer: Option<NodeId>,
    /// Leader of consensus, which is the coordinator.
    pub leader: Option<NodeId>,
    /// Voters of consensus.
    pub voters: BTreeSet<NodeId>,
    /// Whether automation is paused.
    pub paused: bool,
    /// The coordinator's sentence, when this node is the coordinator or the coordinator told it.
    pub because: Because,
    /// Version of the cluster document.
    pub document_version: u64,
    /// The authority record.
    pub authority: Authority,
    /// Who would be promoted next, best first, and why not the others.
    pub candidates: Vec<Candidate>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// What must never be and was seen by this node since its process began.
    #[serde(default)]
    pub breaches: Vec<Breach>,
    /// What fires, and, on the node that leads consensus, what is about to.
    #[serde(default)]
    pub alerts: Vec<Told>,
    /// Members.
    pub nodes: BTreeMap<NodeId, Member>,
}

/// One member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// Its entry in the cluster's state.
    #[serde(flatten)]
    pub node: Node,
    /// What its copy is for. Means nothing for a witness.
    pub role: Role,
    /// What the copy owes its users. Means nothing for a witness.
    pub contract: Contract,
    /// How late it is, as its writer says; `None` for the writer, and while there is none.
    pub lag: Option<Lag>,
    /// What holds it up, when it is late.
    pub late_because: Option<Cause>,
    /// How late it was in the last minutes.
    pub lately: Option<Percentiles>,
    /// Milliseconds since it was last heard; `None`: never.
    pub heard_ms: Option<u64>,
    /// Its host refuses connections: its process is gone.
    pub gone: bool,
    /// Its last word about itself.
    pub status: Option<NodeStatus>,
}

/// What a person should know, from the picture itself.
pub fn warnings(status: &ClusterStatus, fault: Option<&str>) -> Vec<String> {
    let breach = |b: &Breach| {
        format!(
            "MUST NEVER BE, seen {} times ({}): {}; keep all logs and report it",
            b.times,
            b.invariant.sentence(),
            b.seen
        )
    };
    let mut warnings: Vec<String> = status.breaches.iter().map(breach).collect();
    if let Some(fault) = fault {
        warnings.push(format!("consensus has stopped on {}: {fault}", status.me));
    }
    let voters = status.voters.len();
    if voters > 0 && voters.is_multiple_of(2) {
        warnings.push(format!(
            "{voters} voters are no safer than {}: add a node, or a witness (`quorate join \
             --witness`)",
            voters - 1
        ));
    }
    if status.leader.is_none() {
        warnings
            .push("no leader of consensus is known: a majority of voters must be up".to_owned());
    }
    warnings.extend(waiting(status));
    for (name, member) in &status.nodes {
        let Some(word) = &member.status else { continue };
        if let Some(server) = &word.server
            && !server.pending_restart.is_empty()
        {
            let names = server.pending_restart.join(", ");
            warnings.push(format!(
                "{name}: {names} take effect at the next restart (`quorate restart --rolling`)"
            ));
        }
    }
    for (name, member) in &status.nodes {
        let Some(server) = member.status.as_ref().and_then(|s| s.server.as_ref()) else { continue };
        if !server.kept.is_empty() && status.writer != Some(*name) {
            let names = server.kept.join(", ");
            warnings.push(format!(
                "{name} keeps {names} at the value that its writer had: once the writer's is \
                 lower, restart it (`quorate restart --rolling` does both)"
            ));
        }
    }
    if status.paused {
        warnings.push("automation is paused: nobody fails over (`quorate resume`)".to_owned());
    }
    warnings
}

/// Commits that wait because too few copies follow the writer.
fn waiting(status: &ClusterStatus) -> Option<String> {
    let writer = status.writer?;
    let word = status.nodes.get(&writer)?.status.as_ref()?.writer.as_ref()?;
    let rule = status.authority.rule()?;
    let holders: BTreeSet<NodeId> = word.standbys.keys().copied().chain([writer]).collect();
    (!rule.is_commit_set(&holders)).then(|| {
        format!(
            "commits wait: copies are on {} only, and a commit set of {} is needed",
            list(holders.intersection(&rule.cohort)),
            list(&rule.cohort),
        )
    })
}

/// Commits that stand in fewer zones than the document asks for.
pub fn too_few_zones(status: &ClusterStatus, document: &Document) -> Option<String> {
    let wanted = document.copy_zones;
    let there = match &status.authority.rule()?.policy {
        Policy::Zones { zones, .. } => *zones,
        Policy::Copies(_) | Policy::Named { .. } | Policy::WriterOnly => 1,
    };
    (there < wanted).then(|| {
        format!(
            "commits are sure of {there} zone only, and copy_zones asks for {wanted}: a standby in \
             another zone is missing (`zone` in its node's configuration says where it stands)"
        )
    })
}

/// Slots that need somebody, streams that broke, disks that are short.
pub fn of_slots(status: &ClusterStatus, state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, member) in &status.nodes {
        let disk = member.status.as_ref().and_then(|s| s.disk.as_ref());
        let Some(disk) = disk.filter(|d| d.level > DiskLevel::Fine) else { continue };
        let sentence = &disk.because.sentence;
        warnings.push(match status.writer == Some(*name) {
            true => format!("{name}, the writer, is short of disk: {sentence}"),
            // Writes stop on the writer alone; a standby's server ends, and nobody waits for it.
            false => format!("{name} is short of disk, and would be lost alone: {sentence}"),
        });
    }
    let word = status.writer.and_then(|w| status.nodes.get(&w)?.status.as_ref()?.writer.as_ref());
    if let Some(word) = word.filter(|w| w.term == status.term) {
        let slots = &word.slots;
        warnings.extend(slots.worst.iter().map(|t| t.because.sentence.clone()));
        let more = (slots.troubled as usize).saturating_sub(slots.worst.len());
        if more > 0 {
            warnings.push(format!("{more} more slots need somebody: `quorate slots`"));
        }
    }
    warnings.extend(crate::slots::gaps(state).into_values().map(|gap| gap.because.sentence));
    warnings
}

/// Queries that the present data failed when they were asked last.
pub fn of_validations(state: &State) -> impl Iterator<Item = String> {
    validation::failed(state).into_iter().map(|(name, failure)| {
        format!("validation {name} failed: {failure}; when it is mended: `quorate validate {name}`")
    })
}
