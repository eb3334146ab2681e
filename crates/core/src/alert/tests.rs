use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::authority::{Authority, Phase};
use crate::coordinator::{ClusterView, Peer};
use crate::document::Document;
use crate::invariant::Invariant;
use crate::slots::{
    Disk, DiskGuard, DiskSpec, DiskStanding, Gap, GapCause, Level, Next, SlotRecord, Trouble,
};
use crate::state::{DocumentVersion, Event, Node, NodeKind, State};
use crate::status::{Doing, Lag, NodeStatus, StandbyLink, WriterStatus};
use crate::validation::{Finding, Validated, ValidationSpec, judge};
use crate::{NodeId, Policy, Term};

const AT: WallMillis = 1_800_000_000_000;

fn seconds(s: u64) -> Moment {
    Moment(s * 1_000_000_000)
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// Three nodes; n1 writes, and n2 coordinates.
struct World {
    state: State,
    peers: BTreeMap<NodeId, Peer>,
    voters: BTreeSet<NodeId>,
    now: Moment,
}

impl World {
    fn new() -> Self {
        let names = ["n1", "n2", "n3"].map(node);
        let nodes = names.map(|name| {
            let entry = Node {
                kind: NodeKind::Data,
                link: String::new(),
                gateway: String::new(),
                web: String::new(),
                zone: String::new(),
            };
            (name, entry)
        });
        let rule = crate::Rule { generation: 1, cohort: names.into(), policy: Policy::Copies(2) };
        let authority = Authority {
            term: Term(1),
            phase: Phase::Serving,
            writer: Some(names[0]),
            rules: vec![rule],
            ..Authority::default()
        };
        let state = State {
            cluster_id: "c".to_owned(),
            nodes: nodes.into(),
            authority,
            ..State::default()
        };
        let mut world =
            Self { state, peers: BTreeMap::new(), voters: names.into(), now: seconds(100) };
        for name in names {
            let doing = if name == names[0] { Doing::Writing } else { Doing::Following };
            let mut status = NodeStatus { doing, ..NodeStatus::new(name) };
            status.version = "1".to_owned();
            status.vitals.wall = Some(AT);
            let peer = Peer { heard: Some(world.now), gone: false, status: Some(status) };
            world.peers.insert(name, peer);
        }
        let link = StandbyLink::default();
        world.status("n1").writer = Some(WriterStatus {
            term: Term(1),
            serving: true,
            standbys: [(names[1], link), (names[2], link)].into(),
            ..WriterStatus::default()
        });
        world
    }

    fn status(&mut self, name: &str) -> &mut NodeStatus {
        self.peers.get_mut(&node(name)).unwrap().status.as_mut().unwrap()
    }

    fn word(&mut self) -> &mut WriterStatus {
        self.status("n1").writer.as_mut().unwrap()
    }

    fn document(&mut self, document: Document) {
        let version = DocumentVersion { version: 1, at: AT, document };
        self.state.documents = [version].into();
    }

    fn found(&self) -> BTreeMap<Key, Condition> {
        let view = ClusterView {
            me: node("n2"),
            now: self.now,
            state: &self.state,
            voters: &self.voters,
            peers: &self.peers,
        };
        conditions(&view, AT, &Because::new("R5", "an election is under way"))
    }

    fn names(&self) -> Vec<String> {
        self.found().keys().map(ToString::to_string).collect()
    }
}

#[test]
fn nothing_is_wrong_with_a_good_cluster() {
    assert_eq!(World::new().names(), Vec::<String>::new());
}

/// A disk of 100 bytes.
fn standing(free: u64) -> Option<DiskStanding> {
    Some(DiskStanding { disk: Disk { free, total: 100 }, ..DiskStanding::default() })
}

#[test]
fn every_rule_is_in_the_table_once_and_can_be_found() {
    let mut seen: BTreeSet<Rule> = BTreeSet::new();

    let mut world = World::new();
    world.state.authority.phase = Phase::Electing;
    assert_eq!(world.names(), ["writer-down"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    let election = Event {
        seq: 1,
        at: AT - 1000,
        term: Term(1),
        kind: "election".to_owned(),
        because: Because::new("R5", "n3 is gone"),
        about: None,
    };
    world.state.events.push_back(election.clone());
    assert_eq!(world.names(), ["failover-happened"]);
    seen.extend(world.found().keys().map(|k| k.rule));
    world.state.events[0].at -= 16 * 60 * 1000;
    assert!(world.names().is_empty(), "long ago");

    let mut world = World::new();
    world.status("n3").vitals.breaches.insert(Invariant::OneWriterPerTerm);
    assert_eq!(world.names(), ["two-writers/n3"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.peers.get_mut(&node("n3")).unwrap().gone = true;
    assert_eq!(world.names(), ["node-down/n3"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.word().standbys.remove(&node("n3"));
    assert_eq!(world.names(), ["replication-broken/n3"]);
    seen.extend(world.found().keys().map(|k| k.rule));
    world.word().standbys.clear();
    assert_eq!(world.names(), ["replication-broken/n2", "replication-broken/n3", "commits-wait"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    let lag = Lag { replay_ms: 12_000, bytes: 9, broken_ms: Some(1), ..Lag::default() };
    world.word().lags.insert(node("n2"), lag);
    assert_eq!(world.names(), ["lag-over-contract/n2"]);
    let told = world.found().into_values().next().unwrap();
    assert_eq!(
        told.sentence,
        "what it shows is 12 s late (9 B), and its contract allows at most 10 s late; reads go \
         elsewhere"
    );
    let lag = Lag { replay_ms: 160, ..lag };
    world.word().lags.insert(node("n2"), lag);
    let told = world.found().into_values().next().unwrap();
    assert_eq!(
        told.sentence,
        "what it shows is 160 ms late (9 B), which is within its contract again, and has to stay so \
         for 3 s (at most 10 s late); reads go elsewhere until then"
    );
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.document(Document { copies: 3, ..Document::default() });
    assert_eq!(world.names(), ["cluster-degraded"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.voters.remove(&node("n3"));
    assert_eq!(world.names(), ["even-voters"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.status("n1").disk = standing(4);
    world.status("n2").disk = standing(14);
    world.status("n3").disk = standing(15);
    assert_eq!(world.names(), ["disk/n1", "disk/n2"]);
    let severities: Vec<Severity> = world.found().into_values().map(|c| c.severity).collect();
    assert_eq!(severities, [Severity::Critical, Severity::Warning]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    let disk = Disk { free: 1, total: 1 << 40 };
    let (standing, _) = DiskGuard::default().see(disk, 0, &DiskSpec::default(), seconds(1));
    (world.status("n1").disk, world.status("n2").disk) = (Some(standing.clone()), Some(standing));
    let trouble = |slot: &str, level| Trouble {
        slot: slot.to_owned(),
        level,
        next: Next::Warn,
        because: Because::new("slot-04", "it keeps too much"),
    };
    let levels =
        [("a", Level::Over), ("b", Level::Lost), ("c", Level::Late), ("d", Level::Unknown)];
    world.word().slots.worst = levels.map(|(slot, level)| trouble(slot, level)).into();
    let gap = Gap {
        cause: GapCause::Moved,
        confirmed: None,
        resumes: None,
        because: Because::new("slot-10", "it was lost"),
    };
    let record = SlotRecord {
        term: Term(1),
        node: node("n1"),
        confirmed: None,
        gap: Some(gap),
        since: None,
    };
    world.state.slots.insert("e".to_owned(), record);
    assert_eq!(
        world.names(),
        [
            "disk/n1",
            "disk/n2",
            "writes-stopped/n1",
            "slot-over-budget/a",
            "slot-over-budget/b",
            "slot-near-budget/c",
            "slot-unknown/d",
            "slot-gap/e"
        ]
    );
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.status("n1").vitals.certificate_until = Some(AT + 13 * 24 * 60 * 60 * 1000);
    assert_eq!(world.names(), ["certificate-expiry/n1"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.status("n1").vitals.wall = Some(AT - 2001);
    world.status("n3").vitals.wall = Some(AT + 2000);
    assert_eq!(world.names(), ["clock/n1"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.state.paused = true;
    assert_eq!(world.names(), ["automation-paused"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    world.status("n1").version = "2".to_owned();
    assert_eq!(world.names(), ["version-skew"]);
    seen.extend(world.found().keys().map(|k| k.rule));

    let mut world = World::new();
    let ran = Validated {
        term: Term(1),
        node: node("n1"),
        at: AT,
        took_ms: 3,
        judged: judge(&ValidationSpec::default(), &Finding::False),
    };
    world.state.validations.insert("orders".to_owned(), ran.clone());
    assert_eq!(world.names(), ["validation-failed/orders"]);
    let told = world.found().into_values().next().unwrap();
    assert_eq!(told.sentence, "it is false (on n1 in term 1)");
    seen.extend(world.found().keys().map(|k| k.rule));
    let judged = judge(&ValidationSpec::default(), &Finding::True);
    world.state.validations.insert("orders".to_owned(), Validated { judged, ..ran });
    assert_eq!(world.names(), Vec::<String>::new());

    let table: BTreeSet<Rule> = RULES.iter().map(|r| r.rule).collect();
    assert_eq!(table.len(), RULES.len());
    assert_eq!(seen, table, "each rule of the table was seen to fire here");
    for rule in table {
        assert_eq!(Rule::from_word(rule.as_str()), Some(rule));
        assert_eq!(rule.definition().rule, rule);
        assert_eq!(serde_json::to_value(rule).unwrap(), rule.as_str());
    }
}

fn apply(state: &mut State, changes: Vec<Change>) {
    for change in changes {
        let answer = state.apply(&crate::Command { at: AT, change });
        assert_eq!(answer, crate::Answer::Done);
    }
}

#[test]
fn a_condition_that_lasts_fires_once_and_is_resolved_once() {
    let mut state = State::default();
    let mut watch = Watch::default();
    let key = Key { rule: Rule::NodeDown, subject: "n3".to_owned() };
    let condition = Condition { severity: Severity::Warning, sentence: "gone".to_owned() };
    let found = || BTreeMap::from([(key.clone(), condition.clone())]);
    let Definition { hold, resolve } = Definition::of(Rule::NodeDown);

    assert!(watch.step(found(), &state.alerts, seconds(0), AT).is_empty());
    assert_eq!(watch.pending(&state.alerts).len(), 1);
    // A moment without it starts the wait anew.
    assert!(watch.step(BTreeMap::new(), &state.alerts, seconds(5), AT).is_empty());
    let again = seconds(10);
    assert!(watch.step(found(), &state.alerts, again, AT).is_empty());
    let changes = watch.step(found(), &state.alerts, again + hold, AT);
    assert_eq!(changes.len(), 1);
    apply(&mut state, changes);
    assert_eq!(state.alerts.get(&key).map(|a| a.since), Some(AT));
    assert!(watch.pending(&state.alerts).is_empty());
    assert!(watch.step(found(), &state.alerts, again + hold, AT).is_empty(), "it fires already");

    // Another coordinator resolves what the first one saw.
    let mut next = Watch::default();
    let over = seconds(1000);
    assert!(next.step(BTreeMap::new(), &state.alerts, over, AT).is_empty());
    assert!(next.step(found(), &state.alerts, over + Duration::from_secs(1), AT).is_empty());
    let over = seconds(1002);
    assert!(next.step(BTreeMap::new(), &state.alerts, over, AT).is_empty());
    let changes = next.step(BTreeMap::new(), &state.alerts, over + resolve, AT);
    apply(&mut state, changes);
    assert!(state.alerts.firing.is_empty());
    let kinds: Vec<&str> = state.events.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds, ["alert-firing", "alert-resolved"]);
}

struct Definition {
    hold: Duration,
    resolve: Duration,
}

impl Definition {
    fn of(rule: Rule) -> Self {
        let definition = rule.definition();
        Self { hold: definition.hold, resolve: definition.resolve }
    }
}

#[test]
fn silences_cover_what_they_name_and_end() {
    let mut state = State::default();
    let silence = |rule, subject: Option<&str>, until| Silence {
        rule,
        subject: subject.map(str::to_owned),
        until,
        because: "maintenance".to_owned(),
    };
    let refused = |state: &mut State, silence: Silence| {
        let change = Change::Silence { silence };
        matches!(state.apply(&crate::Command { at: AT, change }), crate::Answer::Refused { .. })
    };
    assert!(refused(&mut state, silence(None, None, AT)));
    assert!(refused(&mut state, silence(None, None, AT + SILENCE_MS_MAX + 1)));
    let unsaid = Silence { because: " ".to_owned(), ..silence(None, None, AT + 9) };
    assert!(refused(&mut state, unsaid));

    let down = |subject: &str| Key { rule: Rule::NodeDown, subject: subject.to_owned() };
    let one = silence(Some(Rule::NodeDown), Some("n3"), AT + 1000);
    apply(&mut state, vec![Change::Silence { silence: one }]);
    assert!(state.alerts.silenced(&down("n3"), AT + 999).is_some());
    assert!(state.alerts.silenced(&down("n3"), AT + 1000).is_none());
    assert!(state.alerts.silenced(&down("n2"), AT).is_none());
    // The same again is no second one.
    let longer = silence(Some(Rule::NodeDown), Some("n3"), AT + 5000);
    apply(&mut state, vec![Change::Silence { silence: longer }]);
    assert_eq!(state.alerts.silences.len(), 1);
    let subject = Some("n3".to_owned());
    apply(&mut state, vec![Change::EndSilence { rule: Some(Rule::NodeDown), subject }]);
    assert!(state.alerts.silences.is_empty());
}
