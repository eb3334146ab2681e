//! What a node does to itself in a drill, and how it always comes back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_agent::{Database, Node};
use quorate_gateway::Door;
use quorate_link::Kind;
use quorate_postgres::KeptLog;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::FAULT_MAX;

/// Streams that a node without a network does not have. Requests between agents pass: they are how
/// a drill ends.
const ALL_STREAMS: [Kind; 4] = [Kind::Consensus, Kind::Heartbeat, Kind::Wal, Kind::Sql];

/// A failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The server is killed.
    KillPostgres,
    /// The host falls silent: the server is killed, links and gateway say nothing.
    Lose,
    /// Links say nothing.
    Isolate,
    /// Consensus says nothing.
    Mute,
    /// The standby replays nothing.
    PauseReplay,
    /// A slot is opened that nobody reads.
    OpenSlot,
}

/// What a node needs to hurt itself, and to heal.
pub struct Faults {
    node: Arc<Node>,
    door: Door,
    /// What ends the present failure in time.
    end: Mutex<Option<AbortHandle>>,
    /// What was done to the server.
    done: Mutex<Done>,
}

/// What a drill did to the server: only that is undone.
#[derive(Default)]
struct Done {
    paused_replay: bool,
    kept_log: Option<KeptLog>,
}

impl Faults {
    /// Nothing is wrong yet.
    pub fn new(node: Arc<Node>, door: Door) -> Arc<Self> {
        Arc::new(Self { node, door, end: Mutex::default(), done: Mutex::default() })
    }

    /// Begins a failure that ends by itself. Only in a drill that the cluster knows of.
    ///
    /// # Errors
    /// Why it cannot be, in a sentence.
    pub async fn begin(self: &Arc<Self>, fault: Fault) -> Result<(), String> {
        let state = self.node.parts.consensus.state();
        let now = quorate_agent::node::wall_millis();
        if state.drill.as_ref().is_none_or(|d| d.until <= now) {
            return Err("no drill is under way: nothing is hurt outside of one".to_owned());
        }
        self.heal_later(FAULT_MAX);
        let outage = self.node.parts.links.outage();
        match fault {
            Fault::KillPostgres => self.crash()?,
            Fault::Lose => {
                self.door.close();
                outage.begin(&ALL_STREAMS, FAULT_MAX);
                self.crash()?;
            }
            Fault::Isolate => outage.begin(&ALL_STREAMS, FAULT_MAX),
            Fault::Mute => outage.begin(&[Kind::Consensus], FAULT_MAX),
            Fault::PauseReplay => {
                let database = self.database()?;
                database.admin.pause_replay(true).await.map_err(|e| e.to_string())?;
                self.done().paused_replay = true;
            }
            Fault::OpenSlot => {
                let database = self.database()?;
                let kept = database.admin.keep_log().await.map_err(|e| e.to_string())?;
                self.done().kept_log = Some(kept);
            }
        }
        tracing::warn!(?fault, "a drill hurts this node");
        Ok(())
    }

    /// Ends whatever was begun. Returns how much log a slot kept, in bytes.
    pub async fn heal(&self) -> Option<u64> {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        let kept = self.kept_log().await;
        self.undo().await;
        if let Some(end) = end {
            end.abort();
        }
        kept
    }

    async fn kept_log(&self) -> Option<u64> {
        let database = self.node.parts.database.as_ref()?;
        self.done().kept_log.as_ref()?;
        database.admin.kept_log().await.ok()?
    }

    async fn undo(&self) {
        self.node.parts.links.outage().end();
        self.door.open();
        let done = std::mem::take(&mut *self.done());
        let Some(database) = self.node.parts.database.as_ref().filter(|_| done.paused_replay)
        else {
            return;
        };
        if let Err(error) = database.admin.pause_replay(false).await {
            // A server that was started or promoted meanwhile replays, or has nothing to replay.
            tracing::debug!(%error, "replay was not resumed");
        }
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heal_later(self: &Arc<Self>, after: Duration) {
        let this = Arc::clone(self);
        let end = tokio::spawn(async move {
            tokio::time::sleep(after).await;
            tracing::warn!("nobody ended what a drill did to this node: it ends by itself");
            this.undo().await;
        });
        let mut kept = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = kept.replace(end.abort_handle()) {
            earlier.abort();
        }
    }

    fn crash(&self) -> Result<(), String> {
        match self.database()?.server.crash() {
            true => Ok(()),
            false => Err("its server is not running".to_owned()),
        }
    }

    fn database(&self) -> Result<&Arc<Database>, String> {
        self.node.parts.database.as_ref().ok_or_else(|| "a witness has no server".to_owned())
    }
}
