//! Questions and orders to the local server, over its private socket, as role `quorate`.
//!
//! Every statement is one round trip in the simple protocol: no prepared state to lose. A
//! connection serves one caller at a time and is put back only after a whole answer, so whoever is
//! cancelled in the middle leaves nothing half-read behind. The marker waits for standbys on a
//! connection of its own and never delays a question.

mod carry;
mod connection;
mod consumers;
mod drill;
mod freeze;
mod past;
mod probe;
mod promote;
mod slots;
mod validate;

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::{Lsn, NodeId, Term, TimelineId};
use tokio::sync::watch;
use tokio_postgres::SimpleQueryRow;

pub use carry::Decoder;
pub use consumers::{Ended, Slots};
pub use drill::{DRILL, KeptLog};
pub use freeze::StandbyPosition;
pub(crate) use past::PastSpan;
pub use probe::{Probe, WalReceiver};
pub use promote::Promoted;
pub use slots::{Setting, Slot};

use crate::limits::READY_POLL;
use crate::{Error, ServerOptions, Status};
use connection::Lane;

/// Our connections to the local server. Cheap while it is down; reconnects by itself.
#[derive(Debug)]
pub struct Admin {
    options: Arc<ServerOptions>,
    /// Short questions.
    questions: Lane,
    /// The term marker, which waits for standbys.
    marker: Lane,
    /// Checkpoints and slots, which wait for the disk.
    slow: Lane,
}

/// What became of a marker that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A commit set holds it, as far as `synchronous_standby_names` says so.
    Held,
    /// Its wait was cut short: it is on this server only.
    LocalOnly,
    /// The table already names a higher term: this server is not the newest writer.
    Outdated,
}

/// What the server knows of a role that logs in. The verifier is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// `rolpassword`.
    pub password: Option<String>,
    /// `rolcanlogin`.
    pub may_log_in: bool,
    /// Whether `rolvaliduntil` has passed.
    pub expired: bool,
    /// `rolsuper`.
    pub superuser: bool,
}

/// What became of a wish to cancel a backend's statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The signal was sent.
    Sent,
    /// It waits for a standby: cancelling would report a commit that is not safe.
    WaitsForStandby,
    /// There is no such backend.
    Gone,
}

impl Admin {
    /// Connects to nothing yet.
    pub fn new(options: Arc<ServerOptions>) -> Self {
        Self {
            questions: Lane::new(&options, true),
            marker: Lane::new(&options, false),
            slow: Lane::new(&options, false),
            options,
        }
    }

    /// Waits until the server accepts connections.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when it ends instead, [`Error::Timeout`].
    pub async fn wait_ready(
        &self,
        status: &watch::Receiver<Status>,
        within: Duration,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        loop {
            if let Status::NotRunning { last_exit } = &*status.borrow() {
                return Err(Error::NotRunning(last_exit.clone().unwrap_or_default()));
            }
            if self.questions.row("ask whether it is ready", "SELECT 1").await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout { what: "the server's start", after: within });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Opens the connections that a promotion will need, so that it does not wait for them.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn warm(&self) -> Result<(), Error> {
        self.questions.row("warm up", "SELECT 1").await?;
        self.marker.row("warm up", "SELECT 1").await?;
        self.slow.row("warm up", "SELECT 1").await.map(drop)
    }

    /// Ends a transaction that does nothing but have an id, and waits for nobody: standbys that have
    /// replayed its end show whatever committed before ([`quorate_core::shows`]).
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn end_an_id(&self) -> Result<(), Error> {
        self.questions.row("end a transaction id", "SELECT pg_current_xact_id()").await.map(drop)
    }

    /// Records the writer in `quorate.term` by one synchronous transaction. Returns when the
    /// synchronous standbys hold it; the caller bounds the time.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn write_marker(
        &self,
        term: Term,
        tli: TimelineId,
        node: NodeId,
    ) -> Result<Marker, Error> {
        // `synchronous_commit = on` whatever the cluster chose for others: the marker is proof.
        let sql = format!(
            "BEGIN; SET LOCAL synchronous_commit = on; \
             INSERT INTO quorate.term AS t (term, timeline, node, at) \
             VALUES ({term}, {tli}, '{node}', clock_timestamp()) \
             ON CONFLICT ((true)) DO UPDATE SET term = excluded.term, \
             timeline = excluded.timeline, node = excluded.node, at = excluded.at \
             WHERE t.term <= excluded.term RETURNING t.term; COMMIT"
        );
        let answer = self.marker.ask("write the term's marker", &sql).await?;
        Ok(match (answer.rows.is_empty(), answer.local_only) {
            (true, _) => Marker::Outdated,
            (false, true) => Marker::LocalOnly,
            (false, false) => Marker::Held,
        })
    }

