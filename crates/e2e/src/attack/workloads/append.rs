//! Transactions that read lists and append to them, at one level of isolation: blocks on the writer,
//! single statements, and blocks that only read and may be served by a replica.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::Result;
use quorate_history::append::{Action, Isolation, Promise, Step};
use quorate_history::{Outcome, Recorded, Server};

use super::Workload;
use crate::attack::client::{Client, number, server};
use crate::attack::recorder::{Pulse, Recorder, Span};

/// Keys in use at once.
const KEYS: i64 = 5;
/// Elements that are appended until the next key replaces the oldest.
const TURN: i64 = 40;

pub(super) struct Append {
    isolation: Isolation,
    table: String,
    next: AtomicI64,
    recorder: Recorder<Action>,
}

impl Append {
    pub(super) fn new(isolation: Isolation, round: usize) -> Self {
        let name = isolation.sql().to_lowercase().replace(' ', "_");
        Self {
            isolation,
            table: format!("public.lists_{name}_{round}"),
            next: AtomicI64::new(1),
            recorder: Recorder::new(Action::writes),
        }
    }

    fn key(&self, client: &mut Client) -> i64 {
        let oldest = self.next.load(Ordering::Relaxed) / TURN;
        oldest + client.random.below(KEYS as usize) as i64
    }

    fn append(&self, client: &mut Client) -> (Step, String) {
        let key = self.key(client);
        let element = self.next.fetch_add(1, Ordering::Relaxed);
        let sql = format!(
            "INSERT INTO {} AS t (k, v) VALUES ({key}, '{element}')
             ON CONFLICT (k) DO UPDATE SET v = t.v || ',' || excluded.v",
            self.table
        );
        (Step::Append(key, element), sql)
    }

    /// A block of some steps. What was not reached is noted as it was asked for.
    fn block(&self, client: &mut Client, span: Span) {
        let asked: Vec<(Step, String)> = (0..1 + client.random.below(4))
            .map(|_| {
                if client.random.below(2) == 0 {
                    self.append(client)
                } else {
                    let key = self.key(client);
                    let sql = format!("SELECT v FROM {} WHERE k = {key}", self.table);
                    (Step::Read(key, None), sql)
                }
            })
            .collect();
        let mut steps: Vec<Step> = asked.iter().map(|(step, _)| step.clone()).collect();
        let begin = format!("BEGIN ISOLATION LEVEL {}", self.isolation.sql());
        let ended = client.block(&begin, |client| {
            for (at, (_, sql)) in asked.iter().enumerate() {
                let answer = client.ask(sql).answer()?;
                if let Step::Read(_, list) = &mut steps[at] {
                    *list = Some(elements(answer.value().as_deref()));
                }
            }
            Ok(())
        });
        let action = Action { steps, ..Action::default() };
        self.recorder.note(client, span, action, ended.outcome, ended.note);
    }

    /// A block that only reads.
    fn reading(&self, client: &mut Client, span: Span) {
        let keys: Vec<i64> = (0..2 + client.random.below(3)).map(|_| self.key(client)).collect();
        let begin = format!("BEGIN ISOLATION LEVEL {} READ ONLY", self.isolation.sql());
        let (mut steps, mut by) = (Vec::new(), None);
        let ended = client.block(&begin, |client| {
            let place = client.ask("SELECT standby, directory FROM public.place").answer()?.rows();
            if let Some([standby, directory]) = place.first().map(|row| &row[..]) {
                by = Some(server(standby, directory));
            }
            for key in keys {
                let sql = format!("SELECT v FROM {} WHERE k = {key}", self.table);
                let list = elements(client.ask(&sql).answer()?.value().as_deref());
                steps.push(Step::Read(key, Some(list)));
            }
            Ok(())
        });
        let action = Action { steps, replica: replica(by), last: false };
        self.recorder.note(client, span, action, ended.outcome, ended.note);
    }

    /// A statement by itself that reads.
    fn look(&self, client: &mut Client, span: Span) {
        let key = self.key(client);
        let sql = format!(
            "SELECT (SELECT v FROM {} WHERE k = {key}), standby, directory FROM public.place",
            self.table
        );
        let Ok(answer) = client.ask(&sql).answer() else { return };
        let rows = answer.rows();
        let Some([list, standby, directory]) = rows.first().map(|row| &row[..]) else { return };
        let steps = vec![Step::Read(key, Some(elements(list.as_deref())))];
        let replica = replica(Some(server(standby, directory)));
        let action = Action { steps, replica, last: false };
        self.recorder.note(client, span, action, Outcome::Ok, String::new());
    }
}

fn replica(by: Option<Server>) -> Option<Server> {
    by.filter(|server| server.replica)
}

fn elements(list: Option<&str>) -> Vec<i64> {
    let words = list.into_iter().flat_map(|list| list.split(','));
    words.filter_map(|word| word.parse().ok()).collect()
}

impl Workload for Append {
    fn tables(&self) -> Vec<String> {
        vec![format!(
            "CREATE TABLE IF NOT EXISTS {} (k bigint PRIMARY KEY, v text NOT NULL)",
            self.table
        )]
    }

    fn greeting(&self) -> Vec<String> {
        let level = self.isolation.sql();
        vec![format!("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")]
    }

    fn clients(&self) -> usize {
        6
    }

    fn act(&self, client: &mut Client) {
        let span = Span::begin(client);
        match client.random.below(10) {
            0..=4 => self.block(client, span),
            5 | 6 => self.reading(client, span),
            7 => {
                let (step, sql) = self.append(client);
                let (outcome, note) = client.ask(&sql).outcome("INSERT 0 1");
                let action = Action { steps: vec![step], ..Action::default() };
                self.recorder.note(client, span, action, outcome, note);
            }
            _ => self.look(client, span),
        }
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let span = Span::begin(client);
        let rows = client.insist(&format!("SELECT k, v FROM {}", self.table))?;
        let mut lists: BTreeMap<i64, Vec<i64>> = (0..=self.next.load(Ordering::Relaxed) / TURN
            + KEYS)
            .map(|k| (k, Vec::new()))
            .collect();
        for row in rows {
            lists.insert(number(&row[0]), elements(row[1].as_deref()));
        }
        let steps = lists.into_iter().map(|(key, list)| Step::Read(key, Some(list))).collect();
        let action = Action { steps, replica: None, last: true };
        self.recorder.note(client, span, action, Outcome::Ok, String::new());
        let promise = Promise { isolation: self.isolation, real_time: true };
        Ok(Recorded::Append(promise, self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
