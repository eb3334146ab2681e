//! What applications see of a change of writer through the gateway.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_e2e::cable::Affected;
use quorate_e2e::wire::{Mode, Session, bind, parse, run, sync};
use quorate_e2e::workload::{Gateway, Login, sql_through};
use quorate_e2e::{Cluster, Scenario, limits, local, postgres, process};
use rustix::process::Signal;
use tokio_postgres::{Client, NoTls};

/// COMMITs that are to be cut off; more with `QUORATE_E2E_COMMITS`.
const COMMITS: u64 = 60;
/// Applications that commit all the time.
const CLIENTS: usize = 32;

/// pgbench through one gateway.
struct Bench(Child);

impl Bench {
    fn start(cluster: &Cluster, gateway: &Gateway, args: &[&str]) -> Result<Self> {
        let login = cluster.login();
        let mut command = Command::new(postgres::bin_dir()?.join("pgbench"));
        command.env("PGPASSWORD", &login.password).args(["-h", &gateway.addr.ip().to_string()]);
        command.args(["-p", &gateway.addr.port().to_string(), "-U", &login.user, "-n"]);
        command.args(args).arg(&login.database);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self(child.context("cannot run pgbench")?))
    }

    fn end(self) -> Result<String> {
        let output = self.0.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let result = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() && !said.contains("error"), "{said}\n{result}");
        Ok(result)
    }
}

#[test]
fn a_switchover_under_pgbench_is_a_pause() -> Result<()> {
    let scenario = Scenario::new(
        "32 pgbench clients, half of them through a standby's gateway, in three protocol modes: two \
         switchovers and not one client error",
    );
    let cluster = Cluster::of(3).start()?;
    let first = cluster.wait_healthy()?.writer.unwrap_or_default();
    let second = cluster.others(&first).swap_remove(0);
    let gateways = cluster.gateways(&[&first, &second]);
    Bench::start(&cluster, &gateways[0], &["-i", "-s", "2", "-q"])?.end()?;
    let seconds = "14";
    let modes = [(&gateways[0], "prepared"), (&gateways[1], "simple"), (&gateways[1], "extended")];
    let run = |(gateway, mode): &(&Gateway, &str)| {
        let clients = if *mode == "prepared" { "16" } else { "8" };
        Bench::start(&cluster, gateway, &["-c", clients, "-M", mode, "-T", seconds])
    };
    let benches = modes.iter().map(run).collect::<Result<Vec<_>>>()?;
    for target in [&second, &first] {
        let since = Instant::now();
        cluster.wait_until(Duration::from_secs(10), "2 s passed", || {
            (since.elapsed() > Duration::from_secs(2)).then_some(())
        })?;
        cluster.wait_healthy()?;
        cluster.command_until_done(&first, &["switchover", "--to", target])?;
        ensure!(cluster.wait_writer()? == *target, "{target} does not write");
        scenario.step(format!("{target} writes"));
    }
    for (bench, (_, mode)) in benches.into_iter().zip(&modes) {
        let result = bench.end().or_else(|e| cluster.explain(e))?;
        let line = |word: &str| result.lines().find(|l| l.contains(word)).unwrap_or_default();
        scenario.step(format!("{mode}: {}; {}", line("processed"), line("failed")));
    }
    Ok(())
}

/// What clients were told of their COMMITs.
#[derive(Default)]
struct Told {
    done: AtomicU64,
    /// 40001 as the answer to a COMMIT.
    undone: AtomicU64,
    /// 08007 as the answer to a COMMIT.
    unknown: AtomicU64,
    /// Errors before the COMMIT was sent.
    earlier: AtomicU64,
    reconnected: AtomicU64,
}

