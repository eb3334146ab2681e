//! A cluster in four sentences: where writes go, how they are copied, what reads see, what a failure of
//! the writer leads to. And what an administrator should think about.

use std::collections::{BTreeMap, BTreeSet};

use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::because::list;
use quorate_core::document::{Document, Level};
use quorate_core::gateway::{Consistency, ReadFrom, SynchronousCommit, Tls};
use quorate_core::lease::LeaseTiming;
use quorate_core::state::NodeKind;
use quorate_core::status::{Doing, StandbyLink};
use quorate_core::{NodeId, Policy, Rule};
use serde::Serialize;

use crate::cli::operate::serving;
use crate::cli::show::bytes;

/// Bytes of log below which a standby counts as current.
const CURRENT_BYTES: u64 = 64 * 1024;
/// Milliseconds without log that it should have below which it counts as current.
const LATE_MS: u64 = 1000;

/// The four sentences, and what to think about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Where writes go.
    pub writes: String,
    /// How they are copied, and when they are acknowledged.
    pub copies: String,
    /// Where reads go, and what they see.
    pub reads: String,
    /// What happens when the writer fails.
    pub failure: String,
    /// What an administrator should think about.
    pub worries: Vec<String>,
}

/// Explains a cluster from what one node sees of it.
pub fn explain(status: &ClusterStatus, document: &Document) -> Explanation {
    Explanation {
        writes: writes(status, document),
        copies: copies(status, document),
        reads: reads(status, document),
        failure: failure(status),
        worries: worries(status, document),
    }
}

/// What a commit needs by one rule: `2 of n1, n2 and n3`.
pub fn rule_words(rule: &Rule) -> String {
    match &rule.policy {
        Policy::Copies(n) => format!("{n} of {}", list(&rule.cohort)),
        Policy::Named { copies, all_of } => {
            format!("{copies} of {}, among them {}", list(&rule.cohort), list(all_of))
        }
        Policy::Zones { copies, zones, .. } => {
            format!("{copies} of {}, in {zones} zones", list(&rule.cohort))
        }
        Policy::WriterOnly => "the writer alone".to_owned(),
    }
}

fn writes(status: &ClusterStatus, document: &Document) -> String {
    let held = match document.gateway.hold_ms {
        0 => "what is sent meanwhile fails at once".to_owned(),
        ms => format!("gateways hold what is sent meanwhile, for up to {}", seconds(ms)),
    };
    match (serving(status), status.writer) {
        (Some(writer), _) => format!(
            "Writes go to {writer}, the writer of term {}, whichever node's gateway they come through.",
            status.term
        ),
        (None, Some(writer)) => format!(
            "Nobody takes writes at this moment: {writer} is becoming the writer of term {}; {held}.",
            status.term
        ),
        (None, None) => format!("Nobody takes writes: {}; {held}.", status.because.sentence),
    }
}

fn copies(status: &ClusterStatus, document: &Document) -> String {
    let what = match document.level {
        Level::Received => "have it in memory",
        Level::Flushed => "have it on disk",
        Level::Applied => "show it to readers",
    };
    let rules: Vec<String> = status.authority.rules.iter().map(rule_words).collect();
    let alone = status.authority.rules.iter().any(|r| r.policy == Policy::WriterOnly);
    let enough = if alone {
        "a commit is acknowledged once the writer alone has it on disk, so that a failover can lose \
         what the others lack"
            .to_owned()
    } else {
        format!("a commit is acknowledged once {} {what}", rules.join(", and "))
    };
    let Some(writer) = serving(status) else {
        return format!("Nothing is copied at this moment; with a writer, {enough}.");
    };
    let links = links(status, writer);
    if links.is_empty() {
        return format!("{writer} streams its log to nobody; {enough}.");
    }
    let late: Vec<String> =
        links.iter().filter_map(|(n, link)| late(status, writer, *n, link)).collect();
    let late = if late.is_empty() { String::new() } else { format!(" ({})", late.join(", ")) };
    format!("{writer} streams its log to {}{late}; {enough}.", list(links.keys()))
}

/// What a standby lacks, when that is worth a word.
fn late(
    status: &ClusterStatus,
    writer: NodeId,
    node: NodeId,
    link: &StandbyLink,
) -> Option<String> {
    let server = |n: &NodeId| status.nodes.get(n)?.status.as_ref()?.server.as_ref();
    let lag = server(&writer)?.flushed.bytes_since(server(&node)?.replayed);
    match (lag > CURRENT_BYTES, link.late_ms >= LATE_MS) {
        (true, true) => Some(format!(
            "{node} is {} behind, and has lacked log for {} s",
            bytes(lag),
            link.late_ms / 1000
        )),
        (true, false) => Some(format!("{node} is {} behind", bytes(lag))),
        (false, true) => Some(format!("{node} has lacked log for {} s", link.late_ms / 1000)),
        (false, false) => None,
    }
}

