//! A drill's report as a page of its own: no request to anybody, light and dark, on paper too.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use quorate_core::drill::{Measures, Millis};

use super::{COLUMN, Column, Line, Report};
use quorate_core::words::bytes;

use crate::cli::show::clock;

/// The picture's size in its own units.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
/// Room below the picture for the time, and above it for labels.
const FOOT: f64 = 24.0;
const HEAD: f64 = 64.0;
/// Labels are written in so many rows by turns.
const LABEL_ROWS: usize = 4;
/// Bars that the picture has room for.
const BARS_MAX: usize = 480;

const STYLE: &str = concat!(
    include_str!("../page/palette.css"),
    "
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; line-height: 1.2 }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem }
p { margin: .4rem 0 } .soft { color: var(--soft) }
.word { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; font-weight: 600;
  border: 1.5px solid currentColor; font-size: 1rem; margin-right: .5rem }
a { color: var(--bar) } .passed { color: var(--good) } .failed { color: var(--bad) } .aborted { color: var(--wait) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 }
.figure { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .7rem .9rem }
.figure b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; line-height: 1.3 }
.figure span { color: var(--soft); font-size: .87rem }
.scroll { overflow-x: auto } svg { display: block; width: 100%; min-width: 40rem; height: auto }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top;
  padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 500; font-size: .87rem }
td.time { font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--soft) }
td.held { font-weight: 600; white-space: nowrap }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  overflow-x: auto; margin: .5rem 0; font: 14px/1.5 ui-monospace, monospace }
footer { margin-top: 3rem; color: var(--soft); font-size: .87rem }
"
);

/// The page; with a way back where it is served, and none where it is kept as a file.
pub fn page(report: &Report, back: Option<&str>) -> String {
    let record = &report.record;
    let word = record.outcome.word();
    let title = format!("Drill {}: {word}", record.drill);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                @if let Some(back) = back { p { a href=(back) { "← the cluster" } } }
                h1 { span class={ "word " (word) } { (word) } "Drill " (record.drill) }
                p { (report.intent) }
                p.soft {
                    "Cluster " (report.cluster) ", " (clock(record.at)) ", " (record.seconds)
                    " s in all. " (record.writer) " wrote; " (record.conductor)
                    " conducted. Drill number " (record.id) "."
                }
                div.figures { @for (value, what) in figures(&record.measures) {
                    div.figure { b { (value) } span { (what) } }
                } }
                h2 { "What clients saw" }
                div.scroll { (picture(report)) }
                h2 { "What was checked" }
                div.scroll { table {
                    tr { th { "" } th { "What must be so" } th { "What was seen" } }
                    @for check in &record.checks { tr {
                        td class={ "held " (if check.held { "passed" } else { "failed" }) } {
                            (if check.held { "✓ yes" } else { "✗ no" })
                        }
                        td { (check.claim) } td { (check.seen) }
                    } }
                } }
                h2 { "What was to be done" }
                pre { (report.steps.join("\n")) }
                h2 { "What was done and seen" }
                div.scroll { table { @for line in &report.course { tr {
                    td.time { (seconds(line.ms)) } td { (line.text) }
                } } } }
                h2 { "The cluster's own history of it" }
                div.scroll { table {
                    tr { th { "Time" } th { "Term" } th { "What" } th { "Why" } }
                    @for event in &report.events { tr {
                        td.time { (clock(event.at)) } td { (event.term) } td { (event.kind) }
                        td { (event.because) }
                    } }
                } }
                footer {
                    "Made by Quorate " (env!("CARGO_PKG_VERSION")) ". Times of the picture and of the course \
                    are seconds since the drill's clients began."
                }
            }
        }
    }
    .into_string()
}

/// The figures that people ask for first.
fn figures(m: &Measures) -> Vec<(String, &'static str)> {
    let time = |ms: Option<u64>| ms.map(|ms| Millis(ms).to_string());
    let mut figures = vec![
        (m.lost.to_string(), "acknowledged writes lost (RPO)"),
        (Millis(m.write_gap_ms).to_string(), "longest pause of writes (RTO)"),
    ];
    let timed = [
        (time(m.detection_ms), "until the election began"),
        (time(m.decision_ms), "until the next writer was named"),
        (time(m.promotion_ms), "until it had opened"),
        (time(m.first_write_ms), "until a new write was acknowledged"),
        (time(m.whole_ms), "until all was as before"),
    ];
    figures.extend(timed.into_iter().filter_map(|(value, what)| Some((value?, what))));
    figures.push((m.acknowledged.to_string(), "writes acknowledged"));
    figures.push((
        format!("{} / {}", m.refused, m.unknown),
        "statements refused / of unknown outcome",
    ));
    figures.extend(m.lag_bytes.map(|b| (bytes(b), "furthest that a standby was behind")));
    figures.extend(m.kept_bytes.map(|b| (bytes(b), "log that the slot kept")));
    figures
}

