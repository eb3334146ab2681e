//! A plan as text.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use quorate_core::document::{Document, Timing};
use quorate_core::gateway::{Consistency, Gateway, PoolSpec};
use quorate_core::plan::{Plan, Purpose, time_words};

use super::super::show;
use super::text::{capital, section};

/// The whole plan.
pub fn picture(plan: &Plan) -> String {
    let mut out = format!("{}\n\n", summary(plan));
    out += &show::table(&rows(plan));
    out += &section("Reads", std::slice::from_ref(&plan.reads.because));
    let mut commits = vec![plan.commits.because.clone()];
    commits.extend(plan.commits.costs.iter().map(|c| c.because.clone()));
    commits.push(plan.commits.writes_because.clone());
    out += &section("Commits", &commits);
    out += &section("Votes", std::slice::from_ref(&plan.votes.because));
    let mut recovery = vec![plan.recovery.election.clone()];
    recovery.extend(plan.recovery.faults.iter().map(|r| {
        let (fault, time) = (capital(&r.fault), time_words(r.at_most));
        format!("{fault}: writes are away for up to {time}. {}", r.because)
    }));
    out += &section("Recovery", &recovery);
    out += &section("This choice cannot promise", &plan.cannot);
    out += &section("Assumed, because it was not given", &plan.assumed);
    let _ = write!(out, "\nCluster document\n{}", document(&plan.document));
    out
}

fn summary(plan: &Plan) -> String {
    let mut counts: BTreeMap<Purpose, usize> = BTreeMap::new();
    for node in &plan.nodes {
        *counts.entry(node.purpose).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(p, n)| format!("{n} {p}")).collect();
    let rule = match plan.commits.timing {
        Timing::Quorum => format!("quorum, {} copies", plan.commits.copies),
        Timing::Sync => format!("sync, {} copies", plan.commits.copies),
        Timing::SemiSync => "semi_sync".to_owned(),
        Timing::Async => "async".to_owned(),
    };
    let added = plan.commits.costs.first().map_or_else(String::new, |c| time_words(c.added));
    let nodes = plan.nodes.len();
    let counts = counts.join(", ");
    format!("{nodes} nodes ({counts}) · {rule} · {added} added to a commit")
}

fn rows(plan: &Plan) -> Vec<Vec<String>> {
    let head = ["NODE", "ROLE", "REGION", "ZONE", "FOR"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (at, node) in plan.nodes.iter().enumerate() {
        let what = match node.purpose {
            Purpose::Ha if at == 0 => "writes first",
            Purpose::Ha => "a copy that counts, may write, answers reads",
            Purpose::Read => "answers reads",
            Purpose::Reporting => "answers reports",
            Purpose::Dr => "a copy for a disaster",
            Purpose::Witness => "votes, holds no data",
        };
        let name = node.name.to_string();
        let (region, zone) = (node.region.clone(), node.zone.clone());
        rows.push(vec![name, node.purpose.to_string(), region, zone, what.to_owned()]);
    }
    rows
}

/// What differs from a document that says nothing.
fn document(document: &Document) -> String {
    let default = Document::default();
    let mut out = String::new();
    let mut line = |text: String| {
        let _ = writeln!(out, "  {text}");
    };
    line(format!("timing = \"{}\"", snake(&document.timing)));
    if matches!(document.timing, Timing::Quorum | Timing::Sync) {
        line(format!("copies = {}", document.copies));
    }
    if let Some(least) = document.min_copies {
        line(format!("min_copies = {least}"));
    }
    if !document.sync_nodes.is_empty() {
        let names: Vec<String> = document.sync_nodes.iter().map(|n| format!("\"{n}\"")).collect();
        line(format!("sync_nodes = [{}]", names.join(", ")));
    }
    if document.max_lag_on_failover != default.max_lag_on_failover {
        line(format!("max_lag_on_failover = {}", document.max_lag_on_failover));
    }
    for (name, node) in &document.nodes {
        line(String::new());
        line(format!("[nodes.{name}]"));
        line(format!("role = \"{}\"", snake(&node.role)));
    }
    gateway(&document.gateway, &mut line);
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

fn gateway(gateway: &Gateway, line: &mut dyn FnMut(String)) {
    let default = Gateway::default();
    let head = |line: &mut dyn FnMut(String), name: &str| {
        line(String::new());
        line(name.to_owned());
    };
    if gateway.consistency != default.consistency {
        head(line, "[gateway]");
        line(format!("consistency = \"{}\"", snake(&gateway.consistency)));
        if gateway.consistency == Consistency::Bounded {
            line(format!("max_staleness_ms = {}", gateway.max_staleness_ms));
        }
        if gateway.max_lag_ms != default.max_lag_ms {
            line(format!("max_lag_ms = {}", gateway.max_lag_ms));
        }
    }
    if gateway.pool.size != PoolSpec::default().size {
        head(line, "[gateway.pool]");
        line(format!("size = {}", gateway.pool.size));
    }
    for rule in &gateway.pools {
        head(line, "[[gateway.pools]]");
        let text = toml::to_string(rule).unwrap_or_default();
        text.lines().for_each(|l| line(l.to_owned()));
    }
}

/// A word of the document as it is written there.
fn snake<T: serde::Serialize>(word: &T) -> String {
    let value = serde_json::to_value(word).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use quorate_core::plan::{Domain, Loss, Reads, Request, plan};

    use super::super::text::WIDTH;
    use super::*;

    fn requests() -> Vec<Request> {
        let names = |names: &str| names.split(',').map(str::to_owned).collect();
        vec![
            Request::default(),
            Request { survive: Some(Domain::Zone), losses: Some(1), ..Request::default() },
            Request {
                regions: names("eu,us,ap"),
                survive: Some(Domain::Region),
                kind: Some(Reads::Stale(Duration::from_secs(60))),
                reads: Some(15_000),
                ..Request::default()
            },
            Request {
                regions: names("eu,us"),
                must_hold: Some("us".to_owned()),
                writes: Some(5000),
                ..Request::default()
            },
            Request {
                loss: Some(Loss::Bytes(1 << 24)),
                kind: Some(Reads::Reporting),
                ..Request::default()
            },
        ]
    }

    /// What is printed is the document: nothing that differs from the defaults is left out.
    #[test]
    fn the_printed_document_is_the_plans() {
        for request in requests() {
            let plan = plan(&request).unwrap();
            assert_eq!(plan.document.validate(), []);
            let text = document(&plan.document);
            let read: Document = toml::from_str(&text).unwrap();
            assert_eq!(read, plan.document, "{text}");
        }
    }

    #[test]
    fn a_plan_fits_a_terminal() {
        for request in requests() {
            let text = picture(&plan(&request).unwrap());
            let wide = text.lines().find(|l| l.chars().count() > WIDTH);
            assert_eq!(wide, None);
        }
    }
}
