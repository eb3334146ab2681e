//! Links between nodes over real sockets.

// Helpers of tests are tests, which clippy cannot see.
#![allow(clippy::unwrap_used)]

mod cable;
mod heartbeats;
mod streams;
mod support;
