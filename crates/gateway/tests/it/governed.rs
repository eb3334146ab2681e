//! What an operator allows: how little a commit may wait for, how much a statement may return, how
//! many connections there are.

use anyhow::Result;
use quorate_core::gateway::{PoolRule, SynchronousCommit};
use quorate_wire::Startup;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::{Raw, Say};
use crate::server::eventually;

in_both_modes! {
    synchronous_commit_is_not_set_below_the_floor
    a_refused_setting_fails_its_block_and_nothing_else
    the_first_packet_keeps_to_the_floor
    a_role_that_begins_below_the_floor_is_raised
    code_that_lowers_it_out_of_sight_is_raised_after_the_transaction
    a_floor_that_rises_raises_who_is_there
    a_result_that_is_too_large_is_cut_off
    a_huge_result_is_cancelled_on_the_server
    a_block_with_too_large_a_result_cannot_be_committed
    copy_out_is_limited_too
    a_pipeline_ends_at_a_result_that_is_too_large
    idle_connections_are_kept_ready
    who_waits_too_long_gets_a_connection_of_the_reserve
}

const SHOW: &str = "SELECT current_setting('synchronous_commit')";

async fn synchronous_commit_is_not_set_below_the_floor(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    for sql in [
        "SET synchronous_commit = off",
        "SET SESSION synchronous_commit TO 'local'",
        "SELECT set_config('synchronous_commit', 'off', false)",
        "BEGIN; SET LOCAL synchronous_commit = off; COMMIT",
        "DO $$ BEGIN SET synchronous_commit = off; END $$",
    ] {
        let answer = raw.ask(sql).await?;
        assert_eq!((answer.code(), answer.status), ("42501", 'I'), "{sql}");
        assert_eq!(raw.value(SHOW).await?, "on", "{sql}");
    }
    let answer = raw.exchange(Say::new().statement("SET synchronous_commit = off").sync()).await?;
    assert_eq!(answer.code(), "42501");
    // A name that comes as a parameter.
    let prepare = Say::new().parse("s", "SELECT set_config($1, $2, false)").sync();
    raw.exchange(prepare).await?.ok();
    let answer = raw.exchange(Say::new().run("s", &["synchronous_commit", "off"])).await?;
    assert_eq!(answer.code(), "42501");
    assert_eq!(raw.exchange(Say::new().run("s", &["work_mem", "7MB"])).await?.value(), "7MB");
    assert_eq!(raw.value(SHOW).await?, "on");
    raw.ask("SET synchronous_commit = remote_apply").await?.ok();
    assert_eq!(raw.value(SHOW).await?, "remote_apply");
    raw.ask("RESET synchronous_commit").await?.ok();
    // What the floor allows.
    door.want(|wanted| wanted.synchronous_commit_floor = SynchronousCommit::Local);
    let allowed = async || raw.ask("SET synchronous_commit = local").await.ok()?.errors.pop();
    let mut allowed = allowed;
    eventually("the lower floor holds", async || allowed().await.is_none().then_some(())).await;
    Ok(())
}

async fn a_refused_setting_fails_its_block_and_nothing_else(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    raw.ask("BEGIN").await?.ok();
    raw.ask("INSERT INTO t VALUES (1)").await?.ok();
    let answer = raw.ask("SET LOCAL synchronous_commit = off").await?;
    assert_eq!((answer.code(), answer.status), ("42501", 'E'));
    assert_eq!(raw.ask("COMMIT").await?.ok().commands, ["ROLLBACK"]);
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    Ok(())
}

async fn the_first_packet_keeps_to_the_floor(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    for (name, value) in [("synchronous_commit", "off"), ("options", "-c synchronous_commit=local")]
    {
        let with = [("user", "postgres"), ("database", &door.database[..]), (name, value)];
        let mut raw = Raw::connect(door.address, &Startup::new(&with)).await?;
        let said = raw.last_word().await?;
        assert_eq!((&said.severity[..], &said.code[..]), ("FATAL", "42501"), "{name}");
    }
    let with = [
        ("user", "postgres"),
        ("database", &door.database[..]),
        ("options", "-c synchronous_commit=remote_apply"),
    ];
    let mut raw = Raw::session(door.address, &with).await?;
    assert_eq!(raw.value(SHOW).await?, "remote_apply");
    Ok(())
}

async fn a_role_that_begins_below_the_floor_is_raised(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let sql = format!("ALTER DATABASE {} SET synchronous_commit = off", door.database);
    door.admin().await?.batch_execute(&sql).await?;
    let mut raw = door.raw().await?;
    assert_eq!(raw.value(SHOW).await?, "on");
    for reset in ["RESET synchronous_commit", "SET synchronous_commit = DEFAULT", "DISCARD ALL"] {
        raw.ask(reset).await?.ok();
        assert_eq!(raw.value(SHOW).await?, "on", "{reset}");
    }
    Ok(())
}

