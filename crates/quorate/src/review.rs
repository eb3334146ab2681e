//! Whether a cluster is ready for what it is for: a checklist of which each item is proved, refuted or
//! not known, with what that rests on and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::NodeId;
use quorate_core::alert::Rule;
use quorate_core::because::list;
use quorate_core::document::{Document, Level, Timing};
use quorate_core::drill::{Drill, Outcome, Record};
use quorate_core::gateway::{SynchronousCommit, Tls};
use quorate_core::role::Role;
use quorate_core::state::{NodeKind, WallMillis};
use quorate_core::validation::{self, Standing, Validated};
use quorate_core::words::seconds;
use serde::{Deserialize, Serialize};

use crate::cli::operate::serving;
use crate::explain::rule_words;

/// How long a drill says something of the cluster as it is.
const DRILL_FRESH_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// The least part of the writer's processors and memory, in per cent, with which a standby can do the
/// writer's work.
const CAPACITY_PERCENT: u64 = 80;

/// What is known of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is not as it should be.
    Refuted,
    /// Nothing shows whether it is.
    Unknown,
    /// It is as it should be.
    Proved,
}

/// One item of the checklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// A stable name.
    pub id: String,
    /// What should be.
    pub title: String,
    /// Whether it is.
    pub verdict: Verdict,
    /// What shows it.
    pub evidence: String,
    /// What to do; empty when there is nothing to do.
    pub todo: String,
}

/// What the checklist is read from.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The cluster as one node sees it.
    pub status: &'a ClusterStatus,
    /// The cluster document.
    pub document: &'a Document,
    /// Drills, oldest first.
    pub drills: &'a [Record],
    /// What came of the document's queries when they were run last.
    pub validations: &'a BTreeMap<String, Validated>,
    /// Roles and databases of PostgreSQL that lower `synchronous_commit`, as `role app: off`; `None`
    /// when they could not be asked for.
    pub lowered: Option<Vec<String>>,
    /// The wall clock.
    pub at: WallMillis,
}

/// The checklist.
pub fn review(facts: &Facts<'_>) -> Vec<Item> {
    let mut items = Vec::new();
    authority(facts, &mut items);
    copies(facts, &mut items);
    drills(facts, &mut items);
    let title = "a new writer answers as the data's owners expect";
    items.add("validation", title, validated(facts));
    reads(facts, &mut items);
    hosts(facts, &mut items);
    attested(facts, &mut items);
    items
}

/// Collects items in the words of their verdicts.
trait Items {
    fn add(&mut self, id: &str, title: &str, found: Found);
}

/// What was found of an item.
struct Found(Verdict, String, String);

fn proved(evidence: impl Into<String>) -> Found {
    Found(Verdict::Proved, evidence.into(), String::new())
}

fn refuted(evidence: impl Into<String>, todo: impl Into<String>) -> Found {
    Found(Verdict::Refuted, evidence.into(), todo.into())
}

fn unknown(evidence: impl Into<String>, todo: impl Into<String>) -> Found {
    Found(Verdict::Unknown, evidence.into(), todo.into())
}

impl Items for Vec<Item> {
    fn add(&mut self, id: &str, title: &str, Found(verdict, evidence, todo): Found) {
        let (id, title) = (id.to_owned(), title.to_owned());
        self.push(Item { id, title, verdict, evidence, todo });
    }
}

fn data<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = (NodeId, &'a Member)> {
    facts.status.nodes.iter().filter(|(_, m)| m.node.kind == NodeKind::Data).map(|(n, m)| (*n, m))
}

fn standbys<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = (NodeId, &'a Member)> {
    data(facts).filter(|(n, _)| facts.status.writer != Some(*n))
}

