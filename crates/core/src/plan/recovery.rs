//! How long writes are away, from the limits that the deciding code itself keeps.

use std::time::Duration;

use serde::Serialize;

use super::ask::{Domain, Needs, PROMOTION};
use super::place::{Layout, many_of};
use super::trips::fastest;
use super::{Contradiction, PlannedNode, as_ms, time_words};
use crate::document::{Document, Timing};
use crate::lease::LeaseTiming;
use crate::limits::{
    ASYNC_WRITER_WAIT, BETTER_CANDIDATE_WAIT, COORDINATE_EVERY, CYCLE, DISK_STUCK_AFTER,
    HEARTBEAT_EVERY, HUNG_AFTER, LOSSY_WAIT, PROBE_EVERY,
};

/// Rounds between nodes from suspicion to service: the term, the reports, the grant, the marker,
/// the word that it serves.
const ROUNDS: u32 = 5;

/// How long one kind of failure takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// What happens.
    pub fault: String,
    /// How long writes are away at the most, by the limits; more where something is slow.
    #[serde(rename = "at_most_ms", serialize_with = "as_ms")]
    pub at_most: Duration,
    /// The arithmetic.
    pub because: String,
}

/// How long writes are away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recoveries {
    /// An election, which all of them end with, and its arithmetic.
    pub election: String,
    /// Each kind of failure: the end of a process and what is to be survived come first.
    pub faults: Vec<Recovery>,
}

/// Every kind of failure; refuses a wish that the loss of what is to be survived cannot meet.
pub(super) fn all(
    needs: &Needs,
    layout: &Layout,
    timing: Timing,
) -> Result<Recoveries, Contradiction> {
    let recoveries = recoveries(needs, layout, timing);
    let Some(wanted) = needs.recover_within else { return Ok(recoveries) };
    // The first two are what a plan is for; the others are said, not refused.
    let slow = recoveries.faults.iter().take(2).find(|r| r.at_most > wanted);
    let Some(slow) = slow else { return Ok(recoveries) };
    let change = if timing == Timing::Async && slow.at_most > ASYNC_WRITER_WAIT {
        "Let commits wait for a standby (--rpo none, or a larger --commit-max): then there is no \
         reason to wait for the former writer's log; or allow more time (--rto)"
            .to_owned()
    } else {
        format!(
            "Allow {} (--rto), or name nearer places for the copies (--rtt): silence must last {} \
             before a host counts as lost, and its lease {} before another answers",
            time_words(slow.at_most),
            time_words(suspect_after()),
            time_words(LeaseTiming::default().length),
        )
    };
    let problem = format!(
        "Writes shall be away for {} at the most, and when {} it can be {}",
        time_words(wanted),
        slow.fault,
        time_words(slow.at_most),
    );
    Err(Contradiction::new(problem, change))
}

fn suspect_after() -> Duration {
    Duration::from_millis(Document::default().suspect_after_ms)
}

fn recoveries(needs: &Needs, layout: &Layout, timing: Timing) -> Recoveries {
    let round = layout.ha().map(|w| majority_trip(layout, w, needs)).max().unwrap_or_default();
    let (late, returning) = match timing {
        Timing::Async => (LOSSY_WAIT, Some(ASYNC_WRITER_WAIT)),
        Timing::Quorum | Timing::Sync | Timing::SemiSync => (BETTER_CANDIDATE_WAIT, None),
    };
    let promotion = PROMOTION + round * ROUNDS;
    let election = COORDINATE_EVERY + late + promotion;
    let words = format!(
        "An election takes up to {}: {} until the coordinator looks, {} for reports that are late, \
         {} to promote, and {ROUNDS} rounds of {} between a majority of voters.",
        time_words(election),
        time_words(COORDINATE_EVERY),
        time_words(late),
        time_words(PROMOTION),
        time_words(round),
    );
    let ended = ended(election, returning);
    let faults = vec![ended, silent(needs, election, round), hung(election), stuck(election)];
    Recoveries { election: words, faults }
}

/// A process ends: its host says so to the next heartbeat.
fn ended(election: Duration, returning: Option<Duration>) -> Recovery {
    let wait = returning.unwrap_or_default();
    let mut because = format!(
        "The next heartbeat ({}) meets a refused connection, then an election",
        time_words(HEARTBEAT_EVERY)
    );
    if returning.is_some() {
        because += &format!(
            ", which waits up to {} for the former writer's own log, to lose nothing",
            time_words(wait)
        );
    }
    Recovery {
        fault: "the writer's PostgreSQL or Quorate ends".to_owned(),
        at_most: HEARTBEAT_EVERY + wait + election,
        because: because + ".",
    }
}

fn silent(needs: &Needs, election: Duration, round: Duration) -> Recovery {
    let lease = LeaseTiming::default().length;
    let beat = HEARTBEAT_EVERY;
    let fault = match needs.survive {
        Domain::Host => "the writer's host is lost or cut off".to_owned(),
        domain => format!("{} with the writer in it is lost", many_of(needs.losses, domain)),
    };
    let because = format!(
        "Silence of {} and a heartbeat ({}) in which the others say so, then an election; \
         meanwhile its lease of {} runs out; {} until that is noticed.",
        time_words(suspect_after()),
        time_words(beat),
        time_words(lease),
        time_words(CYCLE),
    );
    let at_most = (suspect_after() + beat + election).max(lease + beat + round) + CYCLE;
    Recovery { fault, at_most, because }
}

fn hung(election: Duration) -> Recovery {
    Recovery {
        fault: "the writer's PostgreSQL hangs".to_owned(),
        at_most: HUNG_AFTER + PROBE_EVERY + election,
        because: format!(
            "No answer for {} to probes every {}, then an election.",
            time_words(HUNG_AFTER),
            time_words(PROBE_EVERY),
        ),
    }
}

fn stuck(election: Duration) -> Recovery {
    Recovery {
        fault: "the writer's disk is stuck".to_owned(),
        at_most: DISK_STUCK_AFTER + PROBE_EVERY + election,
        because: format!(
            "A write that does not return for {}, looked at every {}, then an election.",
            time_words(DISK_STUCK_AFTER),
            time_words(PROBE_EVERY),
        ),
    }
}

/// From a node to as many other voters as make a majority with it while the nearest are lost.
fn majority_trip(layout: &Layout, node: &PlannedNode, needs: &Needs) -> Duration {
    let others = layout.nodes.iter().filter(|n| n.name != node.name);
    let trips: Vec<Duration> = others.map(|n| needs.trips.of(&node.region, &n.region)).collect();
    let majority = layout.nodes.len() / 2 + 1;
    let lost = layout.worst_loss(|_| true);
    let wanted = (majority - 1 + lost).min(trips.len());
    fastest(trips, wanted)
}
