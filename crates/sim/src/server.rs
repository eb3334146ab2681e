//! PostgreSQL, simulated: what it has on disk, and what a running server does with it.
//!
//! A writer appends, flushes and waits for the position that Quorate releases; a standby receives,
//! flushes and replays. What it does not check is not checked here either: a standby takes any log
//! that begins where its own ends, and believes the history it is told.

use std::collections::BTreeSet;

use quorate_core::report::Report;
use quorate_core::{Lsn, Moment, Term, TimelineId};

use crate::event::{AgentEvent, Event, ServerEvent};
use crate::flaw::Flaw;
use crate::wal::{Point, depth, lsn};
use crate::world::World;

/// A data directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    /// Where its log ends; `None`: there is no database.
    pub(crate) end: Option<Point>,
    /// Records of it that are on disk.
    pub(crate) flushed: u64,
    /// The timeline it is on, and where that one's ancestors ended.
    pub(crate) timeline: TimelineId,
    pub(crate) forks: Vec<(TimelineId, Lsn)>,
    /// A rewind failed half-way.
    pub(crate) spoilt: bool,
    /// A rewind is done: it must replay so many records before it answers.
    pub(crate) rewound: Option<u64>,
}

impl Data {
    pub(crate) fn founded(root: Point) -> Self {
        let timeline = TimelineId(1);
        Self { end: Some(root), flushed: root.depth, timeline, ..Self::default() }
    }

    pub(crate) fn depth(&self) -> u64 {
        self.end.map_or(0, |end| end.depth)
    }

    /// The log's end as a standby tells it.
    pub(crate) fn report(&self, term: Term) -> Report {
        let forks = self.forks.clone();
        Report { term, timeline: self.timeline, lsn: lsn(self.depth()), forks }
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) life: u64,
    pub(crate) writes: bool,
    pub(crate) stopped: bool,
    /// Records replayed, on a standby.
    pub(crate) replayed: u64,
    pub(crate) replay_paused: bool,
    /// Records whose effects are shown: on a writer, those whose commits wait for nothing more.
    pub(crate) shown: u64,
    /// Commits that wait: where they end, and whose they are.
    pub(crate) waiting: Vec<(Point, u64)>,
    /// Transactions that have not written their commit records.
    pub(crate) running: BTreeSet<u64>,
    /// The id of the next transaction, on a writer.
    pub(crate) next_id: u64,
    /// When it answered last, and what: what Quorate knows of it.
    pub(crate) facts: Option<Facts>,
}

/// What a server said of itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) writes: bool,
    pub(crate) timeline: TimelineId,
    pub(crate) flushed: Lsn,
    pub(crate) replayed: Lsn,
    pub(crate) answered: Moment,
}

impl World {
    /// A server begins as a standby that has replayed what it has.
    pub(crate) fn begin_server(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        host.lives += 1;
        let depth = host.disk.data.depth();
        host.server = Some(Server {
            life: host.lives,
            writes: false,
            stopped: false,
            replayed: depth,
            replay_paused: false,
            shown: depth,
            waiting: Vec::new(),
            running: BTreeSet::new(),
            next_id: 0,
            facts: None,
        });
        // What it recovered is on disk: recovery flushes it.
        host.disk.data.flushed = depth;
        self.trace.say(self.now, node, "the server starts");
        self.server_event(node, std::time::Duration::from_secs(1), ServerEvent::StatusDue);
        self.probe(node);
    }

    /// A server ends, however it does.
    pub(crate) fn end_server(&mut self, node: usize) {
        let host = &mut self.hosts[node];
        if host.server.take().is_none() {
            return;
        }
        self.trace.say(self.now, node, "the server ends");
        self.receiver_ended(node);
        self.agent_event(node, std::time::Duration::from_micros(100), AgentEvent::Cycle);
    }

    pub(crate) fn server_happens(&mut self, node: usize, what: ServerEvent) {
        match what {
            ServerEvent::Flushed { end } => self.flushed(node, end),
            ServerEvent::Replayed { depth } => {
                if let Some(server) = &mut self.hosts[node].server
                    && !server.writes
                    && !server.replay_paused
                {
                    server.replayed = server.replayed.max(depth);
                    server.shown = server.replayed;
                }
                self.feed_back(node);
            }
            ServerEvent::Commit { operation, transaction } => {
                self.write_commit(node, operation, transaction);
            }
            ServerEvent::StatusDue => {
                self.feed_back(node);
                self.server_event(node, std::time::Duration::from_secs(1), ServerEvent::StatusDue);
            }
        }
    }

    /// A record is written and will be flushed. A server whose disk is full ends, as PostgreSQL's do.
    pub(crate) fn append(&mut self, node: usize, id: Option<u64>) -> Option<Point> {
        let host = &mut self.hosts[node];
        if host.disk.full {
            self.trace.say(self.now, node, "no room for the log: the server panics");
            self.end_server(node);
            return None;
        }
        let end = host.disk.data.end.as_mut().and_then(|end| self.tree.append(end, id));
        let Some(end) = end else {
            self.checks.fail(self.now, "a record was written over another one");
            return None;
        };
        self.flush_later(node, end);
        Some(end)
    }

