//! What a copy owes its users: how late it may be, and what happens when it is later.
//!
//! One judge, beside the writer's log, tells kept from broken; routing, alerts, review and people read
//! its verdict, and none of them judges again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Moment;
use crate::document::Invalid;
use crate::lag::Behind;
use crate::role::Role;
use crate::words::seconds;

/// What happens while a copy is later than its contract allows. An alert is raised in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Its reads go to other copies, or to the writer.
    #[default]
    RouteToWriter,
    /// It goes on serving, and each client that it serves is told (a WARNING with the lag).
    WarnReader,
    /// It goes on serving; logical consumers on the writer wait, so that it can catch up.
    PauseConsumers,
    /// It goes on serving, and the alert is critical.
    Page,
    /// It goes on serving.
    None,
}

impl Action {
    /// The word for it, as in the cluster document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RouteToWriter => "route_to_writer",
            Self::WarnReader => "warn_reader",
            Self::PauseConsumers => "pause_consumers",
            Self::Page => "page",
            Self::None => "none",
        }
    }
}

/// A contract as the cluster document has it: what is left out comes from the node's role.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContractSpec {
    /// What the copy is for, in the words of those who use it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub purpose: String,
    /// Who answers for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub owner: String,
    /// Milliseconds that what it shows may be late. 0: as late as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lag_ms: Option<u64>,
    /// Bytes of log that it may not have replayed yet. 0: as many as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lag_bytes: Option<u64>,
    /// What happens beyond that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Milliseconds within its limits before a broken contract counts as kept again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recover_ms: Option<u64>,
}

/// A contract with every question answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// What the copy is for.
    pub purpose: String,
    /// Who answers for it; empty: nobody was named.
    pub owner: String,
    /// How late what it shows may be; `None`: as late as it likes.
    pub max_lag: Option<Duration>,
    /// Bytes of log that it may not have replayed yet; `None`: as many as it likes.
    pub max_bytes: Option<u64>,
    /// What happens beyond that.
    pub action: Action,
    /// How long it must be within its limits before it counts as kept again.
    pub recover: Duration,
}

/// The least and the most that a limit in time may be.
const LAG_MS: std::ops::RangeInclusive<u64> = 50..=30 * 24 * 60 * 60 * 1000;
const RECOVER_MS_MAX: u64 = 60 * 60 * 1000;

impl ContractSpec {
    /// The contract of a node with this role, whose replay is `delay` late on purpose.
    pub fn of(&self, role: Role, delay: Duration) -> Contract {
        const SECOND: Duration = Duration::from_secs(1);
        let (purpose, lag, action) = match role {
            Role::Ha => ("takes over when the writer fails", SECOND * 10, Action::RouteToWriter),
            Role::Read => ("serves reads", SECOND * 10, Action::RouteToWriter),
            Role::Reporting => ("serves reports", SECOND * 15 * 60, Action::WarnReader),
            Role::Analytics => ("serves analyses", SECOND * 6 * 60 * 60, Action::WarnReader),
            Role::Delayed => ("shows the past", SECOND * 10 * 60, Action::None),
            Role::Dr => ("survives the loss of all others", SECOND * 60, Action::Page),
        };
        let zero_is_none = |n: &u64| *n != 0;
        let max_lag = match self.max_lag_ms {
            Some(ms) => Some(ms).filter(zero_is_none).map(Duration::from_millis),
            None => Some(lag + delay),
        };
        let recover = self.recover_ms.map_or(SECOND * 3, Duration::from_millis);
        Contract {
            purpose: or(&self.purpose, purpose),
            owner: self.owner.clone(),
            max_lag,
            max_bytes: self.max_lag_bytes.filter(zero_is_none),
            action: self.action.unwrap_or(action),
            recover,
        }
    }

    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self, path: &str, role: Role, problems: &mut Vec<Invalid>) {
        let mut bad = |field: &str, problem: String| {
            problems.push(Invalid { field: format!("{path}.{field}"), problem });
        };
        if self.max_lag_ms.is_some_and(|ms| ms != 0 && !LAG_MS.contains(&ms)) {
            bad("max_lag_ms", "use 50 to 30 days' milliseconds, or 0 for no limit".to_owned());
        }
        if self.recover_ms.is_some_and(|ms| ms > RECOVER_MS_MAX) {
            bad("recover_ms", format!("use {RECOVER_MS_MAX} (an hour) or less"));
        }
        let serves = matches!(self.action, Some(Action::RouteToWriter | Action::WarnReader));
        if serves && !role.serves() {
            let action = self.action.unwrap_or_default().as_str();
            bad("action", format!("{action} is about reads, and no reads go to role {role}"));
        }
    }
}

fn or(own: &str, otherwise: &str) -> String {
    if own.is_empty() { otherwise.to_owned() } else { own.to_owned() }
}

