//! Carrying a drill out: canary, steps, and everything put back, whatever happened.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_agent::Node;
use quorate_agent::view::ClusterStatus;
use quorate_core::drill::{self, Course, Measures, Record};
use quorate_core::state::Change;
use quorate_core::{Answer, NodeId, Term};
use quorate_link::Kind;
use quorate_scenario::{Condition, Deed, Expectation, Step, Who};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::canary::{self, Canary, Credentials};
use super::conduct::{Conductor, Room};
use super::faults::Fault;
use super::plan::{Plan, whole};
use super::watch::{Seen, Watch};
use super::{Column, Line, Report, lasts};
use crate::cli::cluster::random_hex;
use crate::cli::operate::serving;
use crate::http::{Ask, ask};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Clients write so long before anything is done, and after everything is whole again.
const CALM: Duration = Duration::from_secs(2);
/// Longest wait until every client was acknowledged a write.
const WARM_UP: Duration = Duration::from_secs(20);
/// Longest wait for a condition while a failure lasts.
const STEP_WAIT: Duration = Duration::from_secs(45);
/// Longest wait for another node to do what it is told.
const ORDER_WAIT: Duration = Duration::from_secs(5);
/// Attempts to hand the writing back: a hand-over may be given up.
const BACK_MAX: usize = 5;
/// Pause before another attempt.
const BACK_PAUSE: Duration = Duration::from_secs(2);
/// How long a drill's beginning and end are tried to be recorded.
pub(super) const RECORD_WAIT: Duration = Duration::from_secs(30);

/// Randomness in the clients' password.
const PASSWORD_BYTES: usize = 24;

/// Why a step did not end well.
enum Stop {
    Aborted,
    Trouble(String),
}

/// A drill under way.
pub(super) struct Run {
    pub(super) conductor: Arc<Conductor>,
    pub(super) node: Arc<Node>,
    pub(super) id: u64,
    pub(super) began: Instant,
    pub(super) at: u64,
    pub(super) term: Term,
    pub(super) events: u64,
    pub(super) plan: Plan,
    pub(super) wait: Duration,
    pub(super) aborted: watch::Receiver<bool>,
    /// When the failure began.
    pub(super) hurt: Option<Instant>,
    /// Nodes that were told to hurt themselves.
    pub(super) hurt_nodes: BTreeSet<NodeId>,
    pub(super) kept_bytes: Option<u64>,
    /// Another node wrote while the failure lasted.
    pub(super) replaced: bool,
}

impl Run {
    pub(super) async fn whole_drill(mut self) {
        let (credentials, staged) = match self.stage().await {
            Ok(credentials) => (Some(credentials), Ok(())),
            Err(error) => (None, Err(format!("{error:#}"))),
        };
        self.began = Instant::now();
        let canary = credentials.as_ref().map(|c| Canary::start(c, self.began));
        let eyes = Watch::start(&self.node, self.term, self.plan.writer);
        let mut trouble = staged.err();
        if let Some(canary) = &canary
            && let Err(stop) = self.play(canary, &eyes).await
        {
            trouble = self.stopped(stop);
        }
        if trouble.is_some() {
            self.say("ends here: everything is put back", false);
        }
        let seen = eyes.seen();
        let back = self.put_back().await;
        let whole_ms = self.hurt.map(|at| at.elapsed().as_millis() as u64);
        tokio::time::sleep(CALM).await;
        if let Err(error) = back {
            let words = format!("{error:#}");
            self.say(&words, false);
            trouble.get_or_insert(words);
        }
        let opened = seen.opened.or(self.hurt).map(|at| self.ms(at));
        let (mut measures, rate, reasons) =
            self.count(canary, credentials.as_ref(), opened, &mut trouble).await;
        let since = |at: Option<Instant>| {
            at.zip(self.hurt)
                .map(|(at, hurt)| at.saturating_duration_since(hurt).as_millis() as u64)
        };
        measures.detection_ms = since(seen.elected);
        measures.decision_ms = since(seen.granted);
        measures.promotion_ms = since(seen.opened);
        measures.whole_ms = whole_ms.filter(|_| trouble.is_none());
        measures.lag_bytes = Some(seen.lag_bytes).filter(|b| *b > 0);
        measures.kept_bytes = self.kept_bytes;
        if let Err(error) = self.clear().await {
            let words = format!("the drill's schema could not be removed: {error:#}");
            trouble.get_or_insert(words);
        }
        for reason in reasons {
            self.say(&format!("clients were told: {reason}"), false);
        }
        self.end(measures, rate, seen, trouble).await;
    }

    fn stopped(&self, stop: Stop) -> Option<String> {
        let words = match stop {
            Stop::Aborted => "it was aborted".to_owned(),
            Stop::Trouble(words) => words,
        };
        self.say(&words, false);
        Some(words)
    }

