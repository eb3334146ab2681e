//! Named limits of the agent.

use std::time::Duration;

// The pace of a node, which the simulator keeps too.
pub use quorate_core::limits::{
    ATTEND_EVERY, COORDINATE_EVERY, CYCLE, DISK_HEALTHY, DISK_STUCK_AFTER, FEEDBACK_SILENCE,
    HEARTBEAT_EVERY, HUNG_AFTER, JOB_RETRY, MARKER_RETRY, PROBE_EVERY, REJOIN_WAIT, YIELD,
};

/// How long one such question may take.
pub const PROBE_WAIT: Duration = Duration::from_secs(1);
/// How long ending a walreceiver may take.
pub const FREEZE_WAIT: Duration = Duration::from_secs(3);
/// Pause between looks at a log that is still being replayed.
pub const POSITION_POLL: Duration = Duration::from_millis(5);
/// How long a promotion may take, replay included.
pub const PROMOTE_WAIT: Duration = Duration::from_secs(60);
/// How long a server may take to accept connections; crash recovery of much log included.
pub const START_WAIT: Duration = Duration::from_secs(3600);
/// How long a server that is starting asks for log until it is taken for one that cannot start without:
/// whoever has enough answers at once.
pub const START_ASKS: Duration = Duration::from_secs(3);
/// Pause before consensus is asked again what was agreed so far; one question already waits.
pub const CONFIRM_RETRY: Duration = Duration::from_millis(200);
/// How long a standby's wish to follow waits for a writer that is being promoted.
pub const HELLO_WAIT: Duration = Duration::from_secs(3);
/// Largest greeting on a WAL tunnel: a history of a few thousand timelines.
pub const HELLO_BYTES_MAX: usize = 1024 * 1024;
/// How long a switchover waits until its target has everything, while clients are held.
pub const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How long the checkpoint before a switchover may take.
pub const CHECKPOINT_WAIT: Duration = Duration::from_secs(60);
/// Messages from jobs that may wait for the loop.
pub const MESSAGES_MAX: usize = 64;
/// Pause between two attempts to admit a member to consensus.
pub const MEMBERSHIP_RETRY: Duration = Duration::from_secs(2);
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
/// Least time between two restarts of a server that wants a timeline which its writer never had.
pub const ASTRAY_RETRY: Duration = Duration::from_secs(5);
/// How long dropping a slot may take, the end of its reader included.
pub const SLOT_END_WAIT: Duration = Duration::from_secs(10);
/// Pause between looks whether a node has caught up with one that wants to follow it.
pub const CASCADE_LOOK: Duration = Duration::from_millis(50);
/// How long a node may be silent until those that follow it follow the writer instead.
pub const UPSTREAM_SILENT: Duration = Duration::from_secs(1);
/// How often it is looked whether a standby that may have log has come for it.
pub const KNOCK_EVERY: Duration = Duration::from_millis(50);
/// The longest pause between two knocks at a postmaster.
pub const KNOCK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often the leader of consensus looks for what is wrong.
pub const ALERT_EVERY: Duration = Duration::from_millis(250);
/// How often the writer's node looks whether a validation query is due.
pub const VALIDATE_EVERY: Duration = Duration::from_millis(250);
/// Pause before the cluster is told again what came of one.
pub const VALIDATE_RETRY: Duration = Duration::from_secs(1);
/// Pause between looks whether one has to end because the reign does.
pub const VALIDATE_STOP_POLL: Duration = Duration::from_millis(20);
/// How often a node looks after the slots that it carries: one that is behind by a second hands out
/// the changes of a second twice.
pub const CARRY_EVERY: Duration = Duration::from_secs(1);
/// How many times as long as it took to move such a slot it is left alone.
pub const CARRY_REST: u32 = 4;
/// Pause before a slot is made again that could not be made, or did not last.
pub const CARRY_RETRY: Duration = Duration::from_secs(10);
/// How old a node's word of what it carries may be.
pub const CARRY_HEARD: Duration = Duration::from_secs(3);
/// How long logging what runs may take: it writes one record.
pub const CARRY_HELP_WAIT: Duration = Duration::from_secs(2);
