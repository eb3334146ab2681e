//! Streaming replication: what travels inside CopyData, and the few commands around it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_core::{Lsn, TimelineId};

use crate::Error;
use crate::backend::COPY_DATA;
use crate::frame::{put, put_cstr};

/// Length of the header of XLogData; WAL bytes follow it.
pub const XLOG_HEADER: usize = 25;
/// Longest body of any other message inside CopyData that is read here.
pub const FEEDBACK_MAX: usize = 40;

/// What a server sends inside CopyData, as far as its first [`XLOG_HEADER`] bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromServer {
    /// WAL follows.
    XLogData {
        /// Position of the first WAL byte in this message.
        start: Lsn,
        /// Flushed end of WAL on the server.
        server_end: Lsn,
    },
    /// A sign of life.
    Keepalive {
        /// End of WAL that was sent.
        end: Lsn,
        /// Whether the server wants an answer at once.
        reply: bool,
    },
    /// Something a relay passes on unread.
    Other,
}

impl FromServer {
    /// Reads the beginning of a CopyData body.
    pub fn parse(mut body: &[u8]) -> Result<Self, Error> {
        let tag = body.try_get_u8().map_err(|_| Error::Truncated { what: "CopyData" })?;
        match (tag, body.len()) {
            (b'w', XLOG_REST..) => {
                let start = Lsn(body.get_u64());
                Ok(FromServer::XLogData { start, server_end: Lsn(body.get_u64()) })
            }
            (b'k', KEEPALIVE_REST) => {
                let end = Lsn(body.get_u64());
                body.advance(8);
                Ok(FromServer::Keepalive { end, reply: body.get_u8() != 0 })
            }
            (b'w' | b'k', _) => Err(Error::Truncated { what: "a message of a WAL sender" }),
            _ => Ok(FromServer::Other),
        }
    }
}

/// Appends a walsender's sign of life that wants an answer at once: `end` is what was sent so far, and
/// `clock` the sender's, in microseconds since 2000-01-01 UTC, for display on the standby only.
pub fn put_ask(out: &mut BytesMut, end: Lsn, clock: i64) {
    put(out, COPY_DATA, |out| {
        out.put_u8(b'k');
        out.put_u64(end.0);
        out.put_i64(clock);
        out.put_u8(1);
    });
}

const XLOG_REST: usize = XLOG_HEADER - 1;
const KEEPALIVE_REST: usize = 17;
const STATUS_REST: usize = 33;

/// How far a standby is. The next byte it needs, each: everything before is written, flushed, applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusUpdate {
    /// Written to the operating system.
    pub write: Lsn,
    /// Flushed to disk.
    pub flush: Lsn,
    /// Replayed.
    pub apply: Lsn,
    /// The standby's clock, microseconds since 2000-01-01 UTC; only for display.
    pub clock: i64,
    /// Whether the standby wants a keepalive at once.
    pub reply: bool,
}

impl StatusUpdate {
    /// Reads a CopyData body; `None` when it is another message (hot standby feedback, say).
    pub fn parse(mut body: &[u8]) -> Result<Option<Self>, Error> {
        if body.first() != Some(&b'r') {
            return Ok(None);
        }
        body.advance(1);
        if body.len() != STATUS_REST {
            return Err(Error::Truncated { what: "a standby status update" });
        }
        Ok(Some(Self {
            write: Lsn(body.get_u64()),
            flush: Lsn(body.get_u64()),
            apply: Lsn(body.get_u64()),
            clock: body.get_i64(),
            reply: body.get_u8() != 0,
        }))
    }

    /// Appends the CopyData message.
    pub fn put(&self, out: &mut BytesMut) {
        put(out, COPY_DATA, |out| {
            out.put_u8(b'r');
            out.put_u64(self.write.0);
            out.put_u64(self.flush.0);
            out.put_u64(self.apply.0);
            out.put_i64(self.clock);
            out.put_u8(u8::from(self.reply));
        });
    }
}

/// Appends a simple query.
pub fn put_query(out: &mut BytesMut, sql: &str) {
    put(out, b'Q', |out| put_cstr(out, sql.as_bytes()));
}

