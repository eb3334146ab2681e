//! What a conductor sees of the cluster while a drill goes on, and when.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_agent::Node;
use quorate_core::authority::Phase;
use quorate_core::state::NodeKind;
use quorate_core::{NodeId, Term};
use tokio::task::JoinHandle;

/// How often it looks, beside at every change of what is agreed.
const LOOK: Duration = Duration::from_millis(50);

/// What was seen first, and when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// A later term was opened.
    pub elected: Option<Instant>,
    /// Its writer was named.
    pub granted: Option<Instant>,
    /// It opened.
    pub opened: Option<Instant>,
    /// Another node wrote in a later term.
    pub replaced: bool,
    /// Consensus had another leader.
    pub led_anew: bool,
    /// Furthest that a standby's replay was behind, in bytes.
    pub lag_bytes: u64,
}

/// Eyes on the cluster. Dropping it closes them.
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins to look.
    pub fn start(node: &Arc<Node>, term: Term, writer: NodeId) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(look(Arc::clone(node), term, writer, Arc::clone(&seen)));
        Self { seen, task }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        *lock(&self.seen)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look(node: Arc<Node>, term: Term, writer: NodeId, seen: Arc<Mutex<Seen>>) {
    let leader = node.parts.consensus.status().leader;
    let mut state = node.parts.consensus.watch();
    loop {
        let authority = state.borrow_and_update().authority.clone();
        let now = Instant::now();
        let lag = lag(&node);
        let led_by = node.parts.consensus.status().leader;
        {
            let mut seen = lock(&seen);
            if authority.term > term {
                seen.elected.get_or_insert(now);
                if authority.phase != Phase::Electing {
                    seen.granted.get_or_insert(now);
                }
                if authority.phase == Phase::Serving {
                    seen.opened.get_or_insert(now);
                    seen.replaced |= authority.writer != Some(writer);
                }
            }
            seen.led_anew |= led_by.is_some() && led_by != leader;
            seen.lag_bytes = seen.lag_bytes.max(lag);
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn lag(node: &Node) -> u64 {
    let peers = node.parts.health.peers();
    let state = node.parts.consensus.state();
    let server = |n: &NodeId| peers.get(n)?.status.as_ref()?.server.as_ref();
    let Some(end) = state.authority.writer.and_then(|w| server(&w)).map(|s| s.flushed) else {
        return 0;
    };
    let data = state.nodes.iter().filter(|(_, n)| n.kind == NodeKind::Data).map(|(name, _)| name);
    let behind = data.filter_map(server).map(|s| end.bytes_since(s.replayed));
    behind.max().unwrap_or_default()
}
