//! Channel binding of the type `tls-server-end-point` (RFC 5929): the hash of the server's
//! certificate, which a client puts under its proof. A proof made for another certificate, that is
//! for somebody in the middle, is worth nothing here.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};

/// What a client must have seen to log in with SCRAM-SHA-256-PLUS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding(Vec<u8>);

impl Binding {
    /// From a hash that the caller made.
    pub fn new(hash: impl Into<Vec<u8>>) -> Self {
        Self(hash.into())
    }

    /// The binding of a certificate in DER form. `None` when its signature has no hash of its own
    /// (Ed25519) or an unknown one: then PLUS must not be offered, as clients cannot compute it
    /// either.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        Some(Self(match signature_hash(der)? {
            Hash::Sha224 => Sha224::digest(der).to_vec(),
            Hash::Sha256 => Sha256::digest(der).to_vec(),
            Hash::Sha384 => Sha384::digest(der).to_vec(),
            Hash::Sha512 => Sha512::digest(der).to_vec(),
        }))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

const SEQUENCE: u8 = 0x30;
const OID: u8 = 0x06;
const CONTEXT_0: u8 = 0xa0;

/// Object identifiers, as they stand in DER, and the hash that RFC 5929 takes for them: MD5 and
/// SHA-1 are replaced by SHA-256.
const SIGNATURES: &[(&[u8], Hash)] = &[
    // RSA PKCS #1: 1.2.840.113549.1.1.x with MD5, SHA-1, SHA-256, SHA-384, SHA-512, SHA-224.
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b", Hash::Sha256),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c", Hash::Sha384),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d", Hash::Sha512),
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0e", Hash::Sha224),
    // ECDSA: 1.2.840.10045.4.1 with SHA-1, 1.2.840.10045.4.3.x with SHA-224 to SHA-512.
    (b"\x2a\x86\x48\xce\x3d\x04\x01", Hash::Sha256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x01", Hash::Sha224),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x02", Hash::Sha256),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x03", Hash::Sha384),
    (b"\x2a\x86\x48\xce\x3d\x04\x03\x04", Hash::Sha512),
];

/// RSASSA-PSS (1.2.840.113549.1.1.10): the hash stands in the parameters.
const PSS: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";

/// SHA-1, and SHA-2 as 2.16.840.1.101.3.4.2.x.
const HASHES: &[(&[u8], Hash)] = &[
    (b"\x2b\x0e\x03\x02\x1a", Hash::Sha256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x01", Hash::Sha256),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x02", Hash::Sha384),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x03", Hash::Sha512),
    (b"\x60\x86\x48\x01\x65\x03\x04\x02\x04", Hash::Sha224),
];

/// Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OID, … }, … }
fn signature_hash(mut der: &[u8]) -> Option<Hash> {
    let mut certificate = take(&mut der, SEQUENCE)?;
    take(&mut certificate, SEQUENCE)?;
    let mut algorithm = take(&mut certificate, SEQUENCE)?;
    let oid = take(&mut algorithm, OID)?;
    if oid == PSS { pss_hash(algorithm) } else { find(SIGNATURES, oid) }
}

/// RSASSA-PSS-params ::= SEQUENCE { [0] SEQUENCE { OID, … } DEFAULT sha1, … }
fn pss_hash(mut parameters: &[u8]) -> Option<Hash> {
    let mut parameters = take(&mut parameters, SEQUENCE)?;
    match take(&mut parameters, CONTEXT_0) {
        Some(mut tagged) => {
            let mut algorithm = take(&mut tagged, SEQUENCE)?;
            find(HASHES, take(&mut algorithm, OID)?)
        }
        None => Some(Hash::Sha256),
    }
}

fn find(table: &[(&[u8], Hash)], oid: &[u8]) -> Option<Hash> {
    table.iter().find(|(known, _)| *known == oid).map(|(_, hash)| *hash)
}

