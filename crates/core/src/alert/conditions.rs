//! What is wrong now, from what every node says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Key, Rule, Severity};
use crate::authority::Phase;
use crate::because::list;
use crate::contract::Action;
use crate::coordinator::{ClusterView, Peer};
use crate::document::{Document, Timing};
use crate::limits::{
    CERTIFICATE_CRITICAL, CERTIFICATE_WARNING, CLOCK_OFFSET_MAX, DISK_CRITICAL_PERCENT,
    DISK_WARNING_PERCENT, FAILOVER_SHOWN_MS, NODE_SILENT,
};
use crate::slots::{DiskLevel, Level, Next};
use crate::state::{Event, NodeKind, WallMillis};
use crate::status::{Doing, NodeStatus, WriterStatus};
use crate::words::{bytes, seconds};
use crate::{Because, NodeId, Policy, validation};

/// Something that is wrong now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in a sentence.
    pub sentence: String,
}

/// What was found so far.
struct Found(BTreeMap<Key, Condition>);

impl Found {
    fn add(&mut self, rule: Rule, subject: impl ToString, severity: Severity, sentence: String) {
        let key = Key { rule, subject: subject.to_string() };
        self.0.insert(key, Condition { severity, sentence });
    }

    fn of_cluster(&mut self, rule: Rule, severity: Severity, sentence: impl Into<String>) {
        self.add(rule, "", severity, sentence.into());
    }
}

/// Everything that is wrong, as this node sees it. `at` is its wall clock, `because` the coordinator's
/// sentence.
pub fn conditions(
    view: &ClusterView<'_>,
    at: WallMillis,
    because: &Because,
) -> BTreeMap<Key, Condition> {
    let mut found = Found(BTreeMap::new());
    if view.state.cluster_id.is_empty() {
        return found.0;
    }
    let document = view.state.document();
    let writer = writer(view);
    authority(view, at, writer, because, &mut found);
    copies(view, &document, writer, &mut found);
    slots(view, writer, &mut found);
    for (name, sentence) in validation::failed(view.state) {
        found.add(Rule::ValidationFailed, name, Severity::Critical, sentence);
    }
    for (node, member) in &view.state.nodes {
        let peer = view.peers.get(node).cloned().unwrap_or_default();
        if !is_heard(view, *node, &peer) {
            let sentence = silence(view, &peer);
            found.add(Rule::NodeDown, node, Severity::Warning, sentence);
            continue;
        }
        let Some(status) = &peer.status else { continue };
        vitals(view, *node, status, at, &mut found);
        if member.kind == NodeKind::Data && writer.is_some_and(|(w, _)| w != *node) {
            follows(*node, status, writer, &mut found);
        }
    }
    found.0
}

/// The writer that serves, and its word.
fn writer<'a>(view: &'a ClusterView<'_>) -> Option<(NodeId, &'a WriterStatus)> {
    let authority = &view.state.authority;
    let node = authority.writer.filter(|_| authority.phase == Phase::Serving)?;
    let peer = view.peers.get(&node)?;
    let word = peer.status.as_ref()?.writer.as_ref()?;
    let serves = word.serving && word.term == authority.term && is_heard(view, node, peer);
    serves.then_some((node, word))
}

fn is_heard(view: &ClusterView<'_>, node: NodeId, peer: &Peer) -> bool {
    node == view.me
        || !peer.gone && peer.heard.is_some_and(|heard| view.now.since(heard) < NODE_SILENT)
}

fn silence(view: &ClusterView<'_>, peer: &Peer) -> String {
    match (peer.gone, peer.heard) {
        (true, _) => "its host answers, and its process does not run".to_owned(),
        (false, None) => "it was never heard".to_owned(),
        (false, Some(heard)) => {
            format!("it was last heard {} ago", seconds(view.now.since(heard)))
        }
    }
}

