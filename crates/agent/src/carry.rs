//! The loop that keeps a standby's copies of the writer's logical slots: facts, a plan, and what
//! follows from it. The rules are in [`quorate_core::slots`].
//!
//! Invariant: a slot is noted before it is made, when there is none of that name, and what is noted is
//! forgotten before data are rewound or copied. A slot that no note speaks of counts as left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_core::because::Because;
use quorate_core::document::Document;
use quorate_core::node::Server as ServerFact;
use quorate_core::slots::{
    Carried, CarryNote, CarryStage, CarryStep, CarryView, DiskLevel, Origin, SlotsWord,
    carries_nothing, plan,
};
use quorate_core::state::{Change, State};
use quorate_core::{Lsn, Moment, NodeId, Term};
use quorate_link::clock;
use quorate_postgres::{Decoder, Slots};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::database::Database;
use crate::limits::{
    CARRY_EVERY, CARRY_HEARD, CARRY_HELP_WAIT, CARRY_REST, CARRY_RETRY, SLOT_END_WAIT,
};
use crate::node::Node;
use notes::Notes;

mod notes;

/// The slots that this node carries, as it knows them.
#[derive(Debug, Default)]
pub struct Carry {
    kept: Mutex<Kept>,
    told: Mutex<BTreeMap<String, Carried>>,
}

#[derive(Debug, Default)]
struct Kept {
    file: Option<PathBuf>,
    cluster: String,
    notes: Notes,
}

/// One slot, and what the nodes say that carry it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carriers {
    /// How far its consumer is, as the writer knows.
    pub consumer: Option<Lsn>,
    /// By node.
    pub nodes: BTreeMap<NodeId, Carried>,
}

impl Carriers {
    /// Nodes on which its consumer goes on when they write.
    pub fn ready(&self) -> BTreeSet<NodeId> {
        let ready = self.nodes.iter().filter(|(_, c)| c.stage == CarryStage::Ready);
        ready.map(|(node, _)| *node).collect()
    }

    /// Which nodes carry a slot, and how far they are.
    pub fn sentence(&self, slot: &str) -> String {
        let each = |(node, carried): (&NodeId, &Carried)| {
            format!("{node} ({})", carried.words(self.consumer))
        };
        let nodes = self.nodes.iter().map(each).collect::<Vec<_>>().join(", ");
        match self.nodes.values().all(|c| c.stage == CarryStage::Missing) {
            true => format!("slot {slot} is carried by nobody: {nodes}"),
            false => format!("slot {slot} is carried by {nodes}"),
        }
    }
}

impl Carry {
    /// Reads what is noted.
    pub(crate) fn load(&self, node: &Node, database: &Database) {
        let mut kept = lock(&self.kept);
        let file = database.options.data_dir.with_extension("carried");
        kept.cluster = node.parts.consensus.state().cluster_id.clone();
        kept.notes = notes::read(&file, &kept.cluster);
        kept.file = Some(file);
    }

    /// What is noted.
    pub fn notes(&self) -> Notes {
        lock(&self.kept).notes.clone()
    }

    /// What heartbeats tell.
    pub fn told(&self) -> BTreeMap<String, Carried> {
        lock(&self.told).clone()
    }

    /// Forgets everything: data are about to be rewound or copied, and slots are not.
    pub fn forget_all(&self) -> io::Result<()> {
        let mut kept = lock(&self.kept);
        if kept.notes.is_empty() {
            return Ok(());
        }
        kept.change(BTreeMap::clear)
    }

    fn change(&self, change: impl FnOnce(&mut Notes)) -> io::Result<()> {
        lock(&self.kept).change(change)
    }
}

