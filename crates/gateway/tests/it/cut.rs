//! The gate, and what clients are told when it closes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use quorate_core::Term;
use quorate_gateway::{Ended, FrontendOptions, Outcome};
use tokio_postgres::NoTls;

use crate::door::{Door, FOREVER, NOW, Raw, TERM};
use crate::server::{Server, eventually};

async fn trusting() -> Result<Door> {
    let server = Server::primary(&[]).await?;
    Door::before(server, FrontendOptions::default(), true, 100).await
}

/// Waits until the server works on, or has done, what clients sent.
async fn in_server(door: &Door, condition: &str) {
    let sql = format!("SELECT count(*) > 0 FROM pg_stat_activity WHERE {condition}");
    eventually(condition, async || (door.server.value(&sql).await.ok()? == "t").then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_session_is_told_what_became_of_its_work() -> Result<()> {
    let door = trusting().await?;
    let mut idle = Raw::session(&door).await?;
    let mut open = Raw::session(&door).await?;
    open.query("BEGIN").await?;
    open.until(b'Z').await?;
    let mut retry = Raw::session(&door).await?;
    retry.query("BEGIN").await?;
    retry.until(b'Z').await?;
    retry.query("SELECT pg_sleep(60)").await?;
    let mut unknown = Raw::session(&door).await?;
    unknown.query("SELECT pg_sleep(61)").await?;
    in_server(&door, "query = 'SELECT pg_sleep(60)' AND state = 'active'").await;
    in_server(&door, "query = 'SELECT pg_sleep(61)' AND state = 'active'").await;
    door.gate.close();
    assert_eq!(idle.last_word().await?, "57P01");
    assert_eq!(open.last_word().await?, "57P01");
    assert_eq!(retry.last_word().await?, "40001");
    assert_eq!(unknown.last_word().await?, "08007");
    assert_eq!(door.ended().await, Ended::Cut(Outcome::Idle));
    assert_eq!(door.ended().await, Ended::Cut(Outcome::RolledBack));
    assert_eq!(door.ended().await, Ended::Cut(Outcome::RolledBack));
    assert_eq!(door.ended().await, Ended::Cut(Outcome::Unknown));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_holds_responses_until_it_is_renewed() -> Result<()> {
    let door = trusting().await?;
    let mut raw = Raw::session(&door).await?;
    door.gate.renew(TERM, NOW);
    raw.query("SELECT 1").await?;
    assert!(raw.is_silent().await);
    door.gate.renew(TERM, FOREVER);
    assert_eq!(raw.until(b'Z').await?, "TDCZ");

    door.gate.renew(TERM, NOW);
    raw.query("CREATE TABLE done(); COMMIT").await?;
    in_server(&door, "query LIKE 'CREATE TABLE done%' AND state = 'idle'").await;
    // The commit happened, its answer never left: the client must not be told anything firm.
    door.gate.close();
    assert_eq!(raw.last_word().await?, "08007");
    assert_eq!(door.ended().await, Ended::Cut(Outcome::Unknown));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_response_of_a_later_term_reaches_a_session_of_an_earlier_one() -> Result<()> {
    let door = trusting().await?;
    let mut raw = Raw::session(&door).await?;
    raw.query("SELECT pg_sleep(0.2), 'late'").await?;
    in_server(&door, "wait_event = 'PgSleep'").await;
    // Too quick to be noticed as a closing: only the term has changed.
    door.gate.open(Term(TERM.0 + 1));
    door.gate.renew(Term(TERM.0 + 1), FOREVER);
    assert_eq!(raw.last_word().await?, "08007");
    let mut next = Raw::session(&door).await?;
    next.query("SELECT 1").await?;
    next.until(b'Z').await?;
    door.sessions.cut_all(TERM);
    next.query("SELECT 1").await?;
    next.until(b'Z').await?;
    door.sessions.cut_all(Term(TERM.0 + 1));
    assert_eq!(next.last_word().await?, "57P01");
    door.gate.close();
    let parameters = [("user", "postgres"), ("database", "postgres")];
    assert_eq!(Raw::connect(door.address, &parameters).await?.last_word().await?, "57P03");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_cut_in_the_middle_ends_without_a_word() -> Result<()> {
    let door = trusting().await?;
    let mut raw = Raw::session(&door).await?;
    raw.query("SELECT repeat('x', 50000000)").await?;
    raw.until(b'T').await?;
    // The rest is more than all buffers hold: the relay is in the middle of the row.
    in_server(&door, "wait_event = 'ClientWrite'").await;
    door.gate.close();
    let mut rest = 0;
    while let Some(message) = raw.next_bytes().await? {
        rest += message;
    }
    assert!(rest < 50_000_000);
    assert_eq!(door.ended().await, Ended::Cut(Outcome::Unknown));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_is_told_like_a_cut() -> Result<()> {
    let door = trusting().await?;
    let mut raw = Raw::session(&door).await?;
    raw.query("SELECT pg_sleep(60)").await?;
    in_server(&door, "wait_event = 'PgSleep'").await;
    let pid = std::fs::read_to_string(door.server.dir.path().join("data/postmaster.pid"))?;
    let pid = pid.lines().next().unwrap().to_owned();
    std::process::Command::new("kill").args(["-QUIT", &pid]).status()?;
    // The server's own warning may come first.
    let mut code = String::new();
    while let Some(message) = raw.next().await? {
        code = quorate_wire::backend::Fields::parse(&message.body)?.code().to_owned();
    }
    assert_eq!(code, "08007");
    assert_eq!(door.ended().await, Ended::Server);
    Ok(())
}

const SYNC: &str = "synchronous_standby_names=ANY 1 (quorate)";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_copies_is_not_cancelled_through_the_door() -> Result<()> {
    let door = Door::open(&[SYNC], FrontendOptions::default()).await?;
    let client = door.client().await?;
    let token = client.cancel_token();
    let mut commit = tokio::spawn(async move { client.batch_execute("CREATE TABLE t()").await });
    in_server(&door, "wait_event = 'SyncRep'").await;
    token.cancel_query(NoTls).await?;
    let held = tokio::time::timeout(Duration::from_millis(200), &mut commit).await;
    assert!(held.is_err(), "the commit still waits");
    in_server(&door, "wait_event = 'SyncRep'").await;

    // A cancel from elsewhere ends the wait: then the answer is held back, and the warning dropped.
    let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(door.server.value(sql).await?, "t");
    eventually("the answer is held", async || {
        (door.agent.waits.load(Ordering::SeqCst) == 1).then_some(())
    })
    .await;
    let held = tokio::time::timeout(Duration::from_millis(200), &mut commit).await;
    assert!(held.is_err(), "no commit set holds it yet");
    door.agent.waited.send_replace(Some(true));
    commit.await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_wait_that_comes_to_nothing_is_unknown() -> Result<()> {
    let server = Server::primary(&[SYNC]).await?;
    let door = Door::before(server, FrontendOptions::default(), true, 100).await?;
    let mut raw = Raw::session(&door).await?;
    raw.query("BEGIN; CREATE TABLE t()").await?;
    raw.until(b'Z').await?;
    raw.query("COMMIT").await?;
    in_server(&door, "wait_event = 'SyncRep'").await;
    let sql = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(door.server.value(sql).await?, "t");
    assert!(raw.is_silent().await);
    door.agent.waited.send_replace(Some(false));
    assert_eq!(raw.last_word().await?, "08007", "neither the warning nor the answer came before");
    Ok(())
}
