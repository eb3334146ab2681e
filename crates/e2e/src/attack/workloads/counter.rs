//! One number that everybody adds to.

use anyhow::{Context, Result};
use quorate_history::counter::Action;
use quorate_history::{Outcome, Recorded};

use super::Workload;
use crate::attack::client::{Client, number};
use crate::attack::recorder::{Pulse, Recorder, Span};

pub(super) struct Counter {
    table: String,
    recorder: Recorder<Action>,
}

impl Counter {
    pub(super) fn new(round: usize) -> Self {
        Self {
            table: format!("public.counter_{round}"),
            recorder: Recorder::new(|action| matches!(action, Action::Add(_))),
        }
    }

    fn read(&self, client: &mut Client, span: Span, level: &str, action: fn(i64) -> Action) {
        let sql = format!("SELECT /* quorate: {level} */ n FROM {}", self.table);
        let (outcome, count, note) = match client.ask(&sql).answer() {
            Ok(answer) => (Outcome::Ok, number(&answer.value()), String::new()),
            Err(words) => (Outcome::Failed, 0, words),
        };
        self.recorder.note(client, span, action(count), outcome, note);
    }
}

impl Workload for Counter {
    fn tables(&self) -> Vec<String> {
        let table = &self.table;
        vec![
            format!("CREATE TABLE IF NOT EXISTS {table} (k int PRIMARY KEY, n bigint NOT NULL)"),
            format!("INSERT INTO {table} VALUES (0, 0) ON CONFLICT DO NOTHING"),
        ]
    }

    fn clients(&self) -> usize {
        3
    }

    fn act(&self, client: &mut Client) {
        let span = Span::begin(client);
        match client.random.below(4) {
            0 => self.read(client, span, "strong", Action::Read),
            1 => self.read(client, span, "eventual", Action::ReadOld),
            _ => {
                let amount = 1 + client.random.below(9) as i64;
                let sql = format!("UPDATE {} SET n = n + {amount}", self.table);
                let (outcome, note) = client.ask(&sql).outcome("UPDATE 1");
                self.recorder.note(client, span, Action::Add(amount), outcome, note);
            }
        }
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let span = Span::begin(client);
        let rows = client.insist(&format!("SELECT n FROM {}", self.table))?;
        let count = rows.first().and_then(|row| row.first()).context("the counter is gone")?;
        self.recorder.note(client, span, Action::Read(number(count)), Outcome::Ok, String::new());
        Ok(Recorded::Counter(self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
