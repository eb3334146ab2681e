//! Reads that a standby serves, when it is known to have what they must see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use quorate_core::gateway::PoolMode;
use quorate_core::{Lsn, Term};

use crate::door::{Door, Mode, TERM, in_both_modes};
use crate::raw::{Answer, Raw, Say};
use crate::server::eventually;

in_both_modes! {
    reads_go_to_a_standby_that_has_what_they_must_see
    a_token_that_is_handed_over_stays_where_it_was
    comments_ask_for_one_statement_however_it_is_sent
    every_way_to_write_is_seen_by_the_reads_behind_it
    hidden_writes_are_seen_by_the_reads_behind_them
    a_view_over_a_function_that_writes_is_taken_for_a_write
    built_in_functions_without_a_name_are_seen_by_the_reads_behind_them
    what_a_standby_refuses_is_done_by_the_writer
    a_standby_that_stops_serving_is_left
    a_conflict_with_replay_behind_the_first_row_is_not_seen
    what_a_standby_refuses_to_prepare_is_done_by_the_writer
    what_a_standby_refuses_of_several_statements_is_done_by_the_writer
    a_session_that_a_standby_cannot_serve_leaves_it_to_others
    an_error_of_a_read_comes_behind_its_rows
    a_read_only_block_goes_on_at_the_writer_when_it_must
    settings_of_a_block_that_goes_on_at_the_writer_follow_their_client
    a_read_only_block_with_one_snapshot_does_not_move
    a_read_only_block_may_write_where_postgresql_lets_it
    a_session_pool_begins_at_the_writer
    what_a_reset_at_a_standby_finds_is_not_taken_for_a_setting
    what_a_standby_has_shown_is_waited_for_on_the_writer
    what_is_waited_for_is_not_waited_for_forever
    what_a_standby_has_shown_is_of_the_history_that_it_followed
    a_client_that_leaves_a_long_read_is_gone
}

const WHERE: &str = "SELECT standby FROM place";

/// Waits until reads of this client are served by a standby, or by the writer.
async fn goes(raw: &mut Raw, standby: bool) {
    eventually("it goes there", async || {
        let answer = raw.ask(WHERE).await.unwrap();
        ((answer.value() == "on") == standby).then_some(())
    })
    .await;
}

async fn reads_go_to_a_standby_that_has_what_they_must_see(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, false).await;
    door.replayed(50).await?;
    goes(&mut raw, true).await;
    let answer = raw.exchange(Say::new().statement(WHERE).sync()).await?;
    assert_eq!((&answer.tags[..], answer.value()), ("12DCZ", "on"));
    // Blocks and writes go to the writer, unless a block says that it reads only.
    raw.ask("BEGIN").await?.ok();
    assert_eq!(raw.value(WHERE).await?, "off");
    raw.ask("COMMIT").await?.ok();
    raw.ask("BEGIN READ ONLY").await?.ok();
    raw.value(WHERE).await?;
    raw.ask("COMMIT").await?.ok();
    // It must see what it wrote itself.
    door.acknowledged(TERM, 100);
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    assert_eq!(raw.value(WHERE).await?, "off");
    goes(&mut door.raw().await?, true).await;
    door.replayed(99).await?;
    assert_eq!(raw.value(WHERE).await?, "off");
    door.replayed(100).await?;
    goes(&mut raw, true).await;
    // As the client asks for it.
    raw.ask("SET quorate.consistency = 'strong'").await?.ok();
    goes(&mut raw, false).await;
    raw.ask("SET quorate.consistency = 'eventual'").await?.ok();
    goes(&mut raw, true).await;
    raw.ask("SET quorate.read_from = 'writer'").await?.ok();
    goes(&mut raw, false).await;
    raw.ask("RESET ALL").await?.ok();
    door.want(|wanted| wanted.split = false);
    goes(&mut raw, false).await;
    Ok(())
}

