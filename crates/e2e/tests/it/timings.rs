//! What each commit timing and level promises, and what it costs when copies are missing.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::cable::Affected;
use quorate_e2e::ledger::Outcome;
use quorate_e2e::workload::{TABLE, Workload, sql_through};
use quorate_e2e::{Cluster, Scenario, check, limits, local};
use serde_json::Value;

use crate::common::{flows, patient, settle};

fn wal_only() -> Affected {
    Affected::Only(BTreeSet::from(["wal"]))
}

fn apply(cluster: &Cluster, document: &str) -> Result<()> {
    let writer = cluster.wait_writer()?;
    cluster.apply(&writer, document).or_else(|e| cluster.explain(e)).map(drop)
}

/// Waits until the only rule in force is one whose policy reads so.
fn wait_policy(cluster: &Cluster, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    cluster.wait_until(limits::RECOVER, &format!("the commit rule is {what}"), || {
        let status = cluster.status()?;
        let [rule] = &status.authority.rules[..] else { return None };
        wanted(&rule.policy).then_some(())
    })
}

fn writer_only(policy: &Value) -> bool {
    policy == "writer_only"
}

/// Waits until the workload's only client got no acknowledgement of a statement it sent.
fn wait_blocked(cluster: &Cluster, workload: &Workload) -> Result<()> {
    cluster.wait_until(limits::RECOVER, "a write hangs", || {
        let ledger = workload.snapshot();
        let last = ledger.attempts.last()?;
        matches!(last.outcome, Outcome::Unknown(_)).then_some(())
    })
}

