//! Pictures of clusters, for tests and to look at.

use std::collections::BTreeMap;

use quorate_agent::alerts::{Stage, Told};
use quorate_agent::slots::SlotsReport;
use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::alert::{Alert, Key, Rule, Silence};
use quorate_core::contract::ContractSpec;
use quorate_core::document::Document;
use quorate_core::drill::{Drill, Measures, Outcome, Record};
use quorate_core::lag::{Cause, CauseKind, Percentiles, Point};
use quorate_core::role::Role;
use quorate_core::slots::{
    Kind as SlotKind, Level as SlotLevel, Next, Slot, SlotSpec, SlotStanding,
};
use quorate_core::state::{Event, NodeKind};
use quorate_core::status::{Doing, Lag, StandbyLink};
use quorate_core::{Because, Lsn, Policy, Term, TimelineId};

use super::limits::{CHART_POINTS_MAX, TREND_EVERY};
use super::picture::{Lateness, Over, Picture, PoolLine, RouteLine, Traffic};
use super::trend::Tick;
use crate::fixture::{candidate, good, member, node};
use crate::review::Item;
use crate::review::Verdict::{Proved, Refuted, Unknown};

const NOW: u64 = 1_795_226_096_789;

/// Three nodes, and all is well.
pub(crate) fn picture() -> Picture {
    let mut status = good();
    status.cluster_id = "01e708636741a49d".to_owned();
    status.at = NOW;
    status.candidates[0].because = "next in line: the most advanced log".to_owned();
    status.candidates[1].because = "1344 bytes behind the next in line".to_owned();
    for (i, name) in ["n1", "n2", "n3"].into_iter().enumerate() {
        dress(&mut status, name, i as u64);
    }
    Picture {
        document: Document::default(),
        events: events(3),
        running: None,
        drills: vec![drill(2, Drill::Switchover, 130), drill(1, Drill::WriterCrash, 94)],
        review: review(),
        slots: Some(slots(4)),
        traffic: Some(traffic()),
        status,
    }
}

/// Makes a node of the plain fixture look like a real one.
fn dress(status: &mut ClusterStatus, name: &str, number: u64) {
    let writes = status.writer == Some(node(name));
    let member = status.nodes.get_mut(&node(name)).unwrap();
    let position = Lsn(0x5_0197_8000 - number * 1344);
    let said = member.status.as_mut().unwrap();
    said.version = env!("CARGO_PKG_VERSION").to_owned();
    said.promised = Some(Term(3));
    said.disk_ms = Some(1 + number % 3);
    said.because = match writes {
        true => Because::new("lead", "writes in term 3"),
        false => Because::new("follow", "follows n1"),
    };
    if let Some(server) = said.server.as_mut() {
        server.version = "17.5".to_owned();
        server.timeline = Some(TimelineId(2));
        (server.flushed, server.replayed) = (position, position);
    }
    if !writes {
        let (bytes, replay_ms) = (number * 1344, 2 + number);
        member.lag = Some(Lag { bytes, replay_ms, disk_ms: 1, ..Lag::default() });
        member.lately = Some(Percentiles { p50_ms: 3, p95_ms: 12, p99_ms: 41, max_ms: 260 });
        let link = StandbyLink { written: position, flushed: position, applied: position };
        let writer = status.writer.unwrap();
        let writer = status.nodes.get_mut(&writer).unwrap().status.as_mut().unwrap();
        writer.writer.as_mut().unwrap().standbys.insert(node(name), link);
    }
}

/// A standby breaks its contract, another one is gone, and a third is copied.
pub(crate) fn troubled() -> Picture {
    let mut picture = large(6);
    let status = &mut picture.status;
    status.warnings.push(
        "4 voters are no safer than 3: add a node, or a witness (`quorate join --witness`)"
            .to_owned(),
    );
    fn of<'a>(status: &'a mut ClusterStatus, name: &str) -> &'a mut Member {
        status.nodes.get_mut(&node(name)).unwrap()
    }
    status.alerts = vec![
        told(
            Stage::Firing,
            Rule::LagOverContract,
            "n3",
            "what it shows is 23 min late (at most 10 s)",
        ),
        told(
            Stage::Silenced,
            Rule::NodeDown,
            "n2",
            "n2 is not heard: its host refuses connections",
        ),
    ];
    let n3 = of(status, "n3");
    let lag =
        Lag { replay_ms: 1_400_000, bytes: 3 << 30, broken_ms: Some(500_000), ..Lag::default() };
    n3.lag = Some(lag);
    n3.late_because = Some(Cause {
        kind: CauseKind::Query,
        evidence:
            "replay waits for a query that still needs what it would remove: session 4711 on n3, \
                   open for 24 min; end it, or set conflict_delay_ms"
                .to_owned(),
    });
    of(status, "n2").gone = true;
    let n4 = of(status, "n4");
    n4.lag = None;
    let said = n4.status.as_mut().unwrap();
    said.doing = Doing::Cloning;
    said.because = Because::new("clone", "copies the database from n1");
    said.progress = Some("43 %, 12.1 GB of 28 GB".to_owned());
    let writer = of(status, "n1").status.as_mut().unwrap().writer.as_mut().unwrap();
    writer.standbys.remove(&node("n2"));
    writer.standbys.remove(&node("n4"));
    status.candidates[0] = candidate("n2", false, "not heard");
    picture
}

