//! Reads: replicas serve them, and never show a session less than it has written.

use anyhow::{Result, ensure};
use quorate_e2e::process::signal;
use quorate_e2e::wire::{Mode, Session};
use quorate_e2e::{Cluster, Scenario, limits, local};
use rustix::process::Signal;

use super::rig::{Behind, Rig, Trouble, expect_value};

/// Write-then-read pairs for each mode and gateway.
const PAIRS: usize = 20;

#[test]
fn replicas_serve_reads_that_they_can_prove() -> Result<()> {
    let rig = Rig::shared()?;
    // The view tells where a read ran without giving away that it depends on it.
    let schema = rig.schema("CREATE VIEW place AS SELECT pg_is_in_recovery() AS standby;")?;
    let place = format!("SELECT standby FROM {schema}.place");
    rig.replayed()?;
    rig.everywhere(|session, mode| {
        if mode == Mode::Flushed {
            // What follows a Flush may write, and is not known yet: it goes to the writer.
            return expect_value(&session.run(mode, &place)?.ok()?, "f");
        }
        rig.by_replica(|| session.run(mode, &place))
    })
}

#[test]
fn a_session_sees_what_it_wrote() -> Result<()> {
    let rig = Rig::new("a replica two seconds behind serves nobody who would notice")?;
    let schema = rig.schema(
        "CREATE TABLE t (id serial, mode text);
         CREATE FUNCTION writes(text) RETURNS text LANGUAGE sql AS
             $$INSERT INTO {s}.t (mode) VALUES ($1) RETURNING mode$$;
         CREATE PROCEDURE called(text) LANGUAGE sql AS
             $$INSERT INTO {s}.t (mode) VALUES ($1)$$;",
    )?;
    let _behind = Behind::keep(&rig)?;
    let mut trouble = Trouble::default();
    let ways = [
        ("autocommit", vec!["INSERT INTO {s}.t (mode) VALUES ('{m}')"]),
        ("block", vec!["BEGIN", "INSERT INTO {s}.t (mode) VALUES ('{m}')", "COMMIT"]),
        ("script", vec!["BEGIN; INSERT INTO {s}.t (mode) VALUES ('{m}'); COMMIT"]),
        ("function", vec!["SELECT {s}.writes('{m}')"]),
        ("procedure", vec!["CALL {s}.called('{m}')"]),
        ("do", vec!["DO $$BEGIN INSERT INTO {s}.t (mode) VALUES ('{m}'); END$$"]),
    ];
    for (way, steps) in ways {
        let pairs = rig.everywhere(|session, mode| pairs(session, mode, &schema, &steps));
        trouble.note(way, pairs);
    }
    trouble.end()
}

fn pairs(session: &mut Session, mode: Mode, schema: &str, steps: &[&str]) -> Result<()> {
    let mut stale = 0;
    for i in 0..PAIRS {
        let mark = format!("{mode:?} {i} {}", steps.len());
        for step in steps {
            let sql = step.replace("{s}", schema).replace("{m}", &mark);
            let script = sql.contains(';') && !sql.starts_with("DO");
            let mode = if script || mode == Mode::Named { Mode::Simple } else { mode };
            session.run(mode, &sql)?.ok()?;
        }
        let sql = format!("SELECT count(*) > 0 FROM {schema}.t WHERE mode = '{mark}'");
        let seen = session.run(mode, &sql)?.ok()?;
        stale += usize::from(seen.value().as_deref() != Some("t"));
    }
    ensure!(stale == 0, "{stale} of {PAIRS} reads were stale");
    Ok(())
}

#[test]
fn strong_reads_see_what_anybody_wrote() -> Result<()> {
    let rig = Rig::new("strong reads while a replica is two seconds behind")?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    let _behind = Behind::keep(&rig)?;
    rig.everywhere(|session, mode| {
        session.simple("SET quorate.consistency = 'strong'")?.ok()?;
        for i in 0..PAIRS {
            direct_write(&rig, &schema, i)?;
            let sql = format!("SELECT count(*) FROM {schema}.t");
            let seen = session.run(mode, &sql)?.ok()?;
            let there = rig.direct()?.value(&sql)?;
            expect_value(&seen, &there)?;
        }
        Ok(())
    })
}

fn direct_write(rig: &Rig, schema: &str, i: usize) -> Result<()> {
    rig.direct()?.simple(&format!("INSERT INTO {schema}.t VALUES ({i})"))?.ok().map(drop)
}

#[test]
fn a_read_only_transaction_may_use_a_replica() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema(
        "CREATE TABLE t (id int); CREATE VIEW place AS SELECT pg_is_in_recovery() AS standby;",
    )?;
    rig.everywhere(|session, mode| {
        rig.by_replica(|| {
            session.run(plainly(mode), "BEGIN READ ONLY")?.ok()?;
            // Asked openly, it would be asked of the writer.
            let place = session.run(mode, &format!("SELECT standby FROM {schema}.place"))?;
            session.run(mode, "COMMIT")?.ok()?;
            Ok(place)
        })?;
        session.simple("BEGIN READ ONLY")?.ok()?;
        let code = session.run(mode, &format!("INSERT INTO {schema}.t VALUES (1)"))?.code();
        ensure!(code == "25006", "a write was answered with {code:?}");
        session.simple("ROLLBACK")?.ok().map(drop)
    })
}

