//! Making a standby the writer, on exactly the timeline that was granted (rule R9).

use std::time::{Duration, Instant};

use quorate_core::{Lsn, TimelineId};

use super::{Admin, field, is_true, need};
use crate::limits::PROMOTE_POLL;
use crate::{Error, timelines};

/// What a promotion led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    /// The new timeline: the granted one.
    pub tli: TimelineId,
    /// Where it leaves its parent.
    pub fork_lsn: Lsn,
    /// The first transaction id that this reign may use, with its epoch. Read as soon as recovery
    /// is over, before anybody is let in.
    pub next_xid: u64,
}

impl Admin {
    /// Reserves every lower timeline, promotes, and waits until recovery is over.
    ///
    /// Replay of all received WAL comes first, so a standby that lags takes its time. When this
    /// fails or is cancelled the server must be stopped: it may still become a writer.
    ///
    /// # Errors
    /// [`Error::Promote`] when it is no standby, the timeline is taken or another one was chosen,
    /// [`Error::Timeout`], [`Error::Connect`], [`Error::Sql`], [`Error::Io`].
    pub async fn promote(&self, target: TimelineId, within: Duration) -> Result<Promoted, Error> {
        let refuse = |reason: String| Error::Promote { target: target.0, reason };
        let deadline = Instant::now() + within;
        if target.0 < 2 || timelines::is_taken(&self.options.data_dir, target) {
            return Err(refuse("it has a history already".to_owned()));
        }
        let options = self.options.clone();
        let reserve = move || timelines::reserve(&options, target);
        tokio::task::spawn_blocking(reserve).await.map_err(|err| refuse(err.to_string()))??;
        let row = self
            .questions
            .row("begin its promotion", "SELECT pg_is_in_recovery() AND pg_promote(false)")
            .await?;
        if !is_true(&row, 0) {
            return Err(refuse("the server is a writer already".to_owned()));
        }
        let (tli, next_xid) = self.wait_promoted(deadline, within).await?;
        self.promoted(target, tli, next_xid)
    }

    /// What a server that promoted itself when it started led to. It answers already.
    ///
    /// # Errors
    /// As [`Admin::promote`].
    pub async fn self_promoted(
        &self,
        target: TimelineId,
        within: Duration,
    ) -> Result<Promoted, Error> {
        let (tli, next_xid) = self.wait_promoted(Instant::now() + within, within).await?;
        self.promoted(target, tli, next_xid)
    }

    fn promoted(
        &self,
        target: TimelineId,
        tli: TimelineId,
        next_xid: u64,
    ) -> Result<Promoted, Error> {
        let refuse = |reason: String| Error::Promote { target: target.0, reason };
        if tli != target {
            return Err(refuse(format!("the server chose timeline {tli}")));
        }
        let fork = timelines::forks(&self.options.data_dir, tli)?.last().map(|(_, lsn)| *lsn);
        let fork_lsn = fork.ok_or_else(|| refuse("its history is empty".to_owned()))?;
        Ok(Promoted { tli, fork_lsn, next_xid })
    }

    async fn wait_promoted(
        &self,
        deadline: Instant,
        within: Duration,
    ) -> Result<(TimelineId, u64), Error> {
        // No transaction of this reign has ended yet: the snapshot's end is the next id.
        let sql = "SELECT CASE WHEN NOT pg_is_in_recovery() \
             THEN pg_walfile_name(pg_current_wal_insert_lsn()) END, \
             pg_snapshot_xmax(pg_current_snapshot())";
        loop {
            let row = self.questions.row("say whether it is promoted", sql).await?;
            if let Some(file) = field::<String>(&row, 0, "a WAL file name")? {
                let bad = || Error::Unreadable { what: "a WAL file name", value: file.clone() };
                let tli = timelines::of_file_name(&file).ok_or_else(bad)?;
                return Ok((tli, need(&row, 1, "the next transaction id")?));
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout { what: "the promotion's end", after: within });
            }
            tokio::time::sleep(PROMOTE_POLL).await;
        }
    }
}
