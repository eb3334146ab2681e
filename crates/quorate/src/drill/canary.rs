//! The canary: clients of our own that write and read through every gateway while a drill goes on,
//! and remember what they were told.
//!
//! They come as any application comes: by the address of a gateway, as a role that may touch one
//! table. What they were told is compared with what is there at the end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_core::drill::Measures;
use quorate_postgres::DRILL;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::encryption::Encryption;
use super::{COLUMN, COLUMNS_MAX, Column};

/// Clients of each gateway.
const CLIENTS: usize = 2;
/// Pause between two statements of a client.
const PACE: Duration = Duration::from_millis(20);
/// Longest wait for a connection to a gateway.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for a login: while there is no writer, gateways hold them.
const LOGIN_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Pause after a login that failed.
const LOGIN_PAUSE: Duration = Duration::from_millis(200);
/// Of so many writes one is a transaction of two statements.
const BLOCK_EVERY: i64 = 5;
/// Bytes of each row besides its keys: a small row of an application.
const PADDING: usize = 200;
/// Statements remembered; a drill that lasts longer than that counts no more.
const STATEMENTS_MAX: usize = 2_000_000;
/// Different reasons remembered.
const REASONS_MAX: usize = 20;
/// The newest entries, among which an acknowledged write is looked for.
const RECENT: usize = 1000;

/// Who the clients are.
#[derive(Clone)]
pub struct Credentials {
    /// Their role.
    pub role: String,
    /// Their password.
    pub password: String,
    /// Addresses of gateways, `host:port`.
    pub gateways: Vec<String>,
}

/// What a client was told of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Done,
    /// It has no effect.
    Refused,
    /// Its outcome is not known.
    Unknown,
}

/// Something a client did.
#[derive(Debug, Clone, Copy)]
enum Deed {
    /// Rows `first` to `last` of this client.
    Write {
        client: usize,
        first: i64,
        last: i64,
        told: Told,
    },
    Read {
        stale: bool,
        replica: bool,
    },
    ReadFailed,
    LoginFailed,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    began: Duration,
    ended: Duration,
    deed: Deed,
}

/// Clients at work.
pub struct Canary {
    log: Arc<Log>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Log {
    entries: Mutex<Vec<Entry>>,
    /// Each SQLSTATE or other reason once, for a person.
    reasons: Mutex<BTreeSet<String>>,
}

impl Log {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, entry: Entry) {
        let mut entries = self.entries();
        if entries.len() < STATEMENTS_MAX {
            entries.push(entry);
        }
    }

    fn reason(&self, why: &str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() < REASONS_MAX {
            reasons.insert(why.replace('\n', " "));
        }
    }
}

impl Canary {
    /// Begins: some clients at each gateway. All times are since `begun`.
    pub fn start(credentials: &Credentials, begun: Instant) -> Self {
        let log = Arc::new(Log::default());
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..credentials.gateways.len() * CLIENTS {
            let visitor = Visitor {
                number,
                at: number / CLIENTS,
                credentials: credentials.clone(),
                begun,
                log: Arc::clone(&log),
                stopped: stopped.clone(),
                next: 1,
            };
            tasks.spawn(visitor.run());
        }
        Self { log, stop, tasks }
    }

    /// Whether a write that began after this was acknowledged.
    pub fn wrote_since(&self, ms: u64) -> bool {
        let since = Duration::from_millis(ms);
        let entries = self.log.entries();
        entries.iter().rev().take(RECENT).any(|e| e.began >= since && e.is_acknowledged())
    }

    /// Clients that were acknowledged something so far.
    pub fn writing(&self) -> usize {
        let entries = self.log.entries();
        let written = entries.iter().filter_map(|e| match e.deed {
            Deed::Write { client, told: Told::Done, .. } => Some(client),
            _ => None,
        });
        written.collect::<BTreeSet<usize>>().len()
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.tasks.len()
    }

