//! The gateway with a real PostgreSQL server behind it.

#![allow(clippy::unwrap_used)] // all of it is a test

mod door;
mod raw;
mod relayed;

#[path = "../../../replication/tests/it/server.rs"]
#[allow(dead_code)] // shared with the tests of another crate
mod server;
