//! The first frame of a tunnel to the writer's node: what it is for, and the client's own packet.

use bytes::{BufMut, Bytes, BytesMut};
use quorate_wire::{CancelKey, FirstPacket, Startup, limits::STARTUP_MAX, startup};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::Error;

const SESSION: u8 = 1;
const CANCEL: u8 = 2;
const DOING: &str = "reading the first frame of a tunnel";

/// What a tunnel is for.
pub(crate) enum Opening {
    /// A session, with the startup packet as the client sent it.
    Session { startup: Startup, packet: Bytes },
    /// A cancel request.
    Cancel { key: CancelKey, packet: Bytes },
}

/// The frame for a packet: kind, length, the packet verbatim.
pub(crate) fn encode(cancel: bool, packet: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + packet.len());
    out.put_u8(if cancel { CANCEL } else { SESSION });
    out.put_u32(u32::try_from(packet.len()).unwrap_or(u32::MAX));
    out.put_slice(packet);
    out.freeze()
}

/// Reads the frame, and not one byte more.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Opening, Error> {
    let kind = stream.read_u8().await.map_err(Error::io(DOING))?;
    let length = stream.read_u32().await.map_err(Error::io(DOING))? as usize;
    let invalid = |source| Error::Wire { doing: DOING, source };
    if length > STARTUP_MAX {
        let what = "a startup packet";
        return Err(invalid(quorate_wire::Error::TooLong { what, length, max: STARTUP_MAX }));
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await.map_err(Error::io(DOING))?;
    let packet = Bytes::from(packet);
    match (kind, startup::parse(&packet).map_err(invalid)?) {
        (SESSION, Some((FirstPacket::Startup(startup), used))) if used == length => {
            Ok(Opening::Session { startup, packet })
        }
        (CANCEL, Some((FirstPacket::Cancel(key), used))) if used == length => {
            Ok(Opening::Cancel { key, packet })
        }
        _ => Err(invalid(quorate_wire::Error::Invalid { what: "the kind of a tunnel" })),
    }
}
