//! Every size, wait and retry of the link, by name.

use std::time::Duration;

/// Life of a node's certificate: long enough to sit out a quarter switched off.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 86_400);

/// Life of the cluster's authority: longer than the hardware, since replacing it is an event.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);

/// Certificates start this far in the past, so that a host with a late clock accepts them.
pub const CLOCK_SKEW_ALLOWED: Duration = Duration::from_secs(86_400);

/// Longest certificate request read, in bytes; ours have about 400.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// Longest identity file read, in bytes; ours have about 2000.
pub const IDENTITY_BYTES_MAX: u64 = 256 * 1024;

/// A dial (name, connect, handshake, greeting) ends within this.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// An accepted connection must have finished its handshake within this, or it is dropped.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes that run at once; beyond it connections wait in the kernel's backlog.
pub const HANDSHAKES_MAX: usize = 128;

/// Rest after a failed accept (out of descriptors), so that the loop does not spin.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// How long a refused client may take to read why before the connection is closed.
pub const REFUSAL_LINGER: Duration = Duration::from_secs(1);

/// Longest reason of a refusal, in bytes; longer ones are cut.
pub const REFUSAL_BYTES_MAX: usize = 512;

/// Idle time after which the kernel asks whether the other end of a stream still lives.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);

/// Time between the kernel's questions.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// Unanswered questions after which the kernel ends the stream.
pub const KEEPALIVE_PROBES: u32 = 3;

/// Bytes unacknowledged for this long end a stream: keepalive does not look while data is unsent.
pub const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Longest JSON message that `frame` reads or writes unless the caller says otherwise, in bytes.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A message's buffer grows by this much as its bytes arrive, so that a length alone costs nothing.
pub const FRAME_CHUNK_BYTES: u64 = 64 * 1024;

/// Longest heartbeat or answer, in bytes.
pub const BEAT_BYTES_MAX: usize = 64 * 1024;

/// TLS bytes that one heartbeat connection may hold unsent: two of the longest messages.
pub const BEAT_UNSENT_BYTES_MAX: usize = 160 * 1024;

/// A heartbeat connection on which nothing was heard for this long is replaced by a new one.
pub const BEAT_SILENCE: Duration = Duration::from_secs(1);

/// Opening a heartbeat connection (connect, handshake, greeting) ends within this.
pub const BEAT_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time between the starts of two attempts to open a heartbeat connection.
pub const BEAT_RETRY: Duration = Duration::from_millis(250);

/// The same after an active refusal, which costs nothing and may end any moment.
pub const BEAT_REFUSED_RETRY: Duration = Duration::from_millis(100);

/// Beats whose answers are awaited at once; answers to older ones are ignored.
pub const BEATS_IN_FLIGHT_MAX: usize = 64;

/// An accepted heartbeat connection without a beat for this long is closed.
pub const BEAT_IDLE_MAX: Duration = Duration::from_secs(10);

/// The same after the certificates did not fit: only a person can change that.
pub const BEAT_DISTRUST_RETRY: Duration = Duration::from_secs(5);

/// A looked-up host name is looked up again when a connection is opened this much later.
pub const BEAT_LOOKUP_AGE: Duration = Duration::from_secs(5);

/// Reads of one socket before other duties of its thread get their turn.
pub const BEAT_READS_MAX: usize = 16;

/// Longest rehearsed outage. Whoever asks for more has mistaken a unit; and a node that nobody ends
/// the outage of must not be away for long.
pub const OUTAGE_MAX: Duration = Duration::from_secs(120);