async fn code_that_lowers_it_out_of_sight_is_raised_after_the_transaction(
    mode: Mode,
) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let sql = "CREATE FUNCTION hidden() RETURNS void LANGUAGE plpgsql AS \
               $$ BEGIN PERFORM set_config('synchronous' || '_commit', 'off', false); END $$";
    door.admin().await?.batch_execute(sql).await?;
    let mut raw = door.raw().await?;
    raw.ask("SELECT hidden()").await?.ok();
    assert_eq!(raw.value(SHOW).await?, "on");
    // A name that is put together in the text itself.
    raw.ask("SELECT set_config('synchronous' || '_commit', 'off', false)").await?.ok();
    assert_eq!(raw.value(SHOW).await?, "on");
    Ok(())
}

async fn a_floor_that_rises_raises_who_is_there(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| {
        wanted.pool.size = 1;
        wanted.synchronous_commit_floor = SynchronousCommit::Off;
    })
    .await?;
    let sql = format!("ALTER DATABASE {} SET synchronous_commit = local", door.database);
    door.admin().await?.batch_execute(&sql).await?;
    let (mut raw, mut other) = (door.raw().await?, door.raw().await?);
    raw.ask("SET synchronous_commit = off").await?.ok();
    assert_eq!(other.value(SHOW).await?, "local");
    door.want(|wanted| wanted.synchronous_commit_floor = SynchronousCommit::On);
    let mut console = door.console().await?;
    eventually("the floor is known", async || {
        let config = console.ask("SHOW CONFIG").await.ok()?.rows;
        let floor = config.iter().find(|r| &r[0] == "synchronous_commit_floor")?;
        (&floor[1] == "On").then_some(())
    })
    .await;
    // From the very next transaction on.
    for raw in [&mut raw, &mut other] {
        assert_eq!(raw.value(SHOW).await?, "on");
    }
    Ok(())
}

async fn limited(mode: Mode, rows: Option<u64>, bytes: Option<u64>) -> Result<Door> {
    Door::with(mode, |wanted| {
        wanted.pool.size = 1;
        wanted.pools = vec![PoolRule { rows_max: rows, bytes_max: bytes, ..PoolRule::default() }];
    })
    .await
}

