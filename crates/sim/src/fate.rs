//! Transactions: their ids, and what became of one whose client got no answer.
//!
//! PostgreSQL knows a transaction by its id alone, and after a failover another one may have it.

use quorate_core::Term;
use quorate_core::ancestry::end_of;

use crate::event::ServerEvent;
use crate::flaw::Flaw;
use crate::wal::{Point, lsn};
use crate::world::World;

/// How long a transaction takes at the most.
const TAKES_US: u64 = 20_000;

/// A transaction as whoever began it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transaction {
    pub(crate) term: Term,
    pub(crate) id: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    Aborted,
    Unknown,
}

impl World {
    /// A client's transaction gets its id, and ends a moment later. What it does before may be in the
    /// log already.
    pub(crate) fn begin_transaction(
        &mut self,
        node: usize,
        operation: u64,
        term: Term,
    ) -> Option<Transaction> {
        let server = self.hosts[node].server.as_mut()?;
        let transaction = Transaction { term, id: server.next_id };
        server.next_id += 1;
        server.running.insert(transaction.id);
        if self.random.chance(500) {
            self.append(node, Some(transaction.id));
        }
        let takes = self.some_us(0, TAKES_US);
        self.server_event(node, takes, ServerEvent::Commit { operation, transaction });
        Some(transaction)
    }

    /// A transaction writes its commit record.
    pub(crate) fn write_commit(&mut self, node: usize, operation: u64, transaction: Transaction) {
        let Some(end) = self.append(node, Some(transaction.id)) else { return };
        self.checks.commits(transaction, end);
        if let Some(server) = &mut self.hosts[node].server {
            server.running.remove(&transaction.id);
            server.waiting.push((end, operation));
        }
    }

    /// Whether what a client saw in some term is still there in the log of this writer: a token says
    /// it by position alone.
    pub(crate) fn judge_token(&mut self, node: usize, term: Term, seen_in: Term, seen: Point) {
        let host = &self.hosts[node];
        let Some(agent) = host.agent.as_ref() else { return };
        let authority = &agent.state().authority;
        // A writer that is older than the token answers nobody: its lease is over.
        if authority.term != term || seen_in > term {
            return;
        }
        let Some(log) = host.disk.data.end else { return };
        let end = end_of(&authority.ends(), seen_in).filter(|_| seen_in < term);
        let told = end.is_none_or(|end| lsn(seen.depth) <= end);
        let is_there = self.tree.continues(log, seen);
        if told != is_there {
            let ends = authority.ends();
            let (passes, was) = match told {
                true => ("there", "lost"),
                false => ("lost", "there"),
            };
            let at = lsn(seen.depth);
            let what = format!(
                "{at} of term {seen_in} passes for {passes} in term {term}, and is {was} ({ends:?})"
            );
            self.checks.fail(self.now, &what);
        }
    }

    /// What became of a transaction, as the writer tells it; `None`: it cannot tell yet.
    /// The counterpart of the answer that the program gives to a COMMIT that was cut off.
    pub(crate) fn look_up(&mut self, node: usize, transaction: Transaction) -> Option<Fate> {
        let agent = self.hosts[node].agent.as_ref()?;
        let authority = &agent.state().authority;
        if agent.gate.term != Some(authority.term) && self.flaw != Flaw::UnopenedAnswers {
            return None;
        }
        let later = authority.reigns.iter().filter(|r| r.term > transaction.term);
        let first = match self.flaw {
            Flaw::ReusedIds => Some(u64::MAX),
            Flaw::EveryFork => {
                later.map(|r| r.next_xid).try_fold(u64::MAX, |least, id| Some(least.min(id?)))
            }
            _ => authority.first_reused(transaction.term),
        };
        let (term, held) = (authority.term, agent.aggregator.held);
        let server = self.hosts[node].server.as_ref().filter(|s| s.writes && !s.stopped)?;
        let log = self.hosts[node].disk.data.end?;
        let Transaction { id, .. } = transaction;
        let fate = match first {
            None => Fate::Unknown,
            Some(first) if id >= first => Fate::Aborted,
            // PostgreSQL does not know it yet, or it has not ended.
            Some(_) if id >= server.next_id || server.running.contains(&id) => return None,
            Some(_) => match self.checks.commit_in(&self.tree, log, id) {
                None => Fate::Aborted,
                Some(end) if end.depth <= held => Fate::Committed,
                Some(_) => return None,
            },
        };
        let lossy = self.is_lossy(node);
        match fate {
            Fate::Unknown => {}
            Fate::Aborted => {
                self.checks.denied(self.now, &self.tree, transaction, log, lossy);
            }
            Fate::Committed => {
                self.checks.confirmed(self.now, &self.tree, transaction, term, log, lossy);
            }
        }
        Some(fate)
    }
}
