//! `quorate slots`: whose each replication slot is, what it keeps, and what is done about it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_agent::carry::Carriers;
use quorate_agent::slots::SlotsReport;
use quorate_core::NodeId;
use quorate_core::document::Document;
use quorate_core::slots::{Kind, Level, Next, SlotSpec, SlotStanding};
use quorate_core::state::DocumentVersion;
use quorate_core::words::{bytes, seconds};
use serde_json::{Value, json};

use super::operate::confirm;
use super::reach::{self, Failure};
use super::show::table;
use super::{Global, SlotsArgs, SlotsCommand};
use crate::http::Ask;

/// Does one `slots` command.
pub async fn slots(global: &Global, args: SlotsArgs) -> Result<()> {
    match args.command {
        None => list(global, args.node).await,
        Some(SlotsCommand::Adopt { name, owner, consumer, max_bytes, max_lag, drop, carry }) => {
            let change = |spec: &mut SlotSpec| {
                spec.owner = owner.unwrap_or_else(|| std::mem::take(&mut spec.owner));
                spec.consumer = consumer.unwrap_or_else(|| std::mem::take(&mut spec.consumer));
                spec.max_bytes = max_bytes.unwrap_or(spec.max_bytes);
                let lag = max_lag.map(|lag| lag.as_millis() as u64);
                spec.max_lag_ms = lag.or(spec.max_lag_ms);
                spec.drop = drop.unwrap_or(spec.drop);
                spec.carry = carry.or(spec.carry);
            };
            let name = name.as_str();
            edit(global, name, "adopted", |document| {
                change(document.slots.entry(name.to_owned()).or_default());
                Ok(())
            })
            .await
        }
        Some(SlotsCommand::Disown { name }) => {
            edit(global, &name, "taken out of the cluster document", |document| {
                let had = document.slots.remove(&name).map(drop);
                had.ok_or_else(|| {
                    Failure::Refused(format!("nobody has adopted slot {name}")).into()
                })
            })
            .await
        }
        Some(SlotsCommand::Drop { name, node, yes }) => end(global, &name, node, yes).await,
        Some(SlotsCommand::Ack { name }) => {
            let body = json!({ "name": name });
            let answer = reach::call(global, Ask::post("/api/slots/ack", body)).await?;
            say(global, &format!("acknowledged: a new slot {name} can be made and read"), answer);
            Ok(())
        }
    }
}

fn say(global: &Global, text: &str, value: Value) {
    if global.json {
        println!("{value}");
    } else {
        println!("{text}");
    }
}

async fn report(global: &Global, node: Option<NodeId>) -> Result<SlotsReport> {
    let path = node.map_or("/api/slots".to_owned(), |node| format!("/api/slots?node={node}"));
    reach::get(global, &path).await
}

async fn list(global: &Global, node: Option<NodeId>) -> Result<()> {
    let report = report(global, node).await?;
    if global.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", picture(&report));
    }
    Ok(())
}

/// Changes what the cluster document says of one slot.
async fn edit(
    global: &Global,
    name: &str,
    done: &str,
    change: impl FnOnce(&mut Document) -> Result<()>,
) -> Result<()> {
    let versions: Vec<DocumentVersion> = reach::get(global, "/api/config").await?;
    let now = versions.into_iter().next_back().context("the cluster has no document yet")?;
    let mut document = now.document;
    change(&mut document)?;
    let problems: Vec<String> = document.validate().iter().map(ToString::to_string).collect();
    if !problems.is_empty() {
        return Err(Failure::Refused(problems.join("\n")).into());
    }
    let body = json!({ "expect_version": now.version, "document": document });
    let answer = reach::call(global, Ask::post("/api/config", body)).await?;
    say(global, &format!("slot {name} is {done} (version {})", answer["version"]), answer);
    Ok(())
}

