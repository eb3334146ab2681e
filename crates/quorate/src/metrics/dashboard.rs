//! A dashboard for Grafana.

use serde_json::{Value, json};

/// A picture on the dashboard: its title, Grafana's unit, and what is drawn under which name.
struct Panel {
    title: &'static str,
    unit: &'static str,
    /// Whether single numbers are shown instead of lines.
    stat: bool,
    queries: &'static [(&'static str, &'static str)],
}

const fn lines(
    title: &'static str,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, unit, stat: false, queries }
}

const fn stat(
    title: &'static str,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
) -> Panel {
    Panel { title, unit, stat: true, queries }
}

/// Every node tells the whole cluster: `max by` takes what any of them sees.
const PANELS: &[Panel] = &[
    stat("Writer", "none", &[("max by (node) (quorate_node_writer) == 1", "{{node}}")]),
    stat("A writer serves", "bool_yes_no", &[("max(quorate_writer_serving)", "")]),
    stat("Term", "none", &[("max(quorate_term)", "")]),
    stat("Copies of a commit", "none", &[("max(quorate_commit_copies)", "")]),
    stat(
        "Alerts",
        "none",
        &[(
            "max by (rule, subject) (quorate_alert{silenced=\"false\"}) == 1",
            "{{rule}} {{subject}}",
        )],
    ),
    stat(
        "Broken contracts",
        "none",
        &[("max by (node) (quorate_contract_broken) == 1", "{{node}}")],
    ),
    lines(
        "Lag of what standbys show",
        "s",
        &[
            ("max by (node) (quorate_lag_seconds{stage=\"replay\"})", "{{node}}"),
            ("max by (node) (quorate_contract_lag_seconds)", "{{node}} contract"),
        ],
    ),
    lines(
        "Lag on standbys' disks",
        "s",
        &[("max by (node) (quorate_lag_seconds{stage=\"disk\"})", "{{node}}")],
    ),
    lines("Lag in bytes", "bytes", &[("max by (node) (quorate_lag_bytes)", "{{node}}")]),
    lines(
        "Transactions",
        "ops",
        &[
            ("sum by (instance) (rate(quorate_gateway_transactions_total[1m]))", "{{instance}}"),
            ("sum(rate(quorate_gateway_on_replicas_total[1m]))", "on replicas"),
        ],
    ),
    lines(
        "Latency of transactions",
        "s",
        &[
            (
                "histogram_quantile(0.5, sum by (le, part) \
                 (rate(quorate_gateway_transaction_seconds_bucket[1m])))",
                "half, {{part}}",
            ),
            (
                "histogram_quantile(0.99, sum by (le, part) \
                 (rate(quorate_gateway_transaction_seconds_bucket[1m])))",
                "99 %, {{part}}",
            ),
        ],
    ),
    lines(
        "Why the writer answered",
        "ops",
        &[("sum by (because) (rate(quorate_gateway_to_writer_total[1m]))", "{{because}}")],
    ),
    lines(
        "Clients and connections",
        "none",
        &[
            ("sum(quorate_gateway_clients)", "clients"),
            ("sum by (state) (quorate_gateway_connections)", "{{state}}"),
        ],
    ),
    lines(
        "Room on disks",
        "percentunit",
        &[("max by (node) (quorate_disk_free_bytes / quorate_disk_size_bytes)", "{{node}}")],
    ),
    lines("Disk writes", "s", &[("max by (node) (quorate_disk_write_seconds)", "{{node}}")]),
    lines("Last heard", "s", &[("min by (node) (quorate_node_heard_seconds)", "{{node}}")]),
    lines(
        "Processor time",
        "percentunit",
        &[("rate(process_cpu_seconds_total[1m])", "{{instance}}")],
    ),
    lines("Memory", "bytes", &[("process_resident_memory_bytes", "{{instance}}")]),
];

/// Grafana's grid is so many columns wide.
const COLUMNS: usize = 24;

