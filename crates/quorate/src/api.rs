//! The HTTP API: the same routes on the control socket, the web port and links between nodes.
//!
//! Reading needs nothing; actions through the web port need the node's admin token (`page::guard`).
//! The control socket is the operating system's to guard, links are guarded by certificates.
//! What each route takes and answers is described in `api/openapi.json`, and tests compare the two.

mod alerts;
mod description;
mod documents;
pub mod drills;
pub mod slots;
mod take;
mod validation;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use quorate_agent::node::wall_millis;
use quorate_agent::{Node, Order};
use quorate_consensus::Kind as Trouble;
use quorate_core::authority::{Phase, Switchover};
use quorate_core::state::Change;
use quorate_core::status::Doing;
use quorate_core::{Answer, Because, NodeId, Term};
use quorate_gateway::Meter;
use quorate_link::{Authority, Kind, LinkStream, Token};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::drill::conduct::Conductor;
use crate::http::{Ask, ask};
use crate::metrics;
use crate::page::{self, Live};
use crate::review::Item;
use take::Body;

/// How long the record may take to show what a proposal came to whose answer is missing.
const OUTCOME_WAIT: Duration = Duration::from_secs(5);

/// What handlers need.
#[derive(Clone)]
pub struct Api {
    /// The node.
    pub node: Arc<Node>,
    /// Its part in drills.
    pub conductor: Arc<Conductor>,
    /// What its gateway has counted.
    pub meter: Meter,
    /// Who watches its page.
    pub live: Arc<Live>,
}

/// A failed request: what a person should know.
pub struct Problem(StatusCode, String);

impl Problem {
    /// Who asks showed nothing that allows it.
    pub fn unauthorized(because: &str) -> Self {
        Self(StatusCode::UNAUTHORIZED, because.to_owned())
    }

    /// Not from there.
    pub fn forbidden(because: &str) -> Self {
        Self(StatusCode::FORBIDDEN, because.to_owned())
    }

    /// Later.
    pub fn too_many(because: impl Into<String>) -> Self {
        Self(StatusCode::TOO_MANY_REQUESTS, because.into())
    }

