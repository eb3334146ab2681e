//! The PostgreSQL-protocol front door: one address whose reads keep their promises.
//!
//! ```text
//! client --TCP/TLS--> worker thread of any node --unix--> PostgreSQL of this node
//!                     pools, routes, holds      == link ==> Sessions --unix--> PostgreSQL there
//! ```
//!
//! Clients log in here with PostgreSQL's own verifiers; connections to servers are shared between
//! them from transaction to transaction. Rows pass unread. Invariant (R12): a response leaves the
//! server's node only after its [`Gate`] was asked *after* PostgreSQL produced it.

mod account;
mod acquire;
mod aftermath;
mod auth;
mod cancel;
mod cap;
mod client;
mod connect;
mod console;
mod effects;
mod elsewhere;
mod entry;
pub mod error;
mod exchange;
mod fence;
mod floor;
pub mod frontend;
mod full;
mod functions;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod gate;
mod group;
mod io;
mod latency;
pub mod limits;
mod login;
mod loss;
mod metrics;
mod opening;
mod own;
mod pool;
mod read_only;
mod relay;
pub mod remote;
mod replication;
mod route;
#[cfg(feature = "sabotage")]
pub mod sabotage;
mod scan;
mod sender;
mod server;
mod session;
pub mod sessions;
mod settings;
mod statements;
pub mod story;
mod stream;
mod tidy;
mod timing;
pub mod tls;
mod upstream;
mod visible;
mod worker;
pub mod world;

pub use error::Error;
pub use frontend::{Door, Gateway, Meter, Port};
pub use gate::{Gate, Verdict};
pub use latency::Latency;
pub use metrics::{AccountMetrics, Metrics, PoolMetrics, RouteMetrics};
pub use quorate_wire::Retry;
pub use sessions::{Ended, Sessions};
pub use stream::{BoxFuture, BoxStream, Stream};
pub use tls::{Tls, TlsSource};
pub use world::{
    Alive, Broken, Distance, Fate, Local, Made, Replica, Role, Token, Transaction, View, World,
    Writer,
};
