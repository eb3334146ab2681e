//! The loop that looks at this node's replication slots and at the disk of its log: facts, judgement,
//! and what follows from it. The rules are in [`quorate_core::slots`].
//!
//! Invariant: a slot of policy `auto` is dropped only after the cluster has agreed that this node is
//! the writer and that its stream ends; from then on no gateway lets anybody read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_core::because::Because;
use quorate_core::limits::{DISK_HAND_OVER_RETRY, SLOTS_EVERY};
use quorate_core::node::Server as ServerFact;
use quorate_core::slots::{
    DiskGuard, DiskLevel, DiskStanding, Gap, GapCause, GapView, HandOver, Judge, Reserve, Slot,
    SlotChange, SlotRecord, SlotSpec, SlotStanding, SlotView, SlotsWord, ending, hand_over, look,
};
use quorate_core::state::{Change, State};
use quorate_core::{Answer, Lsn, Moment, NodeId, Term};
use quorate_link::clock;
use quorate_postgres::SlotEnded;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::carry::{Carriers, carriers};
use crate::database::Database;
use crate::limits::SLOT_END_WAIT;
use crate::node::Node;

/// The slots of this node, as the loop found them last.
#[derive(Debug, Default)]
pub struct Slots {
    found: Mutex<Found>,
    /// How far consumers of adopted slots were, as the writer of a term said last.
    remembered: Mutex<(Term, BTreeMap<String, Lsn>)>,
}

#[derive(Debug, Default)]
struct Found {
    /// The reign that it was found in; `None`: not as the writer.
    reign: Option<Term>,
    end: Lsn,
    standings: Vec<SlotStanding>,
    disk: Option<DiskStanding>,
}

/// All slots of one node, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SlotsReport {
    /// The node.
    pub node: NodeId,
    /// Whether it is the writer.
    pub writer: bool,
    /// Where its log ends.
    pub end: Lsn,
    /// The disk of its log.
    pub disk: Option<DiskStanding>,
    /// Its slots, by name.
    pub slots: Vec<SlotStanding>,
    /// What the cluster has agreed on of adopted logical slots, and what those lack that are lost.
    pub records: BTreeMap<String, SlotRecord>,
    /// Adopted slots that are not on this node.
    pub absent: BTreeMap<String, SlotSpec>,
    /// Which nodes carry the writer's slots, and how far they are.
    #[serde(default)]
    pub carried: BTreeMap<String, Carriers>,
}

impl Slots {
    /// The short word for heartbeats of this node as the writer of a term.
    pub fn word(&self, term: Term) -> SlotsWord {
        let found = lock(&self.found);
        match found.reign == Some(term) {
            true => SlotsWord::of(&found.standings),
            false => SlotsWord::default(),
        }
    }

    /// The disk of this node's log.
    pub fn disk(&self) -> Option<DiskStanding> {
        lock(&self.found).disk.clone()
    }

    /// Everything, for people.
    pub fn report(&self, node: &Node) -> SlotsReport {
        let state = node.parts.consensus.state();
        let document = state.document();
        // It asks for the short word, which looks at what was found, too.
        let carried = carriers(node, &document);
        let found = lock(&self.found);
        let mut absent = document.slots;
        absent.retain(|name, _| found.standings.iter().all(|s| s.slot.name != *name));
        SlotsReport {
            node: node.parts.me,
            writer: found.reign == Some(state.authority.term),
            end: found.end,
            disk: found.disk.clone(),
            slots: found.standings.clone(),
            records: state.slots.clone(),
            absent,
            carried,
        }
    }

    /// Takes note of what the writer says, for the day on which this node is the next one.
    fn remember(&self, node: &Node) {
        let state = node.parts.consensus.state();
        let Some(writer) = state.authority.writer.filter(|w| *w != node.parts.me) else { return };
        let Some(word) = node.parts.health.status_of(writer).and_then(|s| s.writer) else { return };
        let mut remembered = lock(&self.remembered);
        if word.term > remembered.0 {
            *remembered = (word.term, BTreeMap::new());
        }
        if word.term == remembered.0 {
            remembered.1.extend(word.slots.confirmed);
        }
    }
}

/// What is missing in the streams of adopted slots, and is not acknowledged.
pub fn gaps(state: &State) -> BTreeMap<String, Gap> {
    let gap = |(name, r): (&String, &SlotRecord)| Some((name.clone(), r.gap.clone()?));
    state.slots.iter().filter_map(gap).collect()
}

