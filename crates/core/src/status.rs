//! What a node says of itself, with every heartbeat.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::because::Because;
use crate::invariant::Invariant;
use crate::report::Report;
use crate::slots::{Carried, DiskStanding, SlotsWord};
use crate::state::{NodeKind, WallMillis};
use crate::{Lsn, Moment, NodeId, Term, TimelineId};

/// What a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    /// The process has just begun.
    #[default]
    Starting,
    /// Votes only.
    Witness,
    /// Its server starts or replays its log.
    Recovering,
    /// Cuts its feed and reads its log's end (rule R3): a report is about to come.
    Freezing,
    /// Reported and waits for the election's outcome.
    Frozen,
    /// Named as writer; promotes.
    Promoting,
    /// Promoted; waits until its marker is held by a commit set (rule R10).
    Opening,
    /// Serves writes.
    Writing,
    /// Follows the writer.
    Following,
    /// Has no feed although there is a writer.
    Detached,
    /// Copies the database.
    Cloning,
    /// Rewinds a diverged tail.
    Rewinding,
    /// Stopped serving; was or may have been the writer.
    Fenced,
    /// Cannot go on without a person.
    Broken,
}

/// A writer's word that it will not acknowledge anything more in this term.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Surrender {
    /// The term given up.
    pub term: Term,
    /// Why.
    pub reason: SurrenderReason,
    /// Whether its lease is released: it answers no reads either.
    pub released: bool,
}

/// Why a writer gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SurrenderReason {
    /// Its server ended.
    Crash,
    /// Its server does not answer.
    Hang,
    /// Its disk does not answer.
    Disk,
    /// No majority granted its lease for too long.
    LeaseLost,
    /// A planned hand-over.
    Switchover,
    /// Its server must be restarted.
    Restart,
    /// What it promoted is not what was granted.
    BadPromotion,
}

impl SurrenderReason {
    /// The end of the sentence "n1 gave up: …".
    pub fn words(self) -> &'static str {
        match self {
            Self::Crash => "its server ended",
            Self::Hang => "its server does not answer",
            Self::Disk => "its disk does not answer",
            Self::LeaseLost => "no majority heard it",
            Self::Switchover => "it hands over as planned",
            Self::Restart => "its server must restart",
            Self::BadPromotion => "its server did not promote as granted",
        }
    }

    /// Whether it counts as a failure for the flap limiter.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::Switchover | Self::Restart)
    }
}

/// Facts of a node's server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ServerStatus {
    /// `15.20`.
    pub version: String,
    /// Whether it is in recovery (a standby).
    pub in_recovery: bool,
    /// Timeline it writes or replays, when known.
    pub timeline: Option<TimelineId>,
    /// Flushed (writer) or received (standby).
    pub flushed: Lsn,
    /// Replayed; equals `flushed` on a writer.
    pub replayed: Lsn,
    /// When this server process started, in microseconds since 1970: tells its starts apart.
    #[serde(default)]
    pub started_us: u64,
    /// When its positions were asked for, by this node's clock.
    #[serde(skip)]
    pub sampled: Moment,
    /// Whether it is a standby that answers reads of gateways.
    #[serde(default)]
    pub reads: bool,
    /// What replay is at, on a standby.
    #[serde(default)]
    pub replay: Replay,
    /// Settings that wait for a restart.
    pub pending_restart: Vec<String>,
    /// Settings that it keeps above the document's, because the writer had more of them when it
    /// started: another restart lowers them once the writer's are lowered.
    #[serde(default)]
    pub kept: Vec<String>,
}

/// What the writer knows of one standby.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StandbyLink {
    /// Received.
    pub written: Lsn,
    /// Flushed.
    pub flushed: Lsn,
    /// Replayed.
    pub applied: Lsn,
}

/// What replay on a standby is at, as far as its server tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replay {
    /// What it waits for, as PostgreSQL names it: `type:event`; `None`: it works.
    pub wait: Option<String>,
    /// The longest transaction of a client on this standby, in milliseconds.
    pub oldest_ms: Option<u64>,
    /// The process that runs it.
    pub oldest_pid: Option<i32>,
}

/// How late a standby is, as its writer sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lag {
    /// Milliseconds for which it has lacked the first byte of log that is not on its disk.
    pub disk_ms: u64,
    /// Milliseconds for which it has lacked the first byte of log that it has not replayed: how late
    /// is what it shows.
    pub replay_ms: u64,
    /// Bytes of log that it has not replayed.
    pub bytes: u64,
    /// It was behind before this writer began to look: the times are the least.
    pub or_more: bool,
    /// Milliseconds for which its contract has been broken.
    pub broken_ms: Option<u64>,
}

