//! Who may write: the record that consensus keeps, and the guards on every change of it.
//!
//! The guards stand here, inside the replicated state machine, so that no bug of a coordinator or
//! an agent can grant authority that the reports do not support.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::because::list;
use crate::limits::{REIGNS_MAX, RULES_OPEN_MAX, WAL_PAGE_BYTES};
use crate::report::{Position, Report};
use crate::{Lsn, NodeId, Policy, Rule, Term, TimelineId};

/// Where a term stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No writer; nodes freeze and report.
    #[default]
    Electing,
    /// A node was named; it promotes.
    Granted,
    /// The node promoted. It answers clients once its marker is held by a commit set (R10).
    Serving,
}

/// One term's writer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reign {
    /// The term.
    pub term: Term,
    /// Its writer.
    pub node: NodeId,
    /// The timeline reserved for it (R9).
    pub timeline: TimelineId,
    /// The log end it was elected with.
    pub elected_at: Position,
    /// Where its timeline left its ancestor; known once it promoted.
    pub fork: Option<Lsn>,
    /// The first transaction id it could assign; known once it promoted.
    pub next_xid: Option<u64>,
    /// Log bytes of the former writer that this reign lacks, as far as they were seen.
    pub lost_bytes: u64,
    /// A rule was in force at its election by which commits could be on the former writer alone: what
    /// is missing may be more than was seen.
    #[serde(default)]
    pub lossy: bool,
}

/// A planned hand-over that the writer is preparing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Switchover {
    /// The term that ends.
    pub term: Term,
    /// Who shall write next; unset: the best candidate.
    pub target: Option<NodeId>,
}

/// The authority record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Authority {
    /// The current term.
    pub term: Term,
    /// Where it stands.
    pub phase: Phase,
    /// The writer of this term when granted, else of the last granted one.
    pub writer: Option<NodeId>,
    /// The rules in force, oldest first: one, or more while a change is open. A change that cannot
    /// close is superseded by another one; elections satisfy them all until the last one closes.
    pub rules: Vec<Rule>,
    /// The term in which the newest rule was opened.
    pub rule_term: Term,
    /// Past reigns, oldest first.
    pub reigns: Vec<Reign>,
    /// The newest timeline any grant named.
    pub timeline_max: TimelineId,
    /// A hand-over in preparation.
    pub switchover: Option<Switchover>,
    /// Who is preferred among equal logs in the current election.
    pub preferred: Option<NodeId>,
    /// Whether the former writer handed over on purpose: the next one may take its time to put
    /// settings into effect that only a restart changes.
    #[serde(default)]
    pub planned: bool,
    /// The former writer's log end as far as it was seen, for the loss report of `async`.
    pub last_seen: Option<Lsn>,
    /// Bytes that the current election may lose: `Some` only when an operator allowed it.
    pub allow_loss: Option<u64>,
}

/// Why a change of authority does not fit the record.
pub type Refusal = String;

impl Authority {
    /// Terms by the timeline they own.
    pub fn reign_of(&self) -> BTreeMap<TimelineId, Term> {
        self.reigns.iter().map(|r| (r.timeline, r.term)).collect()
    }

    /// Where a report stands among others (R8), from the record and the report together.
    fn position(&self, report: &Report, reign_of: &BTreeMap<TimelineId, Term>) -> Position {
        let wal_term = if report.forks.is_empty() {
            self.owner_by_record(report)
        } else {
            report.position(reign_of).wal_term
        };
        Position { wal_term, lsn: report.lsn }
    }

    /// The term that owns a log's end when its own history is not known: a timeline owns nothing
    /// before the point where its reign began.
    fn owner_by_record(&self, report: &Report) -> Term {
        let mut owner = report.position(&self.reign_of()).wal_term;
        for reign in self.reigns.iter().rev() {
            let begin = reign.fork.unwrap_or(reign.elected_at.lsn);
            if reign.term == owner && report.lsn <= begin {
                owner = reign.elected_at.wal_term;
            }
        }
        owner
    }

    /// Whether these reporters meet every commit set of every rule in force (R5).
    pub fn quorum(&self, reporters: &BTreeSet<NodeId>) -> bool {
        self.rules.iter().all(|rule| rule.election_satisfied(reporters))
    }

