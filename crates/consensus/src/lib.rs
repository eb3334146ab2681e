//! The replicated log as a small port, and the Raft adapter with its store behind it.
//!
//! A few entries a second at most: what the cluster agrees on, never what merely changes often.
//! This is the only crate that knows the Raft library and the storage engine, and it does not know
//! how streams to other nodes are made or secured: it is given a [`Dial`] and handed streams to
//! [serve](Log::serve).
//!
//! Invariants: a vote and an entry are on disk before they are acknowledged; a store that cannot
//! be trusted is refused, never replaced; a node with another store than it joined with does not
//! count; a proposal is repeated only while it is certain that no node has taken it.

mod disk;
mod error;
pub mod limits;
mod log;
mod machine;
mod members;
mod network;
mod options;
mod peers;
mod poll;
mod raft;
mod serve;
mod state;
mod store;
mod warden;
mod wire;

pub use error::{Error, Kind, Retry};
pub use log::{Log, Status};
pub use machine::Machine;
pub use options::{Compaction, Options, Timing};
pub use peers::{Dial, Dialling};
pub use wire::Stream;

/// The log of the cluster's state.
pub type Consensus = Log<quorate_core::State>;
