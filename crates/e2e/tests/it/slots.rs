//! Replication slots: budgets are kept before a disk fills, nobody's slot is dropped unasked, and a
//! stream that broke is told. The disk of the log: writes stop before the server does.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::Session;
use quorate_e2e::{Cluster, Scenario, limits, local, postgres};
use serde_json::Value;

use crate::common::{flows, patient, settle, wait_alert};

/// Long enough for Quorate to look at its slots many times.
const LOOKS: Duration = Duration::from_secs(15);
/// What a program may take that ends by itself.
const TOOL_WAIT: Duration = Duration::from_secs(20);

/// A superuser's session through a node's gateway.
pub(crate) fn session(cluster: &Cluster, node: &str) -> Result<Session> {
    Session::open(cluster.gateways(&[node])[0].addr, cluster.login())
}

/// Writes so many megabytes of log.
fn pile_up(session: &mut Session, megabytes: u32) -> Result<()> {
    for _ in 0..megabytes {
        session.value("SELECT pg_logical_emit_message(false, 'pile', repeat('x', 1000000))")?;
    }
    Ok(())
}

fn logical(session: &mut Session, name: &str) -> Result<String> {
    session.value(&format!("SELECT pg_create_logical_replication_slot('{name}', 'test_decoding')"))
}

fn physical(session: &mut Session, name: &str) -> Result<String> {
    session.value(&format!("SELECT pg_create_physical_replication_slot('{name}', true)"))
}

/// Adopts a slot, with a budget of 32 megabytes.
fn adopt(cluster: &Cluster, node: &str, name: &str, policy: &str) -> Result<Value> {
    let whose = ["--owner", "data team", "--consumer", "the warehouse"];
    let what = ["slots", "adopt", name, "--max-bytes", "32MB", "--drop", policy];
    cluster.command_until_done(node, &[&what[..], &whose].concat())
}

/// The names of a server's slots.
pub(crate) fn slots(cluster: &Cluster, node: &str) -> Result<String> {
    let sql = "SELECT coalesce(string_agg(slot_name, ' ' ORDER BY slot_name), '') \
               FROM pg_replication_slots";
    local::one(&cluster.node(node)?.socket_dir(), sql)
}

/// The slots as Quorate tells of them.
fn standing(cluster: &Cluster, node: &str, name: &str) -> Result<Value> {
    let report = cluster.command(node, &["slots"])?;
    let all = report["slots"].as_array().context("no list of slots")?;
    Ok(all.iter().find(|s| s["slot"]["name"] == name).cloned().unwrap_or_default())
}

