//! Sends one message: a POST, or a command.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::payload::payload;
use super::{Message, Receiver};

/// How long a receiver may take to take a message.
const SEND_WAIT: Duration = Duration::from_secs(10);
/// How long a command may take.
const COMMAND_WAIT: Duration = Duration::from_secs(30);
/// What of an answer is read, for the log.
const ANSWER_MAX: usize = 4 * 1024;
/// Where operating systems keep the authorities they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where messages are posted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

impl Address {
    /// # Errors
    /// When it is none.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no address"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => bail!("{url} must begin with http:// or https://"),
        };
        let Some(host) = uri.host() else { bail!("{url} names no host") };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Ok(Self { tls, host: host.trim_matches(['[', ']']).to_owned(), port, path })
    }
}

/// Tells one receiver.
///
/// # Errors
/// What failed; it may be tried again.
pub(super) async fn send(receiver: &Receiver, message: &Message) -> Result<()> {
    let body = payload(receiver.format, receiver.key.as_deref(), message).to_string();
    match &receiver.url {
        Some(url) => {
            let address = Address::parse(url)?;
            let posted = timeout(SEND_WAIT, post(receiver, &address, body)).await;
            posted.with_context(|| format!("no answer within {} s", SEND_WAIT.as_secs()))?
        }
        None => command(&receiver.command, &body).await,
    }
}

async fn post(receiver: &Receiver, address: &Address, body: String) -> Result<()> {
    let (host, port) = (address.host.as_str(), address.port);
    let stream = TcpStream::connect((host, port))
        .await
        .with_context(|| format!("cannot reach {host}:{port}"))?;
    if !address.tls {
        return exchange(stream, receiver, address, body).await;
    }
    let name = ServerName::try_from(address.host.clone())?;
    let ca = receiver.ca.clone();
    let config = tokio::task::spawn_blocking(move || client_config(ca.as_deref())).await??;
    let stream = TlsConnector::from(config).connect(name, stream).await?;
    exchange(stream, receiver, address, body).await
}

fn client_config(ca: Option<&Path>) -> Result<Arc<ClientConfig>> {
    let bundle = match ca {
        Some(path) => path.to_owned(),
        None => SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|p| p.exists()).context(
            "this host has no list of authorities: install ca-certificates, or name one (ca)",
        )?,
    };
    let mut roots = RootCertStore::empty();
    let read = || format!("cannot read {}", bundle.display());
    for certificate in CertificateDer::pem_file_iter(&bundle).with_context(read)? {
        // A bundle may hold what this program cannot use.
        let _ = roots.add(certificate.with_context(read)?);
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

async fn exchange<S>(stream: S, receiver: &Receiver, address: &Address, body: String) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(address.path.as_str())
        .header("host", format!("{}:{}", address.host, address.port))
        .header("content-type", "application/json")
        .header("user-agent", concat!("quorate/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = &receiver.token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let status = response.status();
    let answer = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    driver.abort();
    if status.is_success() {
        return Ok(());
    }
    let answer = answer.map(|a| a.to_bytes()).unwrap_or_default();
    bail!("it answered {status}: {}", String::from_utf8_lossy(&answer).trim())
}

async fn command(words: &[String], body: &str) -> Result<()> {
    let Some((program, arguments)) = words.split_first() else { bail!("no command is given") };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let done = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read what it is told may still do what it is for.
            let _ = stdin.write_all(body.as_bytes()).await;
        }
        child.wait().await
    };
    let waited = timeout(COMMAND_WAIT, done).await;
    let status = waited
        .with_context(|| format!("{program} took more than {} s", COMMAND_WAIT.as_secs()))??;
    if !status.success() {
        bail!("{program} ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let address = |url| Address::parse(url).unwrap();
        let parts = |a: Address| (a.tls, a.host, a.port, a.path);
        assert_eq!(
            parts(address("http://h:81/a/b?c=d")),
            (false, "h".to_owned(), 81, "/a/b?c=d".to_owned())
        );
        assert_eq!(parts(address("https://h")), (true, "h".to_owned(), 443, "/".to_owned()));
        assert_eq!(parts(address("http://[::1]/x")).1, "::1");
        assert!(Address::parse("h/a").is_err());
    }
}
