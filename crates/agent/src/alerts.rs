//! Alerts: on the leader of consensus, what is wrong becomes part of the record.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::alert::{Alert, Condition, Key, Silence, Watch, conditions};
use quorate_core::state::{State, WallMillis};
use quorate_core::status::Vitals;
use serde::{Deserialize, Serialize};

use crate::limits::ALERT_EVERY;
use crate::node::{Node, wall_millis};

/// What holds and does not fire yet, as this node sees it while it leads.
#[derive(Debug, Default)]
pub struct Pending(Mutex<Vec<(Key, Condition)>>);

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It holds, and people are told.
    Firing,
    /// It holds, and somebody asked for silence.
    Silenced,
    /// It holds for less than its rule asks for.
    Pending,
}

/// An alert as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Where it stands.
    pub stage: Stage,
    /// The alert. While it is pending `since` is the present.
    #[serde(flatten)]
    pub alert: Alert,
    /// Who asked for silence, and for how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
}

/// Every alert as it stands, the worst first.
pub fn told(state: &State, pending: Vec<(Key, Condition)>, at: WallMillis) -> Vec<Told> {
    let firing = state.alerts.firing.iter().cloned().map(|alert| {
        let silence = state.alerts.silenced(&alert.key, at).cloned();
        let stage = if silence.is_some() { Stage::Silenced } else { Stage::Firing };
        Told { stage, alert, silence }
    });
    let pending = pending.into_iter().map(|(key, condition)| {
        let Condition { severity, sentence } = condition;
        let alert = Alert { key, severity, since: at, sentence };
        Told { stage: Stage::Pending, alert, silence: None }
    });
    let mut told: Vec<Told> = firing.chain(pending).collect();
    told.sort_by(|a, b| {
        let rank = |t: &Told| (t.stage, std::cmp::Reverse(t.alert.severity), t.alert.since);
        rank(a).cmp(&rank(b)).then_with(|| a.alert.key.cmp(&b.alert.key))
    });
    told
}

impl Pending {
    fn set(&self, pending: Vec<(Key, Condition)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = pending;
    }

    /// What it is now.
    pub fn get(&self) -> Vec<(Key, Condition)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs until the process ends.
pub async fn run(node: Arc<Node>) {
    let mut watch = Watch::default();
    loop {
        if node.parts.consensus.is_leader() {
            look(&node, &mut watch).await;
        } else {
            watch = Watch::default();
            node.pending.set(Vec::new());
        }
        tokio::time::sleep(ALERT_EVERY).await;
    }
}

async fn look(node: &Node, watch: &mut Watch) {
    let at = wall_millis();
    let because = node.coordinator_word();
    let changes = node.with_view(|view| {
        let alerts = &view.state.alerts;
        let changes = watch.step(conditions(view, at, &because), alerts, view.now, at);
        node.pending.set(watch.pending(alerts));
        changes
    });
    for change in changes {
        // What is not taken now is found again at the next look.
        if let Err(e) = node.propose(change).await {
            tracing::warn!(error = %e, "consensus did not take an alert");
            return;
        }
    }
}

/// What is known of this host beside its server.
#[derive(Debug, Default)]
pub struct Host(Mutex<Vitals>);

impl Host {
    /// Takes note of when this node's certificate expires.
    pub fn set_certificate(&self, until: WallMillis) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).certificate_until = Some(until);
    }

    /// Takes note of how large the host is, and how many are told of alerts from here.
    pub fn set_machine(&self, processors: u32, memory: Option<u64>, receivers: u32) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.processors = Some(processors);
        known.memory = memory;
        known.receivers = Some(receivers);
    }

    /// What is told of it now.
    pub(crate) fn now(&self, node: &Node) -> Vitals {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let breaches: BTreeSet<_> = node.breaches().into_iter().map(|b| b.invariant).collect();
        Vitals { wall: Some(wall_millis()), breaches, ..known }
    }
}