/// So many nodes, in three zones, with all roles and a witness.
pub(crate) fn large(nodes: usize) -> Picture {
    let mut picture = picture();
    let roles = [Role::Ha, Role::Ha, Role::Read, Role::Reporting, Role::Analytics, Role::Dr];
    for number in 4..=nodes {
        let name = format!("n{number}");
        let zone = ["a", "b", "c"][number % 3];
        let mut member = member(&name, Doing::Following, zone);
        member.role = roles[number % roles.len()];
        let spec = ContractSpec {
            purpose: if number % 4 == 0 {
                "invoices of the night".to_owned()
            } else {
                String::new()
            },
            owner: if number % 4 == 0 { "billing".to_owned() } else { String::new() },
            ..ContractSpec::default()
        };
        member.contract = spec.of(member.role, std::time::Duration::ZERO);
        if number == nodes && number > 4 {
            member.node.kind = NodeKind::Witness;
            member.status.as_mut().unwrap().doing = Doing::Witness;
            member.status.as_mut().unwrap().server = None;
            picture.status.nodes.insert(node(&name), member);
            continue;
        }
        let able = member.role == Role::Ha;
        let because = match able {
            true => format!("{} bytes behind the next in line", number * 1344),
            false => format!("its role ({}) does not allow it to write", member.role),
        };
        picture.status.nodes.insert(node(&name), member);
        picture.status.candidates.push(candidate(&name, able, &because));
        dress(&mut picture.status, &name, number as u64);
    }
    picture.status.authority.rules[0].policy = Policy::Copies(2);
    picture.events = events(80);
    let drills = (1..=20).rev().map(|i| drill(i, Drill::ALL[i as usize % 7], 90 + i * 7));
    picture.drills = drills.collect();
    picture
}

/// Fifty nodes in five zones, of every role and in every state, with five hundred slots: more than a
/// cluster may have, for the sake of what is still readable.
pub(crate) fn huge() -> Picture {
    const ZONES: [&str; 5] = ["fra-1", "fra-2", "ams-1", "par-1", "us-east-1"];
    let mut picture = large(50);
    let status = &mut picture.status;
    for (number, (name, member)) in status.nodes.iter_mut().enumerate() {
        member.node.zone = ZONES[number % ZONES.len()].to_owned();
        if *name == node("n50") || member.node.kind == NodeKind::Witness {
            continue;
        }
        let late = 150 * number as u64;
        if let Some(lag) = member.lag.as_mut().filter(|_| number % 3 == 0) {
            (lag.replay_ms, lag.bytes) = (late, late * 3000);
        }
    }
    fn said<'a>(status: &'a mut ClusterStatus, name: &str) -> &'a mut Member {
        status.nodes.get_mut(&node(name)).unwrap()
    }
    for name in ["n48", "n49"] {
        let member = said(status, name);
        member.node.kind = NodeKind::Witness;
        (member.lag, member.lately) = (None, None);
        let word = member.status.as_mut().unwrap();
        (word.doing, word.server) = (Doing::Witness, None);
        status.candidates.retain(|c| c.node != node(name));
    }
    for (name, doing, sentence) in [
        ("n7", Doing::Cloning, "copies the database from n1"),
        ("n11", Doing::Rewinding, "undoes what the cluster does not have"),
        ("n19", Doing::Recovering, "its server replays its log"),
        ("n23", Doing::Detached, "knows the writer, and has no stream from it yet"),
        ("n31", Doing::Broken, "its directory is not of this cluster: `quorate rebuild n31`"),
        ("n37", Doing::Starting, "waits for the cluster's state"),
    ] {
        let member = said(status, name);
        member.lag = None;
        let word = member.status.as_mut().unwrap();
        word.doing = doing;
        word.because = Because::new("clone", sentence);
        let writer = said(status, "n1").status.as_mut().unwrap().writer.as_mut().unwrap();
        writer.standbys.remove(&node(name));
    }
    for name in ["n13", "n26", "n41"] {
        let member = said(status, name);
        (member.gone, member.heard_ms) = (name != "n41", Some(95_000));
        member.lag = None;
        let writer = said(status, "n1").status.as_mut().unwrap().writer.as_mut().unwrap();
        writer.standbys.remove(&node(name));
    }
    for name in ["n5", "n17", "n38"] {
        let member = said(status, name);
        let replay_ms = 1_400_000;
        let lag = Lag { replay_ms, bytes: 3 << 30, broken_ms: Some(500_000), ..Lag::default() };
        member.lag = Some(lag);
        let evidence = "replay waits for a query that still needs what it would remove: session 4711, \
                        open for 24 min; end it, or set conflict_delay_ms";
        let (kind, evidence) = (CauseKind::Query, evidence.to_owned());
        member.late_because = Some(Cause { kind, evidence });
    }
    for name in ["n8", "n9", "n10", "n38", "n44"] {
        said(status, name).status.as_mut().unwrap().upstream = Some(node("n2"));
        let writer = said(status, "n1").status.as_mut().unwrap().writer.as_mut().unwrap();
        writer.standbys.remove(&node(name));
    }
    let late = "what it shows is 23 min late (3.0 GB), and its contract allows at most 10 s late";
    status.alerts = vec![
        told(Stage::Firing, Rule::LagOverContract, "n5", late),
        told(
            Stage::Firing,
            Rule::NodeDown,
            "n13",
            "its host answers, and its process does not run",
        ),
        told(Stage::Firing, Rule::SlotOverBudget, "cdc_0", "slot cdc_0 keeps 17.0 GB of log"),
    ];
    picture.slots = Some(mixed_slots(500));
    picture
}

