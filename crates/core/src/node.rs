//! What one node does next, from what it knows.
//!
//! The loop around it is: gather a [`NodeView`], [`decide`], perform the actions, wait for a change.
//! Actions are idempotent and name the term they were decided in.

mod reign;

pub use reign::OwnReign;
use serde::{Deserialize, Serialize};

use crate::authority::{Phase, Reign};
use crate::report::Report;
use crate::state::{NodeKind, State};
use crate::status::{Doing, Surrender, SurrenderReason};
use crate::{Because, NodeId, Policy, Rule, Term, TimelineId};

/// The promise file (rule R2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// Promised this term and every lower one is refused.
    Kept(Term),
    /// The file is missing or damaged although the node has data: amnesia.
    Lost,
}

/// The local server, as last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// No process.
    Down,
    /// A process that does not answer queries yet.
    Starting,
    /// In recovery and answering.
    Standby,
    /// Out of recovery, on this timeline.
    Writer(TimelineId),
    /// It answered before and does not any more.
    Hung,
}

/// The data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// There is none.
    Missing,
    /// It can be started.
    Ready,
    /// Rewound: a server on it needs the writer's log before it answers.
    Incomplete,
    /// A rewind failed half-way: it must be cloned anew.
    Spoilt,
    /// It must not be touched; says why and what to do.
    Refused(String),
}

/// A step that takes time; one runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Makes the first database.
    Bootstrap,
    /// Starts the server.
    Start,
    /// Stops it.
    Stop,
    /// Reads the frozen log end.
    Freeze,
    /// Promotes.
    Promote,
    /// Copies the database.
    Clone,
    /// Rewinds the diverged tail.
    Rewind,
}

/// What the writer said to this standby's wish to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// No wish.
    Closed,
    /// The relay is open towards this writer of this term.
    Open {
        /// The writer.
        from: NodeId,
        /// Its term.
        term: Term,
    },
    /// The writer of this term refused: the local log is not on its history (R4).
    Diverged {
        /// The writer's term.
        term: Term,
    },
    /// The writer of this term no longer keeps the log that is needed.
    LogGone {
        /// The writer's term.
        term: Term,
    },
    /// The local log is on the history of this term's writer, and the local server wants to go on in
    /// another one: it heard of a timeline that came to nothing, and forgets that only by a restart.
    Astray {
        /// The writer's term.
        term: Term,
    },
}

/// All facts a node decides from.
#[derive(Debug)]
pub struct NodeView<'a> {
    /// This node.
    pub me: NodeId,
    /// Whether it has a database.
    pub kind: NodeKind,
    /// The replicated state, as far as it is known here.
    pub state: &'a State,
    /// The promise file.
    pub promise: Promise,
    /// Whether `state` has everything that was agreed before this process began, as a majority
    /// confirmed. Asked for only where the promise is lost.
    pub current: bool,
    /// The server.
    pub server: Server,
    /// The data directory.
    pub data: Data,
    /// The step in progress.
    pub job: Option<Job>,
    /// The feed from the writer.
    pub feed: Feed,
    /// The log end reported in the present term.
    pub report: Option<&'a Report>,
    /// What was surrendered.
    pub surrender: Option<&'a Surrender>,
    /// Progress as the writer.
    pub reign: Option<&'a OwnReign>,
    /// Whether the writer of the present term has said that it is promoted.
    pub writer_open: bool,
    /// Whether it serves clients: all that was ever acknowledged is on a commit set without us.
    pub writer_serving: bool,
    /// Whether it has been open for long without serving: it lacks copies, perhaps ours.
    pub writer_waits: bool,
    /// Whether an older writer's lease is surely over (R13).
    pub lease_clear: bool,
    /// Whom it follows instead of the writer; never while it counts for commits.
    pub upstream: Option<NodeId>,
    /// A restart of the server was asked for.
    pub restart: bool,
    /// The server runs with less of something than its writer has: PostgreSQL has paused its replay
    /// and would not promote it.
    pub starved: bool,
    /// This node gave a term up a moment ago, and the next writer does not serve yet.
    pub yields: bool,
}

