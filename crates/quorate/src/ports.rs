//! What comes in at the link port, and the gateway's way to the writer.

use std::sync::Arc;
use std::time::Duration;

use quorate_agent::Node;
use quorate_agent::node::wall_millis;
use quorate_consensus::{Dial, Dialling};
use quorate_core::state::{Change, Command};
use quorate_core::{Answer, NodeId};
use quorate_gateway::Sessions;
use quorate_link::{Arrival, Authority, Incoming, Kind, LinkStream, Links, Token, frame};

use crate::cli::cluster::{JoinAnswer, JoinRequest, join_bytes_max};

/// Validity of a node's certificate; it is renewed after two thirds.
pub const CERTIFICATE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);

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
