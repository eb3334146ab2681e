//! Why a replica is late: what holds it up, and what that is concluded from.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::status::{Replay, StandbyLink};
use crate::words::seconds;
use crate::{Lsn, NodeId};

/// What holds a replica up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// No log reaches it: it does not follow.
    Detached,
    /// Log is on its way: the network, or the writer's disk that old log is read from.
    Network,
    /// It has the log and does not get it on its disk.
    Disk,
    /// Replay waits on purpose (`recovery_min_apply_delay`).
    Delay,
    /// Replay was paused.
    Paused,
    /// Replay waits for a query that still needs what it would remove.
    Query,
    /// Replay waits for a lock that a session here holds.
    Lock,
    /// Replay waits for reads or writes of data files.
    Io,
    /// Replay is busy: there is more log than one process replays.
    Replay,
}

/// What holds a replica up, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cause {
    /// What.
    pub kind: Kind,
    /// What shows it, and what to do, in a sentence.
    pub evidence: String,
}

/// Less than this is no lag that asks for a cause.
const WORTH_TELLING: Duration = Duration::from_millis(500);
/// The part of what is missing that must be missing already at a stage for that stage to be it.
const MOST: u64 = 2;

/// Why `node` is late, as far as positions and its own word tell. `end` is where the writer's log
/// ends; `link` what the writer heard of it, `None` when nothing is attached.
pub fn cause(
    node: NodeId,
    end: Lsn,
    late: Duration,
    link: Option<&StandbyLink>,
    replay: Option<&Replay>,
) -> Option<Cause> {
    if late < WORTH_TELLING {
        return None;
    }
    let of = |kind, evidence: String| Some(Cause { kind, evidence });
    let Some(link) = link else {
        return of(Kind::Detached, format!("no log reaches {node}: see its own words in `status`"));
    };
    let behind = end.bytes_since(link.applied).max(1);
    let unsent = end.bytes_since(link.written);
    if unsent >= behind / MOST {
        return of(
            Kind::Network,
            format!(
                "{unsent} of the {behind} bytes that it lacks have not reached it: the network, or \
                 the writer reading old log"
            ),
        );
    }
    let unflushed = link.written.bytes_since(link.flushed);
    if unflushed >= behind / MOST {
        return of(
            Kind::Disk,
            format!("{unflushed} bytes have reached it and are not on its disk: look at that disk"),
        );
    }
    let wait = replay.and_then(|r| r.wait.as_deref()).unwrap_or_default();
    let query = replay.and_then(|r| Some((r.oldest_pid?, r.oldest_ms?)));
    let query = query.map_or(String::new(), |(pid, ms)| {
        let ms = seconds(Duration::from_millis(ms));
        format!("; the longest query there is of process {pid} and runs for {ms}")
    });
    match wait.split_once(':').unwrap_or((wait, "")) {
        (_, "RecoveryApplyDelay") => {
            of(Kind::Delay, "it replays later on purpose (delay_ms)".to_owned())
        }
        (_, "RecoveryPause") => of(
            Kind::Paused,
            "replay was paused there: pg_wal_replay_resume() lets it go on".to_owned(),
        ),
        (_, event) if event.starts_with("RecoveryConflict") => {
            of(Kind::Query, format!("replay waits for a query ({event}){query}"))
        }
        ("BufferPin", _) => of(Kind::Query, format!("replay waits for a query's page{query}")),
        ("Lock", event) => {
            of(Kind::Lock, format!("replay waits for a lock ({event}) of a session there{query}"))
        }
        ("IO", event) => {
            of(Kind::Io, format!("replay waits for its disk ({event}): it does not keep up"))
        }
        (_, _) => of(
            Kind::Replay,
            format!(
                "{} bytes are on its disk and not replayed, and replay waits for nothing: one \
                 process replays what all sessions of the writer write{query}",
                link.flushed.bytes_since(link.applied)
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(written: u64, flushed: u64, applied: u64) -> StandbyLink {
        let (written, flushed, applied) = (Lsn(written), Lsn(flushed), Lsn(applied));
        StandbyLink { written, flushed, applied }
    }

    fn kind(link: Option<StandbyLink>, wait: &str) -> Option<Kind> {
        let node = NodeId::new("n2").unwrap();
        let replay = Replay {
            wait: Some(wait.to_owned()).filter(|w| !w.is_empty()),
            oldest_ms: Some(45_000),
            oldest_pid: Some(7),
        };
        let late = Duration::from_secs(2);
        cause(node, Lsn(1000), late, link.as_ref(), Some(&replay)).map(|c| c.kind)
    }

    #[test]
    fn the_first_stage_that_lacks_most_is_the_cause() {
        assert_eq!(kind(None, ""), Some(Kind::Detached));
        assert_eq!(kind(Some(link(100, 100, 90)), ""), Some(Kind::Network));
        assert_eq!(kind(Some(link(990, 100, 90)), ""), Some(Kind::Disk));
        assert_eq!(kind(Some(link(990, 990, 90)), ""), Some(Kind::Replay));
    }

    #[test]
    fn what_replay_waits_for_is_named() {
        let late = Some(link(1000, 1000, 10));
        for (wait, expected) in [
            ("Timeout:RecoveryApplyDelay", Kind::Delay),
            ("IPC:RecoveryPause", Kind::Paused),
            ("IPC:RecoveryConflictSnapshot", Kind::Query),
            ("BufferPin:BufferPin", Kind::Query),
            ("Lock:relation", Kind::Lock),
            ("IO:DataFileRead", Kind::Io),
        ] {
            assert_eq!(kind(late, wait), Some(expected), "{wait}");
        }
        let node = NodeId::new("n2").unwrap();
        let replay = Replay {
            wait: Some("IPC:RecoveryConflictSnapshot".to_owned()),
            oldest_ms: Some(45_000),
            oldest_pid: Some(7),
        };
        let late = Duration::from_secs(2);
        let told = cause(node, Lsn(1000), late, Some(&link(1000, 1000, 10)), Some(&replay));
        assert_eq!(
            told.unwrap().evidence,
            "replay waits for a query (RecoveryConflictSnapshot); the longest query there is of \
             process 7 and runs for 45 s"
        );
    }

    #[test]
    fn a_little_lag_needs_no_cause() {
        let node = NodeId::new("n2").unwrap();
        assert_eq!(cause(node, Lsn(1000), Duration::from_millis(499), None, None), None);
    }
}
