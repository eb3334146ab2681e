//! What a session keeps must be there after every transaction, whatever server the next one gets,
//! and nobody else may see it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::{Answer, Mode, Session};

use super::rig::{Rig, Trouble};

/// A script: what is sent, and how. It runs once by itself and once through a gateway, and both
/// must be told the same.
type Script = &'static [&'static str];

/// Sessions that do something between any two steps of a script, so that the servers of the pool
/// change places.
struct Others(Vec<Session>);

impl Others {
    fn join(address: SocketAddr, rig: &Rig) -> Result<Self> {
        let open = |_| Session::open(address, rig.cluster.login());
        Ok(Self((0..3).map(open).collect::<Result<_>>()?))
    }

    /// All of them hold a transaction open at once, and look whether they see what is not theirs.
    fn stir(&mut self) -> Result<()> {
        for session in &mut self.0 {
            session
                .simple("BEGIN; UPDATE pg_catalog.pg_class SET relname = relname WHERE false")?;
        }
        for session in &mut self.0 {
            let clean = "SELECT current_setting('search_path'), current_setting('role'),
                current_setting('work_mem'), current_setting('app.name', true),
                current_setting('default_transaction_read_only'), current_user,
                (SELECT count(*) FROM pg_catalog.pg_class c
                 WHERE c.relnamespace = pg_catalog.pg_my_temp_schema()),
                (SELECT count(*) FROM pg_catalog.pg_cursors),
                (SELECT count(*) FROM pg_catalog.pg_listening_channels()),
                (SELECT count(*) FROM pg_catalog.pg_locks
                 WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())";
            let seen = session.simple(clean)?.ok()?;
            let row = seen.rows().into_iter().next().context("a row")?;
            let row: Vec<_> = row.into_iter().map(Option::unwrap_or_default).collect();
            let wanted =
                ["\"$user\", public", "none", "4MB", "", "off", "postgres", "0", "0", "0", "0"];
            ensure!(row == wanted, "another client sees what is not its own: {row:?}");
            session.simple("COMMIT")?.ok()?;
        }
        Ok(())
    }
}

const SETTINGS: &[(&str, Script)] = &[
    ("set", &["SET work_mem = '7MB'", "SHOW work_mem", "RESET work_mem", "SHOW work_mem"]),
    ("search_path", &["SET search_path TO pg_catalog, public", "SHOW search_path"]),
    (
        "custom",
        &["SET app.name = 'it''s \\ me'", "SHOW app.name", "RESET app.name", "SHOW app.name"],
    ),
    (
        "read only",
        &["SET default_transaction_read_only = on", "CREATE TABLE x ()", "SHOW work_mem"],
    ),
    ("local", &["BEGIN", "SET LOCAL work_mem = '9MB'", "SHOW work_mem", "COMMIT", "SHOW work_mem"]),
    ("rollback", &["BEGIN", "SET work_mem = '9MB'", "ROLLBACK", "SHOW work_mem"]),
    (
        "savepoint",
        &[
            "BEGIN",
            "SET work_mem = '9MB'",
            "SAVEPOINT a",
            "SET work_mem = '10MB'",
            "ROLLBACK TO a",
            "COMMIT",
            "SHOW work_mem",
        ],
    ),
    ("set_config", &["SELECT set_config('work_mem', '8MB', false)", "SHOW work_mem"]),
    ("set_config local", &["SELECT set_config('work_mem', '8MB', true)", "SHOW work_mem"]),
    (
        "set_config dynamic",
        &[
            "SELECT set_config(name, '11MB', false) FROM pg_settings WHERE name = 'work_mem'",
            "SHOW work_mem",
        ],
    ),
    (
        "update",
        &["UPDATE pg_settings SET setting = '9MB' WHERE name = 'work_mem'", "SHOW work_mem"],
    ),
    ("do", &["DO $$BEGIN PERFORM set_config('work_mem', '12MB', false); END$$", "SHOW work_mem"]),
    ("execute set", &["DO $$BEGIN EXECUTE 'SET work_mem = ''12MB'''; END$$", "SHOW work_mem"]),
    ("role", &["SET ROLE pg_monitor", "SELECT current_user", "RESET ROLE", "SELECT current_user"]),
    (
        "authorization",
        &[
            "SET SESSION AUTHORIZATION pg_monitor",
            "SELECT session_user",
            "RESET SESSION AUTHORIZATION",
            "SELECT session_user",
        ],
    ),
    ("time zone", &["SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", "SET TIME ZONE LOCAL"]),
    ("names", &["SET NAMES 'LATIN1'", "SHOW client_encoding", "SET NAMES 'UTF8'"]),
    ("schema", &["SET SCHEMA 'pg_catalog'", "SHOW search_path"]),
    (
        "characteristics",
        &[
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SHOW default_transaction_isolation",
            "BEGIN",
            "SHOW transaction_isolation",
            "COMMIT",
        ],
    ),
    ("two", &["SET work_mem = '5MB'; SET app.name = 'two'", "SHOW work_mem", "SHOW app.name"]),
    ("reset all", &["SET work_mem = '5MB'", "SET app.name = 'x'", "RESET ALL", "SHOW work_mem"]),
    (
        "discard",
        &[
            "SET work_mem = '5MB'",
            "PREPARE p AS SELECT 1",
            "DISCARD ALL",
            "SHOW work_mem",
            "EXECUTE p",
        ],
    ),
    ("quoted", &["SET \"work_mem\" = '5MB'", "SHOW work_mem"]),
    ("strange", &["SET \"App\".\"Name\" = 'x'", "SELECT current_setting('app.name')"]),
    ("wrong", &["SET work_mem = 'much'", "SHOW work_mem"]),
    ("strings", &["SET standard_conforming_strings = off", "SELECT '\\'", "SELECT 'a\\'b'"]),
    ("default", &["SET work_mem = '5MB'", "SET work_mem TO DEFAULT", "SHOW work_mem"]),
];