/// So many slots, with some of every level.
fn mixed_slots(many: u64) -> SlotsReport {
    let mut report = slots(many);
    let slots = report.slots.iter_mut().enumerate();
    for (number, standing) in slots {
        (standing.level, standing.next) = match number {
            0..3 => (SlotLevel::Over, Next::Approve),
            3..5 => (SlotLevel::Lost, Next::Page),
            5..9 => (SlotLevel::Near, Next::Warn),
            9..14 => (SlotLevel::Late, Next::Warn),
            14..20 => (SlotLevel::Unknown, Next::Warn),
            _ => (SlotLevel::Fine, Next::Nothing),
        };
        if standing.level == SlotLevel::Unknown {
            standing.spec = None;
        }
        if number % 5 == 0 {
            standing.slot.kind = SlotKind::Physical;
            standing.slot.plugin = None;
        }
    }
    report
}

/// So many slots of the writer; the first of them keeps more than it may.
pub(crate) fn slots(many: u64) -> SlotsReport {
    let slot = |i: u64| {
        let (level, next) = match i {
            0 => (SlotLevel::Over, Next::Approve),
            1 => (SlotLevel::Unknown, Next::Warn),
            _ => (SlotLevel::Fine, Next::Nothing),
        };
        let spec = SlotSpec {
            owner: "data team".to_owned(),
            consumer: "the warehouse".to_owned(),
            max_bytes: 16 << 30,
            ..SlotSpec::default()
        };
        SlotStanding {
            slot: Slot {
                name: format!("cdc_{i}"),
                kind: SlotKind::Logical,
                plugin: Some("pgoutput".to_owned()),
                active_pid: (i > 0).then_some(4711),
                ..Slot::default()
            },
            spec: (i != 1).then_some(spec),
            retained: if i == 0 { 17 << 30 } else { i << 20 },
            frees: 0,
            lag_ms: Some(300 + i),
            grows: None,
            budget_ms: (i == 0).then_some(0),
            disk_ms: None,
            level,
            next,
            because: Because::new("slot-04", "slot keeps 17.0 GB of log, and 16.0 GB are agreed"),
        }
    };
    SlotsReport {
        node: node("n1"),
        writer: true,
        end: Lsn(0x5_0197_8000),
        disk: None,
        slots: (0..many).map(slot).collect(),
        records: BTreeMap::new(),
        absent: BTreeMap::new(),
        carried: BTreeMap::new(),
    }
}

/// A checklist.
pub(crate) fn review() -> Vec<Item> {
    let item = |id: &str, title: &str, verdict, evidence: &str, todo: &str| Item {
        id: id.to_owned(),
        title: title.to_owned(),
        verdict,
        evidence: evidence.to_owned(),
        todo: todo.to_owned(),
    };
    vec![
        item("write-authority", "one writer, known to all", Proved, "n1 writes in term 3", ""),
        item(
            "drill-host-loss",
            "the loss of a host was rehearsed",
            Unknown,
            "no drill of it in the last 90 days",
            "quorate drill host-loss",
        ),
        item(
            "encryption",
            "clients come with TLS only",
            Refuted,
            "gateway.tls is \"offered\"",
            "set gateway.tls = \"required\"",
        ),
        item("next", "somebody can take over", Proved, "n2 and n3 could write now", ""),
    ]
}

