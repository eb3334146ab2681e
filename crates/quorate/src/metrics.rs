//! What Prometheus is told: `/metrics`, and the rules and the dashboard that go with it.
//!
//! Every node tells the whole cluster as it sees it, so that what one cannot reach another tells; what
//! only it can know (its gateway, its process) stands beside.

mod dashboard;
mod rules;

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use quorate_agent::alerts::Stage;
use quorate_agent::view::ClusterStatus;
use quorate_core::authority::Phase;
use quorate_core::state::NodeKind;
use quorate_core::{NodeId, Policy};
use quorate_gateway::{AccountMetrics, Latency, Metrics};

use crate::cli::operate::serving;
use crate::cli::show::doing_word;

pub use dashboard::dashboard;
pub use rules::rules;

/// The form of the answer (OpenMetrics, which Prometheus reads).
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper ends of the buckets of latencies, as powers of two of a microsecond: 128 µs to 17 s. The
/// gateway's own buckets have the same edges.
const LATENCY_POWERS: std::ops::RangeInclusive<u32> = 7..=24;

/// Everything that is told at once.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The cluster as this node sees it.
    pub status: ClusterStatus,
    /// What its gateway has counted.
    pub gateway: Metrics,
    /// Number of the newest event.
    pub events: u64,
    /// What this process has used.
    pub process: Process,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Processor time since its start.
    pub cpu: Duration,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Files and connections that are open.
    pub files: u64,
}

type Labels<'a> = [(&'a str, &'a str)];

/// A metric: what every user of it needs to know.
struct Metric {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, kind: MetricType::Gauge }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, help, kind: MetricType::Counter }
}

/// The answer of `/metrics`.
///
/// # Errors
/// None in practice: it is written to memory.
pub fn exposition(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        self.cluster(&mut out)?;
        self.nodes(&mut out)?;
        self.copies(&mut out)?;
        self.alerts(&mut out)?;
        self.gateway(&mut out)?;
        self.process(&mut out)
    }
}

/// Writes metrics, each with all of its series.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn all<'l>(
        &mut self,
        metric: &Metric,
        series: impl IntoIterator<Item = (Vec<(&'l str, &'l str)>, f64)>,
    ) -> fmt::Result {
        let mut all = self.0.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
        for (labels, value) in series {
            let labels: &Labels<'_> = &labels;
            let mut one = all.encode_family(&labels)?;
            put(&mut one, metric.kind, value)?;
        }
        Ok(())
    }

    fn one(&mut self, metric: &Metric, value: f64) -> fmt::Result {
        let mut one = self.0.encode_descriptor(metric.name, metric.help, None, metric.kind)?;
        put(&mut one, metric.kind, value)
    }
}

fn put(one: &mut MetricEncoder<'_>, kind: MetricType, value: f64) -> fmt::Result {
    match kind {
        MetricType::Counter => one.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        _ => one.encode_gauge(&value),
    }
}

