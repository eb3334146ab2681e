//! Logical slots that standbys carry, so that a stream goes on when the writer moves.
//!
//! A standby keeps a slot of the writer's name, plugin and database. It decodes whole whatever commits
//! after its beginning; whatever committed before, its consumer must have from the writer. So it is
//! *ready* once the consumer has confirmed that far, and from then on it is moved to where the consumer
//! is, never beyond. Invariant: what a ready slot does not hand out any more, its consumer has.
//!
//! That a slot is there proves nothing: one that an earlier reign left on a node looks the same. A node
//! therefore notes on disk which ones it makes, in which term of another one's; and before it rewinds or
//! copies its data, or when it has written itself, that note is worth nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Kept, Kind, Slot, SlotRecord, SlotSpec, SlotsWord};
use crate::authority::{Authority, Reign};
use crate::because::Because;
use crate::document::{Document, Timing};
use crate::limits::{CARRY_MAJOR_MIN, CARRY_WHY_MAX};
use crate::{Lsn, NodeId, Term};

/// What a standby needs to make a slot like the writer's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Origin {
    /// What decodes.
    pub plugin: String,
    /// Of which database.
    pub database: String,
    /// Whether prepared transactions are handed out when they are prepared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub two_phase: bool,
}

impl Origin {
    /// That of a logical slot which can be used.
    pub fn of(slot: &Slot) -> Option<Self> {
        let usable = slot.kind == Kind::Logical && !slot.temporary && is_whole(slot);
        Some(Self {
            plugin: slot.plugin.clone()?,
            database: slot.database.clone()?,
            two_phase: slot.two_phase,
        })
        .filter(|_| usable)
    }
}

/// Whether what a slot needs is there.
fn is_whole(slot: &Slot) -> bool {
    slot.kept != Kept::Lost && slot.invalid.is_none()
}

/// What a node has on its disk of a slot that it makes as a standby: before that it had none of that
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The term of the writer that it followed then.
    pub term: Term,
    /// As it is made.
    pub origin: Origin,
    /// Its consumer had confirmed as much as it does not hand out.
    pub ready: bool,
}

impl Note {
    /// Whether it still says something of this node's slots: another node wrote when it was made, and
    /// this one has not written since, but for the reign of `now`.
    pub fn stands(&self, me: NodeId, reigns: &[Reign], now: Option<Term>) -> bool {
        // A reign that is forgotten may have been ours.
        let others = reigns.iter().any(|r| r.term == self.term && r.node != me);
        let since = reigns.iter().filter(|r| r.term > self.term && r.node == me);
        others && since.map(|r| Some(r.term)).all(|term| term == now)
    }
}

/// How far a standby is with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// There is none, or one that cannot be used: why, is said.
    Missing,
    /// It is being made: the writer logs which transactions run.
    Making,
    /// It is there, and its consumer has not come to its beginning.
    Made,
    /// Its consumer goes on from it when this node writes.
    Ready,
}

/// What a standby says of a slot of the writer's, with each heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Carried {
    /// How far it is.
    pub stage: Stage,
    /// What it hands out begins here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Lsn>,
    /// Why it is missing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Carried {
    fn missing(why: &str) -> Self {
        let end = why.char_indices().map(|(i, _)| i).nth(CARRY_WHY_MAX);
        let why = why[..end.unwrap_or(why.len())].to_owned();
        Self { stage: Stage::Missing, at: None, why }
    }

    /// `ready`, or what it lacks; `consumer`: how far the slot's consumer is.
    pub fn words(&self, consumer: Option<Lsn>) -> String {
        let at = |lsn: Option<Lsn>| lsn.map_or("an unknown position".to_owned(), |l| l.to_string());
        match self.stage {
            Stage::Ready => "ready".to_owned(),
            Stage::Made => format!(
                "not ready yet: it begins at {}, its consumer is at {}",
                at(self.at),
                at(consumer)
            ),
            Stage::Making => "not ready yet: it is being made".to_owned(),
            Stage::Missing => format!("not there: {}", self.why),
        }
    }
}

/// Why a node carries nothing; `None`: it does.
pub fn refusal(document: &Document, me: NodeId, major: u32) -> Option<&'static str> {
    let spec = document.node(me);
    if major < CARRY_MAJOR_MIN {
        Some("PostgreSQL decodes on standbys from version 16 on")
    } else if document.timing == Timing::Async {
        Some("with timing async the log that a consumer has read may be lost")
    } else if !spec.counts(document.timing) {
        Some("this node becomes no writer, or counts for no commit")
    } else if spec.feedback == Some(false) {
        Some("`feedback` is false for this node, and its writer removes rows that a slot needs")
    } else {
        None
    }
}

