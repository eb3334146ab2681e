//! The asking side: one persistent stream per peer, shared by everything that asks it.
//!
//! Each peer has a task of its own that dials, writes and reads, so a peer that hangs delays
//! nobody else. A stream on which an answer is overdue and nothing at all has arrived since is
//! dropped, and the next request dials again.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_core::NodeId;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::limits;
use crate::machine::Machine;
use crate::raft::StoreId;
use crate::wire::{self, Ask, AskEnvelope, Frame, Reply, ReplyEnvelope, Stream, VERSION};

/// What a dial gives.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// How streams to other nodes are made. The stream must already be authenticated as the peer's.
pub trait Dial: Send + Sync + 'static {
    /// Opens a consensus stream to `peer`, whose [`serve`](crate::Log::serve) handles it.
    fn dial(&self, peer: NodeId) -> Dialling;
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The peer has not seen the request, and will not.
    #[error("not sent: {0}")]
    NotSent(io::Error),
    /// The peer may have seen the request.
    #[error("no answer: {0}")]
    NoAnswer(io::Error),
}

/// All peers.
pub(crate) struct Peers<M: Machine> {
    dial: Arc<dyn Dial>,
    links: Mutex<HashMap<NodeId, mpsc::Sender<Job<M>>>>,
}

struct Job<M: Machine> {
    store: Option<StoreId>,
    ask: Ask<M>,
    blob: Vec<u8>,
    /// By when an answer is overdue.
    due: Instant,
    answer: oneshot::Sender<Result<Reply<M>, Lost>>,
}

impl<M: Machine> Peers<M> {
    pub(crate) fn new(dial: Arc<dyn Dial>) -> Self {
        Self { dial, links: Mutex::new(HashMap::new()) }
    }

