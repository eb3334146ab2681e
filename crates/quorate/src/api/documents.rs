//! The cluster document over HTTP: its versions, and a new one that is checked before it is proposed.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use quorate_core::document::{Document, Invalid};
use quorate_core::state::Change;
use serde::Deserialize;
use serde_json::{Value, json};

use super::take::Body;
use super::{Api, Problem, Reply, propose, refused, unavailable};

/// The routes.
pub(super) fn routes() -> Router<Api> {
    Router::new().route("/api/config", get(documents).post(set_document))
}

async fn documents(State(api): State<Api>) -> Json<Value> {
    Json(json!(api.node.parts.consensus.state().documents))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetDocument {
    expect_version: u64,
    document: Document,
    #[serde(default)]
    dry_run: bool,
}

async fn set_document(State(api): State<Api>, Body(ask): Body<SetDocument>) -> Reply {
    let mut problems = ask.document.validate();
    let state = api.node.parts.consensus.state();
    let members = &state.nodes;
    for name in ask.document.nodes.keys().chain(&ask.document.sync_nodes) {
        if !members.contains_key(name) {
            let problem = "the cluster has no such node".to_owned();
            problems.push(Invalid { field: format!("nodes.{name}"), problem });
        }
    }
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(refused(list.join("\n")));
    }
    let notes = check_settings(&api, &ask.document).await?;
    let expect_version = ask.expect_version;
    if ask.dry_run {
        replaces(state.document_version(), expect_version)?;
    } else {
        propose(&api, Change::SetDocument { expect_version, document: ask.document }).await?;
    }
    Ok(Json(json!({ "version": expect_version + 1, "notes": notes })))
}

/// Checks PostgreSQL settings against the server's own catalogue; says which need a restart.
async fn check_settings(api: &Api, document: &Document) -> Result<Vec<String>, Problem> {
    let known = api.node.parts.consensus.state().document().postgresql;
    let changed: BTreeMap<&String, &String> =
        document.postgresql.iter().filter(|(k, v)| known.get(*k) != Some(v)).collect();
    if changed.is_empty() {
        return Ok(Vec::new());
    }
    let Some(database) = &api.node.parts.database else {
        return Err(refused(
            "a witness cannot check PostgreSQL settings: ask a node with a database",
        ));
    };
    let catalog = database
        .admin
        .settings_catalog()
        .await
        .map_err(|e| unavailable(format!("the settings cannot be checked now: {e}")))?;
    let mut notes = Vec::new();
    for (name, value) in changed {
        let setting = catalog
            .iter()
            .find(|s| s.name == *name || name.contains('.'))
            .ok_or_else(|| refused(format!("postgresql.{name}: PostgreSQL has no such setting")))?;
        quorate_postgres::check_setting(&database.options, name, value)
            .map_err(|e| refused(format!("in [postgresql]: {e}")))?;
        // A name with a dot belongs to an extension, which judges when it is loaded.
        if !name.contains('.') {
            quorate_postgres::judge_setting(&database.options, name, value)
                .await
                .map_err(|e| refused(format!("in [postgresql]: {e}")))?;
        }
        if setting.context == "postmaster" {
            notes.push(format!(
                "{name} takes effect at a restart: `quorate restart --rolling` does it, standbys \
                 first"
            ));
        }
    }
    Ok(notes)
}

/// Whether a document may take the place of the one in force: what the record would say if it were
/// proposed.
fn replaces(now: u64, expected: u64) -> Result<(), Problem> {
    if now == expected {
        return Ok(());
    }
    Err(refused(format!(
        "the document is at version {now} now, not {expected}: look at it and try again"
    )))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn a_document_takes_the_place_of_the_newest_alone() {
        assert!(replaces(3, 3).is_ok());
        for expected in [0, 2, 4, u64::MAX] {
            assert!(replaces(3, expected).is_err_and(|p| p.0 == StatusCode::CONFLICT));
        }
    }
}
