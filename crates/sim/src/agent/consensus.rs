//! A node's part in consensus: elections, proposals, and the coordinator's look.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::coordinator::{self, ClusterView, Peer};
use quorate_core::limits::{ATTEND_EVERY, COORDINATE_EVERY};
use quorate_core::state::Change;
use quorate_core::{Command, Moment, NodeId, State};

use crate::event::{AgentEvent, Event, Message};
use crate::raft::{self, Output};
use crate::world::{World, nanos};

const PROPOSE_WITHIN: Duration = Duration::from_secs(5);

impl World {
    pub(crate) fn set_election_timer(&mut self, node: usize) {
        let span = nanos(raft::ELECTION_MAX - raft::ELECTION_MIN) as usize;
        let wait = raft::ELECTION_MIN + Duration::from_nanos(self.random.below(span) as u64);
        let Some(agent) = self.agent(node) else { return };
        agent.election += 1;
        let epoch = agent.election;
        let wait = if agent.reluctant { wait + raft::RELUCTANCE } else { wait };
        self.agent_event(node, wait, AgentEvent::Election { epoch });
    }

    pub(super) fn campaign(&mut self, node: usize, epoch: u64) {
        let Some(agent) = self.agent(node) else { return };
        if agent.election != epoch {
            return;
        }
        if agent.leads() {
            return self.set_election_timer(node);
        }
        let output = agent.raft.campaign();
        self.raft_output(node, output);
    }

    pub(super) fn leader_beat(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        if !agent.leads() {
            return;
        }
        for (to, word) in agent.raft.news() {
            self.send(node, to, Message::Raft(word));
        }
        self.agent_event(node, raft::HEARTBEAT, AgentEvent::LeaderBeat);
    }

    pub(super) fn raft_output(&mut self, node: usize, output: Output) {
        let Some(agent) = self.agent(node) else { return };
        let stored = agent.raft.stored.clone();
        if output.rests {
            self.set_election_timer(node);
        }
        if output.leads {
            self.agent_event(node, raft::HEARTBEAT, AgentEvent::LeaderBeat);
        }
        let pending = self.hosts[node].disk.raft_until > self.now;
        let stalled = self.hosts[node].disk.stalled.is_some() || self.hosts[node].disk.full;
        if output.writes || (pending || stalled) && !output.words.is_empty() {
            let took = nanos(self.some_us(300, 2_000));
            let now = self.now;
            let disk = &mut self.hosts[node].disk;
            let done = disk.raft_until.max(now) + if output.writes { took } else { 0 };
            disk.raft_until = done;
            let life = self.hosts[node].agent.as_ref().map_or(0, |a| a.life);
            let what = AgentEvent::Stored { stored: Box::new(stored), words: output.words };
            let event = Event::Agent { node, life, what };
            let disk = &mut self.hosts[node].disk;
            match stalled {
                true => disk.waiting.push(event),
                false => self.at(done, event),
            }
        } else {
            for (to, word) in output.words {
                self.send(node, to, Message::Raft(word));
            }
            self.apply(node);
        }
    }

    pub(super) fn apply(&mut self, node: usize) {
        let mut changed = false;
        while let Some(entry) = self.agent(node).and_then(|a| a.raft.next_applied()) {
            changed = true;
            let Some(agent) = self.agent(node) else { return };
            let state = Rc::clone(entry.apply(&agent.state));
            agent.state = Rc::clone(&state);
            let (leads, applied) = (agent.leads(), agent.raft.applied());
            if applied > self.applied {
                (self.newest, self.applied) = (state, applied);
            }
            if entry.proposal > 0 && leads {
                self.answer(node, entry.proposal);
            }
        }
        if changed {
            self.wake(node);
            self.attend(node);
        }
    }

    /// Tells whoever proposed; proposals are numbered for all nodes.
    pub(super) fn answer(&mut self, node: usize, proposal: u64) {
        for to in 0..self.hosts.len() {
            let asked =
                self.hosts[to].agent.as_ref().is_some_and(|a| a.proposals.contains(&proposal));
            if asked {
                self.send(node, to, Message::Proposed { proposal });
            }
        }
    }

