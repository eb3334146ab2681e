//! The virtual database `quorate`: what PgBouncer's users know as the admin console. Simple queries
//! only; every thread of the gateway answers for itself.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Buf, BufMut, BytesMut};
use quorate_wire::backend::Report;
use quorate_wire::frame::{self, put, put_cstr};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::account::Account;
use crate::client::{Handle, State};
use crate::frontend::Shared;
use crate::io::End;
use crate::limits;
use crate::login::Known;
use crate::route::Because;
use crate::server::{Part, Reported};
use crate::settings::Settings;
use crate::worker::Worker;

/// The name of the database.
pub(crate) const DATABASE: &str = "quorate";

/// A question to all threads.
#[derive(Clone)]
pub(crate) struct Ask {
    what: What,
    answers: mpsc::UnboundedSender<Vec<Row>>,
}

type Row = Vec<String>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Pools,
    Clients,
    Servers,
    Stats,
    Counters,
    Latency,
    Databases,
    Config,
    Version,
    Lists,
    Help,
    Pause(Option<String>),
    Resume(Option<String>),
    Reload,
    Reconnect(Option<String>),
    Kill(String),
}

/// What a client of the console is told when it logs in.
pub(crate) fn known() -> Known {
    let mut reported = Reported::new();
    for (name, value) in [
        ("server_version", concat!("15.0/quorate-", env!("CARGO_PKG_VERSION"))),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
        ("DateStyle", "ISO"),
        ("integer_datetimes", "on"),
    ] {
        reported.insert(name.as_bytes().into(), value.as_bytes().into());
    }
    Known { settings: Rc::new(Settings::default()), reported }
}

/// Serves a client of the console.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    shared: &Arc<Shared>,
    end: &mut End,
    handle: &Rc<Handle>,
) {
    let _ = worker;
    handle.state.set(State::Active);
    loop {
        let message = match frame::take(&mut end.stash, limits::QUERY_SEEN) {
            Ok(Some(message)) => message,
            Ok(None) => match end.fill().await {
                Ok(n) if n > 0 => continue,
                _ => return,
            },
            Err(_) => return,
        };
        match message.tag {
            b'X' => return,
            b'Q' => {
                let text = String::from_utf8_lossy(message.body.strip_suffix(b"\0").unwrap_or(&[]));
                for statement in text.split(';').map(str::trim).filter(|s| !s.is_empty()) {
                    if let Err(report) = answer(shared, end, statement).await {
                        end.out.put_slice(&report.encode());
                        break;
                    }
                }
                if text.trim_matches([';', ' ', '\n']).is_empty() {
                    put(&mut end.out, b'I', |_| {});
                }
                put(&mut end.out, b'Z', |out| out.put_u8(b'I'));
            }
            b'S' => put(&mut end.out, b'Z', |out| out.put_u8(b'I')),
            _ => {
                let report = Report::error("0A000", "the console takes simple queries only")
                    .hint("Use psql, or a driver's simple query mode.");
                end.out.put_slice(&report.encode());
            }
        }
        if end.drain().await.is_err() {
            return;
        }
        end.stash.reserve(0);
        if end.stash.remaining() == 0 {
            end.slim();
        }
    }
}

async fn answer(shared: &Arc<Shared>, end: &mut End, statement: &str) -> Result<(), Report> {
    let what = parse(statement)?;
    let columns = columns(&what);
    let (answers, mut inbox) = mpsc::unbounded_channel();
    shared.ask(&Ask { what: what.clone(), answers });
    let mut rows = Vec::new();
    let collected = async {
        while let Some(some) = inbox.recv().await {
            rows.extend(some);
        }
    };
    let _ = timeout(limits::OPEN_WAIT, collected).await;
    if matches!(what, What::Version | What::Config | What::Help) {
        rows.dedup();
    }
    match what {
        What::Counters => {
            rows.extend(shared.metrics().await.accounts.iter().flat_map(|a| a.counter_rows()));
        }
        What::Latency => {
            rows.extend(shared.metrics().await.accounts.iter().flat_map(|a| a.latency_rows()));
        }
        _ => {}
    }
    if let What::Kill(id) = &what
        && rows.is_empty()
    {
        return Err(Report::error("42704", format!("no client {id} is connected"))
            .hint("SHOW CLIENTS lists them by id."));
    }
    if columns.is_empty() {
        let tag = statement.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        put(&mut end.out, b'C', |out| put_cstr(out, tag.as_bytes()));
        return Ok(());
    }
    put_rows(&mut end.out, columns, &rows);
    Ok(())
}

