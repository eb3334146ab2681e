//! Replication slots: who owns one, how much log it may keep, and what happens when it keeps more.
//!
//! A slot keeps log on the writer for a consumer that may never come back, until the disk is full and
//! nobody can write. So each one has an owner, a consumer, a budget and a policy, by adoption in the
//! cluster document. Invariant: a slot that nobody adopted, and one whose policy is not `auto`, is
//! dropped by a person only; and an adopted one within its budget by nobody.
//!
//! ```text
//! Slot (what is seen) ┐
//! SlotSpec (wanted)   ├─▶ Judge ─▶ SlotStanding (told), drops (done)
//! disk, log's end     ┘
//! SlotRecord (agreed) ──▶ gap::look ─▶ what the cluster is told of streams that broke
//! SlotsWord (the writer's), Note ─▶ carry::plan ─▶ slots that standbys keep for the day they write
//! ```

mod carry;
mod disk;
mod gap;
mod judge;
mod pace;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Lsn;
use crate::because::Because;
use crate::document::Invalid;
use crate::limits::{
    PG_NAME_MAX, SLOT_BUDGET_MIN, SLOT_WORDS_MAX, SLOTS_ADOPTED_MAX, SLOTS_CARRIED_MAX,
};

pub use carry::{
    Carried, CarryStep, CarryView, Note as CarryNote, Origin, Stage as CarryStage, needs_feedback,
    plan, refusal as carries_nothing,
};
pub use disk::{
    Disk, DiskGuard, DiskLevel, DiskLimits, DiskSpec, DiskStanding, HandOver, Reserve, hand_over,
    reserve_of,
};
pub use gap::{Cause as GapCause, Gap, GapView, SlotChange, SlotRecord, Step, ending, look};
pub use judge::{Judge, SlotView};
pub use pace::Pace;

/// What Quorate may do to a slot that keeps more than its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// Nothing, even when the disk fills: then writes stop.
    Never,
    /// Nothing without a person: `quorate slots drop`.
    #[default]
    Approval,
    /// End its consumer's connection and drop it.
    Auto,
}

impl DropPolicy {
    /// The word for it, as in the cluster document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Approval => "approval",
            Self::Auto => "auto",
        }
    }
}

/// What the cluster document says of one slot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlotSpec {
    /// Who answers for it, such as a team or an address.
    pub owner: String,
    /// What reads it, in the owner's words: who loses what when it is dropped.
    pub consumer: String,
    /// Milliseconds that its consumer may be late. Unset: as late as it likes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_lag_ms: Option<u64>,
    /// Bytes of log that it may keep on the writer.
    pub max_bytes: u64,
    /// What happens beyond that.
    pub drop: DropPolicy,
    /// Whether standbys carry it, so that a logical one goes on when the writer moves. Unset: where
    /// PostgreSQL can, from version 16 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carry: Option<bool>,
}

impl SlotSpec {
    /// Whether standbys shall carry it.
    pub fn is_carried(&self) -> bool {
        self.carry != Some(false)
    }
}

/// Whether PostgreSQL takes this as a slot's name.
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !name.is_empty() && name.len() <= PG_NAME_MAX && name.bytes().all(plain)
}

/// Checks what the cluster document says of slots.
pub(crate) fn validate(slots: &BTreeMap<String, SlotSpec>, problems: &mut Vec<Invalid>) {
    let mut bad = |field: String, problem: String| problems.push(Invalid { field, problem });
    if slots.len() > SLOTS_ADOPTED_MAX {
        bad("slots".to_owned(), format!("at most {SLOTS_ADOPTED_MAX} slots can be adopted"));
    }
    for (name, spec) in slots {
        if !is_name(name) {
            let problem = "a slot's name has 1 to 63 lower-case letters, digits and '_'";
            bad(format!("slots.{name}"), problem.to_owned());
        }
        for (field, words) in [("owner", &spec.owner), ("consumer", &spec.consumer)] {
            let path = format!("slots.{name}.{field}");
            if words.trim().is_empty() {
                bad(path, "say who or what: it is named when the slot makes trouble".to_owned());
            } else if words.len() > SLOT_WORDS_MAX || words.contains(char::is_control) {
                bad(path, format!("use one line of at most {SLOT_WORDS_MAX} bytes"));
            }
        }
        if spec.max_bytes < SLOT_BUDGET_MIN {
            let problem = format!("say how much log it may keep, {SLOT_BUDGET_MIN} bytes or more");
            bad(format!("slots.{name}.max_bytes"), problem);
        }
        if spec.max_lag_ms.is_some_and(|ms| ms < 1000) {
            bad(format!("slots.{name}.max_lag_ms"), "use 1000 milliseconds or more".to_owned());
        }
    }
}

