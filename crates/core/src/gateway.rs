//! Section `gateway` of the cluster document: what applications meet. The same on every node.

use serde::{Deserialize, Serialize};

use crate::access::{self, AccessRule};
use crate::document::Invalid;
use crate::limits;
use crate::role::Role;

mod pool;

pub use pool::{Pool, PoolMode, PoolRule, PoolSpec};

/// Encryption between clients and gateways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Never.
    Off,
    /// For clients that ask for it.
    #[default]
    Offered,
    /// For all: a client that comes without it is sent away.
    Required,
}

/// What a read may see. Each level but `eventual` is kept by waiting or by asking the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Every commit acknowledged to anybody before the read began: the writer answers.
    Strong,
    /// Every commit of the same connection, and whatever it has read before.
    #[default]
    ReadYourWrites,
    /// Never less than the same connection has read before.
    Monotonic,
    /// Whatever the token carries that the connection was given, as well as its own past.
    Causal,
    /// Nothing older than `max_staleness_ms`.
    Bounded,
    /// Whatever the replica has, within `max_lag_ms`.
    Eventual,
}

/// Who answers reads, as far as [`Consistency`] leaves a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadFrom {
    /// The writer.
    Writer,
    /// Replicas only: reads wait, or fail, when none may answer.
    Replica,
    /// Replicas; the writer when none may answer.
    #[default]
    Prefer,
    /// Whoever is nearest: this host, then this zone, the writer included.
    Nearest,
    /// Replicas of role `ha` only.
    Ha,
    /// Replicas of role `read` only.
    Read,
    /// Replicas of role `reporting`, within their contract instead of `max_lag_ms`.
    Reporting,
    /// Replicas of role `analytics`, within their contract instead of `max_lag_ms`.
    Analytics,
    /// Replicas of role `dr`, within their contract instead of `max_lag_ms`.
    Dr,
}

impl ReadFrom {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Writer,
        Self::Replica,
        Self::Prefer,
        Self::Nearest,
        Self::Ha,
        Self::Read,
        Self::Reporting,
        Self::Analytics,
        Self::Dr,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Replica => "replica",
            Self::Prefer => "prefer",
            Self::Nearest => "nearest",
            Self::Ha => "ha",
            Self::Read => "read",
            Self::Reporting => "reporting",
            Self::Analytics => "analytics",
            Self::Dr => "dr",
        }
    }

    /// From its word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|from| from.as_str() == word)
    }

    /// The role whose replicas alone may answer.
    pub fn role(self) -> Option<Role> {
        match self {
            Self::Writer | Self::Replica | Self::Prefer | Self::Nearest => None,
            Self::Ha => Some(Role::Ha),
            Self::Read => Some(Role::Read),
            Self::Reporting => Some(Role::Reporting),
            Self::Analytics => Some(Role::Analytics),
            Self::Dr => Some(Role::Dr),
        }
    }
}

/// PostgreSQL's `synchronous_commit`, from least to most.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum SynchronousCommit {
    /// Acknowledged before it is on any disk.
    Off,
    /// On the writer's disk.
    Local,
    /// And in the memory of standbys.
    RemoteWrite,
    /// And on the disks of standbys.
    #[default]
    On,
    /// And visible to reads on standbys.
    RemoteApply,
}

impl SynchronousCommit {
    /// PostgreSQL's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            SynchronousCommit::Off => "off",
            SynchronousCommit::Local => "local",
            SynchronousCommit::RemoteWrite => "remote_write",
            SynchronousCommit::On => "on",
            SynchronousCommit::RemoteApply => "remote_apply",
        }
    }

    /// Reads a value as PostgreSQL takes it in `SET`: the names, and the words for yes and no that
    /// it takes without showing them. `None` for what PostgreSQL refuses.
    pub fn from_setting(value: &str) -> Option<Self> {
        let value = value.to_ascii_lowercase();
        match value.as_str() {
            "off" | "false" | "no" | "0" => Some(SynchronousCommit::Off),
            "local" => Some(SynchronousCommit::Local),
            "remote_write" => Some(SynchronousCommit::RemoteWrite),
            "on" | "true" | "yes" | "1" => Some(SynchronousCommit::On),
            "remote_apply" => Some(SynchronousCommit::RemoteApply),
            _ => None,
        }
    }
}

