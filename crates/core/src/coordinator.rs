//! What the coordinator (the leader of consensus) does: judge health, hold elections, keep the
//! commit rule as good as the attached copies allow.
//!
//! The coordinator keeps nothing that matters: every change is guarded by the record itself, so a
//! coordinator that is late, wrong or replaced can delay the cluster and cannot harm it.

mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::authority::{Phase, judge};
use crate::because::{Because, list};
use crate::document::Document;
use crate::limits::{
    ASYNC_WRITER_WAIT, BETTER_CANDIDATE_WAIT, COORDINATOR_GAP, FLAP_DELAY, FLAP_MAX, FLAP_WINDOW,
    LOSSY_WAIT, OPEN_WAIT, OPEN_WAIT_MAX, PREFERRED_WAIT,
};
use crate::report::Report;
use crate::state::{Change, State};
use crate::status::{Doing, NodeStatus};
use crate::{Lsn, Moment, NodeId, Policy, Term};

/// What is known of a node, here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// When it was last heard; `None`: never.
    pub heard: Option<Moment>,
    /// Its host refuses connections: its process is gone.
    pub gone: bool,
    /// Its last word.
    pub status: Option<NodeStatus>,
}

/// All facts a coordinator decides from.
#[derive(Debug)]
pub struct ClusterView<'a> {
    /// This node.
    pub me: NodeId,
    /// Now.
    pub now: Moment,
    /// The replicated state.
    pub state: &'a State,
    /// Voters of consensus.
    pub voters: &'a BTreeSet<NodeId>,
    /// What is known of each member, this node included.
    pub peers: &'a BTreeMap<NodeId, Peer>,
}

/// What a coordinator remembers between decisions. Losing it only costs time.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// The term and phase last seen, and since when.
    phase: Option<(Term, Phase, Moment)>,
    /// When failovers for failures began, and which term each ended.
    failovers: Vec<(Term, Moment)>,
    /// When the last decision was made.
    decided: Option<Moment>,
    /// Since when each cohort member is not attached to the writer.
    absent: BTreeMap<NodeId, Moment>,
    /// The highest log end seen of the current writer.
    writer_end: Option<(Term, Lsn)>,
}

/// What to do, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// At most one change: the next decision sees its effect.
    pub change: Option<Change>,
    /// The coordinator's one sentence.
    pub because: Because,
}

fn wait(rule: &str, sentence: impl Into<String>) -> Verdict {
    Verdict { change: None, because: Because::new(rule, sentence) }
}

impl ClusterView<'_> {
    fn peer(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(&node)
    }

    fn status(&self, node: NodeId) -> Option<&NodeStatus> {
        self.peer(node)?.status.as_ref()
    }

    fn suspect_after(&self) -> Duration {
        Duration::from_millis(self.state.document().suspect_after_ms)
    }

    /// Whether this node has heard from it lately.
    fn hears(&self, node: NodeId) -> bool {
        node == self.me
            || self.peer(node).is_some_and(|p| {
                !p.gone && p.heard.is_some_and(|at| self.now.since(at) < self.suspect_after())
            })
    }

    /// Voters that do not hear `node`, this one included, by their own fresh word.
    fn deaf_to(&self, node: NodeId) -> BTreeSet<NodeId> {
        let limit = self.suspect_after().as_millis() as u64;
        let deaf = |voter: &NodeId| {
            if *voter == self.me {
                return !self.hears(node);
            }
            self.hears(*voter)
                && self.status(*voter).is_some_and(|s| {
                    let h = s.hears.get(&node).copied().unwrap_or_default();
                    h.gone || h.silent_ms.is_none_or(|ms| ms >= limit)
                })
        };
        self.voters.iter().filter(|v| **v != node).filter(|v| deaf(v)).copied().collect()
    }

    /// Reachable cohort members that could answer an election.
    fn could_report(&self) -> BTreeSet<NodeId> {
        let can = |n: &NodeId| {
            self.hears(*n)
                && self.status(*n).is_some_and(|s| s.promised.is_some() && s.doing != Doing::Broken)
        };
        self.state.authority.cohort().into_iter().filter(can).collect()
    }

    fn reports(&self) -> BTreeMap<NodeId, Report> {
        let term = self.state.authority.term;
        self.peers
            .iter()
            .filter(|(n, _)| self.state.nodes.contains_key(n))
            .filter_map(|(n, p)| Some((*n, p.status.as_ref()?.report.clone()?)))
            .filter(|(_, r)| r.term == term)
            .collect()
    }
}

/// Decides the coordinator's next step.
pub fn decide(view: &ClusterView<'_>, memory: &mut Memory) -> Verdict {
    let authority = &view.state.authority;
    if view.state.cluster_id.is_empty() {
        return wait("op-init", "there is no cluster yet");
    }
    let since = memory.observe(view);
    match authority.phase {
        Phase::Electing => electing(view, since),
        Phase::Granted => granted(view, memory, since),
        Phase::Serving => serving(view, memory),
    }
}