    /// Writes a checkpoint, on a standby a restart point. May take long.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn checkpoint(&self) -> Result<(), Error> {
        self.slow.ask("write a checkpoint", "CHECKPOINT").await.map(drop)
    }

    /// The end of the log that is on this writer's disk.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (on a standby too).
    pub async fn current_flush_lsn(&self) -> Result<Lsn, Error> {
        let sql = "SELECT pg_current_wal_flush_lsn()";
        let row = self.questions.row("read the log's end", sql).await?;
        need(&row, 0, "the log's end")
    }

    /// How many applications' backends there are.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn client_backends(&self) -> Result<u64, Error> {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND usename IS DISTINCT FROM 'quorate'";
        need(&self.questions.row("count its clients", sql).await?, 0, "a count")
    }

    /// Clients whose statement or transaction has not ended, Quorate's own aside.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn busy_backends(&self) -> Result<u64, Error> {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                   AND usename IS DISTINCT FROM 'quorate' AND state IS DISTINCT FROM 'idle'";
        need(&self.questions.row("count its busy clients", sql).await?, 0, "a count")
    }

    /// What the server knows of a role that logs in: its password's verifier, whether it may log in
    /// at all, and whether the password is no longer valid. `None`: there is no such role.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn login(&self, role: &str) -> Result<Option<Login>, Error> {
        let sql = format!(
            "SELECT rolpassword, rolcanlogin, coalesce(rolvaliduntil < clock_timestamp(), false), \
             rolsuper \
             FROM pg_authid WHERE rolname = {}",
            literal(role)
        );
        let rows = self.questions.ask("look up a role", &sql).await?.rows;
        Ok(rows.first().map(|row| Login {
            password: row.get(0).map(str::to_owned),
            may_log_in: row.get(1) == Some("t"),
            expired: row.get(2) == Some("t"),
            superuser: row.get(3) == Some("t"),
        }))
    }

    /// What became of a transaction, by its 64-bit id, as the commit log of the local server knows:
    /// `committed`, `aborted`, `in progress`; `None` when it is too old to be known.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (an id that was never assigned is refused).
    pub async fn transaction_status(&self, xid: u64) -> Result<Option<String>, Error> {
        let sql = format!("SELECT pg_xact_status('{xid}'::xid8)");
        let row = self.questions.row("look up a transaction", &sql).await?;
        Ok(row.get(0).map(str::to_owned))
    }

    /// What a backend waits for, as PostgreSQL names it; `None` when it works or is gone.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn wait_event_of(&self, pid: i32) -> Result<Option<String>, Error> {
        let sql = format!("SELECT max(wait_event) FROM pg_stat_activity WHERE pid = {pid}");
        let row = self.questions.row("read what a backend waits for", &sql).await?;
        Ok(row.get(0).map(str::to_owned))
    }

    /// What the client of a backend calls itself; `None` when there is no such backend.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`].
    pub async fn application_of(&self, pid: i32) -> Result<Option<String>, Error> {
        let sql = format!("SELECT max(application_name) FROM pg_stat_activity WHERE pid = {pid}");
        let row = self.questions.row("read what a backend is called", &sql).await?;
        Ok(row.get(0).map(str::to_owned))
    }

    /// Cancels a backend's statement unless it waits for a standby.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Sql`] (superusers' backends are refused).
    pub async fn cancel_backend(&self, pid: i32) -> Result<Cancelled, Error> {
        let sql = format!(
            "SELECT CASE WHEN wait_event = 'SyncRep' THEN NULL ELSE pg_cancel_backend(pid) END \
             FROM pg_stat_activity WHERE pid = {pid}"
        );
        let rows = self.questions.ask("cancel a statement", &sql).await?.rows;
        Ok(match rows.first().map(|row| row.get(0)) {
            None | Some(Some("f")) => Cancelled::Gone,
            Some(None) => Cancelled::WaitsForStandby,
            Some(Some(_)) => Cancelled::Sent,
        })
    }
}

/// A column that may be null.
fn field<T: std::str::FromStr>(
    row: &SimpleQueryRow,
    column: usize,
    what: &'static str,
) -> Result<Option<T>, Error> {
    let Some(text) = row.get(column) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Error::Unreadable { what, value: text.to_owned() })
}

/// A column that is never null.
fn need<T: std::str::FromStr>(
    row: &SimpleQueryRow,
    column: usize,
    what: &'static str,
) -> Result<T, Error> {
    let missing = || Error::Unreadable { what, value: "null".to_owned() };
    field(row, column, what)?.ok_or_else(missing)
}

/// A boolean column; PostgreSQL writes `t` and `f`.
fn is_true(row: &SimpleQueryRow, column: usize) -> bool {
    row.get(column) == Some("t")
}

/// A string as a SQL literal; the connection has standard strings on.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
