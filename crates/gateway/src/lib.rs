//! The PostgreSQL-protocol front door: whole sessions, relayed to the writer.
//!
//! ```text
//! client --TCP/TLS--> Frontend (any node) == tunnel ==> Sessions (writer's node) --unix--> PostgreSQL
//!                     holds logins                      Gate on every response
//! ```
//!
//! Bytes pass unread except for message boundaries and a few small messages. Users and passwords
//! are PostgreSQL's own: it asks the client through the relay. Invariant (R12): a response leaves
//! the writer's node only after the [`Gate`] was asked *after* PostgreSQL produced it.

pub mod conversation;
pub mod error;
pub mod frontend;
pub mod gate;
pub mod limits;
mod login;
mod opening;
mod scan;
pub mod sessions;
pub mod stream;

pub use conversation::{Conversation, Outcome};
pub use error::Error;
pub use frontend::{Frontend, FrontendOptions, NoWriter, Route, Tls};
pub use gate::{Gate, Verdict};
pub use quorate_wire::Retry;
pub use sessions::{Backends, Ended, QuorumWait, Sessions, SessionsOptions};
pub use stream::{BoxFuture, BoxStream, Stream};
