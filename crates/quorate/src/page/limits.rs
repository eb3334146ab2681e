//! Named limits of the page.

use std::time::Duration;

/// How often the cluster is looked at while somebody watches: twice within the second that the page
/// may be behind.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Pause between two looks when the cluster has just agreed on something: a hand-over shows its steps,
/// and a burst of them costs no more than that.
pub const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How often the charts are drawn anew: their newest point stands for as long.
pub const CHART_EVERY: Duration = Duration::from_secs(5);
/// How often a watcher hears something although nothing changed, so that it notices a cut.
pub const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// Watchers at a time on one node: more people than look at a cluster at once, and each costs a
/// task and what changed twice a second.
pub const WATCHERS_MAX: usize = 32;
/// Sections that may wait for a slow watcher; what it misses meanwhile is replaced by what is newer.
pub const SECTIONS_WAITING_MAX: usize = 16;
/// How often the checklist is gone through while somebody looks.
pub const REVIEW_EVERY: Duration = Duration::from_secs(20);
/// How long that may take: it asks the local server a question.
pub const REVIEW_WAIT: Duration = Duration::from_millis(150);
/// How often the writer's node is asked for its slots.
pub const SLOTS_EVERY: Duration = Duration::from_secs(2);
/// How long its answer may take.
pub const SLOTS_WAIT: Duration = Duration::from_millis(150);
/// Slots shown, those that need somebody first; `quorate slots` shows all.
pub const SLOTS_SHOWN_MAX: usize = 60;
/// Of these, what stands open, the worst first: the others unfold.
pub const SLOTS_OPEN_MAX: usize = 10;
/// How long the gateway's threads may take to say what they counted: the page does not wait for a
/// busy one.
pub const METER_WAIT: Duration = Duration::from_millis(100);
/// How often the gateway's counts are remembered for its charts.
pub const TREND_EVERY: Duration = Duration::from_secs(10);
/// And how many of them: half an hour.
pub const TREND_POINTS_MAX: usize = 180;
/// Points of a line in a chart: one for each few pixels.
pub const CHART_POINTS_MAX: usize = 120;
/// Events shown; all that are kept are at /api/events.
pub const EVENTS_SHOWN_MAX: usize = 80;
/// Of these, what stands open: the others unfold.
pub const EVENTS_OPEN_MAX: usize = 8;
/// Drills shown.
pub const DRILLS_SHOWN_MAX: usize = 20;
/// Pools and routes shown, the busiest first.
pub const POOLS_SHOWN_MAX: usize = 40;
/// Nodes above which only those have a card, a row or a place of their own that are not as they should be.
pub const CARDS_FULL_MAX: usize = 16;
/// Nodes up to which the cluster leaves room for the events beside it.
pub const NODES_FEW_MAX: usize = 6;
/// How long somebody stays logged in: a working day and the night shift's beginning.
pub const LOGIN_LASTS: Duration = Duration::from_secs(12 * 3600);
/// Logins at a time on one node: more than administrators; the oldest ends for another one.
pub const LOGINS_MAX: usize = 64;
/// Wrong tokens from one address within [`WRONG_WITHIN`], after which it is not listened to.
pub const WRONG_MAX: u32 = 10;
/// How long wrong tokens count.
pub const WRONG_WITHIN: Duration = Duration::from_secs(60);
/// Addresses whose wrong tokens are remembered; the oldest is forgotten for another one.
pub const WRONG_ADDRESSES_MAX: usize = 1024;
/// How long a TLS handshake, or the first byte of a connection, may take.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// Connections whose handshake is under way: more are taken when one of them is done.
pub const HANDSHAKES_MAX: usize = 64;
/// Candidates that are not folded away.
pub const CANDIDATES_OPEN_MAX: usize = 8;
/// Standbys whose lag is drawn: of the others the figures are told. A chart has two kilobytes, and they
/// are sent every few seconds.
pub const CHARTS_MAX: usize = 9;
/// Troubles that are not folded away.
pub const TROUBLES_OPEN_MAX: usize = 12;
/// Drills that are not folded away.
pub const DRILLS_OPEN_MAX: usize = 5;
