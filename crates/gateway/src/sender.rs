//! The server's node: a replication connection to the local server, for a client of some gateway.
//!
//! A walsender that decodes hands commits over as soon as they are on its own disk, when no standby
//! may hold them yet. Invariant: what a connection to a database says leaves only after a commit set
//! holds everything that the server had written when it said so, whatever plugin wrote it. What
//! follows physically needs the log before that: it is one of the copies that commits wait for.
//!
//! PostgreSQL lets a commit go when a standby called `quorate` has it: no other may answer to that
//! name (R4).
//!
//! A connection to a database takes SQL, too, and the floor under `synchronous_commit` holds there as
//! in any session ([`commands`], [`login`]).

use bytes::{BufMut, Bytes, BytesMut};
use quorate_core::Lsn;
use quorate_wire::backend::{
    AUTHENTICATION, COPY_BOTH, COPY_DATA, COPY_IN, ERROR, KEY_DATA, NOTICE, READY, Report, Status,
};
use quorate_wire::frame::{self, HEADER, put};
use quorate_wire::replication::{FromServer, XLOG_HEADER};
use quorate_wire::{CancelKey, Event, FirstPacket, Splitter, startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use commands::{Answer, Commands, Judge, Question};

use crate::fence::Fence;
use crate::sessions::Ended;
use crate::stream::Stream;
use crate::world::{Local, World};
use crate::{Error, limits};

mod commands;
mod login;

/// What a client of a connection to a database may not call itself.
pub(crate) const OURS: &str = "quorate";

/// Tag of CopyOutResponse.
const COPY_OUT: u8 = b'H';
/// Tag of CopyDone.
const COPY_DONE: u8 = b'c';

/// Serves a replication connection until either side ends it, or the writer is another one.
pub(crate) async fn serve(
    world: &dyn World,
    local: &Local,
    mut client: impl Stream,
    packet: &Bytes,
    cut: impl Future<Output = ()>,
) -> Result<Ended, Error> {
    const DOING: &str = "starting a replication connection to the local server";
    let Some(fence) = Fence::before(local, false) else { return Ok(Ended::Refused) };
    let Ok(_place) = local.senders.try_acquire() else {
        let report = Report::fatal("53300", "too many replication connections to the writer")
            .hint("Each node takes 8 of them. End one that is not needed.");
        client.write_all(&report.encode()).await.map_err(Error::io(DOING))?;
        client.flush().await.map_err(Error::io(DOING))?;
        return Ok(Ended::Refused);
    };
    let over = async {
        tokio::select! {
            () = fence.gate.over(fence.term) => {}
            () = cut => {}
        }
    };
    tokio::pin!(over);
    let decodes = is_to_database(packet);
    let floor = decodes.then(|| world.view().wanted.synchronous_commit_floor);
    let opened = timeout(limits::OPEN_WAIT, login::open(&local.socket, packet, floor));
    let (server, early) = tokio::select! {
        biased;
        () = over.as_mut() => return Ok(Ended::Cut),
        opened = opened => {
            let opened = opened.map_err(|_| Error::TimedOut { doing: DOING })?;
            opened.map_err(Error::io(DOING))?
        }
    };
    let (from_server, to_server) = server.into_split();
    let (from_client, to_client) = tokio::io::split(client);
    let steps = watch::Sender::new(Steps::default());
    let (asks, questions) = mpsc::channel(1);
    let (answers, answered) = mpsc::channel(1);
    let judge = decodes.then_some(Judge { world, asks, answered });
    let mut up = Commands { to: to_server, steps: steps.subscribe(), judge };
    let mut down = Down {
        world,
        fence: &fence,
        to: to_client,
        steps,
        decodes,
        splitter: Splitter::new(),
        headed: false,
        unsaid: BytesMut::new(),
        copying: Copying::No,
        pid: 0,
        told: Lsn(0),
        questions,
        question: None,
        ours: BytesMut::new(),
        answer: Answer::default(),
        answers,
    };
    Ok(tokio::select! {
        biased;
        ended = down.run(early, from_server, over) => ended,
        () = up.run(from_client) => Ended::Client,
    })
}

/// Whether a connection is to a database, and not for the log as it is.
fn is_to_database(packet: &[u8]) -> bool {
    let Ok(Some((FirstPacket::Startup(startup), _))) = startup::parse(packet) else { return true };
    // Whatever is not surely physical is held back.
    !matches!(startup.get("replication"), Some(b"true"))
}

/// Waits while a contract wants consumers to wait, and no longer than the log may pile up for it.
async fn consumers_turn(world: &dyn World) {
    let mut changes = world.changes();
    let late = async {
        while world.view().consumers_wait {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = timeout(limits::CONSUMERS_WAIT_MAX, late).await;
}

/// How far the server is, for those who pass requests on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Steps {
    /// How often it was ready for the next command.
    ready: u64,
    /// How often it has begun to take copy data, from a client that may send some.
    opened: u64,
    /// Of its transaction, when it was ready last.
    status: Option<Status>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copying {
    No,
    /// Rows to the client.
    Out,
    /// The log.
    Both,
}

/// Server to client.
struct Down<'a, W> {
    world: &'a dyn World,
    fence: &'a Fence,
    to: W,
    steps: watch::Sender<Steps>,
    decodes: bool,
    splitter: Splitter,
    /// Of the message under way it is known what it says, and it has begun to leave.
    headed: bool,
    /// The beginning of a message of which that is not known yet.
    unsaid: BytesMut,
    copying: Copying,
    /// Of the walsender.
    pid: i32,
    /// What the server itself said last of how far the client is.
    told: Lsn,
    questions: mpsc::Receiver<Question>,
    /// One of ours that the server has not answered yet, and what it has said to it.
    question: Option<Question>,
    ours: BytesMut,
    answer: Answer,
    answers: mpsc::Sender<Answer>,
}

/// What a chunk of the server's is about.
#[derive(Debug, Default)]
struct Found {
    /// It says something of which nothing has passed yet, and that the log may have.
    says: bool,
    steps: Steps,
    /// The log begins.
    streams: bool,
    told: Option<Lsn>,
    copying: Option<Copying>,
}

impl<W: AsyncWrite + Unpin> Down<'_, W> {
    async fn run(
        &mut self,
        early: BytesMut,
        mut from: impl AsyncRead + Unpin,
        mut over: impl Future<Output = ()> + Unpin,
    ) -> Ended {
        let mut chunk = early;
        loop {
            let passed = tokio::select! {
                biased;
                () = &mut over => None,
                passed = self.take(&chunk) => Some(passed),
            };
            match passed {
                None => return self.moved().await,
                Some(Err(ended)) => return ended,
                Some(Ok(())) => chunk.clear(),
            }
            chunk.reserve(limits::CHUNK);
            let read = tokio::select! {
                biased;
                () = &mut over => return self.moved().await,
                read = from.read_buf(&mut chunk) => read,
            };
            if !read.is_ok_and(|n| n > 0) {
                return Ended::Server;
            }
        }
    }

    /// Passes bytes on, but for the answer to a question of ours. A question is known here before
    /// the server has it, which is ready for it then: what begins from here on is the answer, or
    /// said by the way.
    async fn take(&mut self, chunk: &[u8]) -> Result<(), Ended> {
        if self.question.is_none() {
            self.question = self.questions.try_recv().ok();
        }
        if self.question.is_none() {
            return self.pass(chunk).await;
        }
        let (under_way, begins) = chunk.split_at(self.boundary(chunk)?);
        self.pass(under_way).await?;
        self.ours.put_slice(begins);
        while let Some(message) = frame::take(&mut self.ours, limits::GREETING_MAX).map_err(wire)? {
            match message.tag {
                b'S' | b'A' | NOTICE => {
                    let mut by_the_way = BytesMut::new();
                    put(&mut by_the_way, message.tag, |out| out.put_slice(&message.body));
                    self.pass(&by_the_way).await?;
                }
                READY => {
                    let answer = std::mem::take(&mut self.answer);
                    match self.question.take() {
                        Some(Question::Refuses(report)) => {
                            let mut refusal = report.encode();
                            put(&mut refusal, READY, |out| out.put_slice(&message.body));
                            self.pass(&refusal).await?;
                        }
                        Some(Question::Asks) | None => drop(self.answers.send(answer).await),
                    }
                    let later = std::mem::take(&mut self.ours);
                    return self.pass(&later).await;
                }
                _ => self.answer.note(&message),
            }
        }
        Ok(())
    }

    /// Where the message ends that is under way.
    fn boundary(&self, chunk: &[u8]) -> Result<usize, Ended> {
        let mut ahead = self.splitter.clone();
        let mut at = 0;
        while !ahead.at_boundary() {
            let step = ahead.step(&chunk[at..], see).map_err(wire)?;
            at += step.used;
            if step.event.is_none() {
                break;
            }
        }
        Ok(at)
    }

    /// Passes bytes on when they may leave.
    async fn pass(&mut self, chunk: &[u8]) -> Result<(), Ended> {
        let inside = self.headed;
        let (tail, open, found) = self.look(chunk)?;
        let (chunk, unsaid) = chunk.split_at(open);
        // The rest of what has begun to leave.
        let (tail, rest) = chunk.split_at(if inside { tail } else { 0 });
        self.send(tail).await?;
        if self.decodes && found.says {
            self.hold().await?;
        }
        if found.streams && !self.world.may_stream(self.pid).await {
            let report = Report::fatal("42501", "this name is the cluster's own standby's")
                .hint("Choose another application_name.");
            let _ = self.say(&report).await;
            return Err(Ended::Refused);
        }
        if !rest.is_empty() {
            let begun = std::mem::take(&mut self.unsaid);
            self.send(&begun).await?;
            self.send(rest).await?;
        }
        self.unsaid.put_slice(unsaid);
        self.told = found.told.unwrap_or(self.told);
        self.copying = found.copying.unwrap_or(self.copying);
        self.steps.send_if_modified(|steps| {
            steps.ready += found.steps.ready;
            steps.opened += found.steps.opened;
            steps.status = found.steps.status.or(steps.status);
            found.steps != Steps::default()
        });
        Ok(())
    }

    /// Finds out what a chunk says; and where the message ends that was under way, and where one
    /// begins of which it is not known yet what it says.
    fn look(&mut self, chunk: &[u8]) -> Result<(usize, usize, Found), Ended> {
        let mut found = Found::default();
        let mut tail = None;
        let (mut at, mut begins) = (0, 0);
        let mut copying = self.copying;
        loop {
            let step = self.splitter.step(&chunk[at..], see).map_err(wire)?;
            at += step.used;
            let part = match step.event {
                None => break,
                Some(Event::Head(part)) => {
                    let rows = copying == Copying::Out && part.tag == COPY_DATA;
                    found.says |= !rows && !is_greeting(part.tag);
                    self.headed = true;
                    continue;
                }
                Some(Event::End(part)) => part,
            };
            tail = tail.or(Some(at));
            begins = at;
            self.headed = false;
            match part.tag {
                KEY_DATA => self.pid = CancelKey::parse(part.seen).map_err(wire)?.pid,
                READY => {
                    found.steps.ready += 1;
                    found.steps.status = Some(Status::parse(part.seen).map_err(wire)?);
                    copying = Copying::No;
                }
                COPY_BOTH => {
                    found.streams = true;
                    found.steps.opened += 1;
                    copying = Copying::Both;
                }
                COPY_IN => found.steps.opened += 1,
                COPY_OUT => copying = Copying::Out,
                COPY_DONE | ERROR => copying = Copying::No,
                COPY_DATA if copying == Copying::Both => {
                    if let Ok(FromServer::Keepalive { end, .. }) = FromServer::parse(part.seen) {
                        found.told = Some(end);
                    }
                }
                _ => {}
            }
        }
        found.copying = Some(copying);
        let open = if self.headed { at } else { begins };
        Ok((tail.unwrap_or(at), open, found))
    }

    /// Waits until a commit set holds everything that the server can have spoken of, and for replicas
    /// that are late and whose contracts want consumers to wait for them. Its client is kept from
    /// falling silent meanwhile, or the server would give it up.
    async fn hold(&mut self) -> Result<(), Ended> {
        let (world, streams) = (self.world, self.copying == Copying::Both);
        let ready = async move {
            let settled = world.settled().await;
            if streams {
                consumers_turn(world).await;
            }
            settled
        };
        let mut ready = std::pin::pin!(ready);
        loop {
            tokio::select! {
                biased;
                settled = &mut ready => return if settled { Ok(()) } else { Err(Ended::Cut) },
                () = sleep(limits::SIGN_OF_LIFE) => {}
            }
            if self.copying == Copying::Both {
                let sign = keepalive(self.told);
                self.send(&sign).await?;
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        if bytes.is_empty() {
            return Ok(());
        }
        // R12: asked after PostgreSQL produced the bytes, before they leave.
        if !self.fence.passed().await {
            return Err(Ended::Cut);
        }
        self.to.write_all(bytes).await.map_err(|_| Ended::Client)?;
        self.to.flush().await.map_err(|_| Ended::Client)
    }

    async fn say(&mut self, report: &Report) -> std::io::Result<()> {
        self.to.write_all(&report.encode()).await?;
        self.to.flush().await
    }

    /// The writer is another one: the client's node says so.
    async fn moved(&mut self) -> Ended {
        let _ = timeout(limits::GOODBYE_WAIT, self.to.shutdown()).await;
        Ended::Cut
    }
}

fn wire(error: quorate_wire::Error) -> Ended {
    tracing::error!(%error, "the local server does not speak the protocol");
    Ended::Server
}

/// Messages by which a server lets somebody in: of them the log has nothing.
fn is_greeting(tag: u8) -> bool {
    matches!(tag, AUTHENTICATION | KEY_DATA | b'S')
}

fn see(tag: u8) -> usize {
    match tag {
        COPY_DATA => XLOG_HEADER,
        KEY_DATA => quorate_wire::limits::CANCEL_KEY_MAX + 4,
        READY => 1,
        _ => 0,
    }
}

/// A sign of life that wants an answer and says nothing new.
fn keepalive(told: Lsn) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER + 18);
    put(&mut out, COPY_DATA, |out| {
        out.put_u8(b'k');
        out.put_u64(told.0);
        out.put_i64(0);
        out.put_u8(1);
    });
    out
}
