use super::*;
use crate::authority::Phase;
use crate::report::Position;
use crate::slots::{GapView, SlotChange, look};
use crate::{TimelineId, limits};
use proptest::prelude::*;

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn reign(term: u64, writer: &str, fork: u64) -> Reign {
    Reign {
        term: Term(term),
        node: node(writer),
        timeline: TimelineId(u32::try_from(term).unwrap()),
        elected_at: Position { wal_term: Term(term - 1), lsn: Lsn(fork) },
        fork: Some(Lsn(fork)),
        next_xid: None,
        lost_bytes: 0,
        lossy: false,
    }
}

fn authority(reigns: Vec<Reign>) -> Authority {
    let last = reigns.last().unwrap().clone();
    Authority {
        term: last.term,
        phase: Phase::Serving,
        writer: Some(last.node),
        reigns,
        ..Authority::default()
    }
}

fn spec() -> SlotSpec {
    SlotSpec {
        owner: "data team".to_owned(),
        consumer: "the warehouse".to_owned(),
        max_bytes: limits::SLOT_BUDGET_MIN,
        ..SlotSpec::default()
    }
}

fn origin() -> Origin {
    Origin { plugin: "pgoutput".to_owned(), database: "shop".to_owned(), two_phase: false }
}

fn slot(at: u64) -> Slot {
    Slot {
        name: "cdc".to_owned(),
        kind: Kind::Logical,
        plugin: Some("pgoutput".to_owned()),
        database: Some("shop".to_owned()),
        restart: Some(Lsn(at.saturating_sub(5))),
        confirmed: Some(Lsn(at)),
        kept: Kept::Held,
        ..Slot::default()
    }
}

fn note(term: u64, ready: bool) -> Note {
    Note { term: Term(term), origin: origin(), ready }
}

fn record(term: u64, writer: &str) -> SlotRecord {
    let confirmed = Some(Lsn(40));
    SlotRecord { term: Term(term), node: node(writer), confirmed, gap: None, since: None }
}

fn word(consumer: u64) -> SlotsWord {
    SlotsWord { confirmed: one(Lsn(consumer)), carry: one(origin()), ..SlotsWord::default() }
}

fn one<T>(of: T) -> BTreeMap<String, T> {
    BTreeMap::from([("cdc".to_owned(), of)])
}

/// n2, which follows n1 in term 5, its reign in term 4 behind it, and has replayed up to 200.
struct Standby {
    authority: Authority,
    specs: BTreeMap<String, SlotSpec>,
    records: BTreeMap<String, SlotRecord>,
    word: Option<SlotsWord>,
    slots: Vec<Slot>,
    notes: BTreeMap<String, Note>,
    making: Option<&'static str>,
    failed: BTreeMap<String, String>,
    refusal: Option<&'static str>,
    full: bool,
}

impl Standby {
    fn new(slots: Vec<Slot>, notes: BTreeMap<String, Note>) -> Self {
        Self {
            authority: authority(vec![reign(4, "n2", 20), reign(5, "n1", 30)]),
            specs: one(spec()),
            records: one(record(5, "n1")),
            word: Some(word(150)),
            slots,
            notes,
            making: None,
            failed: BTreeMap::new(),
            refusal: None,
            full: false,
        }
    }

    fn carrying(at: u64, ready: bool) -> Self {
        Self::new(vec![slot(at)], one(note(5, ready)))
    }

    fn plan(&self) -> (Vec<CarryStep>, BTreeMap<String, Carried>) {
        plan(&CarryView {
            me: node("n2"),
            authority: &self.authority,
            specs: &self.specs,
            records: &self.records,
            word: self.word.as_ref(),
            slots: &self.slots,
            notes: &self.notes,
            making: self.making,
            failed: &self.failed,
            refusal: self.refusal,
            full: self.full,
            replayed: Lsn(200),
        })
    }

    /// The one thing that is done, in short.
    fn does(&self) -> String {
        match self.plan().0.as_slice() {
            [] => "nothing".to_owned(),
            [CarryStep::Make { .. }] => "make".to_owned(),
            [CarryStep::Ready { .. }] => "ready".to_owned(),
            [CarryStep::Unready { .. }] => "unready".to_owned(),
            [CarryStep::Advance { to, .. }] => format!("advance to {}", to.0),
            [CarryStep::Drop { because, .. }] => format!("drop {}", because.rule),
            [CarryStep::Forget { .. }] => "forget".to_owned(),
            more => format!("{more:?}"),
        }
    }

