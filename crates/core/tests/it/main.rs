//! Tests of the decisions through the crate's public face.

#![allow(clippy::unwrap_used)]

mod authority;
mod coordinator;
mod fixture;
mod lease;
mod model;
mod node;
mod plan;
mod state;
