//! Whole clusters in one thread: the real decisions on a simulated world.
//!
//! What decides in production decides here: `quorate_core`'s nodes, coordinator, replicated state,
//! leases and commit rules. Around it everything is simulated and faulty: network, disks, clocks,
//! consensus, PostgreSQL. A history is a cluster that lives through faults by chance; then
//! everything is repaired, and it must serve again with every write that was acknowledged. The
//! same seed makes the same history.
//!
//! After the simulators of FoundationDB (Zhou et al., SIGMOD 2021) and TigerBeetle.

mod agent;
mod check;
mod client;
mod event;
mod fate;
mod faults;
mod flaw;
mod history;
mod host;
mod raft;
mod server;
mod trace;
mod wal;
mod world;

pub use flaw::{FLAWS, Flaw};
pub use history::{Outcome, Recipe, play};
pub use trace::Trace;
