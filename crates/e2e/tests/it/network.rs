//! Partitions between nodes; applications reach every side.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_e2e::{Cluster, Scenario, check};

use crate::common::{flows, patient, settle, writer_is_replaced};

#[test]
fn minority_writer_acknowledges_nothing() -> Result<()> {
    let scenario = Scenario::new(
        "the writer is cut off from both others, and applications still reach it: its old sessions \
         get no acknowledgement once the others have a writer, and nothing acknowledged is lost",
    );
    let cluster = Cluster::of(3).start()?;
    let old = cluster.wait_writer()?;
    let others = cluster.others(&old);
    let inside = cluster.workload(patient(), &[&old]);
    let outside = cluster.workload(patient(), &[&others[0], &others[1]]);
    flows(&cluster, &inside)?;
    flows(&cluster, &outside)?;
    cluster.partition(&format!("{old} | {}", others.join(" ")));
    scenario.step(format!("{old} is cut off"));
    let new = cluster.wait_other_writer(&old)?;
    let moved = Instant::now();
    scenario.step(format!("{new} writes"));
    flows(&cluster, &outside)?;
    // Long enough for every session of the minority to have tried.
    let tries = inside.snapshot().attempts.len() as u64 + inside.snapshot().failed_logins;
    cluster.wait_until(Duration::from_secs(30), "the minority's clients tried in vain", || {
        let ledger = inside.snapshot();
        (ledger.attempts.len() as u64 + ledger.failed_logins >= tries + 2).then_some(())
    })?;
    let late = inside.snapshot().acked().filter(|a| a.ended > moved).count();
    ensure!(late == 0, "the minority acknowledged {late} writes after {new} had opened");
    cluster.heal();
    scenario.step("healed");
    flows(&cluster, &inside)?;
    flows(&cluster, &outside)?;
    let mut ledger = inside.stop();
    let more = outside.stop();
    ledger.attempts.extend(more.attempts);
    let judgement = check::all(&cluster, &ledger).or_else(|e| cluster.explain(e))?;
    scenario.step(judgement);
    Ok(())
}

#[test]
fn writer_that_nobody_hears() -> Result<()> {
    writer_is_replaced(
        "the writer hears the others and they do not hear it: another node writes",
        |cluster, writer| {
            cluster.others(writer).iter().try_for_each(|other| cluster.cut_one_way(writer, other))
        },
        |cluster, _| {
            cluster.heal();
            Ok(())
        },
    )
}

#[test]
fn writer_that_hears_nobody() -> Result<()> {
    writer_is_replaced(
        "the others hear the writer and it does not hear them: another node writes",
        |cluster, writer| {
            cluster.others(writer).iter().try_for_each(|other| cluster.cut_one_way(other, writer))
        },
        |cluster, _| {
            cluster.heal();
            Ok(())
        },
    )
}

#[test]
fn one_bad_link_deposes_nobody() -> Result<()> {
    let scenario = Scenario::new(
        "only the link between the writer and one standby is cut: the writer stays, and writes go on \
         with the other standby",
    );
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let before = cluster.wait_healthy()?;
    let writer = before.writer.clone().unwrap_or_default();
    let others = cluster.others(&writer);
    let (far, near) = (&others[0], &others[1]);
    cluster.partition(&format!("{writer} {near} | {near} {far}"));
    scenario.step(format!("{writer} and {far} do not hear each other"));
    cluster.wait_until(Duration::from_secs(20), "the far standby is detached", || {
        (!cluster.status_of(&writer).ok()?.attached().contains(far)).then_some(())
    })?;
    flows(&cluster, &workload)?;
    cluster.heal();
    let after = cluster.wait_healthy()?;
    ensure!(after.term == before.term, "term {} became {}", before.term, after.term);
    settle(&scenario, &cluster, workload)
}

#[test]
fn flapping_standby() -> Result<()> {
    let scenario = Scenario::new(
        "a standby's network flaps: the writer stays, and the standby is whole again afterwards",
    );
    let cluster = Cluster::of(3).start()?;
    // A busy machine alone is to be no reason.
    cluster.apply(&cluster.wait_writer()?, "suspect_after_ms = 4000\n")?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let before = cluster.wait_healthy()?;
    let writer = before.writer.clone().unwrap_or_default();
    let standby = cluster.others(&writer).swap_remove(0);
    cluster.flap(&standby, 5, Duration::from_millis(600));
    let after = cluster.wait_healthy()?;
    ensure!(after.term == before.term, "term {} became {}", before.term, after.term);
    settle(&scenario, &cluster, workload)
}
