//! What happened, and what was rehearsed.

use maud::{Markup, html};
use quorate_core::drill::{Millis, Outcome, Record, Running};
use quorate_core::state::Event;

use super::limits::{DRILLS_OPEN_MAX, EVENTS_OPEN_MAX};
use super::parts::Head::{Figure, Text};
use super::parts::{head, moment, plain, prose, tag, time_of, wide};
use super::verdict::Level;

/// Events, newest first.
pub fn events(events: &[Event]) -> Markup {
    // A day is said once.
    let mut before = None;
    let mut lines = events.iter().map(|event| {
        let day = event.at / DAY_MS;
        line(event, before.replace(day) != Some(day))
    });
    let open: Vec<Markup> = lines.by_ref().take(EVENTS_OPEN_MAX).collect();
    let folded: Vec<Markup> = lines.collect();
    html! {
        @if events.is_empty() { p { "Nothing happened yet." } }
        ol.timeline { @for line in open { (line) } }
        @if !folded.is_empty() {
            details #events-earlier { summary { (folded.len()) " earlier" }
                ol.timeline { @for line in folded { (line) } } }
        }
        p.soft { "Times are UTC; small behind each is the rule that decided. All that is kept: " a href="/api/events" { "/api/events" }
            ", or " code { "quorate events" } "." }
    }
}

const DAY_MS: u64 = 86_400_000;

fn line(event: &Event, with_day: bool) -> Markup {
    html! {
        li class=(weight(&event.kind)) {
            @if with_day { (moment(event.at)) } @else { (time_of(event.at)) } " " b { (event.kind) } " "
            span.soft { "term " (event.term) } " "
            span { (prose(&event.because.sentence)) } " "
            span.rule { (event.because.rule) }
        }
    }
}

/// How heavy an event's mark is drawn.
fn weight(kind: &str) -> &'static str {
    match kind {
        "election" | "loss-allowed" | "forced-epoch" | "switchover-dropped" => "warning",
        "opened" | "resumed" => "good",
        "granted" | "switchover" | "paused" | "operator" => "notice",
        _ => "",
    }
}

/// Drills done, and the one under way.
pub fn drills(running: Option<&Running>, drills: &[Record]) -> Markup {
    let (open, folded) = drills.split_at(drills.len().min(DRILLS_OPEN_MAX));
    html! {
        @if let Some(drill) = running {
            p {
                (tag(Level::Notice, "under way")) " " b { (drill.drill) } " (number " (drill.id)
                "), by " (drill.conductor) ", over by " (moment(drill.until)) " in any case."
            }
        }
        @if drills.is_empty() {
            p { "No drill was ever done here. What a failure costs is known when it was rehearsed." }
        } @else { (wide("Drills", &table(open))) }
        @if !folded.is_empty() {
            details #drills-earlier { summary { (folded.len()) " earlier" }
                (wide("Earlier drills", &table(folded))) }
        }
    }
}

fn table(drills: &[Record]) -> Markup {
    html! { table {
        (head(&[
            Figure("Number"), Text("Drill"), Text("When"), Text("Result"), Figure("Writes lost"),
            Figure("Longest pause"), Figure("Errors"), Text("Report"),
        ]))
        tbody { @for record in drills {
            @let m = &record.measures;
            tr {
                td.n data-label="Number" { (record.id) }
                th scope="row" data-label="Drill" { (record.drill) }
                td data-label="When" { (moment(record.at)) }
                td data-label="Result" { (outcome(record.outcome))
                    @if record.outcome != Outcome::Passed { div.evidence { (record.sentence) } } }
                td.n data-label="Writes lost" { (m.lost) }
                td.n data-label="Longest pause" { (Millis(m.write_gap_ms)) }
                td.n data-label="Errors" { (m.refused + m.unknown + m.logins_failed) }
                td data-label="Report" {
                    a href={ "/page/drill?id=" (record.id) }
                        aria-label={ "Report of drill " (record.id) } { "report" }
                }
            }
        } }
    } }
}

fn outcome(outcome: Outcome) -> Markup {
    match outcome {
        Outcome::Passed => tag(Level::Good, "passed"),
        Outcome::Failed => tag(Level::Critical, "failed"),
        Outcome::Aborted => plain("aborted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture::picture;

    #[test]
    fn a_day_is_said_once() {
        let mut all = picture().events;
        all.truncate(3);
        all[2].at = all[1].at - 2 * DAY_MS;
        let html = events(&all).into_string();
        assert_eq!(html.matches("class=\"day\"").count(), 2, "{html}");
        assert_eq!(html.matches("<time").count(), 3);
    }
}
