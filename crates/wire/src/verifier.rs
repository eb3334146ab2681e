//! What PostgreSQL stores of a password (`pg_authid.rolpassword`): enough to check an answer, not
//! enough to log in with.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::limits;

/// Rounds that PostgreSQL gives a new password unless `scram_iterations` says otherwise.
pub const ITERATIONS: u32 = 4096;

/// Length of the salts that PostgreSQL makes.
const SALT: usize = 16;
/// Length of every key.
const KEY: usize = 32;

/// A stored password. `Debug` prints no part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verifier {
    /// For [`scram`](crate::scram).
    Scram(Keys),
    /// For [`md5_check`](crate::auth::md5_check).
    Md5(Md5Hash),
}

/// A stored SCRAM-SHA-256 password.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    pub(crate) iterations: u32,
    pub(crate) salt: Vec<u8>,
    pub(crate) stored: [u8; KEY],
    pub(crate) server: [u8; KEY],
    pub(crate) decoy: bool,
}

/// A stored md5 password: its 32 hexadecimal digits.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash([u8; 32]);

/// A stored password that is in none of PostgreSQL's forms. Does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored password is neither SCRAM-SHA-256 nor md5")]
pub struct BadVerifier;

impl Verifier {
    /// Reads `rolpassword`: `SCRAM-SHA-256$<rounds>:<salt>$<StoredKey>:<ServerKey>`, the last three
    /// in base64, or `md5` and 32 hexadecimal digits.
    pub fn parse(stored: &str) -> Result<Self, BadVerifier> {
        parse_scram(stored)
            .map(Verifier::Scram)
            .or_else(|| parse_md5(stored).map(Verifier::Md5))
            .ok_or(BadVerifier)
    }

    /// A password for a role that does not exist, has none, or has one that ran out. Its salt is
    /// always the same for a name, so that asking twice tells nothing; no answer to it ever
    /// succeeds. `secret` must be the same on every gateway and known to no client; `iterations`
    /// what real roles have ([`ITERATIONS`], or the server's `scram_iterations`).
    pub fn decoy(user: &str, secret: &[u8], iterations: u32) -> Self {
        let salt = hmac(secret, &[b"quorate decoy salt ", user.as_bytes()])[..SALT].to_vec();
        Verifier::Scram(Keys { iterations, salt, stored: [0; KEY], server: [0; KEY], decoy: true })
    }

    /// Whether this is a decoy, for the log.
    pub fn is_decoy(&self) -> bool {
        matches!(self, Verifier::Scram(keys) if keys.decoy)
    }
}

impl Md5Hash {
    pub(crate) fn hex(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Keys");
        f.field("iterations", &self.iterations).field("decoy", &self.decoy).finish_non_exhaustive()
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Md5Hash").finish_non_exhaustive()
    }
}

/// HMAC-SHA-256 over the parts.
pub(crate) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; KEY] {
    // HMAC takes keys of every length; an impossible refusal must still not panic.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; KEY] };
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn parse_scram(stored: &str) -> Option<Keys> {
    let (rounds_salt, keys) = stored.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
    let (iterations, salt) = rounds_salt.split_once(':')?;
    let (stored, server) = keys.split_once(':')?;
    if !iterations.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let iterations = iterations.parse().ok()?;
    if !(1..=limits::SCRAM_ITERATIONS_MAX).contains(&iterations) {
        return None;
    }
    let key = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
    let salt = STANDARD.decode(salt).ok()?;
    Some(Keys { iterations, salt, stored: key(stored)?, server: key(server)?, decoy: false })
}

fn parse_md5(stored: &str) -> Option<Md5Hash> {
    let hex: [u8; 32] = stored.strip_prefix("md5")?.as_bytes().try_into().ok()?;
    hex.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(Md5Hash(hex))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As PostgreSQL 15 stored it for the password `correct horse`.
    pub(crate) const APP: &str = "SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$cZtBpicSm6RhppoV+u38WgagKbW2u05jGl0QUyy13BQ=:comUIfInZ7PIomvLpXKGbKS+dnwm2uNruLAGeGgyQrg=";
    /// The same for `ⅸ pencil`, which SASLprep turns into `ix pencil`.
    pub(crate) const UNICODE: &str = "SCRAM-SHA-256$4096:NB0vFT9UregTRiqn70nFOw==$TG+Mhyzsp9swJ7xiWmGtfZb4qmL5VUpsoMf8yBKvm7I=:UcGjVJ/yjhXp20jbQy12+qfngkhL4AOXOpQpDKuogoY=";

    #[test]
    fn what_postgresql_stores_is_read_and_not_printed() {
        let Verifier::Scram(keys) = Verifier::parse(APP).unwrap() else { panic!() };
        assert_eq!((keys.iterations, keys.salt.len(), keys.decoy), (4096, 16, false));
        assert_eq!(format!("{keys:?}"), "Keys { iterations: 4096, decoy: false, .. }");
        let md5 = Verifier::parse("md504a6e9cad70986782b90718777cf1414").unwrap();
        assert_eq!(format!("{md5:?}"), "Md5(Md5Hash { .. })");
    }

    #[test]
    fn other_forms_are_refused() {
        let zeros = "A".repeat(43) + "=";
        for bad in [
            "",
            "secret",
            "md5",
            "md504A6E9CAD70986782B90718777CF1414",
            "md504a6e9cad70986782b90718777cf14140",
            "SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$",
            "SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$AAAA:AAAA",
            &format!("SCRAM-SHA-256$0:AAAA${zeros}:{zeros}"),
            &format!("SCRAM-SHA-256$-1:AAAA${zeros}:{zeros}"),
            &format!("SCRAM-SHA-256$+1:AAAA${zeros}:{zeros}"),
            &format!("SCRAM-SHA-256$4294967295:AAAA${zeros}:{zeros}"),
            &format!("SCRAM-SHA-256$1:A*AA${zeros}:{zeros}"),
            &format!("SCRAM-SHA-256$1:AAAA${zeros}:{zeros}:"),
            &format!("SCRAM-SHA-512$1:AAAA${zeros}:{zeros}"),
        ] {
            assert_eq!(Verifier::parse(bad), Err(BadVerifier), "{bad}");
        }
        assert!(Verifier::parse(&format!("SCRAM-SHA-256$1:AAAA${zeros}:{zeros}")).is_ok());
    }

    #[test]
    fn a_decoy_is_the_same_for_a_name_and_looks_like_the_others() {
        let decoy = |user, secret: &[u8]| match Verifier::decoy(user, secret, ITERATIONS) {
            Verifier::Scram(keys) => keys,
            Verifier::Md5(_) => panic!(),
        };
        assert_eq!(decoy("ghost", b"s"), decoy("ghost", b"s"));
        assert_ne!(decoy("ghost", b"s").salt, decoy("ghosu", b"s").salt);
        assert_ne!(decoy("ghost", b"s").salt, decoy("ghost", b"t").salt);
        assert_eq!((decoy("ghost", b"s").salt.len(), decoy("", b"").iterations), (16, 4096));
        assert!(Verifier::decoy("ghost", b"s", 1).is_decoy());
        assert!(!Verifier::parse(APP).unwrap().is_decoy());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,80}", tail in "[$:A-Za-z0-9+/=]{0,120}") {
            let _ = Verifier::parse(&text);
            let _ = Verifier::parse(&format!("SCRAM-SHA-256${tail}"));
        }
    }
}
