//! Pools of server connections: one for each database, role and server, on each gateway.

use serde::{Deserialize, Serialize};

use super::{CLIENTS_TOP, Consistency, DAY_MS, ReadFrom, check_ranges};
use crate::access::{check_patterns, everything, is_everything, patterns_match};
use crate::document::Invalid;

/// How long a client keeps a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// For a transaction; longer when it does something that cannot be carried over.
    #[default]
    Transaction,
    /// Until it goes.
    Session,
}

/// A pool. Changes live: connections above a smaller `size` close as they come back; clients that
/// are there keep their `mode`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolSpec {
    /// How long a client keeps a server connection. Default `transaction`.
    pub mode: PoolMode,
    /// Server connections for each database and role, on each gateway, to each server. Default
    /// 20, 1 to 10000. All gateways together must stay below PostgreSQL's `max_connections`.
    pub size: u32,
    /// Connections beyond `size` for when clients have waited. Default 0, up to 10000.
    pub reserve: u32,
    /// Milliseconds that a client waits before the reserve is used. Default 5000 (PgBouncer's
    /// `reserve_pool_timeout`), up to a day.
    pub reserve_after_ms: u64,
    /// Connections that are kept open although idle, so that the next burst finds them. Default 0,
    /// up to `size`.
    pub min_idle: u32,
    /// Milliseconds that a client waits for a connection before it gets an error. Default 60000:
    /// PgBouncer's 120 s is longer than most clients stay; half of it is still twice the 30 s after
    /// which usual drivers and web servers give up, so a queue that moves at all is never cut
    /// short by us. 0 waits without end; up to a day.
    pub wait_ms: u64,
    /// Clients that wait in one pool at a time; more get an error at once. Default 10000, the
    /// default of `clients_max`: no limit of its own. Up to 1000000.
    pub waiting_max: u32,
    /// Milliseconds without use after which a connection is closed. Default 600000 (PgBouncer's
    /// `server_idle_timeout`). 0 never; up to a day.
    pub idle_ms: u64,
    /// Milliseconds after which a connection is closed once nobody uses it: frees what a long-lived
    /// backend has gathered. Default 3600000 (PgBouncer's `server_lifetime`). 0 never; up to a day.
    pub lifetime_ms: u64,
    /// Whether unnamed statements with the same text and types are prepared only once on a
    /// connection. Saves PostgreSQL's parsing for drivers that prepare nothing. Default on.
    pub reuse_unnamed: bool,
    /// Prepared statements kept on each server connection; the least recently used goes first.
    /// Default 500, up to 100000. 0 keeps none.
    pub prepared_max: u32,
}

impl Default for PoolSpec {
    fn default() -> Self {
        Self {
            mode: PoolMode::default(),
            size: 20,
            reserve: 0,
            reserve_after_ms: 5000,
            min_idle: 0,
            wait_ms: 60_000,
            waiting_max: 10_000,
            idle_ms: 600_000,
            lifetime_ms: 3_600_000,
            reuse_unnamed: true,
            prepared_max: 500,
        }
    }
}

/// An exception for databases and roles: what is set replaces what would hold otherwise. Changes
/// live, as the pools do; the rest from the next statement on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolRule {
    /// Names of databases; a `*` at the end stands for any ending. Default: all.
    #[serde(skip_serializing_if = "is_everything")]
    pub database: Vec<String>,
    /// Names of roles; a `*` at the end stands for any ending. Default: all.
    #[serde(skip_serializing_if = "is_everything")]
    pub role: Vec<String>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<PoolMode>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<u32>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_after_ms: Option<u64>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_idle: Option<u32>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_max: Option<u32>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifetime_ms: Option<u64>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reuse_unnamed: Option<bool>,
    /// As in [`PoolSpec`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepared_max: Option<u32>,
    /// Who answers reads, in place of the section's `read_from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_from: Option<ReadFrom>,
    /// What reads may see, in place of the section's `consistency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Milliseconds that a statement may take before it is cancelled. Default: no limit but
    /// PostgreSQL's own. 1 to a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_timeout_ms: Option<u64>,
    /// Rows that a statement may return before it is cancelled. Default: no limit. From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<u64>,
    /// Bytes of rows that a statement may return before it is cancelled. Default: no limit.
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// The kill switch: nobody comes in and no transaction begins; clients are told this sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<String>,
}

impl Default for PoolRule {
    fn default() -> Self {
        Self {
            database: everything(),
            role: everything(),
            mode: None,
            size: None,
            reserve: None,
            reserve_after_ms: None,
            min_idle: None,
            wait_ms: None,
            waiting_max: None,
            idle_ms: None,
            lifetime_ms: None,
            reuse_unnamed: None,
            prepared_max: None,
            read_from: None,
            consistency: None,
            statement_timeout_ms: None,
            rows_max: None,
            bytes_max: None,
            disabled: None,
        }
    }
}

