//! Small causes of grave faults: what may never come back.

use anyhow::Result;
use quorate_wire::Startup;

use crate::door::{Door, FOREVER, Mode, NOW, TERM, in_both_modes};
use crate::raw::{Raw, Say};
use crate::server::eventually;
use quorate_core::Term;
use quorate_gateway::Fate;

in_both_modes! {
    a_read_on_a_connection_that_died_is_made_once
    a_request_while_the_writer_moves_is_made_once
    a_read_while_the_writer_moves_is_answered_once
    a_described_rollback_under_way_is_answered_in_full
    a_block_on_a_connection_that_died_begins_once
    a_write_on_a_connection_that_died_idle_is_made
    a_long_query_that_is_refused_is_skipped
    a_long_query_whose_server_is_lost_is_skipped
    a_commit_after_discard_all_is_looked_up
    nobody_executes_the_unnamed_statement_of_another
    a_statement_that_the_connection_lacks_can_be_deallocated
    deallocate_works_by_the_extended_protocol
    discard_all_works_by_the_extended_protocol
    a_connection_that_keeps_no_statements_works
    a_seed_does_not_end_the_session
    deallocate_all_works_by_the_extended_protocol
    a_reset_of_one_setting_leads_back_to_the_first_packet
    set_xml_option_is_followed
    an_update_of_pg_settings_is_followed
    a_lock_taken_by_a_view_keeps_the_server
    a_lock_taken_by_a_default_keeps_the_server
    a_lock_taken_deep_keeps_the_server
    a_reset_of_the_session_authorization_resets_the_role
    reset_all_keeps_what_keeps_the_server
    reset_all_leads_back_to_the_first_packet
    a_rolled_back_reset_all_changes_nothing
    session_characteristics_change_what_they_name
    what_comes_before_the_first_snapshot_stays_there
    deallocate_all_in_a_block_that_wrote_is_followed
    more_dead_connections_than_retries_go_unnoticed
    a_type_made_anew_in_a_block_is_the_one_that_is_used
    a_type_made_anew_spoils_one_block_at_most
    what_a_failed_pipeline_left_out_is_not_taken_for_done
    an_attempt_that_is_repeated_leaves_no_unnamed_statement
    a_query_behind_a_failed_part_of_a_pipeline_is_left_out
    queries_that_are_left_out_are_not_counted
}

async fn prepare(raw: &mut Raw, name: &str, sql: &str) -> Result<()> {
    let answer = raw.exchange(Say::new().parse(name, sql).sync()).await?;
    assert_eq!(answer.ok().tags, "1Z");
    Ok(())
}

async fn nobody_executes_the_unnamed_statement_of_another(mode: Mode) -> Result<()> {
    for reuse in [false, true] {
        let door = Door::with(mode, |wanted| {
            wanted.pool.size = 1;
            wanted.pool.reuse_unnamed = reuse;
        })
        .await?;
        let (mut a, mut b) = (door.raw().await?, door.raw().await?);
        assert_eq!(
            a.exchange(Say::new().statement("SELECT 'secret of a'").sync()).await?.value(),
            "secret of a"
        );
        assert_eq!(b.exchange(Say::new().run("", &[])).await?.code(), "26000");
        assert_eq!(b.exchange(Say::new().describe(b'S', "").sync()).await?.code(), "26000");
    }
    Ok(())
}

async fn a_statement_that_the_connection_lacks_can_be_deallocated(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 'anew'").await?;
    door.console().await?.ask("RECONNECT").await?.ok();
    assert_eq!(raw.ask("DEALLOCATE PREPARE s").await?.ok().tags, "CZ");
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    assert_eq!(raw.value("SELECT 1").await?, "1");
    Ok(())
}

async fn deallocate_works_by_the_extended_protocol(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 'mine'").await?;
    raw.exchange(Say::new().statement("DEALLOCATE s").sync()).await?.ok();
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    Ok(())
}

async fn deallocate_all_works_by_the_extended_protocol(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut raw, mut other) = (door.raw().await?, door.raw().await?);
    prepare(&mut other, "s", "SELECT 'of another'").await?;
    prepare(&mut raw, "s", "SELECT 'mine'").await?;
    raw.exchange(Say::new().statement("DEALLOCATE ALL").sync()).await?.ok();
    let answer = other.exchange(Say::new().run("s", &[])).await?;
    assert_eq!(answer.value(), "of another");
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    Ok(())
}

