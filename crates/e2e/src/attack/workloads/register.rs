//! Registers that only grow, at one of the gateway's levels of consistency. Each client writes two
//! keys of its own and reads those of all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use quorate_history::register::{Action, Level, Promise};
use quorate_history::{Outcome, Recorded};

use super::Workload;
use crate::attack::client::{Client, number, server};
use crate::attack::recorder::{Pulse, Recorder, Span};

const CLIENTS: usize = 4;
const KEYS: usize = CLIENTS * 2;
/// The bound of `bounded`, in milliseconds.
const STALENESS_MS: u64 = 1000;
/// Tokens that are remembered.
const TOKENS: usize = 50;

pub(super) struct Register {
    level: Level,
    table: String,
    next: Vec<AtomicI64>,
    tokens: Mutex<Vec<(u64, String)>>,
    token: AtomicU64,
    recorder: Recorder<Action>,
}

impl Register {
    pub(super) fn new(level: Level, round: usize) -> Self {
        Self {
            level,
            table: format!("public.register_{}_{round}", level.name()),
            next: (0..KEYS).map(|_| AtomicI64::new(1)).collect(),
            tokens: Mutex::default(),
            token: AtomicU64::new(1),
            recorder: Recorder::new(|action| matches!(action, Action::Write { .. })),
        }
    }

    fn write(&self, client: &mut Client, span: Span) {
        let key = client.number * 2 + client.random.below(2);
        let value = self.next[key].fetch_add(1, Ordering::Relaxed);
        let sql = format!("UPDATE {} SET v = {value} WHERE k = {key} AND v < {value}", self.table);
        let (outcome, note) = client.ask(&sql).outcome("UPDATE 1");
        self.recorder.note(client, span, Action::Write { key: key as i64, value }, outcome, note);
    }

    fn read(&self, client: &mut Client, span: Span) {
        // What failed has shown nothing.
        if let Ok(answer) = client.ask(&self.query()).answer()
            && let Ok(action) = shown(&answer.rows())
        {
            self.recorder.note(client, span, action, Outcome::Ok, String::new());
        }
    }

    fn query(&self) -> String {
        format!("SELECT k, v, standby, directory FROM {}, public.place", self.table)
    }

    fn give(&self, client: &mut Client, span: Span) {
        let Ok(answer) = client.ask("SHOW quorate.token").answer() else { return };
        let Some(token) = answer.value().filter(|token| !token.is_empty()) else { return };
        let name = self.token.fetch_add(1, Ordering::Relaxed);
        self.recorder.note(client, span, Action::Give(name), Outcome::Ok, String::new());
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.push((name, token));
        if tokens.len() > TOKENS {
            tokens.remove(0);
        }
    }

    fn take(&self, client: &mut Client, span: Span) {
        let newest = {
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            tokens.last().cloned()
        };
        let Some((name, token)) = newest else { return };
        if client.ask(&format!("SET quorate.token = '{token}'")).answer().is_ok() {
            self.recorder.note(client, span, Action::Take(name), Outcome::Ok, String::new());
        }
    }
}

fn shown(rows: &[Vec<Option<String>>]) -> Result<Action> {
    let [_, _, standby, directory] = &rows.first().context("no registers")?[..] else {
        anyhow::bail!("not four columns");
    };
    let by = server(standby, directory);
    let values: BTreeMap<i64, i64> =
        rows.iter().map(|row| (number(&row[0]), number(&row[1]))).collect();
    Ok(Action::Read { values, by })
}

impl Workload for Register {
    fn tables(&self) -> Vec<String> {
        let table = &self.table;
        vec![
            format!("CREATE TABLE IF NOT EXISTS {table} (k bigint PRIMARY KEY, v bigint NOT NULL)"),
            format!(
                "INSERT INTO {table} SELECT i, 0 FROM generate_series(0, {}) i
                 ON CONFLICT DO NOTHING",
                KEYS - 1
            ),
        ]
    }

    fn greeting(&self) -> Vec<String> {
        vec![
            format!("SET quorate.consistency = '{}'", self.level.name()),
            format!("SET quorate.max_staleness = '{STALENESS_MS}ms'"),
        ]
    }

    fn clients(&self) -> usize {
        CLIENTS
    }

    fn act(&self, client: &mut Client) {
        let span = Span::begin(client);
        let tokens = self.level == Level::Causal;
        match client.random.below(10) {
            0 if tokens => self.give(client, span),
            1 if tokens => self.take(client, span),
            0..=4 => self.write(client, span),
            _ => self.read(client, span),
        }
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let span = Span::begin(client);
        let action = shown(&client.insist(&self.query())?)?;
        self.recorder.note(client, span, action, Outcome::Ok, String::new());
        let bounded = self.level == Level::Bounded;
        let staleness_ms = if bounded { STALENESS_MS } else { 0 };
        let promise = Promise { level: self.level, staleness_ms };
        Ok(Recorded::Register(promise, self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
