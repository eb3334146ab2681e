//! Drills: rehearsed failures, what they must show, and what is remembered of them.
//!
//! A drill is recorded in the replicated state before anything is done, so that there is one at a
//! time and every node knows that what it sees is a rehearsal; and after it, with what it measured.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::limits::UNDISTURBED_GAP;
use crate::state::WallMillis;
use crate::{NodeId, Term};

/// A failure that can be rehearsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drill {
    /// The writer hands over as planned, and back.
    Switchover,
    /// The writer's server dies.
    WriterCrash,
    /// The writer's host falls silent, with everything on it.
    HostLoss,
    /// The writer lives and reaches no other node.
    Partition,
    /// A standby stops replaying.
    ReplicaLag,
    /// Somebody keeps the writer's log and does not read it.
    SlotPileUp,
    /// The leader of consensus falls silent.
    ConsensusLeaderLoss,
    /// A backup is restored beside the cluster.
    Restore,
}

impl Drill {
    /// All of them, the gentle ones first.
    pub const ALL: [Drill; 8] = [
        Drill::Switchover,
        Drill::ReplicaLag,
        Drill::SlotPileUp,
        Drill::ConsensusLeaderLoss,
        Drill::WriterCrash,
        Drill::HostLoss,
        Drill::Partition,
        Drill::Restore,
    ];

    /// Its name, as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Drill::Switchover => "switchover",
            Drill::WriterCrash => "writer-crash",
            Drill::HostLoss => "host-loss",
            Drill::Partition => "partition",
            Drill::ReplicaLag => "replica-lag",
            Drill::SlotPileUp => "slot-pile-up",
            Drill::ConsensusLeaderLoss => "consensus-leader-loss",
            Drill::Restore => "restore",
        }
    }

    /// What becomes of the writer.
    pub fn effect(self) -> Effect {
        match self {
            Drill::Switchover => Effect::HandsOver,
            Drill::WriterCrash => Effect::Fails,
            Drill::HostLoss | Drill::Partition => Effect::IsReplaced,
            Drill::ReplicaLag | Drill::SlotPileUp | Drill::ConsensusLeaderLoss | Drill::Restore => {
                Effect::Stays
            }
        }
    }
}

/// What a drill does to the writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: clients must notice nothing.
    Stays,
    /// A planned pause: clients wait and get no error.
    HandsOver,
    /// A failure after which the same node may write again.
    Fails,
    /// A failure after which another node must write.
    IsReplaced,
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Drill {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Drill::ALL.into_iter().find(|d| d.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Drill::ALL.iter().map(|d| d.name()).collect();
            format!("there is no drill `{text}`: {}, or all", names.join(", "))
        })
    }
}

/// What the operator promises, and drills are judged by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Targets {
    /// Recovery time objective: milliseconds without acknowledged writes after a failure.
    pub recovery_ms: u64,
    /// Milliseconds without acknowledged writes in a planned hand-over.
    pub switchover_ms: u64,
    /// Recovery point objective: acknowledged writes that a failure may lose.
    pub lost_writes: u64,
}

impl Default for Targets {
    fn default() -> Self {
        Self { recovery_ms: 30_000, switchover_ms: 5_000, lost_writes: 0 }
    }
}

impl Targets {
    /// Whether nothing was said of them.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Why they cannot be met in any case.
    pub fn contradiction(&self, document: &Document) -> Option<String> {
        use crate::document::Timing;
        let loses = document.timing == Timing::Async && document.max_lag_on_failover > 0;
        (self.lost_writes == 0 && loses).then(|| {
            format!(
                "timing = \"async\" may lose up to {} bytes of log in a failover, and the target is \
                 to lose nothing",
                document.max_lag_on_failover
            )
        })
    }
}

/// A drill under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Grows by one with each drill.
    pub id: u64,
    /// Which.
    pub drill: Drill,
    /// The node that conducts it.
    pub conductor: NodeId,
    /// When it is over in any case: a conductor that died does not keep others from drilling.
    pub until: WallMillis,
}

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was as it must be.
    Passed,
    /// Something was not.
    Failed,
    /// It was ended before it could tell.
    Aborted,
}

impl Outcome {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Aborted => "aborted",
        }
    }
}

