//! Judges the slots of a server: budgets, lag, what comes next, and who loses what by it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::pace::lasts;
use super::{
    Carried, CarryStage, DiskLevel, DiskStanding, DropPolicy, Kept, Level, Next, Pace, Slot,
    SlotSpec, SlotStanding,
};
use crate::because::Because;
use crate::lag::Ends;
use crate::limits::{SLOT_NEAR_PERCENT, SLOT_OVER_GRACE, SLOT_RELAX_PERCENT};
use crate::words::{bytes, seconds};
use crate::{Lsn, Moment};

/// What is known of a server's slots at a moment.
#[derive(Debug)]
pub struct SlotView<'a> {
    /// Its slots.
    pub slots: &'a [Slot],
    /// What the cluster document says of slots.
    pub specs: &'a BTreeMap<String, SlotSpec>,
    /// Where its log ends.
    pub end: Lsn,
    /// The disk of its log, where that is known.
    pub disk: Option<&'a DiskStanding>,
    /// Whether it is the writer: budgets are the writer's.
    pub writes: bool,
    /// What it carries for the day on which it writes.
    pub carried: &'a BTreeMap<String, Carried>,
    /// Whether automation is paused.
    pub paused: bool,
    /// Now, by the clock of this host.
    pub now: Moment,
}

/// Judges the slots of one server over time.
#[derive(Debug, Default)]
pub struct Judge {
    ends: Ends,
    slots: BTreeMap<String, Memory>,
}

/// What is remembered of a slot.
#[derive(Debug, Default)]
struct Memory {
    pace: Pace,
    near: bool,
    /// Since when it has kept more than it may.
    over: Option<Moment>,
}

/// How a slot stands to its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Budget {
    Within,
    Near,
    Over { since: Moment },
}

impl Memory {
    fn see(&mut self, retained: u64, spec: &SlotSpec, now: Moment) -> Budget {
        let share = |percent: u64| spec.max_bytes / 100 * percent;
        let near = if self.near { SLOT_RELAX_PERCENT } else { SLOT_NEAR_PERCENT };
        self.near = retained >= share(near);
        if retained <= spec.max_bytes {
            self.over = None;
            return if self.near { Budget::Near } else { Budget::Within };
        }
        Budget::Over { since: *self.over.get_or_insert(now) }
    }
}

impl Judge {
    /// Judges every slot. The names are of those that are to be dropped now, in this order: whatever
    /// keeps most beyond its budget goes first, as it gives most back.
    pub fn see(&mut self, view: &SlotView<'_>) -> (Vec<SlotStanding>, Vec<String>) {
        self.ends.note(view.end, view.now);
        self.slots.retain(|name, _| view.slots.iter().any(|s| s.name == *name));
        let mut due: Vec<(u64, String)> = Vec::new();
        let mut standings = Vec::with_capacity(view.slots.len());
        for slot in view.slots {
            let (standing, drop) = self.judge(slot, view);
            if let (true, Some(spec)) = (drop, &standing.spec) {
                let overrun = standing.retained.saturating_sub(spec.max_bytes);
                due.push((overrun, slot.name.clone()));
            }
            standings.push(standing);
        }
        due.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        (standings, due.into_iter().map(|(_, name)| name).collect())
    }

