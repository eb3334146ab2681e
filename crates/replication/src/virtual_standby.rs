//! The virtual synchronous standby: a replication client of the local writer that receives all
//! WAL, keeps none, and reports the position that the aggregator released.
//!
//! It runs on the writer only, from after promotion until before the server is stopped: a fast
//! shutdown waits until every WAL sender's client has confirmed the end of WAL, which a fenced or
//! lonely virtual standby never does.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use quorate_core::Lsn;
use quorate_wire::Event;
use quorate_wire::Splitter;
use quorate_wire::backend::{COPY_BOTH, COPY_DATA, ERROR, Fields};
use quorate_wire::replication::{FromServer, StatusUpdate, SystemIdentity, XLOG_HEADER};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::local::Connection;
use crate::{Aggregator, Error, Quorum, VIRTUAL_STANDBY, limits};

/// What the virtual standby is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyState {
    /// Connecting to the server.
    Connecting,
    /// Receiving WAL.
    Streaming,
    /// Not connected; it tries again shortly.
    Failed {
        /// One sentence.
        why: String,
    },
}

/// Sees all WAL in order: the position of its first byte, and the bytes.
pub type Tap = Arc<dyn Fn(Lsn, &[u8]) + Send + Sync>;

/// The virtual synchronous standby of the local server.
pub struct VirtualStandby {
    pg_socket: PathBuf,
    user: String,
    aggregator: Arc<Aggregator>,
    tap: Option<Tap>,
    state: watch::Sender<StandbyState>,
}

impl VirtualStandby {
    /// A virtual standby for the server behind this socket file, logging in as `user`.
    pub fn new(
        pg_socket: impl Into<PathBuf>,
        user: impl Into<String>,
        aggregator: Arc<Aggregator>,
    ) -> Self {
        let state = watch::Sender::new(StandbyState::Connecting);
        Self { pg_socket: pg_socket.into(), user: user.into(), aggregator, tap: None, state }
    }

    /// The same, showing all WAL to `tap`, which must not block.
    pub fn with_tap(self, tap: Tap) -> Self {
        Self { tap: Some(tap), ..self }
    }

    /// Follows what it is doing.
    pub fn state(&self) -> watch::Receiver<StandbyState> {
        self.state.subscribe()
    }

    /// Runs until dropped; a connection that ends is made again.
    pub async fn run(self) {
        loop {
            let why = match self.stream().await {
                Ok(()) => "the server ended the stream".to_owned(),
                Err(error) => error_chain(&error),
            };
            let failed = StandbyState::Failed { why };
            if *self.state.borrow() != failed {
                tracing::warn!(state = ?failed, "the virtual standby is not connected; commits wait");
            }
            self.state.send_replace(failed);
            sleep(limits::RECONNECT_DELAY).await;
        }
    }

    async fn stream(&self) -> Result<(), Error> {
        const DOING: &str = "starting the stream of the virtual standby";
        let start = timeout(limits::LOGIN_WAIT, self.start());
        let connection = start.await.map_err(|_| Error::TimedOut { doing: DOING })??;
        tracing::info!("the virtual standby is streaming");
        self.state.send_replace(StandbyState::Streaming);
        let (reader, writer) = connection.stream.into_split();
        let asked = Notify::new();
        tokio::select! {
            ended = self.receive(reader, connection.buf, &asked) => ended,
            failed = self.report(writer, &asked) => failed,
        }
    }

    async fn start(&self) -> Result<Connection, Error> {
        let mut connection =
            Connection::replication(&self.pg_socket, &self.user, VIRTUAL_STANDBY).await?;
        let row = connection.query_row("IDENTIFY_SYSTEM", "asking for the end of WAL").await?;
        let SystemIdentity { timeline, flushed, .. } = SystemIdentity::parse(&row)?;
        const DOING: &str = "starting replication for the virtual standby";
        let sql = format!("START_REPLICATION PHYSICAL {flushed} TIMELINE {timeline}");
        connection.send_query(&sql, DOING).await?;
        match connection.message(DOING).await?.tag {
            COPY_BOTH => {
                // What was flushed before the stream began is not streamed: without this word an
                // idle server's last commit would wait for the next one.
                self.aggregator.own_position(flushed);
                Ok(connection)
            }
            tag => Err(Error::Unexpected { doing: DOING, tag }),
        }
    }

