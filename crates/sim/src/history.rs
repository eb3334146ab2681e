//! A history: a cluster lives through faults, everything is repaired, and it must serve again.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_core::Because;
use quorate_core::document::{Document, Timing};
use quorate_core::status::Doing;
use quorate_scenario::random::Random;
use quorate_scenario::{Condition, Deed, Expectation, Scenario, Shape, Step};

use crate::agent::{Agent, with};
use crate::event::Event;
use crate::faults::plan;
use crate::flaw::Flaw;
use crate::host::Host;
use crate::trace::Trace;
use crate::world::{At, MS, SECOND, World, nanos};

/// Applications at once.
const CLIENTS: usize = 4;
/// Time without faults at the beginning: the cluster finds itself.
const CALM: At = 3 * SECOND;
/// After the repair, a write must succeed within this.
const SERVES_WITHIN: Duration = Duration::from_secs(60);
/// After the repair, every node must have its place again within this. A node that forgot its
/// promise is left out for [`quorate_core::limits::COHORT_ABSENCE`] first.
const WHOLE_WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What makes a history: everything in it follows from this.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Decides all that chance decides.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// What its operator wants.
    pub document: Document,
    /// What is done, and when.
    pub plan: Vec<(At, Deed)>,
    /// The rule that is left out.
    pub flaw: Flaw,
}

/// What came of a history.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What must not have happened, and did.
    pub failure: Option<String>,
    /// How long it took, in the cluster's time.
    pub length: Duration,
    /// Writes acknowledged.
    pub acks: u64,
    /// Reads answered.
    pub reads: u64,
    /// Operations whose clients do not know what became of them.
    pub unknown: u64,
    /// Operations that nobody answered, whose clients were told later that they are committed.
    pub told_committed: u64,
    /// Those whose clients were told later that nothing is left of them.
    pub told_aborted: u64,
    /// Writers that opened.
    pub terms: usize,
    /// Messages lost.
    pub lost_messages: u64,
    /// Events simulated.
    pub events: u64,
    /// From the repair to a write that succeeded.
    pub recovery: Duration,
    /// Whether only a person can say that it may go on: the one copy that matters has lost its
    /// promise.
    pub needs_a_person: bool,
    /// The trace, if it was asked for.
    pub trace: Vec<String>,
}

impl Recipe {
    /// A cluster, its document and its faults by chance.
    pub fn of_seed(seed: u64, flaw: Flaw) -> Self {
        let mut random = Random::new(seed ^ 0x5155_4f52_4154_4500);
        let shape = match random.below(10) {
            0..=5 => Shape { data: 3, witness: false },
            6 | 7 => Shape { data: 2, witness: true },
            8 => Shape { data: 4, witness: true },
            _ => Shape { data: 5, witness: false },
        };
        let timing = match random.below(12) {
            0 => Timing::Async,
            1 => Timing::SemiSync,
            _ => Timing::Quorum,
        };
        let copies = random.between(2, u64::from(shape.data).min(3)) as u8;
        let strict_reads = random.chance(300);
        let document = Document { timing, copies, strict_reads, ..Document::default() };
        let length = random.between(10 * SECOND, 45 * SECOND);
        let plan = plan(&mut random, shape, SECOND + CALM, length);
        Self { seed, shape, document, plan, flaw }
    }

    /// The history that a scenario without waiting for conditions tells. The fields that it sets
    /// first are those of the cluster's first document.
    pub fn of_scenario(scenario: &Scenario, seed: u64) -> Result<Self, String> {
        let (document, steps) = beginning(scenario)?;
        let (mut at, mut plan) = (SECOND, Vec::new());
        for step in steps {
            match step {
                Step::Wait(time) => at += nanos(*time),
                Step::Do(deed) => plan.push((at, deed.clone())),
                Step::WaitUntil(_) | Step::Expect(_) => {
                    return Err(format!("`{step}` has no time"));
                }
            }
        }
        Ok(Self { seed, shape: scenario.shape, document, plan, flaw: Flaw::None })
    }

    /// The same as words, so that a person can read and repeat it.
    pub fn scenario(&self, intent: &str) -> Scenario {
        let mut steps: Vec<Step> = self.settings().map(Step::Do).collect();
        let mut last = SECOND;
        for (at, deed) in &self.plan {
            let wait = Duration::from_millis((at - last) / MS);
            if !wait.is_zero() {
                steps.push(Step::Wait(wait));
                last += nanos(wait);
            }
            steps.push(Step::Do(deed.clone()));
        }
        Scenario { intent: intent.to_owned(), shape: self.shape, steps }
    }

