//! What a stream is for. One TCP and TLS connection per stream; ALPN names the kind.

use std::fmt;

/// The kinds of stream between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Raft messages.
    Consensus,
    /// Heartbeats and their answers.
    Heartbeat,
    /// The replication tunnel.
    Wal,
    /// The tunnel of client sessions.
    Sql,
    /// Requests between agents.
    Control,
    /// A node that has no certificate yet.
    Join,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] =
        [Kind::Consensus, Kind::Heartbeat, Kind::Wal, Kind::Sql, Kind::Control, Kind::Join];

    /// Its ALPN identifier. The number is the version of what is spoken on the stream.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Kind::Consensus => b"quorate/consensus/1",
            Kind::Heartbeat => b"quorate/heartbeat/1",
            Kind::Wal => b"quorate/wal/1",
            Kind::Sql => b"quorate/sql/1",
            Kind::Control => b"quorate/control/1",
            Kind::Join => b"quorate/join/1",
        }
    }

    /// The kind that an ALPN identifier names.
    pub fn from_alpn(alpn: &[u8]) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.alpn() == alpn)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Consensus => "consensus",
            Kind::Heartbeat => "heartbeat",
            Kind::Wal => "wal",
            Kind::Sql => "sql",
            Kind::Control => "control",
            Kind::Join => "join",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_read_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_alpn(kind.alpn()), Some(kind));
        }
        assert_eq!(Kind::from_alpn(b"quorate/wal/2"), None);
    }
}
