//! What this node knows of the others from heartbeats, and the lease that rides on them.
//!
//! Everything here is answered from memory: heartbeat threads call in, and never wait for a disk or
//! for the async runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_core::coordinator::Peer;
use quorate_core::lease::{self, LeaseTiming};
use quorate_core::status::{Hearing, NodeStatus};
use quorate_core::{Lsn, Moment, NodeId, Term};
use quorate_gateway::Gate;
use quorate_link::Pulse;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

/// A heartbeat: the sender's word about itself, and the term it asks a lease for.
#[derive(Serialize, Deserialize)]
struct Beat {
    status: NodeStatus,
    lease: Option<Term>,
}

/// The answer to a heartbeat.
#[derive(Serialize, Deserialize)]
struct BeatAnswer {
    /// The newest term the answering node knows.
    term: Term,
    /// Whether the lease was granted.
    granted: bool,
    /// From a writer: where its log ends.
    #[serde(default)]
    log_end: Option<LogEnd>,
}

/// Where a writer's log ended.
#[derive(Serialize, Deserialize)]
struct LogEnd {
    term: Term,
    flushed: Lsn,
    /// How old that was when the answer was made, in milliseconds, rounded up.
    age_ms: u64,
}

#[derive(Default)]
struct Table {
    /// When this process began to listen. What it granted before is forgotten.
    started: Moment,
    /// Until when an earlier process of this node may have granted leases.
    forgotten: Moment,
    /// Whether leases may be granted: the newest term that this node promised is known.
    grants: bool,
    members: BTreeSet<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    voters: BTreeSet<NodeId>,
    status: Option<NodeStatus>,
    /// The newest term known here: no lease is granted below it.
    term: Term,
    /// As a voter: the leases we granted, by term: to whom, and until when.
    holds: BTreeMap<Term, (NodeId, Moment)>,
    /// As the writer: the term we ask leases for, and when each voter's last grant was sent.
    asking: Option<Term>,
    granted: BTreeMap<NodeId, Moment>,
    /// When each voter's hold on an older lease is over, by its own word.
    clear_at: BTreeMap<NodeId, (Term, Moment)>,
    /// Where each writer's log ended, in which term, and when: no later than it was true, by our
    /// clock alone.
    log_ends: BTreeMap<NodeId, (Term, Lsn, Moment)>,
    strict: bool,
}

/// The health table of a node.
pub struct Health {
    me: NodeId,
    timing: LeaseTiming,
    clock: fn() -> Moment,
    gate: Arc<Gate>,
    table: Mutex<Table>,
    /// Signalled when something changed that a decision may depend on. For the coordinator.
    pub changed: Notify,
    /// Counts the same, for everybody else.
    pub news: watch::Sender<u64>,
}

