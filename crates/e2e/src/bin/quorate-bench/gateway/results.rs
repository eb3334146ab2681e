//! What was measured, and figures derived from it.

use serde::Serialize;

use super::cases::Case;
use super::meter::Spent;
use super::pgbench::Outcome;
use super::rig::{Route, Via};

/// Everything of one invocation.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Results {
    /// Processor seconds that `quorate` uses in a second without clients.
    pub(crate) idle_rate: f64,
    /// Runs of pgbench, in their order.
    pub(crate) samples: Vec<Sample>,
    /// Crowds of idle clients.
    pub(crate) idle: Vec<Idle>,
    /// Large transfers.
    pub(crate) bulk: Vec<Bulk>,
}

/// One run of pgbench.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) case: String,
    pub(crate) unit: String,
    pub(crate) label: String,
    pub(crate) via: Via,
    pub(crate) round: usize,
    pub(crate) outcome: Outcome,
    pub(crate) spent: Spent,
}

/// One crowd of idle clients; memory in bytes.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) label: String,
    pub(crate) via: Via,
    pub(crate) wanted: usize,
    pub(crate) opened: usize,
    pub(crate) trouble: Option<String>,
    pub(crate) seconds: f64,
    /// Processor seconds of the proxy while they logged in and asked.
    pub(crate) proxy_cpu: f64,
    /// Before they came, while all were there, and after they left.
    pub(crate) before: u64,
    pub(crate) after: u64,
    pub(crate) left: u64,
}

/// One large transfer.
#[derive(Debug, Serialize)]
pub(crate) struct Bulk {
    pub(crate) name: String,
    pub(crate) label: String,
    pub(crate) via: Via,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    /// Processor seconds of the proxy.
    pub(crate) proxy_cpu: Option<f64>,
    /// Peak of resident memory above what it was before, in bytes.
    pub(crate) extra: Option<u64>,
    pub(crate) trouble: Option<String>,
}

/// Median, least and most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of some values; `None` of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.len() / 2;
        let lower = (sorted.len() - 1) / 2;
        Some(Self { median: f64::midpoint(sorted[lower], sorted[upper]), min, max })
    }
}

impl Sample {
    pub(crate) fn new(
        route: &Route,
        case: &Case,
        round: usize,
        outcome: Outcome,
        spent: Spent,
    ) -> Self {
        Self {
            case: case.name.to_owned(),
            unit: case.unit.to_owned(),
            label: route.label.clone(),
            via: route.via,
            round,
            outcome,
            spent,
        }
    }

    /// Microseconds per transaction of so many seconds.
    pub(crate) fn per(&self, seconds: f64) -> f64 {
        seconds * 1e6 / (self.outcome.transactions.max(1) as f64)
    }

    /// For the one who waits.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} {} #{}: {:.0}/s, others {:.0} %{}",
            self.case,
            self.label,
            self.round + 1,
            self.outcome.tps,
            self.spent.others * 100.0,
            self.outcome.trouble.as_deref().map(|t| format!(", {t}")).unwrap_or_default()
        )
    }
}

impl Results {
    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.idle.is_empty() && self.bulk.is_empty()
    }

    /// Samples of a case through one way.
    pub(crate) fn of(&self, case: &str, label: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |s| s.case == case && s.label == label)
    }

    /// A figure of a case through one way.
    pub(crate) fn spread(
        &self,
        case: &str,
        label: &str,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.of(case, label).filter_map(figure))
    }

    /// Its median.
    pub(crate) fn median(
        &self,
        case: &str,
        label: &str,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<f64> {
        self.spread(case, label, figure).map(|spread| spread.median)
    }

    /// Proxy CPU of a sample, in microseconds per transaction: of the gateway's own threads where
    /// it has some, else of the whole process beyond what it does without clients of its gateway.
    pub(crate) fn proxy(&self, sample: &Sample) -> Option<f64> {
        match sample.via {
            Via::Direct => None,
            Via::PgBouncer => Some(sample.per(sample.spent.pgbouncer)),
            Via::Quorate => match sample.spent.gateway {
                Some(gateway) => Some(sample.per(gateway)),
                None => Some(self.whole(sample)),
            },
        }
    }

    /// The whole process of Quorate beyond what it does anyway: its idle use, and what it spends on
    /// each commit (it is the standby that PostgreSQL waits for), which direct runs show.
    pub(crate) fn whole(&self, sample: &Sample) -> f64 {
        let commit = self.median(&sample.case, "direct", |direct| {
            Some(direct.per(self.beyond_idle(direct)).max(0.0))
        });
        sample.per(self.beyond_idle(sample)) - commit.unwrap_or_default()
    }

    fn beyond_idle(&self, sample: &Sample) -> f64 {
        sample.spent.quorate - self.idle_rate * sample.spent.read
    }

    /// PostgreSQL, proxy and client, in microseconds per transaction.
    pub(crate) fn machine(&self, sample: &Sample) -> f64 {
        let proxy = self.proxy(sample).unwrap_or_default();
        sample.per(sample.spent.postgres + sample.spent.client) + proxy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(label: &str, via: Via, quorate: f64, gateway: Option<f64>) -> Sample {
        Sample {
            case: "simple-16".to_owned(),
            unit: "query".to_owned(),
            label: label.to_owned(),
            via,
            round: 0,
            outcome: Outcome { transactions: 1_000_000, ..Outcome::default() },
            spent: Spent { read: 10.0, quorate, gateway, ..Spent::default() },
        }
    }

    #[test]
    fn spreads() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn what_quorate_does_anyway_is_not_the_gateways() {
        let mut results = Results { idle_rate: 0.1, ..Results::default() };
        results.samples.push(sample("direct", Via::Direct, 3.0, None));
        results.samples.push(sample("Quorate", Via::Quorate, 15.0, None));
        results.samples.push(sample("Quorate", Via::Quorate, 15.0, Some(11.0)));
        let proxy: Vec<_> = results.samples.iter().map(|s| results.proxy(s)).collect();
        assert_eq!(proxy, [None, Some(12.0), Some(11.0)]);
    }
}
