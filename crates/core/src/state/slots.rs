//! What is agreed of adopted slots.

use super::{Applied, State, WallMillis};
use crate::because::Because;
use crate::slots::{GapCause, SlotChange, SlotRecord};
use crate::{NodeId, Term};

impl State {
    pub(super) fn change_slot(&mut self, at: WallMillis, change: &SlotChange) -> Applied {
        match change {
            SlotChange::Seen { name, term, node, confirmed, carried } => {
                self.check_slot(name, *term, Some(*node))?;
                if self.slots.get(name).is_some_and(|r| r.gap.is_some()) {
                    return Err(format!("what slot {name} lacks is not acknowledged yet"));
                }
                let record = SlotRecord {
                    term: *term,
                    node: *node,
                    confirmed: *confirmed,
                    gap: None,
                    since: None,
                };
                self.slots.insert(name.clone(), record);
                if let Some(because) = carried {
                    self.note(at, "slot-carried", because.clone());
                }
                Ok(())
            }
            SlotChange::Lost { name, term, node, gap } => {
                self.check_slot(name, *term, Some(*node))?;
                let kind = match gap.cause {
                    GapCause::Moved | GapCause::LeftBehind | GapCause::Unready => "slot-lost",
                    GapCause::Budget | GapCause::Person => "slot-dropped",
                };
                let record = SlotRecord {
                    term: *term,
                    node: *node,
                    confirmed: gap.confirmed,
                    gap: Some(gap.clone()),
                    since: None,
                };
                self.slots.insert(name.clone(), record);
                self.note(at, kind, gap.because.clone());
                Ok(())
            }
            SlotChange::Gone { name, term } => {
                self.check_slot(name, *term, None)?;
                if self.slots.remove(name).is_none() {
                    return Err(format!("slot {name} was not known"));
                }
                let text = format!("slot {name} was dropped, by others than Quorate");
                self.note(at, "slot-gone", Because::new("slot-11", text));
                Ok(())
            }
            SlotChange::Acknowledge { name } => self.acknowledge_slot(at, name),
        }
    }

    /// Only the present writer speaks of slots, and only of adopted ones.
    fn check_slot(&self, name: &str, term: Term, node: Option<NodeId>) -> Applied {
        let authority = &self.authority;
        let writer = node.is_none_or(|node| authority.writer == Some(node));
        if authority.term != term || !writer {
            return Err(format!("not the word of the writer of term {}", authority.term));
        }
        let adopted = self.documents.back().is_some_and(|v| v.document.slots.contains_key(name));
        if adopted { Ok(()) } else { Err(format!("nobody has adopted slot {name}")) }
    }

    fn acknowledge_slot(&mut self, at: WallMillis, name: &str) -> Applied {
        let record = self.slots.get_mut(name);
        let Some((record, gap)) = record.and_then(|r| r.gap.take().map(|gap| (r, gap))) else {
            return Err(format!("nothing of slot {name} is to be acknowledged"));
        };
        // Where a new one begins is known, so that the old one is not taken for it.
        record.since = Some(gap.resumes.or(gap.confirmed).unwrap_or_default());
        let text = format!("what slot {name} lacks is acknowledged: a new one may be read");
        self.note(at, "slot-acknowledged", Because::new("op-slots", text));
        Ok(())
    }

    /// Forgets slots that are not adopted any more.
    pub(super) fn forget_slots(&mut self) {
        let Some(version) = self.documents.back() else { return };
        self.slots.retain(|name, _| version.document.slots.contains_key(name));
    }
}
