//! The command line. One file per group of commands; `main` parses, these do.

pub mod alerts;
pub mod backfill;
pub mod cluster;
pub mod config;
pub mod ddl;
pub mod delayed;
pub mod demo;
pub mod drill;
pub mod operate;
pub mod plan;
pub mod reach;
pub mod recover;
pub mod review;
pub mod run;
pub mod show;
pub mod slots;
pub mod top;
pub mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use quorate_core::NodeId;
use quorate_core::document::Timing;
use quorate_core::drill::Drill;
use quorate_core::plan::{Domain, Loss, Reads};
use quorate_core::slots::DropPolicy;

/// Replication, failover and one address for ordinary PostgreSQL servers.
///
/// One process per host. `quorate init` makes a cluster, `quorate join` adds a host to it,
/// `quorate run` runs a node, `quorate demo` shows a whole cluster on this machine.
/// What commands ask of nodes is an HTTP API, described at `/api/openapi.json` of each web port.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 refused (the answer says why);
/// 4 no node could be reached.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The node's directory [default: /var/lib/quorate]. For `demo`: keep the data here.
    #[arg(long, global = true, env = "QUORATE_DIR")]
    pub dir: Option<PathBuf>,
    /// Ask the web port of some node instead of the local control socket: https://host:6434, or
    /// http://
    #[arg(long, global = true, env = "QUORATE_URL")]
    pub url: Option<String>,
    /// For https: a file with the certificate of the authority that the web port's own comes from
    /// (`quorate ca` prints the cluster's) [default: that of the node in --dir].
    #[arg(long, global = true, env = "QUORATE_CA")]
    pub ca: Option<PathBuf>,
    /// Admin token for actions through a web port (the node's `admin.token` file).
    #[arg(long, global = true, env = "QUORATE_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// The node's directory.
    pub fn dir(&self) -> &Path {
        self.dir.as_deref().unwrap_or(Path::new("/var/lib/quorate"))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a three-node cluster on this machine, at work, until Ctrl-C. With --dir its data is kept,
    /// and used again next time; otherwise it is in a temporary directory.
    Demo(DemoArgs),
    /// Make a new cluster with this host as its first node.
    Init(InitArgs),
    /// Add this host to a cluster, with a token from `quorate token`.
    Join(JoinArgs),
    /// Run the node of --dir in the foreground.
    Run,
    /// Show the cluster: who writes, who follows, how far behind, who would be next.
    Status {
        /// Show it again each second until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// Show the cluster on one screen, live, until Ctrl-C: nodes, lag over time, alerts, events.
    Top {
        /// Show it once.
        #[arg(long)]
        once: bool,
    },
    /// Explain the cluster as it is now in four sentences: where writes go, how they are copied, what
    /// reads see, what happens when the writer fails.
    Explain {
        /// Say as well what an administrator should think about.
        #[arg(long)]
        long: bool,
    },
    /// Show what happened, with the reason of each event.
    Events {
        /// Newest so many.
        #[arg(long, default_value_t = 30)]
        last: usize,
        /// Go on showing new ones until Ctrl-C.
        #[arg(long)]
        follow: bool,
    },
    /// Show what is wrong: what fires, what is about to, what is silenced.
    Alerts {
        #[command(subcommand)]
        command: Option<alerts::AlertsCommand>,
    },
    /// Review whether the cluster is ready: a checklist of what is proved, refuted or unknown, with the
    /// evidence and what to do. Exit code 3 when something is refuted.
    Review {
        /// Fail as well while something is unknown.
        #[arg(long)]
        strict: bool,
    },
    /// Run the queries of [validation.NAME] in the cluster document on the writer now, as each new writer
    /// does by itself: each must be answered with true. Exit code 1 when one fails. What they show is
    /// recorded, and ends or begins the alert validation-failed.
    Validate {
        /// Only this query.
        name: Option<String>,
    },
    /// Print what Prometheus is told, or what it needs to make something of it.
    Metrics {
        /// `show`: the node's metrics; `rules`: a rule file for Prometheus; `dashboard`: a dashboard
        /// for Grafana.
        #[arg(value_enum, default_value_t = MetricsWord::Show)]
        what: MetricsWord,
    },
    /// Hand the writing over to another node, with a pause of a fraction of a second.
    Switchover {
        /// The next writer. Default: the best standby.
        #[arg(long)]
        to: Option<NodeId>,
        /// Seconds to wait for the outcome.
        #[arg(long, default_value_t = 30)]
        wait: u64,
    },
    /// Start an election now although the writer was not found to be lost.
    Failover {
        /// Preferred next writer among equal logs.
        #[arg(long)]
        to: Option<NodeId>,
        /// Accept that up to so many bytes of the former writer's log are lost (async timing).
        #[arg(long, value_name = "BYTES")]
        allow_loss: Option<u64>,
        /// Seconds to wait for the outcome.
        #[arg(long, default_value_t = 30)]
        wait: u64,
    },
    /// Stop automation: no failover and no change of the commit rule until `resume`.
    Pause,
    /// Resume automation.
    Resume,
    /// Restart PostgreSQL on a node, or on all nodes one after the other.
    Restart {
        /// The node; default: the one asked.
        node: Option<NodeId>,
        /// Every node: standbys first, then a switchover, then the former writer.
        #[arg(long, conflicts_with = "node")]
        rolling: bool,
        /// Seconds to wait for each node.
        #[arg(long, default_value_t = 120)]
        wait: u64,
    },
    /// Throw a standby's data away and copy it from the writer again.
    Rebuild {
        /// The node.
        node: NodeId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Remove a node from the cluster.
    Remove {
        /// The node.
        node: NodeId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Seconds to wait until the commit rule goes on without it.
        #[arg(long, default_value_t = 60)]
        wait: u64,
    },
    /// Turn this host's replica into an ordinary PostgreSQL database outside the cluster.
    Standalone {
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Start over from this node when the majority of nodes is lost for good.
    Recover(RecoverArgs),
    /// Show or change the cluster document.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run a statement portion by portion until it finds nothing more to do, at the pace that the copies'
    /// contracts allow. It may be stopped at any time and run again.
    Backfill(backfill::BackfillArgs),
    /// Get back what was deleted, from a copy that replays later.
    Delayed {
        #[command(subcommand)]
        command: delayed::DelayedCommand,
    },
    /// Look at a migration before it runs.
    Ddl {
        #[command(subcommand)]
        command: DdlCommand,
    },
    /// Rehearse a failure on the running cluster: with clients of its own it measures what a real one
    /// would cost, verifies that nothing is lost, puts everything back and writes a report.
    Drill(DrillArgs),
    /// Show replication slots, adopt them, drop them: whose each is, how much log it keeps, and what
    /// happens when it keeps more than it may.
    Slots(SlotsArgs),
    /// Plan a cluster: how many nodes, where, which timing, and what that cannot promise. Needs no
    /// cluster.
    #[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
    Plan(Box<PlanArgs>),
    /// Print the cluster's authority, with which applications verify the gateways' certificates
    /// (`sslrootcert`).
    Ca,
    /// Make a one-time token with which a host can join.
    Token {
        /// Minutes until it expires.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
    },
}

/// `quorate ddl …`.
#[derive(Debug, Clone, Subcommand)]
pub enum DdlCommand {
    /// Say of each statement of a file which locks it takes, what it reads and rewrites, what replicas
    /// and subscribers notice, and what to do instead. Exit code 3 when others would wait for long.
    Check {
        /// The file (`-`: standard input).
        file: String,
    },
}

/// What `quorate metrics` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MetricsWord {
    /// The node's metrics.
    Show,
    /// A rule file for Prometheus.
    Rules,
    /// A dashboard for Grafana.
    Dashboard,
}

/// Where a new node listens and what it is called.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Name of the node: lower-case letters, digits, '-', '_'. Default: the host's name.
    #[arg(long)]
    pub name: Option<NodeId>,
    /// Host name or address at which others reach this host. Default: the host's name.
    #[arg(long)]
    pub advertise: Option<String>,
    /// Failure domain, such as a data centre.
    #[arg(long, default_value = "")]
    pub zone: String,
    /// Where applications connect.
    #[arg(long, default_value = "0.0.0.0:6432")]
    pub gateway: SocketAddr,
    /// Where other nodes connect.
    #[arg(long, default_value = "0.0.0.0:6433")]
    pub link: SocketAddr,
    /// Status and API over HTTP. Only this host by default: 0.0.0.0:6434 for all.
    #[arg(long, default_value = "127.0.0.1:6434")]
    pub web: SocketAddr,
    /// Directory of PostgreSQL's programs. Default: the newest supported one found.
    #[arg(long)]
    pub postgres_bin: Option<PathBuf>,
}

/// `quorate init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// When a commit is acknowledged.
    #[arg(long, value_parser = timing, default_value = "quorum")]
    pub timing: Timing,
    /// File with the password for the superuser `postgres`. Default: one is made.
    #[arg(long)]
    pub superuser_password_file: Option<PathBuf>,
}

