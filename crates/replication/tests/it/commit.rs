//! Commits wait for the virtual standby, and the virtual standby waits for copies.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_core::{Lsn, NodeId, Policy, Rule, Term};
use quorate_replication::{
    Aggregator, BoxFuture, BoxStream, Ended, Level, Purpose, RelayOptions, RelaySocket, Serve,
    StandbyState, Target, VirtualStandby, serve_wal,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::server::{DEADLINE, Server, command, eventually, owner, private_dir, value};

const SYNC: &str = "synchronous_standby_names=ANY 1 (quorate)";
/// Long enough for a commit that is not held to come back many times over.
const HELD: Duration = Duration::from_millis(300);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn rule(cohort: &str, copies: u8) -> Rule {
    let cohort = cohort.split_whitespace().map(node).collect();
    Rule { generation: 1, cohort, policy: Policy::Copies(copies) }
}

/// A writer with its virtual standby.
struct Writer {
    server: Server,
    aggregator: Arc<Aggregator>,
    state: watch::Receiver<StandbyState>,
    task: JoinHandle<()>,
}

impl Writer {
    async fn new() -> Result<Writer> {
        let server = Server::primary(&[SYNC]).await?;
        let aggregator = Aggregator::new();
        let virtual_standby =
            VirtualStandby::new(server.socket(), "quorate", Arc::clone(&aggregator));
        let mut state = virtual_standby.state();
        let task = tokio::spawn(virtual_standby.run());
        state.wait_for(|s| *s == StandbyState::Streaming).await?;
        Ok(Writer { server, aggregator, state, task })
    }

    /// Starts a commit; the handle ends when it is acknowledged.
    async fn commit(&self, settings: &str) -> Result<JoinHandle<Result<Client>>> {
        let client = self.server.sql("postgres").await?;
        client.batch_execute(settings).await?;
        Ok(tokio::spawn(async move {
            client
                .batch_execute("CREATE TABLE IF NOT EXISTS t(i int); INSERT INTO t VALUES (1)")
                .await?;
            Ok(client)
        }))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn is_held(commit: &mut JoinHandle<Result<Client>>) -> bool {
    tokio::time::timeout(HELD, commit).await.is_err()
}

async fn is_released(commit: JoinHandle<Result<Client>>) -> Client {
    tokio::time::timeout(DEADLINE, commit).await.expect("released").unwrap().unwrap()
}

/// Tunnels of one standby, in memory.
struct InProcess {
    pg_socket: PathBuf,
    aggregator: Arc<Aggregator>,
    verified: Lsn,
    closed: watch::Sender<bool>,
    clone: bool,
    ended: Mutex<Vec<JoinHandle<Result<Ended, quorate_replication::Error>>>>,
}

impl InProcess {
    fn to(writer: &Writer, verified: Lsn) -> Arc<Self> {
        Arc::new(Self {
            pg_socket: writer.server.socket(),
            aggregator: Arc::clone(&writer.aggregator),
            verified,
            closed: watch::Sender::new(false),
            clone: false,
            ended: Mutex::default(),
        })
    }
}

impl Target for InProcess {
    fn open(&self) -> BoxFuture<'_, std::io::Result<BoxStream>> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(32 * 1024);
            let follow = Purpose::Follow {
                aggregator: Arc::clone(&self.aggregator),
                term: self.aggregator.quorum().term,
                verified: self.verified,
            };
            let purpose = if self.clone { Purpose::Clone } else { follow };
            let serve = Serve {
                pg_socket: self.pg_socket.clone(),
                peer: node("b"),
                purpose,
                closed: self.closed.subscribe(),
            };
            self.ended.lock().unwrap().push(tokio::spawn(serve_wal(theirs, serve)));
            Ok(Box::new(ours) as BoxStream)
        })
    }
}

/// A standby called b that follows through a relay socket.
struct Standby {
    server: Server,
    relay: RelaySocket,
    _dir: TempDir,
}

impl Standby {
    async fn of(writer: &Writer) -> Result<Standby> {
        let dir = private_dir();
        let relay_dir = dir.path().join("relay");
        let relay =
            RelaySocket::bind(&RelayOptions { dir: relay_dir.clone(), owner: Some(owner()) })?;
        let server = Server::standby(&writer.server, &relay_dir).await?;
        Ok(Standby { server, relay, _dir: dir })
    }

