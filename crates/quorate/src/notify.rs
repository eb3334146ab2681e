//! Who is told of alerts: addresses and commands from this node's own file.
//!
//! The node that leads consensus tells. Each is told at least once of what fires and of what is over:
//! after a change of the leader the new one tells the last minute again.

mod payload;
mod send;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quorate_agent::Node;
use quorate_agent::node::wall_millis;
use quorate_core::NodeId;
use quorate_core::alert::{Alert, Key, Severity};
use quorate_core::state::{State, WallMillis};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often it is looked for what is to be told.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What began within this time before a node came to lead is told again: the last leader may have had
/// no time for it.
const AGAIN_WITHIN: WallMillis = 60_000;
/// Messages that wait for one receiver; the oldest are dropped, and said to be.
const WAITING_MAX: usize = 200;
/// Attempts for one message.
const TRIES_MAX: u32 = 8;
/// Pause before the second attempt; doubles with each.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often a receiver is told again of what still fires, unless its file says otherwise.
const REPEAT_MINUTES: u64 = 240;

/// What a message looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The alert, as `quorate alerts --json` has it, and which cluster it is of.
    #[default]
    Quorate,
    /// `{"text": …}`: Slack, Mattermost, Rocket.Chat, Google Chat.
    Slack,
    /// Prometheus' Alertmanager (`/api/v2/alerts`).
    Alertmanager,
    /// PagerDuty's Events API v2.
    Pagerduty,
}

/// Somebody who is told: `[[notify]]` in the node's file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receiver {
    /// What it is called in logs.
    pub name: String,
    /// Where messages are posted: `http://` or `https://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What is run for each message, which it finds on its standard input; no shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What messages look like.
    #[serde(default)]
    pub format: Format,
    /// PagerDuty's routing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Sent as `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Authorities of its certificate, PEM. Unset: those of the operating system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Nothing below this is told.
    #[serde(default)]
    pub least: Severity,
    /// Minutes after which it is told again of what still fires; 0: never.
    #[serde(default = "repeat_minutes")]
    pub repeat_minutes: u64,
}

fn repeat_minutes() -> u64 {
    REPEAT_MINUTES
}

impl Receiver {
    /// Checks what can be checked without telling anybody.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<()> {
        let of = || format!("[[notify]] {:?}", self.name);
        match (&self.url, self.command.is_empty()) {
            (Some(_), false) => bail!("{}: give url or command, not both", of()),
            (None, true) => bail!("{}: give url or command", of()),
            (Some(url), true) => {
                send::Address::parse(url).with_context(of)?;
            }
            (None, false) => {}
        }
        if self.format == Format::Pagerduty && self.key.is_none() {
            bail!("{}: format \"pagerduty\" needs the routing key (key)", of());
        }
        Ok(())
    }
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// It is over.
    pub resolved: bool,
    /// What.
    pub alert: Alert,
    /// Identity of the cluster.
    pub cluster: String,
    /// The node that tells.
    pub by: NodeId,
    /// When it is told.
    pub at: WallMillis,
}

