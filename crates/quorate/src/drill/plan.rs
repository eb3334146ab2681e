//! Whether a drill may be now, who conducts it, and what will be done. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_agent::view::ClusterStatus;
use quorate_core::authority::Phase;
use quorate_core::because::list;
use quorate_core::document::{Document, Level, Timing};
use quorate_core::drill::{Drill, Effect, Millis};
use quorate_core::state::NodeKind;
use quorate_core::status::Doing;
use quorate_core::{NodeId, Policy};
use quorate_scenario::{Condition, Deed, Expectation, Step, Who};
use serde::{Deserialize, Serialize};

/// How long a lost or cut-off node stays away after another one writes.
const AWAY: Duration = Duration::from_secs(3);
/// How long replay stands still, and a slot is left open.
const IDLE: Duration = Duration::from_secs(6);
/// How long a leader is mute: several elections of consensus fit.
const MUTE: Duration = Duration::from_secs(5);

/// What will be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The drill.
    pub drill: Drill,
    /// What it is to show.
    pub intent: String,
    /// What applications may notice.
    pub cost: String,
    /// The node that conducts it.
    pub conductor: NodeId,
    /// Who writes now, and will again.
    pub writer: NodeId,
    /// Who is hurt.
    pub victim: NodeId,
    /// The members of the commit rule, all of which must be back at the end.
    pub cohort: BTreeSet<NodeId>,
    /// The steps, in the words of scenarios.
    pub steps: Vec<String>,
}

/// A cluster in which a drill may be.
struct Stage<'a> {
    status: &'a ClusterStatus,
    document: &'a Document,
    writer: NodeId,
    /// Standbys, the next in line first.
    standbys: Vec<NodeId>,
}

/// Plans a drill.
///
/// # Errors
/// The reason why it may not be now, and what would have to be different.
pub fn plan(drill: Drill, status: &ClusterStatus, document: &Document) -> Result<Plan, String> {
    if drill == Drill::Restore {
        return Err("there are no backups to restore: this Quorate takes none yet".to_owned());
    }
    let writer = whole(status, document)?;
    let eligible = status.candidates.iter().filter(|c| c.eligible).map(|c| c.node);
    let stage = Stage { status, document, writer, standbys: eligible.collect() };
    let victim = stage.victim(drill)?;
    stage.survives(drill, victim)?;
    let mut steps = stage.steps(drill, victim);
    steps.push(Step::Expect(Expectation::NoLoss));
    Ok(Plan {
        drill,
        intent: intent(drill).to_owned(),
        cost: stage.cost(drill, victim) + &stage.doubt(drill),
        conductor: stage.conductor(victim)?,
        writer,
        victim,
        cohort: status.authority.cohort().iter().copied().collect(),
        steps: steps.iter().map(Step::to_string).collect(),
    })
}

/// The writer of a cluster in which every node has its place; why it is not so otherwise.
///
/// # Errors
/// What is not as it should be, in a sentence.
pub fn whole(status: &ClusterStatus, document: &Document) -> Result<NodeId, String> {
    let writer = crate::cli::operate::serving(status)
        .ok_or_else(|| format!("no writer serves: {}", status.because))?;
    if status.paused {
        return Err("automation is paused: `quorate resume` first".to_owned());
    }
    if status.phase != Phase::Serving || status.authority.switchover.is_some() {
        return Err("the writer is changing".to_owned());
    }
    if status.authority.rules.len() != 1 {
        return Err("the commit rule is changing".to_owned());
    }
    if matches!(status.authority.rules[0].policy, Policy::WriterOnly)
        && status.authority.cohort().len() > 1
        && document.timing != Timing::Async
    {
        return Err("commits wait for no copy now: the commit rule is degraded".to_owned());
    }
    let word = status.nodes.get(&writer).and_then(|m| m.status.as_ref()?.writer.as_ref());
    let attached = |node: &NodeId| word.is_some_and(|w| w.standbys.contains_key(node));
    for (node, member) in &status.nodes {
        let doing = member.status.as_ref().map(|s| s.doing);
        let heard = member.heard_ms.is_some_and(|ms| ms < 2000) && !member.gone;
        let ready = match (member.node.kind, doing) {
            (NodeKind::Witness, Some(Doing::Witness)) => true,
            (NodeKind::Data, Some(Doing::Writing)) => *node == writer,
            (NodeKind::Data, Some(Doing::Following)) => attached(node),
            _ => false,
        };
        if !heard || !ready {
            let why = member.status.as_ref().map(|s| s.because.sentence.as_str());
            let why = why.filter(|_| heard).unwrap_or("it is not heard");
            return Err(format!("{node} is not in its place: {why}"));
        }
    }
    let counts = |n: &NodeId| document.node(*n).counts(document.timing);
    let data = status.nodes.iter().filter(|(_, m)| m.node.kind == NodeKind::Data);
    for node in data.map(|(n, _)| n).filter(|n| counts(n)) {
        if !status.authority.cohort().contains(node) {
            return Err(format!("{node} is not in the commit rule yet"));
        }
    }
    Ok(writer)
}