    /// Asks a peer and waits for the answer, at most `within`.
    pub(crate) async fn ask(
        &self,
        peer: NodeId,
        store: Option<StoreId>,
        ask: Ask<M>,
        blob: Vec<u8>,
        within: Duration,
    ) -> Result<Reply<M>, Lost> {
        let (answer, answered) = oneshot::channel();
        let due = Instant::now() + within;
        let job = Job { store, ask, blob, due, answer };
        if let Err(err) = self.link(peer).try_send(job) {
            let text = match err {
                mpsc::error::TrySendError::Full(_) => "too many requests wait for it",
                mpsc::error::TrySendError::Closed(_) => "its task has ended",
            };
            return Err(Lost::NotSent(io::Error::other(text)));
        }
        match tokio::time::timeout_at(due, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Lost::NoAnswer(io::ErrorKind::ConnectionAborted.into())),
            // The request may still sit in the queue; claiming that it was not sent would be a
            // guess.
            Err(_) => Err(Lost::NoAnswer(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, mpsc::Sender<Job<M>>>> {
        self.links.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn link(&self, peer: NodeId) -> mpsc::Sender<Job<M>> {
        let mut links = self.lock();
        let link = links.entry(peer).or_insert_with(|| spawn(peer, self.dial.clone()));
        if link.is_closed() {
            *link = spawn(peer, self.dial.clone());
        }
        link.clone()
    }
}

fn spawn<M: Machine>(peer: NodeId, dial: Arc<dyn Dial>) -> mpsc::Sender<Job<M>> {
    let (jobs, incoming) = mpsc::channel(limits::PEER_QUEUE_MAX);
    tokio::spawn(Link { peer, dial, jobs: incoming, reachable: true }.run());
    jobs
}

/// The task of one peer.
struct Link<M: Machine> {
    peer: NodeId,
    dial: Arc<dyn Dial>,
    jobs: mpsc::Receiver<Job<M>>,
    /// What the log was last told, so that it is told changes only.
    reachable: bool,
}

impl<M: Machine> Link<M> {
    async fn run(mut self) {
        while let Some(job) = self.jobs.recv().await {
            // The time for the answer also covers the dialling: the asker has left by then.
            if job.answer.is_closed() {
                continue;
            }
            match self.connect().await {
                Ok(stream) => {
                    self.reachable = true;
                    tracing::debug!(peer = %self.peer, "consensus stream opened");
                    let end = Connection::open(self.peer, stream).run(job, &mut self.jobs).await;
                    tracing::debug!(peer = %self.peer, reason = %end, "consensus stream ended");
                }
                Err(err) => {
                    if std::mem::replace(&mut self.reachable, false) {
                        tracing::info!(peer = %self.peer, error = %err, "cannot reach peer");
                    }
                    self.refuse_all(job, &err);
                }
            }
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match timeout(limits::DIAL_WITHIN, self.dial.dial(self.peer)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn refuse_all(&mut self, first: Job<M>, err: &io::Error) {
        let mut next = Some(first);
        while let Some(job) = next {
            let copy = io::Error::new(err.kind(), err.to_string());
            // An asker that has left needs no answer.
            let _ = job.answer.send(Err(Lost::NotSent(copy)));
            next = self.jobs.try_recv().ok();
        }
    }
}

/// One open stream and the requests that wait on it.
struct Connection<M: Machine> {
    peer: NodeId,
    writer: WriteHalf<Box<dyn Stream>>,
    frames: mpsc::Receiver<io::Result<Frame>>,
    waiting: BTreeMap<u64, Waiting<M>>,
    next: u64,
    /// When something last arrived.
    heard: Instant,
}

struct Waiting<M: Machine> {
    sent: Instant,
    due: Instant,
    answer: oneshot::Sender<Result<Reply<M>, Lost>>,
}

impl<M: Machine> Connection<M> {
    fn open(peer: NodeId, stream: Box<dyn Stream>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (sender, frames) = mpsc::channel(limits::SERVE_INFLIGHT_MAX);
        tokio::spawn(read_all(reader, sender));
        Self { peer, writer, frames, waiting: BTreeMap::new(), next: 0, heard: Instant::now() }
    }

    /// Serves requests until the stream ends, and says why it did.
    async fn run(mut self, first: Job<M>, jobs: &mut mpsc::Receiver<Job<M>>) -> io::Error {
        let mut job = Some(first);
        let end = loop {
            if let Some(job) = job.take()
                && let Err(err) = self.send(job).await
            {
                break err;
            }
            let overdue = self.overdue();
            tokio::select! {
                next = jobs.recv() => match next {
                    Some(next) => job = Some(next),
                    None => break io::Error::other("this node is stopping"),
                },
                frame = self.frames.recv() => match frame {
                    Some(Ok(frame)) => {
                        if let Err(err) = self.receive(frame) {
                            break err;
                        }
                    }
                    Some(Err(err)) => break err,
                    None => break io::ErrorKind::UnexpectedEof.into(),
                },
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    break io::ErrorKind::TimedOut.into();
                }
            }
        };
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            let copy = io::Error::new(end.kind(), end.to_string());
            let _ = waiting.answer.send(Err(Lost::NoAnswer(copy)));
        }
        end
    }

    async fn send(&mut self, job: Job<M>) -> io::Result<()> {
        let Job { store, ask, blob, due, answer } = job;
        if answer.is_closed() {
            return Ok(());
        }
        let id = self.next;
        self.next += 1;
        let envelope = AskEnvelope { v: VERSION, id, to: self.peer, store, ask };
        let frame = match wire::encode(&envelope, blob) {
            Ok(frame) if frame.json.len() <= limits::MESSAGE_BYTES_MAX => frame,
            Ok(_) => {
                let _ = answer.send(Err(Lost::NotSent(io::ErrorKind::FileTooLarge.into())));
                return Ok(());
            }
            Err(err) => {
                let _ = answer.send(Err(Lost::NotSent(err)));
                return Ok(());
            }
        };
        self.waiting.insert(id, Waiting { sent: Instant::now(), due, answer });
        match tokio::time::timeout_at(due, wire::send(&mut self.writer, &frame)).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn receive(&mut self, frame: Frame) -> io::Result<()> {
        self.heard = Instant::now();
        let ReplyEnvelope { id, reply, .. } = wire::decode(&frame.json)?;
        if let Some(waiting) = self.waiting.remove(&id) {
            let _ = waiting.answer.send(Ok(reply));
        }
        Ok(())
    }

    /// When to give the stream up: an answer is overdue and nothing has arrived since it was
    /// asked for.
    fn overdue(&mut self) -> Option<Instant> {
        let heard = self.heard;
        self.waiting.retain(|_, waiting| !waiting.answer.is_closed() || waiting.sent >= heard);
        self.waiting.values().filter(|w| w.sent >= heard).map(|w| w.due).min()
    }
}

async fn read_all(mut from: ReadHalf<Box<dyn Stream>>, to: mpsc::Sender<io::Result<Frame>>) {
    loop {
        let frame = tokio::select! {
            frame = wire::receive(&mut from) => frame,
            () = to.closed() => return,
        };
        let frame = match frame.transpose() {
            Some(frame) => frame,
            None => return,
        };
        let failed = frame.is_err();
        if to.send(frame).await.is_err() || failed {
            return;
        }
    }
}
