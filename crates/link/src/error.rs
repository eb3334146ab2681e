//! What can go wrong between nodes, said so that a person knows which node and what to do.

use std::io;
use std::path::PathBuf;

use quorate_core::NodeId;

/// Who is at the other end, as far as we know: `n2 at 10.0.0.2:6433`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Far {
    /// The node that we expect or found there.
    pub node: Option<NodeId>,
    /// Its address, `host:port`.
    pub address: String,
}

impl Far {
    pub(crate) fn new(node: Option<NodeId>, address: &str) -> Box<Self> {
        Box::new(Self { node, address: address.to_owned() })
    }
}

impl std::fmt::Display for Far {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.node {
            Some(node) => write!(f, "{node} at {}", self.address),
            None => write!(f, "the host at {}", self.address),
        }
    }
}

/// Why a certificate is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// It names another cluster.
    #[error("belongs to another cluster ({theirs}, not {ours})")]
    OtherCluster {
        /// The cluster id that it names.
        theirs: String,
        /// Our cluster id.
        ours: String,
    },
    /// It names this cluster, but this cluster's authority did not sign it.
    #[error("claims to belong to this cluster, but its authority did not sign the certificate")]
    OtherAuthority,
    /// It is good, but for another node than the one that was called.
    #[error("is {found}, not {wanted}")]
    OtherNode {
        /// The node that answered.
        found: NodeId,
        /// The node that was called.
        wanted: NodeId,
    },
    /// Its last day has passed, or our clock is wrong.
    #[error("has a certificate that has expired")]
    Expired,
    /// Its first day has not come, or our clock is wrong.
    #[error("has a certificate that is not valid yet")]
    NotYetValid,
    /// There is none.
    #[error("has shown no certificate")]
    Missing,
    /// The cluster's authority is not the one that the join token names.
    #[error("belongs to a cluster that the join token does not name")]
    OtherFingerprint,
    /// Not a certificate of ours at all, or a broken one.
    #[error("has a certificate that cannot be used: {0}")]
    Unusable(String),
}

/// What a caller may do about an error without a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once.
    Now,
    /// After a pause.
    Backoff,
    /// Once a person has changed something.
    Operator,
    /// Never: the request itself is wrong.
    Never,
}

/// A failure of the link.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody has told us where this node is.
    #[error("the address of {0} is not known")]
    UnknownPeer(NodeId),
    /// No TCP connection to it.
    #[error("cannot connect to {far}")]
    Unreachable {
        /// Who.
        far: Box<Far>,
        /// Why.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("{far} did not answer within {limit_ms} ms")]
    TimedOut {
        /// Who.
        far: Box<Far>,
        /// The limit, in milliseconds.
        limit_ms: u128,
    },
    /// We do not take its certificate.
    #[error("{far} {why}")]
    Distrusted {
        /// Who.
        far: Box<Far>,
        /// Why not.
        why: Distrust,
    },
    /// It does not take ours; the reason is in its words.
    #[error("{far} refused the connection: {reason}")]
    Refused {
        /// Who.
        far: Box<Far>,
        /// What it said.
        reason: String,
    },
    /// The connection failed between connecting and being accepted.
    #[error("the handshake with {far} failed")]
    Handshake {
        /// Who.
        far: Box<Far>,
        /// Why.
        source: io::Error,
    },
    /// Our port cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// This node has no identity.
    #[error("this node has no identity yet: {0} does not exist")]
    NoIdentity(PathBuf),
    /// Its identity cannot be used.
    #[error("the identity in {path} is damaged: {reason}")]
    DamagedIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The identity file cannot be read or written.
    #[error("cannot {doing} {path}")]
    File {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate, key or request cannot be made or used.
    #[error("{0}")]
    Certificate(String),
    /// A join token was mistyped or cut.
    #[error("this is not a join token: {0}")]
    BadToken(String),
    /// A message is longer than its reader allows.
    #[error("a message of {bytes} bytes exceeds the limit of {max}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        max: usize,
    },
    /// A message is not what it should be.
    #[error("a message cannot be understood")]
    BadMessage(#[source] serde_json::Error),
    /// The other side ended the stream between two messages.
    #[error("the other side ended the stream")]
    Ended,
    /// A stream broke.
    #[error("the stream broke")]
    Stream(#[source] io::Error),
    /// A thread or descriptor cannot be had.
    #[error("the system refused a resource")]
    System(#[source] io::Error),
}

impl Error {
    /// What a caller may do without a person.
    pub fn retry(&self) -> Retry {
        match self {
            Error::UnknownPeer(_)
            | Error::Unreachable { .. }
            | Error::TimedOut { .. }
            | Error::Handshake { .. }
            | Error::Ended
            | Error::Stream(_)
            | Error::System(_) => Retry::Backoff,
            Error::Distrusted { .. }
            | Error::Refused { .. }
            | Error::Listen { .. }
            | Error::NoIdentity(_)
            | Error::DamagedIdentity { .. }
            | Error::File { .. } => Retry::Operator,
            Error::Certificate(_)
            | Error::BadToken(_)
            | Error::TooLong { .. }
            | Error::BadMessage(_) => Retry::Never,
        }
    }

    /// What a person should do.
    pub fn hint(&self) -> &'static str {
        match self {
            Error::UnknownPeer(_) => "check that the node has joined and the name is right",
            Error::Unreachable { .. } => {
                "check that quorate runs there and that the link port is open"
            }
            Error::TimedOut { .. } => "check the network between the two hosts",
            Error::Distrusted { why, .. } => why.hint(),
            Error::Refused { .. } => "check the certificates and addresses of both nodes",
            Error::Handshake { .. } => "check that both nodes run the same version of quorate",
            Error::Listen { .. } => "check the link address in the configuration and free the port",
            Error::NoIdentity(_) => "run `quorate join`, or `quorate init` for a new cluster",
            Error::DamagedIdentity { .. } => "restore the file, or join the node again",
            Error::File { .. } => "check the owner and permissions of the directory, and its disk",
            Error::Certificate(_) => "ask for a new certificate; report a bug if it comes again",
            Error::BadToken(_) => "copy the whole token again, or create a new one",
            Error::TooLong { .. } | Error::BadMessage(_) => {
                "check that both nodes run the same version of quorate"
            }
            Error::Ended | Error::Stream(_) => "wait: it is opened again",
            Error::System(_) => "raise the limits on open files and threads",
        }
    }
}

impl Distrust {
    fn hint(&self) -> &'static str {
        match self {
            Distrust::OtherCluster { .. } | Distrust::OtherAuthority => {
                "check the address: two clusters must not share addresses"
            }
            Distrust::OtherNode { .. } => "correct the node's address in the cluster document",
            Distrust::Expired | Distrust::NotYetValid => {
                "check the clocks of both hosts; if they are right, join the node again"
            }
            Distrust::OtherFingerprint => {
                "check the address and that the token is of this cluster before trying again"
            }
            Distrust::Missing | Distrust::Unusable(_) => {
                "check that the address is the link port of a node of this cluster"
            }
        }
    }
}