/// Something to do. Performing one twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Write the promise to disk before anything else of this term (R2).
    Promise { term: Term },
    /// Stop acknowledging, answering and feeding standbys.
    Fence,
    /// Close the relay to any writer.
    CloseFeed,
    /// Make the first database of the cluster.
    Bootstrap,
    /// Start the server, as a standby.
    StartServer,
    /// Stop the server at once; a fenced writer's log end stays as it is.
    StopServer,
    /// Stop the server in good order.
    ShutServer,
    /// Cut the feed, end the receiver, read the log end (R3).
    Freeze { term: Term },
    /// Promote to exactly this timeline (R9).
    Promote { term: Term, timeline: TimelineId },
    /// Open the relay to this node, the writer or one that follows it (it checks the lineage, R4).
    Follow { from: NodeId, term: Term },
    /// Copy the database from the writer.
    Clone { from: NodeId, term: Term },
    /// Rewind to the writer's history (R14).
    Rewind { from: NodeId, term: Term },
    /// Take up the term: feedback by this rule, standbys may attach.
    BeginReign { term: Term, rule: Rule },
    /// Put another rule into effect (R6).
    AdoptRule { term: Term, rule: Rule },
    /// Write a marker and learn when a commit set holds it (R10).
    Mark { term: Term, rule: u64 },
    /// Record in consensus that the term's writer promoted.
    ProposeOpened { term: Term },
    /// Record in consensus that the rule change is complete.
    CloseRule { term: Term, generation: u64 },
    /// Let clients in (R12, R13).
    Open { term: Term },
    /// Hold clients and let the switchover's target catch up.
    Drain { term: Term, target: Option<NodeId> },
    /// Give the term up.
    Surrender { term: Term, reason: SurrenderReason },
}

/// What to do, what that is called, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// In this order.
    pub actions: Vec<Action>,
    /// What the node is doing.
    pub doing: Doing,
    /// Why.
    pub because: Because,
}

fn act(actions: Vec<Action>, doing: Doing, rule: &str, sentence: impl Into<String>) -> Decision {
    Decision { actions, doing, because: Because::new(rule, sentence) }
}

fn idle(doing: Doing, rule: &str, sentence: impl Into<String>) -> Decision {
    act(Vec::new(), doing, rule, sentence)
}

/// Decides a node's next step.
pub fn decide(view: &NodeView<'_>) -> Decision {
    let state = view.state;
    if state.cluster_id.is_empty() {
        return idle(Doing::Starting, "op-join", "waiting for the cluster's state");
    }
    if !state.nodes.contains_key(&view.me) {
        let actions = vec![Action::Fence, Action::CloseFeed, Action::StopServer];
        let text = "this node was removed from the cluster: stop the process, or join again";
        return act(actions, Doing::Broken, "op-remove", text);
    }
    let term = state.authority.term;
    let in_cohort = state.authority.cohort().contains(&view.me);
    match view.promise {
        Promise::Lost if in_cohort => amnesia(),
        // In an older record no commit may depend on this node that does by now: it would follow a
        // writer of a term that it once promised to have ended.
        Promise::Lost if !view.current => idle(
            Doing::Starting,
            "R2",
            "nothing promised yet: asking what was agreed on before this process began",
        ),
        Promise::Lost => promise(term, "nothing promised yet, and no commit depends on this node"),
        Promise::Kept(promised) if promised < term => promise(term, format!("term {term} began")),
        Promise::Kept(promised) if promised > term => idle(
            Doing::Frozen,
            "R2",
            format!("promised term {promised}, and know only of term {term}: catching up"),
        ),
        Promise::Kept(_) if view.kind == NodeKind::Witness => {
            idle(Doing::Witness, "witness", format!("votes in term {term}; holds no data"))
        }
        Promise::Kept(_) => data_node(view),
    }
}

