//! The gateway: whatever way a statement is sent, through whichever node, it must answer as one
//! PostgreSQL would, although it shares servers between clients and reads between nodes.
//!
//! The tests of this directory share a cluster of a writer and a replica, which lives while any of
//! them runs. Each has a schema of its own.

mod frames;
mod isolation;
mod jepsen;
mod read_only;
mod reads;
mod replication;
mod rig;
mod session;
mod slow;
mod writes;
