//! Consensus, simulated: Raft as its paper has it, over the simulated network and disk.
//!
//! Production uses a library; what the simulator needs of it is what it promises and what it does
//! not: a leader may be stale, news comes late, what was proposed may or may not have happened.
//! (Ongaro, Ousterhout: In search of an understandable consensus algorithm, USENIX ATC 2014.)

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use quorate_core::{Answer, Command, State};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(150);
pub(crate) const ELECTION_MIN: Duration = Duration::from_millis(450);
pub(crate) const ELECTION_MAX: Duration = Duration::from_millis(900);
/// How much longer a node waits that would rather not lead.
pub(crate) const RELUCTANCE: Duration = Duration::from_millis(2500);

/// An entry of the log.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) term: u64,
    /// Whose proposal it is, by number; zero is nobody's.
    pub(crate) proposal: u64,
    command: Option<Command>,
    /// What it makes of the state. Every node applies the same entries in the same order, so that
    /// one of them does it for all.
    applied: OnceCell<Rc<State>>,
}

impl Entry {
    pub(crate) fn new(term: u64, proposal: u64, command: Option<Command>) -> Rc<Self> {
        Rc::new(Self { term, proposal, command, applied: OnceCell::new() })
    }

    pub(crate) fn apply(&self, before: &Rc<State>) -> &Rc<State> {
        self.applied.get_or_init(|| {
            let Some(command) = &self.command else { return Rc::clone(before) };
            let mut state = State::clone(before);
            match state.apply(command) {
                Answer::Done => Rc::new(state),
                Answer::Refused { .. } => Rc::clone(before),
            }
        })
    }
}

/// What is on disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    term: u64,
    voted: Option<usize>,
    log: Vec<Rc<Entry>>,
}

impl Stored {
    /// A log that begins with this entry.
    pub(crate) fn founded(first: Rc<Entry>) -> Self {
        Self { term: 1, voted: None, log: vec![first] }
    }

    pub(crate) fn term(&self) -> u64 {
        self.term
    }
}

/// What nodes say to each other.
#[derive(Debug, Clone)]
pub(crate) enum Word {
    Vote { term: u64, last: (u64, usize) },
    Voted { term: u64, granted: bool },
    Append { term: u64, before: (u64, usize), entries: Vec<Rc<Entry>>, commit: usize },
    Appended { term: u64, matched: Option<usize> },
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    Follower,
    Candidate {
        votes: BTreeSet<usize>,
    },
    /// Per other voter: what it is known to have, and what it is sent next.
    Leader {
        matched: BTreeMap<usize, usize>,
        next: BTreeMap<usize, usize>,
    },
}

/// What a step leads to: words that may leave once the disk has what was written before them.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) words: Vec<(usize, Word)>,
    /// Whether something must reach the disk before the words leave.
    pub(crate) writes: bool,
    /// Whether the election timer starts anew.
    pub(crate) rests: bool,
    /// Whether this node has begun to lead.
    pub(crate) leads: bool,
}

/// A node's part in consensus.
#[derive(Debug)]
pub(crate) struct Raft {
    me: usize,
    voters: BTreeSet<usize>,
    pub(crate) stored: Stored,
    role: Role,
    pub(crate) leader: Option<usize>,
    /// Entries of our own log that are on disk: only those count as a copy.
    kept: usize,
    commit: usize,
    applied: usize,
}

impl Raft {
    pub(crate) fn new(me: usize, voters: BTreeSet<usize>, stored: Stored) -> Self {
        let kept = stored.log.len();
        let role = Role::Follower;
        Self { me, voters, stored, role, leader: None, kept, commit: 0, applied: 0 }
    }

    /// What was stored in this term, so many entries long, is on disk.
    pub(crate) fn kept(&mut self, stored: &Stored) {
        let same = stored.log.last().map(|e| e.term) == self.entry_term(stored.log.len());
        if stored.term == self.stored.term && same {
            self.kept = self.kept.max(stored.log.len());
            self.advance();
        }
    }

    fn entry_term(&self, length: usize) -> Option<u64> {
        Some(self.stored.log.get(length.checked_sub(1)?)?.term)
    }

