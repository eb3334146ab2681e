//! Replication connections, with the tools that people use, and by hand.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use quorate_core::Term;
use quorate_core::access::{AccessRule, Action, TlsNeed};
use quorate_core::gateway::SynchronousCommit;
use quorate_wire::Startup;

use crate::door::{Door, Mode, TERM, in_both_modes, wanted};
use crate::raw::{Raw, Say};
use crate::server::{Server, command, eventually, private_dir};

in_both_modes! {
    the_log_as_it_is_needs_a_rule_and_the_attribute
    a_base_backup_is_taken
    the_log_is_received_by_a_slot
    changes_are_decoded
    another_cluster_subscribes
    a_commit_that_no_standby_holds_does_not_leave
    a_held_stream_stays_alive
    a_snapshot_waits_for_what_it_shows
    a_change_of_writer_ends_it
    nobody_passes_for_our_own_standby
    a_slot_that_lacks_something_is_not_read
    they_are_counted_and_shown
    all_threads_count_together
    who_leaves_while_it_waits_gives_its_place_back
    a_connection_to_a_database_keeps_the_floor
    a_connection_to_a_database_begins_at_the_floor
    what_lowers_it_out_of_sight_is_raised_before_the_next_transaction
}

/// A door to a server whose log can be decoded, and whose users may take it as it is.
async fn open(mode: Mode) -> Result<Door> {
    let server = Arc::new(Server::primary(&["wal_level=logical"]).await?);
    let mut wanted = wanted();
    wanted.access.insert(0, physical("postgres", Action::Trust));
    wanted.access.insert(1, physical("app", Action::Trust));
    let door = Door::before(server, mode, wanted, None).await?;
    settled(&door, Some(true));
    Ok(door)
}

fn physical(role: &str, action: Action) -> AccessRule {
    AccessRule {
        database: vec!["replication".into()],
        role: vec![role.into()],
        address: vec!["local".into()],
        tls: TlsNeed::Any,
        action,
        because: None,
    }
}

/// Whether standbys hold everything: `None` while they do not answer.
fn settled(door: &Door, settled: Option<bool>) {
    door.cluster.settled.send_replace(settled);
}

fn tool(door: &Door, program: &str) -> Command {
    let mut tool = command(program);
    let port = door.address.port().to_string();
    tool.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port]);
    tool
}

