//! Everything a decision wants to know of the local server, in one round trip.

use quorate_core::status::Replay;
use quorate_core::{Lsn, TimelineId};

use super::{Admin, field, is_true, need};
use crate::{Error, timelines};

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// It is a standby.
    pub in_recovery: bool,
    /// On a standby: the end of what was received since the last start; unknown before that.
    pub received: Option<Lsn>,
    /// On a standby, and where recovery ended on a writer: the end of what was replayed.
    pub replayed: Option<Lsn>,
    /// On a writer: the end of what is on disk.
    pub flushed: Option<Lsn>,
    /// On a writer: the end of what was written to memory.
    pub inserted: Option<Lsn>,
    /// On a writer its timeline. On a standby the best known one: what is streamed, or a lower
    /// bound from the control file; `Admin::standby_position` knows exactly.
    pub timeline: Option<TimelineId>,
    /// The process that streams from the upstream.
    pub walreceiver: Option<WalReceiver>,
    /// What the startup process of a standby waits for.
    pub startup_wait: Option<String>,
    /// On a standby: what replay is at.
    pub replay: Replay,
    /// Identifies the database system.
    pub system_id: u64,
    /// Seconds since 1970 at which the postmaster started.
    pub started_at: f64,
    /// Parameters whose new value needs a restart.
    pub pending_restart: Vec<String>,
    /// Settings that break rule R16, by name; empty when all is well.
    pub unsafe_settings: Vec<String>,
    /// The value in force: whom commits wait for.
    pub synchronous_standby_names: String,
    /// The first transaction id that a snapshot does not reach.
    pub snapshot_end: u64,
    /// The first transaction id that the server does not know.
    pub next_id: u64,
}

/// The process that streams from the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalReceiver {
    /// Its process id.
    pub pid: i32,
    /// `streaming`, `waiting`, …; `None` while it is connecting.
    pub status: Option<String>,
}

impl Probe {
    /// Whether the startup process of a standby has come to the end of all log here: what was
    /// replayed is then the end of the last whole record.
    pub fn is_exhausted(&self) -> bool {
        let wait = self.startup_wait.as_deref();
        matches!(wait, Some("RecoveryWalStream" | "RecoveryRetrieveRetryInterval"))
    }
}

/// Functions are evaluated after the rows they stand beside were read, so `wait_event` is older
/// than the positions: "all local WAL is replayed" cannot be claimed of a position read before.
/// Recovery ends once and for ever, so a `CASE` that found it over stays right.
const SQL: &str = "\
SELECT pg_is_in_recovery(), pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(),
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END,
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END,
  CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_walfile_name(pg_current_wal_insert_lsn()) END,
  coalesce(w.received_tli,
    greatest(checkpoint.timeline_id, recovery.min_recovery_end_timeline)),
  a.receiver, w.status, a.startup_wait, system.system_identifier,
  extract(epoch FROM pg_postmaster_start_time()),
  (SELECT string_agg(name, ',') FROM pg_settings WHERE pending_restart),
  concat_ws(',',
    CASE WHEN current_setting('fsync') <> 'on' THEN 'fsync' END,
    CASE WHEN current_setting('full_page_writes') <> 'on' THEN 'full_page_writes' END,
    CASE WHEN current_setting('data_checksums') <> 'on'
      AND current_setting('wal_log_hints') <> 'on' THEN 'wal_log_hints' END,
    CASE WHEN current_setting('restart_after_crash') <> 'off' THEN 'restart_after_crash' END,
    CASE WHEN current_setting('recovery_target_timeline') <> 'latest'
      THEN 'recovery_target_timeline' END,
    CASE WHEN current_setting('listen_addresses') <> '' THEN 'listen_addresses' END),
  current_setting('synchronous_standby_names'),
  a.startup_wait_type, a.oldest_pid,
  (extract(epoch FROM clock_timestamp() - a.oldest_start) * 1000)::bigint,
  pg_snapshot_xmax(now.snapshot), age(xid(pg_snapshot_xmax(now.snapshot)))
FROM (SELECT max(wait_event) FILTER (WHERE backend_type = 'startup') AS startup_wait,
        max(wait_event_type) FILTER (WHERE backend_type = 'startup') AS startup_wait_type,
        max(pid) FILTER (WHERE backend_type = 'walreceiver') AS receiver,
        min(xact_start) FILTER (WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid())
          AS oldest_start,
        (array_agg(pid ORDER BY xact_start)
          FILTER (WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid()))[1] AS oldest_pid
      FROM pg_stat_activity OFFSET 0) AS a
  LEFT JOIN pg_stat_wal_receiver AS w ON true,
  pg_control_system() AS system, pg_control_checkpoint() AS checkpoint,
  pg_control_recovery() AS recovery, (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS now";

impl Admin {
    /// Asks once.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`].
    pub async fn probe(&self) -> Result<Probe, Error> {
        let row = self.questions.row("describe itself", SQL).await?;
        let lsn = |column| field::<Lsn>(&row, column, "a log position");
        let timeline = match row.get(5) {
            Some(file) => timelines::of_file_name(file),
            None => field(&row, 6, "a timeline")?.map(TimelineId),
        };
        let receiver: Option<i32> = field(&row, 7, "a pid")?;
        let walreceiver =
            receiver.map(|pid| WalReceiver { pid, status: row.get(8).map(str::to_owned) });
        let snapshot_end = need(&row, 18, "a transaction id")?;
        // An id's age is how many were given since, without the need to give another one.
        let given: u64 = need(&row, 19, "an age")?;
        let names = |column: usize| {
            let text = row.get(column).unwrap_or_default();
            text.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect()
        };
        Ok(Probe {
            in_recovery: is_true(&row, 0),
            received: lsn(1)?,
            replayed: lsn(2)?,
            flushed: lsn(3)?,
            inserted: lsn(4)?,
            timeline,
            walreceiver,
            startup_wait: row.get(9).map(str::to_owned),
            replay: Replay {
                wait: row.get(15).zip(row.get(9)).map(|(kind, event)| format!("{kind}:{event}")),
                oldest_pid: field(&row, 16, "a pid")?,
                oldest_ms: field::<u64>(&row, 17, "an age")?,
            },
            system_id: need(&row, 10, "the system identifier")?,
            started_at: need(&row, 11, "the start time")?,
            pending_restart: names(12),
            unsafe_settings: names(13),
            synchronous_standby_names: row.get(14).unwrap_or_default().to_owned(),
            snapshot_end,
            next_id: snapshot_end + given,
        })
    }
}
