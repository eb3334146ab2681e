//! How late a replica is, in time: from when the writer's log ended where, and where the replica is.
//!
//! Nothing is asked of PostgreSQL for it, and an idle writer makes no replica late. The clock is the
//! writer's alone: times of other hosts do not enter.

mod cause;
mod history;

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{LAG_GAP, LAG_MARKS_MAX, LAG_SHARE};
use crate::{Lsn, Moment};

pub use cause::{Cause, Kind as CauseKind, cause};
pub use history::{History, Percentiles, Point};

/// How far behind a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Behind {
    /// Bytes of log that it lacks.
    pub bytes: u64,
    /// Since when it lacks the first of them, at the most.
    pub time: Duration,
    /// It has lacked that for longer than is known: `time` is the least.
    pub or_more: bool,
}

/// Where a writer's log ended over time. Bounded: what is long ago is known less exactly, to one part
/// in [`LAG_SHARE`] of its age.
#[derive(Debug, Clone, Default)]
pub struct Ends {
    /// Oldest first; positions and times grow.
    marks: VecDeque<Mark>,
}

/// The log ended here from `since` to `until`, as far as was seen.
#[derive(Debug, Clone, Copy)]
struct Mark {
    end: Lsn,
    since: Moment,
    until: Moment,
}

impl Ends {
    /// The log ends at `end` now. A smaller end than before is an older sample, and says nothing.
    pub fn note(&mut self, end: Lsn, now: Moment) {
        match self.marks.back_mut() {
            Some(last) if end < last.end => return,
            // Growth within the gap is not told apart.
            Some(last) if end == last.end || now.since(last.since) < LAG_GAP => {
                (last.end, last.until) = (end, now.max(last.until));
                return;
            }
            Some(_) | None => self.marks.push_back(Mark { end, since: now, until: now }),
        }
        if self.marks.len() > LAG_MARKS_MAX {
            self.thin(now);
        }
    }

    /// How far behind a replica is that has everything up to `at`.
    pub fn behind(&self, at: Lsn, now: Moment) -> Behind {
        let Some(last) = self.marks.back().filter(|last| at < last.end) else {
            return Behind::default();
        };
        let bytes = last.end.bytes_since(at);
        // The first byte that it lacks was written after the last moment at which the log ended at
        // or before `at`.
        let known = self.marks.partition_point(|mark| mark.end <= at);
        match known.checked_sub(1).map(|i| self.marks[i].until) {
            Some(still) => Behind { bytes, time: now.since(still), or_more: false },
            None => Behind { bytes, time: now.since(self.marks[0].since), or_more: true },
        }
    }

    /// How old what a replica shows is at the most that has everything up to `at`: the time since the
    /// log was last seen to end no later. `None` when it ended later whenever it was looked at.
    pub fn age(&self, at: Lsn, now: Moment) -> Option<Duration> {
        let known = self.marks.partition_point(|mark| mark.end <= at);
        Some(now.since(self.marks.get(known.checked_sub(1)?)?.until))
    }

    /// Drops marks that lie close together for their age; when that is not enough, the oldest. A replica
    /// that stands where one was seems later than it is, by no more than that distance.
    fn thin(&mut self, now: Moment) {
        let Some(last) = self.marks.pop_back() else { return };
        let mut kept: VecDeque<Mark> = VecDeque::with_capacity(LAG_MARKS_MAX);
        for mark in self.marks.drain(..) {
            let least = now.since(mark.until) / LAG_SHARE;
            if kept.back().is_none_or(|before| mark.until.since(before.until) >= least) {
                kept.push_back(mark);
            }
        }
        kept.push_back(last);
        while kept.len() > LAG_MARKS_MAX / 4 * 3 {
            kept.pop_front();
        }
        self.marks = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(at: u64) -> Moment {
        Moment(at * 1_000_000)
    }

    fn time(behind: Behind) -> u64 {
        behind.time.as_millis() as u64
    }

    #[test]
    fn who_has_everything_is_not_behind_however_long_nothing_is_written() {
        let mut ends = Ends::default();
        assert_eq!(ends.behind(Lsn(0), ms(5)), Behind::default());
        ends.note(Lsn(100), ms(0));
        ends.note(Lsn(100), ms(60_000));
        assert_eq!(ends.behind(Lsn(100), ms(60_010)), Behind::default());
        // A byte is written after a minute: who lacks it lacks it since then, not for a minute.
        ends.note(Lsn(101), ms(60_020));
        let behind = ends.behind(Lsn(100), ms(60_030));
        assert_eq!((behind.bytes, time(behind), behind.or_more), (1, 30, false));
        // A sample that arrives late changes nothing.
        ends.note(Lsn(100), ms(60_040));
        assert_eq!(time(ends.behind(Lsn(100), ms(60_040))), 40);
    }

    #[test]
    fn before_the_first_sample_the_least_is_told() {
        let mut ends = Ends::default();
        ends.note(Lsn(100), ms(1000));
        let behind = ends.behind(Lsn(40), ms(1500));
        assert_eq!((behind.bytes, time(behind), behind.or_more), (60, 500, true));
    }

    #[test]
    fn memory_is_bounded_and_a_day_ago_is_still_known() {
        let mut ends = Ends::default();
        let day = 86_400_000;
        for at in (0..day).step_by(50) {
            ends.note(Lsn(at), ms(at));
            assert!(ends.marks.len() <= LAG_MARKS_MAX);
        }
        for age in [100, 10_000, 3_600_000, day - 200] {
            let behind = ends.behind(Lsn(day - age), ms(day));
            assert!(!behind.or_more, "{age}");
            let most = age + age / u64::from(LAG_SHARE) * 2 + 100;
            assert!((age..=most).contains(&time(behind)), "{age}: {behind:?}");
        }
    }

    proptest! {
        /// Never earlier than it is; later by the pace of samples and the gap at the most.
        #[test]
        fn no_replica_seems_less_late_than_it_is(
            writes in proptest::collection::vec((0u64..400, 1u64..50), 1..60),
            pace in 1u64..40, at in 0u64..1500, after in 0u64..500,
        ) {
            let mut written = vec![(0, 0)];
            for (pause, bytes) in writes {
                let (when, end) = *written.last().unwrap();
                written.push((when + pause, end + bytes));
            }
            let end_at = |t: u64| written.iter().rev().find(|(w, _)| *w <= t).unwrap().1;
            let now = written.last().unwrap().0 + after;
            let mut ends = Ends::default();
            let mut sampled = 0;
            for t in (0..=now).step_by(pace as usize) {
                ends.note(Lsn(end_at(t)), ms(t));
                sampled = t;
            }
            let behind = ends.behind(Lsn(at), ms(now));
            match written.iter().find(|(_, end)| *end > at) {
                // It lacks what no sample has seen yet, or nothing.
                _ if at >= end_at(sampled) => prop_assert_eq!(behind, Behind::default()),
                None => prop_assert_eq!(behind, Behind::default()),
                Some((missed, _)) => {
                    let late = now - missed;
                    prop_assert!(time(behind) >= late, "{behind:?} {late}");
                    let most = late + 2 * pace + LAG_GAP.as_millis() as u64;
                    prop_assert!(time(behind) <= most, "{behind:?} {late}");
                }
            }
        }
    }
}
