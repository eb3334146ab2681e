//! The checks are themselves checked: a build that can leave one fence out (cargo feature
//! `sabotage`, named by `QUORATE_SABOTAGE_BIN`) must be caught by the same checks that pass with the
//! fence in place. Each story is run both ways.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_e2e::binary::Binary;
use quorate_e2e::cable::{Affected, Flow, Mode};
use quorate_e2e::ledger;
use quorate_e2e::process::signal_all;
use quorate_e2e::wire::{Session, framed};
use quorate_e2e::workload::{TABLE, sql_through};
use quorate_e2e::{Builder, Cluster, Scenario, check, limits, local};
use quorate_history::{Anomaly, History, Moment, Operation, Outcome, Process, Server};
use rustix::process::Signal;

use crate::carried::{programs, untold};
use crate::common::{flows, patient, wait_alert, wait_pending};
use crate::rejoin::cut_off_with_tail;

/// Times that a story with a race in it is told until the missing fence shows.
const TRIES: usize = 5;

/// Commits that wait, and clients that look whether they see them.
const WAITING: usize = 4;
const READERS: usize = 2;

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

/// No fence is left out here: what a node tells of itself is wrong, and each alert that comes of it is
/// over when the node tells the truth.
#[test]
fn a_node_whose_clock_certificate_and_version_are_wrong_is_told_of() -> Result<()> {
    let Some(binary) = Binary::find_sabotaged()? else {
        eprintln!("not run: QUORATE_SABOTAGE_BIN names no build with the feature `sabotage`");
        return Ok(());
    };
    let scenario =
        Scenario::new("a node's clock, certificate, version and what it has seen are wrong");
    let mut cluster =
        Cluster::of(3).binary(binary).env("n3", "QUORATE_SABOTAGE", "vitals").start()?;
    cluster.wait_healthy()?;
    let alerts = ["clock/n3", "certificate-expiry/n3", "two-writers/n3"];
    for alert in alerts {
        wait_alert(&cluster, "n1", alert, true)?;
    }
    wait_pending(&cluster, "version-skew/", true)?;
    scenario.step("all fire");
    cluster.kill_quorate("n3")?;
    cluster.set_env("n3", "QUORATE_SABOTAGE", None)?;
    cluster.restart("n3")?;
    for alert in alerts {
        wait_alert(&cluster, "n1", alert, false)?;
    }
    wait_pending(&cluster, "version-skew/", false)?;
    cluster.wait_healthy()?;
    Ok(())
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
    cut_off_with_tail(&cluster, "n1")?;
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
        ledger
            .attempts
            .iter()
            .any(|a| matches!(a.outcome, ledger::Outcome::Unknown(_)))
            .then_some(())
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

#[test]
fn an_id_that_was_used_again_is_caught() -> Result<()> {
    caught("xid", &["n1", "n2", "n3"], xid)
}

/// Transactions whose COMMITs hang on n1, none of whose log leaves it. When n1 is lost, the next
/// writer gives their ids to other transactions, which commit. Unless ids from there on are known to
/// be somebody else's, the clients are told that theirs are committed.
fn xid(builder: Builder) -> Result<usize> {
    use quorate_history::ambiguous::{self, Action};
    let scenario = Scenario::new("a COMMIT that was cut off gets a true answer");
    let mut cluster = builder.start()?;
    ensure!(cluster.wait_healthy()?.writer.as_deref() == Some("n1"), "n1 does not write at first");
    let door = cluster.gateways(&["n2"]).swap_remove(0).addr;
    sql_through(cluster.login(), door, "CREATE TABLE commits (id bigint NOT NULL)")?;
    let others = cluster.workload(patient(), &["n2", "n3"]);
    flows(&cluster, &others)?;
    cluster.partition_for("n1 | n2 n3", &Affected::Only(only_wal()));
    let mut sessions = Vec::new();
    for id in 1..=4 {
        let mut session = Session::open(door, cluster.login())?;
        session.simple("BEGIN")?.ok()?;
        session.simple(&format!("INSERT INTO commits VALUES ({id})"))?.ok()?;
        session.simple("SELECT 1")?.ok()?;
        session.send_bytes(&framed(b'Q', b"COMMIT\0"))?;
        sessions.push((id, session));
    }
    let socket = cluster.node("n1")?.socket_dir();
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'SyncRep'";
    cluster.wait_until(limits::RECOVER, "the COMMITs wait for copies", || {
        (local::one(&socket, waiting).ok()? == "4").then_some(())
    })?;
    cluster.host_gone("n1")?;
    let new = cluster.wait_other_writer("n1")?;
    scenario.step(format!("{new} writes"));
    let mut history = History::default();
    for (id, mut session) in sessions {
        let (outcome, note) = match session.answer() {
            Ok(answer) if answer.tags() == ["COMMIT"] => (Outcome::Ok, String::new()),
            Ok(answer) if answer.code() == "40001" => (Outcome::Failed, answer.to_string()),
            Ok(answer) => (Outcome::Unknown, answer.to_string()),
            Err(error) => (Outcome::Unknown, format!("{error:#}")),
        };
        scenario.step(format!("COMMIT {id}: {outcome:?} {note}"));
        let action = Action::Transaction { id, at_commit: true };
        history.operations.push(operation(id as u64, outcome, action, note));
    }
    flows(&cluster, &others)?;
    drop(others);
    let rows = sql_through(cluster.login(), door, "SELECT id FROM commits")?;
    let held = rows.iter().filter_map(|row| row.first()?.as_ref()?.parse().ok()).collect();
    history.operations.push(operation(9, Outcome::Ok, Action::All(held), String::new()));
    let report = ambiguous::check(&history);
    scenario.step(&report);
    Ok(report.broken.get(&Anomaly::WrongAnswer).map_or(0, |found| found.count))
}

#[test]
fn a_response_that_nobody_asked_the_gate_for_is_caught() -> Result<()> {
    caught("gate", &["n1"], gate)
}

/// n1's `quorate` is frozen, and another node writes. What n1's clients ask meanwhile is there when
/// it thaws, cut off from the others; its server answers. Unless the gate is asked then, strong
/// reads miss what the other writer acknowledged.
fn gate(builder: Builder) -> Result<usize> {
    use quorate_history::register::{self, Action, Level, Promise};
    let scenario = Scenario::new("a strong read shows what was acknowledged to anybody before");
    let cluster = builder.start()?;
    ensure!(cluster.wait_healthy()?.writer.as_deref() == Some("n1"), "n1 does not write at first");
    let old = cluster.gateways(&["n1"]).swap_remove(0).addr;
    sql_through(
        cluster.login(),
        old,
        "CREATE TABLE kv (k int, v int); INSERT INTO kv VALUES (1, 1)",
    )?;
    const READ: &str = "SELECT v FROM kv WHERE k = 1";
    let mut sessions = Vec::new();
    for _ in 0..6 {
        let mut session = Session::open(old, cluster.login())?;
        session.simple("SET quorate.consistency = 'strong'")?.ok()?;
        ensure!(session.value(READ)? == "1", "the first value is missing");
        sessions.push(session);
    }
    cluster.signal_quorate("n1", Signal::STOP)?;
    let new = cluster.wait_other_writer("n1")?;
    let door = cluster.gateways(&[&new]).swap_remove(0).addr;
    sql_through(cluster.login(), door, "UPDATE kv SET v = 2 WHERE k = 1")?;
    scenario.step(format!("{new} writes"));
    cluster.partition("n1 | n2 n3");
    for session in &mut sessions {
        session.send_bytes(&framed(b'Q', &[READ.as_bytes(), &[0]].concat()))?;
    }
    cluster.signal_quorate("n1", Signal::CONT)?;
    let write = |value| {
        operation(value as u64, Outcome::Ok, Action::Write { key: 1, value }, String::new())
    };
    let mut history = History { operations: vec![write(1), write(2)], faults: Vec::new() };
    // Those that are held get their answer from the new writer.
    let healing = std::thread::scope(|scope| {
        let heal = scope.spawn(|| {
            let gave_up = cluster.wait_until(limits::RECOVER, "n1 writes no more", || {
                (cluster.status_of("n1").ok()?.doing("n1") != "writing").then_some(())
            });
            cluster.heal();
            gave_up
        });
        for (i, session) in sessions.iter_mut().enumerate() {
            let Ok(answer) = session.answer() else { continue };
            scenario.step(format!("read {i}: {answer}"));
            let Some(value) = answer.value().and_then(|v| v.parse().ok()) else { continue };
            let by = Server { node: "n1".to_owned(), replica: false };
            let action = Action::Read { values: [(1, value)].into(), by };
            history.operations.push(operation(10 + i as u64, Outcome::Ok, action, String::new()));
        }
        heal.join()
    });
    healing.map_err(|_| anyhow::anyhow!("the network was not mended"))??;
    let report = register::check(&history, Promise { level: Level::Strong, staleness_ms: 0 });
    scenario.step(&report);
    Ok(report.broken.get(&Anomaly::StaleRead).map_or(0, |found| found.count))
}

#[test]
fn what_a_dead_postmasters_backends_show_is_caught() -> Result<()> {
    caught("lifeline", &["n1"], lifeline)
}

/// Commits on n1 wait for copies when its postmaster is killed: its backends stop waiting, and for a
/// moment the rows are visible to others that still live. No copy has them, so nobody may see them.
fn lifeline(builder: Builder) -> Result<usize> {
    let scenario = Scenario::new("a commit that no copy holds is shown to nobody");
    let cluster = builder.start()?;
    ensure!(cluster.wait_healthy()?.writer.as_deref() == Some("n1"), "n1 does not write at first");
    let door = cluster.gateways(&["n1"]).swap_remove(0).addr;
    sql_through(cluster.login(), door, "CREATE TABLE waiting (id int)")?;
    // It never waits, so that its backend does not look whether the postmaster lives.
    let look = "CREATE FUNCTION look() RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE n bigint; \
                BEGIN LOOP SELECT count(*) INTO n FROM waiting; EXIT WHEN n > 0; END LOOP; \
                RETURN n; END $$";
    sql_through(cluster.login(), door, look)?;
    // n1 must not win the election with the log that only it has.
    cluster.partition_for("n1 | n2 n3", &Affected::Only(only_wal()));
    let mut writers = Vec::new();
    for id in 0..WAITING {
        let mut session = Session::open(door, cluster.login())?;
        let insert = format!("INSERT INTO waiting VALUES ({id})");
        session.send_bytes(&framed(b'Q', &[insert.as_bytes(), &[0]].concat()))?;
        writers.push(session);
    }
    let home = cluster.node("n1")?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    cluster.wait_until(limits::RECOVER, "the commits wait for copies", || {
        (local::one(&home.socket_dir(), waiting).ok()? == WAITING.to_string()).then_some(())
    })?;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut session = Session::open(door, cluster.login())?;
        session.send_bytes(&framed(b'Q', b"SELECT look()\0"))?;
        readers.push(session);
    }
    let looking = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT look()' \
                   AND state = 'active'";
    cluster.wait_until(limits::RECOVER, "clients look", || {
        (local::one(&home.socket_dir(), looking).ok()? == READERS.to_string()).then_some(())
    })?;
    cluster.kill_postmaster("n1")?;
    let shown = readers
        .iter_mut()
        .filter_map(|reader| reader.answer().ok()?.value())
        .inspect(|value| scenario.step(format!("shown: {value}")))
        .count();
    let new = cluster.wait_other_writer("n1")?;
    cluster.heal();
    let door = cluster.gateways(&[&new]).swap_remove(0).addr;
    let left = sql_through(cluster.login(), door, "SELECT id FROM waiting")?;
    scenario.step(format!("{shown} of {READERS} were shown rows; {} are there", left.len()));
    ensure!(left.is_empty(), "their log left n1, which was to be cut off");
    Ok(shown)
}

/// An operation; each is after the one before it by its number.
fn operation<A>(number: u64, outcome: Outcome, action: A, note: String) -> Operation<A> {
    Operation {
        process: Process(number),
        invoked: Moment(number * 10),
        completed: Moment(number * 10 + 5),
        outcome,
        action,
        note,
    }
}

#[test]
fn a_slot_that_is_carried_is_gone_on_with_when_it_is_ready() -> Result<()> {
    match programs(&Scenario::new("a new writer takes every slot that it carried for ready"))? {
        Some(_) => caught("carry", &["n1", "n2", "n3"], untold),
        None => Ok(()),
    }
}
