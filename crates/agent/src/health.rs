//! The health table behind a lock: heartbeat threads call in, and are answered from memory.
//!
//! They never wait for a disk or for the async runtime. What the table knows and grants:
//! [`quorate_core::health`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::coordinator::Peer;
use quorate_core::health::{Beat, BeatAnswer, Effect, GateWord, Table};
use quorate_core::lease::Voters;
use quorate_core::status::NodeStatus;
use quorate_core::{Lsn, Moment, NodeId, Term};
use quorate_gateway::Gate;
use quorate_link::Pulse;
use tokio::sync::{Notify, watch};

/// The health table of a node.
pub struct Health {
    clock: fn() -> Moment,
    gate: Arc<Gate>,
    table: Mutex<Table>,
    /// Signalled when something changed that a decision may depend on. For the coordinator.
    pub changed: Notify,
    /// Counts the same, for everybody else.
    pub news: watch::Sender<u64>,
}

impl Health {
    /// A table that knows nobody yet. `promised` is the term that this node has promised, so that it
    /// grants no lease below it. Lease renewals go straight to `gate`.
    pub fn new(me: NodeId, promised: Term, clock: fn() -> Moment, gate: Arc<Gate>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            gate,
            table: Mutex::new(Table::new(me, promised, clock())),
            changed: Notify::new(),
            news: watch::Sender::new(0),
        })
    }

    fn look<T>(&self, look: impl FnOnce(&Table, Moment) -> T) -> T {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        look(&table, (self.clock)())
    }

    /// Changes the table. The gate hears of it before the lock is let go, so that nobody is told
    /// of a term in which this gate is still open.
    fn change<T>(&self, change: impl FnOnce(&mut Table, Moment) -> (T, Effect)) -> (T, bool) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, effect) = change(&mut table, (self.clock)());
        self.tell_gate(effect.gate);
        drop(table);
        if effect.news {
            self.changed.notify_one();
            self.news.send_modify(|n| *n += 1);
        }
        (value, effect.news)
    }

    fn tell_gate(&self, word: GateWord) {
        match word {
            GateWord::Keep => {}
            GateWord::Close => self.gate.close(),
            GateWord::Renew(term, until) => {
                self.gate.renew(term, until);
            }
        }
    }

    /// Takes in the replicated facts that heartbeats depend on; see [`Table::set_cluster`].
    pub fn set_cluster(
        &self,
        term: Term,
        voters: Voters,
        members: &BTreeSet<NodeId>,
        promised: bool,
    ) {
        self.change(|t, _| ((), t.set_cluster(term, voters, members, promised)));
    }

    /// Whether leases are asked for in this term.
    pub fn asks(&self, term: Term) -> bool {
        self.look(|t, _| t.asks(term))
    }

    /// Whether a refused connection releases the lease of the node behind it.
    pub fn set_strict(&self, strict: bool) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).set_strict(strict);
    }

    /// Asks for leases in this term from now on, or for none.
    pub fn ask(&self, term: Option<Term>) {
        self.change(|t, now| ((), t.ask(term, now)));
    }

    /// Sets what this node says of itself; the heartbeat details are filled in with each beat.
    /// Returns whether others should hear of it at once.
    pub fn set_status(&self, status: NodeStatus) -> bool {
        self.change(|t, now| ((), t.set_status(status, now))).1
    }

    /// What is known of every member, this node included.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        self.look(Table::peers)
    }

    /// Where a node's log ended as a writer; see [`Table::log_end`].
    pub fn log_end(&self, of: NodeId) -> Option<(Term, Lsn, Moment)> {
        self.look(|t, _| t.log_end(of))
    }

    /// The last word of one node.
    pub fn status_of(&self, node: NodeId) -> Option<NodeStatus> {
        self.look(|t, _| t.status_of(node).cloned())
    }

    /// Whether every lease of a term below `term` is surely over.
    pub fn lease_clear(&self, term: Term) -> bool {
        self.look(|t, now| t.lease_clear(term, now))
    }

    /// The end of the lease of the term we ask for.
    pub fn lease_until(&self) -> Option<Moment> {
        self.look(Table::lease_until)
    }

    /// Length of a lease.
    pub fn lease_length(&self) -> std::time::Duration {
        self.look(|t, _| t.lease_length())
    }

    /// Tells the gate the lease's end, as after it was opened.
    pub fn renew_gate(&self) {
        self.change(|t, now| ((), Effect { gate: t.renewal(now), news: false }));
    }
}

impl Pulse for Health {
    fn beat(&self, _to: NodeId) -> Vec<u8> {
        let beat = self.look(Table::beat);
        beat.and_then(|b| serde_json::to_vec(&b).ok()).unwrap_or_default()
    }

    fn heard(&self, from: NodeId, beat: &[u8]) -> Vec<u8> {
        let beat: Option<Beat> = serde_json::from_slice(beat).ok();
        let (answer, _) = self.change(|t, now| t.heard(from, beat, now));
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    fn answered(&self, by: NodeId, sent_at: Moment, answer: &[u8]) {
        let answer: Option<BeatAnswer> = serde_json::from_slice(answer).ok();
        self.change(|t, now| ((), t.answered(by, sent_at, answer, now)));
    }

    fn refused(&self, by: NodeId) {
        self.change(|t, _| ((), t.refused(by)));
    }
}
