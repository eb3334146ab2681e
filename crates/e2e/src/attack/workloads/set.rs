//! Rows with ids of their own, one by one and in blocks.

use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::Result;
use quorate_history::set::Action;
use quorate_history::{Outcome, Recorded};

use super::{Workload, ids};
use crate::attack::client::Client;
use crate::attack::recorder::{Pulse, Recorder, Span};

pub(super) struct Set {
    table: String,
    next: AtomicI64,
    recorder: Recorder<Action>,
}

impl Set {
    pub(super) fn new(round: usize) -> Self {
        Self {
            table: format!("public.rows_{round}"),
            next: AtomicI64::new(1),
            recorder: Recorder::new(|action| matches!(action, Action::Add(_))),
        }
    }
}

impl Workload for Set {
    fn tables(&self) -> Vec<String> {
        // Without a key: what is there twice must show.
        vec![format!("CREATE TABLE IF NOT EXISTS {} (id bigint NOT NULL)", self.table)]
    }

    fn clients(&self) -> usize {
        3
    }

    fn act(&self, client: &mut Client) {
        let span = Span::begin(client);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let insert = format!("INSERT INTO {} VALUES ({id})", self.table);
        let (outcome, note) = if client.random.below(3) == 0 {
            let ended = client.block("BEGIN", |c| c.ask(&insert).answer().map(drop));
            (ended.outcome, ended.note)
        } else {
            client.ask(&insert).outcome("INSERT 0 1")
        };
        self.recorder.note(client, span, Action::Add(id), outcome, note);
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let span = Span::begin(client);
        let rows = ids(client, &self.table)?;
        self.recorder.note(client, span, Action::All(rows), Outcome::Ok, String::new());
        Ok(Recorded::Set(self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
