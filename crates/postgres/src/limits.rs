//! Every bound of this crate, with a sentence of why.

use std::time::Duration;

/// Longest unix socket path in bytes: `sun_path` holds 108 with the closing zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// Oldest supported major version: the first with the `pg_checkpoint` role and fast promotion only.
pub const VERSION_MIN: u32 = 15;

/// Newest supported major version: what the protocol's experiments were run on.
pub const VERSION_MAX: u32 = 18;

/// After this an immediate stop kills everything: a stopped or stuck postmaster answers no signal.
pub const IMMEDIATE_STOP_MAX: Duration = Duration::from_secs(1);

/// After this a fast stop becomes an immediate one: a shutdown checkpoint on a bad disk never ends.
pub const FAST_STOP_MAX: Duration = Duration::from_secs(30);

/// First pause between looks for orphans: most are gone within a scheduling round.
pub const ORPHAN_POLL_MIN: Duration = Duration::from_millis(1);

/// Longest pause between looks for orphans: a process in disk sleep may take seconds.
pub const ORPHAN_POLL_MAX: Duration = Duration::from_millis(50);

/// How long orphans may resist before the log says so (and again after as long).
pub const ORPHAN_WARN_EVERY: Duration = Duration::from_secs(5);

/// How long leftovers of an earlier agent may resist before its start gives up.
pub const LEFTOVERS_MAX: Duration = Duration::from_secs(30);

/// Bytes of the server log that are searched for the reason of an exit.
pub const LOG_TAIL_BYTES: u64 = 8192;

/// Lines of a tool's output kept for its error message.
pub const TOOL_TAIL_LINES: usize = 12;

/// Lines of a tool's output that may wait for the reader before the tool waits.
pub const TOOL_LINES_QUEUED: usize = 64;

/// Statement timeout of questions: an answer later than this is no use to a decision.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connection timeout of the local socket: longer means the server is not well.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between tries to reach a starting server.
pub const READY_POLL: Duration = Duration::from_millis(30);

/// Pause between looks whether the walreceiver is gone.
pub const WALRECEIVER_POLL: Duration = Duration::from_millis(1);

/// Pause between looks whether promotion has ended.
pub const PROMOTE_POLL: Duration = Duration::from_millis(2);

/// How long replay may take to pause: it looks between two records.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long a copy of a standby may take until it can be read.
pub const PAST_START_MAX: Duration = Duration::from_secs(3600);

/// Pause between looks how far such a copy has replayed.
pub const PAST_POLL: Duration = Duration::from_millis(200);

/// Highest timeline that may be reserved below a grant: bounds the files that one promotion writes.
pub const TIMELINES_RESERVED_MAX: u32 = 20_000;

/// Largest history file that is read: some ten thousand promotions.
pub const HISTORY_BYTES_MAX: u64 = 4 << 20;

/// Pause between two disk probes.
pub const DISK_PROBE_EVERY: Duration = Duration::from_millis(250);

/// Bytes of one disk probe: one page of most file systems.
pub const DISK_PROBE_BYTES: usize = 4096;

/// Directories `<data>.before-<n>` that are tried before giving up.
pub const BEFORE_DIRS_MAX: u32 = 1000;

/// Pause before the postmaster's pipe is looked for again, where it was not found: that reads every
/// process of the host.
pub const LIFELINE_RETRY: Duration = Duration::from_secs(1);

/// How long the reader of a slot that is dropped may take to end, in milliseconds: a walsender looks at
/// its signals many times a second, unless it is stuck in a plugin.
pub const CONSUMER_END_MILLISECONDS: u32 = 3000;

/// What a person's query may take beyond its own limit, logging in and preparing it included.
pub const VALIDATION_GRACE: Duration = Duration::from_secs(3);

/// How long making a logical slot on a standby may wait: every transaction that runs when it begins has
/// to end first, and it is tried again.
pub const SLOT_MAKE_MAX: Duration = Duration::from_secs(300);

/// How long moving a logical slot may take: it reads the log from where the oldest transaction began.
pub const SLOT_ADVANCE_MAX: Duration = Duration::from_secs(60);

/// What the answer of a statement may take beyond its own limit.
pub const DECODER_ANSWERS: Duration = Duration::from_secs(5);