impl Memory {
    /// Takes in the view; returns how long the present phase has lasted.
    fn observe(&mut self, view: &ClusterView<'_>) -> Duration {
        let authority = &view.state.authority;
        let key = (authority.term, authority.phase);
        let since = match self.phase {
            Some((term, phase, at)) if (term, phase) == key => at,
            _ => view.now,
        };
        // Another writer, or another coordinator in between: what was seen of absences is stale.
        let same_term = self.phase.is_some_and(|(term, ..)| term == authority.term);
        let attentive = self.decided.is_some_and(|at| view.now.since(at) < COORDINATOR_GAP);
        if !same_term || !attentive {
            self.absent.clear();
        }
        self.decided = Some(view.now);
        self.phase = Some((key.0, key.1, since));
        self.failovers.retain(|(_, at)| view.now.since(*at) < FLAP_WINDOW);
        self.observe_writer(view);
        view.now.since(since)
    }

    fn observe_writer(&mut self, view: &ClusterView<'_>) {
        let authority = &view.state.authority;
        let status = authority.writer.and_then(|w| view.status(w));
        let Some(status) = status.filter(|s| s.term == authority.term) else {
            return;
        };
        let Some(writer) = &status.writer else {
            return;
        };
        if let Some(server) = &status.server {
            let end = server.flushed.max(
                self.writer_end.map_or(
                    Lsn(0),
                    |(t, lsn)| {
                        if t == authority.term { lsn } else { Lsn(0) }
                    },
                ),
            );
            self.writer_end = Some((authority.term, end));
        }
        let cohort = authority.cohort();
        self.absent.retain(|n, _| cohort.contains(n) && !writer.standbys.contains_key(n));
        for node in cohort {
            if Some(node) != authority.writer && !writer.standbys.contains_key(&node) {
                self.absent.entry(node).or_insert(view.now);
            }
        }
    }

    /// Slows failovers that follow each other too fast. One that is only proposed again, because
    /// its change did not come through, counts once.
    fn limit_failovers(&mut self, view: &ClusterView<'_>, why: &str) -> Option<Verdict> {
        let term = view.state.authority.term;
        let last = self.failovers.last().copied();
        if last.is_some_and(|(ended, _)| ended == term) {
            return None;
        }
        let soon = last.is_some_and(|(_, at)| view.now.since(at) < FLAP_DELAY);
        if self.failovers.len() >= FLAP_MAX && soon {
            let text = format!("{why}; too many failovers in a row, the next one waits");
            return Some(wait("flap", text));
        }
        self.failovers.push((term, view.now));
        None
    }

    fn absent_for(&self, view: &ClusterView<'_>, node: NodeId) -> Duration {
        self.absent.get(&node).map_or(Duration::ZERO, |at| view.now.since(*at))
    }
}

fn serving(view: &ClusterView<'_>, memory: &mut Memory) -> Verdict {
    let authority = &view.state.authority;
    let Some(writer) = authority.writer else {
        return wait("R1", "a serving term without a writer");
    };
    if let Some(verdict) = lost_writer(view, memory, writer) {
        return verdict;
    }
    if view.state.paused {
        return wait("op-pause", format!("{writer} writes; automation is paused"));
    }
    if let Some(change) = rules::next_rule(view, memory, writer) {
        return change;
    }
    wait("serving", format!("{writer} writes in term {}", authority.term))
}

/// Whether the writer is lost, and the election that follows.
fn lost_writer(view: &ClusterView<'_>, memory: &mut Memory, writer: NodeId) -> Option<Verdict> {
    let authority = &view.state.authority;
    let term = authority.term;
    let surrender = view
        .status(writer)
        .and_then(|s| s.surrender.as_ref())
        .filter(|s| s.term == term)
        .map(|s| s.reason);
    let planned = surrender.is_some_and(|r| !r.is_failure());
    let broken = view.status(writer).filter(|s| s.term == term && s.doing == Doing::Broken);
    let why = match (surrender, broken) {
        (Some(reason), _) => format!("{writer} gave up: {}", reason.words()),
        (None, Some(status)) => format!("{writer} is broken: {}", status.because.sentence),
        (None, None) => {
            let deaf = view.deaf_to(writer);
            if !deaf.contains(&view.me) {
                return None;
            }
            if deaf.len() <= view.voters.len() / 2 {
                let text = format!("{} cannot hear the writer {writer}, others may", list(&deaf));
                return Some(wait("suspect", text));
            }
            format!("{} cannot hear the writer {writer}", list(&deaf))
        }
    };
    if view.state.paused && !planned {
        return Some(wait("op-pause", format!("{why}; automation is paused: no failover")));
    }
    let could = view.could_report();
    let unmet = authority.rules.iter().find(|r| !r.election_satisfied(&could));
    let one_suffices = authority.wrote_last(writer) && writer_may_report(view, &could);
    if let Some(rule) = unmet.filter(|_| !one_suffices) {
        return Some(wait(
            "R5",
            format!(
                "{why}; not enough promises within reach: have {}, and a commit could exist only \
                 on {}",
                list(&could),
                list(rule.cohort.difference(&could)),
            ),
        ));
    }
    if !planned && let Some(verdict) = memory.limit_failovers(view, &why) {
        return Some(verdict);
    }
    Some(begin(memory, term, planned, Because::new("R1", why)))
}

