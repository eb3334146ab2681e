//! Freezing a standby and reading its position (rule R3).

use std::time::{Duration, Instant};

use quorate_core::Lsn;
use rustix::process::{Pid, Signal, kill_process};

use super::{Admin, field, is_true, need};
use crate::limits::WALRECEIVER_POLL;
use crate::timelines::{self, Position};
use crate::{Error, procfs};

/// A standby's answer to "where does your log end?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyPosition {
    /// The end of all WAL on its disk.
    At(Position),
    /// It cannot be known yet; one sentence of why. Ask again.
    NotYet(&'static str),
}

impl Admin {
    /// Ends the walreceiver and waits until there is none. The caller has closed the relay socket:
    /// PostgreSQL tries again at once, and must not get anywhere. Returns whether there was one.
    ///
    /// Setting `primary_conninfo` would not do: while replay is held up nothing reads it.
    ///
    /// # Errors
    /// [`Error::Timeout`] when one is still there after `within`, [`Error::Connect`],
    /// [`Error::Sql`].
    pub async fn terminate_walreceiver(&self, within: Duration) -> Result<bool, Error> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
        let deadline = Instant::now() + within;
        let mut found = false;
        loop {
            let rows = self.questions.ask("look for its walreceiver", sql).await?.rows;
            let Some(row) = rows.first() else { return Ok(found) };
            found = true;
            let pid: i32 = need(row, 0, "a pid")?;
            // Not by SQL: pg_terminate_backend knows client backends only.
            let ours = procfs::process(pid).is_some_and(|p| p.name == "postgres");
            if let Some(pid) = Pid::from_raw(pid).filter(|_| ours) {
                let _ = kill_process(pid, Signal::TERM);
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout { what: "the walreceiver's end", after: within });
            }
            tokio::time::sleep(WALRECEIVER_POLL).await;
        }
    }

    /// The end of the WAL that this frozen standby holds.
    ///
    /// What was received counts, replayed or not. Before anything was received since the start,
    /// "replayed" is complete only when the startup process has come to the end of the local WAL:
    /// it then waits for a stream or between two tries. PostgreSQL asks for a stream at the same
    /// point, so a receive position that is set proves the same.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`], [`Error::Unreadable`], [`Error::Io`].
    pub async fn standby_position(&self) -> Result<StandbyPosition, Error> {
        // Two questions, in this order: exhaustion must be older than the position it vouches for.
        let before = "SELECT \
             (SELECT max(wait_event) FROM pg_stat_activity WHERE backend_type = 'startup'), \
             EXISTS (SELECT FROM pg_stat_wal_receiver)";
        let row = self.questions.row("say whether it is frozen", before).await?;
        let exhausted =
            matches!(row.get(0), Some("RecoveryWalStream" | "RecoveryRetrieveRetryInterval"));
        let connected = is_true(&row, 1);
        let after = "SELECT pg_is_in_recovery(), pg_last_wal_receive_lsn(), \
             pg_last_wal_replay_lsn(), pg_size_bytes(current_setting('wal_segment_size'))";
        let row = self.questions.row("read its position", after).await?;
        if !is_true(&row, 0) {
            return Ok(StandbyPosition::NotYet("it is no standby"));
        }
        if connected {
            return Ok(StandbyPosition::NotYet("its walreceiver is still connected"));
        }
        let received: Option<Lsn> = field(&row, 1, "the received position")?;
        let replayed: Option<Lsn> = field(&row, 2, "the replayed position")?;
        if received.is_none() && !exhausted {
            return Ok(StandbyPosition::NotYet("it is still replaying its own log"));
        }
        let Some(lsn) = received.max(replayed) else {
            return Ok(StandbyPosition::NotYet("it has replayed nothing"));
        };
        let segment_bytes = need(&row, 3, "the segment size")?;
        let dir = self.options.data_dir.clone();
        let read = move || {
            let tli = timelines::held(&dir, lsn, segment_bytes)?;
            Ok(Position { tli, lsn, forks: timelines::forks(&dir, tli)? })
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|err| Error::io("read", &self.options.data_dir)(std::io::Error::other(err)))?
            .map(StandbyPosition::At)
    }
}
