//! Join tokens: what a new node must know to trust the cluster, and to be trusted once.
//!
//! `qt1-` and 84 characters of Crockford's base 32 (no i, l, o, u): the fingerprint of the
//! cluster's authority, a one-time secret, and a checksum that catches a mistyped character.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::names::hex;
use crate::{Error, trust};

const PREFIX: &str = "qt1-";
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const FINGERPRINT: usize = 32;
const SECRET: usize = 16;
const CHECKSUM: usize = 4;
const BYTES: usize = FINGERPRINT + SECRET + CHECKSUM;
const CHARS: usize = (BYTES * 8).div_ceil(5);

/// A join token. `Display` shows the secret (it is how the token is handed over); `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the cluster authority's certificate: whom the new node may trust.
    pub fingerprint: [u8; FINGERPRINT],
    /// One-time secret: why the cluster trusts the new node.
    pub secret: [u8; SECRET],
}

impl Token {
    /// A new token with a random secret.
    pub fn generate(fingerprint: [u8; FINGERPRINT]) -> Result<Self, Error> {
        let mut secret = [0; SECRET];
        trust::random(&mut secret)?;
        Ok(Self { fingerprint, secret })
    }

    /// SHA-256 of the secret in hexadecimal: what the cluster stores, since it tells nothing.
    pub fn secret_hash(&self) -> String {
        hex(&Sha256::digest(self.secret))
    }

    fn checksum(&self) -> [u8; CHECKSUM] {
        let mut hash = Sha256::new();
        hash.update(PREFIX);
        hash.update(self.fingerprint);
        hash.update(self.secret);
        let mut sum = [0; CHECKSUM];
        sum.copy_from_slice(&hash.finalize()[..CHECKSUM]);
        sum
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; BYTES];
        bytes[..FINGERPRINT].copy_from_slice(&self.fingerprint);
        bytes[FINGERPRINT..FINGERPRINT + SECRET].copy_from_slice(&self.secret);
        bytes[FINGERPRINT + SECRET..].copy_from_slice(&self.checksum());
        write!(f, "{PREFIX}{}", encode(&bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}…)", hex(&self.fingerprint[..4]))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        let text = s.trim().to_ascii_lowercase();
        let body = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| Error::BadToken(format!("it does not begin with {PREFIX}")))?;
        let bytes = decode(body)?;
        let mut token = Token { fingerprint: [0; FINGERPRINT], secret: [0; SECRET] };
        token.fingerprint.copy_from_slice(&bytes[..FINGERPRINT]);
        token.secret.copy_from_slice(&bytes[FINGERPRINT..FINGERPRINT + SECRET]);
        if token.checksum() != bytes[FINGERPRINT + SECRET..] {
            return Err(Error::BadToken("a character in it is wrong".into()));
        }
        Ok(token)
    }
}

fn encode(bytes: &[u8]) -> String {
    let (mut acc, mut bits, mut out) = (0u32, 0, String::with_capacity(CHARS));
    for &b in bytes {
        acc = acc << 8 | u32::from(b);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(ALPHABET[(acc >> bits & 31) as usize] as char);
        }
    }
    if bits > 0 {
        out.push(ALPHABET[(acc << (5 - bits) & 31) as usize] as char);
    }
    out
}

fn decode(text: &str) -> Result<[u8; BYTES], Error> {
    let count = text.chars().count();
    if count != CHARS {
        return Err(Error::BadToken(format!(
            "it has {count} characters after {PREFIX} instead of {CHARS}"
        )));
    }
    let (mut acc, mut bits, mut at, mut out) = (0u32, 0, 0, [0; BYTES]);
    for c in text.chars() {
        // Letters that are read as digits are taken as the digits they resemble.
        let c = match c {
            'o' => '0',
            'i' | 'l' => '1',
            c => c,
        };
        let value = ALPHABET
            .iter()
            .position(|&a| a as char == c)
            .ok_or_else(|| Error::BadToken("it has a character that tokens do not use".into()))?;
        acc = acc << 5 | value as u32;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out[at] = (acc >> bits) as u8;
            at += 1;
        }
    }
    if acc & ((1 << bits) - 1) != 0 {
        return Err(Error::BadToken("a character in it is wrong".into()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back() {
        let token = Token::generate([7; 32]).unwrap();
        let text = token.to_string();
        assert_eq!(text.len(), PREFIX.len() + CHARS);
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert_eq!(format!(" {}\n", text.to_uppercase()).parse::<Token>().unwrap(), token);
        assert_ne!(token, Token::generate([7; 32]).unwrap());
        assert_eq!(token.secret_hash().len(), 64);
    }

    #[test]
    fn every_mistyped_character_is_caught() {
        let text = Token { fingerprint: [0xa5; 32], secret: [0x5a; 16] }.to_string();
        for at in PREFIX.len()..text.len() {
            for wrong in ['0', 'z', '!', 'u'] {
                let mut bad: Vec<char> = text.chars().collect();
                if bad[at] == wrong {
                    continue;
                }
                bad[at] = wrong;
                let err = bad.iter().collect::<String>().parse::<Token>().unwrap_err();
                assert!(matches!(err, Error::BadToken(_)), "{err}");
            }
        }
        assert!(text[..40].parse::<Token>().unwrap_err().to_string().contains("36 characters"));
        assert!("qt2-00".parse::<Token>().unwrap_err().to_string().contains("begin with qt1-"));
    }

    #[test]
    fn debug_keeps_the_secret() {
        let token = Token { fingerprint: [1; 32], secret: [0xab; 16] };
        assert_eq!(format!("{token:?}"), "Token(01010101…)");
    }
}