/// The section. Every field has a default; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Encryption between clients and gateways. Default `offered`. Changes live, for connections
    /// made from then on.
    pub tls: Tls,
    /// Whether reads may go to replicas at all; off sends everything to the writer. Default on.
    /// Changes live, from each connection's next transaction on.
    pub split: bool,
    /// What reads may see unless the client says otherwise. Default `read_your_writes`. Changes
    /// live, from the next transaction on.
    pub consistency: Consistency,
    /// Who answers reads unless the client says otherwise. Default `prefer`. Changes live, from
    /// the next transaction on.
    pub read_from: ReadFrom,
    /// For `bounded`: milliseconds that an answer may be behind. Default 5000, 1 to a day. Changes
    /// live.
    pub max_staleness_ms: u64,
    /// Milliseconds behind the writer beyond which a replica is sent no reads, whatever the
    /// consistency. Default 10000, 1 to a day. Changes live.
    pub max_lag_ms: u64,
    /// Milliseconds that transactions and logins are held while there is no writer, before they
    /// fail. Default 10000: an election takes a few seconds. 0 fails at once; up to ten minutes.
    /// Changes live.
    pub hold_ms: u64,
    /// How many transactions and logins one gateway holds at a time; more fail at once. Default
    /// 10000, up to 1000000. Changes live.
    pub held_max: u32,
    /// Whether a COMMIT whose answer was lost with the writer is looked up on the next one, and
    /// the client told what became of it. Off answers 08007 (unknown). Default on. Changes live.
    pub resolve_commits: bool,
    /// The least `synchronous_commit` that a client may set: less is refused. `off` leaves clients
    /// free to lose their own commits in a failover. Default `on`; see
    /// [`Document::synchronous_commit_floor`](crate::document::Document::synchronous_commit_floor)
    /// for what it is when `level` is less. Changes live.
    pub synchronous_commit_floor: SynchronousCommit,
    /// Milliseconds that a transaction, or a statement outside of one, may take before a line in the
    /// log tells of it. Default 0: never; up to a day. Changes live.
    pub slow_ms: u64,
    /// Whether that line has the text of the first statement, with whatever is in it. Default off.
    /// Changes live.
    pub log_statements: bool,
    /// Threads of each gateway, 1 to 64. Default 1: more help only when that one is busy all the
    /// time. Taken at the next start of the node.
    pub workers: u8,
    /// Clients on each gateway; more are refused with 53300. Default 10000, 1 to 1000000. Changes
    /// live; clients that are there stay.
    pub clients_max: u32,
    /// Pools, unless a rule of `pools` says otherwise.
    pub pool: PoolSpec,
    /// Who may come in; the first rule that matches decides. None: everybody with a password.
    /// Changes live, for connections made from then on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<AccessRule>,
    /// Exceptions for databases and roles; see [`Gateway::pool_for`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolRule>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            tls: Tls::default(),
            split: true,
            consistency: Consistency::default(),
            read_from: ReadFrom::default(),
            max_staleness_ms: 5000,
            max_lag_ms: 10_000,
            hold_ms: 10_000,
            held_max: 10_000,
            resolve_commits: true,
            synchronous_commit_floor: SynchronousCommit::default(),
            slow_ms: 0,
            log_statements: false,
            workers: 1,
            clients_max: 10_000,
            pool: PoolSpec::default(),
            access: Vec::new(),
            pools: Vec::new(),
        }
    }
}

impl Gateway {
    /// Whether nothing differs from the defaults.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// All that is wrong with the section, each with the path of its field.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut problems = Vec::new();
        let ranges = [
            ("max_staleness_ms", self.max_staleness_ms, 1, DAY_MS),
            ("max_lag_ms", self.max_lag_ms, 1, DAY_MS),
            ("hold_ms", self.hold_ms, 0, TEN_MINUTES_MS),
            ("held_max", self.held_max.into(), 0, CLIENTS_TOP),
            ("slow_ms", self.slow_ms, 0, DAY_MS),
            ("workers", self.workers.into(), 1, 64),
            ("clients_max", self.clients_max.into(), 1, CLIENTS_TOP),
        ];
        check_ranges("gateway", &ranges, &mut problems);
        self.pool.validate("gateway.pool", &mut problems);
        if self.pools.len() > limits::POOL_RULES_MAX {
            let max = limits::POOL_RULES_MAX;
            let problem = format!("{} rules are more than the {max} taken", self.pools.len());
            problems.push(Invalid { field: "gateway.pools".to_owned(), problem });
        }
        for (at, rule) in self.pools.iter().enumerate() {
            rule.validate(&format!("gateway.pools[{at}]"), &mut problems);
        }
        problems.extend(access::validate(&self.access, self.tls));
        problems
    }

    /// What holds for a database and a role: each field comes from the first rule of `pools` that
    /// matches both and sets it; from the section when none does.
    pub fn pool_for(&self, database: &str, role: &str) -> Pool {
        let base = Pool {
            spec: self.pool.clone(),
            read_from: self.read_from,
            consistency: self.consistency,
            statement_timeout_ms: None,
            rows_max: None,
            bytes_max: None,
            disabled: None,
        };
        // From the last to the first, so that the first has the last word.
        let rules = self.pools.iter().rev().filter(|rule| rule.matches(database, role));
        let mut pool = rules.fold(base, |pool, rule| rule.over(pool));
        // The two may come from different rules.
        pool.spec.min_idle = pool.spec.min_idle.min(pool.spec.size);
        pool
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const TEN_MINUTES_MS: u64 = 10 * 60 * 1000;
const CLIENTS_TOP: u64 = 1_000_000;

/// A field, its value, and the least and the most it may be.
type Range<'a> = (&'a str, u64, u64, u64);

fn check_ranges(path: &str, ranges: &[Range<'_>], problems: &mut Vec<Invalid>) {
    for (field, value, least, most) in ranges {
        if value < least || value > most {
            let problem = format!("{value} is outside {least} to {most}");
            problems.push(Invalid { field: format!("{path}.{field}"), problem });
        }
    }
}

#[cfg(test)]
mod tests;
