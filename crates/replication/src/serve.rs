//! The writer's end of a WAL tunnel: relays a standby's replication connection to the local server,
//! under the name the link authenticated, and lets its feedback count.
//!
//! The standby is not believed beyond what it can have: a position past both the lineage-checked
//! start and the end of WAL sent on this very link proves other WAL, and ends the link (R4).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Buf, BytesMut};
use quorate_core::limits::LAG_ASK_EVERY;
use quorate_core::{Lsn, NodeId, Term};
use quorate_wire::backend::{COPY_BOTH, COPY_DATA, Report};
use quorate_wire::replication::{FEEDBACK_MAX, FromServer, StatusUpdate, XLOG_HEADER, put_ask};
use quorate_wire::{Event, FirstPacket, Splitter, Startup, startup};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};

use crate::stream::Stream;
use crate::{Aggregator, Error, LinkGuard, Positions, QUORATE_USER, VIRTUAL_STANDBY};
use crate::{limits, local};

/// One tunnel to serve.
#[derive(Debug)]
pub struct Serve {
    /// Socket file of the local server.
    pub pg_socket: PathBuf,
    /// The node at the other end, as the link authenticated it.
    pub peer: NodeId,
    /// What the tunnel may do.
    pub purpose: Purpose,
    /// Turns true (or its sender goes away) when the tunnel must end.
    pub closed: watch::Receiver<bool>,
}

/// What a tunnel may do.
#[derive(Debug)]
pub enum Purpose {
    /// A standby follows this writer; its feedback counts in this term.
    Follow {
        /// Where feedback counts.
        aggregator: Arc<Aggregator>,
        /// The term that the link was admitted under.
        term: Term,
        /// The standby's end of WAL when its lineage was checked: it has everything before.
        verified: Lsn,
    },
    /// A standby gets log whose writer is another server, or what it needs before it can start:
    /// its feedback counts for nothing.
    Uncounted,
    /// pg_basebackup or pg_rewind copies this server: no feedback, SQL allowed.
    Clone,
}

/// Why a tunnel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The standby closed it.
    Peer,
    /// The local server closed it.
    Server,
    /// The `closed` watch said so.
    Closed,
    /// Another term began, or the node has a newer link.
    Superseded,
    /// It was never opened.
    Refused {
        /// One sentence.
        because: &'static str,
    },
    /// The standby claimed WAL that it cannot have from this writer: it has diverged.
    FalseFeedback {
        /// The position it claimed.
        claimed: Lsn,
        /// The highest position it can have.
        possible: Lsn,
    },
}

/// Serves one tunnel until either side ends it.
pub async fn serve_wal<S: Stream>(mut stream: S, serve: Serve) -> Result<Ended, Error> {
    let Serve { pg_socket, peer, purpose, mut closed } = serve;
    let admitted = tokio::select! {
        admitted = admit(&mut stream, peer, &purpose) => admitted?,
        _ = closed.wait_for(|&closed| closed) => return Ok(Ended::Closed),
    };
    let (startup, early) = match admitted {
        Admitted::Yes(startup, early) => (startup, early),
        Admitted::PeerLeft => return Ok(Ended::Peer),
        Admitted::No(because) => {
            tracing::warn!(%peer, because, "refused a WAL tunnel");
            let report = Report::fatal("28000", because).encode();
            stream.write_all(&report).await.map_err(Error::io("refusing a WAL tunnel"))?;
            stream.flush().await.map_err(Error::io("refusing a WAL tunnel"))?;
            return Ok(Ended::Refused { because });
        }
    };
    let (mut guard, verified) = match &purpose {
        Purpose::Clone | Purpose::Uncounted => (None, Lsn(0)),
        Purpose::Follow { aggregator, term, verified } => match aggregator.attach(peer, *term) {
            Some(guard) => (Some(guard), *verified),
            None => return Ok(Ended::Superseded),
        },
    };
    let mut server = local::connect(&pg_socket).await?;
    let doing = "opening a WAL tunnel";
    server.write_all(&startup.encode()).await.map_err(Error::io(doing))?;
    let (from_server, to_server) = server.split();
    let (from_peer, to_peer) = tokio::io::split(stream);
    let sent = AtomicU64::new(verified.0);
    let over = guard.as_mut().map(LinkGuard::over);
    let over = async {
        match over {
            Some(over) => over.await,
            None => std::future::pending().await,
        }
    };
    let asks = matches!(purpose, Purpose::Follow { .. });
    let ended = tokio::select! {
        ended = forward(from_server, to_peer, &sent, asks) => ended?,
        ended = backward(from_peer, early, to_server, guard.as_ref(), &sent) => ended?,
        () = over => Ended::Superseded,
        _ = closed.wait_for(|&closed| closed) => Ended::Closed,
    };
    if let Ended::FalseFeedback { claimed, possible } = ended {
        tracing::warn!(
            %peer, %claimed, %possible,
            "dropped the link of a standby that claims WAL this writer never sent it (rule R4)"
        );
    }
    Ok(ended)
}

