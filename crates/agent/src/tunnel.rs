//! The writer's end of log tunnels: who may attach, and for what.

use std::sync::Arc;

use quorate_core::{Lsn, NodeId, Term};
use quorate_link::{LinkStream, frame};
use quorate_replication::{Ended, Purpose, Serve, serve_wal};
use tokio::time::timeout;

use crate::feed::{Answer, Hello};
use crate::limits::{HELLO_BYTES_MAX, HELLO_WAIT};
use crate::node::Node;
use crate::reign::Reigning;

/// Serves one log tunnel from another node.
pub async fn serve(node: Arc<Node>, peer: NodeId, mut stream: LinkStream) {
    let hello: Hello =
        match timeout(HELLO_WAIT, frame::read_json(&mut stream, HELLO_BYTES_MAX)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(_)) | Err(_) => return,
        };
    let term = match &hello {
        Hello::Follow { term, .. } | Hello::Copy { term } => *term,
    };
    let (answer, admitted) = judge(&node, peer, &hello, term).await;
    if frame::write_json(&mut stream, &answer, HELLO_BYTES_MAX).await.is_err() {
        return;
    }
    let (Some((reigning, verified)), Some(database)) = (admitted, &node.parts.database) else {
        return;
    };
    let purpose = match hello {
        Hello::Copy { .. } => Purpose::Clone,
        Hello::Follow { .. } => {
            let aggregator = Arc::clone(&node.parts.aggregator);
            Purpose::Follow { aggregator, term, verified }
        }
    };
    let pg_socket = database.options.socket();
    let following = matches!(purpose, Purpose::Follow { .. });
    let serve = Serve { pg_socket, peer, purpose, closed: reigning.closed };
    if following {
        tracing::info!(%peer, from = %verified, "a standby attached");
        node.wake.notify_one();
    }
    match serve_wal(stream, serve).await {
        Ok(Ended::FalseFeedback { claimed, possible }) => {
            tracing::error!(%peer, %claimed, %possible, "a standby claimed log it cannot have");
        }
        Ok(ended) => tracing::debug!(%peer, ?ended, "a tunnel ended"),
        Err(e) => tracing::debug!(%peer, error = %e, "a tunnel ended"),
    }
    node.wake.notify_one();
}

/// Waits for the reign that the standby speaks of, then checks its lineage.
async fn judge(
    node: &Node,
    peer: NodeId,
    hello: &Hello,
    term: Term,
) -> (Answer, Option<(Reigning, Lsn)>) {
    let refuse = |because: String| (Answer::NotServing { because }, None);
    let mut reigning = node.reigning.subscribe();
    let this = |r: &Option<Reigning>| r.as_ref().is_some_and(|r| r.term >= term);
    let reign = match timeout(HELLO_WAIT, reigning.wait_for(this)).await {
        Ok(Ok(reign)) => reign.clone(),
        Ok(Err(_)) | Err(_) => None,
    };
    let Some(reign) = reign.filter(|r| r.term == term) else {
        return refuse(format!("{} does not write in term {term}", node.parts.me));
    };
    match hello {
        Hello::Copy { .. } => (Answer::Welcome { timelines: Vec::new() }, Some((reign, Lsn(0)))),
        Hello::Follow { end, .. } => match reign.lineage.admits(end) {
            Ok(()) if !node.parts.database.as_ref().is_some_and(|d| d.has_log(end.lsn)) => {
                tracing::warn!(%peer, end = %end.lsn, "the log that a standby needs is gone");
                (Answer::LogGone, None)
            }
            Ok(()) => {
                let timelines = reign.lineage.timelines();
                (Answer::Welcome { timelines }, Some((reign, end.lsn)))
            }
            Err(fork) => {
                tracing::warn!(%peer, end = %end.lsn, %fork, "refused a diverged standby");
                (Answer::Diverged { fork }, None)
            }
        },
    }
}
