//! Drills over HTTP: asked of any node, conducted by one that is not hurt.

use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use quorate_core::NodeId;
use quorate_core::drill::Drill;
use serde::Deserialize;
use serde_json::{Value, json};

use super::take::{self, Body};
use super::{Api, Problem, Reply, forward, refused};
use crate::drill::conduct::Room;
use crate::drill::faults::Fault;
use crate::drill::plan::{self, Plan};
use crate::drill::{Progress, Report, WAIT, WAIT_MAX};

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
#[serde(deny_unknown_fields)]
pub(super) struct DrillAsk {
    drill: Drill,
    #[serde(default = "default_drill_wait")]
    wait_seconds: u64,
    /// Who conducts it, chosen by the node that was asked.
    #[serde(default, deserialize_with = "take::some_node")]
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanAsk {
    drill: Drill,
}

async fn plan(State(api): State<Api>, Body(ask): Body<PlanAsk>) -> Reply {
    planned(&api, ask.drill).map(|plan| Json(json!(plan)))
}

async fn begin(State(api): State<Api>, Body(ask): Body<DrillAsk>) -> Reply {
    begin_asked(&api, ask).await
}

/// Begins a drill as it is begun when nothing else is said.
///
/// # Errors
/// Why it may not be now.
pub async fn begin_drill(api: &Api, drill: Drill) -> Reply {
    begin_asked(api, DrillAsk { drill, wait_seconds: default_drill_wait(), conductor: None }).await
}

async fn begin_asked(api: &Api, ask: DrillAsk) -> Reply {
    let wait = Duration::from_secs(ask.wait_seconds);
    if wait > WAIT_MAX {
        return Err(refused(format!("a drill lasts {} s at the most", WAIT_MAX.as_secs())));
    }
    let mut plan = planned(api, ask.drill)?;
    let conductor = ask.conductor.unwrap_or(plan.conductor);
    if conductor == plan.victim {
        return Err(refused(format!("{conductor} would be hurt: it cannot conduct this drill")));
    }
    plan.conductor = conductor;
    let wait_seconds = ask.wait_seconds;
    let body = json!({ "drill": ask.drill, "wait_seconds": wait_seconds, "conductor": conductor });
    if let Some(reply) = forward(api, Some(conductor), "/api/drill", body).await {
        return reply;
    }
    let id = api.conductor.begin(plan, wait).await.map_err(refused)?;
    Ok(Json(json!({ "id": id, "conductor": conductor })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    #[serde(default, deserialize_with = "take::some_node")]
    node: Option<NodeId>,
}

async fn progress(State(api): State<Api>, Body(ask): Body<Whose>) -> Reply {
    progress_of(&api, ask.node).await
}

/// The report of a drill that has ended, from the node that conducted it, which keeps its last one.
///
/// # Errors
/// When nobody has it.
pub async fn report(api: &Api, id: u64) -> Result<Report, Problem> {
    let state = api.node.parts.consensus.state();
    let conductor = match state.drills.iter().find(|d| d.id == id) {
        Some(record) => record.conductor,
        None if state.drill.as_ref().is_some_and(|d| d.id == id) => {
            return Err(refused("this drill is under way: its report comes at its end"));
        }
        None => return Err(refused("no drill of this number is remembered")),
    };
    let Json(value) = progress_of(api, Some(conductor)).await?;
    let progress: Option<Progress> = serde_json::from_value(value).ok();
    let report = progress.filter(|p| p.id == id).and_then(|p| p.report);
    report.map(|r| *r).ok_or_else(|| {
        refused(format!(
            "{conductor} conducted it, and keeps the report of its last drill only, until it is \
             restarted: the file that `quorate drill` wrote has it"
        ))
    })
}

async fn progress_of(api: &Api, node: Option<NodeId>) -> Reply {
    let body = json!({ "node": node });
    if let Some(reply) = forward(api, node, "/api/drill/progress", body).await {
        return reply;
    }
    let progress = api.conductor.progress();
    progress.map(|p| Json(json!(p))).ok_or_else(|| refused("this node has conducted no drill"))
}

async fn abort(State(api): State<Api>, Body(ask): Body<Whose>) -> Reply {
    abort_drill(&api, ask.node).await
}

/// Ends the drill under way, which a node conducts.
///
/// # Errors
/// When there is none, or its conductor does not answer.
pub async fn abort_drill(api: &Api, node: Option<NodeId>) -> Reply {
    let state = api.node.parts.consensus.state();
    let conductor = node.or_else(|| state.drill.as_ref().map(|d| d.conductor));
    if conductor.is_none() {
        return Err(refused("no drill is under way"));
    }
    let body = json!({ "node": conductor });
    if let Some(reply) = forward(api, conductor, "/api/drill/abort", body).await {
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
#[serde(deny_unknown_fields)]
pub(super) struct FaultAsk {
    fault: Fault,
}

async fn fault(State(api): State<Api>, Body(ask): Body<FaultAsk>) -> Reply {
    api.conductor.faults().begin(ask.fault).await.map_err(refused)?;
    Ok(Json(json!({})))
}

async fn heal(State(api): State<Api>) -> Reply {
    Ok(Json(json!({ "kept_bytes": api.conductor.faults().heal().await })))
}

async fn stage(State(api): State<Api>, Body(room): Body<Room>) -> Reply {
    api.conductor.stage(&room).await.map(Json).map_err(refused)
}

async fn clear(State(api): State<Api>) -> Reply {
    api.conductor.clear().await.map(Json).map_err(refused)
}