/// What a slot hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The log as it is.
    #[default]
    Physical,
    /// Changes, decoded.
    Logical,
}

/// Whether the log that a slot needs is there (`wal_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It keeps nothing yet.
    #[default]
    Nothing,
    /// All of it (`reserved`, `extended`).
    Held,
    /// Some of it may be removed at the next checkpoint (`unreserved`).
    Unreserved,
    /// Some of it is gone: nobody can go on from there (`lost`, or invalidated).
    Lost,
}

/// A slot as PostgreSQL shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// What it hands out.
    pub kind: Kind,
    /// What decodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Of which database it decodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The process that streams from it.
    pub active_pid: Option<i32>,
    /// Log from here on is kept.
    pub restart: Option<Lsn>,
    /// Its consumer has everything before this; logical ones only.
    pub confirmed: Option<Lsn>,
    /// Whether what it needs is there.
    pub kept: Kept,
    /// Why it was invalidated, in PostgreSQL's words (from version 16 on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    /// It ends with its session.
    pub temporary: bool,
    /// Prepared transactions are handed out when they are prepared.
    #[serde(default)]
    pub two_phase: bool,
    /// PostgreSQL itself is told to carry it to standbys (from version 17 on).
    #[serde(default)]
    pub failover: bool,
    /// It was carried here by PostgreSQL (from version 17 on).
    #[serde(default)]
    pub synced: bool,
}

impl Slot {
    /// How far its consumer is.
    pub fn reached(&self) -> Option<Lsn> {
        self.confirmed.or(self.restart)
    }
}

/// How a slot stands, the worst last.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Within its limits, or over with its session.
    #[default]
    Fine,
    /// Its consumer is later than agreed.
    Late,
    /// It keeps most of what it may.
    Near,
    /// Nobody adopted it.
    Unknown,
    /// It cannot be used any more: what it needs is gone.
    Lost,
    /// It keeps more than it may.
    Over,
}

impl Level {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Late => "late",
            Self::Near => "near",
            Self::Unknown => "unknown",
            Self::Lost => "lost",
            Self::Over => "over",
        }
    }
}

/// What happens next with a slot.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Next {
    /// Nothing.
    #[default]
    Nothing,
    /// Somebody should look at it, today.
    Warn,
    /// Somebody should look at it now.
    Page,
    /// A person decides whether it is dropped.
    Approve,
    /// Quorate drops it.
    Drop,
}

impl Next {
    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "-",
            Self::Warn => "warn",
            Self::Page => "page",
            Self::Approve => "waits for a person",
            Self::Drop => "drop",
        }
    }
}

/// A slot, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotStanding {
    /// As it is.
    pub slot: Slot,
    /// As it was adopted; `None`: it was not.
    pub spec: Option<SlotSpec>,
    /// Bytes of log that it keeps.
    pub retained: u64,
    /// Of these, what nobody else keeps: what its end would give back, after a checkpoint.
    pub frees: u64,
    /// Milliseconds that its consumer is late; `None` where that is not known.
    pub lag_ms: Option<u64>,
    /// By how many bytes a second what it keeps has grown in the last minutes.
    pub grows: Option<u64>,
    /// Milliseconds until it keeps as much as it may, at that pace.
    pub budget_ms: Option<u64>,
    /// Milliseconds until it alone has filled the disk, at that pace.
    pub disk_ms: Option<u64>,
    /// How it stands.
    pub level: Level,
    /// What happens next.
    pub next: Next,
    /// Why, and who loses what.
    pub because: Because,
}

/// What a writer tells of its slots with each heartbeat: never more than a few.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotsWord {
    /// How many there are.
    pub count: u32,
    /// How many nobody adopted.
    pub unknown: u32,
    /// How many need somebody.
    pub troubled: u32,
    /// The worst of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worst: Vec<Trouble>,
    /// How far the consumers of adopted logical slots are: what the next writer's node goes by when
    /// it tells what they lack.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub confirmed: BTreeMap<String, Lsn>,
    /// Those of them that standbys shall carry, as they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub carry: BTreeMap<String, Origin>,
}