    /// What the document says that a new cluster's does not.
    fn settings(&self) -> impl Iterator<Item = Deed> {
        let fields = |document: &Document| serde_json::to_value(document).unwrap_or_default();
        let (ours, usual) = (fields(&self.document), fields(&Document::default()));
        let ours = ours.as_object().cloned().unwrap_or_default();
        ours.into_iter().filter(move |(field, value)| usual.get(field) != Some(value)).map(
            |(field, value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Deed::Set(field, value)
            },
        )
    }

    /// Lets it happen.
    pub fn run(&self, trace: Trace) -> Outcome {
        let mut world = World::new(self.shape, self.document.clone(), self.seed, self.flaw, trace);
        world.plan = self.plan.clone();
        for at in 0..world.plan.len() {
            world.at(world.plan[at].0, Event::Do(at));
        }
        world.begin_clients(CLIENTS);
        let end = self.plan.last().map_or(SECOND + CALM, |(at, _)| *at) + SECOND;
        world.run_until(end);
        let repaired = world.now;
        world.repair();
        let served = world.run_to(repaired, SERVES_WITHIN, |w| w.checks.write_begun >= repaired);
        let recovery = Duration::from_nanos(world.now - repaired);
        if !served && world.needs_a_person() {
            world.trace.note(world.now, "the one copy that matters has lost its promise");
            return Outcome { needs_a_person: true, ..world.outcome(Duration::ZERO) };
        }
        if !served {
            let text =
                format!("no write succeeded after everything was repaired: {}", world.places());
            world.checks.fail(world.now, &text);
        } else if !world.run_to(repaired, WHOLE_WITHIN, World::is_whole) {
            let text = format!("not every node found its place again: {}", world.places());
            world.checks.fail(world.now, &text);
        }
        world.outcome(recovery)
    }

    /// The same failure with fewer deeds, by leaving out what it does not need.
    /// (Zeller, Hildebrandt: Simplifying and isolating failure-inducing input, 2002.)
    pub fn shrink(&self) -> Self {
        let mut least = self.clone();
        let mut chunk = least.plan.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < least.plan.len() {
                let mut fewer = least.clone();
                fewer.plan.drain(at..(at + chunk).min(fewer.plan.len()));
                match fewer.run(Trace::default()).failure {
                    Some(_) => least = fewer,
                    None => at += chunk,
                }
            }
            if chunk == 1 {
                return least;
            }
            chunk = chunk.div_ceil(2);
        }
    }

    /// How often each kind of deed is in it.
    pub fn kinds(&self) -> BTreeMap<&'static str, u64> {
        let mut kinds = BTreeMap::new();
        for (_, deed) in &self.plan {
            *kinds.entry(deed.kind()).or_default() += 1;
        }
        kinds
    }
}

/// The document that a scenario begins with, and its other steps.
fn beginning(scenario: &Scenario) -> Result<(Document, &[Step]), String> {
    let mut document = Document::default();
    let mut steps = &scenario.steps[..];
    while let [Step::Do(Deed::Set(field, value)), rest @ ..] = steps {
        document = with(&document, field, value)?;
        steps = rest;
    }
    Ok((document, steps))
}

/// Lets a scenario happen, with clients at work and all else by chance: what went wrong, if
/// anything did, and the trace if it was asked for.
pub fn play(scenario: &Scenario, seed: u64, trace: Trace) -> Outcome {
    let (document, steps) = match beginning(scenario) {
        Ok(beginning) => beginning,
        Err(problem) => return Outcome { failure: Some(problem), ..Outcome::default() },
    };
    let mut world = World::new(scenario.shape, document, seed, Flaw::None, trace);
    world.begin_clients(CLIENTS);
    world.run_to(SECOND, SERVES_WITHIN, World::is_whole);
    // Its commit rule grows to what the document asks for.
    world.run_until(world.now + CALM);
    for step in steps {
        let now = world.now;
        match step {
            Step::Do(deed) => world.perform_deed(deed),
            Step::Wait(time) => world.run_until(now + nanos(*time)),
            Step::WaitUntil(condition) => {
                if !world.run_to(now, SERVES_WITHIN, |w| w.is_so(condition)) {
                    let places = world.places();
                    world.checks.fail(world.now, &format!("waited for: {condition}; {places}"));
                }
            }
            Step::Expect(expectation) => {
                let met = match expectation {
                    Expectation::Now(condition) => world.is_so(condition),
                    Expectation::NoWriter => world.serving().is_none(),
                    // What was lost has been told by the checks.
                    Expectation::NoLoss => true,
                };
                if !met {
                    let places = world.places();
                    world.checks.fail(now, &format!("{step}, and it is not so: {places}"));
                }
            }
        }
        if world.checks.failure.is_some() {
            break;
        }
    }
    world.outcome(Duration::ZERO)
}