const OBJECTS: &[(&str, Script)] = &[
    (
        "temp table",
        &["CREATE TEMP TABLE mine (x int)", "INSERT INTO mine VALUES (1)", "SELECT * FROM mine"],
    ),
    ("temp as", &["CREATE TEMPORARY TABLE mine AS SELECT 1 AS x", "TABLE mine"]),
    ("into temp", &["SELECT 1 AS x INTO TEMP mine", "SELECT * FROM mine"]),
    ("pg_temp", &["CREATE TABLE pg_temp.mine (x int)", "SELECT count(*) FROM pg_temp.mine"]),
    ("temp view", &["CREATE TEMP VIEW mine AS SELECT 1 AS x", "SELECT * FROM mine"]),
    ("temp sequence", &["CREATE TEMP SEQUENCE mine", "SELECT nextval('mine')"]),
    ("do temp", &["DO $$BEGIN CREATE TEMP TABLE mine (x int); END$$", "SELECT * FROM mine"]),
    (
        "temp rolled back",
        &["BEGIN", "CREATE TEMP TABLE mine (x int)", "ROLLBACK", "SELECT * FROM mine"],
    ),
    (
        "on commit drop",
        &[
            "BEGIN",
            "CREATE TEMP TABLE mine (x int) ON COMMIT DROP",
            "SELECT * FROM mine",
            "COMMIT",
            "SELECT * FROM mine",
        ],
    ),
    (
        "lock",
        &[
            // Not the same lock as the session it is compared with.
            "SELECT pg_advisory_lock(pg_backend_pid())",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
             AND pid = pg_backend_pid()",
            "SELECT pg_advisory_unlock(pg_backend_pid())",
            "SELECT pg_advisory_unlock(pg_backend_pid())",
        ],
    ),
    (
        "prepare",
        &["PREPARE p (int) AS SELECT $1 + 1", "EXECUTE p (1)", "DEALLOCATE p", "EXECUTE p (1)"],
    ),
    ("deallocate all", &["PREPARE p AS SELECT 1", "DEALLOCATE ALL", "EXECUTE p"]),
    (
        "prepare in a failure",
        &["BEGIN", "PREPARE p AS SELECT 7", "SELECT 1/0", "ROLLBACK", "EXECUTE p"],
    ),
    ("prepare twice", &["PREPARE p AS SELECT 1", "PREPARE p AS SELECT 2", "EXECUTE p"]),
    (
        "hold",
        &[
            "BEGIN",
            "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 3)",
            "COMMIT",
            "FETCH c",
            "FETCH c",
            "CLOSE c",
            "FETCH c",
        ],
    ),
    (
        "hold outside",
        &["DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 3)", "FETCH 2 c", "FETCH c"],
    ),
    (
        "cursor",
        &[
            "BEGIN",
            "DECLARE c CURSOR FOR SELECT generate_series(1, 3)",
            "FETCH c",
            "COMMIT",
            "FETCH c",
        ],
    ),
    (
        "listening",
        &[
            "LISTEN a",
            "SELECT pg_listening_channels()",
            "UNLISTEN *",
            "SELECT pg_listening_channels()",
        ],
    ),
    ("lastval", &["CREATE TEMP SEQUENCE mine", "SELECT nextval('mine')", "SELECT lastval()"]),
    ("random", &["SELECT setseed(0.5)", "SELECT random()"]),
];

