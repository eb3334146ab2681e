//! Drills over HTTP: asked of any node, conducted by one that is not hurt.

use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use quorate_core::NodeId;
use quorate_core::drill::Drill;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Problem, Reply, forward, refused};
use crate::drill::faults::Fault;
use crate::drill::plan::{self, Plan};
use crate::drill::{WAIT, WAIT_MAX};

/// The routes.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/drills", get(list))
        .route("/api/drill", post(begin))
        .route("/api/drill/plan", post(plan))
        .route("/api/drill/progress", post(progress))
        .route("/api/drill/abort", post(abort))
        .route("/api/drill/fault", post(fault))
        .route("/api/drill/heal", post(heal))
        .route("/api/drill/stage", post(stage))
        .route("/api/drill/clear", post(clear))
}

async fn list(State(api): State<Api>) -> Json<Value> {
    let state = api.node.parts.consensus.state();
    Json(json!({ "under_way": state.drill, "past": state.drills }))
}

#[derive(Deserialize)]
struct DrillAsk {
    drill: Drill,
    #[serde(default = "default_drill_wait")]
    wait_seconds: u64,
    /// Who conducts it, chosen by the node that was asked.
    conductor: Option<NodeId>,
}

fn default_drill_wait() -> u64 {
    WAIT.as_secs()
}

fn planned(api: &Api, drill: Drill) -> Result<Plan, Problem> {
    let document = api.node.parts.consensus.state().document();
    plan::plan(drill, &api.node.status(), &document)
        .map_err(|why| refused(format!("the drill {drill} cannot be done now: {why}")))
}

async fn plan(State(api): State<Api>, Json(ask): Json<DrillAsk>) -> Reply {
    planned(&api, ask.drill).map(|plan| Json(json!(plan)))
}

async fn begin(State(api): State<Api>, Json(ask): Json<DrillAsk>) -> Reply {
    let wait = Duration::from_secs(ask.wait_seconds);
    if wait > WAIT_MAX {
        return Err(refused(format!("a drill lasts {} s at the most", WAIT_MAX.as_secs())));
    }
    let mut plan = planned(&api, ask.drill)?;
    let conductor = ask.conductor.unwrap_or(plan.conductor);
    if conductor == plan.victim {
        return Err(refused(format!("{conductor} would be hurt: it cannot conduct this drill")));
    }
    plan.conductor = conductor;
    let wait_seconds = ask.wait_seconds;
    let body = json!({ "drill": ask.drill, "wait_seconds": wait_seconds, "conductor": conductor });
    if let Some(reply) = forward(&api, Some(conductor), "/api/drill", body).await {
        return reply;
    }
    let id = api.conductor.begin(plan, wait).await.map_err(refused)?;
    Ok(Json(json!({ "id": id, "conductor": conductor })))
}

#[derive(Deserialize)]
struct Whose {
    node: Option<NodeId>,
}

async fn progress(State(api): State<Api>, Json(ask): Json<Whose>) -> Reply {
    let body = json!({ "node": ask.node });
    if let Some(reply) = forward(&api, ask.node, "/api/drill/progress", body).await {
        return reply;
    }
    let progress = api.conductor.progress();
    progress.map(|p| Json(json!(p))).ok_or_else(|| refused("this node has conducted no drill"))
}

async fn abort(State(api): State<Api>, Json(ask): Json<Whose>) -> Reply {
    let state = api.node.parts.consensus.state();
    let conductor = ask.node.or_else(|| state.drill.as_ref().map(|d| d.conductor));
    if conductor.is_none() {
        return Err(refused("no drill is under way"));
    }
    let body = json!({ "node": conductor });
    if let Some(reply) = forward(&api, conductor, "/api/drill/abort", body).await {
        return reply;
    }
    match api.conductor.abort().await {
        true => Ok(Json(json!({ "conductor": api.node.parts.me }))),
        false => Err(refused(
            "this node conducts no drill any more: what it began elsewhere ends by itself within a \
             minute",
        )),
    }
}

#[derive(Deserialize)]
struct FaultAsk {
    fault: Fault,
}

async fn fault(State(api): State<Api>, Json(ask): Json<FaultAsk>) -> Reply {
    api.conductor.faults().begin(ask.fault).await.map_err(refused)?;
    Ok(Json(json!({})))
}

async fn heal(State(api): State<Api>) -> Reply {
    Ok(Json(json!({ "kept_bytes": api.conductor.faults().heal().await })))
}

async fn stage(State(api): State<Api>, Json(body): Json<Value>) -> Reply {
    api.conductor.stage(&body).await.map(Json).map_err(refused)
}

async fn clear(State(api): State<Api>) -> Reply {
    api.conductor.clear().await.map(Json).map_err(refused)
}
