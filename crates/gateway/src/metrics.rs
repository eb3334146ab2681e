//! What a gateway counts and measures. Cheap: cells of one thread, added up when somebody asks.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;

use quorate_core::NodeId;

use crate::account::Account;
use crate::client::Pin;
use crate::latency::{Histogram, Latency};
use crate::route::Because;
use crate::worker::Worker;

/// Counters of an account.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Transactions, or statements outside of one, that were answered.
    pub(crate) transactions: Cell<u64>,
    /// Of these, by replicas.
    pub(crate) on_replicas: Cell<u64>,
    /// Statements that were run again elsewhere.
    pub(crate) repeated: Cell<u64>,
    /// Statements that a standby refused and the writer ran.
    pub(crate) refused: Cell<u64>,
    /// Clients that gave up waiting for a server.
    pub(crate) expired: Cell<u64>,
    /// COMMITs whose answer was lost, by what became known.
    pub(crate) fates: [Cell<u64>; 3],
    /// And by the writer, by the reason why it was the writer.
    pub(crate) to_writer: [Cell<u64>; Because::ALL.len()],
    /// Connections to servers that were opened.
    pub(crate) opened: Cell<u64>,
    /// Logins.
    pub(crate) logins: Cell<u64>,
    /// Transactions longer than `slow_ms`.
    pub(crate) slow: Cell<u64>,
}

impl Counters {
    /// A transaction was answered: once, and where it came to its end, whatever was tried before.
    pub(crate) fn served(&self, route: Route) {
        count(&self.transactions);
        match route {
            Route::Replica => count(&self.on_replicas),
            Route::Writer(because) => count(&self.to_writer[because as usize]),
        }
    }

    /// All of them by name, but for the reasons.
    fn named(&self) -> [(&'static str, u64); 11] {
        [
            ("transactions", self.transactions.get()),
            ("on_replicas", self.on_replicas.get()),
            ("repeated", self.repeated.get()),
            ("refused_by_replica", self.refused.get()),
            ("expired", self.expired.get()),
            ("commits_found_done", self.fates[0].get()),
            ("commits_found_undone", self.fates[1].get()),
            ("commits_unknown", self.fates[2].get()),
            ("opened", self.opened.get()),
            ("logins", self.logins.get()),
            ("slow", self.slow.get()),
        ]
    }
}

/// Counts one up.
pub(crate) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Where a transaction went, and why there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Replica,
    Writer(Because),
}

impl Route {
    fn index(self) -> usize {
        match self {
            Route::Replica => 0,
            Route::Writer(because) => because as usize + 1,
        }
    }

    pub(crate) fn labels(self) -> (&'static str, &'static str) {
        match self {
            Route::Replica => ("replica", ""),
            Route::Writer(because) => ("writer", because.label()),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Route::Replica).chain(Because::ALL.into_iter().map(Route::Writer))
    }
}

/// How long transactions of an account took, by route.
#[derive(Debug, Default)]
pub(crate) struct Times([OnceCell<Box<RouteTimes>>; Because::ALL.len() + 1]);

/// How long transactions of a route took.
#[derive(Debug, Default)]
pub(crate) struct RouteTimes {
    /// From the first request to the last answer.
    pub(crate) transaction: Histogram,
    /// From the first request to the server's first word.
    pub(crate) first_byte: Histogram,
}

impl Times {
    pub(crate) fn of(&self, route: Route) -> &RouteTimes {
        self.0[route.index()].get_or_init(Box::default)
    }
}

/// What a gateway has counted and measured since it started.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Clients that are connected.
    pub clients: usize,
    /// By database and role, in their order.
    pub accounts: Vec<AccountMetrics>,
}

/// The same of one database as one role.
#[derive(Debug, Clone, Default)]
pub struct AccountMetrics {
    /// The database; `replication` for physical replication.
    pub database: String,
    /// The role.
    pub user: String,
    /// Counters by name; all of them are there from the beginning.
    pub counters: BTreeMap<&'static str, u64>,
    /// Transactions that the writer answered, by reason; all of them, too.
    pub to_writer: BTreeMap<&'static str, u64>,
    /// Clients that keep their server now, by reason; all of them, too.
    pub pinned: BTreeMap<&'static str, u64>,
    /// How long transactions took, by route; all of them, too.
    pub routes: Vec<RouteMetrics>,
    /// Connections to each server that was used.
    pub pools: BTreeMap<NodeId, PoolMetrics>,
}

/// How long transactions of a route took.
#[derive(Debug, Clone, Default)]
pub struct RouteMetrics {
    /// `writer` or `replica`.
    pub part: &'static str,
    /// Why the writer.
    pub because: &'static str,
    /// From the first request to the last answer.
    pub transaction: Latency,
    /// From the first request to the server's first word.
    pub first_byte: Latency,
}

/// Connections of an account to one server.
#[derive(Debug, Clone, Default)]
pub struct PoolMetrics {
    /// Connections that nobody uses.
    pub idle: u64,
    /// All connections, and those being opened.
    pub open: u64,
    /// Clients that wait.
    pub waiting: u64,
    /// How long clients waited for a connection or a place for one; most of them not at all.
    pub queue: Latency,
}

