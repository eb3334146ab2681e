//! What a node of the log is started with.

use std::path::PathBuf;
use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use quorate_core::NodeId;

use crate::error::Error;
use crate::limits;

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node's name. A store belongs to one name for ever.
    pub me: NodeId,
    /// The store file; created when there is none, in a directory that is created likewise.
    pub store: PathBuf,
    /// When leadership is renewed and contested.
    pub timing: Timing,
    /// When the log is shortened.
    pub compaction: Compaction,
    /// How long `propose` and `read` may wait for a leader and then for a majority.
    pub patience: Duration,
}

impl Options {
    /// Defaults for everything but the name and the file.
    pub fn new(me: NodeId, store: impl Into<PathBuf>) -> Self {
        Self {
            me,
            store: store.into(),
            timing: Timing::default(),
            compaction: Compaction::default(),
            patience: limits::PROPOSE_WITHIN,
        }
    }
}

/// When leadership is renewed and contested. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How often a leader says that it is there.
    pub heartbeat: Duration,
    /// No node campaigns before it has heard nothing for this long. More than two heartbeats.
    pub election_min: Duration,
    /// Every willing voter campaigns once it has heard nothing for this long (and a tick of one
    /// and a half heartbeats).
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(450),
            election_max: Duration::from_millis(900),
        }
    }
}

/// When the log is shortened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot for nodes that are a little late.
    pub entries_kept: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { snapshot_every: limits::SNAPSHOT_EVERY, entries_kept: limits::ENTRIES_KEPT }
    }
}

impl Timing {
    /// How long voters refuse a candidate after they heard from a leader.
    ///
    /// The library campaigns after this lease *plus* a random time below it, so both are half of
    /// what the two limits say.
    pub(crate) fn lease(&self) -> Duration {
        self.election_max / 2
    }

    /// How long a candidate waits for votes.
    pub(crate) fn vote_within(&self) -> Duration {
        self.election_min / 2
    }

    fn check(&self) -> Result<(), Error> {
        let because = if self.heartbeat < Duration::from_millis(1) {
            "the heartbeat is below a millisecond"
        } else if self.vote_within() <= self.heartbeat {
            "election_min must be more than two heartbeats"
        } else if self.election_max < self.election_min + Duration::from_millis(4) {
            "election_max must be above election_min"
        } else {
            return Ok(());
        };
        Err(Error::Timing { because: because.to_owned() })
    }
}

/// The library's configuration.
pub(crate) fn config(options: &Options) -> Result<Config, Error> {
    let Options { timing, compaction, .. } = options;
    timing.check()?;
    let millis = |duration: Duration| duration.as_millis() as u64;
    Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.vote_within()),
        election_timeout_max: millis(timing.lease()),
        install_snapshot_timeout: millis(limits::SNAPSHOT_CHUNK_WITHIN),
        snapshot_max_chunk_size: limits::SNAPSHOT_CHUNK_BYTES,
        max_payload_entries: limits::BATCH_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.snapshot_every.max(1)),
        max_in_snapshot_log_to_keep: compaction.entries_kept,
        // Above the snapshot distance, or a snapshot would not end the lag it is sent for.
        replication_lag_threshold: compaction.snapshot_every.saturating_mul(2).max(2),
        ..Config::default()
    }
    .validate()
    .map_err(|err| Error::Timing { because: err.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_that_makes_no_sense_is_refused() {
        let me = NodeId::new("n1").unwrap();
        let with = |heartbeat, election_min, election_max| {
            let mut options = Options::new(me, "unused");
            options.timing = Timing {
                heartbeat: Duration::from_millis(heartbeat),
                election_min: Duration::from_millis(election_min),
                election_max: Duration::from_millis(election_max),
            };
            config(&options)
        };
        assert!(with(150, 450, 900).is_ok());
        assert!(with(20, 60, 120).is_ok());
        for (heartbeat, min, max) in [(0, 450, 900), (150, 300, 900), (150, 450, 450)] {
            assert!(matches!(with(heartbeat, min, max), Err(Error::Timing { .. })));
        }
    }
}