impl Health {
    /// A table that knows nobody yet. `promised` is the term that this node has promised, so that it
    /// grants no lease below it. Lease renewals go straight to `gate`.
    pub fn new(me: NodeId, promised: Term, clock: fn() -> Moment, gate: Arc<Gate>) -> Arc<Self> {
        let timing = LeaseTiming::default();
        let started = clock();
        let forgotten = started + timing.length;
        let table = Table { started, forgotten, term: promised, ..Table::default() };
        Arc::new(Self {
            me,
            timing,
            clock,
            gate,
            table: Mutex::new(table),
            changed: Notify::new(),
            news: watch::Sender::new(0),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.changed.notify_one();
        self.news.send_modify(|n| *n += 1);
    }

    /// Takes in the replicated facts that heartbeats depend on. Without a promise (it was lost) this
    /// node does not know which terms are over for it, and grants no lease.
    pub fn set_cluster(
        &self,
        term: Term,
        voters: BTreeSet<NodeId>,
        members: &BTreeSet<NodeId>,
        promised: bool,
    ) {
        let mut table = self.table();
        self.learn(&mut table, term);
        table.grants = promised;
        table.voters = voters;
        table.members.clone_from(members);
        table.peers.retain(|n, _| members.contains(n));
        table.log_ends.retain(|n, _| members.contains(n));
    }

    /// Whether leases are asked for in this term.
    pub fn asks(&self, term: Term) -> bool {
        self.table().asking == Some(term)
    }

    /// Whether a refused connection releases the lease of the node behind it.
    pub fn set_strict(&self, strict: bool) {
        self.table().strict = strict;
    }

    /// Asks for leases in this term from now on, or for none.
    pub fn ask(&self, term: Option<Term>) {
        let mut table = self.table();
        if table.asking != term {
            table.asking = term;
            table.granted.clear();
        }
        self.renew(&table);
    }

    /// Sets what this node says of itself; the heartbeat details are filled in with each beat.
    /// Returns whether others should hear of it at once.
    pub fn set_status(&self, status: NodeStatus) -> bool {
        let mut table = self.table();
        let urgent = table.status.as_ref().is_none_or(|old| is_news(old, &status));
        table.status = Some(status);
        // Answers of the others renew the lease. Who is a majority alone hears none.
        self.renew(&table);
        drop(table);
        if urgent {
            self.announce();
        }
        urgent
    }

    /// What is known of every member, this node included.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        let table = self.table();
        let mut peers = table.peers.clone();
        let status = table.status.clone().map(|s| self.complete(&table, s));
        let heard = Some((self.clock)());
        peers.insert(self.me, Peer { heard, gone: false, status });
        peers
    }

    /// Where a node's log ended as a writer, in which term, and a moment no later than that was
    /// true: whatever was acknowledged before it is in that log.
    pub fn log_end(&self, of: NodeId) -> Option<(Term, Lsn, Moment)> {
        let table = self.table();
        if of != self.me {
            return table.log_ends.get(&of).copied();
        }
        let status = table.status.as_ref()?;
        let server = status.server.as_ref()?;
        Some((status.writer.as_ref()?.term, server.flushed, server.sampled))
    }

    /// The last word of one node.
    pub fn status_of(&self, node: NodeId) -> Option<NodeStatus> {
        self.table().peers.get(&node)?.status.clone()
    }

    /// Whether every lease of a term below `term` is surely over.
    pub fn lease_clear(&self, term: Term) -> bool {
        let table = self.table();
        let now = (self.clock)();
        let mut clear_at: BTreeMap<NodeId, Moment> = table
            .clear_at
            .iter()
            .filter(|(_, (t, _))| *t >= term)
            .map(|(n, (_, at))| (*n, *at))
            .collect();
        clear_at.insert(self.me, table.held_below(term).unwrap_or(now));
        lease::clear(&table.voters, &clear_at, now)
    }

    /// The end of the lease of the term we ask for.
    pub fn lease_until(&self) -> Option<Moment> {
        let table = self.table();
        table.asking?;
        lease::deadline(&self.timing, self.me, (self.clock)(), &table.voters, &table.granted)
    }

    /// Length of a lease.
    pub fn lease_length(&self) -> std::time::Duration {
        self.timing.length
    }

    /// A later term ends our own lease at once, before anybody hears that we know of it.
    fn learn(&self, table: &mut Table, term: Term) {
        table.term = table.term.max(term);
        if table.asking.is_some_and(|asking| asking < table.term) {
            table.asking = None;
            table.granted.clear();
            self.gate.close();
        }
    }

    /// Tells the gate the lease's end, as after it was opened.
    pub fn renew_gate(&self) {
        self.renew(&self.table());
    }

    fn renew(&self, table: &Table) {
        let Some(term) = table.asking else { return };
        let now = (self.clock)();
        let until = lease::deadline(&self.timing, self.me, now, &table.voters, &table.granted);
        if let Some(until) = until {
            self.gate.renew(term, until);
        }
    }

    fn complete(&self, table: &Table, mut status: NodeStatus) -> NodeStatus {
        let now = (self.clock)();
        status.term = status.term.max(table.term);
        let held = table.held_below(status.term);
        // Rounded up: the receiver must not think it over early.
        status.hold_ms = held.map_or(0, |until| until.since(now).as_millis() as u64 + 1);
        // Of whom it never heard it can only say: not since this process began.
        let hearing = |n: &NodeId| {
            let peer = table.peers.get(n);
            let heard = peer.and_then(|p| p.heard).unwrap_or(table.started);
            let silent_ms = Some(now.since(heard).as_millis() as u64);
            (*n, Hearing { silent_ms, gone: peer.is_some_and(|p| p.gone) })
        };
        status.hears = table.members.iter().filter(|n| **n != self.me).map(hearing).collect();
        status
    }
}

impl Table {
    /// Until when we owe a lease to a writer of a term below this one.
    fn held_below(&self, term: Term) -> Option<Moment> {
        let held = self.holds.range(..term).map(|(_, (_, until))| *until).max();
        held.max(Some(self.forgotten))
    }

