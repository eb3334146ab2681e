//! What can go wrong, and what to do about it.

use std::io;
use std::path::PathBuf;

use quorate_core::NodeId;

/// Why a request to the log failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing was changed, and nothing will be: the request never entered the log.
    #[error("not accepted: {because}")]
    NotAccepted {
        /// One clause of why.
        because: String,
    },
    /// The request may or may not take effect, now or later.
    #[error("outcome unknown: {because}")]
    Unknown {
        /// One clause of why.
        because: String,
    },
    /// The command is too large for the log.
    #[error("a command of {bytes} bytes is larger than the log takes ({max})")]
    TooLarge {
        /// Its size as JSON.
        bytes: usize,
        /// The largest size allowed.
        max: usize,
    },
    /// The node stays a learner because it did not catch up in time.
    #[error("{node} has joined as a learner but has not caught up: {because}")]
    Behind {
        /// The node.
        node: NodeId,
        /// One clause of why.
        because: String,
    },
    /// A cluster without voters could never decide anything again.
    #[error("{node} is the last voter and cannot be removed")]
    LastVoter {
        /// The node.
        node: NodeId,
    },
    /// A peer answered with another store than the one it joined with.
    #[error("{node} has another store than the one it joined with: {because}")]
    Replaced {
        /// The node.
        node: NodeId,
        /// One clause of which.
        because: String,
    },
    /// The store file cannot be trusted.
    #[error("the consensus store {path} is damaged: {because}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// One clause of what was found.
        because: String,
    },
    /// The store file belongs to another node, or to a newer program.
    #[error("the consensus store {path} cannot be used: {because}", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// One clause of why.
        because: String,
    },
    /// Another process has the store open.
    #[error("the consensus store {path} is in use by another process", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("the consensus store {path} cannot be read or written", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The timing makes no sense.
    #[error("bad consensus timing: {because}")]
    Timing {
        /// One clause of why.
        because: String,
    },
    /// This node's consensus has stopped, on request or after a fault of its store.
    #[error("consensus has stopped on this node: {because}")]
    Stopped {
        /// One clause of why.
        because: String,
    },
}

/// The kind of an [`Error`]: a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Kind {
    NotAccepted,
    Unknown,
    TooLarge,
    Behind,
    LastVoter,
    Replaced,
    Damaged,
    Foreign,
    InUse,
    Io,
    Timing,
    Stopped,
}

/// When trying again makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once.
    Now,
    /// After a pause.
    Backoff,
    /// After a person has acted.
    Operator,
    /// Not as it stands.
    Never,
}

impl Error {
    /// Which kind of error this is.
    pub fn kind(&self) -> Kind {
        match self {
            Error::NotAccepted { .. } => Kind::NotAccepted,
            Error::Unknown { .. } => Kind::Unknown,
            Error::TooLarge { .. } => Kind::TooLarge,
            Error::Behind { .. } => Kind::Behind,
            Error::LastVoter { .. } => Kind::LastVoter,
            Error::Replaced { .. } => Kind::Replaced,
            Error::Damaged { .. } => Kind::Damaged,
            Error::Foreign { .. } => Kind::Foreign,
            Error::InUse { .. } => Kind::InUse,
            Error::Io { .. } => Kind::Io,
            Error::Timing { .. } => Kind::Timing,
            Error::Stopped { .. } => Kind::Stopped,
        }
    }

    /// When to try again. A proposal of unknown outcome is never repeated blindly.
    pub fn retry(&self) -> Retry {
        match self.kind() {
            Kind::NotAccepted | Kind::Behind => Retry::Backoff,
            Kind::Unknown | Kind::TooLarge | Kind::LastVoter => Retry::Never,
            Kind::Replaced
            | Kind::Damaged
            | Kind::Foreign
            | Kind::InUse
            | Kind::Io
            | Kind::Timing
            | Kind::Stopped => Retry::Operator,
        }
    }

    /// What a person should do.
    pub fn hint(&self) -> &'static str {
        match self.kind() {
            Kind::NotAccepted => {
                "wait until a majority of the voting nodes is up and can reach each other, \
                 then try again"
            }
            Kind::Unknown => "look at the state before trying again: the change may have happened",
            Kind::TooLarge => "split the change into smaller ones",
            Kind::Behind => "check the link to the node, then add it again",
            Kind::LastVoter => "add another node first",
            Kind::Replaced => "remove the node from the cluster and join it again",
            Kind::Damaged => {
                "the file is left as it is; restore this node from a healthy one: on a healthy \
                 node remove this node from the cluster, move the file away, and join again"
            }
            Kind::Foreign => {
                "check the configured directory and node name; a file of a newer program needs \
                 that program"
            }
            Kind::InUse => "stop the other process, or give this one a directory of its own",
            Kind::Io => "check the disk: space, permissions and the kernel's log; then restart",
            Kind::Timing => "correct the timing in the configuration",
            Kind::Stopped => "look at the log for the cause, then restart this node",
        }
    }

    pub(crate) fn not_accepted(because: impl Into<String>) -> Self {
        Error::NotAccepted { because: because.into() }
    }

    pub(crate) fn unknown(because: impl Into<String>) -> Self {
        Error::Unknown { because: because.into() }
    }
}
