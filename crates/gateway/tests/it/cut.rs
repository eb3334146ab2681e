//! The gate, and what clients are told when it closes: the truth, and nothing where nothing happened.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use quorate_core::Term;
use quorate_gateway::{Fate, limits};
use quorate_wire::Startup;

use crate::door::{Door, FOREVER, Mode, NOW, TERM, in_both_modes, wanted};
use crate::raw::{Raw, Say};
use crate::server::{Server, eventually};

in_both_modes! {
    an_idle_client_notices_nothing
    transactions_and_logins_wait_for_a_writer
    a_silent_writer_keeps_nobody_once_another_serves
    waiting_has_limits
    a_block_without_a_statement_under_way_hears_of_it_at_its_next
    a_lost_block_is_ended_by_commit_with_the_error
    a_lost_block_is_ended_by_rollback_without_a_word
    a_lost_block_by_the_extended_protocol
    what_follows_the_end_of_a_lost_block_in_one_pipeline_is_done
    a_statement_under_way_in_a_block_is_undone
    a_write_under_way_is_unknown
    a_read_under_way_is_made_again
    a_commit_under_way_is_answered_by_its_fate
    a_commit_right_behind_a_write_is_answered_by_its_fate
    a_question_that_fails_is_told_as_the_answer_to_what_was_behind_it
    copy_data_behind_a_question_passes
    a_commit_of_nothing_is_done
    a_rollback_under_way_is_done
    a_pipeline_under_way_is_told_once_for_each_sync
    a_lease_that_ran_out_holds_responses_until_it_is_renewed
    no_response_of_a_later_term_reaches_an_earlier_one
    a_result_cut_in_the_middle_ends_without_a_word
    a_crash_of_the_server_is_told_like_a_cut
    what_backends_of_a_dead_postmaster_say_is_told_to_nobody
    a_copy_under_way_is_told
    a_cancelled_wait_is_kept_from_the_client
    a_cancelled_wait_that_comes_to_nothing_is_looked_up
    prepared_statements_and_settings_outlive_the_writer
    a_refused_group_is_not_executed_later
}

const NEXT: Term = Term(TERM.0 + 1);

async fn what_backends_of_a_dead_postmaster_say_is_told_to_nobody(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    door.want(|wanted| wanted.hold_ms = 300);
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    assert_eq!(raw.value("SELECT 1").await?, "1");
    // Its backends live on, and the gate has not heard yet.
    door.cluster.alive.store(false, Ordering::SeqCst);
    let answer = raw.ask("SELECT 1").await?;
    assert_eq!(answer.rows.len(), 0);
    assert_eq!(answer.code(), "40001");
    Ok(())
}

async fn an_idle_client_notices_nothing(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    let before = raw.value("SELECT pg_backend_pid()").await?;
    door.no_writer();
    door.writer(NEXT);
    assert!(raw.is_silent().await);
    assert_ne!(raw.value("SELECT pg_backend_pid()").await?, before);
    Ok(())
}

async fn a_silent_writer_keeps_nobody_once_another_serves(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    door.silent_writer(NEXT);
    loop {
        raw.say(Say::new().query("CREATE TABLE IF NOT EXISTS t ()")).await?;
        match tokio::time::timeout(Duration::from_millis(100), raw.answer()).await {
            // It waits for an answer of the silent one.
            Err(_) => break,
            // It was on its way to the old one when that one ended. Here that is known in time.
            Ok(answer) => assert_eq!((answer?.code(), mode), ("08007", Mode::Far)),
        }
    }
    door.writer(Term(NEXT.0 + 1));
    let answered = tokio::time::timeout(limits::OPEN_WAIT / 2, raw.answer()).await;
    answered.expect("it still waits for the silent one")?.ok();
    Ok(())
}

async fn transactions_and_logins_wait_for_a_writer(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.hold_ms = 60_000).await?;
    let mut first = door.raw().await?;
    let mut second = door.raw().await?;
    door.no_writer();
    first.say(Say::new().query("SELECT 'first'")).await?;
    second.say(Say::new().query("BEGIN").query("SELECT 'second'").query("COMMIT")).await?;
    let startup = Startup::new(&[
        ("user", "postgres"),
        ("database", &door.database),
        ("application_name", "new here"),
    ]);
    let mut third = Raw::connect(door.address, &startup).await?;
    assert!(first.is_silent().await && second.is_silent().await && third.is_silent().await);
    // One that leaves meanwhile bothers nobody.
    drop(Raw::connect(door.address, &startup).await?);
    door.writer(NEXT);
    assert_eq!(first.answer().await?.value(), "first");
    second.answer().await?.ok();
    assert_eq!(second.answer().await?.value(), "second");
    second.answer().await?.ok();
    third.greeted().await?;
    assert_eq!(third.value("SELECT 3").await?, "3");
    Ok(())
}