    /// Whether the report of this node can be enough for an election (R5): it was granted last.
    pub fn wrote_last(&self, node: NodeId) -> bool {
        self.reigns.last().is_some_and(|r| r.node == node) && self.cohort().contains(&node)
    }

    /// Whether one report tells of every commit there can be, whoever else is missing (R5): the last
    /// writer's. It begins with all that was committed before, and a record is on its disk before it
    /// is sent to anybody, so that while it is on the timeline of its reign it lacks nothing.
    fn has_all(&self, positions: &BTreeMap<NodeId, Position>) -> bool {
        let Some(reign) = self.reigns.last() else { return false };
        let Some(own) = positions.get(&reign.node) else { return false };
        // A disk that was put back to an earlier state lacks what it had. What was seen may end with a
        // page, inside of a record that was never complete.
        let seen = self.last_seen.unwrap_or_default();
        let is_as_seen = own.lsn >= seen || seen.0.is_multiple_of(WAL_PAGE_BYTES);
        own.wal_term == reign.term && is_as_seen && positions.values().all(|p| p <= own)
    }

    /// The reign of the current term, once granted.
    pub fn reign(&self) -> Option<&Reign> {
        self.reigns.last().filter(|r| r.term == self.term)
    }

    /// The rule that a writer of the current term uses (R6).
    pub fn rule(&self) -> Option<&Rule> {
        self.rules.last()
    }

    /// Members of any rule in force.
    pub fn cohort(&self) -> BTreeSet<NodeId> {
        self.rules.iter().flat_map(|r| r.cohort.iter().copied()).collect()
    }

    /// Opens a new term (R1).
    pub fn begin_election(
        &mut self,
        expect: Term,
        last_seen: Option<Lsn>,
        planned: bool,
    ) -> Result<(), Refusal> {
        self.expect_term(expect)?;
        self.planned = planned;
        let plan = self.switchover.take();
        self.preferred = plan.and_then(|p| p.target);
        if self.phase == Phase::Serving {
            self.last_seen = last_seen;
            self.allow_loss = None;
        } else {
            // The same outage goes on: what the last serving writer had is still what counts, and
            // so is what an operator said about it.
            self.last_seen = self.last_seen.max(last_seen);
        }
        self.term = self.term.next();
        self.phase = Phase::Electing;
        Ok(())
    }

    /// Names the writer of the current term, from frozen reports (R5, R8, R9).
    pub fn grant(
        &mut self,
        term: Term,
        node: NodeId,
        reports: &BTreeMap<NodeId, Report>,
        max_loss: u64,
    ) -> Result<(), Refusal> {
        self.expect_term(term)?;
        if self.phase != Phase::Electing {
            return Err(format!("term {term} has a writer already"));
        }
        if let Some((n, r)) = reports.iter().find(|(_, r)| r.term != term) {
            return Err(format!("the report of {n} is for term {}", r.term));
        }
        let election = judge(self, reports, max_loss)?;
        let position = election
            .candidates
            .get(&node)
            .ok_or_else(|| format!("{node} does not have the most advanced log"))?;
        // Above every timeline ever granted, and above what the grantee is on: PostgreSQL counts on
        // from there, also when somebody promoted it by hand (R9).
        let newest = reports.get(&node).map_or(self.timeline_max, |r| r.timeline);
        let next = self.timeline_max.max(newest).0.checked_add(1);
        self.timeline_max = TimelineId(next.ok_or("no timeline is left")?);
        self.reigns.push(Reign {
            term,
            node,
            timeline: self.timeline_max,
            elected_at: *position,
            fork: None,
            next_xid: None,
            lost_bytes: election.lost_bytes,
            lossy: election.lossy,
        });
        if self.reigns.len() > REIGNS_MAX {
            self.reigns.remove(0);
        }
        self.writer = Some(node);
        self.phase = Phase::Granted;
        Ok(())
    }

    /// The grantee promoted.
    pub fn opened(&mut self, term: Term, fork: Lsn, next_xid: u64) -> Result<(), Refusal> {
        self.expect_term(term)?;
        if self.phase != Phase::Granted {
            return Err(format!("term {term} is not waiting for its writer to open"));
        }
        if let Some(reign) = self.reigns.last_mut() {
            reign.fork = Some(fork);
            reign.next_xid = Some(next_xid);
        }
        self.phase = Phase::Serving;
        Ok(())
    }

