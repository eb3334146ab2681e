use axum::body::{Body as Bytes, to_bytes};
use axum::extract::Request;
use hyper::service::Service as _;

use super::*;
use crate::fixture::node;

/// A route of each kind.
fn routes() -> Router {
    let restart = async |Body(ask): Body<RestartAsk>| Json(json!(ask.wait_seconds));
    let lag = async |_: take::Params<alerts::LagAsk>| Json(json!("looked"));
    Router::new()
        .route("/api/restart", post(restart))
        .route("/api/lag", get(lag))
        .fallback(nowhere)
        .method_not_allowed_fallback(otherwise)
}

async fn ask(request: Request) -> Response {
    TowerToHyperService::new(routes()).call(request).await.unwrap()
}

async fn send(method: Method, path: &str, kind: &str, body: impl Into<Bytes>) -> Response {
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    ask(request.body(body.into()).unwrap()).await
}

const JSON: &str = "application/json";

/// The sentence of a refusal, which must be JSON.
async fn sentence(response: Response, status: StatusCode) -> String {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()[header::CONTENT_TYPE], JSON);
    let bytes = to_bytes(response.into_body(), 1024 * 1024).await.unwrap();
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    value["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_body_that_cannot_be_taken_is_told_of_in_json() {
    let restart = |kind, body: &str| send(Method::POST, "/api/restart", kind, body.to_owned());
    assert_eq!(restart(JSON, r#"{"node":"n1"}"#).await.status(), StatusCode::OK);
    let text = sentence(restart(JSON, "{").await, StatusCode::BAD_REQUEST).await;
    assert!(text.contains("line 1"), "{text}");
    let wrong = restart("text/plain", "{}").await;
    let text = sentence(wrong, StatusCode::UNSUPPORTED_MEDIA_TYPE).await;
    assert!(text.contains("content-type: application/json"), "{text}");
    let wrong = restart(JSON, r#"{"wait_seconds":"long"}"#).await;
    let text = sentence(wrong, StatusCode::UNPROCESSABLE_ENTITY).await;
    assert!(text.contains("wait_seconds: invalid type: string"), "{text}");
    let large = restart(JSON, &" ".repeat(3 * 1024 * 1024)).await;
    sentence(large, StatusCode::PAYLOAD_TOO_LARGE).await;
}

#[tokio::test]
async fn a_query_that_cannot_be_taken_is_told_of_in_json() {
    let lag = |query| {
        let path = format!("/api/lag?{query}");
        async move { send(Method::GET, &path, JSON, "").await }
    };
    assert_eq!(lag("node=n1&points=2").await.status(), StatusCode::OK);
    let wrong = [
        ("points=2", "missing field `node`"),
        ("node=", "use 1 to 31 lower-case letters"),
        ("node=n1&minute=2", "unknown field `minute`"),
        ("node=n1&points=18446744073709551616", "points"),
    ];
    for (query, why) in wrong {
        let text = sentence(lag(query).await, StatusCode::BAD_REQUEST).await;
        assert!(text.contains(why), "{text}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_told_of_in_json() {
    let text = sentence(send(Method::GET, "/api/nope", JSON, "").await, StatusCode::NOT_FOUND);
    assert!(text.await.contains("/api/openapi.json"));
    let response = send(Method::DELETE, "/api/lag", JSON, "").await;
    assert_eq!(response.headers()[header::ALLOW], "GET,HEAD");
    let text = sentence(response, StatusCode::METHOD_NOT_ALLOWED).await;
    assert!(text.contains("/api/lag does not take DELETE"), "{text}");
}

#[test]
fn who_is_asked_for_a_token_is_told_how_to_show_it() {
    let headers = Problem::unauthorized("no").into_response().headers().clone();
    assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer");
    assert!(!refused("no").into_response().headers().contains_key(header::WWW_AUTHENTICATE));
}

#[test]
fn no_wait_is_so_long_that_clocks_cannot_tell_its_end() {
    assert_eq!(wait(120).ok(), Some(Duration::from_secs(120)));
    for seconds in [WAIT_SECONDS_MAX + 1, u64::MAX] {
        assert!(wait(seconds).is_err_and(|p| p.0 == StatusCode::CONFLICT));
    }
}

#[test]
fn who_is_removed_is_named() {
    assert!(serde_json::from_str::<RemoveAsk>("{}").is_err());
    let ask: RemoveAsk = serde_json::from_str(r#"{"node":"n4"}"#).unwrap();
    assert_eq!((ask.node, ask.wait_seconds), (node("n4"), 120));
}
