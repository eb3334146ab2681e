//! The cluster, the database and PgBouncer that all cases use.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_e2e::{Cluster, limits, local, postgres};
use rustix::process::Pid;
use serde::Serialize;

use super::Options;
use super::meter::Meters;
use super::pgbouncer::PgBouncer;
use crate::failover::machine;

/// Role and database of the benchmark.
pub(crate) const USER: &str = "bench";
/// Its password.
pub(crate) const PASSWORD: &str = "bench-password";
/// How long `quorate` is watched doing nothing.
const IDLE_WATCH: Duration = Duration::from_secs(5);
/// How long a statement that prepares the database may take.
const PREPARE: Duration = Duration::from_secs(600);

/// Where memory-backed storage usually is.
const MEMORY: &str = "/dev/shm";

/// What a client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Via {
    /// PostgreSQL itself.
    Direct,
    /// PgBouncer.
    PgBouncer,
    /// The gateway.
    Quorate,
}

/// Where a client connects to.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// A directory with a server's socket.
    Socket(PathBuf),
    /// A proxy.
    Tcp(SocketAddr),
}

impl Address {
    /// As options of PostgreSQL's programs.
    pub(crate) fn words(&self) -> [String; 4] {
        let (host, port) = match self {
            Self::Socket(dir) => (dir.display().to_string(), 5432),
            Self::Tcp(address) => (address.ip().to_string(), address.port()),
        };
        ["-h".to_owned(), host, "-p".to_owned(), port.to_string()]
    }
}

/// A way to the database.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// Name in the tables.
    pub(crate) label: String,
    /// What kind of way.
    pub(crate) via: Via,
    /// Where it begins.
    pub(crate) address: Address,
    /// The cluster document that it needs.
    document: Option<String>,
}

/// Everything that runs.
#[derive(Debug)]
pub(crate) struct Rig {
    // Ends before the cluster does.
    pgbouncer: PgBouncer,
    cluster: Cluster,
    writer: String,
    /// The document in effect.
    document: RefCell<String>,
    base: PathBuf,
}

impl Rig {
    /// Starts and fills it.
    pub(crate) fn start(options: &Options) -> Result<Self> {
        let base = base(options)?;
        let mut builder = Cluster::of(1 + options.replicas).below(&base);
        builder = builder.binary(options.build.binary()?);
        if let Some(bin) = &options.build.bin_dir {
            for number in 1..=1 + options.replicas {
                builder = builder.postgres_bin(&format!("n{number}"), bin);
            }
        }
        let mut cluster = builder.start()?;
        let document = document(&options.set)?;
        let writer = configure(&mut cluster, &document)?;
        let socket_dir = cluster.node(&writer)?.socket_dir();
        fill(&cluster, &writer, options.scale)?;
        let pgbouncer = PgBouncer::start(
            options.pgbouncer.as_deref(),
            cluster.dir(),
            &socket_dir,
            options.pool,
            // More than come, and they come in several cases.
            options.idle_clients + 1000,
        )?;
        let document = RefCell::new(document);
        Ok(Self { pgbouncer, cluster, writer, document, base })
    }

    /// The three ways to compare.
    pub(crate) fn routes(&self) -> Vec<Route> {
        let route = |label: &str, via, address| Route {
            label: label.to_owned(),
            via,
            address,
            document: None,
        };
        let socket = Address::Socket(self.socket_dir());
        vec![
            route("direct", Via::Direct, socket),
            route("PgBouncer", Via::PgBouncer, Address::Tcp(self.pgbouncer.address())),
            route("Quorate", Via::Quorate, Address::Tcp(self.gateway())),
        ]
    }

    /// The gateway without and with splitting of reads and writes.
    pub(crate) fn split_routes(&self, options: &Options) -> Result<Vec<Route>> {
        [false, true]
            .map(|split| {
                let mut fields = options.set.clone();
                fields.push(format!("gateway.split={split}"));
                Ok(Route {
                    label: format!("Quorate, split {}", if split { "on" } else { "off" }),
                    via: Via::Quorate,
                    address: Address::Tcp(self.gateway()),
                    document: Some(document(&fields)?),
                })
            })
            .into_iter()
            .collect()
    }

