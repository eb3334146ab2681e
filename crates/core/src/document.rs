//! The cluster document: what the operator wants, shared by all nodes and kept in consensus.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::NodeId;
use crate::because::list;
use crate::contract::{Contract, ContractSpec};
use crate::drill::Targets;
use crate::gateway::{Gateway, SynchronousCommit};
use crate::role::{Preset, Role};
use crate::slots::{self, DiskSpec, SlotSpec};
use crate::upstream;
use crate::validation::{self, ValidationSpec};

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

/// What the cluster wants of one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeSpec {
    /// What the node's copy is for. Changes live.
    pub role: Role,
    /// Higher is preferred among candidates with equal logs. Changes live.
    pub priority: u8,
    /// Its share of the reads, in proportion to other replicas of its kind: 1 to 100. Changes live.
    #[serde(skip_serializing_if = "is_default_weight")]
    pub weight: u8,
    /// Whether it may become the writer; unset: role `ha` only. A copy that may not is in no commit
    /// rule either: the last copy of a commit must be where somebody may write. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotable: Option<bool>,
    /// Whether commits may wait for it; unset: role `ha` only. Without, it may become the writer in
    /// timing `async` alone, where nothing is promised. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync: Option<bool>,
    /// The node that it gets the log from instead of the writer, while that one follows the writer
    /// itself. For nodes that count for no commit. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follow: Option<NodeId>,
    /// For role `delayed`: how much later it replays, in milliseconds. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// `hot_standby_feedback` of its server; unset: as its role has it. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedback: Option<bool>,
    /// `max_standby_streaming_delay` of its server in milliseconds, 0 for no limit; unset: as its
    /// role has it. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict_delay_ms: Option<u64>,
    /// `statement_timeout` of its server while it is a standby, in milliseconds, 0 for none; unset:
    /// as its role has it. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_timeout_ms: Option<u64>,
    /// What the copy owes its users. Changes live.
    #[serde(skip_serializing_if = "ContractSpec::is_default")]
    pub contract: ContractSpec,
}

impl Default for NodeSpec {
    fn default() -> Self {
        Self {
            role: Role::Ha,
            priority: 100,
            weight: WEIGHT,
            promotable: None,
            sync: None,
            follow: None,
            delay_ms: None,
            feedback: None,
            conflict_delay_ms: None,
            statement_timeout_ms: None,
            contract: ContractSpec::default(),
        }
    }
}

/// What can be attested.
pub const ATTESTABLE: [&str; 5] =
    ["backups", "disaster-drill", "idempotency", "reconnect", "schema-changes"];

const WEIGHT: u8 = 10;
const WEIGHT_MAX: u8 = 100;
/// How late a `delayed` copy is when nobody says.
const DELAY_MS: u64 = 60 * 60 * 1000;
const DELAY_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

fn is_default_weight(weight: &u8) -> bool {
    *weight == WEIGHT
}

impl NodeSpec {
    /// Whether it may become the writer.
    pub fn may_write(&self) -> bool {
        self.role == Role::Ha && self.promotable != Some(false)
    }

    /// Whether its copy may count for commits of a cluster with this timing.
    pub fn counts(&self, timing: Timing) -> bool {
        self.may_write() && (self.sync != Some(false) || timing == Timing::Async)
    }

    /// How much later than it could it replays.
    pub fn delay(&self) -> Duration {
        match self.role {
            Role::Delayed => Duration::from_millis(self.delay_ms.unwrap_or(DELAY_MS)),
            Role::Ha | Role::Read | Role::Reporting | Role::Analytics | Role::Dr => Duration::ZERO,
        }
    }

    /// What its server does for its role, with what the document says otherwise.
    pub fn preset(&self) -> Preset {
        let preset = self.role.preset();
        Preset {
            feedback: self.feedback.unwrap_or(preset.feedback),
            conflict_delay_ms: match self.conflict_delay_ms {
                None => preset.conflict_delay_ms,
                Some(0) => None,
                Some(ms) => Some(ms),
            },
            statement_timeout_ms: self.statement_timeout_ms.unwrap_or(preset.statement_timeout_ms),
            ..preset
        }
    }

