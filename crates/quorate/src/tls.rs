//! The certificate that applications see: from files, or issued by the cluster for this host.

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
pub fn keep(config: &Config, node: &Arc<Node>, source: &Arc<TlsSource>) -> Result<()> {
    let source = Arc::clone(source);
    if let Some(files) = config.file.tls.clone() {
        source.set(Some(from_files(&files)?));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(FILES_EVERY).await;
                match from_files(&files) {
                    Ok(tls) => source.set(Some(tls)),
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
                Ok(tls) => source.set(Some(tls)),
                Err(error) => tracing::warn!("no certificate for applications: {error:#}"),
            }
            tokio::time::sleep(ISSUE_EVERY).await;
        }
    });
    Ok(())
}

/// What applications may call this host.
fn hosts(config: &Config) -> Vec<String> {
    let advertised = config.file.advertise.trim_matches(['[', ']']).to_owned();
    let mut hosts = vec![advertised, "localhost".to_owned(), "127.0.0.1".to_owned()];
    let listens = config.file.listen.gateway.ip();
    if !listens.is_unspecified() {
        hosts.push(listens.to_string());
    }
    hosts.push("::1".to_owned());
    hosts.dedup();
    hosts
}

fn issued(certificate: &str, key: &str, hosts: &[String]) -> Result<Tls> {
    let authority = Authority::from_pem(certificate, key)?;
    let (chain, key) = authority.issue_front(hosts, CERTIFICATE_VALIDITY)?;
    made(chain.as_bytes(), key.as_bytes(), None)
}

fn from_files(files: &TlsFile) -> Result<Tls> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let client_ca = files.client_ca.as_deref().map(read).transpose()?;
    let (chain, key) = (read(&files.certificate)?, read(&files.key)?);
    made(&chain, &key, client_ca.as_deref())
        .with_context(|| format!("cannot use {}", files.certificate.display()))
}

fn made(chain: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<Tls> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>()?;
    let leaf = chain.first().context("the file holds no certificate")?.clone();
    let key = PrivateKeyDer::from_pem_slice(key)?;
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
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Tls { config: Arc::new(config), binding: Binding::of_certificate(&leaf) })
}
