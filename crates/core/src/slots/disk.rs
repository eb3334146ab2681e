//! The disk that the log is on: when it is short, when writes stop, and the file that is kept for the
//! day on which it is full all the same.
//!
//! PostgreSQL that cannot write its log ends at once, and its start needs room again. So writes stop
//! before, at a named limit, while reads, the ends of open transactions and what makes room go on;
//! and a file of a few log segments stands by, which is given back when there is no room at all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::pace::lasts;
use super::{Kind, Pace, Slot};
use crate::because::Because;
use crate::document::Invalid;
use crate::limits::{
    DISK_CALM, DISK_HAND_OVER_AFTER, DISK_RESERVE_BYTES_MAX, DISK_RESERVE_SHARE,
    DISK_STOP_BYTES_MAX, DISK_STOP_BYTES_MIN, DISK_STOP_SHARE, DISK_WARN_FACTOR,
};
use crate::words::{bytes, seconds};
use crate::{Moment, NodeId};

/// The file system of a server's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes that PostgreSQL may still write.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What the cluster document says of disks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskSpec {
    /// Bytes of free space below which people are told. Unset: four times `stop_bytes`. Changes
    /// live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_bytes: Option<u64>,
    /// Bytes of free space on the writer's log disk below which its gateways take no writes. 0:
    /// never. Unset: a twentieth of the disk, at least 64 MB and at most 1 GB. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_bytes: Option<u64>,
    /// Bytes of the file that each node keeps for a disk that is full. 0: none. Unset: a fiftieth of
    /// the disk, at most 64 MB. Changes live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve_bytes: Option<u64>,
}

impl DiskSpec {
    /// Whether it says nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn validate(&self, problems: &mut Vec<Invalid>) {
        let mut bad = |field: &str, problem: String| {
            problems.push(Invalid { field: format!("disk.{field}"), problem });
        };
        if let (Some(warn), Some(stop)) = (self.warn_bytes, self.stop_bytes)
            && warn < stop
        {
            bad("warn_bytes", format!("nobody would be told before writes stop at {stop}"));
        }
        if self.reserve_bytes.is_some_and(|bytes| bytes > DISK_RESERVE_BYTES_MAX) {
            bad("reserve_bytes", format!("use {DISK_RESERVE_BYTES_MAX} or less"));
        }
    }

    /// The limits of a disk of this size.
    pub fn limits(&self, total: u64) -> DiskLimits {
        let share = (total / DISK_STOP_SHARE).clamp(DISK_STOP_BYTES_MIN, DISK_STOP_BYTES_MAX);
        let stop = self.stop_bytes.unwrap_or(share);
        let warn = self.warn_bytes.unwrap_or(stop.saturating_mul(DISK_WARN_FACTOR));
        DiskLimits { warn, stop, resume: stop.saturating_add(stop / 2) }
    }
}

/// How large a disk's reserve is.
pub fn reserve_of(spec: &DiskSpec, total: u64) -> u64 {
    spec.reserve_bytes.unwrap_or((total / DISK_RESERVE_SHARE).min(DISK_RESERVE_BYTES_MAX))
}

/// Limits of free space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimits {
    /// Below, people are told.
    pub warn: u64,
    /// Below, writes stop.
    pub stop: u64,
    /// From here on they may go on.
    pub resume: u64,
}

/// How a disk stands, the worst last.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum DiskLevel {
    /// There is room.
    #[default]
    Fine,
    /// There will not be for long.
    Low,
    /// Writes stop.
    Full,
}

/// What is to become of the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Nothing.
    Keep,
    /// It is made, this large.
    Make(u64),
    /// It is given back.
    Release,
}

/// A disk, judged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct DiskStanding {
    /// As it is.
    pub disk: Disk,
    /// Bytes of the reserve; 0 while there is none.
    pub reserve: u64,
    /// Bytes of free space below which writes stop.
    pub stop: u64,
    /// How it stands.
    pub level: DiskLevel,
    /// Milliseconds until it is full, at the pace of the last minutes.
    pub full_ms: Option<u64>,
    /// Why.
    pub because: Because,
}

/// Judges one disk over time.
#[derive(Debug, Default)]
pub struct DiskGuard {
    pace: Pace,
    stopped: bool,
    /// Since when there has been room again.
    room: Option<Moment>,
}

