//! Who comes in, and what a client is told before it may ask.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use quorate_core::access::{AccessRule, Action, TlsNeed};
use quorate_core::gateway::{Gateway as Wanted, Tls as TlsWanted};
use quorate_gateway::Tls;
use quorate_wire::binding::Binding;
use quorate_wire::{CancelKey, FirstPacket, Startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::NoTls;

use crate::door::{Door, Mode, TERM, in_both_modes, wanted};
use crate::raw::{Raw, Say};
use crate::server::{Server, eventually};

in_both_modes! {
    passwords_are_checked_by_the_servers_own_verifiers
    who_is_not_to_come_in_is_not_told_why
    our_own_roles_are_refused
    rules_decide_who_comes_in
    psql_logs_in_with_its_password
    newer_versions_of_the_protocol_are_negotiated
    cancel_requests_reach_the_backend
    a_commit_that_waits_for_copies_is_not_cancelled
    clients_have_a_limit
    the_limit_holds_when_all_come_at_once
    a_database_that_is_not_there_is_told
}

async fn code(config: &tokio_postgres::Config) -> (String, String) {
    let error = config.connect(NoTls).await.err().expect("refused");
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (error.code().code().to_owned(), error.message().to_owned())
}

async fn passwords_are_checked_by_the_servers_own_verifiers(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let md5 = format!("{}_md5", door.database);
    let sql = format!("SET password_encryption = 'md5'; CREATE ROLE {md5} LOGIN PASSWORD 'secret'");
    door.admin().await?.batch_execute(&sql).await?;
    for user in ["app", &md5] {
        let (client, connection) = door.config(user).connect(NoTls).await?;
        tokio::spawn(connection);
        let row = client.query_one("SELECT current_user::text", &[]).await?;
        assert_eq!(row.get::<_, &str>(0), user);
        let mut wrong = door.config(user);
        let (code, message) = code(wrong.password("wrong")).await;
        let expected = format!("password authentication failed for user \"{user}\"");
        assert_eq!((&code[..], message), ("28P01", expected));
    }
    Ok(())
}

async fn who_is_not_to_come_in_is_not_told_why(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let name = |what: &str| format!("{}_{what}", door.database);
    let (expired, bare, barred, none) = (name("old"), name("bare"), name("barred"), name("none"));
    let sql = format!(
        "CREATE ROLE {expired} LOGIN PASSWORD 'secret' VALID UNTIL '2001-01-01'; \
         CREATE ROLE {bare} LOGIN; CREATE ROLE {barred} NOLOGIN PASSWORD 'secret'"
    );
    door.admin().await?.batch_execute(&sql).await?;
    for user in [&none, &expired, &bare] {
        let (code, message) = code(&door.config(user)).await;
        let expected = format!("password authentication failed for user \"{user}\"");
        assert_eq!((&code[..], message), ("28P01", expected));
    }
    // It knows its password, so that it may know this.
    let (refused, message) = code(&door.config(&barred)).await;
    let expected = format!("role \"{barred}\" is not permitted to log in");
    assert_eq!((&refused[..], message), ("28000", expected));
    let mut wrong = door.config(&barred);
    assert_eq!(code(wrong.password("wrong")).await.0, "28P01");
    Ok(())
}

async fn our_own_roles_are_refused(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let long = format!("quorate{}", "x".repeat(80));
    let database = ("database", &door.database[..]);
    for user in ["quorate", "QUORATE", "\"quorate\"", "quorate_reader", &long] {
        let startup = Startup::new(&[("user", user), database]);
        let word = Raw::connect(door.address, &startup).await?.last_word().await?;
        assert_eq!(word.code, "28000", "{user}");
    }
    let twice = Startup::new(&[("user", "quorate"), ("user", "postgres"), database]);
    assert_eq!(Raw::connect(door.address, &twice).await?.last_word().await?.code, "28000");
    for replication in ["true", "database"] {
        for user in ["quorate", "Quorate"] {
            let startup = Startup::new(&[("user", user), ("replication", replication)]);
            let word = Raw::connect(door.address, &startup).await?.last_word().await?;
            assert_eq!(word.code, "28000");
        }
    }
    let nobody = Startup::new(&[database]);
    assert_eq!(Raw::connect(door.address, &nobody).await?.last_word().await?.code, "28000");
    Ok(())
}

fn reject(role: &str) -> AccessRule {
    AccessRule {
        database: vec!["*".into()],
        role: vec![role.into()],
        address: vec!["*".into()],
        tls: TlsNeed::Any,
        action: Action::Reject,
        because: Some("secret reason".into()),
    }
}

async fn rules_decide_who_comes_in(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    door.client().await?;
    door.want(|wanted| wanted.access.insert(0, reject("app")));
    let refused = eventually("the rule is read", async || {
        let error = door.config("app").connect(NoTls).await.err()?;
        Some(error.as_db_error().unwrap().clone())
    })
    .await;
    assert_eq!(refused.code().code(), "28000");
    assert!(!format!("{refused:?}").contains("secret reason"));
    // The others are let in; and nobody where no rule fits.
    door.raw().await?;
    door.want(|wanted| wanted.access.truncate(1));
    eventually("the rules are read", async || door.raw().await.err()).await;
    Ok(())
}

async fn psql_logs_in_with_its_password(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut psql = tokio::process::Command::new("psql");
    psql.env("PGPASSWORD", "secret").args(["-X", "-At", "-h", "127.0.0.1", "-U", "app", "-p"]);
    psql.arg(door.address.port().to_string()).args([
        "-c",
        "SELECT 'in as ' || current_user",
        "-c",
        "\\conninfo",
        &door.database,
    ]);
    let output = psql.output().await?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.starts_with("in as app\nYou are connected"), "{text}");
    Ok(())
}

