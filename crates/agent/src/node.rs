//! What the parts of a node share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use quorate_consensus::Consensus;
use quorate_core::authority::Authority;
use quorate_core::candidates::candidates;
use quorate_core::coordinator::ClusterView;
use quorate_core::invariant::{Breach, Watch};
use quorate_core::state::{Change, Command, NodeKind, WallMillis};
use quorate_core::status::NodeStatus;
use quorate_core::{Answer, Because, NodeId};
use quorate_gateway::Gate;
use quorate_link::{Heartbeats, Links, clock};
use quorate_replication::Aggregator;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::database::Database;
use crate::health::Health;
use crate::promise::PromiseFile;
use crate::reign::Reigning;
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
    /// Wakes the loop.
    pub wake: Notify,
    /// Orders of people, for the loop.
    pub orders: mpsc::Sender<Order>,
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
            wake: Notify::new(),
            orders,
            coordinator: Mutex::default(),
            watch: Mutex::default(),
        };
        (Arc::new(node), inbox)
    }

    /// Proposes a change with the present wall clock.
    pub async fn propose(&self, change: Change) -> Result<Answer, quorate_consensus::Error> {
        self.parts.consensus.propose(Command { at: wall_millis(), change }).await
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
        let nodes: BTreeMap<NodeId, Member> = state
            .nodes
            .iter()
            .map(|(name, node)| {
                let peer = peers.get(name).cloned().unwrap_or_default();
                let heard_ms = peer.heard.map(|at| now.since(at).as_millis() as u64);
                let member = Member {
                    node: node.clone(),
                    role: document.node(*name).role,
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
            breaches: self.watch.lock().unwrap_or_else(PoisonError::into_inner).breaches(),
            nodes,
        };
        status.warnings = crate::view::warnings(&status, raft.fault.as_deref());
        status.warnings.extend(crate::view::too_few_zones(&status, &document));
        status
    }

    /// The last word of this node about itself.
    pub fn own_status(&self) -> Option<NodeStatus> {
        self.parts.health.peers().remove(&self.parts.me)?.status
    }
}

/// The wall clock, for people.
pub fn wall_millis() -> WallMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
