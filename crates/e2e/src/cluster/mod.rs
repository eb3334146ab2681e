//! A cluster of real processes, and what can be done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use rustix::process::Pid;

use crate::binary::{Binary, Ports};
use crate::cable::Cable;
use crate::workload::{Gateway, Login, Options, Workload};
use crate::{limits, process};

mod build;
mod disks;
mod faults;
mod guests;
mod hosts;
mod look;

pub use build::Builder;
pub use look::Watcher;

/// A running cluster. Dropping it kills every process and removes its files, unless
/// `QUORATE_E2E_KEEP` is set.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    binary: Binary,
    nodes: Vec<Node>,
    /// Between nodes, by (dialling node, target).
    cables: BTreeMap<(String, String), Cable>,
    /// From applications to a node's gateway.
    doors: BTreeMap<String, Cable>,
    /// Hosts that are gone: mending the network does not bring their cables back.
    gone: BTreeSet<String>,
    login: Login,
    workloads: std::sync::atomic::AtomicI64,
    /// File systems of nodes.
    mounted: Vec<PathBuf>,
    /// How it was made.
    builder: Builder,
}

/// One node, as the harness started it.
#[derive(Debug)]
pub struct Node {
    name: String,
    dir: PathBuf,
    log: PathBuf,
    witness: bool,
    ports: Ports,
    /// Its port for clients that only read.
    read_only: Option<u16>,
    env: Vec<(String, String)>,
    child: Option<Child>,
}

impl Cluster {
    /// The nodes, in the order they joined.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| format!("no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.iter_mut().find(|n| n.name == name).with_context(|| format!("no node {name}"))
    }

    /// Nodes whose process runs.
    pub fn nodes_up(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|n| n.child.is_some())
    }

    /// Nodes with a database whose process runs.
    pub fn data_nodes_up(&self) -> impl Iterator<Item = &Node> {
        self.nodes_up().filter(|n| !n.witness)
    }

    /// Data nodes other than `name`, whether up or not.
    pub fn others(&self, name: &str) -> Vec<String> {
        let others = self.nodes.iter().filter(|n| !n.witness && n.name != name);
        others.map(|n| n.name.clone()).collect()
    }

    /// The cable that `from` dials to reach the link port of `to`.
    pub fn cable(&self, from: &str, to: &str) -> Result<&Cable> {
        self.cables
            .get(&(from.to_owned(), to.to_owned()))
            .with_context(|| format!("no cable {from} to {to}"))
    }

    /// The superuser.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Ways to the data nodes' gateways through the applications' cables, in the order of `names`;
    /// all data nodes when that is empty.
    pub fn gateways(&self, names: &[&str]) -> Vec<Gateway> {
        let all: Vec<_> = self.nodes.iter().filter(|n| !n.witness).map(Node::name).collect();
        let names = if names.is_empty() { &all[..] } else { names };
        names
            .iter()
            .filter_map(|name| {
                Some(Gateway { name: (*name).to_owned(), addr: self.doors.get(*name)?.addr() })
            })
            .collect()
    }

    /// Starts a workload through these gateways (all when empty), with ids of its own.
    pub fn workload(&self, options: Options, gateways: &[&str]) -> Workload {
        let number = self.workloads.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        let first = number * 1_000_000_000;
        Workload::start(options, self.login.clone(), self.gateways(gateways), first)
    }

    /// Runs a `quorate` command against a running node, for its answer as JSON.
    pub fn command(&self, node: &str, args: &[&str]) -> Result<serde_json::Value> {
        self.binary.json(&self.node(node)?.dir, args)
    }

    /// The same of what a cluster may refuse for a moment, as a switchover to a standby that is behind
    /// just then: asked again until it is done.
    pub fn command_until_done(&self, node: &str, args: &[&str]) -> Result<serde_json::Value> {
        let deadline = Instant::now() + limits::RECOVER;
        loop {
            match self.command(node, args) {
                Ok(answer) => return Ok(answer),
                Err(_) if Instant::now() < deadline => std::thread::sleep(limits::POLL),
                Err(error) => {
                    let (within, args) = (limits::RECOVER, args.join(" "));
                    let why = format!("{error:#}");
                    let why = why.lines().next().unwrap_or_default();
                    let error = anyhow!("waited {within:?} in vain until {args} was done: {why}");
                    return self.explain(error);
                }
            }
        }
    }

    /// Replaces the cluster document through a running node.
    pub fn apply(&self, node: &str, document: &str) -> Result<serde_json::Value> {
        let file = self.dir.join("document.toml");
        std::fs::write(&file, document)?;
        let file = file.to_str().context("a path of /tmp is text")?;
        self.command(node, &["config", "apply", file])
    }

    /// Where the cluster's files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        process::kill_below(&self.dir);
        if std::env::var_os("QUORATE_E2E_KEEP").is_some() {
            eprintln!("kept {}", self.dir.display());
        } else {
            self.unmount_disks();
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Node {
    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// PostgreSQL's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("pg/data")
    }

    /// Directory of PostgreSQL's private socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("pg/run")
    }

    /// The file that the disk probe writes.
    pub fn disk_probe(&self) -> PathBuf {
        self.dir.join("probe/disk")
    }

    /// Whether it votes without a database.
    pub fn is_witness(&self) -> bool {
        self.witness
    }

    /// The pid of its `quorate` process, while it runs.
    pub fn pid(&self) -> Option<Pid> {
        self.child.as_ref().map(Pid::from_child)
    }

    /// The log so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sets an environment variable for the node's next start.
    fn set_env(&mut self, key: &str, value: Option<&str>) {
        self.env.retain(|(k, _)| k != key);
        self.env.extend(value.map(|v| (key.to_owned(), v.to_owned())));
    }
}