#[test]
fn semi_sync_goes_on_alone_and_returns() -> Result<()> {
    let scenario = Scenario::new(
        "semi_sync: without any standby commits wait for the timeout, go on with the writer's copy \
         once consensus has recorded it, and need a copy again when one is back",
    );
    let cluster = Cluster::of(3).start()?;
    apply(&cluster, "timing = \"semi_sync\"\nsemi_sync_timeout_ms = 3000\n")?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let others = cluster.others(&writer).join(" | ");
    cluster.partition_for(&format!("{writer} | {others}"), &wal_only());
    wait_blocked(&cluster, &workload)?;
    scenario.step("no standby receives the log: a write hangs");
    flows(&cluster, &workload)?;
    // The writer's own view: another node may learn a moment later what consensus recorded.
    let status = cluster.status_of(&writer)?;
    let policy = status.authority.rules.last().map(|r| r.policy.clone()).unwrap_or_default();
    ensure!(writer_only(&policy), "writes went on under the rule {policy}");
    scenario.step("consensus recorded the degradation, writes go on");
    cluster.heal();
    wait_policy(&cluster, "two copies again", |p| !writer_only(p))?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn sync_waits_for_the_node_it_names() -> Result<()> {
    let scenario = Scenario::new(
        "sync: while the named node is away no write is acknowledged although another standby has \
         it; when the writer is lost, the named node loses nothing",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&writer);
    let named = others[0].clone();
    apply(&cluster, &format!("timing = \"sync\"\nsync_nodes = [\"{named}\"]\n"))?;
    wait_policy(&cluster, "the named one's", |p| p.get("named").is_some())?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    cluster.host_gone(&named)?;
    wait_blocked(&cluster, &workload)?;
    let before = workload.acks();
    // Longer than any degradation of another timing would take.
    let alone = Instant::now();
    cluster.wait_until(Duration::from_secs(20), "8 s passed", || {
        (alone.elapsed() > Duration::from_secs(8)).then_some(())
    })?;
    ensure!(workload.acks() == before, "acknowledged without {named}");
    scenario.step(format!("{named} is away: nothing was acknowledged"));
    cluster.restart(&named)?;
    flows(&cluster, &workload)?;
    cluster.wait_healthy()?;
    let anywhere = cluster.workload(patient(), &[&named, &others[1]]);
    flows(&cluster, &anywhere)?;
    cluster.host_gone(&writer)?;
    flows(&cluster, &anywhere)?;
    cluster.restart(&writer)?;
    let mut ledger = workload.stop();
    ledger.attempts.extend(anywhere.stop().attempts);
    let judgement = check::all(&cluster, &ledger).or_else(|e| cluster.explain(e))?;
    scenario.step(judgement);
    Ok(())
}

#[test]
fn a_commit_stands_in_two_zones() -> Result<()> {
    let scenario = Scenario::new(
        "copy_zones = 2: without the only standby of the other zone no commit is acknowledged although \
         one of the same zone has it, until consensus has recorded that one zone is enough for now",
    );
    let cluster = Cluster::of(3).zone("n1", "west").zone("n2", "west").zone("n3", "east");
    let cluster = cluster.start()?;
    let in_two = |policy: &Value| policy.get("zones").is_some();
    apply(&cluster, "copy_zones = 2\n")?;
    wait_policy(&cluster, "one of two zones", in_two)?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    let workload = cluster.workload(patient(), &["n1"]);
    flows(&cluster, &workload)?;
    cluster.partition_for("n3 | n1 n2", &wal_only());
    wait_blocked(&cluster, &workload)?;
    scenario.step("n2 has it and n3 has not: a write hangs");
    flows(&cluster, &workload)?;
    let rules = cluster.status_of("n1")?.authority.rules;
    ensure!(rules.last().is_some_and(|r| !in_two(&r.policy)), "writes went on under {rules:?}");
    scenario.step("consensus recorded that one zone is enough, writes go on");
    cluster.heal();
    wait_policy(&cluster, "one of two zones again", in_two)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn a_zone_is_lost() -> Result<()> {
    let scenario = Scenario::new(
        "five nodes in three zones, copy_zones = 2: the zone of the writer is lost at once, with two of \
         the five copies; a node elsewhere writes, with every acknowledged row, and the zone returns",
    );
    let cluster = Cluster::of(5).zone("n1", "west").zone("n2", "west");
    let cluster = cluster.zone("n3", "east").zone("n4", "east").zone("n5", "north");
    let mut cluster = cluster.start()?;
    apply(&cluster, "copy_zones = 2\n")?;
    wait_policy(&cluster, "one of two zones", |policy| policy.get("zones").is_some())?;
    cluster.wait_healthy()?;
    if cluster.writer().as_deref() != Some("n1") {
        cluster.command_until_done("n3", &["switchover", "--to", "n1"])?;
    }
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    let workload = cluster.workload(patient(), &["n3"]);
    flows(&cluster, &workload)?;
    scenario.step("west goes dark");
    cluster.host_gone("n1")?;
    cluster.host_gone("n2")?;
    let writer = cluster.wait_until(limits::RECOVER, "another zone writes", || {
        let writer = cluster.status_of("n3").ok()?.serving().map(str::to_owned)?;
        ["n3", "n4", "n5"].contains(&&*writer).then_some(writer)
    })?;
    scenario.step(format!("{writer} writes"));
    flows(&cluster, &workload)?;
    cluster.restart("n1")?;
    cluster.restart("n2")?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn async_loses_no_more_than_allowed_and_keeps_it() -> Result<()> {
    let scenario = Scenario::new(
        "async: a writer is lost with log that nobody received. More than max_lag_on_failover: no \
         failover until an operator accepts it; then the loss is reported, and the lost log is kept",
    );
    let mut cluster = Cluster::of(3).start()?;
    apply(&cluster, "timing = \"async\"\nmax_lag_on_failover = 100\n")?;
    wait_policy(&cluster, "the writer's copy", writer_only)?;
    let old = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&old);
    cluster.partition_for(&format!("{old} | {}", others.join(" ")), &wal_only());
    let workload = cluster.workload(patient(), &[&old]);
    cluster.wait_until(limits::RECOVER, "100 rows nobody else has are acknowledged", || {
        (workload.acks() >= 100).then_some(())
    })?;
    // The others must have heard how far the log went.
    let ledger = workload.stop();
    let heard = Instant::now();
    cluster.wait_until(limits::RECOVER, "two heartbeats passed", || {
        (heard.elapsed() > Duration::from_millis(600)).then_some(())
    })?;
    cluster.host_gone(&old)?;
    scenario.step(format!("{old} is lost with {} acknowledged rows", ledger.acked().count()));
    let refused =
        cluster.wait_until(limits::RECOVER, "the election says what is missing", || {
            let status = cluster.status()?;
            let told = status.because.sentence.contains("max_lag_on_failover");
            told.then_some(status.because.sentence)
        })?;
    scenario.step(&refused);
    ensure!(cluster.writer().is_none(), "a writer although too much would be lost");
    let answer = cluster
        .command(&others[0], &["failover", "--allow-loss", "100000000"])
        .or_else(|e| cluster.explain(e))?;
    let lost = answer["lost_bytes"].as_u64().unwrap_or_default();
    scenario.step(format!("an operator accepted it: {answer}"));
    ensure!(lost > 0, "no loss was reported: {answer}");
    let after = cluster.workload(patient(), &[&others[0], &others[1]]);
    flows(&cluster, &after)?;
    cluster.restart(&old)?;
    cluster.wait_healthy()?;
    // What was acknowledged before the loss may be there or not: that is what was accepted.
    let mut told = ledger;
    for attempt in &mut told.attempts {
        attempt.outcome = Outcome::Unknown("acknowledged, and perhaps lost".to_owned());
    }
    told.attempts.extend(after.stop().attempts);
    check::judge(&cluster, &told)?.check()?;
    check::copies_equal(&cluster)?;
    let kept = cluster.node(&old)?.dir().join("pg/lost-log");
    let kept: Vec<_> = std::fs::read_dir(&kept)
        .with_context(|| format!("{} is missing", kept.display()))?
        .flatten()
        .collect();
    ensure!(!kept.is_empty(), "the lost log was not kept");
    scenario.step(format!("{lost} bytes were lost, and are kept in {:?}", kept[0].path()));
    Ok(())
}

#[test]
fn applied_means_visible_on_every_copy() -> Result<()> {
    let scenario = Scenario::new(
        "level applied, three copies: whatever was acknowledged is visible on each standby at once",
    );
    let cluster = Cluster::of(3).start()?;
    apply(&cluster, "copies = 3\nlevel = \"applied\"\n")?;
    wait_policy(&cluster, "three copies", |p| p.to_string().contains('3'))?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let home = cluster.node(&writer)?.socket_dir();
    cluster.wait_until(limits::RECOVER, "commits wait for replay", || {
        (local::one(&home, "SHOW synchronous_commit").ok()? == "remote_apply").then_some(())
    })?;
    let gateway = cluster.gateways(&[&writer]).swap_remove(0);
    for id in 1..=50 {
        let sql = format!("INSERT INTO {TABLE} (id, client) VALUES ({id}, 0)");
        sql_through(cluster.login(), gateway.addr, &sql)?;
        for name in cluster.others(&writer) {
            let seen = format!("SELECT count(*) FROM {TABLE} WHERE id = {id}");
            let seen = local::one(&cluster.node(&name)?.socket_dir(), &seen)?;
            ensure!(seen == "1", "{name} does not show row {id} that was acknowledged");
        }
    }
    scenario.step("50 rows were visible everywhere when they were acknowledged");
    apply(&cluster, "level = \"received\"\n")?;
    cluster.wait_until(limits::RECOVER, "commits wait for receipt only", || {
        (local::one(&home, "SHOW synchronous_commit").ok()? == "remote_write").then_some(())
    })?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    cluster.wait_healthy()?;
    let mut ledger = workload.stop();
    ledger.attempts.retain(|a| a.outcome == Outcome::Acked);
    let held: BTreeSet<_> = check::ids(&home)?.into_iter().collect();
    let missing = ledger.attempts.iter().filter(|a| !held.contains(&a.id)).count();
    ensure!(missing == 0, "{missing} acknowledged rows are missing");
    check::copies_equal(&cluster)?;
    cluster.check_logs()
}
