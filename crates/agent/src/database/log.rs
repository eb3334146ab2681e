//! The files of the server's log.

use std::path::PathBuf;

use quorate_core::{Lsn, Term, TimelineId};
use quorate_postgres::{Error, segment_number};

use super::Database;
use crate::limits::{KEPT_TAIL_BYTES_MAX, KEPT_TAILS_MAX};

impl Database {
    /// Whether this server still has the log from `lsn` on. In doubt it has: PostgreSQL says so
    /// itself in the end.
    pub fn has_log(&self, lsn: Lsn) -> bool {
        let Some(bytes) = self.segment_bytes.get().copied() else { return true };
        let Ok(files) = std::fs::read_dir(self.options.data_dir.join("pg_wal")) else {
            return true;
        };
        let oldest =
            files.flatten().filter_map(|e| segment_number(e.file_name().to_str()?, bytes)).min();
        oldest.is_none_or(|oldest| lsn.0 / bytes >= oldest)
    }

    /// Before a timeline's log comes from `from` on: what this node has of its beginning, and has
    /// acknowledged, stays readable whenever the server ends.
    pub async fn begin_timeline(&self, timeline: TimelineId, from: Lsn) -> Result<(), Error> {
        let bytes = match self.segment_bytes.get() {
            Some(bytes) => *bytes,
            None => quorate_postgres::read_control_data(&self.options).await?.segment_bytes,
        };
        let options = self.options.clone();
        let begin = move || quorate_postgres::begin_timeline(&options, timeline, from, bytes);
        let begun = tokio::task::spawn_blocking(begin).await;
        if let Some(ancestor) = begun.map_err(|e| Error::NotRunning(e.to_string()))?? {
            tracing::info!(%timeline, %ancestor, "its first file begins as a copy of the ancestor's");
        }
        Ok(())
    }

    /// Keeps a copy of the log that a rewind or a clone is about to drop: commits in it may be
    /// wanted for reconciliation. Older copies beyond a few are removed.
    pub async fn keep_tail(&self, term: Term, fork: Lsn) -> Result<PathBuf, Error> {
        let control = quorate_postgres::read_control_data(&self.options).await?;
        let from = self.options.data_dir.join("pg_wal");
        let home = self.options.data_dir.with_file_name("lost-log");
        let to = home.join(format!("before-term-{term}"));
        let bytes = control.segment_bytes;
        let first = fork.0 / bytes;
        let path = to.clone();
        let copy = move || -> std::io::Result<()> {
            std::fs::create_dir_all(&to)?;
            let mut names: Vec<_> = std::fs::read_dir(&from)?.flatten().collect();
            names.retain(|e| {
                e.file_name()
                    .to_str()
                    .and_then(|n| segment_number(n, bytes))
                    .is_some_and(|s| s >= first)
            });
            let most = (KEPT_TAIL_BYTES_MAX / bytes).max(1) as usize;
            for entry in names.iter().take(most) {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
            let mut kept: Vec<_> = std::fs::read_dir(&home)?.flatten().collect();
            kept.sort_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
            for old in kept.iter().rev().skip(KEPT_TAILS_MAX) {
                std::fs::remove_dir_all(old.path())?;
            }
            Ok(())
        };
        let failed = |source| Error::Io { action: "keep log in", path: path.clone(), source };
        match tokio::task::spawn_blocking(copy).await {
            Ok(done) => done.map_err(failed)?,
            Err(e) => return Err(failed(std::io::Error::other(e))),
        }
        Ok(path)
    }
}
