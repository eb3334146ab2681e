//! What the server is started with, and what it is asked for while it runs.

use std::sync::PoisonError;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::document::Document;
use quorate_core::state::State;
use quorate_postgres::{ControlData, Error, Settings, SynchronousCommit};

use super::Database;

impl Database {
    /// Whether slots that are carried here need the writer's protection.
    pub fn is_asked_for_feedback(&self, state: &State, me: NodeId) -> bool {
        let major = self.options.install.major;
        quorate_core::slots::needs_feedback(&state.document(), &state.slots, me, major)
    }

    /// The settings that the cluster asks for.
    pub fn settings(&self, state: &State, me: NodeId) -> Settings {
        let mut settings = settings(&state.document(), me);
        settings.hot_standby_feedback |= self.is_asked_for_feedback(state, me);
        settings
    }

    /// A standby that has less of some resources than its writer does not start: a lowered setting
    /// takes effect on the writer first, and here when the log says so.
    pub(super) async fn at_least_the_writers(
        &self,
        settings: &Settings,
    ) -> Result<Settings, Error> {
        let mut settings = settings.clone();
        let control = quorate_postgres::read_control_data(&self.options).await?;
        let _ = self.segment_bytes.set(control.segment_bytes);
        let lowered = lowered(&settings, &control);
        for (name, least) in &lowered {
            tracing::info!(name, least, "kept at the writer's value until that one is lowered");
            settings.parameters.insert((*name).to_owned(), least.to_string());
        }
        let names = lowered.into_iter().map(|(name, _)| name.to_owned()).collect();
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = names;
        Ok(settings)
    }

    /// Whether a promotion would have to restart the server to put these settings into effect.
    pub async fn lowers(&self, settings: &Settings) -> Result<bool, Error> {
        let control = quorate_postgres::read_control_data(&self.options).await?;
        Ok(!lowered(settings, &control).is_empty())
    }
}

/// Resources of which a standby needs as much as its writer, by their names in the control file and
/// as settings, with PostgreSQL's defaults. What Quorate chooses itself never changes.
const AS_MUCH: [(&str, &str, u64); 4] = [
    ("max_connections", "max_connections", 100),
    ("max_worker_processes", "max_worker_processes", 8),
    ("max_prepared_xacts", "max_prepared_transactions", 0),
    ("max_locks_per_xact", "max_locks_per_transaction", 64),
];

/// Settings that ask for less than the log's writer had, with what that was.
fn lowered(settings: &Settings, control: &ControlData) -> Vec<(&'static str, u64)> {
    let asked = |name: &str, default: u64| match settings.parameters.get(name) {
        Some(value) => value.trim().parse::<u64>().ok(),
        None => Some(default),
    };
    AS_MUCH
        .iter()
        .filter_map(|(in_control, name, default)| {
            let had = *control.least.get(in_control)?;
            // What PostgreSQL reads otherwise (`0x32`) is taken for too little.
            asked(name, *default).is_none_or(|v| v < had).then_some((*name, had))
        })
        .collect()
}

/// The settings that the cluster document asks for.
fn settings(document: &Document, node: NodeId) -> Settings {
    let spec = document.node(node);
    let preset = spec.preset();
    let mut parameters = document.postgresql.clone();
    if preset.statement_timeout_ms > 0 {
        let timeout = format!("{}ms", preset.statement_timeout_ms);
        parameters.insert("statement_timeout".to_owned(), timeout);
    }
    Settings {
        synchronous_commit: match document.level {
            quorate_core::document::Level::Received => SynchronousCommit::RemoteWrite,
            quorate_core::document::Level::Flushed => SynchronousCommit::On,
            quorate_core::document::Level::Applied => SynchronousCommit::RemoteApply,
        },
        hot_standby_feedback: preset.feedback,
        max_standby_streaming_delay: preset.conflict_delay_ms.map(Duration::from_millis),
        apply_delay: spec.delay(),
        parameters,
        ..Settings::default()
    }
}
