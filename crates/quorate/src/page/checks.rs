//! Alerts, and the checklist of the review.

use maud::{Markup, html};
use quorate_agent::alerts::{Stage, Told};
use quorate_core::alert::Severity;

use super::parts::Head::Text;
use super::parts::{head, moment, plain, prose, tag, wide};
use super::verdict::Level;
use crate::review::{Item, Verdict};

/// How much an alert of this severity matters.
pub fn level(severity: Severity) -> Level {
    match severity {
        Severity::Info => Level::Notice,
        Severity::Warning => Level::Warning,
        Severity::Critical => Level::Critical,
    }
}

/// What fires, what is silenced, what is about to fire.
pub fn alerts(alerts: &[Told]) -> Markup {
    if alerts.is_empty() {
        return html! { p { (tag(Level::Good, "quiet")) " No alert fires." } };
    }
    let table = html! { table {
        (head(&[
            Text("Alert"), Text("Stands"), Text("Since"), Text("What is wrong"),
        ]))
        tbody { @for told in alerts { (alert(told)) } }
    } };
    wide("Alerts", &table)
}

fn alert(told: &Told) -> Markup {
    let alert = &told.alert;
    html! { tr {
        th scope="row" data-label="Alert" { (alert.key.rule)
            @if !alert.key.subject.is_empty() { span.soft { " " (alert.key.subject) } } }
        td data-label="Stands" { @match told.stage {
            Stage::Firing => (tag(level(alert.severity), alert.severity.as_str())),
            Stage::Silenced => (plain("silenced")),
            Stage::Pending => (plain("pending")),
        } }
        td data-label="Since" {
            @if told.stage == Stage::Pending { "just now" } @else { (moment(alert.since)) }
        }
        td data-label="What is wrong" { (prose(&alert.sentence))
            @if let Some(silence) = &told.silence {
                div.evidence { "silent until " (moment(silence.until)) ": " (silence.because) }
            }
        }
    } }
}

/// The checklist: what is refuted stands open, what is unknown or proved unfolds.
pub fn review(items: &[Item]) -> Markup {
    if items.is_empty() {
        let text = "The checklist could not be gone through in time: try ";
        return html! { p { (text) code { "quorate review" } } };
    }
    let of = |verdict| items.iter().filter(move |i| i.verdict == verdict);
    let count = |verdict| of(verdict).count();
    let (refuted, unknown, proved) =
        (count(Verdict::Refuted), count(Verdict::Unknown), count(Verdict::Proved));
    html! {
        p { b { (proved) } " proved, " b { (refuted) } " refuted, " b { (unknown) } " unknown." }
        @if refuted > 0 { (wide("Refuted", &table(of(Verdict::Refuted)))) }
        @if unknown > 0 {
            details #review-unknown {
                summary { "What is unknown" } (wide("Unknown", &table(of(Verdict::Unknown))))
            }
        }
        @if proved > 0 {
            details #review-proved {
                summary { "What is proved" } (wide("Proved", &table(of(Verdict::Proved))))
            }
        }
    }
}

fn table<'a>(items: impl Iterator<Item = &'a Item>) -> Markup {
    html! { table {
        (head(&[
            Text("Should be"), Text("Is it"), Text("What shows it"),
        ]))
        tbody { @for item in items { tr {
            th scope="row" data-label="Should be" title=(item.id) { (item.title) }
            td data-label="Is it" { @match item.verdict {
                Verdict::Proved => (tag(Level::Good, "proved")),
                Verdict::Refuted => (tag(Level::Warning, "refuted")),
                Verdict::Unknown => (plain("unknown")),
            } }
            td data-label="What shows it" { (prose(&item.evidence))
                @if !item.todo.is_empty() { div.evidence { "To do: " (prose(&item.todo)) } } }
        } } }
    } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture::{review as items, troubled};

    #[test]
    fn alerts_say_where_they_stand() {
        let html = alerts(&troubled().status.alerts).into_string();
        for words in ["lag-over-contract", "critical", "silenced", "the rack is being moved"] {
            assert!(html.contains(words), "{words}: {html}");
        }
        assert!(alerts(&[]).into_string().contains("No alert fires"));
    }

    #[test]
    fn what_is_refuted_stands_first_and_open() {
        let html = review(&items()).into_string();
        assert!(html.contains("<b>1</b> refuted"), "{html}");
        let (open, folded) = html.split_once("<details").unwrap();
        assert!(open.contains("tag warning") && !open.contains("tag good"));
        assert!(folded.contains("tag good") && !folded.contains("tag warning"));
    }
}
