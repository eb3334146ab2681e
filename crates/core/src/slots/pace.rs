//! How fast something grows or shrinks, from now and then a look at it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::Moment;
use crate::limits::{SLOT_PACE_EVERY, SLOT_PACE_LEAST, SLOT_PACE_WINDOW};

/// A quantity over the last minutes.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Oldest first, [`SLOT_PACE_EVERY`] apart.
    seen: VecDeque<(Moment, u64)>,
    now: Option<(Moment, u64)>,
}

impl Pace {
    /// It is this much now.
    pub fn note(&mut self, value: u64, now: Moment) {
        self.now = Some((now, value));
        if self.seen.back().is_none_or(|(at, _)| now.since(*at) >= SLOT_PACE_EVERY) {
            self.seen.push_back((now, value));
        }
        while self.seen.front().is_some_and(|(at, _)| now.since(*at) > SLOT_PACE_WINDOW) {
            self.seen.pop_front();
        }
    }

    /// What it has grown by, and in which time; `None` before enough was seen.
    fn change(&self) -> Option<(i128, Duration)> {
        let (since, before) = *self.seen.front()?;
        let (now, value) = self.now?;
        let time = now.since(since);
        (time >= SLOT_PACE_LEAST).then(|| (i128::from(value) - i128::from(before), time))
    }

    /// Bytes a second that it grows by; zero when it does not.
    pub fn grows(&self) -> Option<u64> {
        let (by, time) = self.change()?;
        Some(per_second(by.max(0), time))
    }

    /// Bytes a second that it shrinks by; zero when it does not.
    pub fn shrinks(&self) -> Option<u64> {
        let (by, time) = self.change()?;
        Some(per_second((-by).max(0), time))
    }
}

fn per_second(bytes: i128, time: Duration) -> u64 {
    let ms = i128::try_from(time.as_millis()).unwrap_or(i128::MAX).max(1);
    u64::try_from(bytes * 1000 / ms).unwrap_or(u64::MAX)
}

/// Milliseconds that so many bytes last at so many a second.
pub(super) fn lasts(bytes: u64, per_second: Option<u64>) -> Option<u64> {
    let per_second = per_second.filter(|rate| *rate > 0)?;
    Some(bytes.saturating_mul(1000) / per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    #[test]
    fn a_pace_is_known_after_a_while_and_forgets() {
        let mut pace = Pace::default();
        pace.note(100, at(0));
        pace.note(200, at(1));
        assert_eq!(pace.grows(), None, "one second tells nothing");
        pace.note(1100, at(10));
        assert_eq!((pace.grows(), pace.shrinks()), (Some(100), Some(0)));
        // Long after, what was before does not count.
        for second in 300..900 {
            pace.note(5000 - second, at(second));
        }
        assert_eq!((pace.grows(), pace.shrinks()), (Some(0), Some(1)));
        assert_eq!(lasts(500, pace.shrinks()), Some(500_000));
        assert_eq!(lasts(500, pace.grows()), None, "for ever");
    }

    proptest! {
        #[test]
        fn a_steady_pace_is_what_it_is(rate in 0u64..1_000_000_000, seconds in 10u64..1000) {
            let mut pace = Pace::default();
            for second in 0..=seconds {
                pace.note(second * rate, at(second));
            }
            prop_assert_eq!(pace.grows(), Some(rate));
            prop_assert!(pace.seen.len() as u64 <= 2 + SLOT_PACE_WINDOW.as_secs() / SLOT_PACE_EVERY.as_secs());
        }
    }
}
