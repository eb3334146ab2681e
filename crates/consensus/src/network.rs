//! The Raft library's network over [`Peers`].

use std::sync::Arc;
use std::time::Duration;

use openraft::AnyError;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use quorate_core::NodeId;

use crate::limits;
use crate::machine::Machine;
use crate::peers::Peers;
use crate::raft::{Member, Name, StoreId, Types};
use crate::wire::{Ask, No, Reply};

/// Makes a [`Client`] for each task of the library that talks to a peer.
pub(crate) struct Network<M: Machine> {
    pub(crate) peers: Arc<Peers<M>>,
    /// How long a stream may be silent while an answer is due.
    pub(crate) patience: Duration,
}

/// One task's view of a peer.
pub(crate) struct Client<M: Machine> {
    peers: Arc<Peers<M>>,
    peer: NodeId,
    store: StoreId,
    patience: Duration,
}

type Failed<E> = RPCError<Name, Member, RaftError<Name, E>>;
type Never = openraft::error::Infallible;

impl<M: Machine> RaftNetworkFactory<Types<M>> for Network<M> {
    type Network = Client<M>;

    async fn new_client(&mut self, peer: Name, member: &Member) -> Client<M> {
        let (peers, patience) = (self.peers.clone(), self.patience);
        Client { peers, peer: peer.0, store: member.store, patience }
    }
}

impl<M: Machine> Client<M> {
    async fn ask<E: std::error::Error>(
        &self,
        ask: Ask<M>,
        blob: Vec<u8>,
        within: Duration,
    ) -> Result<Reply<M>, Failed<E>> {
        match self.peers.ask(self.peer, Some(self.store), ask, blob, within).await {
            Ok(Reply::No(no)) => {
                if let No::Replaced { because, .. } = &no {
                    tracing::warn!(peer = %self.peer, %because, "peer has lost its store");
                }
                Err(unreachable(format!("{} refused: {no:?}", self.peer)))
            }
            Ok(reply) => Ok(reply),
            // "Unreachable" makes the library pause before the next attempt; the other classes
            // make it try at once, which a peer that hangs up each time would turn into a spin.
            Err(lost) => Err(unreachable(lost.to_string())),
        }
    }

    #[allow(clippy::result_large_err)] // the library's type
    fn answered<T, E: std::error::Error>(
        &self,
        result: Option<Result<T, RaftError<Name, E>>>,
    ) -> Result<T, Failed<E>> {
        match result {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(err)) => Err(RPCError::RemoteError(RemoteError::new(Name(self.peer), err))),
            None => Err(unreachable(format!("{} answered another question", self.peer))),
        }
    }
}

fn unreachable<E: std::error::Error>(text: String) -> Failed<E> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(text)))
}

impl<M: Machine> RaftNetwork<Types<M>> for Client<M> {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<M>>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<Name>, Failed<Never>> {
        // Longer than the library waits: it gives up on one answer, but the stream stays.
        let reply = self.ask(Ask::Append(request), Vec::new(), self.patience).await?;
        self.answered(match reply {
            Reply::Append(result) => Some(result),
            _ => None,
        })
    }

    async fn install_snapshot(
        &mut self,
        mut request: InstallSnapshotRequest<Types<M>>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<Name>, Failed<InstallSnapshotError>> {
        let blob = std::mem::take(&mut request.data);
        let ask = Ask::Snapshot(request);
        let reply = self.ask(ask, blob, limits::SNAPSHOT_CHUNK_WITHIN).await?;
        self.answered(match reply {
            Reply::Snapshot(result) => Some(result),
            _ => None,
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Name>,
        _: RPCOption,
    ) -> Result<VoteResponse<Name>, Failed<Never>> {
        let reply = self.ask(Ask::Vote(request), Vec::new(), self.patience).await?;
        self.answered(match reply {
            Reply::Vote(result) => Some(result),
            _ => None,
        })
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(limits::DIAL_PAUSE))
    }
}