impl Stage<'_> {
    fn victim(&self, drill: Drill) -> Result<NodeId, String> {
        match drill {
            Drill::ReplicaLag => self.standbys.last().copied().ok_or_else(no_standby),
            Drill::ConsensusLeaderLoss => {
                self.status.leader.ok_or_else(|| "consensus has no leader now".to_owned())
            }
            Drill::Switchover
            | Drill::WriterCrash
            | Drill::HostLoss
            | Drill::Partition
            | Drill::SlotPileUp
            | Drill::Restore => Ok(self.writer),
        }
    }

    /// Somebody who is not hurt, rather not the writer.
    fn conductor(&self, victim: NodeId) -> Result<NodeId, String> {
        let others = || self.status.nodes.keys().copied().filter(|n| *n != victim);
        let best = others().find(|n| *n != self.writer).or_else(|| others().next());
        best.ok_or_else(|| "a drill needs a second node that conducts it".to_owned())
    }

    /// Whether the cluster can go on without the victim.
    fn survives(&self, drill: Drill, victim: NodeId) -> Result<(), String> {
        let data = self.status.nodes.values().filter(|m| m.node.kind == NodeKind::Data).count();
        let least = usize::from(self.document.least_copies(data));
        let voters = self.status.voters.len();
        match drill {
            Drill::Switchover | Drill::WriterCrash | Drill::HostLoss | Drill::Partition => {
                if self.standbys.is_empty() {
                    return Err(no_standby());
                }
                if voters < 3 {
                    return Err(format!(
                        "with {voters} voters nobody can take over for a lost node: add a node, or a \
                         witness (`quorate join --witness`)"
                    ));
                }
                if data - 1 < least {
                    return Err(format!(
                        "commits need {least} copies (min_copies), and without {victim} there are \
                         {}: writes would stop while the drill lasts",
                        data - 1
                    ));
                }
            }
            Drill::ReplicaLag => {
                if self.document.level == Level::Applied && data - 1 < least.max(2) {
                    return Err(format!(
                        "commits wait until a copy shows them (level = \"applied\"), and {victim} is \
                         the only one: writes would stop while the drill lasts"
                    ));
                }
            }
            Drill::ConsensusLeaderLoss if voters < 3 => {
                return Err(format!("with {voters} voters there is no other leader"));
            }
            Drill::ConsensusLeaderLoss | Drill::SlotPileUp | Drill::Restore => {}
        }
        Ok(())
    }

    fn steps(&self, drill: Drill, victim: NodeId) -> Vec<Step> {
        let who = Who::Node(victim);
        let next = Step::WaitUntil(Condition::Writer(self.standbys.clone()));
        let whole = Step::WaitUntil(Condition::Whole);
        let still = Step::Expect(Expectation::Now(Condition::Writer(vec![self.writer])));
        match drill {
            Drill::Switchover => {
                let to = self.standbys[0];
                vec![
                    Step::Do(Deed::Switchover(Some(to))),
                    Step::WaitUntil(Condition::Writer(vec![to])),
                    whole,
                ]
            }
            Drill::WriterCrash => vec![
                Step::Do(Deed::KillPostgres(who)),
                Step::WaitUntil(Condition::AnyWriter),
                whole,
            ],
            Drill::HostLoss => vec![
                Step::Do(Deed::Lose(who)),
                next,
                Step::Wait(AWAY),
                Step::Do(Deed::Start(who)),
                whole,
            ],
            Drill::Partition => {
                let others = self.status.nodes.keys().copied().filter(|n| *n != victim);
                vec![
                    Step::Do(Deed::Partition(vec![[victim].into(), others.collect()])),
                    next,
                    Step::Wait(AWAY),
                    Step::Do(Deed::Heal),
                    Step::WaitUntil(Condition::Follows(victim)),
                    whole,
                ]
            }
            Drill::ReplicaLag => vec![
                Step::Do(Deed::PauseReplay(who)),
                Step::Wait(IDLE),
                Step::Do(Deed::ResumeReplay(who)),
                whole,
                still,
            ],
            Drill::SlotPileUp => vec![
                Step::Do(Deed::OpenSlot(who)),
                Step::Wait(IDLE),
                Step::Do(Deed::DropSlot(who)),
                still,
            ],
            Drill::ConsensusLeaderLoss => {
                vec![
                    Step::Do(Deed::Mute(who)),
                    Step::Wait(MUTE),
                    Step::Do(Deed::Heal),
                    whole,
                    still,
                ]
            }
            Drill::Restore => Vec::new(),
        }
    }

    /// Why it may well fail.
    fn doubt(&self, drill: Drill) -> String {
        let loses = matches!(drill.effect(), Effect::Fails | Effect::IsReplaced);
        let why = self.document.targets.contradiction(self.document).filter(|_| loses);
        why.map_or_else(String::new, |why| format!(" It may well fail: {why}."))
    }

    fn cost(&self, drill: Drill, victim: NodeId) -> String {
        let targets = &self.document.targets;
        let pause = Millis(targets.recovery_ms);
        match drill {
            Drill::Switchover => format!(
                "Writes pause twice, each time for a fraction of a second as a rule (target: {}). \
                 Clients wait and get no error; transactions that do not end in time are cut.",
                Millis(targets.switchover_ms)
            ),
            Drill::WriterCrash | Drill::HostLoss | Drill::Partition => {
                let way_in = match drill {
                    Drill::HostLoss => {
                        format!(" Clients that came in at {victim} are cut off and must reconnect.")
                    }
                    Drill::Partition => {
                        format!(" Clients that came in at {victim} wait while it lasts.")
                    }
                    _ => String::new(),
                };
                format!(
                    "Writes pause until another writer has opened, for a few seconds as a rule \
                     (target: {pause}). Transactions in flight fail with 40001, a few may get 08007. \
                     Until {victim} is back there is one copy less.{way_in} At the end the writing \
                     is handed back to {}, with another short pause.",
                    self.writer
                )
            }
            Drill::ReplicaLag => format!(
                "{victim} serves no reads that must be fresh while it lags; the writer and others \
                 serve more."
            ),
            Drill::SlotPileUp => {
                format!("{victim} keeps all log of about {} s on its disk.", IDLE.as_secs())
            }
            Drill::ConsensusLeaderLoss => format!(
                "None as a rule. While {victim} is mute a second failure would take a little longer \
                 to be answered."
            ),
            Drill::Restore => String::new(),
        }
    }
}

