//! Logging in at the web port, and the port's guard around all other routes.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Form, Request, State};
use axum::http::{Extensions, HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use maud::{Markup, html};
use serde::Deserialize;

use super::answer;
use super::guard::{self, Guard, LOGIN, LOGOUT, NoLogin};
use super::view::{Frame, Viewer};
use super::web::{self, Caller, WebTls};
use crate::api::Problem;

/// The routes as the web port serves them: whoever acts must show the token, or be logged in.
pub fn guarded(router: Router, guard: Arc<Guard>, tls: WebTls) -> Router {
    let door = Router::new()
        .route(LOGIN, get(form).post(log_in))
        .route(LOGOUT, post(log_out))
        .with_state(Arc::clone(&guard));
    router.merge(door).layer(middleware::from_fn(move |request: Request, next: Next| {
        let guard = Arc::clone(&guard);
        async move {
            match elsewhere(&request, tls) {
                Some(answer) => answer,
                None => guard::check(guard, request, next).await,
            }
        }
    }))
}

/// The answer to somebody who must come with https.
fn elsewhere(request: &Request, tls: WebTls) -> Option<Response> {
    let caller = web::caller(request.extensions())?;
    if tls != WebTls::Required || caller.is_private() {
        return None;
    }
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    Some(match host {
        Some(host) if request.method() == Method::GET => {
            Redirect::permanent(&format!("https://{host}{path}")).into_response()
        }
        Some(_) | None => Problem::forbidden("this port takes https only").into_response(),
    })
}

fn page(guard: &Guard, content: &Markup) -> Markup {
    let me = guard.me();
    let frame = Frame { title: "Log in · Quorate", me, cluster: "", viewer: Viewer::Reader };
    frame.around(&html! {}, content, None)
}

fn login_form(guard: &Guard, wrong: Option<&str>) -> Markup {
    page(
        guard,
        &html! {
            section.ask {
                h1 { "Log in to act" }
                @if let Some(wrong) = wrong { p.bad role="alert" { (wrong) } }
                form method="post" action=(LOGIN) {
                    p {
                        label for="token" { "Admin token of " (guard.me()) }
                    input id="token" name="token" type="password" required autofocus
                        autocomplete="current-password";
                    }
                    p { button { "Log in" } " " a.button href="/" { "Only look" } }
                }
                p.soft {
                "It is in the file " code { "admin.token" }
                " of the node's directory. Looking needs nothing."
            }
            }
        },
    )
}

/// The answer to somebody whose token others could read on its way.
fn open_way(guard: &Guard) -> Markup {
    page(
        guard,
        &html! {
            section.ask {
                h1 { "Log in with https" }
                p {
                    "This connection is not encrypted: the token could be read on its way. Open this \
                    page with " b { "https://" } " instead, or from the host itself."
                }
                p.soft {
                code { "quorate ca" }
                " prints the certificate of the authority that your browser may ask about."
            }
                p { a.button href="/" { "Only look" } }
            }
        },
    )
}

fn is_private(caller: Option<Caller>) -> bool {
    caller.is_none_or(|c| c.is_private())
}

async fn form(State(guard): State<Arc<Guard>>, extensions: Extensions) -> Response {
    match is_private(web::caller(&extensions)) {
        true => answer(StatusCode::OK, login_form(&guard, None)),
        false => answer(StatusCode::FORBIDDEN, open_way(&guard)),
    }
}

#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    token: String,
}

async fn log_in(
    State(guard): State<Arc<Guard>>,
    extensions: Extensions,
    Form(shown): Form<Shown>,
) -> Response {
    let caller = web::caller(&extensions);
    if !is_private(caller) {
        return answer(StatusCode::FORBIDDEN, open_way(&guard));
    }
    let (from, tls) = (caller.map(|c| c.from.ip()), caller.is_some_and(|c| c.tls));
    match guard.log_in(&shown.token, from, tls, Instant::now()) {
        Ok(cookie) => {
            tracing::info!(from = ?from, "somebody logged in at the page");
            ([(header::SET_COOKIE, cookie)], Redirect::to("/?done=log-in#act")).into_response()
        }
        Err(NoLogin::Wrong) => {
            let page = login_form(&guard, Some("That is not this node's admin token."));
            answer(StatusCode::UNAUTHORIZED, page)
        }
        Err(NoLogin::TooMany) => {
            let text = "Too many wrong tokens came from your address: wait a minute.";
            answer(StatusCode::TOO_MANY_REQUESTS, login_form(&guard, Some(text)))
        }
    }
}