    /// Where our own log ends, as a writer.
    fn log_end(&self, now: Moment) -> Option<LogEnd> {
        let status = self.status.as_ref()?;
        let server = status.server.as_ref()?;
        let age_ms = now.since(server.sampled).as_millis() as u64 + 1;
        Some(LogEnd { term: status.writer.as_ref()?.term, flushed: server.flushed, age_ms })
    }

    fn release(&mut self, node: NodeId, up_to: Option<Term>) {
        self.holds.retain(|t, (to, _)| *to != node || up_to.is_some_and(|limit| *t > limit));
    }

    /// Takes in a word from `from`; returns whether it changes what could be decided.
    fn hear(&mut self, from: NodeId, now: Moment, status: Option<NodeStatus>) -> bool {
        if let Some(status) = &status {
            let clear = now + std::time::Duration::from_millis(status.hold_ms);
            self.clear_at.insert(from, (status.term, clear));
            // Whoever fenced itself released its lease.
            if let Some(surrender) = status.surrender.as_ref().filter(|s| s.released) {
                self.release(from, Some(surrender.term));
            }
        }
        let peer = self.peers.entry(from).or_default();
        let mut news = peer.gone || peer.heard.is_none();
        peer.gone = false;
        peer.heard = Some(now);
        if let Some(status) = status {
            news |= peer.status.as_ref().is_none_or(|old| is_news(old, &status));
            peer.status = Some(status);
        }
        news
    }
}

/// Whether a new word changes anything that somebody decides from.
fn is_news(old: &NodeStatus, new: &NodeStatus) -> bool {
    let key = |s: &NodeStatus| (s.term, s.promised, s.doing, s.document);
    key(old) != key(new)
        || old.report != new.report
        || old.surrender != new.surrender
        || differ(old, new)
}

fn differ(old: &NodeStatus, new: &NodeStatus) -> bool {
    let gone = |s: &NodeStatus| -> Vec<NodeId> {
        s.hears.iter().filter(|(_, h)| h.gone).map(|(n, _)| *n).collect()
    };
    let writer = |s: &NodeStatus| {
        s.writer.as_ref().map(|w| {
            (w.term, w.serving, w.rule, w.drained, w.standbys.keys().copied().collect::<Vec<_>>())
        })
    };
    gone(old) != gone(new) || writer(old) != writer(new)
}

impl Pulse for Health {
    fn beat(&self, _to: NodeId) -> Vec<u8> {
        let table = self.table();
        let Some(status) = table.status.clone() else {
            return Vec::new();
        };
        let beat = Beat { status: self.complete(&table, status), lease: table.asking };
        serde_json::to_vec(&beat).unwrap_or_default()
    }

