//! One connection at a time, made when it is needed.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::limits::{CONNECT_TIMEOUT, PROBE_TIMEOUT};
use crate::{Error, PORT, ROLE, SUPERUSER, ServerOptions};

/// A place for one idle connection. Callers at the same time get connections of their own; one is
/// kept afterwards.
#[derive(Debug)]
pub(super) struct Lane {
    config: Config,
    idle: Mutex<Option<Connection>>,
}

#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    /// A commit's wait for a standby was cut short.
    local_only: Arc<AtomicBool>,
}

/// The rows of all statements, and whether a commit was reported although no standby holds it.
pub(super) struct Answer {
    pub(super) rows: Vec<SimpleQueryRow>,
    pub(super) local_only: bool,
}

impl Lane {
    pub(super) fn new(options: &ServerOptions, bounded: bool) -> Self {
        let timeout = if bounded { PROBE_TIMEOUT.as_millis() } else { 0 };
        // Defaults that an operator sets for applications must not reach these connections.
        let newer = if options.install.major >= 17 { " -c transaction_timeout=0" } else { "" };
        let mut config = Config::new();
        config
            .host_path(&options.run_dir)
            .port(PORT)
            .user(ROLE)
            .dbname("postgres")
            .application_name("quorate agent")
            .connect_timeout(CONNECT_TIMEOUT)
            .options(format!(
                "-c search_path=pg_catalog -c synchronous_commit=off \
                 -c statement_timeout={timeout} -c standard_conforming_strings=on \
                 -c default_transaction_read_only=off -c lock_timeout=0 \
                 -c idle_session_timeout=0{newer}"
            ));
        Self { config, idle: Mutex::new(None) }
    }

    /// As the superuser that the database was made with, for what role `quorate` may not do.
    pub(super) fn superuser(options: &ServerOptions) -> Self {
        let mut lane = Self::new(options, false);
        lane.config.user(SUPERUSER);
        lane
    }

    /// As the superuser, in one database: whether others may connect to it is its owners' affair. A
    /// statement that nobody waits for any more ends soon.
    pub(super) fn of_database(options: &ServerOptions, database: &str) -> Self {
        let mut lane = Self::superuser(options);
        let more = lane.config.get_options().unwrap_or_default();
        let more = format!("{more} -c client_connection_check_interval=1s");
        lane.config.dbname(database).options(more);
        lane
    }

    /// Runs the statements of `sql` as one transaction (unless they say otherwise).
    pub(super) async fn ask(&self, action: &'static str, sql: &str) -> Result<Answer, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let connection = match idle.filter(|c| !c.client.is_closed()) {
            Some(connection) => connection,
            None => Connection::open(&self.config).await?,
        };
        // While it is out of the lane a cancelled caller drops it, and the half-read answer too.
        let result = connection.client.simple_query(sql).await;
        let local_only = connection.local_only.swap(false, Ordering::AcqRel);
        let messages = match result {
            Ok(messages) => messages,
            Err(source) => {
                // A refused statement may have left a transaction open: do not keep it.
                return Err(Error::Sql { action, source });
            }
        };
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(Answer { rows: rows.collect(), local_only })
    }

    /// A connection that is not shared with anybody, for what ends with its session.
    pub(super) async fn alone(&self, action: &'static str, sql: &str) -> Result<Connection, Error> {
        let connection = Connection::open(&self.config).await?;
        let asked = connection.client.simple_query(sql).await;
        asked.map_err(|source| Error::Sql { action, source })?;
        Ok(connection)
    }

    /// The first row of the answer.
    pub(super) async fn row(
        &self,
        action: &'static str,
        sql: &str,
    ) -> Result<SimpleQueryRow, Error> {
        let rows = self.ask(action, sql).await?.rows;
        rows.into_iter()
            .next()
            .ok_or_else(|| Error::Unreadable { what: action, value: "no row".to_owned() })
    }
}

impl Connection {
    async fn open(config: &Config) -> Result<Self, Error> {
        let (client, mut connection) = config.connect(NoTls).await.map_err(Error::Connect)?;
        let local_only = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&local_only);
        // Ends when the client is dropped or the server goes away; the client then says so.
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message {
                    // "committed locally, but might not have been replicated"
                    let waiting = notice.routine() == Some("SyncRepWaitForLSN");
                    if waiting && *notice.code() == SqlState::WARNING {
                        flag.store(true, Ordering::Release);
                    }
                }
            }
        });
        Ok(Self { client, local_only })
    }
}
