//! A cluster in memory, for tests of what is told of one.

use std::collections::{BTreeMap, BTreeSet};

use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::authority::{Authority, Phase};
use quorate_core::candidates::Candidate;
use quorate_core::document::NodeSpec;
use quorate_core::role::Role;
use quorate_core::state::{Node, NodeKind};
use quorate_core::status::{Doing, NodeStatus, ServerStatus, StandbyLink, WriterStatus};
use quorate_core::{Because, Lsn, NodeId, Policy, Rule, Term};

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
    names.iter().map(|n| node(n)).collect()
}

pub(crate) fn member(name: &str, doing: Doing, zone: &str) -> Member {
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
        contract: NodeSpec::default().contract(),
        lag: None,
        late_because: None,
        lately: None,
        heard_ms: Some(10),
        gone: false,
        status: Some(status),
    }
}

pub(crate) fn candidate(name: &str, eligible: bool, because: &str) -> Candidate {
    Candidate { node: node(name), eligible, because: because.to_owned() }
}

/// n1 writes, n2 and n3 follow, each in a zone of its own.
pub(crate) fn good() -> ClusterStatus {
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
        alerts: Vec::new(),
        nodes: members,
    }
}