    fn heard(&self, from: NodeId, beat: &[u8]) -> Vec<u8> {
        let beat: Option<Beat> = serde_json::from_slice(beat).ok();
        let mut table = self.table();
        let now = (self.clock)();
        let mut granted = false;
        let mut status = None;
        if let Some(beat) = beat {
            if let Some(term) = beat.lease
                && term >= table.term
                && table.grants
            {
                granted = true;
                self.learn(&mut table, term);
                table.holds.retain(|_, (_, until)| *until > now);
                table.holds.insert(term, (from, now + self.timing.length));
            }
            status = Some(beat.status);
        }
        let news = table.hear(from, now, status);
        let answer = BeatAnswer { term: table.term, granted, log_end: table.log_end(now) };
        drop(table);
        if news {
            self.announce();
        }
        serde_json::to_vec(&answer).unwrap_or_default()
    }

    fn answered(&self, by: NodeId, sent_at: Moment, answer: &[u8]) {
        let answer: Option<BeatAnswer> = serde_json::from_slice(answer).ok();
        let mut table = self.table();
        let news = table.hear(by, (self.clock)(), None);
        // The answer was made after the question: so old it is at the most, however long either was
        // on its way.
        if let Some(LogEnd { term, flushed, age_ms }) =
            answer.as_ref().and_then(|a| a.log_end.as_ref())
        {
            let at = sent_at - std::time::Duration::from_millis(*age_ms);
            table.log_ends.insert(by, (*term, *flushed, at));
        }
        if let Some(answer) = answer
            && answer.granted
            && table.asking.is_some_and(|term| term >= answer.term)
        {
            table.granted.insert(by, sent_at);
            self.renew(&table);
        }
        drop(table);
        if news {
            self.announce();
        }
    }