/// The text columns of a DataRow body; `None` is SQL NULL.
pub fn text_columns(body: &Bytes) -> Result<Vec<Option<Bytes>>, Error> {
    let cut = |_| Error::Truncated { what: "DataRow" };
    let mut rest = body.clone();
    let count = rest.try_get_u16().map_err(cut)?;
    // Each has a length word at least: a claim alone is worth no memory.
    let mut columns = Vec::with_capacity(usize::from(count).min(rest.len() / 4));
    for _ in 0..count {
        let len = rest.try_get_i32().map_err(cut)?;
        columns.push(match usize::try_from(len) {
            Err(_) => None,
            Ok(len) if len <= rest.len() => Some(rest.split_to(len)),
            Ok(_) => return Err(Error::Truncated { what: "DataRow" }),
        });
    }
    Ok(columns)
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Unique id of the database cluster, made by initdb.
    pub system_id: u64,
    /// Its current timeline.
    pub timeline: TimelineId,
    /// Its flushed end of WAL.
    pub flushed: Lsn,
}

impl SystemIdentity {
    /// Reads the one DataRow of the answer.
    pub fn parse(row: &Bytes) -> Result<Self, Error> {
        const BAD: Error = Error::Invalid { what: "the answer to IDENTIFY_SYSTEM" };
        let columns = text_columns(row)?;
        let text =
            |i: usize| -> Option<&str> { std::str::from_utf8(columns.get(i)?.as_ref()?).ok() };
        Ok(Self {
            system_id: text(0).and_then(|t| t.parse().ok()).ok_or(BAD)?,
            timeline: TimelineId(text(1).and_then(|t| t.parse().ok()).ok_or(BAD)?),
            flushed: text(2).and_then(|t| t.parse().ok()).ok_or(BAD)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::take;
    use proptest::prelude::*;

    fn row(columns: &[Option<&str>]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u16(columns.len() as u16);
        for column in columns {
            match column {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(text.len() as i32);
                    out.put_slice(text.as_bytes());
                }
            }
        }
        out.freeze()
    }

    #[test]
    fn columns_that_are_only_claimed_are_worth_no_memory() {
        let row = Bytes::from_static(b"\xff\xff\xff\xff\xff\xff");
        assert!(text_columns(&row).is_err());
        let one = Bytes::from_static(b"\0\x01\xff\xff\xff\xff");
        assert!(text_columns(&one).unwrap().capacity() <= 1);
    }

    #[test]
    fn identify_system_is_read() {
        let answer = row(&[Some("7301"), Some("3"), Some("0/3000148"), None]);
        let identity = SystemIdentity::parse(&answer).unwrap();
        assert_eq!(
            identity,
            SystemIdentity { system_id: 7301, timeline: TimelineId(3), flushed: Lsn(0x300_0148) }
        );
        assert!(SystemIdentity::parse(&row(&[None])).is_err());
        assert!(text_columns(&answer.slice(..answer.len() - 5)).is_err());
    }

    #[test]
    fn server_messages_are_read_from_their_beginning() {
        let mut data = BytesMut::from(&b"w"[..]);
        data.put_u64(16);
        data.put_u64(99);
        data.put_i64(0);
        assert_eq!(
            FromServer::parse(&data).unwrap(),
            FromServer::XLogData { start: Lsn(16), server_end: Lsn(99) }
        );
        assert!(FromServer::parse(&data[..24]).is_err());
        let mut alive = BytesMut::from(&b"k"[..]);
        alive.put_u64(99);
        alive.put_i64(0);
        alive.put_u8(1);
        let expected = FromServer::Keepalive { end: Lsn(99), reply: true };
        assert_eq!(FromServer::parse(&alive).unwrap(), expected);
        assert_eq!(FromServer::parse(b"s...").unwrap(), FromServer::Other);
        assert!(FromServer::parse(b"").is_err());
    }

    proptest! {
        #[test]
        fn a_status_update_survives_the_wire(w: u64, f: u64, a: u64, clock: i64, reply: bool) {
            let update =
                StatusUpdate { write: Lsn(w), flush: Lsn(f), apply: Lsn(a), clock, reply };
            let mut out = BytesMut::new();
            update.put(&mut out);
            let body = take(&mut out, FEEDBACK_MAX).unwrap().unwrap().body;
            prop_assert_eq!(StatusUpdate::parse(&body).unwrap(), Some(update));
            prop_assert!(StatusUpdate::parse(&body[..33]).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (FromServer::parse(&body), StatusUpdate::parse(&body));
            let _ = SystemIdentity::parse(&Bytes::from(body));
        }
    }
}