async fn end(global: &Global, name: &str, node: Option<NodeId>, yes: bool) -> Result<()> {
    let report = report(global, node).await?;
    let there = report.slots.iter().find(|s| s.slot.name == name);
    let on = report.node;
    let standing =
        there.ok_or_else(|| Failure::Refused(format!("there is no slot {name} on {on}")))?;
    let question = format!(
        "Slot {name} on {on} keeps {} of log. If it is dropped, {}.",
        bytes(standing.retained),
        standing.loses()
    );
    confirm(&question, yes)?;
    let body = json!({ "name": name, "node": on });
    let answer = reach::call(global, Ask::post("/api/slots/drop", body)).await?;
    let text = answer["text"].as_str().unwrap_or("dropped").to_owned();
    say(global, &text, answer);
    Ok(())
}

/// Tells whoever moves the writer which streams break by that. When it cannot be found out, the writer
/// is moved all the same.
pub async fn warn_of_move(global: &Global, to: Option<NodeId>) {
    let Ok(report) = report(global, None).await else { return };
    for line in moves(&report, to) {
        eprintln!("note: {line}");
    }
}

/// What becomes of each logical slot when the writer moves.
fn moves(report: &SlotsReport, to: Option<NodeId>) -> Vec<String> {
    let logical = |s: &&SlotStanding| s.slot.kind == Kind::Logical && !s.slot.temporary;
    let line = |standing: &SlotStanding| {
        let name = &standing.slot.name;
        let whose = standing.spec.as_ref().map_or("nobody".to_owned(), |s| s.owner.clone());
        let slot = format!("logical slot {name} (of {whose})");
        let none = Carriers::default();
        let carriers = report.carried.get(name).unwrap_or(&none);
        match to {
            Some(to) => match carriers.nodes.get(&to) {
                Some(_) if carriers.ready().contains(&to) => format!("{slot} goes on, on {to}"),
                Some(carried) => {
                    let lacks = carried.words(carriers.consumer);
                    format!("{slot} does not move with the writer: on {to} it is {lacks}")
                }
                None => format!("{slot} does not move with the writer"),
            },
            None if carriers.nodes.is_empty() => {
                format!("{slot} does not move with the writer")
            }
            None => format!("{slot} goes on where it is ready: {}", carriers.sentence(name)),
        }
    };
    report.slots.iter().filter(logical).map(line).collect()
}

fn time(ms: Option<u64>) -> String {
    ms.map_or("-".to_owned(), |ms| seconds(Duration::from_millis(ms)))
}

