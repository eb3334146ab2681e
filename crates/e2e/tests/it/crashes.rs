//! Processes and hosts that die.

use anyhow::Result;
use quorate_e2e::{Cluster, Scenario};

use crate::common::{flows, nothing, patient, settle, writer_is_replaced};

#[test]
fn postmaster_killed() -> Result<()> {
    writer_is_replaced(
        "the writer's postmaster is killed: another node writes, the old one follows by itself",
        |cluster, writer| cluster.kill_postmaster(writer),
        nothing,
    )
}

#[test]
fn quorate_killed() -> Result<()> {
    writer_is_replaced(
        "the writer's quorate is killed: its PostgreSQL dies with it, another node writes",
        |cluster, writer| {
            let data = cluster.node(writer)?.data_dir();
            cluster.kill_quorate(writer)?;
            cluster.wait_until(
                std::time::Duration::from_secs(5),
                "the killed node's PostgreSQL is gone",
                || quorate_e2e::process::postmaster(&data).is_err().then_some(()),
            )
        },
        |cluster, writer| cluster.restart(writer),
    )
}

#[test]
fn host_gone() -> Result<()> {
    writer_is_replaced(
        "the writer's host is lost without a word: another node writes; the host returns later",
        |cluster, writer| cluster.host_gone(writer),
        |cluster, writer| cluster.restart(writer),
    )
}

/// What was committed might be on the two others alone, as far as anybody but the writer can tell.
#[test]
fn a_writer_goes_on_when_nobody_else_can_report() -> Result<()> {
    let scenario = Scenario::new(
        "one host is lost, another node has lost its data, and the writer's PostgreSQL is killed: \
         the writer has every commit, so it writes again, and what is lost is copied from it",
    );
    let mut cluster = Cluster::of(3).start()?;
    let old = cluster.wait_healthy()?.writer.unwrap_or_default();
    let workload = cluster.workload(patient(), &[&old]);
    flows(&cluster, &workload)?;
    let [away, empty] = &cluster.others(&old)[..] else { anyhow::bail!("three nodes") };
    let (away, empty) = (away.clone(), empty.clone());
    scenario.step(format!("{away} is lost, {empty} loses its data, the PostgreSQL of {old} dies"));
    cluster.host_gone(&away)?;
    cluster.kill_quorate(&empty)?;
    let data = cluster.node(&empty)?.data_dir();
    cluster.wait_until(quorate_e2e::limits::RECOVER, "nothing runs on the data", || {
        quorate_e2e::process::postmaster(&data).is_err().then_some(())
    })?;
    std::fs::remove_dir_all(&data)?;
    cluster.kill_postmaster(&old)?;
    cluster.restart(&empty)?;
    flows(&cluster, &workload)?;
    anyhow::ensure!(cluster.wait_writer()? == old, "nobody else has anything");
    scenario.step(format!("{old} writes again, with a new copy on {empty}; {away} returns"));
    cluster.restart(&away)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn consensus_leader_killed() -> Result<()> {
    let scenario = Scenario::new(
        "the leader of consensus, which is not the writer, is killed: writes go on, and the next \
         failover works without it",
    );
    let mut cluster = Cluster::of(3).start()?;
    let leader = cluster.wait_healthy()?.leader.unwrap_or_default();
    if cluster.writer().as_deref() == Some(&leader) {
        let target = cluster.others(&leader).swap_remove(0);
        scenario.step(format!("handing over to {target}, so that the leader {leader} only leads"));
        cluster.command_until_done(&leader, &["switchover", "--to", &target])?;
    }
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let leader = cluster.wait_healthy()?.leader.unwrap_or_default();
    anyhow::ensure!(leader != writer, "the leadership moved to the writer {writer}");
    scenario.step(format!("killing {leader}; {writer} writes"));
    cluster.host_gone(&leader)?;
    cluster.wait_until(quorate_e2e::limits::RECOVER, "another node leads", || {
        cluster.status()?.leader.filter(|l| *l != leader)
    })?;
    flows(&cluster, &workload)?;
    anyhow::ensure!(cluster.wait_writer()? == writer, "the writer moved for no reason");
    cluster.restart(&leader)?;
    settle(&scenario, &cluster, workload)
}
