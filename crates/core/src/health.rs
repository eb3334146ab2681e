//! What a node knows of the others from heartbeats, and the lease that rides on them.
//!
//! The clock is an argument, and bytes are somebody else's: the agent's threads and the simulator
//! call the same functions. Moments are this node's own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::coordinator::Peer;
use crate::lease::{self, LeaseTiming, Voters, VotersVersion};
use crate::status::{Hearing, NodeStatus};
use crate::{Lsn, Moment, NodeId, Term};

/// A heartbeat: the sender's word about itself, and the term it asks a lease for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Beat {
    /// The sender's word about itself.
    pub status: NodeStatus,
    /// As a writer: the term that it asks a lease for.
    pub lease: Option<Term>,
    /// Whose majority it counts.
    #[serde(default)]
    pub voters: VotersVersion,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BeatAnswer {
    /// The newest term the answering node knows.
    pub term: Term,
    /// Whether the lease was granted.
    pub granted: bool,
    /// From a writer: where its log ends.
    #[serde(default)]
    pub log_end: Option<LogEnd>,
}

/// Where a writer's log ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogEnd {
    /// The term it writes in.
    pub term: Term,
    /// Flushed so far.
    pub flushed: Lsn,
    /// How old that was when the answer was made, in milliseconds, rounded up.
    pub age_ms: u64,
}

/// What the gate must hear of a change, before anybody else hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GateWord {
    /// Nothing.
    Keep,
    /// A later term is known: no answer may leave any more.
    Close,
    /// The lease of this term runs until then.
    Renew(Term, Moment),
}

/// What follows from a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[must_use = "the gate must hear its word"]
pub struct Effect {
    /// For the gate.
    pub gate: GateWord,
    /// Whether something changed that a decision may depend on.
    pub news: bool,
}

/// The health table of a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    me: NodeId,
    timing: LeaseTiming,
    /// When this process began to listen. What it granted before is forgotten.
    started: Moment,
    /// Until when an earlier process of this node may have granted leases.
    forgotten: Moment,
    /// Whether leases may be granted: the newest term that this node promised is known.
    grants: bool,
    members: BTreeSet<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    voters: Voters,
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

impl Table {
    /// A table that knows nobody yet. `promised` is the term that this node has promised, so that it
    /// grants no lease below it.
    pub fn new(me: NodeId, promised: Term, now: Moment) -> Self {
        let timing = LeaseTiming::default();
        Self {
            me,
            timing,
            started: now,
            forgotten: now + timing.length,
            grants: false,
            members: BTreeSet::new(),
            peers: BTreeMap::new(),
            voters: Voters::default(),
            status: None,
            term: promised,
            holds: BTreeMap::new(),
            asking: None,
            granted: BTreeMap::new(),
            clear_at: BTreeMap::new(),
            log_ends: BTreeMap::new(),
            strict: false,
        }
    }

    /// Takes in the replicated facts that heartbeats depend on. Without a promise (it was lost) this
    /// node does not know which terms are over for it, and grants no lease.
    pub fn set_cluster(
        &mut self,
        term: Term,
        voters: Voters,
        members: &BTreeSet<NodeId>,
        promised: bool,
    ) -> Effect {
        let gate = self.learn(term);
        self.grants = promised;
        self.voters = voters;
        self.members.clone_from(members);
        self.peers.retain(|n, _| members.contains(n));
        self.log_ends.retain(|n, _| members.contains(n));
        Effect { gate, news: false }
    }

    /// Whether leases are asked for in this term.
    pub fn asks(&self, term: Term) -> bool {
        self.asking == Some(term)
    }

    /// Whether a refused connection releases the lease of the node behind it.
    pub fn set_strict(&mut self, strict: bool) {
        self.strict = strict;
    }

    /// Asks for leases in this term from now on, or for none.
    pub fn ask(&mut self, term: Option<Term>, now: Moment) -> Effect {
        if self.asking != term {
            self.asking = term;
            self.granted.clear();
        }
        Effect { gate: self.renewal(now), news: false }
    }

    /// Sets what this node says of itself; the heartbeat details are filled in with each beat.
    /// News: others should hear of it at once.
    pub fn set_status(&mut self, status: NodeStatus, now: Moment) -> Effect {
        let news = self.status.as_ref().is_none_or(|old| is_news(old, &status));
        self.status = Some(status);
        // Answers of the others renew the lease. Who is a majority alone hears none.
        Effect { gate: self.renewal(now), news }
    }

