//! The commit rule: as good as the document asks for and the attached copies allow.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{ClusterView, Memory, Verdict};
use crate::because::{Because, list};
use crate::document::{Document, Timing};
use crate::limits::{COHORT_ABSENCE, COHORT_ENTRY_LAG, DEGRADE_AFTER};
use crate::state::{Change, NodeKind};
use crate::status::Doing;
use crate::{Lsn, NodeId, Policy, Rule};

/// Nodes that a rule could count on.
struct Copies {
    /// Members of the present rule that may stay in it.
    members: BTreeSet<NodeId>,
    /// The writer, and standbys that are attached and close to it (R15).
    present: BTreeSet<NodeId>,
    /// `present`, and members that were there lately.
    cohort: BTreeSet<NodeId>,
    /// Members that say that they forgot their promise: they answer no election until a rule went
    /// on without them.
    forgetful: BTreeSet<NodeId>,
}

/// The next commit rule, when a better or a necessary one is possible.
pub(super) fn next_rule(
    view: &ClusterView<'_>,
    memory: &Memory,
    writer: NodeId,
) -> Option<Verdict> {
    let authority = &view.state.authority;
    let current = authority.rule()?;
    let status = view.status(writer).filter(|s| s.term == authority.term)?;
    let word = status.writer.as_ref()?;
    // The record may be ahead of the writer's last word.
    if word.rule != current.generation {
        return None;
    }
    let document = view.state.document();
    let end = status.server.as_ref().map_or(Lsn(0), |s| s.flushed);
    let attached = |n: NodeId| {
        word.standbys.get(&n).is_some_and(|s| end.bytes_since(s.flushed) <= COHORT_ENTRY_LAG)
    };
    let copies = copies(view, memory, &document, writer, &attached);
    // An open change closes by itself unless its copies are gone: then another must replace it.
    if authority.rules.len() > 1 && current.is_commit_set(&copies.present) {
        return None;
    }
    let (cohort, policy) = wanted(view, memory, &document, writer, &copies)?;
    if cohort == current.cohort && policy == current.policy {
        return None;
    }
    let because = Because::new("R15", explain(current, &cohort, &policy));
    let rule = Rule { generation: current.generation + 1, cohort, policy };
    let change = Change::OpenRule { term: authority.term, rule, because: because.clone() };
    Some(Verdict { change: Some(change), because })
}

fn copies(
    view: &ClusterView<'_>,
    memory: &Memory,
    document: &Document,
    writer: NodeId,
    attached: &dyn Fn(NodeId) -> bool,
) -> Copies {
    let eligible = |n: &NodeId| {
        *n == writer || (counts(view, document, *n) && !view.state.leaving.contains(n))
    };
    let members: BTreeSet<NodeId> =
        view.state.authority.rule().map(|r| r.cohort.clone()).unwrap_or_default();
    let members: BTreeSet<NodeId> = members.into_iter().filter(eligible).collect();
    let present: BTreeSet<NodeId> =
        view.state.data_nodes().filter(|n| *n == writer || attached(*n)).filter(eligible).collect();
    // One whose data is being made anew cannot report in an election: no use in waiting for it.
    let useless = |n: NodeId| {
        !present.contains(&n)
            && view.hears(n)
            && view.status(n).is_some_and(|s| {
                matches!(s.doing, Doing::Cloning | Doing::Rewinding | Doing::Broken)
            })
    };
    let lately = |n: &&NodeId| memory.absent_for(view, **n) < COHORT_ABSENCE && !useless(**n);
    let cohort = members.iter().filter(lately).chain(&present).copied().collect();
    let forgets =
        |n: &&NodeId| view.hears(**n) && view.status(**n).is_some_and(|s| s.promised.is_none());
    let forgetful = members.iter().filter(forgets).copied().collect();
    Copies { members, present, cohort, forgetful }
}

/// Whether a node's copy is one that a rule may count.
fn counts(view: &ClusterView<'_>, document: &Document, node: NodeId) -> bool {
    view.state.nodes.get(&node).is_some_and(|n| n.kind == NodeKind::Data)
        && document.node(node).counts(document.timing)
}

/// Cohort and policy that the document asks for and the present copies allow. `None` keeps things
/// as they are: commits wait.
fn wanted(
    view: &ClusterView<'_>,
    memory: &Memory,
    document: &Document,
    writer: NodeId,
    copies: &Copies,
) -> Option<(BTreeSet<NodeId>, Policy)> {
    let nodes: BTreeSet<NodeId> =
        view.state.data_nodes().filter(|n| counts(view, document, *n)).collect();
    match document.timing {
        Timing::Async => Some(alone(copies)),
        Timing::SemiSync => semi_sync(view, memory, document, writer, copies),
        Timing::Sync => sync(document, nodes.len(), copies),
        Timing::Quorum => quorum(view, memory, document, writer, copies, &nodes),
    }
}

/// The writer's copy is enough, and every copy may be elected: how much may be lost is judged
/// then, so that no absence takes the last candidate away.
fn alone(copies: &Copies) -> (BTreeSet<NodeId>, Policy) {
    let candidates = copies.members.difference(&copies.forgetful);
    (candidates.chain(&copies.present).copied().collect(), Policy::WriterOnly)
}