fn authority(
    view: &ClusterView<'_>,
    at: WallMillis,
    writer: Option<(NodeId, &WriterStatus)>,
    because: &Because,
    found: &mut Found,
) {
    if writer.is_none() {
        found.of_cluster(Rule::WriterDown, Severity::Critical, because.sentence.clone());
    }
    let recent = |at_event: WallMillis| at.saturating_sub(at_event) < FAILOVER_SHOWN_MS;
    let failover = view.state.events.iter().rev().take_while(|e| recent(e.at));
    // The first of them, so that the sentence stays the same.
    if let Some(event) = failover.filter(|e| is_failover(e)).last() {
        let sentence = format!("failover to term {}: {}", event.term, event.because.sentence);
        found.of_cluster(Rule::FailoverHappened, Severity::Info, sentence);
    }
    let voters = view.voters.len();
    if voters > 0 && voters.is_multiple_of(2) {
        let sentence = format!("{voters} voters are no safer than {}", voters - 1);
        found.of_cluster(Rule::EvenVoters, Severity::Warning, sentence);
    }
    if view.state.paused {
        let sentence = "nobody fails over until `quorate resume`";
        found.of_cluster(Rule::AutomationPaused, Severity::Warning, sentence);
    }
    let versions: BTreeSet<&str> = view
        .peers
        .iter()
        .filter(|(n, p)| view.state.nodes.contains_key(n) && is_heard(view, **n, p))
        .filter_map(|(_, p)| Some(p.status.as_ref()?.version.as_str()))
        .filter(|version| !version.is_empty())
        .collect();
    if versions.len() > 1 {
        let sentence = format!("nodes run {}", list(&versions));
        found.of_cluster(Rule::VersionSkew, Severity::Warning, sentence);
    }
}

/// Whether an event is an election that nobody asked for.
fn is_failover(event: &Event) -> bool {
    event.kind == "election" && event.because.rule != "op-failover"
}

/// Whether commits are as sure as the document asks for.
fn copies(
    view: &ClusterView<'_>,
    document: &Document,
    writer: Option<(NodeId, &WriterStatus)>,
    found: &mut Found,
) {
    let (Some((writer, word)), Some(rule)) = (writer, view.state.authority.rule()) else { return };
    let holders: BTreeSet<NodeId> = word.standbys.keys().copied().chain([writer]).collect();
    if !rule.is_commit_set(&holders) {
        let sentence = format!(
            "copies are on {} only, and a commit set of {} is needed",
            list(holders.intersection(&rule.cohort)),
            list(&rule.cohort)
        );
        found.of_cluster(Rule::CommitsWait, Severity::Critical, sentence);
    }
    let counts = |n: &NodeId| document.node(*n).counts(document.timing);
    let able = view.state.data_nodes().filter(counts).count() as u8;
    let wanted = match document.timing {
        Timing::Quorum | Timing::Sync => document.copies.min(able),
        Timing::SemiSync => 2.min(able),
        Timing::Async => 1,
    };
    let there = match &rule.policy {
        Policy::Copies(n) | Policy::Named { copies: n, .. } | Policy::Zones { copies: n, .. } => *n,
        Policy::WriterOnly => 1,
    };
    if there < wanted {
        let sentence = format!("a commit needs {there} of {wanted} copies that are wanted");
        found.of_cluster(Rule::ClusterDegraded, Severity::Warning, sentence);
    }
    for (node, severity, sentence) in late(document, word) {
        found.add(Rule::LagOverContract, node, severity, sentence);
    }
}

/// Slots that need somebody, streams that broke, and whether the writer has room.
fn slots(view: &ClusterView<'_>, writer: Option<(NodeId, &WriterStatus)>, found: &mut Found) {
    for (name, record) in &view.state.slots {
        if let Some(gap) = &record.gap {
            found.add(Rule::SlotGap, name, Severity::Critical, gap.because.sentence.clone());
        }
    }
    let Some((node, word)) = writer else { return };
    for trouble in &word.slots.worst {
        let (rule, severity) = match trouble.level {
            // It ends by itself in a moment, and the gap is told.
            Level::Over if trouble.next == Next::Drop => (Rule::SlotOverBudget, Severity::Warning),
            Level::Over | Level::Lost => (Rule::SlotOverBudget, Severity::Critical),
            Level::Near | Level::Late => (Rule::SlotNearBudget, Severity::Warning),
            Level::Unknown => (Rule::SlotUnknown, Severity::Warning),
            Level::Fine => continue,
        };
        found.add(rule, &trouble.slot, severity, trouble.because.sentence.clone());
    }
    let disk = view.peers.get(&node).and_then(|p| p.status.as_ref()?.disk.as_ref());
    if let Some(disk) = disk.filter(|d| d.level == DiskLevel::Full) {
        let sentence = disk.because.sentence.clone();
        found.add(Rule::WritesStopped, node, Severity::Critical, sentence);
    }
}