/// One application: transactions of two statements, whose outcome it writes down.
async fn commits(
    login: Login,
    gateways: Vec<Gateway>,
    client: usize,
    told: Arc<Told>,
    stop: Arc<AtomicBool>,
) -> Result<Vec<(i64, Outcome)>> {
    let mut outcomes = Vec::new();
    let mut id = client as i64 * 1_000_000;
    let mut open: Option<Client> = None;
    while !stop.load(Ordering::Relaxed) {
        let session = match open.take() {
            Some(session) if !session.is_closed() => session,
            _ => {
                let mut config = login.config();
                let gateway = &gateways[client % gateways.len()];
                config.host(gateway.addr.ip().to_string()).port(gateway.addr.port());
                told.reconnected.fetch_add(1, Ordering::Relaxed);
                let Ok((session, connection)) = config.connect(NoTls).await else { continue };
                tokio::spawn(async move { drop(connection.await) });
                session
            }
        };
        id += 1;
        let outcome = transaction(&session, id, client.is_multiple_of(2), &told).await?;
        outcomes.push((id, outcome));
        open = Some(session);
    }
    Ok(outcomes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Undone,
    Unknown,
}

/// A transaction; what its client may believe afterwards.
async fn transaction(session: &Client, id: i64, simple: bool, told: &Told) -> Result<Outcome> {
    let body = async {
        session.batch_execute("BEGIN").await?;
        if simple {
            session.batch_execute(&format!("INSERT INTO commits VALUES ({id})")).await?;
        } else {
            session.execute("INSERT INTO commits VALUES ($1)", &[&id]).await?;
        }
        session.query("SELECT count(*) FROM commits WHERE id = $1", &[&id]).await.map(drop)
    };
    if let Err(error) = body.await {
        told.earlier.fetch_add(1, Ordering::Relaxed);
        let code = error.code().map(|c| c.code().to_owned()).unwrap_or_default();
        ensure!(matches!(&code[..], "40001" | "57P01" | "57P03" | "08007" | ""), "{error:?}");
        let _ = session.batch_execute("ROLLBACK").await;
        return Ok(Outcome::Undone);
    }
    let answer = if simple {
        session.batch_execute("COMMIT").await
    } else {
        session.execute("COMMIT", &[]).await.map(drop)
    };
    let outcome = match &answer {
        Ok(()) => Outcome::Done,
        Err(error) => match error.code().map(|c| c.code()) {
            Some("40001") => Outcome::Undone,
            Some("08007") | None => Outcome::Unknown,
            Some(_) => bail!("{error:?}"),
        },
    };
    let counter = match outcome {
        Outcome::Done => &told.done,
        Outcome::Undone => &told.undone,
        Outcome::Unknown => &told.unknown,
    };
    counter.fetch_add(1, Ordering::Relaxed);
    if answer.is_err() {
        // The error may have met the preparation of the statement: then the block is still there.
        let _ = session.batch_execute("ROLLBACK").await;
    }
    Ok(outcome)
}

#[test]
fn commits_that_are_cut_off_get_a_true_answer() -> Result<()> {
    let scenario = Scenario::new(
        "the writer's postmaster is killed again and again while 32 clients commit over a slow line: \
         every answer to a COMMIT is compared with the data, and none is wrong",
    );
    let wanted = std::env::var("QUORATE_E2E_COMMITS").ok().and_then(|v| v.parse().ok());
    let wanted = wanted.unwrap_or(COMMITS);
    let cluster = Cluster::of(3).start()?;
    cluster.wait_healthy()?;
    let gateways = cluster.gateways(&[]);
    sql_through(cluster.login(), gateways[0].addr, "CREATE TABLE commits (id bigint PRIMARY KEY)")?;
    // So that most clients wait for copies when the server is killed.
    for node in cluster.nodes() {
        cluster.slow(node.name(), Duration::from_millis(15));
    }
    let told = Arc::new(Told::default());
    let stop = Arc::new(AtomicBool::new(false));
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build()?;
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (login, gateways) = (cluster.login().clone(), gateways.clone());
            runtime.spawn(commits(login, gateways, client, Arc::clone(&told), Arc::clone(&stop)))
        })
        .collect();
    let cut = |told: &Told| found(&cluster) + told.unknown.load(Ordering::Relaxed);
    let mut kills = 0;
    let deadline = Instant::now() + limits::RECOVER * 4 + Duration::from_secs(wanted / 2);
    while cut(&told) < wanted && Instant::now() < deadline {
        let before = told.done.load(Ordering::Relaxed);
        cluster.wait_until(limits::RECOVER, "commits are acknowledged", || {
            (told.done.load(Ordering::Relaxed) > before + 2 * CLIENTS as u64).then_some(())
        })?;
        let writer = cluster.wait_writer()?;
        cluster.kill_postmaster(&writer)?;
        cluster.wait_other_writer(&writer)?;
        kills += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let outcomes = runtime.block_on(async {
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await??);
        }
        anyhow::Ok(all)
    });
    let outcomes = outcomes.or_else(|e| cluster.explain(e))?;
    cluster.wait_healthy()?;
    let rows = sql_through(cluster.login(), gateways[0].addr, "SELECT id FROM commits")?;
    let there: std::collections::HashSet<i64> =
        rows.iter().filter_map(|r| r.first()?.as_ref()?.parse().ok()).collect();
    let is_wrong = |(id, outcome): &&(i64, Outcome)| match outcome {
        Outcome::Done => !there.contains(id),
        Outcome::Undone => there.contains(id),
        Outcome::Unknown => false,
    };
    let wrong: Vec<_> = outcomes.iter().filter(is_wrong).collect();
    let n = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    scenario.step(format!(
        "{kills} kills; COMMITs: {} done, {} undone, {} unknown; looked up by gateways: {}; \
         {} transactions ended earlier; {} connections",
        n(&told.done),
        n(&told.undone),
        n(&told.unknown),
        found(&cluster),
        n(&told.earlier),
        n(&told.reconnected),
    ));
    if !wrong.is_empty() {
        return cluster.explain(anyhow::anyhow!("wrong answers: {wrong:?}"));
    }
    ensure!(found(&cluster) > 0, "no COMMIT was cut off with its transaction known");
    Ok(())
}

