//! The standby's end of a WAL tunnel: a unix socket that looks like a PostgreSQL server to the local
//! walreceiver and leads to whichever writer is the target now.
//!
//! Without a target a connection is held open in silence: PostgreSQL just waits, and is bridged the
//! moment a target appears, instead of failing and retrying.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::{Lsn, TimelineId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::stream::{BoxFuture, BoxStream};
use crate::{Error, limits};

/// Opens tunnels to one writer in one term.
pub trait Target: Send + Sync {
    /// Opens one tunnel. Dropping the future gives up.
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream>>;

    /// Through an open tunnel the local walreceiver asks for the log of this timeline, from this
    /// position on. It has its answer after this: an error ends the tunnel instead.
    fn asked(&self, _timeline: TimelineId, _from: Lsn) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Where the socket is and whose it is.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Directory of the socket, made when missing; `host=` of `primary_conninfo`.
    pub dir: PathBuf,
    /// Owner of directory and socket: the user that PostgreSQL runs as, and its group.
    pub owner: Option<(u32, u32)>,
}

/// Name of the socket file: port 5432.
const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The socket. Dropping it drops every connection.
#[derive(Debug)]
pub struct RelaySocket {
    path: PathBuf,
    aim: watch::Sender<Aim>,
    live: watch::Sender<usize>,
    held: watch::Sender<usize>,
    accepting: JoinHandle<()>,
}

/// The target now. Tunnels of an older generation end.
#[derive(Clone, Default)]
struct Aim {
    generation: u64,
    target: Option<Arc<dyn Target>>,
}

impl std::fmt::Debug for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let target = self.target.is_some();
        f.debug_struct("Aim")
            .field("generation", &self.generation)
            .field("target", &target)
            .finish()
    }
}

impl RelaySocket {
    /// Makes the socket and starts to hold connections. Must run inside a tokio runtime.
    pub fn bind(options: &RelayOptions) -> Result<Self, Error> {
        let doing = "making the socket that the local walreceiver connects to";
        let (listener, path) = listen(options).map_err(Error::io(doing))?;
        let aim = watch::Sender::new(Aim::default());
        let (live, held) = (watch::Sender::new(0), watch::Sender::new(0));
        let counts = (live.clone(), held.clone());
        let accepting = tokio::spawn(accept(listener, aim.subscribe(), counts));
        Ok(Self { path, aim, live, held, accepting })
    }

    /// The socket file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leads to this target from now on. Tunnels to the old one are dropped without waiting, held
    /// connections are bridged at once. `None` holds. For changes only: the same target again cuts, too.
    pub fn set_target(&self, target: Option<Arc<dyn Target>>) {
        self.aim.send_modify(|aim| *aim = Aim { generation: aim.generation + 1, target });
    }

    /// Drops all tunnels: new connections are led to the same target, and greet it anew.
    pub fn renew(&self) {
        self.aim.send_modify(|aim| aim.generation += 1);
    }

    /// Drops all tunnels and holds new connections. When it returns no tunnel of before is left:
    /// nothing more leaves this node for the old writer, nothing more arrives (R3).
    pub async fn close(&self) {
        self.set_target(None);
        let mut live = self.live.subscribe();
        // The sender is a field of self: the channel is never closed.
        let _ = live.wait_for(|&n| n == 0).await;
    }

    /// Number of tunnels that are open or being opened; held connections are not counted.
    pub fn live(&self) -> watch::Receiver<usize> {
        self.live.subscribe()
    }

    /// Whether there is a target, and nobody who is led to it.
    pub fn is_unused(&self) -> bool {
        self.aim.borrow().target.is_some() && *self.live.borrow() == 0 && *self.held.borrow() == 0
    }

    /// Whether a connection is held for want of a target.
    pub fn holds(&self) -> bool {
        *self.held.borrow() > 0
    }
}

impl Drop for RelaySocket {
    fn drop(&mut self) {
        // The connections' tasks belong to the accepting task and end with it.
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

fn listen(options: &RelayOptions) -> io::Result<(UnixListener, PathBuf)> {
    let dir = &options.dir;
    let private = std::fs::Permissions::from_mode(0o700);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, private.clone())?;
    let path = dir.join(SOCKET_NAME);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, private)?;
    if let Some((uid, gid)) = options.owner {
        chown(&path, Some(uid), Some(gid))?;
        chown(dir, Some(uid), Some(gid))?;
    }
    Ok((listener, path))
}

/// Counts of tunnels, and of connections that are held.
type Counts = (watch::Sender<usize>, watch::Sender<usize>);

