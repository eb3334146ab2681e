//! What is wrong with a cluster, by name: when it is told, when it is over, who was told to be quiet.
//!
//! Conditions are read from what every node says of itself. A condition that lasts becomes an alert, an
//! alert that is over for a while is resolved; both are changes of the replicated state, so that a new
//! coordinator goes on where the last one stopped. The states are those of Prometheus' alerts: pending,
//! firing, resolved; and silenced, as in its Alertmanager.

mod conditions;
mod rules;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Moment;
use crate::because::Because;
use crate::limits::{SILENCE_MS_MAX, SILENCES_MAX};
use crate::state::{Change, WallMillis};

pub use conditions::{Condition, conditions};
pub use rules::{AlertRule, RULES, Rule};

/// How bad it is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; nothing is to be done.
    Info,
    /// To be looked at in working hours.
    #[default]
    Warning,
    /// Somebody should get up.
    Critical,
}

impl Severity {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One alert: a rule, and what it is about (a node or a slot; empty: the cluster).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The rule.
    pub rule: Rule,
    /// What it is about.
    pub subject: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject.is_empty() {
            true => write!(f, "{}", self.rule),
            false => write!(f, "{}/{}", self.rule, self.subject),
        }
    }
}

/// An alert that fires.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Which.
    #[serde(flatten)]
    pub key: Key,
    /// How bad it is.
    pub severity: Severity,
    /// Since when, by the coordinator's wall clock.
    pub since: WallMillis,
    /// What is wrong, as it was when the alert began to fire.
    pub sentence: String,
}

/// Somebody does not want to hear of it for a while. The alert fires and is shown as silenced; nobody is
/// told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silence {
    /// Of which rule; `None`: of all.
    pub rule: Option<Rule>,
    /// About what; `None`: about anything.
    pub subject: Option<String>,
    /// Until when.
    pub until: WallMillis,
    /// Why, in the words of who asked for it.
    pub because: String,
}

impl Silence {
    /// Whether it covers an alert at a moment.
    pub fn covers(&self, key: &Key, at: WallMillis) -> bool {
        at < self.until
            && self.rule.is_none_or(|rule| rule == key.rule)
            && self.subject.as_ref().is_none_or(|subject| *subject == key.subject)
    }
}

/// The alerts that fire and who is not told of them: part of the replicated state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alerts {
    /// What fires. Bounded by the rules and what they can be about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firing: Vec<Alert>,
    /// Who is not told of what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silences: Vec<Silence>,
}

impl Alerts {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.firing.is_empty() && self.silences.is_empty()
    }

    /// The alert of this name, when it fires.
    pub fn get(&self, key: &Key) -> Option<&Alert> {
        self.firing.iter().find(|a| a.key == *key)
    }

    /// The silence that covers an alert at a moment.
    pub fn silenced(&self, key: &Key, at: WallMillis) -> Option<&Silence> {
        self.silences.iter().find(|s| s.covers(key, at))
    }

    pub(crate) fn fire(&mut self, alert: &Alert) -> Result<(), String> {
        if self.get(&alert.key).is_some() {
            return Err(format!("{} fires already", alert.key));
        }
        self.firing.push(alert.clone());
        Ok(())
    }

    pub(crate) fn resolve(&mut self, key: &Key) -> Result<Alert, String> {
        let at = self.firing.iter().position(|a| a.key == *key);
        at.map(|at| self.firing.remove(at)).ok_or_else(|| format!("{key} does not fire"))
    }

    pub(crate) fn silence(&mut self, silence: &Silence, now: WallMillis) -> Result<(), String> {
        if silence.because.trim().is_empty() {
            return Err("say why (--because): others will wonder".to_owned());
        }
        if silence.until <= now || silence.until > now + SILENCE_MS_MAX {
            return Err("a silence lasts up to 30 days".to_owned());
        }
        self.silences.retain(|s| s.until > now);
        // Said anew, it lasts as said last.
        self.silences.retain(|s| s.rule != silence.rule || s.subject != silence.subject);
        if self.silences.len() >= SILENCES_MAX {
            return Err(format!("there are {SILENCES_MAX} silences already: end some first"));
        }
        self.silences.push(silence.clone());
        Ok(())
    }

    pub(crate) fn speak(
        &mut self,
        rule: Option<Rule>,
        subject: Option<&str>,
    ) -> Result<(), String> {
        let before = self.silences.len();
        self.silences.retain(|s| s.rule != rule || s.subject.as_deref() != subject);
        if self.silences.len() == before {
            return Err("there is no such silence: see `quorate alerts`".to_owned());
        }
        Ok(())
    }
}

/// Since when conditions hold, and since when those of firing alerts do not. Losing it costs the time
/// that they had to last.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    pending: BTreeMap<Key, (Moment, Condition)>,
    over: BTreeMap<Key, Moment>,
}

impl Watch {
    /// Takes in what holds now. Returns the changes of alerts that follow.
    pub fn step(
        &mut self,
        found: BTreeMap<Key, Condition>,
        alerts: &Alerts,
        now: Moment,
        at: WallMillis,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        self.pending.retain(|key, _| found.contains_key(key));
        self.over.retain(|key, _| !found.contains_key(key));
        for alert in &alerts.firing {
            if found.contains_key(&alert.key) {
                continue;
            }
            let since = *self.over.entry(alert.key.clone()).or_insert(now);
            if now.since(since) >= alert.key.rule.definition().resolve {
                changes.push(Change::ResolveAlert { key: alert.key.clone() });
            }
        }
        for (key, condition) in found {
            let (since, last) =
                self.pending.entry(key.clone()).or_insert_with(|| (now, condition.clone()));
            last.clone_from(&condition);
            if alerts.get(&key).is_none() && now.since(*since) >= key.rule.definition().hold {
                let Condition { severity, sentence } = condition;
                let alert = Alert { key, severity, since: at, sentence };
                changes.push(Change::FireAlert { alert });
            }
        }
        changes
    }

    /// What holds and does not fire yet.
    pub fn pending(&self, alerts: &Alerts) -> Vec<(Key, Condition)> {
        let quiet = self.pending.iter().filter(|(key, _)| alerts.get(key).is_none());
        quiet.map(|(key, (_, condition))| (key.clone(), condition.clone())).collect()
    }
}

/// The event of an alert that begins or ends.
pub(crate) fn because(alert: &Alert, resolved: bool) -> Because {
    let rule = alert.key.rule.as_str();
    let about = match alert.key.subject.as_str() {
        "" => String::new(),
        subject => format!("{subject}: "),
    };
    match resolved {
        false => Because::new(rule, format!("{about}{} ({})", alert.sentence, alert.severity)),
        true => Because::new(rule, format!("{about}over: {}", alert.sentence)),
    }
}

#[cfg(test)]
mod tests;
