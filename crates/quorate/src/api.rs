//! The HTTP API: the same routes on the control socket, the web port and links between nodes.
//!
//! Reading needs nothing; actions through the web port need the node's admin token. The control
//! socket is the operating system's to guard, links are guarded by certificates.

mod drills;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use quorate_agent::node::wall_millis;
use quorate_agent::{Node, Order};
use quorate_consensus::Kind as Trouble;
use quorate_core::authority::{Phase, Switchover};
use quorate_core::document::{Document, Invalid};
use quorate_core::state::Change;
use quorate_core::status::Doing;
use quorate_core::{Answer, Because, NodeId, Term};
use quorate_link::{Authority, Kind, LinkStream, Token};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::drill::conduct::Conductor;
use crate::http::{Ask, ask};

/// How long the record may take to show what a proposal came to whose answer is missing.
const OUTCOME_WAIT: Duration = Duration::from_secs(5);

/// What handlers need.
#[derive(Clone)]
pub struct Api {
    /// The node.
    pub node: Arc<Node>,
    /// Its part in drills.
    pub conductor: Arc<Conductor>,
}

/// A failed request: what a person should know.
pub struct Problem(StatusCode, String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

type Reply = Result<Json<Value>, Problem>;

fn refused(because: impl Into<String>) -> Problem {
    Problem(StatusCode::CONFLICT, because.into())
}

fn unavailable(because: impl Into<String>) -> Problem {
    Problem(StatusCode::SERVICE_UNAVAILABLE, because.into())
}

/// All routes.
pub fn router(node: Arc<Node>, conductor: Arc<Conductor>) -> Router {
    Router::new()
        .route("/api/status", get(status))
        .route("/api/events", get(events))
        .route("/api/config", get(documents).post(set_document))
        .route("/api/token", post(token))
        .route("/api/switchover", post(switchover))
        .route("/api/failover", post(failover))
        .route("/api/pause", post(pause))
        .route("/api/resume", post(resume))
        .route("/api/restart", post(restart))
        .route("/api/rebuild", post(rebuild))
        .route("/api/remove", post(remove))
        .route("/api/standalone", post(standalone))
        .merge(drills::routes())
        .with_state(Api { node, conductor })
}

/// The routes with the admin token asked of every action, for the web port.
pub fn guarded(router: Router, token: String) -> Router {
    let token: Arc<str> = token.into();
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let token = Arc::clone(&token);
        async move {
            if request.method() == Method::GET || bears(request.headers(), &token) {
                return next.run(request).await;
            }
            let text = "actions through the web port need the node's admin token: it is in the \
                        file admin.token of its directory (--admin-token)";
            Problem(StatusCode::UNAUTHORIZED, text.to_owned()).into_response()
        }
    }))
}

fn bears(headers: &HeaderMap, token: &str) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "));
    // Compared without an early exit: the time must not tell how much was right.
    given.is_some_and(|given| {
        given.len() == token.len()
            && given.bytes().zip(token.bytes()).fold(0, |d, (a, b)| d | (a ^ b)) == 0
    })
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

async fn status(State(api): State<Api>) -> Json<Value> {
    Json(json!(api.node.status()))
}

async fn events(State(api): State<Api>) -> Json<Value> {
    Json(json!(api.node.parts.consensus.state().events))
}

async fn documents(State(api): State<Api>) -> Json<Value> {
    Json(json!(api.node.parts.consensus.state().documents))
}

async fn propose(api: &Api, change: Change) -> Result<(), Problem> {
    match api.node.propose(change).await {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Refused { because }) => Err(refused(because)),
        Err(e) => Err(unavailable(format!("{e}. {}", e.hint()))),
    }
}

#[derive(Deserialize)]
struct SetDocument {
    expect_version: u64,
    document: Document,
    #[serde(default)]
    dry_run: bool,
}

