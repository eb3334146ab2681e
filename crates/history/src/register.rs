//! Reads of registers at the gateway's levels of consistency.
//!
//! A register's value only grows (`UPDATE … SET v = 7 WHERE k = 1 AND v < 7`): a write that arrives
//! late does nothing, and of two values the greater is the later. So every read tells how old it is.
//! What a read must show at least is its floor, by the level:
//!
//! | level | the floor is made of |
//! |---|---|
//! | `strong` | all that anybody was told, or read, before |
//! | `read_your_writes` | what the session itself was told |
//! | `monotonic` | that, and what it read |
//! | `causal` | that, and what a session knew whose token it took |
//! | `bounded` | all that anybody was told longer ago than the bound |
//! | `eventual` | nothing |
//!
//! Two reads of several keys of which each misses what the other shows are a long fork: two servers
//! made the same commits visible in different orders. Only `strong` forbids it between servers; on
//! one server it is forbidden at every level.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::operation::{History, Moment, Outcome, Process, Server};
use crate::report::{Anomaly, Report};

/// One operation. Registers hold 0 at first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Raises the value of a key to this one. Each value of a key is written once.
    Write {
        /// Key.
        key: i64,
        /// Value.
        value: i64,
    },
    /// Reads some keys at once.
    Read {
        /// Values by key.
        values: BTreeMap<i64, i64>,
        /// Who answered.
        by: Server,
    },
    /// Asks for the session's token, which is given this number.
    Give(u64),
    /// Takes the token of this number.
    Take(u64),
}

/// A level of consistency, by the gateway's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Everything acknowledged to anybody.
    Strong,
    /// What the session wrote.
    ReadYourWrites,
    /// That, and never less than it saw.
    Monotonic,
    /// That, and what a token stands for.
    Causal,
    /// Everything older than a bound.
    Bounded,
    /// Some committed state.
    Eventual,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promise {
    /// The level of all sessions.
    pub level: Level,
    /// The bound of [`Level::Bounded`], in milliseconds.
    #[serde(default)]
    pub staleness_ms: u64,
}

impl Level {
    /// All of them, the strictest first.
    pub const ALL: [Level; 6] = [
        Level::Strong,
        Level::ReadYourWrites,
        Level::Monotonic,
        Level::Causal,
        Level::Bounded,
        Level::Eventual,
    ];

    /// As the setting names it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Strong => "strong",
            Level::ReadYourWrites => "read_your_writes",
            Level::Monotonic => "monotonic",
            Level::Causal => "causal",
            Level::Bounded => "bounded",
            Level::Eventual => "eventual",
        }
    }

    /// Whether a read may not be older than the session's own writes.
    fn keeps_writes(self) -> bool {
        matches!(self, Level::ReadYourWrites | Level::Monotonic | Level::Causal)
    }

    /// Whether it may not be older than the session's own reads.
    fn keeps_reads(self) -> bool {
        matches!(self, Level::Monotonic | Level::Causal)
    }
}

/// Judges a history.
pub fn check(history: &History<Action>, promise: Promise) -> Report {
    let mut report = Report::of(history.tally());
    origins(history, &mut report);
    Sweep::new(history, promise).run(&mut report);
    forks(history, promise.level, &mut report);
    report
}

/// Every value that was read was written, and not refused.
fn origins(history: &History<Action>, report: &mut Report) {
    let mut written: BTreeMap<(i64, i64), Outcome> = BTreeMap::new();
    for operation in &history.operations {
        if let Action::Write { key, value } = operation.action
            && written.insert((key, value), operation.outcome).is_some()
        {
            report.inconclusive(format!("{value} was written to {key} twice"));
        }
    }
    for (index, operation) in history.done() {
        let Action::Read { values, by } = &operation.action else { continue };
        for (key, value) in values.iter().filter(|(_, value)| **value != 0) {
            let anomaly = match written.get(&(*key, *value)) {
                None => Anomaly::FromNowhere,
                Some(Outcome::Failed) => Anomaly::FailedYetPresent,
                Some(Outcome::Ok | Outcome::Unknown) => continue,
            };
            report.broken(anomaly, vec![index], format!("{by} answered {value} for {key}"));
        }
    }
}

/// The least values that must be shown: of writes, and of reads.
#[derive(Debug, Clone, Default)]
struct Floor {
    writes: BTreeMap<i64, i64>,
    reads: BTreeMap<i64, i64>,
}

impl Floor {
    fn join(&mut self, other: &Floor) {
        other.writes.iter().for_each(|(k, v)| raise(&mut self.writes, *k, *v));
        other.reads.iter().for_each(|(k, v)| raise(&mut self.reads, *k, *v));
    }
}

fn raise(values: &mut BTreeMap<i64, i64>, key: i64, value: i64) {
    let held = values.entry(key).or_default();
    *held = value.max(*held);
}

/// What happens at a moment; in this order where moments are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Invoked,
    Completed,
    /// The bound has passed since it was completed.
    Old,
}

struct Sweep<'a> {
    history: &'a History<Action>,
    promise: Promise,
    /// What everybody was told and read.
    all: Floor,
    /// The same as far as it is older than the bound.
    old: Floor,
    sessions: BTreeMap<Process, Floor>,
    tokens: BTreeMap<u64, Floor>,
    /// Floors of reads that are under way: by what must hold, and by what would be fresh.
    asked: BTreeMap<usize, (Floor, Floor)>,
}

