//! Small databases that make histories whose verdict is known: one by one, with snapshots, or with
//! the last committed state of each moment. The same seed makes the same history.

use std::collections::{BTreeMap, BTreeSet};

use quorate_history::append::{Action, Isolation, Step};
use quorate_history::{History, Moment, Operation, Outcome, Process};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// An operation of a process, over this span of time.
pub(crate) fn operation<A>(
    process: u64,
    span: (u64, u64),
    outcome: Outcome,
    action: A,
) -> Operation<A> {
    Operation {
        process: Process(process),
        invoked: Moment(span.0),
        completed: Moment(span.1),
        outcome,
        action,
        note: String::new(),
    }
}

type Lists = BTreeMap<i64, Vec<i64>>;

/// A transaction under way.
struct Open {
    asked: Vec<Step>,
    done: Vec<Step>,
    began: u64,
    snapshot: Lists,
    version: u64,
}

/// The database, and who is at work.
struct Database {
    isolation: Isolation,
    lists: Lists,
    version: u64,
    /// When each key was last written.
    written: BTreeMap<i64, u64>,
    locks: BTreeMap<i64, usize>,
}

impl Database {
    /// One step of a transaction; nothing when it must be rolled back.
    fn step(&mut self, me: usize, open: &Open, step: &Step) -> Option<Step> {
        let base =
            if self.isolation == Isolation::ReadCommitted { &self.lists } else { &open.snapshot };
        match step {
            Step::Append(key, _) => {
                let newer = self.written.get(key).is_some_and(|v| *v > open.version);
                let conflict = self.isolation != Isolation::ReadCommitted && newer;
                if conflict || *self.locks.entry(*key).or_insert(me) != me {
                    return None;
                }
                Some(step.clone())
            }
            Step::Read(key, _) => {
                let mut list = base.get(key).cloned().unwrap_or_default();
                list.extend(open.done.iter().filter_map(|s| match s {
                    Step::Append(k, element) if k == key => Some(*element),
                    _ => None,
                }));
                Some(Step::Read(*key, Some(list)))
            }
        }
    }

    fn end(&mut self, me: usize, open: &Open, commit: bool) {
        self.locks.retain(|_, holder| *holder != me);
        if !commit {
            return;
        }
        self.version += 1;
        for step in &open.done {
            if let Step::Append(key, element) = step {
                self.lists.entry(*key).or_default().push(*element);
                self.written.insert(*key, self.version);
            }
        }
    }
}

/// A history of so many transactions at a level, some of them rolled back and some of unknown
/// outcome, and a reading of everything at its end. `serializable` runs them one by one.
pub(crate) fn run(isolation: Isolation, transactions: usize, seed: u64) -> History<Action> {
    let mut random = Random(seed);
    let mut database = Database {
        isolation,
        lists: Lists::new(),
        version: 0,
        written: BTreeMap::new(),
        locks: BTreeMap::new(),
    };
    let workers = if isolation == Isolation::Serializable { 1 } else { 5 };
    let mut open: Vec<Option<Open>> = (0..workers).map(|_| None).collect();
    let mut history = History::default();
    let (mut now, mut element, mut begun) = (0, 0, 0);
    while begun < transactions || open.iter().any(Option::is_some) {
        now += 1 + random.below(3);
        let me = random.below(workers as u64) as usize;
        let Some(mut work) = open[me].take() else {
            if begun < transactions {
                begun += 1;
                let asked = asked(&mut random, &mut element);
                let snapshot = database.lists.clone();
                let version = database.version;
                open[me] = Some(Open { asked, done: Vec::new(), began: now, snapshot, version });
            }
            continue;
        };
        let next = work.asked.get(work.done.len()).cloned();
        let outcome = match next {
            Some(step) => match database.step(me, &work, &step) {
                Some(step) => {
                    work.done.push(step);
                    open[me] = Some(work);
                    continue;
                }
                None => Outcome::Failed,
            },
            None => *random.pick(&[
                Outcome::Ok,
                Outcome::Ok,
                Outcome::Ok,
                Outcome::Ok,
                Outcome::Ok,
                Outcome::Ok,
                Outcome::Failed,
                Outcome::Unknown,
            ]),
        };
        let commit = match outcome {
            Outcome::Ok => true,
            Outcome::Failed => false,
            Outcome::Unknown => random.below(2) == 0,
        };
        database.end(me, &work, commit);
        let steps = if outcome == Outcome::Ok { work.done } else { work.asked };
        let action = Action { steps, ..Action::default() };
        history.operations.push(operation(me as u64, (work.began, now), outcome, action));
    }
    let keys: BTreeSet<i64> = (0..KEYS as i64).collect();
    let all = |key| Step::Read(key, Some(database.lists.get(&key).cloned().unwrap_or_default()));
    let action =
        Action { steps: keys.into_iter().map(all).collect(), last: true, ..Action::default() };
    history.operations.push(operation(99, (now + 1, now + 2), Outcome::Ok, action));
    history
}

const KEYS: u64 = 4;

fn asked(random: &mut Random, element: &mut i64) -> Vec<Step> {
    (0..1 + random.below(4))
        .map(|_| {
            let key = random.below(KEYS) as i64;
            if random.below(2) == 0 {
                *element += 1;
                Step::Append(key, *element)
            } else {
                Step::Read(key, None)
            }
        })
        .collect()
}
