//! Standbys that go and come back.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_e2e::{Cluster, Scenario};

use crate::common::{flows, patient, settle, standbys};

#[test]
fn both_standbys_lost_and_back() -> Result<()> {
    let scenario = Scenario::new(
        "both standbys are lost: no write is acknowledged while the writer is alone; with the first \
         one back writes go on",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_writer()?;
    let lost = standbys(&cluster)?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    for name in &lost {
        cluster.host_gone(name)?;
    }
    let alone = Instant::now();
    scenario.step(format!("{writer} is alone"));
    // What was acknowledged just before may still be on its way to the client.
    let before = cluster.wait_until(Duration::from_secs(10), "writes stop", || {
        let ledger = workload.snapshot();
        let last = ledger.attempts.last()?;
        let stopped = alone.elapsed() > Duration::from_secs(2);
        (stopped && last.outcome != quorate_e2e::ledger::Outcome::Acked).then(|| workload.acks())
    })?;
    let tried = workload.snapshot().attempts.len() as u64 + workload.snapshot().failed_logins;
    cluster.wait_until(Duration::from_secs(30), "the client tries again", || {
        let ledger = workload.snapshot();
        (ledger.attempts.len() as u64 + ledger.failed_logins > tried).then_some(())
    })?;
    ensure!(workload.acks() == before, "writes were acknowledged by a writer alone");
    for name in &lost {
        cluster.restart(name)?;
        flows(&cluster, &workload)?;
        scenario.step(format!("{name} is back and writes go on"));
    }
    settle(&scenario, &cluster, workload)
}

#[test]
fn one_standby_lost_is_not_noticed() -> Result<()> {
    let scenario = Scenario::new("one standby is lost: writes go on without a gap of a second");
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_writer()?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let lost = standbys(&cluster)?.swap_remove(0);
    let begun = Instant::now();
    cluster.host_gone(&lost)?;
    flows(&cluster, &workload)?;
    cluster.wait_until(Duration::from_secs(10), "the loss is seen", || {
        (!cluster.status_of(&writer).ok()?.attached().contains(&lost)).then_some(())
    })?;
    flows(&cluster, &workload)?;
    let gap = workload.snapshot().longest_gap(begun, Instant::now());
    ensure!(gap < Duration::from_secs(1), "no write was acknowledged for {gap:?}");
    cluster.restart(&lost)?;
    settle(&scenario, &cluster, workload)
}
