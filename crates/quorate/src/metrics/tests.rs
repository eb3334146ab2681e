use std::collections::{BTreeMap, BTreeSet};

use quorate_agent::alerts::Told;
use quorate_core::alert::{Alert, Key, RULES, Rule, Severity};
use quorate_core::slots::{Disk, DiskStanding};
use quorate_core::status::Lag;
use serde_json::json;

use super::*;
use crate::fixture::{good, node};

fn snapshot() -> Snapshot {
    let mut status = good();
    let n2 = status.nodes.get_mut(&node("n2")).unwrap();
    n2.lag =
        Some(Lag { replay_ms: 2345, disk_ms: 5, bytes: 77, broken_ms: Some(9), ..Lag::default() });
    n2.status.as_mut().unwrap().disk =
        Some(DiskStanding { disk: Disk { free: 10, total: 100 }, ..DiskStanding::default() });
    n2.status.as_mut().unwrap().vitals.certificate_until = Some(1_795_226_096_789);
    n2.status.as_mut().unwrap().disk_ms = Some(3);
    let key = Key { rule: Rule::LagOverContract, subject: "n2".to_owned() };
    let alert = Alert { key, severity: Severity::Warning, since: 1, sentence: "late".to_owned() };
    status.alerts.push(Told { stage: Stage::Firing, alert, silence: None });
    let mut account = AccountMetrics {
        database: "shop \"eu\"".to_owned(),
        user: "app".to_owned(),
        ..AccountMetrics::default()
    };
    for counter in ["transactions", "on_replicas"] {
        account.counters.insert(counter, 5);
    }
    account.to_writer.insert("writes", 3);
    account.pools.insert(
        node("n1"),
        quorate_gateway::PoolMetrics { idle: 2, open: 5, waiting: 1, ..Default::default() },
    );
    let gateway = Metrics { clients: 7, accounts: vec![account] };
    Snapshot { status, gateway, events: 42, process: process() }
}

#[test]
fn what_prometheus_reads() {
    let text = exposition(snapshot()).unwrap();
    for line in [
        "quorate_writer_serving 1.0",
        "quorate_node_writer{node=\"n1\"} 1.0",
        "quorate_node_writer{node=\"n2\"} 0.0",
        "quorate_lag_seconds{node=\"n2\",stage=\"replay\"} 2.345",
        "quorate_lag_bytes{node=\"n2\"} 77.0",
        "quorate_contract_broken{node=\"n2\"} 1.0",
        "quorate_contract_lag_seconds{node=\"n2\"} 10.0",
        "quorate_disk_free_bytes{node=\"n2\"} 10.0",
        "quorate_events_total 42.0",
        "quorate_alert{rule=\"lag-over-contract\",subject=\"n2\",severity=\"warning\",silenced=\"false\"} 1.0",
        "quorate_gateway_transactions_total{database=\"shop \\\"eu\\\"\",user=\"app\"} 5",
        "quorate_gateway_connections{database=\"shop \\\"eu\\\"\",user=\"app\",server=\"n1\",state=\"busy\"} 3.0",
        "# TYPE quorate_gateway_transaction_seconds histogram",
        "# EOF",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

/// Names of metrics in an expression.
fn names(expr: &str) -> impl Iterator<Item = &str> {
    expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("quorate_") || word.starts_with("process_"))
}

#[test]
fn rules_and_dashboard_speak_of_what_there_is() {
    let text = exposition(snapshot()).unwrap();
    let there: BTreeSet<&str> =
        text.lines().filter_map(|l| l.split(['{', ' ']).next()).filter(|n| *n != "#").collect();
    for expr in dashboard::expressions() {
        for name in names(expr) {
            assert!(there.contains(name), "{name} in {expr}");
        }
    }
    let rules = rules();
    for rule in RULES {
        assert!(rules.contains(&format!("alert: {}\n", rules::alert_name(rule.rule.as_str()))));
    }
    assert_eq!(rules.matches("- alert:").count(), RULES.len() + 1);
    for name in names(&rules) {
        assert!(there.contains(name), "{name}");
    }
}

/// Labels of each metric, as it is told.
fn labels(text: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, rest) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), ""));
        let list = rest.split('}').next().unwrap();
        let of = list.split("\",").filter_map(|l| Some(l.split_once("=\"")?.0));
        labels.entry(name).or_default().extend(of);
    }
    labels
}

#[test]
fn expressions_ask_for_labels_that_there_are() {
    let text = exposition(snapshot()).unwrap();
    let labels = labels(&text);
    for expr in dashboard::expressions() {
        let of: BTreeSet<&str> =
            names(expr).flat_map(|name| &labels[name]).copied().chain(["instance"]).collect();
        let by = expr.split(" by (").skip(1).flat_map(|r| r.split(')').next().unwrap().split(", "));
        let matched = expr.split('{').skip(1).map(|r| r.split('=').next().unwrap());
        for label in by.chain(matched) {
            assert!(of.contains(label), "{label} in {expr}: {of:?}");
        }
    }
}

/// Has Prometheus' own parser read every rule and every expression, where `QUORATE_PROMTOOL` names its
/// program (`cargo xtask metrics`).
#[test]
fn prometheus_reads_rules_and_dashboard() {
    let Some(promtool) = std::env::var_os("QUORATE_PROMTOOL") else { return };
    let check = |name: &str, text: &str| {
        let file = std::env::temp_dir().join(format!("quorate-{}-{name}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let mut command = std::process::Command::new(&promtool);
        let output = command.args(["check", "rules"]).arg(&file).output().unwrap();
        std::fs::remove_file(&file).unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said.into_owned())
    };
    let (good, said) = check("rules.yml", &rules());
    assert!(good && said.contains(&format!("{} rules found", RULES.len() + 1)), "{said}");
    let record =
        |(i, expr): (usize, &str)| json!({ "record": format!("expression_{i}"), "expr": expr });
    let rules: Vec<_> = dashboard::expressions().enumerate().map(record).collect();
    let group = |rules| json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    // JSON is YAML.
    let (good, said) = check("dashboard.yml", &group(json!(rules)));
    assert!(good && said.contains(&format!("{} rules found", rules.len())), "{said}");
    let broken = json!([{ "record": "broken", "expr": "max by (node) (" }]);
    assert!(!check("broken.yml", &group(broken)).0, "what is broken is seen");
}

#[test]
fn every_alert_has_a_runbook_and_stands_in_the_guide() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let guide = std::fs::read_to_string(docs.join("alerts.md")).unwrap();
    let mut pages: BTreeSet<String> = std::fs::read_dir(docs.join("runbooks"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    for rule in RULES {
        let page = format!("{}.md", rule.rule);
        assert!(pages.remove(&page), "docs/runbooks/{page} is missing");
        let row = format!("| [{}](runbooks/{page}) |", rule.rule);
        let row = guide.lines().find(|l| l.starts_with(&row)).expect("a row of the guide");
        assert!(row.contains(rule.summary), "{row}");
    }
    assert!(pages.is_empty(), "runbooks of no alert: {pages:?}");
}

#[test]
fn buckets_hold_everything_once() {
    let latency = Latency::default();
    assert!(buckets(&latency).iter().all(|(_, n)| *n == 0));
    assert_eq!(buckets(&latency).len(), LATENCY_POWERS.count() + 1);
}
