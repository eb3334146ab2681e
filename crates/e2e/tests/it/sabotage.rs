//! The checks are themselves checked: a build that can leave one fence out (cargo feature
//! `sabotage`, named by `QUORATE_SABOTAGE_BIN`) must be caught by the same checks that pass with the
//! fence in place. Each story is run both ways.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_e2e::binary::Binary;
use quorate_e2e::cable::{Affected, Flow, Mode};
use quorate_e2e::ledger::Outcome;
use quorate_e2e::process::signal_all;
use quorate_e2e::workload::{TABLE, sql_through};
use quorate_e2e::{Builder, Cluster, Scenario, check, limits};
use rustix::process::Signal;

use crate::common::{flows, patient};
use crate::rejoin::write_tail;

/// Times that a story with a race in it is told until the missing fence shows.
const TRIES: usize = 5;

/// Tells a story with and without a fence. The story returns how many promises were broken.
fn caught(switch: &str, nodes: &[&str], story: fn(Builder) -> Result<usize>) -> Result<()> {
    let Some(binary) = Binary::find_sabotaged()? else {
        eprintln!("not run: QUORATE_SABOTAGE_BIN names no build with the feature `sabotage`");
        return Ok(());
    };
    let whole = Cluster::of(3).binary(binary);
    let broken = story(whole.clone())?;
    ensure!(broken == 0, "{broken} promises broken although every fence was in place");
    for number in 1..=TRIES {
        let add = |builder: Builder, node: &&str| builder.env(node, "QUORATE_SABOTAGE", switch);
        let broken = story(nodes.iter().fold(whole.clone(), add))?;
        eprintln!("try {number} without the fence {switch}: {broken} promises broken");
        if broken > 0 {
            return Ok(());
        }
    }
    anyhow::bail!("the fence {switch} was left out {TRIES} times, and no check noticed")
}

fn only_wal() -> BTreeSet<&'static str> {
    BTreeSet::from(["wal"])
}

#[test]
fn a_standby_that_breaks_its_promise_is_caught() -> Result<()> {
    caught("promise", &["n3"], promise)
}

/// The old writer n1 is cut off but for the WAL tunnels. n2 and n3 promise a new term; n2 has more
/// log and wins. If n3 goes on feeding from n1 after its promise, n1 goes on acknowledging.
fn promise(builder: Builder) -> Result<usize> {
    let scenario =
        Scenario::new("a promise to a new term ends every acknowledgement to the old one");
    let cluster = builder.start()?;
    ensure!(cluster.wait_writer()? == "n1", "n1 does not write at first");
    cluster.apply("n1", "suspect_after_ms = 300\n\n[nodes.n2]\npriority = 200\n")?;
    cluster.wait_healthy()?;
    let workload = cluster.workload(patient(), &["n1"]);
    flows(&cluster, &workload)?;
    // The WAL reaches n3 late, so that n2 has the better log when both report.
    let late = Mode { there: Flow::Pass, back: Flow::Delay(Duration::from_millis(40)) };
    cluster.partition_for("n1 | n2 n3", &Affected::Except(only_wal()));
    cluster.cable("n3", "n1")?.set_each(late, Affected::Only(only_wal()), Mode::CUT);
    let new = cluster.wait_other_writer("n1")?;
    scenario.step(format!("{new} writes"));
    cluster.heal();
    flows(&cluster, &workload)?;
    cluster.wait_healthy()?;
    let judgement = check::judge(&cluster, &workload.stop())?;
    scenario.step(&judgement);
    Ok(judgement.missing.len())
}

#[test]
fn a_diverged_standby_that_acknowledges_is_caught() -> Result<()> {
    caught("lineage", &["n1", "n2", "n3"], lineage)
}

