//! Every size and time of this crate.

use std::time::Duration;

/// Bytes read at once from a WAL stream; a WAL sender's messages are at most 128 KiB.
pub const WAL_CHUNK: usize = 128 * 1024;

/// Bytes read at once from a standby; feedback is small.
pub const FEEDBACK_CHUNK: usize = 8 * 1024;

/// Longest message that the virtual standby takes as a whole; a WAL sender sends 128 KiB and a header.
pub const MESSAGE_MAX: usize = 1024 * 1024;

/// How long a new connection may take to send its startup packet.
pub const STARTUP_WAIT: Duration = Duration::from_secs(10);

/// How long the local server may take to answer a login or a command of ours.
pub const LOGIN_WAIT: Duration = Duration::from_secs(10);

/// Pause before the virtual standby connects again; short, as commits wait meanwhile.
pub const RECONNECT_DELAY: Duration = Duration::from_millis(50);

/// First repetition of feedback after connecting: PostgreSQL ignores feedback until its WAL sender
/// has caught up, and does not say when that is.
pub const FEEDBACK_REPEAT_MIN: Duration = Duration::from_millis(2);

/// Slowest repetition of feedback; doubles up to this.
pub const FEEDBACK_REPEAT_MAX: Duration = Duration::from_secs(1);

/// Connections that a relay socket holds or bridges at once; one PostgreSQL opens one or two.
pub const RELAY_CONNECTIONS_MAX: usize = 64;

/// Bytes of a held connection that are kept until it is bridged; a startup packet at most.
pub const HELD_BYTES_MAX: usize = 16 * 1024;

/// A tunnel that ends sooner was most likely refused, and would be again.
pub const TUNNEL_QUICK_END: Duration = Duration::from_secs(1);
/// Pause before a tunnel that could not be opened, or ended quickly, is tried again.
pub const TUNNEL_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Pause after a failed accept, which is mostly a lack of file descriptors.
pub const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