/// What was measured. Times are in milliseconds since the failure began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measures {
    /// Until an election was opened.
    pub detection_ms: Option<u64>,
    /// Until the next writer was named.
    pub decision_ms: Option<u64>,
    /// Until it had promoted and opened.
    pub promotion_ms: Option<u64>,
    /// Until a write was acknowledged, by the next writer if there is one.
    pub first_write_ms: Option<u64>,
    /// Longest time without an acknowledged write, all clients together.
    pub write_gap_ms: u64,
    /// Until the cluster was whole again: every node had its place.
    pub whole_ms: Option<u64>,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Statements that clients were told had no effect.
    pub refused: u64,
    /// Statements of which clients were told that the outcome is not known.
    pub unknown: u64,
    /// Logins that failed.
    pub logins_failed: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// Writes that are there although their client was told that they have no effect.
    pub denied: u64,
    /// Reads that did not show what their own session had written.
    pub stale: u64,
    /// Reads, and how many of them a replica served.
    pub reads: u64,
    pub replica_reads: u64,
    /// Furthest that a standby was behind, in bytes of log.
    pub lag_bytes: Option<u64>,
    /// Log that a slot kept, in bytes.
    pub kept_bytes: Option<u64>,
}

/// One thing a drill looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What must be so.
    pub claim: String,
    /// Whether it was.
    pub held: bool,
    /// What was seen.
    pub seen: String,
}

/// What is remembered of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub id: u64,
    /// Which.
    pub drill: Drill,
    /// When it began, by the conductor's wall clock.
    pub at: WallMillis,
    /// How long it took, with everything put back.
    pub seconds: u64,
    /// Who conducted it.
    pub conductor: NodeId,
    /// Who wrote before.
    pub writer: NodeId,
    /// The term before.
    pub term: Term,
    /// How it ended.
    pub outcome: Outcome,
    /// That in a sentence.
    pub sentence: String,
    /// What was measured.
    pub measures: Measures,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// What a drill came to, besides what was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// Why it did not go as it should; `None` when every step was done.
    pub trouble: Option<String>,
    /// Whether it was aborted.
    pub aborted: bool,
    /// Whether a later term's writer served while the failure lasted.
    pub replaced: bool,
    /// Whether a new leader of consensus was seen.
    pub led_anew: bool,
}

/// Judges a drill by the operator's targets.
pub fn judge(drill: Drill, measures: &Measures, course: &Course, targets: &Targets) -> Vec<Check> {
    let m = measures;
    let check =
        |claim: &str, held: bool, seen: String| Check { claim: claim.to_owned(), held, seen };
    let mut checks = vec![
        check(
            "every step could be done, and everything is as before",
            course.trouble.is_none(),
            course.trouble.clone().unwrap_or_else(|| "it is".to_owned()),
        ),
        check(
            "no acknowledged write is lost",
            m.lost <= targets.lost_writes,
            match targets.lost_writes {
                0 => format!("{} of {} are missing", m.lost, m.acknowledged),
                most => format!("{} of {} are missing; allowed: {most}", m.lost, m.acknowledged),
            },
        ),
        check(
            "what was said to have no effect has none",
            m.denied == 0,
            format!("{} of {} are there all the same", m.denied, m.refused),
        ),
        check(
            "sessions see what they wrote",
            m.stale == 0,
            format!("{} of {} reads did not; {} were replicas'", m.stale, m.reads, m.replica_reads),
        ),
        check(
            "clients wrote before, and after",
            m.acknowledged > 0 && m.first_write_ms.is_some(),
            match m.first_write_ms {
                Some(ms) => format!("{} after it began a write was acknowledged again", Millis(ms)),
                None => "none was acknowledged after it".to_owned(),
            },
        ),
    ];
    let (most, whose) = match drill.effect() {
        Effect::Stays => (UNDISTURBED_GAP.as_millis() as u64, "nobody should notice"),
        Effect::HandsOver => (targets.switchover_ms, "targets.switchover_ms"),
        Effect::Fails | Effect::IsReplaced => (targets.recovery_ms, "targets.recovery_ms"),
    };
    checks.push(check(
        "writes pause no longer than allowed",
        m.write_gap_ms <= most,
        format!("{}; allowed: {} ({whose})", Millis(m.write_gap_ms), Millis(most)),
    ));
    match drill.effect() {
        Effect::Stays | Effect::HandsOver => checks.push(check(
            "no client gets an error",
            m.refused + m.unknown + m.logins_failed == 0,
            format!(
                "{} refused, {} with an unknown outcome, {} logins failed",
                m.refused, m.unknown, m.logins_failed
            ),
        )),
        Effect::Fails => {}
        Effect::IsReplaced => checks.push(check(
            "another node takes over while it lasts",
            course.replaced,
            if course.replaced { "one did" } else { "none did" }.to_owned(),
        )),
    }
    if drill == Drill::ConsensusLeaderLoss {
        checks.push(check(
            "consensus gets another leader, and the writer stays",
            course.led_anew && !course.replaced,
            match (course.led_anew, course.replaced) {
                (true, false) => "so it was".to_owned(),
                (false, _) => "no other leader was seen".to_owned(),
                (true, true) => "the writer was replaced".to_owned(),
            },
        ));
    }
    checks
}