async fn set_document(State(api): State<Api>, Json(ask): Json<SetDocument>) -> Reply {
    let mut problems = ask.document.validate();
    let members = &api.node.parts.consensus.state().nodes;
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
    let version = ask.expect_version + 1;
    if !ask.dry_run {
        let change =
            Change::SetDocument { expect_version: ask.expect_version, document: ask.document };
        propose(&api, change).await?;
    }
    Ok(Json(json!({ "version": version, "notes": notes })))
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

#[derive(Deserialize)]
struct TokenAsk {
    minutes: u64,
}

/// Longest life of a join token.
const TOKEN_MINUTES_MAX: u64 = 7 * 24 * 60;

async fn token(State(api): State<Api>, Json(ask): Json<TokenAsk>) -> Reply {
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
struct MoveAsk {
    to: Option<NodeId>,
    #[serde(default)]
    allow_loss: Option<u64>,
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

async fn switchover(State(api): State<Api>, Json(ask): Json<MoveAsk>) -> Reply {
    check_target(&api, ask.to)?;
    let status = api.node.status();
    if !status.candidates.iter().any(|c| c.eligible) {
        return Err(refused("no standby could take over: see `quorate status`"));
    }
    let term = status.term;
    match api.node.propose(Change::PlanSwitchover { term, target: ask.to }).await {
        Ok(Answer::Done) => {}
        Ok(Answer::Refused { because }) => return Err(refused(because)),
        // It may be under way all the same.
        Err(e) if e.kind() == Trouble::Unknown && is_planned(&api, term, ask.to).await => {}
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

async fn failover(State(api): State<Api>, Json(ask): Json<MoveAsk>) -> Reply {
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

async fn set_paused(api: &Api, paused: bool) -> Reply {
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

#[derive(Deserialize)]
struct NodeAsk {
    node: Option<NodeId>,
    #[serde(default = "default_wait")]
    wait_seconds: u64,
}

fn default_wait() -> u64 {
    120
}

/// Sends a request on to the node it is for; `None` when it is for us.
async fn forward(api: &Api, node: Option<NodeId>, path: &str, body: Value) -> Option<Reply> {
    let node = node.filter(|n| *n != api.node.parts.me)?;
    if !api.node.parts.consensus.state().nodes.contains_key(&node) {
        return Some(Err(refused(format!("there is no node {node}"))));
    }
    let answered = async {
        let stream = api.node.parts.links.dial(node, Kind::Control).await?;
        ask(stream, Ask::post(path, body)).await
    };
    Some(match answered.await {
        Ok((status, value)) if status.is_success() => Ok(Json(value)),
        Ok((status, value)) => {
            let text = value["error"].as_str().unwrap_or("no reason given").to_owned();
            Err(Problem(status, text))
        }
        Err(e) => Err(unavailable(format!("{node} cannot be reached: {e:#}"))),
    })
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

async fn restart(State(api): State<Api>, Json(ask): Json<NodeAsk>) -> Reply {
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
    order(&api, Duration::from_secs(ask.wait_seconds), Order::Restart).await?;
    Ok(Json(json!({ "node": me })))
}

async fn rebuild(State(api): State<Api>, Json(ask): Json<NodeAsk>) -> Reply {
    let body = json!({ "node": ask.node });
    if let Some(reply) = forward(&api, ask.node, "/api/rebuild", body).await {
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
    order(&api, Duration::from_secs(30), Order::Rebuild).await?;
    Ok(Json(json!({ "node": status.me })))
}

async fn remove(State(api): State<Api>, Json(ask): Json<NodeAsk>) -> Reply {
    let Some(name) = ask.node else {
        return Err(refused("which node?"));
    };
    propose(&api, Change::Leave { name }).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(ask.wait_seconds);
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
    propose(&api, Change::RemoveNode { name }).await?;
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
    let ask = NodeAsk { node: Some(me), wait_seconds: 60 };
    let _removed = remove(State(api.clone()), Json(ask)).await?;
    crate::cli::recover::release(&api.node).await.map_err(|e| unavailable(format!("{e:#}")))
}