    fn judge(&mut self, slot: &Slot, view: &SlotView<'_>) -> (SlotStanding, bool) {
        let retained = retained(slot, view.end);
        let memory = self.slots.entry(slot.name.clone()).or_default();
        memory.pace.note(retained, view.now);
        let grows = memory.pace.grows();
        let spec = view.specs.get(&slot.name).filter(|_| !slot.temporary);
        let budget = spec.map(|spec| memory.see(retained, spec, view.now));
        let behind = slot.reached().map(|at| self.ends.behind(at, view.now));
        let left = spec.map(|s| s.max_bytes.saturating_sub(retained));
        let mut standing = SlotStanding {
            slot: slot.clone(),
            spec: spec.cloned(),
            retained,
            frees: frees(slot, view),
            lag_ms: behind.map(|b| b.time.as_millis() as u64),
            grows,
            budget_ms: left.and_then(|left| lasts(left, grows)),
            disk_ms: view.disk.and_then(|d| lasts(d.disk.free, grows)),
            level: Level::Fine,
            next: Next::Nothing,
            because: Because::default(),
        };
        let short = view.disk.is_some_and(|d| d.level > DiskLevel::Fine);
        let carried = view.carried.get(&slot.name).filter(|_| !view.writes);
        let drop = match budget {
            _ if carried.is_some_and(|c| c.stage != CarryStage::Missing) => {
                for_later(&mut standing, carried)
            }
            _ if slot.kept == Kept::Lost || slot.invalid.is_some() => lost(&mut standing),
            Some(Budget::Over { since }) if view.writes => {
                let waited = view.now.since(since) >= SLOT_OVER_GRACE || short;
                over(&mut standing, waited, view.paused)
            }
            Some(budget) => within(&mut standing, budget),
            None if slot.temporary || slot.synced => passing(&mut standing),
            None => unknown(&mut standing, short),
        };
        (standing, drop)
    }
}

fn retained(slot: &Slot, end: Lsn) -> u64 {
    match (slot.kept, slot.restart) {
        (Kept::Held | Kept::Unreserved, Some(from)) => end.bytes_since(from),
        (Kept::Nothing | Kept::Lost, _) | (_, None) => 0,
    }
}

/// What no other slot keeps.
fn frees(slot: &Slot, view: &SlotView<'_>) -> u64 {
    let others = view.slots.iter().filter(|s| s.name != slot.name);
    let most = others.map(|s| retained(s, view.end)).max().unwrap_or(0);
    retained(slot, view.end).saturating_sub(most)
}

impl SlotStanding {
    fn is(&mut self, rule: &str, level: Level, next: Next, text: String) -> bool {
        (self.level, self.next, self.because) = (level, next, Because::new(rule, text));
        false
    }

    /// `slot cdc keeps 48.0 MB of log`.
    fn keeps(&self) -> String {
        format!("slot {} keeps {} of log", self.slot.name, bytes(self.retained))
    }

    /// Who loses what when it ends.
    pub fn loses(&self) -> String {
        let what = match (&self.spec, self.slot.active_pid) {
            (Some(spec), _) => format!(
                "{} ({}) loses its place and has to begin anew from a copy",
                spec.consumer, spec.owner
            ),
            (None, Some(_)) => "whoever reads it now loses its place".to_owned(),
            (None, None) => "whoever made it loses its place; nobody reads it now".to_owned(),
        };
        match self.frees {
            0 => format!("{what}; that frees nothing yet, as another slot keeps the same log"),
            more => format!("{what}; that frees {} at the next checkpoint", bytes(more)),
        }
    }
}

fn until(ms: Option<u64>) -> Option<String> {
    ms.map(|ms| seconds(Duration::from_millis(ms)))
}

fn lost(standing: &mut SlotStanding) -> bool {
    let name = &standing.slot.name;
    let why = standing.slot.invalid.as_deref().unwrap_or("the log that it needs is gone");
    let text = match &standing.spec {
        Some(spec) => format!(
            "slot {name} cannot be used any more ({why}): {} ({}) has to begin anew from a copy; \
             drop it with `quorate slots drop {name}`",
            spec.consumer, spec.owner
        ),
        None => format!("slot {name}, which nobody adopted, cannot be used any more ({why})"),
    };
    let next = if standing.spec.is_some() { Next::Page } else { Next::Warn };
    standing.is("slot-08", Level::Lost, next, text)
}