    fn stage(&self) -> Option<Stage> {
        self.plan().1.get("cdc").map(|c| c.stage)
    }
}

#[test]
fn one_that_is_missing_is_made_and_waits_for_its_consumer() {
    let mut standby = Standby::new(Vec::new(), BTreeMap::new());
    assert_eq!((standby.does().as_str(), standby.stage()), ("make", Some(Stage::Missing)));
    standby.making = Some("cdc");
    assert_eq!((standby.does().as_str(), standby.stage()), ("nothing", Some(Stage::Making)));
    let early = Standby::carrying(160, false);
    assert_eq!((early.does().as_str(), early.stage()), ("nothing", Some(Stage::Made)));
    let words = early.plan().1["cdc"].words(Some(Lsn(150)));
    assert_eq!(words, "not ready yet: it begins at 0/A0, its consumer is at 0/96");
    let there = Standby::carrying(150, false);
    assert_eq!((there.does().as_str(), there.stage()), ("ready", Some(Stage::Made)));
    let noted = Standby::carrying(150, true);
    assert_eq!((noted.does().as_str(), noted.stage()), ("nothing", Some(Stage::Ready)));
}

#[test]
fn it_moves_to_where_its_consumer_is_and_never_beyond() {
    assert_eq!(Standby::carrying(120, true).does(), "advance to 150");
    let mut quick = Standby::carrying(120, true);
    quick.word = Some(word(900));
    assert_eq!(quick.does(), "advance to 200", "not beyond what is replayed");
    // The consumer of another slot of that name is not so far.
    let mut other = Standby::carrying(160, true);
    assert_eq!((other.does().as_str(), other.stage()), ("unready", Some(Stage::Made)));
    other.word = None;
    assert_eq!(other.does(), "nothing", "without the writer's word nothing is known");
}

#[test]
fn one_left_behind_is_made_anew_once_the_writer_has_its_own() {
    let left = Standby::new(vec![slot(15)], BTreeMap::new());
    assert_eq!((left.does().as_str(), left.stage()), ("drop slot-14", Some(Stage::Missing)));
    // Of a time before this node wrote.
    let stale = Standby::new(vec![slot(15)], one(note(3, true)));
    assert_eq!(stale.does(), "drop slot-14");
    let mut early = Standby::new(vec![slot(15)], BTreeMap::new());
    early.records = one(record(4, "n2"));
    assert_eq!(early.does(), "nothing", "it may be the only whole one");
    early.records = one(record(5, "n1"));
    early.slots[0].active_pid = Some(7);
    assert_eq!(early.does(), "nothing", "its reader is not ended");
    early.specs.clear();
    assert_eq!(early.does(), "nothing", "nobody adopted it");
    early.specs = one(SlotSpec { carry: Some(false), ..spec() });
    assert_eq!(early.does(), "nothing", "it is not to be carried");
}

#[test]
fn one_that_cannot_be_used_is_made_anew() {
    let mut lost = Standby::carrying(120, true);
    lost.slots[0].kept = Kept::Lost;
    assert_eq!((lost.does().as_str(), lost.stage()), ("drop slot-14", Some(Stage::Missing)));
    let mut invalid = Standby::carrying(120, true);
    invalid.slots[0].invalid = Some("rows_removed".to_owned());
    assert_eq!(invalid.does(), "drop slot-14");
    let mut other = Standby::carrying(120, true);
    other.slots[0].plugin = Some("wal2json".to_owned());
    assert_eq!(other.does(), "drop slot-14");
    let mut two_phase = Standby::carrying(120, true);
    two_phase.word.as_mut().unwrap().carry.get_mut("cdc").unwrap().two_phase = true;
    assert_eq!(two_phase.does(), "drop slot-14");
}