/// Tells receivers until the process ends.
pub async fn run(node: Arc<Node>, receivers: Vec<Receiver>) {
    let mut queues: Vec<tokio::sync::mpsc::Sender<Message>> = Vec::new();
    for receiver in &receivers {
        let (tx, rx) = tokio::sync::mpsc::channel(WAITING_MAX);
        tokio::spawn(serve(receiver.clone(), rx));
        queues.push(tx);
    }
    let mut teller = Teller::default();
    loop {
        if node.parts.consensus.is_leader() {
            let state = node.parts.consensus.state();
            let told = teller.look(&state, node.parts.me, &receivers, wall_millis());
            for (to, message) in told {
                if queues[to].try_send(message).is_err() {
                    let name = &receivers[to].name;
                    tracing::error!(name, "a message about an alert was dropped: too many wait");
                }
            }
        } else {
            teller = Teller::default();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What was told to whom.
#[derive(Debug, Default)]
struct Teller {
    begun: bool,
    /// By receiver and alert: the alert, and when it was told last.
    told: BTreeMap<(usize, Key), (Alert, WallMillis)>,
}

impl Teller {
    /// What is to be told now, with the place of its receiver.
    fn look(
        &mut self,
        state: &State,
        me: NodeId,
        receivers: &[Receiver],
        at: WallMillis,
    ) -> VecDeque<(usize, Message)> {
        let message = |alert: &Alert, resolved| Message {
            resolved,
            alert: alert.clone(),
            cluster: state.cluster_id.clone(),
            by: me,
            at,
        };
        let mut out = VecDeque::new();
        for (to, receiver) in receivers.iter().enumerate() {
            for alert in &state.alerts.firing {
                if alert.severity < receiver.least
                    || state.alerts.silenced(&alert.key, at).is_some()
                {
                    continue;
                }
                let slot = (to, alert.key.clone());
                let repeat = receiver.repeat_minutes.saturating_mul(60_000);
                let due = match self.told.get(&slot) {
                    Some((old, _)) if old.since != alert.since => true,
                    Some((_, last)) => repeat > 0 && at.saturating_sub(*last) >= repeat,
                    // What the last leader has had time for is told by it.
                    None => self.begun || at.saturating_sub(alert.since) < AGAIN_WITHIN,
                };
                if due {
                    out.push_back((to, message(alert, false)));
                }
                if due || !self.told.contains_key(&slot) {
                    self.told.insert(slot, (alert.clone(), at));
                }
            }
        }
        self.told.retain(|(to, key), (alert, _)| {
            let fires = state.alerts.get(key).is_some_and(|a| a.since == alert.since);
            if !fires && state.alerts.get(key).is_none() {
                out.push_back((*to, message(alert, true)));
            }
            fires
        });
        self.begun = true;
        out
    }
}

/// Sends one receiver's messages, one after the other.
async fn serve(receiver: Receiver, mut inbox: tokio::sync::mpsc::Receiver<Message>) {
    while let Some(message) = inbox.recv().await {
        let begun = Instant::now();
        let mut pause = RETRY_FIRST;
        for attempt in 1..=TRIES_MAX {
            let name = &receiver.name;
            match send::send(&receiver, &message).await {
                Ok(()) => {
                    let took = begun.elapsed().as_millis();
                    tracing::info!(name, alert = %message.alert.key, took, "told of an alert");
                    break;
                }
                Err(error) if attempt < TRIES_MAX => {
                    tracing::warn!(name, attempt, "cannot tell of an alert yet: {error:#}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Err(error) => {
                    let alert = &message.alert.key;
                    tracing::error!(name, %alert, "nobody was told of an alert: {error:#}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_core::alert::Rule;

    use super::*;

    fn alert(subject: &str, severity: Severity, since: WallMillis) -> Alert {
        let key = Key { rule: Rule::NodeDown, subject: subject.to_owned() };
        Alert { key, severity, since, sentence: "gone".to_owned() }
    }

    fn receiver(text: &str) -> Receiver {
        toml::from_str(text).unwrap()
    }

    fn names(told: VecDeque<(usize, Message)>) -> Vec<String> {
        let word = |m: &Message| if m.resolved { "over" } else { "fires" };
        told.iter().map(|(to, m)| format!("{to} {} {}", word(m), m.alert.key.subject)).collect()
    }

    const MINUTE: WallMillis = 60_000;

    #[test]
    fn each_is_told_once_of_what_it_wants_to_hear_and_when_it_is_over() {
        let me = NodeId::new("n2").unwrap();
        let receivers = [
            receiver("name = \"all\"\nurl = \"http://x/\"\nleast = \"info\"\nrepeat_minutes = 60"),
            receiver("name = \"pager\"\ncommand = [\"page\"]\nleast = \"critical\""),
        ];
        let mut state = State::default();
        let at = 100 * MINUTE;
        // This node has just come to lead: what is old was told by the last one.
        state.alerts.firing.push(alert("old", Severity::Critical, at - 2 * MINUTE));
        state.alerts.firing.push(alert("new", Severity::Warning, at - 1));
        let mut teller = Teller::default();
        assert_eq!(names(teller.look(&state, me, &receivers, at)), ["0 fires new"]);
        assert!(teller.look(&state, me, &receivers, at + 1).is_empty());
        state.alerts.firing.push(alert("later", Severity::Critical, at + 5));
        let told = names(teller.look(&state, me, &receivers, at + 10));
        assert_eq!(told, ["0 fires later", "1 fires later"]);
        // It goes on for an hour.
        let told = names(teller.look(&state, me, &receivers, at + 60 * MINUTE));
        assert_eq!(told, ["0 fires old", "0 fires new"]);
        // Over: told to those who were told.
        state.alerts.firing.retain(|a| a.key.subject == "later");
        let mut told = names(teller.look(&state, me, &receivers, at + 61 * MINUTE));
        told.sort();
        assert_eq!(told, ["0 fires later", "0 over new", "0 over old", "1 over old"]);
        assert!(teller.look(&state, me, &receivers, at + 62 * MINUTE).is_empty());
    }

    #[test]
    fn nobody_is_told_of_what_is_silenced() {
        let me = NodeId::new("n2").unwrap();
        let receivers = [receiver("name = \"all\"\nurl = \"http://x/\"")];
        let mut state = State::default();
        state.alerts.firing.push(alert("n3", Severity::Warning, 100));
        let silence = quorate_core::alert::Silence {
            rule: None,
            subject: None,
            until: 1000,
            because: "test".to_owned(),
        };
        state.alerts.silences.push(silence);
        let mut teller = Teller::default();
        assert!(teller.look(&state, me, &receivers, 200).is_empty());
        assert_eq!(names(teller.look(&state, me, &receivers, 1000)), ["0 fires n3"]);
    }

    #[test]
    fn a_receiver_that_cannot_work_is_refused() {
        for (text, why) in [
            ("name = \"a\"", "give url or command"),
            ("name = \"a\"\nurl = \"http://x/\"\ncommand = [\"y\"]", "not both"),
            ("name = \"a\"\nurl = \"ftp://x/\"", "http"),
            ("name = \"a\"\nurl = \"http://x/\"\nformat = \"pagerduty\"", "routing key"),
        ] {
            let error = format!("{:#}", receiver(text).check().unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(receiver("name = \"a\"\nurl = \"https://x:444/y?z=1\"").check().is_ok());
    }
}
