//! What a server sends, cut where a relay must stop and think.
//!
//! Everything passes in the chunks it came in, except a notice and a ReadyForQuery that are still
//! incomplete: a notice of a cancelled wait must not reach the client, and something goes before
//! each ReadyForQuery.

use bytes::{Buf, BytesMut};
use quorate_wire::backend::{Fields, NOTICE, READY};
use quorate_wire::frame::Part;
use quorate_wire::limits::NOTICE_MAX;
use quorate_wire::{Error, Event, Splitter};

/// Bytes from a server and what is known about them.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Filled by the reader; consumed by [`Scan::passed`].
    pub(crate) buf: BytesMut,
    splitter: Splitter,
    /// How much of `buf` the splitter has seen.
    seen: usize,
    /// Where in `buf` the message in progress begins.
    start: usize,
}

/// A stretch of bytes that may pass, and why it ends there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Bytes from the front of the buffer.
    pub(crate) len: usize,
    /// What comes next.
    pub(crate) then: Then,
}

/// Why a stretch ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The buffer ends.
    Read,
    /// A notice of this many bytes says that a commit stopped waiting for copies.
    CancelledWait(usize),
    /// ReadyForQuery, of this many bytes.
    Ready(usize),
}

impl Scan {
    /// Walks on to the next place to stop.
    pub(crate) fn advance(&mut self) -> Result<Stretch, Error> {
        loop {
            if self.splitter.at_boundary() {
                self.start = self.seen;
            }
            let step = self.splitter.step(&self.buf[self.seen..], see)?;
            self.seen += step.used;
            let part = match step.event {
                None => break,
                Some(Event::Head(_)) => continue,
                Some(Event::End(part)) => part,
            };
            let then = match part.tag {
                NOTICE if is_cancelled_wait(part) => Then::CancelledWait(self.seen - self.start),
                READY => Then::Ready(self.seen - self.start),
                _ => continue,
            };
            return Ok(Stretch { len: self.start, then });
        }
        let kept = match self.splitter.begun() {
            Some(READY) => true,
            Some(NOTICE) => self.splitter.begun_len().is_none_or(|len| len <= NOTICE_MAX),
            _ => false,
        };
        Ok(Stretch { len: if kept { self.start } else { self.seen }, then: Then::Read })
    }

    /// These bytes are done with.
    pub(crate) fn passed(&mut self, len: usize) {
        self.buf.advance(len);
        self.seen -= len;
        self.start = self.start.saturating_sub(len);
    }
}

fn see(tag: u8) -> usize {
    match tag {
        NOTICE => NOTICE_MAX,
        READY => 2,
        _ => 0,
    }
}

fn is_cancelled_wait(part: Part<'_>) -> bool {
    part.is_whole() && Fields::parse(part.seen).is_ok_and(|f| f.is_cancelled_sync_wait())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use proptest::prelude::*;
    use quorate_wire::frame::put;

    const WAIT: &[u8] = b"VWARNING\0C01000\0Fsyncrep.c\0RSyncRepWaitForLSN\0\0";

    fn message(tag: u8, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put(&mut out, tag, |out| out.put_slice(body));
        out
    }

    /// Feeds in chunks; returns what passed, how often it stopped for a wait, and for a readiness.
    fn run(stream: &[u8], chunks: &[usize]) -> (Vec<u8>, usize, usize) {
        let mut scan = Scan::default();
        let (mut out, mut waits, mut readies) = (vec![], 0, 0);
        let mut rest = stream;
        let mut chunks = chunks.iter().copied().chain(std::iter::repeat(usize::MAX));
        while !rest.is_empty() {
            let n = chunks.next().unwrap().min(rest.len());
            scan.buf.put_slice(&rest[..n]);
            rest = &rest[n..];
            loop {
                let stretch = scan.advance().unwrap();
                out.extend_from_slice(&scan.buf[..stretch.len]);
                scan.passed(stretch.len);
                match stretch.then {
                    Then::Read => break,
                    Then::CancelledWait(len) => {
                        assert_eq!(&scan.buf[5..len], WAIT);
                        waits += 1;
                        scan.passed(len);
                    }
                    Then::Ready(len) => {
                        assert_eq!(scan.buf[0], READY);
                        readies += 1;
                        scan.passed(len);
                    }
                }
            }
        }
        (out, waits, readies)
    }

    proptest! {
        #[test]
        fn it_stops_where_it_must_and_passes_the_rest(
            kinds in prop::collection::vec(0u8..5, 0..20),
            chunks in prop::collection::vec(1usize..40, 0..100),
        ) {
            let (mut stream, mut passing) = (BytesMut::new(), BytesMut::new());
            let (mut waits, mut readies) = (0, 0);
            for kind in kinds {
                let m = match kind {
                    0 => message(b'D', &[7; 60]),
                    1 => message(b'N', b"SNOTICE\0Mhello\0\0"),
                    2 => message(b'Z', b"I"),
                    3 => message(b'N', &[b'x'; NOTICE_MAX + 1]),
                    _ => message(b'N', WAIT),
                };
                stream.put_slice(&m);
                match kind {
                    2 => readies += 1,
                    4 => waits += 1,
                    _ => passing.put_slice(&m),
                }
            }
            prop_assert_eq!(run(&stream, &chunks), (passing.to_vec(), waits, readies));
        }
    }

    #[test]
    fn an_incomplete_notice_waits_and_other_messages_do_not() {
        let mut scan = Scan::default();
        scan.buf.put_slice(&message(b'D', b"row")[..6]);
        assert_eq!(scan.advance().unwrap().len, 6);
        for start in [b"N", b"Z"] {
            let mut scan = Scan::default();
            scan.buf.put_slice(start);
            assert_eq!(scan.advance().unwrap().len, 0);
        }
    }
}
