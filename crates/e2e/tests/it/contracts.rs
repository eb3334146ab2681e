//! Replicas that are later than their contracts allow: who notices, what happens to their reads, who is
//! told, and how it ends.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::workload::{Login, sql_through};
use quorate_e2e::{Cluster, Scenario, limits, local};
use serde_json::Value;
use tokio_postgres::{AsyncMessage, SimpleQueryMessage};

use crate::common::{ask, flows, patient, settle, wait_alert, wait_pending};

fn apply(cluster: &Cluster, document: &str) -> Result<()> {
    let writer = cluster.wait_writer()?;
    cluster.apply(&writer, document).or_else(|e| cluster.explain(e)).map(drop)
}

/// A member as a node sees it.
fn member(cluster: &Cluster, seen_by: &str, name: &str) -> Option<Value> {
    Some(ask(cluster, seen_by, "/api/status")?["nodes"][name].clone())
}

fn is_broken(member: &Value) -> bool {
    member["lag"]["broken_ms"].is_u64()
}

/// Where each of some reads ran, by the address of the server that answered them; and what the client
/// was warned of.
struct Reads {
    hosts: BTreeSet<String>,
    warnings: Vec<String>,
}

/// Reads the name that each server was given.
fn read(
    login: &Login,
    gateway: std::net::SocketAddr,
    settings: &[&str],
    times: usize,
) -> Result<Reads> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut config = login.config();
        config.host(gateway.ip().to_string()).port(gateway.port());
        let (client, mut connection) = config.connect(tokio_postgres::NoTls).await?;
        let (notices, mut told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) =
                std::future::poll_fn(|cx| connection.poll_message(cx)).await
            {
                if let AsyncMessage::Notice(notice) = message {
                    let _ = notices.send(format!("{} {}", notice.code().code(), notice.message()));
                }
            }
        });
        for setting in settings {
            client.batch_execute(setting).await?;
        }
        let mut hosts = BTreeSet::new();
        for _ in 0..times {
            for message in client.simple_query("SELECT dir FROM host").await? {
                if let SimpleQueryMessage::Row(row) = message {
                    hosts.insert(row.get(0).unwrap_or_default().to_owned());
                }
            }
        }
        let mut warnings = Vec::new();
        while let Ok(warning) = told.try_recv() {
            warnings.push(warning);
        }
        anyhow::Ok(Reads { hosts, warnings })
    })
}

/// A view that tells which server answers; its function is none that the classifier knows to write.
const HOST: &str = "CREATE VIEW host AS SELECT current_setting('data_directory') AS dir";

fn ran_on(reads: &Reads, node: &str) -> bool {
    reads.hosts.iter().any(|dir| dir.contains(&format!("/{node}/")))
}

#[test]
fn a_late_replica_gets_no_reads_and_gets_them_back() -> Result<()> {
    let scenario = Scenario::new(
        "replay stands still on one of two replicas: its contract breaks, reads go to the other one, \
         the alert fires and says why; replay goes on, and all of it ends by itself",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&writer);
    let (late, good) = (others[0].as_str(), others[1].as_str());
    apply(
        &cluster,
        &format!(
            "[nodes.{late}.contract]\nmax_lag_ms = 600\nrecover_ms = 1000\nowner = \"shop\"\n"
        ),
    )?;
    let gateway = cluster.node(&writer)?.gateway();
    sql_through(cluster.login(), gateway, HOST)?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let settings = ["SET quorate.consistency = eventual", "SET quorate.read_from = replica"];
    cluster.wait_until(limits::RECOVER, "both replicas serve", || {
        let reads = read(cluster.login(), gateway, &settings, 20).ok()?;
        (ran_on(&reads, late) && ran_on(&reads, good)).then_some(())
    })?;

    let socket = cluster.node(late)?.socket_dir();
    local::query(&socket, "SELECT pg_wal_replay_pause()")?;
    let paused = Instant::now();
    let told = cluster.wait_until(limits::RECOVER, "the contract is broken", || {
        member(&cluster, good, late).filter(is_broken)
    })?;
    let broken = paused.elapsed();
    ensure!(told["lag"]["replay_ms"].as_u64() > Some(600), "broken before its time: {told}");
    let reads = read(cluster.login(), gateway, &settings, 50)?;
    ensure!(!ran_on(&reads, late) && ran_on(&reads, good), "reads went to {:?}", reads.hosts);
    scenario.step(format!("broken {broken:?} after replay stood still; reads go to {good}"));
    wait_alert(&cluster, good, &format!("lag-over-contract/{late}"), true)?;
    let told = member(&cluster, &writer, late).context("no status")?;
    let evidence = told["late_because"]["evidence"].as_str().unwrap_or_default().to_owned();
    ensure!(told["late_because"]["kind"] == "paused", "because {}", told["late_because"]);
    scenario.step(format!("the alert fires; {evidence}"));

    local::resume_replay(&socket)?;
    cluster.wait_until(limits::RECOVER, "the contract is kept", || {
        (!is_broken(&member(&cluster, good, late)?)).then_some(())
    })?;
    wait_alert(&cluster, good, &format!("lag-over-contract/{late}"), false)?;
    cluster.wait_until(limits::RECOVER, "both replicas serve again", || {
        let reads = read(cluster.login(), gateway, &settings, 20).ok()?;
        ran_on(&reads, late).then_some(())
    })?;
    let events = ask(&cluster, &writer, "/api/events").unwrap_or_default();
    let kinds: Vec<&str> =
        events.as_array().into_iter().flatten().filter_map(|e| e["kind"].as_str()).collect();
    ensure!(kinds.contains(&"alert-firing") && kinds.contains(&"alert-resolved"), "{kinds:?}");
    scenario.step("kept again: reads are back, the alert is over");
    settle(&scenario, &cluster, workload)
}

