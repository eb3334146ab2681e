//! The port that only reads: drivers know it, standbys serve it, nothing can be written through it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use quorate_core::gateway::PoolMode;
use quorate_gateway::View;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::{Answer, Raw, Say};
use crate::server::command;

in_both_modes! {
    drivers_find_the_port_that_they_want
    reads_go_to_a_standby_whatever_they_call
    nothing_is_written_through_it
    nothing_is_written_behind_a_block_that_was_lost
    without_a_standby_nothing_is_written_either
    a_session_leaves_nothing_on_a_standby
    what_a_standby_cancels_is_asked_again
    reads_go_on_while_there_is_no_writer
    a_replica_that_could_not_be_reached_is_tried_again_while_there_is_no_writer
    a_pool_in_session_mode_keeps_nobody_there
}

const WHERE: &str = "SELECT standby FROM place";

/// A client of the port that only reads.
async fn reader(door: &Door) -> Result<Raw> {
    Raw::session(door.read_only, &[("user", "postgres"), ("database", &door.database)]).await
}

/// A door with a standby that serves, something to write to, and views that write unseen.
async fn reading(mode: Mode) -> Result<Door> {
    let door = Door::with_standby(mode).await?;
    let sql = "CREATE TABLE t(i int); CREATE SEQUENCE s; \
               CREATE FUNCTION clash() RETURNS text LANGUAGE plpgsql AS $$ BEGIN \
                   RAISE SQLSTATE '40001'; END $$; \
               CREATE VIEW hidden AS SELECT nextval('s') AS n; \
               CREATE VIEW makes AS SELECT lo_create(4711); \
               CREATE VIEW makes_too AS SELECT * FROM makes; \
               CREATE VIEW lifts AS SELECT set_config('default_transaction_read_only', 'off', false)";
    door.define(sql).await?;
    door.standby_follows().await?;
    // However long a test takes on a busy machine.
    door.want(|wanted| wanted.hold_ms = 60_000);
    door.replayed(50).await?;
    Ok(door)
}

/// Whether libpq takes a port for what it is asked to find.
async fn takes(door: &Door, at: SocketAddr, wanted: &str) -> Result<bool> {
    let target = format!(
        "host=127.0.0.1 port={} user=postgres dbname={} target_session_attrs={wanted}",
        at.port(),
        door.database
    );
    let mut psql = command("psql");
    psql.args(["-X", "-A", "-t", "-c", "SELECT 1", &target]);
    let done = tokio::task::spawn_blocking(move || psql.output()).await??;
    Ok(done.status.success())
}

async fn drivers_find_the_port_that_they_want(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    for (wanted, normal, read_only) in [
        ("any", true, true),
        ("read-write", true, false),
        ("primary", true, false),
        ("read-only", false, true),
        ("standby", false, true),
        // Takes any other when there is none.
        ("prefer-standby", true, true),
    ] {
        assert_eq!(takes(&door, door.address, wanted).await?, normal, "{wanted}");
        assert_eq!(takes(&door, door.read_only, wanted).await?, read_only, "{wanted}");
    }
    let raw = reader(&door).await?;
    assert_eq!(raw.parameters["in_hot_standby"], "on");
    assert_eq!(raw.parameters["default_transaction_read_only"], "on");
    let raw = door.raw().await?;
    assert_eq!(raw.parameters["in_hot_standby"], "off");
    Ok(())
}

async fn reads_go_to_a_standby_whatever_they_call(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    // Reads of the other port stay where they were wanted.
    door.want(|wanted| wanted.split = false);
    assert_eq!(door.raw().await?.value(WHERE).await?, "off");
    let mut raw = reader(&door).await?;
    assert_eq!(raw.value("SELECT pg_is_in_recovery()").await?, "t");
    assert_eq!(raw.value("SHOW default_transaction_read_only").await?, "on");
    assert_eq!(raw.value("SHOW transaction_read_only").await?, "on");
    for extended in [false, true] {
        say(&mut raw, "BEGIN", extended).await?.ok();
        assert_eq!(say(&mut raw, WHERE, extended).await?.ok().value(), "on");
        say(&mut raw, "COMMIT", extended).await?.ok();
        say(&mut raw, "SET work_mem = '5MB'", extended).await?.ok();
        assert_eq!(say(&mut raw, "SHOW work_mem", extended).await?.ok().value(), "5MB");
        say(&mut raw, "RESET ALL", extended).await?.ok();
        assert_eq!(say(&mut raw, "SHOW work_mem", extended).await?.ok().value(), "4MB");
    }
    // The level decides here, too.
    raw.ask("SET quorate.consistency = 'strong'").await?.ok();
    assert_eq!(raw.value(WHERE).await?, "off");
    Ok(())
}

