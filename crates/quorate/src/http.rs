//! One HTTP request over any stream: the control socket, a web port, or a link to another node.

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest answer taken: a whole cluster document with its history is far smaller.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Ask {
    /// GET or POST.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// JSON body of a POST.
    pub body: Option<Value>,
    /// Admin token, for web ports.
    pub token: Option<String>,
}

impl Ask {
    /// Reads something.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, token: None }
    }

    /// Does something.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body), token: None }
    }
}

/// Sends one request over a fresh stream and reads the JSON answer.
pub async fn ask<S>(stream: S, ask: Ask) -> Result<(StatusCode, Value)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(ask.method)
        .uri(ask.path)
        .header("host", "quorate")
        .header("content-type", "application/json");
    if let Some(token) = ask.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = ask.body.map(|b| b.to_string()).unwrap_or_default();
    let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let status = response.status();
    let bytes = match Limited::new(response.into_body(), ANSWER_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => bail!("reading the answer failed: {e}"),
    };
    driver.abort();
    let value = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes).context("the answer is not JSON: is this a Quorate port?")?
    };
    Ok((status, value))
}
