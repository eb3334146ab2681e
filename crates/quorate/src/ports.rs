//! What comes in at the link port, and the gateway's way to the writer.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quorate_agent::Node;
use quorate_agent::node::wall_millis;
use quorate_consensus::{Dial, Dialling};
use quorate_core::authority::Phase;
use quorate_core::state::{Change, Command};
use quorate_core::{Answer, NodeId};
use quorate_gateway::{Backends, NoWriter, QuorumWait, Route, Sessions};
use quorate_link::{Arrival, Authority, Incoming, Kind, LinkStream, Links, Token, frame};
use quorate_replication::Level;

use crate::cli::cluster::{JoinAnswer, JoinRequest, join_bytes_max};

/// Validity of a node's certificate; it is renewed after two thirds.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often a held login looks whether there is a writer although nothing says so: for a dial that
/// failed while nothing changed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Bytes between a session and its node inside this process.
const PIPE_BYTES: usize = 64 * 1024;

/// Consensus calls other nodes through links.
pub struct LinkDial(pub Links);

impl Dial for LinkDial {
    fn dial(&self, peer: NodeId) -> Dialling {
        let links = self.0.clone();
        Box::pin(async move {
            let stream = links.dial(peer, Kind::Consensus).await.map_err(std::io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn quorate_consensus::Stream>)
        })
    }
}

/// Hands each arrival to the part it is for.
pub fn arrive(node: &Arc<Node>, sessions: &Arc<Sessions>, api: &axum::Router, arrival: Arrival) {
    match arrival {
        Arrival::Node(incoming) => take(node, sessions, api, incoming),
        Arrival::Joining(stream) => {
            let node = Arc::clone(node);
            tokio::spawn(async move {
                if let Err(e) = admit(&node, stream).await {
                    tracing::info!(error = %e, "a join ended early");
                }
            });
        }
        Arrival::Refused(refusal) => match refusal.cause {
            quorate_link::Cause::Noise => {
                tracing::debug!(from = %refusal.from, "{}", refusal.because);
            }
            quorate_link::Cause::Distrusted | quorate_link::Cause::Distrusting => {
                tracing::warn!(from = %refusal.from, "{}", refusal.because);
            }
        },
    }
}

fn take(node: &Arc<Node>, sessions: &Arc<Sessions>, api: &axum::Router, incoming: Incoming) {
    let peer = incoming.peer;
    let state = node.parts.consensus.state();
    // A node that was removed still has a valid certificate. One that knows no member yet has just
    // joined and takes the cluster's word.
    if !state.nodes.is_empty() && !state.nodes.contains_key(&peer) {
        tracing::debug!(%peer, kind = ?incoming.kind, "refused a node that is no member");
        return;
    }
    match incoming.kind {
        Kind::Heartbeat => {
            if let Err(e) = node.parts.heartbeats.adopt(incoming) {
                tracing::debug!(%peer, error = %e, "a heartbeat stream was not taken");
            }
        }
        Kind::Consensus => {
            let consensus = node.parts.consensus.clone();
            tokio::spawn(async move {
                if let Err(e) = consensus.serve(incoming.stream).await {
                    tracing::debug!(%peer, error = %e, "a consensus stream ended");
                }
            });
        }
        Kind::Wal => {
            tokio::spawn(quorate_agent::tunnel::serve(Arc::clone(node), peer, incoming.stream));
        }
        Kind::Sql => {
            let sessions = Arc::clone(sessions);
            tokio::spawn(async move {
                if let Err(e) = sessions.serve(incoming.stream).await {
                    tracing::debug!(%peer, error = %e, "a session ended");
                }
            });
        }
        Kind::Control => {
            let api = api.clone();
            tokio::spawn(crate::api::serve_stream(api, incoming.stream));
        }
        Kind::Join => {}
    }
}