    /// Gives the cluster the document that a route needs.
    pub(crate) fn select(&self, route: &Route) -> Result<()> {
        let Some(wanted) = &route.document else { return Ok(()) };
        if *self.document.borrow() == *wanted {
            return Ok(());
        }
        self.cluster.apply(&self.writer, wanted)?;
        wanted.clone_into(&mut self.document.borrow_mut());
        // Every node's gateway hears of it within a heartbeat.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    /// Makes the tables as if they were new, for runs that write. Not part of a run.
    pub(crate) fn tidy(&self) -> Result<()> {
        for sql in [
            "TRUNCATE pgbench_history",
            "VACUUM pgbench_branches",
            "VACUUM pgbench_tellers",
            "VACUUM pgbench_accounts",
            "CHECKPOINT",
        ] {
            self.sql(sql)?;
        }
        Ok(())
    }

    /// Runs SQL as the superuser in the benchmark's database.
    pub(crate) fn sql(&self, sql: &str) -> Result<local::Rows> {
        admin(&self.cluster, &self.writer, USER, sql)
    }

    /// All clocks.
    pub(crate) fn meters(&self) -> Result<Meters> {
        let nodes: Vec<_> = self.cluster.data_nodes_up().collect();
        let quorate: Vec<_> = nodes.iter().filter_map(|n| n.pid()).collect();
        let data: Vec<_> = nodes.iter().map(|n| n.data_dir()).collect();
        let data: Vec<_> = data.iter().map(PathBuf::as_path).collect();
        Meters::read(&quorate, Some(self.pgbouncer.pid()), &data)
    }

    /// The process that is the proxy of a way.
    pub(crate) fn proxy(&self, via: Via) -> Option<Pid> {
        match via {
            Via::Direct => None,
            Via::PgBouncer => Some(self.pgbouncer.pid()),
            Via::Quorate => self.cluster.node(&self.writer).ok()?.pid(),
        }
    }

    /// Processor seconds that `quorate` uses in a second without clients.
    pub(crate) fn idle_rate(&self) -> Result<f64> {
        let before = self.meters()?;
        std::thread::sleep(IDLE_WATCH);
        let spent = self.meters()?.since(&before, before.age());
        Ok(spent.quorate / spent.read)
    }

    /// Where scratch files may go.
    pub(crate) fn dir(&self) -> &Path {
        self.cluster.dir()
    }

    /// Versions, machine and settings, as a paragraph.
    pub(crate) fn describe(&self, options: &Options) -> Result<String> {
        let version = local::one(&self.socket_dir(), "SHOW server_version")?;
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kind = if self.base == Path::new(MEMORY) { "memory" } else { "ordinary storage" };
        Ok(format!(
            "{}; kernel {}; PostgreSQL {version}, {}; database at scale {} in {kind}; pool of {}; \
             {} s a run, {} repetitions in alternating order; SCRAM everywhere. {}\n",
            machine()?,
            kernel.trim(),
            self.pgbouncer.version()?,
            options.scale,
            options.pool,
            options.seconds,
            options.reps,
            processor()
        ))
    }

    fn socket_dir(&self) -> PathBuf {
        // The writer is one of the cluster's nodes: it was asked.
        self.cluster.node(&self.writer).map(|n| n.socket_dir()).unwrap_or_default()
    }

    fn gateway(&self) -> SocketAddr {
        let node = self.cluster.node(&self.writer).unwrap_or(&self.cluster.nodes()[0]);
        node.gateway()
    }
}

fn base(options: &Options) -> Result<PathBuf> {
    if let Some(base) = &options.base {
        return std::fs::canonicalize(base).with_context(|| base.display().to_string());
    }
    if Path::new(MEMORY).is_dir() {
        return Ok(MEMORY.into());
    }
    eprintln!("no {MEMORY}: the database is in /tmp, where fsync may cost something");
    Ok("/tmp".into())
}

/// The cluster document: what keeps PostgreSQL's own work even, and fields from the command line.
fn document(fields: &[String]) -> Result<String> {
    let mut document: toml::Table = "[postgresql]\n\
         max_connections = \"300\"\n\
         shared_buffers = \"512MB\"\n\
         max_wal_size = \"4GB\"\n\
         checkpoint_timeout = \"1h\"\n\
         autovacuum = \"off\"\n"
        .parse()?;
    for field in fields {
        let (name, value) = field.split_once('=').with_context(|| format!("no `=`: {field}"))?;
        let one: toml::Table =
            format!("{name} = {value}").parse().with_context(|| field.clone())?;
        merge(&mut document, one);
    }
    Ok(toml::to_string(&document)?)
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (name, value) in from {
        match (into.get_mut(&name), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => drop(into.insert(name, value)),
        }
    }
}

/// Applies the document and restarts PostgreSQL; the writer.
fn configure(cluster: &mut Cluster, document: &str) -> Result<String> {
    let writer = cluster.wait_writer()?;
    cluster.apply(&writer, document)?;
    if cluster.nodes().len() > 1 {
        cluster.command(&writer, &["restart", "--rolling"])?;
    } else {
        // Nobody could take over; the server ends with its Quorate.
        cluster.kill_quorate(&writer)?;
        cluster.restart(&writer)?;
    }
    cluster.wait_healthy()?;
    let writer = cluster.wait_writer()?;
    let buffers = local::one(&cluster.node(&writer)?.socket_dir(), "SHOW shared_buffers")?;
    ensure!(buffers == "512MB", "the restart left shared_buffers at {buffers}");
    Ok(writer)
}

fn fill(cluster: &Cluster, writer: &str, scale: u32) -> Result<()> {
    let run = |sql: String| admin(cluster, writer, "postgres", &sql);
    run(format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'"))?;
    run(format!("CREATE DATABASE {USER} OWNER {USER}"))?;
    let mut pgbench = postgres::program("pgbench")?;
    pgbench.args(["-i", "-q", "-s", &scale.to_string(), "-U", USER]);
    pgbench.args(Address::Socket(cluster.node(writer)?.socket_dir()).words());
    let status = pgbench.arg(USER).env("PGPASSWORD", PASSWORD).status()?;
    ensure!(status.success(), "pgbench -i ended with {status}");
    Ok(())
}

/// Runs SQL as the superuser, past every proxy.
fn admin(cluster: &Cluster, writer: &str, database: &str, sql: &str) -> Result<local::Rows> {
    let mut config = cluster.login().config();
    config.host_path(cluster.node(writer)?.socket_dir()).port(5432).dbname(database);
    config.connect_timeout(limits::LOCAL_QUERY);
    local::run(&config, sql, PREPARE)
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_merged_into_the_document() {
        let fields = ["gateway.pool_size=16", "postgresql.work_mem=\"8MB\"", "copies=1"];
        let text = document(&fields.map(str::to_owned)).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["gateway"]["pool_size"].as_integer(), Some(16));
        assert_eq!(table["postgresql"]["work_mem"].as_str(), Some("8MB"));
        assert_eq!(table["postgresql"]["autovacuum"].as_str(), Some("off"));
        assert_eq!(table["copies"].as_integer(), Some(1));
        assert!(document(&["nonsense".to_owned()]).is_err());
    }
}
