//! Which position is safe: feedback of live links and the rule in, one released position out.
//!
//! Not here: IO, and the question whether a rule or a term is right (R6); they are given. Invariant:
//! a position is released only in an open term, from links attached in that term, under the rule
//! in force; within a term released positions only grow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_core::lag::{Behind, Ends};
use quorate_core::{Lsn, Moment, NodeId, Rule, Term};
use tokio::sync::{oneshot, watch};

/// How far one copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Positions {
    /// Written to the operating system.
    pub write: Lsn,
    /// Flushed to disk.
    pub flush: Lsn,
    /// Replayed.
    pub apply: Lsn,
}

/// What a commit may wait for; PostgreSQL's `remote_write`, `on` and `remote_apply`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Written on a commit set.
    Write,
    /// Flushed on a commit set.
    Flush,
    /// Replayed on a commit set.
    Apply,
}

/// The released position. Nothing is released while `open` is false: then all three are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quorum {
    /// The term it belongs to.
    pub term: Term,
    /// Whether the term is begun and not fenced.
    pub open: bool,
    /// Written on a commit set.
    pub write: Option<Lsn>,
    /// Flushed on a commit set.
    pub flush: Option<Lsn>,
    /// Replayed on a commit set.
    pub apply: Option<Lsn>,
}

impl Quorum {
    /// The released position of a level.
    pub fn at(&self, level: Level) -> Option<Lsn> {
        match level {
            Level::Write => self.write,
            Level::Flush => self.flush,
            Level::Apply => self.apply,
        }
    }
}

/// Everything the aggregator knows, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The released position.
    pub quorum: Quorum,
    /// Generation of the rule in force.
    pub rule_generation: Option<u64>,
    /// End of WAL that the virtual standby received.
    pub own: Option<Lsn>,
    /// Nodes with a live link; `None` until the node said where it is.
    pub links: BTreeMap<NodeId, Option<Heard>>,
}

/// A node's last word over its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Where it is.
    pub at: Positions,
    /// How long ago it said anything. An idle standby says so each second.
    pub silent: Duration,
}

/// How far a node is behind what is flushed on the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lagging {
    /// On its disk.
    pub disk: Behind,
    /// In what it shows.
    pub replay: Behind,
}

/// Collects positions and releases what a commit set holds. Cheap; shared by all links of a writer.
#[derive(Debug)]
pub struct Aggregator {
    inner: Mutex<Inner>,
    /// Where its clock begins.
    begun: Instant,
    released: watch::Sender<Quorum>,
}

#[derive(Debug, Default)]
struct Inner {
    term: Term,
    open: bool,
    writer: NodeId,
    rule: Option<Rule>,
    own: Option<Lsn>,
    /// Where that was when.
    ends: Ends,
    links: BTreeMap<NodeId, Link>,
    /// Where a node was when its last link of this term ended.
    left: BTreeMap<NodeId, Positions>,
    /// The highest positions of this term, kept through a fence.
    held: [Option<Lsn>; 3],
    next_token: u64,
}

#[derive(Debug)]
struct Link {
    token: u64,
    positions: Option<Positions>,
    /// When feedback last came.
    heard: Instant,
    /// Dropped with the link: tells its guard that it is no longer live.
    _live: oneshot::Sender<()>,
}

impl Default for Aggregator {
    fn default() -> Self {
        let released = watch::Sender::new(Quorum::default());
        Self { inner: Mutex::default(), begun: Instant::now(), released }
    }
}

impl Aggregator {
    /// An aggregator that releases nothing until a term begins.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Begins a term, or opens the current one again after a fence.
    ///
    /// A higher term forgets every link and position: what was reported belongs to the old writer.
    /// The same term keeps them. Returns false, and changes nothing, when the term is over.
    pub fn begin(&self, term: Term, writer: NodeId, rule: Rule) -> bool {
        let mut inner = self.lock();
        if term < inner.term {
            return false;
        }
        if term > inner.term {
            let next_token = inner.next_token;
            *inner = Inner { term, writer, next_token, ..Inner::default() };
        }
        inner.rule = Some(rule);
        inner.open = true;
        self.release(&mut inner);
        true
    }

