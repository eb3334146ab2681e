//! A stream between two nodes, from either end.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quorate_core::NodeId;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::{Kind, Outage, limits, trust};

/// A byte stream inside mutual TLS. Dropping it ends it.
pub struct LinkStream {
    tls: Box<TlsStream<TcpStream>>,
    peer: Option<NodeId>,
    kind: Kind,
    outage: Outage,
}

impl LinkStream {
    pub(crate) fn new(
        tls: impl Into<TlsStream<TcpStream>>,
        peer: Option<NodeId>,
        kind: Kind,
        outage: Outage,
    ) -> Self {
        Self { tls: Box::new(tls.into()), peer, kind, outage }
    }

    /// The node at the other end, by its certificate. `None` only where a node that joins calls us:
    /// it has none yet.
    pub fn peer(&self) -> Option<NodeId> {
        self.peer
    }

    /// The address at the other end of the TCP connection.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.tls.get_ref().0.peer_addr().ok()
    }

    /// When the certificate ends that the other end has shown.
    pub fn peer_expires_at(&self) -> Option<SystemTime> {
        let leaf = self.tls.get_ref().1.peer_certificates()?.first()?;
        let (_, not_after) = trust::dates(leaf).ok()?;
        Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).ok()?))
    }

    /// The connection without the runtime: its socket (non-blocking) and its TLS state.
    pub(crate) fn into_parts(self) -> io::Result<(std::net::TcpStream, rustls::Connection)> {
        match *self.tls {
            TlsStream::Client(tls) => {
                let (tcp, tls) = tls.into_inner();
                Ok((tcp.into_std()?, tls.into()))
            }
            TlsStream::Server(tls) => {
                let (tcp, tls) = tls.into_inner();
                Ok((tcp.into_std()?, tls.into()))
            }
        }
    }
}

impl std::fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Small messages leave at once, and a dead far end is noticed although nothing is sent.
pub(crate) fn tune(socket: &impl AsFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, limits::KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, limits::KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, limits::KEEPALIVE_PROBES)?;
    let unacknowledged = u32::try_from(limits::UNACKNOWLEDGED_MAX.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, unacknowledged)?;
    Ok(())
}

impl AsyncRead for LinkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.outage.poll_passes(self.kind, cx));
        Pin::new(&mut *self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.outage.poll_passes(self.kind, cx));
        Pin::new(&mut *self.tls).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.outage.poll_passes(self.kind, cx));
        Pin::new(&mut *self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.outage.poll_passes(self.kind, cx));
        Pin::new(&mut *self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.tls).poll_shutdown(cx)
    }
}
