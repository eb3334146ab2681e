//! The certificate that applications and browsers see: from files, or issued by the cluster for this
//! host.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quorate_agent::Node;
use quorate_gateway::{Tls, TlsSource};
use quorate_link::Authority;
use quorate_wire::binding::Binding;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::config::{Config, TlsFile};
use crate::ports::CERTIFICATE_VALIDITY;

/// How often files are looked at again.
const FILES_EVERY: Duration = Duration::from_secs(60);
/// How often a certificate of the cluster's is made anew.
const ISSUE_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Pause before another attempt while the cluster's authority is not known here yet.
const AUTHORITY_WAIT: Duration = Duration::from_millis(200);

/// Begins to show a certificate, and keeps it fresh. Files that cannot be used are an error at
/// once; later the certificate that was good stays.
///
/// # Errors
/// When the files of the configuration cannot be used.
pub fn keep(
    config: &Config,
    node: &Arc<Node>,
    gateway: &Arc<TlsSource>,
    web: &Arc<TlsSource>,
) -> Result<()> {
    let (gateway, web) = (Arc::clone(gateway), Arc::clone(web));
    let set = move |shown: Shown| {
        gateway.set(Some(shown.gateway));
        web.set(Some(shown.web));
    };
    if let Some(files) = config.file.tls.clone() {
        set(from_files(&files)?);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(FILES_EVERY).await;
                match from_files(&files) {
                    Ok(shown) => set(shown),
                    Err(error) => tracing::warn!("the certificate for applications: {error:#}"),
                }
            }
        });
        return Ok(());
    }
    let hosts = hosts(config);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        loop {
            let state = node.parts.consensus.state();
            if state.ca.key.is_empty() {
                tokio::time::sleep(AUTHORITY_WAIT).await;
                continue;
            }
            match issued(&state.ca.certificate, &state.ca.key, &hosts) {
                Ok(shown) => set(shown),
                Err(error) => tracing::warn!("no certificate for applications: {error:#}"),
            }
            tokio::time::sleep(ISSUE_EVERY).await;
        }
    });
    Ok(())
}

/// One certificate as it is shown at both ports.
struct Shown {
    gateway: Tls,
    web: Tls,
}

/// What applications and browsers may call this host.
fn hosts(config: &Config) -> Vec<String> {
    let advertised = config.file.advertise.trim_matches(['[', ']']).to_owned();
    let mut hosts = vec![advertised, "localhost".to_owned(), "127.0.0.1".to_owned()];
    for listens in [config.file.listen.gateway.ip(), config.file.listen.web.ip()] {
        if !listens.is_unspecified() {
            hosts.push(listens.to_string());
        }
    }
    hosts.push("::1".to_owned());
    hosts.dedup();
    hosts
}

fn issued(certificate: &str, key: &str, hosts: &[String]) -> Result<Shown> {
    let authority = Authority::from_pem(certificate, key)?;
    let (chain, key) = authority.issue_front(hosts, CERTIFICATE_VALIDITY)?;
    made(chain.as_bytes(), key.as_bytes(), None)
}

fn from_files(files: &TlsFile) -> Result<Shown> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let client_ca = files.client_ca.as_deref().map(read).transpose()?;
    let (chain, key) = (read(&files.certificate)?, read(&files.key)?);
    made(&chain, &key, client_ca.as_deref())
        .with_context(|| format!("cannot use {}", files.certificate.display()))
}

fn made(chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<Shown> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
    let leaf = chain.first().context("the file holds no certificate")?.clone();
    let key = PrivateKeyDer::from_pem_slice(key)?;
    let binding = Binding::of_certificate(&leaf);
    let shown = |client_ca, protocol: &[u8]| -> Result<Tls> {
        let mut config = server_config(chain.clone(), key.clone_key(), client_ca)?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Tls { config: Arc::new(config), binding: binding.clone() })
    };
    // Browsers are asked for no certificate: what they may do is a matter of the admin token.
    Ok(Shown { gateway: shown(client_ca, b"postgresql")?, web: shown(None, b"http/1.1")? })
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    client_ca: Option<&[u8]>,
) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for authority in CertificateDer::pem_slice_iter(pem) {
                roots.add(authority?)?;
            }
            // Whoever shows none may still come in by other means.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build()?)
        }
    };
    Ok(builder.with_single_cert(chain, key)?)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;
    use crate::cli::{Global, reach};
    use crate::http::Ask;
    use crate::page::web::{Caller, Web, WebTls};

    /// A web port that shows a certificate of this authority, and answers whether it was used.
    async fn port(authority: &Authority) -> SocketAddr {
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let shown = issued(authority.cert_pem(), authority.key_pem(), &hosts).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = tcp.local_addr().unwrap();
        let source = Arc::new(TlsSource::new(Some(shown.web)));
        let web = Web::new(tcp, WebTls::Offered, source).unwrap();
        let answer = get(async |extensions: axum::http::Extensions| {
            axum::Json(crate::page::web::caller(&extensions).is_some_and(|c| c.tls))
        });
        let router = Router::new().route("/", answer);
        let service = router.into_make_service_with_connect_info::<Caller>();
        tokio::spawn(async move { axum::serve(web, service).await });
        at
    }

    #[tokio::test]
    async fn one_port_speaks_http_and_https() {
        let authority = Authority::create("0123456789abcdef").unwrap();
        let at = port(&authority).await;
        let file = std::env::temp_dir().join(format!("quorate-web-ca-{}", std::process::id()));
        std::fs::write(&file, authority.cert_pem()).unwrap();
        let global = |url: String| Global {
            dir: None,
            url: Some(url),
            ca: Some(file.clone()),
            admin_token: None,
            json: false,
        };
        let plain = reach::call(&global(format!("http://{at}")), Ask::get("/")).await.unwrap();
        assert_eq!(plain, serde_json::json!(false));
        let tls = reach::call(&global(format!("https://{at}")), Ask::get("/")).await.unwrap();
        assert_eq!(tls, serde_json::json!(true));
        // Another authority's word is worth nothing.
        let other = Authority::create("fedcba9876543210").unwrap();
        std::fs::write(&file, other.cert_pem()).unwrap();
        let refused = reach::call(&global(format!("https://{at}")), Ask::get("/")).await;
        assert!(refused.unwrap_err().to_string().contains("is not trusted"));
        std::fs::remove_file(&file).unwrap();
    }
}
