//! `quorate alerts`: what is wrong, and who does not want to hear of it.

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use quorate_agent::alerts::{Stage, Told};
use quorate_core::alert::{RULES, Silence};
use quorate_core::words::seconds;
use serde::Deserialize;
use serde_json::{Value, json};

use super::show::{clock, table};
use super::{Global, reach};
use crate::http::Ask;

/// `quorate alerts …`.
#[derive(Debug, Clone, Subcommand)]
pub enum AlertsCommand {
    /// Tell nobody of an alert for a while. It is still shown.
    Silence {
        /// The rule, such as lag-over-contract; `all`: every rule.
        rule: String,
        /// Only what is about this node.
        #[arg(long)]
        node: Option<String>,
        /// For how many minutes: up to 30 days.
        #[arg(long, default_value_t = 120)]
        minutes: u64,
        /// Why, for others who wonder.
        #[arg(long)]
        because: String,
    },
    /// End a silence before its time.
    Unsilence {
        /// The rule, or `all`, as it was silenced.
        rule: String,
        /// The node, as it was silenced.
        #[arg(long)]
        node: Option<String>,
    },
    /// List the rules: what each tells, how long it must last, how bad it is.
    Rules,
}

#[derive(Deserialize)]
struct Answer {
    alerts: Vec<Told>,
    silences: Vec<Silence>,
}

/// `quorate alerts`.
pub async fn alerts(global: &Global, command: Option<AlertsCommand>) -> Result<()> {
    match command {
        None => list(global).await,
        Some(AlertsCommand::Silence { rule, node, minutes, because }) => {
            let ask = json!({
                "rule": named(&rule),
                "subject": node,
                "minutes": minutes,
                "because": because,
            });
            let answer = reach::call(global, Ask::post("/api/alerts/silence", ask)).await?;
            let until = answer["until"].as_u64().map(clock).unwrap_or_default();
            say(global, &answer, &format!("silenced until {until}"));
            Ok(())
        }
        Some(AlertsCommand::Unsilence { rule, node }) => {
            let ask = json!({ "rule": named(&rule), "subject": node });
            let answer = reach::call(global, Ask::post("/api/alerts/unsilence", ask)).await?;
            say(global, &answer, "told again");
            Ok(())
        }
        Some(AlertsCommand::Rules) => {
            rules(global);
            Ok(())
        }
    }
}

fn named(rule: &str) -> Option<&str> {
    Some(rule).filter(|r| *r != "all")
}

fn say(global: &Global, answer: &Value, text: &str) {
    if global.json {
        println!("{answer}");
    } else {
        println!("{text}");
    }
}

async fn list(global: &Global) -> Result<()> {
    if global.json {
        let value: Value = reach::get(global, "/api/alerts").await?;
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let Answer { alerts, silences } = reach::get(global, "/api/alerts").await?;
    if alerts.is_empty() {
        println!("nothing is wrong");
    } else {
        print!("{}", picture(&alerts));
    }
    for silence in silences {
        let rule = silence.rule.map_or("all rules".to_owned(), |r| r.to_string());
        let about = silence.subject.map_or(String::new(), |s| format!(" of {s}"));
        println!("silenced until {}: {rule}{about} ({})", clock(silence.until), silence.because);
    }
    Ok(())
}

/// Alerts as a table.
pub fn picture(alerts: &[Told]) -> String {
    let head = ["STATE", "SEVERITY", "ALERT", "ABOUT", "SINCE", "WHAT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for told in alerts {
        let alert = &told.alert;
        let (stage, since) = match told.stage {
            Stage::Firing => ("FIRING", clock(alert.since)),
            Stage::Silenced => ("silenced", clock(alert.since)),
            Stage::Pending => ("pending", "-".to_owned()),
        };
        let about = if alert.key.subject.is_empty() { "cluster" } else { &alert.key.subject };
        rows.push(vec![
            stage.to_owned(),
            alert.severity.to_string(),
            alert.key.rule.to_string(),
            about.to_owned(),
            since,
            alert.sentence.clone(),
        ]);
    }
    table(&rows)
}

fn rules(global: &Global) {
    if global.json {
        let list: Vec<Value> = RULES
            .iter()
            .map(|r| json!({ "rule": r.rule, "severity": r.severity, "summary": r.summary }))
            .collect();
        println!("{}", json!(list));
        return;
    }
    let words = |time: Duration| if time.is_zero() { "at once".to_owned() } else { seconds(time) };
    let head = ["ALERT", "SEVERITY", "FIRES AFTER", "OVER AFTER", "TELLS THAT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for rule in RULES {
        rows.push(vec![
            rule.rule.to_string(),
            rule.severity.to_string(),
            words(rule.hold),
            words(rule.resolve),
            rule.summary.to_owned(),
        ]);
    }
    print!("{}", table(&rows));
}
