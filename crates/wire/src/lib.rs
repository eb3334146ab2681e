//! Bytes of the PostgreSQL protocol (version 3): frames, startup packets, what a server says,
//! the server's side of password authentication, and the messages of streaming replication.
//!
//! Pure: no IO, no clock, no randomness, no async. Whoever owns a socket feeds bytes in and writes bytes out.
//! Nothing here decodes rows of applications; a relay sees boundaries and the few bodies it asks
//! to see.

pub mod auth;
pub mod backend;
pub mod binding;
pub mod error;
pub mod frame;
pub mod limits;
pub mod replication;
pub mod scram;
pub mod sql;
pub mod startup;
pub mod verifier;

pub use error::{Error, Retry};
pub use frame::{Event, Message, Splitter, Step};
pub use startup::{CancelKey, FirstPacket, Startup};
