//! tokio-postgres, with rustls.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{Checks, WITHIN, ports, runs, switchover, told};

const SUM: &str = "SELECT /* quorate: strong */ coalesce(sum(id), 0)::int FROM tokio_rows";
const PLACE: &str = "SELECT standby FROM tokio_place";

/// Settings for one gateway.
fn gateway(port: usize) -> Result<Config> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(ports()?[port]).ssl_mode(SslMode::Require);
    config.user(told("PGUSER")?).password(told("PGPASSWORD")?).dbname(told("PGDATABASE")?);
    Ok(config)
}

/// Trusts this authority only, and wants the name in the certificate to be right.
fn trusting(ca: &str, direct: bool) -> Result<MakeRustlsConnect> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(told(ca)?)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

fn tls() -> Result<MakeRustlsConnect> {
    trusting("PGSSLROOTCERT", false)
}

/// A session whose connection is driven in the background.
async fn open(config: &Config) -> Result<Client> {
    let (client, connection) = config.connect(tls()?).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn session(port: usize) -> Result<Client> {
    open(&gateway(port)?).await
}

async fn sum(client: &Client) -> Result<i32> {
    Ok(client.query_one(SUM, &[]).await?.get(0))
}

fn refused<T>(done: Result<T, Error>, words: &str) -> Result<()> {
    let Err(error) = done else { anyhow::bail!("was not refused with {words}") };
    let code = error.code().map(|code| code.code().to_owned()).unwrap_or_default();
    let said = format!("{code} {:#}", anyhow::Error::from(error));
    ensure!(said.contains(words), "refused with {said}, not {words}");
    Ok(())
}

pub async fn run(checks: &mut Checks) -> Result<()> {
    let setup = "DROP VIEW IF EXISTS tokio_place; DROP TABLE IF EXISTS tokio_rows;
        CREATE TABLE tokio_rows (id int PRIMARY KEY);
        CREATE VIEW tokio_place AS SELECT pg_is_in_recovery() AS standby";
    session(0).await?.batch_execute(setup).await?;
    checks.check("login: any of several hosts", several_hosts()).await;
    checks.check("login: SCRAM password", password()).await;
    checks.check("TLS: verify-full", verified()).await;
    checks.check("TLS: channel_binding=require", bound()).await;
    checks.check("TLS: sslnegotiation=direct", direct()).await;
    checks.check("transaction: commit", commit()).await;
    checks.check("transaction: rollback", rollback()).await;
    checks.check("transaction: an error inside", error_inside()).await;
    checks.check("prepared statements", prepared()).await;
    checks.check("cancel", cancel()).await;
    checks.check("pipelining", pipelining()).await;
    checks.check("COPY in and out", copy()).await;
    checks.check("portals", portals()).await;
    checks.check("LISTEN and NOTIFY", notifications()).await;
    checks.check("reads go to a replica and see the session's own writes", reads()).await;
    checks.check("a switchover is a pause", moves()).await;
    Ok(())
}

async fn several_hosts() -> Result<()> {
    let mut config = Config::new();
    // Nobody listens on the first port.
    config.host("127.0.0.1").port(1).host("127.0.0.1").port(ports()?[1]);
    config.user(told("PGUSER")?).password(told("PGPASSWORD")?).dbname(told("PGDATABASE")?);
    config.target_session_attrs(tokio_postgres::config::TargetSessionAttrs::ReadWrite);
    ensure!(open(&config).await?.query_one("SELECT 1", &[]).await?.get::<_, i32>(0) == 1);
    Ok(())
}

async fn password() -> Result<()> {
    session(0).await?.simple_query("").await?;
    let mut config = gateway(0)?;
    config.password("wrong");
    refused(config.connect(tls()?).await, "28P01")
}

async fn verified() -> Result<()> {
    session(0).await?.simple_query("SELECT 1").await?;
    let other = trusting("QUORATE_OTHER_CA", false)?;
    refused(gateway(0)?.connect(other).await, "UnknownIssuer")
}

async fn bound() -> Result<()> {
    let mut config = gateway(0)?;
    config.channel_binding(ChannelBinding::Require);
    open(&config).await?.simple_query("SELECT 1").await?;
    config.ssl_mode(SslMode::Disable);
    refused(config.connect(NoTls).await, "channel binding")
}

async fn direct() -> Result<()> {
    let mut config = gateway(0)?;
    config.ssl_negotiation(SslNegotiation::Direct);
    let (client, connection) = config.connect(trusting("PGSSLROOTCERT", true)?).await?;
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await?;
    Ok(())
}

async fn commit() -> Result<()> {
    let mut client = session(0).await?;
    let transaction = client.transaction().await?;
    transaction.execute("INSERT INTO tokio_rows VALUES ($1)", &[&1]).await?;
    transaction.commit().await?;
    ensure!(sum(&session(1).await?).await? == 1);
    Ok(())
}

async fn rollback() -> Result<()> {
    let mut client = session(0).await?;
    for explicit in [true, false] {
        let transaction = client.transaction().await?;
        transaction.execute("INSERT INTO tokio_rows VALUES ($1)", &[&2]).await?;
        if explicit {
            transaction.rollback().await?;
        } else {
            drop(transaction);
        }
        ensure!(sum(&client).await? == 1);
    }
    Ok(())
}

async fn error_inside() -> Result<()> {
    let mut client = session(0).await?;
    let insert = "INSERT INTO tokio_rows VALUES ($1)";
    let transaction = client.transaction().await?;
    transaction.execute(insert, &[&3]).await?;
    refused(transaction.execute(insert, &[&3]).await, "23505")?;
    refused(transaction.query("SELECT 1", &[]).await, "25P02")?;
    transaction.rollback().await?;
    ensure!(sum(&client).await? == 1);
    // A savepoint loses only what came after it.
    let mut transaction = client.transaction().await?;
    transaction.execute(insert, &[&3]).await?;
    let savepoint = transaction.savepoint("point").await?;
    refused(savepoint.execute(insert, &[&3]).await, "23505")?;
    savepoint.rollback().await?;
    transaction.commit().await?;
    ensure!(sum(&client).await? == 4);
    Ok(())
}

async fn prepared() -> Result<()> {
    let (client, mut other) = (session(0).await?, session(0).await?);
    let plus = client.prepare("SELECT $1::int + 1").await?;
    for i in 0..20 {
        ensure!(client.query_one(&plus, &[&i]).await?.get::<_, i32>(0) == i + 1);
        // Somebody else's transaction takes the server connection meanwhile.
        let transaction = other.transaction().await?;
        transaction.batch_execute("LOCK tokio_rows").await?;
        ensure!(client.query_one(&plus, &[&-i]).await?.get::<_, i32>(0) == 1 - i);
        transaction.commit().await?;
    }
    Ok(())
}

async fn cancel() -> Result<()> {
    let client = session(0).await?;
    let running = client.batch_execute("SELECT pg_sleep(60) /* tokio cancel */");
    let cancels = async {
        runs("tokio cancel").await?;
        anyhow::Ok(client.cancel_token().cancel_query(tls()?).await?)
    };
    let (ended, cancelled) = tokio::join!(running, cancels);
    cancelled?;
    refused(ended, "57014")?;
    client.simple_query("SELECT 1").await?;
    Ok(())
}

async fn pipelining() -> Result<()> {
    let client = session(0).await?;
    let plus = client.prepare("SELECT $1::int + 1").await?;
    let numbers: Vec<i32> = (0..100).collect();
    let asked = numbers.iter().map(|n| {
        let (client, plus) = (&client, &plus);
        async move { client.query_one(plus, &[n]).await }
    });
    let rows = futures_util::future::try_join_all(asked).await?;
    ensure!(rows.iter().zip(0..).all(|(row, n)| row.get::<_, i32>(0) == n + 1));
    Ok(())
}

async fn copy() -> Result<()> {
    let client = session(0).await?;
    client.batch_execute("CREATE TABLE IF NOT EXISTS tokio_copy (a int, b text)").await?;
    client.batch_execute("TRUNCATE tokio_copy").await?;
    let lines: String = (0..10000).map(|i| format!("{i}\trow {i}\n")).collect();
    let mut sink = pin!(client.copy_in("COPY tokio_copy FROM STDIN").await?);
    for chunk in lines.as_bytes().chunks(5000) {
        sink.send(std::io::Cursor::new(chunk.to_vec())).await?;
    }
    ensure!(sink.finish().await? == 10000);
    let out = client.copy_out("COPY (SELECT * FROM tokio_copy ORDER BY a) TO STDOUT").await?;
    let chunks: Vec<_> = out.try_collect().await?;
    ensure!(chunks.concat() == lines.as_bytes(), "{} chunks came back", chunks.len());
    let mut bad =
        pin!(client.copy_in::<_, std::io::Cursor<Vec<u8>>>("COPY tokio_copy FROM STDIN").await?);
    bad.send(std::io::Cursor::new(b"x\ty\n".to_vec())).await?;
    refused(bad.finish().await, "22P02")
}

async fn portals() -> Result<()> {
    let mut client = session(0).await?;
    let transaction = client.transaction().await?;
    let portal = transaction.bind("SELECT generate_series(1, 1000)", &[]).await?;
    let mut total = 0;
    loop {
        let rows = transaction.query_portal(&portal, 100).await?;
        if rows.is_empty() {
            break;
        }
        total += rows.iter().map(|row| row.get::<_, i32>(0)).sum::<i32>();
    }
    transaction.commit().await?;
    ensure!(total == 500_500, "{total}");
    Ok(())
}

async fn notifications() -> Result<()> {
    let (ear, mut connection) = gateway(0)?.connect(tls()?).await?;
    let (say, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(|cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(notification) = message {
                let _ = say.send(notification.payload().to_owned());
            }
        }
    });
    ear.batch_execute("LISTEN tokio").await?;
    session(1).await?.batch_execute("NOTIFY tokio, 'word'").await?;
    let word = tokio::time::timeout(WITHIN, heard.recv()).await?;
    ensure!(word.as_deref() == Some("word"), "{word:?}");
    Ok(())
}

