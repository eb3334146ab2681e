//! How a command reaches a node: its control socket, or a web port.

use std::sync::Arc;

use anyhow::{Context, Result};
use hyper::StatusCode;
use quorate_link::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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
            let (host, tls) = host_of(url);
            let failed = |e| Failure::Unreachable(format!("cannot reach {url}: {e}"));
            let stream = TcpStream::connect(host).await.map_err(failed)?;
            match tls {
                false => ask(stream, request).await?,
                true => ask(encrypted(global, host, stream).await?, request).await?,
            }
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

/// `host:port` of an address, and whether it is encrypted.
fn host_of(url: &str) -> (&str, bool) {
    let url = url.trim_end_matches('/');
    match url.strip_prefix("https://") {
        Some(host) => (host, true),
        None => (url.strip_prefix("http://").unwrap_or(url), false),
    }
}

/// A connection on which the other side has shown a certificate of the authority, for this host.
async fn encrypted(global: &Global, host: &str, tcp: TcpStream) -> Result<TlsStream<TcpStream>> {
    let authority = match &global.ca {
        Some(file) => {
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        None => {
            let hint = "https needs the certificate of the cluster's authority: `quorate ca` on a \
                        node prints it, and --ca takes the file";
            let config = Config::load(global.dir()).context(hint)?;
            Identity::load(&config.identity_dir()).context(hint)?.ca_pem.into_bytes()
        }
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&authority) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let name = ServerName::try_from(name.to_owned())
        .with_context(|| format!("{name:?} is no host name"))?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.map_err(|e| {
        let hint = "is its certificate from that authority, and for that name?";
        Failure::Unreachable(format!("{host} is not trusted: {e} ({hint})")).into()
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        assert_eq!(host_of("http://db:6434/"), ("db:6434", false));
        assert_eq!(host_of("db:6434"), ("db:6434", false));
        assert_eq!(host_of("https://[::1]:6434"), ("[::1]:6434", true));
    }
}