/// What holds for one database and role. Every field is final.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The pool itself.
    pub spec: PoolSpec,
    /// Who answers reads.
    pub read_from: ReadFrom,
    /// What reads may see.
    pub consistency: Consistency,
    /// Milliseconds that a statement may take.
    pub statement_timeout_ms: Option<u64>,
    /// Rows that a statement may return.
    pub rows_max: Option<u64>,
    /// Bytes of rows that a statement may return.
    pub bytes_max: Option<u64>,
    /// The sentence that clients are told instead of being served.
    pub disabled: Option<String>,
}

impl PoolSpec {
    pub(super) fn validate(&self, path: &str, problems: &mut Vec<Invalid>) {
        let ranges = [
            ("size", self.size.into(), 1, SIZE_TOP),
            ("reserve", self.reserve.into(), 0, SIZE_TOP),
            ("reserve_after_ms", self.reserve_after_ms, 0, DAY_MS),
            ("min_idle", self.min_idle.into(), 0, self.size.into()),
            ("wait_ms", self.wait_ms, 0, DAY_MS),
            ("waiting_max", self.waiting_max.into(), 0, CLIENTS_TOP),
            ("idle_ms", self.idle_ms, 0, DAY_MS),
            ("lifetime_ms", self.lifetime_ms, 0, DAY_MS),
            ("prepared_max", self.prepared_max.into(), 0, 100_000),
        ];
        check_ranges(path, &ranges, problems);
    }
}

impl PoolRule {
    pub(super) fn matches(&self, database: &str, role: &str) -> bool {
        patterns_match(&self.database, database) && patterns_match(&self.role, role)
    }

    /// The pool with what this rule sets.
    pub(super) fn over(&self, pool: Pool) -> Pool {
        let rule = self.clone();
        let spec = pool.spec;
        Pool {
            spec: PoolSpec {
                mode: rule.mode.unwrap_or(spec.mode),
                size: rule.size.unwrap_or(spec.size),
                reserve: rule.reserve.unwrap_or(spec.reserve),
                reserve_after_ms: rule.reserve_after_ms.unwrap_or(spec.reserve_after_ms),
                min_idle: rule.min_idle.unwrap_or(spec.min_idle),
                wait_ms: rule.wait_ms.unwrap_or(spec.wait_ms),
                waiting_max: rule.waiting_max.unwrap_or(spec.waiting_max),
                idle_ms: rule.idle_ms.unwrap_or(spec.idle_ms),
                lifetime_ms: rule.lifetime_ms.unwrap_or(spec.lifetime_ms),
                reuse_unnamed: rule.reuse_unnamed.unwrap_or(spec.reuse_unnamed),
                prepared_max: rule.prepared_max.unwrap_or(spec.prepared_max),
            },
            read_from: rule.read_from.unwrap_or(pool.read_from),
            consistency: rule.consistency.unwrap_or(pool.consistency),
            statement_timeout_ms: rule.statement_timeout_ms.or(pool.statement_timeout_ms),
            rows_max: rule.rows_max.or(pool.rows_max),
            bytes_max: rule.bytes_max.or(pool.bytes_max),
            disabled: rule.disabled.or(pool.disabled),
        }
    }

    pub(super) fn validate(&self, path: &str, problems: &mut Vec<Invalid>) {
        check_patterns(&format!("{path}.database"), &self.database, problems);
        check_patterns(&format!("{path}.role"), &self.role, problems);
        let ranges = [
            ("size", self.size.map(u64::from), 1, SIZE_TOP),
            ("reserve", self.reserve.map(u64::from), 0, SIZE_TOP),
            ("reserve_after_ms", self.reserve_after_ms, 0, DAY_MS),
            ("min_idle", self.min_idle.map(u64::from), 0, self.size.map_or(SIZE_TOP, u64::from)),
            ("wait_ms", self.wait_ms, 0, DAY_MS),
            ("waiting_max", self.waiting_max.map(u64::from), 0, CLIENTS_TOP),
            ("idle_ms", self.idle_ms, 0, DAY_MS),
            ("lifetime_ms", self.lifetime_ms, 0, DAY_MS),
            ("prepared_max", self.prepared_max.map(u64::from), 0, 100_000),
            ("statement_timeout_ms", self.statement_timeout_ms, 1, DAY_MS),
            ("rows_max", self.rows_max, 1, i64::MAX as u64),
            ("bytes_max", self.bytes_max, 1, i64::MAX as u64),
        ];
        for (field, value, least, most) in ranges {
            if let Some(value) = value {
                check_ranges(path, &[(field, value, least, most)], problems);
            }
        }
        let mut bad = |field: &str, problem: &str| {
            problems
                .push(Invalid { field: format!("{path}.{field}"), problem: problem.to_owned() });
        };
        if self.disabled.as_ref().is_some_and(|text| text.trim().is_empty()) {
            bad("disabled", "is empty: say to clients why, or leave it out");
        }
        if self.sets_nothing() {
            bad("database", "the rule sets nothing: set a field, or remove the rule");
        }
    }

    fn sets_nothing(&self) -> bool {
        let (database, role) = (self.database.clone(), self.role.clone());
        *self == Self { database, role, ..Self::default() }
    }
}

const SIZE_TOP: u64 = 10_000;