async fn a_token_that_is_handed_over_stays_where_it_was(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.replayed(50).await?;
    let (mut one, mut other) = (door.raw().await?, door.raw().await?);
    other.ask("SET quorate.consistency = 'causal'").await?.ok();
    door.acknowledged(TERM, 60);
    one.ask("CREATE TABLE t(i int)").await?.ok();
    let token = one.value("SHOW quorate.token").await?;
    // What others write meanwhile, neither of them has seen.
    door.acknowledged(TERM, 100);
    assert_eq!(one.value("SHOW quorate.token").await?, token);
    let set = format!("SET quorate.token = '{token}'");
    other.ask(&set).await?.ok();
    assert_eq!(other.value("SHOW quorate.token").await?, token);
    door.replayed(60).await?;
    goes(&mut one, true).await;
    assert_eq!(other.value(WHERE).await?, "on");
    // Who reads on the writer may have seen it, whatever comes before or behind.
    let several = format!("{set}; TABLE t");
    for groups in [
        vec![Say::new().query(&several)],
        vec![Say::new().statement("TABLE t").statement(&set).sync()],
        vec![
            Say::new().query("BEGIN"),
            Say::new().query(&set),
            Say::new().query("TABLE t; COMMIT"),
        ],
        vec![Say::new().query(&set), Say::new().query("/* quorate: writer */ TABLE t")],
        vec![Say::new().query(&set), Say::new().parse("", "TABLE t").describe(b'S', "").sync()],
    ] {
        let mut raw = door.raw().await?;
        raw.ask("SET quorate.consistency = 'causal'").await?.ok();
        raw.ask(&set).await?.ok();
        for group in groups {
            raw.exchange(group).await?;
        }
        assert_eq!(raw.value(WHERE).await?, "off");
    }
    Ok(())
}

async fn comments_ask_for_one_statement_however_it_is_sent(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, true).await;
    let strong = "SELECT /* quorate: strong */ standby FROM place";
    let eventual = "/* quorate: eventual, prefer */ SELECT standby FROM place";
    // By itself, parsed and run at once, and prepared before.
    for (name, sql, place) in [("a", strong, "off"), ("b", eventual, "on")] {
        assert_eq!(raw.value(sql).await?, place);
        assert_eq!(raw.exchange(Say::new().statement(sql).sync()).await?.value(), place);
        raw.exchange(Say::new().parse(name, sql).sync()).await?.ok();
        for _ in 0..3 {
            let again = Say::new().run(name, &[]);
            assert_eq!(raw.exchange(again).await?.value(), place, "{sql}");
        }
    }
    // What the session wrote is not there yet, and only one of them may miss it.
    door.acknowledged(TERM, 100);
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    for (name, place) in [("a", "off"), ("b", "on")] {
        let again = Say::new().run(name, &[]);
        assert_eq!(raw.exchange(again).await?.value(), place);
    }
    assert_eq!(raw.value(WHERE).await?, "off");
    // Who is not understood must not get less than was asked for.
    for wrong in ["strnog", "strong,max_staleness=soon"] {
        let sql = format!("SELECT /* quorate: {wrong} */ 1");
        assert_eq!(raw.ask(&sql).await?.code(), "22023");
        assert_eq!(raw.exchange(Say::new().parse("w", &sql).sync()).await?.code(), "22023");
        assert_eq!(raw.value("SELECT 1").await?, "1");
    }
    Ok(())
}

async fn every_way_to_write_is_seen_by_the_reads_behind_it(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.value("CREATE TABLE t(i int); SELECT 1").await?;
    let mut end = 50;
    let long = format!("INSERT INTO t VALUES (1) -- {}", "x".repeat(100_000));
    for write in [
        &long,
        "INSERT INTO t VALUES (1)",
        "BEGIN; INSERT INTO t VALUES (1); COMMIT",
        "INSERT INTO t VALUES (1); COMMIT",
        "BEGIN; INSERT INTO t VALUES (1); COMMIT; BEGIN READ ONLY; COMMIT",
        "DO $$ BEGIN INSERT INTO t VALUES (1); COMMIT; END $$",
        "SELECT 1; INSERT INTO t VALUES (1)",
        "WITH w AS (INSERT INTO t VALUES (1) RETURNING i) SELECT i FROM w",
    ] {
        door.replayed(end).await?;
        let mut raw = door.raw().await?;
        goes(&mut raw, true).await;
        door.acknowledged(TERM, end + 10);
        raw.ask(write).await?.ok();
        assert_eq!(raw.value(WHERE).await?, "off", "{write}");
        end += 10;
    }
    Ok(())
}

