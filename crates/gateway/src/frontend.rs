//! The client's end, on every node: TLS, the first packet, the wait for a writer, bytes to and fro.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use quorate_wire::backend::Report;
use quorate_wire::{FirstPacket, startup};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::opening;
use crate::sessions::say;
use crate::stream::{BoxFuture, BoxStream};
use crate::{Error, limits};

/// Why there is no writer now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoWriter {
    /// One sentence for the client.
    pub because: String,
}

/// The way to the writer's [`crate::Sessions::serve`].
pub trait Route: Send + Sync {
    /// Opens a stream to the writer's node.
    fn writer(&self) -> BoxFuture<'_, Result<BoxStream, NoWriter>>;

    /// Resolves when [`Route::writer`] may answer differently from a moment ago.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(sleep(limits::ROUTE_POLL))
    }
}

/// What is done about encryption.
#[derive(Debug, Clone)]
pub enum Tls {
    /// None.
    Off,
    /// For clients that ask for it.
    Offered(Arc<ServerConfig>),
    /// Clients that do not ask for it are refused.
    Required(Arc<ServerConfig>),
}

/// How the front door behaves.
#[derive(Debug, Clone)]
pub struct FrontendOptions {
    /// Encryption.
    pub tls: Tls,
    /// How long a login waits for a writer.
    pub login_hold: Duration,
    /// How many logins wait for a writer.
    pub logins_held_max: usize,
    /// How many clients may be connected.
    pub clients_max: usize,
}

impl Default for FrontendOptions {
    fn default() -> Self {
        Self {
            tls: Tls::Off,
            login_hold: limits::LOGIN_HOLD,
            logins_held_max: limits::LOGINS_HELD_MAX,
            clients_max: limits::CLIENTS_MAX,
        }
    }
}

/// The front door of a node.
pub struct Frontend {
    options: FrontendOptions,
    route: Arc<dyn Route>,
    /// Fair: whoever waits longest goes first.
    turn: Mutex<()>,
    held: AtomicUsize,
}

impl Frontend {
    /// A front door to whatever the route leads to.
    pub fn new(options: FrontendOptions, route: Arc<dyn Route>) -> Arc<Self> {
        Arc::new(Self { options, route, turn: Mutex::new(()), held: AtomicUsize::new(0) })
    }