async fn accept(listener: UnixListener, aim: watch::Receiver<Aim>, counts: Counts) {
    let mut connections = JoinSet::new();
    let rest = Arc::new(Rest::default());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) if connections.len() < limits::RELAY_CONNECTIONS_MAX => {
                    connections.spawn(relay(client, aim.clone(), counts.clone(), Arc::clone(&rest)));
                }
                Ok(_) => tracing::warn!("too many connections on the replication socket"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the replication socket");
                    sleep(limits::ACCEPT_RETRY_DELAY).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection: held until there is a target, then bridged until either side or the aim ends it.
async fn relay(
    mut client: UnixStream,
    mut aim: watch::Receiver<Aim>,
    (live, held): Counts,
    rest: Arc<Rest>,
) {
    let mut early = Vec::new();
    loop {
        let Aim { generation, target } = aim.borrow_and_update().clone();
        let Some(target) = target else {
            let _held = Live::new(&held);
            tokio::select! {
                _ = aim.changed() => continue,
                () = left(&mut client, &mut early) => return,
            }
        };
        if let Some(until) = rest.until(generation) {
            tokio::select! {
                () = sleep_until(until) => {}
                () = changed(&mut aim, generation) => {}
                () = left(&mut client, &mut early) => return,
            }
            continue;
        }
        let counted = Live::new(&live);
        // Biased, and counted before: once `close` has seen no tunnel, none comes to life.
        let opened = tokio::select! {
            biased;
            () = changed(&mut aim, generation) => continue,
            opened = target.open() => opened,
            () = left(&mut client, &mut early) => return,
        };
        match opened {
            Ok(tunnel) => {
                let opened = Instant::now();
                tokio::select! {
                    biased;
                    () = changed(&mut aim, generation) => {}
                    () = bridge(&mut client, &early, tunnel, &*target) => {
                        rest.ended(generation, opened);
                    }
                }
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "cannot open a WAL tunnel yet");
                drop(counted);
                tokio::select! {
                    () = sleep(limits::TUNNEL_RETRY_DELAY) => {}
                    _ = aim.changed() => {}
                    () = left(&mut client, &mut early) => return,
                }
            }
        }
    }
}

/// PostgreSQL tries again within milliseconds, for ever. After a tunnel that did not live long the
/// next one to the same target waits, so that a lasting refusal costs little and logs little.
#[derive(Default)]
struct Rest(Mutex<Option<(u64, Instant)>>);

impl Rest {
    fn ended(&self, generation: u64, opened: Instant) {
        let quick = opened.elapsed() < limits::TUNNEL_QUICK_END;
        let until = Instant::now() + limits::TUNNEL_RETRY_DELAY;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            quick.then_some((generation, until));
    }

    fn until(&self, generation: u64) -> Option<Instant> {
        let rest = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rest.filter(|(of, until)| *of == generation && Instant::now() < *until).map(|(_, at)| at)
    }
}

async fn changed(aim: &mut watch::Receiver<Aim>, generation: u64) {
    // A closed channel means that the socket is gone: that ends tunnels, too.
    let _ = aim.wait_for(|aim| aim.generation != generation).await;
}

/// Resolves when a waiting client has gone away or sends more than it should. What it sends until
/// then is kept. Cancel safe.
async fn left(client: &mut UnixStream, early: &mut Vec<u8>) {
    loop {
        match client.read_buf(early).await {
            Ok(n) if n > 0 && early.len() <= limits::HELD_BYTES_MAX => {}
            _ => return,
        }
    }
}

async fn bridge(client: &mut UnixStream, early: &[u8], mut tunnel: BoxStream, target: &dyn Target) {
    let bridged = async {
        tunnel.write_all(early).await?;
        tunnel.flush().await?;
        let (from_client, to_client) = client.split();
        let (from_tunnel, to_tunnel) = tokio::io::split(tunnel);
        tokio::select! {
            passed = pass(from_client, to_tunnel, limits::FEEDBACK_CHUNK, Some(target)) => passed,
            passed = pass(from_tunnel, to_client, limits::WAL_CHUNK, None) => passed,
        }
    };
    if let Err(error) = bridged.await {
        tracing::debug!(%error, "a WAL tunnel ended");
    }
}

/// Passes everything on until its source ends; a target hears first what it is asked for.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    size: usize,
    target: Option<&dyn Target>,
) -> io::Result<()> {
    let mut chunk = vec![0; size];
    loop {
        let n = from.read(&mut chunk).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        if let Some(target) = target
            && let Some((timeline, from)) = asked_for(&chunk[..n])
        {
            target.asked(timeline, from).await?;
        }
        to.write_all(&chunk[..n]).await?;
        to.flush().await?;
    }
}

/// Timeline and position of a walreceiver's `START_REPLICATION … 0/1800000 TIMELINE n`. It sends one
/// query at a time and waits for its answer, so that a query is a chunk by itself.
fn asked_for(chunk: &[u8]) -> Option<(TimelineId, Lsn)> {
    let query = chunk.strip_prefix(b"Q")?.get(4..)?;
    let query = std::str::from_utf8(query.strip_suffix(b"\0")?).ok()?;
    let (before, timeline) = query.strip_prefix("START_REPLICATION ")?.split_once(" TIMELINE ")?;
    let from = before.split_whitespace().next_back()?.parse().ok()?;
    Some((TimelineId(timeline.trim().parse().ok()?), from))
}

/// Counts a tunnel while it exists.
struct Live<'a>(&'a watch::Sender<usize>);

impl<'a> Live<'a> {
    fn new(live: &'a watch::Sender<usize>) -> Self {
        live.send_modify(|n| *n += 1);
        Self(live)
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_walreceiver_asks_for() {
        let query = |text: &str| [b"Q\0\0\0\0", text.as_bytes(), b"\0"].concat();
        let asked = |text| asked_for(&query(text));
        let from = Lsn(0x180_0000);
        assert_eq!(asked("START_REPLICATION 0/1800000 TIMELINE 3"), Some((TimelineId(3), from)));
        let named = "START_REPLICATION SLOT \"n2\" 0/1800000 TIMELINE 12";
        assert_eq!(asked(named), Some((TimelineId(12), from)));
        for other in ["IDENTIFY_SYSTEM", "TIMELINE_HISTORY 3", "START_REPLICATION 0/1 TIMELINE x"] {
            assert_eq!(asked(other), None);
        }
        assert_eq!(asked_for(b"d START_REPLICATION 0/1 TIMELINE 3\0"), None);
    }
}
