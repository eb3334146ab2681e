//! The client's two SCRAM messages, read as PostgreSQL reads them: strictly, from bytes, with the
//! user name ignored (the startup packet has named the role).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::auth::Refusal;

/// client-first-message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFirst<'a> {
    pub(super) flag: Flag,
    /// The message without the header: the part that the proof covers.
    pub(super) bare: &'a [u8],
    pub(super) nonce: &'a [u8],
}

/// What the client says of channel binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    /// It cannot (`n`).
    Unable,
    /// It could, and believes that we cannot (`y`).
    ThinksWeCannot,
    /// It uses `tls-server-end-point` (`p`).
    Bound,
}

/// client-final-message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientFinal<'a> {
    /// Header and binding data, in base64.
    pub(super) binding: &'a [u8],
    pub(super) nonce: &'a [u8],
    /// The message up to the proof: the part that the proof covers.
    pub(super) without_proof: &'a [u8],
    pub(super) proof: [u8; 32],
}

impl Flag {
    /// The header that it stands in, with no authorization identity.
    pub(super) fn header(self) -> &'static [u8] {
        match self {
            Flag::Unable => b"n,,",
            Flag::ThinksWeCannot => b"y,,",
            Flag::Bound => b"p=tls-server-end-point,,",
        }
    }
}

impl<'a> ClientFirst<'a> {
    /// Reads a message; refuses what it asks for and we do not have.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Refusal> {
        let (flag, rest) = flag(not_empty(message)?)?;
        let bare = match rest {
            [b',', bare @ ..] => bare,
            [b'a', ..] => {
                let message = "client uses authorization identity, but it is not supported";
                return Err(Refusal::new("0A000", message, None));
            }
            _ => {
                let found = found(rest);
                return Err(malformed(format!(
                    "Unexpected attribute \"{found}\" in client-first-message."
                )));
            }
        };
        if bare.first() == Some(&b'm') {
            let message = "client requires an unsupported SCRAM extension";
            return Err(Refusal::new("0A000", message, None));
        }
        let mut rest = bare;
        attribute(&mut rest, b'n')?;
        let nonce = attribute(&mut rest, b'r')?;
        if nonce.is_empty() || !nonce.iter().all(|b| matches!(b, 0x21..=0x7e)) {
            return Err(Refusal::new("08P01", "non-printable characters in SCRAM nonce", None));
        }
        // Extensions that may be ignored, as RFC 5802 wants it.
        while !rest.is_empty() {
            any_attribute(&mut rest)?;
        }
        Ok(Self { flag, bare, nonce })
    }
}

impl<'a> ClientFinal<'a> {
    /// Reads a message.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Refusal> {
        let mut rest = not_empty(message)?;
        let binding = attribute(&mut rest, b'c')?;
        let nonce = attribute(&mut rest, b'r')?;
        loop {
            let before = rest;
            let (name, value) = any_attribute(&mut rest)?;
            if name != b'p' {
                continue;
            }
            if !rest.is_empty() {
                return Err(malformed("Garbage found at the end of client-final-message."));
            }
            let proof = STANDARD.decode(value).ok().and_then(|proof| proof.try_into().ok());
            let proof = proof.ok_or(malformed("Malformed proof in client-final-message."))?;
            // The comma before the proof is not covered by it.
            let without_proof = &message[..message.len() - before.len() - 1];
            return Ok(Self { binding, nonce, without_proof, proof });
        }
    }
}

/// The protocol is violated; PostgreSQL's words for it.
pub(super) fn malformed(detail: impl Into<String>) -> Refusal {
    Refusal::new("08P01", "malformed SCRAM message", Some(detail.into()))
}

fn not_empty(message: &[u8]) -> Result<&[u8], Refusal> {
    if message.is_empty() {
        return Err(malformed("The message is empty."));
    }
    if message.contains(&0) {
        return Err(malformed("Message length does not match input length."));
    }
    Ok(message)
}

/// The flag, and what stands after the comma that ends it.
fn flag(message: &[u8]) -> Result<(Flag, &[u8]), Refusal> {
    match message {
        [b'n', b',', rest @ ..] => Ok((Flag::Unable, rest)),
        [b'y', b',', rest @ ..] => Ok((Flag::ThinksWeCannot, rest)),
        [b'n' | b'y', rest @ ..] => {
            Err(malformed(format!("Comma expected, but found character \"{}\".", found(rest))))
        }
        [b'p', ..] => {
            let mut rest = message;
            let kind = attribute(&mut rest, b'p')?;
            if kind != b"tls-server-end-point" {
                let kind = kind.escape_ascii();
                let message = format!("unsupported SCRAM channel-binding type \"{kind}\"");
                return Err(Refusal::new("08P01", &message, None));
            }
            Ok((Flag::Bound, rest))
        }
        _ => Err(malformed(format!("Unexpected channel-binding flag \"{}\".", found(message)))),
    }
}

/// Takes the attribute that must come next, with the comma after it.
fn attribute<'a>(rest: &mut &'a [u8], name: u8) -> Result<&'a [u8], Refusal> {
    if rest.first() != Some(&name) {
        let (name, found) = (char::from(name), found(rest));
        return Err(malformed(format!("Expected attribute \"{name}\" but found \"{found}\".")));
    }
    Ok(any_attribute(rest)?.1)
}

/// Takes the next attribute, with the comma after it.
fn any_attribute<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8]), Refusal> {
    let (name, value) = match *rest {
        [name, b'=', value @ ..] if name.is_ascii_alphabetic() => (*name, value),
        [name, ..] if name.is_ascii_alphabetic() => {
            let name = char::from(*name);
            return Err(malformed(format!("Expected character \"=\" for attribute \"{name}\".")));
        }
        _ => {
            let found = found(rest);
            return Err(malformed(format!("Attribute expected, but found \"{found}\".")));
        }
    };
    let end = value.iter().position(|&b| b == b',').unwrap_or(value.len());
    *rest = value.get(end + 1..).unwrap_or(&[]);
    Ok((name, &value[..end]))
}

/// The character found, fit to be printed.
fn found(rest: &[u8]) -> String {
    match rest.first() {
        Some(b) => b.escape_ascii().to_string(),
        None => "end of message".to_owned(),
    }
}
