//! Clients that write a row with a fresh id every few milliseconds, and remember what they were told.
//!
//! Each client holds one session at a time, tries the gateways of its list in turn, and moves to the
//! next one at once when a login or a statement fails or takes too long.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use crate::ledger::{Attempt, Ledger, Outcome};
use crate::limits;
use crate::local;
use crate::runtime::runtime;

/// The table that workloads write to.
pub const TABLE: &str = "public.workload";

/// A way to the database.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Name of its node.
    pub name: String,
    /// Where it listens.
    pub addr: SocketAddr,
}

/// How a workload logs in.
#[derive(Debug, Clone)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
    /// Database.
    pub database: String,
}

impl Login {
    /// A connection's settings, without an address.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.user(&self.user).password(&self.password).dbname(&self.database);
        config.application_name("workload");
        config
    }
}

/// How a workload behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Clients in parallel. Client `i` begins with gateway `i`, and goes on in the list's order.
    pub clients: usize,
    /// Time between two writes of one client.
    pub interval: Duration,
    /// How long a login may take.
    pub connect_limit: Duration,
    /// How long a statement may take.
    pub statement_limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            clients: 1,
            interval: limits::WRITE_INTERVAL,
            connect_limit: limits::CONNECT_LIMIT,
            statement_limit: limits::STATEMENT_LIMIT,
        }
    }
}

/// A running workload. Dropping it stops it.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    login: Login,
    gateways: Vec<Gateway>,
    stop: AtomicBool,
    next_id: AtomicI64,
    ledger: Mutex<Ledger>,
}

/// Makes the table, through a gateway. Everyone may read and write it.
pub fn prepare(login: &Login, gateway: SocketAddr) -> Result<()> {
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {TABLE} (id bigint NOT NULL, client int NOT NULL);
         GRANT SELECT, INSERT ON {TABLE} TO PUBLIC"
    );
    sql_through(login, gateway, &sql).map(drop)
}

/// Runs SQL through a gateway, for its rows.
pub fn sql_through(login: &Login, gateway: SocketAddr, sql: &str) -> Result<local::Rows> {
    let mut config = login.config();
    config.host(gateway.ip().to_string()).port(gateway.port());
    local::run(&config, sql, limits::ADMIN_QUERY)
}

/// Sessions that do nothing but be there.
#[derive(Debug)]
pub struct Crowd {
    config: Config,
    sessions: Vec<(Client, JoinHandle<()>)>,
}

impl Crowd {
    /// Opens sessions on a server's private socket, past the gateway, until it takes no more.
    pub fn gather(login: &Login, socket_dir: &std::path::Path) -> Result<Self> {
        let mut config = login.config();
        config.host_path(socket_dir).port(5432);
        let mut crowd = Self { config, sessions: Vec::new() };
        crowd.grow()?;
        Ok(crowd)
    }

    fn grow(&mut self) -> Result<()> {
        while self.sessions.len() < limits::CROWD_MAX {
            match runtime().block_on(self.config.connect(NoTls)) {
                Ok((client, connection)) => {
                    let driver = async move { drop(connection.await) };
                    self.sessions.push((client, runtime().spawn(driver)));
                }
                Err(error) => {
                    let full = error.code().is_some_and(|c| c.code() == "53300");
                    anyhow::ensure!(full, "session {}: {error:#}", self.sessions.len());
                    return Ok(());
                }
            }
        }
        bail!("{} sessions were let in", limits::CROWD_MAX)
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.sessions.len()
    }

