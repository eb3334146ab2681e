//! What can fail on the data path.

use std::io;

use quorate_wire::Retry;

/// A failure of the world around the data path. Refusals are values of their functions, not errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket or stream failed.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The failure.
        source: io::Error,
    },
    /// Bytes that are not the protocol.
    #[error("bytes on a replication stream")]
    Wire(#[from] quorate_wire::Error),
    /// The local server refused.
    #[error("{doing}: the server says {message} (SQLSTATE {code})")]
    Server {
        /// What was being done.
        doing: &'static str,
        /// SQLSTATE.
        code: String,
        /// Its words.
        message: String,
    },
    /// A message that has no place there.
    #[error("{doing}: unexpected message with tag {tag:#04x}")]
    Unexpected {
        /// What was being done.
        doing: &'static str,
        /// Its first byte.
        tag: u8,
    },
    /// The other side closed the stream.
    #[error("{doing}: the connection was closed")]
    Closed {
        /// What was being done.
        doing: &'static str,
    },
    /// The other side took too long.
    #[error("{doing}: no answer in time")]
    TimedOut {
        /// What was being done.
        doing: &'static str,
    },
}

impl Error {
    /// Wraps an IO error with what was being done.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { doing, source }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Error::Io { .. } | Error::Closed { .. } | Error::TimedOut { .. } => Retry::Backoff,
            Error::Wire(_) | Error::Unexpected { .. } => Retry::Never,
            // Class 57: starting up or shutting down. The rest is roles, settings, limits.
            Error::Server { code, .. } if code.starts_with("57") => Retry::Backoff,
            Error::Server { .. } => Retry::Operator,
        }
    }

    /// What a person should do.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Io { .. } | Error::Closed { .. } | Error::TimedOut { .. } => {
                "check that the local PostgreSQL runs and that its socket directory is the configured one"
            }
            Error::Wire(error) => error.hint(),
            Error::Unexpected { .. } => "check that the socket belongs to PostgreSQL 15 or newer",
            Error::Server { .. } => {
                "check that role quorate exists with LOGIN and REPLICATION, that pg_hba.conf lets it \
                 in on the local socket, and that max_wal_senders is large enough"
            }
        }
    }
}