    /// Forgets what went before: what is not acknowledged is not asked for.
    pub fn forget_trouble(&self) {
        self.log.entries().retain(|e| !e.is_error());
        self.log.reasons.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Why something was refused so far.
    pub fn reasons(&self) -> Vec<String> {
        let reasons = self.log.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.iter().cloned().collect()
    }

    /// Ends the clients; what they were told.
    pub async fn stop(mut self) -> History {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // One that still waits for an answer was not told anything.
        let _ = tokio::time::timeout(CONNECT_WAIT, ended).await;
        self.tasks.abort_all();
        History { entries: std::mem::take(&mut *self.log.entries()), reasons: self.reasons() }
    }
}

impl Entry {
    fn is_acknowledged(&self) -> bool {
        matches!(self.deed, Deed::Write { told: Told::Done, .. })
    }

    fn is_error(&self) -> bool {
        match self.deed {
            Deed::Write { told, .. } => told != Told::Done,
            Deed::ReadFailed | Deed::LoginFailed => true,
            Deed::Read { .. } => false,
        }
    }
}

/// What clients were told.
pub struct History {
    entries: Vec<Entry>,
    /// Reasons of what was refused or is not known.
    pub reasons: Vec<String>,
}

impl History {
    /// What it amounts to, against the rows that are there: `(client, n)`. The first write is one that
    /// was acknowledged after `opened_ms`, when the next writer had opened; its time is since `hurt_ms`.
    pub fn measures(
        &self,
        rows: &BTreeSet<(i64, i64)>,
        hurt_ms: Option<u64>,
        opened_ms: Option<u64>,
    ) -> Measures {
        let mut m = Measures::default();
        let hurt = hurt_ms.map(Duration::from_millis);
        let mut acknowledged: Vec<Duration> = Vec::new();
        for entry in &self.entries {
            match entry.deed {
                Deed::Write { client, first, last, told } => {
                    let there = |n: &i64| rows.contains(&(client as i64, *n));
                    let present = (first..=last).filter(there).count() as u64;
                    let count = (last - first + 1) as u64;
                    match told {
                        Told::Done => {
                            m.acknowledged += count;
                            m.lost += count - present;
                            acknowledged.push(entry.ended);
                        }
                        Told::Refused => {
                            m.refused += 1;
                            m.denied += u64::from(present > 0);
                        }
                        Told::Unknown => m.unknown += 1,
                    }
                }
                Deed::Read { stale, replica } => {
                    m.reads += 1;
                    m.stale += u64::from(stale);
                    m.replica_reads += u64::from(replica);
                }
                Deed::ReadFailed => m.refused += 1,
                Deed::LoginFailed => m.logins_failed += 1,
            }
        }
        acknowledged.sort_unstable();
        let gaps = acknowledged.windows(2).map(|w| w[1].saturating_sub(w[0]));
        m.write_gap_ms = gaps.max().unwrap_or_default().as_millis() as u64;
        // It may have waited since before that.
        let opened = opened_ms.map(Duration::from_millis);
        let later = |e: &&Entry| opened.is_some_and(|at| e.ended >= at) && e.is_acknowledged();
        let first = self.entries.iter().filter(later).map(|e| e.ended).min();
        m.first_write_ms =
            first.zip(hurt).map(|(at, hurt)| at.saturating_sub(hurt).as_millis() as u64);
        m
    }

