//! Looking at a cluster, and waiting for what should become true.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Cluster, Node};
use crate::limits;
use crate::status::Status;

impl Node {
    /// Where its status page is.
    pub fn web(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.web))
    }

    /// Where its port that only reads is, when the cluster was made with such ports.
    pub fn read_only(&self) -> Option<SocketAddr> {
        self.read_only.map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// Where its gateway is, past the applications' cable.
    pub fn gateway(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.gateway))
    }
}

impl Cluster {
    /// What one node says.
    pub fn status_of(&self, name: &str) -> Result<Status> {
        Status::of(self.node(name)?.web()).with_context(|| format!("status of {name}"))
    }

    /// The newest view of those nodes that answer: the highest term, and the node that hears its
    /// serving writer before one that does not.
    pub fn status(&self) -> Option<Status> {
        let views = self.nodes_up().filter_map(|n| Status::of(n.web()).ok());
        views.max_by_key(|s| (s.term, s.serving().is_some(), s.attached().len()))
    }

    /// The writer, when there is one that serves.
    pub fn writer(&self) -> Option<String> {
        self.status()?.serving().map(str::to_owned)
    }

    /// Waits for a writer that serves.
    pub fn wait_writer(&self) -> Result<String> {
        self.wait_writer_within(limits::RECOVER)
    }

    /// Waits so long for a writer that serves.
    pub fn wait_writer_within(&self, within: Duration) -> Result<String> {
        self.wait_until(within, "a writer serves", || self.writer())
    }

    /// Waits for a writer other than `old` that serves.
    pub fn wait_other_writer(&self, old: &str) -> Result<String> {
        self.wait_until(limits::RECOVER, &format!("a writer other than {old} serves"), || {
            self.writer().filter(|w| w != old)
        })
    }

    /// Waits until every node that is up has its full part again.
    pub fn wait_healthy(&self) -> Result<Status> {
        self.wait_healthy_within(limits::REJOIN)
    }

    /// As [`Cluster::wait_healthy`], with a limit of its own.
    pub fn wait_healthy_within(&self, within: Duration) -> Result<Status> {
        let mut trouble = String::new();
        let healthy = self.wait_until(within, "the cluster is healthy", || {
            let status = self.status()?;
            trouble = self.ailment(&status).unwrap_or_default();
            trouble.is_empty().then_some(status)
        });
        healthy.map_err(|error| anyhow!("{trouble}\n{error:?}"))
    }

    /// What keeps a cluster from being healthy.
    fn ailment(&self, status: &Status) -> Option<String> {
        let names = |nodes: &mut dyn Iterator<Item = &Node>| -> BTreeSet<String> {
            nodes.map(|n| n.name.clone()).collect()
        };
        let Some(writer) = status.serving() else { return Some("no writer serves".to_owned()) };
        let copies = names(&mut self.data_nodes_up());
        let standbys: BTreeSet<_> = copies.iter().filter(|n| *n != writer).cloned().collect();
        let idle = standbys.iter().find(|n| status.doing(n) != "following");
        if let Some(name) = idle {
            return Some(format!("{name} is {:?}, not following", status.doing(name)));
        }
        let attached = status.attached();
        if !standbys.is_subset(&attached) {
            return Some(format!("attached: {attached:?} of {standbys:?}"));
        }
        let counting: BTreeSet<_> = copies.into_iter().filter(|n| status.counts(n)).collect();
        if status.authority.rules.len() != 1 || !counting.is_subset(&status.cohort()) {
            return Some(format!("commit rules: {:?}", status.authority.rules));
        }
        let voters = names(&mut self.nodes_up());
        if status.leader.is_none() || !voters.is_subset(&status.voters) {
            return Some(format!("leader {:?}, voters {:?}", status.leader, status.voters));
        }
        None
    }

    /// Waits until `condition` gives something; fails with `what`, the status of every node and the
    /// end of its log.
    pub fn wait_until<T>(
        &self,
        within: Duration,
        what: &str,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(found) = condition() {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return self.explain(anyhow!("waited {within:?} in vain until {what}"));
            }
            std::thread::sleep(limits::POLL);
        }
    }

    /// Adds everything that helps to understand a failure.
    pub fn explain<T>(&self, error: anyhow::Error) -> Result<T> {
        Err(error.context(self.portrait()))
    }

    /// Status and last log lines of every node.
    pub fn portrait(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let view = match Status::of(node.web()) {
                Ok(status) => status.line(),
                Err(error) => format!("no status: {error:#}"),
            };
            let log = node.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(limits::LOG_TAIL)..];
            let up = if node.child.is_some() { "up" } else { "down" };
            text += &format!(
                "\n--- {} ({up}, {})\n{view}\n{}\n",
                node.name,
                node.log.display(),
                tail.join("\n")
            );
        }
        text
    }

    /// Fails when a node's log tells of a panic or of an error that a person must look at.
    pub fn check_logs(&self) -> Result<()> {
        for node in &self.nodes {
            let log = node.log();
            let bad = log.lines().find(|line| line.contains("panicked at") || is_error(line));
            ensure!(bad.is_none(), "the log of {} has: {}", node.name, bad.unwrap_or_default());
        }
        Ok(())
    }

    /// Begins to note what every node does, for scenarios that want to know how it came back.
    pub fn watch(&self) -> Watcher {
        Watcher::start(self.nodes.iter().map(|n| (n.name.clone(), n.web())).collect())
    }
}

/// Whether a line of `quorate`'s own log has the level ERROR. Lines of PostgreSQL that are passed on
/// have their own words.
fn is_error(line: &str) -> bool {
    line.split_whitespace().take(2).any(|word| word == "ERROR")
}

/// Notes every distinct thing that nodes say they do.
#[derive(Debug)]
pub struct Watcher {
    seen: Arc<Mutex<BTreeSet<(String, String)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    fn start(nodes: Vec<(String, SocketAddr)>) -> Self {
        let seen: Arc<Mutex<BTreeSet<_>>> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let (notes, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (name, web) in &nodes {
                    let Ok(status) = Status::of(*web) else { continue };
                    let doing = status.doing(name).to_owned();
                    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
                    notes.insert((name.clone(), doing));
                }
                std::thread::sleep(limits::POLL);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Whether a node was ever seen doing that.
    pub fn saw(&self, node: &str, doing: &str) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.contains(&(node.to_owned(), doing.to_owned()))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