async fn newer_versions_of_the_protocol_are_negotiated(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let base = [("user", "postgres"), ("database", &door.database[..])];
    let newest = 0x0003_0002u32;
    // Version, further parameters, what is answered, bytes of the key's secret.
    type Case<'a> = (u32, &'a [(&'a str, &'a str)], Option<(u32, &'a [u8])>, usize);
    let cases: [Case<'_>; 6] = [
        (0x0003_0000, &[], None, 4),
        (newest, &[], None, 32),
        (0x0003_0009, &[], Some((newest, b"\0\0\0\0")), 32),
        (0x0003_0009, &[("_pq_.x", "1")], Some((newest, b"\0\0\0\x01_pq_.x\0")), 32),
        (newest, &[("_pq_.x", "1")], Some((newest, b"\0\0\0\x01_pq_.x\0")), 32),
        (0x0003_0000, &[("_pq_.x", "1")], Some((0x0003_0000, b"\0\0\0\x01_pq_.x\0")), 4),
    ];
    for (version, more, answered, secret) in cases {
        let startup = Startup { version, ..Startup::new(&[&base[..], more].concat()) };
        let mut raw = Raw::connect(door.address, &startup).await?;
        raw.greeted().await?;
        let expected = answered.map(|(version, rest)| [&version.to_be_bytes(), rest].concat());
        let negotiated: Vec<_> = raw.negotiated.iter().map(|b| b.to_vec()).collect();
        assert_eq!(negotiated, expected.into_iter().collect::<Vec<_>>(), "{version:x} {more:?}");
        assert_eq!(raw.key.as_ref().unwrap().secret.len(), secret, "{version:x}");
        assert_eq!(raw.value("SELECT 1").await?, "1");
    }
    // Versions that were never spoken.
    let mut raw = Raw::new(Box::new(TcpStream::connect(door.address).await?));
    raw.bytes(&[0, 0, 0, 9, 0, 2, 0, 0, 0]).await?;
    assert!(raw.rest().await.is_ok());
    Ok(())
}

/// Sends a cancel request, and waits until the gateway has done with it.
async fn cancel(door: &Door, key: CancelKey) -> Result<()> {
    let mut raw = Raw::new(Box::new(TcpStream::connect(door.address).await?));
    raw.bytes(&FirstPacket::Cancel(key).encode()).await?;
    assert_eq!(raw.rest().await?, 0);
    Ok(())
}

async fn cancel_requests_reach_the_backend(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let base = [("user", "postgres"), ("database", &door.database[..])];
    for version in [0x0003_0000, 0x0003_0002] {
        let startup = Startup { version, ..Startup::new(&base) };
        let mut raw = Raw::connect(door.address, &startup).await?;
        raw.greeted().await?;
        let key = raw.key.clone().unwrap();
        raw.say(Say::new().query("SELECT pg_sleep(60)")).await?;
        door.in_server("wait_event = 'PgSleep'").await;
        // Wrong ones first: of another client, of the wrong length, of nobody.
        let mut wrong = key.secret.to_vec();
        wrong[3] ^= 1;
        cancel(&door, CancelKey { pid: key.pid, secret: wrong.into() }).await?;
        cancel(&door, CancelKey { pid: key.pid, secret: key.secret.slice(..3) }).await?;
        cancel(&door, CancelKey { pid: key.pid + 1, secret: key.secret.clone() }).await?;
        cancel(&door, CancelKey { pid: -1, secret: Bytes::from_static(&[0; 4]) }).await?;
        assert!(raw.is_silent().await);
        cancel(&door, key.clone()).await?;
        let answer = raw.answer().await?;
        assert_eq!((answer.code(), answer.status), ("57014", 'I'));
        // While it waits for nothing a request changes nothing.
        cancel(&door, key).await?;
        assert_eq!(raw.value("SELECT 1").await?, "1");
    }
    // As a driver does it.
    let client = door.client().await?;
    let token = client.cancel_token();
    let sleeping = tokio::spawn(async move { client.batch_execute("SELECT pg_sleep(60)").await });
    door.in_server("wait_event = 'PgSleep'").await;
    token.cancel_query(NoTls).await?;
    assert_eq!(sleeping.await?.unwrap_err().code().unwrap().code(), "57014");
    Ok(())
}

async fn a_commit_that_waits_for_copies_is_not_cancelled(mode: Mode) -> Result<()> {
    let server = Server::primary(&["synchronous_standby_names=ANY 1 (quorate)"]).await?;
    let door = Door::before(Arc::new(server), mode, wanted(), None).await?;
    let mut raw = door.raw().await?;
    raw.say(Say::new().query("CREATE TABLE t()")).await?;
    door.in_server("wait_event = 'SyncRep'").await;
    cancel(&door, raw.key.clone().unwrap()).await?;
    assert!(raw.is_silent().await, "the commit still waits");
    door.in_server("wait_event = 'SyncRep'").await;
    Ok(())
}

async fn clients_have_a_limit(mode: Mode) -> Result<()> {
    let few = |wanted: &mut Wanted| {
        wanted.workers = 4;
        wanted.clients_max = 2;
    };
    let door = Door::with(mode, few).await?;
    let first = door.raw().await?;
    let _second = door.raw().await?;
    let error = door.raw().await.err().unwrap();
    assert!(error.to_string().starts_with("53300"), "{error}");
    drop(first);
    eventually("there is room again", async || door.raw().await.ok()).await;
    Ok(())
}

async fn the_limit_holds_when_all_come_at_once(mode: Mode) -> Result<()> {
    let few = |wanted: &mut Wanted| {
        wanted.workers = 4;
        wanted.clients_max = 3;
    };
    let door = Door::with(mode, few).await?;
    let mut logins = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (address, database) = (door.address, door.database.clone());
        logins.spawn(async move {
            Raw::session(address, &[("user", "postgres"), ("database", &database)]).await
        });
    }
    let mut came = Vec::new();
    while let Some(login) = logins.join_next().await {
        match login? {
            Ok(raw) => came.push(raw),
            Err(error) => assert!(error.to_string().starts_with("53300"), "{error}"),
        }
    }
    assert_eq!(came.len(), 3);
    Ok(())
}

