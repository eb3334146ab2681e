//! The answering side: incoming streams, and what each request does here.

use std::io;
use std::sync::Arc;

use openraft::LogIdOptionExt;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::raft::AppendEntriesResponse;
use tokio::io::{AsyncRead, AsyncWrite, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::limits;
use crate::log::{Log, Node};
use crate::machine::Machine;
use crate::members::replaced;
use crate::wire::{self, Ask, AskEnvelope, Frame, No, Reply, ReplyEnvelope, VERSION};

impl<M: Machine> Log<M> {
    /// Handles an incoming consensus stream until it ends. The stream must already be
    /// authenticated as a member's: whoever writes to it can change the log.
    ///
    /// Many requests may be under way on one stream; answers come in any order. Fails when the
    /// stream does, or when the peer does not speak this protocol.
    pub async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> io::Result<()> {
        let (mut reader, writer) = tokio::io::split(stream);
        let (replies, outgoing) = mpsc::channel(limits::SERVE_INFLIGHT_MAX);
        let slots = Arc::new(Semaphore::new(limits::SERVE_INFLIGHT_MAX));
        // Dropped with this future, and with it everything that the stream asked for.
        let mut tasks = JoinSet::new();
        tasks.spawn(write_all(writer, outgoing));
        let mut closing = self.node().closing();
        loop {
            let frame = tokio::select! {
                frame = wire::receive(&mut reader) => frame?,
                _ = closing.wait_for(|closed| *closed) => None,
            };
            let Some(frame) = frame else { return Ok(()) };
            let envelope: AskEnvelope<M> = wire::decode(&frame.json)?;
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
            let (node, replies) = (self.node().clone(), replies.clone());
            tasks.spawn(async move {
                let id = envelope.id;
                let reply = node.answer(envelope, frame.blob).await;
                match wire::encode(&ReplyEnvelope { v: VERSION, id, reply }, Vec::new()) {
                    // A stream that has ended needs no answer.
                    Ok(frame) => drop(replies.send(frame).await),
                    Err(err) => tracing::warn!(error = %err, "could not encode an answer"),
                }
                drop(slot);
            });
            while tasks.try_join_next().is_some() {}
        }
    }
}

async fn write_all<S: AsyncWrite>(mut to: WriteHalf<S>, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if let Err(err) = wire::send(&mut to, &frame).await {
            // The reading side of the stream ends too, and says so.
            tracing::debug!(error = %err, "could not answer a peer");
            return;
        }
    }
}

impl<M: Machine> Node<M> {
    async fn answer(&self, envelope: AskEnvelope<M>, blob: Vec<u8>) -> Reply<M> {
        let AskEnvelope { to, store, ask, .. } = envelope;
        if to != self.me {
            let because = format!("this is {}, not {to}", self.me);
            return Reply::No(No::NotAccepted { because });
        }
        if let Some(joined) = store
            && joined != self.store
        {
            return Reply::No(replaced(self.me, joined, self.store));
        }
        self.perform(ask, blob).await
    }

    /// Does what is asked, if this node can; never asks another.
    pub(crate) async fn perform(&self, ask: Ask<M>, blob: Vec<u8>) -> Reply<M> {
        let or_no = |result: Result<(), No>| result.map_or_else(Reply::No, |()| Reply::Members);
        match ask {
            Ask::Identify => Reply::Identity { node: self.me, store: self.store },
            Ask::Poll { last_log } => Reply::Poll { listens: self.listens(last_log) },
            Ask::Append(request) => {
                let result = self.raft.append_entries(request).await;
                if matches!(&result, Ok(answer) if !matches!(answer, AppendEntriesResponse::HigherVote(_)))
                {
                    self.hear();
                }
                Reply::Append(result)
            }
            Ask::Vote(request) => Reply::Vote(self.raft.vote(request).await),
            Ask::Snapshot(mut request) => {
                request.data = blob;
                let vote = request.vote;
                let result = self.raft.install_snapshot(request).await;
                if matches!(&result, Ok(answer) if answer.vote <= vote) {
                    self.hear();
                }
                Reply::Snapshot(result)
            }
            Ask::Propose { command, within } => {
                self.propose_here(command, Instant::now() + within).await
            }
            Ask::ReadIndex { within } => self.read_index_here(Instant::now() + within).await,
            Ask::Add { node, within } => {
                or_no(Box::pin(self.add_here(node, Instant::now() + within)).await)
            }
            Ask::Remove { node, within } => {
                or_no(Box::pin(self.remove_here(node, Instant::now() + within)).await)
            }
        }
    }

    async fn propose_here(&self, command: M::Command, until: Instant) -> Reply<M> {
        let unknown = |because: &str| Reply::No(No::Unknown { because: because.to_owned() });
        let truncations = self.log.truncations();
        let result = match timeout_at(until, self.raft.client_write(command)).await {
            Ok(result) => result,
            Err(_) => return unknown("no majority confirmed it in time"),
        };
        match result {
            Ok(written) => match written.data {
                Some(answer) => Reply::Proposed(answer),
                None => unknown("the log answered for another entry"),
            },
            // The library says this both before it takes a command and after it had to take one
            // back; only in the first case has no other node seen it.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))
                if self.log.truncations() == truncations =>
            {
                Reply::No(No::NotLeader)
            }
            Err(RaftError::APIError(_)) => unknown("the leader was replaced meanwhile"),
            Err(RaftError::Fatal(fatal)) => unknown(&format!("the leader stopped: {fatal}")),
        }
    }

    async fn read_index_here(&self, until: Instant) -> Reply<M> {
        let because = match timeout_at(until, self.raft.get_read_log_id()).await {
            Ok(Ok((index, _))) => return Reply::ReadIndex(index.index()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_)))) => {
                return Reply::No(No::NotLeader);
            }
            Ok(Err(RaftError::APIError(err))) => err.to_string(),
            Ok(Err(RaftError::Fatal(_))) => return Reply::No(self.stopped()),
            Err(_) => "no majority confirmed the leader in time".to_owned(),
        };
        Reply::No(No::NotAccepted { because })
    }
}
