//! The clocks. Nothing else in this crate reads one, and decisions get their moments from here.

use std::time::SystemTime;

use quorate_core::Moment;
use rustix::time::{ClockId, clock_gettime};

/// Now, on this host's `CLOCK_BOOTTIME`, which counts suspend.
pub fn now() -> Moment {
    let t = clock_gettime(ClockId::Boottime);
    // Time since boot is never negative and fits 64 bits of nanoseconds for 584 years.
    Moment((t.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(t.tv_nsec as u64))
}

/// The wall clock, for the dates in certificates only.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_grow() {
        let a = now();
        std::hint::black_box(wall());
        assert!(now() >= a && a > Moment(0));
    }
}
