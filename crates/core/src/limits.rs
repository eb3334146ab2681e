//! Named limits of the replicated state and its decisions.

use std::time::Duration;

/// Events kept in the replicated history; older ones are dropped.
pub const EVENTS_MAX: usize = 500;
/// Reigns kept, for lineage and position order. A position older than these orders lowest.
pub const REIGNS_MAX: usize = 500;
/// Rules in force at once: a change that cannot close may be superseded so many times.
pub const RULES_OPEN_MAX: usize = 5;
/// Versions of the cluster document kept for `config history`.
pub const DOCUMENTS_MAX: usize = 50;
/// Drills remembered.
pub const DRILLS_MAX: usize = 50;
/// Longest time without an acknowledged write in a drill that clients should not notice.
pub const UNDISTURBED_GAP: Duration = Duration::from_secs(2);
/// Join tokens outstanding at once.
pub const TOKENS_MAX: usize = 100;
/// Nodes in a cluster.
pub const NODES_MAX: usize = 16;
/// Terms that `recover --force-new-epoch` skips, so that no grant in flight can collide.
pub const FORCED_EPOCH_TERMS: u64 = 1000;
/// Timelines it skips: lost nodes may have been granted some that the survivor never heard of.
pub const FORCED_EPOCH_TIMELINES: u32 = 100;

/// How long an election that could conclude waits for members that are about to report.
pub const BETTER_CANDIDATE_WAIT: Duration = Duration::from_millis(100);
/// How long an election waits for the node that a switchover named, while it can be heard.
pub const PREFERRED_WAIT: Duration = Duration::from_secs(1);
/// How long an election that may lose commits waits for any copy within reach.
pub const LOSSY_WAIT: Duration = Duration::from_secs(2);
/// How long a grantee that shows no progress may take to open before another election.
pub const OPEN_WAIT: Duration = Duration::from_secs(5);
/// How long a grantee that reports progress may take to open.
pub const OPEN_WAIT_MAX: Duration = Duration::from_secs(60);
/// In `async` timing: how long an election waits for the old writer's own report.
pub const ASYNC_WRITER_WAIT: Duration = Duration::from_secs(5);
/// A cohort member's absence before the commit rule goes on without it, when enough copies remain.
pub const COHORT_ABSENCE: Duration = Duration::from_secs(30);
/// A cohort member's absence before the rule is degraded because commits are waiting.
pub const DEGRADE_AFTER: Duration = Duration::from_secs(3);
/// A coordinator that has decided nothing for so long forgets since when members are absent.
pub const COORDINATOR_GAP: Duration = Duration::from_secs(5);
/// Replay and receive lag within which a standby may enter the cohort (rule R15).
pub const COHORT_ENTRY_LAG: u64 = 16 * 1024 * 1024;
/// Lag within which a switchover may start.
pub const SWITCHOVER_LAG: u64 = 1024 * 1024;
/// Failovers for crashes within [`FLAP_WINDOW`] after which the next ones are slowed.
pub const FLAP_MAX: usize = 6;
/// The window that [`FLAP_MAX`] counts in.
pub const FLAP_WINDOW: Duration = Duration::from_secs(20);
/// Delay between failovers once [`FLAP_MAX`] is reached.
pub const FLAP_DELAY: Duration = Duration::from_secs(5);
/// Leases a writer may be without before it stops its server.
pub const LEASELESS_STOP: u32 = 3;
/// Rules for access in a cluster document: each login walks through them.
pub const ACCESS_RULES_MAX: usize = 1000;
/// Rules for pools in a cluster document: each new pair of database and role walks through them.
pub const POOL_RULES_MAX: usize = 1000;
/// Longest name in PostgreSQL, in bytes.
pub const PG_NAME_MAX: usize = 63;

// The pace of a node: how often the loop around the decisions looks, and when it calls something
// late. Here, so that simulated nodes keep the same.

/// The loop looks at everything at least this often.
pub const CYCLE: Duration = Duration::from_millis(250);
/// The coordinator looks at the cluster at least this often.
pub const COORDINATE_EVERY: Duration = Duration::from_millis(100);
/// A node that does not coordinate looks at least this often whether it should: silence tells
/// nothing by itself, and the warden of consensus watches the leader more closely.
pub const ATTEND_EVERY: Duration = Duration::from_millis(400);
/// Heartbeat interval.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);
/// How often the server is asked how it is.
pub const PROBE_EVERY: Duration = Duration::from_millis(250);
/// A server that answered before and has not for this long is hung.
pub const HUNG_AFTER: Duration = Duration::from_millis(1800);
/// A disk write of the writer that takes longer than this is a stuck disk.
pub const DISK_STUCK_AFTER: Duration = Duration::from_secs(3);
/// A standby's disk counts as healthy below this latency.
pub const DISK_HEALTHY: Duration = Duration::from_millis(500);
/// Pause before a failed job is tried again.
pub const JOB_RETRY: Duration = Duration::from_secs(1);
/// How long a former writer's server stays down for the sake of the next writer's promotion.
pub const YIELD: Duration = Duration::from_millis(300);
/// How long a diverged node leaves a writer without enough copies alone before it copies from it
/// although that writer does not serve yet.
pub const REJOIN_WAIT: Duration = Duration::from_secs(5);
/// A standby whose feedback stopped for so long is away, though its connection looks alive: a
/// healthy one speaks each second.
pub const FEEDBACK_SILENCE: Duration = Duration::from_secs(3);
/// Pause before a marker that failed is written again.
pub const MARKER_RETRY: Duration = Duration::from_millis(20);

/// Growth of a writer's log within this time is not told apart when lag is measured.
pub const LAG_GAP: Duration = Duration::from_millis(20);
/// Lag is known to one part in so many of itself.
pub const LAG_SHARE: u32 = 128;
/// Points in time of a writer's log that are kept to measure lag: a day and more.
pub const LAG_MARKS_MAX: usize = 4096;
