//! Streams that broke: what the cluster agrees on of adopted logical slots, so that none of them
//! pretends to go on where it cannot.
//!
//! A logical slot lives on one server. The next writer goes on with one that it carried as a standby
//! ([`super::carry`]) or PostgreSQL did. Otherwise there is none, or one that is not whole: left there by
//! an earlier reign, it looks usable and is not, as rows of the catalog that it needs may be gone. What
//! its consumer lacks is then told until somebody acknowledges it; until then a slot of that name is not
//! read through the gateway.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::carry::{self, Note};
use super::{Kind, Slot, SlotSpec};
use crate::authority::Reign;
use crate::because::Because;
use crate::limits::FORCED_EPOCH_TERMS;
use crate::words::bytes;
use crate::{Lsn, NodeId, Term};

/// What is agreed of one adopted logical slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecord {
    /// The reign that saw it last.
    pub term: Term,
    /// The writer of that reign.
    pub node: NodeId,
    /// Its consumer has everything before this, and perhaps more.
    pub confirmed: Option<Lsn>,
    /// Its stream broke, and nobody has acknowledged that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// It broke before, and was acknowledged: a slot that begins before this is the old one, and none
    /// has been seen that begins after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Lsn>,
}

/// How a stream broke, and what its consumer lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How.
    pub cause: Cause,
    /// Its consumer has everything before this; `None`: not known.
    pub confirmed: Option<Lsn>,
    /// Where a new slot begins at the earliest.
    pub resumes: Option<Lsn>,
    /// Why, and who has to do what.
    pub because: Because,
}

/// How a stream broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The writer moved, and the slot stayed behind.
    Moved,
    /// A slot of that name is on the new writer, from an earlier reign: it lacks what came between.
    LeftBehind,
    /// The new writer carried it, and could not show that it is whole.
    Unready,
    /// It kept more than its budget, and was dropped.
    Budget,
    /// A person dropped it.
    Person,
}

/// A change of what is agreed of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotChange {
    /// The writer has it, and it is whole. `carried`: it was made on this node while another one wrote.
    Seen {
        name: String,
        term: Term,
        node: NodeId,
        confirmed: Option<Lsn>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        carried: Option<Because>,
    },
    /// Its stream broke, or is about to be ended.
    Lost { name: String, term: Term, node: NodeId, gap: Gap },
    /// It was dropped on its writer, by others than Quorate.
    Gone { name: String, term: Term },
    /// Its owner knows what is lost.
    Acknowledge { name: String },
}

/// What the writer's node knows when it compares what is agreed with what is there.
#[derive(Debug)]
pub struct GapView<'a> {
    /// This node, which is the writer.
    pub me: NodeId,
    /// Its term.
    pub term: Term,
    /// All reigns, this one last.
    pub reigns: &'a [Reign],
    /// What the cluster document says of slots.
    pub specs: &'a BTreeMap<String, SlotSpec>,
    /// What is agreed.
    pub records: &'a BTreeMap<String, SlotRecord>,
    /// What is there.
    pub slots: &'a [Slot],
    /// How far consumers were, as the former writer said last.
    pub remembered: &'a BTreeMap<String, Lsn>,
    /// What this node noted of slots that it carried.
    pub notes: &'a BTreeMap<String, Note>,
}

/// One thing that is to be agreed next.
pub type Step = SlotChange;

/// What the cluster is to be told of slots now.
pub fn look(view: &GapView<'_>) -> Vec<Step> {
    view.specs.iter().filter_map(|(name, spec)| of_one(view, name, spec)).collect()
}

/// Slots of which it is agreed that they end, by a policy, by a person or because they are not whole
/// where they were carried, and that are still there. One of the same name that was made since is
/// another one.
pub fn ending<'a>(records: &BTreeMap<String, SlotRecord>, slots: &'a [Slot]) -> Vec<&'a Slot> {
    let ends = |slot: &&Slot| {
        let gap = records.get(&slot.name).and_then(|r| r.gap.as_ref());
        gap.is_some_and(|gap| {
            matches!(gap.cause, Cause::Budget | Cause::Person | Cause::Unready)
                && slot.restart < gap.resumes
        })
    };
    slots.iter().filter(|s| !s.temporary).filter(ends).collect()
}

