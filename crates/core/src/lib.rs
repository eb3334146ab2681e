//! What should happen in a cluster: the replicated state and every decision about it.
//!
//! Pure code from plain data to plain data: no IO, no clock, no randomness, no async, no logging.
//! The same functions run in production, in the model checker and in the simulator.

pub mod access;
pub mod alert;
pub mod ancestry;
pub mod authority;
pub mod backfill;
pub mod because;
pub mod candidates;
pub mod contract;
pub mod coordinator;
pub mod document;
pub mod drill;
pub mod gateway;
pub mod health;
pub mod ids;
pub mod invariant;
pub mod lag;
pub mod lease;
pub mod limits;
pub mod node;
pub mod plan;
pub mod report;
pub mod role;
pub mod rule;
pub mod shows;
pub mod slots;
pub mod state;
pub mod status;
pub mod time;
pub mod upstream;
pub mod validation;
pub mod words;

pub use because::Because;
pub use ids::{Lsn, NodeId, Term, TimelineId};
pub use report::{Position, Report};
pub use rule::{Policy, Rule};
pub use state::{Answer, Change, Command, State};
pub use time::Moment;
