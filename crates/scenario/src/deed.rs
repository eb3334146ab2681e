//! What can be done to a cluster.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::because::list;

/// Whom a deed concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// This node.
    Node(NodeId),
    /// Whoever writes now.
    Writer,
    /// Whoever leads consensus now.
    Leader,
}

/// Something done to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// A node's process dies, and its server with it; the host lives.
    Kill(Who),
    /// A node's server dies; its process lives.
    KillPostgres(Who),
    /// A host loses power: its processes die, what was not flushed is gone, nobody is told.
    Lose(Who),
    /// Every host loses power at once.
    LoseAll,
    /// A node's process is started again, after whatever ended it.
    Start(Who),
    /// Every node that is down is started.
    StartAll,
    /// A node's process stands still; its server goes on.
    Stop(Who),
    /// It goes on.
    Continue(Who),
    /// A whole host stands still, its clock goes on: a suspended virtual machine.
    Suspend(Who, Duration),
    /// A node's server stands still.
    StopPostgres(Who),
    /// It goes on.
    ContinuePostgres(Who),
    /// Sides that do not reach each other. Nodes that are not named stand alone.
    Partition(Vec<BTreeSet<NodeId>>),
    /// What the first sends does not reach the second.
    Cut(NodeId, NodeId),
    /// All that a node sends and gets is late by this much.
    Slow(Who, Duration),
    /// So many messages of a thousand are lost, doubled or overtaken, between all nodes.
    Lossy(u16),
    /// Nothing of consensus leaves a node or reaches it; everything else does.
    Mute(Who),
    /// The network is whole again.
    Heal,
    /// Nothing that a node writes reaches its disk until it is released.
    StallDisk(Who),
    /// A node's disk has no room.
    FillDisk(Who),
    /// A node's disk works again, with room.
    FreeDisk(Who),
    /// A node's promise file is gone at its next start.
    ForgetPromise(Who),
    /// A node's clock runs fast (or slow, if negative) by so many thousandths.
    Drift(Who, i16),
    /// A standby replays nothing.
    PauseReplay(Who),
    /// It replays again.
    ResumeReplay(Who),
    /// Somebody keeps the log of a node's server from now on, and does not read it.
    OpenSlot(Who),
    /// Nobody keeps it any more.
    DropSlot(Who),
    /// The writer is asked to hand over, to the node or to the best one.
    Switchover(Option<NodeId>),
    /// A field of the cluster document gets another value.
    Set(String, String),
    /// Nobody fails over by itself.
    Pause,
    /// Automation goes on.
    Resume,
}

impl Deed {
    /// The node that it concerns, where it is one.
    pub fn whom(&self) -> Option<Who> {
        match self {
            Self::Kill(who)
            | Self::KillPostgres(who)
            | Self::Lose(who)
            | Self::Start(who)
            | Self::Stop(who)
            | Self::Continue(who)
            | Self::Suspend(who, _)
            | Self::StopPostgres(who)
            | Self::ContinuePostgres(who)
            | Self::Slow(who, _)
            | Self::Mute(who)
            | Self::StallDisk(who)
            | Self::FillDisk(who)
            | Self::FreeDisk(who)
            | Self::ForgetPromise(who)
            | Self::Drift(who, _)
            | Self::PauseReplay(who)
            | Self::ResumeReplay(who)
            | Self::OpenSlot(who)
            | Self::DropSlot(who) => Some(*who),
            Self::LoseAll
            | Self::StartAll
            | Self::Partition(_)
            | Self::Cut(..)
            | Self::Lossy(_)
            | Self::Heal
            | Self::Switchover(_)
            | Self::Set(..)
            | Self::Pause
            | Self::Resume => None,
        }
    }

    /// The first word or words, which name its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::KillPostgres(_) => "kill postgres",
            Self::Lose(_) => "lose",
            Self::LoseAll => "lose all",
            Self::Start(_) => "start",
            Self::StartAll => "start all",
            Self::Stop(_) => "stop",
            Self::Continue(_) => "continue",
            Self::Suspend(..) => "suspend",
            Self::StopPostgres(_) => "stop postgres",
            Self::ContinuePostgres(_) => "continue postgres",
            Self::Partition(_) => "partition",
            Self::Cut(..) => "cut",
            Self::Slow(..) => "slow",
            Self::Lossy(_) => "lossy",
            Self::Mute(_) => "mute",
            Self::Heal => "heal",
            Self::StallDisk(_) => "stall disk",
            Self::FillDisk(_) => "fill disk",
            Self::FreeDisk(_) => "free disk",
            Self::ForgetPromise(_) => "forget promise",
            Self::Drift(..) => "drift",
            Self::PauseReplay(_) => "pause replay",
            Self::ResumeReplay(_) => "resume replay",
            Self::OpenSlot(_) => "open slot",
            Self::DropSlot(_) => "drop slot",
            Self::Switchover(_) => "switchover",
            Self::Set(..) => "set",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => node.fmt(f),
            Self::Writer => f.write_str("writer"),
            Self::Leader => f.write_str("leader"),
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::Kill(who)
            | Self::KillPostgres(who)
            | Self::Lose(who)
            | Self::Start(who)
            | Self::Stop(who)
            | Self::Continue(who)
            | Self::StopPostgres(who)
            | Self::ContinuePostgres(who)
            | Self::StallDisk(who)
            | Self::FillDisk(who)
            | Self::FreeDisk(who)
            | Self::ForgetPromise(who)
            | Self::Mute(who)
            | Self::OpenSlot(who)
            | Self::DropSlot(who)
            | Self::PauseReplay(who)
            | Self::ResumeReplay(who) => write!(f, "{kind} {who}"),
            Self::LoseAll | Self::StartAll | Self::Heal | Self::Pause | Self::Resume => {
                f.write_str(kind)
            }
            Self::Suspend(who, time) => write!(f, "{kind} {who} for {}", Span(*time)),
            Self::Partition(sides) => {
                let side = |s: &BTreeSet<NodeId>| {
                    s.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" ")
                };
                let sides: Vec<String> = sides.iter().map(side).collect();
                write!(f, "{kind} {}", sides.join(" | "))
            }
            Self::Cut(from, to) => write!(f, "{kind} {from} -> {to}"),
            Self::Slow(who, time) => write!(f, "{kind} {who} by {}", Span(*time)),
            Self::Lossy(permille) => write!(f, "{kind} {permille}"),
            Self::Drift(who, permille) => write!(f, "{kind} {who} by {permille}"),
            Self::Switchover(None) => f.write_str(kind),
            Self::Switchover(Some(to)) => write!(f, "{kind} to {to}"),
            Self::Set(field, value) => write!(f, "{kind} {field} {value}"),
        }
    }
}

/// A time as it is written in a scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms.is_multiple_of(1000) { write!(f, "{} s", ms / 1000) } else { write!(f, "{ms} ms") }
    }
}

/// Names with `or` between them.
pub(crate) fn either(names: &[NodeId]) -> String {
    list(names).replace(", ", " or ").replace(" and ", " or ")
}
