//! What two nodes say to each other: frames on a stream, and the messages in them.
//!
//! ```text
//! +-----------+-----------+------ - - ------+------ - - ------+
//! | u32 json  | u32 blob  | envelope (JSON) | snapshot bytes  |   lengths big-endian
//! +-----------+-----------+------ - - ------+------ - - ------+
//! ```
//!
//! The caller numbers its requests; answers come in any order. The side that dialled asks, the
//! other answers; two nodes that both lead in turn use two streams.

use std::io;
use std::time::Duration;

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use quorate_core::NodeId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits;
use crate::machine::Machine;
use crate::raft::{LogId, Name, StoreId, Types};

/// The version of everything in this file. A stream with another one is closed.
pub(crate) const VERSION: u32 = 1;

/// A byte stream to a peer.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// One frame as it travels.
pub(crate) struct Frame {
    pub(crate) json: Vec<u8>,
    pub(crate) blob: Vec<u8>,
}

/// A request with what the receiver needs to know it is meant.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct AskEnvelope<M: Machine> {
    pub(crate) v: u32,
    pub(crate) id: u64,
    pub(crate) to: NodeId,
    /// The store that the receiver joined with; `None` while that is being asked.
    pub(crate) store: Option<StoreId>,
    pub(crate) ask: Ask<M>,
}

/// An answer.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(crate) struct ReplyEnvelope<M: Machine> {
    pub(crate) v: u32,
    pub(crate) id: u64,
    pub(crate) reply: Reply<M>,
}

/// What a node can ask of another.
#[derive(Clone, Serialize, Deserialize)]
#[serde(bound = "", rename_all = "snake_case")]
pub(crate) enum Ask<M: Machine> {
    /// Who are you, and with which store?
    Identify,
    /// Would you listen to a candidate whose log ends there?
    Poll {
        last_log: Option<LogId<Name>>,
    },
    Append(AppendEntriesRequest<Types<M>>),
    Vote(VoteRequest<Name>),
    /// A chunk of a snapshot; its bytes are the frame's blob.
    Snapshot(InstallSnapshotRequest<Types<M>>),
    /// For the leader: put this into the log.
    Propose {
        command: M::Command,
        within: Duration,
    },
    /// For the leader: which index must a read that starts now have seen?
    ReadIndex {
        within: Duration,
    },
    /// For the leader: make this node a voter.
    Add {
        node: NodeId,
        within: Duration,
    },
    /// For the leader: make this node no member.
    Remove {
        node: NodeId,
        within: Duration,
    },
}

impl<M: Machine> Ask<M> {
    /// Whether asking twice does what asking once does.
    pub(crate) fn repeatable(&self) -> bool {
        !matches!(self, Ask::Propose { .. })
    }

    /// Whether an answer that got lost leaves the cluster possibly changed.
    pub(crate) fn changes(&self) -> bool {
        matches!(self, Ask::Propose { .. } | Ask::Add { .. } | Ask::Remove { .. })
    }
}

/// The answer to an [`Ask`].
#[derive(Serialize, Deserialize)]
#[serde(bound = "", rename_all = "snake_case")]
pub(crate) enum Reply<M: Machine> {
    Identity { node: NodeId, store: StoreId },
    Poll { listens: bool },
    Append(Result<AppendEntriesResponse<Name>, RaftError<Name>>),
    Vote(Result<VoteResponse<Name>, RaftError<Name>>),
    Snapshot(Result<InstallSnapshotResponse<Name>, RaftError<Name, InstallSnapshotError>>),
    Proposed(M::Answer),
    ReadIndex(Option<u64>),
    Members,
    No(No),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum No {
    /// Certainly nothing happened: this node does not lead.
    NotLeader,
    /// Certainly nothing happened, for another reason that may pass.
    NotAccepted { because: String },
    /// It may have happened.
    Unknown { because: String },
    /// The node's store is not the one it joined with.
    Replaced { node: NodeId, because: String },
    /// The node to be added has not caught up.
    Behind { node: NodeId, because: String },
    /// The node to be removed is the last voter.
    LastVoter { node: NodeId },
    /// This node's consensus has stopped.
    Stopped { because: String },
}

/// Encodes a message.
pub(crate) fn encode(message: &impl Serialize, blob: Vec<u8>) -> io::Result<Frame> {
    Ok(Frame { json: serde_json::to_vec(message)?, blob })
}

/// Decodes a message after checking that its version is ours.
pub(crate) fn decode<T: DeserializeOwned>(json: &[u8]) -> io::Result<T> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let Versioned { v } = serde_json::from_slice(json)?;
    if v != VERSION {
        let text = format!("the peer speaks version {v} of the consensus protocol, not {VERSION}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    Ok(serde_json::from_slice(json)?)
}

/// Writes one frame and flushes it.
pub(crate) async fn send(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let Frame { json, blob } = frame;
    if json.len() > limits::MESSAGE_BYTES_MAX || blob.len() > limits::BLOB_BYTES_MAX {
        return Err(too_large(json.len(), blob.len()));
    }
    // One write for the common small frame.
    let mut bytes = Vec::with_capacity(8 + json.len() + blob.len());
    bytes.extend_from_slice(&(json.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&(blob.len() as u32).to_be_bytes());
    bytes.extend_from_slice(json);
    bytes.extend_from_slice(blob);
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Reads one frame; `None` at the end of the stream. Not cancel-safe.
pub(crate) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let json = match from.read_u32().await {
        Ok(length) => length as usize,
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(err),
    };
    let blob = from.read_u32().await? as usize;
    if json > limits::MESSAGE_BYTES_MAX || blob > limits::BLOB_BYTES_MAX {
        return Err(too_large(json, blob));
    }
    Ok(Some(Frame { json: read_bytes(from, json).await?, blob: read_bytes(from, blob).await? }))
}

/// Reads as much as is announced, growing with what arrives rather than with what is claimed.
async fn read_bytes(from: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

fn too_large(json: usize, blob: usize) -> io::Error {
    let text = format!("a consensus message of {json} and {blob} bytes is over the limit");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_arrive_as_sent_and_the_end_is_seen() {
        let (mut a, mut b) = tokio::io::duplex(64);
        let sender = tokio::spawn(async move {
            let frame = Frame { json: vec![b'x'; 1000], blob: vec![7; 300] };
            send(&mut a, &frame).await.unwrap();
        });
        let frame = receive(&mut b).await.unwrap().unwrap();
        assert_eq!((frame.json.len(), frame.blob), (1000, vec![7; 300]));
        sender.await.unwrap();
        assert!(receive(&mut b).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_frame_over_the_limit_is_refused_before_it_is_read() {
        let mut claim = Vec::new();
        claim.extend_from_slice(&u32::MAX.to_be_bytes());
        claim.extend_from_slice(&0u32.to_be_bytes());
        let err = receive(&mut claim.as_slice()).await.err().unwrap();
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_frame_cut_short_is_an_error() {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&10u32.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
        bytes.extend_from_slice(b"short");
        let err = receive(&mut bytes.as_slice()).await.err().unwrap();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let err =
            decode::<ReplyEnvelope<quorate_core::State>>(br#"{"v":2,"new":1}"#).err().unwrap();
        assert!(err.to_string().contains("version 2"), "{err}");
    }
}