fn amnesia() -> Decision {
    let text = "the promise file is lost or damaged, so this node cannot take part in an election \
                until the commit rule goes on without it; it will rejoin by itself then";
    act(vec![Action::Fence, Action::CloseFeed, Action::StopServer], Doing::Broken, "R2", text)
}

fn promise(term: Term, why: impl Into<String>) -> Decision {
    let actions = vec![Action::Fence, Action::CloseFeed, Action::Promise { term }];
    act(actions, Doing::Freezing, "R2", why)
}

fn data_node(view: &NodeView<'_>) -> Decision {
    if let Data::Refused(why) = &view.data {
        return act(vec![Action::Fence], Doing::Broken, "op-data", why.clone());
    }
    let authority = &view.state.authority;
    let mine = authority.writer == Some(view.me);
    match authority.phase {
        Phase::Electing => electing(view),
        Phase::Granted | Phase::Serving if mine => match authority.reign() {
            Some(reign) => reigning(view, reign),
            None => idle(Doing::Broken, "R1", "granted, but the record has no reign"),
        },
        Phase::Granted | Phase::Serving => following(view),
    }
}

fn electing(view: &NodeView<'_>) -> Decision {
    let term = view.state.authority.term;
    if let Some(job) = view.job {
        // A job of an earlier term (a start, a clone) ends first; a clone is cut short elsewhere.
        let doing = if job == Job::Freeze { Doing::Freezing } else { Doing::Recovering };
        return idle(doing, "R3", format!("for term {term}: {}", job.words()));
    }
    match (&view.data, view.server) {
        (Data::Missing, _) if first_writer(view) => {
            act(vec![Action::Bootstrap], Doing::Recovering, "op-init", "making the first database")
        }
        (Data::Incomplete, Server::Down) => {
            idle(Doing::Frozen, "R3", "its data waits for a writer's log to become whole again")
        }
        (Data::Incomplete, _) => {
            act(vec![Action::ShutServer], Doing::Recovering, "R3", "not whole: cannot report")
        }
        (Data::Missing | Data::Spoilt | Data::Refused(_), _) => {
            idle(Doing::Frozen, "R3", "no database to report: waiting for a writer")
        }
        (Data::Ready, Server::Down) if view.yields && others_suffice(view) => yielding(),
        (Data::Ready, Server::Down) => {
            act(vec![Action::StartServer], Doing::Recovering, "R3", "starting frozen to report")
        }
        (Data::Ready, Server::Starting) => {
            idle(Doing::Recovering, "R3", "replaying the log before it can be reported")
        }
        (Data::Ready, Server::Writer(_) | Server::Hung) => {
            let text = format!("term {term} began: stopping the server of the old term");
            act(vec![Action::Fence, Action::StopServer], Doing::Fenced, "R3", text)
        }
        (Data::Ready, Server::Standby) if view.starved => act(
            vec![Action::CloseFeed, Action::StopServer],
            Doing::Recovering,
            "R3",
            "restarting with as much as the former writer had, to be able to take over",
        ),
        (Data::Ready, Server::Standby) if view.report.is_some_and(|r| r.term == term) => {
            idle(Doing::Frozen, "R3", format!("reported for term {term}"))
        }
        (Data::Ready, Server::Standby) => act(
            vec![Action::CloseFeed, Action::Freeze { term }],
            Doing::Freezing,
            "R3",
            format!("freezing to report for term {term}"),
        ),
    }
}

/// A server that ended with its reign recovers and checkpoints when it starts: on a shared disk
/// that would slow the promotion that everybody waits for.
fn yielding() -> Decision {
    idle(Doing::Recovering, "rejoin", "leaving the disk to the next writer for a moment")
}