impl DiskGuard {
    /// Takes in how the disk is now, with a reserve of `reserve` bytes on it (0: none).
    pub fn see(
        &mut self,
        disk: Disk,
        reserve: u64,
        spec: &DiskSpec,
        now: Moment,
    ) -> (DiskStanding, Reserve) {
        self.pace.note(disk.free, now);
        let limits = spec.limits(disk.total);
        let wanted = reserve_of(spec, disk.total);
        // A reserve that was given back is owed first: the room that it made is not room.
        let room = disk.free.saturating_sub(wanted.saturating_sub(reserve));
        self.stop_or_resume(disk.free, room, limits, now);
        let full_ms = lasts(disk.free, self.pace.shrinks());
        let level = match (self.stopped, disk.free < limits.warn) {
            (true, _) => DiskLevel::Full,
            (false, true) => DiskLevel::Low,
            (false, false) => DiskLevel::Fine,
        };
        let because = sentence(level, disk, limits, full_ms);
        let becomes = match reserve {
            0 if wanted > 0 && room >= limits.warn => Reserve::Make(wanted),
            0 => Reserve::Keep,
            // Writes have stopped for long, or should have: what grows is not stopped by it.
            _ if disk.free < limits.stop / 4 || wanted == 0 => Reserve::Release,
            _ => Reserve::Keep,
        };
        let stop = limits.stop;
        (DiskStanding { disk, reserve, stop, level, full_ms, because }, becomes)
    }

    fn stop_or_resume(&mut self, free: u64, room: u64, limits: DiskLimits, now: Moment) {
        if free < limits.stop {
            (self.stopped, self.room) = (true, None);
        } else if room < limits.resume {
            self.room = None;
        } else if self.stopped {
            let since = *self.room.get_or_insert(now);
            self.stopped = now.since(since) < DISK_CALM;
        }
        // Whoever wants no stop gets none, at once.
        self.stopped &= limits.stop > 0;
    }
}

/// What is known when the writer's disk is short, of others that could write.
#[derive(Debug)]
pub struct HandOver<'a> {
    /// The writer's disk.
    pub disk: &'a DiskStanding,
    /// For how long its writes have been stopped.
    pub stopped: Duration,
    /// Who could write now, best first, and their disks.
    pub others: &'a [(NodeId, Option<DiskStanding>)],
    /// The writer's slots.
    pub slots: &'a [Slot],
    /// Which nodes carry one of them, and are ready to go on with it.
    pub ready: &'a BTreeMap<String, BTreeSet<NodeId>>,
    /// Whether automation is paused, or the writer changes already.
    pub busy: bool,
}

/// Whether another node should write, because its disk has room and this one has none: who, and why.
/// Not when a logical slot would be lost by it: then writes stop, and a person chooses.
pub fn hand_over(view: &HandOver<'_>) -> Option<(NodeId, Because)> {
    let stays = |s: &Slot| s.kind == Kind::Logical && !s.temporary;
    let full = view.disk.level == DiskLevel::Full && view.stopped >= DISK_HAND_OVER_AFTER;
    if !full || view.busy {
        return None;
    }
    let goes_on = |node: &NodeId| {
        let ready = |s: &Slot| view.ready.get(&s.name).is_some_and(|on| on.contains(node));
        view.slots.iter().filter(|s| stays(s)).all(ready)
    };
    let room =
        |disk: &Option<DiskStanding>| disk.as_ref().is_some_and(|d| d.level == DiskLevel::Fine);
    let (node, _) = view.others.iter().find(|(node, disk)| room(disk) && goes_on(node))?;
    let free = bytes(view.disk.disk.free);
    let text = format!("the writer's disk has {free} left, and that of {node} has room: it writes");
    Some((*node, Because::new("disk-04", text)))
}