/// What writes though it looks like a read goes to the writer by itself, or by chance.
async fn hidden_writes_are_seen_by_the_reads_behind_them(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.define(
        "CREATE TABLE t(i int); INSERT INTO t VALUES (1);
         CREATE FUNCTION writes(int) RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO t VALUES (1); RETURN 1; END $$;
         CREATE FUNCTION of_row(t) RETURNS int LANGUAGE sql AS 'SELECT writes(1)';
         CREATE FUNCTION checks(int) RETURNS boolean LANGUAGE sql AS 'SELECT writes(1) = 1';
         CREATE VIEW hidden AS SELECT writes(1);
         CREATE OPERATOR !!! (RIGHTARG = int, FUNCTION = writes);
         CREATE DOMAIN checked AS int CHECK (checks(VALUE))",
    )
    .await?;
    made(&door, "").await?;
    let mut end = 50;
    for write in [
        "SELECT * FROM hidden",
        "SELECT OPERATOR(public.!!!) 1",
        "SELECT t.of_row FROM t LIMIT 1",
        "SELECT 1::checked",
    ] {
        for first in ["off", "on"] {
            // As the standby is found fit for it, or not.
            door.replayed(end).await?;
            let mut raw = door.raw().await?;
            goes(&mut raw, true).await;
            if first == "off" {
                door.acknowledged(TERM, end + 10);
                raw.ask("INSERT INTO t VALUES (1)").await?.ok();
                end += 10;
            }
            assert_eq!(raw.value(WHERE).await?, first);
            door.acknowledged(TERM, end + 10);
            raw.ask(write).await?.ok();
            door.replayed(end).await?;
            assert_eq!(raw.value(WHERE).await?, "off", "{write}, {first}");
            end += 10;
        }
    }
    Ok(())
}

async fn a_view_over_a_function_that_writes_is_taken_for_a_write(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let calls = [
        "nextval('s')",
        "setval('s', 1)",
        "lo_create(0)",
        "lo_from_bytea(0, 'x')",
        "lo_put(1, 0, 'x')",
        "lo_unlink(lo_create(0))",
        "pg_advisory_xact_lock(1)",
        "pg_notify('c', 'x')",
        "set_config('app.user', 'x', true)",
        "txid_current()",
        "pg_current_xact_id()",
        "pg_logical_emit_message(true, 'a', 'b')",
    ];
    let mut sql = "CREATE SEQUENCE s; SELECT lo_create(1); CREATE TABLE guarded(i int); \
                   CREATE POLICY p ON guarded USING (nextval('s') > 0)"
        .to_owned();
    for (i, call) in calls.iter().enumerate() {
        sql += &format!("; CREATE VIEW \"V {i}\" AS SELECT pg_is_in_recovery(), {call}::text");
    }
    sql += "; CREATE VIEW outermost AS SELECT * FROM (SELECT * FROM \"V 0\") v";
    door.define(&sql).await?;
    made(&door, "").await?;
    let mut reads: Vec<_> = (0..calls.len()).map(|i| format!("SELECT * FROM \"V {i}\"")).collect();
    reads.push("TABLE outermost".to_owned());
    reads.push("SELECT pg_is_in_recovery() FROM (SELECT count(*) FROM guarded) g".to_owned());
    let mut end = 50;
    for (i, read) in reads.iter().enumerate() {
        door.replayed(end).await?;
        let mut raw = door.raw().await?;
        goes(&mut raw, true).await;
        end += 10;
        door.acknowledged(TERM, end);
        assert_eq!(say(&mut raw, read, i % 2 == 0).await?.value(), "f", "{read}");
        assert_eq!(raw.value(WHERE).await?, "off", "{read}");
        // Who has not written reads on.
        assert_eq!(door.raw().await?.value(WHERE).await?, "on");
    }
    let metrics = door.metrics().await;
    assert!(metrics.accounts.iter().all(|a| a.counters["refused_by_replica"] == 0));
    Ok(())
}