    /// Reads WAL: it is counted, shown to the tap, and gone.
    async fn receive(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut buf: BytesMut,
        asked: &Notify,
    ) -> Result<(), Error> {
        const DOING: &str = "receiving WAL for the virtual standby";
        let see = if self.tap.is_some() { limits::MESSAGE_MAX } else { XLOG_HEADER };
        let mut splitter = Splitter::new();
        buf.reserve(limits::WAL_CHUNK);
        loop {
            loop {
                let step = splitter.step(&buf, |tag| match tag {
                    COPY_DATA => see,
                    _ => quorate_wire::limits::NOTICE_MAX,
                })?;
                let used = step.used;
                match step.event {
                    None => {
                        buf.advance(used);
                        break;
                    }
                    Some(Event::Head(_)) => {}
                    Some(Event::End(part)) => match part.tag {
                        COPY_DATA => self.take(part.seen, part.len, asked)?,
                        ERROR => {
                            let fields = Fields::parse(part.seen)?;
                            let (code, message) = (fields.code().into(), fields.message().into());
                            return Err(Error::Server { doing: DOING, code, message });
                        }
                        b'c' => return Ok(()),
                        _ => {}
                    },
                }
                buf.advance(used);
            }
            if reader.read_buf(&mut buf).await.map_err(Error::io(DOING))? == 0 {
                return Err(Error::Closed { doing: DOING });
            }
        }
    }

    fn take(&self, seen: &[u8], len: usize, asked: &Notify) -> Result<(), Error> {
        match FromServer::parse(seen)? {
            FromServer::XLogData { start, .. } => {
                self.aggregator.own_position(Lsn(start.0 + (len - XLOG_HEADER) as u64));
                if let Some(tap) = &self.tap {
                    tap(start, &seen[XLOG_HEADER..]);
                }
            }
            FromServer::Keepalive { end, reply } => {
                self.aggregator.own_position(end);
                if reply {
                    asked.notify_one();
                }
            }
            FromServer::Other => {}
        }
        Ok(())
    }

    /// Reports each released position at once. While fenced only answers, naming no position.
    async fn report(
        &self,
        mut writer: impl AsyncWrite + Unpin,
        asked: &Notify,
    ) -> Result<(), Error> {
        let mut released = self.aggregator.watch();
        let mut repeat = limits::FEEDBACK_REPEAT_MIN;
        let mut must_answer = false;
        let mut out = BytesMut::new();
        loop {
            let quorum = *released.borrow_and_update();
            if must_answer || quorum.write.is_some() {
                out.clear();
                update(&quorum).put(&mut out);
                let doing = "sending feedback to the local PostgreSQL";
                writer.write_all(&out).await.map_err(Error::io(doing))?;
            }
            must_answer = false;
            tokio::select! {
                // An aggregator lives as long as this borrow of it: the channel is never closed.
                _ = released.changed() => {}
                () = asked.notified() => must_answer = true,
                () = sleep(repeat) => repeat = (repeat * 2).min(limits::FEEDBACK_REPEAT_MAX),
            }
        }
    }
}

/// Zero is PostgreSQL's "no position": it releases nothing.
fn update(quorum: &Quorum) -> StatusUpdate {
    StatusUpdate {
        write: quorum.write.unwrap_or_default(),
        flush: quorum.flush.unwrap_or_default(),
        apply: quorum.apply.unwrap_or_default(),
        ..StatusUpdate::default()
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |e| e.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
