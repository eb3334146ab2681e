//! Named limits of the harness.

use std::time::Duration;

/// Clusters that run at once in one test process: the machines have two cores.
pub const CLUSTERS_AT_ONCE: usize = 2;
/// How often a condition that is waited for is looked at.
pub const POLL: Duration = Duration::from_millis(20);
/// How long a new cluster may take from nothing to healthy.
pub const START: Duration = Duration::from_secs(90);
/// How long a cluster may take to serve writes again after a single fault.
pub const RECOVER: Duration = Duration::from_secs(30);
/// How long a node may take to be a full member again, a clone included.
pub const REJOIN: Duration = Duration::from_secs(90);
/// How long a command of the command line may take.
pub const COMMAND: Duration = Duration::from_secs(180);
/// How long the status page may take to answer.
pub const STATUS: Duration = Duration::from_secs(1);
/// How long any page may take of a node from which an answer is expected.
pub const PAGE: Duration = Duration::from_secs(15);
/// How long a query through a private socket may take.
pub const LOCAL_QUERY: Duration = Duration::from_secs(10);
/// How long a query with elevated rights through a gateway may take.
pub const ADMIN_QUERY: Duration = Duration::from_secs(15);
/// Last lines of each node's log that a failure prints.
pub const LOG_TAIL: usize = 40;
/// Bytes a cable carries at once.
pub const CABLE_CHUNK: usize = 64 * 1024;
/// First port that nodes are given; below the range the kernel hands out by itself.
pub const PORT_FIRST: u16 = 12_000;
/// Ports that are tried, from the first on.
pub const PORT_COUNT: u16 = 18_000;
/// Time between two writes of a workload client.
pub const WRITE_INTERVAL: Duration = Duration::from_millis(10);
/// How long a workload client waits for a login.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(500);
/// How long a workload client waits for a statement.
pub const STATEMENT_LIMIT: Duration = Duration::from_secs(1);
/// Pause after a failed login, so that a cluster that refuses is not flooded.
pub const LOGIN_PAUSE: Duration = Duration::from_millis(10);
/// Size of an HTTP answer that is read.
pub const ANSWER_MAX: u64 = 4 * 1024 * 1024;
/// Sessions that a crowd opens before it gives up finding a limit.
pub const CROWD_MAX: usize = 300;
/// Times that a crowd tries to take all places of an application.
pub const CROWD_TRIES: usize = 20;
/// Identifiers that a failed check names.
pub const NAMED_MAX: usize = 10;
/// How long a session waits for the next bytes of an answer.
pub const ANSWER: Duration = Duration::from_secs(20);
/// How long clients of an attack wait for an answer, by choice. The gateway holds them for 10 s.
pub const PATIENCE: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(15)];
/// The longest pause of a client of an attack between two operations.
pub const PACE: Duration = Duration::from_millis(40);
/// Size of a node's disk that can be filled.
pub const DISK_MIB: u32 = 1024;
/// Times that replay is told to go on.
pub const RESUMES: usize = 20;
