//! What a replica's lag was: minutes in full, days in brief, in fixed memory.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::limits::{LAG_LEVELS, LAG_POINTS_ASKED_MAX};
use crate::state::WallMillis;

/// The lag of one replica at a moment, or the worst of it in the time from then on that a coarser
/// record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Point {
    /// When, by the wall clock of the node that remembers it.
    pub at: WallMillis,
    /// How late what it shows was, in milliseconds.
    pub replay_ms: u64,
    /// How late what is on its disk was, in milliseconds.
    pub disk_ms: u64,
    /// Bytes of log that it had not replayed.
    pub bytes: u64,
}

impl Point {
    /// The worse of each; the time of this one.
    fn worse(self, other: Self) -> Self {
        Self {
            at: self.at,
            replay_ms: self.replay_ms.max(other.replay_ms),
            disk_ms: self.disk_ms.max(other.disk_ms),
            bytes: self.bytes.max(other.bytes),
        }
    }
}

/// How late a replica was at most in so many parts of the last minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of the time it was no later, in milliseconds.
    pub p50_ms: u64,
    /// 95 of 100 parts of the time.
    pub p95_ms: u64,
    /// 99 of 100 parts of the time.
    pub p99_ms: u64,
    /// At any time.
    pub max_ms: u64,
}

/// The record of one replica.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// From the finest to the coarsest, each with its newest point last.
    levels: [VecDeque<Point>; LAG_LEVELS.len()],
}

impl History {
    /// Remembers a point. Points come in the order of their times; one that is earlier than the last
    /// (a clock that was set back) counts to the last.
    pub fn add(&mut self, point: Point) {
        for (level, (every, most)) in self.levels.iter_mut().zip(LAG_LEVELS) {
            let period = every.as_millis() as u64;
            match level.back_mut() {
                Some(last) if point.at < last.at + period => *last = last.worse(point),
                Some(_) | None => {
                    let at = point.at - point.at % period;
                    level.push_back(Point { at, ..point });
                }
            }
            if level.len() > most {
                level.pop_front();
            }
        }
    }

    /// The last point.
    pub fn last(&self) -> Option<Point> {
        self.levels[0].back().copied()
    }

    /// What is known from `from` on, in the finest record that reaches back so far, and no more than
    /// `most` points: the worst of neighbours where there are more.
    pub fn since(&self, from: WallMillis, most: usize) -> Vec<Point> {
        let reaches = |level: &&VecDeque<Point>| level.front().is_some_and(|p| p.at <= from);
        let oldest = |level: &&VecDeque<Point>| level.front().map_or(WallMillis::MAX, |p| p.at);
        let finest = self.levels.iter().find(reaches);
        // Nothing reaches back so far: whatever reaches farthest, the finest of these.
        let Some(level) = finest.or_else(|| self.levels.iter().min_by_key(oldest)) else {
            return Vec::new();
        };
        let first = level.partition_point(|p| p.at < from);
        let most = most.clamp(1, LAG_POINTS_ASKED_MAX);
        let share = (level.len() - first).div_ceil(most).max(1);
        let points: Vec<Point> = level.range(first..).copied().collect();
        points
            .chunks(share)
            .filter_map(|chunk| chunk.iter().copied().reduce(Point::worse))
            .collect()
    }

    /// Of the finest record.
    pub fn percentiles(&self) -> Percentiles {
        let mut late: Vec<u64> = self.levels[0].iter().map(|p| p.replay_ms).collect();
        late.sort_unstable();
        let at = |part: usize| late.get((late.len() * part / 100).min(late.len().max(1) - 1));
        let at = |part| at(part).copied().unwrap_or_default();
        Percentiles {
            p50_ms: at(50),
            p95_ms: at(95),
            p99_ms: at(99),
            max_ms: late.last().copied().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at: WallMillis, replay_ms: u64) -> Point {
        Point { at, replay_ms, disk_ms: replay_ms / 2, bytes: replay_ms * 10 }
    }

    #[test]
    fn a_spike_is_still_there_days_later() {
        let mut history = History::default();
        let start = 1_800_000_000_000;
        let days = 3 * 24 * 60 * 60 * 1000;
        for at in (0..days).step_by(250) {
            let spike = if (7_200_000..7_201_000).contains(&at) { 9000 } else { 3 };
            history.add(point(start + at, spike));
        }
        let all = history.since(start, 500);
        assert!(all.len() <= 500 && all.len() > 250, "{}", all.len());
        assert_eq!(all.iter().map(|p| p.replay_ms).max(), Some(9000));
        // Half a minute ago is known in full.
        let recent = history.since(start + days - 30_000, 1000);
        assert_eq!(recent.len(), 120);
        assert_eq!(recent.last().map(|p| p.at), Some(start + days - 250));
        for (level, (_, most)) in history.levels.iter().zip(LAG_LEVELS) {
            assert!(level.len() <= most);
        }
        assert_eq!(
            history.percentiles(),
            Percentiles { p50_ms: 3, p95_ms: 3, p99_ms: 3, max_ms: 3 }
        );
    }

    #[test]
    fn percentiles_are_of_times_that_were() {
        let mut history = History::default();
        assert_eq!(history.percentiles(), Percentiles::default());
        for i in 1..=100 {
            history.add(point(i * 250, i));
        }
        let got = history.percentiles();
        assert_eq!(got, Percentiles { p50_ms: 51, p95_ms: 96, p99_ms: 100, max_ms: 100 });
    }

    #[test]
    fn a_clock_that_was_set_back_loses_nothing() {
        let mut history = History::default();
        history.add(point(10_000, 5));
        history.add(point(4_000, 700));
        assert_eq!(history.last(), Some(Point { at: 10_000, ..point(10_000, 700) }));
        assert_eq!(history.since(0, 10).len(), 1);
    }
}
