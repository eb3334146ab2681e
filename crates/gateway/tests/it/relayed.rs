//! What clients do all day, through the front door.

use std::sync::Arc;

use anyhow::Result;
use quorate_gateway::{Ended, FrontendOptions, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::door::{Door, Raw};
use crate::server::{Server, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn queries_large_results_copy_and_pipelines_pass() -> Result<()> {
    let door = Door::open(&[], FrontendOptions::default()).await?;
    let mut client = door.client().await?;
    let row = client.query_one("SELECT $1::int + 1, current_user::text", &[&41]).await?;
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "app"));

    let rows =
        client.query("SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i", &[]).await?;
    assert_eq!(rows.len(), 20_000);
    let big: String = client.query_one("SELECT repeat('y', 30000000)", &[]).await?.get(0);
    assert_eq!(big.len(), 30_000_000);

    client.batch_execute("CREATE TABLE t(i int)").await?;
    let fill = "INSERT INTO t SELECT i / 10 FROM generate_series(0, 19999) i";
    assert_eq!(client.execute(fill, &[]).await?, 20_000);
    let one = client.prepare("SELECT count(*) FROM t WHERE i < $1").await?;
    let (a, b, c) = tokio::try_join!(
        client.query_one(&one, &[&10]),
        client.query_one(&one, &[&100]),
        client.query_one(&one, &[&2000]),
    )?;
    let counts: [i64; 3] = [a.get(0), b.get(0), c.get(0)];
    assert_eq!(counts, [100, 1000, 20_000]);

    let transaction = client.transaction().await?;
    transaction.execute("DELETE FROM t", &[]).await?;
    transaction.rollback().await?;
    let error = client.query_one("SELECT 1/0", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    assert_eq!(*door.sessions.count().borrow(), 1);
    drop(client);
    assert_eq!(door.ended().await, Ended::Client);
    assert_eq!(*door.sessions.count().borrow(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_passes_in_both_protocols_and_leaves_the_session_idle() -> Result<()> {
    let server = Server::primary(&[]).await?;
    let door = Door::before(server, FrontendOptions::default(), true, 100).await?;
    let mut raw = Raw::session(&door).await?;
    raw.query("CREATE TABLE t(i int)").await?;
    raw.until(b'Z').await?;
    let lines = b"12345\n".repeat(5000);
    raw.query("COPY t FROM STDIN").await?;
    raw.until(b'G').await?;
    raw.send(&[(b'd', &lines), (b'd', &lines), (b'c', b"")]).await?;
    assert_eq!(raw.until(b'Z').await?, "CZ");
    // The extended protocol, as drivers speak it: the first Sync is swallowed by the copy.
    let parse = b"\0COPY t FROM STDIN\0\0\0";
    let execute = b"\0\0\0\0\0";
    raw.send(&[(b'P', parse), (b'B', &[0; 8]), (b'E', execute), (b'S', b"")]).await?;
    assert_eq!(raw.until(b'G').await?, "12G");
    raw.send(&[(b'd', &lines), (b'c', b""), (b'S', b"")]).await?;
    assert_eq!(raw.until(b'Z').await?, "CZ");
    raw.query("COPY t TO STDOUT").await?;
    let tags = raw.until(b'Z').await?;
    assert_eq!(tags.matches('d').count(), 15_000);
    door.gate.close();
    assert_eq!(raw.last_word().await?, "57P01", "nothing was in progress");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_logs_in_with_its_password() -> Result<()> {
    let door = Door::open(&[], FrontendOptions::default()).await?;
    let mut psql = tokio::process::Command::new("psql");
    psql.env("PGPASSWORD", "secret").args(["-X", "-At", "-h", "127.0.0.1", "-U", "app", "-p"]);
    psql.arg(door.address.port().to_string()).args([
        "-c",
        "SELECT 'in as ' || current_user",
        "postgres",
    ]);
    let output = psql.output().await?;
    assert_eq!(String::from_utf8(output.stdout)?, "in as app\n");
    assert_eq!(door.ended().await, Ended::Client);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_postgresqls_business() -> Result<()> {
    let door = Door::open(&[], FrontendOptions::default()).await?;
    let mut config = door.config("app");
    let error = config.password("wrong").connect(tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "28P01");
    // Whoever is quicker to close.
    assert!(matches!(door.ended().await, Ended::Server | Ended::Client));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_asked_for_no_password_is_refused() -> Result<()> {
    let door = Door::open(&[], FrontendOptions::default()).await?;
    for user in ["trusted", "postgres"] {
        let error = door.config(user).connect(tokio_postgres::NoTls).await.err().unwrap();
        assert_eq!(error.code().unwrap().code(), "28000", "{user}");
        assert_eq!(door.ended().await, Ended::Refused("28000"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_roles_and_replication_are_refused() -> Result<()> {
    let server = Server::primary(&[]).await?;
    let long = format!("quorate{}", "x".repeat(80));
    // The name that PostgreSQL would cut the long one to; it would be let in by trust.
    let sql = format!("CREATE ROLE {} SUPERUSER LOGIN", &long[..63]);
    server.sql("postgres").await?.batch_execute(&sql).await?;
    server.sql(&long).await?.batch_execute("SELECT 1").await?;
    let door = Door::before(server, FrontendOptions::default(), true, 100).await?;
    for user in ["quorate", "QUORATE", "\"quorate\"", &long] {
        let mut raw =
            Raw::connect(door.address, &[("user", user), ("database", "postgres")]).await?;
        assert_eq!(raw.last_word().await?, "28000", "{user}");
    }
    let twice = [("user", "quorate"), ("user", "postgres"), ("database", "postgres")];
    assert_eq!(Raw::connect(door.address, &twice).await?.last_word().await?, "28000");
    for replication in ["true", "database"] {
        let parameters = [("user", "postgres"), ("replication", replication)];
        assert_eq!(Raw::connect(door.address, &parameters).await?.last_word().await?, "0A000");
    }
    assert_eq!(*door.sessions.count().borrow(), 0);
    let seen = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'quorate%'";
    eventually("only the test's own session was there, and it has left", async || {
        (door.server.value(seen).await.ok()? == "0").then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_have_a_limit() -> Result<()> {
    let server = Server::primary(&[]).await?;
    let door = Door::before(server, FrontendOptions::default(), true, 1).await?;
    let first = Raw::session(&door).await?;
    let parameters = [("user", "postgres"), ("database", "postgres")];
    assert_eq!(Raw::connect(door.address, &parameters).await?.last_word().await?, "53300");
    assert_eq!(*door.sessions.count().borrow(), 1, "the refused one gives nothing back");
    drop(first);
    eventually("the place is free again", async || {
        (*door.sessions.count().borrow() == 0).then_some(())
    })
    .await;
    Raw::session(&door).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_requests_reach_the_backend() -> Result<()> {
    let door = Door::open(&[], FrontendOptions::default()).await?;
    let client = door.client().await?;
    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    eventually("the backend sleeps", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        (door.server.value(sql).await.ok()? == "1").then_some(())
    })
    .await;
    token.cancel_query(tokio_postgres::NoTls).await?;
    let error = sleeping.await?.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57014");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_offered_and_may_be_required() -> Result<()> {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private =
        rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone())?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let options = FrontendOptions { tls: Tls::Required(Arc::new(config)), ..Default::default() };
    let server = Server::primary(&[]).await?;
    let door = Door::before(server, options, true, 100).await?;

    let plain = [("user", "postgres"), ("database", "postgres")];
    assert_eq!(Raw::connect(door.address, &plain).await?.last_word().await?, "28000");

    let ssl = quorate_wire::FirstPacket::Ssl.encode();
    let mut tcp = TcpStream::connect(door.address).await?;
    tcp.write_all(&quorate_wire::FirstPacket::GssEnc.encode()).await?;
    assert_eq!(tcp.read_u8().await?, b'N');
    tcp.write_all(&ssl).await?;
    assert_eq!(tcp.read_u8().await?, b'S');
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut tls = connector.connect("localhost".try_into()?, tcp).await?;
    tls.write_all(&quorate_wire::Startup::new(&plain).encode()).await?;
    assert_eq!(tls.read_u8().await?, b'R');

    // Bytes slipped in before the handshake end the connection.
    let mut tcp = TcpStream::connect(door.address).await?;
    tcp.write_all(&[&ssl[..], b"x"].concat()).await?;
    assert_eq!(tcp.read(&mut [0; 1]).await.unwrap_or(0), 0);
    Ok(())
}
