use super::*;
use crate::slots::{Disk, DiskGuard, DiskSpec, Kind};
use proptest::prelude::*;

const MB: u64 = 1024 * 1024;
const GRACE: u64 = SLOT_OVER_GRACE.as_secs();

fn at(seconds: u64) -> Moment {
    Moment(seconds * 1_000_000_000)
}

fn slot(name: &str, restart_mb: u64) -> Slot {
    Slot {
        name: name.to_owned(),
        kind: Kind::Logical,
        restart: Some(Lsn(restart_mb * MB)),
        confirmed: Some(Lsn(restart_mb * MB)),
        kept: Kept::Held,
        ..Slot::default()
    }
}

fn spec(max_mb: u64, drop: DropPolicy) -> SlotSpec {
    SlotSpec {
        owner: "data team".to_owned(),
        consumer: "the warehouse".to_owned(),
        max_lag_ms: None,
        max_bytes: max_mb * MB,
        drop,
        carry: None,
    }
}

fn disk(free_mb: u64) -> DiskStanding {
    let disk = Disk { free: free_mb * MB, total: 10_240 * MB };
    DiskGuard::default().see(disk, 0, &DiskSpec::default(), at(0)).0
}

/// A writer whose log ends at `end` megabytes.
struct Server {
    judge: Judge,
    specs: BTreeMap<String, SlotSpec>,
    disk: DiskStanding,
    paused: bool,
    writes: bool,
}

impl Server {
    fn new(specs: &[(&str, SlotSpec)]) -> Self {
        let specs = specs.iter().map(|(n, s)| ((*n).to_owned(), s.clone())).collect();
        let (judge, disk) = (Judge::default(), disk(9000));
        Self { judge, specs, disk, paused: false, writes: true }
    }

    fn see(&mut self, slots: &[Slot], end: u64, second: u64) -> (Vec<SlotStanding>, Vec<String>) {
        self.judge.see(&SlotView {
            slots,
            specs: &self.specs,
            end: Lsn(end * MB),
            disk: Some(&self.disk),
            writes: self.writes,
            carried: &BTreeMap::new(),
            paused: self.paused,
            now: at(second),
        })
    }
}