/// Writes and errors over time, with the steps above them.
fn picture(report: &Report) -> Markup {
    let columns = merged(&report.rate);
    let top = columns.iter().map(|c| c.written.max(c.errors)).max().unwrap_or(0).max(1);
    let total_ms = (report.rate.len() as f64 * COLUMN.as_millis() as f64).max(1.0);
    let width = WIDTH / columns.len().max(1) as f64;
    let floor = HEAD + HEIGHT;
    let tall = |n: u32| f64::from(n) / f64::from(top) * HEIGHT;
    let x = |ms: u64| (ms as f64 / total_ms * WIDTH).min(WIDTH);
    let marks: Vec<&Line> = report.course.iter().filter(|l| l.marked).collect();
    let step = tick(total_ms);
    let ticks = (0..).map(|i| i * step).take_while(|ms| (*ms as f64) < total_ms);
    let per_second = 1000.0 / (total_ms / columns.len().max(1) as f64);
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {}", floor + FOOT)) role="img"
            aria-label="Acknowledged writes and errors over time" {
            @for (i, column) in columns.iter().enumerate() {
                @let left = i as f64 * width;
                @if column.written > 0 {
                    rect x=(px(left)) y=(px(floor - tall(column.written))) width=(px(width * 0.86))
                        height=(px(tall(column.written))) fill="var(--bar)" {}
                }
                @if column.errors > 0 {
                    rect x=(px(left)) y=(px(floor - tall(column.errors).max(3.0)))
                        width=(px(width.max(2.0))) height=(px(tall(column.errors).max(3.0)))
                        fill="var(--bad)" {}
                }
            }
            line x1="0" y1=(px(floor)) x2=(px(WIDTH)) y2=(px(floor)) stroke="var(--line)" {}
            @for ms in ticks {
                text x=(px(x(ms))) y=(px(floor + 16.0)) { (ms / 1000) " s" }
            }
            @for (i, mark) in marks.iter().enumerate() {
                @let row = (i % LABEL_ROWS) as f64 * 15.0 + 11.0;
                @let end = x(mark.ms) > WIDTH * 0.75;
                line x1=(px(x(mark.ms))) y1=(px(row + 3.0)) x2=(px(x(mark.ms))) y2=(px(floor))
                    stroke="var(--mark)" stroke-dasharray="3 3" {}
                text x=(px(x(mark.ms) + if end { -4.0 } else { 4.0 })) y=(px(row))
                    text-anchor=(if end { "end" } else { "start" }) { (mark.text) }
            }
        }
        p.soft {
            "Blue: writes acknowledged by all clients together; the highest bar is "
            (format!("{:.0}", f64::from(top) * per_second)) " per second. Red: statements and logins \
            that were told an error."
        }
    }
}

/// Few enough columns for the picture.
fn merged(columns: &[Column]) -> Vec<Column> {
    let each = columns.len().div_ceil(BARS_MAX).max(1);
    let sum = |columns: &[Column]| {
        columns.iter().fold(Column::default(), |sum, c| Column {
            written: sum.written + c.written,
            errors: sum.errors + c.errors,
        })
    };
    columns.chunks(each).map(sum).collect()
}

/// Milliseconds between two times written below the picture.
fn tick(total_ms: f64) -> u64 {
    let steps = [1_000, 2_000, 5_000, 10_000, 20_000, 60_000];
    steps.into_iter().find(|s| total_ms / *s as f64 <= 12.0).unwrap_or(300_000)
}

fn px(value: f64) -> String {
    format!("{value:.1}")
}

fn seconds(ms: u64) -> String {
    format!("{}.{:01} s", ms / 1000, ms % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_drill_is_drawn_in_fewer_bars() {
        let columns = vec![Column { written: 1, errors: 0 }; 1000];
        let merged = merged(&columns);
        assert!(merged.len() <= BARS_MAX);
        assert_eq!(merged.iter().map(|c| c.written).sum::<u32>(), 1000);
    }
}