fn of_one(view: &GapView<'_>, name: &str, spec: &SlotSpec) -> Option<Step> {
    let usable = |s: &&Slot| s.name == name && s.kind == Kind::Logical && !s.temporary;
    let slot = view.slots.iter().find(usable);
    let record = view.records.get(name);
    let see = |slot: &Slot, carried: Option<Because>| {
        Some(SlotChange::Seen {
            name: name.to_owned(),
            term: view.term,
            node: view.me,
            confirmed: slot.confirmed,
            carried,
        })
    };
    let seen = |slot: &Slot| see(slot, None);
    let note = view.notes.get(name);
    let note = note.filter(|n| n.stands(view.me, view.reigns, Some(view.term)));
    match (record, slot) {
        (None, None) => None,
        // The former writer's was dropped: what was carried of it is about to be.
        (None, Some(slot)) if note.is_some() && slot.restart < fork(view) => None,
        (None, Some(slot)) => seen(slot),
        (Some(record), _) if record.gap.is_some() => None,
        (Some(record), Some(slot)) => match record.since {
            Some(since) if slot.restart < Some(since) => {
                lost(view, name, spec, record, Cause::LeftBehind, "")
            }
            Some(_) => seen(slot),
            None if record.term == view.term => None,
            None if slot.synced && slot.invalid.is_none() || stayed(view, record) => seen(slot),
            // Its consumer was quicker than we are.
            None if slot.restart >= fork(view) => lost(view, name, spec, record, Cause::Moved, ""),
            None => match note.map(|note| whole(view, record, slot, note)) {
                Some(Ok(())) => see(slot, Some(carried(view, name, spec, record))),
                Some(Err(why)) => lost(view, name, spec, record, Cause::Unready, &why),
                None => lost(view, name, spec, record, Cause::LeftBehind, ""),
            },
        },
        (Some(record), None) if record.since.is_some() => None,
        (Some(record), None) if stayed(view, record) => {
            Some(SlotChange::Gone { name: name.to_owned(), term: view.term })
        }
        (Some(record), None) => lost(view, name, spec, record, Cause::Moved, ""),
    }
}

/// Whether a slot that was carried here has all that its consumer lacks.
fn whole(view: &GapView<'_>, record: &SlotRecord, slot: &Slot, note: &Note) -> Result<(), String> {
    let since: Vec<&Reign> = view.reigns.iter().filter(|r| r.term > record.term).collect();
    if view.term.0.saturating_sub(record.term.0) >= FORCED_EPOCH_TERMS {
        return Err("log that its consumer may have read was given up by a person".to_owned());
    }
    carry::goes_on(slot, note, view.remembered.get(&slot.name).copied(), &since)
}

fn carried(view: &GapView<'_>, name: &str, spec: &SlotSpec, record: &SlotRecord) -> Because {
    let (from, me) = (record.node, view.me);
    let text = format!(
        "slot {name} was carried from {from} to {me}: {} ({}) goes on where it was",
        spec.consumer, spec.owner
    );
    Because::new("slot-12", text)
}

/// Whether no other server has written since the record was made.
fn stayed(view: &GapView<'_>, record: &SlotRecord) -> bool {
    let later = view.reigns.iter().filter(|r| r.term > record.term);
    record.node == view.me && later.map(|r| r.node).all(|node| node == view.me)
}

fn fork(view: &GapView<'_>) -> Option<Lsn> {
    view.reigns.iter().rev().find(|r| r.term == view.term)?.fork
}

fn lost(
    view: &GapView<'_>,
    name: &str,
    spec: &SlotSpec,
    record: &SlotRecord,
    cause: Cause,
    why: &str,
) -> Option<Step> {
    let confirmed = record.confirmed.max(view.remembered.get(name).copied());
    let resumes = fork(view);
    let me = view.me;
    let how = match cause {
        Cause::LeftBehind => format!(
            "slot {name} on {me} is left from an earlier reign and cannot be gone on with (drop it \
             with `quorate slots drop {name}`)"
        ),
        Cause::Unready => format!(
            "slot {name} was lost when the writer moved from {} to {me}, which carried it: {why}",
            record.node
        ),
        Cause::Moved | Cause::Budget | Cause::Person => {
            format!("slot {name} was lost when the writer moved from {} to {me}", record.node)
        }
    };
    let because = Because::new("slot-10", format!("{how}: {}", lacks(spec, confirmed, resumes)));
    let gap = Gap { cause, confirmed, resumes, because };
    Some(SlotChange::Lost { name: name.to_owned(), term: view.term, node: me, gap })
}