    /// What was told in each column of time.
    pub fn rate(&self) -> Vec<Column> {
        let column = |at: Duration| (at.as_millis() / COLUMN.as_millis()) as usize;
        let last = self.entries.iter().map(|e| column(e.ended)).max().map_or(0, |c| c + 1);
        let mut columns = vec![Column::default(); last.min(COLUMNS_MAX)];
        for entry in &self.entries {
            let Some(column) = columns.get_mut(column(entry.ended)) else { continue };
            column.written += u32::from(entry.is_acknowledged());
            column.errors += u32::from(entry.is_error());
        }
        columns
    }
}

/// Every row that is there, as the writer shows them.
///
/// # Errors
/// When no gateway answers.
pub async fn rows(credentials: &Credentials) -> Result<BTreeSet<(i64, i64)>> {
    let mut last = None;
    for gateway in &credentials.gateways {
        match rows_at(credentials, gateway).await {
            Ok(rows) => return Ok(rows),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no gateway")))
}

async fn rows_at(credentials: &Credentials, gateway: &str) -> Result<BTreeSet<(i64, i64)>> {
    let client = connect(credentials, gateway).await?;
    let sql = format!("/* quorate: strong */ SELECT client, n FROM {DRILL}.canary");
    let answer = tokio::time::timeout(ANSWER_WAIT, client.simple_query(&sql)).await??;
    let number = |row: &tokio_postgres::SimpleQueryRow, i| row.get(i).and_then(|v| v.parse().ok());
    let pair = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => number(row, 0).zip(number(row, 1)),
        _ => None,
    };
    Ok(answer.iter().filter_map(pair).collect())
}

async fn connect(credentials: &Credentials, gateway: &str) -> Result<Client> {
    let stream = tokio::time::timeout(CONNECT_WAIT, TcpStream::connect(gateway))
        .await
        .with_context(|| format!("{gateway} does not answer"))?
        .with_context(|| format!("{gateway} cannot be reached"))?;
    stream.set_nodelay(true)?;
    let mut config = Config::new();
    config.user(&credentials.role).password(&credentials.password).dbname("postgres");
    config.application_name(DRILL);
    let login = async {
        let (client, connection) = config.connect_raw(stream, Encryption).await?;
        // It ends with its client, or says through it that the server is gone.
        tokio::spawn(connection);
        anyhow::Ok(client)
    };
    tokio::time::timeout(LOGIN_WAIT, login)
        .await
        .with_context(|| format!("{gateway} did not finish a login"))?
}

/// One client.
struct Visitor {
    number: usize,
    at: usize,
    credentials: Credentials,
    begun: Instant,
    log: Arc<Log>,
    stopped: watch::Receiver<bool>,
    next: i64,
}

impl Visitor {
    async fn run(mut self) {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            () = self.work() => {}
            _ = stopped.wait_for(|s| *s) => {}
        }
    }

    async fn work(&mut self) {
        let mut session: Option<Client> = None;
        loop {
            let began = self.begun.elapsed();
            let Some(client) = session.take().filter(|c| !c.is_closed()) else {
                let gateways = &self.credentials.gateways;
                match connect(&self.credentials, &gateways[self.at % gateways.len()]).await {
                    Ok(client) => session = Some(client),
                    Err(error) => {
                        self.log.reason(&format!("{error:#}"));
                        self.note(began, Deed::LoginFailed);
                        self.at += 1;
                        tokio::time::sleep(LOGIN_PAUSE).await;
                    }
                }
                continue;
            };
            if self.turn(&client).await {
                session = Some(client);
            } else {
                self.at += 1;
            }
            tokio::time::sleep(PACE).await;
        }
    }

    fn note(&self, began: Duration, deed: Deed) {
        self.log.note(Entry { began, ended: self.begun.elapsed(), deed });
    }

    /// A write, and a read: every other one must show it, the rest may be answered by any replica that
    /// is near enough. False when the session is of no more use.
    async fn turn(&mut self, client: &Client) -> bool {
        let block = self.next % BLOCK_EVERY == 0;
        let (first, last) = (self.next, self.next + i64::from(block));
        self.next = last + 1;
        let began = self.begun.elapsed();
        let number = self.number;
        let (told, usable) = self.write(client, first, last, block).await;
        self.note(began, Deed::Write { client: number, first, last, told });
        if told != Told::Done || !usable {
            return usable;
        }
        let own = self.next % 2 == 0;
        let level = if own { "" } else { "/* quorate: eventual */ " };
        let began = self.begun.elapsed();
        let sql = format!(
            "{level}SELECT max(n), (SELECT standby FROM {DRILL}.place) FROM {DRILL}.canary \
             WHERE client = {number}"
        );
        match self.ask(client, &sql).await {
            Ok(rows) => {
                let row = rows.iter().find_map(|m| match m {
                    SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                });
                let seen: Option<i64> = row.and_then(|r| r.get(0)?.parse().ok());
                let replica = row.is_some_and(|r| r.get(1) == Some("t"));
                self.note(began, Deed::Read { stale: own && seen < Some(last), replica });
                true
            }
            Err(_) => {
                self.note(began, Deed::ReadFailed);
                !client.is_closed()
            }
        }
    }

    async fn write(&self, client: &Client, first: i64, last: i64, block: bool) -> (Told, bool) {
        let insert = |n: i64| {
            let padding = "x".repeat(PADDING);
            format!("INSERT INTO {DRILL}.canary VALUES ({}, {n}, '{padding}')", self.number)
        };
        let begun = async {
            if block {
                self.ask(client, "BEGIN").await?;
                for n in first..=last {
                    self.ask(client, &insert(n)).await?;
                }
            }
            Ok::<_, Failed>(())
        };
        if let Err(failed) = begun.await {
            // Its COMMIT was never sent.
            let rolled_back = failed.answered && self.ask(client, "ROLLBACK").await.is_ok();
            return (Told::Refused, rolled_back);
        }
        let last_word = if block { "COMMIT".to_owned() } else { insert(first) };
        match self.ask(client, &last_word).await {
            Ok(_) => (Told::Done, true),
            Err(failed) if failed.open => (Told::Unknown, failed.answered),
            Err(failed) => {
                let usable =
                    failed.answered && (!block || self.ask(client, "ROLLBACK").await.is_ok());
                (Told::Refused, usable)
            }
        }
    }

    async fn ask(&self, client: &Client, sql: &str) -> Result<Vec<SimpleQueryMessage>, Failed> {
        let answered = tokio::time::timeout(ANSWER_WAIT, client.simple_query(sql)).await;
        let failed = match answered {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => match error.as_db_error() {
                Some(told) => {
                    let code = told.code().code();
                    self.log.reason(&format!("{code} {}", told.message()));
                    let open = code.starts_with("08") || code.starts_with("57") && code != "57P03";
                    Failed { open, answered: !client.is_closed() && !code.starts_with("57P0") }
                }
                None => {
                    self.log.reason("the connection was closed");
                    Failed { open: true, answered: false }
                }
            },
            Err(_) => {
                self.log.reason(&format!("no answer for {} s", ANSWER_WAIT.as_secs()));
                Failed { open: true, answered: false }
            }
        };
        Err(failed)
    }
}

/// A statement without success.
struct Failed {
    /// It may have had its effect all the same.
    open: bool,
    /// The session can go on.
    answered: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(began: u64, ended: u64, deed: Deed) -> Entry {
        let ms = Duration::from_millis;
        Entry { began: ms(began), ended: ms(ended), deed }
    }