/// What only a writer can say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WriterStatus {
    /// The term it writes in.
    pub term: Term,
    /// Whether clients are served.
    pub serving: bool,
    /// Whether its lease runs.
    pub leased: bool,
    /// Generation of the rule in effect.
    pub rule: u64,
    /// The position a commit set holds.
    pub safe: Option<Lsn>,
    /// Attached standbys, lineage checked.
    pub standbys: BTreeMap<NodeId, StandbyLink>,
    /// Every standby's lag, attached or not, and how it stands to its contract.
    #[serde(default)]
    pub lags: BTreeMap<NodeId, Lag>,
    /// Whether it holds its clients for a planned hand-over and the target has everything.
    pub drained: bool,
    /// Its replication slots, in short.
    #[serde(default)]
    pub slots: SlotsWord,
}

/// How well a node hears another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hearing {
    /// Milliseconds since the last word; `None`: never.
    pub silent_ms: Option<u64>,
    /// The other's host refuses connections: its process is gone.
    pub gone: bool,
}

/// A node's word about itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who.
    pub node: NodeId,
    /// Whether it has a database.
    pub kind: NodeKind,
    /// Version of its program.
    pub version: String,
    /// The newest term it knows.
    pub term: Term,
    /// The term it promised; `None` when its promise file is lost (amnesia).
    pub promised: Option<Term>,
    /// What it does.
    pub doing: Doing,
    /// Why.
    pub because: Because,
    /// Progress of what it does, in words.
    pub progress: Option<String>,
    /// Its frozen log end.
    pub report: Option<Report>,
    /// Its surrender.
    pub surrender: Option<Surrender>,
    /// Its server.
    pub server: Option<ServerStatus>,
    /// What it knows as the writer.
    pub writer: Option<WriterStatus>,
    /// Whom it hears.
    pub hears: BTreeMap<NodeId, Hearing>,
    /// Milliseconds for which it still owes a lease to the writer of a term below `term`.
    pub hold_ms: u64,
    /// Latency of its disk, in milliseconds.
    pub disk_ms: Option<u64>,
    /// The node that it gets the log from, when that is not the writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<NodeId>,
    /// The disk of its log, where that was looked at.
    #[serde(default)]
    pub disk: Option<DiskStanding>,
    /// How far it is with the writer's slots that it carries.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub carries: BTreeMap<String, Carried>,
    /// Version of the cluster document that its server runs with.
    pub document: u64,
    /// As the coordinator: what it does and why.
    pub coordinating: Option<Because>,
    /// What it knows of its host, and what it has seen.
    #[serde(default)]
    pub vitals: Vitals,
}

/// What a node knows of its host, and what it has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vitals {
    /// Its wall clock when it said this.
    pub wall: Option<WallMillis>,
    /// When its certificate for other nodes expires.
    pub certificate_until: Option<WallMillis>,
    /// What must never be and was seen by it since its process began.
    pub breaches: BTreeSet<Invariant>,
    /// Processors that it may use.
    pub processors: Option<u32>,
    /// Memory of the host, in bytes.
    pub memory: Option<u64>,
    /// How many it tells of alerts while it leads consensus.
    pub receivers: Option<u32>,
}

impl NodeStatus {
    /// By way of which node it gets the log, and how far it is, when that is not the writer.
    pub fn cascaded(&self) -> Option<(NodeId, StandbyLink)> {
        let server = self.server.as_ref()?;
        let (flushed, applied) = (server.flushed, server.replayed);
        Some((self.upstream?, StandbyLink { written: flushed, flushed, applied }))
    }

    /// The word of a node that has just begun and knows nothing.
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            kind: NodeKind::Data,
            version: String::new(),
            term: Term(0),
            promised: None,
            doing: Doing::Starting,
            because: Because::default(),
            progress: None,
            report: None,
            surrender: None,
            server: None,
            writer: None,
            hears: BTreeMap::new(),
            hold_ms: 0,
            disk_ms: None,
            upstream: None,
            disk: None,
            carries: BTreeMap::new(),
            document: 0,
            coordinating: None,
            vitals: Vitals::default(),
        }
    }
}