fn flag(yes: bool) -> f64 {
    if yes { 1.0 } else { 0.0 }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

impl Snapshot {
    fn cluster(&self, out: &mut Out<'_>) -> fmt::Result {
        let status = &self.status;
        let me = status.me.to_string();
        out.all(
            &gauge("quorate_info", "The node that answers, and its version."),
            [(
                vec![
                    ("cluster", status.cluster_id.as_str()),
                    ("node", me.as_str()),
                    ("version", env!("CARGO_PKG_VERSION")),
                ],
                1.0,
            )],
        )?;
        out.one(&gauge("quorate_term", "The present term."), status.term.0 as f64)?;
        let serves = serving(status).is_some();
        out.one(&gauge("quorate_writer_serving", "1 while a writer serves."), flag(serves))?;
        let electing = flag(status.phase == Phase::Electing);
        out.one(&gauge("quorate_electing", "1 while an election is under way."), electing)?;
        let reigns = status.authority.reigns.last().map_or(0.0, |r| r.term.0 as f64);
        out.one(&gauge("quorate_last_reign_term", "Term of the last writer."), reigns)?;
        let lost = status.authority.reigns.last().map_or(0, |r| r.lost_bytes) as f64;
        out.one(
            &gauge(
                "quorate_last_reign_lost_bytes",
                "Bytes of the former writer's log that the last one lacked, as far as they were seen.",
            ),
            lost,
        )?;
        out.one(
            &gauge("quorate_automation_paused", "1 while automation is paused."),
            flag(status.paused),
        )?;
        out.one(&gauge("quorate_voters", "Voters of consensus."), status.voters.len() as f64)?;
        out.one(
            &gauge("quorate_consensus_leader_known", "1 while a leader of consensus is known."),
            flag(status.leader.is_some()),
        )?;
        out.one(
            &gauge("quorate_document_version", "Version of the cluster document."),
            status.document_version as f64,
        )?;
        out.one(
            &counter(
                "quorate_events",
                "Events in the history of the cluster, dropped ones included.",
            ),
            self.events as f64,
        )?;
        let breaches: u64 = status.breaches.iter().map(|b| b.times).sum();
        out.one(
            &counter(
                "quorate_invariant_breaches",
                "How often this node saw what must never be since its process began.",
            ),
            breaches as f64,
        )
    }

    /// Names of nodes as texts, in the order of the nodes.
    fn names(&self) -> Vec<String> {
        self.status.nodes.keys().map(ToString::to_string).collect()
    }

    /// A gauge of every node for which there is a value.
    fn per_node(
        &self,
        out: &mut Out<'_>,
        metric: &Metric,
        value: impl Fn(NodeId, &quorate_agent::view::Member) -> Option<f64>,
    ) -> fmt::Result {
        let names = self.names();
        let series = self.status.nodes.iter().zip(&names);
        let series = series
            .filter_map(|((n, m), name)| Some((vec![("node", name.as_str())], value(*n, m)?)));
        out.all(metric, series)
    }

    fn nodes(&self, out: &mut Out<'_>) -> fmt::Result {
        let writer = self.status.writer;
        self.per_node(out, &gauge("quorate_node_writer", "1 for the writer."), |n, _| {
            Some(flag(writer == Some(n)))
        })?;
        self.per_node(
            out,
            &gauge("quorate_node_heard_seconds", "How long ago the node was last heard."),
            |_, m| m.heard_ms.map(seconds),
        )?;
        self.per_node(
            out,
            &gauge("quorate_node_gone", "1 while its host answers and its process does not run."),
            |_, m| Some(flag(m.gone)),
        )?;
        let names = self.names();
        let states = self.status.nodes.values().zip(&names).filter_map(|(m, name)| {
            let word = doing_word(m.status.as_ref()?.doing);
            Some((vec![("node", name.as_str()), ("state", word)], 1.0))
        });
        out.all(&gauge("quorate_node_state", "What a node last said that it does."), states)?;
        self.per_node(
            out,
            &gauge("quorate_disk_free_bytes", "Room on the disk that its log is on."),
            |_, m| m.status.as_ref()?.disk.as_ref().map(|d| d.disk.free as f64),
        )?;
        self.per_node(
            out,
            &gauge("quorate_disk_size_bytes", "Size of the disk that its log is on."),
            |_, m| m.status.as_ref()?.disk.as_ref().map(|d| d.disk.total as f64),
        )?;
        self.per_node(
            out,
            &gauge("quorate_disk_write_seconds", "How long a small synchronous write took there."),
            |_, m| m.status.as_ref()?.disk_ms.map(seconds),
        )?;
        self.per_node(
            out,
            &gauge(
                "quorate_certificate_expiry_timestamp_seconds",
                "When its certificate for other nodes expires, in seconds since 1970.",
            ),
            |_, m| m.status.as_ref()?.vitals.certificate_until.map(seconds),
        )
    }

    fn copies(&self, out: &mut Out<'_>) -> fmt::Result {
        let names = self.names();
        let lags = self.status.nodes.values().zip(&names).filter_map(|(m, name)| {
            let lag = m.lag?;
            let of = |stage, ms| (vec![("node", name.as_str()), ("stage", stage)], seconds(ms));
            Some([of("disk", lag.disk_ms), of("replay", lag.replay_ms)])
        });
        out.all(
            &gauge(
                "quorate_lag_seconds",
                "Since when a standby lacks the first byte of log that is not on its disk, or not \
                 replayed there.",
            ),
            lags.flatten(),
        )?;
        self.per_node(
            out,
            &gauge("quorate_lag_bytes", "Bytes of log that a standby has not replayed."),
            |_, m| m.lag.map(|lag| lag.bytes as f64),
        )?;
        self.per_node(
            out,
            &gauge(
                "quorate_contract_broken",
                "1 while a standby is later than its contract allows.",
            ),
            |_, m| m.lag.map(|lag| flag(lag.broken_ms.is_some())),
        )?;
        self.per_node(
            out,
            &gauge("quorate_contract_lag_seconds", "How late its contract allows a standby to be."),
            |n, m| {
                let standby = m.node.kind == NodeKind::Data && self.status.writer != Some(n);
                m.contract.max_lag.filter(|_| standby).map(|lag| lag.as_secs_f64())
            },
        )?;
        self.per_node(
            out,
            &gauge(
                "quorate_candidate",
                "1 for a standby that could write if the writer failed now.",
            ),
            |n, _| {
                let candidate = self.status.candidates.iter().find(|c| c.node == n)?;
                Some(flag(candidate.eligible))
            },
        )?;
        let copies = self.status.authority.rule().map_or(0, |rule| match &rule.policy {
            Policy::Copies(n) | Policy::Named { copies: n, .. } => *n,
            Policy::Zones { copies, .. } => *copies,
            Policy::WriterOnly => 1,
        });
        out.one(
            &gauge("quorate_commit_copies", "Copies of a commit before it is acknowledged."),
            f64::from(copies),
        )
    }

    fn alerts(&self, out: &mut Out<'_>) -> fmt::Result {
        let firing = self.status.alerts.iter().filter(|told| told.stage != Stage::Pending);
        let series = firing.map(|told| {
            let alert = &told.alert;
            let silenced = if told.stage == Stage::Silenced { "true" } else { "false" };
            let labels = vec![
                ("rule", alert.key.rule.as_str()),
                ("subject", alert.key.subject.as_str()),
                ("severity", alert.severity.as_str()),
                ("silenced", silenced),
            ];
            (labels, 1.0)
        });
        out.all(&gauge("quorate_alert", "1 for each alert that fires."), series)
    }

    fn gateway(&self, out: &mut Out<'_>) -> fmt::Result {
        let gateway = &self.gateway;
        out.one(
            &gauge("quorate_gateway_clients", "Clients of this node's gateway."),
            gateway.clients as f64,
        )?;
        // Counters of all accounts have the same names.
        let names =
            gateway.accounts.first().map(|a| a.counters.keys().copied().collect::<Vec<_>>());
        for name in names.unwrap_or_default() {
            let metric = format!("quorate_gateway_{name}");
            let help = format!("Counter {name} of SHOW COUNTERS.");
            let mut all = out.0.encode_descriptor(&metric, &help, None, MetricType::Counter)?;
            for account in &gateway.accounts {
                let labels: &Labels<'_> = &account_labels(account);
                let value = account.counters.get(name).copied().unwrap_or_default();
                all.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            }
        }
        let to_writer = gateway.accounts.iter().flat_map(|account| {
            account.to_writer.iter().map(|(because, n)| {
                let [database, user] = account_labels(account);
                (vec![database, user, ("because", *because)], *n as f64)
            })
        });
        out.all(
            &counter(
                "quorate_gateway_to_writer",
                "Transactions that the writer answered, by reason.",
            ),
            to_writer,
        )?;
        let connections = gateway.accounts.iter().flat_map(|account| {
            account.pools.iter().flat_map(move |(node, pool)| {
                let busy = pool.open.saturating_sub(pool.idle);
                let counts = [("idle", pool.idle), ("busy", busy), ("waiting", pool.waiting)];
                counts.map(|(state, n)| {
                    let [database, user] = account_labels(account);
                    (vec![database, user, ("server", node.as_str()), ("state", state)], n as f64)
                })
            })
        });
        out.all(
            &gauge(
                "quorate_gateway_connections",
                "Connections to servers (idle, busy), and clients that wait for one.",
            ),
            connections,
        )?;
        let name = "quorate_gateway_transaction_seconds";
        let help = "How long transactions took, from the first request to the last answer.";
        let mut all = out.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for account in &gateway.accounts {
            for part in ["writer", "replica"] {
                let mut sum = Latency::default();
                let routes = account.routes.iter().filter(|r| r.part == part);
                routes.for_each(|r| sum.add(&r.transaction));
                let [database, user] = account_labels(account);
                let labels: &Labels<'_> = &[database, user, ("part", part)];
                let mut one = all.encode_family(&labels)?;
                one.encode_histogram::<NoLabelSet>(
                    sum.sum_us() as f64 / 1e6,
                    sum.count(),
                    &buckets(&sum),
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn process(&self, out: &mut Out<'_>) -> fmt::Result {
        let Process { cpu, memory, files } = self.process;
        out.one(
            &counter("process_cpu_seconds", "Processor time of this process."),
            cpu.as_secs_f64(),
        )?;
        out.one(&gauge("process_resident_memory_bytes", "Memory of this process."), memory as f64)?;
        out.one(&gauge("process_open_fds", "Files and connections that are open."), files as f64)
    }
}

fn account_labels(account: &AccountMetrics) -> [(&str, &str); 2] {
    [("database", account.database.as_str()), ("user", account.user.as_str())]
}

/// Counts below each edge (not cumulative: the encoder adds them up), the last for all above.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let mut counts = Vec::new();
    let mut below = 0;
    for power in LATENCY_POWERS {
        let edge = 1_u64 << power;
        let cumulative = latency.cumulative().take_while(|(most, _)| *most < edge).last();
        let so_far = cumulative.map_or(0, |(_, n)| n);
        counts.push((edge as f64 / 1e6, so_far - below));
        below = so_far;
    }
    counts.push((f64::MAX, latency.count() - below));
    counts
}

/// What this process has used, from `/proc`.
pub fn process() -> Process {
    // Fields of proc(5), counted from 1 behind the name in brackets.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|f| f.parse().unwrap_or_default()).collect())
        .unwrap_or_default();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or_default();
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let cpu = Duration::from_secs_f64((field(14) + field(15)) as f64 / ticks as f64);
    let memory = field(24).saturating_mul(rustix::param::page_size() as u64);
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, |dir| dir.count() as u64);
    Process { cpu, memory, files }
}

#[cfg(test)]
mod tests;