fn authority(facts: &Facts<'_>, items: &mut Vec<Item>) {
    let status = facts.status;
    let writes = match serving(status) {
        Some(writer) => proved(format!("{writer} writes in term {} by the record", status.term)),
        None => refuted(
            format!("nobody serves: {}", status.because.sentence),
            "see the runbook writer-down",
        ),
    };
    items.add("write-authority", "one writer, known to all", writes);
    let split = match status.breaches.as_slice() {
        [] => proved(
            "every rule of authority is explored by a model checker and a simulator, and this node \
             saw no promise broken",
        ),
        [breach, ..] => refuted(breach.seen.clone(), "see the runbook two-writers"),
    };
    items.add("split-brain", "two writers cannot be", split);
    let next: Vec<NodeId> =
        status.candidates.iter().filter(|c| c.eligible).map(|c| c.node).collect();
    let next = match next.as_slice() {
        [] => refuted("no standby could write now", "see `quorate status`: why not, one by one"),
        [one] => unknown(
            format!("{one} alone could write if the writer failed"),
            "one more copy of role ha keeps a second failure from stopping writes",
        ),
        several => proved(format!("{} could write if the writer failed", list(several))),
    };
    items.add("next-in-line", "somebody can take over", next);
    let voters = status.voters.len();
    let voters = match voters {
        0 | 1 => refuted(
            format!("{voters} voter: nobody decides when it fails"),
            "three hosts at least; one may be a witness",
        ),
        n if n.is_multiple_of(2) => refuted(
            format!("{n} voters are no safer than {}", n - 1),
            "add a node or a witness (`quorate join --witness`)",
        ),
        n => proved(format!("{n} voters: {} may fail", (n - 1) / 2)),
    };
    items.add("voters", "an odd number of voters, three at least", voters);
    let automation = match status.paused {
        true => refuted("automation is paused", "`quorate resume`"),
        false => proved("automation runs"),
    };
    items.add("automation", "failures are answered without a person", automation);
}

fn copies(facts: &Facts<'_>, items: &mut Vec<Item>) {
    let Facts { status, document, .. } = facts;
    let words: Vec<String> = status.authority.rules.iter().map(rule_words).collect();
    let at = match document.level {
        Level::Received => "in memory",
        Level::Flushed => "on disk",
        Level::Applied => "visible",
    };
    let timing = match document.timing {
        Timing::Quorum => "quorum",
        Timing::Sync => "sync",
        Timing::SemiSync => "semi_sync",
        Timing::Async => "async",
    };
    let said = format!("timing {timing}: acknowledged when {at} on {}", words.join(", and on "));
    items.add("timing", "when a commit is acknowledged is written down", proved(said));
    let loses = match document.targets.contradiction(document) {
        Some(why) => refuted(why, "another timing, or a target that allows the loss"),
        None => proved("the timing can meet the target of lost writes"),
    };
    items.add("timing-target", "the timing can meet what was promised", loses);
    let floor = document.gateway.synchronous_commit_floor;
    let lowered = match (&facts.lowered, floor < SynchronousCommit::On) {
        (_, true) => refuted(
            format!("clients may set synchronous_commit = {}", floor.as_str()),
            "raise gateway.synchronous_commit_floor",
        ),
        (Some(lowered), false) if !lowered.is_empty() => refuted(
            format!("PostgreSQL has it lower for {}", lowered.join(", ")),
            "ALTER ROLE … RESET synchronous_commit: gateways raise it for their clients, but what \
             connects by itself on the host does not come through one",
        ),
        (Some(_), false) => proved("no role, database or client lowers synchronous_commit"),
        (None, false) => unknown("the server could not be asked", "ask a node with a database"),
    };
    items.add("synchronous-commit", "nobody lowers what commits wait for", lowered);
    let zones: BTreeSet<&str> =
        data(facts).map(|(_, m)| m.node.zone.as_str()).filter(|z| !z.is_empty()).collect();
    let unnamed = data(facts).filter(|(_, m)| m.node.zone.is_empty()).count();
    let zones = match (zones.len(), unnamed) {
        (0, _) => unknown("no node says in which zone it stands", "`zone` in each node's file"),
        (1, 0) => refuted(
            format!("all copies are in zone {}", list(&zones)),
            "a copy elsewhere survives the loss of that place",
        ),
        (n, _) if document.copy_zones > 1 => {
            proved(format!("copies in {n} zones, and each commit in {}", document.copy_zones))
        }
        (n, _) => unknown(
            format!("copies in {n} places, and a commit may be in one of them only"),
            "copy_zones = 2 makes each commit be in two",
        ),
    };
    items.add("zones", "copies in more than one zone", zones);
    items.add("capacity", "who may take over can do the writer's work", capacity(facts));
}

