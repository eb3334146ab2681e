//! Writes while the disk of the writer's log is short: they stop before the server does.
//!
//! Transactions that begin then are read-only ones, so that PostgreSQL judges what writes and what does
//! not; statements that surely write are stopped in those that had begun before, too. Reads, ends of
//! transactions and settings go on. Whoever wants to make room says so: [`SETTING`].

use bytes::Bytes;
use quorate_wire::backend::Report;
use quorate_wire::sql::{CopyKind, Script, Verb, Why};

use crate::client::Client;
use crate::server::{Part, Server};
use crate::worker::Worker;

/// The setting of a session that writes all the same.
pub(crate) const SETTING: &str = "quorate.allow_writes_when_full";

/// A boolean, as PostgreSQL spells it.
pub(crate) fn flag(text: &str) -> Option<bool> {
    Some(match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => true,
        "off" | "false" | "no" | "0" => false,
        _ => return None,
    })
}

/// Whether a transaction that begins on this server may not write.
pub(crate) fn stops(worker: &Worker, client: &Client, server: &Server) -> bool {
    worker.is_full()
        && matches!(server.part, Part::Writer(_))
        && client.writes_at.is_none()
        && !client.asked.when_full
}

/// What its client is told in place of PostgreSQL's refusal.
pub(crate) fn refusal(worker: &Worker, forced: bool) -> Option<Bytes> {
    if !forced {
        return None;
    }
    report(worker).map(|report| report.encode().freeze())
}

/// Why nothing is written; `None` when there is room again.
pub(crate) fn report(worker: &Worker) -> Option<Report> {
    let view = worker.view();
    let facts = view.full.as_deref()?;
    Some(
        Report::error("53100", "writes have stopped: the writer's disk is almost full")
            .detail(facts.to_owned())
            .hint(
                "Reads go on. To make room: SET quorate.allow_writes_when_full = on, then DROP or \
                 TRUNCATE; quorate slots shows what keeps log.",
            ),
    )
}

/// Whether a statement surely writes, more than an end of a transaction does.
pub(crate) fn grows(script: &Script) -> bool {
    script.statements == 1
        && match script.first {
            Verb::Insert | Verb::Update | Verb::Delete | Verb::Merge => true,
            Verb::Copy(kind) => kind == CopyKind::FromStdin,
            Verb::With => script.because == Why::DataModifyingCte,
            Verb::Select => script.because == Why::SelectInto,
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_wire::sql::{Options, classify};

    #[test]
    fn what_surely_writes_is_told_from_what_makes_room_or_ends() {
        let grows = |sql: &str| grows(&classify(sql.as_bytes(), &Options::default()));
        for sql in [
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET x = 1",
            "DELETE FROM t",
            "COPY t FROM STDIN",
            "WITH a AS (INSERT INTO t VALUES (1) RETURNING x) SELECT * FROM a",
            "SELECT x INTO u FROM t",
        ] {
            assert!(grows(sql), "{sql}");
        }
        for sql in [
            "SELECT x FROM t",
            "COMMIT",
            "ROLLBACK",
            "DROP TABLE t",
            "TRUNCATE t",
            "SET work_mem = 1",
            "COPY t TO STDOUT",
            "SELECT pg_advisory_lock(1)",
            "BEGIN",
        ] {
            assert!(!grows(sql), "{sql}");
        }
        assert_eq!(
            ["ON", "off", "1", "maybe"].map(flag),
            [Some(true), Some(false), Some(true), None]
        );
    }
}
