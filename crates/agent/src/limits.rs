//! Named limits of the agent.

use std::time::Duration;

/// How often the server is asked how it is.
pub const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How long one such question may take.
pub const PROBE_WAIT: Duration = Duration::from_secs(1);
/// A server that answered before and has not for this long is hung.
pub const HUNG_AFTER: Duration = Duration::from_millis(1800);
/// A disk write of the writer that takes longer than this is a stuck disk.
pub const DISK_STUCK_AFTER: Duration = Duration::from_secs(3);
/// A standby's disk counts as healthy below this latency.
pub const DISK_HEALTHY: Duration = Duration::from_millis(500);
/// The loop looks at everything at least this often.
pub const CYCLE: Duration = Duration::from_millis(250);
/// The coordinator looks at the cluster at least this often.
pub const COORDINATE_EVERY: Duration = Duration::from_millis(100);
/// A node that does not coordinate looks at least this often whether it should: silence tells
/// nothing by itself, and the warden of consensus watches the leader more closely.
pub const ATTEND_EVERY: Duration = Duration::from_millis(400);
/// Heartbeat interval.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);
/// How long ending a walreceiver may take.
pub const FREEZE_WAIT: Duration = Duration::from_secs(3);
/// Pause between looks at a log that is still being replayed.
pub const POSITION_POLL: Duration = Duration::from_millis(5);
/// How long a promotion may take, replay included.
pub const PROMOTE_WAIT: Duration = Duration::from_secs(60);
/// How long a server may take to accept connections; crash recovery of much log included.
pub const START_WAIT: Duration = Duration::from_secs(3600);
/// Pause before consensus is asked again what was agreed so far; one question already waits.
pub const CONFIRM_RETRY: Duration = Duration::from_millis(200);
/// Pause before a failed job is tried again.
pub const JOB_RETRY: Duration = Duration::from_secs(1);
/// How long a standby's wish to follow waits for a writer that is being promoted.
pub const HELLO_WAIT: Duration = Duration::from_secs(3);
/// Largest greeting on a WAL tunnel: a history of a few thousand timelines.
pub const HELLO_BYTES_MAX: usize = 1024 * 1024;
/// How long a former writer's server stays down for the sake of the next writer's promotion.
pub const YIELD: Duration = Duration::from_millis(300);
/// How long a switchover waits until its target has everything, while clients are held.
pub const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How long the checkpoint before a switchover may take.
pub const CHECKPOINT_WAIT: Duration = Duration::from_secs(60);
/// A standby whose feedback stopped for so long is away, though its connection looks alive: a
/// healthy one speaks each second.
pub const FEEDBACK_SILENCE: Duration = Duration::from_secs(3);
/// Pause before a marker that failed is written again.
pub const MARKER_RETRY: Duration = Duration::from_millis(20);
/// Messages from jobs that may wait for the loop.
pub const MESSAGES_MAX: usize = 64;
/// Pause between two attempts to admit a member to consensus.
pub const MEMBERSHIP_RETRY: Duration = Duration::from_secs(2);
/// How long a diverged node leaves a writer without enough copies alone before it copies from it
/// although that writer does not serve yet.
pub const REJOIN_WAIT: Duration = Duration::from_secs(5);
/// How long a switchover lets transactions go on that have begun, while others are held.
pub const CALM_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks at them.
pub const CALM_POLL: Duration = Duration::from_millis(4);
/// Looks in a row that must find none.
pub const CALM_LOOKS: u32 = 3;
/// How long a switchover waits, with clients held, for running statements to end.
pub const QUIET_WAIT: Duration = Duration::from_millis(250);
/// Bytes of log kept of one diverged tail.
pub const KEPT_TAIL_BYTES_MAX: u64 = 1 << 30;
/// Diverged tails kept on a node.
pub const KEPT_TAILS_MAX: usize = 3;
