//! The modelled world: a few nodes, their logs and links, and the record they agree on.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock};

use quorate_core::authority::Phase;
use quorate_core::document::Document;
use quorate_core::report::on_history;
use quorate_core::state::{CertificateAuthority, Node as Member, NodeKind};
use quorate_core::{
    Answer, Because, Change, Command, Lsn, NodeId, Policy, Report, Rule, State, Term, TimelineId,
};

static NAMES: LazyLock<Vec<NodeId>> =
    LazyLock::new(|| (0..8).map(|i| NodeId::new(&format!("n{i}")).unwrap()).collect());

pub(crate) fn name(i: usize) -> NodeId {
    NAMES[i]
}

pub(crate) fn index(node: NodeId) -> usize {
    NAMES.iter().position(|n| *n == node).unwrap()
}

/// A value shared by many states of the model; compared and hashed by its digest.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    pub(crate) value: Arc<T>,
    digest: u64,
}

impl<T> Shared<T> {
    fn new(value: T, key: &impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        Self { value: Arc::new(value), digest: hasher.finish() }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), digest: self.digest }
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

pub(crate) fn shared_state(mut state: State) -> Shared<State> {
    state.events.clear();
    let authority = state.authority.clone();
    Shared::new(state, &authority)
}

pub(crate) fn shared_rule(rule: &Rule) -> Shared<Rule> {
    Shared::new(rule.clone(), rule)
}

/// A log record: the term that wrote it and what it is. Ids from [`MARKER`] on are no client's.
pub(crate) type Record = (u8, u8);

/// First id of records that no client wrote.
pub(crate) const MARKER: u8 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    Down,
    Standby,
    Writer(u32),
}

/// A writer's volatile progress.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Own {
    pub(crate) term: u8,
    pub(crate) rule: Shared<Rule>,
    /// The rule's generation and the log length its marker covers.
    pub(crate) mark: Option<(u64, u8)>,
    /// The generation whose marker a commit set is known to hold.
    pub(crate) marked: Option<u64>,
    pub(crate) open: bool,
    /// Flushed positions, by the feedback of accepted links.
    pub(crate) links: Vec<Option<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) up: bool,
    pub(crate) wal: Vec<Record>,
    /// The timeline the server is on, and where its ancestors ended.
    pub(crate) line: u32,
    pub(crate) forks: Vec<(u32, u8)>,
    /// The promise file; zero: it is lost.
    pub(crate) promised: u8,
    /// The record as far as this node has learnt it.
    pub(crate) known: Shared<State>,
    /// Whether it learnt it since its process began.
    pub(crate) current: bool,
    pub(crate) process: Process,
    /// The term it reported for.
    pub(crate) reported: u8,
    pub(crate) surrendered: u8,
    /// Follows this writer of this term.
    pub(crate) feed: Option<(u8, u8)>,
    /// The writer of this term refused the link.
    pub(crate) diverged: u8,
    /// Feedback under way: to whom, of which term, the position. It survives the link.
    pub(crate) feedback: Option<(u8, u8, u8)>,
    pub(crate) own: Option<Own>,
}

impl Node {
    /// What a freeze would read.
    pub(crate) fn report(&self, term: u8) -> Report {
        Report {
            term: Term(u64::from(term)),
            timeline: TimelineId(self.line),
            lsn: Lsn(self.wal.len() as u64),
            forks: pairs(&self.forks),
        }
    }

    pub(crate) fn known_term(&self) -> u8 {
        self.known.value.authority.term.0 as u8
    }

    pub(crate) fn reigns_in(&self, term: u8) -> bool {
        self.up && self.own.as_ref().is_some_and(|o| o.term == term)
    }

    /// Whether a link may continue this node's log from `writer`'s.
    pub(crate) fn fits(&self, writer: &Node) -> bool {
        on_history(&self.report(0), TimelineId(writer.line), &pairs(&writer.forks)).is_ok()
    }
}

fn pairs(forks: &[(u32, u8)]) -> Vec<(TimelineId, Lsn)> {
    forks.iter().map(|&(t, l)| (TimelineId(t), Lsn(u64::from(l)))).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) record: Shared<State>,
    /// Reports of the record's term that reached the coordinator.
    pub(crate) reports: BTreeMap<NodeId, Report>,
    /// Client records that were acknowledged, and in which term.
    pub(crate) acked: BTreeSet<(u8, u8)>,
    /// Client records that were shown to a client, and in which term.
    pub(crate) shown: BTreeSet<(u8, u8)>,
    pub(crate) next_id: u8,
    pub(crate) crashes: u8,
    pub(crate) forgets: u8,
}

