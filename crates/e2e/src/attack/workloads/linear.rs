//! Registers that all clients write, read and swap at `strong`. Keys are left after a while, so that
//! each has a history that can be searched.

use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::{Context, Result};
use quorate_history::linear::Action;
use quorate_history::{Outcome, Recorded};

use super::Workload;
use crate::attack::client::{Client, number};
use crate::attack::recorder::{Pulse, Recorder, Span};

const KEYS: i64 = 5000;
/// Operations until the next two keys are used.
const TURN: i64 = 150;

pub(super) struct Linear {
    table: String,
    next: AtomicI64,
    recorder: Recorder<Action>,
}

impl Linear {
    pub(super) fn new(round: usize) -> Self {
        Self {
            table: format!("public.linear_{round}"),
            next: AtomicI64::new(1),
            recorder: Recorder::new(|action| !matches!(action, Action::Read { .. })),
        }
    }

    fn read(&self, client: &mut Client, key: i64) -> Result<i64, String> {
        let sql = format!("SELECT v FROM {} WHERE k = {key}", self.table);
        client.ask(&sql).answer().map(|answer| number(&answer.value()))
    }
}

impl Workload for Linear {
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
        vec!["SET quorate.consistency = 'strong'".to_owned()]
    }

    fn clients(&self) -> usize {
        4
    }

    fn act(&self, client: &mut Client) {
        let value = self.next.fetch_add(1, Ordering::Relaxed);
        let key = (value / TURN * 2 + client.random.below(2) as i64) % KEYS;
        let table = &self.table;
        let span = Span::begin(client);
        let choice = client.random.below(4);
        if choice < 2 {
            if let Ok(value) = self.read(client, key) {
                let action = Action::Read { key, value };
                self.recorder.note(client, span, action, Outcome::Ok, String::new());
            }
            return;
        }
        if choice == 2 {
            let sql = format!("UPDATE {table} SET v = {value} WHERE k = {key}");
            let (outcome, note) = client.ask(&sql).outcome("UPDATE 1");
            let action = Action::Write { key, value };
            return self.recorder.note(client, span, action, outcome, note);
        }
        // The read belongs to the swap's choice, and is an operation of its own.
        let Ok(from) = self.read(client, key) else { return };
        let action = Action::Read { key, value: from };
        self.recorder.note(client, span, action, Outcome::Ok, String::new());
        let span = Span::begin(client);
        let sql = format!("UPDATE {table} SET v = {value} WHERE k = {key} AND v = {from}");
        let (outcome, note) = client.ask(&sql).outcome("UPDATE 1");
        self.recorder.note(client, span, Action::Swap { key, from, to: value }, outcome, note);
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let used = self.next.load(Ordering::Relaxed) / TURN * 2 + 1;
        for key in 0..=used.min(KEYS - 1) {
            let span = Span::begin(client);
            let rows = client.insist(&format!("SELECT v FROM {} WHERE k = {key}", self.table))?;
            let value = rows.first().and_then(|row| row.first()).context("a key is gone")?;
            let action = Action::Read { key, value: number(value) };
            self.recorder.note(client, span, action, Outcome::Ok, String::new());
        }
        Ok(Recorded::Linear(self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