fn capacity(facts: &Facts<'_>) -> Found {
    let machine = |m: &Member| {
        let vitals = &m.status.as_ref()?.vitals;
        Some((vitals.processors?, vitals.memory?))
    };
    let Some(writer) = serving(facts.status) else {
        return unknown("nobody writes whom they could be compared with", "");
    };
    let Some((processors, memory)) = facts.status.nodes.get(&writer).and_then(machine) else {
        return unknown(format!("{writer} did not say how large it is"), "");
    };
    let mut smaller = Vec::new();
    let mut silent = Vec::new();
    for (name, member) in standbys(facts).filter(|(n, _)| facts.document.node(*n).may_write()) {
        match machine(member) {
            None => silent.push(name),
            Some((p, m)) => {
                let least = |of: u64| of * CAPACITY_PERCENT / 100;
                if u64::from(p) < least(u64::from(processors)) || m < least(memory) {
                    smaller.push(format!("{name} ({p} processors, {} GB)", m >> 30));
                }
            }
        }
    }
    let has = format!("{processors} processors and {} GB", memory >> 30);
    match (smaller.is_empty(), silent.is_empty()) {
        (false, _) => refuted(
            format!("{writer} has {has}, and smaller are {}", smaller.join(", ")),
            "larger hosts, or promotable = false for the small ones",
        ),
        (true, false) => unknown(format!("{} did not say", list(&silent)), ""),
        (true, true) => proved(format!("all have as much as {writer} ({has})")),
    }
}

/// The newest drill of one of some kinds.
fn last<'a>(facts: &'a Facts<'_>, kinds: &[Drill]) -> Option<&'a Record> {
    facts.drills.iter().rev().find(|r| kinds.contains(&r.drill))
}

/// What the last drill of some kinds shows.
fn rehearsed(facts: &Facts<'_>, kinds: &[Drill]) -> Found {
    let names: Vec<&str> = kinds.iter().map(|d| d.name()).collect();
    let todo = format!("`quorate drill {}`", names[0]);
    let Some(record) = last(facts, kinds) else {
        return unknown(format!("no drill {} was held", names.join(" or ")), todo);
    };
    let age = facts.at.saturating_sub(record.at);
    let when = format!("{} ago", seconds(Duration::from_millis(age)));
    let said = format!("drill {} ({}), {when}: {}", record.id, record.drill, record.sentence);
    match record.outcome {
        Outcome::Passed if age <= DRILL_FRESH_MS => proved(said),
        Outcome::Passed => unknown(said, todo),
        Outcome::Failed => refuted(said, todo),
        Outcome::Aborted => unknown(said, todo),
    }
}

