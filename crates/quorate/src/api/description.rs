//! What the API is, for programs: an OpenAPI description, kept by hand beside what it describes. The
//! tests below compare it with the routes, with what they take and with what they answer.

use axum::Router;
use axum::http::header;
use axum::routing::get;

use super::Api;

/// The description.
const OPENAPI: &str = include_str!("openapi.json");

/// The route.
pub(super) fn routes() -> Router<Api> {
    Router::new().route(
        "/api/openapi.json",
        get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI)),
    )
}

#[cfg(test)]
mod tests;
