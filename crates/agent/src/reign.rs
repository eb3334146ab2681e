//! The writer's machinery for one term: the virtual standby, tunnels to standbys, the marker.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_core::node::OwnReign;
use quorate_core::status::SurrenderReason;
use quorate_core::{Lsn, Moment, NodeId, Rule, Term, TimelineId};
use quorate_gateway::Gate;
use quorate_link::clock;
use quorate_postgres::{Marker, Promoted, ROLE};
use quorate_replication::{Level, VirtualStandby};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::database::Database;
use crate::feed::Lineage;
use crate::limits::{
    CALM_LOOKS, CALM_POLL, CALM_WAIT, CHECKPOINT_WAIT, DISK_STUCK_AFTER, DRAIN_WAIT, MARKER_RETRY,
    QUIET_WAIT,
};
use crate::node::Node;
use crate::perform::Message;

/// What tunnels and sessions need to know of the reign.
#[derive(Debug, Clone)]
pub struct Reigning {
    /// The term.
    pub term: Term,
    /// What standbys are checked against.
    pub lineage: Lineage,
    /// Turns true when the reign is over: tunnels end.
    pub closed: watch::Receiver<bool>,
}

/// This node's reign. Dropping it ends everything it started.
pub struct Reign {
    /// Progress, as the decision sees it.
    pub own: OwnReign,
    /// What the promotion made.
    pub promoted: Promoted,
    closed: watch::Sender<bool>,
    standby: JoinHandle<()>,
    marker: Option<JoinHandle<()>>,
    drain: Option<Drain>,
    /// Why the planned switchover was given up; its plan is yet to be dropped.
    pub gave_up: Option<String>,
    leased_until: Moment,
}

/// The preparation of a switchover.
struct Drain {
    task: JoinHandle<()>,
    over: Over,
}

/// Whether the preparation is over. Held while the gate is closed for it, so that whoever ends it
/// knows whether the gate is to be opened again.
type Over = Arc<Mutex<bool>>;

impl Drop for Drain {
    fn drop(&mut self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.task.abort();
    }
}

impl Drop for Reign {
    fn drop(&mut self) {
        self.closed.send_replace(true);
        self.standby.abort();
        if let Some(task) = self.marker.take() {
            task.abort();
        }
    }
}

impl Reign {
    /// Takes up the term: commits are released by this rule from now on, standbys may attach.
    pub fn begin(
        node: &Arc<Node>,
        term: Term,
        rule: &Rule,
        promoted: Promoted,
        forks: Vec<(TimelineId, Lsn)>,
    ) -> Option<Self> {
        let parts = &node.parts;
        let database = parts.database.as_ref()?;
        if !parts.aggregator.begin(term, parts.me, rule.clone()) {
            return None;
        }
        let aggregator = Arc::clone(&parts.aggregator);
        let standby = VirtualStandby::new(database.options.socket(), ROLE, aggregator);
        let (closed, watch) = watch::channel(false);
        let lineage = Lineage { term, timeline: promoted.tli, forks };
        node.reigning.send_replace(Some(Reigning { term, lineage, closed: watch }));
        parts.health.ask(Some(term));
        parts.heartbeats.kick();
        let own = OwnReign::begun(term, rule);
        Some(Self {
            own,
            promoted,
            closed,
            standby: tokio::spawn(standby.run()),
            marker: None,
            drain: None,
            gave_up: None,
            leased_until: clock::now() + parts.health.lease_length(),
        })
    }

    /// Looks at lease and disk.
    pub fn observe(&mut self, node: &Node) {
        let health = &node.parts.health;
        if let Some(until) = health.lease_until() {
            self.leased_until = self.leased_until.max(until);
        }
        let patience = health.lease_length() * quorate_core::limits::LEASELESS_STOP;
        self.own.lease_lost = clock::now() > self.leased_until + patience;
        let stuck = node.parts.database.as_ref().map(|d| d.disk_stuck_for());
        let stuck = stuck.is_some_and(|s| s >= DISK_STUCK_AFTER) && healthy_standby(node);
        self.own.stuck = stuck.then_some(SurrenderReason::Disk);
    }

    /// Writes a marker and tells the loop when a commit set of the rule in effect holds it.
    pub fn mark(&mut self, node: &Arc<Node>, rule: u64, messages: mpsc::Sender<Message>) {
        if self.marker.as_ref().is_some_and(|m| !m.is_finished()) {
            return;
        }
        let (node, term, timeline) = (Arc::clone(node), self.own.term, self.promoted.tli);
        self.marker = Some(tokio::spawn(async move {
            while !marker_held(&node, term, timeline).await {
                tokio::time::sleep(MARKER_RETRY).await;
            }
            let _ = messages.send(Message::Marked { term, rule }).await;
        }));
    }

    /// Holds clients and lets the target of a switchover catch up.
    pub fn drain(
        &mut self,
        node: &Arc<Node>,
        target: Option<NodeId>,
        messages: mpsc::Sender<Message>,
    ) {
        if self.drain.is_some() || self.gave_up.is_some() {
            return;
        }
        let (node, term) = (Arc::clone(node), self.own.term);
        let over = Over::default();
        let ours = Arc::clone(&over);
        let task = tokio::spawn(async move {
            let failed = drain(&node, target, &ours).await.err();
            let _ = messages.send(Message::Drained { term, failed }).await;
        });
        self.drain = Some(Drain { task, over });
    }