fn semi_sync(
    view: &ClusterView<'_>,
    memory: &Memory,
    document: &Document,
    writer: NodeId,
    copies: &Copies,
) -> Option<(BTreeSet<NodeId>, Policy)> {
    if copies.present.len() >= 2 {
        return Some((copies.cohort.clone(), Policy::Copies(2)));
    }
    let patience = Duration::from_millis(document.semi_sync_timeout_ms);
    let waited = |n: &NodeId| *n == writer || memory.absent_for(view, *n) >= patience;
    copies.members.iter().all(waited).then(|| alone(copies))
}

/// Named nodes stay in the rule however long they are away: only the document takes a name out.
fn sync(document: &Document, nodes: usize, copies: &Copies) -> Option<(BTreeSet<NodeId>, Policy)> {
    let named = copies.members.intersection(&document.sync_nodes);
    let cohort: BTreeSet<NodeId> = copies.cohort.iter().chain(named).copied().collect();
    // A name that has not caught up yet: the present rule holds until it has (R15).
    if !document.sync_nodes.is_subset(&cohort) {
        return None;
    }
    let full = document.copies.max(2).min(nodes.max(1) as u8);
    let possible = full.min(cohort.len() as u8);
    (possible >= document.least_copies(nodes)).then(|| {
        let all_of = document.sync_nodes.clone();
        (cohort, Policy::Named { copies: possible, all_of })
    })
}

/// How far a commit is spread.
#[derive(Clone, Copy)]
struct Spread {
    copies: u8,
    zones: u8,
}

impl Spread {
    /// The spread that a rule asks for.
    fn of(policy: &Policy) -> Self {
        match policy {
            Policy::Copies(copies) | Policy::Named { copies, .. } => {
                Self { copies: *copies, zones: 1 }
            }
            Policy::Zones { copies, zones, .. } => Self { copies: *copies, zones: *zones },
            Policy::WriterOnly => Self { copies: 1, zones: 1 },
        }
    }

    /// No more than the other in either.
    fn at_most(self, other: Self) -> Self {
        Self { copies: self.copies.min(other.copies), zones: self.zones.min(other.zones) }
    }

    /// At least the other in both.
    fn reaches(self, other: Self) -> bool {
        self.copies >= other.copies && self.zones >= other.zones
    }
}

fn quorum(
    view: &ClusterView<'_>,
    memory: &Memory,
    document: &Document,
    writer: NodeId,
    copies: &Copies,
    nodes: &BTreeSet<NodeId>,
) -> Option<(BTreeSet<NodeId>, Policy)> {
    let Copies { cohort, present, .. } = copies;
    let zone = |n: &NodeId| Some((*n, view.state.nodes.get(n)?.zone.clone()));
    let spread = |nodes: &BTreeSet<NodeId>| {
        let zones: BTreeSet<String> = nodes.iter().filter_map(zone).map(|(_, zone)| zone).collect();
        Spread { copies: nodes.len() as u8, zones: zones.len() as u8 }
    };
    let rule = |cohort: &BTreeSet<NodeId>, wanted: Spread| match (wanted.copies, wanted.zones) {
        // Where one copy is enough it is the writer's; other members would only have to answer
        // every election.
        (0 | 1, _) => ([writer].into(), Policy::Copies(1)),
        (copies, 0 | 1) => (cohort.clone(), Policy::Copies(copies)),
        (copies, zones) => {
            let zone_of = cohort.iter().filter_map(zone).collect();
            (cohort.clone(), Policy::Zones { copies, zones, zone_of })
        }
    };
    let all = spread(nodes);
    let asked = Spread { copies: document.copies, zones: document.copy_zones };
    let full = asked.at_most(Spread { copies: all.copies.max(1), zones: all.zones.max(1) });
    let there = spread(present);
    if there.reaches(full) {
        return Some(rule(cohort, full));
    }
    let now = view.state.authority.rule().map_or(Spread { copies: 1, zones: 1 }, |r| {
        let Spread { copies, zones } = Spread::of(&r.policy);
        Spread { copies, zones: zones.min(full.zones) }
    });
    let possible = there.at_most(full);
    if possible.reaches(now) {
        return Some(rule(cohort, possible));
    }
    // Less than the rule asks for: commits wait. Go on with less only where the document allows
    // it, and only once the absent ones had time to return.
    let gone = |n: &NodeId| memory.absent_for(view, *n) >= DEGRADE_AFTER || !view.hears(*n);
    let surely_absent = cohort.difference(present).all(gone);
    let least =
        Spread { copies: document.least_copies(nodes.len()), zones: document.least_zones() };
    (possible.reaches(least) && surely_absent).then(|| rule(present, possible))
}

fn explain(current: &Rule, cohort: &BTreeSet<NodeId>, policy: &Policy) -> String {
    let joined: Vec<&NodeId> = cohort.difference(&current.cohort).collect();
    let left: Vec<&NodeId> = current.cohort.difference(cohort).collect();
    let mut text = match policy {
        Policy::Copies(1) => "commits need one copy".to_owned(),
        Policy::Copies(n) => format!("commits need {n} copies"),
        Policy::Named { copies, all_of } => {
            format!("commits need {copies} copies, among them {}", list(all_of))
        }
        Policy::Zones { copies, zones, .. } => {
            format!("commits need {copies} copies in {zones} zones")
        }
        Policy::WriterOnly => "commits need the writer's copy only".to_owned(),
    };
    text += &format!(" of {}", list(cohort));
    if !joined.is_empty() {
        text += &format!("; {} caught up and joined", list(joined));
    }
    if !left.is_empty() {
        text += &format!("; {} left", list(left));
    }
    text
}