/// Takes the contents of an element with this tag off the front of `der`.
fn take<'a>(der: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let rest = der.strip_prefix(&[tag])?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Up to three bytes of length: no certificate is longer than 16 MB.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 3))?;
            (length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    *der = rest;
    Some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    // Made with `openssl req -x509`; the hashes below with `openssl dgst`.
    const ECDSA_SHA1: &str = "MIIBbTCCARSgAwIBAgIUGmBkUyPZcpp5+By5omTLBd9AzB8wCQYHKoZIzj0EATAMMQowCAYDVQQDDAFnMCAXDTI2MTEyNTA2NTg1MloYDzIxMjYxMTAxMDY1ODUyWjAMMQowCAYDVQQDDAFnMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzHVthpDfga5ZZozOKv9LboQ/xOATzpyY+uFgg44aOg2zJ8Mh3emv0sL3Flm/tiuX7iySXM9KvOdz6Vvdt857XqNTMFEwHQYDVR0OBBYEFN0uIKjrV3uW9SekXNV2yjjEuiO5MB8GA1UdIwQYMBaAFN0uIKjrV3uW9SekXNV2yjjEuiO5MA8GA1UdEwEB/wQFMAMBAf8wCQYHKoZIzj0EAQNIADBFAiEAuK2vmdxU26en6wCQeowrlFSdQP+2gDeu9NINaBbcPnACIHIsH8ih6diLvlgMJwIxhUw+B/bzmy1VGtOE8um4M6iv";
    const ECDSA_SHA384: &str = "MIIBbjCCARWgAwIBAgIUAW3LydAKSGY2XtS+w5nv6WP0aG8wCgYIKoZIzj0EAwMwDDEKMAgGA1UEAwwBZzAgFw0yNjExMjUwNjU4NTJaGA8yMTI2MTEwMTA2NTg1MlowDDEKMAgGA1UEAwwBZzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMx1bYaQ34GuWWaMzir/S26EP8TgE86cmPrhYIOOGjoNsyfDId3pr9LC9xZZv7Yrl+4sklzPSrznc+lb3bfOe16jUzBRMB0GA1UdDgQWBBTdLiCo61d7lvUnpFzVdso4xLojuTAfBgNVHSMEGDAWgBTdLiCo61d7lvUnpFzVdso4xLojuTAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMDA0cAMEQCICGBsigP2Diphs9Xv3qMY50dYY+QG4Jou3WMNS6vjQVhAiBVmmv4gsB3Tnergi1qoYzcqDcNDDUrQwAV9DGWbx5H7A==";
    const RSA_SHA512: &str = "MIIB9jCCAV+gAwIBAgIUCHL2V1UyYy2bzKfvzoogqGgt73MwDQYJKoZIhvcNAQENBQAwDDEKMAgGA1UEAwwBZzAgFw0yNjExMjUwNjU4NTJaGA8yMTI2MTEwMTA2NTg1MlowDDEKMAgGA1UEAwwBZzCBnzANBgkqhkiG9w0BAQEFAAOBjQAwgYkCgYEAu7ipNGju6vnpCKWO6E7t6hW1FBdsqBmyeFzuJeiT8JYdkXT9hkaE7bPHLglpJAsAebXrmNDa05uzygjqzS/pB3gKG6IiIC9HXyEW5ib3j1BVivxXxSmF2AD9uxyJp3BcEMuaaCZANlsLsPy1dtIwBFxNQEyPqFRNd08DadYpNZcCAwEAAaNTMFEwHQYDVR0OBBYEFFVxERPoRYoT0bilWlnGNB46Avv+MB8GA1UdIwQYMBaAFFVxERPoRYoT0bilWlnGNB46Avv+MA8GA1UdEwEB/wQFMAMBAf8wDQYJKoZIhvcNAQENBQADgYEApLwhq+UbL4M11WlEc0ZnawORWcY9YPk5EGm1sk4Ysjcy1dzwuRsdc0DbXFJOv/liyCPZHhxkIWTfQjXRhf0BbTzRxvG7llwYxauajk2OnYQd0/WyG67RRvg6vSAl1uXp2yqC3eO0KqjlWc36vHmwL2V/rIervTNUgqEhVx17Sng=";
    const PSS_SHA512: &str = "MIICXjCCAZOgAwIBAgIUYZ4pl6cE4x4Lqa/WHbw/vS89KRwwQQYJKoZIhvcNAQEKMDSgDzANBglghkgBZQMEAgMFAKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgMFAKIDAgE+MAwxCjAIBgNVBAMMAWcwIBcNMjYxMTI1MDY1ODUyWhgPMjEyNjExMDEwNjU4NTJaMAwxCjAIBgNVBAMMAWcwgZ8wDQYJKoZIhvcNAQEBBQADgY0AMIGJAoGBALu4qTRo7ur56QiljuhO7eoVtRQXbKgZsnhc7iXok/CWHZF0/YZGhO2zxy4JaSQLAHm165jQ2tObs8oI6s0v6Qd4ChuiIiAvR18hFuYm949QVYr8V8UphdgA/bsciadwXBDLmmgmQDZbC7D8tXbSMARcTUBMj6hUTXdPA2nWKTWXAgMBAAGjUzBRMB0GA1UdDgQWBBRVcRET6EWKE9G4pVpZxjQeOgL7/jAfBgNVHSMEGDAWgBRVcRET6EWKE9G4pVpZxjQeOgL7/jAPBgNVHRMBAf8EBTADAQH/MEEGCSqGSIb3DQEBCjA0oA8wDQYJYIZIAWUDBAIDBQChHDAaBgkqhkiG9w0BAQgwDQYJYIZIAWUDBAIDBQCiAwIBPgOBgQChqWrEhJVrt+Cos08MQdvmsLN8hIFElqbyG1rL+kMj7b7V5Xq4DWBj9nXPjCY8i0DvGh4Q+33EIMzh1KGcjJCfkd8a41kjgYmtruO2lLFmH75vMJogv4vQ5qJaqYCEkTlvCa/L/cWqxfE/pX4q/W0uQqOpL8G0nzBzj4x25PLUBA==";
    const ED25519: &str = "MIIBLjCB4aADAgECAhRThNipaZ7buOf2aG7DhGp782FtxDAFBgMrZXAwDDEKMAgGA1UEAwwBZzAgFw0yNjExMjUwNjU4NTJaGA8yMTI2MTEwMTA2NTg1MlowDDEKMAgGA1UEAwwBZzAqMAUGAytlcAMhAEtggU9WVBoxRGtGYYv/5COQLZEovuzaaqoUpF6E0Oc/o1MwUTAdBgNVHQ4EFgQUK036Lh6KhKAxczicJ/Z3ykUtZEMwHwYDVR0jBBgwFoAUK036Lh6KhKAxczicJ/Z3ykUtZEMwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQBpc7stakyQKxeyGdeshGJ+O1pJyJBQKQhBTcu+cyz6ILLTyIkft05QkOG7t9oM2Wi7PzgUfgKMf264cgNqrnED";

    fn binding(certificate: &str) -> Option<String> {
        let binding = Binding::of_certificate(&STANDARD.decode(certificate).unwrap())?;
        Some(binding.as_bytes().iter().map(|b| format!("{b:02x}")).collect())
    }

    #[test]
    fn the_hash_is_that_of_the_signature_and_never_weaker_than_sha_256() {
        let cases = [
            (ECDSA_SHA1, "fcde46825cf33326932c239398481b066d0c5758112771964cfb7dd9a2c0f6e6"),
            (
                ECDSA_SHA384,
                "f4c9ad3fef442337760d0341fd603117761d3dccdf58f5f6f6ff5fd28d4ad8540f26a1059fb3a47677600818fe3d60f4",
            ),
            (
                RSA_SHA512,
                "de09385df7c9712d9c09c6962b889cbcd7b63d6918a0e595ea60b55d0267a1a1d4c109cb06cdcee53f6902ad426c7eb62a1a550bb8a4da6d76e9844f12db1a5f",
            ),
            (
                PSS_SHA512,
                "d742f40edc9225f8d3786719a5fc72b1bd777365f0dca451e48cb4ecf9b58baac6a664548532261b05f68008f30963c3e89b773823535e73ec99edb379c90e99",
            ),
        ];
        for (certificate, hash) in cases {
            assert_eq!(binding(certificate).as_deref(), Some(hash));
        }
    }

    #[test]
    fn a_signature_without_a_hash_has_no_binding() {
        assert_eq!(binding(ED25519), None);
        assert_eq!(Binding::of_certificate(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            noise in prop::collection::vec(any::<u8>(), 0..60), at in 0usize..700, byte: u8,
        ) {
            let _ = Binding::of_certificate(&noise);
            let mut der = STANDARD.decode(PSS_SHA512).unwrap();
            let len = der.len();
            der[at % len] = byte;
            let _ = Binding::of_certificate(&der);
            let _ = Binding::of_certificate(&der[..at % len]);
        }
    }
}