async fn on_a_replica(client: &Client) -> Result<()> {
    let begun = Instant::now();
    while !client.query_one(PLACE, &[]).await?.get::<_, bool>(0) {
        ensure!(begun.elapsed() < WITHIN, "no replica answers");
    }
    Ok(())
}

async fn reads() -> Result<()> {
    for port in 0..ports()?.len() {
        let client = session(port).await?;
        on_a_replica(&client).await?;
        for i in 0..50 {
            let id = 5000 + 50 * port as i32 + i;
            client.execute("INSERT INTO tokio_rows VALUES ($1)", &[&id]).await?;
            let seen = client.query_opt("SELECT 1 FROM tokio_rows WHERE id = $1", &[&id]).await?;
            seen.with_context(|| format!("row {id} is not seen"))?;
        }
        on_a_replica(&client).await?;
    }
    Ok(())
}

async fn moves() -> Result<()> {
    let (mut one, two) = (session(0).await?, session(1).await?);
    one.batch_execute("TRUNCATE tokio_rows").await?;
    let insert = two.prepare("INSERT INTO tokio_rows VALUES ($1)").await?;
    let mut written = 0;
    let moving = tokio::spawn(switchover());
    let mut rounds_left = 20;
    while rounds_left > 0 {
        rounds_left -= i32::from(moving.is_finished());
        let transaction = one.transaction().await?;
        for id in [written, written + 1] {
            transaction.execute("INSERT INTO tokio_rows VALUES ($1)", &[&id]).await?;
        }
        transaction.commit().await?;
        two.execute(&insert, &[&(written + 2)]).await?;
        written += 3;
    }
    moving.await??;
    let sql = "SELECT /* quorate: strong */ count(*)::int FROM tokio_rows";
    let rows: i32 = one.query_one(sql, &[]).await?.get(0);
    ensure!(rows == written, "{rows} rows, not {written}");
    Ok(())
}
