//! Named limits of the checks.

/// Examples of one anomaly that a report tells in words; more are counted only.
pub const EXAMPLES_MAX: usize = 3;
/// Edges from which a shortest cycle of one component is searched. A cycle is found from any of
/// them; more only make it shorter.
pub const STARTS_MAX: usize = 256;
/// States of one register that are followed at once before its check gives up.
pub const STATES_MAX: usize = 20_000;
/// Values that words quote from a list; of longer ones the end is told.
pub const QUOTED_MAX: usize = 12;
