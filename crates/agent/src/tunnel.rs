//! The writer's end of log tunnels: who may attach, and for what.

use std::sync::Arc;

use quorate_core::report::{self, Report};
use quorate_core::{Lsn, NodeId, Term};
use quorate_link::{LinkStream, frame};
use quorate_replication::{Ended, Purpose, Serve, serve_wal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::database::Database;
use crate::feed::{Answer, Hello};
use crate::limits::{CASCADE_LOOK, HELLO_BYTES_MAX, HELLO_WAIT};
use crate::node::Node;
use crate::reign::Reigning;

/// Serves one log tunnel from another node.
pub async fn serve(node: Arc<Node>, peer: NodeId, mut stream: LinkStream) {
    let hello: Hello =
        match timeout(HELLO_WAIT, frame::read_json(&mut stream, HELLO_BYTES_MAX)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(_)) | Err(_) => return,
        };
    let (term, end, incomplete) = match hello {
        Hello::Follow { term, end, incomplete } => (term, Some(end), incomplete),
        Hello::Copy { term } => (term, None, false),
        Hello::Cascade { term, end } => return cascade(&node, peer, stream, term, &end).await,
    };
    let (answer, admitted) = judge(&node, peer, end.as_ref(), term).await;
    if frame::write_json(&mut stream, &answer, HELLO_BYTES_MAX).await.is_err() {
        return;
    }
    let (Some((reigning, verified)), Some(database)) = (admitted, &node.parts.database) else {
        return;
    };
    let starts = end.is_some();
    let purpose = match end {
        None => Purpose::Clone,
        Some(end) if incomplete => {
            tracing::info!(%peer, from = %end.lsn, "a standby gets the log that it needs to start");
            Purpose::Uncounted
        }
        Some(_) => {
            let aggregator = Arc::clone(&node.parts.aggregator);
            tracing::info!(%peer, from = %verified, "a standby attached");
            Purpose::Follow { aggregator, term, verified }
        }
    };
    let pg_socket = database.options.socket();
    let serve = Serve { pg_socket, peer, purpose, closed: reigning.closed };
    if starts {
        node.wake.notify_one();
        let database = Arc::clone(database);
        tokio::spawn(async move {
            // Whatever commits next does the same: without this an idle cluster's standby that has
            // just started serves no reads before the log says again which transactions run.
            if let Err(e) = database.admin.end_an_id().await {
                tracing::debug!(error = %e, "cannot end a transaction id");
            }
        });
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

/// Feeds another node with the log that this one gets from the writer. What that node has counts for
/// nothing here.
async fn cascade(node: &Node, peer: NodeId, mut stream: LinkStream, term: Term, end: &Report) {
    let refused = admit_below(node, term, end).await.err();
    let answer = match &refused {
        None => Answer::Welcome { timelines: Vec::new() },
        Some(because) => Answer::NotServing { because: because.clone() },
    };
    if frame::write_json(&mut stream, &answer, HELLO_BYTES_MAX).await.is_err() || refused.is_some()
    {
        return;
    }
    let Some(database) = &node.parts.database else { return };
    tracing::info!(%peer, from = %end.lsn, "a standby of this one attached");
    let (_open, closed) = watch::channel(false);
    let purpose = Purpose::Uncounted;
    let serve = Serve { pg_socket: database.options.socket(), peer, purpose, closed };
    let mut follows = node.follows.subscribe();
    tokio::select! {
        ended = serve_wal(stream, serve) => tracing::debug!(%peer, ?ended, "a tunnel ended"),
        // What this node has then may not be the writer's.
        _ = follows.wait_for(|follows| *follows != Some(term)) => {
            tracing::info!(%peer, "ended the feed of a standby: this node does not follow the writer");
        }
    }
}

/// Whether this node may feed a standby: it follows the writer of that term, and the standby's log is
/// the beginning of its own. Only the writer itself can say that a log has diverged (R4).
async fn admit_below(node: &Node, term: Term, end: &Report) -> Result<(), String> {
    let me = node.parts.me;
    if *node.follows.borrow() != Some(term) {
        return Err(format!("{me} does not follow the writer of term {term}"));
    }
    let database = node.parts.database.as_ref().ok_or("a witness has no log")?;
    let begun = Instant::now();
    loop {
        let own = fed(database, term).await?;
        let has = |own: &Report| {
            end.lsn <= own.lsn && report::on_history(end, own.timeline, &own.forks).is_ok()
        };
        if own.as_ref().is_some_and(has) {
            break;
        }
        // Who was fed by the writer until now is often a little ahead.
        if begun.elapsed() > HELLO_WAIT {
            return Err(match own {
                Some(own) => {
                    format!("{me} does not have all of that log: its own ends at {}", own.lsn)
                }
                None => format!("{me} gets no log itself"),
            });
        }
        sleep(CASCADE_LOOK).await;
    }
    match database.has_log(end.lsn) {
        true => Ok(()),
        false => Err(format!("{me} keeps no log from {} on", end.lsn)),
    }
}

/// The end of the log of a standby that is being fed, `None` while it is not.
async fn fed(database: &Database, term: Term) -> Result<Option<Report>, String> {
    let probe = database.admin.probe().await.map_err(|e| e.to_string())?;
    let streams = probe.walreceiver.is_some_and(|w| w.status.as_deref() == Some("streaming"));
    let (Some(timeline), Some(lsn), true) = (probe.timeline, probe.received, streams) else {
        return Ok(None);
    };
    let options = database.options.clone();
    let read = move || quorate_postgres::history(&options, timeline);
    let forks = tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?;
    Ok(Some(Report { term, timeline, lsn, forks: forks.map_err(|e| e.to_string())? }))
}

/// Waits for the reign that the standby speaks of, then checks the lineage of its log's end; who has
/// none wants a copy.
async fn judge(
    node: &Node,
    peer: NodeId,
    end: Option<&Report>,
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
    match end {
        None => (Answer::Welcome { timelines: Vec::new() }, Some((reign, Lsn(0)))),
        Some(end) => match reign.lineage.admits(end) {
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
