//! Being called: accept, finish the handshake, judge, greet, hand on.
//!
//! Each connection's handshake is a task of its own with a limit in time, and only so many run at
//! once; a slow or hostile caller delays nobody. Nothing is handed on before it was judged.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use quorate_core::NodeId;
use rustls::AlertDescription;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::greeting::Greeting;
use crate::links::tls_error;
use crate::stream::tune;
use crate::trust::Tls;
use crate::{Error, Kind, LinkStream, Links, Outage, limits};

/// A stream that a node of this cluster has opened to us.
#[derive(Debug)]
pub struct Incoming {
    /// The node, by its certificate.
    pub peer: NodeId,
    /// What the stream is for; never `Join`.
    pub kind: Kind,
    /// The stream, past its greeting.
    pub stream: LinkStream,
}

/// A connection that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Where it came from.
    pub from: SocketAddr,
    /// Who decided, and on what.
    pub cause: Cause,
    /// Why, in a sentence.
    pub because: String,
}

/// Who ended a connection that was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// We do not take the caller's certificate, and have told it so.
    Distrusted,
    /// The caller does not take ours.
    Distrusting,
    /// There was no handshake: a port scan, another protocol, another version, a cut network.
    Noise,
}

/// What comes in at a listener.
#[derive(Debug)]
pub enum Arrival {
    /// A stream from a node of this cluster.
    Node(Incoming),
    /// A stream from a host that wants to join. Nothing is known about it.
    Joining(LinkStream),
    /// A connection that was refused and is closed, for the log and the event history.
    Refused(Refusal),
}

/// An open link port.
#[derive(Debug)]
pub struct Listener {
    links: Links,
    tcp: TcpListener,
}

impl Links {
    /// Opens the link port, `host:port`; port 0 takes a free one.
    pub async fn listen(&self, address: &str) -> Result<Listener, Error> {
        match TcpListener::bind(address).await {
            Ok(tcp) => Ok(Listener { links: self.clone(), tcp }),
            Err(source) => Err(Error::Listen { address: address.to_owned(), source }),
        }
    }
}

impl Listener {
    /// The address that was opened.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.tcp.local_addr().map_err(Error::System)
    }

    /// Accepts for ever and gives each arrival to `handler`, which must return soon (send it to a
    /// channel, spawn a task). Dropping the future closes the port and ends handshakes, not streams.
    pub async fn serve(self, handler: impl Fn(Arrival) + Send + Sync + 'static) {
        let handler = Arc::new(handler);
        let slots = Arc::new(Semaphore::new(limits::HANDSHAKES_MAX));
        let mut handshakes = JoinSet::new();
        loop {
            while handshakes.try_join_next().is_some() {}
            // A slot first: without one, connections wait unaccepted instead of being cut.
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (tcp, from) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(err) => {
                    // One that the caller has taken back is its own affair; all else is ours.
                    if err.kind() != ErrorKind::ConnectionAborted {
                        tracing::warn!(error = %err, "cannot accept link connections");
                    }
                    tokio::time::sleep(limits::ACCEPT_RETRY).await;
                    continue;
                }
            };
            let (tls, handler) = (self.links.tls(), Arc::clone(&handler));
            let outage = self.links.outage().clone();
            handshakes.spawn(async move {
                let arrival = Box::pin(receive(&tls, &outage, tcp, from)).await;
                drop(slot);
                handler(arrival);
            });
        }
    }
}

async fn receive(tls: &Tls, outage: &Outage, tcp: TcpStream, from: SocketAddr) -> Arrival {
    let noise = |because: String| Refusal { from, cause: Cause::Noise, because };
    let result = timeout(limits::HANDSHAKE_TIMEOUT, handshake(tls, outage, tcp, from)).await;
    match result {
        Ok(Ok(arrival)) => arrival,
        Ok(Err(refusal)) => Arrival::Refused(refusal),
        Err(_) => Arrival::Refused(noise(format!("{from} did not finish its handshake in time"))),
    }
}

async fn handshake(
    tls: &Tls,
    outage: &Outage,
    tcp: TcpStream,
    from: SocketAddr,
) -> Result<Arrival, Refusal> {
    let noise = |err: std::io::Error| Refusal {
        from,
        cause: Cause::Noise,
        because: format!("the handshake with {from} failed: {err}"),
    };
    tune(&tcp).map_err(noise)?;
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.server));
    let mut stream = acceptor.accept(tcp).await.map_err(|err| unfinished(from, err))?;
    let connection = stream.get_ref().1;
    // A caller that names no kind at all passes TLS, and is nobody we know.
    let Some(kind) = connection.alpn_protocol().and_then(Kind::from_alpn) else {
        let because = format!("{from} named no kind of stream");
        return Err(Refusal { from, cause: Cause::Noise, because });
    };
    // Only the handshake tells what it is for.
    outage.passes(kind).await;
    let judged = match kind {
        Kind::Join => Ok(None),
        _ => tls.judge(connection.peer_certificates()).map(Some),
    };
    match judged {
        Ok(peer) => {
            greet(&mut stream, &Greeting::Accepted).await.map_err(noise)?;
            let stream = LinkStream::new(stream, peer, kind, outage.clone());
            Ok(match peer {
                Some(peer) => Arrival::Node(Incoming { peer, kind, stream }),
                None => Arrival::Joining(stream),
            })
        }
        Err(why) => {
            let who = claimed(&stream, from);
            refuse(stream, format!("{who} {why}")).await;
            let because = format!("{who} asked for a {kind} stream but {why}");
            Err(Refusal { from, cause: Cause::Distrusted, because })
        }
    }
}

async fn greet(stream: &mut TlsStream<TcpStream>, greeting: &Greeting) -> std::io::Result<()> {
    stream.write_all(&greeting.encode()).await?;
    stream.flush().await
}

/// Says why and closes, then waits for the caller to close too: a socket closed with unread bytes
/// is reset, and the reason could be lost with it.
async fn refuse(mut stream: TlsStream<TcpStream>, reason: String) {
    if greet(&mut stream, &Greeting::Refused(reason)).await.is_err() {
        return;
    }
    let _ = stream.shutdown().await;
    let drain = async {
        let mut scrap = [0; 1024];
        while matches!(stream.read(&mut scrap).await, Ok(n) if n > 0) {}
    };
    let _ = timeout(limits::REFUSAL_LINGER, drain).await;
}

/// The name that the caller's certificate bears, which is a claim only.
fn claimed(stream: &TlsStream<TcpStream>, from: SocketAddr) -> String {
    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    match leaf.and_then(crate::trust::name) {
        Some((node, _)) => format!("{node} at {from}"),
        None => format!("the host at {from}"),
    }
}

/// Why a caller gave up, from the alert that it sent.
fn unfinished(from: SocketAddr, err: std::io::Error) -> Refusal {
    use AlertDescription as A;
    let alert = match tls_error(&err) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    };
    let (cause, why) = match alert {
        Some(A::UnknownCA | A::DecryptError) => (
            Cause::Distrusting,
            "does not know this cluster: its certificate or join token is of another cluster"
                .into(),
        ),
        Some(A::BadCertificate) => {
            (Cause::Distrusting, "was looking for another node than this one".into())
        }
        Some(A::CertificateExpired) => {
            (Cause::Distrusting, "says that this node's certificate is not valid today".into())
        }
        Some(A::CertificateUnknown | A::UnsupportedCertificate | A::AccessDenied) => {
            (Cause::Distrusting, "does not take this node's certificate".into())
        }
        _ => (Cause::Noise, format!("did not finish a handshake: {err}")),
    };
    Refusal { from, cause, because: format!("the host at {from} {why}") }
}