    /// Leads it to the writer, as its agent would after checking its lineage.
    async fn follow(&self, writer: &Writer) -> Result<Arc<InProcess>> {
        let sql = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())";
        let verified = self.server.value(sql).await?.parse()?;
        let target = InProcess::to(writer, verified);
        self.relay.set_target(Some(Arc::clone(&target) as Arc<dyn Target>));
        Ok(target)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_copies_of_the_rule() -> Result<()> {
    let writer = Writer::new().await?;
    let mut commit = writer.commit("").await?;
    assert!(is_held(&mut commit).await, "no term has begun");
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    assert!(is_held(&mut commit).await, "b is absent");
    writer.aggregator.set_rule(Term(1), rule("a", 1));
    is_released(commit).await;

    writer.aggregator.set_rule(Term(1), rule("a b", 2));
    let standby = Standby::of(&writer).await?;
    let mut commit = writer.commit("").await?;
    assert!(is_held(&mut commit).await, "b's connection is held by its relay socket");
    let target = standby.follow(&writer).await?;
    let client = is_released(commit).await;

    let name = "SELECT string_agg(application_name, ',' ORDER BY application_name) FROM pg_stat_replication";
    // The standby called itself quorate; the sender of its base backup may linger.
    eventually("the standby goes by its authenticated name", async || {
        (value(&client, name).await.ok()? == "b,quorate").then_some(())
    })
    .await;
    let count = async || standby.server.value("SELECT count(*) FROM t").await.ok();
    eventually("the row is on b", async || (count().await? == "2").then_some(())).await;

    standby.relay.close().await;
    assert_eq!(*standby.relay.live().borrow(), 0);
    let handle = target.ended.lock().unwrap().pop().unwrap();
    assert_eq!(handle.await??, Ended::Peer);
    assert!(writer.aggregator.snapshot().links.is_empty());
    let mut commit = writer.commit("").await?;
    assert!(is_held(&mut commit).await, "the tunnel is closed");
    let target = standby.follow(&writer).await?;
    is_released(commit).await;

    let handle = target.ended.lock().unwrap().pop().unwrap();
    target.closed.send_replace(true);
    assert_eq!(handle.await??, Ended::Closed);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fence_holds_commits_and_a_new_term_cuts_links() -> Result<()> {
    let writer = Writer::new().await?;
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    let standby = Standby::of(&writer).await?;
    let target = standby.follow(&writer).await?;
    is_released(writer.commit("").await?).await;

    writer.aggregator.fence();
    let mut commit = writer.commit("").await?;
    assert!(is_held(&mut commit).await);
    assert!(!writer.aggregator.wait_for(Lsn(1), Level::Flush).await);
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    is_released(commit).await;

    writer.aggregator.begin(Term(2), node("a"), rule("a b", 2));
    let first = target.ended.lock().unwrap().remove(0);
    assert_eq!(first.await??, Ended::Superseded);
    // The same target opens a tunnel of the new term.
    is_released(writer.commit("").await?).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_apply_waits_for_replay() -> Result<()> {
    let writer = Writer::new().await?;
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    let standby = Standby::of(&writer).await?;
    standby.follow(&writer).await?;
    is_released(writer.commit("").await?).await;
    let apply = "SET synchronous_commit = remote_apply";
    is_released(writer.commit(apply).await?).await;
    assert_eq!(standby.server.value("SELECT count(*) FROM t").await?, "2", "replayed at the ack");

    standby.server.value("SELECT pg_wal_replay_pause()").await?;
    is_released(writer.commit("").await?).await;
    let mut commit = writer.commit(apply).await?;
    assert!(is_held(&mut commit).await, "flushed but not replayed");
    standby.server.value("SELECT pg_wal_replay_resume()").await?;
    is_released(commit).await;
    Ok(())
}

/// A client that follows and then claims a position of its choice.
async fn claim(writer: &Writer, verified: Lsn, claimed: impl Fn(Lsn) -> Lsn) -> Result<Ended> {
    use bytes::BytesMut;
    use quorate_wire::replication::{StatusUpdate, put_query};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let target = InProcess::to(writer, verified);
    let mut stream = target.open().await?;
    let startup = quorate_wire::Startup::new(&[("user", "quorate"), ("replication", "true")]);
    let mut out = startup.encode();
    let start: Lsn = writer.server.value("SELECT pg_current_wal_flush_lsn()").await?.parse()?;
    put_query(&mut out, &format!("START_REPLICATION PHYSICAL {start} TIMELINE 1"));
    let lsn = claimed(start);
    let mut update = BytesMut::new();
    StatusUpdate { write: lsn, flush: lsn, apply: lsn, ..StatusUpdate::default() }.put(&mut update);
    out.extend_from_slice(&update);
    stream.write_all(&out).await?;
    // Until the tunnel drops us; an honest claim is followed by our leaving.
    let _ = tokio::time::timeout(HELD, stream.read_to_end(&mut Vec::new())).await;
    drop(stream);
    let handle = target.ended.lock().unwrap().pop().unwrap();
    Ok(tokio::time::timeout(DEADLINE, handle).await???)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_beyond_what_was_sent_drops_the_link_and_releases_nothing() -> Result<()> {
    let writer = Writer::new().await?;
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    let mut commit = writer.commit("").await?;
    assert!(is_held(&mut commit).await);
    let ended = claim(&writer, Lsn(0x100_0000), |now| Lsn(now.0 + 0x1000)).await?;
    assert!(matches!(ended, Ended::FalseFeedback { .. }), "{ended:?}");
    // Even the true end of WAL, when it was neither verified nor sent on this link.
    let ended = claim(&writer, Lsn(0x100_0000), |now| now).await?;
    assert!(matches!(ended, Ended::FalseFeedback { .. }), "{ended:?}");
    assert!(is_held(&mut commit).await);
    // A claim within the verified lineage is believed.
    let now = writer.server.value("SELECT pg_current_wal_flush_lsn()").await?.parse()?;
    assert_eq!(claim(&writer, now, |now| now).await?, Ended::Peer);
    is_released(commit).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_virtual_standby_comes_back_and_releases_quickly() -> Result<()> {
    let mut writer = Writer::new().await?;
    writer.aggregator.begin(Term(1), node("a"), rule("a", 1));
    let client = is_released(writer.commit("").await?).await;
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    assert_eq!(value(&client, kill).await?, "t");
    writer.state.wait_for(|s| matches!(s, StandbyState::Failed { .. })).await?;
    is_released(writer.commit("").await?).await;

    let begin = Instant::now();
    for _ in 0..100 {
        client.batch_execute("INSERT INTO t VALUES (2)").await?;
    }
    let each = begin.elapsed() / 100;
    println!("a commit with the virtual standby takes {each:?}");
    assert!(each < Duration::from_millis(50), "{each:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn much_wal_passes_both_ways_through_narrow_pipes() -> Result<()> {
    let writer = Writer::new().await?;
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    let standby = Standby::of(&writer).await?;
    standby.follow(&writer).await?;
    let client = is_released(writer.commit("").await?).await;
    let fill = "INSERT INTO t SELECT generate_series(1, 300000)";
    tokio::time::timeout(DEADLINE, client.batch_execute(fill)).await??;
    let released = writer.aggregator.quorum().flush;
    assert!(released > Some(Lsn(0x300_0000)), "{released:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_copies_the_server_and_counts_for_nothing() -> Result<()> {
    let writer = Writer::new().await?;
    writer.aggregator.begin(Term(1), node("a"), rule("a b", 2));
    let dir = private_dir();
    let options = RelayOptions { dir: dir.path().join("relay"), owner: Some(owner()) };
    let relay = RelaySocket::bind(&options)?;
    let target = Arc::into_inner(InProcess::to(&writer, Lsn(u64::MAX))).unwrap();
    relay.set_target(Some(Arc::new(InProcess { clone: true, ..target })));
    let mut backup = command("pg_basebackup");
    backup.args(["-X", "stream", "-c", "fast", "--no-sync", "-U", "quorate", "-h"]);
    backup.arg(&options.dir).arg("-D").arg(dir.path().join("copy"));
    let output = tokio::task::spawn_blocking(move || backup.output()).await??;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(writer.aggregator.snapshot().links.is_empty());

    // pg_rewind asks its source in SQL; nobody else may.
    let mut config = tokio_postgres::Config::new();
    config.host_path(&options.dir).user("quorate").dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    assert_eq!(value(&client, "SHOW application_name").await?, "b");
    let error = config.user("postgres").connect(tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "28000");
    Ok(())
}
