//! What a session knows of its own past outlives the writer, and a past that was lost is said to be.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use quorate_e2e::cable::Affected;
use quorate_e2e::wire::Session;
use quorate_e2e::{Cluster, Scenario, limits, local};

const COUNT: &str = "SELECT count(*) FROM seen";

fn session(cluster: &Cluster, through: &str) -> Result<Session> {
    let gateway = cluster.gateways(&[through]).swap_remove(0);
    let mut session = Session::open(gateway.addr, cluster.login())?;
    session.simple("SET quorate.consistency = 'causal'")?.ok()?;
    Ok(session)
}

/// One row more, and the token of whoever has seen it.
fn write(session: &mut Session) -> Result<String> {
    session.simple("INSERT INTO seen VALUES (1)")?.ok()?;
    session.value("SHOW quorate.token")
}

#[test]
fn a_token_is_good_under_every_later_writer() -> Result<()> {
    let scenario = Scenario::new(
        "a token is handed over after the writer's host is lost, and after a switchover back: each \
         session that takes it sees what it stands for",
    );
    let mut cluster = Cluster::of(3).start()?;
    let first = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&first);
    let mut old = session(&cluster, &others[0])?;
    old.simple("CREATE TABLE seen (i int)")?.ok()?;
    let token = write(&mut old)?;
    cluster.host_gone(&first)?;
    let second = cluster.wait_other_writer(&first)?;
    scenario.step(format!("{second} writes after {first}; the token is {token}"));
    for node in &others {
        let mut new = session(&cluster, node)?;
        new.simple(&format!("SET quorate.token = '{token}'"))?.ok()?;
        for _ in 0..50 {
            ensure!(new.value(COUNT)? == "1", "a session through {node} misses the row");
        }
    }
    ensure!(old.value(COUNT)? == "1", "the session that wrote it misses it");
    let token = write(&mut old)?;
    cluster.restart(&first)?;
    cluster.wait_healthy()?;
    cluster.command_until_done(&second, &["switchover", "--to", &first])?;
    cluster.wait_other_writer(&second)?;
    for node in cluster.others("") {
        let mut new = session(&cluster, &node)?;
        new.simple(&format!("SET quorate.token = '{token}'"))?.ok()?;
        for _ in 0..50 {
            ensure!(new.value(COUNT)? == "2", "a session through {node} misses a row");
        }
    }
    Ok(())
}

#[test]
fn a_token_takes_nothing_away() -> Result<()> {
    let scenario = Scenario::new(
        "a session takes a token that is older than its own last write: it still sees that write, \
         although a replica has only what the token stands for",
    );
    let cluster = Cluster::of(2).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let replica = cluster.others(&writer).swap_remove(0);
    let mut writes = session(&cluster, &writer)?;
    writes.simple("CREATE TABLE seen (i int)")?.ok()?;
    let old = write(&mut writes)?;
    let mut reads = session(&cluster, &replica)?;
    reads.simple("SET quorate.read_from = 'replica'")?.ok()?;
    cluster.wait_until(limits::RECOVER, "the replica shows it", || {
        (reads.value(COUNT).ok()? == "1").then_some(())
    })?;
    let socket = cluster.node(&replica)?.socket_dir();
    local::query(&socket, "SELECT pg_catalog.pg_wal_replay_pause()")?;
    let new = write(&mut writes)?;
    scenario.step(format!("{old}, then {new}"));
    writes.simple(&format!("SET quorate.token = '{old}'"))?.ok()?;
    ensure!(writes.value("SHOW quorate.token")? == new, "its token went back");
    ensure!(writes.value(COUNT)? == "2", "the session lost its own write");
    writes.simple("SET quorate.token = ''")?.ok()?;
    ensure!(writes.simple("SHOW quorate.token")?.ok()?.value().is_none_or(|token| token != new));
    Ok(())
}

#[test]
fn a_token_of_a_lost_past_is_refused() -> Result<()> {
    let scenario = Scenario::new(
        "async: a writer is lost with a commit that nobody received. Whoever has its token, and the \
         session that made it, is told, and goes on when it gives it up",
    );
    let mut cluster = Cluster::of(3).start()?;
    let old = cluster.wait_healthy()?.writer.unwrap_or_default();
    let document = "timing = \"async\"\nmax_lag_on_failover = 100000000\n";
    cluster.apply(&old, document).or_else(|e| cluster.explain(e))?;
    cluster.wait_until(limits::RECOVER, "the writer's copy is enough", || {
        let status = cluster.status()?;
        let [rule] = &status.authority.rules[..] else { return None };
        (rule.policy == "writer_only").then_some(())
    })?;
    cluster.wait_healthy()?;
    let others = cluster.others(&old);
    let mut writes = session(&cluster, &others[0])?;
    writes.simple("CREATE TABLE seen (i int)")?.ok()?;
    let kept = write(&mut writes)?;
    // Its copies have got that much.
    let mut reads = session(&cluster, &others[1])?;
    cluster.wait_until(limits::RECOVER, "a replica shows it", || {
        reads.simple("SET quorate.read_from = 'replica'").ok()?.ok().ok()?;
        (reads.value(COUNT).ok()? == "1").then_some(())
    })?;
    let wal = Affected::Only(BTreeSet::from(["wal"]));
    cluster.partition_for(&format!("{old} | {}", others.join(" ")), &wal);
    let lost = write(&mut writes)?;
    cluster.host_gone(&old)?;
    let new = cluster.wait_other_writer(&old)?;
    scenario.step(format!("{new} writes without what {old} acknowledged last; token {lost}"));
    let mut other = session(&cluster, &others[1])?;
    other.simple(&format!("SET quorate.token = '{lost}'"))?.ok()?;
    for session in [&mut writes, &mut other] {
        let answer = session.simple(COUNT)?;
        ensure!(answer.code() == "QR010", "a lost past was answered with {answer}");
        session.simple("SET quorate.token = ''")?.ok()?;
        let value = session.value(COUNT).context("after it was given up")?;
        ensure!(value == "1", "{value} rows");
    }
    other.simple(&format!("SET quorate.token = '{kept}'"))?.ok()?;
    ensure!(other.value(COUNT)? == "1", "a token of what was kept is no good");
    Ok(())
}