const TRANSACTIONS: &[(&str, Script)] = &[
    ("failure", &["BEGIN", "SELECT 1/0", "SELECT 1", "COMMIT", "SELECT 1"]),
    ("syntax", &["BEGIN", "SELEKT", "SELECT 1", "ROLLBACK"]),
    ("commit outside", &["COMMIT", "ROLLBACK"]),
    ("begin twice", &["BEGIN", "BEGIN", "COMMIT"]),
    ("chain", &["BEGIN", "SELECT 1", "COMMIT AND CHAIN", "SELECT 2", "ROLLBACK AND CHAIN", "END"]),
    ("savepoints", &["BEGIN", "SAVEPOINT a", "SELECT 1/0", "ROLLBACK TO a", "SELECT 1", "COMMIT"]),
    ("abort", &["BEGIN", "ABORT", "BEGIN WORK", "END WORK"]),
    ("empty", &["", ";", "-- nothing", "/* nothing */"]),
    ("unfinished", &["SELECT 'x", "SELECT $$x", "/* x", "SELECT \"x"]),
    ("warning", &["DO $$BEGIN RAISE WARNING 'hello'; END$$", "SELECT 1"]),
    ("mode", &["BEGIN", "SET TRANSACTION READ ONLY", "SHOW transaction_read_only", "COMMIT"]),
    ("explain", &["EXPLAIN (COSTS off) SELECT 1", "SHOW server_version_num"]),
    ("long", &["SELECT length(repeat('x', 1000000))", "SELECT repeat('y', 300000)"]),
    ("columns", &["SELECT 1 AS a, NULL AS b, 'x'::name AS c, ARRAY[1,2] AS d", "SELECT"]),
    ("vacuum", &["BEGIN", "VACUUM", "ROLLBACK", "VACUUM pg_catalog.pg_am"]),
];

#[test]
fn settings_follow_their_client() -> Result<()> {
    same_as_alone(SETTINGS)
}

#[test]
fn objects_of_a_session_stay_with_it() -> Result<()> {
    same_as_alone(OBJECTS)
}

#[test]
fn transactions_are_answered_as_by_one_server() -> Result<()> {
    same_as_alone(TRANSACTIONS)
}

fn same_as_alone(scripts: &[(&str, Script)]) -> Result<()> {
    let rig = Rig::shared()?;
    let mut trouble = Trouble::default();
    for (door, address) in rig.doors() {
        let mut others = Others::join(address, &rig)?;
        for (name, script) in scripts {
            for mode in Mode::ALL {
                let done = compare(&rig, address, mode, script, &mut others);
                trouble.note(&format!("{name}, {mode:?} through {door}"), done);
            }
        }
    }
    trouble.end()
}

/// Runs a script alone and through a gateway, and compares each answer.
fn compare(
    rig: &Rig,
    address: SocketAddr,
    mode: Mode,
    script: Script,
    others: &mut Others,
) -> Result<()> {
    let mut model = rig.direct()?;
    let mut session = Session::open(address, rig.cluster.login())?;
    for sql in script {
        // A script of several statements exists only in the simple protocol.
        let mode = if sql.contains("; ") && !sql.contains("DO ") { Mode::Simple } else { mode };
        let wanted = model.run(mode, sql)?;
        let got = session.run(mode, sql).with_context(|| (*sql).to_owned())?;
        ensure!(got == wanted, "{sql}\n    is {got}\nnot {wanted}");
        if session.status == 'I' {
            others.stir().with_context(|| format!("after {sql}"))?;
        }
    }
    ensure!(
        session.reported == model.reported,
        "reported settings are {:?}, not {:?}",
        session.reported,
        model.reported
    );
    drop(session);
    others.stir().context("after the client left")
}