/// Sentences of events of one kind.
pub(crate) fn events(cluster: &Cluster, node: &str, kind: &str) -> Result<Vec<String>> {
    let mut socket = UnixStream::connect(cluster.node(node)?.dir().join("control.sock"))?;
    socket.set_read_timeout(Some(limits::RECOVER))?;
    write!(socket, "GET /api/events HTTP/1.1\r\nHost: quorate\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("no body")?.1;
    let all: Vec<Value> = serde_json::from_str(body).with_context(|| answer.clone())?;
    let of_kind = all.iter().filter(|e| e["kind"] == kind);
    Ok(of_kind.filter_map(|e| Some(e["because"]["sentence"].as_str()?.to_owned())).collect())
}

fn warnings(cluster: &Cluster, node: &str) -> Result<String> {
    let status = cluster.command(node, &["status"])?;
    Ok(status["warnings"].to_string())
}

#[test]
fn a_slot_over_its_budget_is_dropped_and_nothing_else() -> Result<()> {
    let scenario = Scenario::new(
        "slots pile up log: one of policy auto is dropped when it is over its budget, others stay, \
         and its owner is told",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_writer()?;
    let other = cluster.others(&writer).swap_remove(0);
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let mut session = session(&cluster, &writer)?;
    logical(&mut session, "cdc")?;
    logical(&mut session, "kept")?;
    physical(&mut session, "stray")?;
    adopt(&cluster, &writer, "cdc", "auto")?;
    // Through another node, as a person at any host would.
    adopt(&cluster, &other, "kept", "never")?;
    pile_up(&mut session, 16)?;
    cluster.wait_until(LOOKS, "what it keeps is told", || {
        let cdc = standing(&cluster, &other, "cdc").ok()?;
        (cdc["retained"].as_u64()? > 16_000_000 && cdc["level"] == "fine").then_some(())
    })?;
    ensure!(slots(&cluster, &writer)? == "cdc kept stray");
    pile_up(&mut session, 24)?;
    cluster.wait_until(limits::RECOVER, "it is dropped", || {
        (slots(&cluster, &writer).ok()? == "kept stray").then_some(())
    })?;
    let told = cluster.wait_until(limits::RECOVER, "it is told", || {
        events(&cluster, &other, "slot-dropped").ok().filter(|told| !told.is_empty())
    })?;
    scenario.step(&told[0]);
    ensure!(told.len() == 1, "{told:?}");
    for part in ["slot cdc", "the warehouse (data team)", "quorate slots ack"] {
        ensure!(told[0].contains(part), "{part} is missing: {told:?}");
    }
    pile_up(&mut session, 24)?;
    std::thread::sleep(LOOKS);
    ensure!(slots(&cluster, &writer)? == "kept stray", "more than the one was dropped");
    let kept = standing(&cluster, &writer, "kept")?;
    ensure!(kept["level"] == "over" && kept["next"] == "page", "{kept}");
    wait_alert(&cluster, &other, "slot-over-budget/kept", true)?;
    wait_alert(&cluster, &other, "slot-unknown/stray", true)?;
    wait_alert(&cluster, &other, "slot-gap/cdc", true)?;
    let warned = warnings(&cluster, &other)?;
    ensure!(warned.contains("slot stray") && warned.contains("slot kept"), "{warned}");
    cluster.command(&other, &["slots", "ack", "cdc"])?;
    cluster.wait_until(limits::RECOVER, "nobody is warned of it any more", || {
        (!warnings(&cluster, &writer).ok()?.contains("slot cdc")).then_some(())
    })?;
    wait_alert(&cluster, &other, "slot-gap/cdc", false)?;
    cluster.command(&other, &["slots", "drop", "kept", "--yes"])?;
    wait_alert(&cluster, &other, "slot-over-budget/kept", false)?;
    cluster.command(&other, &["slots", "drop", "stray", "--yes"])?;
    wait_alert(&cluster, &other, "slot-unknown/stray", false)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn a_person_decides_where_the_policy_says_so() -> Result<()> {
    let scenario = Scenario::new(
        "a slot of policy approval is over its budget, and one is unknown: both wait for a person",
    );
    let cluster = Cluster::of(2).start()?;
    let writer = cluster.wait_writer()?;
    let other = cluster.others(&writer).swap_remove(0);
    let mut session = session(&cluster, &writer)?;
    physical(&mut session, "archive")?;
    physical(&mut session, "stray")?;
    adopt(&cluster, &writer, "archive", "approval")?;
    // Near its budget first.
    pile_up(&mut session, 27)?;
    wait_alert(&cluster, &other, "slot-near-budget/archive", true)?;
    pile_up(&mut session, 13)?;
    wait_alert(&cluster, &other, "slot-near-budget/archive", false)?;
    let waiting = cluster.wait_until(limits::RECOVER, "it waits for a person", || {
        let archive = standing(&cluster, &other, "archive").ok()?;
        (archive["next"] == "approve").then_some(archive)
    })?;
    scenario.step(&waiting["because"]["sentence"]);
    let stray = standing(&cluster, &other, "stray")?;
    ensure!(stray["level"] == "unknown" && stray["spec"].is_null(), "{stray}");
    std::thread::sleep(LOOKS);
    ensure!(slots(&cluster, &writer)? == "archive stray", "a slot was dropped without a person");
    // Nobody is there to ask: --yes says that somebody has decided.
    ensure!(cluster.command(&other, &["slots", "drop", "archive"]).is_err(), "nobody was asked");
    cluster.command(&other, &["slots", "drop", "archive", "--yes"])?;
    cluster.command(&other, &["slots", "drop", "stray", "--yes"])?;
    ensure!(slots(&cluster, &writer)?.is_empty(), "{}", slots(&cluster, &writer)?);
    let told = cluster.wait_until(limits::RECOVER, "both are told", || {
        events(&cluster, &writer, "slot-dropped").ok().filter(|told| told.len() >= 2)
    })?;
    ensure!(told.len() == 2 && told[1].contains("nobody adopted"), "{told:?}");
    cluster.check_logs()
}

/// Runs a program of PostgreSQL against a node's gateway until it ends, or for a while: what it said.
fn tool(cluster: &Cluster, node: &str, args: &[&str]) -> Result<(bool, String)> {
    let port = cluster.node(node)?.gateway().port().to_string();
    let mut tool = postgres::program("pg_recvlogical")?;
    tool.env("PGPASSWORD", "end-to-end");
    tool.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p", &port]).args(args);
    let file = cluster.dir().join("pg_recvlogical.out");
    let out = std::fs::File::create(&file)?;
    let mut child = tool.stdout(out.try_clone()?).stderr(Stdio::from(out)).spawn()?;
    let ended = cluster.wait_until(TOOL_WAIT, "pg_recvlogical ends", || child.try_wait().ok()?);
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let said = std::fs::read_to_string(&file)?;
    Ok((ended?.success(), said))
}

#[test]
fn a_logical_slot_that_a_failover_lost_is_told_and_does_not_pretend() -> Result<()> {
    let scenario = Scenario::new(
        "the writer of a logical slot is lost: what its consumer lacks is told until somebody \
         acknowledges it, and no new slot of that name goes on as if nothing had happened",
    );
    let mut cluster = Cluster::of(3).start()?;
    let old = cluster.wait_writer()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    adopt(&cluster, &old, "cdc", "approval")?;
    logical(&mut session(&cluster, &old)?, "cdc")?;
    cluster.wait_until(limits::RECOVER, "the cluster knows the slot", || {
        let report = cluster.command(&old, &["slots"]).ok()?;
        (!report["records"]["cdc"].is_null()).then_some(())
    })?;
    // Every node has heard how far its consumer is.
    std::thread::sleep(Duration::from_secs(2));
    cluster.kill_quorate(&old)?;
    let new = cluster.wait_other_writer(&old)?;
    flows(&cluster, &workload)?;
    let told = cluster.wait_until(limits::RECOVER, "the gap is told", || {
        events(&cluster, &new, "slot-lost").ok()?.pop()
    })?;
    scenario.step(&told);
    for part in [&*format!("from {old} to {new}"), "the warehouse (data team)", "confirmed"] {
        ensure!(told.contains(part), "{part} is missing: {told}");
    }
    ensure!(warnings(&cluster, &new)?.contains("slot cdc was lost"), "no warning");
    // A consumer that makes its slot anew does not get by with it.
    let (made, said) = tool(&cluster, &new, &["-S", "cdc", "--create-slot"])?;
    ensure!(made, "{said}");
    let start = ["-S", "cdc", "--start", "-n", "-f", "-"];
    let (_, said) = tool(&cluster, &new, &start)?;
    scenario.step(&said);
    ensure!(said.contains("lacks changes"), "it was read: {said}");
    cluster.command(&new, &["slots", "ack", "cdc"])?;
    let mut session = session(&cluster, &new)?;
    session.simple("CREATE TABLE heard (word text)")?.ok()?;
    session.simple("GRANT SELECT ON heard TO PUBLIC")?.ok()?;
    session.simple("INSERT INTO heard VALUES ('again')")?.ok()?;
    // It ends by itself where the log is now.
    let end = session.value("SELECT pg_current_wal_flush_lsn()")?;
    let to_the_end = [&start[..], &["-E", &end]].concat();
    let heard = cluster.wait_until(limits::RECOVER, "the new slot is read", || {
        let (done, said) = tool(&cluster, &new, &to_the_end).ok()?;
        (done && said.contains("again")).then_some(said)
    });
    heard?;
    // The former writer comes back with the slot it had: that one is a slot of a standby now.
    cluster.restart(&old)?;
    cluster.wait_healthy()?;
    cluster.wait_until(limits::RECOVER, "the old slot is told of", || {
        let report = cluster.command(&new, &["slots", "--node", &old]).ok()?;
        (report["writer"] == false).then_some(())
    })?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn writes_stop_while_the_disk_is_short_and_go_on_by_themselves() -> Result<()> {
    let scenario = Scenario::new(
        "the writer's disk has less room than it should: writes are refused with a reason, reads and \
         ends of transactions go on, room can be made, and writes go on by themselves",
    );
    let cluster = Cluster::of(2).start()?;
    let writer = cluster.wait_writer()?;
    let other = cluster.others(&writer).swap_remove(0);
    let mut before = session(&cluster, &writer)?;
    before.simple("CREATE TABLE t (x int)")?.ok()?;
    // Of those that try until they are refused.
    before.simple("CREATE TABLE tries (x int)")?.ok()?;
    let make = "CREATE FUNCTION put() RETURNS void LANGUAGE sql AS 'INSERT INTO t VALUES (2)'";
    before.simple(make)?.ok()?;
    before.simple("BEGIN")?.ok()?;
    before.simple("INSERT INTO t VALUES (1)")?.ok()?;
    // No disk has that much: each is as good as full. None has room, so that nobody takes over.
    cluster
        .apply(&writer, "[disk]\nwarn_bytes = 1000000000000000\nstop_bytes = 1000000000000000\n")?;
    for node in [&writer, &other] {
        let mut session = session(&cluster, node)?;
        cluster.wait_until(limits::RECOVER, "writes stop", || {
            (session.simple("INSERT INTO tries VALUES (3)").ok()?.code() == "53100").then_some(())
        })?;
        ensure!(session.value("SELECT count(*) FROM t")? == "0", "reads go on");
        // What writes is PostgreSQL's to say.
        ensure!(session.simple("SELECT put()")?.code() == "53100", "a function wrote");
        ensure!(session.simple("CREATE TABLE u ()")?.code() == "53100", "a table was made");
    }
    before.simple("COMMIT")?.ok()?;
    ensure!(before.value("SELECT count(*) FROM t")? == "1", "an open transaction was not ended");
    before.simple("SET quorate.allow_writes_when_full = on")?.ok()?;
    before.simple("TRUNCATE t")?.ok()?;
    before.simple("SET quorate.allow_writes_when_full = off")?.ok()?;
    ensure!(before.simple("INSERT INTO t VALUES (4)")?.code() == "53100", "writes go on");
    let warned = warnings(&cluster, &other)?;
    scenario.step(&warned);
    ensure!(warned.contains("writes stop"), "{warned}");
    let stopped = format!("writes-stopped/{writer}");
    wait_alert(&cluster, &other, &stopped, true)?;
    cluster.apply(&writer, "")?;
    wait_alert(&cluster, &other, &stopped, false)?;
    cluster.wait_until(limits::RECOVER, "writes go on", || {
        before.simple("INSERT INTO t VALUES (5)").ok()?.ok().ok()
    })?;
    // What was set for want of room stays with nobody.
    let read_only = before.value("SHOW default_transaction_read_only")?;
    ensure!(read_only == "off", "{read_only}");
    cluster.check_logs()
}

#[test]
fn a_standby_whose_disk_is_full_suffers_alone() -> Result<()> {
    let scenario = Scenario::new(
        "a standby's disk is full: it alone is lost, writes go on, and with room it is back",
    );
    let place = std::path::Path::new("/tmp").join(format!("quorate-mount-{}", std::process::id()));
    let mounts = Cluster::can_mount(&place);
    let _ = std::fs::remove_dir(&place);
    if !mounts {
        scenario.step("no file system can be mounted here");
        return Ok(());
    }
    // With room for all log that a standby keeps, so that the alert is over afterwards.
    let cluster = Cluster::of(3).disks(1000).start()?;
    let writer = cluster.wait_writer()?;
    let standby = cluster.others(&writer).swap_remove(0);
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let reserve = cluster.node(&standby)?.data_dir().with_extension("reserve");
    cluster.wait_until(limits::RECOVER, "there is a reserve", || reserve.exists().then_some(()))?;
    cluster.fill_disk(&standby)?;
    cluster.wait_until(limits::RECOVER, "the reserve is given back", || {
        (!reserve.exists()).then_some(())
    })?;
    let warned = cluster.wait_until(limits::RECOVER, "people are told", || {
        warnings(&cluster, &writer).ok().filter(|w| w.contains("would be lost alone"))
    })?;
    scenario.step(&warned);
    wait_alert(&cluster, &writer, &format!("disk/{standby}"), true)?;
    flows(&cluster, &workload)?;
    ensure!(cluster.writer().as_deref() == Some(&*writer), "the writer moved");
    cluster.free_disk(&standby)?;
    cluster.wait_until(limits::REJOIN, "there is a reserve again", || {
        reserve.exists().then_some(())
    })?;
    wait_alert(&cluster, &writer, &format!("disk/{standby}"), false)?;
    settle(&scenario, &cluster, workload)
}
