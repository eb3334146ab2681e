//! The server's node: what gateways of other nodes want of the server and the gateway here. Every
//! connection to the local server is behind the gate.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_core::Term;
use quorate_wire::CancelKey;
use quorate_wire::frame::put;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::exchange::POSITION;
use crate::fence::Fence;
use crate::opening::{self, Opening};
use crate::scan::{Scan, Then};
use crate::sender;
use crate::stream::Stream;
use crate::world::{Local, World};
use crate::{Error, limits};

/// How a stream of another gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The other gateway closed it.
    Client,
    /// The local server closed it.
    Server,
    /// The gate closed, or the session was cut by name of its term.
    Cut,
    /// It never began: this node does not serve that now, or has no room.
    Refused,
    /// It was a question, and is answered.
    Answered,
    /// It was a cancel request.
    Cancel {
        /// Whether the local server was told.
        forwarded: bool,
    },
}

/// Cancels what a client of this node's gateway waits for, when the key is its own.
pub type CancelClient = Arc<dyn Fn(CancelKey) + Send + Sync>;

/// All connections to the local server that gateways of other nodes have.
pub struct Sessions {
    world: Arc<dyn World>,
    sessions_max: usize,
    cancel_client: CancelClient,
    count: watch::Sender<usize>,
    /// Sessions of this term and of earlier ones are to end.
    cut: watch::Sender<Option<Term>>,
}

impl Sessions {
    /// No sessions yet.
    pub fn new(world: Arc<dyn World>, sessions_max: usize, cancel_client: CancelClient) -> Self {
        let count = watch::Sender::new(0);
        Self { world, sessions_max, cancel_client, count, cut: watch::Sender::new(None) }
    }

    /// The number of sessions.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Ends all sessions of this term and of earlier ones, now and in future.
    pub fn cut_all(&self, term: Term) {
        self.cut.send_modify(|cut| *cut = (*cut).max(Some(term)));
    }

    /// Serves one stream: reads what it is for, and does it.
    pub async fn serve<S: Stream>(&self, mut stream: S) -> Result<Ended, Error> {
        let doing = "waiting for the first frame of a stream of another gateway";
        let read = timeout(limits::STARTUP_WAIT, opening::read(&mut stream));
        let answer = match read.await.map_err(|_| Error::TimedOut { doing })?? {
            Opening::Session { replica, packet } => {
                return self.session(&mut stream, replica, packet).await;
            }
            Opening::Replication { packet } => return self.replication(stream, packet).await,
            Opening::Cancel { key, packet } => {
                let forwarded = match self.world.local() {
                    Some(local) => cancel(&*self.world, &local, key.pid, &packet).await,
                    None => false,
                };
                return Ok(Ended::Cancel { forwarded });
            }
            Opening::ClientCancel { key } => {
                (self.cancel_client)(key);
                return Ok(Ended::Cancel { forwarded: true });
            }
            Opening::Role { name } => match self.world.role_here(name).await {
                Ok(role) => opening::encode_role(role.as_ref()),
                Err(_) => return Ok(Ended::Refused),
            },
            Opening::Fate(transaction) => {
                let fate = self.world.fate_here(transaction).await;
                Bytes::copy_from_slice(&opening::encode_fate(fate))
            }
        };
        send(&mut stream, &answer).await.map_err(Error::io("answering another gateway"))?;
        Ok(Ended::Answered)
    }

    async fn replication<S: Stream>(&self, client: S, packet: Bytes) -> Result<Ended, Error> {
        let Some(local) = self.world.local() else { return Ok(Ended::Refused) };
        let Some(term) = local.gate.term() else { return Ok(Ended::Refused) };
        let mut cut = self.cut.subscribe();
        let cut = async {
            let _ = cut.wait_for(|cut| *cut >= Some(term)).await;
        };
        sender::serve(&*self.world, &local, client, &packet, cut).await
    }