    pub(crate) fn leads(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    fn last(&self) -> (u64, usize) {
        (self.stored.log.last().map_or(0, |e| e.term), self.stored.log.len())
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        self.voters.clone().into_iter().filter(move |v| *v != me)
    }

    fn is_majority(&self, count: usize) -> bool {
        count > self.voters.len() / 2
    }

    /// Nothing was heard of a leader for too long.
    pub(crate) fn campaign(&mut self) -> Output {
        self.stored.term += 1;
        self.stored.voted = Some(self.me);
        self.leader = None;
        self.role = Role::Candidate { votes: [self.me].into() };
        let word = Word::Vote { term: self.stored.term, last: self.last() };
        let mut output = Output { writes: true, rests: true, ..Output::default() };
        output.words = self.others().map(|to| (to, word.clone())).collect();
        if self.is_majority(1) {
            self.lead(&mut output);
        }
        output
    }

    fn lead(&mut self, output: &mut Output) {
        let next = self.stored.log.len();
        self.role = Role::Leader {
            matched: self.others().map(|v| (v, 0)).collect(),
            next: self.others().map(|v| (v, next)).collect(),
        };
        self.leader = Some(self.me);
        output.leads = true;
        self.append(0, None, output);
    }

    fn append(&mut self, proposal: u64, command: Option<Command>, output: &mut Output) {
        self.stored.log.push(Entry::new(self.stored.term, proposal, command));
        output.writes = true;
        output.words.extend(self.news());
    }

    /// Puts a command into the log; only a leader can.
    pub(crate) fn propose(&mut self, proposal: u64, command: Command) -> Option<Output> {
        let mut output = Output::default();
        self.leads().then(|| {
            self.append(proposal, Some(command), &mut output);
            output
        })
    }

    /// What a leader says to everybody, now and then.
    pub(crate) fn news(&self) -> Vec<(usize, Word)> {
        let Role::Leader { next, .. } = &self.role else { return Vec::new() };
        next.iter().map(|(to, from)| (*to, self.append_from(*from))).collect()
    }

    fn append_from(&self, from: usize) -> Word {
        let term = from.checked_sub(1).map_or(0, |at| self.stored.log[at].term);
        Word::Append {
            term: self.stored.term,
            before: (term, from),
            entries: self.stored.log[from..].to_vec(),
            commit: self.commit,
        }
    }

    pub(crate) fn hear(&mut self, from: usize, word: Word) -> Output {
        let mut output = Output::default();
        let term = match &word {
            Word::Vote { term, .. }
            | Word::Voted { term, .. }
            | Word::Append { term, .. }
            | Word::Appended { term, .. } => *term,
        };
        if term > self.stored.term {
            self.stored.term = term;
            self.stored.voted = None;
            self.role = Role::Follower;
            self.leader = None;
            output.writes = true;
        }
        let current = term == self.stored.term;
        match word {
            Word::Vote { last, .. } => {
                let free = self.stored.voted.is_none_or(|v| v == from);
                let granted = current && free && last >= self.last();
                if granted {
                    self.stored.voted = Some(from);
                    output.writes = true;
                    output.rests = true;
                }
                output.words.push((from, Word::Voted { term: self.stored.term, granted }));
            }
            Word::Voted { granted, .. } => {
                let majority = self.voters.len() / 2;
                if let Role::Candidate { votes } = &mut self.role
                    && current
                    && granted
                {
                    votes.insert(from);
                    if votes.len() > majority {
                        self.lead(&mut output);
                    }
                }
            }
            Word::Append { before, entries, commit, .. } => {
                let matched = current.then(|| {
                    self.role = Role::Follower;
                    self.leader = Some(from);
                    output.rests = true;
                    self.take(before, entries, commit, &mut output)
                });
                let word = Word::Appended { term: self.stored.term, matched: matched.flatten() };
                output.words.push((from, word));
            }
            Word::Appended { matched: answer, .. } if current => self.appended(from, answer),
            Word::Appended { .. } => {}
        }
        output
    }

    /// Takes entries in; how far the log is the leader's then.
    fn take(
        &mut self,
        before: (u64, usize),
        entries: Vec<Rc<Entry>>,
        commit: usize,
        output: &mut Output,
    ) -> Option<usize> {
        let (term, from) = before;
        let log = &mut self.stored.log;
        if from > log.len() || from > 0 && log[from - 1].term != term {
            return None;
        }
        let end = from + entries.len();
        for (at, entry) in (from..).zip(entries) {
            if log.get(at).is_some_and(|e| e.term == entry.term) {
                continue;
            }
            log.truncate(at);
            self.kept = self.kept.min(at);
            log.push(entry);
            output.writes = true;
        }
        self.commit = self.commit.max(commit.min(end));
        Some(end)
    }

    fn appended(&mut self, from: usize, answer: Option<usize>) {
        let Role::Leader { matched, next } = &mut self.role else { return };
        match answer {
            Some(at) => {
                let known = matched.entry(from).or_default();
                *known = at.max(*known);
                next.insert(from, *known);
            }
            None => {
                let at = next.entry(from).or_default();
                *at = at.saturating_sub(1 + *at / 4);
            }
        }
        self.advance();
    }

    /// Commits what a majority has, if it is of this leader's own term (section 5.4.2).
    fn advance(&mut self) {
        let Role::Leader { matched, .. } = &self.role else { return };
        let mut has: Vec<usize> = matched.values().copied().collect();
        has.push(self.kept);
        has.sort_unstable_by(|a, b| b.cmp(a));
        let at = has[self.voters.len() / 2];
        if at > self.commit && self.stored.log[at - 1].term == self.stored.term {
            self.commit = at;
        }
    }

    /// Entries applied here.
    pub(crate) fn applied(&self) -> usize {
        self.applied
    }

    /// The next committed entry that was not applied here yet.
    pub(crate) fn next_applied(&mut self) -> Option<Rc<Entry>> {
        let at = self.applied;
        (at < self.commit).then(|| {
            self.applied += 1;
            Rc::clone(&self.stored.log[at])
        })
    }
}
