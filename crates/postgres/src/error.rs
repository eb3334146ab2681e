//! What can fail here, whether to try again, and what a person should do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::{SOCKET_PATH_MAX, VERSION_MAX, VERSION_MIN};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No PostgreSQL server programs were found.
    #[error("no PostgreSQL {VERSION_MIN} to {VERSION_MAX} found (looked in {looked})")]
    NotInstalled {
        /// The places, separated by commas.
        looked: String,
    },
    /// The programs are of a version that is not supported.
    #[error(
        "PostgreSQL {version} in {} is not supported: Quorate runs versions \
         {VERSION_MIN} to {VERSION_MAX}",
        bin_dir.display()
    )]
    Unsupported {
        /// Where it was found.
        bin_dir: PathBuf,
        /// What `postgres --version` said.
        version: String,
    },
    /// One of the needed programs is missing.
    #[error("{} has no program {tool}", bin_dir.display())]
    MissingTool {
        /// The directory that was searched.
        bin_dir: PathBuf,
        /// The program.
        tool: &'static str,
    },
    /// PostgreSQL cannot run as this user.
    #[error("PostgreSQL cannot run as user {name:?}: {reason}")]
    RunAs {
        /// The user's name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A unix socket path is too long for the kernel.
    #[error(
        "the socket path {} has {} bytes, the kernel allows {SOCKET_PATH_MAX}",
        path.display(),
        path.as_os_str().len()
    )]
    SocketPath {
        /// The socket.
        path: PathBuf,
    },
    /// A directory holds something that is not ours to touch.
    #[error("{} {reason}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, as the end of a sentence.
        reason: String,
    },
    /// A standby cannot show a moment.
    #[error("{reason}")]
    Past {
        /// Why not.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// A setting was refused.
    #[error("setting {name}: {reason}")]
    Setting {
        /// The parameter.
        name: String,
        /// Why it is refused.
        reason: String,
    },
    /// The operating system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{tool} failed ({status}): {output}")]
    Tool {
        /// The program.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// A rewind failed after it may have begun to write: the directory may be unusable.
    #[error("pg_rewind failed, the data directory may be unusable ({status}): {output}")]
    RewindFailed {
        /// How it ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// The local server did not let us in.
    #[error("cannot connect to the local server")]
    Connect(#[source] tokio_postgres::Error),
    /// The local server failed a statement.
    #[error("the local server failed to {action}")]
    Sql {
        /// What was asked, as a verb.
        action: &'static str,
        /// What it said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Something did not happen in time.
    #[error("{what} did not happen within {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The server is not running.
    #[error("the PostgreSQL server is not running: {0}")]
    NotRunning(String),
    /// The server is running where it must not.
    #[error("the PostgreSQL server is already running with pid {0}")]
    Running(i32),
    /// Processes of an earlier run could not be removed.
    #[error("process {pid} of an earlier run is still there: {reason}")]
    Leftover {
        /// The process.
        pid: i32,
        /// Why it was not ended.
        reason: String,
    },
    /// Promotion cannot be done, or did something else than was granted.
    #[error("cannot promote to timeline {target}: {reason}")]
    Promote {
        /// The granted timeline.
        target: u32,
        /// What is wrong.
        reason: String,
    },
    /// An answer could not be read.
    #[error("cannot read {what}: {value:?}")]
    Unreadable {
        /// What was read.
        what: &'static str,
        /// The part that made no sense.
        value: String,
    },
}

/// When it makes sense to try the same thing again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once.
    Now,
    /// After a pause.
    Backoff,
    /// After a person changed something.
    Operator,
    /// Never: another way is needed.
    Never,
}

impl Error {
    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::NotInstalled { .. }
            | Self::Unsupported { .. }
            | Self::MissingTool { .. }
            | Self::RunAs { .. }
            | Self::SocketPath { .. }
            | Self::Directory { .. }
            | Self::Past { .. }
            | Self::Setting { .. }
            | Self::Leftover { .. } => Retry::Operator,
            Self::Io { .. }
            | Self::Tool { .. }
            | Self::Connect(_)
            | Self::Timeout { .. }
            | Self::NotRunning(_) => Retry::Backoff,
            Self::Sql { source, .. } if source.is_closed() => Retry::Now,
            Self::Sql { .. } | Self::Unreadable { .. } => Retry::Backoff,
            Self::RewindFailed { .. } | Self::Promote { .. } | Self::Running(_) => Retry::Never,
        }
    }

    /// Whether the server answered that all its connections are taken: it lives.
    pub fn is_server_full(&self) -> bool {
        let code = match self {
            Self::Connect(source) | Self::Sql { source, .. } => source.code(),
            _ => None,
        };
        code == Some(&tokio_postgres::error::SqlState::TOO_MANY_CONNECTIONS)
    }

    /// What a person should do, as one sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotInstalled { .. } | Self::Unsupported { .. } => {
                "Install the package postgresql-15 or newer, or name its bin directory in the \
                 configuration."
            }
            Self::MissingTool { .. } => {
                "Install the server package (postgresql-15 or newer), not only the client."
            }
            Self::RunAs { .. } => {
                "PostgreSQL refuses to run as root: create the user postgres, or name another in \
                 the configuration."
            }
            Self::SocketPath { .. } => "Choose a directory with a shorter path.",
            Self::Directory { .. } => {
                "Choose another directory, or move what is in it away yourself."
            }
            Self::Past { hint, .. } => hint,
            Self::Setting { .. } => "Correct the parameter, or remove it.",
            Self::Io { .. } => "Check the directory's owner, permissions and free space.",
            Self::Tool { .. } => "Read the program's message; it is tried again.",
            Self::RewindFailed { .. } => "The node is cloned anew from the writer.",
            Self::Connect(_) | Self::Sql { .. } | Self::Timeout { .. } | Self::NotRunning(_) => {
                "Read the PostgreSQL log of this node."
            }
            Self::Running(_) => "Stop the server first.",
            Self::Leftover { .. } => "End that process, then start Quorate again.",
            Self::Promote { .. } => "Nothing: the cluster holds another election.",
            Self::Unreadable { .. } => "Report this with the version of PostgreSQL.",
        }
    }

    /// A curried maker for `map_err` around file operations.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