/// How a drill ended, from what was looked at.
pub fn outcome(course: &Course, checks: &[Check]) -> Outcome {
    match checks.iter().all(|c| c.held) {
        _ if course.aborted => Outcome::Aborted,
        true => Outcome::Passed,
        false => Outcome::Failed,
    }
}

/// That in a sentence.
pub fn sentence(outcome: Outcome, measures: &Measures, checks: &[Check]) -> String {
    match outcome {
        Outcome::Passed => format!(
            "passed: nothing lost of {} writes, longest pause {}",
            measures.acknowledged,
            Millis(measures.write_gap_ms)
        ),
        Outcome::Aborted => format!(
            "aborted: {} of {} acknowledged writes are missing",
            measures.lost, measures.acknowledged
        ),
        Outcome::Failed => match checks.iter().find(|c| !c.held) {
            Some(check) => format!("failed: not so: {} ({})", check.claim, check.seen),
            None => "failed".to_owned(),
        },
    }
}

/// A time as people read it.
#[derive(Debug, Clone, Copy)]
pub struct Millis(pub u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms @ 0..1000 => write!(f, "{ms} ms"),
            ms @ 1000..60_000 => write!(f, "{}.{} s", ms / 1000, ms % 1000 / 100),
            ms => write!(f, "{} min {} s", ms / 60_000, ms % 60_000 / 1000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> (Measures, Course) {
        let measures = Measures {
            first_write_ms: Some(900),
            write_gap_ms: 900,
            acknowledged: 100,
            reads: 100,
            ..Measures::default()
        };
        let course = Course { trouble: None, aborted: false, replaced: false, led_anew: false };
        (measures, course)
    }

    fn judged(drill: Drill, measures: &Measures, course: &Course) -> Vec<String> {
        let checks = judge(drill, measures, course, &Targets::default());
        let bad = checks.iter().filter(|c| !c.held).map(|c| c.claim.clone()).collect();
        let passed = outcome(course, &checks) == Outcome::Passed;
        assert_eq!(passed, checks.iter().all(|c| c.held) && !course.aborted);
        bad
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for drill in Drill::ALL {
            assert_eq!(drill.to_string().parse(), Ok(drill));
            assert_eq!(serde_json::to_value(drill).unwrap(), drill.name());
        }
        assert!("restor".parse::<Drill>().unwrap_err().contains("writer-crash"));
    }

    #[test]
    fn each_fault_is_told() {
        let (measures, course) = good();
        assert_eq!(judged(Drill::Switchover, &measures, &course), Vec::<String>::new());
        type Fault = fn(&mut Measures, &mut Course);
        let faults: [(Fault, &str); 8] = [
            (|m, _| m.lost = 1, "no acknowledged write is lost"),
            (|m, _| m.denied = 1, "what was said to have no effect has none"),
            (|m, _| m.stale = 1, "sessions see what they wrote"),
            (|m, _| m.write_gap_ms = 5_001, "writes pause no longer than allowed"),
            (|m, _| m.unknown = 1, "no client gets an error"),
            (|m, _| m.logins_failed = 1, "no client gets an error"),
            (|m, _| m.first_write_ms = None, "clients wrote before, and after"),
            (
                |_, c| c.trouble = Some("n2 did not come back".to_owned()),
                "every step could be done, and everything is as before",
            ),
        ];
        for (fault, claim) in faults {
            let (mut measures, mut course) = good();
            fault(&mut measures, &mut course);
            assert_eq!(judged(Drill::Switchover, &measures, &course), [claim]);
        }
    }

    #[test]
    fn a_failure_may_cost_errors_and_time_and_must_move_the_writer() {
        let (mut measures, mut course) = good();
        measures.refused = 5;
        measures.write_gap_ms = 29_000;
        assert_eq!(judged(Drill::WriterCrash, &measures, &course), Vec::<String>::new());
        let claim = "another node takes over while it lasts";
        assert_eq!(judged(Drill::HostLoss, &measures, &course), [claim]);
        course.replaced = true;
        assert_eq!(judged(Drill::HostLoss, &measures, &course), Vec::<String>::new());
        assert_eq!(judged(Drill::ConsensusLeaderLoss, &measures, &course).len(), 3);
    }

    #[test]
    fn targets_that_a_document_cannot_keep_are_told() {
        use crate::document::Timing;
        let document = Document { timing: Timing::Async, ..Document::default() };
        assert!(Targets::default().contradiction(&document).is_some());
        let lenient = Targets { lost_writes: 10, ..Targets::default() };
        assert_eq!(lenient.contradiction(&document), None);
        assert_eq!(Targets::default().contradiction(&Document::default()), None);
    }
}
