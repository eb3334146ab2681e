//! The first packet of a connection: encryption requests, cancel requests, startup packets.

use bytes::{BufMut, Bytes, BytesMut};

use crate::frame::{put_cstr, take_cstr};
use crate::{Error, limits};

/// Protocol version 3.0 as it stands in a startup packet.
pub const VERSION_3_0: u32 = 0x0003_0000;
/// Protocol version 3.2: longer cancel keys.
pub const VERSION_3_2: u32 = 0x0003_0002;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// What a client may send first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// Asks for TLS; answered with one byte.
    Ssl,
    /// Asks for GSSAPI encryption; answered with one byte.
    GssEnc,
    /// Asks to cancel what a backend is doing; never answered.
    Cancel(CancelKey),
    /// Opens a session.
    Startup(Startup),
}

/// Names a backend and proves the right to cancel it. The secret stays out of `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    /// Process id of the backend, on the server that made the key.
    pub pid: i32,
    /// The secret: 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: Bytes,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// Opens a session. Names and values are bytes: their encoding is not known yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Protocol version, major in the upper half.
    pub version: u32,
    /// Parameters in the order sent; a name may occur more than once.
    pub parameters: Vec<(Bytes, Bytes)>,
}

/// Reads the first packet from the front of `buf`: the packet and its length in bytes, or `None`
/// until all of it is there.
pub fn parse(buf: &[u8]) -> Result<Option<(FirstPacket, usize)>, Error> {
    let Some(word) = buf.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*word);
    if !(8..=limits::STARTUP_MAX as u32).contains(&length) {
        return Err(Error::Length { tag: 0, length });
    }
    let Some(packet) = buf.get(4..length as usize) else { return Ok(None) };
    let (code, body) = packet.split_at(4);
    let code = u32::from_be_bytes([code[0], code[1], code[2], code[3]]);
    let first = match code {
        SSL_REQUEST if body.is_empty() => FirstPacket::Ssl,
        GSSENC_REQUEST if body.is_empty() => FirstPacket::GssEnc,
        CANCEL_REQUEST => FirstPacket::Cancel(CancelKey::parse(body)?),
        version if version >> 16 == 3 => FirstPacket::Startup(Startup::parse(version, body)?),
        _ => return Err(Error::Invalid { what: "the protocol version of a startup packet" }),
    };
    Ok(Some((first, length as usize)))
}

impl FirstPacket {
    /// The packet as bytes.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u32(0);
        match self {
            FirstPacket::Ssl => out.put_u32(SSL_REQUEST),
            FirstPacket::GssEnc => out.put_u32(GSSENC_REQUEST),
            FirstPacket::Cancel(key) => {
                out.put_u32(CANCEL_REQUEST);
                out.put_i32(key.pid);
                out.put_slice(&key.secret);
            }
            FirstPacket::Startup(startup) => startup.put(&mut out),
        }
        let length = u32::try_from(out.len()).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&length.to_be_bytes());
        out
    }
}

impl CancelKey {
    /// Reads process id and secret, as in a cancel request and in BackendKeyData.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let Some((pid, secret)) = body.split_first_chunk::<4>() else {
            return Err(Error::Truncated { what: "a cancel key" });
        };
        if secret.is_empty() {
            return Err(Error::Truncated { what: "a cancel key" });
        }
        let max = limits::CANCEL_KEY_MAX;
        if secret.len() > max {
            return Err(Error::TooLong { what: "a cancel key", length: secret.len(), max });
        }
        Ok(Self { pid: i32::from_be_bytes(*pid), secret: Bytes::copy_from_slice(secret) })
    }
}

impl Startup {
    /// A startup packet of protocol 3.0 with these parameters.
    pub fn new(parameters: &[(&str, &str)]) -> Self {
        let own = |s: &str| Bytes::copy_from_slice(s.as_bytes());
        let parameters = parameters.iter().map(|(n, v)| (own(n), own(v))).collect();
        Self { version: VERSION_3_0, parameters }
    }

