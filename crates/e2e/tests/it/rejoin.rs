//! How an old writer comes back: by streaming, by rewinding, by copying again.

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_e2e::cable::{Affected, Mode};
use quorate_e2e::process;
use quorate_e2e::wire::Session;
use quorate_e2e::workload::{TABLE, sql_through};
use quorate_e2e::{Cluster, Scenario, limits, local, postgres};
use rustix::process::Signal;

use crate::common::{flows, patient, settle};

/// Cuts the writer off, with log that nobody else has. Unless that is undone, its rows come "from
/// nowhere".
pub(crate) fn cut_off_with_tail(cluster: &Cluster, node: &str) -> Result<()> {
    let sides = format!("{node} | {}", cluster.others(node).join(" "));
    // The log first: its server ends soon after it hears of nobody.
    cluster.partition_for(&sides, &Affected::Only(BTreeSet::from(["wal"])));
    let sql = format!(
        "SET synchronous_commit = local;
         INSERT INTO {TABLE} (id, client) SELECT -i, -1 FROM generate_series(1, 20000) i"
    );
    local::query(&cluster.node(node)?.socket_dir(), &sql)?;
    cluster.partition(&sides);
    Ok(())
}

#[test]
fn late_return_without_a_tail_needs_no_rewind() -> Result<()> {
    let scenario = Scenario::new(
        "an idle writer's host is lost and returns after others have written much: its log is a \
         prefix of theirs, so that it streams on without rewinding",
    );
    let mut cluster = Cluster::of(3).start()?;
    let old = cluster.wait_writer()?;
    cluster.host_gone(&old)?;
    let others = cluster.others(&old);
    let workload = cluster.workload(patient(), &[&others[0], &others[1]]);
    flows(&cluster, &workload)?;
    cluster.wait_until(quorate_e2e::limits::RECOVER, "the others wrote 300 rows", || {
        (workload.acks() > 300).then_some(())
    })?;
    let watch = cluster.watch();
    cluster.restart(&old)?;
    settle(&scenario, &cluster, workload)?;
    ensure!(!watch.saw(&old, "rewinding") && !watch.saw(&old, "cloning"), "it did not just stream");
    Ok(())
}

fn diverged_tail(intent: &str, rewind_works: bool) -> Result<()> {
    let scenario = Scenario::new(intent);
    let wrapped = (!rewind_works).then(bin_without_rewind).transpose()?;
    let mut builder = Cluster::of(3);
    if let Some(bin) = &wrapped {
        builder = builder.postgres_bin("n1", &bin.0);
    }
    let cluster = builder.start()?;
    let old = cluster.wait_writer()?;
    ensure!(old == "n1", "{old} writes at first, not n1");
    let others = cluster.others(&old);
    let workload = cluster.workload(patient(), &[&others[0], &others[1]]);
    flows(&cluster, &workload)?;
    cut_off_with_tail(&cluster, &old)?;
    scenario.step(format!("{old} is cut off and has a tail"));
    let new = cluster.wait_other_writer(&old)?;
    scenario.step(format!("{new} writes"));
    flows(&cluster, &workload)?;
    cluster.heal();
    settle(&scenario, &cluster, workload)?;
    let way = if rewind_works { "rewinding" } else { "copying the database" };
    ensure!(cluster.node(&old)?.log().contains(way), "the log of {old} does not tell of {way}");
    Ok(())
}

#[test]
fn diverged_tail_is_rewound() -> Result<()> {
    diverged_tail("an old writer returns with a tail that nobody has: it is rewound", true)
}

#[test]
fn failed_rewind_is_followed_by_a_new_copy() -> Result<()> {
    diverged_tail("an old writer returns with a tail, and pg_rewind fails: it copies anew", false)
}

#[test]
fn who_asks_for_log_serves_no_reads_before_it_is_admitted() -> Result<()> {
    let scenario = Scenario::new(
        "an old writer returns with a tail that nobody has, and the next one has not seen where its log \
         ends yet: its readers must not see that tail",
    );
    let cluster = Cluster::of(3).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    cut_off_with_tail(&cluster, "n1")?;
    let new = cluster.wait_other_writer("n1")?;
    scenario.step(format!("{new} writes, and n1 has a tail"));
    // What n1 asks its log for does not arrive.
    cluster.partition_for("n1 | n2 n3", &Affected::Only(BTreeSet::from(["wal"])));
    let at_n1 = cluster.node("n1")?.socket_dir();
    cluster.wait_until(limits::RECOVER, "n1 is a standby of the new term", || {
        let follows = cluster.status_of("n1").ok()?.writer == Some(new.clone());
        let standby = local::one(&at_n1, "SELECT pg_catalog.pg_is_in_recovery()").ok()? == "t";
        (follows && standby).then_some(())
    })?;
    let mut session = Session::open(cluster.node("n1")?.gateway(), cluster.login())?;
    let tail = format!("SELECT /* quorate: eventual */ count(*) FROM {TABLE} WHERE id < 0");
    for _ in 0..50 {
        let seen = session.value(&tail)?;
        ensure!(seen == "0", "{seen} rows are shown that the cluster does not have");
        std::thread::sleep(limits::POLL);
    }
    cluster.heal();
    cluster.wait_healthy().map(drop)
}