async fn a_reset_of_one_setting_leads_back_to_the_first_packet(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    for back in ["RESET work_mem", "SET work_mem TO DEFAULT"] {
        let startup = [
            ("user", "postgres"),
            ("database", &door.database[..]),
            ("options", "-c work_mem=7MB"),
        ];
        let mut a = Raw::connect(door.address, &Startup::new(&startup)).await?;
        a.greeted().await?;
        a.ask("SET work_mem = '9MB'").await?.ok();
        a.ask(back).await?.ok();
        assert_eq!(a.value("SHOW work_mem").await?, "7MB", "{back}");
    }
    Ok(())
}

async fn set_xml_option_is_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask("SET XML OPTION DOCUMENT").await?.ok();
    assert_eq!(b.value("SHOW xmloption").await?, "content");
    assert_eq!(a.value("SHOW xmloption").await?, "document");
    Ok(())
}

async fn an_update_of_pg_settings_is_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask("UPDATE pg_settings SET setting = '7MB' WHERE name = 'work_mem'").await?.ok();
    assert_eq!(b.value("SHOW work_mem").await?, "4MB");
    assert_eq!(a.value("SHOW work_mem").await?, "7MB");
    Ok(())
}

const FUNCTIONS: &str = "\
CREATE FUNCTION take_lock() RETURNS int LANGUAGE sql AS \
'SELECT 1 FROM (SELECT pg_advisory_lock(77)) x'; \
CREATE FUNCTION take_lock_deep() RETURNS int LANGUAGE sql AS 'SELECT take_lock()'; \
CREATE VIEW locked AS SELECT take_lock() AS a; \
CREATE TABLE defaults(a int DEFAULT take_lock(), b int);";

async fn leaves(mode: Mode, make: &str) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    door.admin().await?.batch_execute(FUNCTIONS).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask(make).await?.ok();
    assert_eq!(b.value("SELECT pg_try_advisory_lock(77)").await?, "f");
    Ok(())
}

async fn a_lock_taken_by_a_view_keeps_the_server(mode: Mode) -> Result<()> {
    leaves(mode, "SELECT * FROM locked").await
}

async fn a_lock_taken_by_a_default_keeps_the_server(mode: Mode) -> Result<()> {
    leaves(mode, "INSERT INTO defaults(b) VALUES (1)").await
}

async fn a_lock_taken_deep_keeps_the_server(mode: Mode) -> Result<()> {
    leaves(mode, "SELECT take_lock_deep()").await
}

async fn discard_all_works_by_the_extended_protocol(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 'mine'").await?;
    let answer = raw.exchange(Say::new().statement("DISCARD ALL").sync()).await?.ok();
    assert_eq!(answer.tags, "12CZ");
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    Ok(())
}

async fn a_connection_that_keeps_no_statements_works(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.prepared_max = 0).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 'mine'").await?;
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "mine");
    assert_eq!(raw.exchange(Say::new().statement("SELECT 2").sync()).await?.value(), "2");
    Ok(())
}

async fn a_seed_does_not_end_the_session(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask("SET SEED TO 0.5").await?.ok();
    b.ask("SELECT 1").await?.ok();
    assert_eq!(a.ask("SELECT 1").await?.code(), "");
    Ok(())
}

/// A client whose connections all died while they were idle, by no word of the cluster.
async fn died(mode: Mode) -> Result<(Door, Raw)> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE IF NOT EXISTS t(i int)").await?.ok();
    door.gate.close();
    if mode == Mode::Local {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}' \
             AND pid <> pg_backend_pid()",
            door.database
        );
        door.value(&sql).await?;
    }
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()",
        door.database
    );
    eventually("they died", async || (door.value(&sql).await.ok()? == "0").then_some(())).await;
    door.gate.open(TERM);
    door.gate.renew(TERM, FOREVER);
    Ok((door, raw))
}

async fn a_read_on_a_connection_that_died_is_made_once(mode: Mode) -> Result<()> {
    let (_door, mut raw) = died(mode).await?;
    let answer = raw.exchange(Say::new().statement("SELECT 1").sync()).await?;
    assert_eq!(answer.value(), "1");
    assert_eq!(raw.value("SELECT 2").await?, "2");
    assert!(raw.is_silent().await);
    Ok(())
}