enum Admitted {
    Yes(Startup, BytesMut),
    No(&'static str),
    PeerLeft,
}

/// Reads the first packets and decides; the bytes after the startup packet come back with it.
async fn admit<S: Stream>(
    stream: &mut S,
    peer: NodeId,
    purpose: &Purpose,
) -> Result<Admitted, Error> {
    const DOING: &str = "reading the startup packet of a WAL tunnel";
    let mut buf = BytesMut::new();
    let read = async {
        loop {
            match startup::parse(&buf)? {
                Some((FirstPacket::Startup(startup), used)) => {
                    buf.advance(used);
                    return Ok(match refusal(&startup, peer, purpose) {
                        Some(because) => Admitted::No(because),
                        None => Admitted::Yes(renamed(startup, peer), buf),
                    });
                }
                Some((FirstPacket::Cancel(_), _)) => {
                    return Ok(Admitted::No("cancel requests do not pass through a WAL tunnel"));
                }
                Some((FirstPacket::Ssl | FirstPacket::GssEnc, used)) => {
                    buf.advance(used);
                    stream.write_all(b"N").await.map_err(Error::io(DOING))?;
                    stream.flush().await.map_err(Error::io(DOING))?;
                }
                None => {}
            }
            if stream.read_buf(&mut buf).await.map_err(Error::io(DOING))? == 0 {
                return Ok(Admitted::PeerLeft);
            }
        }
    };
    timeout(limits::STARTUP_WAIT, read).await.unwrap_or(Err(Error::TimedOut { doing: DOING }))
}

fn refusal(startup: &Startup, peer: NodeId, purpose: &Purpose) -> Option<&'static str> {
    let replication = startup.all("replication").last();
    // PostgreSQL compares names of standbys without regard to case.
    if peer.as_str().eq_ignore_ascii_case(VIRTUAL_STANDBY) {
        return Some("a node must not have the name of the virtual standby");
    }
    if startup.all("user").any(|user| user != QUORATE_USER.as_bytes()) {
        return Some("only the role quorate may use a WAL tunnel");
    }
    match (purpose, replication) {
        (_, Some(b"true")) => None,
        (Purpose::Clone, None) => None,
        (Purpose::Follow { .. } | Purpose::Uncounted, _) => {
            Some("a standby's tunnel is for physical replication")
        }
        (Purpose::Clone, Some(_)) => Some("logical replication does not pass through a WAL tunnel"),
    }
}

/// The name is the authenticated one: PostgreSQL would let a standby called `quorate` acknowledge.
fn renamed(mut startup: Startup, peer: NodeId) -> Startup {
    startup.set("application_name", peer.as_str());
    // Options could set the name again.
    startup.remove("options");
    startup
}

/// Server to standby. What is about to be sent is counted first, as its echo may be quick.
///
/// With `asks` the standby is asked between messages, again and again, where it is: PostgreSQL tells
/// by itself what it has on its disk, but what it has replayed only once a second.
async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    sent: &AtomicU64,
    asks: bool,
) -> Result<Ended, Error> {
    let mut splitter = Splitter::new();
    let mut chunk = vec![0; limits::WAL_CHUNK];
    let mut streaming = false;
    let mut ask = tokio::time::interval(LAG_ASK_EVERY);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let n = tokio::select! {
            n = from.read(&mut chunk) => n.map_err(Error::io("reading WAL for a standby"))?,
            _ = ask.tick(), if asks && streaming && splitter.at_boundary() => {
                let mut question = BytesMut::new();
                put_ask(&mut question, Lsn(sent.load(Ordering::Relaxed)), postgres_clock());
                send(&mut to, &question).await?;
                continue;
            }
        };
        if n == 0 {
            return Ok(Ended::Server);
        }
        let mut rest = &chunk[..n];
        loop {
            let step = splitter.step(rest, |tag| if tag == COPY_DATA { XLOG_HEADER } else { 0 })?;
            rest = &rest[step.used..];
            let part = match step.event {
                None => break,
                Some(Event::Head(_)) => continue,
                Some(Event::End(part)) => part,
            };
            if part.tag != COPY_DATA {
                // Anything else ends a stream, or comes before one.
                streaming = part.tag == COPY_BOTH;
            } else if let FromServer::XLogData { start, .. } = FromServer::parse(part.seen)? {
                let end = start.0.saturating_add((part.len - XLOG_HEADER) as u64);
                sent.fetch_max(end, Ordering::Relaxed);
            }
        }
        send(&mut to, &chunk[..n]).await?;
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Error> {
    to.write_all(bytes).await.map_err(Error::io("sending WAL to a standby"))?;
    to.flush().await.map_err(Error::io("sending WAL to a standby"))
}

/// The wall clock as PostgreSQL writes it: microseconds since 2000-01-01 UTC.
fn postgres_clock() -> i64 {
    const UNIX_TO_2000: Duration = Duration::from_secs(946_684_800);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(UNIX_TO_2000).as_micros()).unwrap_or(i64::MAX)
}

