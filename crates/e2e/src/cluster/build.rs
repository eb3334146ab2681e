//! Makes a cluster: directories, ports, cables, the first node, the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

use super::{Cluster, Node};
use crate::binary::{Binary, Ports};
use crate::cable::Cable;
use crate::limits;
use crate::workload::{self, Login};

/// What a cluster should look like.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    data_nodes: usize,
    witness: bool,
    read_only: bool,
    binary: Option<Binary>,
    postgres_bin: BTreeMap<String, PathBuf>,
    /// Where the cluster's directory is made; `/tmp` when not said.
    base: Option<PathBuf>,
    /// Size of each data node's own file system, in MiB.
    disks: Option<u32>,
    env: Vec<(String, String, String)>,
    zones: BTreeMap<String, String>,
    config: toml::Table,
}

const PASSWORD: &str = "end-to-end";

impl Cluster {
    /// A cluster of `n` data nodes named `n1`, `n2`, and so on.
    pub fn of(n: usize) -> Builder {
        Builder { data_nodes: n, ..Builder::default() }
    }
}

impl Builder {
    /// Adds a witness named `w1`.
    #[must_use]
    pub fn witness(mut self) -> Self {
        self.witness = true;
        self
    }

    /// Gives each node a port that only reads.
    #[must_use]
    pub fn read_only_ports(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Uses this binary.
    #[must_use]
    pub fn binary(mut self, binary: Binary) -> Self {
        self.binary = Some(binary);
        self
    }

    /// Lets a node use PostgreSQL's programs from this directory.
    #[must_use]
    pub fn postgres_bin(mut self, node: &str, bin: &Path) -> Self {
        self.postgres_bin.insert(node.to_owned(), bin.to_owned());
        self
    }

    /// Makes the cluster's directory below this one. Its path must be short: sockets are in it.
    #[must_use]
    pub fn below(mut self, base: &Path) -> Self {
        self.base = Some(base.to_owned());
        self
    }

    /// Gives each data node a file system of its own, of so many MiB, in memory: so that a disk can
    /// be full. Takes the right to mount.
    #[must_use]
    pub fn disks(mut self, mib: u32) -> Self {
        self.disks = Some(mib);
        self
    }

    /// Gives a node's process an environment variable.
    #[must_use]
    pub fn env(mut self, node: &str, key: &str, value: &str) -> Self {
        self.env.push((node.to_owned(), key.to_owned(), value.to_owned()));
        self
    }

    /// Adds to every node's own file.
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config = text.parse().expect("a test writes TOML");
        self
    }

    /// Says in which zone a node stands.
    #[must_use]
    pub fn zone(mut self, node: &str, zone: &str) -> Self {
        self.zones.insert(node.to_owned(), zone.to_owned());
        self
    }

    /// Starts it, and returns when it is healthy and has the workload's table.
    pub fn start(self) -> Result<Cluster> {
        let binary = self.binary.clone().map_or_else(Binary::find, Ok)?;
        let dir = short_dir(self.base.as_deref().unwrap_or(Path::new("/tmp")))?;
        let mut cluster = Cluster {
            nodes: self.nodes(&dir)?,
            dir,
            binary,
            cables: BTreeMap::new(),
            doors: BTreeMap::new(),
            gone: BTreeSet::new(),
            login: Login {
                user: "postgres".to_owned(),
                password: PASSWORD.to_owned(),
                database: "postgres".to_owned(),
            },
            workloads: std::sync::atomic::AtomicI64::new(0),
            mounted: Vec::new(),
            builder: self.clone(),
        };
        if let Some(mib) = self.disks {
            cluster.mount_disks(mib)?;
        }
        lay_cables(&mut cluster)?;
        self.found(&mut cluster)?;
        let names: Vec<_> = cluster.nodes.iter().skip(1).map(|n| n.name.clone()).collect();
        for name in names {
            self.admit(&mut cluster, &name)?;
        }
        cluster.wait_healthy_within(limits::START)?;
        // Past the applications' cables, as nothing is cut yet.
        let first = SocketAddr::from(([127, 0, 0, 1], cluster.nodes[0].ports.gateway));
        workload::prepare(&cluster.login, first).or_else(|e| cluster.explain(e))?;
        Ok(cluster)
    }

    fn nodes(&self, dir: &Path) -> Result<Vec<Node>> {
        let data = (1..=self.data_nodes).map(|i| (format!("n{i}"), false));
        let witness = self.witness.then(|| ("w1".to_owned(), true));
        data.chain(witness)
            .map(|(name, witness)| {
                let env = self.env.iter().filter(|(node, ..)| *node == name);
                Ok(Node {
                    dir: dir.join(&name),
                    log: dir.join(format!("{name}.log")),
                    witness,
                    ports: Ports { link: free_port()?, gateway: free_port()?, web: free_port()? },
                    read_only: self.read_only.then(free_port).transpose()?,
                    env: env.map(|(_, k, v)| (k.clone(), v.clone())).collect(),
                    child: None,
                    name,
                })
            })
            .collect()
    }