async fn log_out(
    State(guard): State<Arc<Guard>>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Response {
    let tls = web::caller(&extensions).is_some_and(|c| c.tls);
    let cookie = guard.log_out(&headers, tls);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/?done=log-out")).into_response()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::body::Body;
    use axum::extract::ConnectInfo;
    use hyper::service::Service as _;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::fixture::node;

    /// A port with one action and one thing to look at.
    fn port(tls: WebTls) -> TowerToHyperService<Router> {
        let inner = Router::new()
            .route("/api/status", get(async || "seen"))
            .route("/api/pause", post(async || "done"))
            .route("/page/act", post(async || "done"));
        TowerToHyperService::new(guarded(inner, Guard::new(node("n1"), "secret"), tls))
    }

    struct Ask {
        method: Method,
        path: &'static str,
        headers: Vec<(&'static str, String)>,
        body: &'static str,
        from: [u8; 4],
        tls: bool,
    }

    fn ask(method: Method, path: &'static str, headers: &[(&'static str, &str)]) -> Ask {
        let headers = headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        Ask { method, path, headers, body: "", from: [127, 0, 0, 1], tls: false }
    }

    async fn send(port: &TowerToHyperService<Router>, ask: Ask) -> Response {
        let mut request = Request::builder().method(ask.method).uri(ask.path);
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let mut request = request.body(Body::from(ask.body)).unwrap();
        let caller = Caller { from: SocketAddr::from((ask.from, 4000)), tls: ask.tls };
        request.extensions_mut().insert(ConnectInfo(caller));
        port.call(request).await.unwrap()
    }

    const OURS: (&str, &str) = ("sec-fetch-site", "same-origin");
    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

    #[tokio::test]
    async fn looking_needs_nothing_and_acting_the_token() {
        let port = port(WebTls::Offered);
        let status = |ask| async { send(&port, ask).await.status() };
        assert_eq!(status(ask(Method::GET, "/api/status", &[])).await, StatusCode::OK);
        let act = |headers: &[_]| ask(Method::POST, "/api/pause", headers);
        assert_eq!(status(act(&[])).await, StatusCode::UNAUTHORIZED);
        let wrong = status(act(&[("authorization", "Bearer nonsense")])).await;
        assert_eq!(wrong, StatusCode::UNAUTHORIZED);
        assert_eq!(status(act(&[("authorization", "Bearer secret")])).await, StatusCode::OK);
        let page = send(&port, ask(Method::POST, "/page/act", &[])).await;
        assert_eq!(page.headers()[header::LOCATION], LOGIN);
    }

    #[tokio::test]
    async fn a_login_acts_from_our_pages_only() {
        let port = port(WebTls::Offered);
        let login = Ask { body: "token=secret", ..ask(Method::POST, LOGIN, &[OURS, FORM]) };
        let answer = send(&port, login).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        let cookie = answer.headers()[header::SET_COOKIE].to_str().unwrap();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let act = |site: &str| {
            ask(Method::POST, "/page/act", &[("cookie", &cookie), ("sec-fetch-site", site)])
        };
        assert_eq!(send(&port, act("same-origin")).await.status(), StatusCode::OK);
        assert_eq!(send(&port, act("cross-site")).await.status(), StatusCode::FORBIDDEN);
        let out = ask(Method::POST, LOGOUT, &[OURS, ("cookie", &cookie)]);
        assert_eq!(send(&port, out).await.status(), StatusCode::SEE_OTHER);
        assert_eq!(send(&port, act("same-origin")).await.status(), StatusCode::SEE_OTHER);
    }

    #[tokio::test]
    async fn nobody_logs_in_where_others_can_listen_or_by_a_foreign_page() {
        let port = port(WebTls::Offered);
        let login = |from, tls, site| Ask {
            body: "token=secret",
            from,
            tls,
            ..ask(Method::POST, LOGIN, &[("sec-fetch-site", site), FORM])
        };
        let status = |ask| async { send(&port, ask).await.status() };
        let far = [10, 0, 0, 9];
        assert_eq!(status(login(far, false, "same-origin")).await, StatusCode::FORBIDDEN);
        assert_eq!(status(login(far, true, "same-origin")).await, StatusCode::SEE_OTHER);
        assert_eq!(status(login(far, true, "cross-site")).await, StatusCode::FORBIDDEN);
        let form = Ask { from: far, ..ask(Method::GET, LOGIN, &[]) };
        assert_eq!(status(form).await, StatusCode::FORBIDDEN);
    }

    #[tokio::test]
    async fn a_port_that_requires_tls_sends_others_there() {
        let port = port(WebTls::Required);
        let far = |method, tls| Ask {
            from: [10, 0, 0, 9],
            tls,
            ..ask(method, "/api/status", &[("host", "db:6434")])
        };
        let answer = send(&port, far(Method::GET, false)).await;
        assert_eq!(answer.headers()[header::LOCATION], "https://db:6434/api/status");
        assert_eq!(send(&port, far(Method::POST, false)).await.status(), StatusCode::FORBIDDEN);
        assert_eq!(send(&port, far(Method::GET, true)).await.status(), StatusCode::OK);
        let near = ask(Method::GET, "/api/status", &[]);
        assert_eq!(send(&port, near).await.status(), StatusCode::OK);
    }
}