/// Whether a node's writer has to keep what slots on this node need (`hot_standby_feedback`).
pub fn needs_feedback(
    document: &Document,
    records: &BTreeMap<String, SlotRecord>,
    me: NodeId,
    major: u32,
) -> bool {
    let carried = |(name, spec): (&String, &SlotSpec)| {
        spec.is_carried() && records.get(name).is_some_and(|r| r.gap.is_none())
    };
    refusal(document, me, major).is_none() && document.slots.iter().any(carried)
}

/// What a node knows when it looks after what it carries.
#[derive(Debug)]
pub struct CarryView<'a> {
    /// This node.
    pub me: NodeId,
    /// Who writes, and who wrote.
    pub authority: &'a Authority,
    /// What the cluster document says of slots.
    pub specs: &'a BTreeMap<String, SlotSpec>,
    /// What is agreed of them.
    pub records: &'a BTreeMap<String, SlotRecord>,
    /// What the writer of this term said last.
    pub word: Option<&'a SlotsWord>,
    /// The slots of this server.
    pub slots: &'a [Slot],
    /// What this node noted.
    pub notes: &'a BTreeMap<String, Note>,
    /// The slot that is being made.
    pub making: Option<&'a str>,
    /// Why others could not be made lately; they are tried again when this is forgotten.
    pub failed: &'a BTreeMap<String, String>,
    /// Why this node carries nothing.
    pub refusal: Option<&'a str>,
    /// Whether its disk has no room for log that a slot keeps.
    pub full: bool,
    /// How far it has replayed.
    pub replayed: Lsn,
}

/// One thing to do with a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CarryStep {
    /// Make it.
    Make { name: String, origin: Origin },
    /// Note that it is ready.
    Ready { name: String },
    /// Note that it is not.
    Unready { name: String },
    /// Move it to where its consumer is.
    Advance { name: String, database: String, to: Lsn },
    /// Drop it, and forget what was noted. `anew`: it is made again.
    Drop { name: String, anew: bool, because: Because },
    /// Forget what was noted.
    Forget { name: String },
}

/// What a node does next with the slots that it carries, and what it says of them.
pub fn plan(view: &CarryView<'_>) -> (Vec<CarryStep>, BTreeMap<String, Carried>) {
    let (mut steps, mut told) = (Vec::new(), BTreeMap::new());
    if view.authority.writer == Some(view.me) {
        return (of_writer(view), told);
    }
    // Without the writer's word nothing changes: what this node knows may be old.
    let Some(word) = view.word else { return (steps, told) };
    let names: BTreeSet<&String> = view.specs.keys().chain(view.notes.keys()).collect();
    for name in names {
        let (step, carried) = of_standby(view, word, name);
        if let Some(carried) = carried {
            told.insert(name.clone(), carried);
        }
        // One at a time: each waits for the writer.
        let makes = |s: &CarryStep| matches!(s, CarryStep::Make { .. });
        steps.extend(step.filter(|s| !makes(s) || !steps.iter().any(makes)));
    }
    (steps, told)
}

/// A slot that this node carried is the writer's now, or nobody's.
fn of_writer(view: &CarryView<'_>) -> Vec<CarryStep> {
    let reign = view.authority.reign();
    let step = |(name, note): (&String, &Note)| match view.records.get(name) {
        // It has not been judged.
        Some(record) if record.gap.is_none() && record.term < view.authority.term => None,
        Some(_) => Some(CarryStep::Forget { name: name.clone() }),
        // The former writer had none any more. One that was made since is another one.
        None => {
            let ours = view.slots.iter().find(|s| s.name == *name);
            let old = ours.is_some_and(|s| s.restart < reign.and_then(|r| r.fork));
            let stands = note.stands(view.me, &view.authority.reigns, Some(view.authority.term));
            Some(match old && stands {
                true => ends(name, "the former writer had none of that name any more"),
                false => CarryStep::Forget { name: name.clone() },
            })
        }
    };
    view.notes.iter().filter_map(step).collect()
}

fn ends(name: &str, why: &str) -> CarryStep {
    let text = format!("slot {name}, which this node carried, is dropped: {why}");
    let because = Because::new("slot-13", text);
    CarryStep::Drop { name: name.to_owned(), anew: false, because }
}

fn anew(name: &str, why: &str) -> CarryStep {
    let text = format!("slot {name} on this node is dropped and made anew: {why}");
    let because = Because::new("slot-14", text);
    CarryStep::Drop { name: name.to_owned(), anew: true, because }
}