fn reads(status: &ClusterStatus, document: &Document) -> String {
    let gateway = &document.gateway;
    let replicas: BTreeSet<NodeId> = status
        .nodes
        .iter()
        .filter(|(n, m)| status.writer != Some(**n) && is_replica(m))
        .map(|(n, _)| *n)
        .collect();
    let free = "a session may ask for another level (SET quorate.consistency)";
    if !gateway.split {
        return "All reads go to the writer: gateway.split is off.".to_owned();
    }
    if gateway.consistency == Consistency::Strong || gateway.read_from == ReadFrom::Writer {
        return format!("Reads go to the writer and see every commit acknowledged before; {free}.");
    }
    if replicas.is_empty() {
        return format!("Reads go to the writer, since no replica may answer now; {free}.");
    }
    let fresh = match gateway.consistency {
        Consistency::Strong | Consistency::ReadYourWrites => {
            "as far as these have what the session itself has written and seen".to_owned()
        }
        Consistency::Monotonic => "as far as these have what the session has seen".to_owned(),
        Consistency::Causal => {
            "as far as these have what the session and its token have seen".to_owned()
        }
        Consistency::Bounded => {
            format!("as far as these are at most {} behind", seconds(gateway.max_staleness_ms))
        }
        Consistency::Eventual => "whatever these have".to_owned(),
    };
    let otherwise = match gateway.read_from {
        ReadFrom::Replica => "otherwise they wait",
        ReadFrom::Writer | ReadFrom::Prefer | ReadFrom::Nearest => "otherwise to the writer",
    };
    format!(
        "Reads go to {}, {fresh}, and {otherwise}; a replica more than {} behind gets none, and {free}.",
        list(&replicas),
        seconds(gateway.max_lag_ms)
    )
}

fn failure(status: &ClusterStatus) -> String {
    let Some(writer) = status.writer else {
        return format!("An election is under way: {}.", status.because.sentence);
    };
    if status.paused {
        return format!("If {writer} fails nothing happens by itself: automation is paused.");
    }
    let lease = seconds(LeaseTiming::default().length.as_millis() as u64);
    let others = status.candidates.iter().filter(|c| c.node != writer);
    match others.clone().find(|c| c.eligible) {
        Some(next) => {
            let able: Vec<NodeId> = others.filter(|c| c.eligible).map(|c| c.node).collect();
            let unless = if able.len() > 1 {
                format!(", or whoever of {} has the longest log then,", list(&able))
            } else {
                String::new()
            };
            format!(
                "If {writer} fails, {}{unless} becomes the writer: a majority of {} votes for a new \
                 term, the copies promise to take nothing from {writer} any more, and nobody is \
                 answered before {writer} is seen to be gone or its lease of {lease} is over.",
                next.node,
                list(&status.voters)
            )
        }
        None => {
            let why: Vec<String> = others.map(|c| format!("{}: {}", c.node, c.because)).collect();
            let why =
                if why.is_empty() { "there is no other copy".to_owned() } else { why.join("; ") };
            format!("If {writer} fails, nobody can become the writer now ({why}).")
        }
    }
}

fn worries(status: &ClusterStatus, document: &Document) -> Vec<String> {
    let mut worries = status.warnings.clone();
    let data: Vec<(&NodeId, &Member)> =
        status.nodes.iter().filter(|(_, m)| m.node.kind == NodeKind::Data).collect();
    if data.len() < 2 {
        worries.push("there is one copy of the data: add a node (`quorate join`)".to_owned());
    }
    if let (Some(writer), Some(rule)) = (serving(status), status.authority.rule()) {
        let held: BTreeSet<NodeId> = links(status, writer).into_keys().chain([writer]).collect();
        let without = |n: &NodeId| held.iter().copied().filter(|h| h != n).collect();
        let needed: Vec<NodeId> = held
            .iter()
            .copied()
            .filter(|n| *n != writer && !rule.is_commit_set(&without(n)))
            .collect();
        if rule.is_commit_set(&held) && !needed.is_empty() {
            let each = if needed.len() == 1 { "is" } else { "are each" };
            worries.push(format!(
                "{} {each} needed for every commit: without it commits wait",
                list(&needed)
            ));
        }
        if rule.is_commit_set(&[writer].into()) {
            worries.push(format!(
                "commits need {writer}'s copy alone: they are lost if its host is lost for good"
            ));
        }
    }
    let zones: BTreeSet<&str> = data.iter().map(|(_, m)| m.node.zone.as_str()).collect();
    if data.len() > 1 && zones.len() == 1 {
        let zone = zones.first().filter(|z| !z.is_empty());
        let named = zone.map_or("no zone is named".to_owned(), |z| format!("zone {z}"));
        worries.push(format!("all copies stand in one place as far as is known ({named})"));
    }
    if document.gateway.tls != Tls::Required {
        worries.push("clients may connect without TLS (gateway.tls = \"required\")".to_owned());
    }
    if document.gateway.synchronous_commit_floor < SynchronousCommit::On {
        worries.push(
            "clients may lower synchronous_commit below what keeps their commits \
             (gateway.synchronous_commit_floor)"
                .to_owned(),
        );
    }
    worries
}

