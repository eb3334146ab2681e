//! The port at its boundary: real stores on disk, streams in memory that can be cut.

#![allow(clippy::unwrap_used)]

mod cluster;
mod crash;
mod damage;
mod harness;
mod latency;
mod leaders;
mod members;
