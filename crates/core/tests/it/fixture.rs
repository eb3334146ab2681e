//! Small clusters for table tests.

use std::collections::BTreeMap;

use quorate_core::authority::{Authority, Phase, Reign};
use quorate_core::report::Position;
use quorate_core::state::{Node, NodeKind, State};
use quorate_core::{Answer, Change, Command, Lsn, NodeId, Policy, Report, Rule, Term, TimelineId};

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn member(kind: NodeKind) -> Node {
    let none = String::new;
    Node { kind, link: none(), gateway: none(), web: none(), zone: none() }
}

pub(crate) fn rule(generation: u64, cohort: &str, policy: Policy) -> Rule {
    Rule { generation, cohort: cohort.split_whitespace().map(node).collect(), policy }
}

/// Data nodes a, b and c; two copies of the three.
pub(crate) fn state(term: u64, phase: Phase, writer: Option<&str>) -> State {
    let nodes = ["a", "b", "c"].map(|n| (node(n), member(NodeKind::Data))).into();
    let reigns: Vec<Reign> = writer.map(|w| reign(term, w, None)).into_iter().collect();
    let authority = Authority {
        term: Term(term),
        phase,
        writer: writer.map(node),
        rules: vec![rule(1, "a b c", Policy::Copies(2))],
        timeline_max: reigns.last().map_or(TimelineId(1), |r| r.timeline),
        reigns,
        ..Authority::default()
    };
    State { cluster_id: "00".into(), system_id: Some(7), nodes, authority, ..State::default() }
}

/// A reign on the timeline after its term's number.
pub(crate) fn reign(term: u64, writer: &str, fork: Option<u64>) -> Reign {
    Reign {
        term: Term(term),
        node: node(writer),
        timeline: TimelineId(term as u32 + 1),
        elected_at: Position { wal_term: Term(0), lsn: Lsn(5) },
        fork: fork.map(Lsn),
        next_xid: None,
        lost_bytes: 0,
        lossy: false,
    }
}

pub(crate) fn report(term: u64, timeline: u32, lsn: u64, forks: &[(u32, u64)]) -> Report {
    let forks = forks.iter().map(|&(t, l)| (TimelineId(t), Lsn(l))).collect();
    Report { term: Term(term), timeline: TimelineId(timeline), lsn: Lsn(lsn), forks }
}

pub(crate) fn reports(of: &[(&str, Report)]) -> BTreeMap<NodeId, Report> {
    of.iter().map(|(n, r)| (node(n), r.clone())).collect()
}

pub(crate) fn apply(state: &mut State, change: Change) -> Answer {
    state.apply(&Command { at: 1000, change })
}

#[track_caller]
pub(crate) fn done(state: &mut State, change: Change) {
    assert_eq!(apply(state, change), Answer::Done);
}

/// Applies a change that must be refused; returns the sentence.
#[track_caller]
pub(crate) fn refused(state: &mut State, change: Change) -> String {
    let before = state.clone();
    let Answer::Refused { because } = apply(state, change) else { panic!("it was done") };
    assert_eq!(*state, before, "a refusal changes nothing");
    because
}
