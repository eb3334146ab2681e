//! The page that every node serves at its web port: the cluster for people, drawn by the node, live.
//!
//! ```text
//! gather (a picture: plain data) ─▶ sections (pure: picture ─▶ markup) ─┬─▶ GET /          all of it
//!                                                                        └─▶ GET /page/live what changed
//! ```
//!
//! It asks nothing of anybody but this node, is complete without its script, and only shows: what it
//! can do asks again first, wants the admin token, and leaves an entry in the event history.

mod act;
mod assets;
mod charts;
mod checks;
mod cluster;
mod commits;
#[cfg(test)]
pub(crate) mod fixture;
pub mod guard;
mod history;
pub mod limits;
mod live;
mod login;
mod memo;
mod parts;
mod picture;
mod slots;
pub mod trend;
mod verdict;
mod view;
pub mod web;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Extension, Form, Query, State};
use axum::http::{Extensions, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use maud::{Markup, html};
use quorate_core::Because;
use quorate_core::state::Change;
use serde::Deserialize;

use crate::api::{self, Api, Problem};
use act::Deed;
use guard::LOGIN;
pub use live::Live;
use live::Watcher;
pub use login::guarded;
use picture::{Over, Source};
use view::{Frame, Viewer};
use web::Caller;

/// What browsers may do with our pages: nothing but what we sent ourselves.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// A drill's report brings its own style along, so that it can be kept as a file.
const REPORT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

/// The routes.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/", get(index))
        .route("/page/live", get(watch))
        .route("/page/drill", get(report))
        .route("/page/act", get(ask).post(perform))
        .route(assets::STYLE.path, get(async || assets::STYLE.answer()))
        .route(assets::SCRIPT.path, get(async || assets::SCRIPT.answer()))
        .route(assets::ICON.path, get(async || assets::ICON.answer()))
}

/// A page as an answer.
fn answer(status: StatusCode, page: Markup) -> Response {
    answer_by(POLICY, status, page.into_string())
}