impl World {
    fn outcome(self, recovery: Duration) -> Outcome {
        let checks = &self.checks;
        Outcome {
            failure: checks.failure.clone(),
            length: Duration::from_nanos(self.now - SECOND),
            acks: checks.acks,
            reads: checks.reads,
            unknown: checks.unknown,
            told_committed: checks.told_committed,
            told_aborted: checks.told_aborted,
            terms: checks.terms.len(),
            lost_messages: checks.lost_messages,
            events: self.events,
            recovery,
            needs_a_person: false,
            trace: self.trace.lines(),
        }
    }

    fn is_so(&self, condition: &Condition) -> bool {
        let serving = self.serving().map(|node| self.hosts[node].name);
        match condition {
            Condition::Writer(names) => serving.is_some_and(|name| names.contains(&name)),
            Condition::AnyWriter => serving.is_some(),
            Condition::Follows(name) => {
                let agent = self.index(*name).and_then(|node| self.hosts[node].agent.as_ref());
                agent.is_some_and(|a| a.doing().0 == Doing::Following)
            }
            Condition::Whole => self.is_whole(),
        }
    }

    fn run_until(&mut self, until: At) {
        while self.checks.failure.is_none() && self.step(until) {}
    }

    /// Runs until this is so; false when it takes too long.
    fn run_to(&mut self, from: At, within: Duration, so: impl Fn(&Self) -> bool) -> bool {
        while !so(self) && self.checks.failure.is_none() {
            if self.now >= from + nanos(within) {
                return false;
            }
            self.run_until(self.now + nanos(LOOK_EVERY));
        }
        true
    }

    /// Whether one node writes and every other one follows it or votes.
    fn is_whole(&self) -> bool {
        let placed = |host: &Host| {
            let doing = host.agent.as_ref().map(|a| a.doing().0);
            matches!(doing, Some(Doing::Writing | Doing::Following | Doing::Witness))
        };
        self.serving().is_some() && self.hosts.iter().all(placed)
    }

    /// Whether commits may be on a node alone that has lost its promise: nobody but a person can
    /// say that it may go on.
    fn needs_a_person(&self) -> bool {
        let forgot = |node: &usize| self.hosts[*node].disk.promise.is_none();
        (0..self.hosts.len()).filter(forgot).any(|node| !self.is_dispensable(node))
    }

    /// What each node does, for people.
    fn places(&self) -> String {
        let place = |host: &Host| match host.agent.as_ref().map(|a| a.doing()) {
            None => format!("{} is down", host.name),
            Some((doing, because)) => format!("{} {doing:?}, {because}", host.name),
        };
        let word = self.leader().and_then(|l| self.hosts[l].agent.as_ref()).map(Agent::word);
        let places = self.hosts.iter().map(place).collect::<Vec<_>>().join("; ");
        format!("{places}; coordinator: {}", word.unwrap_or(&Because::default()))
    }

    /// The checks that need no occasion.
    pub(crate) fn look(&mut self) {
        self.wake_hosts();
        self.insist();
        let passes = |i: &usize| {
            let host = &self.hosts[*i];
            let agent = host.agent.as_ref()?;
            let term = agent.gate.term?;
            let open = agent.gate.check(term, self.moment(*i)) == crate::agent::Passage::Pass;
            (open && !host.stands_still()).then_some(term)
        };
        let open: Vec<usize> = (0..self.hosts.len()).filter(|i| passes(i).is_some()).collect();
        if open.len() > 1 {
            self.checks.fail(self.now, "two nodes answer clients at once");
        }
        self.after(LOOK_EVERY, Event::Look);
    }
}