fn drills(facts: &Facts<'_>, items: &mut Vec<Item>) {
    let failures = [Drill::HostLoss, Drill::WriterCrash];
    items.add("recovery-target", "RPO and RTO are met", rehearsed(facts, &failures));
    let targets = match facts.document.targets.is_default() {
        true => unknown(
            "nobody said what a failure may cost: drills are judged by defaults",
            "[targets] in the cluster document: recovery_ms, switchover_ms, lost_writes",
        ),
        false => proved(format!(
            "recovery within {}, {} writes lost at the most",
            seconds(Duration::from_millis(facts.document.targets.recovery_ms)),
            facts.document.targets.lost_writes
        )),
    };
    items.add("targets", "RPO and RTO are set", targets);
    let fencing = rehearsed(facts, &[Drill::Partition, Drill::HostLoss]);
    items.add("fencing", "an old writer is kept from writing", fencing);
    items.add("switchover", "a planned hand-over works", rehearsed(facts, &[Drill::Switchover]));
    let lag = rehearsed(facts, &[Drill::ReplicaLag]);
    items.add("lag-drill", "a late replica is noticed", lag);
    let slots = rehearsed(facts, &[Drill::SlotPileUp]);
    items.add("slot-drill", "log that piles up is noticed", slots);
    let restore = match last(facts, &[Drill::Restore]) {
        Some(_) => rehearsed(facts, &[Drill::Restore]),
        None => answered(
            facts,
            "backups",
            "this Quorate takes no backups, and copies are none: what is deleted is deleted on all",
            "take backups with another tool, restore one, and say so: [attested] backups = \"…\"",
        ),
    };
    items.add("backups", "backups are taken, and one was restored", restore);
    let far: Vec<NodeId> =
        data(facts).filter(|(_, m)| m.role == Role::Dr).map(|(n, _)| n).collect();
    let disaster = match far.is_empty() {
        true => proved("no copy is kept for the loss of everything else: nothing to rehearse"),
        false => answered(
            facts,
            "disaster-drill",
            &format!("{} would go on alone, and nobody said that this was tried", list(&far)),
            "rehearse it on a copy of the hosts, and say so: [attested] disaster-drill = \"…\"",
        ),
    };
    items.add("disaster-drill", "the loss of everything else was rehearsed", disaster);
}

/// What the queries of the document show of the present writer.
fn validated(facts: &Facts<'_>) -> Found {
    let term = facts.status.term;
    match validation::standing(&facts.document.validation, facts.validations, term) {
        Standing::None => unknown(
            "no query is set that a new writer must answer, and which figures tell that the data is \
             right, only its owners know",
            "[validation.NAME] in the cluster document: database, role, sql",
        ),
        Standing::Passed(said) => proved(said),
        Standing::Unknown(said) => unknown(said, "`quorate validate`"),
        Standing::Failed(said) => refuted(said, "see the runbook validation-failed"),
    }
}

fn reads(facts: &Facts<'_>, items: &mut Vec<Item>) {
    let gateway = &facts.document.gateway;
    let special = standbys(facts).any(|(_, m)| m.role != Role::Ha && m.role.serves());
    let separated = match (special, gateway.split) {
        (true, _) => proved("some copies are for reads alone"),
        (false, false) => proved("all reads go to the writer: gateway.split is off"),
        (false, true) => unknown(
            "the copies that take over serve reads as well",
            "a copy of role read or reporting keeps long queries away from those of role ha",
        ),
    };
    items.add("roles", "copies that take over do nothing else", separated);
    let broken: Vec<NodeId> = standbys(facts)
        .filter(|(_, m)| m.lag.is_some_and(|lag| lag.broken_ms.is_some()))
        .map(|(n, _)| n)
        .collect();
    let unlimited: Vec<NodeId> = standbys(facts)
        .filter(|(_, m)| m.contract.max_lag.is_none() && m.contract.max_bytes.is_none())
        .map(|(n, _)| n)
        .collect();
    let contracts = match (broken.is_empty(), unlimited.is_empty()) {
        (false, _) => {
            refuted(format!("{} broken now", list(&broken)), "see the runbook lag-over-contract")
        }
        (true, false) => refuted(
            format!("{} may be as late as it likes", list(&unlimited)),
            "max_lag_ms in [nodes.NAME.contract]",
        ),
        (true, true) => proved("each copy has a limit, and keeps it"),
    };
    items.add("contracts", "each copy has a lag limit, and keeps it", contracts);
    let orphans: Vec<NodeId> =
        standbys(facts).filter(|(_, m)| m.contract.owner.is_empty()).map(|(n, _)| n).collect();
    let owners = match orphans.is_empty() {
        true => proved("each copy has an owner"),
        false => unknown(
            format!("nobody answers for {}", list(&orphans)),
            "owner in [nodes.NAME.contract]",
        ),
    };
    items.add("owners", "somebody answers for each copy", owners);
    let tls = match gateway.tls {
        Tls::Required => proved("clients must come with TLS"),
        Tls::Offered | Tls::Off => refuted(
            "clients may connect without TLS",
            "gateway.tls = \"required\" once all of them can",
        ),
    };
    items.add("tls", "clients' connections are encrypted", tls);
    let access = match gateway.access.is_empty() {
        true => unknown(
            "whoever has a password comes in from anywhere",
            "[[gateway.access]]: who, to what, from where",
        ),
        false => proved(format!("{} rules say who comes in", gateway.access.len())),
    };
    items.add("access", "who may come in is written down", access);
}