async fn a_block_on_a_connection_that_died_begins_once(mode: Mode) -> Result<()> {
    let (_door, mut raw) = died(mode).await?;
    assert_eq!(raw.ask("BEGIN").await?.ok().tags, "CZ");
    assert_eq!(raw.value("SELECT 2").await?, "2");
    assert_eq!(raw.ask("COMMIT").await?.ok().status, 'I');
    Ok(())
}

async fn a_write_on_a_connection_that_died_idle_is_made(mode: Mode) -> Result<()> {
    let (_door, mut raw) = died(mode).await?;
    assert_eq!(raw.ask("INSERT INTO t VALUES (1)").await?.code(), "");
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "1");
    Ok(())
}

async fn a_long_query_that_is_refused_is_skipped(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.hold_ms = 0).await?;
    let mut raw = door.raw().await?;
    door.no_writer();
    let long = format!("SELECT 1 /* {} */", "x".repeat(2_000_000));
    assert_eq!(raw.ask(&long).await?.code(), "57P03");
    assert_eq!(raw.ask("SELECT 2").await?.code(), "57P03");
    Ok(())
}

async fn a_long_query_whose_server_is_lost_is_skipped(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    let long = Say::new().query(&format!("SELECT 1 /* {} */", "x".repeat(2_000_000)));
    let (begin, end) = long.0.split_at(1_000_000);
    raw.bytes(begin).await?;
    door.in_server("wait_event = 'ClientRead'").await;
    door.no_writer();
    let answer = raw.until(b'E').await?;
    assert_eq!(answer.code(), "08007");
    door.writer(Term(TERM.0 + 1));
    raw.bytes(end).await?;
    raw.until(b'Z').await?;
    assert_eq!(raw.value("SELECT 2").await?, "2");
    Ok(())
}

async fn unanswered(door: &Door, work: &[&str]) -> Result<Raw> {
    let mut raw = door.raw().await?;
    for sql in work {
        raw.ask(sql).await?.ok();
    }
    door.gate.renew(TERM, NOW);
    raw.say(Say::new().query("COMMIT")).await?;
    door.in_server("query = 'COMMIT' AND state = 'idle'").await;
    door.no_writer();
    Ok(raw)
}

async fn a_commit_after_discard_all_is_looked_up(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let work = ["DISCARD ALL", "BEGIN", "CREATE TABLE t()", "SELECT 1"];
    let mut raw = unanswered(&door, &work).await?;
    door.cluster.fate.send_replace(Some(Fate::Committed));
    assert_eq!(raw.answer().await?.code(), "");
    Ok(())
}

async fn a_request_while_the_writer_moves_is_made_once(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("SELECT 0").await?.ok();
    for i in 1..200u64 {
        door.no_writer();
        door.writer(Term(TERM.0 + i));
        let say = Say::new().statement(&format!("SELECT {i}")).sync();
        assert_eq!(raw.exchange(say).await?.value(), i.to_string());
    }
    Ok(())
}

async fn a_read_while_the_writer_moves_is_answered_once(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.exchange(Say::new().parse("", "SELECT $1::int + 1").sync()).await?.ok();
    for i in 1..100u64 {
        door.no_writer();
        door.writer(Term(TERM.0 + i));
        let answer = raw.exchange(Say::new().run("", &[&i.to_string()])).await?;
        if answer.code() == "" {
            assert_eq!(answer.value(), (i + 1).to_string());
        }
    }
    Ok(())
}

async fn a_described_rollback_under_way_is_answered_in_full(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    raw.ask("CREATE TABLE t()").await?.ok();
    raw.ask("SELECT 1").await?.ok();
    door.gate.renew(TERM, NOW);
    let say = Say::new().parse("", "ROLLBACK").describe(b'S', "").bind("", "", &[]);
    raw.say(say.describe(b'P', "").execute("", 0).sync()).await?;
    door.in_server("query = 'ROLLBACK' AND state = 'idle'").await;
    door.no_writer();
    assert_eq!(raw.answer().await?.ok().tags, "1tn2nCZ");
    Ok(())
}

async fn a_reset_of_the_session_authorization_resets_the_role(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    for back in ["RESET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION DEFAULT"] {
        a.ask("SET ROLE app").await?.ok();
        a.ask(back).await?.ok();
        assert_eq!(b.value("SELECT current_user").await?, "postgres");
        assert_eq!(a.value("SELECT current_user").await?, "postgres", "{back}");
        a.ask("DISCARD ALL").await?.ok();
    }
    Ok(())
}

