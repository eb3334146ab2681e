//! How fast a batched statement goes on: as fast as the contracts of all copies allow, in portions that
//! hold locks for a moment only.

use std::time::Duration;

use crate::contract::Contract;
use crate::status::Lag;

/// Portions grow and shrink until one takes about so long.
pub const PORTION_TIME: Duration = Duration::from_millis(250);
/// The smallest portion.
pub const PORTION_MIN: u64 = 10;
/// The largest portion, unless a person says otherwise.
pub const PORTION_MAX: u64 = 100_000;
/// A portion is at most so many times as large as the one before.
const GROWTH_MAX: u64 = 2;

/// How much of what a contract allows a copy has used up, in per cent: of whichever limit is nearer.
pub fn used(contract: &Contract, lag: &Lag) -> u64 {
    let part = |of: u64, max: Option<u64>| match max {
        Some(max) if max > 0 => of.saturating_mul(100) / max,
        Some(_) | None => 0,
    };
    let limit = contract.max_lag.map(|max| max.as_millis() as u64);
    let by_time = part(lag.replay_ms, limit);
    let by_bytes = part(lag.bytes, contract.max_bytes);
    let broken = if lag.broken_ms.is_some() { 100 } else { 0 };
    by_time.max(by_bytes).max(broken)
}

/// Decides portion by portion.
#[derive(Debug, Clone)]
pub struct Throttle {
    portion: u64,
    most: u64,
    /// Per cent of a contract beyond which it waits.
    share: u64,
    waiting: bool,
}

impl Throttle {
    /// Begins with portions of `first` rows; waits while any contract is used up to `share` per cent.
    pub fn new(first: u64, most: u64, share: u64) -> Self {
        let most = most.max(1);
        Self { portion: first.clamp(1, most), most, share: share.clamp(1, 100), waiting: false }
    }

    /// Rows of the next portion.
    pub fn portion(&self) -> u64 {
        self.portion
    }

    /// Whether to wait, with so much of the tightest contract used up. Once it waits, it does until
    /// half of that is free again: otherwise it would stand at the limit.
    pub fn waits(&mut self, used: u64) -> bool {
        let limit = if self.waiting { self.share / 2 } else { self.share };
        self.waiting = used >= limit.max(1);
        self.waiting
    }

    /// A portion took so long.
    pub fn took(&mut self, time: Duration) {
        let ms = time.as_millis().max(1) as u64;
        let fits = self.portion.saturating_mul(PORTION_TIME.as_millis() as u64) / ms;
        let most = self.portion.saturating_mul(GROWTH_MAX).min(self.most);
        self.portion = fits.clamp(PORTION_MIN.min(self.most), most.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::ContractSpec;
    use crate::role::Role;

    #[test]
    fn the_nearest_limit_counts() {
        let spec = ContractSpec {
            max_lag_ms: Some(10_000),
            max_lag_bytes: Some(1000),
            ..ContractSpec::default()
        };
        let contract = spec.of(Role::Read, Duration::ZERO);
        let lag = |replay_ms, bytes| Lag { replay_ms, bytes, ..Lag::default() };
        assert_eq!(used(&contract, &lag(2500, 100)), 25);
        assert_eq!(used(&contract, &lag(2500, 900)), 90);
        assert_eq!(used(&contract, &Lag { broken_ms: Some(0), ..lag(0, 0) }), 100);
        let free = ContractSpec { max_lag_ms: Some(0), ..ContractSpec::default() };
        assert_eq!(used(&free.of(Role::Read, Duration::ZERO), &lag(1 << 40, 1 << 40)), 0);
    }

    #[test]
    fn it_waits_until_half_is_free_again() {
        let mut throttle = Throttle::new(1000, PORTION_MAX, 50);
        assert!(!throttle.waits(49));
        assert!(throttle.waits(50));
        assert!(throttle.waits(30));
        assert!(!throttle.waits(24));
        assert!(!throttle.waits(49));
    }

    #[test]
    fn portions_take_about_a_quarter_of_a_second() {
        let mut throttle = Throttle::new(1000, 20_000, 50);
        throttle.took(Duration::from_millis(10));
        assert_eq!(throttle.portion(), 2000, "it at most doubles");
        throttle.took(Duration::from_millis(2000));
        assert_eq!(throttle.portion(), 250);
        for _ in 0..20 {
            throttle.took(Duration::from_micros(3));
        }
        assert_eq!(throttle.portion(), 20_000);
        throttle.took(Duration::from_secs(3600));
        assert_eq!(throttle.portion(), PORTION_MIN);
    }
}
