//! Counters of a gateway. Cheap: cells of one thread.

use std::cell::Cell;

use crate::route::Because;

/// Counters of an account.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Transactions, or statements outside of one, that were answered.
    pub(crate) transactions: Cell<u64>,
    /// Of these, on replicas.
    pub(crate) on_replicas: Cell<u64>,
    /// Statements that were run again elsewhere.
    pub(crate) repeated: Cell<u64>,
    /// Statements that a standby refused and the writer ran.
    pub(crate) refused: Cell<u64>,
    /// Clients that gave up waiting for a server.
    pub(crate) expired: Cell<u64>,
    /// COMMITs whose answer was lost, by what became known.
    pub(crate) fates: [Cell<u64>; 3],
    /// Transactions that went to the writer, by reason.
    pub(crate) to_writer: [Cell<u64>; Because::ALL.len()],
    /// Connections to servers that were opened.
    pub(crate) opened: Cell<u64>,
    /// Logins.
    pub(crate) logins: Cell<u64>,
}

/// Counts one up.
pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}