/// Whether a standby follows the writer, and is as late as agreed at the most.
fn follows(
    node: NodeId,
    status: &NodeStatus,
    writer: Option<(NodeId, &WriterStatus)>,
    found: &mut Found,
) {
    let Some((_, word)) = writer else { return };
    let fed = word.standbys.contains_key(&node) || status.upstream.is_some();
    if status.doing != Doing::Following || !fed {
        let sentence = status.because.sentence.clone();
        found.add(Rule::ReplicationBroken, node, Severity::Warning, sentence);
    }
}

/// What a node's host is like, and what it has seen.
fn vitals(
    view: &ClusterView<'_>,
    node: NodeId,
    status: &NodeStatus,
    at: WallMillis,
    found: &mut Found,
) {
    let vitals = &status.vitals;
    for invariant in &vitals.breaches {
        let sentence = format!("{node} has seen this broken: {}", invariant.sentence());
        found.add(Rule::TwoWriters, node, Severity::Critical, sentence);
    }
    if let Some(until) = vitals.certificate_until {
        let left = Duration::from_millis(until.saturating_sub(at));
        let severity = match left {
            _ if left < CERTIFICATE_CRITICAL => Some(Severity::Critical),
            _ if left < CERTIFICATE_WARNING => Some(Severity::Warning),
            _ => None,
        };
        if let Some(severity) = severity {
            let sentence = format!("its certificate expires in {}", seconds(left));
            found.add(Rule::CertificateExpiry, node, severity, sentence);
        }
    }
    let disk = status.disk.as_ref().map(|standing| standing.disk);
    if let Some(space) = disk.filter(|disk| disk.total > 0) {
        let free = space.free.saturating_mul(100) / space.total;
        let severity = match free {
            _ if free < DISK_CRITICAL_PERCENT => Some(Severity::Critical),
            _ if free < DISK_WARNING_PERCENT => Some(Severity::Warning),
            _ => None,
        };
        if let Some(severity) = severity {
            let megabytes = space.free / (1024 * 1024);
            let sentence = format!("{free} % of its disk are free ({megabytes} MB)");
            found.add(Rule::Disk, node, severity, sentence);
        }
    }
    let heard = view.peers.get(&node).and_then(|p| p.heard);
    if let (Some(wall), Some(heard)) = (vitals.wall, heard.filter(|_| node != view.me)) {
        let now_there = Duration::from_millis(wall) + view.now.since(heard);
        let offset = now_there.abs_diff(Duration::from_millis(at));
        if offset > CLOCK_OFFSET_MAX {
            let sentence =
                format!("its wall clock and {}'s differ by {}", view.me, seconds(offset));
            found.add(Rule::Clock, node, Severity::Warning, sentence);
        }
    }
}

/// Contracts are judged by the writer; what follows from a broken one is the contract's own wish.
fn late(
    document: &Document,
    word: &WriterStatus,
) -> impl Iterator<Item = (NodeId, Severity, String)> {
    word.lags.iter().filter(|(_, lag)| lag.broken_ms.is_some()).map(|(node, lag)| {
        let contract = document.node(*node).contract();
        let severity = match contract.action {
            Action::Page => Severity::Critical,
            Action::RouteToWriter | Action::WarnReader | Action::PauseConsumers | Action::None => {
                Severity::Warning
            }
        };
        let late = Duration::from_millis(lag.replay_ms);
        let shown = format!("what it shows is {} late ({})", seconds(late), bytes(lag.bytes));
        let limits = contract.words();
        let (standing, until) = match contract.recovers(late, lag.bytes) {
            None => (format!("and its contract allows {limits}"), ""),
            Some(recovers) => (format!("which {recovers} ({limits})"), " until then"),
        };
        let sentence = match contract.action {
            Action::RouteToWriter => format!("{shown}, {standing}; reads go elsewhere{until}"),
            Action::WarnReader => format!("{shown}, {standing}; its readers are warned{until}"),
            Action::PauseConsumers => format!("{shown}, {standing}; logical consumers wait{until}"),
            Action::Page | Action::None => format!("{shown}, {standing}; it goes on serving"),
        };
        (*node, severity, sentence)
    })
}
