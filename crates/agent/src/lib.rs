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

pub mod alerts;
pub mod carry;
pub mod coordinate;
pub mod database;
mod durable;
pub mod feed;
pub mod health;
mod knock;
pub mod lag;
pub mod limits;
pub mod node;
pub mod perform;
pub mod promise;
pub mod reign;
pub mod run;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod slots;
pub mod tunnel;
pub mod validation;
pub mod view;

pub use database::Database;
pub use node::{Node, Order, Parts};