/// `quorate join`.
#[derive(Debug, Clone, Args)]
pub struct JoinArgs {
    /// The link port of any node of the cluster: host:6433
    pub address: String,
    /// The token printed by `quorate token`.
    #[arg(long, env = "QUORATE_TOKEN", hide_env_values = true)]
    pub token: String,
    #[command(flatten)]
    pub node: NodeArgs,
    /// Vote without holding data.
    #[arg(long)]
    pub witness: bool,
}

/// `quorate demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// First of nine consecutive ports on 127.0.0.1.
    #[arg(long, default_value_t = 7432)]
    pub port: u16,
    /// Stop by itself after so many seconds.
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Kill the writer's PostgreSQL once, to show a failover.
    #[arg(long)]
    pub hurt: bool,
    /// Directory of PostgreSQL's programs.
    #[arg(long)]
    pub postgres_bin: Option<PathBuf>,
}

/// `quorate drill`.
#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    /// switchover, replica-lag, slot-pile-up, consensus-leader-loss, writer-crash, host-loss,
    /// partition, restore; `all` of these one after the other; `list` of past ones; `abort`.
    pub what: DrillWord,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
    /// Only say what would be done, and whether it may be done now.
    #[arg(long)]
    pub dry_run: bool,
    /// File for the report as a page. Default: drill-NUMBER-NAME.html in the current directory.
    #[arg(long, value_name = "FILE", conflicts_with = "no_html")]
    pub html: Option<PathBuf>,
    /// Write no page.
    #[arg(long)]
    pub no_html: bool,
    /// Seconds that putting everything back may take: a former writer may have to be copied anew.
    #[arg(long, default_value_t = crate::drill::WAIT.as_secs())]
    pub wait: u64,
}