#[test]
fn readers_of_a_late_report_copy_are_warned() -> Result<()> {
    let scenario = Scenario::new(
        "a copy of role reporting serves only who asks for that role; while it is later than agreed \
         its readers are told, and go on",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let report = cluster.others(&writer).swap_remove(0);
    apply(
        &cluster,
        &format!(
            "[nodes.{report}]\nrole = \"reporting\"\n[nodes.{report}.contract]\nmax_lag_ms = 2000\n"
        ),
    )?;
    let gateway = cluster.node(&writer)?.gateway();
    sql_through(cluster.login(), gateway, HOST)?;
    let socket = cluster.node(&report)?.socket_dir();
    cluster.wait_until(limits::RECOVER, "the role's settings are in force", || {
        let delay = local::one(&socket, "SHOW max_standby_streaming_delay").ok()?;
        (delay == "10min").then_some(())
    })?;
    cluster.wait_until(limits::RECOVER, "its copy counts for no commit", || {
        (!cluster.status()?.cohort().contains(&report)).then_some(())
    })?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let ordinary = ["SET quorate.consistency = eventual", "SET quorate.read_from = replica"];
    let reporting = ["SET quorate.consistency = eventual", "SET quorate.read_from = reporting"];
    cluster.wait_until(limits::RECOVER, "copies of both kinds serve", || {
        read(cluster.login(), gateway, &ordinary, 1).ok()?;
        read(cluster.login(), gateway, &reporting, 1).ok()
    })?;
    let reads = read(cluster.login(), gateway, &ordinary, 50)?;
    ensure!(!ran_on(&reads, &report), "ordinary reads went to {report}");
    let reads = read(cluster.login(), gateway, &reporting, 20)?;
    ensure!(ran_on(&reads, &report) && reads.hosts.len() == 1, "reports ran on {:?}", reads.hosts);
    ensure!(reads.warnings.is_empty(), "warned of nothing: {:?}", reads.warnings);
    scenario.step(format!("reports run on {report} alone, nothing else does"));

    local::query(&socket, "SELECT pg_wal_replay_pause()")?;
    cluster.wait_until(limits::RECOVER, "the contract is broken", || {
        is_broken(&member(&cluster, &writer, &report)?).then_some(())
    })?;
    let reads = read(cluster.login(), gateway, &reporting, 20)?;
    ensure!(ran_on(&reads, &report), "reports ran on {:?}", reads.hosts);
    let [warning] = &reads.warnings[..] else {
        anyhow::bail!("warned {} times: {:?}", reads.warnings.len(), reads.warnings);
    };
    ensure!(warning.starts_with("01000 what ") && warning.contains("late"), "{warning}");
    scenario.step(format!("its readers hear: {warning}"));
    local::resume_replay(&socket)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn alerts_tell_their_receivers() -> Result<()> {
    let scenario = Scenario::new(
        "a node is lost: whoever is listed is told once that it is down, and once that this is over; \
         who asked for silence is not",
    );
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    let (tx, posts) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(body) = take_post(stream) {
                let _ = tx.send(body);
            }
        }
    });
    let notify = format!("[[notify]]\nname = \"test\"\nurl = \"{url}\"\nleast = \"info\"\n");
    let mut cluster = Cluster::of(3).witness().config(&notify).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let lost = cluster.others(&writer).swap_remove(0);
    let begun = Instant::now();
    cluster.host_gone(&lost)?;
    let next = |rule: &str, status: &str| -> Result<Value> {
        loop {
            let post: Value = posts
                .recv_timeout(limits::RECOVER)
                .with_context(|| format!("nobody was told that {rule} is {status}"))?;
            if post["rule"] == rule && post["status"] == status {
                return Ok(post);
            }
        }
    };
    let told = next("node-down", "firing")?;
    ensure!(told["subject"] == lost.as_str(), "{told}");
    scenario.step(format!("told after {:?}: {}", begun.elapsed(), told["sentence"]));
    cluster.restart(&lost)?;
    let told = next("node-down", "resolved")?;
    ensure!(told["subject"] == lost.as_str(), "{told}");
    cluster.wait_healthy()?;
    scenario.step("told that it is over");

    let silence = ["alerts", "silence", "node-down", "--node", &lost, "--because", "a test"];
    let said = cluster.command(&writer, &silence)?;
    ensure!(said["until"].is_u64(), "{said}");
    cluster.host_gone(&lost)?;
    cluster.wait_until(limits::RECOVER, "the silenced alert is shown", || {
        let told = ask(&cluster, &writer, "/api/alerts")?;
        let alerts = told["alerts"].as_array()?.clone();
        let silenced = |a: &Value| a["rule"] == "node-down" && a["stage"] == "silenced";
        alerts.iter().any(silenced).then_some(())
    })?;
    let heard: Vec<Value> = posts.try_iter().collect();
    ensure!(!heard.iter().any(|p| p["rule"] == "node-down"), "told although silenced: {heard:?}");
    scenario.step("silenced: shown, and nobody is told");
    cluster.restart(&lost)?;
    cluster.wait_healthy()?;
    Ok(())
}