async fn reset_all_keeps_what_keeps_the_server(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let mut raw = door.raw().await?;
    raw.ask("DECLARE held CURSOR WITH HOLD FOR SELECT 'held'").await?.ok();
    raw.ask("SET ROLE app").await?.ok();
    raw.ask("SET work_mem = '9MB'").await?.ok();
    raw.ask("RESET ALL").await?.ok();
    assert_eq!(raw.value("FETCH held").await?, "held");
    assert_eq!(raw.value("SELECT current_user").await?, "app");
    assert_eq!(raw.value("SHOW work_mem").await?, "4MB");
    Ok(())
}

async fn reset_all_leads_back_to_the_first_packet(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let startup =
        [("user", "postgres"), ("database", &door.database[..]), ("options", "-c work_mem=7MB")];
    for pinned in [false, true] {
        let mut raw = Raw::connect(door.address, &Startup::new(&startup)).await?;
        raw.greeted().await?;
        if pinned {
            raw.ask("LISTEN c").await?.ok();
        }
        raw.ask("SET work_mem = '9MB'").await?.ok();
        raw.ask("RESET ALL").await?.ok();
        assert_eq!(raw.value("SHOW work_mem").await?, "7MB");
        if !pinned {
            let mut other = door.raw().await?;
            assert_eq!(other.value("SHOW work_mem").await?, "4MB");
        }
    }
    Ok(())
}

async fn a_rolled_back_reset_all_changes_nothing(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("SET work_mem = '9MB'").await?.ok();
    for end in ["ROLLBACK", "SELECT 1/0; COMMIT"] {
        raw.ask("BEGIN").await?.ok();
        raw.ask("RESET ALL").await?.ok();
        raw.ask(end).await?;
        if end != "ROLLBACK" {
            raw.ask("COMMIT").await?.ok();
        }
        assert_eq!(raw.value("SHOW work_mem").await?, "9MB", "{end}");
    }
    Ok(())
}

async fn session_characteristics_change_what_they_name(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    let level = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE";
    a.ask(level).await?.ok();
    assert_eq!(b.value("SHOW default_transaction_isolation").await?, "read committed");
    assert_eq!(a.value("SHOW default_transaction_isolation").await?, "serializable");
    a.ask("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").await?.ok();
    assert_eq!(b.value("SHOW default_transaction_read_only").await?, "off");
    assert_eq!(a.value("SHOW default_transaction_read_only").await?, "on");
    Ok(())
}

async fn what_comes_before_the_first_snapshot_stays_there(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let admin = door.admin().await?;
    admin.batch_execute("CREATE TABLE t(i int)").await?;
    let mut raw = door.raw().await?;
    for extended in [false, true] {
        raw.ask("BEGIN").await?.ok();
        for sql in [
            "LOCK TABLE t",
            "SET LOCAL work_mem = '5MB'",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        ] {
            if extended {
                raw.exchange(Say::new().statement(sql).sync()).await?.ok();
            } else {
                raw.ask(sql).await?.ok();
            }
        }
        raw.ask("COMMIT").await?.ok();
    }
    Ok(())
}

async fn deallocate_all_in_a_block_that_wrote_is_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 1").await?;
    raw.ask("BEGIN").await?.ok();
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    raw.ask("DEALLOCATE ALL").await?.ok();
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    raw.ask("COMMIT").await?.ok();
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "1");
    Ok(())
}

async fn more_dead_connections_than_retries_go_unnoticed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 8).await?;
    let mut all = Vec::new();
    for _ in 0..8 {
        let mut raw = door.raw().await?;
        raw.ask("BEGIN").await?.ok();
        all.push(raw);
    }
    for raw in &mut all {
        raw.ask("COMMIT").await?.ok();
    }
    let end = "SELECT count(pg_terminate_backend(pid, 9000)) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    door.admin().await?.batch_execute(end).await?;
    // Settings have to be made first, which is where it is noticed.
    all[0].ask("SET work_mem = '5MB'").await?.ok();
    assert_eq!(all[1].value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_type_made_anew_in_a_block_is_the_one_that_is_used(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    let insert = || Say::new().parse("", "INSERT INTO t VALUES ($1)").bind("", "", &["a"]);
    for _ in 0..3 {
        raw.ask("BEGIN").await?.ok();
        raw.ask("CREATE TYPE letter AS ENUM ('a')").await?.ok();
        raw.ask("CREATE TABLE t(l letter)").await?.ok();
        raw.exchange(insert().execute("", 0).sync()).await?.ok();
        raw.ask("ROLLBACK").await?.ok();
    }
    Ok(())
}

async fn a_type_made_anew_spoils_one_block_at_most(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TYPE letter AS ENUM ('a'); CREATE TABLE t(l letter)").await?.ok();
    let insert = || Say::new().parse("", "INSERT INTO t VALUES ($1)").bind("", "", &["a"]);
    raw.exchange(insert().execute("", 0).sync()).await?.ok();
    raw.ask("DROP TABLE t; DROP TYPE letter").await?.ok();
    raw.ask("CREATE TYPE letter AS ENUM ('a'); CREATE TABLE t(l letter)").await?.ok();
    raw.ask("BEGIN").await?.ok();
    let first = raw.exchange(insert().execute("", 0).sync()).await?;
    assert_eq!(first.code(), "XX000", "in a block nothing can be tried again");
    raw.ask("ROLLBACK").await?.ok();
    raw.ask("BEGIN").await?.ok();
    raw.exchange(insert().execute("", 0).sync()).await?.ok();
    raw.ask("COMMIT").await?.ok();
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "1");
    Ok(())
}

