//! A node's part in drills: the one that it conducts, and what it does for others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quorate_agent::Node;
use quorate_agent::node::wall_millis;
use quorate_core::Answer;
use quorate_core::drill::{Measures, Outcome, Record};
use quorate_core::state::{Change, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::faults::Faults;
use super::plan::Plan;
use super::run::{RECORD_WAIT, Run};
use super::{Line, Progress, Report, WAIT_MAX, lasts};

/// How long a node may take to learn of a drill that was recorded.
const KNOWN_WAIT: Duration = Duration::from_secs(3);

/// Room for a drill's clients, as its conductor asks for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    number: u64,
    /// Of the password that they come with.
    verifier: String,
    /// How long they may log in.
    seconds: u64,
}

/// A node's part in drills.
pub struct Conductor {
    node: Arc<Node>,
    faults: Arc<Faults>,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    progress: Option<Progress>,
    abort: Option<watch::Sender<bool>>,
}

impl Conductor {
    /// Nothing is going on.
    pub fn new(node: Arc<Node>, faults: Arc<Faults>) -> Arc<Self> {
        Arc::new(Self { node, faults, current: Mutex::default() })
    }

    /// What this node does to itself.
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drill that this node conducts, or conducted last.
    pub fn progress(&self) -> Option<Progress> {
        self.current().progress.clone()
    }

    /// Ends the drill under way, as soon as everything is put back. One of an earlier life of this
    /// node is only struck out: what it began has ended by itself. False when there is none.
    pub async fn abort(&self) -> bool {
        if self.current().abort.as_ref().is_some_and(|abort| abort.send(true).is_ok()) {
            return true;
        }
        let state = self.node.parts.consensus.state();
        let me = self.node.parts.me;
        let Some(orphan) = state.drill.clone().filter(|d| d.conductor == me) else { return false };
        let record = Record {
            id: orphan.id,
            drill: orphan.drill,
            at: wall_millis(),
            seconds: 0,
            conductor: me,
            writer: state.authority.writer.unwrap_or(me),
            term: state.authority.term,
            outcome: Outcome::Aborted,
            sentence: "aborted: its conductor was restarted".to_owned(),
            measures: Measures::default(),
            checks: Vec::new(),
        };
        let change = Change::EndDrill { record: Box::new(record) };
        matches!(self.node.propose(change).await, Ok(Answer::Done))
    }

    /// Begins a drill; returns its number. `wait` bounds how long putting everything back may take.
    ///
    /// # Errors
    /// Why the cluster does not take it.
    pub async fn begin(self: &Arc<Self>, plan: Plan, wait: Duration) -> Result<u64, String> {
        let until = wall_millis() + lasts(wait).as_millis() as u64;
        let me = self.node.parts.me;
        let change = Change::BeginDrill { drill: plan.drill, conductor: me, until };
        let state = self.node.parts.consensus.state();
        let earlier = state.drill.as_ref().map(|d| d.id).max(state.drills.back().map(|r| r.id));
        let proposed = self.node.propose(change).await;
        if let Ok(Answer::Refused { because }) = proposed {
            return Err(because);
        }
        // One whose outcome is not known may take effect a little later.
        let ours = |s: &Arc<State>| {
            s.drill.as_ref().is_some_and(|d| d.conductor == me && Some(d.id) > earlier)
        };
        let mut states = self.node.parts.consensus.watch();
        let recorded = tokio::time::timeout(RECORD_WAIT, states.wait_for(ours)).await;
        let state = match (recorded, proposed) {
            (Ok(Ok(state)), _) => Arc::clone(&state),
            (_, Err(error)) => return Err(format!("{error}. {}", error.hint())),
            (_, Ok(_)) => return Err("the drill was not recorded: try again".to_owned()),
        };
        let Some(running) = state.drill.clone() else {
            return Err("another drill took its place: try again".to_owned());
        };
        let (abort, aborted) = watch::channel(false);
        let progress = Progress { id: running.id, course: Vec::new(), report: None };
        *self.current() = Current { progress: Some(progress), abort: Some(abort) };
        let run = Run {
            conductor: Arc::clone(self),
            node: Arc::clone(&self.node),
            id: running.id,
            began: Instant::now(),
            at: wall_millis(),
            term: state.authority.term,
            events: state.events.back().map_or(0, |e| e.seq),
            plan,
            wait,
            aborted,
            hurt: None,
            hurt_nodes: BTreeSet::new(),
            kept_bytes: None,
            replaced: false,
        };
        tokio::spawn(run.whole_drill());
        Ok(running.id)
    }
}

impl Conductor {
    /// Adds to the course of the drill under way.
    pub(super) fn note(&self, line: Line) {
        if let Some(progress) = &mut self.current().progress {
            progress.course.push(line);
        }
    }

    /// The drill under way has ended.
    pub(super) fn ended(&self, report: Report) {
        let mut current = self.current();
        current.abort = None;
        if let Some(progress) = &mut current.progress {
            progress.report = Some(Box::new(report));
        }
    }

    /// Makes room for a drill's clients on this node's server, which must be the writer's.
    ///
    /// # Errors
    /// Why not.
    pub async fn stage(&self, room: &Room) -> Result<Value, String> {
        let Room { number, ref verifier, seconds } = *room;
        if !verifier.starts_with("SCRAM-SHA-256$") {
            return Err("a verifier of a password is needed, not a password".to_owned());
        }
        let most = lasts(WAIT_MAX).as_secs();
        if seconds > most {
            return Err(format!("seconds: no drill lasts longer than {most}"));
        }
        // What its conductor knows is agreed may come here a moment later.
        let mut state = self.node.parts.consensus.watch();
        let known = state.wait_for(|s| s.drill.as_ref().is_some_and(|d| d.id == number));
        if tokio::time::timeout(KNOWN_WAIT, known).await.is_err() {
            return Err("that drill is not under way".to_owned());
        }
        let database = self.database()?;
        let staged = database.admin.stage_drill(number, verifier, seconds).await;
        Ok(json!({ "role": staged.map_err(|e| words(&e))? }))
    }

    /// Removes it.
    ///
    /// # Errors
    /// Why not.
    pub async fn clear(&self) -> Result<Value, String> {
        self.database()?.admin.clear_drill().await.map_err(|e| words(&e))?;
        Ok(json!({}))
    }

    fn database(&self) -> Result<&Arc<quorate_agent::Database>, String> {
        let database = self.node.parts.database.as_ref();
        database.ok_or_else(|| "a witness has no server".to_owned())
    }
}

/// An error with what PostgreSQL said.
fn words(error: &quorate_postgres::Error) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words += &format!(": {cause}");
        source = cause.source();
    }
    words
}
