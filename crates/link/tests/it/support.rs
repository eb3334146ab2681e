//! Nodes on loopback, as many as a test needs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_link::{Arrival, Authority, Identity, Incoming, LinkStream, Links, Refusal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

/// Longest wait for something that must happen.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn authority() -> Authority {
    Authority::create("shop").unwrap()
}

/// A node that listens and keeps what comes in.
pub(crate) struct Host {
    pub(crate) links: Links,
    pub(crate) address: SocketAddr,
    arrivals: UnboundedReceiver<Arrival>,
    server: JoinHandle<()>,
}

impl Host {
    pub(crate) async fn start(authority: &Authority, name: &str) -> Self {
        Self::with(&Identity::issued_by(authority, node(name)).unwrap()).await
    }

    pub(crate) async fn with(identity: &Identity) -> Self {
        let links = Links::new(identity).unwrap();
        let listener = links.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, arrivals) = unbounded_channel();
        let server = tokio::spawn(listener.serve(move |arrival| {
            let _ = sender.send(arrival);
        }));
        Self { links, address, arrivals, server }
    }

    pub(crate) async fn arrival(&mut self) -> Arrival {
        tokio::time::timeout(SOON, self.arrivals.recv()).await.unwrap().unwrap()
    }

    pub(crate) async fn incoming(&mut self) -> Incoming {
        match self.arrival().await {
            Arrival::Node(incoming) => incoming,
            other => panic!("not a node: {other:?}"),
        }
    }

    pub(crate) async fn joining(&mut self) -> LinkStream {
        match self.arrival().await {
            Arrival::Joining(stream) => stream,
            other => panic!("not joining: {other:?}"),
        }
    }

    pub(crate) async fn refusal(&mut self) -> Refusal {
        match self.arrival().await {
            Arrival::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Peers of a caller: names and where they are said to be.
pub(crate) fn peers<const N: usize>(peers: [(&str, SocketAddr); N]) -> BTreeMap<NodeId, String> {
    peers.into_iter().map(|(name, at)| (node(name), at.to_string())).collect()
}