/// Whether the other members' reports alone could conclude the election.
fn others_suffice(view: &NodeView<'_>) -> bool {
    let authority = &view.state.authority;
    let mut others = authority.cohort();
    others.remove(&view.me);
    // Where commits may be on one node alone, its report is worth more than time.
    let lossless = |r: &Rule| r.policy != Policy::WriterOnly;
    authority.rules.iter().all(|r| lossless(r) && r.election_satisfied(&others))
}

/// Whether this node is to make the first database: the cluster has never had one.
fn first_writer(view: &NodeView<'_>) -> bool {
    let authority = &view.state.authority;
    view.state.system_id.is_none()
        && authority.reigns.is_empty()
        && authority.cohort() == [view.me].into()
}

fn reigning(view: &NodeView<'_>, reign: &Reign) -> Decision {
    let authority = &view.state.authority;
    let term = authority.term;
    if let Some(surrender) = view.surrender.filter(|s| s.term == term) {
        return surrendered(view, surrender);
    }
    if view.data != Data::Ready && view.job.is_none() {
        return give_up(term, SurrenderReason::Crash);
    }
    let promoting =
        || idle(Doing::Promoting, "R9", format!("promoting to timeline {}", reign.timeline));
    match view.server {
        // What the promotion made is known when its job has ended.
        Server::Writer(_) if view.job == Some(Job::Promote) => promoting(),
        Server::Writer(timeline) if timeline == reign.timeline => writing(view),
        Server::Writer(_) => give_up(term, SurrenderReason::BadPromotion),
        Server::Hung => give_up(term, SurrenderReason::Hang),
        Server::Down | Server::Starting | Server::Standby if authority.phase == Phase::Serving => {
            give_up(term, SurrenderReason::Crash)
        }
        Server::Down | Server::Starting | Server::Standby if view.job.is_some() => promoting(),
        Server::Down if view.reign.is_some() => give_up(term, SurrenderReason::Crash),
        Server::Down => {
            act(vec![Action::StartServer], Doing::Recovering, "R9", "starting, to be promoted")
        }
        Server::Starting => idle(Doing::Recovering, "R9", "replaying the log, to be promoted"),
        Server::Standby => act(
            vec![Action::CloseFeed, Action::Promote { term, timeline: reign.timeline }],
            Doing::Promoting,
            "R9",
            format!("granted term {term}: promoting to timeline {}", reign.timeline),
        ),
    }
}

fn give_up(term: Term, reason: SurrenderReason) -> Decision {
    let actions = vec![Action::Fence, Action::Surrender { term, reason }];
    act(actions, Doing::Fenced, "R1", format!("giving up term {term}: {}", reason.words()))
}

fn surrendered(view: &NodeView<'_>, surrender: &Surrender) -> Decision {
    let text = format!("gave up term {}: {}", surrender.term, surrender.reason.words());
    let mut actions = vec![Action::Fence];
    if view.server != Server::Down && view.job.is_none() {
        actions.push(Action::StopServer);
    }
    act(actions, Doing::Fenced, "R1", text)
}

fn writing(view: &NodeView<'_>) -> Decision {
    let authority = &view.state.authority;
    let term = authority.term;
    let Some(rule) = authority.rule() else {
        return idle(Doing::Broken, "R6", "the record has no commit rule");
    };
    let Some(own) = view.reign.filter(|r| r.term == term) else {
        return act(
            vec![Action::BeginReign { term, rule: rule.clone() }],
            Doing::Opening,
            "R10",
            format!("promoted in term {term}"),
        );
    };
    if let Some(reason) = own.stuck.or(own.lease_lost.then_some(SurrenderReason::LeaseLost)) {
        return give_up(term, reason);
    }
    let mut actions = Vec::new();
    if authority.phase == Phase::Granted {
        actions.push(Action::ProposeOpened { term });
    }
    if own.rule != rule.generation {
        actions.push(Action::AdoptRule { term, rule: rule.clone() });
        return act(actions, doing(own), "R6", format!("rule {} takes effect", rule.generation));
    }
    if own.marked != Some(rule.generation) {
        actions.push(Action::Mark { term, rule: rule.generation });
        return act(actions, doing(own), "R10", "waiting until a commit set holds the marker");
    }
    if authority.rules.len() > 1 {
        actions.push(Action::CloseRule { term, generation: rule.generation });
    }
    if !own.open {
        return open(view, actions);
    }
    hand_over(view, own, actions)
}