    /// What a person should know.
    pub fn sentence(&self) -> &str {
        &self.1
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(json!({ "error": self.1 }))).into_response();
        if self.0 == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// What a request comes to.
pub type Reply = Result<Json<Value>, Problem>;

fn refused(because: impl Into<String>) -> Problem {
    Problem(StatusCode::CONFLICT, because.into())
}

fn unavailable(because: impl Into<String>) -> Problem {
    Problem(StatusCode::SERVICE_UNAVAILABLE, because.into())
}

/// All routes.
pub fn router(node: Arc<Node>, conductor: Arc<Conductor>, meter: Meter) -> Router {
    let live: Arc<Live> = Arc::default();
    tokio::spawn(page::trend::keep(meter.clone(), Arc::clone(&live.trend)));
    Router::new()
        .route("/api/status", get(status))
        .route("/api/events", get(events))
        .route("/api/metrics", get(metrics_text))
        .route("/metrics", get(metrics))
        .route("/api/review", get(review))
        .route("/api/token", post(token))
        .route("/api/switchover", post(switchover))
        .route("/api/failover", post(failover))
        .route("/api/pause", post(pause))
        .route("/api/resume", post(resume))
        .route("/api/restart", post(restart))
        .route("/api/rebuild", post(rebuild))
        .route("/api/remove", post(remove))
        .route("/api/standalone", post(standalone))
        .merge(alerts::routes())
        .merge(description::routes())
        .merge(documents::routes())
        .merge(drills::routes())
        .merge(slots::routes())
        .merge(validation::routes())
        .merge(page::routes())
        .fallback(nowhere)
        .method_not_allowed_fallback(otherwise)
        .with_state(Api { node, conductor, meter, live })
}

/// Serves the routes on one stream.
pub async fn serve_stream(router: Router, stream: LinkStream) {
    let service = TowerToHyperService::new(router);
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(e) = served {
        tracing::debug!(error = %e, "a control stream ended");
    }
}

async fn nowhere(uri: Uri) -> Problem {
    let text = format!("there is no {}: the routes are in /api/openapi.json", uri.path());
    Problem(StatusCode::NOT_FOUND, text)
}

async fn otherwise(method: Method, uri: Uri) -> Problem {
    let text = format!("{} does not take {method}: its methods are in `allow`", uri.path());
    Problem(StatusCode::METHOD_NOT_ALLOWED, text)
}

async fn status(State(api): State<Api>) -> Json<Value> {
    Json(json!(api.node.status()))
}

async fn events(State(api): State<Api>) -> Json<Value> {
    Json(json!(api.node.parts.consensus.state().events))
}

async fn review(State(api): State<Api>) -> Json<Value> {
    Json(json!(checklist(&api).await))
}

/// The checklist.
pub async fn checklist(api: &Api) -> Vec<Item> {
    let state = api.node.parts.consensus.state();
    let lowered = match &api.node.parts.database {
        Some(database) => database.admin.lowered_commits().await.ok(),
        None => None,
    };
    let drills: Vec<_> = state.drills.iter().cloned().collect();
    let facts = crate::review::Facts {
        status: &api.node.status(),
        document: &state.document(),
        drills: &drills,
        validations: &state.validations,
        lowered,
        at: wall_millis(),
    };
    crate::review::review(&facts)
}

/// All that Prometheus is told.
async fn exposition(api: &Api) -> Result<String, Problem> {
    let snapshot = metrics::Snapshot {
        status: api.node.status(),
        gateway: api.meter.read().await,
        events: api.node.parts.consensus.state().events.back().map_or(0, |e| e.seq),
        process: metrics::process(),
    };
    metrics::exposition(snapshot).map_err(|e| unavailable(format!("metrics: {e}")))
}

async fn metrics(State(api): State<Api>) -> Response {
    match exposition(&api).await {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// The same for the command line, which speaks JSON.
async fn metrics_text(State(api): State<Api>) -> Reply {
    exposition(&api).await.map(|text| Json(json!(text)))
}

/// Proposes a change.
///
/// # Errors
/// Why it did not take effect.
pub async fn propose(api: &Api, change: Change) -> Result<(), Problem> {
    match api.node.propose(change).await {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Refused { because }) => Err(refused(because)),
        Err(e) => Err(unavailable(format!("{e}. {}", e.hint()))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenAsk {
    minutes: u64,
}

/// Longest life of a join token.
const TOKEN_MINUTES_MAX: u64 = 7 * 24 * 60;

async fn token(State(api): State<Api>, Body(ask): Body<TokenAsk>) -> Reply {
    if !(1..=TOKEN_MINUTES_MAX).contains(&ask.minutes) {
        return Err(refused(format!("a token lives 1 to {TOKEN_MINUTES_MAX} minutes")));
    }
    let state = api.node.parts.consensus.state();
    let made = Authority::from_pem(&state.ca.certificate, &state.ca.key)
        .and_then(|a| Token::generate(a.fingerprint()))
        .map_err(|e| unavailable(e.to_string()))?;
    let expires = wall_millis() + ask.minutes * 60_000;
    propose(&api, Change::AddToken { hash: made.secret_hash(), expires }).await?;
    let link = state.nodes.get(&api.node.parts.me).map(|n| n.link.clone());
    Ok(Json(json!({ "token": made.to_string(), "expires": expires, "link": link })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchoverAsk {
    #[serde(default, deserialize_with = "take::some_node")]
    to: Option<NodeId>,
}

fn check_target(api: &Api, to: Option<NodeId>) -> Result<(), Problem> {
    let Some(to) = to else { return Ok(()) };
    let status = api.node.status();
    if !status.nodes.contains_key(&to) {
        return Err(refused(format!("there is no node {to}")));
    }
    if status.writer == Some(to) {
        return Err(refused(format!("{to} is the writer already")));
    }
    match status.candidates.iter().find(|c| c.node == to) {
        Some(c) if c.eligible => Ok(()),
        Some(c) => Err(refused(format!("{to} cannot write now: {}", c.because))),
        None => Err(refused(format!("{to} cannot write: it holds no data"))),
    }
}

async fn switchover(State(api): State<Api>, Body(ask): Body<SwitchoverAsk>) -> Reply {
    hand_over(&api, ask.to).await
}

/// Hands the writing over, to the best standby unless one is named.
///
/// # Errors
/// Why that cannot be.
pub async fn hand_over(api: &Api, to: Option<NodeId>) -> Reply {
    check_target(api, to)?;
    let status = api.node.status();
    if !status.candidates.iter().any(|c| c.eligible) {
        return Err(refused("no standby could take over: see `quorate status`"));
    }
    let term = status.term;
    match api.node.propose(Change::PlanSwitchover { term, target: to }).await {
        Ok(Answer::Done) => {}
        Ok(Answer::Refused { because }) => return Err(refused(because)),
        // It may be under way all the same.
        Err(e) if e.kind() == Trouble::Unknown && is_planned(api, term, to).await => {}
        Err(e) => return Err(unavailable(format!("{e}. {}", e.hint()))),
    }
    Ok(Json(json!({ "term": term })))
}

/// Whether a hand-over whose proposal was not answered in time takes place, as the record shows a
/// little later.
async fn is_planned(api: &Api, term: Term, target: Option<NodeId>) -> bool {
    let mut state = api.node.parts.consensus.watch();
    let plan = Some(Switchover { term, target });
    let planned = state.wait_for(|s| s.authority.term > term || s.authority.switchover == plan);
    timeout(OUTCOME_WAIT, planned).await.is_ok_and(|seen| seen.is_ok())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FailoverAsk {
    #[serde(default, deserialize_with = "take::some_node")]
    to: Option<NodeId>,
    #[serde(default)]
    allow_loss: Option<u64>,
}

async fn failover(State(api): State<Api>, Body(ask): Body<FailoverAsk>) -> Reply {
    check_target(&api, ask.to)?;
    let state = api.node.parts.consensus.state();
    let mut term = state.authority.term;
    if state.authority.phase != Phase::Electing {
        if ask.to.is_some() {
            // The next election prefers whom a plan names; refused, it prefers nobody.
            let plan = Change::PlanSwitchover { term, target: ask.to };
            let _ = api.node.propose(plan).await;
        }
        let because = Because::new("op-failover", "an operator asked for an election");
        let last_seen = state
            .authority
            .writer
            .and_then(|w| api.node.parts.health.status_of(w)?.server.map(|s| s.flushed));
        let planned = false;
        let change = Change::BeginElection { expect_term: term, last_seen, planned, because };
        propose(&api, change).await?;
        term = term.next();
    }
    if let Some(bytes) = ask.allow_loss {
        propose(&api, Change::AllowLoss { term, bytes }).await?;
    }
    // The new term is the one whose writer is awaited: it is later than this.
    Ok(Json(json!({ "term": term.0.saturating_sub(1) })))
}

/// Pauses or resumes automation.
///
/// # Errors
/// When that could not be agreed.
pub async fn set_paused(api: &Api, paused: bool) -> Reply {
    let text =
        if paused { "an operator paused automation" } else { "an operator resumed automation" };
    propose(api, Change::Pause { paused, because: Because::new("op-pause", text) }).await?;
    Ok(Json(json!({ "paused": paused })))
}

async fn pause(State(api): State<Api>) -> Reply {
    set_paused(&api, true).await
}

async fn resume(State(api): State<Api>) -> Reply {
    set_paused(&api, false).await
}

/// Longest that an answer may take.
const WAIT_SECONDS_MAX: u64 = 24 * 60 * 60;

fn default_wait() -> u64 {
    120
}

fn wait(seconds: u64) -> Result<Duration, Problem> {
    if seconds > WAIT_SECONDS_MAX {
        return Err(refused(format!("wait_seconds: use {WAIT_SECONDS_MAX} (a day) or less")));
    }
    Ok(Duration::from_secs(seconds))
}

/// Sends a request on to the node it is for; `None` when it is for us.
async fn forward(api: &Api, node: Option<NodeId>, path: &str, body: Value) -> Option<Reply> {
    let node = node.filter(|n| *n != api.node.parts.me)?;
    Some(send(api, node, Ask::post(path, body)).await)
}

/// Refuses a name that is no member's.
fn known(api: &Api, node: NodeId) -> Result<(), Problem> {
    if api.node.parts.consensus.state().nodes.contains_key(&node) {
        return Ok(());
    }
    Err(refused(format!("there is no node {node}")))
}

/// Asks another node.
async fn send(api: &Api, node: NodeId, request: Ask) -> Reply {
    known(api, node)?;
    let answered = async {
        let stream = api.node.parts.links.dial(node, Kind::Control).await?;
        ask(stream, request).await
    };
    match answered.await {
        Ok((status, value)) if status.is_success() => Ok(Json(value)),
        Ok((status, value)) => {
            let text = value["error"].as_str().unwrap_or("no reason given").to_owned();
            Err(Problem(status, text))
        }
        Err(e) => Err(unavailable(format!("{node} cannot be reached: {e:#}"))),
    }
}

async fn order(
    api: &Api,
    wait: Duration,
    make: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Order,
) -> Result<(), Problem> {
    let (tx, rx) = oneshot::channel();
    let busy = || unavailable("the node is busy with too many orders: try again");
    api.node.orders.try_send(make(tx)).map_err(|_| busy())?;
    match tokio::time::timeout(wait, rx).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(because))) => Err(refused(because)),
        Ok(Err(_)) => Err(refused("another order took its place")),
        Err(_) => Err(Problem(
            StatusCode::GATEWAY_TIMEOUT,
            format!("not done after {} s: see `quorate status`", wait.as_secs()),
        )),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartAsk {
    #[serde(default, deserialize_with = "take::some_node")]
    node: Option<NodeId>,
    #[serde(default = "default_wait")]
    wait_seconds: u64,
}

async fn restart(State(api): State<Api>, Body(ask): Body<RestartAsk>) -> Reply {
    let wait = wait(ask.wait_seconds)?;
    let body = json!({ "node": ask.node, "wait_seconds": ask.wait_seconds });
    if let Some(reply) = forward(&api, ask.node, "/api/restart", body).await {
        return reply;
    }
    let me = api.node.parts.me;
    if api.node.parts.database.is_none() {
        return Err(refused(format!("{me} is a witness: it has no server to restart")));
    }
    let status = api.node.status();
    if status.writer == Some(me) && status.candidates.iter().any(|c| c.eligible) {
        return Err(refused(format!(
            "{me} is the writer: use `quorate restart --rolling`, or switch over first"
        )));
    }
    order(&api, wait, Order::Restart).await?;
    Ok(Json(json!({ "node": me })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RebuildAsk {
    #[serde(default, deserialize_with = "take::some_node")]
    node: Option<NodeId>,
}

async fn rebuild(State(api): State<Api>, Body(ask): Body<RebuildAsk>) -> Reply {
    rebuild_node(&api, ask.node).await
}

/// Throws a standby's data away and copies it again; this node's, unless one is named.
///
/// # Errors
/// Why that cannot be.
pub async fn rebuild_node(api: &Api, node: Option<NodeId>) -> Reply {
    let body = json!({ "node": node });
    if let Some(reply) = forward(api, node, "/api/rebuild", body).await {
        return reply;
    }
    let status = api.node.status();
    let serving = status.writer.is_some_and(|w| {
        w != status.me
            && status
                .nodes
                .get(&w)
                .and_then(|m| m.status.as_ref())
                .is_some_and(|s| s.doing == Doing::Writing)
    });
    if !serving {
        return Err(refused(
            "no other node writes: this data may be the last copy and is not thrown away",
        ));
    }
    order(api, Duration::from_secs(30), Order::Rebuild).await?;
    Ok(Json(json!({ "node": status.me })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveAsk {
    #[serde(deserialize_with = "take::node")]
    node: NodeId,
    #[serde(default = "default_wait")]
    wait_seconds: u64,
}

async fn remove(State(api): State<Api>, Body(ask): Body<RemoveAsk>) -> Reply {
    remove_node(&api, ask.node, wait(ask.wait_seconds)?).await
}

async fn remove_node(api: &Api, name: NodeId, wait: Duration) -> Reply {
    propose(api, Change::Leave { name }).await?;
    let deadline = tokio::time::Instant::now() + wait;
    let mut state = api.node.parts.consensus.watch();
    let left = state.wait_for(|s| !s.authority.cohort().contains(&name));
    match tokio::time::timeout_at(deadline, left).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) | Err(_) => {
            return Err(Problem(
                StatusCode::GATEWAY_TIMEOUT,
                format!(
                    "{name} is marked as leaving, and the commit rule cannot go on without it yet: \
                     too few other copies (see `quorate status`)"
                ),
            ));
        }
    }
    propose(api, Change::RemoveNode { name }).await?;
    Ok(Json(json!({ "node": name })))
}

async fn standalone(State(api): State<Api>) -> Reply {
    let me = api.node.parts.me;
    if api.node.parts.database.is_none() {
        return Err(refused(format!("{me} is a witness: it has no database")));
    }
    let status = api.node.status();
    if status.writer == Some(me) {
        return Err(refused(format!("{me} is the writer: switch over first")));
    }
    let _removed = remove_node(&api, me, Duration::from_secs(60)).await?;
    crate::cli::recover::release(&api.node).await.map_err(|e| unavailable(format!("{e:#}")))
}

#[cfg(test)]
mod tests;