    /// Ends the backends of another application and takes their places. Whether it has none left;
    /// where places are reserved for it, it keeps some.
    pub fn crowd_out(&mut self, application: &str) -> Result<bool> {
        let theirs =
            format!("FROM pg_catalog.pg_stat_activity WHERE application_name = '{application}'");
        for _ in 0..limits::CROWD_TRIES {
            self.ask(&format!("SELECT pg_catalog.pg_terminate_backend(pid) {theirs}"))?;
            self.grow()?;
            if self.ask(&format!("SELECT count(*) {theirs}"))? == "0" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn ask(&self, sql: &str) -> Result<String> {
        let (client, _) = self.sessions.first().context("nobody is there")?;
        let messages = runtime().block_on(client.simple_query(sql))?;
        let first = messages.iter().find_map(|m| match m {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for (_, driver) in &self.sessions {
            driver.abort();
        }
    }
}

impl Workload {
    /// Starts the clients. Ids grow from `first_id` on, so that several workloads on one table do
    /// not meet.
    pub fn start(options: Options, login: Login, gateways: Vec<Gateway>, first_id: i64) -> Self {
        let shared = Arc::new(Shared {
            login,
            gateways,
            stop: AtomicBool::new(false),
            next_id: AtomicI64::new(first_id),
            ledger: Mutex::default(),
            options,
        });
        let task = |client| runtime().spawn(work(Arc::clone(&shared), client));
        let tasks = (0..shared.options.clients).map(task).collect();
        Self { shared, tasks }
    }

    /// What was done so far.
    pub fn snapshot(&self) -> Ledger {
        self.shared.ledger().clone()
    }

    /// Acknowledged writes so far.
    pub fn acks(&self) -> usize {
        self.shared.ledger().acked().count()
    }

    /// Waits until every client has an acknowledged write that was sent after `since`.
    pub fn wait_acks_since(&self, since: Instant, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            let ledger = self.snapshot();
            let waits = |client| !ledger.acked().any(|a| a.client == client && a.begun > since);
            if !(0..self.shared.options.clients).any(waits) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "no write was acknowledged for {within:?}; failed logins: {}, the last: {:?}; \
                     failed writes: {:?}",
                    ledger.failed_logins,
                    ledger.last_login_error,
                    ledger.troubles()
                );
            }
            std::thread::sleep(limits::POLL);
        }
    }

    /// Stops the clients after their present statement.
    pub fn stop(mut self) -> Ledger {
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            // A client that panicked has recorded what it did before.
            let _ = runtime().block_on(task);
        }
        self.snapshot()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_failed_login(&self, error: String) {
        let mut ledger = self.ledger();
        ledger.failed_logins += 1;
        ledger.last_login_error = Some(error);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

struct Session {
    client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn work(shared: Arc<Shared>, client: usize) {
    let mut at = client % shared.gateways.len();
    let mut session = None;
    let mut due = Instant::now();
    while !shared.stopped() {
        let gateway = &shared.gateways[at];
        let Some(open) = &session else {
            match log_in(&shared, gateway).await {
                Ok(open) => session = Some(open),
                Err(error) => {
                    at = (at + 1) % shared.gateways.len();
                    shared.note_failed_login(format!("{}: {error:#}", gateway.name));
                    tokio::time::sleep(limits::LOGIN_PAUSE).await;
                }
            }
            continue;
        };
        tokio::time::sleep_until(due.into()).await;
        due = (due + shared.options.interval).max(Instant::now());
        let (attempt, keep) = write(&shared, open, client, gateway).await;
        shared.ledger().attempts.push(attempt);
        if !keep {
            session = None;
            at = (at + 1) % shared.gateways.len();
        }
    }
}

async fn log_in(shared: &Shared, gateway: &Gateway) -> Result<Session> {
    let login = async {
        let stream = TcpStream::connect(gateway.addr).await?;
        stream.set_nodelay(true)?;
        let (client, connection) = shared.login.config().connect_raw(stream, NoTls).await?;
        let driver = tokio::spawn(async move {
            // An error of the connection is also the error of the statement under way.
            let _ = connection.await;
        });
        anyhow::Ok(Session { client, driver })
    };
    match tokio::time::timeout(shared.options.connect_limit, login).await {
        Ok(session) => session,
        Err(_) => bail!("no login within {:?}", shared.options.connect_limit),
    }
}

/// One write, and whether the session can go on.
async fn write(
    shared: &Shared,
    session: &Session,
    client: usize,
    gateway: &Gateway,
) -> (Attempt, bool) {
    let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
    let sql = format!("INSERT INTO {TABLE} (id, client) VALUES ({id}, {client})");
    let begun = Instant::now();
    let limit = shared.options.statement_limit;
    let answer = tokio::time::timeout(limit, session.client.simple_query(&sql)).await;
    let ended = Instant::now();
    let (outcome, keep) = match answer {
        Err(_) => (Outcome::Unknown(format!("no answer within {limit:?}")), false),
        Ok(Err(error)) => (told(&error), false),
        Ok(Ok(messages)) => match messages.last() {
            Some(SimpleQueryMessage::CommandComplete(1)) => (Outcome::Acked, true),
            _ => (Outcome::Unknown("an answer without a row count of 1".to_owned()), false),
        },
    };
    (Attempt { id, client, gateway: gateway.name.clone(), begun, ended, outcome }, keep)
}

/// What an error says of the write. Only an ERROR of the statement itself means that it was undone;
/// a cut session and a shutdown (classes 08 and 57) leave it open.
fn told(error: &tokio_postgres::Error) -> Outcome {
    let Some(db) = error.as_db_error() else {
        return Outcome::Unknown(format!("{error:#}"));
    };
    let code = db.code().code();
    let words = format!("{code} {}", db.message());
    let open = db.parsed_severity() != Some(Severity::Error)
        || code.starts_with("08")
        || code.starts_with("57");
    if open { Outcome::Unknown(words) } else { Outcome::Refused(words) }
}
