//! Heartbeats: short messages to every peer and their answers, each peer on threads of its own.
//!
//! They decide about failovers, so nothing else may delay them: plain threads with blocking `poll`,
//! no async runtime, no disk, no logging (a log pipe can block), no name lookups. Every wait has a
//! limit; a network that swallows bytes without a word costs one connection, not a thread.
//!
//! ```text
//! one thread per peer, calling:  beat ─▶ [len u32][seq u64][bytes] ─▶ heard
//!                            answered ◀─ [len u32][seq u64][bytes] ◀─ its answer   one thread per caller
//! ```

mod channel;
mod incoming;
mod lookup;
mod outgoing;
mod wake;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use quorate_core::{Moment, NodeId};

use self::channel::Channel;
use self::lookup::Lookup;
use self::outgoing::Outgoing;
use self::wake::Wake;
use crate::links::PeersChanged;
use crate::{Error, Incoming, Links};

/// What is said and heard. Called on the heartbeat threads, of several peers at once: answers come
/// from memory, and neither disk nor waiting belongs here, nor panics (one ends the heartbeats to
/// that peer). Messages have at most `limits::BEAT_BYTES_MAX` bytes; longer ones are not sent.
pub trait Pulse: Send + Sync + 'static {
    /// What to say to a peer now.
    fn beat(&self, to: NodeId) -> Vec<u8>;
    /// A peer's beat; returns the answer.
    fn heard(&self, from: NodeId, beat: &[u8]) -> Vec<u8>;
    /// A peer's answer to the beat that `beat` was asked for at `sent_at`, on our clock.
    fn answered(&self, by: NodeId, sent_at: Moment, answer: &[u8]);
    /// The peer's host actively refuses connections (nothing listens, or it hangs up before it says
    /// anything): its process is gone. Called for every refused attempt. A hint, not a proof.
    fn refused(&self, by: NodeId);
}

/// How the connection to one peer is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerLink {
    /// Whether it is open (which is not yet: whether anything is heard on it).
    pub connected: bool,
    /// Why the last attempt to open it failed, in a sentence.
    pub trouble: Option<String>,
}

type Status = Arc<Mutex<BTreeMap<NodeId, PeerLink>>>;

/// All heartbeats of this node. Clones share everything; the last one dropped ends them.
#[derive(Clone)]
pub struct Heartbeats {
    inner: Arc<Inner>,
}

struct Inner {
    links: Links,
    interval: Duration,
    pulse: Arc<dyn Pulse>,
    lookup: Lookup,
    status: Status,
    stopped: AtomicBool,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    outgoing: BTreeMap<NodeId, Running>,
    incoming: BTreeMap<NodeId, Running>,
    // Told to stop, but perhaps still in a call of `Pulse`.
    ending: Vec<JoinHandle<()>>,
}

struct Running {
    /// Where an outgoing thread calls; empty for an incoming one.
    address: String,
    wake: Arc<Wake>,
    thread: JoinHandle<()>,
}

impl Heartbeats {
    /// Beats to every peer of `links` each `interval`, now and as the set of peers changes.
    pub fn start(links: Links, interval: Duration, pulse: Arc<dyn Pulse>) -> Self {
        let inner = Arc::new(Inner {
            links,
            interval,
            pulse,
            lookup: Lookup::default(),
            status: Status::default(),
            stopped: AtomicBool::new(false),
            threads: Mutex::default(),
        });
        let watcher: Weak<dyn PeersChanged> = Arc::downgrade(&inner) as _;
        inner.links.watch_peers(watcher);
        inner.reconcile();
        Self { inner }
    }

    /// Takes an accepted stream of kind `Heartbeat` off the runtime and answers on it. It replaces
    /// an earlier one of the same peer.
    pub fn adopt(&self, incoming: Incoming) -> Result<(), Error> {
        let from = incoming.peer;
        let (socket, tls) = incoming.stream.into_parts().map_err(Error::System)?;
        let channel = Channel::new(socket, tls);
        let wake = Arc::new(Wake::new().map_err(Error::System)?);
        let (pulse, interval) = (Arc::clone(&self.inner.pulse), self.inner.interval);
        let mut threads = self.inner.threads();
        if self.inner.stopped.load(Ordering::SeqCst) {
            return Ok(());
        }
        let ear = Arc::clone(&wake);
        let outage = self.inner.links.outage().clone();
        let thread = spawn(format!("hb<{from}"), move || {
            incoming::run(channel, (from, &outage), &*pulse, &ear, interval);
        })?;
        let running = Running { address: String::new(), wake, thread };
        let old = threads.incoming.insert(from, running);
        threads.end(old);
        Ok(())
    }

