//! sqlx and its pool.

use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Connection, Executor, PgConnection};

use crate::{Checks, WITHIN, ports, runs, switchover, told};

const SUM: &str = "SELECT /* quorate: strong */ coalesce(sum(id), 0)::int FROM sqlx_rows";
const PLACE: &str = "SELECT standby FROM sqlx_place";
const INSERT: &str = "INSERT INTO sqlx_rows VALUES ($1)";

/// Options for one gateway, as a connection string says them.
fn gateway(port: usize) -> Result<PgConnectOptions> {
    let url = format!(
        "postgresql://{}:{}@127.0.0.1:{}/{}?sslmode=verify-full&sslrootcert={}",
        told("PGUSER")?,
        told("PGPASSWORD")?,
        ports()?[port],
        told("PGDATABASE")?,
        told("PGSSLROOTCERT")?,
    );
    Ok(PgConnectOptions::from_str(&url)?)
}

async fn pool(port: usize) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(5).connect_with(gateway(port)?).await?)
}

async fn sum(pool: &PgPool) -> Result<i32> {
    Ok(sqlx::query_scalar(SUM).fetch_one(pool).await?)
}

fn refused<T>(done: Result<T, sqlx::Error>, words: &str) -> Result<()> {
    let Err(error) = done else { anyhow::bail!("was not refused with {words}") };
    let code = error.as_database_error().and_then(|e| e.code()).unwrap_or_default().into_owned();
    let said = format!("{code} {:#}", anyhow::Error::from(error));
    ensure!(said.contains(words), "refused with {said}, not {words}");
    Ok(())
}

pub async fn run(checks: &mut Checks) -> Result<()> {
    let setup = "DROP VIEW IF EXISTS sqlx_place; DROP TABLE IF EXISTS sqlx_rows;
        CREATE TABLE sqlx_rows (id int PRIMARY KEY);
        CREATE VIEW sqlx_place AS SELECT pg_is_in_recovery() AS standby";
    pool(0).await?.execute(setup).await?;
    checks.check("login: SCRAM password", password()).await;
    checks.check("TLS: verify-full", verified()).await;
    checks.check("transaction: commit", commit()).await;
    checks.check("transaction: rollback", rollback()).await;
    checks.check("transaction: an error inside", error_inside()).await;
    checks.check("prepared statements", prepared()).await;
    checks.check("cancel: pg_cancel_backend", cancel()).await;
    checks.check("COPY in and out", copy()).await;
    checks.check("rows as a stream, given up half way", stream()).await;
    checks.check("LISTEN and NOTIFY", notifications()).await;
    checks.check("reads go to a replica and see the session's own writes", reads()).await;
    checks.check("a switchover is a pause", moves()).await;
    Ok(())
}

async fn password() -> Result<()> {
    let one: i32 = sqlx::query_scalar("SELECT 1").fetch_one(&pool(0).await?).await?;
    ensure!(one == 1);
    refused(PgConnection::connect_with(&gateway(0)?.password("wrong")).await, "28P01")
}

async fn verified() -> Result<()> {
    PgConnection::connect_with(&gateway(1)?).await?.ping().await?;
    let other = gateway(1)?.ssl_root_cert(told("QUORATE_OTHER_CA")?);
    refused(PgConnection::connect_with(&other).await, "UnknownIssuer")?;
    // Without TLS: what is asked for above is what makes the difference.
    let plain = gateway(1)?.ssl_mode(PgSslMode::Disable);
    PgConnection::connect_with(&plain).await?.ping().await.context("without TLS")
}

async fn commit() -> Result<()> {
    let pool = pool(0).await?;
    let mut transaction = pool.begin().await?;
    sqlx::query(INSERT).bind(1).execute(&mut *transaction).await?;
    transaction.commit().await?;
    ensure!(sum(&self::pool(1).await?).await? == 1);
    Ok(())
}

async fn rollback() -> Result<()> {
    let pool = pool(0).await?;
    for explicit in [true, false] {
        let mut transaction = pool.begin().await?;
        sqlx::query(INSERT).bind(2).execute(&mut *transaction).await?;
        if explicit {
            transaction.rollback().await?;
        } else {
            drop(transaction);
        }
        ensure!(sum(&pool).await? == 1);
    }
    Ok(())
}

async fn error_inside() -> Result<()> {
    let pool = pool(0).await?;
    let mut transaction = pool.begin().await?;
    sqlx::query(INSERT).bind(3).execute(&mut *transaction).await?;
    refused(sqlx::query(INSERT).bind(3).execute(&mut *transaction).await, "23505")?;
    refused(sqlx::query("SELECT 1").execute(&mut *transaction).await, "25P02")?;
    transaction.rollback().await?;
    ensure!(sum(&pool).await? == 1);
    // A savepoint loses only what came after it.
    let mut transaction = pool.begin().await?;
    sqlx::query(INSERT).bind(3).execute(&mut *transaction).await?;
    let mut savepoint = transaction.begin().await?;
    refused(sqlx::query(INSERT).bind(3).execute(&mut *savepoint).await, "23505")?;
    savepoint.rollback().await?;
    transaction.commit().await?;
    ensure!(sum(&pool).await? == 4);
    Ok(())
}

