//! The web port: one port for both HTTP and HTTPS, told apart by a connection's first byte.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::http::Extensions;
use axum::serve::{IncomingStream, Listener};
use quorate_gateway::TlsSource;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::limits::{HANDSHAKE_WAIT, HANDSHAKES_MAX};

/// The first byte of every TLS connection; no HTTP request begins so.
const TLS_HANDSHAKE: u8 = 0x16;
/// Pause after a connection could not be taken: descriptors may be short.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Encryption of the web port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebTls {
    /// None.
    Off,
    /// For whoever asks with https.
    #[default]
    Offered,
    /// For all but this host itself: who comes with http is sent to https.
    Required,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub from: SocketAddr,
    /// Whether nobody can listen.
    pub tls: bool,
}

impl Caller {
    /// Whether what it says stays between it and us.
    pub fn is_private(&self) -> bool {
        self.tls || self.from.ip().to_canonical().is_loopback()
    }
}

/// Who sent a request; `None` when it did not come through a web port.
pub fn caller(extensions: &Extensions) -> Option<Caller> {
    extensions.get::<ConnectInfo<Caller>>().map(|c| c.0)
}

/// The port.
pub struct Web {
    arrived: mpsc::Receiver<(Stream, Caller)>,
    local: SocketAddr,
}

impl Web {
    /// Serves what comes in at `tcp`; with TLS as soon as `source` has a certificate.
    ///
    /// # Errors
    /// When the address of the port cannot be read.
    pub fn new(tcp: TcpListener, tls: WebTls, source: Arc<TlsSource>) -> std::io::Result<Self> {
        let local = tcp.local_addr()?;
        let (to, arrived) = mpsc::channel(HANDSHAKES_MAX);
        let source = (tls != WebTls::Off).then_some(source);
        tokio::spawn(accept(tcp, source, to));
        Ok(Self { arrived, local })
    }
}

/// Takes connections until nobody serves them any more. A slow handshake holds up no other.
async fn accept(
    tcp: TcpListener,
    source: Option<Arc<TlsSource>>,
    to: mpsc::Sender<(Stream, Caller)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, from) = tokio::select! {
            taken = tcp.accept() => match taken {
                Ok(taken) => taken,
                Err(error) => {
                    tracing::debug!(%error, "a connection to the web port could not be taken");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
            () = to.closed() => return,
        };
        let (source, to) = (source.clone(), to.clone());
        tokio::spawn(async move {
            let ready = timeout(HANDSHAKE_WAIT, begin(stream, from, source.as_deref())).await;
            drop(place);
            match ready {
                Ok(Ok(ready)) => drop(to.send(ready).await),
                Ok(Err(error)) => tracing::debug!(%from, %error, "no handshake at the web port"),
                Err(_) => tracing::debug!(%from, "silence at the web port"),
            }
        });
    }
}

async fn begin(
    tcp: TcpStream,
    from: SocketAddr,
    source: Option<&TlsSource>,
) -> std::io::Result<(Stream, Caller)> {
    let _ = tcp.set_nodelay(true);
    let mut first = [0];
    tcp.peek(&mut first).await?;
    match source.and_then(TlsSource::now).filter(|_| first[0] == TLS_HANDSHAKE) {
        Some(tls) => {
            let stream = TlsAcceptor::from(tls.config).accept(tcp).await?;
            Ok((Stream::Tls(Box::new(stream)), Caller { from, tls: true }))
        }
        None => Ok((Stream::Plain(tcp), Caller { from, tls: false })),
    }
}

impl Listener for Web {
    type Io = Stream;
    type Addr = Caller;

    async fn accept(&mut self) -> (Stream, Caller) {
        match self.arrived.recv().await {
            Some(arrived) => arrived,
            // The task that takes connections ends only with this port.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Caller> {
        Ok(Caller { from: self.local, tls: false })
    }
}

impl Connected<IncomingStream<'_, Web>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Web>) -> Self {
        *stream.remote_addr()
    }
}

/// A connection.
pub enum Stream {
    /// As it came.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