fn sentence(level: DiskLevel, disk: Disk, limits: DiskLimits, full_ms: Option<u64>) -> Because {
    let (free, total) = (bytes(disk.free), bytes(disk.total));
    let (stop, resume) = (bytes(limits.stop), bytes(limits.resume));
    let until = full_ms.map_or_else(String::new, |ms| {
        let in_time = seconds(Duration::from_millis(ms));
        format!("; at the pace of the last minutes it is full in {in_time}")
    });
    match level {
        DiskLevel::Fine => Because::new("disk-01", format!("{free} of {total} are free{until}")),
        DiskLevel::Low => Because::new(
            "disk-02",
            format!("{free} of {total} are free, and writes stop below {stop}{until}"),
        ),
        DiskLevel::Full => Because::new(
            "disk-03",
            format!(
                "{free} of {total} are free: less than {stop}, so that writes stop before the \
                 server does; they go on by themselves from {resume} on"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1024 * 1024;

    fn at(seconds: u64) -> Moment {
        Moment(seconds * 1_000_000_000)
    }

    fn disk(free_mb: u64) -> Disk {
        Disk { free: free_mb * MB, total: 10_240 * MB }
    }

    #[test]
    fn limits_follow_the_size_of_the_disk() {
        let spec = DiskSpec::default();
        assert_eq!(spec.limits(10_240 * MB).stop, 512 * MB);
        assert_eq!(spec.limits(100 * MB).stop, 64 * MB);
        assert_eq!(spec.limits(1 << 50).stop, 1024 * MB);
        assert_eq!(reserve_of(&spec, 10_240 * MB), 64 * MB);
        assert_eq!(reserve_of(&spec, 500 * MB), 10 * MB);
        let problems = &mut Vec::new();
        DiskSpec { warn_bytes: Some(1), stop_bytes: Some(2), ..spec }.validate(problems);
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn writes_stop_at_once_and_go_on_after_a_while_with_room() {
        let (mut guard, spec) = (DiskGuard::default(), DiskSpec::default());
        let mut see = |free, second| guard.see(disk(free), 64 * MB, &spec, at(second)).0.level;
        assert_eq!(see(5000, 0), DiskLevel::Fine);
        assert_eq!(see(2000, 1), DiskLevel::Low);
        assert_eq!(see(511, 2), DiskLevel::Full);
        assert_eq!(see(600, 3), DiskLevel::Full, "above the limit is not room yet");
        assert_eq!(see(800, 4), DiskLevel::Full);
        assert_eq!(see(500, 5), DiskLevel::Full, "the wait begins anew");
        assert_eq!(see(800, 6), DiskLevel::Full);
        assert_eq!(see(800, 6 + DISK_CALM.as_secs()), DiskLevel::Low);
    }

    #[test]
    fn the_reserve_is_given_back_when_there_is_no_room_and_made_when_there_is_plenty() {
        let (mut guard, spec) = (DiskGuard::default(), DiskSpec::default());
        let mut see = |free, reserve, second| {
            let (standing, reserve) = guard.see(disk(free), reserve * MB, &spec, at(second));
            (standing.level, reserve)
        };
        assert_eq!(see(5000, 0, 0), (DiskLevel::Fine, Reserve::Make(64 * MB)));
        assert_eq!(see(4936, 64, 1), (DiskLevel::Fine, Reserve::Keep));
        assert_eq!(see(300, 64, 2), (DiskLevel::Full, Reserve::Keep));
        assert_eq!(see(100, 64, 3), (DiskLevel::Full, Reserve::Release));
        // What it gave is not taken for room.
        assert_eq!(see(800, 0, 4), (DiskLevel::Full, Reserve::Keep));
        assert_eq!(see(800, 0, 100), (DiskLevel::Full, Reserve::Keep));
        assert_eq!(see(3000, 0, 200).1, Reserve::Make(64 * MB));
    }

    #[test]
    fn another_writes_whose_disk_has_room_unless_a_stream_would_be_lost() {
        let judged = |mb| DiskGuard::default().see(disk(mb), 0, &DiskSpec::default(), at(0)).0;
        let node = |name| NodeId::new(name).unwrap();
        let others = [
            (node("n2"), Some(judged(1000))),
            (node("n3"), None),
            (node("n4"), Some(judged(9000))),
        ];
        let (full, low) = (judged(100), judged(1000));
        let slot = |kind| Slot { kind, ..Slot::default() };
        let physical = [slot(Kind::Physical)];
        let nobody = BTreeMap::new();
        let view = || HandOver {
            disk: &full,
            stopped: DISK_HAND_OVER_AFTER,
            others: &others,
            slots: &physical,
            ready: &nobody,
            busy: false,
        };
        assert_eq!(hand_over(&view()).unwrap().0, node("n4"), "the others are short as well");
        assert_eq!(hand_over(&HandOver { stopped: Duration::ZERO, ..view() }), None);
        assert_eq!(hand_over(&HandOver { disk: &low, ..view() }), None);
        assert_eq!(hand_over(&HandOver { busy: true, ..view() }), None);
        let others = &others[..2];
        assert_eq!(hand_over(&HandOver { others, ..view() }), None, "nobody has room");
        let logical = [slot(Kind::Logical)];
        assert_eq!(hand_over(&HandOver { slots: &logical, ..view() }), None);
        let on = |name| BTreeMap::from([(String::new(), BTreeSet::from([node(name)]))]);
        let (late, ready, others) = (on("n2"), on("n4"), view().others);
        let carried = HandOver { slots: &logical, ready: &late, ..view() };
        assert_eq!(hand_over(&carried), None, "it is ready where there is no room");
        let carried = HandOver { ready: &ready, others, ..carried };
        assert_eq!(hand_over(&carried).unwrap().0, node("n4"));
    }

    #[test]
    fn nobody_is_stopped_who_wants_no_stop() {
        let mut guard = DiskGuard::default();
        let spec = DiskSpec { stop_bytes: Some(0), reserve_bytes: Some(0), ..DiskSpec::default() };
        let (standing, reserve) = guard.see(disk(0), 0, &spec, at(0));
        assert_eq!((standing.level, reserve), (DiskLevel::Fine, Reserve::Keep));
    }

    #[test]
    fn the_time_until_it_is_full_is_told() {
        let (mut guard, spec) = (DiskGuard::default(), DiskSpec::default());
        for second in 0..=60 {
            let (standing, _) = guard.see(disk(2000 - 10 * second), 0, &spec, at(second));
            if second == 60 {
                assert_eq!(standing.full_ms, Some(140_000));
                assert!(standing.because.sentence.contains("full in 2 min"), "{standing:?}");
            }
        }
    }
}