async fn waiting_has_limits(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| {
        wanted.workers = 4;
        wanted.held_max = 1;
        wanted.hold_ms = 60_000;
    })
    .await?;
    let (mut first, mut second) = (door.raw().await?, door.raw().await?);
    door.no_writer();
    first.say(Say::new().query("SELECT 1")).await?;
    door.states("waiting", 1).await;
    assert_eq!(second.ask("SELECT 2").await?.code(), "53300");
    door.want(|wanted| {
        wanted.held_max = 100;
        wanted.hold_ms = 100;
    });
    let answer = first.answer().await?;
    assert_eq!((answer.code(), answer.status), ("57P03", 'I'));
    let answer = second.exchange(Say::new().statement("SELECT 2").sync()).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "57P03"));
    let startup = Startup::new(&[
        ("user", "postgres"),
        ("database", &door.database),
        ("application_name", "new here"),
    ]);
    let word = Raw::connect(door.address, &startup).await?.last_word().await?;
    assert_eq!((&word.severity[..], &word.code[..]), ("FATAL", "57P03"));
    door.writer(NEXT);
    assert_eq!(second.value("SELECT 2").await?, "2");
    Ok(())
}

/// A client in a block that has written, whose server is gone.
async fn lost_block(door: &Door) -> Result<Raw> {
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    raw.ask("BEGIN").await?.ok();
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    door.no_writer();
    door.writer(NEXT);
    assert!(raw.is_silent().await);
    Ok(raw)
}

async fn a_block_without_a_statement_under_way_hears_of_it_at_its_next(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = lost_block(&door).await?;
    let answer = raw.ask("INSERT INTO t VALUES (2)").await?;
    assert_eq!((&answer.tags[..], answer.code(), answer.status), ("EZ", "40001", 'E'));
    let answer = raw.ask("SELECT 1").await?;
    assert_eq!((answer.code(), answer.status), ("25P02", 'E'));
    let answer = raw.exchange(Say::new().statement("SELECT 1").sync()).await?;
    assert_eq!((answer.code(), answer.status), ("25P02", 'E'));
    let answer = raw.ask("ROLLBACK").await?.ok();
    assert_eq!((&answer.commands[0][..], answer.status), ("ROLLBACK", 'I'));
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    Ok(())
}

