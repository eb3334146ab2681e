//! The first bytes that a server says on every stream: a status, then a reason and its length.
//!
//! In TLS 1.3 a client believes the handshake to be over before the server has looked at its
//! certificate; the greeting is how `dial` learns, in words, what the server thought of it.

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::limits;

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;
const HEADER: usize = 3;

/// The longest greeting, in bytes.
pub(crate) const BYTES_MAX: usize = HEADER + limits::REFUSAL_BYTES_MAX;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    Accepted,
    Refused(String),
}

impl Greeting {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (status, reason) = match self {
            Greeting::Accepted => (ACCEPTED, ""),
            Greeting::Refused(reason) => (REFUSED, reason.as_str()),
        };
        let reason = cut(reason, limits::REFUSAL_BYTES_MAX);
        let mut bytes = vec![status];
        bytes.extend_from_slice(&(reason.len() as u16).to_be_bytes());
        bytes.extend_from_slice(reason.as_bytes());
        bytes
    }

    /// The greeting at the start of `bytes` and its length, or nothing yet.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Greeting, usize)> {
        let (&[status, hi, lo], rest) = bytes.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_be_bytes([hi, lo])).min(limits::REFUSAL_BYTES_MAX);
        let reason = rest.get(..length)?;
        let greeting = match status {
            ACCEPTED => Greeting::Accepted,
            _ => Greeting::Refused(printable(reason)),
        };
        Some((greeting, HEADER + length))
    }

    pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Greeting> {
        let mut bytes = [0; BYTES_MAX];
        let mut have = 0;
        loop {
            // Byte by byte to the length: what follows an acceptance belongs to the stream's user.
            let want = match bytes[..have].split_first_chunk::<HEADER>() {
                None => HEADER,
                Some((&[_, hi, lo], _)) => HEADER + usize::from(u16::from_be_bytes([hi, lo])),
            };
            let want = want.min(BYTES_MAX);
            if have == want
                && let Some((greeting, _)) = Greeting::decode(&bytes[..have])
            {
                return Ok(greeting);
            }
            stream.read_exact(&mut bytes[have..want]).await?;
            have = want;
        }
    }
}

/// The longest beginning of at most `max` bytes that does not split a character.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// A stranger's words made safe for logs and terminals.
fn printable(reason: &[u8]) -> String {
    let text = String::from_utf8_lossy(reason);
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn greetings_read_back_and_leave_the_rest() {
        for greeting in [Greeting::Accepted, Greeting::Refused("n3 is not welcome".into())] {
            let mut bytes = greeting.encode();
            let length = bytes.len();
            for cut in 0..length {
                assert_eq!(Greeting::decode(&bytes[..cut]), None);
            }
            bytes.extend_from_slice(b"rest");
            let (read, used) = Greeting::decode(&bytes).unwrap();
            assert_eq!((&read, used), (&greeting, length));
            let mut stream = &bytes[..];
            assert_eq!(Greeting::read(&mut stream).await.unwrap(), greeting);
            assert_eq!(stream, b"rest");
        }
    }

    #[tokio::test]
    async fn reasons_are_bounded_and_printable() {
        let long = Greeting::Refused("ä".repeat(limits::REFUSAL_BYTES_MAX)).encode();
        assert!(long.len() <= BYTES_MAX && Greeting::decode(&long).is_some());
        let (greeting, _) = Greeting::decode(b"\x01\x00\x03a\x1b\n").unwrap();
        assert_eq!(greeting, Greeting::Refused("a  ".into()));
        let mut lying = vec![REFUSED, 0xff, 0xff];
        lying.resize(BYTES_MAX, b'x');
        assert!(matches!(Greeting::read(&mut &lying[..]).await.unwrap(), Greeting::Refused(_)));
    }
}
