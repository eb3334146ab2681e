//! The data path between a writer and its standbys.
//!
//! ```text
//! standby PostgreSQL --unix--> RelaySocket == tunnel ==> serve_wal --unix--> writer PostgreSQL
//!                                                           | feedback            | unix
//!                                                           v                     v
//!                                                       Aggregator <-- VirtualStandby (`quorate`)
//! ```
//!
//! A commit on the writer waits for the standby called `quorate`. That standby is us: it reports
//! the position that a commit set of real copies holds, which the [`Aggregator`] computes from the
//! feedback that passes through [`serve_wal`]. When this process is dead, hung or fenced, or too
//! few copies exist, the commit waits inside PostgreSQL.
//!
//! This crate knows no TLS and no consensus: streams are given to it, terms and rules too.

pub mod aggregator;
pub mod error;
pub mod limits;
mod local;
pub mod relay_socket;
pub mod serve;
pub mod stream;
pub mod virtual_standby;

pub use aggregator::{Aggregator, Heard, Lagging, Level, LinkGuard, Positions, Quorum, Snapshot};
pub use error::Error;
pub use quorate_wire::Retry;
pub use relay_socket::{RelayOptions, RelaySocket, Target};
pub use serve::{Ended, Purpose, Serve, serve_wal};
pub use stream::{BoxFuture, BoxStream, Stream};
pub use virtual_standby::{StandbyState, VirtualStandby};

/// The role that Quorate's own connections use. Applications must never log in as it.
pub const QUORATE_USER: &str = "quorate";

/// The name of the virtual standby, as it stands in `synchronous_standby_names`.
pub const VIRTUAL_STANDBY: &str = "quorate";