    pub(crate) fn propose(&mut self, node: usize, what: &'static str, change: Change) {
        let proposal = self.number();
        let Some(agent) = self.agent(node) else { return };
        if !what.is_empty() {
            if agent.proposing.contains_key(what) {
                return;
            }
            agent.proposing.insert(what, proposal);
        }
        agent.proposals.insert(proposal);
        let Some(leader) = agent.raft.leader else {
            return self.agent_event(node, raft::HEARTBEAT, AgentEvent::ProposalLate { proposal });
        };
        let command = Box::new(Command { at: 0, change });
        self.send(node, leader, Message::Propose { proposal, command });
        self.agent_event(node, PROPOSE_WITHIN, AgentEvent::ProposalLate { proposal });
    }

    pub(super) fn proposed(&mut self, node: usize, proposal: u64) {
        let Some(agent) = self.agent(node) else { return };
        agent.proposals.remove(&proposal);
        agent.proposing.retain(|_, p| *p != proposal);
        self.wake(node);
        self.attend(node);
    }

    /// The coordinator's look, and whether this node should rather not lead.
    pub(super) fn coordinate(&mut self, node: usize) {
        let now = self.moment(node);
        let voters: BTreeSet<NodeId> = self.hosts.iter().map(|h| h.name).collect();
        let me = self.hosts[node].name;
        let Some(agent) = self.agent(node) else { return };
        let asked = std::mem::take(&mut agent.look_due);
        let state = Rc::clone(&agent.state);
        let peers = agent.table.peers(now);
        agent.reluctant = reluctant(me, now, &state, &peers);
        let leads = agent.leads();
        let mut change = None;
        if leads {
            let view = ClusterView { me, now, state: &state, voters: &voters, peers: &peers };
            let verdict = coordinator::decide(&view, &mut agent.coordinator);
            agent.word = verdict.because;
            change = verdict.change;
        } else {
            agent.coordinator = coordinator::Memory::default();
            let gone = |leader: usize| {
                let name = self.hosts[leader].name;
                peers.get(&name).is_some_and(|p| p.gone)
            };
            let leader = self.hosts[node].agent.as_ref().and_then(|a| a.raft.leader);
            let reluctant = self.hosts[node].agent.as_ref().is_some_and(|a| a.reluctant);
            if leader.is_some_and(gone) && !reluctant {
                self.hurry_election(node);
            }
        }
        if let Some(change) = change {
            self.propose(node, "coordinate", change);
        }
        if !asked {
            let wait = if leads { COORDINATE_EVERY } else { ATTEND_EVERY };
            self.agent_event(node, wait, AgentEvent::Coordinate);
        }
    }

    /// A leader that is seen to be gone is replaced without waiting for its silence.
    pub(super) fn hurry_election(&mut self, node: usize) {
        let wait = self.some_us(10_000, 150_000);
        let Some(agent) = self.agent(node) else { return };
        agent.raft.leader = None;
        agent.election += 1;
        let epoch = agent.election;
        self.agent_event(node, wait, AgentEvent::Election { epoch });
    }

    // Heartbeats.

    pub(super) fn beat(&mut self, node: usize) {
        let now = self.moment(node);
        let members: Vec<usize> = (0..self.hosts.len()).filter(|n| *n != node).collect();
        let Some(agent) = self.agent(node) else { return };
        let Some(beat) = agent.table.beat(now).map(Rc::new) else { return };
        for to in members {
            self.send(node, to, Message::Beat { beat: Rc::clone(&beat), sent: now });
        }
    }
}

/// The writer would rather not lead consensus, nor would a node that cannot hear the writer while
/// another can.
fn reluctant(me: NodeId, now: Moment, state: &State, peers: &BTreeMap<NodeId, Peer>) -> bool {
    let Some(writer) = state.authority.writer else { return false };
    if writer == me {
        return true;
    }
    let suspect = Duration::from_millis(state.document().suspect_after_ms);
    let fresh = |p: &Peer| !p.gone && p.heard.is_some_and(|at| now.since(at) < suspect);
    let hears = |p: &Peer| {
        fresh(p)
            && p.status.as_ref().and_then(|s| s.hears.get(&writer)).is_some_and(|h| {
                !h.gone && h.silent_ms.is_some_and(|ms| u128::from(ms) < suspect.as_millis())
            })
    };
    !peers.get(&writer).is_some_and(fresh)
        && peers.iter().any(|(n, p)| *n != me && *n != writer && hears(p))
}