    fn write(n: i64, told: Told) -> Deed {
        Deed::Write { client: 1, first: n, last: n, told }
    }

    #[test]
    fn what_clients_were_told_is_compared_with_what_is_there() {
        let entries = vec![
            entry(0, 10, write(1, Told::Done)),
            entry(20, 30, write(2, Told::Done)),
            entry(40, 900, write(3, Told::Unknown)),
            entry(40, 900, write(4, Told::Refused)),
            entry(40, 900, write(5, Told::Refused)),
            entry(90, 1_030, write(6, Told::Done)),
            entry(1_040, 1_050, write(7, Told::Done)),
            entry(1_050, 1_060, Deed::Read { stale: true, replica: true }),
            entry(1_060, 1_070, Deed::LoginFailed),
        ];
        let history = History { entries, reasons: Vec::new() };
        // 2 is lost, 5 was denied, 3 may be there or not.
        let rows = [(1, 1), (1, 3), (1, 5), (1, 6), (1, 7)].into();
        let m = history.measures(&rows, Some(100), Some(1_031));
        assert_eq!((m.acknowledged, m.lost, m.refused, m.denied, m.unknown), (4, 1, 2, 1, 1));
        assert_eq!((m.reads, m.stale, m.replica_reads, m.logins_failed), (1, 1, 1, 1));
        assert_eq!(m.write_gap_ms, 1_000);
        assert_eq!(m.first_write_ms, Some(950));
        let rate = history.rate();
        assert_eq!(rate.len(), 11);
        assert_eq!(rate[0], Column { written: 2, errors: 0 });
        assert_eq!(rate[9], Column { written: 0, errors: 3 });
        assert_eq!(rate[10], Column { written: 2, errors: 1 });
    }
}
