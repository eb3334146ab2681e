//! Every bound of this crate, each with its reason.

use std::time::Duration;

/// Longest JSON part of one message in bytes: several times the largest batch of entries.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Longest binary part of one message in bytes: one snapshot chunk, with room to spare.
pub const BLOB_BYTES_MAX: usize = 4 << 20;

/// Snapshot bytes sent in one message: small enough that heartbeats slip in between.
pub const SNAPSHOT_CHUNK_BYTES: u64 = 256 << 10;

/// Longest command as JSON in bytes; a larger one is refused before it enters the log.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// Entries sent in one replication message.
pub const BATCH_ENTRIES_MAX: u64 = 300;

/// Bytes of entries sent in one replication message; a single larger entry still goes alone.
pub const BATCH_BYTES_MAX: usize = 2 << 20;

/// Entries after which a snapshot is taken, so that a restart replays little.
pub const SNAPSHOT_EVERY: u64 = 2000;

/// Entries kept after a snapshot, so that a node that was away briefly needs no snapshot.
pub const ENTRIES_KEPT: u64 = 1000;

/// Requests waiting to be written to one peer; beyond it the peer counts as unreachable.
pub const PEER_QUEUE_MAX: usize = 256;

/// Requests of one incoming stream handled at once; the next one is not read before one ends.
pub const SERVE_INFLIGHT_MAX: usize = 64;

/// How long connecting to a peer may take.
pub const DIAL_WITHIN: Duration = Duration::from_secs(2);

/// Pause before a peer that could not be reached is tried again.
pub const DIAL_PAUSE: Duration = Duration::from_millis(100);

/// How long sending and installing one snapshot chunk may take.
pub const SNAPSHOT_CHUNK_WITHIN: Duration = Duration::from_secs(10);

/// How long a proposal may wait for a leader and then for its commit.
pub const PROPOSE_WITHIN: Duration = Duration::from_secs(5);

/// How long a linearizable read may wait for a leader, its proof and the local apply.
pub const READ_WITHIN: Duration = Duration::from_secs(5);

/// How long a change of members may take without the learner's catching up.
pub const MEMBER_WITHIN: Duration = Duration::from_secs(10);

/// Least time between two changes of voters; part of [`MEMBER_WITHIN`].
pub use quorate_core::lease::VOTERS_REST;

/// How long a new learner may take to catch up before it is left a learner.
pub const CATCH_UP_WITHIN: Duration = Duration::from_secs(60);

/// Entries a learner may lack and still become a voter; the rest follows in one message.
pub const CATCH_UP_ENTRIES: u64 = 100;

/// Time a forwarded request is allowed on its way, on top of what the leader is allowed.
pub const FORWARD_GRACE: Duration = Duration::from_millis(500);

/// Pause before a request is tried again at what may be a new leader.
pub const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Quiet time after a write before it is sealed by another; see the store's notes on damage.
pub const SEAL_AFTER: Duration = Duration::from_millis(200);

/// How often the warden looks at leadership.
pub const WARDEN_CYCLE: Duration = Duration::from_millis(100);

/// How long a reluctant node sees no leader before it may campaign after all.
pub const RELUCTANCE_MAX: Duration = Duration::from_millis(2500);

/// How long a reluctant leader keeps silent for another to take over before it gives up.
pub const HANDOVER_WITHIN: Duration = Duration::from_secs(5);

/// Pause after a handover that nobody accepted before the next is tried.
pub const HANDOVER_PAUSE: Duration = Duration::from_secs(10);

/// Time beyond the lease before campaigning at once, for the voters' clocks and ours.
pub const LEASE_MARGIN: Duration = Duration::from_millis(10);

/// How long `found` waits for the new single voter to lead.
pub const FOUND_WITHIN: Duration = Duration::from_secs(10);

/// Memory for pages of the store; the log is held decoded, so the file is hardly ever read.
pub const PAGE_CACHE_BYTES: usize = 8 << 20;

/// Pause before what a full disk did not take is written again.
pub const FULL_PAUSE: Duration = Duration::from_millis(250);