fn of_standby(
    view: &CarryView<'_>,
    word: &SlotsWord,
    name: &str,
) -> (Option<CarryStep>, Option<Carried>) {
    let slot = view.slots.iter().find(|s| s.name == name);
    let note = view.notes.get(name);
    let stands = note.filter(|n| n.stands(view.me, &view.authority.reigns, None));
    // What this node did not make it does not end for want of a use.
    let over = |why: &str| match (slot, stands) {
        (Some(_), Some(_)) => Some(ends(name, why)),
        (_, _) => note.map(|_| CarryStep::Forget { name: name.to_owned() }),
    };
    let Some(spec) = view.specs.get(name) else {
        return (over("nobody has adopted it any more"), None);
    };
    if !spec.is_carried() {
        return (over("`carry` is false for it"), None);
    }
    let record = match view.records.get(name) {
        None => return (over("the writer has none of that name any more"), None),
        Some(record) if record.gap.is_some() => return (over("its stream has ended"), None),
        Some(record) => record,
    };
    // Not before the writer has said that it has it, whole: until then this one may be the better.
    let agreed = record.term == view.authority.term && Some(record.node) == view.authority.writer;
    let origin = word.carry.get(name).filter(|_| agreed && record.since.is_none());
    let Some(origin) = origin else { return (None, None) };
    if let Some(why) = view.refusal {
        return (over(why), Some(Carried::missing(why)));
    }
    if view.making == Some(name) {
        return (None, Some(Carried { stage: Stage::Making, at: None, why: String::new() }));
    }
    let again = |why: &str| (Some(anew(name, why)), Some(Carried::missing(why)));
    let blocked = |why: &str| (None, Some(Carried::missing(why)));
    let Some(slot) = slot else {
        return match view.failed.get(name) {
            Some(why) => blocked(why),
            None if view.full => blocked("the disk of this node is short of room"),
            None if view.making.is_some() => blocked("another slot is being made first"),
            None => {
                let make = CarryStep::Make { name: name.to_owned(), origin: origin.clone() };
                (Some(make), Some(Carried::missing("it is made next")))
            }
        };
    };
    match stands {
        _ if slot.synced => blocked("PostgreSQL carries it by itself"),
        _ if slot.active_pid.is_some() => blocked("somebody uses the slot of that name here"),
        _ if slot.kind == Kind::Physical || slot.temporary => {
            blocked("another slot here has that name")
        }
        None => again("it is left from an earlier reign, and lacks what came since"),
        _ if !is_whole(slot) => {
            again(slot.invalid.as_deref().unwrap_or("log that it needs is gone"))
        }
        Some(note) if Origin::of(slot).as_ref() != Some(origin) || note.origin != *origin => {
            again("the writer's is of another plugin, database or kind")
        }
        Some(_) if view.full => (
            Some(ends(name, "the disk of this node is short of room")),
            Some(Carried::missing("the disk of this node is short of room")),
        ),
        Some(note) => moved(view, word, (name, slot), note),
    }
}

/// Whether a slot is ready, and where it goes.
fn moved(
    view: &CarryView<'_>,
    word: &SlotsWord,
    (name, slot): (&str, &Slot),
    note: &Note,
) -> (Option<CarryStep>, Option<Carried>) {
    let consumer = word.confirmed.get(name).copied();
    let (at, owned) = (slot.confirmed, name.to_owned());
    let ready = at.is_some() && at <= consumer;
    let to = consumer.map(|c| c.min(view.replayed)).filter(|to| Some(*to) > at);
    let step = match (ready, note.ready, to) {
        (true, false, _) => Some(CarryStep::Ready { name: owned }),
        (false, true, _) => Some(CarryStep::Unready { name: owned }),
        (true, true, Some(to)) => {
            let database = note.origin.database.clone();
            Some(CarryStep::Advance { name: owned, database, to })
        }
        (true, true, None) | (false, false, _) => None,
    };
    let stage = if ready && note.ready { Stage::Ready } else { Stage::Made };
    (step, Some(Carried { stage, at, why: String::new() }))
}

/// Whether a new writer's consumer goes on from a slot that it carried: `Err` says why not.
/// `consumer`: how far the consumer was, as the former writer said last.
pub(super) fn goes_on(
    slot: &Slot,
    note: &Note,
    consumer: Option<Lsn>,
    since: &[&Reign],
) -> Result<(), String> {
    if !is_whole(slot) {
        let why = slot.invalid.as_deref().unwrap_or("log that it needs is gone");
        return Err(format!("it was invalidated ({why})"));
    }
    if Origin::of(slot).as_ref() != Some(&note.origin) {
        return Err("it is another one than was made".to_owned());
    }
    let Some(at) = slot.confirmed else { return Err("it was being made".to_owned()) };
    if !note.ready || consumer.is_some_and(|c| c < at) {
        return Err(format!("it was not ready, and begins at {at}"));
    }
    // A consumer that is beyond this log's beginning would skip what is written there now.
    if since.iter().any(|r| r.lossy || r.lost_bytes > 0) {
        return Err("log that its consumer may have read can have been lost with it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
#[path = "carry/tests.rs"]
mod tests;
