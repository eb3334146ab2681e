//! What a session may hold beyond a transaction: it stays with its client, and goes with it.

use anyhow::Result;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::{Raw, Say};
use crate::server::eventually;

in_both_modes! {
    a_session_with_something_of_its_own_keeps_its_server
    what_was_held_is_gone_after_discard_all
    what_was_held_is_gone_with_the_client
    functions_that_leave_something_keep_the_server
    code_that_leaves_nothing_keeps_nothing
    triggers_that_leave_something_keep_the_server
    notifications_reach_an_idle_client
    a_pool_in_session_mode_keeps_every_server
    a_client_that_is_pinned_is_told_when_its_session_is_lost
    nobody_is_told_what_a_sequence_gave_another
}

/// What makes something of its own, how to see it, and the answer that says that it is there.
const OWN: [(&str, &str, &str); 7] = [
    (
        "CREATE TEMP TABLE mine AS SELECT 1 AS a",
        "SELECT to_regclass('pg_temp.mine') IS NOT NULL",
        "t",
    ),
    ("SELECT 1 AS a INTO TEMP mine", "SELECT to_regclass('pg_temp.mine') IS NOT NULL", "t"),
    (
        "SELECT pg_advisory_lock(77)",
        "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "t",
    ),
    ("LISTEN mine", "SELECT count(*) > 0 FROM pg_listening_channels()", "t"),
    (
        "BEGIN; DECLARE mine CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT count(*) > 0 FROM pg_cursors WHERE is_holdable",
        "t",
    ),
    (
        "PREPARE mine AS SELECT 42",
        "SELECT count(*) > 0 FROM pg_prepared_statements WHERE name = 'mine'",
        "t",
    ),
    ("SET SESSION AUTHORIZATION app", "SELECT session_user = 'app'", "t"),
];

async fn a_session_with_something_of_its_own_keeps_its_server(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let mut b = door.raw().await?;
    for (make, see, there) in OWN {
        for extended in [false, true] {
            if extended && make.contains(';') {
                continue;
            }
            let mut a = door.raw().await?;
            match extended {
                true => a.exchange(Say::new().statement(make).sync()).await?.ok(),
                false => a.ask(make).await?.ok(),
            };
            for _ in 0..2 {
                assert_ne!(b.value(see).await?, there, "{make}");
                assert_eq!(a.value(see).await?, there, "{make}");
            }
            // The other connection is not enough for two.
            b.ask("BEGIN").await?.ok();
            let mut c = door.raw().await?;
            c.say(Say::new().query("SELECT 1")).await?;
            door.waiting(1).await;
            drop(a);
            assert_eq!(c.answer().await?.value(), "1", "{make}");
            b.ask("COMMIT").await?.ok();
        }
    }
    Ok(())
}

async fn what_was_held_is_gone_after_discard_all(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    for (make, see, there) in OWN {
        let mut a = door.raw().await?;
        a.ask(make).await?.ok();
        assert_eq!(a.value(see).await?, there, "{make}");
        let mut b = door.raw().await?;
        b.say(Say::new().query(see)).await?;
        door.waiting(1).await;
        a.ask("DISCARD ALL").await?.ok();
        assert_ne!(b.answer().await?.value(), there, "{make}");
        assert_ne!(a.value(see).await?, there, "{make}");
    }
    Ok(())
}

async fn what_was_held_is_gone_with_the_client(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    for (make, see, there) in OWN {
        let mut a = door.raw().await?;
        a.ask(make).await?.ok();
        // Half of them are in the middle of a block.
        if make.starts_with('C') || make.starts_with('L') {
            a.ask("BEGIN").await?.ok();
        }
        drop(a);
        let mut b = door.raw().await?;
        assert_ne!(b.value(see).await?, there, "{make}");
    }
    Ok(())
}

/// Makes functions before the gateway looks at them.
const FUNCTIONS: &str = "\
CREATE FUNCTION make_temp() RETURNS int LANGUAGE plpgsql AS \
'BEGIN CREATE TEMP TABLE mine(); RETURN 1; END'; \
CREATE FUNCTION take_lock() RETURNS int LANGUAGE sql AS \
'SELECT 1 FROM (SELECT pg_advisory_lock(77)) x'; \
CREATE FUNCTION prepares() RETURNS int LANGUAGE plpgsql AS \
$$ BEGIN EXECUTE 'PREPARE mine AS SELECT 42'; RETURN 1; END $$";

async fn leaves(door: &Door, a: &mut Raw, make: &str) -> Result<()> {
    a.ask(make).await?.ok();
    let mut b = door.raw().await?;
    b.say(Say::new().query("SELECT pg_backend_pid()")).await?;
    door.waiting(1).await;
    a.ask("DISCARD ALL").await?.ok();
    b.answer().await?.ok();
    Ok(())
}

async fn functions_that_leave_something_keep_the_server(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    door.admin().await?.batch_execute(FUNCTIONS).await?;
    let mut a = door.raw().await?;
    for make in [
        "SELECT make_temp()",
        "SELECT public.make_temp()",
        "SELECT take_lock()",
        "SELECT prepares()",
        "DO $$ BEGIN PERFORM pg_advisory_lock(78); END $$",
        "SELECT 1 WHERE take_lock() = 1",
    ] {
        let waited = leaves(&door, &mut a, make);
        tokio::time::timeout(crate::server::DEADLINE, waited).await.expect(make)?;
    }
    Ok(())
}

