//! How a standby attaches to a writer: a greeting on the tunnel in which the writer checks the
//! standby's lineage (rule R4) before a byte of log passes, in either direction.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::node::{Data, Feed};
use quorate_core::report::{self, Report};
use quorate_core::{Lsn, NodeId, Term, TimelineId};
use quorate_link::{Kind, LinkStream, Links, clock, frame};
use quorate_replication::{BoxFuture, BoxStream, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::database::Database;
use crate::limits::{ASTRAY_RETRY, HELLO_BYTES_MAX};
use crate::node::Node;
use crate::run::Memory;

/// What a node wants of the writer's log tunnel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hello {
    /// To follow the writer of this term, from this log end.
    Follow { term: Term, end: Report },
    /// To copy the writer's database.
    Copy { term: Term },
}

/// The writer's answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Go on: what follows is PostgreSQL's protocol.
    Welcome {
        /// My timeline and those it came from.
        timelines: Vec<TimelineId>,
    },
    /// Your log left my history at this point: rewind first.
    Diverged { fork: Lsn },
    /// The log from your end on is no longer kept: copy the database.
    LogGone,
    /// Not the writer of that term, or not yet.
    NotServing { because: String },
}

/// What a feed tells the loop.
#[derive(Debug)]
pub enum FeedNews {
    /// The writer of this term refused the lineage.
    Diverged { term: Term, fork: Lsn },
    /// The writer of this term has no longer the log that is needed.
    LogGone { term: Term },
    /// The local server asks the writer of this term for a timeline that it never had.
    Astray { term: Term, timeline: TimelineId },
}

/// Leads the local walreceiver to a writer.
pub struct Follow {
    /// Where to.
    pub writer: NodeId,
    /// In which term.
    pub term: Term,
    /// Connections to nodes.
    pub links: Links,
    /// The local server, asked for its log end with each attempt.
    pub database: Arc<Database>,
    /// Whom to tell.
    pub news: mpsc::Sender<FeedNews>,
    /// The writer's timelines, as it named them last.
    pub timelines: Mutex<Vec<TimelineId>>,
}

impl Target for Follow {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            let end = self.database.lineage(self.term).await.map_err(io::Error::other)?;
            let end = end.ok_or_else(|| io::Error::other("the log's end is not known yet"))?;
            let hello = Hello::Follow { term: self.term, end };
            match greet(&self.links, self.writer, &hello).await? {
                (Answer::Welcome { timelines }, stream) => {
                    *self.timelines.lock().unwrap_or_else(PoisonError::into_inner) = timelines;
                    Ok(Box::new(stream) as BoxStream)
                }
                (Answer::Diverged { fork }, _) => {
                    let _ = self.news.send(FeedNews::Diverged { term: self.term, fork }).await;
                    Err(io::Error::other(format!("the log left the writer's history at {fork}")))
                }
                (Answer::LogGone, _) => {
                    let _ = self.news.send(FeedNews::LogGone { term: self.term }).await;
                    Err(io::Error::other("the writer no longer has the log that is needed"))
                }
                (Answer::NotServing { because }, _) => Err(io::Error::other(because)),
            }
        })
    }

    fn asked(&self, timeline: TimelineId) {
        let known = self.timelines.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(&timeline) {
            // When the queue is full, the next attempt tells.
            let _ = self.news.try_send(FeedNews::Astray { term: self.term, timeline });
        }
    }
}

/// Leads `pg_basebackup` and `pg_rewind` to a writer.
pub struct Copy {
    /// Where to.
    pub writer: NodeId,
    /// In which term.
    pub term: Term,
    /// Connections to nodes.
    pub links: Links,
}

impl Target for Copy {
    fn open(&self) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async move {
            match greet(&self.links, self.writer, &Hello::Copy { term: self.term }).await? {
                (Answer::Welcome { .. }, stream) => Ok(Box::new(stream) as BoxStream),
                (Answer::Diverged { .. } | Answer::LogGone, _) => Err(io::Error::other("refused")),
                (Answer::NotServing { because }, _) => Err(io::Error::other(because)),
            }
        })
    }
}

async fn greet(links: &Links, writer: NodeId, hello: &Hello) -> io::Result<(Answer, LinkStream)> {
    let mut stream = links.dial(writer, Kind::Wal).await.map_err(io::Error::other)?;
    frame::write_json(&mut stream, hello, HELLO_BYTES_MAX).await.map_err(io::Error::other)?;
    let answer = frame::read_json(&mut stream, HELLO_BYTES_MAX).await.map_err(io::Error::other)?;
    Ok((answer, stream))
}

/// A writer's history, against which standbys are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The term.
    pub term: Term,
    /// The timeline it writes.
    pub timeline: TimelineId,
    /// Where each ancestor ended, oldest first.
    pub forks: Vec<(TimelineId, Lsn)>,
}

impl Lineage {
    /// The timeline and all its ancestors.
    pub fn timelines(&self) -> Vec<TimelineId> {
        self.forks.iter().map(|(timeline, _)| *timeline).chain([self.timeline]).collect()
    }

    /// Whether a standby with this log end may attach; else where its log left this history.
    pub fn admits(&self, end: &Report) -> Result<(), Lsn> {
        #[cfg(feature = "sabotage")]
        if crate::sabotage::is("lineage") {
            return Ok(());
        }
        report::on_history(end, self.timeline, &self.forks)
    }
}

impl Memory {
    /// Takes in what a feed tells.
    pub(crate) fn take_feed(&mut self, node: &Arc<Node>, news: FeedNews) {
        match news {
            FeedNews::Diverged { term, fork } => {
                self.fork = Some(fork);
                if matches!(self.feed, Feed::Open { term: t, .. } if t == term) {
                    self.feed = Feed::Diverged { term };
                    self.ask_no_more(node);
                }
            }
            FeedNews::LogGone { term } => {
                if matches!(self.feed, Feed::Open { term: t, .. } if t == term) {
                    tracing::warn!(%term, "too far behind: the database must be copied again");
                    self.feed = Feed::LogGone { term };
                    self.ask_no_more(node);
                }
            }
            FeedNews::Astray { term, timeline } => {
                let now = clock::now();
                let lately = self.astray.is_some_and(|at| now.since(at) < ASTRAY_RETRY);
                if !lately && matches!(self.feed, Feed::Open { term: t, .. } if t == term) {
                    tracing::warn!(%term, %timeline, "the server wants a timeline that is no more");
                    self.astray = Some(now);
                    self.feed = Feed::Astray { term };
                    self.ask_no_more(node);
                }
            }
        }
    }

    /// The writer's answer will not change until the log here has.
    fn ask_no_more(&mut self, node: &Node) {
        if let Some(database) = &node.parts.database {
            database.feed.set_target(None);
        }
        // Its start would wait for ever for log that never comes.
        if self.data == Data::Incomplete
            && let Some(running) = self.job.take()
        {
            running.cancel();
        }
    }
}