fn hosts(facts: &Facts<'_>, items: &mut Vec<Item>) {
    let status = facts.status;
    let told = |m: &Member| m.status.as_ref().and_then(|s| s.vitals.receivers);
    let deaf: Vec<NodeId> =
        status.nodes.iter().filter(|(_, m)| told(m) == Some(0)).map(|(n, _)| *n).collect();
    let silent = status.nodes.values().any(|m| told(m).is_none());
    let alerts = match (deaf.is_empty(), silent) {
        (false, _) => refuted(
            format!("nobody is told of alerts by {}", list(&deaf)),
            "[[notify]] in its quorate.toml: the same on every node",
        ),
        (true, true) => unknown("some nodes are not heard", ""),
        (true, false) => proved("each node has somebody to tell"),
    };
    items.add("alerts", "alerts reach somebody", alerts);
    items.add(
        "runbooks",
        "there is a runbook for each alert",
        proved("docs/runbooks has a page for each, by the alert's name"),
    );
    let firing = |rule: Rule| {
        let found = status.alerts.iter().find(|told| told.alert.key.rule == rule);
        found.map(|told| match told.alert.key.subject.as_str() {
            "" => told.alert.sentence.clone(),
            subject => format!("{subject}: {}", told.alert.sentence),
        })
    };
    for (id, title, rule) in [
        ("certificates", "certificates are renewed", Rule::CertificateExpiry),
        ("versions", "all nodes run one version", Rule::VersionSkew),
        ("clocks", "wall clocks agree", Rule::Clock),
        ("disks", "there is room on the disks", Rule::Disk),
    ] {
        let found = match firing(rule) {
            Some(sentence) => refuted(sentence, format!("see the runbook {rule}")),
            None => proved("the alert does not fire"),
        };
        items.add(id, title, found);
    }
    let mut pending: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for (name, member) in data(facts) {
        let server = member.status.as_ref().and_then(|s| s.server.as_ref());
        for setting in server.map(|s| s.pending_restart.as_slice()).unwrap_or_default() {
            pending.entry(setting).or_default().push(name);
        }
    }
    let pending: Vec<String> =
        pending.iter().map(|(setting, on)| format!("{setting} on {}", list(on))).collect();
    let settings = match pending.is_empty() {
        true => proved("no setting waits for a restart"),
        false => refuted(pending.join(", "), "`quorate restart --rolling`"),
    };
    items.add("settings", "settings are in force", settings);
}

/// What no program can see: somebody answers for it in the cluster document.
fn answered(facts: &Facts<'_>, id: &str, evidence: &str, todo: &str) -> Found {
    match facts.document.attested.get(id) {
        Some(words) => proved(format!("attested: {words}")),
        None => unknown(evidence, todo),
    }
}