impl<'a> Sweep<'a> {
    fn new(history: &'a History<Action>, promise: Promise) -> Self {
        Self {
            history,
            promise,
            all: Floor::default(),
            old: Floor::default(),
            sessions: BTreeMap::new(),
            tokens: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    fn run(mut self, report: &mut Report) {
        let mut events: Vec<(Moment, Event, usize)> = Vec::new();
        for (index, operation) in self.history.done() {
            let old = operation.completed.0.saturating_add(self.promise.staleness_ms * 1000);
            events.push((operation.invoked, Event::Invoked, index));
            events.push((operation.completed, Event::Completed, index));
            events.push((Moment(old), Event::Old, index));
        }
        events.sort_unstable();
        for (_, event, index) in events {
            match event {
                Event::Invoked => self.invoked(index),
                Event::Completed => self.completed(index, report),
                Event::Old => learn(&mut self.old, &self.history.operations[index].action),
            }
        }
    }

    fn invoked(&mut self, index: usize) {
        let operation = &self.history.operations[index];
        let own = self.sessions.entry(operation.process).or_default();
        match &operation.action {
            Action::Give(token) => drop(self.tokens.insert(*token, own.clone())),
            Action::Read { .. } => {
                let level = self.promise.level;
                let mut floor = Floor::default();
                if level.keeps_writes() {
                    floor.writes = own.writes.clone();
                }
                if level.keeps_reads() {
                    floor.reads = own.reads.clone();
                }
                match level {
                    Level::Strong => floor = self.all.clone(),
                    Level::Bounded => floor.writes = self.old.writes.clone(),
                    _ => {}
                }
                self.asked.insert(index, (floor, self.all.clone()));
            }
            Action::Write { .. } | Action::Take(_) => {}
        }
    }

    fn completed(&mut self, index: usize, report: &mut Report) {
        let operation = &self.history.operations[index];
        if let Some((floor, fresh)) = self.asked.remove(&index)
            && self.keeps(index, &floor, false, report)
        {
            self.keeps(index, &fresh, true, report);
        }
        learn(&mut self.all, &operation.action);
        let own = self.sessions.entry(operation.process).or_default();
        learn(own, &operation.action);
        if let Action::Take(token) = operation.action {
            match self.tokens.get(&token) {
                Some(floor) => own.join(floor),
                None => report.inconclusive(format!("token {token} was taken and never given")),
            }
        }
    }

    /// Whether a read is not below a floor; says it where it is.
    fn keeps(&self, index: usize, floor: &Floor, permits: bool, report: &mut Report) -> bool {
        let operation = &self.history.operations[index];
        let Action::Read { values, by } = &operation.action else { return true };
        let least =
            [(Anomaly::StaleRead, &floor.writes), (Anomaly::NonMonotonicRead, &floor.reads)];
        let mut keeps = true;
        for (anomaly, least) in least {
            let below = |(key, value): &(&i64, &i64)| least.get(key).is_some_and(|l| *value < l);
            let Some((key, value)) = values.iter().find(below) else { continue };
            let words = format!(
                "{by} answered {value} for {key} to {} at {}, after {}",
                operation.process, operation.completed, least[key]
            );
            report.add(permits, anomaly, vec![index], words);
            keeps = false;
        }
        keeps
    }
}

/// What one operation's answer teaches.
fn learn(floor: &mut Floor, action: &Action) {
    match action {
        Action::Write { key, value } => raise(&mut floor.writes, *key, *value),
        Action::Read { values, .. } => {
            values.iter().for_each(|(key, value)| raise(&mut floor.reads, *key, *value));
        }
        Action::Give(_) | Action::Take(_) => {}
    }
}

/// A read, by its place in the history.
type Row<'a> = (Vec<i64>, usize, &'a Server);

/// Reads of the same keys that are no chain.
fn forks(history: &History<Action>, level: Level, report: &mut Report) {
    let mut groups: BTreeMap<Vec<i64>, Vec<Row<'_>>> = BTreeMap::new();
    for (index, operation) in history.done() {
        if let Action::Read { values, by } = &operation.action
            && values.len() > 1
        {
            let keys = values.keys().copied().collect();
            let row = (values.values().copied().collect(), index, by);
            groups.entry(keys).or_default().push(row);
        }
    }
    for (keys, rows) in groups {
        let servers: BTreeSet<_> = rows.iter().map(|(.., by)| *by).collect();
        for server in &servers {
            let here: Vec<_> = rows.iter().filter(|(.., by)| by == server).cloned().collect();
            for (a, b) in crossings(here) {
                let words = fork(&keys, &a, &b);
                report.broken(Anomaly::GNonadjacent, vec![a.1, b.1], words);
            }
        }
        for (a, b) in crossings(rows).into_iter().filter(|(a, b)| a.2 != b.2) {
            let words = fork(&keys, &a, &b);
            report.add(level != Level::Strong, Anomaly::LongFork, vec![a.1, b.1], words);
        }
    }
}

/// Neighbours, in order of their values, of which neither shows all that the other does. Where there
/// are none, any two reads agree.
fn crossings(mut rows: Vec<Row<'_>>) -> Vec<(Row<'_>, Row<'_>)> {
    rows.sort();
    let crossed = |a: &[i64], b: &[i64]| a.iter().zip(b).any(|(a, b)| a > b);
    let pairs = rows.windows(2).filter(|pair| crossed(&pair[0].0, &pair[1].0));
    pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

fn fork(keys: &[i64], a: &Row<'_>, b: &Row<'_>) -> String {
    format!("{keys:?} was read as {:?} from {}, and as {:?} from {}", a.0, a.2, b.0, b.2)
}
