//! How late every standby is: judged beside the writer's log, told with its heartbeats, remembered by
//! every node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_core::contract::Standing;
use quorate_core::lag::{Behind, History, Percentiles, Point};
use quorate_core::limits::{LAG_EVERY, LAG_LEVELS};
use quorate_core::state::WallMillis;
use quorate_core::status::{Lag, StandbyLink};
use quorate_core::upstream::feeds;
use quorate_core::{Moment, NodeId, Term};
use quorate_link::clock;
use quorate_replication::{Lagging, Positions};

use crate::node::{Node, wall_millis};

/// The lag of every standby.
#[derive(Debug, Default)]
pub struct Lags {
    judged: Mutex<Judged>,
    histories: Mutex<BTreeMap<NodeId, History>>,
}

/// What this node finds while it is the writer.
#[derive(Debug, Default)]
struct Judged {
    term: Term,
    standings: BTreeMap<NodeId, Standing>,
    lags: BTreeMap<NodeId, Lag>,
}

impl Lags {
    /// What this node found last as the writer of a term.
    pub fn judged(&self, term: Term) -> BTreeMap<NodeId, Lag> {
        let judged = lock(&self.judged);
        if judged.term == term { judged.lags.clone() } else { BTreeMap::new() }
    }

    /// The same as of this moment: what was judged last may be as old as a turn of the judge.
    pub fn now(&self, node: &Node, term: Term) -> BTreeMap<NodeId, Lag> {
        let mut lags = self.judged(term);
        let fresh = node
            .parts
            .aggregator
            .lags(lags.keys().map(|n| (*n, told(node, term, *n))))
            .unwrap_or_default();
        for (name, Lagging { disk, replay }) in fresh {
            if let Some(lag) = lags.get_mut(&name) {
                (lag.disk_ms, lag.replay_ms) = (whole_ms(disk), whole_ms(replay));
                (lag.bytes, lag.or_more) = (replay.bytes, replay.or_more);
            }
        }
        lags
    }

    /// What is remembered of a standby's lag from a moment on.
    pub fn history(&self, node: NodeId, from: WallMillis, most: usize) -> Vec<Point> {
        lock(&self.histories).get(&node).map(|h| h.since(from, most)).unwrap_or_default()
    }

    /// How late a standby was in the last minutes; `None` when nothing is remembered of it.
    pub fn percentiles(&self, node: NodeId) -> Option<Percentiles> {
        lock(&self.histories).get(&node).map(History::percentiles)
    }

    /// Judges every standby of this writer. Returns whether a contract was broken or is kept again.
    fn judge(&self, node: &Node, term: Term, now: Moment) -> bool {
        let state = node.parts.consensus.state();
        let document = state.document();
        let standbys = state.data_nodes().filter(|n| *n != node.parts.me);
        let standbys = standbys.map(|n| (n, told(node, term, n)));
        let Some(lagging) = node.parts.aggregator.lags(standbys) else { return false };
        let mut judged = lock(&self.judged);
        if judged.term != term {
            *judged = Judged { term, ..Judged::default() };
        }
        let broken = |lags: &BTreeMap<NodeId, Lag>| -> BTreeSet<NodeId> {
            lags.iter().filter(|(_, lag)| lag.broken_ms.is_some()).map(|(n, _)| *n).collect()
        };
        let before = broken(&judged.lags);
        let standings = &mut judged.standings;
        standings.retain(|n, _| lagging.contains_key(n));
        let lags = lagging.iter().map(|(name, Lagging { disk, replay })| {
            let contract = document.node(*name).contract();
            let standing = standings.entry(*name).or_default();
            let since = standing.see(&contract, replay, now);
            let lag = Lag {
                disk_ms: whole_ms(*disk),
                replay_ms: whole_ms(*replay),
                bytes: replay.bytes,
                or_more: replay.or_more,
                broken_ms: since.map(|at| now.since(at).as_millis() as u64),
            };
            (*name, lag)
        });
        let lags = lags.collect();
        judged.lags = lags;
        broken(&judged.lags) != before
    }

    /// Takes note of what the writer says.
    fn remember(&self, node: &Node) {
        let state = node.parts.consensus.state();
        let word = state.authority.writer.and_then(|w| node.parts.health.status_of(w)?.writer);
        let Some(word) = word.filter(|w| w.term == state.authority.term) else { return };
        let mut histories = lock(&self.histories);
        histories.retain(|n, _| state.nodes.contains_key(n));
        for (name, lag) in &word.lags {
            let Lag { disk_ms, replay_ms, bytes, .. } = *lag;
            let point = Point { at: wall_millis(), replay_ms, disk_ms, bytes };
            histories.entry(*name).or_default().add(point);
        }
    }
}

/// Where a node says that it is, if it gets the log by way of another one.
fn told(node: &Node, term: Term, name: NodeId) -> Option<Positions> {
    let status = node.parts.health.status_of(name).filter(|status| feeds(status, term))?;
    let (_, StandbyLink { written, flushed, applied }) = status.cascaded()?;
    Some(Positions { write: written, flush: flushed, apply: applied })
}

fn whole_ms(behind: Behind) -> u64 {
    behind.time.as_millis() as u64
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the process ends.
pub async fn run(node: Arc<Node>) {
    let (finest, _) = LAG_LEVELS[0];
    let mut remembered = clock::now();
    loop {
        let now = clock::now();
        let reign = node.reigning.borrow().as_ref().map(|r| r.term);
        if reign.is_some_and(|term| node.lags.judge(&node, term, now)) {
            // Told at once: gateways act on it.
            node.wake.notify_one();
        }
        if now.since(remembered) >= finest {
            remembered = now;
            node.lags.remember(&node);
        }
        tokio::time::sleep(LAG_EVERY).await;
    }
}