/// Returns whether it is to be dropped now.
fn over(standing: &mut SlotStanding, waited: bool, paused: bool) -> bool {
    let Some(spec) = standing.spec.clone() else { return false };
    let (keeps, loses) = (standing.keeps(), standing.loses());
    let name = standing.slot.name.clone();
    let more = format!("{keeps}, and its budget is {}", bytes(spec.max_bytes));
    match spec.drop {
        DropPolicy::Never => {
            let text = format!(
                "{more}: its policy is `never`, so that writes stop when the disk is short; \
                 {} ({}) must read on",
                spec.consumer, spec.owner
            );
            standing.is("slot-06", Level::Over, Next::Page, text)
        }
        DropPolicy::Approval => {
            let text = format!(
                "{more}: a person decides (`quorate slots drop {name}`); if it is dropped, {loses}"
            );
            standing.is("slot-04", Level::Over, Next::Approve, text)
        }
        DropPolicy::Auto if paused => {
            let text = format!("{more}: it would be dropped, but automation is paused");
            standing.is("slot-05", Level::Over, Next::Approve, text)
        }
        DropPolicy::Auto => {
            let text = format!("{more}: it is dropped by its policy `auto`; {loses}");
            standing.is("slot-05", Level::Over, Next::Drop, text);
            waited
        }
    }
}

fn within(standing: &mut SlotStanding, budget: Budget) -> bool {
    let Some(spec) = standing.spec.clone() else { return false };
    let of = format!("{} of {}", standing.keeps(), bytes(spec.max_bytes));
    let full = until(standing.budget_ms).map_or_else(String::new, |t| format!(", full in {t}"));
    if matches!(budget, Budget::Near | Budget::Over { .. }) {
        let then = match spec.drop {
            DropPolicy::Never => "beyond that it goes on keeping log",
            DropPolicy::Approval => "beyond that a person decides whether it is dropped",
            DropPolicy::Auto => "beyond that it is dropped",
        };
        let text = format!("{of}{full}: {then}; {} ({}) reads it", spec.consumer, spec.owner);
        return standing.is("slot-03", Level::Near, Next::Warn, text);
    }
    if let (Some(max), Some(lag)) = (spec.max_lag_ms, standing.lag_ms)
        && lag > max
    {
        let (late, max) = (until(Some(lag)), until(Some(max)));
        let text = format!(
            "slot {}: {} ({}) is {} late, and {} were agreed; {of}{full}",
            standing.slot.name,
            spec.consumer,
            spec.owner,
            late.unwrap_or_default(),
            max.unwrap_or_default(),
        );
        return standing.is("slot-02", Level::Late, Next::Warn, text);
    }
    standing.is("slot-01", Level::Fine, Next::Nothing, format!("{of}{full}"))
}

fn passing(standing: &mut SlotStanding) -> bool {
    let why = match standing.slot.temporary {
        true => "it ends with its session",
        false => "PostgreSQL carries it here from the writer",
    };
    let text = format!("{}: {why}", standing.keeps());
    standing.is("slot-09", Level::Fine, Next::Nothing, text)
}

fn for_later(standing: &mut SlotStanding, carried: Option<&Carried>) -> bool {
    let stage = carried.map_or(CarryStage::Missing, |c| c.stage);
    let how = match stage {
        CarryStage::Ready => "its consumer goes on from it when this node writes",
        CarryStage::Made | CarryStage::Making | CarryStage::Missing => {
            "its consumer could not go on from it yet"
        }
    };
    let text = format!("{}, and is carried for the writer's: {how}", standing.keeps());
    standing.is("slot-09", Level::Fine, Next::Nothing, text)
}

fn unknown(standing: &mut SlotStanding, short: bool) -> bool {
    let name = &standing.slot.name;
    let read = if standing.slot.active_pid.is_some() { "somebody reads it" } else { "unread" };
    let grows = until(standing.disk_ms)
        .map_or_else(String::new, |t| format!("; alone it fills the disk in {t}"));
    let text = format!(
        "{}, and nobody answers for it ({read}){grows}: `quorate slots adopt {name}` or \
         `quorate slots drop {name}`; it is not dropped without a person",
        standing.keeps()
    );
    let next = if short { Next::Page } else { Next::Warn };
    standing.is("slot-07", Level::Unknown, next, text)
}

#[cfg(test)]
#[path = "judge/tests.rs"]
mod tests;
