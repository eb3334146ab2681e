//! The replicated state: what consensus stores, and the only way it changes.

mod members;
mod slots;
mod validations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::alert::{self, Alert, Alerts, Silence};
use crate::authority::{Authority, Phase, Switchover};
use crate::because::Because;
use crate::document::Document;
use crate::drill::{Drill, Record, Running};
use crate::limits::{
    DOCUMENTS_MAX, DRILLS_MAX, EVENTS_MAX, FORCED_EPOCH_TERMS, FORCED_EPOCH_TIMELINES,
};
use crate::report::Report;
use crate::slots::{SlotChange, SlotRecord};
use crate::validation::Validated;
use crate::{Lsn, NodeId, Policy, Rule, Term, TimelineId};

/// Milliseconds of wall-clock time since 1970, for people. Nothing is decided by it but the expiry
/// of join tokens.
pub type WallMillis = u64;

/// Whether a node has a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// Runs a PostgreSQL server.
    #[default]
    Data,
    /// Votes, and holds no data.
    Witness,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Whether it has a database.
    pub kind: NodeKind,
    /// `host:port` where other nodes reach its link port.
    pub link: String,
    /// `host:port` of its gateway.
    pub gateway: String,
    /// `host:port` of its web port.
    pub web: String,
    /// The failure domain it stands in.
    pub zone: String,
}

/// The cluster's certificate authority. Kept in consensus so that any node can admit another.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateAuthority {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PEM. Never logged.
    pub key: String,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").finish_non_exhaustive()
    }
}

/// One version of the cluster document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentVersion {
    /// Grows by one with each change.
    pub version: u64,
    /// When it was applied.
    pub at: WallMillis,
    /// The document.
    pub document: Document,
}

/// What happened, for the event history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one with each event.
    pub seq: u64,
    /// When, by the proposing node's wall clock.
    pub at: WallMillis,
    /// The term it happened in.
    pub term: Term,
    /// A stable word for it, such as `election` or `node-joined`.
    pub kind: String,
    /// Rule and sentence.
    pub because: Because,
    /// Of a change of writer: who, from where, with what loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
}

/// What a change of writer was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The node that was named, or that promoted.
    pub node: NodeId,
    /// Named: the log end that it was elected with. Promoted: where its timeline begins.
    pub lsn: Lsn,
    /// Bytes of the former writer's log that it lacks, as far as they were seen.
    pub lost_bytes: u64,
}

/// Everything the cluster agrees on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// 16 hexadecimal digits, made at `init`; empty before.
    pub cluster_id: String,
    /// PostgreSQL's own identity of the database, shared by all copies.
    pub system_id: Option<u64>,
    /// The certificate authority.
    pub ca: CertificateAuthority,
    /// Members by name.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Join tokens not used yet, by the hash of their secret, with their expiry.
    pub tokens: BTreeMap<String, WallMillis>,
    /// Who may write.
    pub authority: Authority,
    /// Whether automation is paused: no failover, no rule change.
    pub paused: bool,
    /// Members on their way out: they leave the commit rule first, then the cluster.
    pub leaving: BTreeSet<NodeId>,
    /// Versions of the cluster document, newest last.
    pub documents: VecDeque<DocumentVersion>,
    /// What happened, newest last.
    pub events: VecDeque<Event>,
    /// What is wrong, and who is not told.
    #[serde(default, skip_serializing_if = "Alerts::is_empty")]
    pub alerts: Alerts,
    /// The drill under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Running>,
    /// Drills, newest last.
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    pub drills: VecDeque<Record>,
    /// Adopted logical slots that were seen, and what those lack that are lost.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, SlotRecord>,
    /// What came of the document's queries when they were run last. One whose query was changed or
    /// removed since is forgotten.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validations: BTreeMap<String, Validated>,
}

/// What a silence is about.
fn silence_words(rule: Option<alert::Rule>, subject: Option<&str>) -> String {
    let rule = rule.map_or("all alerts".to_owned(), |rule| format!("alerts {rule}"));
    match subject {
        Some(subject) => format!("{rule} of {subject}"),
        None => rule,
    }
}

