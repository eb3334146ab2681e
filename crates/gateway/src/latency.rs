//! How long things took: counts in buckets that grow with what they count.
//!
//! Log-linear: each power of two is divided into [`PARTS`] equal buckets, so that what is read from
//! them is never more than an eighth too large. Noting one costs a few instructions, and no clock.

use std::cell::Cell;

/// Buckets of a power of two.
const PARTS: u64 = 8;
/// The same as a shift.
const PARTS_BITS: u32 = PARTS.trailing_zeros();
/// Powers of two: up to 2^36 µs, which is 19 hours.
const POWERS: u32 = 36;
/// All buckets: those below [`PARTS`] hold one microsecond each.
const BUCKETS: usize = ((POWERS - PARTS_BITS + 1) as usize + 1) * PARTS as usize;

/// Counts of one thread, in microseconds.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[Cell<u64>]>,
    sum: Cell<u64>,
    max: Cell<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| Cell::new(0)).collect();
        Self { buckets, sum: Cell::new(0), max: Cell::new(0) }
    }
}

impl Histogram {
    /// One more that took so many microseconds.
    pub(crate) fn note(&self, micros: u64) {
        if let Some(bucket) = self.buckets.get(place(micros)) {
            bucket.set(bucket.get() + 1);
        }
        self.sum.set(self.sum.get().saturating_add(micros));
        self.max.set(self.max.get().max(micros));
    }

    /// Adds what was counted to a snapshot.
    pub(crate) fn add_to(&self, latency: &mut Latency) {
        latency.buckets.resize(BUCKETS, 0);
        for (sum, bucket) in latency.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.get();
        }
        latency.sum_us = latency.sum_us.saturating_add(self.sum.get());
        latency.max_us = latency.max_us.max(self.max.get());
    }
}

/// The bucket of a number of microseconds.
fn place(micros: u64) -> usize {
    if micros < PARTS {
        return micros as usize;
    }
    let power = micros.ilog2().min(POWERS);
    let within =
        if micros.ilog2() > POWERS { PARTS - 1 } else { (micros >> (power - PARTS_BITS)) - PARTS };
    ((power - PARTS_BITS + 1) as u64 * PARTS + within) as usize
}

/// One past the greatest number of microseconds of a bucket.
fn end(place: usize) -> u64 {
    let place = place as u64;
    if place < PARTS {
        return place + 1;
    }
    let shift = place / PARTS - 1;
    (PARTS + place % PARTS + 1) << shift
}

/// How long things took, of all threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latency {
    buckets: Vec<u64>,
    sum_us: u64,
    max_us: u64,
}

impl Latency {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// The longest, in microseconds.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// What so large a part of them did not exceed, in microseconds: at most an eighth too large.
    pub fn quantile_us(&self, part: f64) -> u64 {
        let wanted = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = self.buckets.iter().position(|n| {
            seen += n;
            seen >= wanted
        });
        at.map_or(0, |at| (end(at) - 1).min(self.max_us))
    }

    /// Buckets that are not empty: the greatest number of microseconds of each, and how many there
    /// are up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut seen = 0;
        self.buckets.iter().enumerate().filter(|(_, n)| **n > 0).map(move |(at, n)| {
            seen += n;
            (end(at) - 1, seen)
        })
    }

    /// What was counted since an earlier snapshot of the same. The longest is the one of all.
    pub fn since(&self, earlier: &Latency) -> Latency {
        let before = earlier.buckets.iter().copied().chain(std::iter::repeat(0));
        let buckets = self.buckets.iter().zip(before).map(|(n, b)| n.saturating_sub(b)).collect();
        let sum_us = self.sum_us.saturating_sub(earlier.sum_us);
        Latency { buckets, sum_us, max_us: self.max_us }
    }

    /// Adds another.
    pub fn add(&mut self, other: &Latency) {
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (sum, n) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += n;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_what_was_noted() {
        let (a, b) = (Histogram::default(), Histogram::default());
        (1..=1000).for_each(|micros| if micros % 2 == 0 { a.note(micros) } else { b.note(micros) });
        let mut all = Latency::default();
        assert_eq!(all.quantile_us(0.5), 0);
        a.add_to(&mut all);
        let mut other = Latency::default();
        b.add_to(&mut other);
        all.add(&other);
        assert_eq!((all.count(), all.sum_us(), all.max_us()), (1000, 500_500, 1000));
        assert_eq!(all.quantile_us(0.5), 511);
        assert_eq!(all.quantile_us(1.0), 1000);
        assert_eq!(all.cumulative().last(), Some((1023, 1000)));
    }

    proptest! {
        #[test]
        fn every_number_has_its_bucket(micros in prop_oneof![0..1000u64, any::<u64>()]) {
            let at = place(micros);
            prop_assert!(at < BUCKETS);
            let micros = micros.min((1 << (POWERS + 1)) - 1);
            prop_assert!(micros < end(at));
            let start = if at == 0 { 0 } else { end(at - 1) };
            prop_assert!(micros >= start, "{micros} is below {start}");
            // Never an eighth too large.
            prop_assert!((end(at) - 1 - micros) * PARTS <= micros.max(PARTS));
        }
    }

    #[test]
    fn what_came_since_is_told_by_itself() {
        let histogram = Histogram::default();
        histogram.note(100_000);
        let mut before = Latency::default();
        histogram.add_to(&mut before);
        (0..9).for_each(|_| histogram.note(50));
        let mut after = Latency::default();
        histogram.add_to(&mut after);
        let since = after.since(&before);
        assert_eq!((since.count(), since.sum_us()), (9, 450));
        assert!(since.quantile_us(0.99) < 60);
        assert_eq!(after.since(&Latency::default()), after);
    }
}