async fn a_lost_block_is_ended_by_commit_with_the_error(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = lost_block(&door).await?;
    let answer = raw.ask("COMMIT").await?;
    assert_eq!((&answer.tags[..], answer.code(), answer.status), ("EZ", "40001", 'I'));
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    // After a word it is a rollback.
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    door.no_writer();
    assert_eq!(raw.ask("SELECT 1").await?.code(), "40001");
    let answer = raw.ask("COMMIT").await?.ok();
    assert_eq!((&answer.commands[0][..], answer.status), ("ROLLBACK", 'I'));
    door.writer(Term(NEXT.0 + 1));
    assert_eq!(raw.value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_lost_block_is_ended_by_rollback_without_a_word(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = lost_block(&door).await?;
    door.no_writer();
    // Nobody is needed for that.
    let answer = raw.ask("ROLLBACK").await?.ok();
    assert_eq!((&answer.tags[..], &answer.commands[0][..]), ("CZ", "ROLLBACK"));
    assert_eq!(answer.status, 'I');
    door.writer(Term(NEXT.0 + 1));
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    Ok(())
}

async fn a_lost_block_by_the_extended_protocol(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = lost_block(&door).await?;
    let say = Say::new().statement("INSERT INTO t VALUES (2)").statement("SELECT 1").sync();
    let answer = raw.exchange(say).await?;
    assert_eq!((&answer.tags[..], answer.code(), answer.status), ("EZ", "40001", 'E'));
    let answer = raw.exchange(Say::new().parse("late", "ROLLBACK").sync()).await?.ok();
    assert_eq!((&answer.tags[..], answer.status), ("1Z", 'E'));
    let answer = raw.exchange(Say::new().run("late", &[])).await?.ok();
    assert_eq!((&answer.tags[..], &answer.commands[0][..]), ("2CZ", "ROLLBACK"));
    assert_eq!(answer.status, 'I');
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");

    // Straight away.
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    door.no_writer();
    assert!(raw.is_silent().await);
    let all = Say::new().parse("", "ROLLBACK").describe(b'S', "").bind("", "", &[]);
    let answer = raw.exchange(all.describe(b'P', "").execute("", 0).sync()).await?.ok();
    assert_eq!((&answer.tags[..], answer.status), ("1tn2nCZ", 'I'));
    Ok(())
}

async fn what_follows_the_end_of_a_lost_block_in_one_pipeline_is_done(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = lost_block(&door).await?;
    let all = Say::new().statement("ROLLBACK").statement("INSERT INTO t VALUES (3)").sync();
    let answer = raw.exchange(all).await?.ok();
    assert_eq!(answer.commands, ["ROLLBACK", "INSERT 0 1"]);
    assert_eq!(raw.value("SELECT sum(i) FROM t").await?, "3");
    Ok(())
}

/// Makes statements on a table wait until the test lets it go.
struct Locked(tokio_postgres::Client);

impl Locked {
    async fn table(door: &Door) -> Result<Locked> {
        let admin = door.admin().await?;
        admin.batch_execute("CREATE TABLE IF NOT EXISTS t(i int)").await?;
        admin.batch_execute("BEGIN; LOCK TABLE t").await?;
        Ok(Locked(admin))
    }

    /// The rows of another table.
    async fn rows(door: &Door, table: &str) -> Result<Locked> {
        let admin = door.admin().await?;
        admin.batch_execute(&format!("BEGIN; SELECT FROM {table} FOR UPDATE")).await?;
        Ok(Locked(admin))
    }

    async fn release(self) -> Result<()> {
        Ok(self.0.batch_execute("COMMIT").await?)
    }
}

const WAITS: &str = "wait_event_type = 'Lock' AND state = 'active'";

async fn a_statement_under_way_in_a_block_is_undone(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    for extended in [false, true] {
        let locked = Locked::table(&door).await?;
        let mut raw = door.raw().await?;
        raw.ask("BEGIN").await?.ok();
        let sql = "INSERT INTO t VALUES (1)";
        raw.say(match extended {
            false => Say::new().query(sql),
            true => Say::new().statement(sql).sync(),
        })
        .await?;
        door.in_server(WAITS).await;
        door.no_writer();
        let answer = raw.answer().await?;
        assert_eq!((answer.code(), answer.status), ("40001", 'E'));
        let term = door.cluster_term();
        door.writer(Term(term.0 + 1));
        assert_eq!(raw.ask("SELECT 1").await?.code(), "25P02");
        assert_eq!(raw.ask("ROLLBACK").await?.ok().status, 'I');
        locked.release().await?;
        assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    }
    Ok(())
}

async fn a_write_under_way_is_unknown(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let locked = Locked::table(&door).await?;
    let mut simple = door.raw().await?;
    let mut extended = door.raw().await?;
    simple.say(Say::new().query("INSERT INTO t VALUES (1)")).await?;
    extended.say(Say::new().statement("INSERT INTO t VALUES (1)").sync()).await?;
    eventually("both wait", async || {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND {WAITS}",
            door.database
        );
        (door.value(&sql).await.ok()? == "2").then_some(())
    })
    .await;
    door.no_writer();
    for raw in [&mut simple, &mut extended] {
        let answer = raw.answer().await?;
        assert_eq!((answer.code(), answer.status), ("08007", 'I'));
    }
    door.writer(NEXT);
    locked.release().await?;
    assert_eq!(simple.value("SELECT 1").await?, "1");
    assert_eq!(extended.value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_read_under_way_is_made_again(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let locked = Locked::table(&door).await?;
    let mut simple = door.raw().await?;
    let mut extended = door.raw().await?;
    let sql = "SELECT count(*) FROM t";
    simple.say(Say::new().query(sql)).await?;
    extended.say(Say::new().statement(sql).sync()).await?;
    eventually("both wait", async || {
        let sql = format!(
            "SELECT count(*) >= 2 FROM pg_stat_activity WHERE datname = '{}' AND {WAITS}",
            door.database
        );
        (door.value(&sql).await.ok()? == "t").then_some(())
    })
    .await;
    door.no_writer();
    assert!(simple.is_silent().await && extended.is_silent().await);
    door.writer(NEXT);
    locked.release().await?;
    assert_eq!(simple.answer().await?.value(), "0");
    let answer = extended.answer().await?;
    assert_eq!((&answer.tags[..], answer.value()), ("12DCZ", "0"));
    Ok(())
}

/// A client whose COMMIT is carried out and not answered, and whose server is gone.
async fn unanswered(door: &Door, extended: bool, work: &str) -> Result<Raw> {
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    raw.ask(work).await?.ok();
    // So that what the gateway asks by the way is answered.
    raw.ask("SELECT 1").await?.ok();
    let term = door.cluster_term();
    assert!(door.gate.renew(term, NOW));
    raw.say(match extended {
        false => Say::new().query("COMMIT"),
        true => Say::new().statement("COMMIT").sync(),
    })
    .await?;
    door.in_server("query = 'COMMIT' AND state = 'idle'").await;
    assert!(raw.is_silent().await);
    door.no_writer();
    Ok(raw)
}

async fn a_commit_under_way_is_answered_by_its_fate(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    door.raw().await?.ask("CREATE TABLE t(i int)").await?.ok();
    for extended in [false, true] {
        for (fate, code) in
            [(Fate::Committed, ""), (Fate::Aborted, "40001"), (Fate::Unknown, "08007")]
        {
            door.cluster.fate.send_replace(None);
            door.cluster.fates.lock().unwrap().clear();
            let mut raw = unanswered(&door, extended, "INSERT INTO t VALUES (1)").await?;
            eventually("it is looked up", async || {
                (door.cluster.fates.lock().unwrap().len() == 1).then_some(())
            })
            .await;
            let asked = door.cluster.fates.lock().unwrap()[0];
            assert_eq!(asked.term, door.cluster_term());
            let sql = format!("SELECT pg_xact_status('{}')", asked.xid);
            assert_eq!(door.value(&sql).await?, "committed");
            assert!(raw.is_silent().await);
            door.cluster.fate.send_replace(Some(fate));
            let answer = raw.answer().await?;
            assert_eq!((answer.code(), answer.status), (code, 'I'), "{fate:?} {extended}");
            if fate == Fate::Committed {
                assert_eq!(answer.tags, if extended { "12CZ" } else { "CZ" });
                assert_eq!(answer.commands, ["COMMIT"]);
            }
            door.writer(Term(door.cluster_term().0 + 1));
            assert_eq!(raw.value("SELECT 1").await?, "1");
        }
    }
    // An operator may not want that.
    door.want(|wanted| wanted.resolve_commits = false);
    door.cluster.fates.lock().unwrap().clear();
    let mut raw = unanswered(&door, false, "INSERT INTO t VALUES (1)").await?;
    assert_eq!(raw.answer().await?.code(), "08007");
    assert!(door.cluster.fates.lock().unwrap().is_empty());
    Ok(())
}

/// Transactions after whose first write more follows, or nothing.
async fn get_used_to(raw: &mut Raw, more: bool) -> Result<()> {
    for _ in 0..20 {
        raw.ask("BEGIN").await?.ok();
        raw.ask("INSERT INTO used VALUES (1)").await?.ok();
        if more {
            raw.ask("SELECT 1").await?.ok();
        }
        raw.ask("COMMIT").await?.ok();
    }
    Ok(())
}

async fn a_commit_right_behind_a_write_is_answered_by_its_fate(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut setup = door.raw().await?;
    setup.ask("CREATE TABLE used(i int); CREATE TABLE p(i int PRIMARY KEY)").await?.ok();
    setup.ask("INSERT INTO p VALUES (1)").await?.ok();
    let sql = "CREATE TABLE t(i int REFERENCES p DEFERRABLE INITIALLY DEFERRED)";
    setup.ask(sql).await?.ok();
    for more in [false, true] {
        door.cluster.fate.send_replace(Some(Fate::Aborted));
        door.cluster.fates.lock().unwrap().clear();
        let mut raw = door.raw().await?;
        get_used_to(&mut raw, more).await?;
        let locked = Locked::rows(&door, "p").await?;
        raw.ask("BEGIN").await?.ok();
        raw.ask("INSERT INTO t VALUES (1)").await?.ok();
        raw.say(Say::new().query("COMMIT")).await?;
        door.in_server("query = 'COMMIT' AND wait_event_type = 'Lock'").await;
        door.no_writer();
        let answer = raw.answer().await?;
        assert_eq!((answer.code(), answer.status), ("40001", 'I'), "{more}");
        let asked = door.cluster.fates.lock().unwrap().clone();
        assert_eq!(asked.len(), 1, "{more}");
        locked.release().await?;
        let sql = format!("SELECT pg_xact_status('{}') IS NOT NULL", asked[0].xid);
        assert_eq!(door.value(&sql).await?, "t");
        door.writer(Term(door.cluster_term().0 + 1));
        assert_eq!(raw.value("SELECT 1").await?, "1");
    }
    Ok(())
}

async fn a_question_that_fails_is_told_as_the_answer_to_what_was_behind_it(
    mode: Mode,
) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE used(i int)").await?.ok();
    get_used_to(&mut raw, true).await?;
    raw.ask("BEGIN").await?.ok();
    raw.ask("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$").await?.ok();
    // The statement that asks is gone.
    let answer = raw.exchange(Say::new().query("INSERT INTO used VALUES (2)")).await?;
    assert_eq!((&answer.tags[..], answer.code(), answer.status), ("EZ", "26000", 'E'));
    assert_eq!(raw.ask("SELECT 1").await?.code(), "25P02");
    assert_eq!(raw.ask("ROLLBACK").await?.ok().status, 'I');
    assert_eq!(raw.value("SELECT count(*) FROM used WHERE i = 2").await?, "0");
    Ok(())
}

async fn copy_data_behind_a_question_passes(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE used(i int)").await?.ok();
    get_used_to(&mut raw, true).await?;
    for at_once in [false, true] {
        raw.ask("BEGIN").await?.ok();
        raw.ask("DELETE FROM used").await?.ok();
        let copy = Say::new().query("COPY used FROM STDIN");
        let data = |say: Say| say.message(b'd', b"1\n2\n").message(b'c', b"").query("SELECT 3");
        if at_once {
            raw.say(data(copy)).await?;
            raw.until(b'G').await?;
        } else {
            raw.say(copy).await?;
            raw.until(b'G').await?;
            raw.say(data(Say::new())).await?;
        }
        assert_eq!(raw.answer().await?.ok().commands, ["COPY 2"]);
        assert_eq!(raw.answer().await?.ok().value(), "3");
        raw.ask("COMMIT").await?.ok();
        assert_eq!(raw.value("SELECT count(*) FROM used").await?, "2");
    }
    Ok(())
}

async fn a_commit_of_nothing_is_done(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    door.raw().await?.ask("CREATE TABLE t(i int)").await?.ok();
    for extended in [false, true] {
        let mut raw = unanswered(&door, extended, "DELETE FROM t").await?;
        let answer = raw.answer().await?.ok();
        assert_eq!((&answer.commands[0][..], answer.status), ("COMMIT", 'I'));
        assert!(door.cluster.fates.lock().unwrap().is_empty());
        door.writer(Term(door.cluster_term().0 + 1));
        assert_eq!(raw.value("SELECT 1").await?, "1");
    }
    Ok(())
}

async fn a_rollback_under_way_is_done(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    raw.ask("BEGIN; INSERT INTO t VALUES (1)").await?.ok();
    raw.ask("SELECT 1").await?.ok();
    door.gate.renew(TERM, NOW);
    raw.say(Say::new().query("ROLLBACK")).await?;
    door.in_server("query = 'ROLLBACK' AND state = 'idle'").await;
    door.no_writer();
    let answer = raw.answer().await?.ok();
    assert_eq!((&answer.tags[..], &answer.commands[0][..]), ("CZ", "ROLLBACK"));
    door.writer(NEXT);
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    Ok(())
}

async fn a_pipeline_under_way_is_told_once_for_each_sync(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let locked = Locked::table(&door).await?;
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    let insert = "INSERT INTO t VALUES (1)";
    let say = Say::new().statement(insert).sync().statement("SELECT 1").sync().query("SELECT 2");
    raw.say(say).await?;
    door.in_server(WAITS).await;
    door.no_writer();
    for _ in 0..3 {
        let answer = raw.answer().await?;
        assert_eq!((&answer.tags[..], answer.status), ("EZ", 'E'));
        assert!(matches!(answer.code(), "40001" | "25P02"), "{}", answer.code());
    }
    raw.ask("ROLLBACK").await?.ok();
    door.writer(NEXT);
    locked.release().await?;
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    Ok(())
}

async fn a_lease_that_ran_out_holds_responses_until_it_is_renewed(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("SELECT 0").await?.ok();
    door.gate.renew(TERM, NOW);
    raw.say(Say::new().query("SELECT 1")).await?;
    assert!(raw.is_silent().await);
    door.gate.renew(TERM, FOREVER);
    assert_eq!(raw.answer().await?.tags, "TDCZ");

    door.gate.renew(TERM, NOW);
    raw.say(Say::new().query("CREATE TABLE done(); COMMIT")).await?;
    door.in_server("query LIKE 'CREATE TABLE done%' AND state = 'idle'").await;
    // The commit happened, its answer never left: the client must not be told anything firm.
    door.no_writer();
    let answer = raw.answer().await?;
    assert_eq!(answer.errors.last().unwrap().code, "08007");
    assert!(answer.commands.is_empty());
    Ok(())
}

async fn no_response_of_a_later_term_reaches_an_earlier_one(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let locked = Locked::table(&door).await?;
    let mut raw = door.raw().await?;
    raw.say(Say::new().query("INSERT INTO t VALUES (1)")).await?;
    door.in_server(WAITS).await;
    // Too quick to be noticed as a closing: only the term has changed.
    door.gate.open(NEXT);
    door.gate.renew(NEXT, FOREVER);
    locked.release().await?;
    assert_eq!(raw.answer().await?.code(), "08007");
    door.writer(NEXT);
    assert_eq!(raw.value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_result_cut_in_the_middle_ends_without_a_word(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.say(Say::new().query("SELECT repeat('x', 50000000)")).await?;
    raw.until(b'T').await?;
    // The rest is more than all buffers hold: the relay is in the middle of the row.
    door.in_server("wait_event = 'ClientWrite'").await;
    door.no_writer();
    assert!(raw.rest().await? < 50_000_000);
    Ok(())
}

async fn a_crash_of_the_server_is_told_like_a_cut(mode: Mode) -> Result<()> {
    let server = Arc::new(Server::primary(&[]).await?);
    let door = Door::before(server, mode, wanted(), None).await?;
    let mut write = door.raw().await?;
    let mut block = door.raw().await?;
    let mut idle = door.raw().await?;
    idle.ask("SELECT 1").await?.ok();
    block.ask("BEGIN; CREATE TABLE t()").await?.ok();
    write.say(Say::new().query("DO 'BEGIN PERFORM pg_sleep(60); END'")).await?;
    door.in_server("wait_event = 'PgSleep'").await;
    let pid = std::fs::read_to_string(door.server.dir.path().join("data/postmaster.pid"))?;
    let pid = pid.lines().next().unwrap().to_owned();
    std::process::Command::new("kill").args(["-QUIT", &pid]).status()?;
    let answer = write.answer().await?;
    assert_eq!((answer.code(), answer.status), ("08007", 'I'));
    door.no_writer();
    assert_eq!(block.ask("SELECT 1").await?.code(), "40001");
    assert!(idle.is_silent().await);
    Ok(())
}

async fn a_copy_under_way_is_told(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    for extended in [false, true] {
        let mut raw = door.raw().await?;
        raw.ask("CREATE TABLE IF NOT EXISTS t(i int)").await?.ok();
        let copy = "COPY t FROM STDIN";
        raw.say(match extended {
            false => Say::new().query(copy),
            true => Say::new().statement(copy).sync(),
        })
        .await?;
        raw.until(b'G').await?;
        raw.say(Say::new().message(b'd', b"1\n")).await?;
        door.no_writer();
        assert_eq!(raw.until(b'E').await?.code(), "08007");
        // What the client still sends belongs to it.
        let rest = Say::new().message(b'd', b"2\n").message(b'c', b"");
        raw.say(if extended { rest.sync() } else { rest }).await?;
        assert_eq!(raw.until(b'Z').await?.tags, "Z");
        door.writer(Term(door.cluster_term().0 + 1));
        assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    }
    Ok(())
}

const SYNC: &str = "synchronous_standby_names=ANY 1 (quorate)";
const CANCEL: &str =
    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";

async fn a_cancelled_wait_is_kept_from_the_client(mode: Mode) -> Result<()> {
    let server = Arc::new(Server::primary(&[SYNC]).await?);
    let door = Door::before(server, mode, wanted(), None).await?;
    let mut raw = door.raw().await?;
    for (say, tags) in [
        (Say::new().query("CREATE TABLE t()"), "CZ"),
        (Say::new().statement("CREATE TABLE u()").sync(), "12CZ"),
    ] {
        door.cluster.settled.send_replace(None);
        door.cluster.settles.store(0, Ordering::SeqCst);
        raw.say(say).await?;
        door.in_server("wait_event = 'SyncRep'").await;
        assert_eq!(door.value(CANCEL).await?, "t");
        eventually("the answer waits", async || {
            (door.cluster.settles.load(Ordering::SeqCst) == 1).then_some(())
        })
        .await;
        door.cluster.settled.send_replace(Some(true));
        let answer = raw.answer().await?;
        assert_eq!((&answer.tags[..], answer.notices.len()), (tags, 0));
    }
    // Held back until then.
    door.cluster.settled.send_replace(None);
    raw.say(Say::new().query("CREATE TABLE v()")).await?;
    door.in_server("wait_event = 'SyncRep'").await;
    assert_eq!(door.value(CANCEL).await?, "t");
    assert!(raw.is_silent().await);
    door.cluster.settled.send_replace(Some(true));
    raw.answer().await?.ok();
    Ok(())
}

async fn a_cancelled_wait_that_comes_to_nothing_is_looked_up(mode: Mode) -> Result<()> {
    let server = Arc::new(Server::primary(&[SYNC]).await?);
    let door = Door::before(server, mode, wanted(), None).await?;
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    raw.ask("CREATE TABLE t()").await?.ok();
    raw.ask("SELECT 1").await?.ok();
    raw.say(Say::new().query("COMMIT")).await?;
    door.in_server("wait_event = 'SyncRep'").await;
    assert_eq!(door.value(CANCEL).await?, "t");
    assert!(raw.is_silent().await);
    door.cluster.settled.send_replace(Some(false));
    eventually("it is looked up", async || {
        (door.cluster.fates.lock().unwrap().len() == 1).then_some(())
    })
    .await;
    door.cluster.fate.send_replace(Some(Fate::Unknown));
    let answer = raw.answer().await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "08007"), "and no warning before");
    Ok(())
}

async fn prepared_statements_and_settings_outlive_the_writer(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("SET work_mem = '7MB'").await?.ok();
    raw.exchange(Say::new().parse("s", "SHOW work_mem").sync()).await?.ok();
    raw.exchange(Say::new().parse("", "SELECT $1::int + 1").sync()).await?.ok();
    door.no_writer();
    door.writer(NEXT);
    assert!(raw.is_silent().await);
    assert_eq!(raw.exchange(Say::new().run("", &["1"])).await?.value(), "2");
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "7MB");
    Ok(())
}

async fn a_refused_group_is_not_executed_later(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.hold_ms = 0).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    door.no_writer();
    eventually("the gateway knows", async || {
        (raw.ask("SELECT 1").await.ok()?.code() == "57P03").then_some(())
    })
    .await;
    let insert = "INSERT INTO t VALUES (1)";
    let long = format!("INSERT INTO t VALUES (1) /* {} */", "x".repeat(200_000));
    raw.say(
        Say::new()
            .statement(insert)
            .message(b'H', b"")
            .statement(insert)
            .sync()
            .query(insert)
            .statement(&long)
            .sync(),
    )
    .await?;
    for i in 0..3 {
        let answer = raw.answer().await?;
        assert_eq!((&answer.tags[..], answer.code()), ("EZ", "57P03"), "{i}");
    }
    door.writer(NEXT);
    let count = eventually("there is a writer", async || {
        let answer = raw.ask("SELECT count(*) FROM t").await.unwrap();
        answer.errors.is_empty().then_some(answer)
    })
    .await;
    assert_eq!(count.value(), "0");
    Ok(())
}
