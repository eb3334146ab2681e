//! What drills need: a place for their clients to write, and failures that a server can be given.
//!
//! A slot belongs to the session that opened it: whatever becomes of us, nobody keeps log for ever.

use quorate_core::Lsn;
use rustix::process::{Pid, Signal, kill_process};

use super::connection::{Connection, Lane};
use super::{Admin, field, literal};
use crate::{Error, Server, Status, procfs};

/// Schema and slot of a drill, and what the names of its roles begin with.
pub const DRILL: &str = "drill_canary";

/// Connections that a drill's clients may have at the most.
const CONNECTIONS_MAX: u32 = 100;

/// Log that is kept because of an open slot. Dropping it lets go.
#[derive(Debug)]
pub struct KeptLog {
    /// The slot ends with it.
    _session: Connection,
}

impl Admin {
    /// Makes the role of a drill's clients and their table, which is all that the role may touch. What
    /// an interrupted drill left is removed first. The verifier is `rolpassword`'s form of a password;
    /// the role cannot log in any more after so many seconds. Returns its name, which no earlier drill's
    /// had: connections and passwords of an earlier one may still be kept somewhere.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (when something of that name is not a drill's).
    pub async fn stage_drill(
        &self,
        number: u64,
        verifier: &str,
        seconds: u64,
    ) -> Result<String, Error> {
        let superuser = Lane::superuser(&self.options);
        self.clear(&superuser).await?;
        let role = format!("{DRILL}_{number}");
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = on; \
             CREATE ROLE {role} LOGIN PASSWORD {} CONNECTION LIMIT {CONNECTIONS_MAX}; \
             DO $$ BEGIN EXECUTE format('ALTER ROLE {role} VALID UNTIL %L', \
             clock_timestamp() + make_interval(secs => {seconds})); END $$; \
             CREATE SCHEMA {DRILL} AUTHORIZATION {role}; \
             SET LOCAL ROLE {role}; \
             CREATE TABLE {DRILL}.canary (client int, n bigint, padding text, \
             PRIMARY KEY (client, n)); \
             CREATE VIEW {DRILL}.place AS SELECT pg_is_in_recovery() AS standby; \
             COMMIT",
            literal(verifier)
        );
        superuser.ask("make room for a drill", &sql).await?;
        Ok(role)
    }

    /// Removes what [`Admin::stage_drill`] made, and nothing that anybody else owns.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn clear_drill(&self) -> Result<(), Error> {
        self.clear(&Lane::superuser(&self.options)).await
    }

    async fn clear(&self, superuser: &Lane) -> Result<(), Error> {
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = on; \
             DO $$ DECLARE role name; BEGIN \
             FOR role IN SELECT rolname FROM pg_roles WHERE rolname ~ '^{DRILL}_[0-9]+$' LOOP \
             PERFORM pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = role; \
             EXECUTE format('DROP OWNED BY %I', role); \
             EXECUTE format('DROP ROLE %I', role); \
             END LOOP; END $$; COMMIT"
        );
        superuser.ask("remove what a drill made", &sql).await.map(drop)
    }

    /// Stops a standby's replay, or lets it go on.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (on a writer).
    pub async fn pause_replay(&self, paused: bool) -> Result<(), Error> {
        let sql =
            if paused { "SELECT pg_wal_replay_pause()" } else { "SELECT pg_wal_replay_resume()" };
        self.questions.ask("stop or resume replay", sql).await.map(drop)
    }

    /// Opens a slot that keeps the log of this writer from here on.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (when all slots are in use).
    pub async fn keep_log(&self) -> Result<KeptLog, Error> {
        let sql = format!("SELECT pg_create_physical_replication_slot('{DRILL}', true, true)");
        let session = self.slow.alone("open a slot", &sql).await?;
        Ok(KeptLog { _session: session })
    }

    /// Bytes of log that [`KeptLog`] keeps on this writer; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (on a standby), [`Error::Unreadable`].
    pub async fn kept_log(&self) -> Result<Option<u64>, Error> {
        let sql = format!(
            "SELECT restart_lsn, pg_current_wal_lsn() FROM pg_replication_slots \
             WHERE slot_name = '{DRILL}'"
        );
        let rows = self.questions.ask("see what a slot keeps", &sql).await?.rows;
        let Some(row) = rows.first() else { return Ok(None) };
        let from: Option<Lsn> = field(row, 0, "a slot's position")?;
        let to: Option<Lsn> = field(row, 1, "the log's position")?;
        Ok(from.zip(to).map(|(from, to)| to.bytes_since(from)))
    }
}

impl Server {
    /// Kills the postmaster, as the kernel does when memory runs out: for drills. Returns whether
    /// there was one.
    pub fn crash(&self) -> bool {
        let Status::Running { pid } = *self.status().borrow() else { return false };
        let ours = procfs::process(pid).is_some_and(|p| p.name == "postgres");
        match Pid::from_raw(pid).filter(|_| ours) {
            Some(pid) => kill_process(pid, Signal::KILL).is_ok(),
            None => false,
        }
    }
}