    /// Replaces the rule; the next released position is computed with it. Returns false, and
    /// changes nothing, when `term` is not the current one (R6).
    pub fn set_rule(&self, term: Term, rule: Rule) -> bool {
        let mut inner = self.lock();
        if term != inner.term || inner.rule.is_none() {
            return false;
        }
        inner.rule = Some(rule);
        self.release(&mut inner);
        true
    }

    /// Releases nothing more until a term begins. Links stay and are listened to.
    pub fn fence(&self) {
        let mut inner = self.lock();
        inner.open = false;
        self.release(&mut inner);
    }

    /// Makes a link's feedback count, in place of an older link of the same node. The caller has
    /// checked the lineage (R4). `None` when `term` is not the current one.
    pub fn attach(self: &Arc<Self>, node: NodeId, term: Term) -> Option<LinkGuard> {
        let mut inner = self.lock();
        if term != inner.term || inner.rule.is_none() {
            return None;
        }
        inner.next_token += 1;
        let token = inner.next_token;
        let (live, over) = oneshot::channel();
        let heard = Instant::now();
        inner.links.insert(node, Link { token, positions: None, heard, _live: live });
        self.release(&mut inner);
        Some(LinkGuard { aggregator: Arc::clone(self), node, token, over: Some(over) })
    }

    /// The end of WAL that the virtual standby received: everything before is flushed on the
    /// writer. Only the virtual standby of this term's server may call this.
    pub fn own_position(&self, lsn: Lsn) {
        let mut inner = self.lock();
        if inner.own < Some(lsn) {
            inner.own = Some(lsn);
            inner.ends.note(lsn, self.now());
            self.release(&mut inner);
        }
    }

    /// The released position.
    pub fn quorum(&self) -> Quorum {
        *self.released.borrow()
    }

    /// Follows the released position.
    pub fn watch(&self) -> watch::Receiver<Quorum> {
        self.released.subscribe()
    }

    /// Waits until the position is released in the term that is open now. Returns false as soon as
    /// that term is fenced or over: the position may or may not be safe then.
    pub async fn wait_for(&self, lsn: Lsn, level: Level) -> bool {
        let mut released = self.watch();
        let term = released.borrow().term;
        let over = |q: &Quorum| q.term != term || !q.open;
        let seen = released.wait_for(|q| over(q) || q.at(level) >= Some(lsn)).await;
        seen.is_ok_and(|q| !over(&q))
    }

    /// Everything the aggregator knows.
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.lock();
        let word = |link: &Link| Some(Heard { at: link.positions?, silent: link.heard.elapsed() });
        Snapshot {
            quorum: self.quorum(),
            rule_generation: inner.rule.as_ref().map(|r| r.generation),
            own: inner.own,
            links: inner.links.iter().map(|(&n, link)| (n, word(link))).collect(),
        }
    }

    /// How late nodes are, attached or not: one without a link is where it says itself, for it may
    /// follow another node, or else where its last link ended, or where this reign began. `None`
    /// before anything is known of this writer's log.
    pub fn lags(
        &self,
        nodes: impl IntoIterator<Item = (NodeId, Option<Positions>)>,
    ) -> Option<BTreeMap<NodeId, Lagging>> {
        let mut inner = self.lock();
        let now = self.now();
        // While nothing is written, that is news, too.
        let own = inner.own?;
        inner.ends.note(own, now);
        let inner = &*inner;
        let at = |node: &NodeId, told: Option<Positions>| {
            let link = inner.links.get(node).and_then(|l| l.positions);
            link.or(told).or_else(|| inner.left.get(node).copied()).unwrap_or_default()
        };
        let lagging = |at: Positions| Lagging {
            disk: inner.ends.behind(at.flush, now),
            replay: inner.ends.behind(at.apply, now),
        };
        let nodes = nodes.into_iter();
        Some(nodes.map(|(node, told)| (node, lagging(at(&node, told)))).collect())
    }

    fn now(&self) -> Moment {
        Moment(self.begun.elapsed().as_nanos() as u64)
    }

    /// Computes and publishes, under the lock so that published positions keep their order.
    fn release(&self, inner: &mut Inner) {
        let levels: [fn(&Positions) -> Lsn; 3] = [|p| p.write, |p| p.flush, |p| p.apply];
        for (i, level) in levels.iter().enumerate() {
            inner.held[i] = inner.held[i].max(inner.safe(level));
        }
        let [write, flush, apply] = if inner.open { inner.held } else { [None; 3] };
        let quorum = Quorum { term: inner.term, open: inner.open, write, flush, apply };
        self.released.send_if_modified(|now| std::mem::replace(now, quorum) != quorum);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that can panic runs under the lock; a poisoned one is still consistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn safe(&self, level: impl Fn(&Positions) -> Lsn) -> Option<Lsn> {
        let copies = self.links.iter().filter_map(|(&n, l)| Some((n, level(&l.positions?))));
        let mut reached: BTreeMap<NodeId, Lsn> = copies.filter(|(_, at)| at.0 > 0).collect();
        // The writer's own word about itself is the local stream, never a link.
        reached.remove(&self.writer);
        reached.extend(self.own.map(|own| (self.writer, own)));
        self.rule.as_ref()?.safe_position(self.writer, &reached)
    }
}

