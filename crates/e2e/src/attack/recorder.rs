//! Takes down what clients did, and when a write was last acknowledged.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_history::{History, Moment, Operation, Outcome, Process};

use super::client::Client;

/// A history while it is made.
#[derive(Debug)]
pub struct Recorder<A> {
    /// Whether an action writes.
    writes: fn(&A) -> bool,
    notes: Mutex<Notes<A>>,
}

#[derive(Debug)]
struct Notes<A> {
    history: History<A>,
    pulse: Pulse,
}

/// Where and when an operation began.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    process: Process,
    invoked: Moment,
}

impl Span {
    /// Begins now.
    pub fn begin(client: &Client) -> Self {
        Self { process: client.process(), invoked: client.now() }
    }
}

/// Acknowledged writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pulse {
    /// How many.
    pub writes: usize,
    last: Option<Moment>,
    longest: Duration,
}

impl Pulse {
    fn beat(&mut self, at: Moment) {
        self.longest = self.pause_until(at);
        self.last = Some(at);
        self.writes += 1;
    }

    /// The longest time without an acknowledged write, up to a moment.
    pub fn pause_until(&self, until: Moment) -> Duration {
        let since = self.last.map_or(0, |last| until.0.saturating_sub(last.0));
        self.longest.max(Duration::from_micros(since))
    }
}

impl<A> Recorder<A> {
    /// An empty one, for actions some of which write.
    pub fn new(writes: fn(&A) -> bool) -> Self {
        let notes = Notes { history: History::default(), pulse: Pulse::default() };
        Self { writes, notes: Mutex::new(notes) }
    }

    fn notes(&self) -> MutexGuard<'_, Notes<A>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes down an operation that ends now.
    pub fn note(&self, client: &Client, span: Span, action: A, outcome: Outcome, note: String) {
        let completed = client.now();
        let acknowledged = outcome == Outcome::Ok && (self.writes)(&action);
        let Span { process, invoked } = span;
        let mut notes = self.notes();
        notes.history.operations.push(Operation {
            process,
            invoked,
            completed,
            outcome,
            action,
            note,
        });
        if acknowledged {
            notes.pulse.beat(completed);
        }
    }

    /// Acknowledged writes so far.
    pub fn pulse(&self) -> Pulse {
        self.notes().pulse
    }

    /// The history, which begins anew.
    pub fn take(&self) -> History<A> {
        std::mem::take(&mut self.notes().history)
    }
}