fn answer_by(policy: &'static str, status: StatusCode, page: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, page).into_response()
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shown {
    over: String,
    /// What was done just now.
    done: String,
    /// What a watcher has.
    have: String,
}

/// The control socket and links are guarded by themselves: who comes through them may act.
fn viewer(given: Option<Extension<Viewer>>) -> Viewer {
    given.map_or(Viewer::Operator, |v| v.0)
}

async fn index(
    State(api): State<Api>,
    Query(shown): Query<Shown>,
    given: Option<Extension<Viewer>>,
) -> Response {
    whole(&api, &shown, viewer(given)).await
}

async fn whole(source: &impl Source, shown: &Shown, viewer: Viewer) -> Response {
    let over = Over::from_word(&shown.over);
    let picture = source.picture().await;
    let lateness = source.lateness(over);
    let said = act::done(&shown.done);
    answer(StatusCode::OK, view::page(&picture, &lateness, over, viewer, said))
}

async fn watch(
    State(api): State<Api>,
    Query(shown): Query<Shown>,
    given: Option<Extension<Viewer>>,
) -> Response {
    changes(&api, &api.live, &shown, viewer(given))
}

fn changes(source: &impl Source, live: &Arc<Live>, shown: &Shown, viewer: Viewer) -> Response {
    let watcher = Watcher { over: Over::from_word(&shown.over), viewer };
    let Some(body) = live.watch(source, watcher, live::has(&shown.have)) else {
        let text = format!("{} watch already: close a page somewhere", limits::WATCHERS_MAX);
        return Problem::too_many(text).into_response();
    };
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

/// A page of its own with this content.
fn framed(api: &Api, viewer: Viewer, title: &str, content: &Markup) -> Markup {
    let cluster = &api.node.parts.consensus.state().cluster_id;
    let frame = Frame { title, me: api.node.parts.me, cluster, viewer };
    frame.around(&html! {}, content, None)
}

fn refusal(api: &Api, because: &str) -> Response {
    let page = framed(api, Viewer::Operator, "Nothing was done · Quorate", &act::cannot(because));
    answer(StatusCode::CONFLICT, page)
}

async fn ask(
    State(api): State<Api>,
    Query(form): Query<act::Form>,
    given: Option<Extension<Viewer>>,
) -> Response {
    if viewer(given) == Viewer::Reader {
        return Redirect::to(LOGIN).into_response();
    }
    let picture = api.picture().await;
    match form.deed().and_then(|deed| act::consequence(deed, &picture)) {
        Ok(consequence) => question(&api, StatusCode::OK, &act::ask(&consequence, false)),
        Err(because) => refusal(&api, &because),
    }
}

fn question(api: &Api, status: StatusCode, content: &Markup) -> Response {
    answer(status, framed(api, Viewer::Operator, "Are you sure? · Quorate", content))
}

/// Does what a form asks for, once it is in the event history that it was asked for.
async fn perform(
    State(api): State<Api>,
    extensions: Extensions,
    Form(form): Form<act::Form>,
) -> Response {
    // What it leads to may have changed since it was read: what cannot be done is not begun.
    let picture = api.picture().await;
    let consequence = match form.deed().and_then(|deed| act::consequence(deed, &picture)) {
        Ok(consequence) => consequence,
        Err(because) => return refusal(&api, &because),
    };
    if !form.agrees(&consequence) {
        return question(&api, StatusCode::CONFLICT, &act::ask(&consequence, true));
    }
    let deed = consequence.deed;
    let done = async {
        record(&api, deed, web::caller(&extensions)).await?;
        carry_out(&api, deed).await
    };
    match done.await {
        Ok(()) => Redirect::to(&format!("/?done={}", deed.word())).into_response(),
        Err(problem) => refusal(&api, problem.sentence()),
    }
}

async fn record(api: &Api, deed: Deed, caller: Option<Caller>) -> Result<(), Problem> {
    let from = caller.map_or("its own host".to_owned(), |c| c.from.ip().to_canonical().to_string());
    let text = format!(
        "somebody at the page of {} asked {}, from {from}",
        api.node.parts.me,
        deed.words()
    );
    let because = Because::new("op-page", text);
    api::propose(api, Change::Note { kind: "operator".to_owned(), because }).await
}

async fn carry_out(api: &Api, deed: Deed) -> Result<(), Problem> {
    match deed {
        Deed::Switchover(to) => api::hand_over(api, to).await.map(drop),
        Deed::Pause => api::set_paused(api, true).await.map(drop),
        Deed::Resume => api::set_paused(api, false).await.map(drop),
        Deed::Rebuild(node) => api::rebuild_node(api, Some(node)).await.map(drop),
        Deed::Drill(drill) => api::drills::begin_drill(api, drill).await.map(drop),
        Deed::AbortDrill => api::drills::abort_drill(api, None).await.map(drop),
    }
}

#[derive(Debug, Deserialize)]
struct Number {
    id: u64,
}

/// The report of a drill, from the node that conducted it.
async fn report(
    State(api): State<Api>,
    Query(Number { id }): Query<Number>,
    given: Option<Extension<Viewer>>,
) -> Response {
    match api::drills::report(&api, id).await {
        Ok(report) => answer_by(
            REPORT_POLICY,
            StatusCode::OK,
            crate::drill::page::page(&report, Some("/#drills")),
        ),
        Err(problem) => {
            let content = html! { section.ask { h1 { "Drill " (id) } p { (problem.sentence()) }
            p { a.button href="/#drills" { "Back" } } } };
            let page = framed(&api, viewer(given), "Drill · Quorate", &content);
            answer(StatusCode::NOT_FOUND, page)
        }
    }
}

#[cfg(test)]
mod browser {
    //! The page of a made-up cluster for a browser to look at: see tools/page.

    use std::time::{Duration, Instant};

    use super::fixture::{huge, large, troubled};
    use super::guard::Guard;
    use super::picture::{Lateness, Picture};
    use super::web::{Web, WebTls};
    use super::*;
    use crate::fixture::node;

    /// Writes at one and the same node, with something wrong by turns.
    #[derive(Clone)]
    struct MadeUp {
        began: Instant,
        live: Arc<Live>,
        nodes: usize,
    }

    /// With more nodes than that it is one of fifty that does not change.
    const HUGE: usize = 16;
    /// How long it is well, and is not.
    const TURN: Duration = Duration::from_secs(2);

    impl Source for MadeUp {
        async fn picture(&self) -> Picture {
            let turn = self.began.elapsed().as_millis() / TURN.as_millis();
            match turn.is_multiple_of(2) {
                _ if self.nodes > HUGE => huge(),
                true => large(self.nodes),
                false => troubled(),
            }
        }

        fn lateness(&self, _over: Over) -> Lateness {
            let status = if self.nodes > HUGE { huge().status } else { large(self.nodes).status };
            fixture::lateness(&status)
        }

        fn agreed(&self) -> tokio::sync::watch::Receiver<Arc<quorate_core::state::State>> {
            tokio::sync::watch::Sender::default().subscribe()
        }
    }

    async fn page(
        State(source): State<MadeUp>,
        Query(shown): Query<Shown>,
        given: Option<Extension<Viewer>>,
    ) -> Response {
        whole(&source, &shown, viewer(given)).await
    }

    async fn live(
        State(source): State<MadeUp>,
        Query(shown): Query<Shown>,
        given: Option<Extension<Viewer>>,
    ) -> Response {
        changes(&source, &source.live, &shown, viewer(given))
    }

    async fn act(State(source): State<MadeUp>, Query(form): Query<act::Form>) -> Response {
        let deed = form.deed().unwrap();
        let told = act::consequence(deed, &source.picture().await);
        let content = told.map_or_else(|why| act::cannot(&why), |told| act::ask(&told, false));
        let title = "Are you sure? · Quorate";
        let frame = Frame { title, me: node("n1"), cluster: "", viewer: Viewer::Operator };
        answer(StatusCode::OK, frame.around(&html! {}, &content, None))
    }

    #[tokio::test]
    async fn a_page_for_a_browser() {
        let Ok(address) = std::env::var("QUORATE_PAGE_AT") else { return };
        let nodes = std::env::var("QUORATE_PAGE_NODES").map_or(3, |n| n.parse().unwrap());
        let source = MadeUp { began: Instant::now(), live: Arc::default(), nodes };
        let asset = |asset: &'static assets::Asset| get(async || asset.answer());
        let routes = Router::new()
            .route("/", get(page))
            .route("/page/live", get(live))
            .route("/page/act", get(act).post(async || Redirect::to("/?done=pause")))
            .route(assets::STYLE.path, asset(&assets::STYLE))
            .route(assets::SCRIPT.path, asset(&assets::SCRIPT))
            .route(assets::ICON.path, asset(&assets::ICON))
            .with_state(source);
        let tcp = tokio::net::TcpListener::bind(&address).await.unwrap();
        let tls = Arc::new(quorate_gateway::TlsSource::new(None));
        let web = Web::new(tcp, WebTls::Offered, tls).unwrap();
        let routes = guarded(routes, Guard::new(node("n1"), "secret"), WebTls::Offered);
        let routes = routes.into_make_service_with_connect_info::<Caller>();
        // Whoever started this ends it.
        axum::serve(web, routes).await.unwrap();
    }
}