    /// Sends a beat to every connected peer right now, and to the others once they are connected.
    pub fn kick(&self) {
        for running in self.inner.threads().outgoing.values() {
            running.wake.kick();
        }
    }

    /// How the connection to each peer is doing.
    pub fn peers(&self) -> BTreeMap<NodeId, PeerLink> {
        self.inner.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends all heartbeats; when it returns, `Pulse` is not called any more. Do not hold a lock that
    /// `Pulse` needs.
    pub fn stop(&self) {
        let ending = self.inner.halt();
        for thread in ending {
            // From inside a call of `Pulse` this waits for all threads but its own.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl std::fmt::Debug for Heartbeats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Heartbeats").field("peers", &self.peers()).finish_non_exhaustive()
    }
}

impl PeersChanged for Inner {
    fn peers_changed(&self) {
        self.reconcile();
    }
}

impl Inner {
    /// One thread for every peer at its present address, and none besides.
    fn reconcile(&self) {
        let mut threads = self.threads();
        // Read under the lock: of two calls at once, the later one must see the newer set.
        let peers = self.links.peers();
        if self.stopped.load(Ordering::SeqCst) {
            return;
        }
        let own = self.links.node();
        let gone: Vec<NodeId> = threads
            .outgoing
            .iter()
            .filter(|(node, running)| peers.get(*node) != Some(&running.address))
            .map(|(node, _)| *node)
            .collect();
        for node in gone {
            let outgoing = threads.outgoing.remove(&node);
            threads.end(outgoing);
            if !peers.contains_key(&node) {
                let incoming = threads.incoming.remove(&node);
                threads.end(incoming);
                self.status().remove(&node);
            }
        }
        for (&node, address) in peers.iter().filter(|(node, _)| **node != own) {
            if threads.outgoing.contains_key(&node) {
                continue;
            }
            match self.call(node, address) {
                Ok(running) => drop(threads.outgoing.insert(node, running)),
                // On the thread of whoever changed the peers: logging is fine here.
                Err(err) => {
                    tracing::error!(%node, error = %err, "no heartbeats to this node");
                    let trouble = Some(err.to_string());
                    self.status().insert(node, PeerLink { connected: false, trouble });
                }
            }
        }
    }

    fn call(&self, peer: NodeId, address: &str) -> Result<Running, Error> {
        let wake = Arc::new(Wake::new().map_err(Error::System)?);
        let outgoing = Outgoing {
            links: self.links.clone(),
            peer,
            address: address.to_owned(),
            interval: self.interval,
            pulse: Arc::clone(&self.pulse),
            lookup: self.lookup.clone(),
            wake: Arc::clone(&wake),
            status: Arc::clone(&self.status),
        };
        let thread = spawn(format!("hb>{peer}"), move || outgoing.run())?;
        Ok(Running { address: address.to_owned(), wake, thread })
    }

    fn halt(&self) -> Vec<JoinHandle<()>> {
        let mut threads = self.threads();
        self.stopped.store(true, Ordering::SeqCst);
        let outgoing = std::mem::take(&mut threads.outgoing);
        let incoming = std::mem::take(&mut threads.incoming);
        for running in outgoing.into_values().chain(incoming.into_values()) {
            threads.end(Some(running));
        }
        std::mem::take(&mut threads.ending)
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, BTreeMap<NodeId, PeerLink>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Threads are told, not awaited: the last clone may be dropped on one of them.
        self.halt();
    }
}

impl Threads {
    fn end(&mut self, running: Option<Running>) {
        self.ending.retain(|thread| !thread.is_finished());
        if let Some(running) = running {
            running.wake.stop();
            self.ending.push(running.thread);
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new().name(name).spawn(body).map_err(Error::System)
}