async fn run(mut command: Command) -> Result<String> {
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{said}");
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A program that runs until it is dropped, and what it wrote.
struct Running(Child, tempfile::NamedTempFile);

impl Running {
    fn start(mut command: Command) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        // Stopped whatever becomes of the test's process.
        command.process_group(0).stdout(file.reopen()?).stderr(file.reopen()?);
        Ok(Self(command.spawn()?, file))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.1.path()).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Decodes changes as they come.
async fn decoding(door: &Door) -> Result<Running> {
    let mut create = tool(door, "pg_recvlogical");
    create.args(["-d", &door.database, "--create-slot", "-S", &door.database]);
    run(create).await?;
    let mut start = tool(door, "pg_recvlogical");
    start.args(["-d", &door.database, "--start", "-S", &door.database]);
    start.args(["-f", "-", "-n", "-s", "1"]).stdin(Stdio::null());
    let running = Running::start(start)?;
    let active =
        format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", door.database);
    eventually("it streams", async || (door.value(&active).await.ok()? == "t").then_some(())).await;
    Ok(running)
}

/// A replication client by hand.
async fn raw(door: &Door, kind: &str, more: &[(&str, &str)]) -> Result<Raw> {
    let mut with =
        vec![("user", "postgres"), ("database", &door.database[..]), ("replication", kind)];
    with.extend(more);
    Raw::session(door.address, &with).await
}

async fn the_log_as_it_is_needs_a_rule_and_the_attribute(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let as_app = [("user", "app"), ("replication", "true")];
    let error = Raw::session(door.address, &as_app).await.err().unwrap().to_string();
    assert!(error.contains("must be superuser or replication role"), "{error}");
    door.want(|wanted| drop(wanted.access.drain(..2)));
    eventually("the rules hold", async || {
        let error = raw(&door, "true", &[]).await.err()?.to_string();
        error.contains("no gateway.access rule for replication connection").then_some(())
    })
    .await;
    // To a database the database's rules hold.
    raw(&door, "database", &[]).await?;
    let there =
        [("user", "postgres"), ("database", &door.database[..]), ("replication", "database")];
    let error = Raw::session(door.read_only, &there).await.err().unwrap().to_string();
    assert!(error.contains("0A000"), "{error}");
    Ok(())
}

async fn a_base_backup_is_taken(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let dir = private_dir();
    let mut backup = tool(&door, "pg_basebackup");
    backup.args(["-X", "stream", "-c", "fast", "-D"]).arg(dir.path().join("copy"));
    run(backup).await?;
    let mut verify = command("pg_verifybackup");
    verify.arg(dir.path().join("copy"));
    run(verify).await.map(drop)
}

async fn the_log_is_received_by_a_slot(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let dir = private_dir();
    let mut create = tool(&door, "pg_receivewal");
    create.args(["--create-slot", "-S", "archive"]);
    run(create).await?;
    door.admin().await?.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000)").await?;
    let end = door.value("SELECT pg_current_wal_flush_lsn()").await?;
    // What follows is not held back: it may be what commits wait for.
    settled(&door, None);
    let mut receive = tool(&door, "pg_receivewal");
    receive.args(["-S", "archive", "-n", "-E", &end, "-D"]).arg(dir.path());
    run(receive).await?;
    assert!(std::fs::read_dir(dir.path())?.count() > 0);
    Ok(())
}

async fn changes_are_decoded(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let admin = door.admin().await?;
    admin.batch_execute("CREATE TABLE t(i int, x text)").await?;
    let running = decoding(&door).await?;
    admin.batch_execute("INSERT INTO t VALUES (1, 'one')").await?;
    // Rows that do not fit into what is read at once.
    admin
        .batch_execute("INSERT INTO t SELECT i, repeat('x', 70000) FROM generate_series(2, 50) i")
        .await?;
    eventually("all of it arrives", async || {
        let said = running.said();
        (said.contains("one") && said.matches("COMMIT").count() == 2).then_some(())
    })
    .await;
    assert_eq!(running.said().matches("INSERT").count(), 50);
    Ok(())
}

async fn another_cluster_subscribes(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let admin = door.admin().await?;
    admin
        .batch_execute(
            "CREATE TABLE t(i int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100); \
             CREATE PUBLICATION p FOR TABLE t",
        )
        .await?;
    let other = Server::primary(&[]).await?;
    let sql = other.sql("postgres").await?;
    sql.batch_execute("CREATE TABLE t(i int PRIMARY KEY)").await?;
    sql.batch_execute(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={} user=postgres dbname={}' \
         PUBLICATION p",
        door.address.port(),
        door.database
    ))
    .await?;
    admin.batch_execute("INSERT INTO t VALUES (101); DELETE FROM t WHERE i = 1").await?;
    eventually("the subscriber has all of it", async || {
        let state = "SELECT count(*) || ' ' || max(i) || ' ' || min(i) FROM t";
        (other.value(state).await.ok()? == "100 101 2").then_some(())
    })
    .await;
    sql.batch_execute("DROP SUBSCRIPTION s").await?;
    assert_eq!(door.value("SELECT count(*) FROM pg_replication_slots").await?, "0");
    Ok(())
}

