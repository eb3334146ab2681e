//! Passwords at the door: what a server asks, how a refusal reads, and the old md5 answer.
//!
//! Authentication is ended here with the verifiers that PostgreSQL itself stores
//! ([`Verifier`](crate::verifier::Verifier)), in PostgreSQL's words. Clear-text passwords are never
//! asked for. Salts and nonces come in as arguments: this crate has no randomness.

use bytes::{BufMut, BytesMut};
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use crate::backend::{AUTHENTICATION, Report};
use crate::frame::put;
use crate::limits;
use crate::verifier::Md5Hash;

/// Tag of the client's answers: PasswordMessage, SASLInitialResponse, SASLResponse.
pub const ANSWER: u8 = b'p';

const OK: u32 = 0;
const MD5: u32 = 5;
pub(crate) const SASL: u32 = 10;
pub(crate) const SASL_CONTINUE: u32 = 11;
pub(crate) const SASL_FINAL: u32 = 12;

/// Why somebody is not let in: one story for the client, another for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{because}")]
pub struct Refusal {
    /// What the client is told. Never says whether the role exists.
    pub report: Report,
    /// What the operator is told.
    pub because: String,
}

impl Refusal {
    /// The answer to a wrong password, an unknown role and a role without a password alike.
    pub fn password(user: &str, because: impl Into<String>) -> Self {
        let message = format!("password authentication failed for user \"{user}\"");
        Self { report: Report::fatal("28P01", message), because: because.into() }
    }

    pub(crate) fn new(code: &'static str, message: &str, detail: Option<String>) -> Self {
        let because = match &detail {
            Some(detail) => format!("{message}: {detail}"),
            None => message.to_owned(),
        };
        let detail = detail.map(Into::into);
        Self { report: Report { detail, ..Report::fatal(code, message) }, because }
    }
}

/// AuthenticationOk: the client is in.
pub fn ok() -> BytesMut {
    message(OK, b"")
}

/// AuthenticationMD5Password: asks for the answer that [`md5_check`] judges. The salt must be
/// random: whoever sees it twice can send the old answer again.
pub fn md5_challenge(salt: [u8; 4]) -> BytesMut {
    message(MD5, &salt)
}

/// Judges the body of the PasswordMessage that answers [`md5_challenge`].
pub fn md5_check(user: &str, stored: &Md5Hash, salt: [u8; 4], body: &[u8]) -> Result<(), Refusal> {
    let answer = match body.split_last() {
        Some((0, answer)) if body.len() <= limits::AUTHENTICATION_MAX && !answer.contains(&0) => {
            answer
        }
        _ => return Err(Refusal::new("08P01", "invalid password packet size", None)),
    };
    if answer.is_empty() {
        return Err(Refusal::new("28P01", "empty password returned by client", None));
    }
    let mut hash = Md5::new();
    hash.update(stored.hex());
    hash.update(salt);
    let mut expected = *b"md5................................";
    put_hex(&mut expected[3..], &hash.finalize());
    if bool::from(expected.ct_eq(answer)) {
        Ok(())
    } else {
        Err(Refusal::password(user, "the password does not match the stored md5 password"))
    }
}

/// An authentication request with its kind and what follows it.
pub(crate) fn message(kind: u32, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(crate::frame::HEADER + 4 + body.len());
    put(&mut out, AUTHENTICATION, |out| {
        out.put_u32(kind);
        out.put_slice(body);
    });
    out
}

fn put_hex(out: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::Verifier;
    use postgres_protocol::authentication::md5_hash;
    use proptest::prelude::*;

    /// As PostgreSQL 15 stored it for role `old` with the password `correct horse`.
    const STORED: &str = "md504a6e9cad70986782b90718777cf1414";

    fn stored() -> Md5Hash {
        match Verifier::parse(STORED).unwrap() {
            Verifier::Md5(hash) => hash,
            other => panic!("{other:?}"),
        }
    }

    fn answer(password: &str, salt: [u8; 4]) -> Vec<u8> {
        let mut body = md5_hash(b"old", password.as_bytes(), salt).into_bytes();
        body.push(0);
        body
    }

    #[test]
    fn md5_lets_in_who_knows_the_password() {
        let salt = [1, 2, 3, 250];
        assert_eq!(&md5_challenge(salt)[..], b"R\0\0\0\x0c\0\0\0\x05\x01\x02\x03\xfa");
        assert_eq!(md5_check("old", &stored(), salt, &answer("correct horse", salt)), Ok(()));
        let wrong = md5_check("old", &stored(), salt, &answer("wrong", salt)).unwrap_err();
        assert_eq!(wrong.report.code, "28P01");
        assert_eq!(wrong.report.message, "password authentication failed for user \"old\"");
        assert!(md5_check("old", &stored(), salt, &answer("correct horse", [0; 4])).is_err());
        // What is stored is not an answer by itself.
        assert!(md5_check("old", &stored(), salt, format!("{STORED}\0").as_bytes()).is_err());
    }

    #[test]
    fn crooked_password_messages_are_refused_as_postgresql_does() {
        let code = |body: &[u8]| md5_check("old", &stored(), [0; 4], body).unwrap_err().report.code;
        assert_eq!(code(b""), "08P01");
        assert_eq!(code(b"no zero"), "08P01");
        assert_eq!(code(b"zero\0inside\0"), "08P01");
        assert_eq!(code(&[b'x'; 2000]), "08P01");
        assert_eq!(code(b"\0"), "28P01");
    }

    #[test]
    fn ok_is_eight_bytes_of_body_and_length() {
        assert_eq!(&ok()[..], b"R\0\0\0\x08\0\0\0\0");
    }

    proptest! {
        #[test]
        fn no_bytes_pass_md5(body in prop::collection::vec(any::<u8>(), 0..80), salt: [u8; 4]) {
            prop_assert!(md5_check("old", &stored(), salt, &body).is_err());
        }
    }
}