    /// All values given for a parameter; PostgreSQL takes the last.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let of_name = move |(n, _): &&(Bytes, Bytes)| n == name.as_bytes();
        self.parameters.iter().filter(of_name).map(|(_, v)| &v[..])
    }

    /// The value that PostgreSQL takes for a parameter: the last one given.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).last()
    }

    /// Sets a parameter, in place of every value given for it.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        let own = |s: &str| Bytes::copy_from_slice(s.as_bytes());
        self.parameters.push((own(name), own(value)));
    }

    /// Removes a parameter.
    pub fn remove(&mut self, name: &str) {
        self.parameters.retain(|(n, _)| n != name.as_bytes());
    }

    /// The packet as bytes.
    pub fn encode(&self) -> BytesMut {
        FirstPacket::Startup(self.clone()).encode()
    }

    fn parse(version: u32, mut body: &[u8]) -> Result<Self, Error> {
        const WHAT: &str = "a startup packet";
        let mut parameters = Vec::new();
        loop {
            let name = take_cstr(&mut body, WHAT)?;
            if name.is_empty() {
                break;
            }
            let value = take_cstr(&mut body, WHAT)?;
            parameters.push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
        }
        if !body.is_empty() {
            return Err(Error::Invalid { what: "the end of a startup packet" });
        }
        Ok(Self { version, parameters })
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u32(self.version);
        for (name, value) in &self.parameters {
            put_cstr(out, name);
            put_cstr(out, value);
        }
        out.put_u8(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_told_apart() {
        let key = CancelKey { pid: 7, secret: Bytes::from_static(&[9; 256]) };
        for packet in [FirstPacket::Ssl, FirstPacket::GssEnc, FirstPacket::Cancel(key)] {
            let bytes = packet.encode();
            assert_eq!(parse(&bytes).unwrap(), Some((packet, bytes.len())));
        }
        let key = CancelKey { pid: 7, secret: Bytes::from_static(&[9; 257]) };
        assert!(!format!("{key:?}").contains('9'), "the secret must not be printed");
        assert!(parse(&FirstPacket::Cancel(key).encode()).is_err());
    }

    #[test]
    fn a_parameter_is_rewritten_whatever_was_given() {
        let mut startup = Startup::new(&[
            ("user", "u"),
            ("application_name", "quorate"),
            ("application_name", "quorate"),
        ]);
        startup.set("application_name", "n2");
        assert_eq!(startup.all("application_name").collect::<Vec<_>>(), [b"n2"]);
        assert_eq!(startup.get("user"), Some(&b"u"[..]));
        assert_eq!(startup.get("database"), None);
    }

    #[test]
    fn hostile_packets_are_refused() {
        assert!(parse(&[0, 0, 0, 7, 0, 0, 0]).is_err());
        assert!(parse(&[0, 1, 0, 0]).is_err());
        // Version 2, then version 3 without the final zero, then bytes after the final zero.
        assert!(parse(&[0, 0, 0, 8, 0, 2, 0, 0]).is_err());
        assert!(parse(&[0, 0, 0, 8, 0, 3, 0, 0]).is_err());
        assert!(parse(&[0, 0, 0, 10, 0, 3, 0, 0, 0, 0]).is_err());
        assert!(parse(&[0, 0, 0, 12, 0, 3, 0, 0, b'u', 0, 0]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed(
            parameters in prop::collection::vec(("[a-z_]{1,12}", "[^\0]{0,20}"), 0..6), cut in 0usize..400,
        ) {
            let parameters: Vec<(&str, &str)> =
                parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let startup = Startup::new(&parameters);
            let mut bytes = startup.encode();
            let len = bytes.len();
            if cut < len {
                prop_assert_eq!(parse(&bytes[..cut]).unwrap(), None);
            }
            bytes.put_slice(b"next");
            prop_assert_eq!(parse(&bytes).unwrap(), Some((FirstPacket::Startup(startup), len)));
        }

        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }
}