async fn built_in_functions_without_a_name_are_seen_by_the_reads_behind_them(
    mode: Mode,
) -> Result<()> {
    for (create, write) in [
        ("CREATE OPERATOR !!! (RIGHTARG = oid, FUNCTION = lo_create)", "SELECT !!! 0::oid"),
        ("CREATE DOMAIN d AS int CHECK (lo_create(0) > 0)", "SELECT 1::d"),
    ] {
        let door = Door::with_standby(mode).await?;
        let mut raw = door.raw().await?;
        raw.ask(create).await?.ok();
        made(&door, "").await?;
        // The writer runs it, since the standby lacks what the session wrote.
        door.acknowledged(TERM, 60);
        raw.ask("CREATE TABLE t(i int)").await?.ok();
        door.replayed(50).await?;
        door.acknowledged(TERM, 70);
        raw.ask(write).await?.ok();
        door.replayed(60).await?;
        goes(&mut door.raw().await?, true).await;
        assert_eq!(raw.value(WHERE).await?, "off", "{write}");
    }
    Ok(())
}

async fn what_a_standby_refuses_is_done_by_the_writer(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let admin = door.admin().await?;
    admin
        .batch_execute(
            "CREATE SEQUENCE s; CREATE FUNCTION next() RETURNS bigint STABLE LANGUAGE plpgsql AS
                 $$ BEGIN RETURN nextval('s'); END $$;
             CREATE VIEW hidden AS SELECT next() AS n",
        )
        .await?;
    door.standby_follows().await?;
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, true).await;
    assert_eq!(raw.value("SELECT n FROM hidden").await?, "1");
    assert_eq!(
        raw.exchange(Say::new().statement("SELECT n FROM hidden").sync()).await?.value(),
        "2"
    );
    assert_eq!(raw.value("SELECT n FROM hidden").await?, "3");
    goes(&mut raw, true).await;
    let mut console = door.console().await?;
    let stats = console.ask("SHOW STATS").await?.ok();
    let row = stats.rows.iter().find(|r| r[0] == door.database).unwrap();
    // Both protocols: the same text is the same statement.
    assert_eq!(&row[5], "1", "refused once, remembered since: {row:?}");
    assert!(row[12].contains("refused=2"), "{row:?}");
    Ok(())
}

async fn a_standby_that_stops_serving_is_left(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, true).await;
    door.reads.close();
    door.change(|view| view.replicas.clear());
    goes(&mut raw, false).await;
    // Said to serve when it does not: the writer answers.
    door.replayed(50).await?;
    goes(&mut raw, false).await;
    Ok(())
}

/// A client whose reads go to a standby, if it need not keep its server.
async fn reading(mode: Mode, spec: PoolMode) -> Result<(Door, Raw)> {
    let door = Door::with_standby(mode).await?;
    door.want(|wanted| wanted.pool.mode = spec);
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    raw.ask("SET quorate.consistency = 'eventual'").await?.ok();
    if spec == PoolMode::Transaction {
        goes(&mut raw, true).await;
    }
    Ok((door, raw))
}

/// Both ways to ask.
async fn say(raw: &mut Raw, sql: &str, extended: bool) -> Result<Answer> {
    match extended {
        true => raw.exchange(Say::new().statement(sql).sync()).await,
        false => raw.ask(sql).await,
    }
}

async fn a_read_only_block_goes_on_at_the_writer_when_it_must(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    for extended in [false, true] {
        // Nothing was read; something was, with a snapshot for each statement.
        for read in [false, true] {
            say(&mut raw, "BEGIN READ ONLY", extended).await?.ok();
            say(&mut raw, "SET LOCAL work_mem = '5MB'", extended).await?.ok();
            say(&mut raw, "SAVEPOINT s", extended).await?.ok();
            if read {
                assert_eq!(say(&mut raw, WHERE, extended).await?.ok().value(), "on");
            }
            assert_eq!(say(&mut raw, "SELECT pg_advisory_lock(7)", extended).await?.status, 'T');
            assert_eq!(say(&mut raw, "SHOW work_mem", extended).await?.ok().value(), "5MB");
            say(&mut raw, "ROLLBACK TO s", extended).await?.ok();
            assert_eq!(say(&mut raw, WHERE, extended).await?.ok().value(), "off");
            say(&mut raw, "COMMIT", extended).await?.ok();
            assert_eq!(say(&mut raw, "SHOW work_mem", extended).await?.ok().value(), "4MB");
            assert_eq!(raw.value("SELECT pg_advisory_unlock(7)").await?, "t");
            raw.ask("DISCARD ALL").await?.ok();
            goes(&mut raw, true).await;
        }
    }
    Ok(())
}

