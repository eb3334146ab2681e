//! What the parts of a node share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_consensus::Consensus;
use quorate_core::authority::Authority;
use quorate_core::candidates::candidates;
use quorate_core::coordinator::{ClusterView, Peer};
use quorate_core::invariant::{Breach, Watch};
use quorate_core::lag::{self, Cause};
use quorate_core::state::{Change, Command, NodeKind, State, WallMillis};
use quorate_core::status::{Lag, NodeStatus, WriterStatus};
use quorate_core::{Answer, Because, Lsn, NodeId, Term};
use quorate_gateway::Gate;
use quorate_link::{Heartbeats, Links, clock};
use quorate_replication::Aggregator;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::alerts::{Host, Pending};
use crate::carry::Carry;
use crate::database::Database;
use crate::health::Health;
use crate::lag::Lags;
use crate::promise::PromiseFile;
use crate::reign::Reigning;
use crate::slots::Slots;
use crate::validation::Turn;
use crate::view::{ClusterStatus, Member};

/// What a node is made of.
pub struct Parts {
    /// Its name.
    pub me: NodeId,
    /// Whether it has a database.
    pub kind: NodeKind,
    /// The replicated log.
    pub consensus: Consensus,
    /// Connections to other nodes.
    pub links: Links,
    /// Heartbeats.
    pub heartbeats: Heartbeats,
    /// What heartbeats tell.
    pub health: Arc<Health>,
    /// The response gate of the local server.
    pub gate: Arc<Gate>,
    /// Open while the local server is a standby that may answer reads.
    pub reads: Arc<Gate>,
    /// Which positions release commits.
    pub aggregator: Arc<Aggregator>,
    /// The local server; a witness has none.
    pub database: Option<Arc<Database>>,
    /// The promise file.
    pub promise: PromiseFile,
    /// Password for the superuser of a new cluster's database.
    pub superuser_password: Option<String>,
}

/// What a person asks of this node.
#[derive(Debug)]
pub enum Order {
    /// Restart the server; answered when it is back.
    Restart(oneshot::Sender<Result<(), String>>),
    /// Throw the data away and copy it again.
    Rebuild(oneshot::Sender<Result<(), String>>),
}

/// A running node. Shared by its loop, its coordinator, its ports and its API.
pub struct Node {
    /// What it is made of.
    pub parts: Parts,
    /// The reign of this node, when it is the writer.
    pub reigning: watch::Sender<Option<Reigning>>,
    /// The term whose writer this node follows, while it does: others may follow it then.
    pub follows: watch::Sender<Option<Term>>,
    /// Wakes the loop.
    pub wake: Notify,
    /// Orders of people, for the loop.
    pub orders: mpsc::Sender<Order>,
    /// How late every standby is and was.
    pub lags: Lags,
    /// The replication slots of the local server, and the disk of its log.
    pub slots: Slots,
    /// Whose turn it is to run validation queries.
    pub validation: Turn,
    /// The writer's slots of which the local server keeps copies.
    pub carry: Carry,
    /// Alerts that do not fire yet.
    pub pending: Pending,
    /// What is known of this host.
    pub vitals: Host,
    coordinator: Mutex<Because>,
    watch: Mutex<Watch>,
}

impl Node {
    /// Puts the parts together. The receiver belongs to [`crate::run::run`].
    pub fn new(parts: Parts) -> (Arc<Self>, mpsc::Receiver<Order>) {
        let (orders, inbox) = mpsc::channel(crate::limits::MESSAGES_MAX);
        let node = Self {
            parts,
            reigning: watch::Sender::new(None),
            follows: watch::Sender::new(None),
            wake: Notify::new(),
            orders,
            lags: Lags::default(),
            slots: Slots::default(),
            validation: Turn::default(),
            carry: Carry::default(),
            pending: Pending::default(),
            vitals: Host::default(),
            coordinator: Mutex::default(),
            watch: Mutex::default(),
        };
        (Arc::new(node), inbox)
    }

    /// Proposes a change with the present wall clock.
    pub async fn propose(&self, change: Change) -> Result<Answer, quorate_consensus::Error> {
        self.parts.consensus.propose(Command { at: wall_millis(), change }).await
    }

    /// The term in which this node writes and clients are served.
    pub fn serves(&self, state: &State) -> Option<Term> {
        let term = self.reigning.borrow().as_ref().map(|r| r.term)?;
        let open = self.parts.gate.term() == Some(term);
        (open && state.authority.term == term).then_some(term)
    }

    /// Sets the coordinator's sentence, when this node is the coordinator.
    pub fn set_coordinator_word(&self, because: Because) {
        *self.coordinator.lock().unwrap_or_else(PoisonError::into_inner) = because;
    }

