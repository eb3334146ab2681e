//! The gateway with a real PostgreSQL server behind it.

#![allow(clippy::unwrap_used)] // all of it is a test

mod console;
mod cut;
mod door;
mod faults;
mod full;
mod governed;
mod logins;
mod metrics;
mod pins;
mod prepared;
mod raw;
mod read_only;
mod reads;
mod relayed;
mod replication;
mod settings;

#[path = "../../../replication/tests/it/server.rs"]
#[allow(dead_code)] // shared with the tests of another crate
mod server;
