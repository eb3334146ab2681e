//! What a gateway counts and measures, and what it says of transactions that take long.

use std::time::Duration;

use anyhow::Result;
use quorate_gateway::{AccountMetrics, RouteMetrics};

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::Say;
use crate::server::eventually;

in_both_modes! {
    transactions_are_timed_where_they_went
    waiting_for_a_connection_is_timed
    slow_transactions_are_counted
    pinned_sessions_are_counted_by_reason
    threads_are_added_up
    a_transaction_is_counted_once_where_it_was_served
}

async fn mine(door: &Door) -> AccountMetrics {
    let metrics = door.metrics().await;
    let mine = |a: &&AccountMetrics| a.database == door.database && a.user == "postgres";
    metrics.accounts.iter().find(mine).cloned().unwrap_or_default()
}

fn route<'a>(account: &'a AccountMetrics, part: &str, because: &str) -> &'a RouteMetrics {
    account.routes.iter().find(|r| r.part == part && r.because == because).unwrap()
}

async fn transactions_are_timed_where_they_went(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let before = route(&mine(&door).await, "writer", "writes").transaction.count();
    let mut raw = door.raw().await?;
    // A block counts from its beginning to its end, and its first answer is quick.
    raw.ask("BEGIN").await?.ok();
    raw.ask("SELECT pg_sleep(0.3)").await?.ok();
    raw.ask("COMMIT").await?.ok();
    let account = mine(&door).await;
    let writes = route(&account, "writer", "writes");
    assert_eq!(writes.transaction.count(), before + 1);
    assert!(writes.transaction.max_us() >= 300_000);
    assert!(writes.first_byte.quantile_us(0.5) < 300_000);
    // A statement that says something only at its end.
    raw.exchange(Say::new().statement("SELECT pg_sleep(0.4)").sync()).await?.ok();
    let account = mine(&door).await;
    assert!(route(&account, "writer", "no_replica").first_byte.max_us() >= 400_000);
    assert_eq!(route(&account, "replica", "").transaction.count(), 0);
    door.replayed(50).await?;
    raw.ask("SET quorate.consistency = 'eventual'").await?.ok();
    eventually("a replica answers", async || {
        (raw.value("SELECT standby FROM place").await.ok()? == "on").then_some(())
    })
    .await;
    let account = mine(&door).await;
    assert!(route(&account, "replica", "").transaction.count() > 0);
    // A session that keeps its connection is timed by transaction, too.
    raw.ask("LISTEN c").await?.ok();
    let before = route(&mine(&door).await, "writer", "writes").transaction.count();
    tokio::time::sleep(Duration::from_millis(50)).await;
    raw.ask("SELECT 1").await?.ok();
    raw.ask("SELECT 2").await?.ok();
    let account = mine(&door).await;
    assert_eq!(route(&account, "writer", "writes").transaction.count(), before + 2);
    let total = account.counters["transactions"];
    let timed: u64 = account.routes.iter().map(|r| r.transaction.count()).sum();
    assert_eq!(timed, total);
    let mut console = door.console().await?;
    let rows = console.ask("SHOW LATENCY").await?.ok().rows;
    let row = rows.iter().find(|r| r[0] == door.database && &r[2] == "writer writes").unwrap();
    assert_eq!((&row[1], &row[3]), ("postgres", "transaction"));
    assert!(row[8].parse::<f64>()? >= 300.0, "{row:?}");
    let rows = console.ask("SHOW COUNTERS").await?.ok().rows;
    let row = rows.iter().find(|r| r[0] == door.database && &r[2] == "transactions").unwrap();
    assert_eq!(row[3], total.to_string());
    Ok(())
}

async fn waiting_for_a_connection_is_timed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask("BEGIN").await?.ok();
    b.say(Say::new().query("SELECT 1")).await?;
    door.waiting(1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    a.ask("COMMIT").await?.ok();
    b.answer().await?.ok();
    let account = mine(&door).await;
    let pool = account.pools.values().next().unwrap();
    assert!(pool.queue.max_us() >= 200_000);
    assert!(pool.queue.quantile_us(0.3) == 0, "most do not wait");
    assert_eq!(pool.open, 1);
    Ok(())
}