async fn a_database_that_is_not_there_is_told(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut config = door.config("app");
    let (code, message) = code(config.dbname("nowhere")).await;
    assert_eq!((&code[..], &message[..]), ("3D000", "database \"nowhere\" does not exist"));
    Ok(())
}

/// A certificate, what the gateway makes of it, and a client that trusts it.
fn certificate() -> Result<(Tls, rustls::ClientConfig)> {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private =
        rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone())?;
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let binding = Binding::of_certificate(key.cert.der());
    Ok((Tls { config: Arc::new(config), binding }, client))
}

async fn encrypted(tcp: TcpStream, config: &rustls::ClientConfig) -> Result<Raw> {
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
    Ok(Raw::new(Box::new(connector.connect("localhost".try_into()?, tcp).await?)))
}

async fn secure(tls: TlsWanted) -> Result<(Door, rustls::ClientConfig)> {
    let (shown, client) = certificate()?;
    let server = Arc::new(Server::primary(&[]).await?);
    let mut wanted = wanted();
    wanted.tls = tls;
    let door = Door::before(server, Mode::Local, wanted, Some(shown)).await?;
    Ok((door, client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_offered_and_may_be_required() -> Result<()> {
    let (door, client) = secure(TlsWanted::Offered).await?;
    let plain = Startup::new(&[("user", "postgres"), ("database", "postgres")]);
    let ssl = FirstPacket::Ssl.encode();
    door.raw().await?;
    door.want(|wanted| wanted.tls = TlsWanted::Required);
    assert_eq!(Raw::connect(door.address, &plain).await?.last_word().await?.code, "28000");

    // Asked for, after encryption of another kind was refused.
    let mut tcp = TcpStream::connect(door.address).await?;
    tcp.write_all(&FirstPacket::GssEnc.encode()).await?;
    assert_eq!(tcp.read_u8().await?, b'N');
    tcp.write_all(&ssl).await?;
    assert_eq!(tcp.read_u8().await?, b'S');
    let mut raw = encrypted(tcp, &client).await?;
    raw.bytes(&plain.encode()).await?;
    raw.greeted().await?;
    let big = raw.value("SELECT repeat('x', 1000000)").await?;
    assert_eq!(big.len(), 1_000_000);

    // Bytes slipped in before the handshake end the connection.
    let mut tcp = TcpStream::connect(door.address).await?;
    tcp.write_all(&[&ssl[..], b"x"].concat()).await?;
    assert_eq!(tcp.read(&mut [0; 1]).await.unwrap_or(0), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_may_begin_without_asking_when_it_names_the_protocol() -> Result<()> {
    let (door, mut client) = secure(TlsWanted::Required).await?;
    let plain = Startup::new(&[("user", "postgres"), ("database", "postgres")]);
    // Without the name of the protocol it might be anybody's.
    if let Ok(mut raw) = encrypted(TcpStream::connect(door.address).await?, &client).await {
        assert!(raw.bytes(&plain.encode()).await.is_err() || raw.greeted().await.is_err());
    }
    client.alpn_protocols = vec![b"postgresql".to_vec()];
    let mut raw = encrypted(TcpStream::connect(door.address).await?, &client).await?;
    raw.bytes(&plain.encode()).await?;
    raw.greeted().await?;
    assert_eq!(raw.value("SELECT 1").await?, "1");
    // The console says so.
    let mut console = encrypted(TcpStream::connect(door.address).await?, &client).await?;
    console.bytes(&Startup::new(&[("user", "postgres"), ("database", "quorate")]).encode()).await?;
    console.greeted().await?;
    let clients = console.ask("SHOW CLIENTS").await?.ok();
    assert!(clients.rows.iter().all(|row| &row[6] == "tls"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_may_be_bound_to_the_certificate() -> Result<()> {
    let (door, client) = secure(TlsWanted::Offered).await?;
    let mut tcp = TcpStream::connect(door.address).await?;
    tcp.write_all(&FirstPacket::Ssl.encode()).await?;
    assert_eq!(tcp.read_u8().await?, b'S');
    let mut raw = encrypted(tcp, &client).await?;
    raw.bytes(&Startup::new(&[("user", "app"), ("database", "postgres")]).encode()).await?;
    let message = raw.next().await?.unwrap();
    assert_eq!(message.tag, b'R');
    let offered = String::from_utf8_lossy(&message.body[4..]).into_owned();
    assert_eq!(offered, "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    // Without encryption there is nothing to bind to.
    let startup = Startup::new(&[("user", "app"), ("database", "postgres")]);
    let mut raw = Raw::connect(door.address, &startup).await?;
    let message = raw.next().await?.unwrap();
    assert_eq!(&message.body[4..], b"SCRAM-SHA-256\0\0");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_over_tls_ends_with_a_farewell() -> Result<()> {
    let (door, client) = secure(TlsWanted::Offered).await?;
    let raw = door.raw().await?;
    for key in
        [raw.key.clone().unwrap(), CancelKey { pid: -1, secret: Bytes::from_static(b"none") }]
    {
        let mut tcp = TcpStream::connect(door.address).await?;
        tcp.write_all(&FirstPacket::Ssl.encode()).await?;
        assert_eq!(tcp.read_u8().await?, b'S');
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client.clone()));
        let mut tls = connector.connect("localhost".try_into()?, tcp).await?;
        tls.write_all(&FirstPacket::Cancel(key).encode()).await?;
        // An end without a farewell is an error here, as it is to libpq.
        assert_eq!(tls.read(&mut [0; 1]).await?, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_a_certificate_says_so() -> Result<()> {
    let door = Door::open(Mode::Local).await?;
    assert_eq!(door.gate.term(), Some(TERM));
    let mut tcp = TcpStream::connect(door.address).await?;
    tcp.write_all(&FirstPacket::Ssl.encode()).await?;
    assert_eq!(tcp.read_u8().await?, b'N');
    let mut raw = Raw::new(Box::new(tcp));
    raw.bytes(&Startup::new(&[("user", "postgres"), ("database", "postgres")]).encode()).await?;
    raw.greeted().await
}