#[test]
fn a_copy_that_needs_log_to_answer_is_asked_first_what_it_has() -> Result<()> {
    let scenario = Scenario::new(
        "a copy returns with a tail of an old writer that its control file does not tell of, and cannot \
         answer without more log: where its own ends is found out before it is fed",
    );
    let mut cluster = Cluster::of(5).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    cluster.apply("n1", "copies = 3\n")?;
    cluster.wait_healthy()?;
    let (at_n1, at_n5) = (cluster.node("n1")?.socket_dir(), cluster.node("n5")?.socket_dir());
    // More transactions within one than a list of those under way has room for.
    sql_through(cluster.login(), cluster.node("n1")?.gateway(), "CREATE TABLE within (i int)")?;
    let mut open = Session::open(cluster.node("n1")?.gateway(), cluster.login())?;
    open.simple("BEGIN")?.ok()?;
    for i in 0..80 {
        open.simple(&format!("SAVEPOINT s{i}; INSERT INTO within VALUES ({i})"))?.ok()?;
    }
    let n5_has = |what: &str| -> Result<()> {
        let end = local::one(&at_n1, "SELECT pg_current_wal_flush_lsn()")?;
        cluster.wait_until(limits::RECOVER, "n5 has that", || {
            let sql = format!("SELECT {what}() >= '{end}'");
            local::one(&at_n5, &sql).ok().filter(|has| has == "t").map(drop)
        })
    };
    local::query(&at_n1, "CHECKPOINT")?;
    n5_has("pg_last_wal_replay_lsn")?;
    local::query(&at_n5, "CHECKPOINT")?;
    cluster.partition_for("n1 n5 | n2 n3 n4", &Affected::Only(BTreeSet::from(["wal"])));
    let sql = format!(
        "SET synchronous_commit = local;
         INSERT INTO {TABLE} (id, client) SELECT -i, -1 FROM generate_series(1, 2000) i"
    );
    local::query(&at_n1, &sql)?;
    n5_has("pg_last_wal_receive_lsn")?;
    cluster.host_gone("n5")?;
    cluster.host_gone("n1")?;
    let new = cluster.wait_other_writer("n1")?;
    cluster.heal();
    scenario.step(format!("{new} writes"));
    // As if it had died once more while it was fed.
    std::fs::write(
        cluster.node("n5")?.data_dir().with_extension("rewound"),
        "its server is fed\n",
    )?;
    cluster.restart("n5")?;
    cluster.wait_until(limits::RECOVER, "n5 needs log to answer", || {
        let wanted = "the log here ends before the server can start";
        cluster.node("n5").ok()?.log().contains(wanted).then_some(())
    })?;
    cluster.wait_until(limits::REJOIN, "n5 follows", || {
        cluster.status()?.attached().contains("n5").then_some(())
    })?;
    let log = cluster.node(&new)?.log();
    ensure!(!log.contains("claims WAL"), "it counted, and claimed what it was never sent");
    ensure!(log.contains("refused a diverged standby"), "its tail was not noticed");
    Ok(())
}

struct TempBin(PathBuf);

