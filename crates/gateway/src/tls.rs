//! Encryption towards clients.

use std::sync::{Arc, PoisonError, RwLock};

use quorate_wire::binding::Binding;
use rustls::ServerConfig;

/// A certificate and how it is shown.
#[derive(Clone)]
pub struct Tls {
    /// What handshakes are made with.
    pub config: Arc<ServerConfig>,
    /// What clients that bind their login to the certificate must have seen.
    pub binding: Option<Binding>,
}

/// The present certificate; may be renewed while clients are connected.
#[derive(Default)]
pub struct TlsSource(RwLock<Option<Tls>>);

impl TlsSource {
    /// None at first.
    pub fn new(tls: Option<Tls>) -> Self {
        Self(RwLock::new(tls))
    }

    /// For handshakes from now on.
    pub fn set(&self, tls: Option<Tls>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    /// The present one.
    pub fn now(&self) -> Option<Tls> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The common name of the subject of a certificate.
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    use x509_parser::prelude::FromDer;
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}