    /// What it owes its users.
    pub fn contract(&self) -> Contract {
        self.contract.of(self.role, self.delay())
    }

    fn validate(&self, path: &str, problems: &mut Vec<Invalid>) {
        let mut bad = |field: &str, problem: &str| {
            let problem = problem.to_owned();
            problems.push(Invalid { field: format!("{path}.{field}"), problem });
        };
        if !(1..=WEIGHT_MAX).contains(&self.weight) {
            bad("weight", "use 1 to 100");
        }
        if self.role != Role::Ha && self.promotable == Some(true) {
            bad("promotable", "only a node of role ha may become the writer: change its role");
        }
        if self.role != Role::Ha && self.sync == Some(true) {
            bad("sync", "commits wait for nodes of role ha only: change its role");
        }
        if self.promotable == Some(false) && self.sync == Some(true) {
            bad("sync", "a copy that may not become the writer cannot count for commits");
        }
        match self.delay_ms {
            Some(_) if self.role != Role::Delayed => {
                bad("delay_ms", "only a node of role delayed replays later");
            }
            Some(ms) if !(1000..=DELAY_MS_MAX).contains(&ms) => {
                bad("delay_ms", "use 1000 milliseconds to 7 days");
            }
            Some(_) | None => {}
        }
        self.contract.validate(&format!("{path}.contract"), self.role, problems);
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
    /// What somebody answers for although no program can see it, by the review's names: who, since
    /// when, where that is written.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attested: BTreeMap<String, String>,
    /// What applications meet: access, encryption, routing, pools. Not written while it is all
    /// defaults, so that nodes that do not know it yet can read the document.
    #[serde(skip_serializing_if = "Gateway::is_default")]
    pub gateway: Gateway,
    /// Replication slots by name: whose each is, and how much log it may keep. Changes live.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, SlotSpec>,
    /// When a disk is short of room, and what happens then. Changes live.
    #[serde(skip_serializing_if = "DiskSpec::is_default")]
    pub disk: DiskSpec,
    /// Queries by name that a new writer must answer with true. Changes live: one that is new or changed
    /// is run at once.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub validation: BTreeMap<String, ValidationSpec>,
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
            attested: BTreeMap::new(),
            gateway: Gateway::default(),
            slots: BTreeMap::new(),
            disk: DiskSpec::default(),
            validation: BTreeMap::new(),
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
            if !self.node(*node).counts(self.timing) {
                bad(
                    "sync_nodes",
                    format!("{node} has a role or wishes by which its copy never counts"),
                );
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
        for (name, words) in &self.attested {
            if !ATTESTABLE.contains(&name.as_str()) {
                bad(&format!("attested.{name}"), format!("one of {}", ATTESTABLE.join(", ")));
            } else if words.trim().is_empty() {
                bad(&format!("attested.{name}"), "say who answers for it".to_owned());
            }
        }
        for (name, spec) in &self.nodes {
            let field = format!("nodes.{name}.follow");
            if let Some(circle) = upstream::circle(self, *name) {
                let of = list(&circle);
                let problem =
                    format!("{of} would get the log from each other, and from nobody else");
                problems.push(Invalid { field, problem });
            } else if spec.follow.is_some() && spec.may_write() {
                let problem = "a node that may become the writer follows the writer: give it another \
                               role, or promotable = false";
                problems.push(Invalid { field, problem: problem.to_owned() });
            }
            spec.validate(&format!("nodes.{name}"), &mut problems);
        }
        problems.extend(self.gateway.validate());
        slots::validate(&self.slots, &mut problems);
        self.disk.validate(&mut problems);
        validation::validate(&self.validation, &mut problems);
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