/// The slots of a node as text.
pub fn picture(report: &SlotsReport) -> String {
    let role = if report.writer { "the writer" } else { "a standby" };
    let mut out = format!("slots on {}, {role}\n", report.node);
    if let Some(disk) = &report.disk {
        let _ = writeln!(out, "disk of the log: {}", disk.because.sentence);
    }
    out.push('\n');
    let head = [
        "SLOT", "KIND", "OWNER", "CONSUMER", "READ BY", "KEEPS", "BUDGET", "FULL IN", "LATE",
        "POLICY", "STATE", "NEXT",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(report.slots.iter().map(row));
    rows.extend(report.absent.iter().map(|(name, spec)| absent(name, spec)));
    match rows.len() {
        1 => out.push_str("There is none.\n"),
        _ => out += &table(&rows),
    }
    for (name, carriers) in &report.carried {
        let _ = write!(out, "\n{}", carriers.sentence(name));
    }
    if !report.carried.is_empty() {
        out.push('\n');
    }
    for standing in report.slots.iter().filter(|s| s.next != Next::Nothing) {
        let _ = write!(out, "\n{}", standing.because);
    }
    for gap in report.records.values().filter_map(|r| r.gap.as_ref()) {
        let _ = write!(out, "\n{}", gap.because);
    }
    if !out.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn row(standing: &SlotStanding) -> Vec<String> {
    let slot = &standing.slot;
    let spec = standing.spec.as_ref();
    let dash = || "-".to_owned();
    let kind = match (&slot.plugin, &slot.database) {
        (Some(plugin), Some(database)) => format!("{plugin} of {database}"),
        _ => "physical".to_owned(),
    };
    let level = match (standing.level, slot.temporary) {
        (Level::Fine, true) => "temporary",
        (level, _) => level.as_str(),
    };
    vec![
        slot.name.clone(),
        kind,
        spec.map_or_else(dash, |s| s.owner.clone()),
        spec.map_or_else(dash, |s| s.consumer.clone()),
        slot.active_pid.map_or("nobody".to_owned(), |pid| format!("process {pid}")),
        bytes(standing.retained),
        spec.map_or_else(dash, |s| bytes(s.max_bytes)),
        time(standing.budget_ms),
        time(standing.lag_ms),
        spec.map_or_else(dash, |s| s.drop.as_str().to_owned()),
        level.to_owned(),
        standing.next.as_str().to_owned(),
    ]
}

fn absent(name: &str, spec: &SlotSpec) -> Vec<String> {
    let dash = || "-".to_owned();
    let mut row = vec![name.to_owned(), dash(), spec.owner.clone(), spec.consumer.clone()];
    row.extend([dash(), dash(), bytes(spec.max_bytes), dash(), dash()]);
    row.extend([spec.drop.as_str().to_owned(), "not there".to_owned(), dash()]);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use quorate_core::slots::{
        Carried, CarryStage, DropPolicy, Gap, GapCause, Judge, Kept, Slot, SlotRecord, SlotView,
    };
    use quorate_core::{Lsn, Moment, Term};

    #[test]
    fn a_table_tells_whose_a_slot_is_and_what_comes_next() {
        let slot = |name: &str, kind| Slot {
            name: name.to_owned(),
            kind,
            restart: Some(Lsn(1 << 20)),
            kept: Kept::Held,
            ..Slot::default()
        };
        let spec = SlotSpec {
            owner: "data team".to_owned(),
            consumer: "the warehouse".to_owned(),
            max_lag_ms: None,
            max_bytes: 32 << 20,
            drop: DropPolicy::Approval,
            carry: None,
        };
        let specs =
            BTreeMap::from([("cdc".to_owned(), spec.clone()), ("later".to_owned(), spec.clone())]);
        let cdc = slot("cdc", Kind::Logical);
        let (slots, _) = Judge::default().see(&SlotView {
            slots: &[cdc.clone(), slot("stray", Kind::Physical)],
            specs: &specs,
            end: Lsn(65 << 20),
            disk: None,
            writes: true,
            carried: &BTreeMap::new(),
            paused: false,
            now: Moment(1),
        });
        let carried = |stage| Carried { stage, at: Some(Lsn(9)), why: String::new() };
        let carriers = Carriers {
            consumer: Some(Lsn(5)),
            nodes: [("n2", CarryStage::Ready), ("n3", CarryStage::Made)]
                .map(|(node, stage)| (NodeId::new(node).unwrap(), carried(stage)))
                .into(),
        };
        let gap = Gap::dropped(("old", &spec), &cdc, Lsn(65 << 20), GapCause::Person, None);
        let record = SlotRecord {
            term: Term(1),
            node: NodeId::new("n1").unwrap(),
            confirmed: None,
            gap: Some(gap),
            since: None,
        };
        let report = SlotsReport {
            node: NodeId::new("n1").unwrap(),
            writer: true,
            end: Lsn(65 << 20),
            disk: None,
            slots,
            records: [("old".to_owned(), record)].into(),
            absent: [("later".to_owned(), spec)].into(),
            carried: [("cdc".to_owned(), carriers)].into(),
        };
        let told = |to: &str| moves(&report, Some(NodeId::new(to).unwrap())).join("; ");
        assert_eq!(told("n2"), "logical slot cdc (of data team) goes on, on n2");
        assert!(told("n3").contains("on n3 it is not ready yet: it begins at 0/9"));
        assert!(told("n4").ends_with("does not move with the writer"));
        assert!(
            moves(&report, None)[0]
                .contains("goes on where it is ready: slot cdc is carried by n2 (ready), n3")
        );
        let text = picture(&report);
        assert!(text.contains("slot cdc is carried by n2 (ready), n3 (not ready yet"), "{text}");
        for part in ["the writer", "data team", "64.0 MB", "32.0 MB", "waits for a person", "stray"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        for part in ["not there", "quorate slots adopt stray", "slot old keeps"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
