//! Steps that scenarios share.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_e2e::status::get_within;
use quorate_e2e::workload::Options;
use quorate_e2e::{Cluster, Scenario, Workload, check, limits};
use serde_json::Value;

/// A workload that waits for a held login: debug builds hash passwords slowly.
pub(crate) fn patient() -> Options {
    Options { connect_limit: Duration::from_secs(5), ..Options::default() }
}

/// Waits until every client of the workload is acknowledged again.
pub(crate) fn flows(cluster: &Cluster, workload: &Workload) -> Result<()> {
    let flowing = workload.wait_acks_since(Instant::now(), limits::RECOVER);
    flowing.or_else(|e| cluster.explain(e))
}

/// Lets every node come back under load, ends the workload, and makes all checks.
pub(crate) fn settle(scenario: &Scenario, cluster: &Cluster, workload: Workload) -> Result<()> {
    cluster.wait_healthy()?;
    flows(cluster, &workload)?;
    let ledger = workload.stop();
    let judgement = check::all(cluster, &ledger).or_else(|e| cluster.explain(e))?;
    scenario.step(format!("{judgement}; failed logins: {}", ledger.failed_logins));
    for (trouble, times) in ledger.troubles() {
        scenario.step(format!("{times} times {trouble}"));
    }
    Ok(())
}

/// The common story: three nodes under load, a fault of the writer, another writer, the fault
/// mended, the old writer back as a standby.
pub(crate) fn writer_is_replaced(
    intent: &str,
    fault: impl FnOnce(&mut Cluster, &str) -> Result<()>,
    mend: impl FnOnce(&mut Cluster, &str) -> Result<()>,
) -> Result<()> {
    let scenario = Scenario::new(intent);
    let mut cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(Options { clients: 2, ..patient() }, &[]);
    flows(&cluster, &workload)?;
    let old = cluster.wait_writer()?;
    scenario.step(format!("fault of the writer {old}"));
    let begun = Instant::now();
    fault(&mut cluster, &old)?;
    let new = cluster.wait_other_writer(&old)?;
    scenario.step(format!("{new} writes"));
    flows(&cluster, &workload)?;
    let gap = workload.snapshot().longest_gap(begun, Instant::now());
    scenario.step(format!("longest gap {gap:?}; mending"));
    mend(&mut cluster, &old)?;
    settle(&scenario, &cluster, workload)
}

/// The data nodes that do not write.
pub(crate) fn standbys(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(cluster.others(&cluster.wait_writer()?))
}

/// Nothing to mend.
pub(crate) fn nothing(_: &mut Cluster, _: &str) -> Result<()> {
    Ok(())
}

/// What a node tells over HTTP.
pub(crate) fn ask(cluster: &Cluster, node: &str, path: &str) -> Option<Value> {
    let web = cluster.node(node).ok()?.web();
    serde_json::from_str(&get_within(web, path, limits::PAGE).ok()?).ok()
}

/// How long a condition may take to be an alert, or to be over. The longest that a test waits for has to
/// last for 60 s, and that is counted anew by a new leader, and when a node was not heard for a moment.
const ALERT: Duration = Duration::from_secs(240);

/// Alerts that are so far, as `rule/subject`.
fn alerts(cluster: &Cluster, seen_by: &str, stage: &str) -> BTreeSet<String> {
    let told = ask(cluster, seen_by, "/api/alerts").unwrap_or_default();
    let alerts = told["alerts"].as_array().cloned().unwrap_or_default();
    let name = |a: &Value| {
        let word = |key: &str| a[key].as_str().unwrap_or_default().to_owned();
        format!("{}/{}", word("rule"), word("subject"))
    };
    alerts.iter().filter(|a| a["stage"] == stage).map(name).collect()
}

/// Waits until an alert fires, or is over.
pub(crate) fn wait_alert(cluster: &Cluster, seen_by: &str, alert: &str, fires: bool) -> Result<()> {
    let what = format!("{alert} {}", if fires { "fires" } else { "is over" });
    cluster.wait_until(ALERT, &what, || {
        (alerts(cluster, seen_by, "firing").contains(alert) == fires).then_some(())
    })
}

/// Waits until an alert that fires only after many minutes is on its way, or is not any more.
pub(crate) fn wait_pending(cluster: &Cluster, alert: &str, pending: bool) -> Result<()> {
    let what = format!("{alert} {}", if pending { "is pending" } else { "is over" });
    cluster.wait_until(limits::RECOVER, &what, || {
        // The leader alone knows.
        let leader = cluster.status()?.leader?;
        (alerts(cluster, &leader, "pending").contains(alert) == pending).then_some(())
    })
}