/// Both ways to ask.
async fn say(raw: &mut Raw, sql: &str, extended: bool) -> Result<Answer> {
    match extended {
        true => raw.exchange(Say::new().statement(sql).sync()).await,
        false => raw.ask(sql).await,
    }
}

/// What might make a session one that may write.
const TRIES: &[&str] = &[
    "SELECT 1",
    "SET default_transaction_read_only = off",
    "SET transaction_read_only = off",
    "RESET default_transaction_read_only",
    "RESET ALL",
    "DISCARD ALL",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT * FROM lifts",
    "DO $$ BEGIN SET default_transaction_read_only = off; COMMIT; INSERT INTO t VALUES (0); END $$",
    "BEGIN READ WRITE",
    "BEGIN; SET TRANSACTION READ WRITE",
    "BEGIN; SET LOCAL transaction_read_only = off",
    "SELECT * FROM lifts; COMMIT; SELECT * FROM hidden",
    "COMMIT; BEGIN READ WRITE; INSERT INTO t VALUES (0); COMMIT",
    "SET quorate.read_from = 'writer'",
    "SET quorate.consistency = 'strong'",
];

const WRITES: &[&str] = &[
    "INSERT INTO t VALUES (1)",
    "SELECT * FROM hidden",
    "SELECT nextval('s')",
    // PostgreSQL 15 lets this through where nothing may be written.
    "SELECT * FROM makes",
    "TABLE makes_too",
    "CREATE TABLE u(i int)",
    "WITH x AS (INSERT INTO t VALUES (2) RETURNING i) SELECT * FROM x",
    "BEGIN READ WRITE; INSERT INTO t VALUES (3); COMMIT",
];

/// Tries everything; nothing is written.
async fn tried(door: &Door) -> Result<()> {
    for before in TRIES {
        for extended in [false, true] {
            let mut raw = reader(door).await?;
            // Whatever it says to that.
            if say(&mut raw, before, extended).await?.status == ' ' {
                raw = reader(door).await?;
            }
            for write in WRITES {
                let answer = say(&mut raw, write, extended).await?;
                ensure!(!answer.errors.is_empty(), "{before}: {write}: {answer:?}");
                if answer.status == ' ' {
                    raw = reader(door).await?;
                }
            }
        }
    }
    let sql = "SELECT (SELECT count(*) FROM t) || ' ' || (SELECT is_called FROM s) || ' ' \
               || (to_regclass('u') IS NULL) || ' ' \
               || (SELECT count(*) FROM pg_largeobject_metadata)";
    assert_eq!(door.value(sql).await?, "0 false true 0");
    Ok(())
}

async fn nothing_is_written_through_it(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    tried(&door).await?;
    door.replayed(50).await?;
    let mut raw = reader(&door).await?;
    for extended in [false, true] {
        let answer = say(&mut raw, "INSERT INTO t VALUES (1)", extended).await?;
        assert_eq!((answer.code(), answer.status), ("25006", 'I'));
        let expected = format!("This port only reads. Writes are taken at {}.", door.address);
        assert_eq!(answer.errors[0].hint, expected);
        // In a block it fails as anywhere.
        say(&mut raw, "BEGIN", extended).await?.ok();
        let answer = say(&mut raw, "DELETE FROM t", extended).await?;
        assert_eq!((answer.code(), answer.status), ("25006", 'E'));
        assert_eq!(say(&mut raw, "COMMIT", extended).await?.commands, ["ROLLBACK"]);
    }
    // Nobody else is affected by what such sessions tried.
    let mut raw = door.raw().await?;
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    assert_eq!(raw.value("SHOW default_transaction_read_only").await?, "off");
    Ok(())
}

async fn without_a_standby_nothing_is_written_either(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    door.want(|wanted| wanted.hold_ms = 0);
    door.change(|view| view.replicas.clear());
    tried(&door).await?;
    // The writer answers what reads, and nothing else.
    let mut raw = reader(&door).await?;
    assert_eq!(raw.value(WHERE).await?, "off");
    for read in ["SELECT * FROM hidden", "SELECT * FROM makes", "TABLE makes_too"] {
        for extended in [false, true] {
            assert_eq!(say(&mut raw, read, extended).await?.code(), "25006", "{read}");
        }
    }
    assert_eq!(raw.ask("INSERT INTO t VALUES (1)").await?.code(), "25006");
    assert_eq!(raw.ask("BEGIN").await?.code(), "57P03");
    // The connection serves others afterwards.
    let mut raw = door.raw().await?;
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    Ok(())
}