    /// Whether a switchover is being prepared, or is prepared.
    pub fn drains(&self) -> bool {
        self.drain.is_some()
    }

    /// Ends the preparation of a switchover that does not happen: clients are let in again.
    pub fn resume(&mut self, node: &Node) {
        self.drain = None;
        self.own.drained = false;
        let gate = &node.parts.gate;
        gate.drain(false);
        // Closed for the switchover, or for a later term: then the lease is not asked for any more.
        if self.own.open && gate.term().is_none() && node.parts.health.asks(self.own.term) {
            gate.open(self.own.term);
            node.parts.health.renew_gate();
        }
    }
}

/// Whether some standby's disk answers quickly: otherwise handing over would gain nothing.
fn healthy_standby(node: &Node) -> bool {
    let standbys = node.parts.aggregator.snapshot().links;
    let healthy = |n: &NodeId| {
        node.parts.health.status_of(*n).is_some_and(|s| {
            s.disk_ms.is_some_and(|ms| ms < crate::limits::DISK_HEALTHY.as_millis() as u64)
        })
    };
    standbys.keys().any(healthy)
}

/// One synchronous transaction, and proof that a commit set holds it (R10): what PostgreSQL says is
/// checked against our own count of copies.
async fn marker_held(node: &Node, term: Term, timeline: TimelineId) -> bool {
    let Some(database) = &node.parts.database else { return false };
    #[cfg(feature = "sabotage")]
    if crate::sabotage::is("marker") {
        return true;
    }
    match database.admin.write_marker(term, timeline, node.parts.me).await {
        Ok(Marker::Held) => {}
        Ok(Marker::LocalOnly) => return false,
        Ok(Marker::Outdated) => {
            tracing::error!(%term, "the database names a later term than the one granted");
            return false;
        }
        Err(e) => {
            tracing::debug!(error = %e, "writing the marker failed");
            return false;
        }
    }
    let Ok(end) = database.admin.current_flush_lsn().await else { return false };
    node.parts.aggregator.wait_for(end, Level::Flush).await
}

/// The writer's part of a switchover: checkpoint first (it shortens the old writer's recovery and
/// costs nothing yet), then the clients are held, then the target gets everything.
async fn drain(node: &Node, target: Option<NodeId>, over: &Over) -> Result<(), String> {
    let parts = &node.parts;
    let database = parts.database.as_ref().ok_or("no database")?;
    let standbys = parts.aggregator.snapshot().links;
    if let Some(target) = target
        && !standbys.contains_key(&target)
    {
        return Err(format!("{target} does not follow the writer now"));
    }
    if standbys.is_empty() {
        return Err("no standby follows the writer now".to_owned());
    }
    let limit = quorate_core::limits::SWITCHOVER_LAG;
    let end = database.admin.current_flush_lsn().await.map_err(|e| e.to_string())?;
    let behind = best(node, target).map_or(u64::MAX, |at| end.bytes_since(at));
    if behind > limit {
        return Err(format!("the target is {behind} bytes behind: more than {limit}"));
    }
    match tokio::time::timeout(CHECKPOINT_WAIT, database.admin.checkpoint()).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => return Err(format!("the checkpoint before it failed: {e}")),
        Err(_) => return Err("the checkpoint before it takes too long: try again".to_owned()),
    }
    let step = |change: fn(&Gate)| {
        let over = over.lock().unwrap_or_else(PoisonError::into_inner);
        if *over {
            return Err("it is not wanted any more".to_owned());
        }
        change(&parts.gate);
        Ok(())
    };
    // Transactions that have begun go on to their end, and gateways hold all others.
    step(|gate| gate.drain(true))?;
    node.wake.notify_one();
    if tokio::time::timeout(CALM_WAIT, calm(database)).await.is_err() {
        tracing::info!("transactions still run: they are cut off");
    }
    step(Gate::close)?;
    // Cut sessions end at once, but a statement that runs goes on to its end and its commit.
    let quiet = async {
        while database.admin.client_backends().await.unwrap_or(0) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(QUIET_WAIT, quiet).await.is_err() {
        tracing::info!("statements still run: what they commit is not acknowledged");
    }
    let end = database.admin.current_flush_lsn().await.map_err(|e| e.to_string())?;
    let caught_up = async {
        while best(node, target) < Some(end) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    match tokio::time::timeout(DRAIN_WAIT, caught_up).await {
        Ok(()) => Ok(()),
        Err(_) => Err(format!("the target did not catch up in {} s", DRAIN_WAIT.as_secs())),
    }
}

/// Waits until no transaction runs, looked at several times: gateways of other nodes hear of the
/// draining a moment later.
async fn calm(database: &Database) {
    let mut calm = 0;
    while calm < CALM_LOOKS {
        match database.admin.busy_backends().await {
            Ok(0) => calm += 1,
            Ok(_) | Err(_) => calm = 0,
        }
        tokio::time::sleep(CALM_POLL).await;
    }
}

fn best(node: &Node, target: Option<NodeId>) -> Option<Lsn> {
    let links = node.parts.aggregator.snapshot().links;
    let cohort = node.parts.consensus.state().authority.cohort();
    links
        .iter()
        .filter(|(n, _)| target.map_or_else(|| cohort.contains(n), |t| t == **n))
        .filter_map(|(_, word)| word.map(|w| w.at.flush))
        .max()
}