/// Slots of which the present writer has not said whether it has them, whole: nobody goes on with one
/// before that.
pub fn unjudged(state: &State) -> BTreeSet<String> {
    let open = |(_, r): &(&String, &SlotRecord)| {
        r.term < state.authority.term && r.gap.is_none() && r.since.is_none()
    };
    state.slots.iter().filter(open).map(|(name, _)| name.clone()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the process ends.
pub async fn run(node: Arc<Node>) {
    let Some(database) = node.parts.database.clone() else { return };
    node.carry.load(&node, &database);
    tokio::spawn(crate::carry::run(Arc::clone(&node), Arc::clone(&database)));
    let mut looker = Looker {
        node,
        database,
        guard: DiskGuard::default(),
        judge: None,
        full: None,
        handed: None,
    };
    loop {
        looker.node.slots.remember(&looker.node);
        looker.look_at_disk().await;
        looker.look_at_slots().await;
        tokio::time::sleep(SLOTS_EVERY).await;
    }
}

/// What the loop keeps between looks.
struct Looker {
    node: Arc<Node>,
    database: Arc<Database>,
    guard: DiskGuard,
    /// The judge of this reign, or of this time as a standby: positions of another one's log are not
    /// compared with it.
    judge: Option<(Option<Term>, Judge)>,
    /// Since when writes have been stopped here, or would be.
    full: Option<Moment>,
    /// When another node was asked to write instead.
    handed: Option<Moment>,
}

impl Looker {
    async fn look_at_disk(&mut self) {
        let options = Arc::clone(&self.database.options);
        // A stuck disk holds this loop, and nothing else.
        let asked = tokio::task::spawn_blocking(move || {
            (quorate_postgres::room(&options), quorate_postgres::reserved(&options))
        });
        let Ok((Ok(disk), reserve)) = asked.await else {
            // There is no data, or it is about to be replaced: nothing is known.
            lock(&self.node.slots.found).disk = None;
            self.full = None;
            return;
        };
        let spec = self.node.parts.consensus.state().document().disk;
        let (standing, becomes) = self.guard.see(disk, reserve, &spec, clock::now());
        let level = standing.level;
        let because = standing.because.clone();
        let before = lock(&self.node.slots.found).disk.replace(standing).map(|d| d.level);
        if before.is_some_and(|before| before != level)
            || before.is_none() && level > DiskLevel::Fine
        {
            tell(level, &because);
            // Gateways act on it.
            self.node.wake.notify_one();
        }
        self.full = (level == DiskLevel::Full).then(|| self.full.unwrap_or_else(clock::now));
        self.keep_reserve(becomes).await;
    }

    async fn keep_reserve(&self, becomes: Reserve) {
        let options = Arc::clone(&self.database.options);
        let done = tokio::task::spawn_blocking(move || match becomes {
            Reserve::Keep => Ok(()),
            Reserve::Make(bytes) => quorate_postgres::reserve(&options, bytes),
            Reserve::Release => quorate_postgres::release_reserve(&options).map(drop),
        });
        match (done.await, becomes) {
            (_, Reserve::Keep) | (Err(_), _) => {}
            (Ok(Ok(())), Reserve::Make(bytes)) => {
                tracing::info!(bytes, "made a reserve on the disk of the log");
            }
            (Ok(Ok(())), Reserve::Release) => {
                tracing::warn!("the disk of the log is full: its reserve is given back");
            }
            (Ok(Err(e)), _) => {
                tracing::warn!(error = %e, "the reserve on the log's disk: {}", e.hint())
            }
        }
    }

    async fn look_at_slots(&mut self) {
        if !matches!(self.database.fact(), ServerFact::Standby | ServerFact::Writer(_)) {
            return;
        }
        let seen = match self.database.admin.all_slots().await {
            Ok(seen) => seen,
            Err(e) => {
                tracing::debug!(error = %e, "cannot look at the slots");
                return;
            }
        };
        let state = self.node.parts.consensus.state();
        let document = state.document();
        let reign = self.node.serves(&state);
        if self.judge.as_ref().is_none_or(|(of, _)| *of != reign) {
            self.judge = Some((reign, Judge::default()));
        }
        let Some((_, judge)) = &mut self.judge else { return };
        let disk = self.node.slots.disk();
        let (standings, drops) = judge.see(&SlotView {
            slots: &seen.slots,
            specs: &document.slots,
            end: seen.end,
            disk: disk.as_ref(),
            writes: reign.is_some(),
            carried: &self.node.carry.told(),
            paused: state.paused,
            now: clock::now(),
        });
        {
            let mut found = lock(&self.node.slots.found);
            (found.reign, found.end, found.standings) = (reign, seen.end, standings);
        }
        let Some(term) = reign else { return };
        self.agree(term, &state, &document.slots, &seen.slots).await;
        for name in drops {
            let slot = seen.slots.iter().find(|s| s.name == name);
            if let (Some(slot), Some(spec)) = (slot, document.slots.get(&name)) {
                self.agree_on_end(term, &state, slot, spec, seen.end).await;
            }
        }
        self.end(&seen.slots).await;
        self.hand_over(term, &state, &seen.slots).await;
    }

    /// Lets another node write whose disk has room, when there is none here.
    async fn hand_over(&mut self, term: Term, state: &State, slots: &[Slot]) {
        let (Some(since), Some(disk)) = (self.full, self.node.slots.disk()) else { return };
        let now = clock::now();
        let lately = self.handed.is_some_and(|at| now.since(at) < DISK_HAND_OVER_RETRY);
        let status = self.node.status();
        let others = status.candidates.iter().filter(|c| c.eligible);
        let disk_of = |node: &NodeId| status.nodes.get(node)?.status.as_ref()?.disk.clone();
        let others: Vec<_> = others.map(|c| (c.node, disk_of(&c.node))).collect();
        let ready: BTreeMap<_, _> = carriers(&self.node, &state.document())
            .into_iter()
            .map(|(name, carriers)| (name, carriers.ready()))
            .collect();
        let next = hand_over(&HandOver {
            disk: &disk,
            stopped: now.since(since),
            others: &others,
            slots,
            ready: &ready,
            busy: lately || state.paused || state.authority.switchover.is_some(),
        });
        let Some((target, because)) = next else { return };
        self.handed = Some(now);
        tracing::warn!(rule = because.rule, "{}", because.sentence);
        let kind = "disk-full".to_owned();
        if agreed(&self.node, Change::Note { kind, because }).await {
            agreed(&self.node, Change::PlanSwitchover { term, target: Some(target) }).await;
        }
    }

    /// Ends what is agreed to end, also by an earlier writer's process that did not come to it.
    async fn end(&self, slots: &[Slot]) {
        let state = self.node.parts.consensus.state();
        let mut dropped = false;
        for slot in ending(&state.slots, slots) {
            let name = &slot.name;
            match timeout(SLOT_END_WAIT, self.database.admin.end_slot(name)).await {
                Ok(Ok(SlotEnded::Dropped)) => {
                    tracing::warn!(slot = name, "dropped a slot");
                    dropped = true;
                }
                Ok(Ok(SlotEnded::NotThere)) => {}
                Ok(Err(e)) => tracing::warn!(slot = name, error = %e, "a slot is still there"),
                Err(_) => tracing::warn!(slot = name, "dropping a slot takes too long"),
            }
        }
        if dropped {
            // The log that it kept is removed with a checkpoint.
            let database = Arc::clone(&self.database);
            tokio::spawn(async move { database.admin.checkpoint().await });
        }
    }

    /// Tells the cluster which adopted slots are here, and which streams broke.
    async fn agree(
        &self,
        term: Term,
        state: &State,
        specs: &BTreeMap<String, SlotSpec>,
        slots: &[Slot],
    ) {
        let (remembered, notes) =
            (lock(&self.node.slots.remembered).1.clone(), self.node.carry.notes());
        #[cfg(feature = "sabotage")]
        let (remembered, notes) = {
            let (mut remembered, mut notes) = (remembered, notes);
            crate::sabotage::carries(&mut notes, &mut remembered);
            (remembered, notes)
        };
        let steps = look(&GapView {
            me: self.node.parts.me,
            term,
            reigns: &state.authority.reigns,
            specs,
            records: &state.slots,
            slots,
            remembered: &remembered,
            notes: &notes,
        });
        for change in steps {
            let told = match &change {
                SlotChange::Lost { gap, .. } => Some(gap.because.clone()),
                SlotChange::Seen { carried: Some(because), .. } => {
                    tracing::info!(rule = because.rule, "{}", because.sentence);
                    None
                }
                SlotChange::Seen { carried: None, .. }
                | SlotChange::Gone { .. }
                | SlotChange::Acknowledge { .. } => None,
            };
            // Not agreed, it is found again with the next look.
            if agreed(&self.node, Change::Slot { change }).await
                && let Some(because) = told
            {
                tracing::warn!(rule = because.rule, "{}", because.sentence);
            }
        }
    }

    /// Lets the cluster agree that a slot is dropped by its policy.
    async fn agree_on_end(
        &self,
        term: Term,
        state: &State,
        slot: &Slot,
        spec: &SlotSpec,
        end: Lsn,
    ) {
        let name = &slot.name;
        // Agreed already when an earlier attempt to drop it failed.
        if ending(&state.slots, std::slice::from_ref(slot)).is_empty()
            && !self.node.parts.gate.is_draining()
        {
            let before = state.slots.get(name).and_then(|r| r.gap.as_ref());
            let gap = Gap::dropped((name, spec), slot, end, GapCause::Budget, before);
            let (name, node) = (name.clone(), self.node.parts.me);
            agreed(&self.node, Change::Slot { change: SlotChange::Lost { name, term, node, gap } })
                .await;
        }
    }
}

fn tell(level: DiskLevel, because: &Because) {
    let rule = &because.rule;
    match level {
        DiskLevel::Fine => tracing::info!(rule, "{}", because.sentence),
        DiskLevel::Low => tracing::warn!(rule, "{}", because.sentence),
        DiskLevel::Full => tracing::warn!(rule, "{}", because.sentence),
    }
}

async fn agreed(node: &Node, change: Change) -> bool {
    match node.propose(change).await {
        Ok(Answer::Done) => true,
        Ok(Answer::Refused { because }) => {
            tracing::debug!(because, "a word on slots was refused");
            false
        }
        Err(e) => {
            tracing::debug!(error = %e, "a word on slots could not be agreed");
            false
        }
    }
}

/// Drops a slot of this node's server because a person said so. What was done, or why not.
///
/// # Errors
/// One sentence of why not.
pub async fn drop_by_person(node: &Node, name: &str) -> Result<String, String> {
    let me = node.parts.me;
    let database = node.parts.database.as_ref();
    let database = database.ok_or_else(|| format!("{me} is a witness: it has no slots"))?;
    let seen = database.admin.all_slots().await.map_err(|e| format!("{e}: {}", e.hint()))?;
    let slot = seen.slots.iter().find(|s| s.name == name);
    let slot = slot.ok_or_else(|| format!("there is no slot {name} on {me}"))?;
    if slot.temporary {
        return Err(format!("slot {name} is temporary: it ends with its session"));
    }
    let state = node.parts.consensus.state();
    let document = state.document();
    let term = node.parts.gate.term().filter(|t| *t == state.authority.term);
    // The owner of one that broke already is told of that.
    let whole = state.slots.get(name).is_none_or(|r| r.gap.is_none());
    let change = match (term.filter(|_| whole), document.slots.get(name)) {
        (Some(term), Some(spec)) => {
            let gap = Gap::dropped((name, spec), slot, seen.end, GapCause::Person, None);
            let name = name.to_owned();
            Change::Slot { change: SlotChange::Lost { name, term, node: me, gap } }
        }
        (_, spec) => {
            let whose = spec.map_or("which nobody adopted".to_owned(), |s| s.owner.clone());
            let text = format!("a person drops slot {name} on {me} ({whose})");
            Change::Note {
                kind: "slot-dropped".to_owned(),
                because: Because::new("op-slots", text),
            }
        }
    };
    match node.propose(change).await {
        Ok(Answer::Done) => {}
        Ok(Answer::Refused { because }) => return Err(because),
        Err(e) => return Err(format!("{e}. {}", e.hint())),
    }
    match timeout(SLOT_END_WAIT, database.admin.end_slot(name)).await {
        Ok(Ok(SlotEnded::Dropped)) => Ok(format!("slot {name} on {me} is dropped")),
        Ok(Ok(SlotEnded::NotThere)) => Err(format!("slot {name} went away by itself")),
        Ok(Err(e)) => Err(format!("slot {name} is still there: {e}: {}", e.hint())),
        Err(_) => Err(format!("slot {name} is still there: its reader does not end")),
    }
}

/// Takes an owner's word that what a slot lacks is known. On the writer's node.
///
/// # Errors
/// One sentence of why not.
pub async fn acknowledge(node: &Node, name: &str) -> Result<(), String> {
    let me = node.parts.me;
    let gap = node.parts.consensus.state().slots.get(name).and_then(|r| r.gap.clone());
    let gap = gap.ok_or_else(|| format!("nothing of slot {name} is to be acknowledged"))?;
    let found = match &node.parts.database {
        Some(database) => database.admin.all_slots().await.map_err(|e| e.to_string())?.slots,
        None => Vec::new(),
    };
    // One from before cannot be gone on with, whatever its owner says.
    let old = |s: &Slot| s.name == name && s.restart < gap.resumes;
    if found.iter().any(old) {
        return Err(format!(
            "slot {name} on {me} is the old one, which lacks what came since: drop it first \
             (`quorate slots drop {name}`)"
        ));
    }
    let change = SlotChange::Acknowledge { name: name.to_owned() };
    match node.propose(Change::Slot { change }).await {
        Ok(Answer::Done) => Ok(()),
        Ok(Answer::Refused { because }) => Err(because),
        Err(e) => Err(format!("{e}. {}", e.hint())),
    }
}
