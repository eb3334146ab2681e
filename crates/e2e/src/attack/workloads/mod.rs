//! What clients do. Each workload has tables of its own, so that all can run at once.

use std::fmt;

use anyhow::{Context, Result};
use quorate_history::Recorded;
use quorate_history::append::Isolation;
use quorate_history::register::Level;

use super::client::Client;
use super::recorder::Pulse;

mod ambiguous;
mod append;
mod bank;
mod counter;
mod linear;
mod register;
mod set;

/// A workload while it runs.
pub trait Workload: Send + Sync {
    /// SQL that makes its tables: said again when nobody answered, so once or twice must be the same.
    fn tables(&self) -> Vec<String>;

    /// Statements with which its clients begin each session.
    fn greeting(&self) -> Vec<String> {
        Vec::new()
    }

    /// Clients at once.
    fn clients(&self) -> usize;

    /// One operation of a client that has a session.
    fn act(&self, client: &mut Client);

    /// Reads what is there, after all clients have ended, for the whole history.
    fn finish(&self, client: &mut Client) -> Result<Recorded>;

    /// Acknowledged writes so far.
    fn pulse(&self) -> Pulse;
}

/// Which workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Transactions over lists.
    Append(Isolation),
    /// Rows.
    Set,
    /// Registers at a level of consistency.
    Register(Level),
    /// Registers that many write, at `strong`.
    Linear,
    /// Transfers between accounts.
    Bank,
    /// One number.
    Counter,
    /// COMMITs that are cut off.
    Ambiguous,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 14] = [
        Kind::Append(Isolation::ReadCommitted),
        Kind::Append(Isolation::RepeatableRead),
        Kind::Append(Isolation::Serializable),
        Kind::Set,
        Kind::Register(Level::Strong),
        Kind::Register(Level::ReadYourWrites),
        Kind::Register(Level::Monotonic),
        Kind::Register(Level::Causal),
        Kind::Register(Level::Bounded),
        Kind::Register(Level::Eventual),
        Kind::Linear,
        Kind::Bank,
        Kind::Counter,
        Kind::Ambiguous,
    ];

    /// Which of them run in a round. All do within three rounds.
    pub fn of_round(round: usize) -> Vec<Kind> {
        let append = Self::ALL[round % 3];
        let levels = [Self::ALL[4 + round % 3], Self::ALL[7 + round % 3]];
        let others = [Kind::Set, Kind::Linear, Kind::Bank, Kind::Counter, Kind::Ambiguous];
        [append].into_iter().chain(levels).chain(others).collect()
    }

    /// By its name.
    pub fn named(name: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|kind| kind.to_string() == name);
        known.copied().with_context(|| {
            let all: Vec<_> = Self::ALL.iter().map(Kind::to_string).collect();
            format!("there is no workload {name}: there are {}", all.join(", "))
        })
    }

    /// Makes it, with tables of this round.
    pub fn make(self, round: usize) -> Box<dyn Workload> {
        match self {
            Kind::Append(isolation) => Box::new(append::Append::new(isolation, round)),
            Kind::Set => Box::new(set::Set::new(round)),
            Kind::Register(level) => Box::new(register::Register::new(level, round)),
            Kind::Linear => Box::new(linear::Linear::new(round)),
            Kind::Bank => Box::new(bank::Bank::new(round)),
            Kind::Counter => Box::new(counter::Counter::new(round)),
            Kind::Ambiguous => Box::new(ambiguous::Ambiguous::new(round)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Kind::Append(Isolation::ReadCommitted) => "append-rc".to_owned(),
            Kind::Append(Isolation::RepeatableRead) => "append-rr".to_owned(),
            Kind::Append(Isolation::Serializable) => "append-ser".to_owned(),
            Kind::Set => "set".to_owned(),
            Kind::Register(level) => format!("register-{}", level.name().replace('_', "-")),
            Kind::Linear => "linear".to_owned(),
            Kind::Bank => "bank".to_owned(),
            Kind::Counter => "counter".to_owned(),
            Kind::Ambiguous => "ambiguous".to_owned(),
        };
        f.pad(&name)
    }
}

/// Ids in a table, read at the end.
fn ids(client: &mut Client, table: &str) -> Result<Vec<i64>> {
    let rows = client.insist(&format!("SELECT id FROM {table}"))?;
    rows.into_iter()
        .map(|row| {
            let id = row.into_iter().next().flatten().context("a row without an id")?;
            id.parse().with_context(|| format!("the id {id}"))
        })
        .collect()
}
