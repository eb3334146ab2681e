//! Hosts: what outlives processes, and the processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_core::state::NodeKind;
use quorate_core::{Moment, NodeId, Term};

use crate::agent::Agent;
use crate::event::Event;
use crate::raft::Stored;
use crate::server::{Data, Server};
use crate::world::At;

/// A host: what outlives processes, and the processes.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: NodeId,
    pub(crate) kind: NodeKind,
    /// Whether it has power.
    pub(crate) up: bool,
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) agent: Option<Agent>,
    pub(crate) server: Option<Server>,
    /// Counts processes, so that their events are told apart.
    pub(crate) lives: u64,
    /// What could not happen yet: the process or the host stands still.
    pub(crate) deferred: Vec<Event>,
    pub(crate) agent_stopped: bool,
    pub(crate) suspended: bool,
}

/// A host's clock: it counts from the host's start, a little fast or slow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    pub(crate) base: u64,
    pub(crate) from: At,
    pub(crate) permille: i16,
}

impl Clock {
    pub(crate) fn read(self, now: At) -> Moment {
        let passed = now - self.from;
        let drift = (i128::from(passed) * i128::from(self.permille) / 1000) as i64;
        Moment(self.base + passed.saturating_add_signed(drift))
    }

    /// Goes on at another rate from here.
    pub(crate) fn change(&mut self, now: At, permille: i16) {
        *self = Self { base: self.read(now).0, from: now, permille };
    }
}

/// A host's disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) promise: Option<Term>,
    pub(crate) raft: Stored,
    pub(crate) data: Data,
    pub(crate) stalled: Option<At>,
    pub(crate) full: bool,
    /// Whether the promise is gone when the next process looks for it.
    pub(crate) forgets: bool,
    /// When the last write of the log of consensus ends: others do not overtake it.
    pub(crate) raft_until: At,
    /// Writes that wait for a stalled disk.
    pub(crate) waiting: Vec<Event>,
}

/// The network between hosts.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) slow: BTreeMap<usize, Duration>,
    /// Nothing of consensus leaves or reaches these.
    pub(crate) mute: BTreeSet<usize>,
    pub(crate) lossy: u16,
}

impl Host {
    /// Whether its process cannot do anything now.
    pub(crate) fn stands_still(&self) -> bool {
        self.suspended || self.agent_stopped
    }
}
