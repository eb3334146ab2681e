//! A node at work: gather what is known, decide in pure code, perform.
//!
//! ```text
//! consensus ─┐                                   ┌─▶ database (server, relays)
//! heartbeats ┼─▶ gather ─▶ core::node::decide ─▶ perform ─▶ gate, aggregator, tunnels
//! server ────┘                                   └─▶ consensus (proposals)
//! ```
//!
//! Invariants: nothing is decided here; a promise is on disk before any word of its term leaves the
//! node; the gate is closed before a surrender is said.

pub mod coordinate;
pub mod database;
pub mod feed;
pub mod health;
pub mod limits;
pub mod node;
pub mod perform;
pub mod promise;
pub mod reign;
pub mod run;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod tunnel;
pub mod view;

pub use database::Database;
pub use node::{Node, Order, Parts};