fn put_rows(out: &mut BytesMut, columns: &[&str], rows: &[Row]) {
    const TEXT_OID: u32 = 25;
    put(out, b'T', |out| {
        out.put_u16(columns.len() as u16);
        for column in columns {
            put_cstr(out, column.as_bytes());
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(TEXT_OID);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
    for row in rows {
        put(out, b'D', |out| {
            out.put_u16(row.len() as u16);
            for value in row {
                out.put_u32(value.len() as u32);
                out.put_slice(value.as_bytes());
            }
        });
    }
    let tag = "SHOW";
    put(out, b'C', |out| put_cstr(out, tag.as_bytes()));
}

fn parse(statement: &str) -> Result<What, Report> {
    let words: Vec<String> = statement.split_whitespace().map(str::to_owned).collect();
    let lower: Vec<String> = words.iter().map(|w| w.to_ascii_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    let name = || words.get(1).map(|w| w.trim_matches('"').to_owned());
    Ok(match lower[..] {
        ["show", "pools"] => What::Pools,
        ["show", "clients"] => What::Clients,
        ["show", "servers"] => What::Servers,
        ["show", "stats" | "stats_totals" | "totals"] => What::Stats,
        ["show", "counters"] => What::Counters,
        ["show", "latency"] => What::Latency,
        ["show", "databases"] => What::Databases,
        ["show", "config"] => What::Config,
        ["show", "version"] => What::Version,
        ["show", "lists"] => What::Lists,
        ["show", "help"] | ["help"] => What::Help,
        ["pause"] | ["pause", _] => What::Pause(name()),
        ["resume"] | ["resume", _] => What::Resume(name()),
        ["reload"] => What::Reload,
        ["reconnect"] | ["reconnect", _] => What::Reconnect(name()),
        ["kill_client" | "kill", id] => What::Kill(id.to_owned()),
        _ => {
            return Err(Report::error("42601", format!("the console does not know: {statement}"))
                .hint("SHOW HELP lists what it knows."));
        }
    })
}

fn columns(what: &What) -> &'static [&'static str] {
    match what {
        What::Pools => &[
            "database",
            "user",
            "node",
            "part",
            "cl_active",
            "cl_waiting",
            "sv_active",
            "sv_idle",
            "sv_max",
            "pool_mode",
        ],
        What::Clients => &[
            "id",
            "user",
            "database",
            "state",
            "addr",
            "port",
            "tls",
            "application_name",
            "connected_ms",
            "node",
            "pinned",
        ],
        What::Servers => &["user", "database", "node", "part", "pid", "age_ms", "prepared"],
        What::Stats => &[
            "database",
            "user",
            "transactions",
            "on_replicas",
            "repeated",
            "refused_by_replica",
            "expired",
            "commits_found_done",
            "commits_found_undone",
            "commits_unknown",
            "opened",
            "logins",
            "to_writer",
        ],
        What::Counters => &["database", "user", "counter", "value"],
        What::Latency => {
            &["database", "user", "route", "what", "count", "p50_ms", "p95_ms", "p99_ms", "max_ms"]
        }
        What::Databases => &["name", "user", "pool_size", "pool_mode", "paused", "disabled"],
        What::Config => &["key", "value"],
        What::Version => &["version"],
        What::Lists => &["list", "items"],
        What::Help => &["command"],
        What::Pause(_) | What::Resume(_) | What::Reload | What::Reconnect(_) | What::Kill(_) => &[],
    }
}

impl Ask {
    /// A thread answers.
    pub(crate) fn answer(&self, worker: &Rc<Worker>) {
        let rows = match &self.what {
            What::Pools => pools(worker),
            What::Clients => clients(worker),
            What::Servers => servers(worker),
            What::Stats => worker.accounts().iter().map(|a| stats(a)).collect(),
            What::Databases => worker.accounts().iter().map(|a| database(a)).collect(),
            What::Config => config(worker),
            What::Version => vec![vec![concat!("Quorate ", env!("CARGO_PKG_VERSION")).to_owned()]],
            What::Lists => lists(worker),
            What::Help => HELP.iter().map(|line| vec![(*line).to_owned()]).collect(),
            What::Pause(name) => paused(worker, name.as_deref(), true),
            What::Resume(name) => paused(worker, name.as_deref(), false),
            // All threads have to answer these together.
            What::Counters | What::Latency | What::Reload => Vec::new(),
            What::Reconnect(name) => reconnect(worker, name.as_deref()),
            What::Kill(id) => kill(worker, id),
        };
        let _ = self.answers.send(rows);
    }
}

const HELP: &[&str] = &[
    "SHOW POOLS | CLIENTS | SERVERS | STATS | COUNTERS | LATENCY | DATABASES | CONFIG | LISTS | VERSION | HELP",
    "PAUSE [database]",
    "RESUME [database]",
    "RECONNECT [database]",
    "RELOAD",
    "KILL_CLIENT id",
];

fn pools(worker: &Worker) -> Vec<Row> {
    let view = worker.view();
    let mut rows = Vec::new();
    for account in worker.accounts() {
        let spec = account.spec();
        for pool in account.pools() {
            let (idle, open, waiting) = pool.counts();
            let is_writer = view.writer.is_some_and(|w| w.node == pool.node);
            let active = open.saturating_sub(idle);
            rows.push(vec![
                account.database.to_string(),
                account.user.to_string(),
                pool.node.to_string(),
                if is_writer { "writer" } else { "replica" }.to_owned(),
                active.to_string(),
                waiting.to_string(),
                active.to_string(),
                idle.to_string(),
                pool.size.get().to_string(),
                format!("{:?}", spec.mode).to_ascii_lowercase(),
            ]);
        }
    }
    rows
}

fn clients(worker: &Worker) -> Vec<Row> {
    let now = worker.now();
    let mut handles: Vec<Rc<Handle>> = worker.clients.borrow().values().cloned().collect();
    handles.sort_by_key(|h| h.id);
    let row = |h: &Rc<Handle>| {
        vec![
            h.id.to_string(),
            h.account.user.to_string(),
            h.account.database.to_string(),
            format!("{:?}", h.state.get()).to_ascii_lowercase(),
            h.address.ip().to_string(),
            h.address.port().to_string(),
            if h.encrypted { "tls" } else { "" }.to_owned(),
            String::from_utf8_lossy(&h.application.borrow()).into_owned(),
            now.saturating_sub(h.since).to_string(),
            h.linked.borrow().as_ref().map(|l| l.node.to_string()).unwrap_or_default(),
            h.pin.get().map(|p| p.words().to_owned()).unwrap_or_default(),
        ]
    };
    handles.iter().map(row).collect()
}

fn servers(worker: &Worker) -> Vec<Row> {
    let now = worker.now();
    let mut rows = Vec::new();
    for account in worker.accounts() {
        for pool in account.pools() {
            pool.each_idle(|s| {
                rows.push(vec![
                    account.user.to_string(),
                    account.database.to_string(),
                    s.node.to_string(),
                    match s.part {
                        Part::Writer(term) => format!("writer of term {term}"),
                        Part::Replica => "replica".to_owned(),
                    },
                    s.key.pid.to_string(),
                    now.saturating_sub(s.opened).to_string(),
                    s.prepared.len().to_string(),
                ]);
            });
        }
    }
    for h in worker.clients.borrow().values().filter(|h| h.state.get() == State::Replicating) {
        if let Some(linked) = h.linked.borrow().as_ref() {
            rows.push(vec![
                h.account.user.to_string(),
                h.account.database.to_string(),
                linked.node.to_string(),
                "replication".to_owned(),
                linked.key.pid.to_string(),
                now.saturating_sub(h.since).to_string(),
                "0".to_owned(),
            ]);
        }
    }
    rows
}

fn stats(account: &Account) -> Row {
    let c = &account.counters;
    let to_writer: Vec<String> = Because::ALL
        .iter()
        .filter_map(|b| {
            let n = c.to_writer.get(*b as usize)?.get();
            (n > 0).then(|| format!("{}={n}", b.label()))
        })
        .collect();
    let number = |n: &Cell<u64>| n.get().to_string();
    vec![
        account.database.to_string(),
        account.user.to_string(),
        number(&c.transactions),
        number(&c.on_replicas),
        number(&c.repeated),
        number(&c.refused),
        number(&c.expired),
        number(&c.fates[0]),
        number(&c.fates[1]),
        number(&c.fates[2]),
        number(&c.opened),
        number(&c.logins),
        to_writer.join(" "),
    ]
}

fn database(account: &Account) -> Row {
    let spec = account.spec();
    vec![
        account.database.to_string(),
        account.user.to_string(),
        spec.size.to_string(),
        format!("{:?}", spec.mode).to_ascii_lowercase(),
        account.paused.get().to_string(),
        spec.disabled.clone().unwrap_or_default(),
    ]
}

fn config(worker: &Worker) -> Vec<Row> {
    let text = format!("{:#?}", worker.view().wanted);
    let lines = text.lines().filter_map(|l| l.trim().trim_end_matches(',').split_once(": "));
    lines.map(|(key, value)| vec![key.to_owned(), value.to_owned()]).collect()
}

fn lists(worker: &Worker) -> Vec<Row> {
    let row = |name: &str, n: usize| vec![name.to_owned(), n.to_string()];
    let accounts = worker.accounts();
    let pools: Vec<_> = accounts.iter().flat_map(|a| a.pools()).collect();
    let sum = |f: fn((usize, usize, usize)) -> usize| pools.iter().map(|p| f(p.counts())).sum();
    vec![
        row("databases", accounts.len()),
        row("pools", pools.len()),
        row("clients", worker.clients.borrow().len()),
        row("idle_servers", sum(|(idle, ..)| idle)),
        row("used_servers", sum(|(idle, open, _)| open.saturating_sub(idle))),
        row("waiting_clients", sum(|(.., waiting)| waiting)),
    ]
}

fn named<'a>(
    worker: &Worker,
    name: Option<&'a str>,
) -> impl Iterator<Item = Rc<Account>> + use<'a> {
    let all = worker.accounts();
    all.into_iter().filter(move |a| name.is_none_or(|name| name == &*a.database))
}

fn paused(worker: &Worker, name: Option<&str>, paused: bool) -> Vec<Row> {
    for account in named(worker, name) {
        account.paused.set(paused);
    }
    worker.wake_held();
    Vec::new()
}

fn reconnect(worker: &Worker, name: Option<&str>) -> Vec<Row> {
    for pool in named(worker, name).flat_map(|a| a.pools()) {
        pool.retire(|_| false);
    }
    Vec::new()
}

fn kill(worker: &Worker, id: &str) -> Vec<Row> {
    let handle = id.parse().ok().and_then(|id: u32| worker.clients.borrow().get(&id).cloned());
    let Some(handle) = handle else { return Vec::new() };
    cut(&handle);
    vec![vec![id.to_owned()]]
}

/// Ends a client's session, whatever it is doing.
pub(crate) fn cut(handle: &Handle) {
    handle.killed.set(true);
    if let Some(linked) = handle.linked.borrow().as_ref() {
        linked.reins.cut();
    }
    if let Some(waker) = handle.waker.take() {
        waker.wake();
    }
}