async fn a_result_that_is_too_large_is_cut_off(mode: Mode) -> Result<()> {
    let door = limited(mode, Some(10), None).await?;
    let mut raw = door.raw().await?;
    assert_eq!(raw.ask("SELECT generate_series(1, 10)").await?.ok().rows.len(), 10);
    let answer = raw.ask("SELECT generate_series(1, 11)").await?;
    assert_eq!((answer.code(), answer.status, answer.rows.len()), ("54000", 'I', 10));
    assert!(answer.commands.is_empty(), "{answer:?}");
    // Each statement counts by itself.
    let answer = raw.ask("SELECT generate_series(1, 9); SELECT generate_series(1, 9)").await?.ok();
    assert_eq!(answer.rows.len(), 18);
    let door = limited(mode, None, Some(1000)).await?;
    let mut raw = door.raw().await?;
    raw.ask("SELECT repeat('x', 900)").await?.ok();
    let answer = raw.exchange(Say::new().statement("SELECT repeat('x', 1001)").sync()).await?;
    assert_eq!((answer.code(), answer.status, answer.rows.len()), ("54000", 'I', 0));
    assert_eq!(raw.value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_huge_result_is_cancelled_on_the_server(mode: Mode) -> Result<()> {
    let door = limited(mode, Some(1000), None).await?;
    let mut raw = door.raw().await?;
    let sql = "SELECT repeat('x', 100), generate_series(1, 1000000000)";
    let answer = raw.ask(sql).await?;
    assert_eq!((answer.code(), answer.status, answer.rows.len()), ("54000", 'I', 1000));
    // Nothing of it hits what comes next.
    for i in 0..20 {
        assert_eq!(raw.value(&format!("SELECT {i}")).await?, i.to_string());
    }
    door.in_server("state = 'idle'").await;
    raw.ask("BEGIN").await?.ok();
    let answer = raw.exchange(Say::new().statement(sql).sync()).await?;
    assert_eq!((answer.code(), answer.status), ("54000", 'E'));
    assert_eq!(raw.ask("COMMIT").await?.ok().commands, ["ROLLBACK"]);
    assert_eq!(raw.value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_block_with_too_large_a_result_cannot_be_committed(mode: Mode) -> Result<()> {
    let door = limited(mode, Some(10), None).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    let write = "INSERT INTO t SELECT generate_series(1, 20) RETURNING i";
    for say in [Say::new().query(write), Say::new().statement(write).sync()] {
        raw.ask("BEGIN").await?.ok();
        let answer = raw.exchange(say).await?;
        assert_eq!((answer.code(), answer.status), ("54000", 'E'));
        assert_eq!(raw.ask("SELECT 1").await?.code(), "25P02");
        assert_eq!(raw.ask("COMMIT").await?.ok().commands, ["ROLLBACK"]);
    }
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    Ok(())
}

async fn copy_out_is_limited_too(mode: Mode) -> Result<()> {
    let door = limited(mode, Some(10), None).await?;
    let mut raw = door.raw().await?;
    let answer = raw.ask("COPY (SELECT generate_series(1, 10)) TO STDOUT").await?.ok();
    assert_eq!(answer.tags.matches('d').count(), 10);
    let answer = raw.ask("COPY (SELECT generate_series(1, 11)) TO STDOUT").await?;
    assert_eq!((answer.code(), answer.tags.matches('d').count()), ("54000", 10));
    let answer = raw.ask("COPY (SELECT generate_series(1, 100000000)) TO STDOUT").await?;
    assert_eq!((answer.code(), answer.tags.matches('d').count()), ("54000", 10));
    // What comes in has no limit.
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    raw.say(Say::new().query("COPY t FROM STDIN")).await?;
    raw.until(b'G').await?;
    let lines = "1\n".repeat(50);
    let answer =
        raw.exchange(Say::new().message(b'd', lines.as_bytes()).message(b'c', b"")).await?;
    assert_eq!(answer.ok().commands, ["COPY 50"]);
    Ok(())
}

async fn a_pipeline_ends_at_a_result_that_is_too_large(mode: Mode) -> Result<()> {
    let door = limited(mode, Some(10), None).await?;
    let mut raw = door.raw().await?;
    let say = Say::new()
        .statement("SELECT generate_series(1, 20)")
        .parse("later", "SELECT 'later'")
        .bind("", "later", &[])
        .execute("", 0)
        .sync();
    let answer = raw.exchange(say).await?;
    assert_eq!((answer.code(), answer.rows.len()), ("54000", 10));
    assert!(answer.tags.ends_with("DEZ"), "{}", answer.tags);
    // As far as the client knows, it was not prepared.
    assert_eq!(raw.exchange(Say::new().run("later", &[])).await?.code(), "26000");
    let prepare = Say::new().parse("later", "SELECT 'later'").bind("", "later", &[]);
    assert_eq!(raw.exchange(prepare.execute("", 0).sync()).await?.value(), "later");
    // And by Flush, where no Sync is on its way.
    raw.say(Say::new().statement("SELECT generate_series(1, 20)").message(b'H', b"")).await?;
    assert_eq!(raw.until(b'E').await?.rows.len(), 10);
    let answer = raw.exchange(Say::new().statement("SELECT 1").sync()).await?;
    assert_eq!(answer.tags, "Z", "skipped up to Sync");
    assert_eq!(raw.value("SELECT 2").await?, "2");
    Ok(())
}

async fn idle_connections_are_kept_ready(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| {
        wanted.pool.size = 5;
        wanted.pool.min_idle = 3;
        wanted.pool.idle_ms = 1;
    })
    .await?;
    let mut raw = door.raw().await?;
    raw.ask("SELECT 1").await?.ok();
    let idle = async || {
        let mut console = door.console().await.ok()?;
        let pools = console.ask("SHOW POOLS").await.ok()?;
        let pool = pools.rows.iter().find(|r| r[0] == door.database)?;
        Some(pool[7].to_owned())
    };
    eventually("three idle", async || (idle().await? == "3").then_some(())).await;
    // While one is in use, another takes its place; and so on a new writer.
    raw.ask("BEGIN").await?.ok();
    eventually("three idle", async || (idle().await? == "3").then_some(())).await;
    raw.ask("COMMIT").await?.ok();
    door.no_writer();
    door.writer(quorate_core::Term(6));
    eventually("three idle of the new term", async || {
        let mut console = door.console().await.ok()?;
        let servers = console.ask("SHOW SERVERS").await.ok()?.rows;
        let of = |r: &&crate::raw::Row| r[1] == door.database && &r[3] == "writer of term 6";
        (servers.iter().filter(of).count() == 3).then_some(())
    })
    .await;
    Ok(())
}

async fn who_waits_too_long_gets_a_connection_of_the_reserve(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| {
        wanted.pool.size = 1;
        wanted.pool.reserve = 1;
        wanted.pool.reserve_after_ms = 200;
        wanted.pool.wait_ms = 3000;
    })
    .await?;
    let (mut a, mut b, mut c) = (door.raw().await?, door.raw().await?, door.raw().await?);
    a.ask("BEGIN").await?.ok();
    let began = std::time::Instant::now();
    b.ask("BEGIN").await?.ok();
    assert!(began.elapsed() >= std::time::Duration::from_millis(200), "{:?}", began.elapsed());
    // The reserve has its bound, too.
    assert_eq!(c.ask("SELECT 1").await?.code(), "53300");
    b.ask("COMMIT").await?.ok();
    a.ask("COMMIT").await?.ok();
    let pools = door.console().await?.ask("SHOW POOLS").await?.ok();
    let pool = pools.rows.iter().find(|r| r[0] == door.database).unwrap();
    assert_eq!((&pool[6], &pool[7]), ("0", "1"), "the reserve closes when nobody waits");
    Ok(())
}
