//! Nodes in one process, with a cable between every two that can be cut or hung.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quorate_consensus::{Compaction, Dial, Dialling, Error, Log, Machine, Options, Status, Stream};
use quorate_core::NodeId;
use serde::{Deserialize, Serialize};
use tokio::io::DuplexStream;
use tokio::sync::watch;

/// Long enough for a machine that builds something else meanwhile.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A list of what was put into it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) puts: BTreeMap<u64, usize>,
    pub(crate) ballast: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Put {
    pub(crate) number: u64,
    pub(crate) ballast: String,
}

impl Machine for Tally {
    type Command = Put;
    type Answer = usize;

    fn apply(&mut self, put: &Put) -> usize {
        *self.puts.entry(put.number).or_default() += 1;
        self.ballast.push_str(&put.ballast);
        self.puts.len()
    }
}

pub(crate) fn put(number: u64) -> Put {
    Put { number, ballast: String::new() }
}

pub(crate) fn id(number: usize) -> NodeId {
    NodeId::new(&format!("n{number}")).unwrap()
}

#[derive(Default)]
struct Cables {
    /// Directed from the dialling to the dialled node.
    cut: HashSet<(NodeId, NodeId)>,
    hung: HashSet<(NodeId, NodeId)>,
    nodes: HashMap<NodeId, Log<Tally>>,
}

/// The cables of one cluster.
#[derive(Clone, Default)]
pub(crate) struct Net {
    cables: Arc<Mutex<Cables>>,
    changed: watch::Sender<()>,
}

struct From {
    me: NodeId,
    net: Net,
}

impl Dial for From {
    fn dial(&self, peer: NodeId) -> Dialling {
        let (me, net) = (self.me, self.net.clone());
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let log = {
                let cables = net.cables.lock().unwrap();
                if cables.cut.contains(&(me, peer)) {
                    return Err(refused());
                }
                cables.nodes.get(&peer).cloned().ok_or_else(refused)?
            };
            let (near, near_end) = tokio::io::duplex(64 << 10);
            let (far, far_end) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move { log.serve(far).await });
            tokio::spawn(net.carry((me, peer), near_end, far_end));
            Ok(Box::new(near) as Box<dyn Stream>)
        })
    }
}

impl Net {
    /// Carries bytes both ways until the cable is cut or an end hangs up.
    async fn carry(self, cable: (NodeId, NodeId), mut a: DuplexStream, mut b: DuplexStream) {
        let mut changed = self.changed.subscribe();
        loop {
            let (cut, hung) = {
                let cables = self.cables.lock().unwrap();
                (cables.cut.contains(&cable), cables.hung.contains(&cable))
            };
            if cut {
                return;
            }
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut a, &mut b), if !hung => return,
                _ = changed.changed() => {}
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Cables)) {
        change(&mut self.cables.lock().unwrap());
        self.changed.send_replace(());
    }
}

/// A cluster under test.
pub(crate) struct Cluster {
    pub(crate) net: Net,
    pub(crate) nodes: BTreeMap<NodeId, Log<Tally>>,
    pub(crate) compaction: Compaction,
    pub(crate) patience: Duration,
    dir: tempfile::TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        // RUST_LOG=debug shows what a failing test did.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        Self {
            net: Net::default(),
            nodes: BTreeMap::new(),
            compaction: Compaction::default(),
            patience: Duration::from_secs(5),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A founded cluster with this many voters.
    pub(crate) async fn of(voters: usize) -> Self {
        Self::new().grown_to(voters).await
    }

    pub(crate) async fn grown_to(mut self, voters: usize) -> Self {
        self.start(1).await.unwrap();
        self.node(1).found().await.unwrap();
        for number in 2..=voters {
            self.start(number).await.unwrap();
            self.node(1).add(id(number)).await.unwrap();
        }
        self
    }

    pub(crate) fn path(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("n{number}")).join("consensus.redb")
    }

    pub(crate) async fn start(&mut self, number: usize) -> Result<(), Error> {
        let me = id(number);
        let mut options = Options::new(me, self.path(number));
        options.compaction = self.compaction;
        options.patience = self.patience;
        let log = Log::start(options, Arc::new(From { me, net: self.net.clone() })).await?;
        self.net.change(|cables| drop(cables.nodes.insert(me, log.clone())));
        self.nodes.insert(me, log);
        Ok(())
    }

    /// Stops a node; its streams end at once.
    pub(crate) async fn stop(&mut self, node: NodeId) {
        self.net.change(|cables| drop(cables.nodes.remove(&node)));
        if let Some(log) = self.nodes.remove(&node) {
            log.shutdown().await;
        }
    }

    pub(crate) fn node(&self, number: usize) -> &Log<Tally> {
        &self.nodes[&id(number)]
    }

    /// Cuts a node off from all others.
    pub(crate) fn isolate(&self, node: NodeId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        self.net.change(|cables| {
            for other in others {
                cables.cut.extend([(node, other), (other, node)]);
            }
        });
    }

    /// Makes a node's cables swallow everything without ending any stream.
    pub(crate) fn hang(&self, node: NodeId) {
        let others: Vec<_> = self.nodes.keys().copied().filter(|other| *other != node).collect();
        self.net.change(|cables| {
            for other in others {
                cables.hung.extend([(node, other), (other, node)]);
            }
        });
    }

    pub(crate) fn heal(&self) {
        self.net.change(|cables| {
            cables.cut.clear();
            cables.hung.clear();
        });
    }

    /// Waits until one of the running nodes leads, by its own account, and returns it.
    pub(crate) async fn leader(&self) -> NodeId {
        self.leader_but(&[]).await
    }

    pub(crate) async fn leader_but(&self, not: &[NodeId]) -> NodeId {
        let leading = || {
            let mut nodes = self.nodes.iter().filter(|(node, _)| !not.contains(node));
            nodes.find(|(_, log)| log.is_leader()).map(|(node, _)| *node)
        };
        until("a leader", || async { leading() }).await
    }

    pub(crate) fn follower(&self, leader: NodeId) -> NodeId {
        *self.nodes.keys().find(|node| **node != leader).unwrap()
    }

    /// Waits until these nodes hold the same state, with every one of these numbers.
    pub(crate) async fn agree(&self, numbers: impl Iterator<Item = u64>) {
        let numbers: Vec<u64> = numbers.collect();
        let agreed = || {
            let states: Vec<_> = self.nodes.values().map(Log::state).collect();
            let same = states.iter().all(|state| *state == states[0]);
            let all = numbers.iter().all(|n| states[0].puts.get(n) == Some(&1));
            (same && all).then_some(())
        };
        until("agreement", || async { agreed() }).await;
    }

    pub(crate) async fn status(
        &self,
        number: usize,
        what: &str,
        good: impl Fn(&Status) -> bool,
    ) -> Status {
        let log = self.node(number);
        until(what, || async { Some(log.status()).filter(|status| good(status)) }).await
    }
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < SOON, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