/// The body of one POST, which is answered.
fn take_post(mut stream: std::net::TcpStream) -> Option<Value> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|l| {
                let (name, value) = l.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            if body.len() >= length.unwrap_or(0usize) {
                stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").ok()?;
                return serde_json::from_str(body).ok();
            }
        }
        match stream.read(&mut chunk).ok()? {
            0 => return None,
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

#[test]
fn a_backfill_waits_for_late_copies() -> Result<()> {
    let scenario = Scenario::new(
        "a back-fill is under way when replay stands still on a copy: its reads go elsewhere, the alert \
         fires, the back-fill waits, and goes on to its end when the copy is back",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let late = cluster.others(&writer).swap_remove(0);
    apply(&cluster, &format!("[nodes.{late}.contract]\nmax_lag_ms = 800\nrecover_ms = 500\n"))?;
    let gateway = cluster.node(&writer)?.gateway();
    let rows = 30_000;
    let sql = format!(
        "CREATE TABLE old (id int PRIMARY KEY, a int, b int);
         INSERT INTO old (id, a) SELECT i, i FROM generate_series(1, {rows}) i;
         GRANT SELECT ON old TO PUBLIC"
    );
    sql_through(cluster.login(), gateway, &sql)?;
    let config = cluster.login().config();
    let password = String::from_utf8(config.get_password().unwrap_or_default().to_vec())?;
    let dsn = format!(
        "host=127.0.0.1 port={} user={} dbname={} password={password}",
        gateway.port(),
        config.get_user().unwrap_or_default(),
        config.get_dbname().unwrap_or_default(),
    );
    let fill = "UPDATE old SET b = a * 2 WHERE id IN \
                (SELECT id FROM old WHERE b IS NULL LIMIT :portion)";
    let left = || -> Option<u64> {
        let sql = "SELECT count(*) FROM old WHERE b IS NULL";
        local::one(&cluster.node(&writer).ok()?.socket_dir(), sql).ok()?.parse().ok()
    };
    let socket = cluster.node(&late)?.socket_dir();
    let args = ["backfill", fill, "--dsn", &dsn, "--first", "100", "--most", "200"];
    let done = std::thread::scope(|scope| -> Result<Value> {
        let run = scope.spawn(|| cluster.command(&writer, &args));
        cluster.wait_until(limits::RECOVER, "the back-fill is under way", || {
            left().filter(|left| *left < rows)
        })?;
        local::query(&socket, "SELECT pg_wal_replay_pause()")?;
        wait_alert(&cluster, &writer, &format!("lag-over-contract/{late}"), true)?;
        let before = left().context("no count")?;
        ensure!(before > 0, "it was done before the copy was late");
        std::thread::sleep(Duration::from_secs(2));
        let after = left().context("no count")?;
        ensure!(after == before, "{} rows were written although {late} was late", before - after);
        scenario.step(format!("{late} is late: {before} rows are left, and wait"));
        local::resume_replay(&socket)?;
        run.join().map_err(|_| anyhow::anyhow!("the back-fill panicked"))?
    })
    .or_else(|e| cluster.explain(e))?;
    ensure!(left() == Some(0) && done["rows"] == rows, "{done}");
    ensure!(done["waited_seconds"].as_f64() > Some(2.0), "{done}");
    scenario.step(format!("done: {done}"));
    wait_alert(&cluster, &writer, &format!("lag-over-contract/{late}"), false)?;
    cluster.wait_healthy()?;
    Ok(())
}

/// Something to lose, which may be looked for past the gateway.
const PRECIOUS: &str =
    "CREATE TABLE precious AS SELECT 42 AS answer; GRANT SELECT ON precious TO PUBLIC";

/// Makes a copy that has something precious and replays an hour later from then on: the writer and it.
fn with_delayed_copy(cluster: &Cluster) -> Result<(String, String)> {
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let delayed = cluster.others(&writer).swap_remove(0);
    let socket = cluster.node(&delayed)?.socket_dir();
    sql_through(cluster.login(), cluster.node(&writer)?.gateway(), PRECIOUS)?;
    cluster.wait_until(limits::RECOVER, "the copy has the table", || {
        local::one(&socket, "SELECT answer FROM precious").ok().filter(|a| a == "42")
    })?;
    apply(cluster, &format!("[nodes.{delayed}]\nrole = \"delayed\"\ndelay_ms = 3600000\n"))?;
    cluster.wait_until(limits::RECOVER, "it replays later", || {
        let delay = local::one(&socket, "SHOW recovery_min_apply_delay").ok()?;
        (delay == "1h").then_some(())
    })?;
    Ok((writer, delayed))
}

#[test]
fn a_delayed_copy_still_has_what_was_dropped() -> Result<()> {
    let scenario = Scenario::new(
        "a copy of role delayed: a table is dropped on the writer, the copy still has it, serves \
         nobody, and counts for no commit; without the role it catches up at once",
    );
    let cluster = Cluster::of(3).start()?;
    let (writer, delayed) = with_delayed_copy(&cluster)?;
    let socket = cluster.node(&delayed)?.socket_dir();
    let gateway = cluster.node(&writer)?.gateway();
    sql_through(cluster.login(), gateway, "DROP TABLE precious")?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    ensure!(local::one(&socket, "SELECT answer FROM precious")? == "42", "it is gone here, too");
    let told = cluster.wait_until(limits::RECOVER, "the delay is told as the cause", || {
        member(&cluster, &writer, &delayed).filter(|told| told["late_because"]["kind"] == "delay")
    })?;
    ensure!(!is_broken(&told), "its contract allows the delay");
    scenario.step("dropped on the writer, still there on the delayed copy");
    apply(&cluster, "")?;
    cluster.wait_until(limits::RECOVER, "it caught up", || {
        local::one(&socket, "SELECT count(*) FROM pg_class WHERE relname = 'precious'")
            .ok()
            .filter(|n| n == "0")
    })?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn a_dropped_table_is_taken_from_a_delayed_copy() -> Result<()> {
    let scenario = Scenario::new(
        "a table is dropped; a copy of role delayed is rolled forward to just before, apart from the \
         cluster: it has the table with its last row, and the delayed copy stays what it is",
    );
    let cluster = Cluster::of(3).start()?;
    let (writer, delayed) = with_delayed_copy(&cluster)?;
    let socket = cluster.node(&delayed)?.socket_dir();
    let at_writer = cluster.node(&writer)?.socket_dir();
    let gateway = cluster.node(&writer)?.gateway();
    sql_through(cluster.login(), gateway, "INSERT INTO precious VALUES (43)")?;
    let after = local::one(&at_writer, "SELECT clock_timestamp()")?;
    let xid = local::one(&at_writer, "SELECT max(xmin::text::bigint) FROM precious")?;
    sql_through(cluster.login(), gateway, "DROP TABLE precious")?;
    let end = local::one(&at_writer, "SELECT pg_current_wal_lsn()")?;
    let rows = "SELECT string_agg(answer::text, ',' ORDER BY answer) FROM precious";
    let to = |moment: &str, name: &str| -> Result<(Value, PathBuf)> {
        let into = cluster.dir().join(name);
        let into = into.to_str().context("a path of /tmp is text")?;
        let args = ["delayed", "roll-forward", "--to", moment, "--into", into];
        let told = cluster.command(&delayed, &args)?;
        let socket = told["socket_dir"].as_str().context("no socket")?.into();
        Ok((told, socket))
    };
    for (moment, name, has) in [(&after, "after", "42,43"), (&xid, "xid", "42")] {
        let (told, past) = to(moment, name).or_else(|e| cluster.explain(e))?;
        ensure!(local::one(&past, rows)? == has, "at {moment}: {told}");
        ensure!(told["whole_log"] == false, "at {moment}: {told}");
        let astray = local::query(&past, "CREATE TABLE astray ()").unwrap_err();
        ensure!(format!("{astray:#}").contains("read-only"), "{astray:#}");
        scenario.step(format!("at {moment} there was {has}: {told}"));
    }
    // Nothing of this is seen on the copy, whose replay goes on, later.
    ensure!(local::one(&socket, rows)? == "42", "the copy has replayed");
    ensure!(local::one(&socket, "SELECT pg_get_wal_replay_pause_state()")? == "not paused");
    let refused = to(&after, "after").map(drop).unwrap_err().to_string();
    ensure!(refused.contains("exists already"), "{refused}");
    let refused = to("2020-01-01 00:00:00+00", "early").map(drop).unwrap_err().to_string();
    ensure!(refused.contains("has replayed beyond that"), "{refused}");
    let refused = to("2120-01-01 00:00:00+00", "late").map(drop).unwrap_err().to_string();
    ensure!(refused.contains("still to come"), "{refused}");
    let refused = to("no time", "none").map(drop).unwrap_err().to_string();
    ensure!(refused.contains("reads no time in"), "{refused}");
    // Without a delay there is no past to go to.
    apply(&cluster, "")?;
    cluster.wait_until(limits::RECOVER, "it caught up", || {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        local::one(&socket, &sql).ok().filter(|caught_up| caught_up == "t")
    })?;
    let refused = to(&after, "again").map(drop).unwrap_err().to_string();
    ensure!(refused.contains("is no delayed copy"), "{refused}");
    cluster.check_logs()
}

#[test]
fn the_alerts_of_a_cluster_fire_and_are_over() -> Result<()> {
    let scenario = Scenario::new(
        "the writer is lost, a copy is cut off, the last copies are missed, a voter is missing, \
         automation is paused: each alert fires, and each is over when its cause is",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&writer);
    // No log reaches anybody: commits wait; one is enough again.
    let sides = format!("{writer} | {}", others.join(" | "));
    let only_wal = quorate_e2e::cable::Affected::Only(BTreeSet::from(["wal"]));
    cluster.partition_for(&sides, &only_wal);
    wait_alert(&cluster, &writer, "commits-wait/", true)?;
    wait_alert(&cluster, &writer, &format!("replication-broken/{}", others[0]), true)?;
    cluster.heal();
    wait_alert(&cluster, &writer, "commits-wait/", false)?;
    wait_alert(&cluster, &writer, &format!("replication-broken/{}", others[0]), false)?;
    scenario.step("commits-wait and replication-broken fired, and are over");
    // Three copies are wanted, and two are there.
    apply(&cluster, "copies = 3\n")?;
    cluster.wait_until(limits::RECOVER, "a commit needs three copies", || {
        (cluster.status()?.authority.rules.last()?.policy["copies"] == 3).then_some(())
    })?;
    cluster.host_gone(&others[0])?;
    wait_alert(&cluster, &writer, "cluster-degraded/", true)?;
    wait_alert(&cluster, &writer, &format!("node-down/{}", others[0]), true)?;
    cluster.restart(&others[0])?;
    wait_alert(&cluster, &writer, "cluster-degraded/", false)?;
    wait_alert(&cluster, &writer, &format!("node-down/{}", others[0]), false)?;
    scenario.step("cluster-degraded and node-down fired, and are over");
    // Nobody can be elected while automation is paused.
    cluster.wait_healthy()?;
    apply(&cluster, "")?;
    cluster.command(&writer, &["pause"])?;
    wait_pending(&cluster, "automation-paused/", true)?;
    cluster.kill_quorate(&writer)?;
    wait_alert(&cluster, &others[1], "writer-down/", true)?;
    cluster.command(&others[1], &["resume"])?;
    wait_alert(&cluster, &others[1], "writer-down/", false)?;
    wait_pending(&cluster, "automation-paused/", false)?;
    wait_alert(&cluster, &others[1], "failover-happened/", true)?;
    scenario.step("writer-down fired and is over; failover-happened tells of it");
    cluster.restart(&writer)?;
    cluster.wait_healthy()?;
    Ok(())
}