async fn prepared() -> Result<()> {
    // A cache so small that statements are closed all the time, and one that keeps all.
    for capacity in [2, 100] {
        let options = gateway(0)?.statement_cache_capacity(capacity);
        let mut session = PgConnection::connect_with(&options).await?;
        let mut other = PgConnection::connect_with(&options).await?;
        for i in 0..30 {
            // Somebody else's transaction takes the server connection meanwhile.
            let mut transaction = other.begin().await?;
            sqlx::query("LOCK sqlx_rows").execute(&mut *transaction).await?;
            let sql = format!("SELECT $1::int + {}", i % 5);
            let n: i32 = sqlx::query_scalar(&sql).bind(i).fetch_one(&mut session).await?;
            ensure!(n == i + i % 5, "{n} for {i}");
            transaction.commit().await?;
        }
        let cached = session.cached_statements_size();
        ensure!(cached == capacity.min(5), "{cached} statements are cached");
        session.clear_cached_statements().await?;
        let n: i32 = sqlx::query_scalar("SELECT 7").fetch_one(&mut session).await?;
        ensure!(n == 7);
    }
    Ok(())
}

/// sqlx sends no cancel requests of its own.
async fn cancel() -> Result<()> {
    let pool = pool(0).await?;
    let running = sqlx::query("SELECT pg_sleep(60) /* sqlx cancel */").execute(&pool);
    let cancels = async {
        runs("sqlx cancel").await?;
        // On whichever server it runs: a view of a server is asked of the writer.
        for socket in told("QUORATE_SOCKETS")?.split(',') {
            let sql = "SELECT count(pg_cancel_backend(pid))::text FROM pg_stat_activity
                WHERE query LIKE '%sqlx cancel%' AND pid <> pg_backend_pid()";
            crate::direct(socket, sql).await?;
        }
        anyhow::Ok(())
    };
    let (ended, cancelled) = tokio::join!(running, cancels);
    cancelled?;
    refused(ended, "57014")?;
    ensure!(sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&pool).await? == 1);
    Ok(())
}

async fn copy() -> Result<()> {
    let mut session = PgConnection::connect_with(&gateway(0)?).await?;
    session.execute("CREATE TABLE IF NOT EXISTS sqlx_copy (a int, b text)").await?;
    session.execute("TRUNCATE sqlx_copy").await?;
    let lines: String = (0..10000).map(|i| format!("{i}\trow {i}\n")).collect();
    let mut sink = session.copy_in_raw("COPY sqlx_copy FROM STDIN").await?;
    sink.send(lines.as_bytes()).await?;
    ensure!(sink.finish().await? == 10000);
    let sql = "COPY (SELECT * FROM sqlx_copy ORDER BY a) TO STDOUT";
    let chunks: Vec<_> = session.copy_out_raw(sql).await?.try_collect().await?;
    ensure!(chunks.concat() == lines.as_bytes(), "{} chunks came back", chunks.len());
    let mut sink = session.copy_in_raw("COPY sqlx_copy FROM STDIN").await?;
    sink.send(b"1\tgiven up\n".as_slice()).await?;
    sink.abort("not today").await?;
    let sql = "SELECT /* quorate: strong */ count(*)::int FROM sqlx_copy";
    let rows: i32 = sqlx::query_scalar(sql).fetch_one(&mut session).await?;
    ensure!(rows == 10000, "{rows} rows");
    Ok(())
}

async fn stream() -> Result<()> {
    let mut session = PgConnection::connect_with(&gateway(0)?).await?;
    let mut rows =
        sqlx::query_scalar::<_, i32>("SELECT generate_series(1, 100000)").fetch(&mut session);
    for wanted in 1..=10 {
        ensure!(rows.try_next().await? == Some(wanted));
    }
    drop(rows);
    ensure!(sqlx::query_scalar::<_, i32>("SELECT 1").fetch_one(&mut session).await? == 1);
    Ok(())
}

async fn notifications() -> Result<()> {
    let mut ear = PgListener::connect_with(&pool(0).await?).await?;
    ear.listen("sqlx").await?;
    pool(1).await?.execute("NOTIFY sqlx, 'word'").await?;
    let heard = tokio::time::timeout(WITHIN, ear.recv()).await??;
    ensure!(heard.payload() == "word", "{heard:?}");
    Ok(())
}

async fn on_a_replica(session: &mut PgConnection) -> Result<()> {
    let begun = Instant::now();
    while !sqlx::query_scalar::<_, bool>(PLACE).fetch_one(&mut *session).await? {
        ensure!(begun.elapsed() < WITHIN, "no replica answers");
    }
    Ok(())
}

async fn reads() -> Result<()> {
    for port in 0..ports()?.len() {
        let mut session = PgConnection::connect_with(&gateway(port)?).await?;
        on_a_replica(&mut session).await?;
        for i in 0..50 {
            let id = 5000 + 50 * port as i32 + i;
            sqlx::query(INSERT).bind(id).execute(&mut session).await?;
            let sql = "SELECT 1 FROM sqlx_rows WHERE id = $1";
            let seen = sqlx::query(sql).bind(id).fetch_optional(&mut session).await?;
            seen.with_context(|| format!("row {id} is not seen"))?;
        }
        on_a_replica(&mut session).await?;
    }
    Ok(())
}

async fn moves() -> Result<()> {
    let (one, two) = (pool(0).await?, pool(1).await?);
    one.execute("TRUNCATE sqlx_rows").await?;
    let mut written = 0;
    let moving = tokio::spawn(switchover());
    let mut rounds_left = 20;
    while rounds_left > 0 {
        rounds_left -= i32::from(moving.is_finished());
        let mut transaction = one.begin().await?;
        for id in [written, written + 1] {
            sqlx::query(INSERT).bind(id).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        sqlx::query(INSERT).bind(written + 2).execute(&two).await?;
        written += 3;
    }
    moving.await??;
    let sql = "SELECT /* quorate: strong */ count(*)::int FROM sqlx_rows";
    let rows: i32 = sqlx::query_scalar(sql).fetch_one(&one).await?;
    ensure!(rows == written, "{rows} rows, not {written}");
    Ok(())
}