fn told(stage: Stage, rule: Rule, subject: &str, sentence: &str) -> Told {
    let key = Key { rule, subject: subject.to_owned() };
    let severity = rule.definition().severity;
    let alert = Alert { key, severity, since: NOW - 500_000, sentence: sentence.to_owned() };
    let silence = (stage == Stage::Silenced).then(|| Silence {
        rule: Some(rule),
        subject: None,
        until: NOW + 3_600_000,
        because: "the rack is being moved".to_owned(),
    });
    Told { stage, alert, silence }
}

fn events(many: u64) -> Vec<Event> {
    let kinds = [
        ("opened", "n1 writes on timeline 2", "R9"),
        ("granted", "n1 has the most advanced log of n1, n2 and n3", "R5"),
        ("election", "n2 gave up: its server ended", "R1"),
        ("rule-change", "2 of n1, n2 and n3: n3 is back", "R7"),
        ("node-joined", "n3 joined the cluster", "op-join"),
    ];
    let event = |i: u64| {
        let (kind, sentence, rule) = kinds[i as usize % kinds.len()];
        Event {
            seq: 100 - i,
            at: NOW - 1000 * (i + 1) * (i + 1),
            term: Term(3),
            kind: kind.to_owned(),
            because: Because::new(rule, sentence),
            about: None,
        }
    };
    (0..many).map(event).collect()
}

fn drill(id: u64, drill: Drill, write_gap_ms: u64) -> Record {
    Record {
        id,
        drill,
        at: NOW - 86_400_000 * (21 - id.min(20)),
        seconds: 14,
        conductor: node("n3"),
        writer: node("n1"),
        term: Term(2),
        outcome: if id == 7 { Outcome::Failed } else { Outcome::Passed },
        sentence: "writes paused for 32 s, and the target is 30 s".to_owned(),
        measures: Measures { write_gap_ms, acknowledged: 4711, ..Measures::default() },
        checks: Vec::new(),
    }
}

fn traffic() -> Traffic {
    let pool = |node: &str, busy, waiting| PoolLine {
        database: "shop".to_owned(),
        user: "web".to_owned(),
        node: node.to_owned(),
        busy,
        open: 12,
        size: 20,
        waiting,
        queue_p99_us: 850,
    };
    let route = |part, because, count, p50_us| RouteLine {
        part,
        because,
        count,
        p50_us,
        p99_us: p50_us * 9,
        max_us: p50_us * 140,
    };
    Traffic {
        clients: 431,
        pools: vec![pool("n1", 9, 3), pool("n2", 4, 0), pool("n3", 3, 0)],
        routes: vec![
            route("replica", "", 1_204_311, 310),
            route("writer", "writes", 381_204, 1450),
            route("writer", "not_replayed", 9120, 720),
        ],
        more: 0,
        trend: (0..150).map(tick).collect(),
    }
}

fn tick(number: u64) -> Tick {
    let noise = number * 7919 % 97;
    let pause = (90..93).contains(&number);
    Tick {
        at: NOW - (150 - number) * TREND_EVERY.as_millis() as u64,
        rate: if pause { 4.0 } else { 800.0 + noise as f64 * 9.0 },
        half_us: Some(1200 + noise * 8),
        most_us: Some(if pause { 900_000 } else { 9000 + noise * 150 }),
    }
}

/// What could be remembered of every standby.
pub(crate) fn lateness(status: &ClusterStatus) -> Lateness {
    let step = Over::Minutes.length().as_millis() as u64 / CHART_POINTS_MAX as u64;
    let mut lateness = Lateness::new();
    for (number, (name, member)) in status.nodes.iter().enumerate() {
        if status.writer == Some(*name) || member.node.kind == NodeKind::Witness {
            continue;
        }
        let point = |i: u64| {
            let noise = (i * 7919 + number as u64 * 104_729) % 97;
            let spike = if (60..64).contains(&((i + number as u64 * 13) % 120)) { 900 } else { 0 };
            let now = member.lag.map_or(0, |l| l.replay_ms);
            let replay_ms = match now {
                10_000.. => now * (i + 1) / CHART_POINTS_MAX as u64,
                _ => 2 + noise / 9 + spike,
            };
            Point {
                at: status.at - step * (CHART_POINTS_MAX as u64 - i),
                replay_ms,
                ..Point::default()
            }
        };
        let points = (0..CHART_POINTS_MAX as u64).filter(|i| !(80..90).contains(i) || number != 1);
        lateness.insert(*name, points.map(point).collect());
    }
    lateness
}
