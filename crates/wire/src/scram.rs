//! The server's side of SCRAM-SHA-256 (RFC 5802, 7677) as PostgreSQL speaks it.
//!
//! ```text
//! AuthenticationSASL          <- Exchange::mechanisms
//! SASLInitialResponse         -> Exchange::first    (a nonce goes in)
//! AuthenticationSASLContinue  <-
//! SASLResponse                -> Challenged::last
//! AuthenticationSASLFinal     <-                    or a Refusal
//! ```
//!
//! Each step consumes the one before it, so that no proof is ever judged twice or out of turn.
//! A login costs two HMACs and a hash here; the rounds of the stored password are the client's.
//! The client's key, which would let us log in elsewhere as the role, is not kept.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::auth::{self, Refusal};
use crate::binding::Binding;
use crate::frame::{put_cstr, take_cstr};
use crate::limits;
use crate::verifier::{Keys, hmac};

mod message;

use message::{ClientFinal, ClientFirst, Flag, malformed};

/// The mechanism without channel binding.
pub const SCRAM: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";

const DOWNGRADE: &str = "The client supports SCRAM channel binding but thinks the server does \
    not.  However, this server does support channel binding.";

/// Bytes of randomness in a server's nonce; PostgreSQL's number.
pub const NONCE: usize = 18;

/// AuthenticationSASL: what a client may choose from, the better one first.
pub fn sasl_mechanisms(channel_binding: bool) -> BytesMut {
    let mut names = BytesMut::new();
    if channel_binding {
        put_cstr(&mut names, SCRAM_PLUS.as_bytes());
    }
    put_cstr(&mut names, SCRAM.as_bytes());
    put_cstr(&mut names, b"");
    auth::message(auth::SASL, &names)
}

/// A login that has not begun.
#[derive(Debug, Clone)]
pub struct Exchange {
    user: String,
    keys: Keys,
    binding: Option<Binding>,
}

/// A login whose client has been given a challenge.
#[derive(Debug, Clone)]
pub struct Challenged {
    user: String,
    keys: Keys,
    bound: bool,
    /// The client's nonce and ours.
    nonce: Vec<u8>,
    /// What the client must repeat of header and binding, in base64.
    repeated: String,
    /// The first two messages, as the proof covers them.
    covered: Vec<u8>,
}

impl Exchange {
    /// A login of the role `user` (for the refusal's text only) with its stored password.
    /// `binding` is that of the certificate the client was shown; without TLS there is none.
    pub fn new(user: impl Into<String>, keys: Keys, binding: Option<Binding>) -> Self {
        Self { user: user.into(), keys, binding }
    }

    /// AuthenticationSASL for this login.
    pub fn mechanisms(&self) -> BytesMut {
        sasl_mechanisms(self.binding.is_some())
    }

    /// Reads the body of SASLInitialResponse; gives AuthenticationSASLContinue. The nonce must
    /// come from a cryptographic source and never be used again.
    pub fn first(
        self,
        body: &[u8],
        nonce: &[u8; NONCE],
    ) -> Result<(Challenged, BytesMut), Refusal> {
        self.challenge(body, &STANDARD.encode(nonce))
    }

    fn challenge(self, body: &[u8], nonce: &str) -> Result<(Challenged, BytesMut), Refusal> {
        let (plus, message) = initial(body, self.binding.is_some())?;
        let first = ClientFirst::parse(message)?;
        self.agree(plus, first.flag)?;
        let mut repeated = first.flag.header().to_vec();
        if let (Flag::Bound, Some(binding)) = (first.flag, &self.binding) {
            repeated.extend_from_slice(binding.as_bytes());
        }
        let nonce = [first.nonce, nonce.as_bytes()].concat();
        let (salt, rounds) = (STANDARD.encode(&self.keys.salt), self.keys.iterations);
        let challenge = [b"r=", &nonce[..], format!(",s={salt},i={rounds}").as_bytes()].concat();
        let challenged = Challenged {
            user: self.user,
            keys: self.keys,
            bound: plus,
            covered: [first.bare, b",", &challenge, b","].concat(),
            nonce,
            repeated: STANDARD.encode(repeated),
        };
        Ok((challenged, auth::message(auth::SASL_CONTINUE, &challenge)))
    }