/// A mode that neither prepares with Flush nor does anything before the transaction begins: both may
/// need the writer.
fn plainly(mode: Mode) -> Mode {
    if matches!(mode, Mode::Flushed | Mode::Pipelined) { Mode::Unnamed } else { mode }
}

/// A mode that sends nothing before the statement, and sends it once.
fn first(mode: Mode) -> Mode {
    match mode {
        Mode::Named | Mode::Pipelined | Mode::Burst => Mode::Unnamed,
        other => other,
    }
}

/// Statements that a standby refuses and a read-only transaction of a primary does not.
const ONLY_THE_WRITER_CAN: &[&str] = &[
    "SELECT pg_current_wal_lsn()",
    "SELECT txid_current()",
    "LISTEN somebody",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
];

#[test]
fn a_read_only_transaction_may_do_what_only_the_writer_can() -> Result<()> {
    let rig = Rig::shared()?;
    let mut trouble = Trouble::default();
    for sql in ONLY_THE_WRITER_CAN {
        let done = rig.everywhere(|session, mode| {
            session.simple("BEGIN READ ONLY")?.ok()?;
            session.run(first(mode), sql)?.ok()?;
            session.simple("COMMIT")?.ok().map(drop)
        });
        trouble.note(sql, done);
    }
    let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY";
    let done = rig.everywhere(|session, mode| {
        session.run(first(mode), begin)?.ok()?;
        session.run(mode, "SELECT 1")?.ok()?;
        session.run(mode, "COMMIT")?.ok().map(drop)
    });
    trouble.note(begin, done);
    trouble.end()
}

#[test]
fn a_transaction_reads_then_writes() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    rig.everywhere(|session, mode| {
        for begin in ["BEGIN", "START TRANSACTION", "BEGIN ISOLATION LEVEL REPEATABLE READ"] {
            session.run(first(mode), begin)?.ok()?;
            session.run(mode, &format!("SELECT count(*) FROM {schema}.t"))?.ok()?;
            session.run(mode, &format!("INSERT INTO {schema}.t VALUES (1)"))?.ok()?;
            session.run(mode, "COMMIT")?.ok()?;
        }
        Ok(())
    })
}

#[test]
fn locks_are_the_same_on_every_node() -> Result<()> {
    let rig = Rig::shared()?;
    let mut trouble = Trouble::default();
    for sql in ["SELECT pg_try_advisory_lock(81)", "SELECT pg_try_advisory_lock(81) WHERE true"] {
        let done = rig.everywhere(|session, mode| {
            let got = session.run(mode, sql)?.ok()?;
            ensure!(got.value().is_some_and(|v| v.starts_with('t')), "{got}");
            let mut other = rig.direct()?;
            let theirs = other.value("SELECT pg_try_advisory_lock(81)")?;
            ensure!(theirs == "f", "the writer gave a lock to another that this session has");
            let unlocked = session.run(Mode::Simple, "SELECT pg_advisory_unlock_all()")?;
            unlocked.ok().map(drop)
        });
        trouble.note(sql, done);
    }
    let blocked = rig.everywhere(|session, mode| {
        session.simple("BEGIN")?.ok()?;
        let got = session.run(mode, "SELECT pg_try_advisory_xact_lock(82)")?.ok()?;
        expect_value(&got, "t")?;
        let theirs = rig.direct()?.value("SELECT pg_try_advisory_lock(82)")?;
        session.simple("COMMIT")?.ok()?;
        ensure!(theirs == "f", "the writer gave a lock to another that this session has");
        Ok(())
    });
    trouble.note("inside a block", blocked);
    trouble.end()
}

#[test]
fn a_copy_that_has_just_started_shows_what_it_has() -> Result<()> {
    let scenario = Scenario::new(
        "a standby is copied anew while a commit waits for copies: the commit is in the copy, and \
         PostgreSQL does not show it there before a later transaction has ended",
    );
    let mut cluster = Cluster::of(3).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    let login = cluster.login().clone();
    let mut here = Session::open(cluster.node("n2")?.gateway(), &login)?;
    here.simple("CREATE TABLE seen (word text)")?.ok()?;
    // Nobody acknowledges any more.
    cluster.host_gone("n3")?;
    signal(cluster.walreceiver("n2")?, Signal::STOP);
    let done = std::thread::spawn(move || -> Result<Session> {
        here.simple("INSERT INTO seen VALUES ('it')")?.ok()?;
        Ok(here)
    });
    let at_n1 = cluster.node("n1")?.socket_dir();
    cluster.wait_until(limits::RECOVER, "the commit waits", || {
        let sql = "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep'";
        local::one(&at_n1, sql).ok().filter(|n| n == "1")
    })?;
    scenario.step("a commit waits for copies");
    cluster.command("n1", &["rebuild", "n2", "--yes"]).or_else(|e| cluster.explain(e))?;
    let mut here = done.join().map_err(|_| anyhow::anyhow!("the session panicked"))??;
    scenario.step("n2, copied anew, has it, and it was acknowledged");
    here.simple("SET quorate.read_from = 'replica'")?.ok()?;
    let seen = cluster.wait_until(limits::RECOVER, "n2 serves reads", || {
        let answer = here.simple("SELECT string_agg(word, ' ') FROM seen").ok()?;
        (answer.code() != "57P03").then_some(answer)
    })?;
    let seen = seen.ok()?.value();
    ensure!(seen.as_deref() == Some("it"), "the session does not see what it wrote: {seen:?}");
    Ok(())
}
