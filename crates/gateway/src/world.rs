//! What a gateway knows of the cluster, and what it asks of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use quorate_core::contract::Action;
use quorate_core::gateway::Gateway;
use quorate_core::{Lsn, NodeId, Term};
use tokio::sync::{Semaphore, watch};

use crate::gate::{Clock, Gate};
use crate::stream::{BoxFuture, BoxStream};

/// The cluster as a gateway sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// When it was made: from then on it grows old.
    pub made: Made,
    /// Which cluster it is.
    pub cluster: String,
    /// The newest term that this node knows.
    pub term: Term,
    /// Who takes writes.
    pub writer: Option<Writer>,
    /// How far away that is.
    pub writer_distance: Option<Distance>,
    /// Why nobody does, as one sentence.
    pub because: String,
    /// Standbys that serve reads.
    pub replicas: Vec<Replica>,
    /// A replica is late whose contract wants logical consumers to wait for it.
    pub consumers_wait: bool,
    /// Up to where the writer's commits are acknowledged, as far as this node heard.
    pub acknowledged: Option<Lsn>,
    /// Where each earlier reign ended, oldest first.
    pub ends: Vec<(Term, Lsn)>,
    /// What the operator wants of gateways.
    pub wanted: Arc<Gateway>,
    /// The writer takes no writes, because the disk of its log is short: the facts, as one sentence.
    pub full: Option<Arc<str>>,
    /// Logical slots that nobody is to read, because what their consumers lack is not acknowledged:
    /// what that is, as one sentence each.
    pub broken_slots: Arc<BTreeMap<String, String>>,
    /// Logical slots of which the writer has not said yet whether it has them, whole.
    pub unjudged_slots: Arc<BTreeSet<String>>,
}

/// When a view was made. No difference between two views.
#[derive(Debug, Clone, Copy)]
pub struct Made(pub Instant);

impl Default for Made {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl PartialEq for Made {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Made {}

/// The writer of the newest term that this node knows, when it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// Which node.
    pub node: NodeId,
    /// Its term.
    pub term: Term,
    /// Whether it is this node.
    pub here: bool,
}

/// A standby that serves reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Which node.
    pub node: NodeId,
    /// Whether it is this node.
    pub here: bool,
    /// How far it had replayed when it said so last; never less while the same server runs.
    pub replayed: Lsn,
    /// The term whose writer it follows.
    pub term: Term,
    /// Which start of its server said so: a restarted one may be further back.
    pub incarnation: u64,
    /// Since when it is behind the writer, in milliseconds, as far as it is known.
    pub behind_ms: u64,
    /// How far away it is.
    pub distance: Distance,
    /// What it is for.
    pub role: quorate_core::role::Role,
    /// Its share of the reads, in proportion to others.
    pub weight: u8,
    /// What its contract says for as long as it is broken.
    pub broken: Option<Broken>,
}

/// How far away a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    /// On this host.
    Here,
    /// In the zone of this node.
    Zone,
    /// Elsewhere.
    Far,
}

/// A replica that is later than its contract allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What is done about it.
    pub action: Action,
    /// How late what it shows is, in milliseconds.
    pub late_ms: u64,
    /// The limits, in words.
    pub limits: String,
}

/// Where a position in the log was true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Token {
    /// The reign that wrote it.
    pub term: Term,
    /// The position.
    pub lsn: Lsn,
}

impl Token {
    /// As a text that means the same to every gateway of the cluster, and nothing to others.
    pub fn text(self, cluster: &str) -> String {
        format!("{cluster}.{}.{:X}", self.term.0, self.lsn.0)
    }

    /// From such a text.
    pub fn from_text(text: &str, cluster: &str) -> Option<Self> {
        let (of, rest) = text.split_once('.')?;
        let (term, lsn) = rest.split_once('.')?;
        let lsn = u64::from_str_radix(lsn, 16).ok()?;
        (of == cluster).then_some(Self { term: Term(term.parse().ok()?), lsn: Lsn(lsn) })
    }

