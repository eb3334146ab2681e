//! What a workload was told, and the judgement of it against what the database holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::limits::NAMED_MAX;

/// What a client was told of one write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged.
    Acked,
    /// The server refused it for sure; carries code and message.
    Refused(String),
    /// No answer, or one that leaves it open.
    Unknown(String),
}

/// One write that was tried. Every try has a fresh id.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The row's id.
    pub id: i64,
    /// Which client.
    pub client: usize,
    /// Name of the gateway it went through.
    pub gateway: String,
    /// When it was sent.
    pub begun: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// Its outcome.
    pub outcome: Outcome,
}

/// Everything a workload did.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// In order of their end, for each client.
    pub attempts: Vec<Attempt>,
    /// Logins that failed.
    pub failed_logins: u64,
    /// The last of them.
    pub last_login_error: Option<String>,
}

impl Ledger {
    /// Acknowledged writes.
    pub fn acked(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|a| a.outcome == Outcome::Acked)
    }

    /// The longest time that any one client was without an acknowledged write: the gap between two
    /// of them, the second of which came after `since`; a client without a second one counts up to
    /// `until`.
    pub fn longest_gap(&self, since: Instant, until: Instant) -> Duration {
        let mut by_client: BTreeMap<usize, Vec<Instant>> = BTreeMap::new();
        for attempt in &self.attempts {
            let acks = by_client.entry(attempt.client).or_default();
            acks.extend((attempt.outcome == Outcome::Acked).then_some(attempt.ended));
        }
        let gap = |acks: Vec<Instant>| {
            let before = acks.iter().copied().rfind(|t| *t <= since).unwrap_or(since);
            let after = acks.iter().copied().filter(|t| *t > since && *t < until);
            let marks: Vec<_> = [before].into_iter().chain(after).chain([until]).collect();
            marks.windows(2).map(|w| w[1].saturating_duration_since(w[0])).max()
        };
        by_client.into_values().filter_map(gap).max().unwrap_or_else(|| until - since)
    }

    /// Why writes did not succeed: each distinct answer with its count.
    pub fn troubles(&self) -> BTreeMap<String, usize> {
        let mut troubles = BTreeMap::new();
        for attempt in &self.attempts {
            match &attempt.outcome {
                Outcome::Acked => {}
                Outcome::Refused(why) => {
                    *troubles.entry(format!("refused: {why}")).or_default() += 1
                }
                Outcome::Unknown(why) => {
                    *troubles.entry(format!("unknown: {why}")).or_default() += 1
                }
            }
        }
        troubles
    }

    /// Compares what was told with the ids that the table holds.
    pub fn judge(&self, rows: &[i64]) -> Judgement {
        let mut held: BTreeMap<i64, usize> = BTreeMap::new();
        for id in rows {
            *held.entry(*id).or_default() += 1;
        }
        let ids = |wanted: fn(&Outcome) -> bool| -> BTreeSet<i64> {
            self.attempts.iter().filter(|a| wanted(&a.outcome)).map(|a| a.id).collect()
        };
        let tried = ids(|_| true);
        let acked = ids(|o| matches!(o, Outcome::Acked));
        let refused = ids(|o| matches!(o, Outcome::Refused(_)));
        Judgement {
            acked: acked.len(),
            unknown: ids(|o| matches!(o, Outcome::Unknown(_))).len(),
            rows: rows.len(),
            missing: acked.into_iter().filter(|id| !held.contains_key(id)).collect(),
            doubled: held.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id).collect(),
            from_nowhere: held.keys().copied().filter(|id| !tried.contains(id)).collect(),
            refused_yet_present: refused.into_iter().filter(|id| held.contains_key(id)).collect(),
        }
    }
}

/// What the comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// Acknowledged writes.
    pub acked: usize,
    /// Writes of unknown outcome.
    pub unknown: usize,
    /// Rows in the table.
    pub rows: usize,
    /// Acknowledged, and not there.
    pub missing: Vec<i64>,
    /// There more than once.
    pub doubled: Vec<i64>,
    /// There, and never tried.
    pub from_nowhere: Vec<i64>,
    /// Refused, and there.
    pub refused_yet_present: Vec<i64>,
}

impl Judgement {
    /// Fails when a promise was broken, or when nothing was acknowledged at all.
    pub fn check(&self) -> Result<()> {
        ensure!(self.acked > 0, "no write was acknowledged: the check would prove nothing");
        let clean = [&self.missing, &self.doubled, &self.from_nowhere, &self.refused_yet_present]
            .iter()
            .all(|ids| ids.is_empty());
        ensure!(clean, "{self}");
        Ok(())
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} acked, {} unknown, {} rows", self.acked, self.unknown, self.rows)?;
        let faults = [
            ("acknowledged rows missing", &self.missing),
            ("rows present twice", &self.doubled),
            ("rows from nowhere", &self.from_nowhere),
            ("refused rows present", &self.refused_yet_present),
        ];
        for (what, ids) in faults.into_iter().filter(|(_, ids)| !ids.is_empty()) {
            let first = &ids[..ids.len().min(NAMED_MAX)];
            write!(f, "; {} {what}: {first:?}", ids.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(id: i64, client: usize, begun: Instant, ms: u64, outcome: Outcome) -> Attempt {
        let ended = begun + Duration::from_millis(ms);
        Attempt { id, client, gateway: "n1".into(), begun, ended, outcome }
    }

    fn ledger(start: Instant) -> Ledger {
        let attempts = vec![
            attempt(1, 0, start, 10, Outcome::Acked),
            attempt(2, 0, start, 20, Outcome::Unknown("timeout".into())),
            attempt(3, 0, start, 30, Outcome::Refused("42P01".into())),
            attempt(4, 0, start, 500, Outcome::Acked),
            attempt(5, 1, start, 40, Outcome::Acked),
            attempt(6, 1, start, 300, Outcome::Acked),
        ];
        Ledger { attempts, ..Ledger::default() }
    }

    #[test]
    fn a_clean_history_passes_whether_unknown_rows_are_there_or_not() {
        let ledger = ledger(Instant::now());
        ledger.judge(&[1, 4, 5, 6]).check().unwrap();
        ledger.judge(&[1, 2, 4, 5, 6]).check().unwrap();
    }

    #[test]
    fn each_broken_promise_is_found() {
        let ledger = ledger(Instant::now());
        let judgement = ledger.judge(&[1, 1, 3, 5, 6, 99]);
        assert_eq!(judgement.missing, [4]);
        assert_eq!(judgement.doubled, [1]);
        assert_eq!(judgement.from_nowhere, [99]);
        assert_eq!(judgement.refused_yet_present, [3]);
        assert!(judgement.check().unwrap_err().to_string().contains("rows missing: [4]"));
        assert!(Ledger::default().judge(&[]).check().is_err(), "an empty history proves nothing");
    }

    #[test]
    fn the_longest_gap_is_the_worst_of_the_clients() {
        let start = Instant::now();
        let ledger = ledger(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(ledger.longest_gap(at(15), at(501)), Duration::from_millis(490));
        assert_eq!(ledger.longest_gap(at(15), at(2000)), Duration::from_millis(1700));
    }
}
