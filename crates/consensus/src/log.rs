//! The port: what the rest of Quorate sees of the replicated log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::error::{InitializeError, RaftError};
use openraft::{LogIdOptionExt, ServerState};
use quorate_core::NodeId;
use quorate_core::lease::VotersVersion;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::error::Error;
use crate::limits;
use crate::machine::Machine;
use crate::members::{LastChange, version};
use crate::network::Network;
use crate::options::{Options, Timing, config};
use crate::peers::{Dial, Lost, Peers};
use crate::raft::{Member, Name, Raft, StoreId};
use crate::store::{self, LogStore};
use crate::warden;
use crate::wire::{Ask, No, Reply};

/// A node of the replicated log of an `M`. Clones are the same node.
///
/// Dropping it does not stop it cleanly; [`Log::shutdown`] does.
pub struct Log<M: Machine>(Arc<Node<M>>);

impl<M: Machine> Clone for Log<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What a node knows of the log and its members. Serializable for people and pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// This node.
    pub me: NodeId,
    /// The leader, unless none has been heard of lately.
    pub leader: Option<NodeId>,
    /// The nodes whose majority decides.
    pub voters: BTreeSet<NodeId>,
    /// Which change of members made them that.
    pub voters_version: VotersVersion,
    /// The nodes that only follow.
    pub learners: BTreeSet<NodeId>,
    /// Whether a change of members is between its two steps.
    pub changing: bool,
    /// The term of the log. Not the term of a writer.
    pub raft_term: u64,
    /// Index of the last entry here, if there is one.
    pub last_log: Option<u64>,
    /// Index of the last entry in the state here.
    pub last_applied: Option<u64>,
    /// Index of the last entry in the last snapshot here.
    pub snapshot_index: Option<u64>,
    /// Index of the last entry that was dropped from the log here.
    pub purged: Option<u64>,
    /// For a leader: the last entry that each other member is known to have.
    pub progress: BTreeMap<NodeId, Option<u64>>,
    /// For a leader of others: milliseconds since a majority last confirmed it.
    pub quorum_heard_ms: Option<u64>,
    /// Why consensus has stopped here, if it has.
    pub fault: Option<String>,
}

impl<M: Machine> Log<M> {
    /// Opens or creates the store and starts taking part. A new node does nothing until it founds
    /// a cluster or is added to one.
    ///
    /// Fails when the store cannot be used ([`Error::Damaged`], [`Error::Foreign`],
    /// [`Error::InUse`], [`Error::Io`]) or the timing makes no sense.
    pub async fn start(options: Options, dial: Arc<dyn Dial>) -> Result<Self, Error> {
        let config = config(&options)?;
        let Options { me, store: path, timing, patience, .. } = options;
        let opening = path.clone();
        let opened =
            tokio::task::spawn_blocking(move || store::open::<M, Name>(&opening, Name(me)))
                .await
                .map_err(|err| io_error(&path, io::Error::other(err)))??;
        let (states, indexes) = (opened.machine.states(), opened.machine.indexes());
        let (log, peers) = (opened.log.clone(), Arc::new(Peers::new(dial)));
        let network = Network { peers: peers.clone(), patience: timing.election_min };
        let raft = Raft::new(Name(me), Arc::new(config), network, opened.log, opened.machine)
            .await
            .map_err(|err| io_error(&path, io::Error::other(err)))?;
        let node = Arc::new(Node {
            me,
            store: opened.id,
            timing,
            patience,
            raft,
            log,
            peers,
            states,
            indexes,
            changing: Arc::default(),
            last_change: Mutex::default(),
            reluctant: AtomicBool::new(false),
            heard: Mutex::new(None),
            poll: Mutex::default(),
            leader: watch::Sender::new(None),
            closed: watch::Sender::new(false),
        });
        tokio::spawn(warden::run(Arc::downgrade(&node)));
        tracing::info!(node = %me, store = %path.display(), id = %node.store, "consensus started");
        Ok(Self(node))
    }