    /// Opens a rule change: elections must satisfy this rule too from now on.
    pub fn open_rule(&mut self, term: Term, rule: &Rule) -> Result<(), Refusal> {
        self.expect_term(term)?;
        if self.phase != Phase::Serving {
            return Err("a rule changes only while a writer serves".to_owned());
        }
        let Some(current) = self.rules.last() else {
            return Err("the record has no rule".to_owned());
        };
        if self.rules.len() >= RULES_OPEN_MAX {
            return Err(format!("{RULES_OPEN_MAX} rules are in force already"));
        }
        if rule.generation != current.generation + 1 {
            return Err(format!("the rule is at generation {}", current.generation));
        }
        if rule.cohort.is_empty() || !rule.is_commit_set(&rule.cohort) {
            return Err("the whole cohort would be no commit set".to_owned());
        }
        self.rules.push(rule.clone());
        self.rule_term = term;
        Ok(())
    }

    /// Closes a rule change: the writer's barrier is held by a commit set of the new rule.
    pub fn close_rule(&mut self, term: Term, generation: u64) -> Result<(), Refusal> {
        self.expect_term(term)?;
        if self.phase == Phase::Electing {
            return Err("an election is under way".to_owned());
        }
        // Everything acknowledged under an older rule lies before the barrier.
        match self.rules.iter().position(|r| r.generation == generation) {
            None | Some(0) => Err(format!("rule {generation} is not open")),
            Some(older) => {
                self.rules.drain(..older);
                Ok(())
            }
        }
    }

    fn expect_term(&self, term: Term) -> Result<(), Refusal> {
        if term == self.term {
            Ok(())
        } else {
            Err(format!("the cluster is at term {}, not {term}", self.term))
        }
    }
}

/// What a set of reports allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    /// Members with the most advanced log; any of them may be granted.
    pub candidates: BTreeMap<NodeId, Position>,
    /// Bytes of the former writer's log that the best report lacks, as far as they were seen.
    pub lost_bytes: u64,
    /// Whether a commit could have been on the former writer alone.
    pub lossy: bool,
}

/// Judges reports against the rules in force (R5, R8). `Err` says what is missing.
pub fn judge(
    authority: &Authority,
    reports: &BTreeMap<NodeId, Report>,
    max_loss: u64,
) -> Result<Election, Refusal> {
    let reporters: BTreeSet<NodeId> = reports.keys().copied().collect();
    let reign_of = authority.reign_of();
    let cohort = authority.cohort();
    let positions: BTreeMap<NodeId, Position> = reports
        .iter()
        .filter(|(n, _)| cohort.contains(n))
        .map(|(n, r)| (*n, authority.position(r, &reign_of)))
        .collect();
    let one_has_all = authority.has_all(&positions);
    for rule in &authority.rules {
        if !one_has_all && !rule.election_satisfied(&reporters) {
            if reporters.is_disjoint(&rule.cohort) {
                return Err(format!("waiting for promises of {}", list(&rule.cohort)));
            }
            return Err(format!(
                "not enough promises: have {}, and a commit could exist only on {}",
                list(reporters.intersection(&rule.cohort)),
                list(rule.cohort.difference(&reporters)),
            ));
        }
    }
    let best = positions.values().max().copied().ok_or("no member of the cohort reported")?;
    let lossy = authority.rules.iter().any(|r| r.policy == Policy::WriterOnly);
    let lost_bytes = match authority.last_seen {
        Some(seen) if lossy => seen.bytes_since(best.lsn),
        Some(_) | None => 0,
    };
    if lost_bytes > authority.allow_loss.unwrap_or(max_loss) {
        return Err(format!(
            "the best copy lacks {lost_bytes} bytes of the former writer's log, more than \
             max_lag_on_failover allows: bring the former writer back, or accept the loss with \
             `quorate failover --allow-loss`"
        ));
    }
    let candidates = positions.into_iter().filter(|(_, p)| *p == best).collect();
    Ok(Election { candidates, lost_bytes, lossy })
}