/// What a consumer lacks, and what its owner does.
fn lacks(spec: &SlotSpec, confirmed: Option<Lsn>, resumes: Option<Lsn>) -> String {
    let SlotSpec { owner, consumer, .. } = spec;
    let from = resumes.map_or("a position not known yet".to_owned(), |at| at.to_string());
    let lacks = match confirmed {
        Some(at) if Some(at) >= resumes => format!(
            "{consumer} ({owner}) had confirmed all that was kept of the former log (up to {at}), \
             and what is committed before there is a new slot is in no stream"
        ),
        Some(at) => format!(
            "{consumer} ({owner}) had confirmed up to {at}, a new slot begins at {from} at the \
             earliest, and what was committed in between is in no stream"
        ),
        None => format!(
            "how far {consumer} ({owner}) was is not known, and a new slot begins at {from} at the \
             earliest"
        ),
    };
    format!("{lacks}: begin anew from a copy, then `quorate slots ack`")
}

impl Gap {
    /// For a slot that is dropped on purpose, by its policy or by a person.
    ///
    /// Of a stream that had broken `before` its consumer lacks what it lacked already.
    pub fn dropped(
        (name, spec): (&str, &SlotSpec),
        slot: &Slot,
        end: Lsn,
        cause: Cause,
        before: Option<&Gap>,
    ) -> Self {
        let retained = slot.restart.map_or(0, |at| end.bytes_since(at));
        let (kept, budget) = (bytes(retained), bytes(spec.max_bytes));
        let (rule, who) = match cause {
            Cause::Person => ("op-slots", "a person drops it".to_owned()),
            Cause::Budget | Cause::Moved | Cause::LeftBehind | Cause::Unready => {
                ("slot-05", "it is dropped by its policy `auto`".to_owned())
            }
        };
        let confirmed = before.map_or(slot.confirmed.or(slot.restart), |gap| gap.confirmed);
        let lacks = lacks(spec, confirmed, Some(end));
        let text = format!("slot {name} keeps {kept} of log (budget {budget}): {who}; {lacks}");
        Self { cause, confirmed, resumes: Some(end), because: Because::new(rule, text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Position;
    use crate::slots::Kept;
    use crate::{TimelineId, limits};

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn reigns(of: &[(u64, &str, u64)]) -> Vec<Reign> {
        let reign = |(term, name, fork): &(u64, &str, u64)| Reign {
            term: Term(*term),
            node: node(name),
            timeline: TimelineId(u32::try_from(*term).unwrap()),
            elected_at: Position { wal_term: Term(*term - 1), lsn: Lsn(*fork) },
            fork: Some(Lsn(*fork)),
            next_xid: None,
            lost_bytes: 0,
            lossy: false,
        };
        of.iter().map(reign).collect()
    }

    fn spec() -> SlotSpec {
        SlotSpec {
            owner: "data team".to_owned(),
            consumer: "the warehouse".to_owned(),
            max_bytes: limits::SLOT_BUDGET_MIN,
            ..SlotSpec::default()
        }
    }

    fn slot(restart: u64) -> Slot {
        Slot {
            name: "cdc".to_owned(),
            kind: Kind::Logical,
            restart: Some(Lsn(restart)),
            confirmed: Some(Lsn(restart + 5)),
            kept: Kept::Held,
            ..Slot::default()
        }
    }

    fn record(term: u64, name: &str) -> SlotRecord {
        let (term, node) = (Term(term), node(name));
        SlotRecord { term, node, confirmed: Some(Lsn(40)), gap: None, since: None }
    }

    /// What n2 finds, which writes in term 5 from 100 on.
    fn found(record: Option<SlotRecord>, slot: Option<Slot>, past: &[(u64, &str, u64)]) -> String {
        let reigns = reigns(&[past, &[(5, "n2", 100)]].concat());
        let specs = BTreeMap::from([("cdc".to_owned(), spec())]);
        let records = record.map(|r| ("cdc".to_owned(), r)).into_iter().collect();
        let steps = look(&GapView {
            me: node("n2"),
            term: Term(5),
            reigns: &reigns,
            specs: &specs,
            records: &records,
            slots: slot.as_slice(),
            remembered: &BTreeMap::from([("cdc".to_owned(), Lsn(70))]),
            notes: &BTreeMap::new(),
        });
        match steps.as_slice() {
            [] => "nothing".to_owned(),
            [SlotChange::Seen { confirmed, .. }] => format!("seen {}", confirmed.unwrap()),
            [SlotChange::Lost { gap, .. }] => {
                assert_eq!((gap.confirmed, gap.resumes), (Some(Lsn(70)), Some(Lsn(100))));
                let said = &gap.because.sentence;
                for part in ["0/46", "0/64", "the warehouse (data team)", "quorate slots ack"] {
                    assert!(said.contains(part), "{part} in {said}");
                }
                format!("{:?}", gap.cause)
            }
            [SlotChange::Gone { .. }] => "gone".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_slot_that_stayed_behind_is_a_gap() {
        let past = [(4, "n1", 50)];
        assert_eq!(found(None, None, &past), "nothing", "adopted before it is made");
        assert_eq!(found(None, Some(slot(110)), &past), "seen 0/73");
        assert_eq!(found(Some(record(4, "n1")), None, &past), "Moved");
        let again = Some(slot(110));
        assert_eq!(
            found(Some(record(4, "n1")), again, &past),
            "Moved",
            "made anew by its consumer"
        );
    }

    #[test]
    fn one_left_from_an_earlier_reign_does_not_pretend() {
        let past = [(3, "n2", 10), (4, "n1", 50)];
        assert_eq!(found(Some(record(3, "n2")), Some(slot(20)), &past), "LeftBehind");
        assert_eq!(found(Some(record(4, "n1")), Some(slot(20)), &past), "LeftBehind");
        // Once acknowledged, the old one is not taken for a new one.
        let acknowledged = SlotRecord { since: Some(Lsn(100)), ..record(5, "n2") };
        let old = found(Some(acknowledged.clone()), Some(slot(20)), &past);
        assert_eq!(old, "LeftBehind");
        assert_eq!(found(Some(acknowledged.clone()), Some(slot(110)), &past), "seen 0/73");
        assert_eq!(found(Some(acknowledged), None, &past), "nothing", "it was never made anew");
    }

    #[test]
    fn one_that_was_carried_or_never_moved_is_whole() {
        let moved = [(4, "n1", 50)];
        let synced = Slot { synced: true, ..slot(60) };
        assert_eq!(found(Some(record(4, "n1")), Some(synced.clone()), &moved), "seen 0/41");
        let invalid = Slot { invalid: Some("wal_removed".to_owned()), ..synced };
        assert_eq!(found(Some(record(4, "n1")), Some(invalid), &moved), "LeftBehind");
        let stayed = [(4, "n2", 50)];
        assert_eq!(found(Some(record(4, "n2")), Some(slot(60)), &stayed), "seen 0/41");
        assert_eq!(
            found(Some(record(5, "n2")), Some(slot(60)), &moved),
            "nothing",
            "known already"
        );
        assert_eq!(found(Some(record(5, "n2")), None, &moved), "gone");
    }

    #[test]
    fn what_is_agreed_to_end_ends_and_nothing_of_the_same_name() {
        let gap = |cause| Gap::dropped(("cdc", &spec()), &slot(20), Lsn(100), cause, None);
        let records = |cause| {
            let record = SlotRecord { gap: Some(gap(cause)), ..record(5, "n2") };
            BTreeMap::from([("cdc".to_owned(), record)])
        };
        for cause in [Cause::Budget, Cause::Person] {
            assert_eq!(ending(&records(cause), &[slot(20)]), [&slot(20)]);
            assert!(ending(&records(cause), &[slot(100)]).is_empty(), "made anew");
        }
        assert!(ending(&records(Cause::Moved), &[slot(20)]).is_empty());
        let before = Gap { confirmed: None, ..gap(Cause::Moved) };
        let again = Gap::dropped(("cdc", &spec()), &slot(20), Lsn(9), Cause::Budget, Some(&before));
        assert_eq!(again.confirmed, None, "what is not known does not become known");
        assert!(ending(&BTreeMap::new(), &[slot(20)]).is_empty());
    }

    #[test]
    fn a_gap_stands_until_it_is_acknowledged() {
        let gap = Gap {
            cause: Cause::Moved,
            confirmed: None,
            resumes: None,
            because: Because::default(),
        };
        let record = SlotRecord { gap: Some(gap), ..record(4, "n1") };
        for slot in [None, Some(slot(20)), Some(slot(110))] {
            assert_eq!(found(Some(record.clone()), slot, &[(4, "n1", 50)]), "nothing");
        }
    }
}
