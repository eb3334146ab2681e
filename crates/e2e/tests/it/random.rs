//! Many faults in a row, chosen by a seed. `QUORATE_E2E_FAULTS` says how many (default 30),
//! `QUORATE_E2E_SEED` which (default 1).

use std::time::Duration;

use anyhow::{Context, Result};
use quorate_e2e::random::Random;
use quorate_e2e::workload::Options;
use quorate_e2e::{Cluster, Scenario};

use crate::common::{flows, patient, settle};

type Fault = fn(&mut Cluster, &str) -> Result<()>;

/// How long a node may be without a postmaster before the next fault hits it.
const AGAIN: Duration = Duration::from_secs(60);

/// Each brings itself to an end, so that the cluster can become healthy again.
const FAULTS: [(&str, Fault); 9] = [
    ("postmaster killed", |cluster, node| {
        // The fault before may have ended a postmaster a moment ago.
        cluster.wait_until(AGAIN, "there is a postmaster", || cluster.kill_postmaster(node).ok())
    }),
    ("quorate killed and started", |cluster, node| {
        cluster.kill_quorate(node)?;
        cluster.restart(node)
    }),
    ("host lost and back", |cluster, node| {
        cluster.host_gone(node)?;
        cluster.wait_writer()?;
        cluster.restart(node)
    }),
    ("cut off", |cluster, node| {
        cluster.cut_off(node);
        elapse(cluster, Duration::from_secs(4))?;
        cluster.heal();
        Ok(())
    }),
    ("unheard by one", |cluster, node| {
        let other = cluster.others(node).swap_remove(0);
        cluster.cut_one_way(node, &other)?;
        elapse(cluster, Duration::from_secs(3))?;
        cluster.heal();
        Ok(())
    }),
    ("flapping", |cluster, node| {
        cluster.flap(node, 4, Duration::from_millis(500));
        Ok(())
    }),
    ("postgres stopped", |cluster, node| {
        cluster.wait_until(AGAIN, "there is a postmaster", || cluster.stop_postgres(node).ok())?;
        elapse(cluster, Duration::from_secs(6))?;
        cluster.cont_postgres(node)
    }),
    ("killed while the commit rule changes", |cluster, node| {
        apply(cluster, "copies = 3\n")?;
        cluster
            .wait_until(AGAIN, "there is a postmaster", || cluster.kill_postmaster(node).ok())?;
        // Whatever the rule has become, and whoever writes.
        apply(cluster, "")
    }),
    ("disk stalled", |cluster, node| {
        cluster.stall_disk(node)?;
        elapse(cluster, Duration::from_secs(6))?;
        cluster.release_disk(node)
    }),
];

/// Changes the cluster document through whatever node takes it, as soon as one does.
fn apply(cluster: &Cluster, document: &str) -> Result<()> {
    cluster.wait_until(AGAIN, "the document is taken", || {
        cluster.nodes().iter().find_map(|n| cluster.apply(n.name(), document).ok()).map(drop)
    })
}

/// The fault itself lasts so long; whatever the cluster does meanwhile is right or wrong by the
/// checks that follow.
fn elapse(cluster: &Cluster, time: Duration) -> Result<()> {
    let begun = std::time::Instant::now();
    cluster.wait_until(time * 2, "the fault is over", || (begun.elapsed() > time).then_some(()))
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

#[test]
fn random_faults_in_a_row() -> Result<()> {
    let (count, seed) = (setting("QUORATE_E2E_FAULTS", 30)?, setting("QUORATE_E2E_SEED", 1)?);
    let scenario = Scenario::new(
        "random faults of random nodes under a workload: every acknowledged row is there, none \
         comes from nowhere, all copies are equal",
    );
    scenario.step(format!("{count} faults of seed {seed}"));
    let mut random = Random::new(seed);
    let mut cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(Options { clients: 3, ..patient() }, &[]);
    for number in 1..=count {
        let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
        flows(&cluster, &workload)?;
        // Every other time the writer: it has most to lose.
        let standby = random.pick(&cluster.others(&writer)).clone();
        let node = if random.below(2) == 0 { writer.clone() } else { standby };
        let (name, fault) = *random.pick(&FAULTS);
        scenario.step(format!("fault {number}: {node} {name}; {writer} writes"));
        fault(&mut cluster, &node)
            .with_context(|| format!("fault {number}: {node} {name}"))
            .or_else(|e| cluster.explain(e))?;
    }
    settle(&scenario, &cluster, workload)
}
