//! Two copies and a witness, in every single failure.

use std::time::Duration;

use anyhow::Result;
use quorate_e2e::{Cluster, Scenario, limits};

use crate::common::{flows, patient, settle};

fn cluster() -> Result<Cluster> {
    Cluster::of(2).witness().start()
}

/// Each of the three hosts is lost in turn and returns.
#[test]
fn each_host_lost_in_turn() -> Result<()> {
    let scenario = Scenario::new(
        "two nodes and a witness: whichever host is lost, writes go on, and it returns by itself",
    );
    let mut cluster = cluster()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let writer = cluster.wait_writer()?;
    let standby = cluster.others(&writer).swap_remove(0);
    for lost in ["w1", &standby, &writer] {
        scenario.step(format!("{lost} is lost; {:?} writes", cluster.writer()));
        cluster.host_gone(lost)?;
        flows(&cluster, &workload)?;
        cluster.restart(lost)?;
        cluster.wait_healthy()?;
        flows(&cluster, &workload)?;
    }
    settle(&scenario, &cluster, workload)
}

#[test]
fn link_between_the_copies_cut() -> Result<()> {
    let scenario = Scenario::new(
        "two nodes and a witness that hears both: the link between the copies is cut; one of them \
         goes on, and both are equal again afterwards",
    );
    let cluster = cluster()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    cluster.partition("n1 w1 | n2 w1");
    scenario.step("the copies do not hear each other");
    flows(&cluster, &workload)?;
    cluster.heal();
    settle(&scenario, &cluster, workload)
}

#[test]
fn writer_partitioned_from_both() -> Result<()> {
    let scenario = Scenario::new(
        "two nodes and a witness: the writer is cut off, and the other copy writes alone",
    );
    let cluster = cluster()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let old = cluster.wait_writer()?;
    let other = cluster.others(&old).swap_remove(0);
    cluster.partition(&format!("{old} | {other} w1"));
    cluster.wait_other_writer(&old)?;
    flows(&cluster, &workload)?;
    cluster.heal();
    settle(&scenario, &cluster, workload)
}

#[test]
fn postmaster_of_the_writer_killed() -> Result<()> {
    let scenario = Scenario::new("two nodes and a witness: the writer's postmaster is killed");
    let cluster = cluster()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let term = cluster.wait_healthy()?.term;
    cluster.kill_postmaster(&cluster.wait_writer()?)?;
    cluster.wait_until(limits::RECOVER, "a later term has a writer", || {
        cluster.status().filter(|s| s.term > term && s.serving().is_some())
    })?;
    flows(&cluster, &workload)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn slow_line_deposes_nobody() -> Result<()> {
    let scenario = Scenario::new("a line of 60 ms delay: slow commits, and no failover");
    let cluster = cluster()?;
    let before = cluster.wait_healthy()?;
    cluster.slow(&before.writer.clone().unwrap_or_default(), Duration::from_millis(60));
    let workload = cluster.workload(patient(), &[]);
    for _ in 0..20 {
        flows(&cluster, &workload)?;
    }
    cluster.heal();
    let after = cluster.wait_healthy()?;
    anyhow::ensure!(before.term == after.term, "term {} became {}", before.term, after.term);
    settle(&scenario, &cluster, workload)
}
