//! How much a statement may return (`rows_max`, `bytes_max` of a pool).
//!
//! A result that grows beyond is cut off: its client gets no more of it and the server is asked to
//! cancel. Small results are complete on the server before anybody could: then the client is told
//! so, and a transaction block it is in is made to fail, as an error makes it fail in PostgreSQL.

use bytes::Bytes;
use quorate_wire::backend::Report;

/// What makes a block fail whose statement was complete before it could be cancelled. The server
/// writes the error into its log, so it is one that explains itself.
pub(crate) const FAILS: &[u8] =
    b"SELECT 'a result was larger than the limit of its pool (rows_max, bytes_max)'::int";

/// The limits of a statement, and how far it is.
#[derive(Debug)]
pub(crate) struct Cap {
    rows_max: u64,
    bytes_max: u64,
    rows: u64,
    bytes: u64,
    pub(crate) stage: Stage,
}

/// What has become of the statement under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It is within its limits.
    Within,
    /// It is beyond them, and runs on.
    Beyond,
    /// The client was told, and gets nothing but ReadyForQuery. `late`: the server had carried it
    /// out.
    Told { late: bool },
    /// The block it was in is made to fail.
    Failing,
}

/// What is to be done about a result that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TooLarge {
    /// The server goes on with it: cancel it.
    Cancel,
    /// It was complete: make its block fail.
    Fail,
}

impl Cap {
    /// `None` where there is no limit.
    pub(crate) fn of(rows_max: Option<u64>, bytes_max: Option<u64>) -> Option<Box<Self>> {
        (rows_max.is_some() || bytes_max.is_some()).then(|| {
            Box::new(Self {
                rows_max: rows_max.unwrap_or(u64::MAX),
                bytes_max: bytes_max.unwrap_or(u64::MAX),
                rows: 0,
                bytes: 0,
                stage: Stage::Within,
            })
        })
    }

    /// Counts a row; whether the statement is beyond its limits with it.
    pub(crate) fn counts(&mut self, bytes: usize) -> bool {
        self.rows += 1;
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.rows > self.rows_max || self.bytes > self.bytes_max
    }

    /// Another statement begins.
    pub(crate) fn restart(&mut self) {
        (self.rows, self.bytes, self.stage) = (0, 0, Stage::Within);
    }

    /// For the client.
    pub(crate) fn report(&self, late: bool, in_block: bool) -> Bytes {
        let limit = if self.rows > self.rows_max {
            format!("It has more than {} rows (rows_max).", self.rows_max)
        } else {
            format!("It has more than {} bytes of rows (bytes_max).", self.bytes_max)
        };
        let became = match (late, in_block) {
            (false, _) => "The statement was cancelled.",
            (true, true) => "The transaction cannot be committed any more.",
            (true, false) => "The statement was carried out before it could be cancelled.",
        };
        Report::error("54000", "the result is larger than its pool allows")
            .detail(format!("{limit} {became}"))
            .hint("Ask for less (LIMIT, FETCH), or raise the limit of the [[gateway.pools]] rule.")
            .encode()
            .freeze()
    }
}