/// A live link. Dropping it forgets the node's position.
#[derive(Debug)]
pub struct LinkGuard {
    aggregator: Arc<Aggregator>,
    node: NodeId,
    token: u64,
    over: Option<oneshot::Receiver<()>>,
}

impl LinkGuard {
    /// Counts the node's word. Positions of one link only grow: a standby that starts to receive at
    /// the beginning of a segment still has what it had. Returns false when the link is not live.
    pub fn feedback(&self, positions: Positions) -> bool {
        let mut inner = self.aggregator.lock();
        let Some(link) = inner.links.get_mut(&self.node).filter(|l| l.token == self.token) else {
            return false;
        };
        link.heard = Instant::now();
        let old = link.positions.unwrap_or_default();
        let new = Positions {
            write: old.write.max(positions.write),
            flush: old.flush.max(positions.flush),
            apply: old.apply.max(positions.apply),
        };
        if link.positions != Some(new) {
            link.positions = Some(new);
            self.aggregator.release(&mut inner);
        }
        true
    }

    /// Resolves when the link no longer counts: another term began, or a newer link of the node.
    /// May be waited for once.
    pub fn over(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let over = self.over.take();
        async move {
            if let Some(over) = over {
                // A sent value and a dropped sender mean the same.
                let _ = over.await;
            }
        }
    }
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        let mut inner = self.aggregator.lock();
        if inner.links.get(&self.node).is_some_and(|l| l.token == self.token) {
            let link = inner.links.remove(&self.node);
            inner.left.extend(link.and_then(|l| l.positions).map(|at| (self.node, at)));
            // What a commit set held stays held; the next position needs the remaining copies.
            self.aggregator.release(&mut inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_core::Policy;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn rule(cohort: &str, copies: u8) -> Rule {
        let cohort = cohort.split_whitespace().map(node).collect();
        Rule { generation: 1, cohort, policy: Policy::Copies(copies) }
    }

    fn at(lsn: u64) -> Positions {
        Positions { write: Lsn(lsn), flush: Lsn(lsn), apply: Lsn(lsn) }
    }

    fn flushed(a: &Aggregator) -> Option<u64> {
        a.quorum().flush.map(|l| l.0)
    }

    #[test]
    fn a_commit_set_releases_and_a_fence_does_not() {
        let a = Aggregator::new();
        assert!(a.attach(node("b"), Term(0)).is_none(), "no term has begun");
        assert!(a.begin(Term(1), node("a"), rule("a b c", 2)));
        a.own_position(Lsn(10));
        assert_eq!(flushed(&a), None);
        let b = a.attach(node("b"), Term(1)).unwrap();
        assert_eq!(flushed(&a), None, "a link without a word is no copy");
        b.feedback(Positions { write: Lsn(9), flush: Lsn(7), apply: Lsn(0) });
        let q = a.quorum();
        assert_eq!((q.write, q.flush, q.apply), (Some(Lsn(9)), Some(Lsn(7)), None));
        a.fence();
        assert_eq!(flushed(&a), None);
        b.feedback(at(8));
        assert_eq!(flushed(&a), None);
        assert!(a.begin(Term(1), node("a"), rule("a b c", 2)));
        assert_eq!(flushed(&a), Some(8), "the link was listened to while fenced");
    }

    #[test]
    fn a_new_term_forgets_links_and_positions() {
        let a = Aggregator::new();
        a.begin(Term(1), node("a"), rule("a b", 2));
        a.own_position(Lsn(1));
        let b = a.attach(node("b"), Term(1)).unwrap();
        b.feedback(at(7));
        assert_eq!(flushed(&a), Some(7));
        assert!(a.begin(Term(2), node("a"), rule("a b", 2)));
        assert_eq!(flushed(&a), None);
        assert!(!b.feedback(at(9)), "a link of an old term does not count");
        assert!(a.attach(node("b"), Term(1)).is_none());
        assert!(!a.begin(Term(1), node("a"), rule("a b", 1)));
        assert!(!a.set_rule(Term(1), rule("a", 1)));
        assert_eq!(flushed(&a), None);
    }

    #[test]
    fn the_newest_link_of_a_node_counts_and_a_dropped_one_is_forgotten() {
        let a = Aggregator::new();
        a.begin(Term(1), node("a"), rule("a b c", 2));
        a.own_position(Lsn(1));
        let old = a.attach(node("b"), Term(1)).unwrap();
        old.feedback(at(5));
        let new = a.attach(node("b"), Term(1)).unwrap();
        assert!(!old.feedback(at(50)));
        drop(old);
        assert!(new.feedback(at(6)), "dropping the old link leaves the new one");
        assert_eq!(flushed(&a), Some(6));
        drop(new);
        assert!(a.snapshot().links.is_empty());
        assert_eq!(flushed(&a), Some(6), "released positions stay released");
        let c = a.attach(node("c"), Term(1)).unwrap();
        c.feedback(at(4));
        assert_eq!(flushed(&a), Some(6));
    }

    #[test]
    fn a_rule_change_takes_effect_at_once() {
        let a = Aggregator::new();
        a.begin(Term(1), node("a"), rule("a b c", 3));
        a.own_position(Lsn(9));
        let b = a.attach(node("b"), Term(1)).unwrap();
        b.feedback(at(8));
        assert_eq!(flushed(&a), None);
        assert!(a.set_rule(Term(1), rule("a b", 2)));
        assert_eq!(flushed(&a), Some(8));
        assert!(a.set_rule(Term(1), rule("a", 1)));
        assert_eq!(flushed(&a), Some(9));
    }

    #[test]
    fn a_node_cannot_speak_for_the_writer() {
        let a = Aggregator::new();
        a.begin(Term(1), node("a"), rule("a b", 2));
        let fake = a.attach(node("a"), Term(1)).unwrap();
        fake.feedback(at(9));
        let b = a.attach(node("b"), Term(1)).unwrap();
        b.feedback(at(5));
        assert_eq!(flushed(&a), None, "the writer's own position is unknown");
        a.own_position(Lsn(6));
        assert_eq!(flushed(&a), Some(5));
    }

    #[tokio::test]
    async fn waiting_ends_with_the_position_or_with_the_term() {
        let a = Aggregator::new();
        assert!(!a.wait_for(Lsn(1), Level::Flush).await, "no term is open");
        a.begin(Term(1), node("a"), rule("a b", 2));
        let b = a.attach(node("b"), Term(1)).unwrap();
        let (reached, ()) = tokio::join!(a.wait_for(Lsn(5), Level::Flush), async {
            a.own_position(Lsn(5));
            b.feedback(at(4));
            tokio::task::yield_now().await;
            b.feedback(at(5));
        });
        assert!(reached);
        let (reached, ()) = tokio::join!(a.wait_for(Lsn(6), Level::Flush), async { a.fence() });
        assert!(!reached);
    }

    #[tokio::test]
    async fn a_guard_knows_when_it_is_over() {
        let a = Aggregator::new();
        a.begin(Term(1), node("a"), rule("a b", 2));
        let mut b = a.attach(node("b"), Term(1)).unwrap();
        a.begin(Term(2), node("a"), rule("a b", 2));
        b.over().await;
    }
}
