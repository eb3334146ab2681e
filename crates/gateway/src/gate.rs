//! The response gate (R12): may what PostgreSQL just produced leave this node?
//!
//! Asked for every chunk, so asking takes no lock: three loads and a comparison. Changes are rare
//! and take one. A session belongs to the term in which it began; in any other it is cut.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use quorate_core::{Moment, Term};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::limits;

/// Reads `CLOCK_BOOTTIME`.
pub type Clock = fn() -> Moment;

/// The answer of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The response may leave.
    Pass,
    /// The term is open but its lease has run out: wait for a renewal or the end of the term.
    Hold,
    /// The session's term is over on this node.
    Cut,
}

/// The gate, shared by all sessions of a node.
#[derive(Debug)]
pub struct Gate {
    /// Term shifted left by one; the lowest bit says open.
    state: AtomicU64,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    deadline: AtomicU64,
    /// Orders changes among themselves.
    changing: Mutex<()>,
    /// Work that began may go on, and no other may begin.
    draining: AtomicBool,
    /// Counts openings and closings.
    epoch: watch::Sender<u64>,
    renewed: Notify,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            state: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            changing: Mutex::new(()),
            epoch: watch::Sender::new(0),
            renewed: Notify::new(),
        }
    }
}

const fn opened(term: Term) -> u64 {
    (term.0 << 1) | 1
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens for a term. Responses are held until the first [`Gate::renew`].
    pub fn open(&self, term: Term) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.store(0, Ordering::SeqCst);
        self.deadline.store(0, Ordering::SeqCst);
        self.draining.store(false, Ordering::SeqCst);
        self.state.store(opened(term), Ordering::SeqCst);
        self.epoch.send_modify(|n| *n += 1);
    }

    /// Lets work that began go on to its end, and asks gateways to begin no other: before a planned
    /// closing, or, when that is given up, not any more.
    pub fn drain(&self, draining: bool) {
        self.draining.store(draining, Ordering::SeqCst);
        self.epoch.send_modify(|n| *n += 1);
    }

    /// Whether no other work is to begin.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Closes: when it returns, every later question is answered [`Verdict::Cut`].
    pub fn close(&self) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.fetch_and(!1, Ordering::SeqCst);
        self.epoch.send_modify(|n| *n += 1);
    }

    /// Lets responses of this term leave until `deadline`; the latest word counts. Returns false,
    /// and changes nothing, when the gate is not open for the term. Where no lease is wanted the
    /// deadline is `Moment(u64::MAX)`.
    pub fn renew(&self, term: Term, deadline: Moment) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.state.load(Ordering::SeqCst) == opened(term);
        if current {
            self.deadline.store(deadline.0, Ordering::SeqCst);
            self.renewed.notify_waiters();
        }
        current
    }

    /// The term that is open.
    pub fn term(&self) -> Option<Term> {
        let state = self.state.load(Ordering::SeqCst);
        (state & 1 == 1).then_some(Term(state >> 1))
    }

    /// A number for the next opening of a gate that is opened by nobody's term.
    pub fn next_term(&self) -> Term {
        Term((self.state.load(Ordering::SeqCst) >> 1) + 1)
    }

    /// Follows openings and closings, for whoever waits for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Whether a response of a session of `term` may leave at `now`.
    pub fn check(&self, term: Term, now: Moment) -> Verdict {
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("gate") {
            return Verdict::Pass;
        }
        let state = opened(term);
        if self.state.load(Ordering::SeqCst) != state {
            return Verdict::Cut;
        }
        let deadline = self.deadline.load(Ordering::SeqCst);
        // The deadline may be that of a later term: then the state has changed by now.
        if self.state.load(Ordering::SeqCst) != state {
            return Verdict::Cut;
        }
        if now.0 < deadline { Verdict::Pass } else { Verdict::Hold }
    }

    /// Waits while the gate holds: true when responses may leave, false when the term is over.
    pub async fn passed(&self, term: Term, clock: Clock) -> bool {
        loop {
            let renewed = self.renewed.notified();
            match self.check(term, clock()) {
                Verdict::Pass => return true,
                Verdict::Cut => return false,
                // Woken or not, the next look decides.
                Verdict::Hold => drop(timeout(limits::HOLD_POLL, renewed).await),
            }
        }
    }

    /// Waits until the term is over on this node.
    pub async fn over(&self, term: Term) {
        let mut epoch = self.epoch.subscribe();
        let over = |_: &u64| self.state.load(Ordering::SeqCst) != opened(term);
        // The sender is a field of self: the channel is never closed.
        let _ = epoch.wait_for(over).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn only_the_open_term_passes_and_only_within_its_lease() {
        let gate = Gate::new();
        assert_eq!(gate.check(Term(0), Moment(0)), Verdict::Cut);
        gate.open(Term(3));
        assert_eq!(gate.term(), Some(Term(3)));
        assert_eq!(gate.check(Term(3), Moment(0)), Verdict::Hold, "no lease yet");
        assert!(gate.renew(Term(3), Moment(100)));
        assert_eq!(gate.check(Term(3), Moment(99)), Verdict::Pass);
        assert_eq!(gate.check(Term(3), Moment(100)), Verdict::Hold);
        assert_eq!(gate.check(Term(2), Moment(0)), Verdict::Cut);
        gate.close();
        assert_eq!(gate.check(Term(3), Moment(0)), Verdict::Cut);
        assert!(!gate.renew(Term(3), Moment(200)));
        gate.open(Term(4));
        assert!(!gate.renew(Term(3), Moment(200)), "a renewal of an old term");
        assert_eq!(gate.check(Term(4), Moment(0)), Verdict::Hold);
        assert_eq!(gate.check(Term(3), Moment(0)), Verdict::Cut);
    }

    #[test]
    fn a_session_never_passes_on_the_lease_of_another_term() {
        let gate = Arc::new(Gate::new());
        let stop = Arc::new(AtomicBool::new(false));
        let changes = {
            let (gate, stop) = (Arc::clone(&gate), Arc::clone(&stop));
            std::thread::spawn(move || {
                for term in 1..20_000u64 {
                    gate.open(Term(term));
                    // Odd terms never get a lease.
                    if term % 2 == 0 {
                        gate.renew(Term(term), Moment(u64::MAX));
                    }
                    gate.close();
                }
                stop.store(true, Ordering::SeqCst);
            })
        };
        while !stop.load(Ordering::SeqCst) {
            if let Some(term) = gate.term().filter(|t| t.0 % 2 == 1) {
                assert_ne!(gate.check(term, Moment(0)), Verdict::Pass);
            }
        }
        changes.join().unwrap();
    }
}