/// Statements of a pipeline behind its error are not carried out, nor what the gateway put before
/// them.
async fn what_a_failed_pipeline_left_out_is_not_taken_for_done(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    for round in 0..3 {
        let insert = "INSERT INTO t VALUES (1)";
        let failing = Say::new().statement(insert).statement("SELECT 1/0").statement(insert).sync();
        raw.say(failing.statement(insert).sync()).await?;
        let answer = raw.answer().await?;
        assert_eq!(answer.code(), "22012", "round {round}");
        assert_eq!(raw.answer().await?.ok().tags, "12CZ");
    }
    // Prepared by name the same.
    for round in 0..3 {
        let name = format!("s{round}");
        let two = Say::new().statement("SELECT 1/0").parse(&name, "SELECT 7").sync();
        raw.say(two.statement("SELECT 7").sync()).await?;
        assert_eq!(raw.answer().await?.code(), "22012");
        assert_eq!(raw.answer().await?.value(), "7");
        prepare(&mut raw, &name, "SELECT 7").await?;
        assert_eq!(raw.exchange(Say::new().run(&name, &[])).await?.value(), "7");
    }
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "3");
    Ok(())
}

async fn an_attempt_that_is_repeated_leaves_no_unnamed_statement(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    for _ in 0..8 {
        let insert = "INSERT INTO t VALUES (1)";
        let nobody = "SELECT no_such_function(1)";
        raw.say(Say::new().statement(insert).statement(nobody).statement(insert).sync()).await?;
        assert_eq!(raw.answer().await?.code(), "42883");
        raw.exchange(Say::new().statement(insert).sync()).await?.ok();
    }
    Ok(())
}

/// A failed part of a pipeline ends at its Sync, and at no query before it.
async fn a_query_behind_a_failed_part_of_a_pipeline_is_left_out(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut raw, mut other) = (door.raw().await?, door.raw().await?);
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    let insert = "INSERT INTO t VALUES (1)";
    for begin in ["", "BEGIN"] {
        let failed = if begin.is_empty() { 'I' } else { 'E' };
        for apart in [false, true] {
            raw.ask(begin).await?.ok();
            let fails = Say::new().statement("SELECT 1/0").query(insert);
            let rest = Say::new().query(insert).statement(insert).sync();
            if apart {
                raw.say(fails).await?;
                assert_eq!(raw.until(b'E').await?.code(), "22012", "{begin}");
                raw.say(rest).await?;
            } else {
                raw.say(Say([fails.0, rest.0].concat().as_slice().into())).await?;
            }
            let answer = raw.answer().await?;
            assert_eq!(answer.tags, if apart { "Z" } else { "1EZ" }, "{begin} {apart}");
            assert_eq!(answer.status, failed);
            raw.ask("ROLLBACK").await?;
            assert_eq!(other.value("SELECT count(*) FROM t").await?, "0");
        }
    }
    Ok(())
}

/// What a server leaves out is answered by nobody, and is nothing to be remembered.
async fn queries_that_are_left_out_are_not_counted(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 7").await?;
    let mut all = Say::new();
    for _ in 0..100 {
        all = all.parse("s", "SELECT 7").query("SELECT 1");
    }
    raw.say(all.sync()).await?;
    let answer = raw.answer().await?;
    assert_eq!((answer.code(), &*answer.tags), ("42P05", "EZ"));
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "7");
    Ok(())
}