    /// Whether mechanism and flag go together.
    fn agree(&self, plus: bool, flag: Flag) -> Result<(), Refusal> {
        match (plus, flag) {
            (true, Flag::Bound) | (false, Flag::Unable) => Ok(()),
            (true, Flag::Unable | Flag::ThinksWeCannot) => Err(malformed(
                "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not \
                 include channel binding data.",
            )),
            (false, Flag::Bound) => Err(malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message \
                 includes channel binding data.",
            )),
            // Somebody in between took PLUS off our list.
            (false, Flag::ThinksWeCannot) if self.binding.is_some() => Err(Refusal::new(
                "28000",
                "SCRAM channel binding negotiation error",
                Some(DOWNGRADE.to_owned()),
            )),
            (false, Flag::ThinksWeCannot) => Ok(()),
        }
    }
}

impl Challenged {
    /// Reads the body of SASLResponse; gives AuthenticationSASLFinal when the client has proved
    /// that it knows the password. [`auth::ok`] is the next message then.
    pub fn last(self, body: &[u8]) -> Result<BytesMut, Refusal> {
        bounded(body)?;
        let last = ClientFinal::parse(body)?;
        if last.binding != self.repeated.as_bytes() {
            return Err(self.wrong_binding());
        }
        if last.nonce != self.nonce {
            let detail = Some("Nonce does not match.".to_owned());
            return Err(Refusal::new("08P01", "invalid SCRAM response", detail));
        }
        let covered = [&self.covered[..], last.without_proof];
        let right = is_proof(&self.keys.stored, &covered, last.proof);
        // A decoy goes all the way as well: the time must not tell it.
        let signature = hmac(&self.keys.server, &covered);
        if !bool::from(right & Choice::from(u8::from(!self.keys.decoy))) {
            return Err(self.wrong_password());
        }
        let answer = format!("v={}", STANDARD.encode(signature));
        Ok(auth::message(auth::SASL_FINAL, answer.as_bytes()))
    }

    fn wrong_binding(&self) -> Refusal {
        if self.bound {
            return Refusal::new("28000", "SCRAM channel binding check failed", None);
        }
        let message = "unexpected SCRAM channel-binding attribute in client-final-message";
        Refusal::new("08P01", message, None)
    }

    fn wrong_password(&self) -> Refusal {
        let because = if self.keys.decoy {
            "the role does not exist or has no password that can be used"
        } else {
            "the password is wrong"
        };
        Refusal::password(&self.user, because)
    }
}

/// The mechanism chosen (whether it is PLUS) and the client's first message.
fn initial(mut body: &[u8], offered_plus: bool) -> Result<(bool, &[u8]), Refusal> {
    bounded(body)?;
    let format = || Refusal::new("08P01", "invalid message format", None);
    let mechanism = take_cstr(&mut body, "a SASL mechanism").map_err(|_| format())?;
    let plus = mechanism == SCRAM_PLUS.as_bytes();
    if !(mechanism == SCRAM.as_bytes() || plus && offered_plus) {
        let message = "client selected an invalid SASL authentication mechanism";
        return Err(Refusal::new("08P01", message, None));
    }
    let (length, message) = body.split_first_chunk::<4>().ok_or_else(format)?;
    if u32::from_be_bytes(*length) as usize != message.len() {
        return Err(format());
    }
    Ok((plus, message))
}

fn bounded(body: &[u8]) -> Result<(), Refusal> {
    if body.len() > limits::AUTHENTICATION_MAX {
        return Err(Refusal::new("08P01", "invalid message length", None));
    }
    Ok(())
}

/// Whether the proof is that of a client whose key hashes to the stored one.
fn is_proof(stored: &[u8; 32], covered: &[&[u8]], proof: [u8; 32]) -> Choice {
    let signature = hmac(stored, covered);
    let mut client_key = proof;
    for (byte, mask) in client_key.iter_mut().zip(signature) {
        *byte ^= mask;
    }
    Sha256::digest(client_key)[..].ct_eq(stored)
}

#[cfg(test)]
mod tests;