/// What a thread has counted.
pub(crate) fn of(worker: &Worker) -> Vec<AccountMetrics> {
    let mut all: Vec<AccountMetrics> = worker.accounts().iter().map(|a| account(a)).collect();
    for client in worker.clients.borrow().values() {
        let Some(pin) = client.pin.get() else { continue };
        let of = (&*client.account.database, &*client.account.user);
        let account = all.iter_mut().find(|a| (&*a.database, &*a.user) == of);
        *account.map(|a| a.pinned.entry(pin.label()).or_default()).unwrap_or(&mut 0) += 1;
    }
    all
}

fn account(account: &Account) -> AccountMetrics {
    let c = &account.counters;
    let routes = Route::all().map(|route| {
        let (part, because) = route.labels();
        let mut metrics = RouteMetrics { part, because, ..RouteMetrics::default() };
        if let Some(times) = account.times.0[route.index()].get() {
            times.transaction.add_to(&mut metrics.transaction);
            times.first_byte.add_to(&mut metrics.first_byte);
        }
        metrics
    });
    let pools = account.pools().into_iter().map(|pool| {
        let (idle, open, waiting) = pool.counts();
        let [idle, open, waiting] = [idle, open, waiting].map(|n| n as u64);
        let mut metrics = PoolMetrics { idle, open, waiting, queue: Latency::default() };
        pool.queue.add_to(&mut metrics.queue);
        (pool.node, metrics)
    });
    let to_writer = Because::ALL.iter().zip(&c.to_writer).map(|(b, n)| (b.label(), n.get()));
    AccountMetrics {
        database: account.database.to_string(),
        user: account.user.to_string(),
        counters: c.named().into_iter().collect(),
        to_writer: to_writer.collect(),
        pinned: Pin::ALL.iter().map(|pin| (pin.label(), 0)).collect(),
        routes: routes.collect(),
        pools: pools.collect(),
    }
}

impl Metrics {
    /// Adds what a thread has counted.
    pub(crate) fn add(&mut self, thread: Vec<AccountMetrics>) {
        for account in thread {
            let name = |a: &AccountMetrics| (a.database.clone(), a.user.clone());
            match self.accounts.binary_search_by_key(&name(&account), name) {
                Ok(at) => self.accounts[at].add(account),
                Err(at) => self.accounts.insert(at, account),
            }
        }
    }
}

impl AccountMetrics {
    fn add(&mut self, other: AccountMetrics) {
        let sum = |all: &mut BTreeMap<&'static str, u64>, more: BTreeMap<&'static str, u64>| {
            more.into_iter().for_each(|(name, n)| *all.entry(name).or_default() += n);
        };
        sum(&mut self.counters, other.counters);
        sum(&mut self.to_writer, other.to_writer);
        sum(&mut self.pinned, other.pinned);
        for (route, more) in self.routes.iter_mut().zip(&other.routes) {
            route.transaction.add(&more.transaction);
            route.first_byte.add(&more.first_byte);
        }
        for (node, more) in other.pools {
            let pool = self.pools.entry(node).or_default();
            pool.idle += more.idle;
            pool.open += more.open;
            pool.waiting += more.waiting;
            pool.queue.add(&more.queue);
        }
    }

    /// Rows of `SHOW COUNTERS`.
    pub(crate) fn counter_rows(&self) -> Vec<Vec<String>> {
        let row = |name: String, n: &u64| {
            vec![self.database.clone(), self.user.clone(), name, n.to_string()]
        };
        let counters = self.counters.iter().map(|(name, n)| row((*name).to_owned(), n));
        let with = |prefix: &'static str, of: &BTreeMap<&'static str, u64>| {
            let rows = of.iter().map(|(name, n)| row(format!("{prefix}.{name}"), n));
            rows.collect::<Vec<_>>()
        };
        counters
            .chain(with("to_writer", &self.to_writer))
            .chain(with("pinned", &self.pinned))
            .collect()
    }

    /// Rows of `SHOW LATENCY`: what happened.
    pub(crate) fn latency_rows(&self) -> Vec<Vec<String>> {
        let row = |route: &str, what: &str, latency: &Latency| {
            let mut row = vec![self.database.clone(), self.user.clone()];
            row.extend([route.to_owned(), what.to_owned(), latency.count().to_string()]);
            let times = [0.5, 0.95, 0.99].map(|part| latency.quantile_us(part));
            let times = times.into_iter().chain([latency.max_us()]);
            row.extend(times.map(|us| format!("{:.3}", us as f64 / 1000.0)));
            (latency.count() > 0).then_some(row)
        };
        let mut rows = Vec::new();
        for route in &self.routes {
            let name = format!("{} {}", route.part, route.because);
            rows.extend(row(name.trim_end(), "transaction", &route.transaction));
            rows.extend(row(name.trim_end(), "first_byte", &route.first_byte));
        }
        for (node, pool) in &self.pools {
            rows.extend(row(&node.to_string(), "queue", &pool.queue));
        }
        rows
    }
}
