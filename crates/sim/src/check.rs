//! What must always be so, checked against the tree of all logs as things happen.

use std::collections::{BTreeMap, BTreeSet};

use quorate_core::Term;

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
    /// Whether commits were acknowledged that a failover may lose.
    lossy: bool,
    /// The newest moment at which an operation that was served had begun.
    pub(crate) write_begun: At,
    pub(crate) acks: u64,
    pub(crate) reads: u64,
    pub(crate) unknown: u64,
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

    /// An answer depends on this log: every later writer must have it.
    fn depend(&mut self, now: At, tree: &Tree, term: Term, end: Point, what: &str) {
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