    /// What is known of every member, this node included.
    pub fn peers(&self, now: Moment) -> BTreeMap<NodeId, Peer> {
        let mut peers = self.peers.clone();
        let status = self.status.clone().map(|s| self.complete(s, now));
        peers.insert(self.me, Peer { heard: Some(now), gone: false, status });
        peers
    }

    /// Where a node's log ended as a writer, in which term, and a moment no later than that was
    /// true: whatever was acknowledged before it is in that log.
    pub fn log_end(&self, of: NodeId) -> Option<(Term, Lsn, Moment)> {
        if of != self.me {
            return self.log_ends.get(&of).copied();
        }
        let status = self.status.as_ref()?;
        let server = status.server.as_ref()?;
        Some((status.writer.as_ref()?.term, server.flushed, server.sampled))
    }

    /// The last word of one node.
    pub fn status_of(&self, node: NodeId) -> Option<&NodeStatus> {
        self.peers.get(&node)?.status.as_ref()
    }

    /// Whether every lease of a term below `term` is surely over.
    pub fn lease_clear(&self, term: Term, now: Moment) -> bool {
        let mut clear_at: BTreeMap<NodeId, Moment> = self
            .clear_at
            .iter()
            .filter(|(_, (t, _))| *t >= term)
            .map(|(n, (_, at))| (*n, *at))
            .collect();
        clear_at.insert(self.me, self.held_below(term));
        lease::clear(&self.voters.names, &clear_at, now)
    }

    /// The end of the lease of the term we ask for.
    pub fn lease_until(&self, now: Moment) -> Option<Moment> {
        self.asking?;
        lease::deadline(&self.timing, self.me, now, &self.voters.names, &self.granted)
    }

    /// Length of a lease.
    pub fn lease_length(&self) -> Duration {
        self.timing.length
    }

    /// The lease's end for the gate, as after it was opened.
    pub fn renewal(&self, now: Moment) -> GateWord {
        match (self.asking, self.lease_until(now)) {
            (Some(term), Some(until)) => GateWord::Renew(term, until),
            (None, _) | (_, None) => GateWord::Keep,
        }
    }

    /// This node's next heartbeat, once it has something to say.
    pub fn beat(&self, now: Moment) -> Option<Beat> {
        let status = self.complete(self.status.clone()?, now);
        Some(Beat { status, lease: self.asking, voters: self.voters.version })
    }

    /// A heartbeat came. `None`: one that could not be read.
    pub fn heard(&mut self, from: NodeId, beat: Option<Beat>, now: Moment) -> (BeatAnswer, Effect) {
        let mut granted = false;
        let mut gate = GateWord::Keep;
        let asks = |b: &Beat| b.lease.filter(|_| b.voters >= self.voters.version);
        if let Some(term) = beat.as_ref().and_then(asks)
            && term >= self.term
            && self.grants
        {
            granted = true;
            gate = self.learn(term);
            self.holds.retain(|_, (_, until)| *until > now);
            self.holds.insert(term, (from, now + self.timing.length));
        }
        let news = self.hear(from, now, beat.map(|b| b.status));
        let answer = BeatAnswer { term: self.term, granted, log_end: self.own_log_end(now) };
        (answer, Effect { gate, news })
    }

    /// A heartbeat sent at `sent_at` was answered. `None`: the answer could not be read.
    pub fn answered(
        &mut self,
        by: NodeId,
        sent_at: Moment,
        answer: Option<BeatAnswer>,
        now: Moment,
    ) -> Effect {
        let news = self.hear(by, now, None);
        let mut gate = GateWord::Keep;
        if let Some(answer) = answer {
            // The answer was made after the question: so old it is at the most, however long
            // either was on its way.
            if let Some(LogEnd { term, flushed, age_ms }) = answer.log_end {
                self.log_ends.insert(by, (term, flushed, sent_at - Duration::from_millis(age_ms)));
            }
            if answer.granted && self.asking.is_some_and(|term| term >= answer.term) {
                self.granted.insert(by, sent_at);
                gate = self.renewal(now);
            }
        }
        Effect { gate, news }
    }