#[test]
fn one_that_has_no_use_any_more_is_dropped() {
    let ends = |change: fn(&mut Standby)| {
        let mut standby = Standby::carrying(120, true);
        change(&mut standby);
        standby.does()
    };
    assert_eq!(ends(|s| s.specs.clear()), "drop slot-13");
    assert_eq!(ends(|s| s.records.clear()), "drop slot-13");
    assert_eq!(ends(|s| s.specs = one(SlotSpec { carry: Some(false), ..spec() })), "drop slot-13");
    assert_eq!(ends(|s| s.refusal = Some("it is a copy far away")), "drop slot-13");
    assert_eq!(ends(|s| s.full = true), "drop slot-13");
    assert_eq!(ends(|s| s.slots.clear()), "make");
    let forgets = |s: &mut Standby| {
        s.slots.clear();
        s.specs.clear();
    };
    assert_eq!(ends(forgets), "forget");
    // Not while the writer has not said whether it has it.
    assert_eq!(ends(|s| s.records = one(record(4, "n3"))), "nothing");
    let mut full = Standby::new(Vec::new(), BTreeMap::new());
    full.full = true;
    assert_eq!(full.does(), "nothing");
    full.full = false;
    full.failed = one("no such library".to_owned());
    assert_eq!(full.does(), "nothing");
    assert_eq!(full.plan().1["cdc"].words(None), "not there: no such library");
}

#[test]
fn a_writer_forgets_what_it_carried_once_that_is_judged() {
    let mut writer = Standby::carrying(120, true);
    writer.authority = authority(vec![reign(5, "n1", 30), reign(6, "n2", 180)]);
    assert_eq!(writer.does(), "nothing");
    writer.records = one(record(6, "n2"));
    assert_eq!(writer.does(), "forget");
    writer.records.clear();
    assert_eq!(writer.does(), "drop slot-13", "the former writer had none any more");
    writer.slots = vec![slot(190)];
    assert_eq!(writer.does(), "forget", "somebody made another one");
}

#[test]
fn a_node_says_why_it_carries_nothing() {
    let document = |text: &str| toml::from_str::<Document>(text).unwrap();
    let plain = document("");
    assert_eq!(refusal(&plain, node("n2"), 16), None);
    assert!(refusal(&plain, node("n2"), 15).unwrap().contains("16"));
    assert!(refusal(&document("timing = \"async\""), node("n2"), 16).is_some());
    for told in ["role = \"read\"", "promotable = false", "sync = false", "feedback = false"] {
        let document = document(&format!("[nodes.n2]\n{told}\n"));
        assert!(refusal(&document, node("n2"), 18).is_some(), "{told}");
        assert!(refusal(&document, node("n3"), 18).is_none(), "{told}");
    }
    let adopting = Document { slots: one(spec()), ..Document::default() };
    assert!(needs_feedback(&adopting, &one(record(5, "n1")), node("n2"), 16));
    assert!(!needs_feedback(&adopting, &BTreeMap::new(), node("n2"), 16), "a physical one");
    assert!(!needs_feedback(&adopting, &one(record(5, "n1")), node("n2"), 15));
    let off = Document { slots: one(SlotSpec { carry: Some(false), ..spec() }), ..adopting };
    assert!(!needs_feedback(&off, &one(record(5, "n1")), node("n2"), 16));
}