    /// Accepts clients until dropped; dropping it drops every client.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        let full = clients.len() >= self.options.clients_max;
                        clients.spawn(Arc::clone(&self).client(client, full));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept clients");
                        sleep(limits::ACCEPT_RETRY_DELAY).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }

    /// Logins that wait for a writer.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    async fn client(self: Arc<Self>, tcp: TcpStream, full: bool) {
        if let Err(error) = self.serve(tcp, full).await {
            tracing::debug!(%error, "a client's connection ended");
        }
    }

    async fn serve(&self, tcp: TcpStream, full: bool) -> Result<(), Error> {
        tcp.set_nodelay(true).map_err(Error::io("setting up a client's socket"))?;
        if full {
            let mut tcp = tcp;
            say(&mut tcp, &Report::fatal("53300", "too many clients on this node")).await;
            return Ok(());
        }
        let doing = "waiting for a client's startup packet";
        let greeting = timeout(limits::STARTUP_WAIT, self.greet(tcp));
        let Some(hello) = greeting.await.map_err(|_| Error::TimedOut { doing })?? else {
            return Ok(());
        };
        let Hello { mut client, cancel, packet, mut rest } = hello;
        if cancel {
            return self.cancel(&packet).await;
        }
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = left(&mut client, &mut rest) => return Ok(()),
        };
        match opened {
            Ok(server) => relay(client, server, &packet, &rest).await,
            Err(report) => {
                say(&mut client, &report).await;
                Ok(())
            }
        }
    }

    /// Reads first packets until one says what the client wants. `None` when it left or was refused.
    async fn greet(&self, tcp: TcpStream) -> Result<Option<Hello>, Error> {
        const DOING: &str = "greeting a client";
        let mut encrypted = false;
        let mut client: BoxStream = Box::new(tcp);
        let mut buf = BytesMut::new();
        loop {
            let Some((first, used)) = startup::parse(&buf).map_err(Error::wire(DOING))? else {
                if client.read_buf(&mut buf).await.map_err(Error::io(DOING))? == 0 {
                    return Ok(None);
                }
                continue;
            };
            match (first, &self.options.tls) {
                (FirstPacket::Ssl, Tls::Offered(config) | Tls::Required(config)) if !encrypted => {
                    // Bytes that came before the handshake may be from anybody.
                    if buf.len() > used {
                        return Ok(None);
                    }
                    buf.clear();
                    client.write_all(b"S").await.map_err(Error::io(DOING))?;
                    client.flush().await.map_err(Error::io(DOING))?;
                    let acceptor = TlsAcceptor::from(Arc::clone(config));
                    client = Box::new(acceptor.accept(client).await.map_err(Error::io(DOING))?);
                    encrypted = true;
                }
                (FirstPacket::Ssl | FirstPacket::GssEnc, _) => {
                    buf.advance(used);
                    client.write_all(b"N").await.map_err(Error::io(DOING))?;
                    client.flush().await.map_err(Error::io(DOING))?;
                }
                (FirstPacket::Startup(_), Tls::Required(_)) if !encrypted => {
                    let report =
                        Report::fatal("28000", "this server wants an encrypted connection")
                            .hint("Connect with sslmode=require or stricter.");
                    say(&mut client, &report).await;
                    return Ok(None);
                }
                (first, _) => {
                    let cancel = matches!(first, FirstPacket::Cancel(_));
                    let packet = buf.split_to(used);
                    return Ok(Some(Hello { client, cancel, packet, rest: buf }));
                }
            }
        }
    }

    /// A cancel request is not held: by the time a writer appears there is nothing to cancel.
    async fn cancel(&self, packet: &[u8]) -> Result<(), Error> {
        let doing = "passing on a cancel request";
        let Ok(mut server) = self.route.writer().await else { return Ok(()) };
        let passed = async {
            server.write_all(&opening::encode(true, packet)).await?;
            server.flush().await?;
            server.read_to_end(&mut Vec::new()).await
        };
        let passed = timeout(limits::CANCEL_WAIT, passed);
        passed.await.map_err(|_| Error::TimedOut { doing })?.map_err(Error::io(doing))?;
        Ok(())
    }

    /// Opens a stream to the writer, waiting for one in order of arrival.
    async fn open(&self) -> Result<BoxStream, Report> {
        let mut because = String::new();
        // Nobody waits: no queue to respect.
        if self.held() == 0 {
            match self.route.writer().await {
                Ok(stream) => return Ok(stream),
                Err(no_writer) => because = no_writer.because,
            }
        }
        let Some(_place) = Held::take(&self.held, self.options.logins_held_max) else {
            return Err(Report::fatal("53300", "too many logins wait for a writer")
                .hint("Try again in a moment."));
        };
        let wait = async {
            let _turn = self.turn.lock().await;
            loop {
                let changed = self.route.changed();
                match self.route.writer().await {
                    Ok(stream) => return stream,
                    Err(no_writer) => because = no_writer.because,
                }
                changed.await;
            }
        };
        let waited = timeout(self.options.login_hold, wait).await;
        waited.map_err(|_| {
            let report = Report::fatal("57P03", "the cluster has no writer now");
            let report = if because.is_empty() { report } else { report.detail(because) };
            report.hint("Try again in a moment; quorate status tells why.")
        })
    }
}

/// A client that said what it wants.
struct Hello {
    client: BoxStream,
    cancel: bool,
    packet: BytesMut,
    /// Bytes after the packet.
    rest: BytesMut,
}

struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn take(held: &'a AtomicUsize, max: usize) -> Option<Self> {
        let room = |n: usize| (n < max).then_some(n + 1);
        let taken = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room);
        taken.ok().map(|_| Held(held))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Resolves when a waiting client has gone or sends more than belongs to a login. Cancel safe.
async fn left(client: &mut BoxStream, rest: &mut BytesMut) {
    loop {
        match client.read_buf(rest).await {
            Ok(n) if n > 0 && rest.len() <= limits::CHUNK => {}
            _ => return,
        }
    }
}

/// Passes bytes until either side closes; what the closing side sent last still arrives.
async fn relay(
    client: BoxStream,
    mut server: BoxStream,
    packet: &[u8],
    rest: &[u8],
) -> Result<(), Error> {
    let opening = async {
        server.write_all(&opening::encode(false, packet)).await?;
        server.write_all(rest).await?;
        server.flush().await
    };
    opening.await.map_err(Error::io("opening a session on the writer"))?;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    tokio::select! {
        copied = copy(&mut from_server, &mut to_client) => {
            copied.map_err(Error::io("passing responses to a client"))?;
        }
        copied = copy(&mut from_client, &mut to_server) => {
            return copied.map_err(Error::io("passing requests of a client"));
        }
    }
    linger(&mut from_client, &mut to_client).await;
    Ok(())
}

/// Closes so that the last word arrives: with unread requests in its buffer, the kernel would reset
/// the connection and the client might never see what was said.
async fn linger(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let drain = async {
        to.shutdown().await?;
        tokio::io::copy(from, &mut tokio::io::sink()).await
    };
    if !matches!(timeout(limits::GOODBYE_WAIT, drain).await, Ok(Ok(_))) {
        tracing::debug!("a client did not close its side");
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut chunk = BytesMut::with_capacity(limits::CHUNK);
    while from.read_buf(&mut chunk).await? > 0 {
        to.write_all(&chunk).await?;
        to.flush().await?;
        chunk.clear();
    }
    Ok(())
}