    /// As bytes between nodes.
    pub(crate) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.term.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.lsn.0.to_be_bytes());
        bytes
    }

    /// From bytes between nodes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (term, lsn) = bytes.split_first_chunk::<8>()?;
        let lsn = lsn.try_into().ok()?;
        Some(Self { term: Term(u64::from_be_bytes(*term)), lsn: Lsn(u64::from_be_bytes(lsn)) })
    }
}

/// Asks whether a server's postmaster lives.
pub type Alive = Arc<dyn Fn() -> bool + Send + Sync>;

/// The server on this host, and the fence around it.
#[derive(Clone)]
pub struct Local {
    /// Socket file of the server.
    pub socket: PathBuf,
    /// Asked before a response of the writer leaves (R12).
    pub gate: Arc<Gate>,
    /// Open while the server is a standby.
    pub reads: Arc<Gate>,
    /// `CLOCK_BOOTTIME`.
    pub clock: Clock,
    /// Whether the server's postmaster lives; `None` where it need not be asked.
    pub alive: Option<Alive>,
    /// Places for replication connections of clients, [`crate::limits::REPLICATION_MAX`] at the most.
    pub senders: Arc<Semaphore>,
}

/// What PostgreSQL knows of a role.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Role {
    /// `pg_authid.rolpassword`.
    pub password: Option<String>,
    /// Whether it may log in.
    pub may_log_in: bool,
    /// Whether its password is no longer valid.
    pub expired: bool,
    /// Whether it may do anything.
    pub superuser: bool,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is committed, on a commit set of copies.
    Committed,
    /// It is not, and never will be.
    Aborted,
    /// That cannot be known.
    Unknown,
}

/// A transaction that may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transaction {
    /// Its 64-bit id.
    pub xid: u64,
    /// The term in which it got it.
    pub term: Term,
    /// Its backend on that writer.
    pub pid: i32,
}

/// The cluster behind a gateway.
pub trait World: Send + Sync + 'static {
    /// The present view. Cheap.
    fn view(&self) -> Arc<View>;

    /// Counts changes of the view.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The server on this host, when there is one.
    fn local(&self) -> Option<Local>;

    /// A position that every commit acknowledged by the local writer so far is at or before.
    fn acknowledged(&self) -> Token;

    /// Opens a stream to [`crate::Sessions`] of another node.
    fn dial(&self, node: NodeId) -> BoxFuture<'_, Result<BoxStream, String>>;

    /// What PostgreSQL knows of a role; `None` when there is no such role. Asks the writer, and the
    /// server here when there is none.
    fn role(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>>;

    /// The same as the server here knows.
    fn role_here(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>>;

    /// Waits until a commit set holds everything the local writer has written so far: false when
    /// that cannot be known any more.
    fn settled(&self) -> BoxFuture<'_, bool>;

    /// Whether a backend of the local server may be cancelled: not while it waits for copies.
    fn may_cancel(&self, pid: i32) -> BoxFuture<'_, bool>;

    /// Whether a walsender of the local server goes by a name that is none of the cluster's own: what
    /// answers to `quorate` lets commits go.
    fn may_stream(&self, pid: i32) -> BoxFuture<'_, bool>;

    /// What became of a transaction whose COMMIT had no answer (§11). Waits for a writer itself, as
    /// long as the gateway holds clients.
    fn fate(&self, transaction: Transaction) -> BoxFuture<'_, Fate>;

    /// The same as the server here knows, if it is the writer: `None` when it is not, or cannot tell
    /// yet.
    fn fate_here(&self, transaction: Transaction) -> BoxFuture<'_, Option<Fate>>;

    /// Something that all nodes know and no client does.
    fn secret(&self) -> [u8; 32];

    /// All other nodes.
    fn nodes(&self) -> Vec<NodeId>;
}
