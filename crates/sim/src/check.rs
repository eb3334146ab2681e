//! What must always be so, checked against the tree of all logs as things happen.

use std::collections::{BTreeMap, BTreeSet};

use quorate_core::Term;

use crate::fate::Transaction;
use crate::wal::{Point, Tree};
use crate::world::{At, SECOND};

/// What the checks know of a history so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// The first thing that must not have happened.
    pub(crate) failure: Option<String>,
    /// By branch: the longest log that an answer to a client depended on.
    survivors: BTreeMap<usize, Point>,
    /// By branch: when acknowledged, and the longest log acknowledged by then.
    acknowledged: BTreeMap<usize, Vec<(At, Point)>>,
    /// Who served in which term, and what log they began with.
    opened: BTreeMap<Term, (usize, Point)>,
    /// By id: the transactions that wrote their commit records, and where those end.
    commits: BTreeMap<u64, Vec<(Transaction, Point)>>,
    /// Transactions whose clients were told that nothing is left of them.
    denied: BTreeSet<Transaction>,
    /// Whether commits were acknowledged that a failover may lose.
    lossy: bool,
    /// The newest moment at which an operation that was served had begun.
    pub(crate) write_begun: At,
    pub(crate) acks: u64,
    pub(crate) reads: u64,
    pub(crate) unknown: u64,
    /// Operations without an answer that were told later what became of them.
    pub(crate) told_committed: u64,
    pub(crate) told_aborted: u64,
    pub(crate) lost_messages: u64,
    pub(crate) terms: BTreeSet<Term>,
}

impl Checks {
    pub(crate) fn fail(&mut self, now: At, what: &str) {
        if self.failure.is_none() {
            let (seconds, micros) = (now / SECOND, now % SECOND / 1000);
            self.failure = Some(format!("{seconds}.{micros:06}: {what}"));
        }
    }

    /// A client learnt that its write is committed.
    pub(crate) fn acknowledged(
        &mut self,
        now: At,
        tree: &Tree,
        term: Term,
        end: Point,
        lossy: bool,
    ) {
        self.acks += 1;
        self.lossy |= lossy;
        if self.lossy {
            return;
        }
        let end = tree.prefix(end, end.depth);
        self.depend(now, tree, term, end, "an acknowledged write");
        let acknowledged = self.acknowledged.entry(tree.branch(end)).or_default();
        let longest = acknowledged.last().map_or(end, |(_, longest)| end.max(*longest));
        acknowledged.push((now, longest));
    }

    /// A client was shown everything up to here.
    pub(crate) fn shown(
        &mut self,
        now: At,
        tree: &Tree,
        term: Term,
        end: Point,
        begun: At,
        lossy: bool,
    ) {
        self.reads += 1;
        self.lossy |= lossy;
        if self.lossy {
            return;
        }
        let end = tree.prefix(end, end.depth);
        self.depend(now, tree, term, end, "a write that was read");
        let stale = self.acknowledged.values().any(|acknowledged| {
            let before = acknowledged.partition_point(|(at, _)| *at < begun);
            before > 0 && !tree.continues(end, acknowledged[before - 1].1)
        });
        if stale {
            self.fail(now, "a read lacked a write that was acknowledged before it began");
        }
    }

    /// A transaction writes its commit record.
    pub(crate) fn commits(&mut self, transaction: Transaction, end: Point) {
        self.commits.entry(transaction.id).or_default().push((transaction, end));
    }

    /// Where some transaction of this id ended in a log: PostgreSQL does not ask whose it was.
    pub(crate) fn commit_in(&self, tree: &Tree, log: Point, id: u64) -> Option<Point> {
        let mut commits = self.commits.get(&id)?.iter().map(|(_, end)| *end);
        commits.find(|end| tree.continues(log, *end))
    }

    /// A client learnt that its transaction is committed, from a writer of this term with this log.
    pub(crate) fn confirmed(
        &mut self,
        now: At,
        tree: &Tree,
        transaction: Transaction,
        term: Term,
        log: Point,
        lossy: bool,
    ) {
        let commits = self.commits.get(&transaction.id);
        let own = commits.and_then(|commits| commits.iter().find(|(t, _)| *t == transaction));
        match own {
            Some((_, end)) if tree.continues(log, *end) => {
                let end = *end;
                self.acknowledged(now, tree, term, end, lossy);
            }
            _ => {
                let Transaction { term, id } = transaction;
                let what = format!(
                    "transaction {id} of term {term} was told to be committed, and is lost"
                );
                self.fail(now, &what);
            }
        }
    }

    /// A client learnt that nothing is left of its transaction, from a writer with this log.
    pub(crate) fn denied(
        &mut self,
        now: At,
        tree: &Tree,
        transaction: Transaction,
        log: Point,
        lossy: bool,
    ) {
        self.lossy |= lossy;
        self.denied.insert(transaction);
        if self.is_in(tree, transaction, log) {
            self.denied_wrongly(now, transaction);
        }
    }

    /// Nothing of what was denied may be in a log that an answer depends on, or a writer opens with.
    fn still_denied(&mut self, now: At, tree: &Tree, log: Point) {
        let there = self.denied.iter().find(|denied| self.is_in(tree, **denied, log)).copied();
        if let Some(transaction) = there {
            self.denied_wrongly(now, transaction);
        }
    }

    fn denied_wrongly(&mut self, now: At, transaction: Transaction) {
        let Transaction { term, id } = transaction;
        if !self.lossy {
            let what = "was told to be aborted, and is there";
            self.fail(now, &format!("transaction {id} of term {term} {what}"));
        }
    }

    fn is_in(&self, tree: &Tree, transaction: Transaction, log: Point) -> bool {
        let commits = self.commits.get(&transaction.id).into_iter().flatten();
        commits.filter(|(t, _)| *t == transaction).any(|(_, end)| tree.continues(log, *end))
    }

    /// An answer depends on this log: every later writer must have it.
    fn depend(&mut self, now: At, tree: &Tree, term: Term, end: Point, what: &str) {
        self.still_denied(now, tree, end);
        let longest = self.survivors.entry(tree.branch(end)).or_insert(end);
        *longest = (*longest).max(end);
        let later =
            self.opened.range(term.next()..).find(|(_, (_, log))| !tree.continues(*log, end));
        if let Some((later, (node, _))) = later {
            let node = node + 1;
            self.fail(now, &format!("{what} of term {term} is not in the log of n{node}, which writes in term {later}"));
        }
    }

    /// A node lets clients in as the writer of a term.
    pub(crate) fn opened(
        &mut self,
        now: At,
        tree: &Tree,
        node: usize,
        term: Term,
        log: Point,
        lossy: bool,
    ) {
        self.lossy |= lossy;
        self.terms.insert(term);
        match self.opened.insert(term, (node, log)) {
            Some((other, _)) if other != node => {
                self.fail(now, &format!("two nodes serve as writers of term {term}"));
            }
            Some(_) | None => {}
        }
        if self.lossy {
            return;
        }
        self.still_denied(now, tree, log);
        if self.survivors.values().any(|survivor| !tree.continues(log, *survivor)) {
            let text = "serves without a write that a client knows of";
            self.fail(now, &format!("n{} {text} (term {term})", node + 1));
        }
    }

    /// A client got the answer to a write that it had begun then.
    pub(crate) fn wrote(&mut self, begun: At) {
        self.write_begun = self.write_begun.max(begun);
    }
}
