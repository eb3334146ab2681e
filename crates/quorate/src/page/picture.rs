//! What the page shows, as plain data; and how a node gathers it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_agent::node::wall_millis;
use quorate_agent::slots::SlotsReport;
use quorate_agent::view::ClusterStatus;
use quorate_core::NodeId;
use quorate_core::document::Document;
use quorate_core::drill::{Record, Running};
use quorate_core::lag::Point;
use quorate_core::state::{Event, State};
use quorate_gateway::{Latency, Metrics};
use tokio::sync::watch;

use super::limits::{
    CHART_POINTS_MAX, DRILLS_SHOWN_MAX, EVENTS_SHOWN_MAX, METER_WAIT, POOLS_SHOWN_MAX,
    REVIEW_EVERY, REVIEW_WAIT, SLOTS_EVERY, SLOTS_WAIT,
};
use super::trend::Tick;
use crate::api::{self, Api};
use crate::review::Item;

/// The cluster as the page shows it, without its charts.
#[derive(Debug, Clone)]
pub struct Picture {
    /// What the asked node sees.
    pub status: ClusterStatus,
    /// What the operator wants.
    pub document: Document,
    /// What happened, newest first.
    pub events: Vec<Event>,
    /// The drill under way.
    pub running: Option<Running>,
    /// Drills done, newest first.
    pub drills: Vec<Record>,
    /// The checklist; as it was a little ago.
    pub review: Vec<Item>,
    /// The writer's slots; `None`: its node did not say in time.
    pub slots: Option<SlotsReport>,
    /// What the asked node's gateway counted; `None`: it did not say in time.
    pub traffic: Option<Traffic>,
}

/// What a gateway counted since it started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Traffic {
    /// Clients that are connected.
    pub clients: usize,
    /// Connections to servers, by database and role, the busiest first.
    pub pools: Vec<PoolLine>,
    /// Where transactions went, the most first.
    pub routes: Vec<RouteLine>,
    /// Pools that are not shown.
    pub more: usize,
    /// The last half hour, oldest first.
    pub trend: Vec<Tick>,
}

/// Connections of a database and role to one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolLine {
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// The server's node.
    pub node: String,
    /// Connections in use.
    pub busy: u64,
    /// All connections.
    pub open: u64,
    /// Connections there may be.
    pub size: u64,
    /// Clients that wait for one.
    pub waiting: u64,
    /// 99 of 100 clients waited no longer, in microseconds.
    pub queue_p99_us: u64,
}

/// Transactions that went one way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteLine {
    /// `writer` or `replica`.
    pub part: &'static str,
    /// Why the writer.
    pub because: &'static str,
    /// How many.
    pub count: u64,
    /// Half of them took no longer, in microseconds.
    pub p50_us: u64,
    /// 99 of 100 of them.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// How far back charts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Over {
    /// Ten minutes.
    #[default]
    Minutes,
    /// A day.
    Day,
    /// A month.
    Month,
}

impl Over {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Minutes, Self::Day, Self::Month];

    /// The word for it in addresses.
    pub fn word(self) -> &'static str {
        match self {
            Self::Minutes => "minutes",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// From its word; ten minutes for any other.
    pub fn from_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|over| over.word() == word).unwrap_or_default()
    }

    /// How long that is.
    pub fn length(self) -> Duration {
        match self {
            Self::Minutes => Duration::from_secs(600),
            Self::Day => Duration::from_secs(24 * 3600),
            Self::Month => Duration::from_secs(30 * 24 * 3600),
        }
    }
}

/// Where pictures come from: a running node.
pub trait Source: Clone + Send + Sync + 'static {
    /// Looks at everything but the charts.
    fn picture(&self) -> impl Future<Output = Picture> + Send;

    /// What is remembered of every standby's lag.
    fn lateness(&self, over: Over) -> Lateness;

    /// Changes whenever the cluster agrees on something.
    fn agreed(&self) -> watch::Receiver<Arc<State>>;
}

/// How late each standby was, oldest point first.
pub type Lateness = BTreeMap<NodeId, Vec<Point>>;

impl Source for Api {
    async fn picture(&self) -> Picture {
        let meter = tokio::time::timeout(METER_WAIT, self.meter.read());
        let checks = async { Some(api::checklist(self).await) };
        let slots = async { api::slots::of_writer(self).await.ok() };
        let (metrics, review, slots) = tokio::join!(
            meter,
            self.live.review.get(REVIEW_EVERY, REVIEW_WAIT, checks),
            self.live.slots.get(SLOTS_EVERY, SLOTS_WAIT, slots),
        );
        // Read last: what changes while the others are asked is in the picture.
        let state = self.node.parts.consensus.state();
        let document = state.document();
        Picture {
            status: self.node.status(),
            traffic: metrics.ok().map(|m| traffic(&m, &document, self.live.trend.ticks())),
            review: review.unwrap_or_default(),
            slots,
            document,
            events: state.events.iter().rev().take(EVENTS_SHOWN_MAX).cloned().collect(),
            running: state.drill.clone(),
            drills: state.drills.iter().rev().take(DRILLS_SHOWN_MAX).cloned().collect(),
        }
    }

    fn lateness(&self, over: Over) -> Lateness {
        let from = wall_millis().saturating_sub(over.length().as_millis() as u64);
        let state = self.node.parts.consensus.state();
        let points = |n| (n, self.node.lags.history(n, from, CHART_POINTS_MAX));
        state.data_nodes().map(points).filter(|(_, points)| !points.is_empty()).collect()
    }

    fn agreed(&self) -> watch::Receiver<Arc<State>> {
        self.node.parts.consensus.watch()
    }
}

/// A gateway's counts as lines of the page.
pub fn traffic(metrics: &Metrics, document: &Document, trend: Vec<Tick>) -> Traffic {
    let mut pools: Vec<PoolLine> = Vec::new();
    let mut times: BTreeMap<(&'static str, &'static str), Latency> = BTreeMap::new();
    for account in &metrics.accounts {
        let (database, user) = (&account.database, &account.user);
        let size = document.gateway.pool_for(database, user).spec.size;
        pools.extend(account.pools.iter().map(|(node, pool)| PoolLine {
            database: database.clone(),
            user: user.clone(),
            node: node.to_string(),
            busy: pool.open.saturating_sub(pool.idle),
            open: pool.open,
            size: u64::from(size),
            waiting: pool.waiting,
            queue_p99_us: pool.queue.quantile_us(0.99),
        }));
        for route in account.routes.iter().filter(|r| r.transaction.count() > 0) {
            times.entry((route.part, route.because)).or_default().add(&route.transaction);
        }
    }
    let mut routes: Vec<RouteLine> = times
        .into_iter()
        .map(|((part, because), times)| RouteLine {
            part,
            because,
            count: times.count(),
            p50_us: times.quantile_us(0.5),
            p99_us: times.quantile_us(0.99),
            max_us: times.max_us(),
        })
        .collect();
    pools.sort_by_key(|p| Reverse((p.waiting, p.busy, p.open)));
    routes.sort_by_key(|r| Reverse(r.count));
    let more = pools.len().saturating_sub(POOLS_SHOWN_MAX);
    pools.truncate(POOLS_SHOWN_MAX);
    Traffic { clients: metrics.clients, pools, routes, more, trend }
}
