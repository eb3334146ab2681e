//! The cluster document: what the operator wants, shared by all nodes and kept in consensus.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::NodeId;
use crate::drill::Targets;
use crate::gateway::{Gateway, SynchronousCommit};

/// When a commit is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// Any `copies` nodes hold it, the writer included.
    #[default]
    Quorum,
    /// Every node of `sync_nodes` holds it, and at least `copies` nodes in all.
    Sync,
    /// One other node received it; falls back to `async` after `semi_sync_timeout_ms`, recorded
    /// in consensus first, and returns by itself.
    SemiSync,
    /// The writer alone holds it; a failover may lose up to `max_lag_on_failover` bytes.
    Async,
}

/// What "holds it" means for a standby. PostgreSQL's `synchronous_commit` in our words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// In the standby's operating system (`remote_write`).
    Received,
    /// On the standby's disk (`on`).
    #[default]
    Flushed,
    /// Visible to reads on the standby (`remote_apply`).
    Applied,
}

impl Level {
    /// PostgreSQL's name for it.
    pub fn synchronous_commit(self) -> &'static str {
        match self {
            Level::Received => "remote_write",
            Level::Flushed => "on",
            Level::Applied => "remote_apply",
        }
    }

    /// The same as a setting that can be compared.
    pub fn setting(self) -> SynchronousCommit {
        match self {
            Level::Received => SynchronousCommit::RemoteWrite,
            Level::Flushed => SynchronousCommit::On,
            Level::Applied => SynchronousCommit::RemoteApply,
        }
    }
}

/// What a standby is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A copy that may become the writer.
    #[default]
    Ha,
    /// Serves reads; never part of a commit set.
    Read,
}

/// What the cluster wants of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSpec {
    /// What the node's copy is for.
    pub role: Role,
    /// Higher is preferred among candidates with equal logs.
    pub priority: u8,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self { role: Role::Ha, priority: 100 }
    }
}

/// The shared document. Every field has a default; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Document {
    /// When a commit is acknowledged. Changes live.
    pub timing: Timing,
    /// What a standby must have done with a commit for it to count. Changes live.
    pub level: Level,
    /// Copies of a commit before it is acknowledged, the writer's included. Changes live.
    pub copies: u8,
    /// Copies below which writes stop rather than go on with fewer. Unset: 2 with three or more
    /// data nodes, 1 with two (so that either can be lost). Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_copies: Option<u8>,
    /// For `timing = "quorum"`: in how many zones these copies must stand, so that a whole zone can be
    /// lost without a commit. Changes live.
    #[serde(skip_serializing_if = "is_one")]
    pub copy_zones: u8,
    /// Zones below which writes stop rather than go on with fewer. Unset: 1, so that a zone can be
    /// lost and writes go on. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_copy_zones: Option<u8>,
    /// For `timing = "sync"`: the nodes that must hold every commit.
    pub sync_nodes: BTreeSet<NodeId>,
    /// For `timing = "semi_sync"`: milliseconds without a standby before falling back.
    pub semi_sync_timeout_ms: u64,
    /// For `timing = "async"`: bytes of log a failover may lose. More needs an operator.
    pub max_lag_on_failover: u64,
    /// Whether a new writer waits for the old one's lease even when the old process is seen to be
    /// gone (its host refuses connections). Costs up to the lease (1.5 s) in such failovers.
    pub strict_reads: bool,
    /// Milliseconds without a heartbeat before a node is suspected.
    pub suspect_after_ms: u64,
    /// What the operator promises, and drills are judged by. Not written while it is all defaults.
    #[serde(skip_serializing_if = "Targets::is_default")]
    pub targets: Targets,
    /// PostgreSQL settings for every node, checked against `pg_settings`.
    pub postgresql: BTreeMap<String, String>,
    /// Per-node wishes.
    pub nodes: BTreeMap<NodeId, NodeSpec>,
    /// What applications meet: access, encryption, routing, pools. Not written while it is all
    /// defaults, so that nodes that do not know it yet can read the document.
    #[serde(skip_serializing_if = "Gateway::is_default")]
    pub gateway: Gateway,
}