/// What `quorate drill` is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillWord {
    /// One drill.
    One(Drill),
    /// All of them.
    All,
    /// Past ones.
    List,
    /// An end of the one under way.
    Abort,
}

impl std::str::FromStr for DrillWord {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "list" => Ok(Self::List),
            "abort" => Ok(Self::Abort),
            name => name.parse().map(Self::One),
        }
    }
}

/// `quorate slots`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct SlotsArgs {
    #[command(subcommand)]
    pub command: Option<SlotsCommand>,
    /// Slots of this node instead of the writer's.
    #[arg(long)]
    pub node: Option<NodeId>,
}

/// `quorate slots …`.
#[derive(Debug, Clone, Subcommand)]
pub enum SlotsCommand {
    /// Say in the cluster document whose a slot is and how much log it may keep, or change that. A
    /// slot may be adopted before it is made.
    Adopt {
        /// The slot.
        name: String,
        /// Who answers for it, such as a team or an address.
        #[arg(long)]
        owner: Option<String>,
        /// What reads it: who loses what when it is dropped.
        #[arg(long)]
        consumer: Option<String>,
        /// Log that it may keep on the writer: 20GB.
        #[arg(long, value_name = "SIZE", value_parser = plan::words::size)]
        max_bytes: Option<u64>,
        /// How late its consumer may be: 15m.
        #[arg(long, value_name = "TIME", value_parser = plan::words::time)]
        max_lag: Option<Duration>,
        /// When it keeps more: never (writes stop instead), approval (a person decides), auto (drop
        /// it).
        #[arg(long, value_parser = policy)]
        drop: Option<DropPolicy>,
        /// Whether standbys carry it, so that a logical slot goes on when the writer moves (from
        /// PostgreSQL 16 on): true or false. Without: where PostgreSQL can.
        #[arg(long, value_name = "BOOL")]
        carry: Option<bool>,
    },
    /// Take a slot out of the cluster document. It stays, and is reported as unknown.
    Disown {
        /// The slot.
        name: String,
    },
    /// Drop a slot, whoever made it: its reader is ended, and has to begin anew.
    Drop {
        /// The slot.
        name: String,
        /// On this node instead of the writer.
        #[arg(long)]
        node: Option<NodeId>,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Acknowledge what an adopted slot lacks since it was lost or dropped: its consumer has begun anew,
    /// or is about to. A new slot of that name can then be read.
    Ack {
        /// The slot.
        name: String,
    },
}

/// `quorate recover`.
#[derive(Debug, Clone, Args)]
pub struct RecoverArgs {
    /// Start a new epoch with this node as the only member. The node must be stopped.
    #[arg(long, required = true)]
    pub force_new_epoch: bool,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// `quorate config …`.
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigCommand {
    /// Print the cluster document.
    Show {
        /// An older version.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Edit it with $EDITOR, check it, apply it.
    Edit,
    /// Check and apply a document from a file (`-`: standard input).
    Apply {
        /// The file.
        file: String,
        /// Only check, and show what would change.
        #[arg(long)]
        dry_run: bool,
    },
    /// List versions.
    History,
    /// Apply an older version again.
    Rollback {
        /// The version.
        version: u64,
    },
}

/// `quorate plan`. What is left out is assumed, and the plan says so.
#[derive(Debug, Clone, Args)]
#[command(after_help = PLAN_EXAMPLES)]
pub struct PlanArgs {
    #[command(subcommand)]
    pub command: Option<PlanCommand>,
    /// Reads a second of all applications together: 12000 or 12k.
    #[arg(long, value_name = "RATE", value_parser = plan::words::rate)]
    pub reads: Option<u64>,
    /// Writing transactions a second.
    #[arg(long, value_name = "RATE", value_parser = plan::words::rate)]
    pub writes: Option<u64>,
    /// The most reads a second that one replica was seen to serve, while it replays the writes.
    #[arg(long, value_name = "RATE", value_parser = plan::words::rate)]
    pub capacity: Option<u64>,
    /// How much of it, and of --write-capacity, is to be used, in per cent.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub share: Option<u8>,
    /// The most writing transactions a second that one machine was seen to do.
    #[arg(long, value_name = "RATE", value_parser = plan::words::rate)]
    pub write_capacity: Option<u64>,
    /// Log that a writing transaction makes: 2kB.
    #[arg(long, value_name = "SIZE", value_parser = plan::words::size)]
    pub write_bytes: Option<u64>,
    /// What reads must see: strong (everything), fresh (their own session's writes), stale:5s
    /// (nothing older), reporting (reports, on nodes of their own).
    #[arg(long, value_parser = plan::words::kind)]
    pub kind: Option<Reads>,
    /// Regions, the writer's first: eu,us,ap. Or how many: 3.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = plan::words::region)]
    pub regions: Vec<String>,
    /// Zones of the writer's region, such as data centres.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub zones: Option<u8>,
    /// A place that can hold a small host that votes and holds no data.
    #[arg(long, value_name = "PLACE", value_parser = plan::words::place)]
    pub witness_in: Option<String>,
    /// A measured round-trip between two regions, or within one: eu:us=85ms, eu:eu=0.4ms. May be
    /// repeated.
    #[arg(long, value_name = "A:B=TIME", value_parser = plan::words::round_trip)]
    pub rtt: Vec<(String, String, Duration)>,
    /// How long a flush to disk takes: 0.5ms.
    #[arg(long, value_name = "TIME", value_parser = plan::words::time)]
    pub flush: Option<Duration>,
    /// What a failover may lose: none, 5s (of writes) or 1MB (of log).
    #[arg(long, value_name = "LOSS", value_parser = plan::words::loss)]
    pub rpo: Option<Loss>,
    /// How long writes may be away when a process or what --survive names is lost: 5s.
    #[arg(long, value_name = "TIME", value_parser = plan::words::time)]
    pub rto: Option<Duration>,
    /// What is lost at once without harm: host, zone or region.
    #[arg(long, value_parser = plan::words::domain)]
    pub survive: Option<Domain>,
    /// How many of them at once.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=3))]
    pub losses: Option<u8>,
    /// A region that must hold every commit before it is acknowledged.
    #[arg(long, value_name = "REGION", value_parser = plan::words::place)]
    pub must_hold: Option<String>,
    /// The most that replication may add to a commit: 10ms.
    #[arg(long, value_name = "TIME", value_parser = plan::words::time)]
    pub commit_max: Option<Duration>,
}

const PLAN_EXAMPLES: &str = "\
Examples:
  quorate plan --reads 20k --writes 800 --capacity 9000 --rto 5s
  quorate plan --regions eu,us,ap --survive region --rtt eu:us=85ms --rtt eu:ap=160ms
  quorate plan --rpo 5s --kind stale:10s --regions eu,us
  quorate plan quorum --nodes 5 --read 2 --write 4 --down 1";

/// `quorate plan …`.
#[derive(Debug, Clone, Subcommand)]
pub enum PlanCommand {
    /// What N copies with R nodes for a read and W for a write promise, in a store without a leader.
    Quorum {
        /// N: copies of each value.
        #[arg(long, value_name = "N", default_value_t = 3)]
        nodes: u8,
        /// R: nodes that a read must hear.
        #[arg(long, value_name = "R")]
        read: u8,
        /// W: nodes that must have a write before it is acknowledged.
        #[arg(long, value_name = "W")]
        write: u8,
        /// Nodes that are gone for good and not replaced.
        #[arg(long, value_name = "D", default_value_t = 0)]
        down: u8,
    },
}

fn policy(text: &str) -> Result<DropPolicy, String> {
    let json = serde_json::Value::String(text.to_owned());
    serde_json::from_value(json).map_err(|_| "use never, approval or auto".to_owned())
}

fn timing(text: &str) -> Result<Timing, String> {
    let json = serde_json::Value::String(text.to_owned());
    serde_json::from_value(json).map_err(|_| "use quorum, sync, semi_sync or async".to_owned())
}