    /// A node's host refused the connection: its process is gone.
    pub fn refused(&mut self, by: NodeId) -> Effect {
        let news = !std::mem::replace(&mut self.peers.entry(by).or_default().gone, true);
        // The kernel of its host answers for a process that is no more: nothing of it can reply to
        // a client. A strict cluster waits for the lease all the same (a middlebox may lie).
        if !self.strict {
            self.release(by, None);
        }
        Effect { gate: GateWord::Keep, news }
    }

    /// A later term ends our own lease at once, before anybody hears that we know of it.
    fn learn(&mut self, term: Term) -> GateWord {
        self.term = self.term.max(term);
        if self.asking.is_none_or(|asking| asking >= self.term) {
            return GateWord::Keep;
        }
        self.asking = None;
        self.granted.clear();
        GateWord::Close
    }

    fn complete(&self, mut status: NodeStatus, now: Moment) -> NodeStatus {
        status.term = status.term.max(self.term);
        // Rounded up: the receiver must not think it over early.
        let held = self.held_below(status.term).since(now);
        status.hold_ms = held.as_millis() as u64 + 1;
        // Of whom it never heard it can only say: not since this process began.
        let hearing = |n: &NodeId| {
            let peer = self.peers.get(n);
            let heard = peer.and_then(|p| p.heard).unwrap_or(self.started);
            let silent_ms = Some(now.since(heard).as_millis() as u64);
            (*n, Hearing { silent_ms, gone: peer.is_some_and(|p| p.gone) })
        };
        status.hears = self.members.iter().filter(|n| **n != self.me).map(hearing).collect();
        status
    }

    /// Until when we owe a lease to a writer of a term below this one.
    fn held_below(&self, term: Term) -> Moment {
        let held = self.holds.range(..term).map(|(_, (_, until))| *until).max();
        held.map_or(self.forgotten, |held| held.max(self.forgotten))
    }