impl Drop for TempBin {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// PostgreSQL's programs, with a `pg_rewind` that fails.
fn bin_without_rewind() -> Result<TempBin> {
    let dir = PathBuf::from(format!("/tmp/qe-bin-{:x}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let bin = TempBin(dir);
    std::fs::set_permissions(&bin.0, std::fs::Permissions::from_mode(0o755))?;
    let installed = postgres::bin_dir()?;
    for program in std::fs::read_dir(&installed)?.flatten() {
        if program.file_name() != "pg_rewind" && program.file_name() != "postgres" {
            symlink(program.path(), bin.0.join(program.file_name()))?;
        }
    }
    // A link would lead back to the installed directory.
    let postgres = installed.join("postgres");
    let text = format!("#!/bin/sh\nexec {} \"$@\"\n", postgres.display());
    script(&bin.0.join("postgres"), &text)?;
    script(
        &bin.0.join("pg_rewind"),
        "#!/bin/sh\necho 'pg_rewind: error: made to fail' >&2\nexit 1\n",
    )?;
    Ok(bin)
}

fn script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[test]
fn a_log_that_ends_too_early_to_start_is_completed() -> Result<()> {
    let scenario = Scenario::new(
        "the log of a standby that died ends before what its data needs, as after a segment of a new \
         timeline that it had only begun to get: its server starts with the writer's log",
    );
    let mut cluster = Cluster::of(3).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    let workload = cluster.workload(patient(), &["n1"]);
    flows(&cluster, &workload)?;
    // Its data becomes newer than the log from which it would start.
    let at_n1 = cluster.node("n1")?.socket_dir();
    local::query(&at_n1, "CHECKPOINT")?;
    let filler = "CREATE TABLE filler AS SELECT i, repeat('x', 100) FROM generate_series(1, 5000) i; \
                  GRANT SELECT ON filler TO PUBLIC";
    sql_through(cluster.login(), cluster.node("n1")?.gateway(), filler)?;
    let end = local::one(&at_n1, "SELECT pg_current_wal_lsn()")?;
    let at_n3 = cluster.node("n3")?.socket_dir();
    cluster.wait_until(limits::RECOVER, "n3 has replayed that", || {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        local::one(&at_n3, &sql).ok().filter(|has| has == "t")
    })?;
    local::query(&at_n3, "CHECKPOINT")?;
    cluster.host_gone("n3")?;
    let data = cluster.node("n3")?.data_dir();
    let told = |what: &str| -> Result<String> {
        let mut tool = postgres::program("pg_controldata")?;
        tool.stdout(std::process::Stdio::piped()).env("LC_ALL", "C");
        let out = tool.arg("-D").arg(&data).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(what)).context(text.clone())?;
        Ok(line.trim().to_owned())
    };
    let lsn = |text: String| -> Result<u64> {
        let (hi, lo) = text.split_once('/').context("no position")?;
        Ok(u64::from_str_radix(hi, 16)? << 32 | u64::from_str_radix(lo, 16)?)
    };
    let needed = lsn(told("Minimum recovery ending location:")?)?;
    let from = lsn(told("Latest checkpoint location:")?)?;
    let file = told("Latest checkpoint's REDO WAL file:")?;
    const PAGE: u64 = 8192;
    let segment: u64 = told("Bytes per WAL segment:")?.parse()?;
    let cut = (needed - 1) / PAGE * PAGE;
    ensure!(
        cut > from + 200 && cut / segment == from / segment,
        "{needed:X} is not behind {from:X}"
    );
    let wal = data.join("pg_wal").join(file);
    let file = std::fs::OpenOptions::new().write(true).open(&wal)?;
    let zeros = vec![0; (segment - cut % segment) as usize];
    std::os::unix::fs::FileExt::write_all_at(&file, &zeros, cut % segment)?;
    scenario.step(format!("n3 needs the log up to {needed:X}, and has it up to {cut:X}"));
    cluster.restart("n3")?;
    cluster.wait_until(limits::RECOVER, "Quorate notices", || {
        let wanted = "the log here ends before the server can start";
        cluster.node("n3").ok()?.log().contains(wanted).then_some(())
    })?;
    cluster.wait_until(limits::RECOVER, "n3 is fed", || {
        let wanted = "a standby gets the log that it needs to start";
        cluster.node("n1").ok()?.log().contains(wanted).then_some(())
    })?;
    scenario.step("its server dies while it is fed, or soon after");
    cluster.kill_postmaster("n3")?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn what_a_copy_had_it_has_after_a_crash_at_the_beginning_of_a_timeline() -> Result<()> {
    let scenario = Scenario::new(
        "a standby gets the first file of a new timeline from its beginning, and dies: all that it had \
         before stands in the file of the former timeline, which PostgreSQL does not read",
    );
    let mut cluster = Cluster::of(3).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    // The fork comes deep in a segment.
    let at_n1 = cluster.node("n1")?.socket_dir();
    local::query(&at_n1, "SELECT pg_catalog.pg_switch_wal()")?;
    let filler =
        "CREATE TABLE filler AS SELECT i, repeat('x', 100) FROM generate_series(1, 15000) i";
    sql_through(cluster.login(), cluster.node("n1")?.gateway(), filler)?;
    cluster.wait_healthy()?;
    let before = postgres::newest_timeline(&cluster.node("n3")?.data_dir())?;
    let slowly = Mode::slow(Duration::from_millis(200));
    for (from, to) in [("n3", "n2"), ("n2", "n3")] {
        cluster.cable(from, to)?.set_for(slowly, Affected::Only(BTreeSet::from(["wal"])));
    }
    cluster.command_until_done("n1", &["switchover", "--to", "n2"])?;
    let node = cluster.node("n3")?;
    let (data, at_n3) = (node.data_dir(), node.socket_dir());
    cluster.wait_until(limits::RECOVER, "the new timeline comes to n3", || {
        (postgres::newest_timeline(&data).ok()? > before).then_some(())
    })?;
    let had = local::one(&at_n3, "SELECT pg_catalog.pg_last_wal_replay_lsn()")?;
    cluster.host_gone("n3")?;
    scenario.step(format!("n3 had replayed the log up to {had} when the next began to arrive"));
    // It starts from what it has.
    cluster.heal();
    cluster.partition_for("n3 | n1 n2", &Affected::Only(BTreeSet::from(["wal"])));
    cluster.restart("n3")?;
    cluster.wait_until(limits::RECOVER, "n3 has what it had", || {
        let sql = format!("SELECT pg_catalog.pg_last_wal_replay_lsn() >= '{had}'");
        local::one(&at_n3, &sql).ok().filter(|has| has == "t")
    })?;
    cluster.heal();
    cluster.wait_healthy()?;
    Ok(())
}

#[test]
fn a_timeline_that_came_to_nothing_is_forgotten() -> Result<()> {
    let scenario = Scenario::new(
        "a standby has heard of a timeline that came to nothing, and the writer after it went on \
         without: PostgreSQL waits for that timeline for ever, until it is restarted",
    );
    let cluster = Cluster::of(3).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    cluster.apply("n1", "[nodes.n3]\nrole = \"read\"\n").or_else(|e| cluster.explain(e))?;
    cluster.wait_until(limits::RECOVER, "no commit depends on n3", || {
        (!cluster.status()?.cohort().contains("n3")).then_some(())
    })?;
    cluster.partition_for("n3 | n1 n2", &Affected::Only(BTreeSet::from(["wal"])));
    let node = cluster.node("n3")?;
    let log = node.data_dir().with_file_name("postgresql.log");
    // What n3 has got of the timeline: its history, which leaves ours where n3's log ends.
    let at = local::one(&node.socket_dir(), "SELECT pg_catalog.pg_last_wal_receive_lsn()")?;
    let past = std::fs::read_to_string(node.data_dir().join("pg_wal/00000002.history"))?;
    let history = node.data_dir().join("pg_wal/00000003.history");
    std::fs::write(&history, format!("{past}2\t{at}\tof a writer that died\n"))?;
    std::fs::set_permissions(&history, std::fs::Permissions::from_mode(0o644))?;
    process::signal(cluster.walreceiver("n3")?, Signal::TERM);
    cluster.wait_until(limits::RECOVER, "PostgreSQL believes in that timeline", || {
        let said = std::fs::read_to_string(&log).ok()?;
        said.contains("new target timeline is 3").then_some(())
    })?;
    std::fs::remove_file(&history)?;
    scenario.step("n3 waits for timeline 3");
    // n2 is to write in it and never does: nobody replays what would promote it.
    let below = process::below(&cluster.node("n2")?.data_dir());
    let startup = below.into_iter().find(|pid| process::title(*pid).contains("startup"));
    process::signal(startup.context("n2 replays nothing")?, Signal::STOP);
    let _ = cluster.command("n1", &["failover", "--to", "n2", "--wait", "1"]);
    cluster.wait_until(limits::RECOVER, "n2 is to promote", || {
        (cluster.status()?.writer.as_deref() == Some("n2")).then_some(())
    })?;
    process::signal_all(&process::below(&cluster.node("n2")?.data_dir()), Signal::KILL);
    cluster.wait_until(limits::RECOVER, "n1 writes in timeline 4", || {
        let status = cluster.status()?;
        (status.serving() == Some("n1") && status.term >= 3).then_some(())
    })?;
    scenario.step("n1 writes in timeline 4, which never was in 3");
    cluster.heal();
    let wanted = "the server wants a timeline that is no more";
    cluster.wait_until(limits::RECOVER, "Quorate notices", || {
        cluster.node("n3").ok()?.log().contains(wanted).then_some(())
    })?;
    cluster.apply("n1", "").or_else(|e| cluster.explain(e))?;
    let workload = cluster.workload(patient(), &["n1"]);
    settle(&scenario, &cluster, workload)
}