fn attested(facts: &Facts<'_>, items: &mut Vec<Item>) {
    for (id, title, evidence, todo) in [
        (
            "reconnect",
            "applications were seen to come through a failover",
            "drills use clients of their own",
            "run `quorate drill host-loss` with the application at work, and say so: [attested] \
             reconnect = \"…\"",
        ),
        (
            "idempotency",
            "applications repeat what failed without harm",
            "a transaction that fails with 40001 did not happen, and one with 08007 may have",
            "give each request a key of its own that a second try finds; [attested] idempotency",
        ),
        (
            "schema-changes",
            "schema changes think of replicas",
            "a lock or a rewrite on the writer is replayed on every copy",
            "lock_timeout, small steps, batches; [attested] schema-changes",
        ),
    ] {
        items.add(id, title, answered(facts, id, evidence, todo));
    }
}

#[cfg(test)]
mod tests {
    use quorate_core::Term;
    use quorate_core::drill::Measures;
    use quorate_core::validation::{Finding, ValidationSpec, judge};

    use super::*;
    use crate::fixture::{good, node};

    const AT: WallMillis = 1_800_000_000_000;

    fn drill(drill: Drill, outcome: Outcome, days: u64) -> Record {
        Record {
            id: 7,
            drill,
            at: AT - days * 24 * 60 * 60 * 1000,
            seconds: 9,
            conductor: node("n2"),
            writer: node("n1"),
            term: Term(3),
            outcome,
            sentence: "nothing was lost".to_owned(),
            measures: Measures::default(),
            checks: Vec::new(),
        }
    }

    fn careful() -> Document {
        let mut document: Document = toml::from_str(
            "copy_zones = 2\n[targets]\nrecovery_ms = 9000\n[attested]\nbackups = \"nightly\"\n\
             reconnect = \"shop team\"\nidempotency = \"yes\"\nschema-changes = \"yes\"\n\
             [validation.orders]\ndatabase = \"shop\"\nrole = \"checker\"\n\
             sql = \"SELECT true\"\n[gateway]\ntls = \"required\"\n[[gateway.access]]\n\
             action = \"password\"\n",
        )
        .unwrap();
        for name in ["n1", "n2", "n3"] {
            let spec = document.nodes.entry(node(name)).or_default();
            spec.contract.owner = "shop".to_owned();
        }
        document.nodes.entry(node("n3")).or_default().role = Role::Read;
        document
    }

    fn cluster(document: &Document) -> ClusterStatus {
        let mut status = good();
        for (name, member) in &mut status.nodes {
            let spec = document.node(*name);
            (member.role, member.contract) = (spec.role, spec.contract());
            let vitals = &mut member.status.as_mut().unwrap().vitals;
            (vitals.processors, vitals.memory) = (Some(8), Some(32 << 30));
            vitals.receivers = Some(1);
        }
        status
    }

    /// What came of the query of [`careful`].
    fn ran(term: Term, finding: &Finding) -> BTreeMap<String, Validated> {
        let judged = judge(&ValidationSpec::default(), finding);
        let ran = Validated { term, node: node("n1"), at: 1, took_ms: 3, judged };
        BTreeMap::from([("orders".to_owned(), ran)])
    }

    fn verdicts(items: &[Item], verdict: Verdict) -> Vec<&str> {
        items.iter().filter(|i| i.verdict == verdict).map(|i| i.id.as_str()).collect()
    }

    #[test]
    fn a_good_cluster_has_everything_proved() {
        let document = careful();
        let status = cluster(&document);
        let kinds = [Drill::HostLoss, Drill::Switchover, Drill::ReplicaLag, Drill::SlotPileUp];
        let drills = kinds.map(|kind| drill(kind, Outcome::Passed, 5));
        let facts = Facts {
            status: &status,
            document: &document,
            drills: &drills,
            validations: &ran(status.term, &Finding::True),
            lowered: Some(Vec::new()),
            at: AT,
        };
        let items = review(&facts);
        assert_eq!(verdicts(&items, Verdict::Refuted), Vec::<&str>::new());
        assert_eq!(verdicts(&items, Verdict::Unknown), Vec::<&str>::new());
        let ids: BTreeSet<&str> = items.iter().map(|i| i.id.as_str()).collect();
        assert_eq!(ids.len(), items.len(), "each item once");
        assert!(items.iter().all(|i| !i.evidence.is_empty() && i.todo.is_empty()));
    }