async fn a_commit_that_no_standby_holds_does_not_leave(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let admin = door.admin().await?;
    admin.batch_execute("CREATE TABLE t(x text)").await?;
    let running = decoding(&door).await?;
    admin.batch_execute("INSERT INTO t VALUES ('held by standbys')").await?;
    eventually("it arrives", async || running.said().contains("held by").then_some(())).await;
    settled(&door, None);
    // The writer has it on its own disk.
    admin.batch_execute("INSERT INTO t VALUES ('on one disk only')").await?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert!(!running.said().contains("one disk"), "{}", running.said());
    settled(&door, Some(true));
    eventually("it arrives, too", async || running.said().contains("one disk").then_some(())).await;
    // Where that can never be known, nothing more is said.
    settled(&door, Some(false));
    admin.batch_execute("INSERT INTO t VALUES ('of another history')").await?;
    eventually("it ends", async || {
        running
            .said()
            .contains("57P01")
            .then_some(())
            .or_else(|| running.said().contains("the replication connection ended").then_some(()))
    })
    .await;
    assert!(!running.said().contains("another history"));
    Ok(())
}

async fn a_held_stream_stays_alive(mode: Mode) -> Result<()> {
    let server = Server::primary(&["wal_level=logical", "wal_sender_timeout=6s"]).await?;
    let door = Door::before(Arc::new(server), mode, wanted(), None).await?;
    settled(&door, Some(true));
    let admin = door.admin().await?;
    admin.batch_execute("CREATE TABLE t(x text)").await?;
    let mut create = raw(&door, "database", &[]).await?;
    create.ask("CREATE_REPLICATION_SLOT s LOGICAL test_decoding NOEXPORT_SNAPSHOT").await?.ok();
    let mut start = tool(&door, "pg_recvlogical");
    // It says nothing by itself: only what asks for an answer gets one.
    start.args(["-d", &door.database, "--start", "-S", "s", "-f", "-", "-n", "-s", "0"]);
    let running = Running::start(start)?;
    let active = "SELECT active FROM pg_replication_slots";
    eventually("it streams", async || (door.value(active).await.ok()? == "t").then_some(())).await;
    settled(&door, None);
    admin.batch_execute("INSERT INTO t VALUES ('late')").await?;
    tokio::time::sleep(std::time::Duration::from_secs(9)).await;
    assert_eq!(door.value(active).await?, "t", "{}", running.said());
    // What it has not got it has not confirmed.
    let sql = "SELECT count(*) FROM pg_logical_slot_peek_changes('s', NULL, NULL)";
    settled(&door, Some(true));
    eventually("it arrives", async || running.said().contains("late").then_some(())).await;
    drop(running);
    eventually("the slot is free", async || (door.value(active).await.ok()? == "f").then_some(()))
        .await;
    door.value(sql).await.map(drop)
}

async fn a_snapshot_waits_for_what_it_shows(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let mut raw = raw(&door, "database", &[]).await?;
    settled(&door, None);
    let create = "CREATE_REPLICATION_SLOT s LOGICAL test_decoding EXPORT_SNAPSHOT";
    raw.say(Say::new().query(create)).await?;
    assert!(raw.is_silent().await);
    assert!(raw.is_silent().await);
    settled(&door, Some(true));
    let answer = raw.answer().await?.ok();
    assert_eq!(&answer.rows[0][0], "s");
    Ok(())
}

async fn a_change_of_writer_ends_it(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let mut physical = raw(&door, "true", &[]).await?;
    let system = physical.ask("IDENTIFY_SYSTEM").await?.ok();
    let at = system.rows[0][2].to_owned();
    physical.say(Say::new().query(&format!("START_REPLICATION PHYSICAL {at}"))).await?;
    physical.until(b'W').await?;
    let mut idle = raw(&door, "database", &[]).await?;
    door.no_writer();
    for raw in [&mut physical, &mut idle] {
        loop {
            let Some(message) = raw.next().await? else { bail!("closed without a word") };
            if message.tag == b'E' {
                let fields = quorate_wire::backend::Fields::parse(&message.body)?;
                assert_eq!(fields.code(), "57P01");
                assert!(fields.get(b'H').is_some());
                break;
            }
        }
    }
    // The next one is served by the next writer.
    door.writer(Term(TERM.0 + 1));
    raw(&door, "database", &[]).await?;
    Ok(())
}