    fn say(&self, text: &str, marked: bool) {
        tracing::info!(drill = %self.plan.drill, "{text}");
        let ms = self.began.elapsed().as_millis() as u64;
        self.conductor.note(Line { ms, text: text.to_owned(), marked });
    }

    /// Makes room for the canary at the writer's.
    async fn stage(&self) -> Result<Credentials> {
        let password = random_hex(PASSWORD_BYTES)?;
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        let seconds = lasts(self.wait).as_secs();
        let body = json!({ "number": self.id, "verifier": verifier, "seconds": seconds });
        let staged = self.tell(self.plan.writer, "/api/drill/stage", body).await?;
        let role = staged["role"].as_str().context("the answer names no role")?.to_owned();
        let state = self.node.parts.consensus.state();
        let gateways = state.nodes.values().map(|n| n.gateway.clone()).collect();
        Ok(Credentials { role, password, gateways })
    }

    async fn clear(&self) -> Result<()> {
        let writer = serving(&self.node.status()).context("no writer serves")?;
        self.tell(writer, "/api/drill/clear", json!({})).await.map(drop)
    }

    async fn play(&mut self, canary: &Canary, eyes: &Watch) -> Result<(), Stop> {
        let deadline = Instant::now() + WARM_UP;
        while canary.writing() < canary.clients() {
            if Instant::now() > deadline {
                let reasons = canary.reasons().join("; ");
                let words = format!(
                    "{} of the drill's {} clients could not write through the gateways as role \
                     {}_{}: {reasons}",
                    canary.clients() - canary.writing(),
                    canary.clients(),
                    quorate_postgres::DRILL,
                    self.id
                );
                return Err(Stop::Trouble(words));
            }
            self.rest(LOOK).await?;
        }
        // A role that was made just now is known everywhere a little later.
        canary.forget_trouble();
        self.say("clients write and read through every gateway", false);
        self.rest(CALM).await?;
        let steps: Vec<Step> = self
            .plan
            .steps
            .iter()
            .map(|words| words.parse().map_err(|e| Stop::Trouble(format!("{words}: {e}"))))
            .collect::<Result<_, _>>()?;
        for step in &steps {
            self.step(step, canary, eyes).await?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step, canary: &Canary, eyes: &Watch) -> Result<(), Stop> {
        match step {
            Step::Do(deed) => {
                let marked = self.hurt.is_none() || is_healing(deed);
                self.say(&step.to_string(), marked);
                if is_healing(deed) {
                    self.replaced |= eyes.seen().replaced;
                }
                if self.hurt.is_none() {
                    self.hurt = Some(Instant::now());
                }
                self.perform(deed).await.map_err(|e| Stop::Trouble(format!("{step}: {e:#}")))
            }
            Step::Wait(time) => {
                self.say(&step.to_string(), false);
                self.rest(*time).await
            }
            Step::WaitUntil(condition) => {
                let limit = match condition {
                    // Copying a database again may take long.
                    Condition::Whole | Condition::Follows(_) => self.wait,
                    Condition::Writer(_) | Condition::AnyWriter => STEP_WAIT,
                };
                let deadline = Instant::now() + limit;
                loop {
                    match self.holds(condition, canary) {
                        Ok(()) => break,
                        Err(why) if Instant::now() > deadline => {
                            let words = format!("{step}: not after {} s: {why}", limit.as_secs());
                            return Err(Stop::Trouble(words));
                        }
                        Err(_) => self.rest(LOOK).await?,
                    }
                }
                self.replaced |= eyes.seen().replaced;
                self.say(&format!("{}: so it is", condition), true);
                Ok(())
            }
            Step::Expect(Expectation::Now(condition)) => {
                self.holds(condition, canary).map_err(|why| Stop::Trouble(format!("{step}: {why}")))
            }
            // Judged at the end, when everything is back.
            Step::Expect(Expectation::NoLoss) => Ok(()),
            Step::Expect(Expectation::NoWriter) => {
                Err(Stop::Trouble(format!("drills do not know how to: {step}")))
            }
        }
    }

    async fn rest(&mut self, time: Duration) -> Result<(), Stop> {
        let aborted = self.aborted.wait_for(|a| *a);
        match tokio::time::timeout(time, aborted).await {
            Ok(_) => Err(Stop::Aborted),
            Err(_) => Ok(()),
        }
    }

    fn holds(&self, condition: &Condition, canary: &Canary) -> Result<(), String> {
        let status = self.node.status();
        match condition {
            Condition::AnyWriter => {
                let since = self.hurt.map_or(0, |hurt| self.ms(hurt));
                match canary.wrote_since(since) {
                    true => Ok(()),
                    false => Err(format!("no client could write: {}", status.because)),
                }
            }
            Condition::Writer(nodes) => match serving(&status) {
                Some(writer) if nodes.contains(&writer) => Ok(()),
                Some(writer) => Err(format!("{writer} writes")),
                None => Err(format!("nobody writes: {}", status.because)),
            },
            Condition::Follows(node) => {
                let word = serving(&status)
                    .and_then(|w| status.nodes.get(&w)?.status.as_ref()?.writer.as_ref());
                match word.is_some_and(|w| w.standbys.contains_key(node)) {
                    true => Ok(()),
                    false => Err(format!("{node} is not attached to the writer")),
                }
            }
            Condition::Whole => self.is_whole(&status),
        }
    }

    /// Whether every node has its place, and each copy counts that counted before.
    fn is_whole(&self, status: &ClusterStatus) -> Result<(), String> {
        whole(status, &self.node.parts.consensus.state().document())?;
        let cohort = status.authority.cohort();
        match self.plan.cohort.iter().find(|n| !cohort.contains(n)) {
            None => Ok(()),
            Some(node) => Err(format!("{node} is not in the commit rule yet")),
        }
    }

    /// Milliseconds since clients began.
    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.began).as_millis() as u64
    }

    async fn perform(&mut self, deed: &Deed) -> Result<()> {
        let (who, fault) = match deed {
            Deed::KillPostgres(who) => (*who, Fault::KillPostgres),
            Deed::Lose(who) => (*who, Fault::Lose),
            Deed::Mute(who) => (*who, Fault::Mute),
            Deed::PauseReplay(who) => (*who, Fault::PauseReplay),
            Deed::OpenSlot(who) => (*who, Fault::OpenSlot),
            Deed::Partition(_) => (Who::Node(self.plan.victim), Fault::Isolate),
            Deed::Switchover(to) => return self.switch_over(*to).await,
            Deed::Heal | Deed::Start(_) | Deed::ResumeReplay(_) | Deed::DropSlot(_) => {
                return self.heal().await;
            }
            other => bail!("drills do not know how to: {other}"),
        };
        let Who::Node(node) = who else { bail!("drills name their nodes: {deed}") };
        self.hurt_nodes.insert(node);
        self.tell(node, "/api/drill/fault", json!({ "fault": fault })).await.map(drop)
    }

    async fn switch_over(&self, to: Option<NodeId>) -> Result<()> {
        let term = self.node.parts.consensus.state().authority.term;
        match self.node.propose(Change::PlanSwitchover { term, target: to }).await? {
            Answer::Done => Ok(()),
            Answer::Refused { because } => bail!(because),
        }
    }

    async fn heal(&mut self) -> Result<()> {
        for node in self.hurt_nodes.clone() {
            let answer = self.tell(node, "/api/drill/heal", json!({})).await?;
            self.kept_bytes = self.kept_bytes.max(answer["kept_bytes"].as_u64());
            self.hurt_nodes.remove(&node);
        }
        Ok(())
    }

    /// Ends every failure, waits until every node has its place, and hands the writing back.
    async fn put_back(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.wait;
        let late = |why: &str| {
            anyhow::anyhow!("not everything is as before: {why}. See `quorate status`.")
        };
        // A node that cannot be reached heals by itself.
        while let Err(error) = self.heal().await {
            if Instant::now() > deadline {
                return Err(late(&format!("{error:#}")));
            }
            tokio::time::sleep(LOOK).await;
        }
        self.wait_whole(deadline).await.map_err(|why| late(&why))?;
        for attempt in 0..BACK_MAX {
            let writer = serving(&self.node.status());
            if writer == Some(self.plan.writer) {
                break;
            }
            if attempt == 0 {
                self.say(&format!("switchover to {}", self.plan.writer), true);
            } else {
                tokio::time::sleep(BACK_PAUSE).await;
            }
            if let Err(error) = self.switch_over(Some(self.plan.writer)).await {
                tracing::debug!(%error, "a hand-over back was refused");
                continue;
            }
            self.wait_moved(deadline).await;
            self.wait_whole(deadline).await.map_err(|why| late(&why))?;
        }
        match serving(&self.node.status()) {
            Some(writer) if writer == self.plan.writer => {}
            Some(other) => {
                let words = format!(
                    "{other} writes: the hand-over back to {} was given up",
                    self.plan.writer
                );
                return Err(late(&words));
            }
            None => return Err(late("no writer serves")),
        }
        self.say("everything is as before", false);
        Ok(())
    }

    /// Until a hand-over was carried out or given up.
    async fn wait_moved(&self, deadline: Instant) {
        let mut state = self.node.parts.consensus.watch();
        let settled = state.wait_for(|s| s.authority.switchover.is_none());
        let _ = tokio::time::timeout_at(deadline.into(), settled).await;
    }

    async fn wait_whole(&self, deadline: Instant) -> Result<(), String> {
        loop {
            let Err(why) = self.is_whole(&self.node.status()) else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(why);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the clients and compares what they were told with what is there.
    async fn count(
        &self,
        canary: Option<Canary>,
        credentials: Option<&Credentials>,
        opened_ms: Option<u64>,
        trouble: &mut Option<String>,
    ) -> (Measures, Vec<Column>, Vec<String>) {
        let (Some(canary), Some(credentials)) = (canary, credentials) else {
            return (Measures::default(), Vec::new(), Vec::new());
        };
        let history = canary.stop().await;
        let rows = match canary::rows(credentials).await {
            Ok(rows) => rows,
            Err(error) => {
                let words = format!("what is there could not be read: {error:#}");
                trouble.get_or_insert(words);
                // Nothing is called lost that could not be looked for.
                return (Measures::default(), history.rate(), history.reasons);
            }
        };
        let hurt = self.hurt.map(|at| self.ms(at));
        (history.measures(&rows, hurt, opened_ms), history.rate(), history.reasons)
    }

    async fn end(self, measures: Measures, rate: Vec<Column>, seen: Seen, trouble: Option<String>) {
        let course = Course {
            aborted: *self.aborted.borrow(),
            trouble,
            replaced: self.replaced,
            led_anew: seen.led_anew,
        };
        let targets = self.node.parts.consensus.state().document().targets;
        let checks = drill::judge(self.plan.drill, &measures, &course, &targets);
        let outcome = drill::outcome(&course, &checks);
        let record = Record {
            id: self.id,
            drill: self.plan.drill,
            at: self.at,
            seconds: self.began.elapsed().as_secs(),
            conductor: self.node.parts.me,
            writer: self.plan.writer,
            term: self.term,
            outcome,
            sentence: drill::sentence(outcome, &measures, &checks),
            measures,
            checks,
        };
        self.record(&record).await;
        let state = self.node.parts.consensus.state();
        let report = Report {
            cluster: state.cluster_id.clone(),
            intent: self.plan.intent.clone(),
            steps: self.plan.steps.clone(),
            hurt_ms: self.hurt.map(|at| self.ms(at)),
            course: self.conductor.progress().map(|p| p.course).unwrap_or_default(),
            rate,
            events: state.events.iter().filter(|e| e.seq > self.events).cloned().collect(),
            record,
        };
        self.conductor.ended(report);
    }

    /// Remembers the drill. Without it the next one has to wait until this one's time is over.
    async fn record(&self, record: &Record) {
        let deadline = Instant::now() + RECORD_WAIT;
        loop {
            let change = Change::EndDrill { record: Box::new(record.clone()) };
            match self.node.propose(change).await {
                Ok(Answer::Done) => return,
                // An attempt whose outcome was not known had taken effect.
                Ok(Answer::Refused { .. }) if self.is_recorded() => return,
                Ok(Answer::Refused { because }) => {
                    return tracing::warn!(because, "the drill was not recorded");
                }
                Err(error) if Instant::now() > deadline => {
                    return tracing::warn!(%error, "the drill was not recorded");
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    fn is_recorded(&self) -> bool {
        self.node.parts.consensus.state().drills.iter().any(|r| r.id == self.id)
    }

    /// Has a node do something, itself included.
    async fn tell(&self, node: NodeId, path: &str, body: Value) -> Result<Value> {
        if node == self.node.parts.me {
            return self.do_it(path, &body).await.map_err(anyhow::Error::msg);
        }
        let asked = async {
            let stream = self.node.parts.links.dial(node, Kind::Control).await?;
            ask(stream, Ask::post(path, body)).await
        };
        let (status, value) = tokio::time::timeout(ORDER_WAIT, asked)
            .await
            .with_context(|| format!("{node} does not answer"))?
            .with_context(|| format!("{node} cannot be reached"))?;
        if !status.is_success() {
            bail!("{node}: {}", value["error"].as_str().unwrap_or("no reason given"));
        }
        Ok(value)
    }

    async fn do_it(&self, path: &str, body: &Value) -> Result<Value, String> {
        let conductor = &self.conductor;
        match path {
            "/api/drill/stage" => {
                let room = Room::deserialize(body).map_err(|e| e.to_string())?;
                conductor.stage(&room).await
            }
            "/api/drill/clear" => conductor.clear().await,
            "/api/drill/heal" => Ok(json!({ "kept_bytes": conductor.faults().heal().await })),
            other => Err(format!("a conductor does not hurt itself ({other})")),
        }
    }
}

fn is_healing(deed: &Deed) -> bool {
    matches!(deed, Deed::Heal | Deed::Start(_) | Deed::ResumeReplay(_) | Deed::DropSlot(_))
}