async fn settings_of_a_block_that_goes_on_at_the_writer_follow_their_client(
    mode: Mode,
) -> Result<()> {
    let (door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    for (end, after) in [("COMMIT", "5MB"), ("ROLLBACK", "4MB")] {
        for extended in [false, true] {
            say(&mut raw, "BEGIN READ ONLY", extended).await?.ok();
            say(&mut raw, "SET work_mem = '5MB'", extended).await?.ok();
            say(&mut raw, "NOTIFY c", extended).await?.ok();
            assert_eq!(say(&mut raw, WHERE, extended).await?.ok().value(), "off");
            say(&mut raw, end, extended).await?.ok();
            // On the writer, for the next client too, and on the standby.
            let mut other = door.raw().await?;
            other.ask("BEGIN").await?.ok();
            assert_eq!(other.value("SHOW work_mem").await?, "4MB");
            raw.ask("BEGIN").await?.ok();
            assert_eq!(raw.value("SHOW work_mem").await?, after);
            raw.ask("COMMIT").await?.ok();
            other.ask("COMMIT").await?.ok();
            assert_eq!(raw.value("SELECT current_setting('work_mem')").await?, after);
            raw.ask("RESET work_mem").await?.ok();
        }
    }
    Ok(())
}

async fn a_read_only_block_with_one_snapshot_does_not_move(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    for extended in [false, true] {
        say(&mut raw, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", extended).await?.ok();
        assert_eq!(say(&mut raw, WHERE, extended).await?.ok().value(), "on");
        let answer = say(&mut raw, "DECLARE c CURSOR WITH HOLD FOR SELECT 1", extended).await?;
        assert_eq!((answer.code(), answer.status), ("25006", 'E'));
        assert_eq!(say(&mut raw, "SELECT 1", extended).await?.code(), "25P02");
        assert_eq!(say(&mut raw, "ROLLBACK", extended).await?.status, 'I');
        // Nothing is left of it.
        say(&mut raw, "CREATE TEMP TABLE t(i int)", extended).await?.ok();
        raw.ask("DISCARD ALL").await?.ok();
    }
    Ok(())
}

async fn a_read_only_block_may_write_where_postgresql_lets_it(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    for sql in ["NOTIFY c", "SELECT txid_current()", "LOCK TABLE pg_class IN EXCLUSIVE MODE"] {
        for extended in [false, true] {
            raw.ask("BEGIN READ ONLY").await?.ok();
            assert_eq!(raw.value(WHERE).await?, "on");
            assert_eq!(say(&mut raw, sql, extended).await?.ok().status, 'T', "{sql}");
            raw.ask("COMMIT").await?.ok();
        }
    }
    // What it refuses it refuses in its own words.
    raw.ask("BEGIN READ ONLY").await?.ok();
    let answer = raw.ask("COPY pg_class FROM STDIN").await?;
    assert_eq!(answer.errors[0].message, "cannot execute COPY FROM in a read-only transaction");
    raw.ask("ROLLBACK").await?.ok();
    Ok(())
}

async fn a_session_pool_begins_at_the_writer(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Session).await?;
    raw.value(WHERE).await?;
    raw.ask("CREATE TEMP TABLE t(i int)").await?.ok();
    Ok(())
}

async fn what_a_reset_at_a_standby_finds_is_not_taken_for_a_setting(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    for sql in [
        "RESET default_transaction_read_only",
        "SET default_transaction_read_only TO DEFAULT",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "RESET ALL",
    ] {
        raw.ask("BEGIN READ ONLY").await?.ok();
        assert_eq!(raw.value(WHERE).await?, "on");
        raw.ask(sql).await?.ok();
        raw.ask("COMMIT").await?.ok();
        assert_eq!(raw.value("SHOW default_transaction_read_only").await?, "off", "{sql}");
        raw.ask("CREATE TABLE r(i int); DROP TABLE r").await?.ok();
    }
    Ok(())
}

/// Makes these on the writer, and waits until the standby has them.
async fn made(door: &Door, sql: &str) -> Result<()> {
    door.admin().await?.batch_execute(sql).await?;
    door.standby_follows().await
}

async fn a_conflict_with_replay_behind_the_first_row_is_not_seen(mode: Mode) -> Result<()> {
    let (door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    // As a standby cancels a query whose rows replay is about to remove.
    made(
        &door,
        "CREATE FUNCTION clash(i int) RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN
             IF i = 3 AND pg_is_in_recovery() THEN RAISE SQLSTATE '40001'; END IF;
             RETURN i || CASE WHEN pg_is_in_recovery() THEN ' standby' ELSE ' writer' END;
         END $$;
         CREATE VIEW three AS SELECT clash(i) FROM generate_series(1, 3) i;
         CREATE VIEW two AS SELECT clash(i) FROM generate_series(1, 2) i;",
    )
    .await?;
    for extended in [false, true] {
        // Such reads do go to the standby.
        let two = say(&mut raw, "SELECT * FROM two", extended).await?.ok();
        assert_eq!(&two.rows[1][0], "2 standby");
        let three = say(&mut raw, "SELECT * FROM three", extended).await?.ok();
        let rows: Vec<&str> = three.rows.iter().map(|row| &row[0]).collect();
        assert_eq!(rows, ["1 writer", "2 writer", "3 writer"]);
    }
    Ok(())
}

async fn an_error_of_a_read_comes_behind_its_rows(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    for extended in [false, true] {
        let sql = "SELECT 1 / (3 - i) FROM generate_series(1, 5) i";
        let answer = say(&mut raw, sql, extended).await?;
        assert_eq!((answer.code(), answer.rows.len()), ("22012", 2));
        assert_eq!(answer.status, 'I');
    }
    // A long answer is not kept until its end.
    let sql =
        "SELECT repeat('x', 1000) FROM generate_series(1, 1000) UNION ALL SELECT (1 / 0)::text";
    let answer = raw.ask(sql).await?;
    assert_eq!(answer.code(), "22012");
    Ok(())
}

/// A standby that lacks a client's statement is told to prepare it first, and may refuse that.
async fn what_a_standby_refuses_to_prepare_is_done_by_the_writer(mode: Mode) -> Result<()> {
    let (_door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    raw.ask("SET default_transaction_isolation = 'serializable'").await?.ok();
    for name in ["a", "b"] {
        let sql = format!("SELECT standby || '{name}' FROM place");
        raw.exchange(Say::new().parse(name, &sql).describe(b'S', name).sync()).await?.ok();
        for _ in 0..2 {
            let answer = raw.exchange(Say::new().run(name, &[])).await?;
            assert_eq!(answer.value(), format!("off{name}"));
        }
    }
    Ok(())
}

async fn what_a_standby_refuses_of_several_statements_is_done_by_the_writer(
    mode: Mode,
) -> Result<()> {
    let (door, mut raw) = reading(mode, PoolMode::Transaction).await?;
    made(&door, "CREATE SEQUENCE s; CREATE VIEW hidden AS SELECT nextval('s') AS n").await?;
    let standby = raw.ask("SELECT 1; SELECT standby FROM place").await?.ok();
    assert_eq!(&standby.rows[1][0], "on");
    // The second one is refused when the first was answered.
    let writer = raw.ask("SELECT standby FROM place; SELECT n FROM hidden").await?.ok();
    assert_eq!((writer.tags.as_str(), &writer.rows[0][0]), ("TDCTDCZ", "off"));
    assert_eq!(&writer.rows[1][0], "1");
    raw.ask("SET default_transaction_isolation = 'serializable'").await?.ok();
    let writer = raw.ask("SELECT 1; SELECT standby FROM place").await?.ok();
    assert_eq!(&writer.rows[1][0], "off");
    Ok(())
}

/// A standby has no serializable transactions, and the session that wanted them is the next client's.
async fn a_session_that_a_standby_cannot_serve_leaves_it_to_others(mode: Mode) -> Result<()> {
    let (door, mut a) = reading(mode, PoolMode::Transaction).await?;
    a.ask("SET default_transaction_isolation = 'serializable'").await?.ok();
    assert_eq!(a.value(WHERE).await?, "off");
    let mut b = door.raw().await?;
    b.ask("SET work_mem = '5MB'").await?.ok();
    let sql = "SELECT current_setting('work_mem') || standby FROM place";
    assert_eq!(b.value(sql).await?, "5MBon");
    Ok(())
}

/// A commit that a standby shows and the writer does not: its backend still waits there. As far as the
/// gateway was told, it is acknowledged.
struct Hidden {
    door: Door,
    /// A transaction that is under way and stays so, and must not be waited for.
    _open: Raw,
}

impl Hidden {
    async fn new(mode: Mode) -> Result<Hidden> {
        let door = Door::with_standby(mode).await?;
        door.define(
            "CREATE TABLE t(i int); CREATE TABLE other(i int); CREATE SEQUENCE s;
             CREATE FUNCTION next() RETURNS bigint STABLE LANGUAGE plpgsql AS
                 $$ BEGIN RETURN nextval('s'); END $$;
             CREATE VIEW counted AS SELECT (SELECT count(*) FROM t) AS n, next()",
        )
        .await?;
        door.standby_follows().await?;
        door.replayed(u64::MAX).await?;
        door.change(|view| view.acknowledged = Some(Lsn(u64::MAX)));
        let mut open = door.raw().await?;
        open.ask("BEGIN").await?.ok();
        open.ask("INSERT INTO other VALUES (1)").await?.ok();
        Ok(Hidden { door, _open: open })
    }

    /// Commits wait from now on, or are acknowledged.
    async fn waits(&self, waits: bool) -> Result<()> {
        let admin = self.door.admin().await?;
        let names = if waits { "nobody" } else { "" };
        let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        admin.batch_execute(&sql).await?;
        admin.batch_execute("SELECT pg_reload_conf()").await?;
        Ok(())
    }

    /// A session that has seen the standby's one row more than the writer shows.
    async fn ahead(&self, level: &str) -> Result<Raw> {
        self.waits(true).await?;
        let writes = self.door.admin().await?;
        let waits = Arc::new(AtomicBool::new(false));
        let there = Arc::clone(&waits);
        tokio::spawn(async move {
            // The server takes its time to learn that commits wait.
            while !there.load(Ordering::SeqCst) {
                for sql in [
                    "SET synchronous_commit = local",
                    "TRUNCATE t",
                    "SET synchronous_commit = on",
                    "INSERT INTO t VALUES (1)",
                ] {
                    // The test may be over.
                    let Ok(()) = writes.batch_execute(sql).await else { return };
                }
            }
        });
        self.door.in_server("wait_event = 'SyncRep'").await;
        waits.store(true, Ordering::SeqCst);
        self.door.standby_follows().await?;
        let mut raw = self.door.raw().await?;
        raw.ask(&format!("SET quorate.consistency = '{level}'")).await?.ok();
        goes(&mut raw, true).await;
        assert_eq!(raw.value(COUNT).await?, "1");
        let mut other = self.door.raw().await?;
        other.ask("SET quorate.read_from = 'writer'").await?.ok();
        assert_eq!(other.value(COUNT).await?, "0", "the writer shows it");
        Ok(raw)
    }
}

const COUNT: &str = "SELECT count(*) FROM t";

async fn what_a_standby_has_shown_is_waited_for_on_the_writer(mode: Mode) -> Result<()> {
    let hidden = Hidden::new(mode).await?;
    for (level, way) in [
        ("monotonic", "SET quorate.read_from = 'writer'"),
        ("causal", "SET quorate.read_from = 'writer'"),
        ("monotonic", "refused"),
        ("monotonic", "begins"),
        ("causal", "moves"),
        ("causal", "handed over"),
    ] {
        let mut raw = hidden.ahead(level).await?;
        let mut ask = COUNT;
        match way {
            "refused" => ask = "SELECT n, next FROM counted",
            "begins" => ask = "BEGIN; SELECT count(*) FROM t; COMMIT",
            "moves" => {
                raw.ask("BEGIN READ ONLY").await?.ok();
                assert_eq!(raw.value(COUNT).await?, "1");
                ask = "SELECT count(*) FROM t WHERE pg_advisory_lock(7) IS NOT NULL";
            }
            "handed over" => {
                // Where nothing is asked of the writer.
                let with = [("user", "postgres"), ("database", &*hidden.door.database)];
                let mut reads = Raw::session(hidden.door.read_only, &with).await?;
                reads.ask("SET quorate.consistency = 'causal'").await?.ok();
                assert_eq!(reads.value(COUNT).await?, "1");
                let token = reads.value("SHOW quorate.token").await?;
                raw = hidden.door.raw().await?;
                raw.ask(&format!("SET quorate.token = '{token}'")).await?.ok();
                raw.ask("SET quorate.read_from = 'writer'").await?.ok();
            }
            set => drop(raw.ask(set).await?.ok()),
        }
        raw.say(Say::new().query(ask)).await?;
        assert!(raw.is_silent().await, "{level}, {way}: it does not wait");
        hidden.waits(false).await?;
        assert_eq!(raw.answer().await?.ok().value(), "1", "{level}, {way}");
    }
    Ok(())
}

async fn what_is_waited_for_is_not_waited_for_forever(mode: Mode) -> Result<()> {
    let hidden = Hidden::new(mode).await?;
    hidden.door.want(|wanted| wanted.hold_ms = 300);
    let mut raw = hidden.ahead("monotonic").await?;
    raw.ask("SET quorate.read_from = 'writer'").await?.ok();
    let answer = raw.ask(COUNT).await?;
    assert_eq!(answer.code(), "57P03", "{answer:?}");
    hidden.door.want(|wanted| wanted.hold_ms = 60_000);
    hidden.waits(false).await?;
    assert_eq!(raw.value(COUNT).await?, "1");
    Ok(())
}

/// What a client says behind a read waits for the answer; that it leaves is heard meanwhile.
async fn a_client_that_leaves_a_long_read_is_gone(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.replayed(u64::MAX).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, true).await;
    let long = "SELECT count(*) FROM generate_series(1, 5000000000), place";
    raw.say(Say::new().query(long)).await?;
    let standby = door.standby.as_ref().unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE state = 'active' AND query LIKE 'SELECT count(*) FROM generate%'";
    let runs = async || (standby.value(sql).await.ok()? == "1").then_some(());
    eventually("it runs", runs).await;
    drop(raw);
    eventually("it is gone", async || (door.clients() == 0).then_some(())).await;
    // PostgreSQL itself does not look, and goes on.
    standby
        .value(
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE state = 'active' \
                   AND query LIKE 'SELECT count(*) FROM generate%'",
        )
        .await?;
    Ok(())
}

/// A standby shows the end of a history that the next writer does not have, after that one is known.
async fn what_a_standby_has_shown_is_of_the_history_that_it_followed(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.replayed(u64::MAX).await?;
    let mut raw = door.raw().await?;
    raw.ask("SET quorate.consistency = 'monotonic'").await?.ok();
    goes(&mut raw, true).await;
    let long = "SELECT count(*) FROM generate_series(1, 5000000), place";
    raw.say(Say::new().query(long)).await?;
    let standby = door.standby.as_ref().unwrap();
    eventually("it runs", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE state = 'active' AND query LIKE 'SELECT count(*) FROM generate%'";
        (standby.value(sql).await.ok()? == "1").then_some(())
    })
    .await;
    door.change(|view| {
        view.replicas.clear();
        view.ends = vec![(TERM, Lsn(60))];
    });
    door.writer(Term(TERM.0 + 1));
    door.change(|view| view.acknowledged = Some(Lsn(u64::MAX)));
    raw.answer().await?.ok();
    assert_eq!(raw.ask(WHERE).await?.code(), "QR010");
    Ok(())
}
