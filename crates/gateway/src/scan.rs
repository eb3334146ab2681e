//! What a server sends, cut where a relay must stop and think.
//!
//! Everything passes in the chunks it came in, except a notice that is still incomplete: it is kept
//! back, because a notice of a cancelled wait must not reach the client.

use bytes::{Buf, BytesMut};
use quorate_wire::backend::{AUTHENTICATION, COPY_IN, ERROR, Fields, NOTICE, READY, Status};
use quorate_wire::frame::Part;
use quorate_wire::limits::NOTICE_MAX;
use quorate_wire::{Error, Event, Splitter};

use crate::conversation::Said;

/// Bytes from a server and what is known about them.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Filled by the reader; consumed by [`Scan::passed`] and [`Scan::dropped`].
    pub(crate) buf: BytesMut,
    splitter: Splitter,
    /// How much of `buf` the splitter has seen.
    seen: usize,
    /// Where in `buf` the message in progress begins.
    start: usize,
    /// The server asked the client to prove who it is.
    asked: bool,
    last_tag: u8,
}

/// A stretch of bytes that may pass, and why it ends there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Bytes from the front of the buffer.
    pub(crate) len: usize,
    /// Whether it ends at the end of a message.
    pub(crate) whole: bool,
    /// What the server says in it.
    pub(crate) said: Vec<Said>,
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
    /// The server let the client in without asking for any proof.
    Unasked,
}

impl Scan {
    /// Walks on to the next place to stop.
    pub(crate) fn advance(&mut self) -> Result<Stretch, Error> {
        let mut said = Vec::new();
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
            self.last_tag = part.tag;
            let then = match part.tag {
                NOTICE if is_cancelled_wait(part) => Then::CancelledWait(self.seen - self.start),
                AUTHENTICATION if part.seen != [0; 4] => {
                    self.asked = true;
                    continue;
                }
                AUTHENTICATION if !self.asked => Then::Unasked,
                READY => {
                    said.push(Said::Ready(Status::parse(part.seen)?));
                    continue;
                }
                COPY_IN => {
                    said.push(Said::CopyIn);
                    continue;
                }
                _ => continue,
            };
            return Ok(Stretch { len: self.start, whole: true, said, then });
        }
        let notice = self.splitter.begun() == Some(NOTICE)
            && self.splitter.begun_len().is_none_or(|len| len <= NOTICE_MAX);
        let len = if notice { self.start } else { self.seen };
        let whole = notice || self.splitter.at_boundary();
        Ok(Stretch { len, whole, said, then: Then::Read })
    }

    /// The stretch has been passed on.
    pub(crate) fn passed(&mut self, len: usize) {
        self.buf.advance(len);
        self.seen -= len;
        self.start = self.start.saturating_sub(len);
    }

    /// Takes out the message after the stretch that was passed.
    pub(crate) fn dropped(&mut self, len: usize) {
        self.passed(len);
    }

    /// Whether the last message was an error: the server's own last word, when it then closes.
    pub(crate) fn ended_in_error(&self) -> bool {
        self.last_tag == ERROR
    }
}

fn see(tag: u8) -> usize {
    match tag {
        NOTICE => NOTICE_MAX,
        AUTHENTICATION => 4,
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

    /// Feeds in chunks; returns what passed, what was said, how often it stopped for a wait.
    fn run(stream: &[u8], chunks: &[usize]) -> (Vec<u8>, Vec<Said>, usize) {
        let mut scan = Scan { asked: true, ..Scan::default() };
        let (mut out, mut said, mut waits) = (vec![], vec![], 0);
        let mut rest = stream;
        let mut chunks = chunks.iter().copied().chain(std::iter::repeat(usize::MAX));
        while !rest.is_empty() {
            let n = chunks.next().unwrap().min(rest.len());
            scan.buf.put_slice(&rest[..n]);
            rest = &rest[n..];
            loop {
                let stretch = scan.advance().unwrap();
                out.extend_from_slice(&scan.buf[..stretch.len]);
                said.extend(stretch.said);
                scan.passed(stretch.len);
                match stretch.then {
                    Then::Read => break,
                    Then::CancelledWait(len) => {
                        assert_eq!(&scan.buf[5..len], WAIT);
                        waits += 1;
                        scan.dropped(len);
                    }
                    Then::Unasked => panic!(),
                }
            }
        }
        (out, said, waits)
    }

    proptest! {
        #[test]
        fn only_the_notice_of_a_cancelled_wait_is_taken_out(
            kinds in prop::collection::vec(0u8..6, 0..20),
            chunks in prop::collection::vec(1usize..40, 0..100),
        ) {
            let (mut stream, mut passing) = (BytesMut::new(), BytesMut::new());
            let (mut said, mut waits) = (vec![], 0);
            for kind in kinds {
                let m = match kind {
                    0 => message(b'D', &[7; 60]),
                    1 => message(b'N', b"SNOTICE\0Mhello\0\0"),
                    2 => { said.push(Said::Ready(Status::Idle)); message(b'Z', b"I") }
                    3 => { said.push(Said::CopyIn); message(b'G', &[0, 0, 0]) }
                    4 => message(b'N', &[b'x'; NOTICE_MAX + 1]),
                    _ => message(b'N', WAIT),
                };
                stream.put_slice(&m);
                if kind == 5 { waits += 1 } else { passing.put_slice(&m) }
            }
            prop_assert_eq!(run(&stream, &chunks), (passing.to_vec(), said, waits));
        }
    }

    #[test]
    fn an_incomplete_notice_waits_and_other_messages_do_not() {
        let mut scan = Scan { asked: true, ..Scan::default() };
        scan.buf.put_slice(&message(b'D', b"row")[..6]);
        let stretch = scan.advance().unwrap();
        assert_eq!((stretch.len, stretch.whole), (6, false));
        let mut scan = Scan { asked: true, ..Scan::default() };
        scan.buf.put_slice(b"N");
        let stretch = scan.advance().unwrap();
        assert_eq!((stretch.len, stretch.whole), (0, true));
    }

    #[test]
    fn a_login_without_proof_is_seen() {
        let mut scan = Scan::default();
        scan.buf.put_slice(&message(b'R', &[0; 4]));
        assert_eq!(scan.advance().unwrap().then, Then::Unasked);
        let mut scan = Scan::default();
        scan.buf.put_slice(&message(b'R', &[0, 0, 0, 10, b'S']));
        scan.buf.put_slice(&message(b'R', &[0; 4]));
        assert_eq!(scan.advance().unwrap().then, Then::Read);
    }
}