    fn refused(&self, by: NodeId) {
        let mut table = self.table();
        let strict = table.strict;
        let news = !std::mem::replace(&mut table.peers.entry(by).or_default().gone, true);
        // The kernel of its host answers for a process that is no more: nothing of it can reply to
        // a client. A strict cluster waits for the lease all the same (a middlebox may lie).
        if !strict {
            table.release(by, None);
        }
        drop(table);
        if news {
            self.announce();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use quorate_core::Because;
    use quorate_core::state::NodeKind;
    use quorate_core::status::{Doing, ServerStatus, WriterStatus};
    use quorate_gateway::Verdict;

    use super::*;

    thread_local!(static NOW: Cell<u64> = const { Cell::new(0) });

    fn clock() -> Moment {
        Moment(NOW.get() * 1_000_000)
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn health(me: &str, promised: u64) -> Arc<Health> {
        Health::new(node(me), Term(promised), clock, Arc::new(Gate::new()))
    }

    fn join(health: &Health, term: u64, promised: bool) {
        let members: BTreeSet<_> = ["a", "b", "c"].map(node).into();
        health.set_cluster(Term(term), members.clone(), &members, promised);
        let status = NodeStatus {
            node: health.me,
            kind: NodeKind::Data,
            version: String::new(),
            term: Term(term),
            promised: promised.then_some(Term(term)),
            doing: Doing::Following,
            because: Because::default(),
            progress: None,
            report: None,
            surrender: None,
            server: None,
            writer: None,
            hears: BTreeMap::new(),
            hold_ms: 0,
            disk_ms: None,
            document: 0,
            coordinating: None,
        };
        health.set_status(status);
    }

    /// `from` beats to `to`, and hears the answer. Whether the lease was granted.
    fn beat(from: &Health, to: &Health) -> bool {
        let answer = to.heard(from.me, &from.beat(to.me));
        from.answered(to.me, clock(), &answer);
        serde_json::from_slice::<BeatAnswer>(&answer).unwrap().granted
    }

    #[test]
    fn a_lone_voter_renews_its_own_lease() {
        NOW.set(10_000);
        let gate = Arc::new(Gate::new());
        let alone = Health::new(node("a"), Term(4), clock, Arc::clone(&gate));
        join(&alone, 4, true);
        let members: BTreeSet<_> = [node("a")].into();
        alone.set_cluster(Term(4), members.clone(), &members, true);
        alone.ask(Some(Term(4)));
        gate.open(Term(4));
        let status = alone.table().status.clone().unwrap();
        for now in [10_000, 20_000, 30_000] {
            NOW.set(now);
            assert_eq!(gate.check(Term(4), clock()), Verdict::Hold);
            alone.set_status(status.clone());
            assert_eq!(gate.check(Term(4), clock()), Verdict::Pass);
        }
        // With others in the cluster its own word is not enough.
        join(&alone, 4, true);
        NOW.set(40_000);
        alone.set_status(status);
        assert_eq!(gate.check(Term(4), clock()), Verdict::Hold);
    }

    #[test]
    fn a_writers_position_is_as_old_as_the_question_it_answered() {
        NOW.set(10_000);
        let (a, b) = (health("a", 4), health("b", 4));
        join(&a, 4, true);
        join(&b, 4, true);
        let mut status = a.table().status.clone().unwrap();
        let (flushed, sampled) = (Lsn(70), clock() - std::time::Duration::from_millis(100));
        status.server = Some(ServerStatus { flushed, sampled, ..ServerStatus::default() });
        status.writer = Some(WriterStatus { term: Term(4), ..WriterStatus::default() });
        a.set_status(status);
        // Both the question and the answer take their time.
        let (asked, question) = (clock(), b.beat(a.me));
        NOW.set(10_300);
        let answer = a.heard(b.me, &question);
        NOW.set(10_900);
        b.answered(a.me, asked, &answer);
        let (term, end, at) = b.log_end(a.me).unwrap();
        assert_eq!((term, end), (Term(4), flushed));
        assert!(at <= sampled, "it was there at {at:?}, and not before {sampled:?}");
        assert_eq!(a.log_end(a.me), Some((Term(4), flushed, sampled)));
        assert_eq!(a.log_end(b.me), None);
    }

    #[test]
    fn a_restarted_voter_honours_what_it_may_have_granted() {
        NOW.set(10_000);
        let (a, b, c) = (health("a", 4), health("b", 4), health("c", 4));
        for h in [&a, &b, &c] {
            join(h, 4, true);
        }
        NOW.set(20_000);
        a.ask(Some(Term(4)));
        assert!(beat(&a, &c), "a writes on the word of c");
        // c's process is replaced; b is elected with its help.
        NOW.set(20_300);
        let c = health("c", 5);
        join(&c, 5, true);
        join(&b, 5, true);
        beat(&c, &b);
        assert!(!b.lease_clear(Term(5)), "a may still answer");
        NOW.set(21_800);
        beat(&c, &b);
        NOW.set(21_802);
        assert!(b.lease_clear(Term(5)));
    }

    #[test]
    fn no_lease_is_granted_below_the_promise_or_without_one() {
        NOW.set(10_000);
        let (a, c) = (health("a", 4), health("c", 5));
        join(&a, 4, true);
        a.ask(Some(Term(4)));
        assert!(!beat(&a, &c), "c knows no cluster yet");
        // Its copy of the record is older than its promise.
        join(&c, 4, true);
        assert!(!beat(&a, &c));
        let c = health("c", 0);
        join(&c, 4, false);
        assert!(!beat(&a, &c), "what was promised is lost");
    }

    #[test]
    fn who_has_just_begun_to_listen_calls_nobody_silent() {
        NOW.set(10_000);
        let (b, c) = (health("b", 4), health("c", 4));
        join(&b, 4, true);
        join(&c, 4, true);
        NOW.set(10_400);
        beat(&c, &b);
        let heard = b.status_of(node("c")).unwrap().hears[&node("a")];
        assert_eq!(heard, Hearing { silent_ms: Some(400), gone: false });
    }
}
