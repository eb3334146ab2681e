//! Tables.

use super::results::{Results, Sample, Spread};
use super::rig::Via;
use crate::table::markdown;

const MIB: f64 = 1024.0 * 1024.0;
const NONE: &str = "–";

/// All tables of what was measured.
pub(crate) fn all(results: &Results) -> String {
    let mut cases: Vec<&str> = Vec::new();
    for sample in &results.samples {
        if !cases.contains(&sample.case.as_str()) {
            cases.push(&sample.case);
        }
    }
    let tables = cases.iter().map(|case| self::case(results, case));
    let mut text: String = tables.collect::<Vec<_>>().join("\n");
    text += &idle(results);
    text += &bulk(results);
    text
}

/// The ways that a case was measured through, in the order of the first round.
fn labels<'a>(results: &'a Results, case: &str) -> Vec<&'a str> {
    let first = results.samples.iter().filter(|s| s.case == case && s.round == 0);
    first.map(|s| s.label.as_str()).collect()
}

fn case(results: &Results, case: &str) -> String {
    let unit = results.samples.iter().find(|s| s.case == case).map_or("", |s| s.unit.as_str());
    let labels = labels(results, case);
    let rows: Vec<_> = labels.iter().map(|label| row(results, case, label)).collect();
    let head = [
        "via",
        "per second",
        "÷direct",
        "÷PgBouncer",
        "latency µs",
        "proxy CPU µs",
        "÷PgBouncer",
        "PostgreSQL CPU µs",
        "client CPU µs",
        "whole machine µs",
        "÷PgBouncer",
        "failed",
        "others' CPU",
        "load",
    ];
    let table = markdown(&head, &rows);
    format!("**{case}** (figures per {unit})\n\n{table}{}", both(results, case))
}

fn row(results: &Results, case: &str, label: &str) -> Vec<String> {
    let tps = |s: &Sample| Some(s.outcome.tps);
    let proxy = |s: &Sample| results.proxy(s);
    let whole = |s: &Sample| Some(results.machine(s));
    let median = |figure: &dyn Fn(&Sample) -> Option<f64>| results.median(case, label, figure);
    let ratio = |to: &str, figure: &dyn Fn(&Sample) -> Option<f64>| {
        let (ours, theirs) = (median(figure), results.median(case, to, figure));
        ours.zip(theirs).map_or(NONE.to_owned(), |(a, b)| format!("{:.2}", a / b))
    };
    let number = |value: Option<f64>, digits: usize| {
        value.map_or(NONE.to_owned(), |value| format!("{value:.digits$}"))
    };
    let others = results.spread(case, label, |s| Some(s.spent.others * 100.0));
    vec![
        label.to_owned(),
        spread(results.spread(case, label, tps), 0),
        ratio("direct", &tps),
        ratio("PgBouncer", &tps),
        number(median(&|s| Some(s.outcome.latency)), 0),
        spread(results.spread(case, label, proxy), 1),
        ratio("PgBouncer", &proxy),
        number(median(&|s| Some(s.per(s.spent.postgres))), 1),
        number(median(&|s| Some(s.per(s.spent.client))), 1),
        number(median(&whole), 1),
        ratio("PgBouncer", &whole),
        failures(results, case, label),
        format!("{} %", spread(others, 0)),
        number(median(&|s| Some(s.spent.load)), 1),
    ]
}

/// Failed transactions of all rounds, and the first complaint.
fn failures(results: &Results, case: &str, label: &str) -> String {
    let failed: u64 = results.of(case, label).map(|s| s.outcome.failed).sum();
    let troubled = results.of(case, label).filter(|s| s.outcome.trouble.is_some());
    let complaints: Vec<_> = troubled.filter_map(|s| s.outcome.trouble.as_deref()).collect();
    match complaints.first() {
        Some(first) => format!("{failed}, {} runs with errors: {first}", complaints.len()),
        None => failed.to_string(),
    }
}

/// Both ways to count Quorate's processor time.
fn both(results: &Results, case: &str) -> String {
    let mut text = String::new();
    for label in labels(results, case) {
        let ours = |s: &Sample| (s.via == Via::Quorate).then(|| results.whole(s));
        let Some(whole) = results.spread(case, label, ours) else { continue };
        let threads = results.spread(case, label, |s| s.spent.gateway.map(|g| s.per(g)));
        let threads = threads.map_or("no threads named so".to_owned(), |t| spread(Some(t), 1));
        text += &format!(
            "\n{label}: whole process without its background {}; gateway threads: {threads}.\n",
            spread(Some(whole), 1)
        );
    }
    text
}

fn idle(results: &Results) -> String {
    if results.idle.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = results
        .idle
        .iter()
        .map(|idle| {
            let each = idle.after.saturating_sub(idle.before) as f64 / idle.opened.max(1) as f64;
            vec![
                idle.label.clone(),
                format!("{} of {}", idle.opened, idle.wanted),
                mib(idle.before),
                mib(idle.after),
                mib(idle.left),
                format!("{:.2} KiB", each / 1024.0),
                format!("{:.0}/s", idle.opened as f64 / idle.seconds),
                format!("{:.3} ms", idle.proxy_cpu * 1000.0 / idle.opened.max(1) as f64),
                idle.trouble.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head = [
        "via",
        "clients",
        "before",
        "with them",
        "after",
        "each",
        "logins",
        "proxy CPU of a login",
        "why not more",
    ];
    format!("\n**idle-clients** (resident memory of the proxy)\n\n{}", markdown(&head, &rows))
}

fn bulk(results: &Results) -> String {
    if results.bulk.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = results
        .bulk
        .iter()
        .map(|bulk| {
            let gigabytes = bulk.bytes as f64 / 1e9;
            let cpu = bulk.proxy_cpu.map(|cpu| format!("{:.2} s", cpu / gigabytes));
            vec![
                bulk.name.clone(),
                bulk.label.clone(),
                format!("{gigabytes:.0} GB"),
                format!("{:.0} MB/s", gigabytes * 1000.0 / bulk.seconds),
                cpu.unwrap_or(NONE.to_owned()),
                bulk.extra.map_or(NONE.to_owned(), mib),
                bulk.trouble.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let head =
        ["transfer", "via", "size", "speed", "proxy CPU per GB", "memory above start", "error"];
    format!("\n**transfers**\n\n{}", markdown(&head, &rows))
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB)
}

fn spread(spread: Option<Spread>, digits: usize) -> String {
    let Some(Spread { median, min, max }) = spread else { return NONE.to_owned() };
    format!("{median:.digits$} [{min:.digits$}–{max:.digits$}]")
}
