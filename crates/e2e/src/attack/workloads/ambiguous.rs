//! Transactions of two statements and a COMMIT that is often cut off. Some are begun by the end of
//! another, whose fate must not be taken for theirs.

use std::sync::atomic::{AtomicI64, Ordering};

use anyhow::Result;
use quorate_history::ambiguous::Action;
use quorate_history::{Outcome, Recorded};

use super::{Workload, ids};
use crate::attack::client::Client;
use crate::attack::recorder::{Pulse, Recorder, Span};

pub(super) struct Ambiguous {
    table: String,
    next: AtomicI64,
    recorder: Recorder<Action>,
}

impl Ambiguous {
    pub(super) fn new(round: usize) -> Self {
        Self {
            table: format!("public.commits_{round}"),
            next: AtomicI64::new(1),
            recorder: Recorder::new(|action| matches!(action, Action::Transaction { .. })),
        }
    }

    /// Writes both halves of a new row.
    fn writes(&self, client: &mut Client, id: i64) -> Result<(), String> {
        for half in [1, 2] {
            let insert = format!("INSERT INTO {} VALUES ({id}, {half})", self.table);
            client.ask(&insert).answer()?;
        }
        Ok(())
    }

    fn id(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A transaction whose end begins the next.
    fn chains(&self, client: &mut Client) -> Result<(), String> {
        let (span, id) = (Span::begin(client), self.id());
        let wrote = self.writes(client, id);
        let at_commit = wrote.is_ok();
        let (outcome, note) = match wrote {
            Ok(()) => client.ask("COMMIT AND CHAIN").outcome("COMMIT"),
            Err(words) => (Outcome::Failed, words),
        };
        let action = Action::Transaction { id, at_commit };
        self.recorder.note(client, span, action, outcome, note.clone());
        if outcome == Outcome::Ok { Ok(()) } else { Err(note) }
    }
}

impl Workload for Ambiguous {
    fn tables(&self) -> Vec<String> {
        vec![format!(
            "CREATE TABLE IF NOT EXISTS {} (id bigint NOT NULL, half int NOT NULL)",
            self.table
        )]
    }

    fn clients(&self) -> usize {
        6
    }

    fn act(&self, client: &mut Client) {
        let span = Span::begin(client);
        let id = self.id();
        let chained = client.random.below(2) == 0;
        let ended = client.block("BEGIN", |client| {
            if chained {
                self.chains(client)?;
            }
            self.writes(client, id)
        });
        let action = Action::Transaction { id, at_commit: ended.at_commit };
        self.recorder.note(client, span, action, ended.outcome, ended.note);
    }

    fn finish(&self, client: &mut Client) -> Result<Recorded> {
        let span = Span::begin(client);
        let rows = ids(client, &self.table)?;
        self.recorder.note(client, span, Action::All(rows), Outcome::Ok, String::new());
        Ok(Recorded::Ambiguous(self.recorder.take()))
    }

    fn pulse(&self) -> Pulse {
        self.recorder.pulse()
    }
}
