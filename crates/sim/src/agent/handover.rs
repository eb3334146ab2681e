//! The writer's part of a switchover.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_core::health::GateWord;
use quorate_core::{NodeId, Term, limits};

use super::{Drain, Link};
use crate::event::AgentEvent;
use crate::wal::lsn;
use crate::world::World;

const DRAIN_STEP: Duration = Duration::from_millis(4);
const DRAIN_WAIT: Duration = Duration::from_secs(4);

impl World {
    pub(super) fn drain(&mut self, node: usize, target: Option<NodeId>) {
        let now = self.moment(node);
        let flushed = self.hosts[node].disk.data.flushed;
        let Some(agent) = self.agent(node) else { return };
        let links = &agent.aggregator.links;
        let Some(reign) = &mut agent.reign else { return };
        if reign.drain.is_some() || reign.gave_up.is_some() {
            return;
        }
        let follows = match target {
            Some(target) => links.contains_key(&target),
            None => !links.is_empty(),
        };
        let best = best(links, target, &agent.state.authority.cohort());
        let behind = best.map_or(u64::MAX, |at| lsn(flushed).bytes_since(lsn(at)));
        let term = reign.own.term;
        if !follows || behind > limits::SWITCHOVER_LAG {
            reign.gave_up = Some("the target is not close enough".to_owned());
            return self.wake(node);
        }
        reign.drain = Some(Drain { target, until: now + DRAIN_WAIT, end: None });
        agent.gate.draining = true;
        self.agent_event(node, DRAIN_STEP * 3, AgentEvent::DrainStep { term });
    }

    pub(super) fn drain_step(&mut self, node: usize, term: Term) {
        let now = self.moment(node);
        let depth = self.hosts[node].disk.data.depth();
        let busy = self.hosts[node].server.as_ref().is_some_and(|s| !s.waiting.is_empty());
        let Some(agent) = self.agent(node) else { return };
        let cohort = agent.state.authority.cohort();
        let Some(reign) = agent.reign.as_mut().filter(|r| r.own.term == term) else { return };
        let Some(drain) = &mut reign.drain else { return };
        let held_long = now + DRAIN_WAIT / 2 > drain.until;
        if drain.end.is_none() && (!busy || held_long) {
            agent.gate.term = None;
            drain.end = Some(depth);
        }
        // Statements of sessions that were cut off may still commit.
        if drain.end.is_some() {
            drain.end = Some(depth);
        }
        let caught_up = drain.end.is_some_and(|end| {
            best(&agent.aggregator.links, drain.target, &cohort) >= Some(end) && !busy
        });
        if caught_up {
            reign.own.drained = true;
            return self.wake(node);
        }
        if now > drain.until {
            reign.gave_up = Some("the target did not catch up".to_owned());
            reign.drain = None;
            agent.gate.draining = false;
            if reign.own.open && agent.gate.term.is_none() && agent.table.asks(term) {
                agent.gate.open(term);
                if let GateWord::Renew(_, until) = agent.table.renewal(now) {
                    agent.gate.deadline = until;
                }
            }
            return self.wake(node);
        }
        self.agent_event(node, DRAIN_STEP, AgentEvent::DrainStep { term });
    }
}

/// The furthest copy that a switchover would go to.
fn best(
    links: &BTreeMap<NodeId, Link>,
    target: Option<NodeId>,
    cohort: &BTreeSet<NodeId>,
) -> Option<u64> {
    let counts = |n: &NodeId| target.map_or_else(|| cohort.contains(n), |t| t == *n);
    links.iter().filter(|(n, _)| counts(n)).filter_map(|(_, l)| l.flushed).max()
}
