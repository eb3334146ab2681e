//! How busy the gateway was, and how long writing transactions took: half an hour, in fixed memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_agent::node::wall_millis;
use quorate_core::state::WallMillis;
use quorate_gateway::{Latency, Meter, Metrics};

use super::limits::{TREND_EVERY, TREND_POINTS_MAX};

/// A few seconds of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tick {
    /// When they ended, by the wall clock.
    pub at: WallMillis,
    /// Transactions in each second.
    pub rate: f64,
    /// Half of the writing transactions took no longer, in microseconds; `None`: there were none.
    pub half_us: Option<u64>,
    /// 99 of 100 of them.
    pub most_us: Option<u64>,
}

/// What is remembered, oldest first.
#[derive(Debug, Default)]
pub struct Trend(Mutex<VecDeque<Tick>>);

impl Trend {
    /// All of it.
    pub fn ticks(&self) -> Vec<Tick> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    fn add(&self, tick: Tick) {
        let mut ticks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ticks.len() >= TREND_POINTS_MAX {
            ticks.pop_front();
        }
        ticks.push_back(tick);
    }
}

/// Counts of everything, and of writing transactions.
#[derive(Debug, Default)]
struct Sum {
    all: u64,
    writes: Latency,
}

impl Sum {
    fn of(metrics: &Metrics) -> Self {
        let mut sum = Self::default();
        for route in metrics.accounts.iter().flat_map(|a| &a.routes) {
            sum.all += route.transaction.count();
            if route.because == "writes" {
                sum.writes.add(&route.transaction);
            }
        }
        sum
    }

    /// What came since an earlier one, so many seconds before.
    fn since(&self, earlier: &Self, seconds: f64, at: WallMillis) -> Tick {
        let writes = self.writes.since(&earlier.writes);
        let some = writes.count() > 0;
        let rate = self.all.saturating_sub(earlier.all) as f64 / seconds.max(0.001);
        Tick {
            at,
            rate,
            half_us: some.then(|| writes.quantile_us(0.5)),
            most_us: some.then(|| writes.quantile_us(0.99)),
        }
    }
}

/// Remembers until the process ends.
pub async fn keep(meter: Meter, trend: Arc<Trend>) {
    let mut before = Sum::of(&meter.read().await);
    let mut began = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(TREND_EVERY).await;
        let now = Sum::of(&meter.read().await);
        trend.add(now.since(&before, began.elapsed().as_secs_f64(), wall_millis()));
        (before, began) = (now, tokio::time::Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_hour_is_kept() {
        let trend = Trend::default();
        (0..TREND_POINTS_MAX as u64 + 5).for_each(|at| trend.add(Tick { at, ..Tick::default() }));
        let ticks = trend.ticks();
        assert_eq!(ticks.len(), TREND_POINTS_MAX);
        assert_eq!(ticks[0].at, 5);
    }

    #[test]
    fn an_idle_gateway_has_no_times() {
        let before = Sum { all: 100, ..Sum::default() };
        let tick = Sum { all: 150, ..Sum::default() }.since(&before, 10.0, 7);
        assert_eq!(tick, Tick { at: 7, rate: 5.0, half_us: None, most_us: None });
    }
}