/// COMMITs whose outcome the gateways looked up and found.
fn found(cluster: &Cluster) -> u64 {
    let lines = |log: String| {
        let known =
            |l: &&str| l.contains("the answer to a COMMIT was lost") && !l.contains("fate=Unknown");
        log.lines().filter(known).count() as u64
    };
    cluster.nodes().iter().map(|n| lines(n.log())).sum()
}

#[test]
fn an_answer_of_a_dying_server_acknowledges_nothing() -> Result<()> {
    let scenario = Scenario::new(
        "a statement waits for copies of its commit, in the extended protocol, when its server is \
         stopped at once: what the server had answered before the commit is sent with its last words, \
         and the client is not told that all is well",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&writer);
    let doors = cluster.gateways(&[&writer, &others[0]]);
    sql_through(cluster.login(), doors[0].addr, "CREATE TABLE said (id bigint NOT NULL)")?;
    let wal = Affected::Only(BTreeSet::from(["wal"]));
    cluster.partition_for(&format!("{writer} | {}", others.join(" ")), &wal);
    let mut sessions = Vec::new();
    for (id, door) in doors.iter().enumerate() {
        let mut session = Session::open(door.addr, cluster.login())?;
        let insert = format!("INSERT INTO said VALUES ({id})");
        session.send_bytes(&[parse("", &insert), bind("", &[]), run(), sync()].concat())?;
        sessions.push(session);
    }
    let home = cluster.node(&writer)?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    cluster.wait_until(limits::RECOVER, "the commits wait for copies", || {
        (local::one(&home.socket_dir(), waiting).ok()? == "2").then_some(())
    })?;
    process::signal(process::postmaster(&home.data_dir())?, Signal::QUIT);
    for (session, door) in sessions.iter_mut().zip(&doors) {
        let answer = session.answer();
        scenario.step(format!("through {}: {answer:?}", door.name));
        let Ok(answer) = answer else { continue };
        ensure!(answer.error().is_some(), "{} acknowledged it: {answer}", door.name);
    }
    cluster.host_gone(&writer)?;
    cluster.wait_other_writer(&writer)?;
    let rows = sql_through(cluster.login(), doors[1].addr, "SELECT id FROM said")?;
    ensure!(rows.is_empty(), "their log left the writer: {rows:?}");
    Ok(())
}

#[test]
fn a_commit_behind_another_is_judged_by_its_own_transaction() -> Result<()> {
    let scenario = Scenario::new(
        "a block commits and another begins with the same message; the second one's COMMIT waits for \
         copies when its host is lost: that the first was committed says nothing of it",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let others = cluster.others(&writer);
    let door = cluster.gateways(&[&others[0]]).remove(0);
    // What became of a COMMIT is looked up for as long as clients are held.
    cluster.apply(&writer, "[gateway]\nhold_ms = 60000\n")?;
    sql_through(cluster.login(), door.addr, "CREATE TABLE chained (id bigint NOT NULL)")?;
    let ends = ["COMMIT AND CHAIN", "COMMIT; BEGIN", "ROLLBACK AND CHAIN"];
    // Only the simple protocol takes two statements in one message.
    let ways: Vec<_> = ends
        .iter()
        .flat_map(|end| Mode::ALL.map(|mode| (*end, mode)))
        .filter(|(end, mode)| *mode == Mode::Simple || !end.contains(';'))
        .collect();
    let mut sessions = Vec::new();
    for (id, (end, mode)) in ways.iter().enumerate() {
        let mut session = Session::within(door.addr, cluster.login(), &[], limits::REJOIN)?;
        session.simple("BEGIN")?.ok()?;
        session.run(*mode, &format!("INSERT INTO chained VALUES ({id})"))?.ok()?;
        session.run(*mode, end)?.ok()?;
        session.run(*mode, &format!("INSERT INTO chained VALUES (100 + {id})"))?.ok()?;
        sessions.push(session);
    }
    let wal = Affected::Only(BTreeSet::from(["wal"]));
    cluster.partition_for(&format!("{writer} | {}", others.join(" ")), &wal);
    for session in &mut sessions {
        session.send_bytes(&[parse("", "COMMIT"), bind("", &[]), run(), sync()].concat())?;
    }
    let home = cluster.node(&writer)?;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let wanted = sessions.len().to_string();
    cluster.wait_until(limits::RECOVER, "the commits wait for copies", || {
        (local::one(&home.socket_dir(), waiting).ok()? == wanted).then_some(())
    })?;
    cluster.host_gone(&writer)?;
    cluster.wait_other_writer(&writer)?;
    let mut codes = Vec::new();
    for (session, (end, mode)) in sessions.iter_mut().zip(&ways) {
        let answer = session.answer()?;
        scenario.step(format!("behind {end} ({mode:?}): {answer}"));
        ensure!(answer.error().is_some(), "{end} ({mode:?}): acknowledged: {answer}");
        codes.push(answer.code());
    }
    let rows = sql_through(cluster.login(), door.addr, "SELECT id FROM chained WHERE id >= 100")?;
    ensure!(rows.is_empty(), "their log left the writer: {rows:?}");
    ensure!(codes.iter().all(|code| code == "40001"), "not all are known to be undone: {codes:?}");
    Ok(())
}
