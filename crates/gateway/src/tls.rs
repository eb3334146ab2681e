//! Encryption towards clients.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;

/// A certificate and how it is shown.
#[derive(Clone)]
pub struct Tls {
    /// What handshakes are made with.
    pub config: Arc<ServerConfig>,
    /// The certificate's hash as channel binding `tls-server-end-point` wants it (RFC 5929).
    pub binding: Arc<[u8]>,
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