fn doing(own: &OwnReign) -> Doing {
    if own.open { Doing::Writing } else { Doing::Opening }
}

fn open(view: &NodeView<'_>, mut actions: Vec<Action>) -> Decision {
    let authority = &view.state.authority;
    if !view.lease_clear {
        return act(actions, Doing::Opening, "R13", "ready; waiting for the old writer's lease");
    }
    if authority.phase != Phase::Serving {
        return act(actions, Doing::Opening, "R10", "ready; recording it in consensus");
    }
    actions.push(Action::Open { term: authority.term });
    act(actions, Doing::Writing, "R10", format!("serving clients in term {}", authority.term))
}

/// A writer in good order: serves, or prepares to hand over.
fn hand_over(view: &NodeView<'_>, own: &OwnReign, mut actions: Vec<Action>) -> Decision {
    let authority = &view.state.authority;
    let term = authority.term;
    match authority.switchover.as_ref().filter(|s| s.term == term) {
        Some(_) if own.drained => {
            actions.extend(give_up(term, SurrenderReason::Switchover).actions);
            act(actions, Doing::Fenced, "op-switchover", format!("handing over term {term}"))
        }
        Some(plan) => {
            actions.push(Action::Drain { term, target: plan.target });
            act(actions, Doing::Writing, "op-switchover", "preparing to hand over")
        }
        None if view.restart => {
            actions.extend(give_up(term, SurrenderReason::Restart).actions);
            act(actions, Doing::Fenced, "op-restart", "giving the term up to restart the server")
        }
        None => act(actions, Doing::Writing, "serving", format!("writes in term {term}")),
    }
}

fn following(view: &NodeView<'_>) -> Decision {
    let authority = &view.state.authority;
    let term = authority.term;
    let Some(writer) = authority.writer else {
        return idle(Doing::Detached, "R1", "no writer is known");
    };
    if matches!(view.server, Server::Writer(_)) {
        let text = format!("{writer} writes in term {term}: stopping the server of the old term");
        return act(vec![Action::Fence, Action::StopServer], Doing::Fenced, "R2", text);
    }
    if let Some(job) = view.job {
        let (what, why) = match job {
            Job::Clone => (Doing::Cloning, format!("copying the database from {writer}")),
            Job::Rewind => (Doing::Rewinding, format!("rewinding to {writer}'s history")),
            Job::Freeze => (Doing::Freezing, "reading the log's end".to_owned()),
            Job::Bootstrap | Job::Start | Job::Stop | Job::Promote => {
                (Doing::Recovering, job.words().to_owned())
            }
        };
        return idle(what, "rejoin", why);
    }
    // This writer's answer will not change until the log here has.
    let refused = view.feed == (Feed::Diverged { term }) || view.feed == (Feed::LogGone { term });
    match (&view.data, view.server) {
        (Data::Incomplete, Server::Down) if !refused => act(
            vec![Action::CloseFeed, Action::Follow { from: writer, term }, Action::StartServer],
            Doing::Recovering,
            "R14",
            format!("its data needs {writer}'s log: starting with that at hand"),
        ),
        (Data::Incomplete, _) if view.feed == (Feed::Open { from: writer, term }) => {
            idle(Doing::Recovering, "R14", "replaying the writer's log, which its data needs")
        }
        // It asked for log, or its start was given up with the term in which it began. In good order:
        // then its control file tells where its own log ends, which decides what it may be fed.
        (Data::Incomplete, _) if !refused => act(
            vec![Action::ShutServer],
            Doing::Recovering,
            "R14",
            format!("its data needs log: starting again, with {writer}'s"),
        ),
        (Data::Missing | Data::Spoilt | Data::Incomplete, _) if view.writer_open => act(
            vec![Action::CloseFeed, Action::Clone { from: writer, term }],
            Doing::Cloning,
            "rejoin",
            format!("copying the database from {writer}"),
        ),
        (Data::Missing | Data::Spoilt | Data::Incomplete | Data::Refused(_), _) => idle(
            Doing::Detached,
            "rejoin",
            format!("waiting for {writer} to open, to copy from it"),
        ),
        (Data::Ready, Server::Down) if view.yields => yielding(),
        // Where its log ends can be asked once it answers: what it is fed is settled then.
        (Data::Ready, Server::Down) => act(
            vec![Action::CloseFeed, Action::StartServer],
            Doing::Recovering,
            "rejoin",
            "starting the server",
        ),
        (Data::Ready, Server::Starting | Server::Writer(_)) => {
            idle(Doing::Recovering, "rejoin", "the server replays its log")
        }
        (Data::Ready, Server::Hung) => {
            act(vec![Action::StopServer], Doing::Recovering, "rejoin", "restarting a hung server")
        }
        (Data::Ready, Server::Standby) => standby(view, writer),
    }
}