async fn nobody_passes_for_our_own_standby(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let admin = door.admin().await?;
    for kind in ["true", "database"] {
        for more in [("application_name", "Quorate"), ("options", "-c application_name=quorate")] {
            let refused = raw(&door, kind, &[more]).await.err().unwrap().to_string();
            assert!(refused.contains("42501"), "{refused}");
        }
    }
    // A role that is set up so is not called so.
    admin.batch_execute("ALTER ROLE postgres SET application_name = 'quorate'").await?;
    let mut named = raw(&door, "database", &[]).await?;
    assert_eq!(named.value("SHOW application_name").await?, "");
    admin.batch_execute("ALTER ROLE postgres RESET application_name").await?;
    named.ask("CREATE_REPLICATION_SLOT s LOGICAL test_decoding NOEXPORT_SNAPSHOT").await?.ok();
    named.ask("SELECT set_config('application_' || 'name', 'QUORATE', false)").await?.ok();
    // A word that it has everything, sent ahead.
    let mut word = vec![b'r'];
    word.extend([0x7f; 24]);
    word.extend([0; 9]);
    let start = Say::new().query("START_REPLICATION SLOT s LOGICAL 0/0").message(b'd', &word);
    let answer = named.exchange(start).await?;
    assert_eq!(answer.code(), "42501");
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn > '0/F0000000'";
    assert_eq!(door.value(sql).await?, "0");
    Ok(())
}

async fn a_slot_that_lacks_something_is_not_read(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let mut decoding = raw(&door, "database", &[]).await?;
    decoding.ask("CREATE_REPLICATION_SLOT s LOGICAL test_decoding NOEXPORT_SNAPSHOT").await?.ok();
    let lacks = [("s".to_owned(), "it was lost".to_owned())].into();
    door.change(|view| view.broken_slots = Arc::new(lacks));
    let answer = decoding.ask("START_REPLICATION SLOT \"s\" LOGICAL 0/0").await?;
    assert_eq!(answer.code(), "55000");
    assert!(answer.errors[0].message.contains("lacks changes"), "{:?}", answer.errors);
    let read = "SELECT active FROM pg_replication_slots";
    assert_eq!(door.value(read).await?, "f");
    door.change(|view| view.broken_slots = Arc::default());
    let mut start = tool(&door, "pg_recvlogical");
    start.args(["-d", &door.database, "--start", "-S", "s", "-f", "-", "-n"]);
    let _running = Running::start(start)?;
    eventually("it streams", async || (door.value(read).await.ok()? == "t").then_some(())).await;
    Ok(())
}

async fn they_are_counted_and_shown(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let mut all = Vec::new();
    for _ in 0..6 {
        all.push(raw(&door, "database", &[]).await?);
    }
    let refused = raw(&door, "database", &[]).await.err().unwrap().to_string();
    assert!(refused.contains("53300"), "{refused}");
    all.push(raw(&door, "true", &[]).await?);
    all.push(raw(&door, "true", &[]).await?);
    let refused = raw(&door, "true", &[]).await.err().unwrap().to_string();
    assert!(refused.contains("53300") && refused.contains("writer"), "{refused}");
    let mut console = door.console().await?;
    let clients = console.ask("SHOW CLIENTS").await?.ok();
    let shown = clients.rows.iter().filter(|r| &r[3] == "replicating");
    assert_eq!(shown.clone().count(), 8);
    assert!(shown.clone().all(|r| &r[10] == "it is a replication connection"));
    let servers = console.ask("SHOW SERVERS").await?.ok();
    assert_eq!(servers.rows.iter().filter(|r| &r[3] == "replication").count(), 8);
    let id = shown.clone().next().unwrap()[0].to_owned();
    console.ask(&format!("KILL_CLIENT {id}")).await?.ok();
    drop(all);
    eventually("their places are free", async || raw(&door, "true", &[]).await.ok().map(drop))
        .await;
    Ok(())
}