    /// Makes this node the single voter of a new cluster, and waits until it leads. Does nothing
    /// when it is already a member of one.
    pub async fn found(&self) -> Result<(), Error> {
        let node = &self.0;
        let known = node.raft.is_initialized().await;
        if known.map_err(|err| Error::Stopped { because: err.to_string() })? {
            return Ok(());
        }
        let me = BTreeMap::from([(Name(node.me), Member { store: node.store })]);
        match node.raft.initialize(me).await {
            Ok(()) => {}
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => return Ok(()),
            Err(err) => return Err(Error::not_accepted(err.to_string())),
        }
        let mut leader = node.leader.subscribe();
        let leads = leader.wait_for(|leader| *leader == Some(node.me));
        match timeout_at(Instant::now() + limits::FOUND_WITHIN, leads).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::unknown("the new cluster has not begun in time")),
        }
    }

    /// Puts a command into the log and returns what it did, once a majority has it and this
    /// cluster's leader has applied it. Works on any node.
    ///
    /// [`Error::NotAccepted`] means that nothing happened or will; [`Error::Unknown`] that the
    /// command may take effect even so, and must not be repeated without looking.
    pub async fn propose(&self, command: M::Command) -> Result<M::Answer, Error> {
        let bytes =
            serde_json::to_vec(&command).map_err(|err| Error::not_accepted(err.to_string()))?.len();
        if bytes > limits::COMMAND_BYTES_MAX {
            return Err(Error::TooLarge { bytes, max: limits::COMMAND_BYTES_MAX });
        }
        let ask = |within| Ask::Propose { command: command.clone(), within };
        match self.0.ask_leader(ask, self.0.patience).await? {
            Reply::Proposed(answer) => Ok(answer),
            _ => Err(Error::unknown("the leader answered another question")),
        }
    }

    /// The state, containing at least everything that was done anywhere before this call.
    pub async fn read(&self) -> Result<Arc<M>, Error> {
        let node = &self.0;
        let until = Instant::now() + node.patience;
        let ask = |within| Ask::ReadIndex { within };
        let index = match node.ask_leader(ask, node.patience).await? {
            Reply::ReadIndex(index) => index,
            _ => return Err(Error::not_accepted("the leader answered another question")),
        };
        let mut applied = node.indexes.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        match timeout_at(until, reached).await {
            Ok(Ok(_)) => Ok(self.state()),
            Ok(Err(_)) => Err(node.stopped_error()),
            Err(_) => Err(Error::not_accepted("this node does not keep up with the log")),
        }
    }

    /// The state as far as this node has it.
    pub fn state(&self) -> Arc<M> {
        self.0.states.borrow().clone()
    }

    /// The state as far as this node has it, and each change of it.
    pub fn watch(&self) -> watch::Receiver<Arc<M>> {
        self.0.states.clone()
    }

    /// The leader, and each change of it; `None` while none has been heard of for `election_max`.
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.0.leader.subscribe()
    }

    /// Whether this node leads, confirmed by a majority within `election_max`.
    pub fn is_leader(&self) -> bool {
        *self.0.leader.borrow() == Some(self.0.me)
    }

    /// Makes a started node a voter: first a learner and, once it has the log, a voter. Does
    /// nothing when it is one. Works on any node.
    pub async fn add(&self, node: NodeId) -> Result<(), Error> {
        let within = limits::MEMBER_WITHIN + limits::CATCH_UP_WITHIN;
        self.0.ask_leader(|within| Ask::Add { node, within }, within).await.map(drop)
    }

    /// Makes a node no member of the cluster. Does nothing when it is none. Works on any node.
    pub async fn remove(&self, node: NodeId) -> Result<(), Error> {
        let within = limits::MEMBER_WITHIN;
        self.0.ask_leader(|within| Ask::Remove { node, within }, within).await.map(drop)
    }

    /// What this node knows of the log and its members.
    pub fn status(&self) -> Status {
        let node = &self.0;
        let metrics = node.raft.metrics();
        let seen = metrics.borrow();
        let members = seen.membership_config.membership();
        let others = seen.replication.iter().flatten().filter(|(id, _)| id.0 != node.me);
        Status {
            me: node.me,
            leader: *node.leader.borrow(),
            voters: members.voter_ids().map(|id| id.0).collect(),
            voters_version: version(&seen.membership_config),
            learners: members.learner_ids().map(|id| id.0).collect(),
            changing: members.get_joint_config().len() > 1,
            raft_term: seen.current_term,
            last_log: seen.last_log_index,
            last_applied: *node.indexes.borrow(),
            snapshot_index: seen.snapshot.index(),
            purged: seen.purged.index(),
            progress: others.map(|(id, matched)| (id.0, matched.index())).collect(),
            quorum_heard_ms: seen.millis_since_quorum_ack,
            fault: seen.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Says whether this node should rather not lead. While it should not, it does not campaign
    /// unless nobody else does ([`limits::RELUCTANCE_MAX`]), and hands leadership over when
    /// another voter has the whole log. A single voter leads all the same.
    pub fn reluctant(&self, reluctant: bool) {
        self.0.reluctant.store(reluctant, Ordering::Relaxed);
    }

    /// Campaigns as soon as the other voters may listen, since the leader is known to be gone.
    /// Does nothing on a reluctant node. Returns at once.
    pub fn elect_now(&self) {
        if !self.0.is_reluctant() {
            tokio::spawn(campaign(self.0.clone()));
        }
    }

    /// Stops taking part, ends all streams and closes the store file.
    pub async fn shutdown(&self) {
        let node = &self.0;
        if node.closed.send_replace(true) {
            return;
        }
        node.peers.close();
        if let Err(err) = node.raft.shutdown().await {
            tracing::warn!(error = %err, "consensus did not stop cleanly");
        }
        let log = node.log.clone();
        if let Err(err) = tokio::task::spawn_blocking(move || log.close()).await {
            tracing::warn!(error = %err, "the consensus store did not close cleanly");
        }
        node.leader.send_replace(None);
        tracing::info!(node = %node.me, "consensus stopped");
    }

    pub(crate) fn node(&self) -> &Arc<Node<M>> {
        &self.0
    }
}

/// The parts of a running node.
pub(crate) struct Node<M: Machine> {
    pub(crate) me: NodeId,
    pub(crate) store: StoreId,
    pub(crate) timing: Timing,
    patience: Duration,
    pub(crate) raft: Raft<M>,
    pub(crate) log: LogStore<M, Name>,
    pub(crate) peers: Arc<Peers<M>>,
    states: watch::Receiver<Arc<M>>,
    indexes: watch::Receiver<Option<u64>>,
    /// Held while the members are being changed from here.
    pub(crate) changing: Arc<tokio::sync::Mutex<()>>,
    /// The last change of voters that this process saw.
    pub(crate) last_change: Mutex<LastChange>,
    reluctant: AtomicBool,
    /// When a leader was last heard.
    heard: Mutex<Option<Instant>>,
    /// The poll under way or done: whether it runs, and when a majority last would have listened.
    poll: Mutex<Poll>,
    pub(crate) leader: watch::Sender<Option<NodeId>>,
    closed: watch::Sender<bool>,
}

impl<M: Machine> Node<M> {
    pub(crate) fn closed(&self) -> bool {
        *self.closed.borrow()
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    pub(crate) fn is_reluctant(&self) -> bool {
        self.reluctant.load(Ordering::Relaxed)
    }

    pub(crate) fn leads(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Notes that a leader was heard just now.
    pub(crate) fn hear(&self) {
        *self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Instant::now());
    }

    pub(crate) fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether a poll may start now; it must end in [`Self::note_poll`].
    pub(crate) fn begin_poll(&self) -> bool {
        let mut poll = self.poll.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        !std::mem::replace(&mut poll.running, true)
    }

    /// Ends a poll: when a majority said it would listen, if it did.
    pub(crate) fn note_poll(&self, cleared: Option<Instant>) {
        let mut poll = self.poll.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *poll = Poll { running: false, cleared };
    }

    /// Whether a majority lately said it would listen.
    pub(crate) fn cleared(&self) -> bool {
        let poll = self.poll.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        poll.cleared.is_some_and(|at| at.elapsed() <= self.timing.election_max)
    }

    pub(crate) fn stopped(&self) -> No {
        let metrics = self.raft.metrics();
        let fault = metrics.borrow().running_state.as_ref().err().map(ToString::to_string);
        let because = match fault {
            Some(fault) => fault,
            None => "it was shut down".to_owned(),
        };
        No::Stopped { because }
    }

    fn stopped_error(&self) -> Error {
        match self.stopped() {
            No::Stopped { because } => Error::Stopped { because },
            other => Error::Stopped { because: format!("{other:?}") },
        }
    }

    /// Has the leader do something, wherever it is, trying again while that is safe.
    async fn ask_leader(
        &self,
        ask: impl Fn(Duration) -> Ask<M>,
        within: Duration,
    ) -> Result<Reply<M>, Error> {
        let until = Instant::now() + within;
        let mut because = "no leader is known".to_owned();
        // Whether an attempt may have succeeded unnoticed.
        let mut uncertain = false;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.closed() || self.raft.metrics().borrow().running_state.is_err() {
                return Err(self.stopped_error());
            }
            if left.is_zero() {
                return Err(if uncertain {
                    Error::Unknown { because }
                } else {
                    Error::NotAccepted { because }
                });
            }
            let ask = ask(left);
            let (repeatable, changes) = (ask.repeatable(), ask.changes());
            match self.try_leader(ask, left).await {
                Attempt::Done(reply) => return Ok(reply),
                Attempt::Failed(err) => return Err(err),
                Attempt::NotDone(why) => because = why,
                Attempt::Unknown(why) if repeatable => {
                    uncertain |= changes;
                    because = why;
                }
                Attempt::Unknown(because) => return Err(Error::Unknown { because }),
            }
            let mut leader = self.leader.subscribe();
            tokio::select! {
                () = sleep(limits::RETRY_PAUSE.min(left)) => {}
                _ = leader.changed() => {}
            }
        }
    }

    async fn try_leader(&self, ask: Ask<M>, within: Duration) -> Attempt<M> {
        let (leader, store) = {
            let metrics = self.raft.metrics();
            let seen = metrics.borrow();
            let Some(leader) = seen.current_leader else {
                return Attempt::NotDone("no leader is known".to_owned());
            };
            let member = seen.membership_config.membership().get_node(&leader);
            (leader.0, member.map(|member| member.store))
        };
        let reply = if leader == self.me {
            Box::pin(self.perform(ask, Vec::new())).await
        } else {
            let within = within + limits::FORWARD_GRACE;
            match self.peers.ask(leader, store, ask, Vec::new(), within).await {
                Ok(reply) => reply,
                Err(Lost::NotSent(err)) => {
                    return Attempt::NotDone(format!(
                        "the leader {leader} cannot be reached: {err}"
                    ));
                }
                Err(Lost::NoAnswer(err)) => {
                    return Attempt::Unknown(format!("the leader {leader} did not answer: {err}"));
                }
            }
        };
        match reply {
            Reply::No(No::NotLeader) => Attempt::NotDone(format!("{leader} no longer leads")),
            Reply::No(No::NotAccepted { because }) => Attempt::NotDone(because),
            Reply::No(No::Unknown { because }) => Attempt::Unknown(because),
            Reply::No(No::Replaced { node, because }) => {
                Attempt::Failed(Error::Replaced { node, because })
            }
            Reply::No(No::Behind { node, because }) => {
                Attempt::Failed(Error::Behind { node, because })
            }
            Reply::No(No::LastVoter { node }) => Attempt::Failed(Error::LastVoter { node }),
            Reply::No(No::Stopped { because }) => {
                Attempt::NotDone(format!("{leader} has stopped: {because}"))
            }
            reply => Attempt::Done(reply),
        }
    }
}

/// What came of asking the others before campaigning.
#[derive(Default)]
struct Poll {
    running: bool,
    cleared: Option<Instant>,
}

/// How one attempt at the leader ended.
#[allow(clippy::large_enum_variant)] // passed once, never stored
enum Attempt<M: Machine> {
    Done(Reply<M>),
    Failed(Error),
    /// Certainly without effect.
    NotDone(String),
    /// Perhaps with effect.
    Unknown(String),
}

/// Campaigns until there is a new leader, for as long as an ordinary election may take.
async fn campaign<M: Machine>(node: Arc<Node<M>>) {
    let metrics = node.raft.metrics();
    let (old, rank) = {
        let seen = metrics.borrow();
        let gone = seen.current_leader;
        let before = |voter: &Name| Some(*voter) != gone && voter.0 < node.me;
        let rank = seen.membership_config.voter_ids().filter(before).count() as u32;
        (*seen.vote.leader_id(), rank)
    };
    // One after the other: candidates that start together take each other's votes away.
    let turn = node.timing.heartbeat / 2 * rank;
    // Voters do not listen while they believe in the old leader; they heard it when we did.
    let listening = node.heard().map_or_else(Instant::now, |heard| heard + node.timing.lease());
    sleep_until(listening + limits::LEASE_MARGIN + turn).await;
    let until = Instant::now() + node.timing.election_max;
    let mut granted = old;
    while Instant::now() < until && !node.closed() {
        let (vote, settled) = {
            let seen = metrics.borrow();
            let vote = *seen.vote.leader_id();
            (vote, seen.current_leader.is_some() && vote != old)
        };
        if settled {
            return;
        }
        // Another candidate that got this node's vote meanwhile has its chance first.
        let theirs = vote != granted && vote.voted_for() != Some(Name(node.me));
        granted = vote;
        if !theirs && node.would_win().await && node.raft.trigger().elect().await.is_err() {
            return;
        }
        sleep(node.timing.vote_within() + turn).await;
    }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}
