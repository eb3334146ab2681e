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
/// How a replica's lag is remembered: a point each so often, and how many of them. Ten minutes as it
/// was sampled, a day in tens of seconds, a month in fives of minutes: less than half a megabyte of
/// memory for each replica.
pub const LAG_LEVELS: [(Duration, usize); 3] = [
    (Duration::from_millis(250), 2400),
    (Duration::from_secs(10), 8640),
    (Duration::from_secs(300), 8640),
];
/// Points of lag in one answer: more than a screen is wide.
pub const LAG_POINTS_ASKED_MAX: usize = 2400;
/// How often the writer's node looks at the lag of every standby and judges its contract.
pub const LAG_EVERY: Duration = Duration::from_millis(100);
/// How often a writer's node asks a standby how far it has replayed, which PostgreSQL by itself says once
/// a second: lag is known that much too large at the most.
pub const LAG_ASK_EVERY: Duration = Duration::from_millis(40);

/// Longest silence of alerts.
pub const SILENCE_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1000;
/// Silences at once.
pub const SILENCES_MAX: usize = 100;
/// A node that is not heard for so long is missed.
pub const NODE_SILENT: Duration = Duration::from_secs(3);
/// How long an alert tells of a failover.
pub const FAILOVER_SHOWN_MS: u64 = 15 * 60 * 1000;
/// Certificates are renewed by themselves long before: this much is left only when that fails.
pub const CERTIFICATE_WARNING: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// The same when somebody should get up.
pub const CERTIFICATE_CRITICAL: Duration = Duration::from_secs(3 * 24 * 60 * 60);
/// How far the wall clocks of nodes may lie apart. A node's word of it is half a second old.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_secs(2);
/// Free parts of a hundred of a disk below which it is looked at.
pub const DISK_WARNING_PERCENT: u64 = 15;
/// The same when somebody should get up.
pub const DISK_CRITICAL_PERCENT: u64 = 5;

/// How often a node looks at its slots and at the disk of its log: a disk that has a thousandth of a
/// second left cannot be helped, one that has some seconds can.
pub const SLOTS_EVERY: Duration = Duration::from_secs(1);
/// How long a node must have followed the writer before others follow it again: one that comes and goes
/// is not worth a change each time.
pub const UPSTREAM_SETTLES: Duration = Duration::from_secs(5);
/// How long a node that refused to feed another is not asked again.
pub const UPSTREAM_REFUSED: Duration = Duration::from_secs(30);
/// Slots that can be adopted: a server has 32 at the most.
pub const SLOTS_ADOPTED_MAX: usize = 64;
/// Slots that standbys carry: a server has no more.
pub const SLOTS_CARRIED_MAX: usize = 32;
/// The first major version that decodes on standbys.
pub const CARRY_MAJOR_MIN: u32 = 16;
/// Letters of the reason why a slot cannot be carried, which heartbeats tell.
pub const CARRY_WHY_MAX: usize = 160;
/// Slots whose trouble a writer tells with its heartbeats; the others are told when asked.
pub const SLOTS_TOLD_MAX: usize = 8;
/// Least budget of a slot: less than a few segments of log is over at once.
pub const SLOT_BUDGET_MIN: u64 = 16 * 1024 * 1024;
/// Longest name of an owner or a consumer, in bytes: they stand in sentences.
pub const SLOT_WORDS_MAX: usize = 200;
/// Share of its budget, in per cent, from which on a slot is near its end.
pub const SLOT_NEAR_PERCENT: u64 = 80;
/// Share below which it is not near any more.
pub const SLOT_RELAX_PERCENT: u64 = 70;
/// How long a slot may be over its budget before it is dropped, while the disk has room: a burst that
/// its consumer works off is no reason to end it.
pub const SLOT_OVER_GRACE: Duration = Duration::from_secs(5);
/// The time that the pace of something is told from: long enough to hold a checkpoint or two.
pub const SLOT_PACE_WINDOW: Duration = Duration::from_secs(300);
/// Least time that a pace can be told from.
pub const SLOT_PACE_LEAST: Duration = Duration::from_secs(5);
/// Pause between what is remembered for it.
pub const SLOT_PACE_EVERY: Duration = Duration::from_secs(10);

/// Part of a disk below which writes stop.
pub const DISK_STOP_SHARE: u64 = 20;
/// Least of it: some segments of log, and what is under way in the seconds until all gateways know.
pub const DISK_STOP_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Most of it: a gigabyte lasts for ten seconds of the fastest log, and nobody misses it.
pub const DISK_STOP_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// People are told at so many times that.
pub const DISK_WARN_FACTOR: u64 = 4;
/// How long there must be room again before writes go on.
pub const DISK_CALM: Duration = Duration::from_secs(3);
/// Part of a disk that the reserve takes.
pub const DISK_RESERVE_SHARE: u64 = 50;
/// Most of it: a start after a crash needs some segments of log, and no more.
pub const DISK_RESERVE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How long writes are stopped before another node writes whose disk has room: a slot that is dropped,
/// or a checkpoint, may make some sooner.
pub const DISK_HAND_OVER_AFTER: Duration = Duration::from_secs(5);
/// Pause before that is tried again, when it was given up.
pub const DISK_HAND_OVER_RETRY: Duration = Duration::from_secs(30);

/// Queries of a cluster document that a new writer runs: they are run one after the other.
pub const VALIDATIONS_MAX: usize = 32;
/// Longest name of such a query, in bytes.
pub const VALIDATION_NAME_MAX: usize = 63;
/// Longest text of one, in bytes: the document is in the record of every node, in many versions.
pub const VALIDATION_SQL_BYTES_MAX: usize = 16 * 1024;
/// Least time that one may be given: less than that a busy server needs to log a role in.
pub const VALIDATION_TIMEOUT_MS_MIN: u64 = 100;
/// Most of it: what takes longer is a report, and no look at a writer that has just begun.
pub const VALIDATION_TIMEOUT_MS_MAX: u64 = 300_000;
/// Longest part of a server's message that is told, in characters: it stands in sentences.
pub const VALIDATION_WORDS_MAX: usize = 200;

/// Bytes of a page of the log: PostgreSQL's `XLOG_BLCKSZ`, of which Debian's and everybody's packages
/// have no other.
pub const WAL_PAGE_BYTES: u64 = 8192;