async fn a_session_leaves_nothing_on_a_standby(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    let mut raw = reader(&door).await?;
    for sql in ["SELECT pg_advisory_lock(1)", "PREPARE p AS SELECT 1", "LISTEN c"] {
        for extended in [false, true] {
            assert_eq!(say(&mut raw, sql, extended).await?.code(), "25006", "{sql}");
            raw.ask("BEGIN").await?.ok();
            let answer = say(&mut raw, sql, extended).await?;
            assert_eq!((answer.code(), answer.status), ("25006", 'E'), "{sql}");
            raw.ask("ROLLBACK").await?.ok();
        }
    }
    assert_eq!(raw.value(WHERE).await?, "on");
    Ok(())
}

async fn what_a_standby_cancels_is_asked_again(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    let mut raw = reader(&door).await?;
    assert_eq!(raw.ask("SELECT clash()").await?.code(), "40001");
    let mut console = door.console().await?;
    let stats = console.ask("SHOW STATS").await?.ok();
    let row = stats.rows.iter().find(|r| r[0] == door.database && &r[1] == "postgres").unwrap();
    assert_eq!(&row[4], "3", "asked again as often as anything is: {row:?}");
    Ok(())
}

async fn reads_go_on_while_there_is_no_writer(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    door.no_writer();
    let mut raw = reader(&door).await?;
    assert_eq!(raw.value(WHERE).await?, "on");
    // Without replicas, too, they wait.
    door.change(|view| view.replicas.clear());
    let moment = std::time::Duration::from_millis(200);
    tokio::time::sleep(moment).await;
    let (begun, back) = tokio::join!(raw.ask("BEGIN"), async {
        tokio::time::sleep(moment).await;
        door.replayed(50).await
    });
    back?;
    begun?.ok();
    assert_eq!(raw.value(WHERE).await?, "on");
    Ok(())
}

/// At first what is known of the replica is not true of it, as when it starts anew: then it is.
async fn a_replica_that_could_not_be_reached_is_tried_again_while_there_is_no_writer(
    mode: Mode,
) -> Result<()> {
    let door = reading(mode).await?;
    let mut known = door.raw().await?;
    assert_eq!(known.value(WHERE).await?, "on");
    let another = |view: &mut View| view.replicas.iter_mut().for_each(|r| r.incarnation += 1);
    let moment = std::time::Duration::from_millis(200);
    door.no_writer();
    for comes_in in [true, false] {
        door.change(another);
        let (place, back) = tokio::join!(
            async {
                match comes_in {
                    true => reader(&door).await?.value(WHERE).await,
                    false => known.value(WHERE).await,
                }
            },
            async {
                tokio::time::sleep(moment).await;
                door.replayed(50).await
            }
        );
        back?;
        assert_eq!(place?, "on", "comes in: {comes_in}");
    }
    Ok(())
}

async fn a_pool_in_session_mode_keeps_nobody_there(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    door.want(|wanted| wanted.pool.mode = PoolMode::Session);
    let mut raw = reader(&door).await?;
    assert_eq!(raw.value(WHERE).await?, "on");
    raw.ask("SET quorate.consistency = 'strong'").await?.ok();
    assert_eq!(raw.value(WHERE).await?, "off");
    assert_eq!(raw.ask("INSERT INTO t VALUES (1)").await?.code(), "25006");
    Ok(())
}

async fn nothing_is_written_behind_a_block_that_was_lost(mode: Mode) -> Result<()> {
    let door = reading(mode).await?;
    let mut raw = reader(&door).await?;
    for (first, then) in [
        ("ROLLBACK; BEGIN READ WRITE; INSERT INTO t VALUES (1); COMMIT", ""),
        ("ROLLBACK AND CHAIN", "SET TRANSACTION READ WRITE; INSERT INTO t VALUES (1); COMMIT"),
        ("ROLLBACK; INSERT INTO t VALUES (1)", "COMMIT"),
    ] {
        raw.ask("BEGIN").await?.ok();
        assert_eq!(raw.ask("LISTEN x").await?.code(), "25006");
        assert_eq!(raw.ask(first).await?.code(), "25P02", "{first}");
        raw.ask(then).await?;
        let flushed = Say::new().statement("ROLLBACK").message(b'H', b"");
        let flushed = flushed.statement("INSERT INTO t VALUES (1)").sync();
        raw.exchange(flushed).await?;
        raw.ask("ROLLBACK").await?;
        assert_eq!(raw.ask("SELECT 1").await?.ok().status, 'I');
        assert_eq!(door.value("SELECT count(*) FROM t").await?, "0", "{first}");
    }
    Ok(())
}