    fn found(&self, cluster: &mut Cluster) -> Result<()> {
        let password = cluster.dir.join("password");
        std::fs::write(&password, PASSWORD)?;
        let first = cluster.nodes[0].name.clone();
        let node = cluster.node(&first)?;
        cluster.binary.init(&node.dir, &first, node.ports, &password)?;
        self.configure(cluster, &first)?;
        cluster.restart(&first)?;
        cluster.wait_writer_within(limits::START).map(drop)
    }

    fn admit(&self, cluster: &mut Cluster, name: &str) -> Result<()> {
        let first = cluster.nodes[0].name.clone();
        self.admit_through(cluster, name, &first)
    }

    /// Lets a node join through another one, and starts it.
    pub(super) fn admit_through(
        &self,
        cluster: &mut Cluster,
        name: &str,
        other: &str,
    ) -> Result<()> {
        let token = cluster.binary.token(&cluster.node(other)?.dir)?;
        let through = cluster.cable(name, other)?.addr().to_string();
        let node = cluster.node(name)?;
        let joined =
            cluster.binary.join(&through, &token, &node.dir, name, node.ports, node.witness);
        joined.or_else(|e| cluster.explain(e))?;
        self.configure(cluster, name)?;
        cluster.restart(name)
    }

    /// Writes what only the harness knows into the node's file: its cables, programs and probe.
    fn configure(&self, cluster: &Cluster, name: &str) -> Result<()> {
        let node = cluster.node(name)?;
        let file = node.dir.join("quorate.toml");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("{name} was made without {}", file.display()))?;
        let mut settings: toml::Table = text.parse()?;
        let routes = cluster.nodes.iter().filter(|n| n.name != name).map(|to| {
            let cable = cluster.cable(name, &to.name)?;
            Ok((to.name.clone(), toml::Value::from(cable.addr().to_string())))
        });
        let routes = routes.collect::<Result<toml::Table>>()?;
        settings.insert("routes".to_owned(), toml::Value::Table(routes));
        if let Some(at) = node.read_only() {
            let listen = settings.get_mut("listen").and_then(|l| l.as_table_mut());
            let listen = listen.context("[listen] is a table")?;
            listen.insert("read_only".to_owned(), at.to_string().into());
        }
        if let Some(zone) = self.zones.get(name) {
            settings.insert("zone".to_owned(), zone.clone().into());
        }
        settings.extend(self.config.clone());
        let probe = node.disk_probe();
        std::fs::create_dir_all(probe.parent().context("a probe has a directory")?)?;
        let postgres = settings.entry("postgres").or_insert(toml::Value::Table(toml::Table::new()));
        let postgres = postgres.as_table_mut().context("[postgres] is a table")?;
        postgres.insert("disk_probe".to_owned(), probe.display().to_string().into());
        let other = std::env::var_os("QUORATE_E2E_POSTGRES_BIN").map(PathBuf::from);
        if let Some(bin) = self.postgres_bin.get(name).cloned().or(other) {
            postgres.insert("bin".to_owned(), bin.display().to_string().into());
        }
        std::fs::write(&file, toml::to_string(&settings)?)?;
        Ok(())
    }
}

fn lay_cables(cluster: &mut Cluster) -> Result<()> {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    for to in &cluster.nodes {
        for from in cluster.nodes.iter().filter(|from| from.name != to.name) {
            let cable = Cable::new(local(to.ports.link))?;
            cluster.cables.insert((from.name.clone(), to.name.clone()), cable);
        }
        cluster.doors.insert(to.name.clone(), Cable::new(local(to.ports.gateway))?);
    }
    Ok(())
}

/// A directory with a short path, for unix sockets, that PostgreSQL's user may enter.
fn short_dir(base: &Path) -> Result<PathBuf> {
    let mut seed = u64::from(std::process::id()) << 16;
    for _ in 0..1000 {
        seed += 1;
        let dir = base.join(format!("qe-{:x}", seed & 0xffff_ffff));
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
                return Ok(dir);
            }
            // Another cluster's, or kept from an earlier run.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", dir.display()));
            }
        }
    }
    bail!("no free name for a directory in {}", base.display())
}

/// A port that nobody listens on, from a range that the kernel does not hand out by itself, and
/// that no other cluster of this process was given.
pub(super) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = (std::process::id() % 179) as u16 * 100;
    for _ in 0..limits::PORT_COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = limits::PORT_FIRST + spread.wrapping_add(step) % limits::PORT_COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {} on", limits::PORT_FIRST)
}
