//! Messages in a byte stream: a tag, a length that counts itself, a body.
//!
//! [`Splitter`] is for relays: bytes pass through in whatever chunks they come, and the splitter
//! says where messages begin and end, keeping only the body bytes that its caller asks to see.
//! [`take`] is for whoever wants whole messages.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, limits};

/// Bytes before a body: tag and length.
pub const HEADER: usize = 5;

/// Finds message boundaries in chunks of a stream. Holds no body beyond what it was asked to see.
#[derive(Debug, Default, Clone)]
pub struct Splitter {
    header: [u8; HEADER],
    header_len: usize,
    phase: Phase,
    body_len: usize,
    body_left: usize,
    see: usize,
    seen: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Header,
    Seeing,
    Passing,
}

/// One step through a chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Bytes of the chunk that this step consumed.
    pub used: usize,
    /// What those bytes completed; `None` when the chunk is used up.
    pub event: Option<Event<'a>>,
}

/// What a step found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The header and the part of the body that was asked for are complete.
    Head(Part<'a>),
    /// The last byte of the message is consumed.
    End(Part<'a>),
}

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// First byte of the message.
    pub tag: u8,
    /// Length of its body in bytes.
    pub len: usize,
    /// The beginning of the body, as much of it as was asked for.
    pub seen: &'a [u8],
}

impl Part<'_> {
    /// Whether the whole body is in `seen`.
    pub fn is_whole(&self) -> bool {
        self.seen.len() == self.len
    }
}

impl Splitter {
    /// A splitter at a message boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Walks on through `input`: call again with the rest until the event is `None`.
    ///
    /// `see` tells how many bytes of the body to keep for a tag; it bounds the memory used.
    pub fn step(&mut self, input: &[u8], see: impl Fn(u8) -> usize) -> Result<Step<'_>, Error> {
        let mut used = 0;
        if self.phase == Phase::Header {
            used = self.fill_header(input);
            if self.header_len < HEADER {
                return Ok(Step { used, event: None });
            }
            self.open_body(&see)?;
        }
        if self.phase == Phase::Seeing {
            let n = (self.see - self.seen.len()).min(input.len() - used);
            self.seen.extend_from_slice(&input[used..used + n]);
            self.body_left -= n;
            used += n;
            if self.seen.len() < self.see {
                return Ok(Step { used, event: None });
            }
            self.phase = Phase::Passing;
            return Ok(Step { used, event: Some(Event::Head(self.part())) });
        }
        let n = self.body_left.min(input.len() - used);
        self.body_left -= n;
        used += n;
        if self.body_left > 0 {
            return Ok(Step { used, event: None });
        }
        self.phase = Phase::Header;
        self.header_len = 0;
        Ok(Step { used, event: Some(Event::End(self.part())) })
    }

    /// Whether the bytes so far end exactly at the end of a message.
    pub fn at_boundary(&self) -> bool {
        self.phase == Phase::Header && self.header_len == 0
    }

    /// Tag of the message that has begun and not ended.
    pub fn begun(&self) -> Option<u8> {
        (!self.at_boundary()).then_some(self.header[0])
    }

    /// Body length of the message that has begun, once its header is complete.
    pub fn begun_len(&self) -> Option<usize> {
        (self.phase != Phase::Header).then_some(self.body_len)
    }

    fn fill_header(&mut self, input: &[u8]) -> usize {
        let n = (HEADER - self.header_len).min(input.len());
        self.header[self.header_len..self.header_len + n].copy_from_slice(&input[..n]);
        self.header_len += n;
        n
    }

    fn open_body(&mut self, see: impl Fn(u8) -> usize) -> Result<(), Error> {
        self.body_len = body_len(&self.header)?;
        self.body_left = self.body_len;
        self.see = see(self.header[0]).min(self.body_len);
        self.seen.clear();
        self.phase = Phase::Seeing;
        Ok(())
    }

    fn part(&self) -> Part<'_> {
        Part { tag: self.header[0], len: self.body_len, seen: &self.seen }
    }
}

/// A whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// First byte.
    pub tag: u8,
    /// Body without the header.
    pub body: Bytes,
}

/// Takes the first whole message from `buf`; `None` until all of it is there.
/// Bodies longer than `max` bytes are an error: the caller bounds its memory.
pub fn take(buf: &mut BytesMut, max: usize) -> Result<Option<Message>, Error> {
    let Some(header) = buf.first_chunk::<HEADER>() else { return Ok(None) };
    let (tag, len) = (header[0], body_len(header)?);
    if len > max {
        return Err(Error::TooLong { what: "a message", length: len, max });
    }
    if buf.len() < HEADER + len {
        return Ok(None);
    }
    buf.advance(HEADER);
    Ok(Some(Message { tag, body: buf.split_to(len).freeze() }))
}

