//! Alerts and lag over HTTP.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use quorate_agent::node::wall_millis;
use quorate_core::NodeId;
use quorate_core::alert::{RULES, Rule, Silence};
use quorate_core::limits::LAG_POINTS_ASKED_MAX;
use quorate_core::state::Change;
use serde::Deserialize;
use serde_json::{Value, json};

use super::take::{self, Body, Params};
use super::{Api, Reply, known, propose, refused};

/// The routes.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/alerts", get(list))
        .route("/api/alerts/rules", get(rules))
        .route("/api/alerts/silence", post(silence))
        .route("/api/alerts/unsilence", post(unsilence))
        .route("/api/lag", get(lag))
}

/// What fires and what is silenced; on the node that leads consensus also what is about to fire.
async fn list(State(api): State<Api>) -> Json<Value> {
    let state = api.node.parts.consensus.state();
    let told = quorate_agent::alerts::told(&state, api.node.pending.get(), wall_millis());
    Json(json!({ "alerts": told, "silences": state.alerts.silences }))
}

async fn rules() -> Json<Value> {
    Json(definitions())
}

/// The rules, with their times and what they tell.
pub(super) fn definitions() -> Value {
    let rules: Vec<Value> = RULES
        .iter()
        .map(|rule| {
            json!({
                "rule": rule.rule,
                "severity": rule.severity,
                "hold_seconds": rule.hold.as_secs(),
                "resolve_seconds": rule.resolve.as_secs(),
                "summary": rule.summary,
            })
        })
        .collect();
    json!(rules)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SilenceAsk {
    rule: Option<String>,
    subject: Option<String>,
    minutes: u64,
    because: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnsilenceAsk {
    rule: Option<String>,
    subject: Option<String>,
}

fn rule(word: Option<&String>) -> Result<Option<Rule>, super::Problem> {
    let Some(word) = word else { return Ok(None) };
    let unknown = || {
        let names: Vec<&str> = RULES.iter().map(|r| r.rule.as_str()).collect();
        refused(format!("there is no rule {word}: {}", names.join(", ")))
    };
    Rule::from_word(word).map(Some).ok_or_else(unknown)
}

async fn silence(State(api): State<Api>, Body(ask): Body<SilenceAsk>) -> Reply {
    let rule = rule(ask.rule.as_ref())?;
    let until = wall_millis().saturating_add(ask.minutes.saturating_mul(60_000));
    let silence = Silence { rule, subject: ask.subject, until, because: ask.because };
    propose(&api, Change::Silence { silence }).await?;
    Ok(Json(json!({ "until": until })))
}

async fn unsilence(State(api): State<Api>, Body(ask): Body<UnsilenceAsk>) -> Reply {
    let rule = rule(ask.rule.as_ref())?;
    propose(&api, Change::EndSilence { rule, subject: ask.subject }).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LagAsk {
    #[serde(deserialize_with = "take::node")]
    node: NodeId,
    #[serde(default = "ten")]
    minutes: u64,
    #[serde(default = "most")]
    points: usize,
}

fn ten() -> u64 {
    10
}

fn most() -> usize {
    LAG_POINTS_ASKED_MAX
}

/// How late a standby was, as this node remembers it: since its process began.
async fn lag(State(api): State<Api>, Params(ask): Params<LagAsk>) -> Reply {
    known(&api, ask.node)?;
    let from = wall_millis().saturating_sub(ask.minutes.saturating_mul(60_000));
    let lags = &api.node.lags;
    let points = lags.history(ask.node, from, ask.points);
    Ok(Json(json!({ "node": ask.node, "points": points, "lately": lags.percentiles(ask.node) })))
}