fn no_standby() -> String {
    "no standby could take over: see `quorate status`".to_owned()
}

fn intent(drill: Drill) -> &'static str {
    match drill {
        Drill::Switchover => {
            "The writing is handed to the next in line and back: clients wait a moment, and nothing \
             is refused or lost."
        }
        Drill::WriterCrash => {
            "The writer's PostgreSQL is killed: a writer serves again soon, with every acknowledged \
             write."
        }
        Drill::HostLoss => {
            "The writer's host falls silent: its server is killed, its links and its gateway say \
             nothing. Another node takes over with every acknowledged write, and the lost one finds \
             its way back behind it."
        }
        Drill::Partition => {
            "The writer lives and reaches no other node: it stops answering before another one \
             writes, and follows when the network is whole."
        }
        Drill::ReplicaLag => {
            "A standby stops replaying: no session misses what it wrote, and reads go elsewhere until \
             it has caught up."
        }
        Drill::SlotPileUp => {
            "Somebody opens a replication slot on the writer and does not read it: how quickly log \
             piles up, and that it is let go of again."
        }
        Drill::ConsensusLeaderLoss => {
            "The leader of consensus can say nothing and hear nothing of it: the others follow \
             another leader, and no client notices."
        }
        Drill::Restore => "A backup is restored beside the cluster and compared.",
    }
}

/// A plan as a person reads it before it is carried out.
pub fn words(plan: &Plan) -> String {
    let steps = plan.steps.iter().map(|s| format!("    {s}\n")).collect::<String>();
    format!(
        "drill {}: {}\n\n  {} conducts it; this will be done:\n\n{steps}\n  What it may cost: {}\n",
        plan.drill,
        plan.intent,
        list([plan.conductor]),
        plan.cost
    )
}
