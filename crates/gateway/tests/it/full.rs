//! A writer whose disk is almost full: nothing is written, everything else goes on.

use anyhow::Result;
use quorate_core::gateway::PoolMode;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::{Answer, Raw, Say};

in_both_modes! {
    nothing_is_written_while_the_disk_is_short
    open_transactions_come_to_an_end
    who_keeps_a_server_is_stopped_too
    who_makes_room_may_write
    nothing_of_it_stays_with_anybody
}

async fn door(mode: Mode) -> Result<Door> {
    let door = Door::open(mode).await?;
    let sql = "CREATE TABLE t(i int); CREATE SEQUENCE s; \
               CREATE FUNCTION put() RETURNS int LANGUAGE sql AS \
               'INSERT INTO t VALUES (7) RETURNING i'";
    door.define(sql).await?;
    Ok(door)
}

fn full(door: &Door, full: bool) {
    let facts = full.then(|| "On n1: 10 MB of 10 GB are free.".into());
    door.change(|view| view.full = facts);
}

async fn say(raw: &mut Raw, sql: &str, extended: bool) -> Result<Answer> {
    match extended {
        true => raw.exchange(Say::new().statement(sql).sync()).await,
        false => raw.ask(sql).await,
    }
}

/// Until the gateway's threads have heard of it.
async fn stopped(raw: &mut Raw, stopped: bool) -> Result<()> {
    let code = if stopped { "53100" } else { "" };
    while raw.ask("DELETE FROM t WHERE false").await?.code() != code {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn nothing_is_written_while_the_disk_is_short(mode: Mode) -> Result<()> {
    let door = door(mode).await?;
    let mut raw = door.raw().await?;
    full(&door, true);
    stopped(&mut raw, true).await?;
    for extended in [false, true] {
        for sql in [
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET i = 2",
            "WITH a AS (INSERT INTO t VALUES (1) RETURNING i) SELECT * FROM a",
            "SELECT i INTO u FROM t",
            // Only PostgreSQL knows that these write.
            "SELECT put()",
            "DO 'BEGIN PERFORM put(); END'",
            "SELECT nextval('s')",
            "CREATE TABLE u()",
            "DROP TABLE t",
        ] {
            let answer = say(&mut raw, sql, extended).await?;
            assert_eq!(answer.code(), "53100", "{sql}");
            assert!(answer.errors[0].message.contains("almost full"), "{sql}");
        }
        for sql in [
            "SELECT count(*) FROM t",
            "SET work_mem = '5MB'",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT pg_is_in_recovery()",
            "BEGIN",
            "SELECT 1",
            "COMMIT",
        ] {
            say(&mut raw, sql, extended).await?.ok();
        }
        say(&mut raw, "BEGIN", extended).await?.ok();
        assert_eq!(say(&mut raw, "INSERT INTO t VALUES (1)", extended).await?.code(), "53100");
        say(&mut raw, "ROLLBACK", extended).await?.ok();
    }
    let copied = raw.ask("COPY t FROM STDIN").await?;
    assert_eq!(copied.code(), "53100");
    full(&door, false);
    stopped(&mut raw, false).await?;
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "1");
    Ok(())
}

async fn open_transactions_come_to_an_end(mode: Mode) -> Result<()> {
    let door = door(mode).await?;
    let (mut before, mut probe) = (door.raw().await?, door.raw().await?);
    before.ask("BEGIN").await?.ok();
    before.ask("INSERT INTO t VALUES (1)").await?.ok();
    full(&door, true);
    stopped(&mut probe, true).await?;
    before.ask("SELECT count(*) FROM t").await?.ok();
    before.ask("COMMIT").await?.ok();
    assert_eq!(probe.value("SELECT count(*) FROM t").await?, "1");
    Ok(())
}

async fn who_keeps_a_server_is_stopped_too(mode: Mode) -> Result<()> {
    let door = door(mode).await?;
    let mut pinned = door.raw().await?;
    pinned.ask("CREATE TEMP TABLE mine(i int)").await?.ok();
    door.want(|wanted| wanted.pool.mode = PoolMode::Session);
    let (mut kept, mut probe) = (door.raw().await?, door.raw().await?);
    kept.ask("SELECT 1").await?.ok();
    full(&door, true);
    stopped(&mut probe, true).await?;
    for raw in [&mut pinned, &mut kept] {
        assert_eq!(raw.ask("INSERT INTO t VALUES (1)").await?.code(), "53100");
        raw.ask("SELECT count(*) FROM t").await?.ok();
    }
    full(&door, false);
    stopped(&mut probe, false).await?;
    for raw in [&mut pinned, &mut kept] {
        raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    }
    Ok(())
}

async fn who_makes_room_may_write(mode: Mode) -> Result<()> {
    let door = door(mode).await?;
    let mut raw = door.raw().await?;
    full(&door, true);
    stopped(&mut raw, true).await?;
    assert_eq!(raw.ask("SET quorate.allow_writes_when_full = perhaps").await?.code(), "22023");
    raw.ask("SET quorate.allow_writes_when_full = on").await?.ok();
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    raw.ask("TRUNCATE t").await?.ok();
    raw.ask("RESET quorate.allow_writes_when_full").await?.ok();
    assert_eq!(raw.ask("TRUNCATE t").await?.code(), "53100");
    Ok(())
}

async fn nothing_of_it_stays_with_anybody(mode: Mode) -> Result<()> {
    let door = door(mode).await?;
    let mut raw = door.raw().await?;
    full(&door, true);
    stopped(&mut raw, true).await?;
    // What makes the gateway look at all settings, while there are some that are not the client's.
    raw.ask("RESET ALL").await?.ok();
    raw.ask("DO 'BEGIN PERFORM 1; END'").await?.ok();
    raw.ask("SELECT 1").await?.ok();
    full(&door, false);
    stopped(&mut raw, false).await?;
    assert_eq!(raw.value("SHOW default_transaction_read_only").await?, "off");
    let mut other = door.raw().await?;
    assert_eq!(other.value("SHOW default_transaction_read_only").await?, "off");
    other.ask("INSERT INTO t VALUES (1)").await?.ok();
    Ok(())
}