async fn all_threads_count_together(mode: Mode) -> Result<()> {
    let server = Arc::new(Server::primary(&["wal_level=logical"]).await?);
    let mut wanted = wanted();
    wanted.workers = 4;
    let door = Door::before(server, mode, wanted, None).await?;
    settled(&door, Some(true));
    let mut all = Vec::new();
    for _ in 0..6 {
        all.push(raw(&door, "database", &[]).await?);
    }
    for _ in 0..4 {
        let refused = raw(&door, "database", &[]).await.map(drop).unwrap_err().to_string();
        assert!(refused.contains("53300") && refused.contains("role"), "{refused}");
    }
    // Others have places of their own.
    let postgres = [("user", "postgres"), ("database", "postgres"), ("replication", "database")];
    Raw::session(door.address, &postgres).await?;
    all.pop();
    eventually("its place is free", async || raw(&door, "database", &[]).await.ok().map(drop))
        .await;
    Ok(())
}

async fn who_leaves_while_it_waits_gives_its_place_back(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    let database = &door.database[..];
    let with = [("user", "postgres"), ("database", database), ("replication", "database")];
    let startup = Startup::new(&with);
    let waits = async || {
        let mut all = Vec::new();
        for _ in 0..6 {
            all.push(Raw::connect(door.address, &startup).await?);
        }
        door.states("waiting", 6).await;
        anyhow::Ok(all)
    };
    let gone = async || {
        let began = std::time::Instant::now();
        eventually("they are gone", async || (door.clients() == 0).then_some(())).await;
        assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
    };
    // No standby holds what the writer has written.
    settled(&door, None);
    drop(waits().await?);
    gone().await;
    // There is no writer.
    door.no_writer();
    let mut all = waits().await?;
    // What was said too early is not lost.
    let mut patient = all.pop().unwrap();
    patient.say(Say::new().query("SHOW server_version_num")).await?;
    drop(all);
    door.states("waiting", 1).await;
    settled(&door, Some(true));
    door.writer(Term(TERM.0 + 1));
    patient.greeted().await?;
    assert!(patient.answer().await?.ok().value().starts_with("1"));
    drop(patient);
    gone().await;
    Ok(())
}

const FLOOR: &str = "SELECT current_setting('synchronous_commit')";

