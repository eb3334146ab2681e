//! What a check found: anomalies by name, whether the promise permits them, and examples in words.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::EXAMPLES_MAX;
use crate::operation::Tally;

/// Something that a history shows. Names of isolation anomalies are those of Adya and of Elle; one
/// with `RealTime` needs the order in which transactions ended and began, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anomaly {
    /// Two transactions overwrote each other, in turn.
    #[serde(rename = "G0")]
    G0,
    /// A transaction read what another one wrote that was rolled back.
    #[serde(rename = "G1a")]
    G1a,
    /// A transaction read what another one wrote and then wrote over.
    #[serde(rename = "G1b")]
    G1b,
    /// Transactions saw, or overwrote, each other in a circle.
    #[serde(rename = "G1c")]
    G1c,
    /// A circle with one transaction that missed another one's write: a lost update, or a torn
    /// snapshot.
    #[serde(rename = "G-single")]
    GSingle,
    /// A circle with several missed writes, no two in a row.
    #[serde(rename = "G-nonadjacent")]
    GNonadjacent,
    /// A circle with missed writes in a row: write skew.
    #[serde(rename = "G2-item")]
    G2Item,
    /// [`Anomaly::G0`] by the clock.
    #[serde(rename = "G0-realtime")]
    G0RealTime,
    /// [`Anomaly::G1c`] by the clock.
    #[serde(rename = "G1c-realtime")]
    G1cRealTime,
    /// [`Anomaly::GSingle`] by the clock.
    #[serde(rename = "G-single-realtime")]
    GSingleRealTime,
    /// [`Anomaly::GNonadjacent`] by the clock.
    #[serde(rename = "G-nonadjacent-realtime")]
    GNonadjacentRealTime,
    /// [`Anomaly::G2Item`] by the clock.
    #[serde(rename = "G2-item-realtime")]
    G2ItemRealTime,
    /// Two servers showed two independent commits in different orders.
    LongFork,
    /// A transaction did not see its own writes, or saw a key change that it had locked.
    Internal,
    /// Two reads of a list agree on no order of its elements.
    IncompatibleOrder,
    /// Something is there twice that was written once.
    Duplicate,
    /// Something is there that nobody wrote.
    FromNowhere,
    /// Something was acknowledged and is not there.
    Lost,
    /// Something was surely refused and is there.
    FailedYetPresent,
    /// A read is older than it may be.
    StaleRead,
    /// A read is older than one that came before it.
    NonMonotonicRead,
    /// No order of the operations explains what was read.
    NotLinearizable,
    /// The sum of what only moves has changed.
    WrongSum,
    /// A balance is below zero.
    NegativeBalance,
    /// A count is outside of what the increments allow.
    WrongCount,
    /// A COMMIT was answered, and the answer is not true.
    WrongAnswer,
    /// The history does not suffice for a verdict.
    Inconclusive,
}

/// The places of one anomaly.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// How often.
    pub count: usize,
    /// Some of them, in words.
    pub examples: Vec<Example>,
}

/// One place of an anomaly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Its operations, by their places in the history.
    pub operations: Vec<usize>,
    /// What happened.
    pub words: String,
}

/// The verdict on a history.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// How many operations came out how.
    pub tally: Tally,
    /// What the promise forbids.
    pub broken: BTreeMap<Anomaly, Found>,
    /// What the promise permits, and happened.
    pub permitted: BTreeMap<Anomaly, Found>,
}

impl Anomaly {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Anomaly::G0 => "G0",
            Anomaly::G1a => "G1a",
            Anomaly::G1b => "G1b",
            Anomaly::G1c => "G1c",
            Anomaly::GSingle => "G-single",
            Anomaly::GNonadjacent => "G-nonadjacent",
            Anomaly::G2Item => "G2-item",
            Anomaly::G0RealTime => "G0-realtime",
            Anomaly::G1cRealTime => "G1c-realtime",
            Anomaly::GSingleRealTime => "G-single-realtime",
            Anomaly::GNonadjacentRealTime => "G-nonadjacent-realtime",
            Anomaly::G2ItemRealTime => "G2-item-realtime",
            Anomaly::LongFork => "long-fork",
            Anomaly::Internal => "internal",
            Anomaly::IncompatibleOrder => "incompatible-order",
            Anomaly::Duplicate => "duplicate",
            Anomaly::FromNowhere => "from-nowhere",
            Anomaly::Lost => "lost",
            Anomaly::FailedYetPresent => "failed-yet-present",
            Anomaly::StaleRead => "stale-read",
            Anomaly::NonMonotonicRead => "non-monotonic-read",
            Anomaly::NotLinearizable => "not-linearizable",
            Anomaly::WrongSum => "wrong-sum",
            Anomaly::NegativeBalance => "negative-balance",
            Anomaly::WrongCount => "wrong-count",
            Anomaly::WrongAnswer => "wrong-answer",
            Anomaly::Inconclusive => "inconclusive",
        }
    }
}

impl Report {
    /// An empty verdict on so many operations. Nothing done proves nothing, which is no pass.
    pub fn of(tally: Tally) -> Self {
        let mut report = Self { tally, ..Self::default() };
        if tally.ok == 0 {
            report.inconclusive("no operation took effect".to_owned());
        }
        report
    }

    /// Adds what the promise forbids.
    pub fn broken(&mut self, anomaly: Anomaly, operations: Vec<usize>, words: String) {
        add(&mut self.broken, anomaly, operations, words);
    }

    /// Adds what the promise permits.
    pub fn permitted(&mut self, anomaly: Anomaly, operations: Vec<usize>, words: String) {
        add(&mut self.permitted, anomaly, operations, words);
    }

    /// Adds one or the other.
    pub fn add(&mut self, permits: bool, anomaly: Anomaly, operations: Vec<usize>, words: String) {
        add(
            if permits { &mut self.permitted } else { &mut self.broken },
            anomaly,
            operations,
            words,
        );
    }

    /// Says why there can be no verdict.
    pub fn inconclusive(&mut self, words: String) {
        self.broken(Anomaly::Inconclusive, Vec::new(), words);
    }

    /// Whether the promise was kept, as far as the history tells.
    pub fn is_good(&self) -> bool {
        self.broken.is_empty()
    }

    /// Names of what was broken.
    pub fn names(&self) -> Vec<&'static str> {
        self.broken.keys().map(|a| a.name()).collect()
    }
}

fn add(to: &mut BTreeMap<Anomaly, Found>, anomaly: Anomaly, operations: Vec<usize>, words: String) {
    let found = to.entry(anomaly).or_default();
    found.count += 1;
    if found.examples.len() < EXAMPLES_MAX {
        found.examples.push(Example { operations, words });
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.tally)?;
        for (title, all) in [("BROKEN", &self.broken), ("permitted", &self.permitted)] {
            for (anomaly, found) in all {
                writeln!(f, "{title}: {anomaly}, {} times", found.count)?;
                for example in &found.examples {
                    writeln!(f, "  {}", example.words.replace('\n', "\n  "))?;
                }
            }
        }
        Ok(())
    }
}
