//! End-to-end harness: clusters of real `quorate` and PostgreSQL processes on loopback, faults, and
//! the checks that decide whether the promises held.
//!
//! Every link between two nodes runs through a [`cable::Cable`] that the harness owns, and so does
//! every application's way to a gateway, so a host can fall silent without root or network
//! namespaces:
//!
//! ```text
//! application ──cable──▶ gateway n1        n1 ──cable──▶ link n2      (one cable for each
//!                                          n2 ──cable──▶ link n1       ordered pair)
//! ```
//!
//! The harness is a black box test: it knows the command line, the status page, the ports and the
//! place of the data directory, nothing else. Its API blocks; cables and workloads run on a
//! background runtime of their own. Test code is synchronous and waits on conditions, never on time.

pub mod attack;
pub mod binary;
pub mod cable;
pub mod check;
pub mod cluster;
pub mod ledger;
pub mod limits;
pub mod local;
pub mod play;
pub mod postgres;
pub mod process;
pub mod scenario;
pub mod status;
pub mod wire;
pub mod workload;

mod runtime;

pub use cluster::{Builder, Cluster};
pub use quorate_scenario::random;
pub use scenario::Scenario;
pub use workload::Workload;
