//! Scenarios: what is done to a cluster, in words.
//!
//! One language for the simulator, for tests with real servers and for drills. A scenario is a
//! paragraph of intent, an empty line, and a step on each line:
//!
//! ```text
//! The writer's host is lost and comes back with a longer log than anybody else's:
//! nothing that was acknowledged may be missing.
//!
//! cluster 3
//! lose n1
//! wait until n2 or n3 is writer
//! start n1
//! expect no loss
//! ```
//!
//! Pure: words to values and back. Whoever runs a scenario says which words it can perform.

mod deed;
pub mod random;
mod read;
mod scenario;

pub use deed::{Deed, Who};
pub use read::Misread;
pub use scenario::{Condition, Expectation, Scenario, Shape, Step};
