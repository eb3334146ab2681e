//! The writer's end: sessions of clients on the local server, each behind the gate.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use quorate_core::Term;
use quorate_wire::backend::Report;
use quorate_wire::{CancelKey, Event, Splitter, Startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::conversation::{Conversation, Outcome};
use crate::gate::{Clock, Gate};
use crate::opening::{self, Opening};
use crate::scan::{Scan, Then};
use crate::stream::{BoxFuture, Stream};
use crate::{Error, limits, login};

/// Makes up for a commit that stopped waiting for its copies.
pub trait QuorumWait: Send + Sync {
    /// Samples the writer's end of WAL now, and waits until a commit set holds it: true then,
    /// false when that cannot be known any more (the term is over).
    fn sample_and_wait(&self) -> BoxFuture<'_, bool>;
}

/// Knows the local server's backends.
pub trait Backends: Send + Sync {
    /// Whether a backend may be cancelled. Not while it waits for copies of its commit
    /// (`wait_event` is `SyncRep`): the cancel would end the wait, not the commit. In doubt, false.
    fn may_cancel(&self, pid: i32) -> BoxFuture<'_, bool>;
}

/// What sessions need.
#[derive(Clone)]
pub struct SessionsOptions {
    /// Socket file of the local server.
    pub pg_socket: PathBuf,
    /// Asked before each response leaves.
    pub gate: Arc<Gate>,
    /// `CLOCK_BOOTTIME`.
    pub clock: Clock,
    /// For commits whose wait was cancelled.
    pub quorum: Arc<dyn QuorumWait>,
    /// For cancel requests.
    pub backends: Arc<dyn Backends>,
    /// Most sessions at once.
    pub sessions_max: usize,
    /// Whether clients may enter whom PostgreSQL asks for no password. It sees Quorate at the other
    /// end of its socket, so a `peer` line in pg_hba.conf would let anybody in. For tests only.
    pub unasked: bool,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client left.
    Client,
    /// The local server ended it.
    Server,
    /// The gate closed, or the session was cut by name of its term.
    Cut(Outcome),
    /// It never began; the SQLSTATE that the client got.
    Refused(&'static str),
    /// It was a cancel request.
    Cancel {
        /// Whether the local server was told.
        forwarded: bool,
    },
}

/// All sessions on the local server.
pub struct Sessions {
    options: SessionsOptions,
    count: watch::Sender<usize>,
    /// Sessions of this term and of earlier ones are to end.
    cut: watch::Sender<Option<Term>>,
}

impl Sessions {
    /// No sessions yet.
    pub fn new(options: SessionsOptions) -> Self {
        Self { options, count: watch::Sender::new(0), cut: watch::Sender::new(None) }
    }

    /// The number of sessions.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Ends all sessions of this term and of earlier ones, now and in future.
    pub fn cut_all(&self, term: Term) {
        self.cut.send_modify(|cut| *cut = (*cut).max(Some(term)));
    }

    /// Serves one tunnel: reads what it is for, and does it.
    pub async fn serve<S: Stream>(&self, mut stream: S) -> Result<Ended, Error> {
        let doing = "waiting for the first frame of a tunnel";
        let read = timeout(limits::STARTUP_WAIT, opening::read(&mut stream));
        match read.await.map_err(|_| Error::TimedOut { doing })?? {
            Opening::Cancel { key, packet } => {
                Ok(Ended::Cancel { forwarded: self.cancel(key, packet).await })
            }
            Opening::Session { startup, packet } => {
                match self.session(&mut stream, &startup, packet).await? {
                    Ok(ended) => Ok(ended),
                    Err(report) => {
                        say(&mut stream, &report).await;
                        Ok(Ended::Refused(report.code))
                    }
                }
            }
        }
    }

    async fn session<S: Stream>(
        &self,
        client: &mut S,
        startup: &Startup,
        packet: Bytes,
    ) -> Result<Result<Ended, Report>, Error> {
        if let Some(report) = login::refusal(startup) {
            return Ok(Err(report));
        }
        let Some(term) = self.options.gate.term() else {
            return Ok(Err(unavailable("this node is not the writer now")));
        };
        let Some(_place) = Place::take(&self.count, self.options.sessions_max) else {
            let report = Report::fatal("53300", "too many sessions on the writer")
                .hint("Raise the number of sessions, or keep fewer connections open.");
            return Ok(Err(report));
        };
        let mut server = match UnixStream::connect(&self.options.pg_socket).await {
            Ok(server) => server,
            Err(error) => {
                tracing::warn!(%error, "cannot reach the local server for a session");
                return Ok(Err(unavailable("the writer's PostgreSQL does not answer")));
            }
        };
        let doing = "starting a session on the local server";
        server.write_all(&packet).await.map_err(Error::io(doing))?;
        let relay = Relay::new(&self.options, term);
        let mut cut = self.cut.subscribe();
        let over = async {
            tokio::select! {
                () = self.options.gate.over(term) => {}
                _ = cut.wait_for(|cut| *cut >= Some(term)) => {}
            }
        };
        Ok(relay.run(client, server, over).await)
    }

    async fn cancel(&self, key: CancelKey, packet: Bytes) -> bool {
        let forward = async {
            if !self.options.backends.may_cancel(key.pid).await {
                tracing::info!(pid = key.pid, "did not cancel a backend that waits for copies");
                return Ok(false);
            }
            let mut server = UnixStream::connect(&self.options.pg_socket).await?;
            server.write_all(&packet).await?;
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
}

fn unavailable(because: &str) -> Report {
    Report::fatal("57P03", format!("no writer: {because}")).hint("Try again in a moment.")
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

/// One session: two directions that do not wait for each other.
struct Relay<'a> {
    options: &'a SessionsOptions,
    term: Term,
    talk: Mutex<Conversation>,
    /// Whether the client has whole messages only, so that one of ours may follow.
    whole: AtomicBool,
}

enum End {
    ClientLeft,
    /// The server closed; whether an error was its last word.
    ServerLeft {
        explained: bool,
    },
    Cut,
    Unasked,
}

impl<'a> Relay<'a> {
    fn new(options: &'a SessionsOptions, term: Term) -> Self {
        Self { options, term, talk: Mutex::default(), whole: AtomicBool::new(true) }
    }

    async fn run<S: Stream>(
        &self,
        client: &mut S,
        server: UnixStream,
        over: impl Future<Output = ()>,
    ) -> Result<Ended, Report> {
        let (mut from_server, mut to_server) = server.into_split();
        let end = {
            let (mut from_client, mut to_client) = tokio::io::split(&mut *client);
            tokio::select! {
                biased;
                () = over => End::Cut,
                end = self.responses(&mut from_server, &mut to_client) => end,
                () = self.requests(&mut from_client, &mut to_server) => End::ClientLeft,
            }
        };
        // Before the last word: nothing more of this session may happen on the server's side of us.
        drop((from_server, to_server));
        let because = match end {
            End::Cut => "the writer of this cluster moved",
            _ => "the writer's PostgreSQL closed the connection",
        };
        let (outcome, goodbye, terminated) = {
            let talk = self.talk();
            (talk.outcome(), talk.goodbye(because), talk.terminated())
        };
        let may_speak = self.whole.load(Ordering::Relaxed) && !terminated;
        match end {
            End::Unasked => {
                tracing::error!(
                    "refused a login for which PostgreSQL asked no password: pg_hba.conf must \
                     demand one on the local socket from all roles but quorate's own"
                );
                Err(Report::fatal("28000", "the server would let this role in without a password")
                    .hint("Make pg_hba.conf ask for scram-sha-256 on local connections."))
            }
            // A server that closes because the client said goodbye may be seen first.
            End::ClientLeft => Ok(Ended::Client),
            End::ServerLeft { .. } if terminated => Ok(Ended::Client),
            End::ServerLeft { explained } => {
                if may_speak && !explained {
                    say(client, &goodbye).await;
                }
                Ok(Ended::Server)
            }
            End::Cut => {
                if may_speak {
                    say(client, &goodbye).await;
                }
                Ok(Ended::Cut(outcome))
            }
        }
    }

    /// Server to client.
    async fn responses(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> End {
        let mut scan = Scan::default();
        loop {
            scan.buf.reserve(limits::CHUNK);
            match from.read_buf(&mut scan.buf).await {
                Ok(n) if n > 0 => {}
                _ => return End::ServerLeft { explained: scan.ended_in_error() },
            }
            loop {
                let stretch = match scan.advance() {
                    Ok(stretch) => stretch,
                    Err(error) => {
                        tracing::error!(%error, "the local server does not speak the protocol");
                        return End::ServerLeft { explained: false };
                    }
                };
                if stretch.len > 0 {
                    // R12: asked after PostgreSQL produced the bytes, before they leave.
                    if !self.options.gate.passed(self.term, self.options.clock).await {
                        return End::Cut;
                    }
                    self.whole.store(false, Ordering::Relaxed);
                    if send(to, &scan.buf[..stretch.len]).await.is_err() {
                        return End::ClientLeft;
                    }
                    self.whole.store(stretch.whole, Ordering::Relaxed);
                    scan.passed(stretch.len);
                    let mut talk = self.talk();
                    stretch.said.iter().for_each(|&said| talk.server(said));
                }
                match stretch.then {
                    Then::Read => break,
                    Then::Unasked if self.options.unasked => {}
                    Then::Unasked => return End::Unasked,
                    Then::CancelledWait(len) => {
                        tracing::info!("a commit stopped waiting for copies; its answer waits");
                        if !self.options.quorum.sample_and_wait().await {
                            return End::Cut;
                        }
                        scan.dropped(len);
                    }
                }
            }
        }
    }

    /// Client to server; returns when the client is gone.
    async fn requests(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) {
        let mut splitter = Splitter::new();
        let mut chunk = BytesMut::with_capacity(limits::CHUNK);
        loop {
            match from.read_buf(&mut chunk).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            // Known before it is passed on: what was sent may have happened.
            if let Err(error) = note(&mut splitter, &chunk, &mut self.talk()) {
                tracing::debug!(%error, "a client does not speak the protocol");
                return;
            }
            if to.write_all(&chunk).await.is_err() {
                // The server is gone; what it said last is still to be read by the other direction.
                std::future::pending::<()>().await;
            }
            chunk.clear();
        }
    }

    fn talk(&self) -> MutexGuard<'_, Conversation> {
        // No code that can panic runs under the lock.
        self.talk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(
    splitter: &mut Splitter,
    mut chunk: &[u8],
    talk: &mut Conversation,
) -> Result<(), quorate_wire::Error> {
    loop {
        let step = splitter.step(chunk, Conversation::see)?;
        chunk = &chunk[step.used..];
        match step.event {
            None => return Ok(()),
            Some(Event::Head(part)) => talk.client(part),
            Some(Event::End(_)) => {}
        }
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}

/// Says a last word, as far as the other side listens.
pub(crate) async fn say(to: &mut (impl AsyncWrite + Unpin), report: &Report) {
    let bytes = report.encode();
    let said = async {
        send(to, &bytes).await?;
        to.shutdown().await
    };
    if !matches!(timeout(limits::GOODBYE_WAIT, said).await, Ok(Ok(()))) {
        tracing::debug!(code = report.code, "a client left before the last word");
    }
}