impl Contract {
    /// What a copy's lag exceeds, as a sentence; `None` when it is within its limits.
    pub fn breach(&self, replay: &Behind) -> Option<String> {
        if let Some(max) = self.max_lag.filter(|max| replay.time > *max) {
            let (late, max) = (seconds(replay.time), seconds(max));
            return Some(format!("what it shows is {late} late, and its contract allows {max}"));
        }
        let max = self.max_bytes.filter(|max| replay.bytes > *max)?;
        let bytes = replay.bytes;
        Some(format!("{bytes} bytes of log are not replayed, and its contract allows {max}"))
    }

    /// While it counts as broken although its copy is within its limits again: what it waits for, as the
    /// rest of a sentence about the copy. `None` when the copy is beyond them.
    pub fn recovers(&self, late: Duration, bytes: u64) -> Option<String> {
        let replay = Behind { bytes, time: late, or_more: false };
        let recover = seconds(self.recover);
        let words = || format!("is within its contract again, and has to stay so for {recover}");
        self.breach(&replay).is_none().then(words)
    }

    /// The limits as words, such as `at most 10 s late`.
    pub fn words(&self) -> String {
        match (self.max_lag, self.max_bytes) {
            (None, None) => "as late as it likes".to_owned(),
            (Some(lag), None) => format!("at most {} late", seconds(lag)),
            (None, Some(bytes)) => format!("at most {bytes} bytes behind"),
            (Some(lag), Some(bytes)) => {
                format!("at most {} late and {bytes} bytes behind", seconds(lag))
            }
        }
    }
}

/// Whether a contract is kept, over time: broken at once, kept again only after a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    broken: Option<Moment>,
    /// Since when it has been within its limits again.
    good: Option<Moment>,
}

impl Standing {
    /// Takes the present lag in. Returns since when the contract is broken, `None` while it is kept.
    pub fn see(&mut self, contract: &Contract, replay: &Behind, now: Moment) -> Option<Moment> {
        if contract.breach(replay).is_some() {
            self.good = None;
            self.broken.get_or_insert(now);
        } else if self.broken.is_some() {
            let good = *self.good.get_or_insert(now);
            if now.since(good) >= contract.recover {
                *self = Self::default();
            }
        }
        self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(at: u64) -> Moment {
        Moment(at * 1_000_000)
    }

    fn late(ms: u64) -> Behind {
        Behind { bytes: ms * 10, time: Duration::from_millis(ms), or_more: false }
    }

    #[test]
    fn broken_at_once_and_kept_again_only_after_a_while() {
        let spec = ContractSpec {
            max_lag_ms: Some(1000),
            recover_ms: Some(500),
            ..ContractSpec::default()
        };
        let contract = spec.of(Role::Read, Duration::ZERO);
        let mut standing = Standing::default();
        assert_eq!(standing.see(&contract, &late(1000), ms(0)), None, "the limit itself is kept");
        assert_eq!(standing.see(&contract, &late(1001), ms(100)), Some(ms(100)));
        assert_eq!(standing.see(&contract, &late(5), ms(200)), Some(ms(100)));
        // A single good moment is no recovery, and a second spike starts the wait anew.
        assert_eq!(standing.see(&contract, &late(2000), ms(600)), Some(ms(100)));
        assert_eq!(standing.see(&contract, &late(5), ms(700)), Some(ms(100)));
        assert_eq!(standing.see(&contract, &late(5), ms(1199)), Some(ms(100)));
        assert_eq!(standing.see(&contract, &late(5), ms(1200)), None);
    }

    #[test]
    fn one_that_is_about_to_be_kept_again_says_so() {
        let contract = ContractSpec::default().of(Role::Ha, Duration::ZERO);
        let at = |ms, bytes| contract.recovers(Duration::from_millis(ms), bytes);
        assert_eq!(at(10_001, 0), None);
        let words = "is within its contract again, and has to stay so for 3 s";
        assert_eq!(at(160, 9).as_deref(), Some(words));
        let bytes = ContractSpec { max_lag_bytes: Some(99), ..ContractSpec::default() };
        assert_eq!(bytes.of(Role::Ha, Duration::ZERO).recovers(Duration::ZERO, 100), None);
    }

    #[test]
    fn zero_is_no_limit_and_bytes_count_by_themselves() {
        let none = ContractSpec { max_lag_ms: Some(0), ..ContractSpec::default() };
        let contract = none.of(Role::Ha, Duration::ZERO);
        assert_eq!(contract.breach(&late(10_000_000)), None);
        assert_eq!(contract.words(), "as late as it likes");
        let bytes = ContractSpec { max_lag_bytes: Some(99), ..none };
        let contract = bytes.of(Role::Ha, Duration::ZERO);
        assert_eq!(contract.breach(&late(9)), None);
        assert!(contract.breach(&late(10)).unwrap().contains("100 bytes"));
    }

    #[test]
    fn a_delayed_copy_may_be_as_late_as_it_was_told_to_be() {
        let hour = Duration::from_secs(3600);
        let contract = ContractSpec::default().of(Role::Delayed, hour);
        assert_eq!(contract.breach(&late(3_700_000)), None);
        assert!(contract.breach(&late(4_300_000)).is_some());
    }
}
