//! Every size and time of this crate.

use std::time::Duration;

/// Bytes read at once from a client or a server by a thread.
pub const SCRATCH: usize = 64 * 1024;

/// Bytes read at once from a server by a session of another node; bytes that are sent in one piece.
pub const CHUNK: usize = 32 * 1024;

/// Bytes that wait for a slow reader before its sender is not read any more.
pub const PENDING_MAX: usize = 64 * 1024;

/// Bytes that an empty buffer of what a client or a server said keeps.
pub const KEPT_STASH: usize = 512;

/// Bytes that an empty buffer of a server's connection keeps.
pub const KEPT_BYTES: usize = 64 * 1024;

/// How long a client may take from connecting to being logged in, TLS included.
pub const STARTUP_WAIT: Duration = Duration::from_secs(10);

/// How many sessions a node relays for gateways of other nodes when the options say nothing.
pub const SESSIONS_MAX: usize = 1_000;

/// Longest pause between two looks at a gate that holds; a renewal wakes at once.
pub const HOLD_POLL: Duration = Duration::from_millis(5);

/// How long a client may take to read why its session ends.
pub const GOODBYE_WAIT: Duration = Duration::from_secs(1);

/// How long a cancel request may take altogether.
pub const CANCEL_WAIT: Duration = Duration::from_secs(5);

/// Pause after a failed accept, which is mostly a lack of file descriptors.
pub const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Bytes of a query that are looked at; a longer one is taken to do anything.
pub const QUERY_SEEN: usize = 64 * 1024;

/// Longest statement that is kept, to be prepared again on other servers; the client of a longer
/// one keeps its server.
pub const PARSE_MAX: usize = 1024 * 1024;

/// Longest unnamed statement that servers keep for the next client that sends the same.
pub const SHARED_MAX: usize = 16 * 1024;

/// Bytes of the names in Bind, Describe, Close and Execute.
pub const NAMES_SEEN: usize = 256;

/// Longest error or notice that is looked into before it is passed on.
pub const REPORT_SEEN: usize = 16 * 1024;

/// Bytes of requests that are looked at together before a server is chosen; more go to the writer.
pub const GROUP_MAX: usize = 64 * 1024;

/// Longest request that is kept until its answer begins, to be made again elsewhere.
pub const REPLAY_MAX: usize = 16 * 1024;

/// Statements of a transaction on a replica that are made again on the writer.
pub const STORY_MAX: usize = 64;

/// How often a request is made again.
pub const RETRIES_MAX: u32 = 3;

/// Replication connections to a writer: PostgreSQL has 32 places, of which the cluster's own nodes
/// and copies in the making need up to 18.
pub const REPLICATION_MAX: usize = 8;

/// Replication connections of one account through a gateway: a subscription that copies its tables
/// has four.
pub const REPLICATION_ACCOUNT_MAX: usize = 6;

/// How long the login of a replication connection may wait for standbys.
pub const REPLICATION_LOGIN_WAIT: Duration = Duration::from_secs(30);

/// How often a client whose stream is held back is made to say that it lives: often enough for the
/// server's `wal_sender_timeout` of 10 s.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(2);

/// Bytes of a slow statement that are told in the log.
pub const TOLD_MAX: usize = 1024;

/// Dead entries among shared statements before they are cleared away.
pub const STATEMENTS_SWEPT: usize = 1_000;

/// Idle connections that are looked at for one with the settings wanted.
pub const SETTINGS_LOOK: usize = 4;

/// Room for what a client is told when it comes in; most need less.
pub const WELCOME: usize = 1024;

/// Transactions that were not as the last ones, until others are expected to be so too.
pub const FOLLOWS_LEAD: i8 = 8;

/// Texts that standbys refused, remembered for each account.
pub const REFUSED_MAX: usize = 10_000;

/// Sets of settings of logins, remembered for each account.
pub const LOGINS_KNOWN_MAX: usize = 64;

/// Longest message of a server during its greeting.
pub const GREETING_MAX: usize = 64 * 1024;

/// How long opening a connection to a server may take.
pub const OPEN_WAIT: Duration = Duration::from_secs(5);

/// How long a server may take over a question of the gateway's own: they are about its session and its
/// catalog, and whoever waits for the answer has asked for nothing yet.
pub const QUESTION_WAIT: Duration = Duration::from_secs(60);

/// How long a server may take to end what nobody waits for any more before it is given up.
pub const FINISH_WAIT: Duration = Duration::from_secs(5);

/// Connections that a thread opens at a time.
pub const DIALS_MAX: usize = 8;

/// First pause before a server that could not be reached is tried again; it doubles.
pub const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Longest such pause.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_millis(200);

/// How many transactions under way on the writer a replica is asked about.
pub const HIDDEN_MAX: usize = 1000;

/// How often a held client looks whether there is a writer although nothing says so.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How old knowledge of a role may be, in milliseconds.
pub const ROLE_AGE_MS: u64 = 1_000;

/// Roles that are remembered.
pub const ROLES_MAX: usize = 10_000;

/// How old knowledge of a database's functions may be, in milliseconds, when a connection is opened.
pub const FUNCTIONS_AGE_MS: u64 = 10_000;

/// The same when no connection is opened for long.
pub const FUNCTIONS_OLD_MS: u64 = 60_000;

/// Followed connections before dead ones are cleared away.
pub const FOLLOWED_SWEPT: usize = 256;

/// How often a thread looks after its waiting clients.
pub const TICK: Duration = Duration::from_millis(100);

/// Ticks between two looks after idle connections.
pub const TICKS_PER_LOOK: u64 = 10;

/// Bits of a client's number within its thread; above it stands the number of the thread.
pub const CLIENT_ID_BITS: u32 = 24;
/// The same as a mask.
pub const CLIENT_ID_MASK: u32 = (1 << CLIENT_ID_BITS) - 1;

/// Longest password message of a client.
pub const PASSWORD_MAX: usize = 8 * 1024;

/// Threads of a gateway at the most.
pub const WORKERS_MAX: u8 = 64;

/// Tasks that a thread runs between two looks at its sockets.
pub const EVENT_INTERVAL: u32 = 61;

/// Prepared statements that a server keeps whatever its pool says: what one pipeline may use.
pub const PREPARED_MIN: usize = 64;

/// Bytes of an answer to several statements that are kept back until the last of them is done.
pub const HELD_MAX: usize = 256 * 1024;

/// Bytes of the answer to one read on a replica that are kept back until it is done: as much as
/// PostgreSQL itself keeps back, so that nobody waits longer for a row.
pub const HELD_READ_MAX: usize = 8 * 1024;

/// The same after a statement called a function that is not known.
pub const FUNCTIONS_UNKNOWN_AGE_MS: u64 = 1_000;
/// Milliseconds after which a client is warned again that a replica is later than agreed.
pub const WARN_AGAIN_MS: u64 = 60_000;
/// How long logical consumers wait for a late replica with each piece of what they are told: their slots
/// keep log meanwhile.
pub const CONSUMERS_WAIT_MAX: Duration = Duration::from_secs(300);
/// How long the reader of a slot waits for a new writer to say whether it has all of it: the writer looks
/// each second.
pub const SLOT_JUDGED_WAIT: Duration = Duration::from_secs(10);
