//! Rules for Prometheus, made from the cluster's own.

use std::fmt::Write as _;

use quorate_core::alert::{RULES, Severity};

/// A file for `rule_files`: one rule for each of the cluster's own, and one for a cluster of which
/// Prometheus hears nothing. What a condition is, and how long it must hold, is decided by the cluster.
pub fn rules() -> String {
    let mut out = String::from(
        "# Made by `quorate metrics rules`. The cluster decides what fires; Prometheus passes it on.\n\
         groups:\n- name: quorate\n  rules:\n",
    );
    for rule in RULES {
        let expr = format!(
            "max by (cluster, subject, severity) (quorate_alert{{rule=\"{}\", silenced=\"false\"}} * \
             on (instance) group_left (cluster) quorate_info) == 1",
            rule.rule
        );
        one(
            &mut out,
            &alert_name(rule.rule.as_str()),
            &expr,
            "0s",
            "{{ $labels.severity }}",
            &[
                (
                    "summary",
                    &format!(
                        "{}{{{{ if $labels.subject }}}} ({{{{ $labels.subject }}}}){{{{ end }}}}",
                        rule.summary
                    ),
                ),
                ("runbook_url", &format!("docs/runbooks/{}.md", rule.rule)),
            ],
        );
    }
    one(
        &mut out,
        "QuorateAbsent",
        "absent(quorate_info)",
        "1m",
        Severity::Critical.as_str(),
        &[
            ("summary", "no node of the cluster answers Prometheus"),
            ("runbook_url", "docs/runbooks/node-down.md"),
        ],
    );
    out
}

/// `lag-over-contract` becomes `QuorateLagOverContract`.
pub(super) fn alert_name(rule: &str) -> String {
    let words = rule.split('-').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    format!("Quorate{}", words.collect::<String>())
}

fn one(
    out: &mut String,
    name: &str,
    expr: &str,
    hold: &str,
    severity: &str,
    annotations: &[(&str, &str)],
) {
    // JSON strings are YAML strings.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let _ = writeln!(out, "  - alert: {name}");
    let _ = writeln!(out, "    expr: {}", quoted(expr));
    let _ = writeln!(out, "    for: {hold}");
    let _ = writeln!(out, "    labels:\n      severity: {}", quoted(severity));
    let _ = writeln!(out, "    annotations:");
    for (name, text) in annotations {
        let _ = writeln!(out, "      {name}: {}", quoted(text));
    }
}
