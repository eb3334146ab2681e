//! How a standby attaches to a writer: a greeting on the tunnel in which the writer checks the
//! standby's lineage (rule R4) before a byte of log passes, in either direction.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_core::node::{Data, Feed, Job};
use quorate_core::report::{self, Report};
use quorate_core::state::State;
use quorate_core::upstream::feeds;
use quorate_core::{Lsn, NodeId, Term, TimelineId};
use quorate_link::{Kind, LinkStream, Links, clock, frame};
use quorate_replication::{BoxFuture, BoxStream, Target};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::database::Database;
use crate::limits::{ASTRAY_RETRY, HELLO_BYTES_MAX, START_ASKS, UPSTREAM_SILENT};
use crate::node::Node;
use crate::run::Memory;

/// What a node wants of the writer's log tunnel.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hello {
    /// To follow the writer of this term, from this log end. `incomplete`: for the log that the data
    /// needs before a server can start on it. Where that log ends is not known then, but for where it
    /// ends at the least; so nothing that comes back counts, and the server greets anew once it answers.
    Follow {
        term: Term,
        end: Report,
        #[serde(default)]
        incomplete: bool,
    },
    /// The same by way of a node that follows the writer of this term.
    Cascade { term: Term, end: Report },
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
    /// Not the writer of that term, or not yet; or nobody to get its log from now.
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
    /// A node that is no writer does not feed this one.
    Refused { term: Term, because: String },
}

/// Leads the local walreceiver to a writer, or to a node that follows it.
pub struct Follow {
    /// Where to.
    pub from: NodeId,
    /// That is not the writer.
    pub cascaded: bool,
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
            let incomplete = self.database.is_incomplete();
            let end = self.database.lineage(self.term).await.map_err(io::Error::other)?;
            let end = end.ok_or_else(|| io::Error::other("the log's end is not known yet"))?;
            let hello = match self.cascaded {
                false => Hello::Follow { term: self.term, end, incomplete },
                true => Hello::Cascade { term: self.term, end },
            };
            match greet(&self.links, self.from, &hello).await? {
                (Answer::Welcome { timelines }, stream) => {
                    *self.timelines.lock().unwrap_or_else(PoisonError::into_inner) = timelines;
                    if !incomplete {
                        self.database.admit(self.term);
                    }
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
                (Answer::NotServing { because }, _) => {
                    if self.cascaded {
                        let news = FeedNews::Refused { term: self.term, because: because.clone() };
                        let _ = self.news.send(news).await;
                    }
                    Err(io::Error::other(because))
                }
            }
        })
    }

    fn asked(&self, timeline: TimelineId, from: Lsn) -> BoxFuture<'_, io::Result<()>> {
        self.tell_astray(timeline);
        Box::pin(async move {
            let begun = self.database.begin_timeline(timeline, from).await;
            begun.map_err(|error| {
                tracing::warn!(%error, %timeline, "cannot begin the file of a new timeline");
                io::Error::other(error)
            })
        })
    }
}

impl Follow {
    fn tell_astray(&self, timeline: TimelineId) {
        // What is fed here may come to a timeline later than its writer, and is the writer's in the end.
        if self.cascaded {
            return;
        }
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
            FeedNews::Refused { term, because } => {
                if let Feed::Open { from, term: t } = self.feed
                    && t == term
                {
                    tracing::warn!(%from, "following the writer instead: {because}");
                    self.upstream.refuse(clock::now());
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

    /// The node that this one follows instead of the writer.
    pub(crate) fn upstream_of(&mut self, node: &Node, state: &State) -> Option<NodeId> {
        let authority = &state.authority;
        let wish = state.document().node(node.parts.me).follow;
        // Who counts for commits follows the writer.
        let apart = !authority.cohort().contains(&node.parts.me);
        let wish = wish.filter(|wish| apart && authority.writer != Some(*wish));
        let now = clock::now();
        let usable = wish.is_some_and(|wish| {
            let peer = node.parts.health.peers().remove(&wish).unwrap_or_default();
            let heard = peer.heard.is_some_and(|at| now.since(at) < UPSTREAM_SILENT) && !peer.gone;
            heard && peer.status.is_some_and(|status| feeds(&status, authority.term))
        });
        let first = !matches!(self.feed, Feed::Open { .. });
        self.upstream.choose(wish, usable, first, now)
    }

    /// A standby's log may end before what its data needs to be read: PostgreSQL takes the newest
    /// timeline's file of a segment, and of that it may have got no more than the beginning. The server
    /// then asks for log before it answers, and has to be fed to start. Only while a writer serves: an
    /// election may need what a server that is merely slow has to report. One that could not answer
    /// before is not merely slow, and a writer that has opened may lack just this copy to serve.
    pub(crate) fn start_with_log(&mut self, node: &Node, (open, serves): (bool, bool)) {
        let Some(database) = &node.parts.database else { return };
        let starts = self.job.as_ref().is_some_and(|r| r.job == Job::Start);
        let fed = serves || open && database.was_incomplete();
        let asks = starts && self.data == Data::Ready && fed && database.feed.holds();
        let now = clock::now();
        self.start_asks = asks.then(|| self.start_asks.unwrap_or(now));
        if self.start_asks.is_none_or(|at| now.since(at) < START_ASKS) {
            return;
        }
        self.start_asks = None;
        if let Err(e) = database.lacks_log() {
            tracing::error!(error = %e, "cannot mark the data as incomplete");
            return;
        }
        tracing::warn!("the log here ends before the server can start: it needs the writer's");
        self.data = Data::Incomplete;
        if let Some(running) = self.job.take() {
            running.cancel();
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