/// Appends a message; `body` writes its body.
pub fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends bytes and the terminating zero. A zero inside would end the field early: it is cut there.
pub fn put_cstr(out: &mut BytesMut, text: &[u8]) {
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    out.put_slice(&text[..end]);
    out.put_u8(0);
}

/// Takes bytes up to a zero off the front of `body`.
pub fn take_cstr<'a>(body: &mut &'a [u8], what: &'static str) -> Result<&'a [u8], Error> {
    let end = body.iter().position(|&b| b == 0).ok_or(Error::Truncated { what })?;
    let text = &body[..end];
    *body = &body[end + 1..];
    Ok(text)
}

/// The length of the body that a header announces.
pub fn body_len(header: &[u8; HEADER]) -> Result<usize, Error> {
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    match (length as usize).checked_sub(4) {
        Some(len) if len <= limits::MESSAGE_MAX => Ok(len),
        _ => Err(Error::Length { tag: header[0], length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Found = (u8, usize, Vec<u8>);

    /// Feeds a stream in the given chunks; returns what began and what ended.
    fn split(stream: &[u8], chunks: &[usize], see: usize) -> (Vec<Found>, Vec<Found>, bool) {
        let mut splitter = Splitter::new();
        let (mut heads, mut ends) = (vec![], vec![]);
        let mut at = 0;
        let mut sizes = chunks.iter().copied().chain(std::iter::repeat(stream.len()));
        while at < stream.len() {
            let size = sizes.next().unwrap_or(1).clamp(1, stream.len() - at);
            let mut chunk = &stream[at..at + size];
            loop {
                let step = splitter.step(chunk, |_| see).unwrap();
                chunk = &chunk[step.used..];
                match step.event {
                    Some(Event::Head(p)) => heads.push((p.tag, p.len, p.seen.to_vec())),
                    Some(Event::End(p)) => ends.push((p.tag, p.len, p.seen.to_vec())),
                    None => break,
                }
            }
            assert!(chunk.is_empty());
            at += size;
        }
        (heads, ends, splitter.at_boundary())
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            messages in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12),
            chunks in prop::collection::vec(1usize..20, 0..200),
            see in 0usize..30,
        ) {
            let mut stream = BytesMut::new();
            for (tag, body) in &messages {
                put(&mut stream, *tag, |out| out.put_slice(body));
            }
            let expected: Vec<Found> = messages
                .iter()
                .map(|(tag, body)| (*tag, body.len(), body[..see.min(body.len())].to_vec()))
                .collect();
            let (heads, ends, boundary) = split(&stream, &chunks, see);
            prop_assert_eq!(&heads, &expected);
            prop_assert_eq!(&ends, &expected);
            prop_assert!(boundary);
            let mut buf = stream.clone();
            for (tag, body) in &messages {
                let m = take(&mut buf, 64).unwrap().unwrap();
                prop_assert_eq!((m.tag, &m.body[..]), (*tag, &body[..]));
            }
            prop_assert_eq!(take(&mut buf, 64).unwrap(), None);
        }

        #[test]
        fn no_bytes_make_it_panic(stream in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut splitter = Splitter::new();
            let mut rest = &stream[..];
            while let Ok(step) = splitter.step(rest, |_| 16) {
                rest = &rest[step.used..];
                if step.event.is_none() { break }
            }
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0u32, 3, 0x4000_0004, u32::MAX] {
            let mut stream = vec![b'Q'];
            stream.extend_from_slice(&length.to_be_bytes());
            let err = Splitter::new().step(&stream, |_| 0).unwrap_err();
            assert_eq!(err, Error::Length { tag: b'Q', length });
            assert!(take(&mut BytesMut::from(&stream[..]), usize::MAX).is_err());
        }
    }

    #[test]
    fn a_message_in_progress_is_known_by_its_tag() {
        let mut splitter = Splitter::new();
        assert_eq!(splitter.begun(), None);
        splitter.step(b"N\0", |_| 0).unwrap();
        assert_eq!((splitter.begun(), splitter.begun_len()), (Some(b'N'), None));
        splitter.step(b"\0\0\x09", |_| 0).unwrap();
        assert_eq!((splitter.begun(), splitter.begun_len()), (Some(b'N'), Some(5)));
    }

    #[test]
    fn a_body_beyond_the_callers_limit_is_refused() {
        let mut buf = BytesMut::new();
        put(&mut buf, b'D', |out| out.put_slice(&[0; 9]));
        assert!(matches!(take(&mut buf, 8), Err(Error::TooLong { length: 9, max: 8, .. })));
    }
}
