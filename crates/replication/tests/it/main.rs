//! The data path with real PostgreSQL servers.

#![allow(clippy::unwrap_used)] // all of it is a test

mod commit;
mod relay;
mod server;
