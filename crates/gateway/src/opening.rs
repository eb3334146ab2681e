//! The first frame of a stream to another node's [`crate::Sessions`]: what it is for. A kind, a
//! length, and as many bytes.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_core::Term;
use quorate_wire::limits::STARTUP_MAX;
use quorate_wire::{CancelKey, FirstPacket, Startup, startup};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::Error;
use crate::world::{Fate, Role, Transaction};

const WRITER: u8 = 1;
const CANCEL: u8 = 2;
const REPLICA: u8 = 3;
const CLIENT_CANCEL: u8 = 4;
const ROLE: u8 = 5;
const FATE: u8 = 6;
const REPLICATION: u8 = 7;
const DOING: &str = "reading the first frame of a stream of another gateway";

/// What a stream is for.
pub(crate) enum Opening {
    /// A server connection for clients that logged in at the other node.
    Session { replica: bool, packet: Bytes },
    /// A replication connection to the writer here.
    Replication { packet: Bytes },
    /// Cancels what a backend of this node does.
    Cancel { key: CancelKey, packet: Bytes },
    /// Cancels what a client of this node's gateway waits for.
    ClientCancel { key: CancelKey },
    /// Asks what PostgreSQL knows of a role.
    Role { name: String },
    /// Asks what became of a transaction.
    Fate(Transaction),
}

fn frame(kind: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + body.len());
    out.put_u8(kind);
    out.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(body);
    out.freeze()
}

/// The frame for a server connection. The startup packet itself follows it, as on any connection.
pub(crate) fn session(replica: bool) -> Bytes {
    frame(if replica { REPLICA } else { WRITER }, b"")
}

/// The frame for a replication connection. The startup packet follows it.
pub(crate) fn replication() -> Bytes {
    frame(REPLICATION, b"")
}

/// The frame for a cancel request to a backend.
pub(crate) fn cancel(key: &CancelKey) -> Bytes {
    frame(CANCEL, &FirstPacket::Cancel(key.clone()).encode())
}

/// The frame for a cancel request of a client of some other gateway.
pub(crate) fn client_cancel(key: &CancelKey) -> Bytes {
    frame(CLIENT_CANCEL, &FirstPacket::Cancel(key.clone()).encode())
}

/// The frame of a question for a role.
pub(crate) fn role(name: &str) -> Bytes {
    frame(ROLE, name.as_bytes())
}

/// The frame of a question for a transaction's fate.
pub(crate) fn fate(transaction: Transaction) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u64(transaction.xid);
    body.put_u64(transaction.term.0);
    body.put_i32(transaction.pid);
    frame(FATE, &body)
}

/// Reads the frame, and not one byte more.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Opening, Error> {
    let kind = stream.read_u8().await.map_err(Error::io(DOING))?;
    let body = body(stream).await?;
    let invalid = |source| Error::Wire { doing: DOING, source };
    let unknown = || invalid(quorate_wire::Error::Invalid { what: "the purpose of a stream" });
    match kind {
        WRITER | REPLICA => {
            let packet = packet(stream).await?;
            Ok(Opening::Session { replica: kind == REPLICA, packet })
        }
        REPLICATION => Ok(Opening::Replication { packet: packet(stream).await? }),
        CANCEL | CLIENT_CANCEL => match startup::parse(&body).map_err(invalid)? {
            Some((FirstPacket::Cancel(key), _)) if kind == CANCEL => {
                Ok(Opening::Cancel { key, packet: body })
            }
            Some((FirstPacket::Cancel(key), _)) => Ok(Opening::ClientCancel { key }),
            _ => Err(unknown()),
        },
        ROLE => Ok(Opening::Role { name: String::from_utf8_lossy(&body).into_owned() }),
        FATE => {
            let word = |at: usize| {
                let bytes = body.get(at..at + 8)?;
                Some(u64::from_be_bytes(bytes.try_into().ok()?))
            };
            let pid = body.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_be_bytes);
            match (word(0), word(8), pid) {
                (Some(xid), Some(term), Some(pid)) => {
                    Ok(Opening::Fate(Transaction { xid, term: Term(term), pid }))
                }
                _ => Err(unknown()),
            }
        }
        _ => Err(unknown()),
    }
}

async fn body(stream: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, Error> {
    let length = stream.read_u32().await.map_err(Error::io(DOING))? as usize;
    if length > STARTUP_MAX {
        let what = "the first frame of a stream";
        let source = quorate_wire::Error::TooLong { what, length, max: STARTUP_MAX };
        return Err(Error::Wire { doing: DOING, source });
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(Error::io(DOING))?;
    Ok(Bytes::from(body))
}

/// A startup packet, checked.
pub(crate) async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, Error> {
    let length = stream.read_u32().await.map_err(Error::io(DOING))?;
    let invalid = |source| Error::Wire { doing: DOING, source };
    if !(8..=STARTUP_MAX as u32).contains(&length) {
        return Err(invalid(quorate_wire::Error::Length { tag: 0, length }));
    }
    let mut packet = BytesMut::zeroed(length as usize);
    packet[..4].copy_from_slice(&length.to_be_bytes());
    stream.read_exact(&mut packet[4..]).await.map_err(Error::io(DOING))?;
    match startup::parse(&packet).map_err(invalid)? {
        Some((FirstPacket::Startup(Startup { .. }), _)) => Ok(packet.freeze()),
        _ => Err(invalid(quorate_wire::Error::Invalid { what: "a startup packet" })),
    }
}

/// The answer to a question for a role.
pub(crate) fn encode_role(role: Option<&Role>) -> Bytes {
    let mut body = BytesMut::new();
    if let Some(role) = role {
        body.put_u8(1);
        body.put_u8(u8::from(role.may_log_in));
        body.put_u8(u8::from(role.expired));
        body.put_u8(u8::from(role.superuser));
        body.put_u8(u8::from(role.password.is_some()));
        body.put_slice(role.password.as_deref().unwrap_or_default().as_bytes());
    }
    frame(ROLE, &body)
}

/// Reads the answer to a question for a role.
pub(crate) async fn read_role(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Role>, Error> {
    stream.read_u8().await.map_err(Error::io(DOING))?;
    let body = body(stream).await?;
    let [_, may_log_in, expired, superuser, has_password, password @ ..] = &body[..] else {
        return Ok(None);
    };
    let password = String::from_utf8_lossy(password).into_owned();
    Ok(Some(Role {
        password: (*has_password == 1).then_some(password),
        may_log_in: *may_log_in == 1,
        expired: *expired == 1,
        superuser: *superuser == 1,
    }))
}

/// The answer to a question for a transaction's fate.
pub(crate) fn encode_fate(fate: Option<Fate>) -> [u8; 1] {
    [match fate {
        None => 0,
        Some(Fate::Committed) => 1,
        Some(Fate::Aborted) => 2,
        Some(Fate::Unknown) => 3,
    }]
}

/// Reads the answer to a question for a transaction's fate.
pub(crate) async fn read_fate(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Fate>, Error> {
    Ok(match stream.read_u8().await.map_err(Error::io(DOING))? {
        0 => None,
        1 => Some(Fate::Committed),
        2 => Some(Fate::Aborted),
        _ => Some(Fate::Unknown),
    })
}
