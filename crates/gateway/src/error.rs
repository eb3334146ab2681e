//! What can fail in the gateway.

use std::io;

use quorate_wire::Retry;

/// A failure of the world around a session. Refusals and cuts are values, not errors.
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
    #[error("{doing}")]
    Wire {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with them.
        source: quorate_wire::Error,
    },
    /// The other side took too long.
    #[error("{doing}: too slow")]
    TimedOut {
        /// What was being done.
        doing: &'static str,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { doing, source }
    }

    pub(crate) fn wire(doing: &'static str) -> impl FnOnce(quorate_wire::Error) -> Self {
        move |source| Error::Wire { doing, source }
    }

    /// When the client may try again.
    pub fn retry(&self) -> Retry {
        match self {
            Error::Io { .. } | Error::TimedOut { .. } => Retry::Backoff,
            Error::Wire { .. } => Retry::Never,
        }
    }

    /// What a person should do.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::Io { .. } => {
                "check the network to the client and that the local PostgreSQL runs"
            }
            Error::TimedOut { .. } => "check the network to the client and its load",
            Error::Wire { source, .. } => source.hint(),
        }
    }
}
