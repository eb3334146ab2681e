//! What can be wrong with bytes.

/// Bytes that are not the protocol. The stream they came from cannot be used further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A length word that no message can have.
    #[error("a message (tag {tag:#04x}) claims a length of {length} bytes")]
    Length {
        /// First byte of the message; zero for a startup packet.
        tag: u8,
        /// The length word.
        length: u32,
    },
    /// A message ended before its fields did, or lacks a terminator.
    #[error("{what} is cut short or not terminated")]
    Truncated {
        /// Which message or field.
        what: &'static str,
    },
    /// A message is longer than its receiver accepts.
    #[error("{what} has {length} bytes, more than the {max} that are accepted")]
    TooLong {
        /// Which message.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A field holds something that it cannot hold.
    #[error("{what} cannot be read")]
    Invalid {
        /// Which field.
        what: &'static str,
    },
}

/// When the operation that failed may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once.
    Now,
    /// After a delay that grows.
    Backoff,
    /// When a person has changed something.
    Operator,
    /// Not with the same input.
    Never,
}

impl Error {
    /// When to try again: never with these bytes.
    pub fn retry(&self) -> Retry {
        Retry::Never
    }

    /// What a person should do.
    pub fn hint(&self) -> &'static str {
        "check that the other side speaks the PostgreSQL protocol, version 3, on this port or socket"
    }
}