/// A change to the replicated state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Changes nothing.
    Noop,
    /// Makes the cluster. Refused when there is one.
    Found {
        cluster_id: String,
        ca: CertificateAuthority,
        name: NodeId,
        node: Node,
        document: Document,
    },
    /// Takes a whole state over into a new log. Refused when there is a cluster already.
    Adopt { state: Box<State> },
    /// The database's identity, learnt from the first server.
    SystemId { system_id: u64 },
    /// Admits a node, or updates the addresses of one.
    PutNode { name: NodeId, node: Node },
    /// Admits a new node by a token, which is used up.
    Admit { name: NodeId, node: Node, token_hash: String },
    /// Marks a member as leaving: the commit rule goes on without it.
    Leave { name: NodeId },
    /// Removes a node that is leaving and is in no commit rule any more.
    RemoveNode { name: NodeId },
    /// Makes a join token known.
    AddToken { hash: String, expires: WallMillis },
    /// Opens a new term.
    BeginElection {
        expect_term: Term,
        last_seen: Option<Lsn>,
        /// Whether the writer handed over on purpose.
        #[serde(default)]
        planned: bool,
        because: Because,
    },
    /// Names the new term's writer.
    Grant { term: Term, node: NodeId, reports: BTreeMap<NodeId, Report>, because: Because },
    /// Lets the current election lose up to so many bytes: an operator's word.
    AllowLoss { term: Term, bytes: u64 },
    /// The grantee promoted.
    Opened { term: Term, fork: Lsn, next_xid: u64, because: Because },
    /// Opens a rule change.
    OpenRule { term: Term, rule: Rule, because: Because },
    /// Closes it.
    CloseRule { term: Term, generation: u64 },
    /// Plans a hand-over.
    PlanSwitchover { term: Term, target: Option<NodeId> },
    /// Gives a planned hand-over up.
    DropSwitchover { term: Term, because: Because },
    /// Stops or resumes automation.
    Pause { paused: bool, because: Because },
    /// Replaces the cluster document if it still is at `expect_version`.
    SetDocument { expect_version: u64, document: Document },
    /// Starts over with one survivor after the majority was lost for good.
    ForceEpoch { survivor: NodeId, because: Because },
    /// Adds to the event history.
    Note { kind: String, because: Because },
    /// An alert begins.
    FireAlert { alert: Alert },
    /// An alert is over.
    ResolveAlert { key: alert::Key },
    /// Somebody does not want to hear of alerts for a while.
    Silence { silence: Silence },
    /// The end of that, before its time.
    EndSilence { rule: Option<alert::Rule>, subject: Option<String> },
    /// Begins a drill. Refused while another one is under way.
    BeginDrill { drill: Drill, conductor: NodeId, until: WallMillis },
    /// Ends it, and remembers it.
    EndDrill { record: Box<Record> },
    /// Changes what is known of an adopted slot.
    Slot { change: SlotChange },
    /// A query of the document was run, as a version of it had it.
    Validate { name: String, document: u64, ran: Validated },
}

/// A change and when it was proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// The proposing node's wall clock.
    pub at: WallMillis,
    /// The change.
    pub change: Change,
}

/// What a command did: a refusal is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The command took effect.
    Done,
    /// The command no longer fits the state; nothing changed.
    Refused {
        /// One sentence of why.
        because: String,
    },
}

type Applied = Result<(), String>;

impl State {
    /// The cluster document in force.
    pub fn document(&self) -> Document {
        self.documents.back().map(|v| v.document.clone()).unwrap_or_default()
    }

    /// Version of the document in force; zero before the cluster is made.
    pub fn document_version(&self) -> u64 {
        self.documents.back().map_or(0, |v| v.version)
    }