    fn flush_later(&mut self, node: usize, end: Point) {
        let wait = self.some_us(300, 3_000);
        let life = self.hosts[node].server.as_ref().map_or(0, |s| s.life);
        let what = ServerEvent::Flushed { end };
        self.disk_event(node, wait, Event::Server { node, life, what });
    }

    fn flushed(&mut self, node: usize, end: Point) {
        let data = &mut self.hosts[node].disk.data;
        let Some(own) = data.end.filter(|own| self.tree.continues(*own, end)) else { return };
        data.flushed = data.flushed.max(end.depth).min(own.depth);
        let Some(server) = &self.hosts[node].server else { return };
        if server.writes {
            self.feed_standbys(node);
            self.release_commits(node);
        } else {
            let wait = self.some_us(50, 1_500);
            self.server_event(node, wait, ServerEvent::Replayed { depth: end.depth });
            self.feed_back(node);
        }
    }

    /// A standby gets more of its writer's log.
    pub(crate) fn receive(&mut self, node: usize, end: Point) {
        let host = &mut self.hosts[node];
        let Some(server) = &host.server else { return };
        if server.writes || server.stopped {
            return;
        }
        let Some(own) = host.disk.data.end.filter(|own| own.depth < end.depth) else { return };
        if host.disk.full {
            // The receiver gives up, and is started again when there is room.
            return self.receiver_ended(node);
        }
        if !self.tree.continues(end, own) {
            self.checks.fail(self.now, "a standby took log that does not continue its own");
        }
        self.hosts[node].disk.data.end = Some(end);
        self.flush_later(node, end);
    }

    /// What Quorate released: commits up to here return to their clients.
    pub(crate) fn released(&mut self, node: usize, safe: u64) {
        let flushed = self.hosts[node].disk.data.flushed;
        let safe = if self.flaw == Flaw::EarlyAcknowledgement { flushed } else { safe };
        let Some(server) = &mut self.hosts[node].server else { return };
        if !server.writes || server.stopped {
            return;
        }
        server.shown = server.shown.max(safe.min(flushed));
        let mut done = Vec::new();
        server.waiting.retain(|waiting| {
            let waits = waiting.0.depth > server.shown;
            if !waits {
                done.push(*waiting);
            }
            waits
        });
        for (end, operation) in done {
            self.committed(node, operation, end);
        }
    }

    /// A standby becomes a writer, on a timeline of its own.
    pub(crate) fn promote_server(&mut self, node: usize, timeline: TimelineId) {
        let host = &mut self.hosts[node];
        let (Some(server), Some(end)) = (&mut host.server, host.disk.data.end) else { return };
        let fork = self.tree.fork(end);
        let data = &mut host.disk.data;
        // As PostgreSQL writes it: the parent is the timeline that it was following.
        data.forks.push((data.timeline, lsn(end.depth)));
        data.timeline = timeline;
        data.end = Some(fork);
        data.flushed = fork.depth;
        server.writes = true;
        server.next_id = self.tree.next_id(end);
        server.replayed = end.depth;
        server.shown = end.depth;
        server.replay_paused = false;
    }

    /// What Quorate asks a server four times a second.
    pub(crate) fn probe(&mut self, node: usize) {
        let now = self.moment(node);
        let host = &mut self.hosts[node];
        let data = &host.disk.data;
        let Some(server) = host.server.as_mut().filter(|s| !s.stopped) else { return };
        let replayed = if server.writes { data.flushed } else { server.replayed };
        server.facts = Some(Facts {
            writes: server.writes,
            timeline: data.timeline,
            flushed: lsn(data.flushed),
            replayed: lsn(replayed),
            answered: now,
        });
    }

    /// The beginning of a log that a standby of this history may be rewound to.
    pub(crate) fn rewind_to(&mut self, node: usize, from: usize) {
        let source = self.hosts[from].disk.data.clone();
        let (Some(own), Some(end)) = (self.hosts[node].disk.data.end, source.end) else { return };
        let common = self.tree.prefix(end, self.tree.common(own, end));
        let data = &mut self.hosts[node].disk.data;
        data.end = Some(common);
        data.flushed = common.depth;
        data.timeline = source.timeline;
        data.forks = source.forks;
        data.rewound = Some(source.flushed);
    }

    /// A copy of the writer's database.
    pub(crate) fn clone_to(&mut self, node: usize, from: usize) {
        let source = self.hosts[from].disk.data.clone();
        let end = source.end.map(|end| self.tree.prefix(end, source.flushed));
        self.hosts[node].disk.data = Data { end, spoilt: false, rewound: None, ..source };
    }

    /// What a standby has of a writer's log, by positions alone.
    pub(crate) fn log_between(&self, writer: usize, after: u64) -> Option<Point> {
        let data = &self.hosts[writer].disk.data;
        let end = self.tree.prefix(data.end?, data.flushed);
        (end.depth > after).then_some(end)
    }
}

/// Records behind a position of PostgreSQL's.
pub(crate) fn records(at: Lsn) -> u64 {
    depth(at)
}
