//! Replication slots with their owners and budgets, and the disk that they fill.

use std::collections::BTreeMap;

use maud::{Markup, html};
use quorate_agent::slots::SlotsReport;
use quorate_agent::view::ClusterStatus;
use quorate_core::slots::{
    DiskLevel, DiskStanding, Level as Standing, Next, SlotSpec, SlotStanding,
};

use super::limits::{SLOTS_OPEN_MAX, SLOTS_SHOWN_MAX};
use super::parts::Head::{Explained, Figure, Text};
use super::parts::{head, ms, or_dash, plain, prose, tag, wide};
use super::verdict::Level;
use quorate_core::words::bytes;

/// The writer's slots.
pub fn slots(status: &ClusterStatus, report: Option<&SlotsReport>) -> Markup {
    let Some(report) = report else { return by_heartbeat(status) };
    let mut all: Vec<&SlotStanding> = report.slots.iter().collect();
    all.sort_by_key(|s| std::cmp::Reverse((s.next, s.level, s.retained)));
    let needy = all.iter().filter(|s| s.next != Next::Nothing).count();
    let shown = all.len().min(SLOTS_SHOWN_MAX);
    let (open, rest) = all[..shown].split_at(shown.min(SLOTS_OPEN_MAX));
    let (needy, calm) = rest.split_at(needy.saturating_sub(open.len()).min(rest.len()));
    html! {
        p { (disk(report.disk.as_ref())) }
        @if all.is_empty() { p { "There is no slot on " (report.node) "." } }
        @else { (wide("Slots", &table(open))) }
        @if !needy.is_empty() {
            details #slots-needy { summary { (needy.len()) " more, which need somebody as well" }
                (wide("More slots", &table(needy))) }
        }
        @if !calm.is_empty() {
            details #slots-calm { summary { (calm.len()) " more, which need nobody" } (lines(calm)) }
        }
        @if all.len() > shown {
            p.soft { (all.len() - shown) " more are not shown: " code { "quorate slots" } "." }
        }
        @for (name, carriers) in &report.carried { p { (prose(&carriers.sentence(name))) } }
        @for gap in report.records.values().filter_map(|r| r.gap.as_ref()) {
            p { (tag(Level::Warning, "a stream broke")) " " (prose(&gap.because.sentence)) }
        }
        (absent(&report.absent))
    }
}

/// What heartbeats tell of them.
fn by_heartbeat(status: &ClusterStatus) -> Markup {
    let said = status.writer.and_then(|w| status.nodes.get(&w)?.status.as_ref()?.writer.as_ref());
    html! { @match said {
        None => p { "There is no writer whose slots could be told." },
        Some(said) => {
            p { "The writer's node did not answer in time. By its last word: " b { (said.slots.count) }
                " slots, " b { (said.slots.troubled) } " of them need somebody." }
            ul { @for trouble in &said.slots.worst { li { (prose(&trouble.because.sentence)) } } }
        }
    } }
}

fn disk(standing: Option<&DiskStanding>) -> Markup {
    let Some(standing) = standing else { return html! { "The disk of the log is not known." } };
    let (level, word) = match standing.level {
        DiskLevel::Fine => (Level::Good, "room"),
        DiskLevel::Low => (Level::Warning, "short"),
        DiskLevel::Full => (Level::Critical, "writes stop"),
    };
    html! { (tag(level, word)) " The disk of the log: " (standing.because.sentence) }
}

fn table(slots: &[&SlotStanding]) -> Markup {
    html! { table {
        (head(&[
            Text("Slot"), Text("Owner, consumer"), Text("Read"), Figure("Keeps"), Figure("Budget"),
            Explained("Full in", "When it keeps as much as it may, at the pace of the last minutes"),
            Figure("Late"), Text("State"), Text("Next"),
        ]))
        tbody { @for slot in slots { (row(slot)) } }
    } }
}

/// Slots of which there is little to say.
fn lines(slots: &[&SlotStanding]) -> Markup {
    html! { ul { @for standing in slots {
        @let (slot, keeps) = (&standing.slot, bytes(standing.retained));
        li { b { (slot.name) } @match &standing.spec {
            Some(spec) => {
                " " (spec.owner) span.soft { ", " (spec.consumer) }
                ": keeps " (keeps) " of " (bytes(spec.max_bytes))
            }
            None => { ": keeps " (keeps) }
        } }
    } } }
}

fn row(standing: &SlotStanding) -> Markup {
    let (slot, spec) = (&standing.slot, standing.spec.as_ref());
    let level = level(standing.level);
    html! { tr {
        th scope="row" data-label="Slot" {
            (slot.name)
            @if let Some(plugin) = &slot.plugin { span.soft { " " (plugin) } }
        }
        td data-label="Owner, consumer" { @match spec {
            Some(spec) => { (spec.owner) span.soft { ", " (spec.consumer) } }
            None => span.soft { "nobody adopted it" },
        } }
        td data-label="Read" { @if slot.active_pid.is_some() { "now" } @else { "by nobody" } }
        td.n data-label="Keeps" { (bytes(standing.retained)) }
        td.n data-label="Budget" { (or_dash(spec.map(|s| bytes(s.max_bytes)))) }
        td.n data-label="Full in" { (or_dash(standing.budget_ms.map(ms))) }
        td.n data-label="Late" { (or_dash(standing.lag_ms.map(ms))) }
        td data-label="State" { (tag(level, standing.level.as_str())) }
        td data-label="Next" {
            @if standing.next == Next::Nothing { "—" } @else {
                (standing.next.as_str())
                div.evidence { (prose(&standing.because.sentence)) }
            }
        }
    } }
}

/// How much a slot's standing matters.
fn level(standing: Standing) -> Level {
    match standing {
        Standing::Fine => Level::Good,
        Standing::Unknown => Level::Notice,
        Standing::Late | Standing::Near => Level::Warning,
        Standing::Lost | Standing::Over => Level::Critical,
    }
}

fn absent(absent: &BTreeMap<String, SlotSpec>) -> Markup {
    html! { @for (name, spec) in absent {
        p { (plain("not there")) " slot " b { (name) } " of " (spec.owner) ", for " (spec.consumer) }
    } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture::{huge, picture, slots as report};

    #[test]
    fn five_hundred_slots_are_readable() {
        let report = report(500);
        let html = slots(&picture().status, Some(&report)).into_string();
        let (open, folded) = html.split_once("<details").unwrap();
        assert!(open.contains("waits for a person"), "who needs somebody stands open");
        assert!(open.matches("<tr>").count() <= SLOTS_OPEN_MAX + 1);
        assert!(!folded.contains("waits for a person"));
        assert!(folded.contains("440 more are not shown"));
        assert!(html.len() < 60_000, "{}", html.len());
    }

    #[test]
    fn of_many_that_need_somebody_the_worst_stand_open() {
        let report = huge().slots.unwrap();
        let html = slots(&picture().status, Some(&report)).into_string();
        let parts: Vec<&str> = html.split("<details").collect();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0].matches("<tr>").count(), SLOTS_OPEN_MAX + 1);
        assert!(parts[0].contains(">over<") && parts[0].contains(">lost<"), "{}", parts[0]);
        assert!(parts[1].contains("10 more, which need somebody as well"), "{}", parts[1]);
        assert!(parts[2].contains("40 more, which need nobody"), "{}", parts[2]);
        assert!(parts[2].contains("440 more are not shown"), "{}", parts[2]);
    }

    #[test]
    fn a_writer_that_does_not_answer_is_told_by_its_heartbeat() {
        let html = slots(&picture().status, None).into_string();
        assert!(html.contains("did not answer in time"), "{html}");
    }
}
