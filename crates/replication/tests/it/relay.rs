//! The relay socket without PostgreSQL: holding, bridging, leaving.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_replication::{BoxFuture, BoxStream, RelayOptions, RelaySocket, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::server::{DEADLINE, eventually};

/// Greets, then echoes; fails to open the first `failures` times.
#[derive(Default)]
struct Echo {
    failures: AtomicUsize,
    opened: AtomicUsize,
}

impl Target for Echo {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async {
            let left = self.failures.load(Ordering::SeqCst);
            if left > 0 {
                self.failures.store(left - 1, Ordering::SeqCst);
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            self.opened.fetch_add(1, Ordering::SeqCst);
            let (ours, mut theirs) = tokio::io::duplex(1024);
            tokio::spawn(async move {
                let (mut r, mut w) = tokio::io::split(&mut theirs);
                w.write_all(b"!").await?;
                tokio::io::copy(&mut r, &mut w).await
            });
            Ok(Box::new(ours) as BoxStream)
        })
    }
}

fn bind(dir: &tempfile::TempDir) -> RelaySocket {
    RelaySocket::bind(&RelayOptions { dir: dir.path().join("relay"), owner: None }).unwrap()
}

async fn read(stream: &mut UnixStream, expected: &[u8]) -> Result<()> {
    let mut got = vec![0; expected.len()];
    timeout(DEADLINE, stream.read_exact(&mut got)).await??;
    assert_eq!(got, expected);
    Ok(())
}

#[tokio::test]
async fn held_connections_are_bridged_at_once_and_dropped_at_once() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    let relay = bind(&dir);
    assert_eq!(relay.path().metadata()?.permissions().mode() & 0o777, 0o700);
    let mut early = UnixStream::connect(relay.path()).await?;
    early.write_all(b"hello").await?;
    let mut silent = [0; 1];
    assert!(timeout(Duration::from_millis(50), early.read(&mut silent)).await.is_err(), "held");
    let begin = Instant::now();
    relay.set_target(Some(Arc::new(Echo::default())));
    read(&mut early, b"!hello").await?;
    println!("a held connection was bridged after {:?}", begin.elapsed());
    early.write_all(b"more").await?;
    read(&mut early, b"more").await?;
    assert_eq!(*relay.live().borrow(), 1);
    relay.close().await;
    assert_eq!(*relay.live().borrow(), 0);
    assert_eq!(timeout(DEADLINE, early.read(&mut silent)).await??, 0);
    let mut late = UnixStream::connect(relay.path()).await?;
    assert!(timeout(Duration::from_millis(50), late.read(&mut silent)).await.is_err(), "held");
    Ok(())
}

#[tokio::test]
async fn a_tunnel_that_cannot_be_opened_is_tried_while_the_client_waits() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let relay = bind(&dir);
    let target = Arc::new(Echo { failures: AtomicUsize::new(2), ..Echo::default() });
    relay.set_target(Some(Arc::clone(&target) as Arc<dyn Target>));
    let mut client = UnixStream::connect(relay.path()).await?;
    read(&mut client, b"!").await?;
    drop(client);
    eventually("the tunnel ends with its client", async || {
        (*relay.live().borrow() == 0).then_some(())
    })
    .await;

    // A client that leaves while it waits opens no tunnel.
    target.failures.store(usize::MAX, Ordering::SeqCst);
    drop(UnixStream::connect(relay.path()).await?);
    relay.set_target(None);
    let gone = UnixStream::connect(relay.path()).await?;
    drop(gone);
    let mut stays = UnixStream::connect(relay.path()).await?;
    target.failures.store(0, Ordering::SeqCst);
    // Accepted in order: when the last one is held, the others were seen to leave.
    tokio::time::timeout(Duration::from_millis(50), stays.read_u8()).await.unwrap_err();
    relay.set_target(Some(Arc::clone(&target) as Arc<dyn Target>));
    read(&mut stays, b"!").await?;
    assert_eq!(target.opened.load(Ordering::SeqCst), 2);
    Ok(())
}

/// Opens, and ends at once: what a walreceiver meets whose log is gone.
struct Refusing;

impl Target for Refusing {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async { Ok(Box::new(tokio::io::duplex(16).0) as BoxStream) })
    }
}

#[tokio::test]
async fn a_target_that_ends_every_tunnel_is_not_asked_in_a_tight_loop() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let relay = bind(&dir);
    relay.set_target(Some(Arc::new(Refusing)));
    let begin = Instant::now();
    for _ in 0..5 {
        let mut client = UnixStream::connect(relay.path()).await?;
        assert_eq!(timeout(DEADLINE, client.read(&mut [0; 1])).await??, 0);
    }
    // Four rests of 50 ms: the first connection is not kept waiting.
    assert!(begin.elapsed() >= Duration::from_millis(200), "{:?}", begin.elapsed());
    Ok(())
}

#[tokio::test]
async fn it_is_known_whether_anybody_comes_for_the_log() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let relay = bind(&dir);
    assert!(!relay.is_unused(), "there is none");
    relay.set_target(Some(Arc::new(Echo::default())));
    assert!(relay.is_unused());
    let mut client = UnixStream::connect(relay.path()).await?;
    read(&mut client, b"!").await?;
    assert!(!relay.is_unused());
    drop(client);
    let mut live = relay.live();
    timeout(DEADLINE, live.wait_for(|n| *n == 0)).await??;
    assert!(relay.is_unused());
    Ok(())
}
