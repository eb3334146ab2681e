//! Slots over HTTP: asked of any node, answered by the one that has them.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use quorate_agent::slots::{self, SlotsReport};
use quorate_core::NodeId;
use serde::Deserialize;
use serde_json::json;

use super::take::{self, Body, Params};
use super::{Api, Problem, Reply, forward, refused, send, unavailable};
use crate::http::Ask;

/// The routes.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/slots", get(list))
        .route("/api/slots/drop", post(end))
        .route("/api/slots/ack", post(acknowledge))
}

/// The writer, whose slots are meant where nobody says otherwise.
fn whose(api: &Api, node: Option<NodeId>) -> Result<NodeId, Problem> {
    node.or_else(|| api.node.status().writer)
        .ok_or_else(|| unavailable("there is no writer now: try again, or name a node"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    #[serde(default, deserialize_with = "take::some_node")]
    node: Option<NodeId>,
}

/// The slots of the writer, from its own node.
///
/// # Errors
/// When there is no writer, or its node does not answer.
pub async fn of_writer(api: &Api) -> Result<SlotsReport, Problem> {
    let node = whose(api, None)?;
    if node == api.node.parts.me {
        return Ok(api.node.slots.report(&api.node));
    }
    let Json(value) = send(api, node, Ask::get(format!("/api/slots?node={node}"))).await?;
    serde_json::from_value(value).map_err(|e| unavailable(format!("{node} answers otherwise: {e}")))
}

async fn list(State(api): State<Api>, Params(ask): Params<Whose>) -> Reply {
    let node = whose(&api, ask.node)?;
    if node != api.node.parts.me {
        return send(&api, node, Ask::get(format!("/api/slots?node={node}"))).await;
    }
    if api.node.parts.database.is_none() {
        return Err(refused(format!("{node} is a witness: it has no slots")));
    }
    Ok(Json(json!(api.node.slots.report(&api.node))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SlotAsk {
    name: String,
    #[serde(default, deserialize_with = "take::some_node")]
    node: Option<NodeId>,
}

async fn end(State(api): State<Api>, Body(ask): Body<SlotAsk>) -> Reply {
    let node = whose(&api, ask.node)?;
    let body = json!({ "name": ask.name, "node": node });
    if let Some(reply) = forward(&api, Some(node), "/api/slots/drop", body).await {
        return reply;
    }
    let text = slots::drop_by_person(&api.node, &ask.name).await.map_err(refused)?;
    Ok(Json(json!({ "node": node, "text": text })))
}

async fn acknowledge(State(api): State<Api>, Body(ask): Body<SlotAsk>) -> Reply {
    // The writer's node knows whether the old slot is still there.
    let node = whose(&api, ask.node)?;
    let body = json!({ "name": ask.name, "node": node });
    if let Some(reply) = forward(&api, Some(node), "/api/slots/ack", body).await {
        return reply;
    }
    slots::acknowledge(&api.node, &ask.name).await.map_err(refused)?;
    Ok(Json(json!({ "slot": ask.name })))
}