/// What n2 finds in term 6, from 180 on.
fn judged(
    slot: Slot,
    note: Note,
    consumer: Option<u64>,
    reigns: Vec<Reign>,
) -> Result<String, String> {
    let term = reigns.last().unwrap().term;
    let steps = look(&GapView {
        me: node("n2"),
        term,
        reigns: &reigns,
        specs: &one(spec()),
        records: &one(record(5, "n1")),
        slots: &[slot],
        remembered: &consumer.map(|c| one(Lsn(c))).unwrap_or_default(),
        notes: &one(note),
    });
    match steps.as_slice() {
        [SlotChange::Seen { carried: Some(because), .. }] => Ok(because.sentence.clone()),
        [SlotChange::Lost { gap, .. }] => Err(format!("{:?} {}", gap.cause, gap.because.sentence)),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn one_whose_writer_had_none_any_more_is_not_taken_for_the_writers() {
    let reigns = vec![reign(5, "n1", 30), reign(6, "n2", 180)];
    let found = |slot: Slot| {
        look(&GapView {
            me: node("n2"),
            term: Term(6),
            reigns: &reigns,
            specs: &one(spec()),
            records: &BTreeMap::new(),
            slots: &[slot],
            remembered: &BTreeMap::new(),
            notes: &one(note(5, true)),
        })
    };
    assert!(found(slot(120)).is_empty(), "it is about to be dropped");
    assert!(matches!(found(slot(190)).as_slice(), [SlotChange::Seen { carried: None, .. }]));
}

#[test]
fn only_what_is_shown_to_be_whole_goes_on() {
    let past = || vec![reign(5, "n1", 30), reign(6, "n2", 180)];
    let went = judged(slot(120), note(5, true), Some(150), past()).unwrap();
    assert_eq!(
        went,
        "slot cdc was carried from n1 to n2: the warehouse (data team) goes on where it was"
    );
    // The process began anew since it heard the former writer: the note is enough.
    assert!(judged(slot(120), note(5, true), None, past()).is_ok());
    let unready = judged(slot(160), note(5, false), Some(150), past()).unwrap_err();
    assert!(unready.starts_with("Unready"), "{unready}");
    for part in ["begins at 0/A0", "confirmed up to 0/96", "quorate slots ack"] {
        assert!(unready.contains(part), "{part} in {unready}");
    }
    let beyond = judged(slot(160), note(5, true), Some(150), past()).unwrap_err();
    assert!(beyond.starts_with("Unready"), "{beyond}");
    let mut lost = slot(120);
    lost.invalid = Some("rows_removed".to_owned());
    assert!(judged(lost, note(5, true), None, past()).unwrap_err().contains("rows_removed"));
    let mut other = slot(120);
    other.database = Some("crm".to_owned());
    assert!(judged(other, note(5, true), None, past()).is_err());
    // Noted before this node wrote, or in a term of its own, or of which nothing is known.
    let between = vec![reign(3, "n1", 10), reign(4, "n2", 20), reign(5, "n1", 30)];
    let between = || [between.clone(), vec![reign(6, "n2", 180)]].concat();
    for term in [2, 3, 4] {
        let left = judged(slot(120), note(term, true), None, between()).unwrap_err();
        assert!(left.starts_with("LeftBehind"), "{term}: {left}");
    }
    let lossy = vec![reign(5, "n1", 30), Reign { lossy: true, ..reign(6, "n2", 180) }];
    assert!(judged(slot(120), note(5, true), None, lossy).is_err());
    let forced = vec![reign(5, "n1", 30), reign(5 + limits::FORCED_EPOCH_TERMS, "n2", 180)];
    assert!(judged(slot(120), note(5, true), None, forced).is_err());
}

/// A slot on one of the model's nodes, and what the model knows of it.
#[derive(Debug, Clone)]
struct Real {
    at: u64,
    /// Rows that it needs may have been removed: nothing kept them in between.
    torn: bool,
}

/// Two nodes that write in turn, one consumer, and the decisions between them.
struct World {
    reigns: Vec<Reign>,
    record: Option<SlotRecord>,
    slots: [Option<Real>; 2],
    notes: [BTreeMap<String, Note>; 2],
    heard: [Option<u64>; 2],
    end: u64,
    consumer: u64,
    gaps: u32,
}

const NAMES: [&str; 2] = ["n1", "n2"];

impl World {
    fn writer(&self) -> usize {
        usize::from(self.reigns.last().unwrap().node == node("n2"))
    }

    fn shown(&self, of: usize) -> Vec<Slot> {
        self.slots[of].iter().map(|real| slot(real.at)).collect()
    }

    fn standby_looks(&mut self) {
        let (w, s) = (self.writer(), 1 - self.writer());
        let authority = authority(self.reigns.clone());
        let shown = self.shown(s);
        let has = self.slots[w].is_some();
        let word = self.heard[s].map(|c| SlotsWord {
            carry: if has { one(origin()) } else { BTreeMap::new() },
            ..word(c)
        });
        let records = self.record.clone().map(one).unwrap_or_default();
        let (steps, _) = plan(&CarryView {
            me: node(NAMES[s]),
            authority: &authority,
            specs: &one(spec()),
            records: &records,
            word: word.as_ref(),
            slots: &shown,
            notes: &self.notes[s],
            making: None,
            failed: &BTreeMap::new(),
            refusal: None,
            full: false,
            replayed: Lsn(self.end),
        });
        for step in steps {
            match step {
                CarryStep::Make { origin, .. } => {
                    self.notes[s] = one(Note { term: authority.term, origin, ready: false });
                    self.slots[s] = Some(Real { at: self.end, torn: false });
                }
                CarryStep::Ready { .. } => self.notes[s].get_mut("cdc").unwrap().ready = true,
                CarryStep::Unready { .. } => self.notes[s].get_mut("cdc").unwrap().ready = false,
                CarryStep::Advance { to, .. } => self.slots[s].as_mut().unwrap().at = to.0,
                CarryStep::Drop { .. } => (self.slots[s], self.notes[s]) = (None, BTreeMap::new()),
                CarryStep::Forget { .. } => self.notes[s].clear(),
            }
        }
    }

    /// The standby writes; the former writer follows with the slot that it had.
    fn moves(&mut self) -> Result<(), TestCaseError> {
        let (old, new) = (self.writer(), 1 - self.writer());
        if let Some(real) = &mut self.slots[old] {
            real.torn = true;
        }
        let term = self.reigns.last().unwrap().term.0 + 1;
        self.reigns.push(reign(term, NAMES[new], self.end));
        let steps = look(&GapView {
            me: node(NAMES[new]),
            term: Term(term),
            reigns: &self.reigns,
            specs: &one(spec()),
            records: &self.record.clone().map(one).unwrap_or_default(),
            slots: &self.shown(new),
            remembered: &self.heard[new].map(|c| one(Lsn(c))).unwrap_or_default(),
            notes: &self.notes[new],
        });
        self.end += 1;
        match steps.as_slice() {
            [SlotChange::Seen { .. }] => {
                let real = self.slots[new].as_ref().unwrap();
                prop_assert!(!real.torn, "one that was left behind was taken for carried");
                prop_assert!(real.at <= self.consumer, "{} > {}", real.at, self.consumer);
                self.record = Some(record(term, NAMES[new]));
            }
            // Its owner begins anew from a copy.
            [SlotChange::Lost { .. }] => {
                self.gaps += 1;
                self.slots[new] = Some(Real { at: self.end, torn: false });
                self.consumer = self.end;
                self.record = Some(record(term, NAMES[new]));
            }
            other => prop_assert!(false, "{other:?}"),
        }
        self.heard = [None, None];
        Ok(())
    }

    fn act(&mut self, what: u8) -> Result<(), TestCaseError> {
        let (w, s) = (self.writer(), 1 - self.writer());
        match what {
            0 | 1 => self.end += 10,
            2 | 3 => {
                self.consumer = self.consumer.max(self.end - 3).min(self.end);
                if let Some(real) = &mut self.slots[w] {
                    real.at = self.consumer;
                }
            }
            4 | 5 => self.heard[s] = Some(self.consumer),
            6..=9 => self.standby_looks(),
            // Its process begins anew.
            10 => self.heard[s] = None,
            _ => return self.moves(),
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn a_slot_that_goes_on_has_all_that_its_consumer_lacks(
        acts in proptest::collection::vec(0_u8..12, 1..200),
    ) {
        let mut world = World {
            reigns: vec![reign(1, "n1", 0)],
            record: Some(record(1, "n1")),
            slots: [Some(Real { at: 40, torn: false }), None],
            notes: [BTreeMap::new(), BTreeMap::new()],
            heard: [None, None],
            end: 50,
            consumer: 40,
            gaps: 0,
        };
        for what in acts {
            world.act(what)?;
        }
        // In calm a standby becomes ready, and the next move loses nothing.
        for what in [0, 4, 6, 6, 2, 4, 6, 6, 6, 2, 4, 6] {
            world.act(what)?;
            world.act(4)?;
            world.consumer = world.end;
        }
        world.act(4)?;
        for _ in 0..3 {
            world.act(6)?;
        }
        let gaps = world.gaps;
        world.moves()?;
        prop_assert_eq!(world.gaps, gaps);
    }
}
