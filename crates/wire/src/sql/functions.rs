//! What is known of functions by their names alone.

use std::collections::HashMap;
use std::sync::OnceLock;

/// Functions of `pg_catalog` that a standby may run; made by `functions.sql`.
const SAFE: &str = include_str!("functions.txt");

/// Functions of `pg_catalog` that need the writer and leave nothing in the session.
const WRITER: [&str; 37] = [
    "currval",
    "lastval",
    "lo_creat",
    "lo_create",
    "lo_export",
    "lo_from_bytea",
    "lo_get",
    "lo_import",
    "lo_put",
    "lo_unlink",
    "nextval",
    "pg_backend_pid",
    "pg_blocking_pids",
    "pg_cancel_backend",
    "pg_current_snapshot",
    "pg_current_wal_flush_lsn",
    "pg_current_wal_insert_lsn",
    "pg_current_wal_lsn",
    "pg_current_xact_id",
    "pg_current_xact_id_if_assigned",
    "pg_is_in_recovery",
    "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn",
    "pg_last_xact_replay_timestamp",
    "pg_my_temp_schema",
    "pg_notify",
    "pg_postmaster_start_time",
    "pg_terminate_backend",
    "pg_try_advisory_xact_lock",
    "pg_try_advisory_xact_lock_shared",
    "pg_advisory_xact_lock",
    "pg_advisory_xact_lock_shared",
    "pg_walfile_name",
    "pg_xact_status",
    "setval",
    "txid_current",
    "txid_current_if_assigned",
];

/// Functions that leave a lock in the session.
const ADVISORY: [&str; 7] = [
    "pg_advisory_lock",
    "pg_advisory_lock_shared",
    "pg_advisory_unlock",
    "pg_advisory_unlock_all",
    "pg_advisory_unlock_shared",
    "pg_try_advisory_lock",
    "pg_try_advisory_lock_shared",
];

/// Words before a parenthesis that call nothing: grammar, and types with a length.
const GRAMMAR: [&str; 83] = [
    "all",
    "and",
    "any",
    "array",
    "as",
    "asymmetric",
    "between",
    "bigint",
    "bit",
    "boolean",
    "by",
    "case",
    "cast",
    "char",
    "character",
    "check",
    "coalesce",
    "collate",
    "cross",
    "cube",
    "dec",
    "decimal",
    "distinct",
    "double",
    "else",
    "end",
    "except",
    "exists",
    "extract",
    "fetch",
    "filter",
    "float",
    "for",
    "from",
    "full",
    "greatest",
    "group",
    "grouping",
    "having",
    "ilike",
    "in",
    "inner",
    "int",
    "integer",
    "intersect",
    "interval",
    "is",
    "join",
    "lateral",
    "least",
    "like",
    "limit",
    "natural",
    "not",
    "nullif",
    "numeric",
    "offset",
    "on",
    "or",
    "order",
    "over",
    "overlaps",
    "overlay",
    "partition",
    "position",
    "real",
    "returning",
    "right",
    "rollup",
    "row",
    "select",
    "sets",
    "similar",
    "some",
    "substring",
    "symmetric",
    "then",
    "time",
    "timestamp",
    "trim",
    "union",
    "using",
    "values",
];

/// More of the same.
const GRAMMAR_TOO: [&str; 20] = [
    "varchar",
    "varying",
    "when",
    "where",
    "window",
    "with",
    "within",
    "conflict",
    "left",
    "materialized",
    "normalize",
    "only",
    "recursive",
    "set",
    "table",
    "tablesample",
    "bernoulli",
    "system",
    "xmlserialize",
    "treat",
];

/// What a name before a parenthesis is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builtin {
    Grammar,
    Safe,
    Writer,
    Advisory,
    SetConfig,
    /// It leaves the state of the random numbers.
    Seed,
    /// None of the above: ask the database's own catalog.
    Other,
}

fn names() -> &'static HashMap<&'static [u8], Builtin> {
    static NAMES: OnceLock<HashMap<&'static [u8], Builtin>> = OnceLock::new();
    NAMES.get_or_init(|| {
        let mut names = HashMap::new();
        let mut put = |all: &mut dyn Iterator<Item = &'static str>, what| {
            names.extend(all.map(|name| (name.as_bytes(), what)));
        };
        put(&mut SAFE.lines(), Builtin::Safe);
        put(&mut WRITER.into_iter(), Builtin::Writer);
        put(&mut ADVISORY.into_iter(), Builtin::Advisory);
        put(&mut GRAMMAR.into_iter().chain(GRAMMAR_TOO), Builtin::Grammar);
        names.insert(b"set_config", Builtin::SetConfig);
        names.insert(b"setseed", Builtin::Seed);
        names
    })
}

/// What a lower-case name is.
pub(super) fn builtin(name: &[u8]) -> Builtin {
    names().get(name).copied().unwrap_or(Builtin::Other)
}

/// Whether a relation tells of one server, and not of the database.
pub(super) fn is_of_server(name: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 14] = [
        b"pg_aios",
        b"pg_available",
        b"pg_backend",
        b"pg_config",
        b"pg_cursors",
        b"pg_file_settings",
        b"pg_hba",
        b"pg_ident_file",
        b"pg_locks",
        b"pg_prepared",
        b"pg_replication",
        b"pg_settings",
        b"pg_shmem",
        b"pg_stat",
    ];
    // The statistics of the planner are data like any other.
    let data = name == b"pg_statistic" || name.starts_with(b"pg_statistic_");
    !data && name != b"pg_stats" && BEGINNINGS.iter().any(|b| name.starts_with(b))
}
