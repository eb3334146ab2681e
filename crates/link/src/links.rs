//! Calling other nodes: `Links` knows who we are and where they are.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use quorate_core::NodeId;
use rustls::AlertDescription;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::Far;
use crate::greeting::Greeting;
use crate::stream::tune;
use crate::trust::{self, Call, Tls};
use crate::{Error, Identity, Kind, LinkStream, Outage, limits};

/// Where every peer is: `host:port` by node.
pub(crate) type Peers = Arc<BTreeMap<NodeId, String>>;

/// Who wants to hear of a new set of peers.
pub(crate) trait PeersChanged: Send + Sync {
    fn peers_changed(&self);
}

/// This node's end of all links. Clones share everything.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    tls: RwLock<Arc<Tls>>,
    peers: RwLock<Peers>,
    watchers: Mutex<Vec<Weak<dyn PeersChanged>>>,
    outage: Outage,
}

impl Links {
    /// Links of the node that `identity` names, with no peers yet.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        Ok(Self {
            shared: Arc::new(Shared {
                tls: RwLock::new(Arc::new(Tls::new(identity)?)),
                peers: RwLock::default(),
                watchers: Mutex::default(),
                outage: Outage::default(),
            }),
        })
    }

    /// The node that we are.
    pub fn node(&self) -> NodeId {
        self.tls().node
    }

    /// Uses a renewed identity from now on, for calls and for listeners. Open streams stay.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), Error> {
        let new = Tls::new(identity)?;
        let old = self.tls();
        if (new.node, &new.cluster_id) != (old.node, &old.cluster_id) {
            return Err(Error::Certificate(format!(
                "a renewed identity must be of {} in cluster {}",
                old.node, old.cluster_id
            )));
        }
        *self.shared.tls.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    /// Says where every peer is (`host:port`). Our own node may be in it. Open streams stay.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        *self.shared.peers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(peers);
        // The list is copied: a watcher may ask us something while it is told.
        let watchers = {
            let mut watchers = self.watchers();
            watchers.retain(|w| w.strong_count() > 0);
            watchers.clone()
        };
        for watcher in watchers.iter().filter_map(Weak::upgrade) {
            watcher.peers_changed();
        }
    }

    /// Opens a stream to a peer, which must prove to be exactly that node of our cluster.
    pub async fn dial(&self, peer: NodeId, kind: Kind) -> Result<LinkStream, Error> {
        let address = self.peers().get(&peer).cloned().ok_or(Error::UnknownPeer(peer))?;
        let call = self.tls().call(peer, kind)?;
        Box::pin(connect(call, Far::new(Some(peer), &address), kind, self.outage())).await
    }

    /// The switch that rehearses an outage of this node's links.
    pub fn outage(&self) -> &Outage {
        &self.shared.outage
    }

    pub(crate) fn tls(&self) -> Arc<Tls> {
        Arc::clone(&self.shared.tls.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn peers(&self) -> Peers {
        Arc::clone(&self.shared.peers.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn watch_peers(&self, watcher: Weak<dyn PeersChanged>) {
        self.watchers().push(watcher);
    }

    fn watchers(&self) -> MutexGuard<'_, Vec<Weak<dyn PeersChanged>>> {
        self.shared.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("node", &self.node()).finish_non_exhaustive()
    }
}

/// Opens a stream of kind `Join` without an identity. The node there must show an authority with
/// this fingerprint, and a certificate that the authority signed; its name is the stream's peer.
pub async fn dial_join(address: &str, fingerprint: [u8; 32]) -> Result<LinkStream, Error> {
    let call = Call::join(fingerprint)?;
    Box::pin(connect(call, Far::new(None, address), Kind::Join, &Outage::default())).await
}

async fn connect(
    call: Call,
    far: Box<Far>,
    kind: Kind,
    outage: &Outage,
) -> Result<LinkStream, Error> {
    let opened = async {
        outage.passes(kind).await;
        open(&call, &far, kind, outage).await
    };
    match tokio::time::timeout(limits::DIAL_TIMEOUT, opened).await {
        Ok(result) => result,
        Err(_) => Err(Error::TimedOut { far, limit_ms: limits::DIAL_TIMEOUT.as_millis() }),
    }
}

async fn open(call: &Call, far: &Far, kind: Kind, outage: &Outage) -> Result<LinkStream, Error> {
    let tcp = match TcpStream::connect(&far.address).await {
        Ok(tcp) => tcp,
        Err(source) => return Err(Error::Unreachable { far: Box::new(far.clone()), source }),
    };
    tune(&tcp).map_err(Error::System)?;
    let connector = TlsConnector::from(Arc::clone(&call.config));
    let mut tls = connector
        .connect(call.name.clone(), tcp)
        .await
        .map_err(|err| handshake_error(call, far, err))?;
    match Greeting::read(&mut tls).await {
        Ok(Greeting::Accepted) => {}
        Ok(Greeting::Refused(reason)) => {
            return Err(Error::Refused { far: Box::new(far.clone()), reason });
        }
        Err(source) => return Err(handshake_error(call, far, source)),
    }
    let shown = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = far.node.or_else(|| shown.and_then(trust::name).map(|(node, _)| node));
    Ok(LinkStream::new(tls, peer, kind, outage.clone()))
}

/// What a failed handshake means, from the caller's side.
pub(crate) fn handshake_error(call: &Call, far: &Far, source: io::Error) -> Error {
    let far = Box::new(far.clone());
    if let Some(why) = call.distrust() {
        return Error::Distrusted { far, why };
    }
    match tls_error(&source) {
        Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Error::Refused {
                far,
                reason: "it does not know this kind of stream; it may be another version".into(),
            }
        }
        _ => Error::Handshake { far, source },
    }
}

/// The TLS error inside an IO error.
pub(crate) fn tls_error(err: &io::Error) -> Option<&rustls::Error> {
    err.get_ref()?.downcast_ref()
}
