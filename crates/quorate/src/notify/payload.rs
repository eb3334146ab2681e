//! What receivers are told, in the forms they know.

use quorate_core::alert::Severity;
use serde_json::{Value, json};

use super::{Format, Message};
use crate::cli::show::clock;

/// A message in a form.
pub(super) fn payload(format: Format, key: Option<&str>, message: &Message) -> Value {
    match format {
        Format::Quorate => quorate(message),
        Format::Slack => json!({ "text": line(message) }),
        Format::Alertmanager => alertmanager(message),
        Format::Pagerduty => pagerduty(key.unwrap_or_default(), message),
    }
}

fn status(message: &Message) -> &'static str {
    if message.resolved { "resolved" } else { "firing" }
}

/// What it is about, for people.
fn about(message: &Message) -> String {
    match message.alert.key.subject.as_str() {
        "" => format!("cluster {}", message.cluster),
        subject => format!("{subject} of cluster {}", message.cluster),
    }
}

fn line(message: &Message) -> String {
    let alert = &message.alert;
    match message.resolved {
        true => format!("[over] {} ({}): {}", alert.key.rule, about(message), alert.sentence),
        false => format!(
            "[{}] {} ({}): {}",
            alert.severity,
            alert.key.rule,
            about(message),
            alert.sentence
        ),
    }
}

/// RFC 3339.
fn time(at: u64) -> String {
    clock(at).replacen(' ', "T", 1)
}

fn runbook(message: &Message) -> String {
    format!("docs/runbooks/{}.md", message.alert.key.rule)
}

fn quorate(message: &Message) -> Value {
    let alert = &message.alert;
    json!({
        "status": status(message),
        "rule": alert.key.rule,
        "subject": alert.key.subject,
        "severity": alert.severity,
        "since": time(alert.since),
        "sentence": alert.sentence,
        "runbook": runbook(message),
        "cluster": message.cluster,
        "told_by": message.by,
        "at": time(message.at),
    })
}

fn alertmanager(message: &Message) -> Value {
    let alert = &message.alert;
    let mut entry = json!({
        "labels": {
            "alertname": alert.key.rule,
            "severity": alert.severity,
            "cluster": message.cluster,
            "subject": alert.key.subject,
        },
        "annotations": {
            "summary": alert.key.rule.definition().summary,
            "description": alert.sentence,
            "runbook_url": runbook(message),
        },
        "startsAt": time(alert.since),
    });
    if message.resolved {
        entry["endsAt"] = json!(time(message.at));
    }
    json!([entry])
}

fn pagerduty(key: &str, message: &Message) -> Value {
    let alert = &message.alert;
    let severity = match alert.severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    json!({
        "routing_key": key,
        "event_action": if message.resolved { "resolve" } else { "trigger" },
        "dedup_key": format!("{}/{}", message.cluster, alert.key),
        "payload": {
            "summary": line(message),
            "source": about(message),
            "severity": severity,
            "timestamp": time(alert.since),
            "component": alert.key.subject,
            "class": alert.key.rule,
        },
    })
}

#[cfg(test)]
mod tests {
    use quorate_core::NodeId;
    use quorate_core::alert::{Alert, Key, Rule};

    use super::*;

    fn message(resolved: bool) -> Message {
        let key = Key { rule: Rule::LagOverContract, subject: "n3".to_owned() };
        let alert = Alert {
            key,
            severity: Severity::Warning,
            since: 1_795_226_096_789,
            sentence: "what it shows is 12 s late".to_owned(),
        };
        let by = NodeId::new("n2").unwrap();
        Message { resolved, alert, cluster: "abc".to_owned(), by, at: 1_795_226_100_000 }
    }

    #[test]
    fn each_form_says_what_and_about_whom() {
        let slack = payload(Format::Slack, None, &message(false));
        let text = "[warning] lag-over-contract (n3 of cluster abc): what it shows is 12 s late";
        assert_eq!(slack, json!({ "text": text }));

        let own = payload(Format::Quorate, None, &message(true));
        assert_eq!(own["status"], "resolved");
        assert_eq!(own["rule"], "lag-over-contract");
        assert_eq!(own["since"], "2026-11-21T01:54:56.789Z");

        let fires = payload(Format::Alertmanager, None, &message(false));
        assert_eq!(fires[0]["labels"]["alertname"], "lag-over-contract");
        assert!(fires[0].get("endsAt").is_none());
        let over = payload(Format::Alertmanager, None, &message(true));
        assert_eq!(over[0]["labels"], fires[0]["labels"], "else it is another alert there");
        assert_eq!(over[0]["endsAt"], "2026-11-21T01:55:00.000Z");

        let page = payload(Format::Pagerduty, Some("k"), &message(false));
        let end = payload(Format::Pagerduty, Some("k"), &message(true));
        assert_eq!(
            (&page["event_action"], &end["event_action"]),
            (&json!("trigger"), &json!("resolve"))
        );
        assert_eq!(page["dedup_key"], end["dedup_key"]);
        assert_eq!(page["routing_key"], "k");
    }
}