    /// The coordinator's sentence, as far as this node decided it last.
    pub fn coordinator_word(&self) -> Because {
        self.coordinator.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks in what is known of all nodes for what must never be.
    pub(crate) fn look_out(&self, authority: &Authority) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = |breach: Option<&Breach>| {
            if let Some(breach) = breach {
                let broken = breach.invariant.sentence();
                tracing::error!(times = breach.times, "must never be ({broken}): {}", breach.seen);
            }
        };
        tell(watch.record(authority));
        for word in self.parts.health.peers().values().filter_map(|p| p.status.as_ref()) {
            tell(watch.hear(word, authority));
        }
    }

    /// Lets something be decided from all facts of this moment.
    pub(crate) fn with_view<T>(&self, decide: impl FnOnce(&ClusterView<'_>) -> T) -> T {
        let parts = &self.parts;
        let state = parts.consensus.state();
        let voters = parts.consensus.status().voters;
        let peers = parts.health.peers();
        let now = clock::now();
        decide(&ClusterView { me: parts.me, now, state: &state, voters: &voters, peers: &peers })
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> ClusterStatus {
        let parts = &self.parts;
        let state = parts.consensus.state();
        let raft = parts.consensus.status();
        let peers = parts.health.peers();
        let now = clock::now();
        let view =
            ClusterView { me: parts.me, now, state: &state, voters: &raft.voters, peers: &peers };
        let document = state.document();
        let word = state.authority.writer.and_then(|w| peers.get(&w)?.status.as_ref());
        let word = word.and_then(|s| s.writer.clone()).filter(|w| w.term == state.authority.term);
        let word = word.map(|word| match self.reigning.borrow().as_ref().map(|r| r.term) {
            Some(term) if term == word.term => {
                WriterStatus { lags: self.lags.now(self, term), ..word }
            }
            Some(_) | None => word,
        });
        let nodes: BTreeMap<NodeId, Member> = state
            .nodes
            .iter()
            .map(|(name, node)| {
                let peer = peers.get(name).cloned().unwrap_or_default();
                let heard_ms = peer.heard.map(|at| now.since(at).as_millis() as u64);
                let spec = document.node(*name);
                let lag = word.as_ref().and_then(|w| w.lags.get(name)).copied();
                let member = Member {
                    node: node.clone(),
                    role: spec.role,
                    contract: spec.contract(),
                    lag,
                    late_because: lag
                        .and_then(|lag| late_because(*name, &lag, word.as_ref(), &peer)),
                    lately: self.lags.percentiles(*name).filter(|_| lag.is_some()),
                    heard_ms,
                    gone: peer.gone,
                    status: peer.status,
                };
                (*name, member)
            })
            .collect();
        let authority = state.authority.clone();
        let mut status = ClusterStatus {
            cluster_id: state.cluster_id.clone(),
            me: parts.me,
            at: wall_millis(),
            term: authority.term,
            phase: authority.phase,
            writer: match authority.phase {
                quorate_core::authority::Phase::Electing => None,
                quorate_core::authority::Phase::Granted
                | quorate_core::authority::Phase::Serving => authority.writer,
            },
            leader: raft.leader,
            voters: raft.voters.clone(),
            paused: state.paused,
            because: self.coordinator_word(),
            document_version: state.document_version(),
            candidates: candidates(&view),
            authority,
            warnings: Vec::new(),
            breaches: self.breaches(),
            alerts: crate::alerts::told(&state, self.pending.get(), wall_millis()),
            nodes,
        };
        status.warnings = crate::view::warnings(&status, raft.fault.as_deref());
        status.warnings.extend(crate::view::too_few_zones(&status, &document));
        status.warnings.extend(crate::view::of_slots(&status, &state));
        status.warnings.extend(crate::view::of_validations(&state));
        status
    }

    /// What must never be and was seen by this node.
    pub fn breaches(&self) -> Vec<Breach> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).breaches()
    }

    /// The last word of this node about itself.
    pub fn own_status(&self) -> Option<NodeStatus> {
        self.parts.health.peers().remove(&self.parts.me)?.status
    }
}

/// What holds a standby up, when it is late.
fn late_because(
    node: NodeId,
    lag: &Lag,
    word: Option<&WriterStatus>,
    peer: &Peer,
) -> Option<Cause> {
    let cascaded = peer.status.as_ref().and_then(|s| s.cascaded()).map(|(_, link)| link);
    let link = word.and_then(|w| w.standbys.get(&node)).or(cascaded.as_ref());
    let server = peer.status.as_ref().and_then(|s| s.server.as_ref());
    let late = Duration::from_millis(lag.replay_ms);
    // What is missing is told by the same look as how long it has been.
    let end = link.map(|l| Lsn(l.applied.0 + lag.bytes)).unwrap_or_default();
    lag::cause(node, end, late, link, server.map(|s| &s.replay))
}

/// The wall clock, for people.
pub fn wall_millis() -> WallMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