impl World {
    pub(crate) fn term(&self) -> u8 {
        self.record.value.authority.term.0 as u8
    }

    pub(crate) fn phase(&self) -> Phase {
        self.record.value.authority.phase
    }

    /// Applies a change to the record. `false`: it was refused.
    pub(crate) fn apply(&mut self, change: Change) -> bool {
        let mut state = State::clone(&self.record.value);
        let began = matches!(change, Change::BeginElection { .. });
        if state.apply(&Command { at: 0, change }) != Answer::Done {
            return false;
        }
        if began {
            self.reports.clear();
        }
        self.record = shared_state(state);
        true
    }

    /// Whether each of `seen` is in the log of every writer of a later term.
    pub(crate) fn survives(&self, seen: &BTreeSet<(u8, u8)>) -> bool {
        let writes = |n: &&Node| n.up && matches!(n.process, Process::Writer(_));
        self.nodes.iter().filter(writes).all(|n| {
            let term = n.wal.last().map_or(0, |r| r.0);
            seen.iter().all(|&(id, at)| term <= at || n.wal.iter().any(|r| r.1 == id))
        })
    }

    /// Whether no two nodes act in one term.
    pub(crate) fn one_writer_per_term(&self) -> bool {
        let terms: Vec<u8> =
            self.nodes.iter().filter_map(|n| n.own.as_ref().map(|o| o.term)).collect();
        terms.iter().collect::<BTreeSet<_>>().len() == terms.len()
    }
}

pub(crate) fn rule(generation: u64, cohort: &[usize], policy: Policy) -> Rule {
    Rule { generation, cohort: cohort.iter().map(|i| name(*i)).collect(), policy }
}

/// A cluster of `count` nodes in term 1: `n0` writes by `first`, all others follow it.
pub(crate) fn founded(count: usize, first: &Rule) -> World {
    let member = Member {
        kind: NodeKind::Data,
        link: String::new(),
        gateway: String::new(),
        web: String::new(),
        zone: String::new(),
    };
    let because = || Because::new("R1", "");
    let term = Term(1);
    let base = Report { term, timeline: TimelineId(1), lsn: Lsn(1), forks: Vec::new() };
    let mut state = State::default();
    let mut changes = vec![Change::Found {
        cluster_id: "00".into(),
        ca: CertificateAuthority::default(),
        name: name(0),
        node: member.clone(),
        document: Document::default(),
    }];
    for i in 1..count {
        let hash = i.to_string();
        changes.push(Change::AddToken { hash: hash.clone(), expires: 1 });
        changes.push(Change::Admit { name: name(i), node: member.clone(), token_hash: hash });
    }
    let reports = [(name(0), base)].into();
    changes.push(Change::Grant { term, node: name(0), reports, because: because() });
    changes.push(Change::Opened { term, fork: Lsn(1), next_xid: 0, because: because() });
    if first.generation > 1 {
        changes.push(Change::OpenRule { term, rule: first.clone(), because: because() });
        changes.push(Change::CloseRule { term, generation: first.generation });
    }
    for change in changes {
        assert_eq!(state.apply(&Command { at: 0, change }), Answer::Done);
    }
    state.documents.clear();
    let record = shared_state(state);
    let mut world = World {
        nodes: (0..count).map(|_| follower(&record)).collect(),
        record,
        reports: BTreeMap::new(),
        acked: BTreeSet::new(),
        shown: BTreeSet::new(),
        next_id: 1,
        crashes: 0,
        forgets: 0,
    };
    let generation = first.generation;
    world.nodes[0].feed = None;
    world.nodes[0].process = Process::Writer(2);
    world.nodes[0].own = Some(Own {
        term: 1,
        rule: shared_rule(first),
        mark: Some((generation, 2)),
        marked: Some(generation),
        open: true,
        links: (0..count).map(|i| (i != 0).then_some(2)).collect(),
    });
    world
}

fn follower(record: &Shared<State>) -> Node {
    Node {
        up: true,
        wal: vec![(0, MARKER), (1, MARKER + 1)],
        line: 2,
        forks: vec![(1, 1)],
        promised: 1,
        known: record.clone(),
        current: true,
        process: Process::Standby,
        reported: 0,
        surrendered: 0,
        feed: Some((0, 1)),
        diverged: 0,
        feedback: None,
        own: None,
    }
}
