//! Mutual TLS 1.3 between nodes, on one TCP port: identities, join, streams, heartbeats.
//!
//! Every stream is a connection of its own and its kind is chosen by ALPN, so that one stream's
//! stall is never another's. After the handshake the server sends a short greeting: accepted, or
//! the reason why not. What is said on a stream is its users' business.
//!
//! Invariants: a stream of any kind but `Join` is handed on only with the node that its certificate
//! names; a dialled stream ends at exactly the node that was asked for; heartbeats touch neither
//! the disk nor the async runtime once they run.
//!
//! ```text
//! dial ──TCP──TLS 1.3, ALPN = kind──▶ Listener ──greeting──▶ Arrival::Node { peer, kind, stream }
//! ```

pub mod clock;
pub mod frame;

pub mod limits;

mod authority;
mod error;
mod greeting;
mod heartbeat;
mod identity;
mod kind;
mod links;
mod names;
mod outage;
mod server;
mod stream;
mod token;
mod trust;

pub use authority::Authority;
pub use error::{Distrust, Error, Far, Retry};
pub use heartbeat::{Heartbeats, PeerLink, Pulse};
pub use identity::Identity;
pub use kind::Kind;
pub use links::{Links, dial_join};
pub use outage::Outage;
pub use server::{Arrival, Cause, Incoming, Listener, Refusal};
pub use stream::LinkStream;
pub use token::Token;