#[test]
fn an_auto_slot_over_its_budget_is_dropped_after_a_grace_and_the_largest_overrun_first() {
    let auto = |mb| spec(mb, DropPolicy::Auto);
    let mut server = Server::new(&[("a", auto(100)), ("b", auto(100)), ("c", auto(100))]);
    let slots = [slot("a", 890), slot("b", 700), slot("c", 950)];
    let (standings, drops) = server.see(&slots, 1000, 0);
    let levels: Vec<Level> = standings.iter().map(|s| s.level).collect();
    assert_eq!(levels, [Level::Over, Level::Over, Level::Fine]);
    assert!(drops.is_empty(), "a burst is forgiven");
    let (standings, drops) = server.see(&slots, 1000, GRACE);
    assert_eq!(drops, ["b", "a"]);
    let said = &standings[1].because.sentence;
    for part in ["300.0 MB", "100.0 MB", "the warehouse (data team)", "frees 190.0 MB"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert!(standings[0].because.sentence.contains("frees nothing"), "b keeps the same log");
    // One that catches up in time is not dropped, and its grace begins anew.
    let mut server = Server::new(&[("a", auto(100))]);
    server.see(&[slot("a", 890)], 1000, 0);
    server.see(&[slot("a", 950)], 1000, 1);
    assert!(server.see(&[slot("a", 890)], 1000, GRACE).1.is_empty());
}

#[test]
fn a_short_disk_ends_the_grace_and_nothing_else() {
    let mut server =
        Server::new(&[("a", spec(100, DropPolicy::Auto)), ("b", spec(500, DropPolicy::Auto))]);
    server.disk = disk(1000);
    let (standings, drops) = server.see(&[slot("a", 800), slot("b", 800)], 1000, 0);
    assert_eq!(drops, ["a"], "what is within its budget was promised");
    assert_eq!(standings[1].level, Level::Fine);
}

#[test]
fn other_policies_wait_for_a_person() {
    let mut server =
        Server::new(&[("a", spec(100, DropPolicy::Approval)), ("n", spec(100, DropPolicy::Never))]);
    server.disk = disk(10);
    for second in 0..100 {
        let (standings, drops) =
            server.see(&[slot("a", 1), slot("n", 1), slot("x", 1)], 1000, second);
        assert!(drops.is_empty());
        let next: Vec<Next> = standings.iter().map(|s| s.next).collect();
        assert_eq!(next, [Next::Approve, Next::Page, Next::Page]);
        assert_eq!(standings[2].level, Level::Unknown);
        assert!(standings[0].because.sentence.contains("quorate slots drop a"));
    }
}

#[test]
fn a_paused_cluster_and_a_standby_drop_nothing() {
    let mut server = Server::new(&[("a", spec(100, DropPolicy::Auto))]);
    server.paused = true;
    server.see(&[slot("a", 1)], 1000, 0);
    assert!(server.see(&[slot("a", 1)], 1000, 100).1.is_empty());
    (server.paused, server.writes) = (false, false);
    let (standings, drops) = server.see(&[slot("a", 1)], 1000, 200);
    assert!(drops.is_empty());
    assert_eq!(standings[0].level, Level::Near);
}

#[test]
fn near_does_not_flap() {
    let mut server = Server::new(&[("a", spec(100, DropPolicy::Auto))]);
    let mut see = |retained: u64, second| server.see(&[slot("a", 1000 - retained)], 1000, second).0;
    let level = |standings: Vec<SlotStanding>| standings[0].level;
    assert_eq!(level(see(79, 0)), Level::Fine);
    assert_eq!(level(see(80, 1)), Level::Near);
    assert_eq!(level(see(75, 2)), Level::Near);
    assert_eq!(level(see(69, 3)), Level::Fine);
    assert_eq!(level(see(75, 4)), Level::Fine);
}

#[test]
fn lost_temporary_and_late_slots_are_told_apart() {
    let late = SlotSpec { max_lag_ms: Some(5000), ..spec(900, DropPolicy::Never) };
    let mut server = Server::new(&[("late", late), ("lost", spec(900, DropPolicy::Auto))]);
    let lost = Slot { kept: Kept::Lost, ..slot("lost", 1) };
    let temporary = Slot { temporary: true, ..slot("temporary", 1) };
    let slots = [slot("late", 500), lost, temporary];
    server.see(&slots, 500, 0);
    server.see(&slots, 501, 1);
    let (standings, drops) = server.see(&slots, 501, 10);
    let levels: Vec<Level> = standings.iter().map(|s| s.level).collect();
    assert_eq!(levels, [Level::Late, Level::Lost, Level::Fine]);
    assert!(drops.is_empty());
    assert_eq!(standings[0].lag_ms, Some(10_000));
    assert_eq!(standings[1].retained, 0, "what is gone is not kept");
}

#[test]
fn times_until_something_is_full_follow_the_slot_s_own_pace() {
    let mut server = Server::new(&[("a", spec(1000, DropPolicy::Auto))]);
    let mut standings = Vec::new();
    for second in 0..=60 {
        standings = server.see(&[slot("a", 0), slot("b", second)], second, second).0;
    }
    // One megabyte a second: 940 are left of its budget, 9000 on the disk.
    assert_eq!(standings[0].grows, Some(MB));
    assert_eq!(standings[0].budget_ms, Some(940_000));
    assert_eq!(standings[0].disk_ms, Some(9_000_000));
    assert_eq!((standings[1].grows, standings[1].disk_ms), (Some(0), None), "it is read");
}

fn any_policy() -> impl Strategy<Value = Option<DropPolicy>> {
    prop_oneof![
        Just(None),
        Just(Some(DropPolicy::Never)),
        Just(Some(DropPolicy::Approval)),
        Just(Some(DropPolicy::Auto)),
    ]
}

proptest! {
    /// Whatever happens: only what is adopted with `auto` and over its budget is ever dropped.
    #[test]
    fn nothing_else_is_ever_dropped(
        policies in proptest::collection::vec((any_policy(), 1u64..500), 1..6),
        looks in proptest::collection::vec(
            (0u64..30, 0u64..200, proptest::collection::vec(0u64..200, 6), 0u64..9000, any::<bool>()),
            1..40,
        ),
    ) {
        let names: Vec<String> = (0..policies.len()).map(|i| format!("s{i}")).collect();
        let specs: Vec<(&str, SlotSpec)> = names.iter().zip(&policies)
            .filter_map(|(n, (policy, budget))| Some((n.as_str(), spec(*budget, (*policy)?))))
            .collect();
        let mut server = Server::new(&specs);
        let (mut second, mut end) = (0, 1);
        let mut starts = vec![0; names.len()];
        for (pause, grown, moves, free, paused) in looks {
            second += pause;
            end += grown;
            for (start, by) in starts.iter_mut().zip(moves) {
                *start = (*start + by).min(end);
            }
            server.disk = disk(free);
            server.paused = paused;
            let slots: Vec<Slot> =
                names.iter().zip(&starts).map(|(n, start)| slot(n, *start)).collect();
            let (standings, drops) = server.see(&slots, end, second);
            prop_assert!(!paused || drops.is_empty());
            let overrun = |name: &String| {
                let standing = standings.iter().find(|s| s.slot.name == *name).unwrap();
                let spec = standing.spec.as_ref().unwrap();
                assert_eq!(spec.drop, DropPolicy::Auto);
                assert!(standing.retained > spec.max_bytes);
                assert_eq!(standing.next, Next::Drop);
                standing.retained - spec.max_bytes
            };
            let overruns: Vec<u64> = drops.iter().map(overrun).collect();
            prop_assert!(overruns.is_sorted_by(|a, b| a >= b));
        }
    }
}
