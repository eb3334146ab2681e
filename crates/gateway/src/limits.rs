//! Every size and time of this crate.

use std::time::Duration;

/// Bytes read at once from a client or a server.
pub const CHUNK: usize = 32 * 1024;

/// How long a client may take from connecting to a complete startup packet, TLS included.
pub const STARTUP_WAIT: Duration = Duration::from_secs(10);

/// How long a login waits for a writer when the options say nothing.
pub const LOGIN_HOLD: Duration = Duration::from_secs(10);

/// How many logins wait for a writer when the options say nothing.
pub const LOGINS_HELD_MAX: usize = 1_000;

/// How many client connections a node takes when the options say nothing.
pub const CLIENTS_MAX: usize = 10_000;

/// How many sessions the writer's node relays when the options say nothing.
pub const SESSIONS_MAX: usize = 1_000;

/// Longest pause between two looks at a gate that holds; a renewal wakes at once.
pub const HOLD_POLL: Duration = Duration::from_millis(5);

/// How long a client may take to read why its session ends.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(1);

/// How long a cancel request may take altogether.
pub const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Pause before a route is asked again when it cannot tell of changes.
pub const ROUTE_POLL: Duration = Duration::from_millis(20);

/// Pause after a failed accept, which is mostly a lack of file descriptors.
pub const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Bytes of a query that are looked at; a longer one is taken to do anything.
pub const QUERY_SEEN: usize = 4 * 1024;

/// Bytes of the names in Bind and Execute that are looked at; longer ones are taken for unknown.
pub const NAMES_SEEN: usize = 256;

/// Prepared statements that may end a transaction, remembered by name; more count as any name.
pub const ENDERS_MAX: usize = 16;