/// Admits a new node: its token is used up by the same command that makes it a member.
async fn admit(node: &Arc<Node>, mut stream: LinkStream) -> anyhow::Result<()> {
    let ask: JoinRequest = frame::read_json(&mut stream, join_bytes_max()).await?;
    let answer = match decide(node, &ask).await {
        Ok(welcome) => welcome,
        Err(e) => JoinAnswer::Refused { because: format!("{e:#}") },
    };
    frame::write_json(&mut stream, &answer, join_bytes_max()).await?;
    Ok(())
}

async fn decide(node: &Arc<Node>, ask: &JoinRequest) -> anyhow::Result<JoinAnswer> {
    let token: Token = ask.token.parse()?;
    let state = node.parts.consensus.read().await?;
    let authority = Authority::from_pem(&state.ca.certificate, &state.ca.key)?;
    let certificate = authority.issue(&ask.request, ask.name, CERTIFICATE_VALIDITY)?;
    let change =
        Change::Admit { name: ask.name, node: ask.node.clone(), token_hash: token.secret_hash() };
    match node.parts.consensus.propose(Command { at: wall_millis(), change }).await? {
        Answer::Done => {
            tracing::info!(node = %ask.name, "admitted a node");
            Ok(JoinAnswer::Welcome {
                certificate,
                authority: state.ca.certificate.clone(),
                cluster_id: state.cluster_id.clone(),
            })
        }
        Answer::Refused { because } => Ok(JoinAnswer::Refused { because }),
    }
}

/// The gateway's way to the writer.
pub struct ToWriter {
    /// This node.
    pub node: Arc<Node>,
    /// Sessions of the local server.
    pub sessions: Arc<Sessions>,
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Route for ToWriter {
    fn writer(&self) -> BoxFuture<'_, Result<quorate_gateway::BoxStream, NoWriter>> {
        Box::pin(async move {
            let no = |because: String| NoWriter { because };
            let authority = self.node.parts.consensus.state().authority.clone();
            let writer = authority
                .writer
                .filter(|_| authority.phase != Phase::Electing)
                .ok_or_else(|| no("an election is under way".to_owned()))?;
            if writer == self.node.parts.me {
                if self.node.parts.gate.term() != Some(authority.term) {
                    return Err(no(format!("{writer} does not serve yet")));
                }
                let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
                let sessions = Arc::clone(&self.sessions);
                tokio::spawn(async move {
                    if let Err(e) = sessions.serve(theirs).await {
                        tracing::debug!(error = %e, "a session ended");
                    }
                });
                return Ok(Box::new(ours) as quorate_gateway::BoxStream);
            }
            let serving = self.node.parts.health.status_of(writer).and_then(|s| s.writer);
            if !serving.is_some_and(|w| w.serving && w.term == authority.term) {
                return Err(no(format!("{writer} does not serve yet")));
            }
            let stream = self.node.parts.links.dial(writer, Kind::Sql).await;
            let stream = stream.map_err(|e| no(e.to_string()))?;
            Ok(Box::new(stream) as quorate_gateway::BoxStream)
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let mut state = self.node.parts.consensus.watch();
        let mut news = self.node.parts.health.news.subscribe();
        let mut gate = self.node.parts.gate.changes();
        state.mark_unchanged();
        Box::pin(async move {
            tokio::select! {
                _ = state.changed() => {}
                _ = news.changed() => {}
                _ = gate.changed() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        })
    }
}

/// What sessions ask of the local server and its copies.
pub struct LocalServer(pub Arc<Node>);

impl QuorumWait for LocalServer {
    fn sample_and_wait(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(database) = &self.0.parts.database else { return false };
            match database.admin.current_flush_lsn().await {
                Ok(end) => self.0.parts.aggregator.wait_for(end, Level::Flush).await,
                Err(_) => false,
            }
        })
    }
}

impl Backends for LocalServer {
    fn may_cancel(&self, pid: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(database) = &self.0.parts.database else { return false };
            match database.admin.wait_event_of(pid).await {
                Ok(event) => event.as_deref() != Some("SyncRep"),
                Err(_) => false,
            }
        })
    }
}