fn begin(memory: &Memory, term: Term, planned: bool, because: Because) -> Verdict {
    let last_seen = memory.writer_end.filter(|(t, _)| *t == term).map(|(_, lsn)| lsn);
    let change =
        Change::BeginElection { expect_term: term, last_seen, planned, because: because.clone() };
    Verdict { change: Some(change), because }
}

fn electing(view: &ClusterView<'_>, since: Duration) -> Verdict {
    let authority = &view.state.authority;
    let term = authority.term;
    let reports = view.reports();
    let election = match judge(authority, &reports, view.state.document().max_lag_on_failover) {
        Ok(election) => election,
        Err(missing) => return wait("R5", format!("term {term}: {missing}")),
    };
    let late: BTreeSet<NodeId> =
        view.could_report().into_iter().filter(|n| !reports.contains_key(n)).collect();
    // One report may be enough for all: what others may still say of it is worth a wait.
    let alone = !authority.quorum(&reports.keys().copied().collect());
    let comes = |doing| doing == Doing::Freezing || alone && doing == Doing::Recovering;
    let freezing =
        late.iter().any(|n| view.status(*n).is_some_and(|s| s.term < term || comes(s.doing)));
    let patience = if alone || lossy(authority) { LOSSY_WAIT } else { BETTER_CANDIDATE_WAIT };
    let preferred = authority.preferred.is_some_and(|n| late.contains(&n));
    if freezing && since < patience || preferred && since < PREFERRED_WAIT {
        return wait("R5", format!("term {term}: {} may still report", list(&late)));
    }
    if lossy(authority) && since < ASYNC_WRITER_WAIT && writer_may_report(view, &late) {
        return wait("R5", "the former writer is coming back: its log would lose nothing");
    }
    let document = view.state.document();
    let Some(node) = choose(view, &document, &election.candidates.keys().copied().collect()) else {
        return wait("R5", format!("term {term}: no candidate"));
    };
    let mut text = format!("{node} has the most advanced log of {}", list(reports.keys()));
    if election.lost_bytes > 0 {
        text += &format!("; {} bytes of the former writer's log are lost", election.lost_bytes);
    }
    let because = Because::new("R5", text);
    let change = Change::Grant { term, node, reports, because: because.clone() };
    Verdict { change: Some(change), because }
}

fn lossy(authority: &crate::authority::Authority) -> bool {
    authority.rules.iter().any(|r| r.policy == Policy::WriterOnly)
}

fn writer_may_report(view: &ClusterView<'_>, late: &BTreeSet<NodeId>) -> bool {
    view.state.authority.writer.is_some_and(|w| {
        late.contains(&w)
            && view.status(w).is_some_and(|s| {
                s.surrender.as_ref().is_none_or(|s| {
                    !matches!(
                        s.reason,
                        crate::status::SurrenderReason::Disk | crate::status::SurrenderReason::Hang
                    )
                })
            })
    })
}

/// Among equal logs: who can be heard, whom the operator named, then priority, then the newest rule's cohort, then
/// the zone of the former writer, then the name.
fn choose(
    view: &ClusterView<'_>,
    document: &Document,
    candidates: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let authority = &view.state.authority;
    let zone = |n: &NodeId| view.state.nodes.get(n).map(|n| n.zone.as_str());
    let home = authority.writer.as_ref().and_then(zone);
    // A node that handed over or failed the term before is the last choice among equals: it would
    // most likely do so again, and again, while others are well.
    let failed = authority
        .reigns
        .last()
        .filter(|r| r.fork.is_none() && r.term.next() == authority.term)
        .map(|r| r.node);
    let leaving = |n: &NodeId| {
        view.state.leaving.contains(n)
            || failed == Some(*n)
            || view.status(*n).is_some_and(|s| {
                s.surrender.as_ref().is_some_and(|s| s.term.next() == authority.term)
            })
    };
    candidates
        .iter()
        .max_by_key(|n| {
            let newest = authority.rule().is_some_and(|r| r.cohort.contains(n));
            (
                // It may have fallen silent since it reported.
                view.hears(**n),
                authority.preferred == Some(**n),
                !leaving(n),
                document.node(**n).priority,
                newest,
                zone(n) == home,
                std::cmp::Reverse(**n),
            )
        })
        .copied()
}

fn granted(view: &ClusterView<'_>, memory: &mut Memory, since: Duration) -> Verdict {
    let authority = &view.state.authority;
    let term = authority.term;
    let Some(node) = authority.writer else {
        return wait("R1", "a granted term without a writer");
    };
    if let Some(verdict) = lost_writer(view, memory, node) {
        return verdict;
    }
    let working = view.status(node).is_some_and(|s| {
        s.term == term && matches!(s.doing, Doing::Promoting | Doing::Opening | Doing::Recovering)
    });
    let limit = if working { OPEN_WAIT_MAX } else { OPEN_WAIT };
    if since > limit {
        let text = format!("{node} did not open in {} s", limit.as_secs());
        return begin(memory, term, false, Because::new("R1", text));
    }
    wait("R9", format!("{node} promotes to timeline {}", authority.timeline_max))
}
