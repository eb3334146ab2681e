//! Validation queries over HTTP: asked of any node, run on the writer's.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use quorate_agent::validation::run_for_person;
use serde::Deserialize;
use serde_json::json;

use super::take::Body;
use super::{Api, Reply, forward, refused, unavailable};

/// The routes.
pub(super) fn routes() -> Router<Api> {
    Router::new().route("/api/validate", post(validate))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ValidateAsk {
    #[serde(default)]
    name: Option<String>,
}

async fn validate(State(api): State<Api>, Body(ask): Body<ValidateAsk>) -> Reply {
    let writer = api.node.status().writer;
    let writer = writer.ok_or_else(|| unavailable("there is no writer now: try again"))?;
    let body = json!({ "name": ask.name });
    if let Some(reply) = forward(&api, Some(writer), "/api/validate", body).await {
        return reply;
    }
    let ran = run_for_person(&api.node, ask.name.as_deref()).await.map_err(refused)?;
    Ok(Json(json!({ "node": writer, "ran": ran })))
}