    #[test]
    fn a_new_cluster_has_much_to_show() {
        let document = Document::default();
        let status = cluster(&document);
        let facts = Facts {
            status: &status,
            document: &document,
            drills: &[],
            validations: &BTreeMap::new(),
            lowered: None,
            at: AT,
        };
        let items = review(&facts);
        assert_eq!(verdicts(&items, Verdict::Refuted), ["tls"]);
        let unknown = verdicts(&items, Verdict::Unknown);
        let expected =
            ["recovery-target", "targets", "fencing", "backups", "owners", "reconnect", "zones"];
        for id in expected.into_iter().chain(["validation"]) {
            assert!(unknown.contains(&id), "{id}: {unknown:?}");
        }
        let open = items.iter().filter(|i| i.verdict != Verdict::Proved);
        assert!(open.into_iter().all(|i| !i.todo.is_empty()), "each says what to do");
    }

    #[test]
    fn queries_must_have_passed_on_the_present_writer() {
        let document = careful();
        let status = cluster(&document);
        let item = |validations: &BTreeMap<String, Validated>| {
            let (status, document, drills) = (&status, &document, &[][..]);
            let facts = Facts { status, document, drills, validations, lowered: None, at: AT };
            review(&facts).into_iter().find(|i| i.id == "validation").unwrap()
        };
        let (now, before) = (status.term, Term(status.term.0 - 1));
        let told = item(&ran(now, &Finding::True));
        assert_eq!(told.verdict, Verdict::Proved);
        assert_eq!(told.evidence, format!("orders passed in term {now}"));
        let told = item(&ran(before, &Finding::True));
        assert_eq!((told.verdict, told.todo.as_str()), (Verdict::Unknown, "`quorate validate`"));
        let told = item(&ran(before, &Finding::NoRow));
        assert_eq!(told.verdict, Verdict::Refuted, "{}", told.evidence);
        assert_eq!(told.todo, "see the runbook validation-failed");
    }

    #[test]
    fn what_is_wrong_is_refuted() {
        let mut document = Document { timing: Timing::Async, ..Document::default() };
        document.gateway.synchronous_commit_floor = SynchronousCommit::Off;
        let mut status = cluster(&document);
        status.paused = true;
        status.voters.remove(&node("n3"));
        status.candidates.iter_mut().for_each(|c| c.eligible = false);
        for member in status.nodes.values_mut() {
            member.node.zone = "hall-a".to_owned();
        }
        let n2 = status.nodes.get_mut(&node("n2")).unwrap().status.as_mut().unwrap();
        n2.vitals.processors = Some(2);
        n2.vitals.receivers = Some(0);
        let old = [
            drill(Drill::Switchover, Outcome::Passed, 200),
            drill(Drill::HostLoss, Outcome::Failed, 1),
        ];
        let facts = Facts {
            status: &status,
            document: &document,
            drills: &old,
            validations: &BTreeMap::new(),
            lowered: Some(vec!["role app: off".to_owned()]),
            at: AT,
        };
        let items = review(&facts);
        assert_eq!(
            verdicts(&items, Verdict::Refuted),
            [
                "next-in-line",
                "voters",
                "automation",
                "timing-target",
                "synchronous-commit",
                "zones",
                "capacity",
                "recovery-target",
                "fencing",
                "tls",
                "alerts"
            ]
        );
        let switchover = items.iter().find(|i| i.id == "switchover").unwrap();
        assert_eq!(switchover.verdict, Verdict::Unknown, "too long ago: {}", switchover.evidence);
    }
}
