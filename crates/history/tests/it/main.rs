//! Every check against histories that are known to be good, known to be bad, or were good until they
//! were damaged.

#![allow(clippy::unwrap_used)]

mod append;
mod known;
mod linear;
mod mutations;
mod simulator;
