//! Round-trips between regions.

use std::collections::BTreeMap;
use std::time::Duration;

/// Measured round-trips, by the two regions in alphabetical order, and what is assumed of the
/// others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trips {
    pub(super) known: BTreeMap<(String, String), Duration>,
    pub(super) within: Duration,
    pub(super) between: Duration,
}

impl Trips {
    /// The round-trip between two regions, or within one.
    pub(super) fn of(&self, a: &str, b: &str) -> Duration {
        let assumed = if a == b { self.within } else { self.between };
        self.known.get(&pair(a, b)).copied().unwrap_or(assumed)
    }
}

/// The same pair whichever way round it was given.
pub(super) fn pair(a: &str, b: &str) -> (String, String) {
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    (low.to_owned(), high.to_owned())
}

/// The `count`-th fastest of some round-trips; the slowest when there are fewer, nothing for none.
pub(super) fn fastest(mut trips: Vec<Duration>, count: usize) -> Duration {
    trips.sort_unstable();
    match count {
        0 => Duration::ZERO,
        _ => trips.get(count - 1).or(trips.last()).copied().unwrap_or_default(),
    }
}