    async fn session<S: Stream>(
        &self,
        client: &mut S,
        replica: bool,
        packet: Bytes,
    ) -> Result<Ended, Error> {
        let Some(local) = self.world.local() else { return Ok(Ended::Refused) };
        let Some(fence) = Fence::before(&local, replica) else { return Ok(Ended::Refused) };
        let Some(_place) = Place::take(&self.count, self.sessions_max) else {
            tracing::warn!(max = self.sessions_max, "too many sessions of other gateways");
            return Ok(Ended::Refused);
        };
        let doing = "starting a session on the local server";
        let mut server = UnixStream::connect(&local.socket).await.map_err(Error::io(doing))?;
        server.write_all(&packet).await.map_err(Error::io(doing))?;
        let mut cut = self.cut.subscribe();
        let over = async {
            tokio::select! {
                () = fence.gate.over(fence.term) => {}
                _ = cut.wait_for(|cut| *cut >= Some(fence.term)) => {}
            }
        };
        let relay = Relay { world: &*self.world, fence: &fence, replica };
        let (mut from_server, mut to_server) = server.into_split();
        let (mut from_client, mut to_client) = tokio::io::split(&mut *client);
        Ok(tokio::select! {
            biased;
            () = over => Ended::Cut,
            ended = relay.responses(&mut from_server, &mut to_client) => ended,
            () = requests(&mut from_client, &mut to_server) => Ended::Client,
        })
    }
}

/// Passes a cancel request on to the local server, unless the backend waits for copies: the cancel
/// would end the wait, not the commit (§7).
pub(crate) async fn cancel(world: &dyn World, local: &Local, pid: i32, packet: &[u8]) -> bool {
    let forward = async {
        if !world.may_cancel(pid).await {
            tracing::info!(pid, "did not cancel a backend that waits for copies");
            return Ok(false);
        }
        let mut server = UnixStream::connect(&local.socket).await?;
        server.write_all(packet).await?;
        // The server closes when it has sent the signal.
        server.read_to_end(&mut Vec::new()).await?;
        std::io::Result::Ok(true)
    };
    match timeout(limits::CANCEL_WAIT, forward).await {
        Ok(Ok(forwarded)) => forwarded,
        Ok(Err(error)) => {
            tracing::warn!(%error, "could not forward a cancel request");
            false
        }
        Err(_) => false,
    }
}

/// Counts a session while it exists.
struct Place<'a>(&'a watch::Sender<usize>);

impl<'a> Place<'a> {
    fn take(count: &'a watch::Sender<usize>, max: usize) -> Option<Self> {
        let room = |n: &mut usize| {
            let room = *n < max;
            *n += usize::from(room);
            room
        };
        // Lazily: a place that was not taken must not be given back.
        count.send_if_modified(room).then(|| Place(count))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

struct Relay<'a> {
    world: &'a dyn World,
    fence: &'a Fence,
    replica: bool,
}

impl Relay<'_> {
    /// Server to gateway.
    async fn responses(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Ended {
        let mut scan = Scan::default();
        let mut out = BytesMut::new();
        loop {
            scan.buf.reserve(limits::CHUNK);
            match from.read_buf(&mut scan.buf).await {
                Ok(n) if n > 0 => {}
                _ => return Ended::Server,
            }
            loop {
                let stretch = match scan.advance() {
                    Ok(stretch) => stretch,
                    Err(error) => {
                        tracing::error!(%error, "the local server does not speak the protocol");
                        return Ended::Server;
                    }
                };
                out.put_slice(&scan.buf[..stretch.len]);
                scan.passed(stretch.len);
                match stretch.then {
                    Then::Read => break,
                    Then::Ready(len) => {
                        if !self.replica {
                            let token = self.world.acknowledged();
                            put(&mut out, POSITION, |out| out.put_slice(&token.encode()));
                        }
                        out.put_slice(&scan.buf[..len]);
                        scan.passed(len);
                    }
                    Then::CancelledWait(len) => {
                        tracing::info!("a commit stopped waiting for copies; its answer waits");
                        if !self.world.settled().await {
                            return Ended::Cut;
                        }
                        scan.passed(len);
                    }
                }
            }
            if out.is_empty() {
                continue;
            }
            // R12: asked after PostgreSQL produced the bytes, before they leave.
            if !self.fence.passed().await {
                return Ended::Cut;
            }
            if send(to, &out).await.is_err() {
                return Ended::Client;
            }
            out.clear();
        }
    }
}

/// Gateway to server; returns when the gateway is gone.
async fn requests(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let mut chunk = BytesMut::with_capacity(limits::CHUNK);
    loop {
        match from.read_buf(&mut chunk).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
        if to.write_all(&chunk).await.is_err() {
            // The server is gone; what it said last is still to be read by the other direction.
            std::future::pending::<()>().await;
        }
        chunk.clear();
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
