//! A writer's term: its marker, what it releases, when it lets clients in.

use std::collections::BTreeMap;

use quorate_core::health::GateWord;
use quorate_core::node::OwnReign;
use quorate_core::status::SurrenderReason;
use quorate_core::{Lsn, NodeId, Rule, Term};

use super::{Aggregator, Promoted, Reign};
use quorate_core::limits::MARKER_RETRY;

use crate::event::AgentEvent;
use crate::flaw::Flaw;
use crate::server::records;
use crate::wal::lsn;
use crate::world::World;

impl World {
    pub(super) fn begin_reign(&mut self, node: usize, term: Term, rule: &Rule) {
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let facts = agent.promoted.clone().filter(|promoted| promoted.term == term);
        let Some(Promoted { timeline, fork, next_id, forks, .. }) = facts else {
            return self.surrender(node, term, SurrenderReason::BadPromotion);
        };
        if term < agent.aggregator.term {
            return;
        }
        if term > agent.aggregator.term {
            agent.aggregator = Aggregator { term, ..Aggregator::default() };
        }
        agent.aggregator.rule = Some(rule.clone());
        agent.aggregator.open = true;
        let effect = agent.table.ask(Some(term), now);
        let own = OwnReign::begun(term, rule);
        agent.reign = Some(Reign {
            own,
            timeline,
            forks,
            fork,
            next_id,
            marker: None,
            drain: None,
            gave_up: None,
            leased_until: now + agent.table.lease_length(),
        });
        self.effect(node, effect);
        self.beat(node);
        self.release_commits(node);
        self.wake(node);
    }

    /// One record, and the proof that a commit set of the rule in effect holds it (R10).
    pub(super) fn write_marker(&mut self, node: usize, term: Term) {
        let Some(agent) = self.agent(node) else { return };
        let Some(reign) = agent.reign.as_ref().filter(|r| r.own.term == term) else { return };
        let rule = reign.own.rule;
        if reign.own.marked == Some(rule) || reign.marker.is_some_and(|(r, _)| r == rule) {
            return;
        }
        let able = self.hosts[node].server.as_ref().is_some_and(|s| s.writes && !s.stopped);
        if !able {
            return self.agent_event(node, MARKER_RETRY, AgentEvent::MarkerRetry { term });
        }
        let Some(end) = self.append(node, None) else { return };
        let early = self.flaw == Flaw::NoMarker;
        if let Some(agent) = self.agent(node)
            && let Some(reign) = &mut agent.reign
        {
            reign.marker = Some((rule, end.depth));
            if early {
                reign.own.marked = Some(rule);
            }
        }
        self.release_commits(node);
    }

    /// What a commit set holds now is released: to PostgreSQL, and to the marker.
    pub(crate) fn release_commits(&mut self, node: usize) {
        let flushed = self.hosts[node].disk.data.flushed;
        let me = self.hosts[node].name;
        let stands = self.hosts[node].stands_still();
        let writes = self.hosts[node].server.as_ref().is_some_and(|s| s.writes && !s.stopped);
        let Some(agent) = self.agent(node) else { return };
        let aggregator = &mut agent.aggregator;
        if stands || !writes || !aggregator.open {
            return;
        }
        aggregator.own = aggregator.own.max(flushed);
        let Some(rule) = &aggregator.rule else { return };
        let mut reached: BTreeMap<NodeId, Lsn> =
            aggregator.links.iter().filter_map(|(n, l)| Some((*n, lsn(l.flushed?)))).collect();
        reached.insert(me, lsn(aggregator.own));
        let safe = rule.safe_position(me, &reached).map_or(0, records);
        aggregator.held = aggregator.held.max(safe);
        let held = aggregator.held;
        let mut marked = false;
        if let Some(reign) = &mut agent.reign
            && let Some((rule, end)) = reign.marker
            && rule == reign.own.rule
            && reign.own.marked != Some(rule)
            && held >= end
        {
            reign.own.marked = Some(rule);
            marked = true;
        }
        self.released(node, held);
        if marked {
            self.wake(node);
        }
    }

    /// Whether commits that are released now may be lost by a failover: the operator chose that.
    pub(crate) fn is_lossy(&self, node: usize) -> bool {
        self.hosts[node].agent.as_ref().is_some_and(|a| {
            a.aggregator.rule.as_ref().is_some_and(|r| r.policy == quorate_core::Policy::WriterOnly)
                || a.state
                    .authority
                    .rules
                    .iter()
                    .any(|r| r.policy == quorate_core::Policy::WriterOnly)
        })
    }

    pub(super) fn open(&mut self, node: usize, term: Term) {
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let Some(reign) = &mut agent.reign else { return };
        if std::mem::replace(&mut reign.own.open, true) {
            return;
        }
        agent.gate.open(term);
        if let GateWord::Renew(_, until) = agent.table.renewal(now) {
            agent.gate.deadline = until;
        }
        self.trace.say(self.now, node, "serves clients");
        let end = self.hosts[node].disk.data.end;
        let lossy = self.is_lossy(node);
        if let Some(end) = end {
            self.checks.opened(self.now, &self.tree, node, term, end, lossy);
        }
    }
}
