//! Money that moves between accounts.

use anyhow::{Context, Result, ensure};
use quorate_history::bank::{Action, Promise};
use quorate_history::{Outcome, Recorded, Server};

use super::Workload;
use crate::attack::client::{Client, number, server};
use crate::attack::recorder::{Pulse, Recorder, Span};

const ACCOUNTS: i64 = 8;
const BEGUN_WITH: i64 = 50;

pub(super) struct Bank {
    table: String,
    recorder: Recorder<Action>,
}

impl Bank {
    pub(super) fn new(round: usize) -> Self {
        Self {
            table: format!("public.bank_{round}"),
            recorder: Recorder::new(|action| matches!(action, Action::Transfer { .. })),
        }
    }

    fn query(&self) -> String {
        format!(
            "SELECT id, balance, standby, directory FROM {}, public.place ORDER BY id",
            self.table
        )
    }

    fn transfer(&self, client: &mut Client, span: Span) {
        let (from, to) = (client.random.below(8) as i64, client.random.below(7) as i64);
        let to = to + i64::from(to >= from);
        let amount = 1 + client.random.below(20) as i64;
        let table = &self.table;
        let ended = client.block("BEGIN", |client| {
            let take = format!(
                "UPDATE {table} SET balance = balance - {amount}
                 WHERE id = {from} AND balance >= {amount}"
            );
            if client.ask(&take).answer()?.tags() != ["UPDATE 1"] {
                return Err("not enough".to_owned());
            }
            let give = format!("UPDATE {table} SET balance = balance + {amount} WHERE id = {to}");
            client.ask(&give).answer().map(drop)
        });
        let action = Action::Transfer { from, to, amount };
        self.recorder.note(client, span, action, ended.outcome, ended.note);
    }

    fn balances(rows: &[Vec<Option<String>>]) -> Result<(Vec<i64>, Server)> {
        let [_, _, standby, directory] = &rows.first().context("no accounts")?[..] else {
            anyhow::bail!("not four columns");
        };
        Ok((rows.iter().map(|row| number(&row[1])).collect(), server(standby, directory)))
    }
}

impl Workload for Bank {
    fn tables(&self) -> Vec<String> {
        let table = &self.table;
        vec![
            format!(
                "CREATE TABLE IF NOT EXISTS {table} (id bigint PRIMARY KEY, balance bigint NOT NULL)"
            ),
            format!(
                "INSERT INTO {table} SELECT i, {BEGUN_WITH} FROM generate_series(0, {}) i
                 ON CONFLICT DO NOTHING",
                ACCOUNTS - 1
            ),
        ]
    }

    fn clients(&self) -> usize {
        4
    }

    fn act(&self, client: &mut Client) {
        let span = Span::begin(client);
        if client.random.below(2) == 0 {
            return self.transfer(client, span);
        }
        // What failed has shown nothing.
        if let Ok(answer) = client.ask(&self.query()).answer()
            && let Ok((balances, by)) = Self::balances(&answer.rows())
        {
            let action = Action::Balances { balances, by, last: false };
            self.recorder.note(client, span, action, Outcome::Ok, String::new());
        }
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let span = Span::begin(client);
        let (balances, by) = Self::balances(&client.insist(&self.query())?)?;
        ensure!(!by.replica, "the last read was served by {by}");
        let action = Action::Balances { balances, by, last: true };
        self.recorder.note(client, span, action, Outcome::Ok, String::new());
        let promise = Promise { accounts: vec![BEGUN_WITH; ACCOUNTS as usize] };
        Ok(Recorded::Bank(promise, self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