#[test]
fn statements_survive_a_change_of_their_table() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int); INSERT INTO t VALUES (1);")?;
    let mut trouble = Trouble::default();
    for (round, (door, address)) in rig.doors().into_iter().enumerate() {
        let mut session = Session::open(address, rig.cluster.login())?;
        let sql = format!("SELECT * FROM {schema}.t");
        session.prepare("all", &sql)?.ok()?;
        session.execute("all", &[])?.ok()?;
        let mut others = Others::join(address, &rig)?;
        rig.direct()?.simple(&format!("ALTER TABLE {schema}.t ADD c{round} int"))?.ok()?;
        for mode in [Mode::Unnamed, Mode::Pipelined, Mode::Burst, Mode::Simple, Mode::Named] {
            let done = session.run(mode, &sql).and_then(Answer::ok);
            trouble.note(&format!("{mode:?} through {door}"), done.map(drop));
        }
        // The named one was described before: a driver that knows its columns must be told.
        let answer = session.execute("all", &[])?;
        let code = answer.code();
        let fine = code.is_empty() || code == "0A000";
        ensure!(fine, "a named statement was answered with {answer}");
        session.simple("BEGIN")?.ok()?;
        let done = session.run(Mode::Unnamed, &sql).and_then(Answer::ok);
        trouble.note(&format!("in a block through {door}"), done.map(drop));
        session.simple("ROLLBACK")?.ok()?;
        others.stir()?;
    }
    trouble.end()
}

#[test]
fn statements_are_their_clients_own() -> Result<()> {
    let rig = Rig::shared()?;
    for (_, address) in rig.doors() {
        let open = || Session::open(address, rig.cluster.login());
        let mut sessions = (0..20).map(|_| open()).collect::<Result<Vec<_>>>()?;
        for (i, session) in sessions.iter_mut().enumerate() {
            session.prepare("same", &format!("SELECT {i} + $1::int"))?.ok()?;
        }
        for round in 0..5 {
            for (i, session) in sessions.iter_mut().enumerate() {
                let value = round.to_string();
                let answer = session.execute("same", &[Some(&value)])?.ok()?;
                let sum = (i + round).to_string();
                ensure!(answer.value() == Some(sum), "client {i} in round {round}: {answer}");
            }
        }
        for session in &mut sessions {
            let twice = session.prepare("same", "SELECT 'other'")?;
            ensure!(twice.code() == "42P05", "prepared twice: {twice}");
            session.execute("same", &[Some("1")])?.ok()?;
            session.close("same")?.ok()?;
            let gone = session.execute("same", &[Some("1")])?;
            ensure!(gone.code() == "26000", "closed and run: {gone}");
            session.prepare("same", "SELECT 'new'")?.ok()?;
            let answer = session.execute("same", &[])?.ok()?;
            ensure!(answer.value().as_deref() == Some("new"), "{answer}");
            session.simple("DEALLOCATE ALL")?.ok()?;
            let gone = session.execute("same", &[])?;
            ensure!(gone.code() == "26000", "deallocated and run: {gone}");
            session.prepare("same", "SELECT 'again'")?.ok()?;
            session.simple("DEALLOCATE same")?.ok()?;
            let gone = session.execute("same", &[])?;
            ensure!(gone.code() == "26000", "deallocated by name and run: {gone}");
            session.prepare("same", "SELECT 'again'")?.ok()?;
            session.simple("DISCARD ALL")?.ok()?;
            let gone = session.execute("same", &[])?;
            ensure!(gone.code() == "26000", "discarded and run: {gone}");
        }
    }
    Ok(())
}

#[test]
fn notifications_arrive() -> Result<()> {
    let rig = Rig::shared()?;
    let doors = rig.doors();
    for (_, address) in &doors {
        let mut ear = Session::open(*address, rig.cluster.login())?;
        ear.simple("LISTEN news")?.ok()?;
        ear.simple("SELECT 1")?.ok()?;
        for (i, (_, from)) in doors.iter().enumerate() {
            let mut mouth = Session::open(*from, rig.cluster.login())?;
            mouth.simple(&format!("NOTIFY news, 'word {i}'"))?.ok()?;
            let heard = ear.notification()?;
            ensure!(heard == ("news".to_owned(), format!("word {i}")), "{heard:?}");
        }
        let mut other = Session::open(*address, rig.cluster.login())?;
        other.simple("NOTIFY news, 'last'")?.ok()?;
        other.simple("SELECT 1")?.ok()?;
        ensure!(other.notified.is_empty(), "{:?} came to who does not listen", other.notified);
    }
    Ok(())
}

