//! Histories: what clients asked a database for, when, and what they were told; and checks whether
//! it kept what it promised.
//!
//! A check knows nothing of how the database works. It infers from the answers alone what must have
//! happened, and names what cannot have happened in a database that keeps its promise. Two rules
//! hold everywhere:
//!
//! - An operation whose outcome is not known may have happened at any time after it was begun, or
//!   never. Only what was surely refused is held against the database when it shows up.
//! - What the promise permits is found and named all the same, so that nobody takes it for absent.
//!
//! There is no clock, no randomness and no IO in this crate: the same history has the same verdict.
//!
//! | module | finds |
//! |---|---|
//! | [`append`] | anomalies of isolation, from transactions that read lists and append to them |
//! | [`set`] | acknowledged rows that are missing |
//! | [`register`] | reads older than their level of consistency allows |
//! | [`linear`] | registers that do not behave as one register would |
//! | [`bank`] | money that appears or vanishes |
//! | [`counter`] | increments that are lost or made twice |
//! | [`ambiguous`] | wrong answers to a COMMIT whose connection was lost |

pub mod ambiguous;
pub mod append;
pub mod bank;
pub mod counter;
pub mod file;
pub mod limits;
pub mod linear;
pub mod operation;
pub mod register;
pub mod report;
pub mod set;

mod graph;

pub use file::{Promise, Recorded};
pub use operation::{Fault, History, Moment, Operation, Outcome, Process, Server, Tally};
pub use report::{Anomaly, Report};
