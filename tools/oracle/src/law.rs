//! What must hold between the classifier and the parser.

use std::{collections::HashSet, sync::LazyLock};

use quorate_wire::sql::{Access, Leaves, Script, Verb};

use crate::tree::Seen;

static SAFE: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    include_str!("../../../crates/wire/src/sql/catalog/replica.txt").lines().collect()
});
static WRITER: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    include_str!("../../../crates/wire/src/sql/catalog/writer.txt").lines().collect()
});

/// Whether a function may run on a replica; the same lists, but no lexer of ours.
pub fn is_safe_function((schema, name): &(String, String)) -> bool {
    // What grammar itself calls.
    let syntax = ["xmlexists", "is_normalized", "current_setting", "pg_collation_for"];
    matches!(schema.as_str(), "" | "pg_catalog")
        && (SAFE.contains(name.as_str()) || syntax.contains(&name.as_str()))
}

/// Whether a function may leave anything at all in the session.
fn is_unknown_function((schema, name): &(String, String)) -> bool {
    let known = ["set_config", "current_setting"];
    !(matches!(schema.as_str(), "" | "pg_catalog")
        && (SAFE.contains(name.as_str())
            || WRITER.contains(name.as_str())
            || name.starts_with("pg_stat_")
            || name.contains("advisory_")
            || known.contains(&name.as_str())))
}

/// Relations whose content is about one server.
fn is_local_relation(name: &str) -> bool {
    ["pg_stat", "pg_temp", "pg_replication_slots", "pg_replication_origin_status"]
        .iter()
        .any(|p| name.starts_with(p) && !name.starts_with("pg_stats") && !is_statistic(name))
        || ["pg_locks", "pg_cursors", "pg_settings", "pg_prepared_statements", "pg_config"]
            .contains(&name)
}

fn is_statistic(name: &str) -> bool {
    matches!(name, "pg_statistic" | "pg_statistic_ext" | "pg_statistic_ext_data")
}

/// Every law that `script` breaks.
pub fn broken(script: &Script, seen: &Seen) -> Vec<&'static str> {
    let read = script.access == Access::Read;
    let leaves = |bits| script.leaves.has(bits) || script.leaves.has(Leaves::UNKNOWN);
    let session = script.leaves.has(Leaves::ADVISORY.with(Leaves::UNKNOWN));
    let advisory = |f: &(String, String)| {
        matches!(f.0.as_str(), "" | "pg_catalog")
            && (f.1.starts_with("pg_advisory_lock") || f.1.starts_with("pg_try_advisory_lock"))
    };
    let begun_here = matches!(script.first, Verb::Begin(m) if m.read_only == Some(true));
    // What is not read as what it is, and says so.
    let doubted = script.first == Verb::Other && script.leaves.has(Leaves::UNKNOWN) && script.ends;
    let laws = [
        ("a statement that writes is a read", read && seen.writes),
        ("a statement that locks is a read", read && seen.locks),
        (
            "a call that needs the writer is a read",
            read && !seen.functions.iter().all(is_safe_function),
        ),
        (
            "a view about one server is a read",
            read && seen.relations.iter().any(|r| is_local_relation(r)),
        ),
        ("a block that is not read only is a read", read && seen.begins_writer),
        ("the end of somebody's block is a read", read && seen.ends && !begun_here),
        ("the end of a block is not seen", seen.ends && !script.ends),
        ("the beginning of a block is not seen", seen.begins && !script.begins),
        ("rows are not seen", seen.rows && !script.returns_rows),
        ("a setting is not seen", seen.setting && !leaves(Leaves::SETTING)),
        ("a temporary table is not seen", seen.temp && !leaves(Leaves::TEMP)),
        ("LISTEN is not seen", seen.listen && !leaves(Leaves::LISTEN)),
        ("WITH HOLD is not seen", seen.hold && !leaves(Leaves::HOLD)),
        ("PREPARE is not seen", seen.prepared && !leaves(Leaves::PREPARED)),
        ("LOAD is not seen", seen.load && !leaves(Leaves::LOAD)),
        ("DO is not seen", seen.anything && !script.leaves.has(Leaves::UNKNOWN)),
        ("an advisory lock is not seen", seen.functions.iter().any(advisory) && !session),
        (
            "an unknown function is not seen",
            seen.functions.iter().any(is_unknown_function) && !script.leaves.has(Leaves::UNKNOWN),
        ),
        ("statements are counted differently", seen.statements != script.statements as usize),
        ("the first statement is another", !same_verb(&seen.first, script.first) && !doubted),
    ];
    laws.into_iter().filter(|(_, broken)| *broken).map(|(law, _)| law).collect()
}

fn same_verb(kind: &str, verb: Verb) -> bool {
    let query = matches!(verb, Verb::Select | Verb::Values | Verb::Table | Verb::With);
    match kind {
        "" => verb == Verb::Empty,
        "SelectStmt" => query,
        "InsertStmt" => matches!(verb, Verb::Insert | Verb::With),
        "UpdateStmt" => matches!(verb, Verb::Update | Verb::With),
        "DeleteStmt" => matches!(verb, Verb::Delete | Verb::With),
        "MergeStmt" => matches!(verb, Verb::Merge | Verb::With),
        "ExplainStmt" => matches!(verb, Verb::Explain { .. }),
        "TransactionStmt" => matches!(
            verb,
            Verb::Begin(_)
                | Verb::Commit { .. }
                | Verb::Rollback { .. }
                | Verb::Savepoint
                | Verb::RollbackTo
                | Verb::Release
                | Verb::PrepareTransaction
                | Verb::CommitPrepared
                | Verb::RollbackPrepared
        ),
        "VariableSetStmt" => matches!(
            verb,
            Verb::Set(_)
                | Verb::Reset(_)
                | Verb::SetTransaction(_)
                | Verb::SetSessionCharacteristics(_)
        ),
        "VariableShowStmt" => matches!(verb, Verb::Show(_)),
        "ConstraintsSetStmt" => verb == Verb::SetConstraints,
        "DiscardStmt" => matches!(verb, Verb::Discard(_)),
        "PrepareStmt" => matches!(verb, Verb::Prepare(_)),
        "ExecuteStmt" => matches!(verb, Verb::Execute(_)),
        "DeallocateStmt" => matches!(verb, Verb::Deallocate(_)),
        "DeclareCursorStmt" => matches!(verb, Verb::Declare { .. }),
        "FetchStmt" => matches!(verb, Verb::Fetch | Verb::Move),
        "ClosePortalStmt" => matches!(verb, Verb::Close(_)),
        "ListenStmt" => matches!(verb, Verb::Listen(_)),
        "UnlistenStmt" => matches!(verb, Verb::Unlisten { .. }),
        "NotifyStmt" => verb == Verb::Notify,
        "CopyStmt" => matches!(verb, Verb::Copy(_)),
        "LockStmt" => verb == Verb::Lock,
        "CallStmt" => verb == Verb::Call,
        "DoStmt" => verb == Verb::Do,
        "LoadStmt" => verb == Verb::Load,
        "VacuumStmt" | "ClusterStmt" | "ReindexStmt" => verb == Verb::Vacuum,
        "CheckPointStmt" => verb == Verb::Checkpoint,
        _ => verb == Verb::Ddl,
    }
}
