//! The logs of all servers, as paths in one tree.
//!
//! A log is where it ends: a branch and how many records come before. What a server has is then two
//! numbers however long it ran, and whether one log continues another is a walk over few branches.
//! The tree is the truth that servers themselves do not know; they know timelines and positions.

use quorate_core::Lsn;

/// Bytes of a record.
const RECORD_BYTES: u64 = 8192;

/// The end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    /// The branch that its last record is on, or a later one that begins there.
    branch: usize,
    /// Records up to here.
    pub(crate) depth: u64,
}

/// Where a log of so many records ends.
pub(crate) fn lsn(depth: u64) -> Lsn {
    Lsn(depth * RECORD_BYTES)
}

/// The first id that a transaction gets.
const FIRST_ID: u64 = 3;

/// How many records end at a position.
pub(crate) fn depth(lsn: Lsn) -> u64 {
    lsn.0 / RECORD_BYTES
}

#[derive(Debug)]
struct Branch {
    /// Where it left its parent.
    from: Option<Point>,
    /// For each of its records the least id that no transaction up to it has.
    ids: Vec<u64>,
}

impl Branch {
    fn begin(&self) -> u64 {
        self.from.map_or(0, |from| from.depth)
    }

    /// The depth of its last record.
    fn end(&self) -> u64 {
        self.begin() + self.ids.len() as u64
    }
}

/// Every log that was ever written in a history.
#[derive(Debug)]
pub(crate) struct Tree(Vec<Branch>);

impl Tree {
    /// One log with one record.
    pub(crate) fn new() -> (Self, Point) {
        let root = Branch { from: None, ids: vec![FIRST_ID] };
        (Self(vec![root]), Point { branch: 0, depth: 1 })
    }

    /// A new branch that leaves a log at its end.
    pub(crate) fn fork(&mut self, from: Point) -> Point {
        let from = self.normal(from);
        self.0.push(Branch { from: Some(from), ids: Vec::new() });
        Point { branch: self.0.len() - 1, depth: from.depth }
    }

    /// Writes a record at the end of a branch, of a transaction or of none. `None`: the log ends
    /// before its branch does, so that two records would stand at one place of one timeline.
    pub(crate) fn append(&mut self, log: &mut Point, id: Option<u64>) -> Option<Point> {
        let next = self.next_id(*log);
        let branch = &mut self.0[log.branch];
        if branch.end() != log.depth {
            return None;
        }
        branch.ids.push(id.map_or(next, |id| next.max(id + 1)));
        log.depth += 1;
        Some(*log)
    }

    /// The least id that no transaction of a log has: where recovery goes on.
    pub(crate) fn next_id(&self, log: Point) -> u64 {
        let log = self.normal(log);
        let branch = &self.0[log.branch];
        let at = (log.depth - branch.begin()).checked_sub(1);
        at.and_then(|at| branch.ids.get(at as usize)).copied().unwrap_or(FIRST_ID)
    }

    /// The same log, named by the branch that its last record is on.
    fn normal(&self, mut log: Point) -> Point {
        while let Some(from) = self.0[log.branch].from
            && log.depth <= from.depth
        {
            log.branch = from.branch;
        }
        log
    }

    /// The beginning of a log, so many records long at the most.
    pub(crate) fn prefix(&self, log: Point, depth: u64) -> Point {
        self.normal(Point { depth: log.depth.min(depth), ..log })
    }

    /// Whether `log` begins with all of `start`.
    pub(crate) fn continues(&self, log: Point, start: Point) -> bool {
        start.depth <= log.depth && self.prefix(log, start.depth) == self.normal(start)
    }

    /// How many records two logs have in common.
    pub(crate) fn common(&self, a: Point, b: Point) -> u64 {
        let mut depth = a.depth.min(b.depth);
        loop {
            let (left, right) = (self.prefix(a, depth), self.prefix(b, depth));
            if left == right {
                return depth;
            }
            // They part where the younger branch begins, or before.
            let begin = |p: Point| self.0[p.branch].begin();
            depth = begin(left).max(begin(right)).min(depth - 1);
        }
    }

    /// The branch of a log's end: logs on one branch are prefixes of each other.
    pub(crate) fn branch(&self, log: Point) -> usize {
        self.normal(log).branch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_part_and_are_told_apart() {
        let (mut tree, mut a) = Tree::new();
        for _ in 0..4 {
            tree.append(&mut a, None).unwrap();
        }
        let mut b = tree.fork(tree.prefix(a, 3));
        assert!(tree.continues(a, b), "nothing was written on the new branch yet");
        tree.append(&mut b, None).unwrap();
        assert!(!tree.continues(a, b) && !tree.continues(b, a));
        assert_eq!(tree.common(a, b), 3);
        assert_eq!(tree.common(b, tree.prefix(a, 2)), 2);
        let mut c = tree.fork(tree.prefix(b, 2));
        tree.append(&mut c, None).unwrap();
        assert_eq!(tree.common(c, b), 2);
        assert_eq!(tree.common(c, a), 2);
    }

    #[test]
    fn nothing_is_written_behind_another_record() {
        let (mut tree, mut a) = Tree::new();
        let mut stale = a;
        tree.append(&mut a, None).unwrap();
        assert_eq!(tree.append(&mut stale, None), None);
    }

    #[test]
    fn ids_go_on_behind_those_that_a_log_has() {
        let (mut tree, mut a) = Tree::new();
        assert_eq!(tree.next_id(a), FIRST_ID);
        tree.append(&mut a, Some(7)).unwrap();
        tree.append(&mut a, Some(5)).unwrap();
        tree.append(&mut a, None).unwrap();
        assert_eq!(tree.next_id(a), 8);
        let mut b = tree.fork(tree.prefix(a, 1));
        assert_eq!(tree.next_id(b), FIRST_ID);
        tree.append(&mut b, Some(3)).unwrap();
        assert_eq!(tree.next_id(b), 4);
    }
}