/// Standby to server. Feedback counts before the local server hears it.
async fn backward(
    mut from: impl AsyncRead + Unpin,
    early: BytesMut,
    mut to: impl AsyncWrite + Unpin,
    link: Option<&LinkGuard>,
    sent: &AtomicU64,
) -> Result<Ended, Error> {
    let mut splitter = Splitter::new();
    let mut chunk = early;
    chunk.reserve(limits::FEEDBACK_CHUNK);
    loop {
        let mut rest = &chunk[..];
        while let (Some(link), Some(event)) = (link, advance(&mut splitter, &mut rest)?) {
            let Event::End(part) = event else { continue };
            if part.tag != COPY_DATA || !part.is_whole() {
                continue;
            }
            let Some(update) = StatusUpdate::parse(part.seen)? else { continue };
            let StatusUpdate { write, flush, apply, .. } = update;
            let claimed = write.max(flush);
            let possible = Lsn(sent.load(Ordering::Relaxed));
            if claimed > possible {
                return Ok(Ended::FalseFeedback { claimed, possible });
            }
            // Replay of a segment switch counts to the end of its segment, whose padding may still
            // be on its way: no false claim, but not a copy either.
            let apply = apply.min(possible);
            if !link.feedback(Positions { write, flush, apply }) {
                return Ok(Ended::Superseded);
            }
        }
        to.write_all(&chunk).await.map_err(Error::io("passing a standby's feedback"))?;
        to.flush().await.map_err(Error::io("passing a standby's feedback"))?;
        chunk.clear();
        if from.read_buf(&mut chunk).await.map_err(Error::io("reading a standby's feedback"))? == 0
        {
            return Ok(Ended::Peer);
        }
    }
}

fn advance<'a>(splitter: &'a mut Splitter, rest: &mut &[u8]) -> Result<Option<Event<'a>>, Error> {
    let step = splitter.step(rest, |tag| if tag == COPY_DATA { FEEDBACK_MAX } else { 0 })?;
    *rest = &rest[step.used..];
    Ok(step.event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow() -> Purpose {
        Purpose::Follow { aggregator: Aggregator::new(), term: Term(1), verified: Lsn(0) }
    }

    #[test]
    fn only_quorate_replicates_and_never_under_its_own_name() {
        let n2 = NodeId::new("n2").unwrap();
        let good = Startup::new(&[("user", "quorate"), ("replication", "true")]);
        assert_eq!(refusal(&good, n2, &follow()), None);
        assert!(refusal(&good, NodeId::new("quorate").unwrap(), &follow()).is_some());
        for parameters in [
            &[("user", "postgres"), ("replication", "true")][..],
            &[("user", "postgres"), ("user", "quorate"), ("replication", "true")],
            &[("user", "quorate"), ("replication", "database")],
            &[("user", "quorate"), ("replication", "true"), ("replication", "database")],
            &[("user", "quorate")],
        ] {
            assert!(refusal(&Startup::new(parameters), n2, &follow()).is_some(), "{parameters:?}");
        }
        let sql = Startup::new(&[("user", "quorate"), ("database", "postgres")]);
        assert_eq!(refusal(&sql, n2, &Purpose::Clone), None);
        let sneaky = Startup::new(&[
            ("application_name", "quorate"),
            ("options", "-c application_name=quorate"),
            ("application_name", "quorate"),
        ]);
        let startup = renamed(sneaky, n2);
        assert_eq!(startup.parameters.len(), 1);
        assert_eq!(startup.get("application_name"), Some(&b"n2"[..]));
    }
}