fn standby(view: &NodeView<'_>, writer: NodeId) -> Decision {
    let term = view.state.authority.term;
    let upstream = view.upstream.unwrap_or(writer);
    if view.restart {
        return act(vec![Action::ShutServer], Doing::Recovering, "op-restart", "restarting");
    }
    if view.starved {
        let text = format!("restarting with as much as {writer} has: replay had paused");
        return act(vec![Action::ShutServer], Doing::Recovering, "rejoin", text);
    }
    match view.feed {
        Feed::Open { from, term: t } if from == upstream && t == term => {
            idle(Doing::Following, "following", format!("follows {upstream}"))
        }
        Feed::Diverged { term: t } if t == term && view.writer_serving => act(
            vec![Action::CloseFeed, Action::Rewind { from: writer, term }],
            Doing::Rewinding,
            "R14",
            format!("the log is past the point where {writer}'s history began: rewinding"),
        ),
        // Our data may be one of only two copies: it stays until a new one is complete.
        Feed::Diverged { term: t } if t == term && view.writer_waits => act(
            vec![Action::CloseFeed, Action::Clone { from: writer, term }],
            Doing::Cloning,
            "rejoin",
            format!("{writer} lacks copies: copying the database from it beside our own"),
        ),
        Feed::Diverged { term: t } if t == term => {
            idle(Doing::Detached, "R14", format!("diverged; waiting for {writer} to open"))
        }
        Feed::LogGone { term: t } if t == term && (view.writer_serving || view.writer_waits) => {
            act(
                vec![Action::CloseFeed, Action::Clone { from: writer, term }],
                Doing::Cloning,
                "rejoin",
                format!("{writer} no longer has the log that is needed: copying the database anew"),
            )
        }
        Feed::LogGone { term: t } if t == term => {
            idle(Doing::Detached, "rejoin", format!("too far behind; waiting for {writer} to open"))
        }
        Feed::Astray { term: t } if t == term => act(
            vec![Action::CloseFeed, Action::ShutServer],
            Doing::Recovering,
            "rejoin",
            format!("the server waits for a timeline that {writer} never had: restarting it"),
        ),
        Feed::Closed
        | Feed::Open { .. }
        | Feed::Diverged { .. }
        | Feed::LogGone { .. }
        | Feed::Astray { .. } => act(
            vec![Action::CloseFeed, Action::Follow { from: upstream, term }],
            Doing::Detached,
            "R4",
            format!("attaching to {upstream}"),
        ),
    }
}