    /// Where our own log ends, as a writer.
    fn own_log_end(&self, now: Moment) -> Option<LogEnd> {
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
            let clear = now + Duration::from_millis(status.hold_ms);
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
            let standbys: Vec<NodeId> = w.standbys.keys().copied().collect();
            let broken = w.lags.iter().filter(|(_, lag)| lag.broken_ms.is_some());
            let broken: Vec<NodeId> = broken.map(|(n, _)| *n).collect();
            let full = s.disk.as_ref().map(|d| d.level);
            (w.term, w.serving, w.rule, w.drained, standbys, broken, full)
        })
    };
    gone(old) != gone(new) || writer(old) != writer(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Doing, ServerStatus, WriterStatus};

    fn ms(at: u64) -> Moment {
        Moment(at * 1_000_000)
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn table(me: &str, promised: u64, now: Moment) -> Table {
        Table::new(node(me), Term(promised), now)
    }

    fn join(table: &mut Table, names: &[&str], term: u64, promised: bool, now: Moment) {
        let members: BTreeSet<_> = names.iter().map(|n| node(n)).collect();
        let voters = Voters { names: members.clone(), ..Voters::default() };
        let _ = table.set_cluster(Term(term), voters, &members, promised);
        let status = NodeStatus {
            term: Term(term),
            promised: promised.then_some(Term(term)),
            doing: Doing::Following,
            ..NodeStatus::new(table.me)
        };
        let _ = table.set_status(status, now);
    }

    const ABC: [&str; 3] = ["a", "b", "c"];

    /// `from` beats to `to`, and hears the answer. Whether the lease was granted.
    fn beat(from: &mut Table, to: &mut Table, now: Moment) -> bool {
        let (answer, _) = to.heard(from.me, from.beat(now), now);
        let granted = answer.granted;
        let _ = from.answered(to.me, now, Some(answer), now);
        granted
    }

    #[test]
    fn a_lone_voter_renews_its_own_lease() {
        let now = ms(10_000);
        let mut alone = table("a", 4, now);
        join(&mut alone, &["a"], 4, true, now);
        let _ = alone.ask(Some(Term(4)), now);
        let status = alone.status.clone().unwrap();
        for at in [10_000, 20_000, 30_000] {
            let effect = alone.set_status(status.clone(), ms(at));
            let GateWord::Renew(Term(4), until) = effect.gate else { panic!("{effect:?}") };
            assert!(until > ms(at));
        }
        // With others in the cluster its own word is not enough.
        join(&mut alone, &ABC, 4, true, now);
        assert_eq!(alone.set_status(status, ms(40_000)).gate, GateWord::Keep);
    }

    #[test]
    fn a_later_term_closes_the_gate_before_it_is_told() {
        let now = ms(10_000);
        let (mut a, mut b) = (table("a", 4, now), table("b", 5, now));
        join(&mut a, &ABC, 4, true, now);
        join(&mut b, &ABC, 5, true, now);
        let _ = a.ask(Some(Term(4)), now);
        let _ = b.ask(Some(Term(5)), now);
        let (answer, effect) = a.heard(b.me, b.beat(now), now);
        assert_eq!((answer.term, answer.granted, effect.gate), (Term(5), true, GateWord::Close));
        assert_eq!(a.beat(now).unwrap().lease, None);
    }

    #[test]
    fn a_writers_position_is_as_old_as_the_question_it_answered() {
        let now = ms(10_000);
        let (mut a, mut b) = (table("a", 4, now), table("b", 4, now));
        join(&mut a, &ABC, 4, true, now);
        join(&mut b, &ABC, 4, true, now);
        let mut status = a.status.clone().unwrap();
        let (flushed, sampled) = (Lsn(70), now - Duration::from_millis(100));
        status.server = Some(ServerStatus { flushed, sampled, ..ServerStatus::default() });
        status.writer = Some(WriterStatus { term: Term(4), ..WriterStatus::default() });
        let _ = a.set_status(status, now);
        // Both the question and the answer take their time.
        let question = b.beat(now);
        let (answer, _) = a.heard(b.me, question, ms(10_300));
        let _ = b.answered(a.me, now, Some(answer), ms(10_900));
        let (term, end, at) = b.log_end(a.me).unwrap();
        assert_eq!((term, end), (Term(4), flushed));
        assert!(at <= sampled, "it was there at {at:?}, and not before {sampled:?}");
        assert_eq!(a.log_end(a.me), Some((Term(4), flushed, sampled)));
        assert_eq!(a.log_end(b.me), None);
    }

    #[test]
    fn a_restarted_voter_honours_what_it_may_have_granted() {
        let now = ms(10_000);
        let [mut a, mut b, mut c] = ABC.map(|n| table(n, 4, now));
        for t in [&mut a, &mut b, &mut c] {
            join(t, &ABC, 4, true, now);
        }
        let now = ms(20_000);
        let _ = a.ask(Some(Term(4)), now);
        assert!(beat(&mut a, &mut c, now), "a writes on the word of c");
        // c's process is replaced; b is elected with its help.
        let now = ms(20_300);
        let mut c = table("c", 5, now);
        join(&mut c, &ABC, 5, true, now);
        join(&mut b, &ABC, 5, true, now);
        beat(&mut c, &mut b, now);
        assert!(!b.lease_clear(Term(5), now), "a may still answer");
        beat(&mut c, &mut b, ms(21_800));
        assert!(b.lease_clear(Term(5), ms(21_802)));
    }

    #[test]
    fn no_lease_is_granted_below_the_promise_or_without_one() {
        let now = ms(10_000);
        let (mut a, mut c) = (table("a", 4, now), table("c", 5, now));
        join(&mut a, &ABC, 4, true, now);
        let _ = a.ask(Some(Term(4)), now);
        assert!(!beat(&mut a, &mut c, now), "c knows no cluster yet");
        // Its copy of the record is older than its promise.
        join(&mut c, &ABC, 4, true, now);
        assert!(!beat(&mut a, &mut c, now));
        let mut c = table("c", 0, now);
        join(&mut c, &ABC, 4, false, now);
        assert!(!beat(&mut a, &mut c, now), "what was promised is lost");
    }

    #[test]
    fn who_has_just_begun_to_listen_calls_nobody_silent() {
        let now = ms(10_000);
        let (mut b, mut c) = (table("b", 4, now), table("c", 4, now));
        join(&mut b, &ABC, 4, true, now);
        join(&mut c, &ABC, 4, true, now);
        let now = ms(10_400);
        beat(&mut c, &mut b, now);
        let heard = b.status_of(c.me).unwrap().hears[&node("a")];
        assert_eq!(heard, Hearing { silent_ms: Some(400), gone: false });
    }
}