impl Kept {
    fn change(&mut self, change: impl FnOnce(&mut Notes)) -> io::Result<()> {
        let mut notes = self.notes.clone();
        change(&mut notes);
        if let Some(file) = &self.file {
            notes::write(file, &self.cluster, &notes)?;
        }
        self.notes = notes;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all nodes say of the writer's slots.
pub fn carriers(node: &Node, document: &Document) -> BTreeMap<String, Carriers> {
    let state = node.parts.consensus.state();
    let word = match state.authority.writer == Some(node.parts.me) {
        true => node.slots.word(state.authority.term),
        false => writer_word(node, &state).unwrap_or_default(),
    };
    let mut all: BTreeMap<String, Carriers> = BTreeMap::new();
    for (name, peer) in heard(node) {
        for (slot, carried) in
            peer.filter(|_| Some(name) != state.authority.writer).into_iter().flatten()
        {
            if document.slots.contains_key(&slot) {
                let of = all.entry(slot.clone()).or_default();
                of.consumer = word.confirmed.get(&slot).copied();
                of.nodes.insert(name, carried);
            }
        }
    }
    all
}

/// What nodes say of what they carry that were heard lately.
fn heard(node: &Node) -> impl Iterator<Item = (NodeId, Option<BTreeMap<String, Carried>>)> {
    let now = clock::now();
    node.parts.health.peers().into_iter().map(move |(name, peer)| {
        let lately = peer.heard.is_some_and(|at| now.since(at) < CARRY_HEARD);
        (name, peer.status.filter(|_| lately).map(|s| s.carries))
    })
}

/// What the writer of the present term says of its slots, when that is another node.
fn writer_word(node: &Node, state: &State) -> Option<SlotsWord> {
    let writer = state.authority.writer?;
    let word = node.parts.health.status_of(writer)?.writer?;
    (word.term == state.authority.term).then_some(word.slots)
}

/// Runs until the process ends.
pub(crate) async fn run(node: Arc<Node>, database: Arc<Database>) {
    let mut carrier = Carrier {
        node,
        database,
        making: None,
        failed: BTreeMap::new(),
        rests: BTreeMap::new(),
        decoders: BTreeMap::new(),
    };
    loop {
        carrier.tick().await;
        tokio::time::sleep(CARRY_EVERY).await;
    }
}

/// A slot that is being made.
struct Making {
    name: String,
    task: JoinHandle<Result<Lsn, quorate_postgres::Error>>,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the loop keeps between looks.
struct Carrier {
    node: Arc<Node>,
    database: Arc<Database>,
    making: Option<Making>,
    /// What could not be made, and until when that is not tried again.
    failed: BTreeMap<String, (Moment, String)>,
    /// Until when a slot is left where it is.
    rests: BTreeMap<String, Moment>,
    /// By database. Kept only while this node follows.
    decoders: BTreeMap<String, Decoder>,
}

impl Carrier {
    async fn tick(&mut self) {
        let state = self.node.parts.consensus.state();
        let writes = match self.database.fact() {
            ServerFact::Standby => false,
            ServerFact::Writer(_) => true,
            ServerFact::Down | ServerFact::Starting | ServerFact::Hung => {
                return self.rest();
            }
        };
        let follows = !writes && *self.node.follows.borrow() == Some(state.authority.term);
        if !follows {
            self.rest();
        }
        if !writes && !follows {
            return;
        }
        if follows {
            // Before the slots are looked at, among which it is.
            self.take_made().await;
        } else {
            self.help(&state).await;
        }
        let Ok(seen) = self.database.admin.all_slots().await else { return };
        let (steps, told) = self.plan(&state, &seen, follows);
        if self
            .making
            .as_ref()
            .is_some_and(|m| told.get(&m.name).is_none_or(|c| c.stage != CarryStage::Making))
        {
            self.making = None;
        }
        *lock(&self.node.carry.told) = told;
        for step in steps {
            self.perform(&state, step).await;
        }
    }

    /// Ends what only a standby does that follows.
    fn rest(&mut self) {
        self.making = None;
        self.decoders.clear();
        lock(&self.node.carry.told).clear();
    }

    fn plan(
        &mut self,
        state: &State,
        seen: &Slots,
        follows: bool,
    ) -> (Vec<CarryStep>, BTreeMap<String, Carried>) {
        let now = clock::now();
        self.failed.retain(|_, (until, _)| *until > now);
        let failed = self.failed.iter().map(|(name, (_, why))| (name.clone(), why.clone()));
        let document = state.document();
        let me = self.node.parts.me;
        let word = writer_word(&self.node, state).filter(|_| follows);
        let disk = self.node.slots.disk().map_or(DiskLevel::Fine, |d| d.level);
        plan(&CarryView {
            me,
            authority: &state.authority,
            specs: &document.slots,
            records: &state.slots,
            word: word.as_ref(),
            slots: &seen.slots,
            notes: &self.node.carry.notes(),
            making: self.making.as_ref().map(|m| m.name.as_str()),
            failed: &failed.collect(),
            refusal: carries_nothing(&document, me, self.database.options.install.major),
            full: disk == DiskLevel::Full,
            replayed: seen.end,
        })
    }

    async fn perform(&mut self, state: &State, step: CarryStep) {
        match step {
            CarryStep::Make { name, origin } => self.make(state.authority.term, name, origin),
            CarryStep::Ready { name } => {
                if self.note_ready(&name, true) {
                    tracing::info!(slot = name, "a slot that is carried is ready");
                }
            }
            CarryStep::Unready { name } => {
                tracing::info!(slot = name, "a slot that is carried is not ready any more");
                self.note_ready(&name, false);
            }
            CarryStep::Advance { name, database, to } => {
                self.advance(state.authority.term, (&name, &database), to).await;
            }
            CarryStep::Drop { name, anew, because } => self.end(name, anew, because).await,
            CarryStep::Forget { name } => {
                self.note(|notes| notes.remove(&name));
            }
        }
    }

    fn note_ready(&self, name: &str, ready: bool) -> bool {
        self.note(|notes| {
            if let Some(note) = notes.get_mut(name) {
                note.ready = ready;
            }
        })
    }

    fn note<T>(&self, change: impl FnOnce(&mut Notes) -> T) -> bool {
        let done = self.node.carry.change(|notes| drop(change(notes)));
        if let Err(e) = &done {
            tracing::warn!(error = %e, "what is carried cannot be noted");
        }
        done.is_ok()
    }

    fn make(&mut self, term: Term, name: String, origin: Origin) {
        let note = CarryNote { term, origin: origin.clone(), ready: false };
        if !self.note(|notes| notes.insert(name.clone(), note)) {
            return;
        }
        let decoder = self.database.admin.decoder(&origin.database);
        let slot = name.clone();
        let task = tokio::spawn(async move { decoder.make(&slot, &origin).await });
        let told = Carried { stage: CarryStage::Making, at: None, why: String::new() };
        lock(&self.node.carry.told).insert(name.clone(), told);
        self.making = Some(Making { name, task });
    }

    /// Takes note of what became of the slot that is made.
    async fn take_made(&mut self) {
        let Some(mut making) = self.making.take() else { return };
        if !making.task.is_finished() {
            self.making = Some(making);
            return;
        }
        match (&mut making.task).await {
            Ok(Ok(from)) => tracing::info!(slot = making.name, %from, "a slot is carried"),
            Ok(Err(e)) => self.fail(&making.name, &e),
            Err(_) => {}
        }
    }

    fn fail(&mut self, name: &str, error: &quorate_postgres::Error) {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            why += &format!(": {cause}");
            source = cause.source();
        }
        tracing::info!(slot = name, why, "a slot cannot be carried now");
        self.failed.insert(name.to_owned(), (clock::now() + CARRY_RETRY, why));
    }

    async fn advance(&mut self, term: Term, (name, database): (&str, &str), to: Lsn) {
        let began = clock::now();
        if self.rests.get(name).is_some_and(|until| began < *until) {
            return;
        }
        let admin = &self.database.admin;
        let decoder =
            self.decoders.entry(database.to_owned()).or_insert_with(|| admin.decoder(database));
        let mut follows = self.node.follows.subscribe();
        tokio::select! {
            // Nobody is to wait for it who goes on with the slot.
            _ = follows.wait_for(|now| *now != Some(term)) => {}
            moved = decoder.advance(name, to) => if let Err(e) = moved {
                tracing::debug!(slot = name, error = %e, "a slot that is carried does not move");
            },
        }
        // It reads the log anew from where the oldest transaction began: most of the time it rests.
        let took = clock::now().since(began);
        self.rests.insert(name.to_owned(), clock::now() + took * CARRY_REST);
    }

    async fn end(&mut self, name: String, anew: bool, because: Because) {
        let ended = timeout(SLOT_END_WAIT, self.database.admin.end_slot(&name)).await;
        match ended {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => return self.fail(&name, &e),
            Err(_) => return tracing::info!(slot = name, "dropping a slot takes too long"),
        }
        tracing::info!(rule = because.rule, "{}", because.sentence);
        let carried = self.node.carry.notes().contains_key(&name);
        self.note(|notes| notes.remove(&name));
        if anew {
            if carried {
                // What invalidated it may do so again at once.
                let until = clock::now() + CARRY_RETRY;
                self.failed.insert(name, (until, because.sentence.clone()));
            }
            let me = self.node.parts.me;
            let text = format!("{me}: {}", because.sentence);
            let because = Because::new(&because.rule, text);
            let kind = "slot-anew".to_owned();
            if let Err(e) = self.node.propose(Change::Note { kind, because }).await {
                tracing::debug!(error = %e, "a word on slots could not be agreed");
            }
        }
    }

    /// On the writer: logs what runs while a standby makes a slot, which waits for that.
    async fn help(&self, state: &State) {
        if self.node.parts.gate.term() != Some(state.authority.term) {
            return;
        }
        let makes =
            |told: BTreeMap<String, Carried>| told.values().any(|c| c.stage == CarryStage::Making);
        let me = self.node.parts.me;
        let wanted = heard(&self.node).any(|(name, told)| name != me && told.is_some_and(makes));
        if wanted
            && let Ok(Err(e)) = timeout(CARRY_HELP_WAIT, self.database.admin.log_running()).await
        {
            tracing::debug!(error = %e, "what runs could not be logged");
        }
    }
}
