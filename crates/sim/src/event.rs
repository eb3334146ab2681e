//! What happens, and what hosts say to each other.

use std::rc::Rc;

use quorate_core::health::{Beat, BeatAnswer};
use quorate_core::report::Report;
use quorate_core::{Command, Lsn, Moment, Term, TimelineId};

use crate::agent::JobEnd;
use crate::fate::{Fate, Transaction};
use crate::raft::{Stored, Word};
use crate::wal::Point;

/// What a host says to another.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Beat {
        beat: Rc<Beat>,
        sent: Moment,
    },
    BeatAnswer {
        answer: BeatAnswer,
        sent: Moment,
    },
    /// The host answers for a process that is not there.
    Refused,
    Raft(Word),
    Propose {
        proposal: u64,
        command: Box<Command>,
    },
    /// A proposal is over: applied, or not taken.
    Proposed {
        proposal: u64,
    },
    Hello {
        stream: u64,
        term: Term,
        end: Report,
    },
    Welcome {
        stream: u64,
        timeline: TimelineId,
        forks: Rc<[(TimelineId, Lsn)]>,
    },
    Unwelcome {
        stream: u64,
        why: Unwelcome,
    },
    Wal {
        stream: u64,
        end: Point,
    },
    Feedback {
        stream: u64,
        flushed: u64,
        applied: u64,
    },
    Closed {
        stream: u64,
    },
    Request {
        operation: u64,
        term: Term,
    },
    Reply {
        operation: u64,
        served: bool,
    },
    /// What became of a transaction.
    Ask {
        operation: u64,
        transaction: Transaction,
    },
    Fate {
        operation: u64,
        fate: Fate,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwelcome {
    Diverged { fork: Lsn },
    NotServing,
}

/// What happens.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Deliver {
        from: usize,
        to: usize,
        message: Message,
    },
    /// An event of a host's process; void when the process is another one by then.
    Agent {
        node: usize,
        life: u64,
        what: AgentEvent,
    },
    /// An event of a host's server, likewise.
    Server {
        node: usize,
        life: u64,
        what: ServerEvent,
    },
    Client {
        client: usize,
        operation: u64,
        what: ClientEvent,
    },
    Do(usize),
    /// The checks look at the cluster.
    Look,
}

#[derive(Debug, Clone)]
pub(crate) enum AgentEvent {
    Cycle,
    Coordinate,
    Beat,
    Probe,
    Election { epoch: u64 },
    LeaderBeat,
    Stored { stored: Box<Stored>, words: Vec<(usize, Word)> },
    Promised { term: Term },
    JobDone { job: u64, end: JobEnd },
    FeedRetry { stream: u64 },
    MarkerRetry { term: Term },
    DrainStep { term: Term },
    ProposalLate { proposal: u64 },
}

#[derive(Debug, Clone)]
pub(crate) enum ServerEvent {
    Flushed {
        end: Point,
    },
    Replayed {
        depth: u64,
    },
    /// A transaction comes to its end.
    Commit {
        operation: u64,
        transaction: Transaction,
    },
    /// A standby says where it is although nothing happens.
    StatusDue,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum ClientEvent {
    Begin,
    GiveUp,
    /// A held answer asks the gate again.
    Pass {
        node: usize,
        life: u64,
    },
    /// What became of a transaction is asked again.
    Ask,
}