/// A slot that needs somebody.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Trouble {
    /// Which.
    pub slot: String,
    /// How it stands.
    pub level: Level,
    /// What happens next.
    pub next: Next,
    /// Why, and who loses what.
    pub because: Because,
}

impl SlotsWord {
    /// The word for these slots.
    pub fn of(standings: &[SlotStanding]) -> Self {
        let mut troubled: Vec<&SlotStanding> =
            standings.iter().filter(|s| s.next != Next::Nothing).collect();
        troubled.sort_by_key(|s| std::cmp::Reverse((s.next, s.level, s.retained)));
        let adopted = standings.iter().filter(|s| s.spec.is_some());
        let origin = |s: &SlotStanding| {
            s.spec.as_ref().filter(|spec| spec.is_carried())?;
            Some((s.slot.name.clone(), Origin::of(&s.slot)?))
        };
        let worst = troubled.iter().take(crate::limits::SLOTS_TOLD_MAX);
        Self {
            count: standings.len() as u32,
            unknown: standings.iter().filter(|s| s.level == Level::Unknown).count() as u32,
            troubled: troubled.len() as u32,
            worst: worst.map(|s| Trouble::of(s)).collect(),
            carry: adopted.clone().filter_map(origin).take(SLOTS_CARRIED_MAX).collect(),
            confirmed: adopted
                .filter_map(|s| Some((s.slot.name.clone(), s.slot.confirmed?)))
                .take(SLOTS_ADOPTED_MAX)
                .collect(),
        }
    }
}

impl Trouble {
    fn of(standing: &SlotStanding) -> Self {
        let SlotStanding { slot, level, next, because, .. } = standing;
        Self { slot: slot.name.clone(), level: *level, next: *next, because: because.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn document(text: &str) -> Document {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_adoption_names_an_owner_a_consumer_and_a_budget() {
        let text = "[slots.cdc]\nowner = \"data team\"\nconsumer = \"the warehouse\"\n\
                    max_bytes = 1000000000\n";
        let good = document(text);
        assert_eq!(good.validate(), []);
        assert_eq!(good.slots["cdc"].drop, DropPolicy::Approval);
        assert_eq!(document(&toml::to_string(&good).unwrap()), good);
        assert!(!toml::to_string(&Document::default()).unwrap().contains("slots"));
        let bad = document("[slots.Cdc]\nowner = \" \"\nmax_lag_ms = 1\n");
        let fields: Vec<String> = bad.validate().into_iter().map(|i| i.field).collect();
        let path = |field: &str| format!("slots.Cdc.{field}");
        let all = ["owner", "consumer", "max_bytes", "max_lag_ms"].map(path);
        assert_eq!(fields, [&["slots.Cdc".to_owned()][..], &all].concat());
        assert!(toml::from_str::<Document>("[slots.cdc]\ndrop = \"perhaps\"\n").is_err());
    }

    #[test]
    fn names_are_postgresqls() {
        assert!(is_name("cdc_2") && is_name("_"));
        assert!(!is_name("") && !is_name("a-b") && !is_name("A") && !is_name(&"x".repeat(64)));
    }

    #[test]
    fn a_heartbeat_stays_small_whatever_slots_there_are() {
        let spec = SlotSpec {
            owner: "o".repeat(SLOT_WORDS_MAX),
            consumer: "c".repeat(SLOT_WORDS_MAX),
            max_bytes: 1,
            ..SlotSpec::default()
        };
        let standing = |i: usize| SlotStanding {
            slot: Slot {
                name: format!("{i:063}"),
                kind: Kind::Logical,
                confirmed: Some(Lsn(u64::MAX)),
                plugin: Some("p".repeat(63)),
                database: Some("d".repeat(63)),
                two_phase: true,
                ..Slot::default()
            },
            spec: Some(spec.clone()),
            retained: u64::MAX,
            frees: 0,
            lag_ms: None,
            grows: None,
            budget_ms: None,
            disk_ms: None,
            level: Level::Over,
            next: Next::Approve,
            because: Because::new("slot-04", "x".repeat(4 * SLOT_WORDS_MAX)),
        };
        let standings: Vec<SlotStanding> = (0..500).map(standing).collect();
        let word = SlotsWord::of(&standings);
        assert_eq!((word.count, word.troubled), (500, 500));
        // A heartbeat has 64 KiB in all.
        assert!(serde_json::to_vec(&word).unwrap().len() < 32 * 1024);
    }
}