/// n1 returns with a long tail of its own and is the only standby of the new writer. Unless its
/// lineage is checked, the end of its tail counts as a copy of what the new writer writes. Then the
/// new writer's host is lost for good.
fn lineage(builder: Builder) -> Result<usize> {
    let scenario = Scenario::new("only a copy of the writer's own history counts as a copy");
    let mut cluster = builder.start()?;
    ensure!(cluster.wait_writer()? == "n1", "n1 does not write at first");
    cluster.partition("n1 | n2 n3");
    write_tail(&cluster, "n1")?;
    let new = cluster.wait_other_writer("n1")?;
    let third = if new == "n2" { "n3" } else { "n2" };
    cluster.wait_until(limits::RECOVER, "the third node follows", || {
        cluster.status()?.attached().contains(third).then_some(())
    })?;
    cluster.host_gone(third)?;
    scenario.step(format!("{new} writes, {third} is lost, n1 returns with a tail"));
    cluster.heal();
    let workload = cluster.workload(patient(), &[&new]);
    cluster.wait_until(limits::REJOIN, "20 writes are acknowledged", || {
        (workload.acks() >= 20).then_some(())
    })?;
    cluster.host_gone(&new)?;
    scenario.step(format!("{new} is lost, {third} returns"));
    cluster.restart(third)?;
    cluster.wait_other_writer(&new)?;
    let judgement = check::judge(&cluster, &workload.stop())?;
    scenario.step(&judgement);
    Ok(judgement.missing.len())
}

#[test]
fn a_writer_that_serves_too_early_is_caught() -> Result<()> {
    caught("marker", &["n1"], marker)
}

/// n1 has rows that nobody else has, crashes, and is elected again for its log. If it serves before
/// a commit set holds its log, an application reads rows that the next failover takes away.
fn marker(builder: Builder) -> Result<usize> {
    let scenario = Scenario::new("what an application has read stays read");
    let mut cluster = builder.start()?;
    let before = cluster.wait_healthy()?;
    ensure!(before.writer.as_deref() == Some("n1"), "n1 does not write at first");
    // Neither do the standbys get log, nor can they report before n1 did.
    let receivers = [cluster.walreceiver("n2")?, cluster.walreceiver("n3")?];
    signal_all(&receivers, Signal::STOP);
    cluster.partition_for("n1 | n2 n3", &Affected::Only(only_wal()));
    let workload = cluster.workload(patient(), &["n1"]);
    cluster.wait_until(limits::RECOVER, "a write hangs", || {
        let ledger = workload.snapshot();
        ledger.attempts.iter().any(|a| matches!(a.outcome, Outcome::Unknown(_))).then_some(())
    })?;
    let ledger = workload.stop();
    cluster.kill_postmaster("n1")?;
    cluster.wait_until(limits::RECOVER, "n1 has reported its log", || {
        let status = cluster.status_of("n1").ok()?;
        let word = status.word("n1")?;
        (word.term > before.term && word.report.is_some()).then_some(())
    })?;
    signal_all(&receivers, Signal::CONT);
    let seen = reads(&cluster, Duration::from_secs(6));
    scenario.step(format!("{} rows were read at n1", seen.len()));
    cluster.host_gone("n1")?;
    let new = cluster.wait_other_writer("n1")?;
    let held: BTreeSet<_> = check::ids(&cluster.node(&new)?.socket_dir())?.into_iter().collect();
    let vanished = seen.difference(&held).count();
    scenario.step(format!("{vanished} of them are gone; {} tried", ledger.attempts.len()));
    Ok(vanished)
}

/// What an application can read at n1's gateway within `time`.
fn reads(cluster: &Cluster, time: Duration) -> BTreeSet<i64> {
    let begun = Instant::now();
    let gateway = cluster.gateways(&["n1"]).swap_remove(0);
    while begun.elapsed() < time {
        let sql = format!("SELECT id FROM {TABLE}");
        let Ok(rows) = sql_through(cluster.login(), gateway.addr, &sql) else { continue };
        return rows.iter().filter_map(|r| r.first()?.as_ref()?.parse().ok()).collect();
    }
    BTreeSet::new()
}