async fn triggers_that_leave_something_keep_the_server(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let sql = "CREATE TABLE t(i int); CREATE FUNCTION locks() RETURNS trigger LANGUAGE plpgsql AS \
               'BEGIN PERFORM pg_advisory_lock(77); RETURN new; END'; \
               CREATE TRIGGER locks BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION locks()";
    door.admin().await?.batch_execute(sql).await?;
    let mut a = door.raw().await?;
    leaves(&door, &mut a, "INSERT INTO t VALUES (1)").await
}

async fn notifications_reach_an_idle_client(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask("LISTEN news").await?.ok();
    for i in 0..3 {
        b.ask(&format!("NOTIFY news, 'item {i}'")).await?.ok();
        let message = a.next().await?.unwrap();
        assert_eq!(message.tag, b'A');
        let text = String::from_utf8_lossy(&message.body[4..]).into_owned();
        assert_eq!(text, format!("news\0item {i}\0"));
    }
    assert_eq!(a.value("SELECT 1").await?, "1");
    a.ask("UNLISTEN *").await?.ok();
    b.ask("NOTIFY news").await?.ok();
    assert!(a.is_silent().await);
    Ok(())
}

async fn a_pool_in_session_mode_keeps_every_server(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| {
        wanted.pool.size = 1;
        wanted.pool.mode = quorate_core::gateway::PoolMode::Session;
    })
    .await?;
    let mut a = door.raw().await?;
    a.ask("SET work_mem = '7MB'").await?.ok();
    let mut b = door.raw().await?;
    b.say(Say::new().query("SHOW work_mem")).await?;
    door.waiting(1).await;
    assert_eq!(a.value("SHOW work_mem").await?, "7MB");
    drop(a);
    assert_eq!(b.answer().await?.value(), "4MB");
    Ok(())
}

async fn a_client_that_is_pinned_is_told_when_its_session_is_lost(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut a = door.raw().await?;
    a.ask("LISTEN news").await?.ok();
    door.no_writer();
    assert_eq!(a.last_word().await?.code, "57P01");
    eventually("it is gone", async || (door.clients() == 0).then_some(())).await;
    Ok(())
}

/// What the client set itself is known, however it is written; what belonged to a transaction is gone
/// with it, although PostgreSQL goes on to show it.
async fn code_that_leaves_nothing_keeps_nothing(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut a = door.raw().await?;
    for before in
        ["SET TimeZone = 'Asia/Tokyo'", "SET DateStyle = 'German'", "SET TRANSACTION READ ONLY"]
    {
        a.ask(before).await?.ok();
        a.ask("DO $$ BEGIN PERFORM 1; END $$").await?.ok();
        // There is one server, and it may serve others.
        assert_eq!(door.raw().await?.value("SELECT 1").await?, "1", "{before}");
    }
    Ok(())
}

async fn nobody_is_told_what_a_sequence_gave_another(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE SEQUENCE s; CREATE TABLE t(id serial, n int)").await?.ok();
    raw.ask("SELECT nextval('s')").await?.ok();
    let mut other = door.raw().await?;
    for sql in ["SELECT lastval()", "INSERT INTO t(n) VALUES (currval('s'))"] {
        let answer = other.ask(sql).await?;
        assert_eq!((answer.code(), answer.status), ("55000", 'I'), "{sql}");
        let answer = other.exchange(Say::new().statement(sql).sync()).await?;
        assert_eq!((answer.code(), answer.status), ("55000", 'I'), "{sql}");
    }
    // Where it is the client's own, it is told.
    assert_eq!(raw.ask("INSERT INTO t(n) VALUES (1); SELECT lastval()").await?.ok().value(), "1");
    let both = Say::new().statement("INSERT INTO t(n) VALUES (1)").statement("SELECT lastval()");
    assert_eq!(raw.exchange(both.sync()).await?.ok().value(), "2");
    raw.ask("BEGIN").await?.ok();
    raw.ask("INSERT INTO t(n) VALUES (1)").await?.ok();
    assert_eq!(raw.value("SELECT lastval()").await?, "3");
    raw.ask("COMMIT").await?.ok();
    // Preparing tells nobody anything.
    let prepare = Say::new().parse("last", "SELECT lastval()").sync();
    raw.exchange(prepare).await?.ok();
    raw.ask("BEGIN; INSERT INTO t(n) VALUES (1)").await?.ok();
    let last = Say::new().bind("", "last", &[]).execute("", 0).sync();
    assert_eq!(raw.exchange(last).await?.ok().value(), "4");
    raw.ask("COMMIT").await?.ok();
    let last = Say::new().bind("", "last", &[]).execute("", 0).sync();
    assert_eq!(raw.exchange(last).await?.code(), "55000");
    // A pinned client has its session.
    raw.ask("CREATE TEMP TABLE mine(id serial, n int)").await?.ok();
    raw.ask("INSERT INTO mine(n) VALUES (1)").await?.ok();
    assert_eq!(raw.value("SELECT lastval()").await?, "1");
    Ok(())
}