async fn a_connection_to_a_database_keeps_the_floor(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    door.admin().await?.batch_execute("CREATE TABLE t(i int)").await?;
    let mut raw = raw(&door, "database", &[]).await?;
    let long = format!("SET synchronous_commit = off -- {}", "x".repeat(100_000));
    for sql in [
        &long,
        "SET synchronous_commit = off",
        "BEGIN; SET LOCAL synchronous_commit TO local; INSERT INTO t VALUES (1); COMMIT",
        "SELECT set_config('synchronous_commit', 'off', false)",
        "DO $$ BEGIN SET LOCAL synchronous_commit = off; INSERT INTO t VALUES (1); END $$",
        "ALTER ROLE postgres SET synchronous_commit = off",
        "SET synchronous_commit = E'\\157ff'",
    ] {
        let answer = raw.ask(sql).await?;
        assert_eq!((answer.code(), answer.status), ("42501", 'I'), "{}", &sql[..30]);
        assert_eq!(answer.tags, "EZ");
        assert!(answer.errors[0].hint.contains("synchronous_commit"), "{answer:?}");
    }
    // Its block fails with it.
    raw.ask("BEGIN").await?.ok();
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    let answer = raw.ask("SET LOCAL synchronous_commit = off").await?;
    assert_eq!((answer.code(), answer.status), ("42501", 'E'));
    assert_eq!(raw.ask("SET synchronous_commit = off").await?.status, 'E');
    assert_eq!(raw.ask("COMMIT").await?.ok().commands, ["ROLLBACK"]);
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    // Sent together, each has its answer.
    let all = ["SELECT 1", "SET synchronous_commit = off", "SELECT 2"];
    raw.say(all.into_iter().fold(Say::new(), Say::query)).await?;
    assert_eq!(raw.answer().await?.value(), "1");
    assert_eq!(raw.answer().await?.code(), "42501");
    assert_eq!(raw.answer().await?.value(), "2");
    // What the floor allows, and what has nothing to do with it.
    raw.ask("SET synchronous_commit = remote_apply").await?.ok();
    assert_eq!(raw.value(FLOOR).await?, "remote_apply");
    raw.ask("BEGIN ISOLATION LEVEL REPEATABLE READ").await?.ok();
    let create = "CREATE_REPLICATION_SLOT s TEMPORARY LOGICAL test_decoding USE_SNAPSHOT";
    raw.ask(create).await?.ok();
    raw.ask("COPY t TO STDOUT").await?.ok();
    raw.ask("COMMIT").await?.ok();
    door.want(|wanted| wanted.synchronous_commit_floor = SynchronousCommit::Off);
    raw.ask("SET synchronous_commit = off").await?.ok();
    assert_eq!(raw.value(FLOOR).await?, "off");
    // A floor that rises raises who is there.
    door.want(|wanted| wanted.synchronous_commit_floor = SynchronousCommit::On);
    assert_eq!(raw.value(FLOOR).await?, "on");
    Ok(())
}

async fn a_connection_to_a_database_begins_at_the_floor(mode: Mode) -> Result<()> {
    let door = open(mode).await?;
    for more in [("synchronous_commit", "off"), ("options", "-c synchronous_commit=local")] {
        let refused = raw(&door, "database", &[more]).await.err().unwrap().to_string();
        assert!(refused.contains("42501"), "{refused}");
        // Nothing is committed there.
        raw(&door, "true", &[more]).await?;
    }
    let sql = format!("ALTER DATABASE {} SET synchronous_commit = off", door.database);
    door.admin().await?.batch_execute(&sql).await?;
    let mut raised = raw(&door, "database", &[]).await?;
    assert_eq!(raised.value("SHOW synchronous_commit").await?, "on");
    for reset in ["RESET synchronous_commit", "SET synchronous_commit = DEFAULT", "RESET ALL"] {
        raised.ask("BEGIN").await?.ok();
        raised.ask(reset).await?.ok();
        assert_eq!(raised.value("SHOW synchronous_commit").await?, "on", "{reset}");
        raised.ask("COMMIT").await?.ok();
    }
    let higher = [("synchronous_commit", "remote_apply")];
    let mut higher = raw(&door, "database", &higher).await?;
    assert_eq!(higher.value("SHOW synchronous_commit").await?, "remote_apply");
    Ok(())
}

async fn what_lowers_it_out_of_sight_is_raised_before_the_next_transaction(
    mode: Mode,
) -> Result<()> {
    let door = open(mode).await?;
    let sql = "CREATE FUNCTION hidden() RETURNS void LANGUAGE plpgsql AS \
               $$ BEGIN PERFORM set_config('synchronous' || '_commit', 'off', false); END $$; \
               CREATE VIEW looks AS SELECT hidden()::text";
    door.admin().await?.batch_execute(sql).await?;
    let mut raw = raw(&door, "database", &[]).await?;
    for sql in [
        "SELECT hidden()",
        "SELECT * FROM looks",
        "SELECT set_config('synchronous' || '_commit', 'off', false)",
    ] {
        raw.ask(sql).await?.ok();
        assert_eq!(raw.value(FLOOR).await?, "on", "{sql}");
    }
    Ok(())
}