    /// Nodes that have a database.
    pub fn data_nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.iter().filter(|(_, n)| n.kind == NodeKind::Data).map(|(id, _)| *id)
    }

    /// Applies one command. Deterministic: every node gets the same state and answer.
    pub fn apply(&mut self, command: &Command) -> Answer {
        // Guards may fail after a first change: work on a copy, keep it only on success.
        let mut next = self.clone();
        match next.change(command.at, &command.change) {
            Ok(()) => {
                *self = next;
                Answer::Done
            }
            Err(because) => Answer::Refused { because },
        }
    }

    fn change(&mut self, at: WallMillis, change: &Change) -> Applied {
        match change {
            Change::Noop => Ok(()),
            Change::Found { cluster_id, ca, name, node, document } => {
                self.found(at, cluster_id, ca, (*name, node), document)
            }
            Change::Adopt { state } => {
                if !self.cluster_id.is_empty() {
                    return Err("the cluster exists already".to_owned());
                }
                *self = (**state).clone();
                Ok(())
            }
            Change::SystemId { system_id } => self.set_system_id(*system_id),
            Change::PutNode { name, node } => self.put_node(*name, node),
            Change::Admit { name, node, token_hash } => self.admit(at, *name, node, token_hash),
            Change::Leave { name } => self.leave(*name),
            Change::RemoveNode { name } => self.remove_node(at, *name),
            Change::AddToken { hash, expires } => self.add_token(at, hash, *expires),
            Change::Pause { paused, because } => {
                self.paused = *paused;
                let kind = if *paused { "paused" } else { "resumed" };
                self.note(at, kind, because.clone());
                Ok(())
            }
            Change::SetDocument { expect_version, document } => {
                self.set_document(at, *expect_version, document)
            }
            Change::Note { kind, because } => {
                self.note(at, kind, because.clone());
                Ok(())
            }
            Change::ForceEpoch { survivor, because } => self.force_epoch(at, *survivor, because),
            Change::FireAlert { alert } => {
                self.alerts.fire(alert)?;
                self.note(at, "alert-firing", alert::because(alert, false));
                Ok(())
            }
            Change::ResolveAlert { key } => {
                let alert = self.alerts.resolve(key)?;
                self.note(at, "alert-resolved", alert::because(&alert, true));
                Ok(())
            }
            Change::Silence { silence } => {
                self.alerts.silence(silence, at)?;
                let about = silence_words(silence.rule, silence.subject.as_deref());
                let text = format!("{about} are silenced: {}", silence.because);
                self.note(at, "alerts-silenced", Because::new("op-silence", text));
                Ok(())
            }
            Change::EndSilence { rule, subject } => {
                self.alerts.speak(*rule, subject.as_deref())?;
                let about = silence_words(*rule, subject.as_deref());
                let text = format!("{about} are told again");
                self.note(at, "alerts-told", Because::new("op-silence", text));
                Ok(())
            }
            Change::BeginDrill { drill, conductor, until } => {
                self.begin_drill(at, *drill, *conductor, *until)
            }
            Change::EndDrill { record } => self.end_drill(at, record),
            Change::Slot { change } => self.change_slot(at, change),
            Change::Validate { name, document, ran } => self.validate(at, name, *document, ran),
            Change::BeginElection { .. }
            | Change::Grant { .. }
            | Change::AllowLoss { .. }
            | Change::Opened { .. }
            | Change::OpenRule { .. }
            | Change::CloseRule { .. }
            | Change::PlanSwitchover { .. }
            | Change::DropSwitchover { .. } => self.change_authority(at, change),
        }
    }

    /// A rule counts on members that hold data: a node removed meanwhile could never answer.
    fn check_rule(&self, rule: &Rule) -> Applied {
        let data: BTreeSet<NodeId> = self.data_nodes().collect();
        match rule.cohort.difference(&data).next() {
            Some(stranger) => Err(format!("{stranger} is no data node of the cluster")),
            None => Ok(()),
        }
    }

    fn change_authority(&mut self, at: WallMillis, change: &Change) -> Applied {
        if let Change::OpenRule { rule, .. } = change {
            self.check_rule(rule)?;
        }
        let max_loss = self.document().max_lag_on_failover;
        let authority = &mut self.authority;
        let (kind, because) = match change {
            Change::BeginElection { expect_term, last_seen, planned, because } => {
                authority.begin_election(*expect_term, *last_seen, *planned)?;
                let kind = if *planned { "hand-over" } else { "election" };
                (kind, because.clone())
            }
            Change::Grant { term, node, reports, because } => {
                authority.grant(*term, *node, reports, max_loss)?;
                ("granted", because.clone())
            }
            Change::AllowLoss { term, bytes } => {
                if authority.term != *term || authority.phase != Phase::Electing {
                    return Err(format!("no election is under way in term {term}"));
                }
                authority.allow_loss = Some(*bytes);
                let text = format!("an operator accepts the loss of up to {bytes} bytes of log");
                ("loss-allowed", Because::new("op-loss", text))
            }
            Change::Opened { term, fork, next_xid, because } => {
                authority.opened(*term, *fork, *next_xid)?;
                ("opened", because.clone())
            }
            Change::OpenRule { term, rule, because } => {
                authority.open_rule(*term, rule)?;
                ("rule-change", because.clone())
            }
            Change::CloseRule { term, generation } => {
                return authority.close_rule(*term, *generation);
            }
            Change::PlanSwitchover { term, target } => {
                self.plan_switchover(*term, *target)?;
                let to = target.map_or("the best standby".to_owned(), |t| t.to_string());
                ("switchover", Because::new("op-switchover", format!("hand over to {to}")))
            }
            Change::DropSwitchover { term, because } => {
                if authority.term != *term || authority.switchover.take().is_none() {
                    return Err("no switchover is planned".to_owned());
                }
                ("switchover-dropped", because.clone())
            }
            other => return Err(format!("not a change of authority: {other:?}")),
        };
        self.note(at, kind, because);
        let reign = self.authority.reigns.last();
        let about = reign.filter(|_| matches!(kind, "granted" | "opened")).map(|reign| About {
            node: reign.node,
            lsn: reign.fork.unwrap_or(reign.elected_at.lsn),
            lost_bytes: reign.lost_bytes,
        });
        if let Some(event) = self.events.back_mut() {
            event.about = about;
        }
        Ok(())
    }

    fn found(
        &mut self,
        at: WallMillis,
        cluster_id: &str,
        ca: &CertificateAuthority,
        (name, node): (NodeId, &Node),
        document: &Document,
    ) -> Applied {
        if !self.cluster_id.is_empty() {
            return Err("the cluster exists already".to_owned());
        }
        self.cluster_id = cluster_id.to_owned();
        self.ca = ca.clone();
        self.nodes.insert(name, node.clone());
        self.documents.push_back(DocumentVersion { version: 1, at, document: document.clone() });
        let cohort = [name].into();
        let rule = Rule { generation: 1, cohort, policy: Policy::Copies(1) };
        self.authority = Authority {
            term: Term(1),
            rules: vec![rule],
            rule_term: Term(1),
            timeline_max: TimelineId(1),
            ..Authority::default()
        };
        self.note(at, "founded", Because::new("op-init", format!("{name} made the cluster")));
        Ok(())
    }

    fn set_system_id(&mut self, system_id: u64) -> Applied {
        match self.system_id {
            Some(known) if known != system_id => {
                Err(format!("the cluster's database is {known}, not {system_id}"))
            }
            Some(_) | None => {
                self.system_id = Some(system_id);
                Ok(())
            }
        }
    }

    fn plan_switchover(&mut self, term: Term, target: Option<NodeId>) -> Applied {
        let authority = &mut self.authority;
        if authority.term != term || authority.phase != Phase::Serving {
            return Err("no writer serves that could hand over".to_owned());
        }
        if authority.switchover.is_some() {
            return Err("a switchover is under way already".to_owned());
        }
        if target.is_some() && target == authority.writer {
            return Err("that node is the writer already".to_owned());
        }
        let holds = |n: &NodeId| authority.rule().is_some_and(|r| r.cohort.contains(n));
        if let Some(target) = target.filter(|t| !holds(t)) {
            return Err(format!(
                "{target} is not in the commit rule: its copy may lack acknowledged commits"
            ));
        }
        if authority.rule().is_none_or(|r| r.cohort.len() < 2) {
            return Err("no other node holds a copy that could take over".to_owned());
        }
        authority.switchover = Some(Switchover { term, target });
        Ok(())
    }

    fn set_document(&mut self, at: WallMillis, expect: u64, document: &Document) -> Applied {
        if self.document_version() != expect {
            return Err(format!(
                "the document is at version {} now, not {expect}: look at it and try again",
                self.document_version()
            ));
        }
        if let Some(problem) = document.validate().first() {
            return Err(problem.to_string());
        }
        let data: BTreeSet<NodeId> = self.data_nodes().collect();
        if let Some(stranger) = document.sync_nodes.difference(&data).next() {
            return Err(format!("sync_nodes: {stranger} is no data node of the cluster"));
        }
        let version = expect + 1;
        self.documents.push_back(DocumentVersion { version, at, document: document.clone() });
        if self.documents.len() > DOCUMENTS_MAX {
            self.documents.pop_front();
        }
        self.forget_slots();
        self.forget_validations();
        let text = format!("the cluster document is at version {version}");
        self.note(at, "config", Because::new("op-config", text));
        Ok(())
    }

    fn force_epoch(&mut self, at: WallMillis, survivor: NodeId, because: &Because) -> Applied {
        match self.nodes.get(&survivor) {
            None => return Err(format!("{survivor} is not a member")),
            Some(node) if node.kind == NodeKind::Witness => {
                return Err(format!("{survivor} is a witness: it holds no data to go on with"));
            }
            Some(_) => {}
        }
        self.nodes.retain(|name, _| *name == survivor);
        self.leaving.clear();
        let authority = &mut self.authority;
        let generation = authority.rule().map_or(1, |r| r.generation + 1);
        let cohort = [survivor].into();
        authority.rules = vec![Rule { generation, cohort, policy: Policy::Copies(1) }];
        authority.term = Term(authority.term.0 + FORCED_EPOCH_TERMS);
        authority.phase = Phase::Electing;
        let timeline = authority.timeline_max.0.saturating_add(FORCED_EPOCH_TIMELINES);
        authority.timeline_max = TimelineId(timeline);
        authority.switchover = None;
        authority.preferred = None;
        self.note(at, "forced-epoch", because.clone());
        Ok(())
    }

    fn begin_drill(
        &mut self,
        at: WallMillis,
        drill: Drill,
        conductor: NodeId,
        until: WallMillis,
    ) -> Applied {
        if let Some(other) = self.drill.as_ref().filter(|d| d.until > at) {
            return Err(format!(
                "{} conducts a drill already ({}): wait until it has ended, or `quorate drill \
                 abort`",
                other.conductor, other.drill
            ));
        }
        if self.paused {
            return Err("automation is paused: `quorate resume` first".to_owned());
        }
        if self.authority.phase != Phase::Serving || self.authority.switchover.is_some() {
            return Err("the writer is changing: try again when one serves".to_owned());
        }
        let last = self.drills.back().map(|r| r.id).max(self.drill.as_ref().map(|d| d.id));
        let id = last.map_or(1, |id| id + 1);
        self.drill = Some(Running { id, drill, conductor, until });
        let text = format!("{conductor} begins the drill {drill} (number {id})");
        self.note(at, "drill-begun", Because::new("op-drill", text));
        Ok(())
    }

    fn end_drill(&mut self, at: WallMillis, record: &Record) -> Applied {
        if self.drill.as_ref().is_none_or(|d| d.id != record.id) {
            return Err(format!("drill {} is not under way", record.id));
        }
        self.drill = None;
        let kind = format!("drill-{}", record.outcome.word());
        let text =
            format!("the drill {} (number {}): {}", record.drill, record.id, record.sentence);
        self.note(at, &kind, Because::new("op-drill", text));
        self.drills.push_back(record.clone());
        if self.drills.len() > DRILLS_MAX {
            self.drills.pop_front();
        }
        Ok(())
    }

    fn note(&mut self, at: WallMillis, kind: &str, because: Because) {
        let seq = self.events.back().map_or(1, |e| e.seq + 1);
        let term = self.authority.term;
        self.events.push_back(Event { seq, at, term, kind: kind.to_owned(), because, about: None });
        if self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }
}