async fn slow_transactions_are_counted(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.slow_ms = 60_000).await?;
    let mut raw = door.raw().await?;
    raw.ask("SELECT pg_sleep(0.3)").await?.ok();
    assert_eq!(mine(&door).await.counters["slow"], 0);
    door.want(|wanted| wanted.slow_ms = 250);
    // What is wanted takes a moment to be known.
    eventually("it is counted", async || {
        raw.ask("SELECT pg_sleep(0.3)").await.ok()?.ok();
        (mine(&door).await.counters["slow"] > 0).then_some(())
    })
    .await;
    Ok(())
}

async fn pinned_sessions_are_counted_by_reason(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    assert_eq!(mine(&door).await.pinned["listen"], 0);
    raw.ask("LISTEN c").await?.ok();
    assert_eq!(mine(&door).await.pinned["listen"], 1);
    raw.ask("DISCARD ALL").await?.ok();
    assert_eq!(mine(&door).await.pinned["listen"], 0);
    Ok(())
}

async fn threads_are_added_up(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.workers = 3).await?;
    let before = mine(&door).await.counters.get("transactions").copied().unwrap_or(0);
    let mut all = Vec::new();
    for _ in 0..12 {
        let mut raw = door.raw().await?;
        raw.ask("SELECT 1").await?.ok();
        all.push(raw);
    }
    let account = mine(&door).await;
    assert_eq!(account.counters["transactions"], before + 12);
    assert_eq!(door.metrics().await.clients, 12);
    Ok(())
}

async fn a_transaction_is_counted_once_where_it_was_served(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let sql = "CREATE SEQUENCE s; CREATE FUNCTION n() RETURNS bigint STABLE LANGUAGE plpgsql AS \
               $$ BEGIN RETURN nextval('s'); END $$; CREATE VIEW hidden AS SELECT n()";
    door.admin().await?.batch_execute(sql).await?;
    door.standby_follows().await?;
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    raw.ask("SET quorate.consistency = 'eventual'").await?.ok();
    eventually("a replica answers", async || {
        (raw.value("SELECT standby FROM place").await.ok()? == "on").then_some(())
    })
    .await;
    let before = mine(&door).await;
    // By the replica.
    raw.ask("SELECT standby FROM place").await?.ok();
    // Refused there, and done by the writer.
    raw.ask("SELECT * FROM hidden").await?.ok();
    // Begun there, and moved to the writer.
    raw.ask("BEGIN READ ONLY").await?.ok();
    assert_eq!(raw.value("SELECT standby FROM place").await?, "on");
    raw.ask("SELECT txid_current()").await?.ok();
    raw.ask("COMMIT").await?.ok();
    // Moved, and lost there.
    raw.ask("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?.ok();
    raw.ask("SELECT standby FROM place").await?.ok();
    assert_eq!(raw.ask("LISTEN c").await?.code(), "25006");
    assert_eq!(raw.ask("SELECT 1").await?.code(), "25P02");
    raw.ask("ROLLBACK").await?.ok();
    // Several on one connection.
    raw.ask("LISTEN c").await?.ok();
    raw.ask("SELECT 1").await?.ok();
    raw.ask("SELECT 2").await?.ok();
    let after = mine(&door).await;
    let more = |name: &str| after.counters[name] - before.counters[name];
    let sum = |a: &AccountMetrics| a.to_writer.values().sum::<u64>();
    assert_eq!((more("on_replicas"), sum(&after) - sum(&before)), (1, 6));
    assert_eq!(more("transactions"), 7);
    assert_eq!(after.counters["on_replicas"] + sum(&after), after.counters["transactions"]);
    for (part, n) in [("replica", after.counters["on_replicas"]), ("writer", sum(&after))] {
        let timed = after.routes.iter().filter(|r| r.part == part);
        assert_eq!(timed.map(|r| r.transaction.count()).sum::<u64>(), n, "{part}");
    }
    Ok(())
}