/// The dashboard, to be imported.
pub fn dashboard() -> Value {
    let mut panels = Vec::new();
    let (mut x, mut y) = (0, 0);
    let mut before = true;
    for (id, panel) in PANELS.iter().enumerate() {
        let (width, height) = if panel.stat { (4, 4) } else { (12, 8) };
        if x + width > COLUMNS || before != panel.stat {
            (x, y) = (0, y + if before { 4 } else { 8 });
        }
        before = panel.stat;
        panels.push(one(id + 1, panel, (x, y, width, height)));
        x += width;
    }
    json!({
        "title": "Quorate",
        "uid": "quorate",
        "schemaVersion": 39,
        "editable": true,
        "annotations": { "list": [] },
        "refresh": "5s",
        "time": { "from": "now-30m", "to": "now" },
        "templating": { "list": [{
            "name": "source", "type": "datasource", "query": "prometheus", "label": "Source",
        }] },
        "panels": panels,
    })
}

fn one(id: usize, panel: &Panel, (x, y, w, h): (usize, usize, usize, usize)) -> Value {
    let targets: Vec<Value> = panel
        .queries
        .iter()
        .zip('A'..)
        .map(|((expr, legend), id)| {
            // A single number is that of the end of the time that is looked at, so that a writer of
            // half an hour ago is none.
            json!({
                "refId": id.to_string(), "expr": expr, "legendFormat": legend,
                "instant": panel.stat, "range": !panel.stat,
            })
        })
        .collect();
    let named = panel.queries.iter().any(|(_, legend)| !legend.is_empty());
    let options = match panel.stat {
        // The name says who, where there is one: its value is always 1.
        true => json!({
            "textMode": if named { "name" } else { "value" },
            "colorMode": "none", "graphMode": "none", "justifyMode": "auto",
            "orientation": "auto", "wideLayout": true, "showPercentChange": false,
            "percentChangeColorMode": "standard",
            "reduceOptions": { "calcs": ["lastNotNull"], "values": false },
        }),
        false => json!({
            "legend": {
                "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [],
            },
            "tooltip": { "mode": "multi", "sort": "desc" },
        }),
    };
    let mut defaults = json!({ "unit": panel.unit });
    if named && panel.stat {
        defaults["noValue"] = json!("none");
    }
    json!({
        "id": id,
        "type": if panel.stat { "stat" } else { "timeseries" },
        "title": panel.title,
        "datasource": { "type": "prometheus", "uid": "${source}" },
        "gridPos": { "x": x, "y": y, "w": w, "h": h },
        "fieldConfig": { "defaults": defaults, "overrides": [] },
        "options": options,
        "targets": targets,
    })
}

#[cfg(test)]
pub(super) fn expressions() -> impl Iterator<Item = &'static str> {
    PANELS.iter().flat_map(|p| p.queries).map(|(expr, _)| *expr)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn number(value: &Value) -> u64 {
        value.as_u64().unwrap()
    }

    #[test]
    fn panels_have_what_grafana_reads_them_by() {
        let board = dashboard();
        assert!(board["annotations"]["list"].is_array() && board["schemaVersion"].is_u64());
        assert_eq!(board["templating"]["list"][0]["name"], "source");
        let panels = board["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|p| number(&p["id"])).collect();
        assert_eq!(ids.len(), panels.len(), "an id of its own for each");
        let mut taken = BTreeSet::new();
        for panel in panels {
            let title = &panel["title"];
            assert_eq!(panel["datasource"]["uid"], "${source}", "{title}");
            let place = &panel["gridPos"];
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| number(&place[side]));
            assert!(w > 0 && h > 0 && x + w <= COLUMNS as u64, "{title}");
            let cells = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y)));
            assert!(cells.into_iter().all(|cell| taken.insert(cell)), "{title} covers another one");
            let targets = panel["targets"].as_array().unwrap();
            let refs: BTreeSet<&str> =
                targets.iter().map(|t| t["refId"].as_str().unwrap()).collect();
            assert_eq!(refs.len(), targets.len(), "{title}");
        }
    }

    #[test]
    fn legends_name_labels_that_are_left() {
        for (expr, legend) in PANELS.iter().flat_map(|p| p.queries) {
            for rest in legend.split("{{").skip(1) {
                let label = rest.split("}}").next().unwrap();
                // What is not brought together by labels keeps those that Prometheus gives.
                let kept = match expr.split_once(" by (") {
                    Some((_, by)) => by.split(')').next().unwrap().split(", ").any(|l| l == label),
                    None => label == "instance",
                };
                assert!(kept, "{label} of {legend:?} is not among the labels of {expr}");
            }
        }
    }
}