#[test]
fn locks_end_with_their_client() -> Result<()> {
    let rig = Rig::shared()?;
    for (i, (_, address)) in rig.doors().into_iter().enumerate() {
        let key = 9000 + i;
        let mut session = Session::open(address, rig.cluster.login())?;
        session.simple(&format!("SELECT pg_advisory_lock({key})"))?.ok()?;
        let take = format!("SELECT pg_try_advisory_lock({key})");
        let mut other = rig.direct()?;
        ensure!(other.value(&take)? == "f", "nobody has the lock");
        drop(session);
        rig.cluster.wait_until(quorate_e2e::limits::RECOVER, "the lock is free", || {
            (other.value(&take).ok()? == "t").then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn copy_goes_both_ways_and_forgives_a_bad_row() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    for (_, address) in rig.doors() {
        let mut session = Session::open(address, rig.cluster.login())?;
        let copy = format!("COPY {schema}.t FROM STDIN");
        let good = session.copy_in(&copy, &["1", "2", "3"])?.ok()?;
        ensure!(good.tags() == ["COPY 3"], "{good}");
        let bad = session.copy_in(&copy, &["4", "five", "6"])?;
        ensure!(bad.code() == "22P02", "{bad}");
        let rows = session.simple(&format!("COPY {schema}.t TO STDOUT"))?.ok()?.rows();
        ensure!(rows.len() == 3, "{rows:?}");
        session.simple("BEGIN")?.ok()?;
        session.copy_in(&copy, &["7"])?.ok()?;
        let bad = session.copy_in(&copy, &["eight"])?;
        ensure!(bad.code() == "22P02" && session.status == 'E', "{bad}");
        session.simple("ROLLBACK")?.ok()?;
        let left = session.value(&format!("SELECT count(*) FROM {schema}.t"))?;
        ensure!(left == "3", "{left} rows after a rollback");
        session.simple(&format!("TRUNCATE {schema}.t"))?.ok()?;
    }
    Ok(())
}

#[test]
fn a_large_value_goes_in_and_out() -> Result<()> {
    const BYTES: usize = 100 << 20;
    let rig = Rig::shared()?;
    let schema =
        rig.schema("CREATE TABLE t (v text); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;")?;
    let value = "x".repeat(BYTES);
    for (_, address) in rig.doors() {
        let mut session = Session::open(address, rig.cluster.login())?;
        session.prepare("put", &format!("INSERT INTO {schema}.t VALUES ($1)"))?.ok()?;
        session.execute("put", &[Some(&value)])?.ok()?;
        let back = session.value(&format!("SELECT v FROM {schema}.t"))?;
        ensure!(back == value, "{} bytes came back", back.len());
        session.simple(&format!("TRUNCATE {schema}.t"))?.ok()?;
    }
    Ok(())
}

#[test]
fn cancel_reaches_the_right_server() -> Result<()> {
    let rig = Rig::shared()?;
    let doors = rig.doors();
    for (door, address) in &doors {
        for (sql, mode) in
            [("SELECT pg_sleep(15)", Mode::Simple), ("SELECT pg_sleep(15)", Mode::Unnamed)]
        {
            let mut session = Session::open(*address, rig.cluster.login())?;
            let mut bystander = Session::open(*address, rig.cluster.login())?;
            let cancel = session.canceller();
            let begun = Instant::now();
            let active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(15)%'
                AND state = 'active' AND pid <> pg_backend_pid()";
            let sockets = [rig.socket(&rig.writer)?, rig.socket(&rig.replica)?];
            let waiting = std::thread::spawn(move || -> Result<()> {
                let runs = || {
                    sockets
                        .iter()
                        .any(|s| quorate_e2e::local::one(s, active).is_ok_and(|count| count != "0"))
                };
                while !runs() && begun.elapsed() < Duration::from_secs(10) {
                    std::thread::sleep(quorate_e2e::limits::POLL);
                }
                cancel()
            });
            let answer = session.run(mode, sql)?;
            ensure!(answer.code() == "57014", "{door}: {answer}");
            waiting.join().ok().context("the canceller panicked")??;
            session.simple("SELECT 1")?.ok()?;
            bystander.simple("SELECT 1")?.ok()?;
            // Nothing runs: a late cancel request must not hit the next statement of anybody.
            session.canceller()()?;
            session.simple("SELECT pg_sleep(0.05)")?.ok()?;
        }
    }
    Ok(())
}
