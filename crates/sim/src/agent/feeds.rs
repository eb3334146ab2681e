//! How a standby gets its writer's log.

use std::rc::Rc;
use std::time::Duration;

use quorate_core::node::Feed;
use quorate_core::report::{Report, on_history};
use quorate_core::{Lsn, Moment, NodeId, Term, TimelineId};

use super::{Link, Stream};
use crate::event::{AgentEvent, Message, Unwelcome};
use crate::flaw::Flaw;
use crate::server::records;
use crate::world::World;

const FEED_RETRY: Duration = Duration::from_millis(50);
/// How long a stream that hears nothing is kept before it is opened anew.
const STREAM_SILENCE: Duration = Duration::from_secs(10);

impl World {
    pub(super) fn follow(&mut self, node: usize, writer: NodeId, term: Term) {
        let Some(to) = self.index(writer) else { return };
        let id = self.number();
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        agent.feed = Feed::Open { from: writer, term };
        agent.stream = Some(Stream { id, writer: to, term, welcome: false, heard: now });
        self.feed_retry(node, id);
    }

    /// Asks the writer for its log, again and again until it answers.
    pub(super) fn feed_retry(&mut self, node: usize, stream: u64) {
        let data = &self.hosts[node].disk.data;
        let mut end = data.report(Term::default());
        if self.hosts[node].server.is_none() {
            // It is the receiver of a running server that asks.
            return self.agent_event(node, FEED_RETRY, AgentEvent::FeedRetry { stream });
        }
        let Some(agent) = self.hosts[node].agent.as_ref() else { return };
        let Some(s) = agent.stream.as_ref().filter(|s| s.id == stream && !s.welcome) else {
            return;
        };
        let (to, term) = (s.writer, s.term);
        end.term = term;
        self.send(node, to, Message::Hello { stream, term, end });
        let wait = FEED_RETRY * 4;
        self.agent_event(node, wait, AgentEvent::FeedRetry { stream });
    }

    pub(super) fn hello(&mut self, from: usize, to: usize, stream: u64, term: Term, end: &Report) {
        let now = self.moment(to);
        let name = self.hosts[from].name;
        let serving = self.hosts[to].server.as_ref().is_some_and(|s| s.writes && !s.stopped);
        let lineage = self.flaw != Flaw::NoLineage;
        let Some(agent) = self.hosts[to].agent.as_mut() else { return };
        let reign = agent.reign.as_ref().filter(|r| r.own.term == term && serving);
        let Some(reign) = reign.filter(|_| agent.aggregator.term == term) else {
            let why = Unwelcome::NotServing;
            return self.send(to, from, Message::Unwelcome { stream, why });
        };
        if let Err(fork) = on_history(end, reign.timeline, &reign.forks)
            && lineage
        {
            let why = Unwelcome::Diverged { fork };
            return self.send(to, from, Message::Unwelcome { stream, why });
        }
        let forks = Rc::clone(&reign.forks);
        let timeline = reign.timeline;
        let sent = records(end.lsn);
        let link = Link { stream, flushed: None, applied: 0, heard: now, sent, sent_at: now };
        agent.aggregator.links.insert(name, link);
        self.send(to, from, Message::Welcome { stream, timeline, forks });
        self.feed_standbys(to);
    }

    pub(super) fn welcome(
        &mut self,
        node: usize,
        stream: u64,
        timeline: TimelineId,
        forks: &[(TimelineId, Lsn)],
    ) {
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let Some(s) = agent.stream.as_mut().filter(|s| s.id == stream) else { return };
        s.welcome = true;
        s.heard = now;
        // The receiver takes the writer's history at once, before any byte of its timeline.
        let data = &mut self.hosts[node].disk.data;
        data.timeline = timeline;
        data.forks = forks.to_vec();
        self.feed_back(node);
        self.wake(node);
    }

    pub(super) fn unwelcome(&mut self, node: usize, stream: u64, why: Unwelcome) {
        let Some(agent) = self.agent(node) else { return };
        let Some(s) = agent.stream.as_ref().filter(|s| s.id == stream) else { return };
        let term = s.term;
        match why {
            Unwelcome::NotServing => return,
            Unwelcome::Diverged { .. } => agent.feed = Feed::Diverged { term },
        }
        agent.stream = None;
        // A start that waits for that log would wait for ever.
        if self.hosts[node].disk.data.rewound.is_some()
            && let Some(agent) = self.agent(node)
        {
            agent.job = None;
        }
        self.wake(node);
    }

    pub(super) fn close_feed(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        agent.feed = Feed::Closed;
        if let Some(s) = agent.stream.take() {
            self.send(node, s.writer, Message::Closed { stream: s.id });
        }
    }

    /// The receiver of a standby is gone: its stream is opened anew while it is wanted.
    pub(crate) fn receiver_ended(&mut self, node: usize) {
        let Some(agent) = self.agent(node) else { return };
        if let Some(id) = agent.stream.as_ref().map(|s| s.id) {
            let writer = agent.stream.as_ref().map_or(0, |s| s.writer);
            self.send(node, writer, Message::Closed { stream: id });
            self.stream_ended(node, id);
        }
    }

    pub(super) fn stream_ended(&mut self, node: usize, stream: u64) {
        let id = self.number();
        let now = self.moment(node);
        let Some(agent) = self.agent(node) else { return };
        let Some(s) = agent.stream.as_mut().filter(|s| s.id == stream) else { return };
        *s = Stream { id, writer: s.writer, term: s.term, welcome: false, heard: now };
        self.agent_event(node, FEED_RETRY, AgentEvent::FeedRetry { stream: id });
        self.wake(node);
    }

    /// Nothing came for long: the connection is dead although nobody said so.
    pub(super) fn watch_stream(&mut self, node: usize, now: Moment) {
        let silent = |s: &Stream| s.welcome && now.since(s.heard) > STREAM_SILENCE;
        let Some(agent) = self.agent(node) else { return };
        let dead = agent.stream.as_ref().filter(|s| silent(s)).map(|s| s.id);
        if let Some(id) = dead {
            self.stream_ended(node, id);
        }
    }

    /// A writer sends what it has flushed to the standbys that follow it.
    pub(crate) fn feed_standbys(&mut self, node: usize) {
        let Some(agent) = self.hosts[node].agent.as_ref() else { return };
        if self.hosts[node].agent_stopped || agent.reign.is_none() {
            return;
        }
        let links: Vec<(NodeId, u64, u64)> =
            agent.aggregator.links.iter().map(|(n, l)| (*n, l.stream, l.sent)).collect();
        let now = self.moment(node);
        for (name, stream, sent) in links {
            let Some(to) = self.index(name) else { continue };
            let Some(end) = self.log_between(node, sent) else { continue };
            if let Some(agent) = self.agent(node)
                && let Some(link) = agent.aggregator.links.get_mut(&name)
            {
                link.sent = end.depth;
                link.sent_at = now;
            }
            self.send(node, to, Message::Wal { stream, end });
        }
    }

    /// A standby says where it is.
    pub(crate) fn feed_back(&mut self, node: usize) {
        let host = &self.hosts[node];
        let (Some(agent), Some(server)) = (&host.agent, &host.server) else { return };
        let Some(s) = agent.stream.as_ref().filter(|s| s.welcome) else { return };
        if host.agent_stopped || server.writes || server.stopped {
            return;
        }
        let (stream, to) = (s.id, s.writer);
        let (flushed, applied) = (host.disk.data.flushed, server.replayed);
        self.send(node, to, Message::Feedback { stream, flushed, applied });
    }
}
