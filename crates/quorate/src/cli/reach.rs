//! How a command reaches a node: its control socket, or a web port.

use anyhow::{Context, Result};
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

use super::Global;
use crate::config::Config;
use crate::http::{Ask, ask};

/// A command's failure, with the exit code it deserves.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The cluster said no.
    #[error("{0}")]
    Refused(String),
    /// Nobody answered.
    #[error("{0}")]
    Unreachable(String),
}

impl Failure {
    /// Whether the cluster said no, which asking again does not change.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 3,
            Self::Unreachable(_) => 4,
        }
    }
}

/// Sends a request to the node that the options name.
pub async fn call(global: &Global, mut request: Ask) -> Result<Value> {
    request.token = global.admin_token.clone();
    let (status, value) = match &global.url {
        Some(url) => {
            let host = url.trim_end_matches('/');
            let host = host.strip_prefix("http://").unwrap_or(host);
            let stream = TcpStream::connect(host)
                .await
                .map_err(|e| Failure::Unreachable(format!("cannot reach {url}: {e}")))?;
            ask(stream, request).await?
        }
        None => {
            let config = Config::load(global.dir())?;
            let path = config.control();
            let stream = UnixStream::connect(&path).await.map_err(|e| {
                Failure::Unreachable(format!(
                    "node {} is not running (no answer at {}: {e}): start it with `quorate run \
                     --dir {}`, or ask a node whose web port is open to this host with --url http://host:6434",
                    config.file.name,
                    path.display(),
                    global.dir().display(),
                ))
            })?;
            ask(stream, request).await?
        }
    };
    answer(status, value)
}

/// Turns an HTTP status into a result.
pub fn answer(status: StatusCode, value: Value) -> Result<Value> {
    if status.is_success() {
        return Ok(value);
    }
    let text = value.get("error").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
    match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Err(Failure::Unreachable(text).into())
        }
        _ => Err(Failure::Refused(text).into()),
    }
}

/// Reads something typed.
pub async fn get<T: DeserializeOwned>(global: &Global, path: &str) -> Result<T> {
    let value = call(global, Ask::get(path)).await?;
    serde_json::from_value(value).context("the node's answer is of another version of Quorate")
}