/// The standbys that the writer feeds.
fn links(status: &ClusterStatus, writer: NodeId) -> BTreeMap<NodeId, StandbyLink> {
    let word = status.nodes.get(&writer).and_then(|m| m.status.as_ref()?.writer.as_ref());
    word.map(|w| w.standbys.clone()).unwrap_or_default()
}

fn is_replica(member: &Member) -> bool {
    let Some(word) = &member.status else { return false };
    !member.gone
        && word.doing == Doing::Following
        && word.server.as_ref().is_some_and(|server| server.reads)
}

fn seconds(ms: u64) -> String {
    match ms {
        _ if ms.is_multiple_of(1000) => format!("{} s", ms / 1000),
        _ if ms > 1000 && ms.is_multiple_of(100) => format!("{}.{} s", ms / 1000, ms / 100 % 10),
        _ => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use quorate_core::authority::{Authority, Phase};
    use quorate_core::candidates::Candidate;
    use quorate_core::document::{Role, Timing};
    use quorate_core::state::Node;
    use quorate_core::status::{NodeStatus, ServerStatus, WriterStatus};
    use quorate_core::{Because, Lsn, Term};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
        names.iter().map(|n| node(n)).collect()
    }

    fn member(name: &str, doing: Doing, zone: &str) -> Member {
        let server = ServerStatus {
            flushed: Lsn(1 << 30),
            replayed: Lsn(1 << 30),
            reads: doing == Doing::Following,
            ..ServerStatus::default()
        };
        let status = NodeStatus { doing, server: Some(server), ..NodeStatus::new(node(name)) };
        Member {
            node: Node {
                kind: NodeKind::Data,
                link: String::new(),
                gateway: String::new(),
                web: String::new(),
                zone: zone.to_owned(),
            },
            role: Role::Ha,
            heard_ms: Some(10),
            gone: false,
            status: Some(status),
        }
    }

    fn candidate(name: &str, eligible: bool, because: &str) -> Candidate {
        Candidate { node: node(name), eligible, because: because.to_owned() }
    }

    /// n1 writes, n2 and n3 follow, each in a zone of its own.
    fn good() -> ClusterStatus {
        let mut members: BTreeMap<NodeId, Member> = [
            (node("n1"), member("n1", Doing::Writing, "a")),
            (node("n2"), member("n2", Doing::Following, "b")),
            (node("n3"), member("n3", Doing::Following, "c")),
        ]
        .into();
        let link = StandbyLink::default();
        let writer = WriterStatus {
            term: Term(3),
            serving: true,
            standbys: [(node("n2"), link), (node("n3"), link)].into(),
            ..WriterStatus::default()
        };
        if let Some(status) = members.get_mut(&node("n1")).and_then(|m| m.status.as_mut()) {
            status.writer = Some(writer);
        }
        let cohort = nodes(&["n1", "n2", "n3"]);
        let rule = Rule { generation: 4, cohort, policy: Policy::Copies(2) };
        ClusterStatus {
            cluster_id: "c".to_owned(),
            me: node("n1"),
            at: 0,
            term: Term(3),
            phase: Phase::Serving,
            writer: Some(node("n1")),
            leader: Some(node("n2")),
            voters: nodes(&["n1", "n2", "n3"]),
            paused: false,
            because: Because::new("serving", "n1 writes in term 3"),
            document_version: 1,
            authority: Authority { rules: vec![rule], ..Authority::default() },
            candidates: vec![candidate("n2", true, "follows"), candidate("n3", true, "follows")],
            warnings: Vec::new(),
            breaches: Vec::new(),
            nodes: members,
        }
    }

    fn careful() -> Document {
        let mut document = Document::default();
        document.gateway.tls = Tls::Required;
        document
    }

    #[test]
    fn a_good_cluster() {
        let told = explain(&good(), &careful());
        assert_eq!(
            told.writes,
            "Writes go to n1, the writer of term 3, whichever node's gateway they come through."
        );
        assert_eq!(
            told.copies,
            "n1 streams its log to n2 and n3; a commit is acknowledged once 2 of n1, n2 and n3 have it \
             on disk."
        );
        assert_eq!(
            told.reads,
            "Reads go to n2 and n3, as far as these have what the session itself has written and \
             seen, and otherwise to the writer; a replica more than 10 s behind gets none, and a \
             session may ask for another level (SET quorate.consistency)."
        );
        assert_eq!(
            told.failure,
            "If n1 fails, n2, or whoever of n2 and n3 has the longest log then, becomes the writer: a \
             majority of n1, n2 and n3 votes for a new term, the copies promise to take nothing from \
             n1 any more, and nobody is answered before n1 is seen to be gone or its lease of 1.5 s \
             is over."
        );
        assert_eq!(told.worries, Vec::<String>::new());
    }

    /// n3 is away, n2 is late.
    fn degraded() -> ClusterStatus {
        let mut status = good();
        if let Some(word) = status.nodes.get_mut(&node("n1")).and_then(|m| m.status.as_mut()) {
            let writer = word.writer.as_mut().unwrap();
            writer.standbys.remove(&node("n3"));
            writer.standbys.get_mut(&node("n2")).unwrap().late_ms = 2345;
        }
        let n2 = status.nodes.get_mut(&node("n2")).unwrap().status.as_mut().unwrap();
        n2.server.as_mut().unwrap().replayed = Lsn((1 << 30) - (3 << 20));
        let n3 = status.nodes.get_mut(&node("n3")).unwrap();
        n3.gone = true;
        status.candidates[1] = candidate("n3", false, "not heard");
        status
    }

    #[test]
    fn a_degraded_cluster() {
        let told = explain(&degraded(), &careful());
        assert_eq!(
            told.copies,
            "n1 streams its log to n2 (n2 is 3.0 MB behind, and has lacked log for 2 s); a commit is \
             acknowledged once 2 of n1, n2 and n3 have it on disk."
        );
        assert!(told.reads.starts_with("Reads go to n2, as far"), "{}", told.reads);
        assert!(
            told.failure.starts_with("If n1 fails, n2 becomes the writer: "),
            "{}",
            told.failure
        );
        assert_eq!(
            told.worries,
            ["n2 is needed for every commit: without it commits wait"].map(str::to_owned)
        );
        let mut paused = degraded();
        paused.paused = true;
        assert_eq!(
            explain(&paused, &careful()).failure,
            "If n1 fails nothing happens by itself: automation is paused."
        );
    }

    #[test]
    fn a_cluster_without_a_writer() {
        let mut status = good();
        status.phase = Phase::Electing;
        status.writer = None;
        status.because = Because::new("R5", "term 4: not enough promises");
        let told = explain(&status, &careful());
        assert_eq!(
            told.writes,
            "Nobody takes writes: term 4: not enough promises; gateways hold what is sent meanwhile, \
             for up to 10 s."
        );
        assert_eq!(told.failure, "An election is under way: term 4: not enough promises.");
    }

    #[test]
    fn a_badly_configured_cluster() {
        let mut status = good();
        for member in status.nodes.values_mut() {
            member.node.zone = String::new();
        }
        status.authority.rules[0].policy = Policy::WriterOnly;
        status.candidates.iter_mut().for_each(|c| c.eligible = false);
        let mut document = Document { timing: Timing::Async, ..Document::default() };
        document.gateway.split = false;
        document.gateway.synchronous_commit_floor = SynchronousCommit::Off;
        let told = explain(&status, &document);
        assert!(told.copies.contains("once the writer alone has it on disk"), "{}", told.copies);
        assert_eq!(told.reads, "All reads go to the writer: gateway.split is off.");
        assert_eq!(
            told.failure,
            "If n1 fails, nobody can become the writer now (n2: follows; n3: follows)."
        );
        let worries = told.worries.join("\n");
        for worry in ["n1's copy alone", "(no zone is named)", "without TLS", "synchronous_commit"]
        {
            assert!(worries.contains(worry), "{worry}: {worries}");
        }
    }
}
