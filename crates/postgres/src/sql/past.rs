//! What a delayed standby has replayed, and what it could.

use quorate_core::Lsn;

use super::{Admin, field, is_true, literal, need};
use crate::Error;
use crate::past::Target;

/// Where a standby is, seen from a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PastSpan {
    /// What it shows.
    pub(crate) replayed: Lsn,
    /// What it has the log of.
    pub(crate) received: Lsn,
    /// Bytes of all databases.
    pub(crate) size: u64,
    /// When the last transaction that it shows committed.
    pub(crate) last_commit: Option<String>,
    /// The moment's time, without a doubt about its zone.
    pub(crate) time: Option<String>,
    /// It shows more than there was at that moment.
    pub(crate) passed: bool,
    /// The moment is behind the log that it has.
    pub(crate) to_come: bool,
}

/// How far a copy of a standby is on its way to a moment.
pub(crate) struct PastState {
    pub(crate) replayed: Lsn,
    /// It has got there, and is a server of its own.
    pub(crate) ended: bool,
    pub(crate) last_commit: Option<String>,
}

impl Admin {
    /// Whether a standby whose replay was told to pause replays nothing more: it has paused, or it
    /// holds a commit back for its delay, and looks again before it replays that.
    pub(crate) async fn replay_is_held(&self) -> Result<bool, Error> {
        let sql = "SELECT pg_get_wal_replay_pause_state() = 'paused' \
                   OR pg_get_wal_replay_pause_state() = 'pause requested' AND EXISTS \
                   (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' \
                   AND wait_event = 'RecoveryApplyDelay')";
        Ok(is_true(&self.questions.row("see whether replay is paused", sql).await?, 0))
    }

    /// Where this standby is, seen from a moment.
    ///
    /// # Errors
    /// [`Error::Connect`]; [`Error::Sql`] on a writer, and for a time that is none.
    pub(crate) async fn past_span(&self, target: &Target) -> Result<PastSpan, Error> {
        let seen = match target {
            Target::Time(text) => format!(
                "SELECT t::text, t <= pg_last_xact_replay_timestamp(), t > now() \
                 FROM (SELECT {}::timestamptz) AS v(t)",
                literal(text)
            ),
            Target::Lsn(lsn) => format!(
                "SELECT NULL, '{lsn}' < pg_last_wal_replay_lsn(), \
                 '{lsn}' > pg_last_wal_receive_lsn()"
            ),
            // Ids are mostly told without their epoch.
            Target::Xid(xid) => format!(
                "SELECT NULL, CASE WHEN x < e THEN \
                 coalesce(pg_xact_status(x::text::xid8), 'over') <> 'in progress' END, false \
                 FROM (SELECT e, CASE WHEN {xid} < 1::numeric * 4294967296 \
                 THEN div(e, 4294967296) * 4294967296 ELSE 0 END + {xid} \
                 FROM (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::numeric) AS w(e)) AS v(e, x)"
            ),
        };
        let sql = format!(
            "SELECT pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), \
             pg_last_xact_replay_timestamp()::text, time, passed, to_come, \
             (SELECT sum(pg_database_size(oid)) FROM pg_database) \
             FROM ({seen}) AS v(time, passed, to_come)"
        );
        let asked = self.questions.row("compare a moment with what is replayed", &sql).await;
        let row = asked.map_err(|error| match (&error, target) {
            (Error::Sql { source, .. }, Target::Time(text))
                if source.code().is_some_and(|code| code.code().starts_with("22")) =>
            {
                Error::Past {
                    reason: format!("PostgreSQL reads no time in {text:?}"),
                    hint: "Write it like this: 2026-11-30 14:05:00+01.",
                }
            }
            _ => error,
        })?;
        Ok(PastSpan {
            replayed: need(&row, 0, "a position")?,
            received: need(&row, 1, "a position")?,
            last_commit: field(&row, 2, "a time")?,
            time: field(&row, 3, "a time")?,
            passed: is_true(&row, 4),
            to_come: is_true(&row, 5),
            size: need(&row, 6, "the size of the databases")?,
        })
    }

    /// Ends the replay of a copy of a standby.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub(crate) async fn end_past(&self) -> Result<(), Error> {
        self.slow.ask("end replay", "SELECT pg_promote(false)").await.map(drop)
    }

    /// How far this copy of a standby is.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub(crate) async fn past_state(&self) -> Result<PastState, Error> {
        let sql = "SELECT pg_last_wal_replay_lsn(), NOT pg_is_in_recovery(), \
                   pg_last_xact_replay_timestamp()::text";
        let row = self.questions.row("see how far replay is", sql).await?;
        Ok(PastState {
            replayed: need(&row, 0, "a position")?,
            ended: is_true(&row, 1),
            last_commit: field(&row, 2, "a time")?,
        })
    }
}