impl Default for Document {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            level: Level::default(),
            copies: 2,
            min_copies: None,
            copy_zones: 1,
            min_copy_zones: None,
            sync_nodes: BTreeSet::new(),
            semi_sync_timeout_ms: 10_000,
            max_lag_on_failover: 1024 * 1024,
            strict_reads: false,
            suspect_after_ms: 1000,
            targets: Targets::default(),
            postgresql: BTreeMap::new(),
            nodes: BTreeMap::new(),
            gateway: Gateway::default(),
        }
    }
}

fn is_one(zones: &u8) -> bool {
    *zones == 1
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field at fault.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Document {
    /// Checks what can be checked without a server; all problems at once.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let mut bad = |field: &str, problem: String| {
            problems.push(Invalid { field: field.to_owned(), problem });
        };
        if !(1..=7).contains(&self.copies) {
            bad("copies", format!("{} is outside 1 to 7", self.copies));
        }
        if let Some(least) = self.min_copies
            && (least == 0 || least > self.copies)
        {
            bad("min_copies", format!("{least} is outside 1 to copies ({})", self.copies));
        }
        if self.copy_zones == 0 || self.copy_zones > self.copies {
            let zones = self.copy_zones;
            bad("copy_zones", format!("{zones} is outside 1 to copies ({})", self.copies));
        } else if self.copy_zones > 1 && self.timing != Timing::Quorum {
            bad("copy_zones", "only timing = \"quorum\" counts zones: use 1".to_owned());
        }
        if let Some(least) = self.min_copy_zones
            && (least == 0 || least > self.copy_zones)
        {
            let most = self.copy_zones;
            bad("min_copy_zones", format!("{least} is outside 1 to copy_zones ({most})"));
        }
        if self.timing == Timing::Sync && self.sync_nodes.is_empty() {
            bad("sync_nodes", "timing = \"sync\" needs at least one node name here".to_owned());
        }
        for node in &self.sync_nodes {
            if self.node(*node).role != Role::Ha {
                bad("sync_nodes", format!("{node} has a role whose copy never counts"));
            }
        }
        if !(300..=60_000).contains(&self.suspect_after_ms) {
            bad("suspect_after_ms", "use 300 to 60000 milliseconds".to_owned());
        }
        if self.semi_sync_timeout_ms < 1000 {
            bad("semi_sync_timeout_ms", "use 1000 milliseconds or more".to_owned());
        }
        for (field, ms) in [
            ("targets.recovery_ms", self.targets.recovery_ms),
            ("targets.switchover_ms", self.targets.switchover_ms),
        ] {
            if ms == 0 {
                bad(field, "no failure costs nothing: use 1 millisecond or more".to_owned());
            }
        }
        problems.extend(self.gateway.validate());
        problems
    }

    /// The least `synchronous_commit` that a client may set: what the operator wants, and never
    /// more than commits have without anything being set.
    pub fn synchronous_commit_floor(&self) -> SynchronousCommit {
        self.gateway.synchronous_commit_floor.min(self.level.setting())
    }

    /// The wishes for a node, or the defaults.
    pub fn node(&self, node: NodeId) -> NodeSpec {
        self.nodes.get(&node).cloned().unwrap_or_default()
    }

    /// Zones below which writes stop.
    pub fn least_zones(&self) -> u8 {
        self.min_copy_zones.unwrap_or(1).min(self.copy_zones).max(1)
    }

    /// Copies below which writes stop, with `data_nodes` nodes that have a database.
    pub fn least_copies(&self, data_nodes: usize) -> u8 {
        let auto = if data_nodes >= 3 { 2 } else { 1 };
        self.min_copies.unwrap_or(auto).min(self.copies).max(1)
    }
}
