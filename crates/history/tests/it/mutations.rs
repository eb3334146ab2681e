//! Good histories of every workload, each damaged in the ways that its anomalies describe. Every
//! damage must be caught, at every place where it is tried.

use std::collections::BTreeMap;

use quorate_history::append::{Isolation, Promise, Step};
use quorate_history::register::Level;
use quorate_history::{
    Anomaly, History, Outcome, Report, Server, ambiguous, append, bank, counter, linear, register,
    set,
};

use crate::simulator::{Random, operation, run};

fn server(node: &str, replica: bool) -> Server {
    Server { node: node.to_owned(), replica }
}

/// Tries a damage at many places. It returns whether it could be done at one of them.
fn caught<A: Clone>(
    what: Anomaly,
    whole: impl Fn(u64) -> History<A>,
    check: impl Fn(&History<A>) -> Report,
    damage: impl Fn(&mut History<A>, &mut Random) -> bool,
) {
    let mut tried = 0;
    for seed in 0..15 {
        let good = whole(seed);
        let report = check(&good);
        assert!(report.is_good(), "seed {seed} is not good to begin with: {report}");
        for place in 0..3 {
            let mut bad = good.clone();
            if damage(&mut bad, &mut Random(seed * 100 + place)) {
                tried += 1;
                let report = check(&bad);
                assert!(report.broken.contains_key(&what), "{what} at seed {seed}: {report}");
            }
        }
    }
    assert!(tried >= 20, "{what} was tried {tried} times only");
}

fn at<A>(
    history: &mut History<A>,
    random: &mut Random,
    fits: impl Fn(&quorate_history::Operation<A>) -> bool,
) -> Option<usize> {
    let places: Vec<usize> =
        (0..history.operations.len()).filter(|i| fits(&history.operations[*i])).collect();
    (!places.is_empty()).then(|| *random.pick(&places))
}

#[test]
fn lists() {
    let whole = |isolation| move |seed| run(isolation, 150, seed);
    let check = |isolation| {
        move |h: &History<append::Action>| append::check(h, Promise { isolation, real_time: true })
    };
    let levels = [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable];
    let appends = |o: &quorate_history::Operation<append::Action>| o.is_ok() && o.action.writes();
    for level in levels {
        let (whole, check) = (whole(level), check(level));
        // What was read is said to be rolled back.
        caught(Anomaly::G1a, whole, check, |h, random| {
            let Some(i) = at(h, random, appends) else { return false };
            h.operations[i].outcome = Outcome::Failed;
            true
        });
        caught(Anomaly::Lost, whole, check, |h, random| {
            let last = h.operations.len() - 1;
            let key = random.below(4) as usize;
            let Step::Read(name, Some(list)) = &mut h.operations[last].action.steps[key] else {
                return false;
            };
            let Some(element) = list.pop() else { return false };
            // One of unknown outcome need not be there.
            let append = Step::Append(*name, element);
            h.done().any(|(_, o)| o.action.steps.contains(&append))
        });
        caught(Anomaly::FromNowhere, whole, check, |h, random| {
            let last = h.operations.len() - 1;
            let key = random.below(4) as usize;
            let Step::Read(_, Some(list)) = &mut h.operations[last].action.steps[key] else {
                return false;
            };
            list.push(1_000_000);
            true
        });
        caught(Anomaly::Duplicate, whole, check, |h, random| {
            let last = h.operations.len() - 1;
            let key = random.below(4) as usize;
            let Step::Read(_, Some(list)) = &mut h.operations[last].action.steps[key] else {
                return false;
            };
            let Some(first) = list.first().copied() else { return false };
            list.push(first);
            true
        });
        caught(Anomaly::IncompatibleOrder, whole, check, |h, random| {
            let last = h.operations.len() - 1;
            let key = random.below(4) as usize;
            let order = h.operations[last].action.steps[key].clone();
            let Step::Read(key, Some(order)) = order else { return false };
            let long = |s: &Step| matches!(s, Step::Read(k, Some(l)) if *k == key && l.len() > 2);
            let fits = |o: &quorate_history::Operation<append::Action>| {
                o.is_ok() && !o.action.last && !o.action.writes() && o.action.steps.iter().any(long)
            };
            let Some(i) = at(h, random, fits) else { return false };
            for step in &mut h.operations[i].action.steps {
                if let Step::Read(k, Some(list)) = step
                    && *k == key
                    && list.len() > 2
                {
                    list.swap(0, 1);
                }
            }
            order.len() > 3
        });
    }
    // A transaction that only reads, long after everything, and misses the end of a list.
    let late = |h: &mut History<append::Action>, random: &mut Random| {
        let last = h.operations.last().unwrap().clone();
        let mut steps = vec![last.action.steps[random.below(4) as usize].clone()];
        let Step::Read(key, Some(list)) = &mut steps[0] else { return false };
        let end = last.completed.0;
        let Some(element) = list.last() else { return false };
        let append = Step::Append(*key, *element);
        // One of unknown outcome may have come later still.
        let Some((_, writer)) = h.done().find(|(_, o)| o.action.steps.contains(&append)) else {
            return false;
        };
        let key = *key;
        list.retain(|element| !writer.action.steps.contains(&Step::Append(key, *element)));
        let action = append::Action { steps, ..append::Action::default() };
        h.operations.push(operation(98, (end + 1, end + 2), Outcome::Ok, action));
        true
    };
    let si = Isolation::RepeatableRead;
    caught(Anomaly::GSingleRealTime, whole(si), check(si), late);
    for level in levels {
        caught(Anomaly::StaleRead, whole(level), check(level), late);
    }
}

#[test]
fn rows() {
    let whole = |seed| {
        let mut random = Random(seed);
        let mut history = History::default();
        let mut held = Vec::new();
        for id in 0..40 {
            let outcome =
                *random.pick(&[Outcome::Ok, Outcome::Ok, Outcome::Failed, Outcome::Unknown]);
            let there = outcome == Outcome::Ok || outcome == Outcome::Unknown && id % 2 == 0;
            held.extend(there.then_some(id));
            let span = (id as u64, id as u64 + 1);
            history.operations.push(operation(0, span, outcome, set::Action::Add(id)));
        }
        history.operations.push(operation(0, (90, 91), Outcome::Ok, set::Action::All(held)));
        history
    };
    let rows = |h: &mut History<set::Action>| -> usize { h.operations.len() - 1 };
    let change = |f: fn(&mut Vec<i64>, i64)| {
        move |h: &mut History<set::Action>, random: &mut Random, outcome: Outcome| {
            let fits = |o: &quorate_history::Operation<set::Action>| {
                o.outcome == outcome && matches!(o.action, set::Action::Add(_))
            };
            let Some(i) = at(h, random, fits) else { return false };
            let set::Action::Add(id) = h.operations[i].action else { return false };
            let last = rows(h);
            let set::Action::All(held) = &mut h.operations[last].action else { return false };
            f(held, id);
            true
        }
    };
    let without = change(|held, id| held.retain(|h| *h != id));
    let with = change(|held, id| held.push(id));
    let strange = change(|held, id| held.push(id + 1000));
    caught(Anomaly::Lost, whole, set::check, |h, r| without(h, r, Outcome::Ok));
    caught(Anomaly::FailedYetPresent, whole, set::check, |h, r| with(h, r, Outcome::Failed));
    caught(Anomaly::Duplicate, whole, set::check, |h, r| with(h, r, Outcome::Ok));
    caught(Anomaly::FromNowhere, whole, set::check, |h, r| strange(h, r, Outcome::Ok));
    caught(Anomaly::Inconclusive, whole, set::check, |h, _| h.operations.pop().is_some());
}

#[test]
fn commits() {
    use ambiguous::Action;
    let whole = |seed| {
        let mut random = Random(seed);
        let mut history = History::default();
        let mut held = Vec::new();
        for id in 0..40 {
            let outcome = *random.pick(&[Outcome::Ok, Outcome::Failed, Outcome::Unknown]);
            let there = outcome == Outcome::Ok || outcome == Outcome::Unknown && id % 2 == 0;
            held.extend(there.then_some(id));
            let at_commit = outcome == Outcome::Unknown || random.below(2) == 0;
            let action = Action::Transaction { id, at_commit };
            let span = (id as u64, id as u64 + 1);
            history.operations.push(operation(0, span, outcome, action));
        }
        history.operations.push(operation(0, (90, 91), Outcome::Ok, Action::All(held)));
        history
    };
    let turned = |from: Outcome, to: Outcome| {
        move |h: &mut History<Action>, random: &mut Random| {
            let fits = |o: &quorate_history::Operation<Action>| {
                o.outcome == from && matches!(o.action, Action::Transaction { .. })
            };
            let Some(i) = at(h, random, fits) else { return false };
            h.operations[i].outcome = to;
            assert_eq!(
                ambiguous::answers(h).wrong,
                usize::from(at_commit(&h.operations[i].action))
            );
            true
        }
    };
    fn at_commit(action: &Action) -> bool {
        matches!(action, Action::Transaction { at_commit: true, .. })
    }
    caught(Anomaly::WrongAnswer, whole, ambiguous::check, turned(Outcome::Ok, Outcome::Failed));
    caught(Anomaly::WrongAnswer, whole, ambiguous::check, turned(Outcome::Failed, Outcome::Ok));
    caught(Anomaly::Inconclusive, whole, ambiguous::check, |h, _| h.operations.pop().is_some());
}

#[test]
fn money() {
    use bank::{Action, Promise};
    let promise = || Promise { accounts: vec![10; 4] };
    let whole = |seed| {
        let mut random = Random(seed);
        let mut history = History::default();
        let mut balances = promise().accounts;
        for i in 0..60 {
            let (from, to) = (random.below(4) as usize, random.below(4) as usize);
            let amount = 1 + random.below(3) as i64;
            let outcome = if from == to || balances[from] < amount {
                Outcome::Failed
            } else {
                *random.pick(&[Outcome::Ok, Outcome::Ok, Outcome::Unknown])
            };
            if outcome == Outcome::Ok || outcome == Outcome::Unknown && i % 2 == 0 {
                balances[from] -= amount;
                balances[to] += amount;
            }
            let action = Action::Transfer { from: from as i64, to: to as i64, amount };
            let span = (i * 10, i * 10 + 1);
            history.operations.push(operation(0, span, outcome, action));
            let (by, last) = (server("n1", i % 2 == 0), i == 59);
            let action = Action::Balances { balances: balances.clone(), by, last };
            history.operations.push(operation(1, (i * 10 + 2, i * 10 + 3), Outcome::Ok, action));
        }
        history
    };
    let check = |h: &History<Action>| bank::check(h, &promise());
    let at_read = |f: fn(&mut Vec<i64>)| {
        move |h: &mut History<Action>, random: &mut Random| {
            let fits = |o: &quorate_history::Operation<Action>| {
                matches!(o.action, Action::Balances { .. })
            };
            let Some(i) = at(h, random, fits) else { return false };
            let Action::Balances { balances, .. } = &mut h.operations[i].action else {
                return false;
            };
            f(balances);
            true
        }
    };
    caught(Anomaly::WrongSum, whole, check, at_read(|b| b[0] += 1));
    caught(Anomaly::WrongSum, whole, check, at_read(|b| b.truncate(3)));
    caught(
        Anomaly::NegativeBalance,
        whole,
        check,
        at_read(|b| {
            let all = b[0] + 1;
            b[0] -= all;
            b[1] += all;
        }),
    );
    // A transfer that was acknowledged and undone: the sum is right, the balances are not.
    caught(Anomaly::WrongCount, whole, check, |h, _| {
        let unknown: i64 = h
            .operations
            .iter()
            .filter(|o| o.outcome == Outcome::Unknown)
            .filter_map(|o| match o.action {
                Action::Transfer { amount, .. } => Some(amount),
                Action::Balances { .. } => None,
            })
            .sum();
        let Some(Action::Balances { balances, .. }) =
            h.operations.last_mut().map(|o| &mut o.action)
        else {
            return false;
        };
        balances[0] += unknown + 1;
        balances[1] -= unknown + 1;
        true
    });
    caught(Anomaly::Inconclusive, whole, check, |h, _| h.operations.pop().is_some());
}

#[test]
fn counts() {
    use counter::Action;
    let whole = |seed| {
        let mut random = Random(seed);
        let mut history = History::default();
        let mut count = 0;
        for i in 0..60 {
            let amount = 1 + random.below(5) as i64;
            let outcome = *random.pick(&[Outcome::Ok, Outcome::Failed]);
            count += if outcome == Outcome::Ok { amount } else { 0 };
            let add = operation(0, (i * 10, i * 10 + 1), outcome, Action::Add(amount));
            history.operations.push(add);
            let read = operation(1, (i * 10 + 2, i * 10 + 3), Outcome::Ok, Action::Read(count));
            history.operations.push(read);
        }
        history.operations.push(operation(0, (900, 901), Outcome::Ok, Action::Add(1)));
        history.operations.push(operation(0, (910, 911), Outcome::Ok, Action::Read(count + 1)));
        history
    };
    let moved = |by: i64| {
        move |h: &mut History<Action>, random: &mut Random| {
            let fits = |o: &quorate_history::Operation<Action>| matches!(o.action, Action::Read(_));
            let Some(i) = at(h, random, fits) else { return false };
            let Action::Read(count) = &mut h.operations[i].action else { return false };
            *count += by;
            true
        }
    };
    caught(Anomaly::WrongCount, whole, counter::check, moved(-1));
    caught(Anomaly::WrongCount, whole, counter::check, moved(1));
    caught(Anomaly::Inconclusive, whole, counter::check, |h, _| h.operations.pop().is_some());
}

/// One register that is written by one session and read by three, one after the other.
fn registers(level: Level) -> impl Fn(u64) -> History<register::Action> {
    use register::Action;
    move |seed| {
        let mut random = Random(seed);
        let mut history = History::default();
        let mut values = BTreeMap::from([(0, 0), (1, 0)]);
        for i in 1..80 {
            let span = (i * 10, i * 10 + 5);
            if random.below(3) == 0 {
                let key = random.below(2) as i64;
                values.insert(key, i as i64);
                let action = Action::Write { key, value: i as i64 };
                history.operations.push(operation(0, span, Outcome::Ok, action));
            } else {
                let by = server("n2", level != Level::Strong);
                let action = Action::Read { values: values.clone(), by };
                history.operations.push(operation(random.below(3), span, Outcome::Ok, action));
            }
        }
        history
    }
}

#[test]
fn levels() {
    use register::{Action, Promise, check};
    /// Replaces all values of a read by those of the beginning.
    fn aged(h: &mut History<Action>, random: &mut Random, process: Option<u64>) -> bool {
        let after = |o: &quorate_history::Operation<Action>| match &o.action {
            Action::Read { values, .. } => {
                let mine = process.is_none_or(|p| o.process.0 == p);
                mine && o.invoked.0 > 400 && values.values().all(|v| *v > 0)
            }
            _ => false,
        };
        let Some(i) = at(h, random, after) else { return false };
        let Action::Read { values, by } = &mut h.operations[i].action else { return false };
        values.values_mut().for_each(|v| *v = 0);
        // An old state is one that a server had: another one's.
        by.node = "n3".to_owned();
        true
    }
    for level in Level::ALL {
        let promise = Promise { level, staleness_ms: 0 };
        let check = |h: &History<Action>| check(h, promise);
        match level {
            Level::Strong | Level::Bounded => {
                caught(Anomaly::StaleRead, registers(level), check, |h, r| aged(h, r, None));
            }
            Level::ReadYourWrites => {
                caught(Anomaly::StaleRead, registers(level), check, |h, r| aged(h, r, Some(0)));
            }
            Level::Monotonic | Level::Causal => {
                caught(Anomaly::StaleRead, registers(level), check, |h, r| aged(h, r, Some(0)));
                caught(Anomaly::NonMonotonicRead, registers(level), check, |h, r| {
                    aged(h, r, Some(1))
                });
            }
            Level::Eventual => {}
        }
        caught(Anomaly::FromNowhere, registers(level), check, |h, random| {
            let reads = |o: &quorate_history::Operation<Action>| {
                matches!(o.action, Action::Read { .. }) && o.invoked.0 > 200
            };
            let Some(i) = at(h, random, reads) else { return false };
            let Action::Read { values, .. } = &mut h.operations[i].action else { return false };
            values.insert(1, 5000);
            true
        });
        caught(Anomaly::FailedYetPresent, registers(level), check, |h, random| {
            let seen: Vec<i64> = h
                .operations
                .iter()
                .filter_map(|o| match &o.action {
                    Action::Read { values, .. } => Some(values.values().copied()),
                    _ => None,
                })
                .flatten()
                .collect();
            let shown = |o: &quorate_history::Operation<Action>| match o.action {
                Action::Write { value, .. } => seen.contains(&value),
                _ => false,
            };
            let Some(i) = at(h, random, shown) else { return false };
            h.operations[i].outcome = Outcome::Failed;
            true
        });
        let name = if level == Level::Strong { Anomaly::LongFork } else { Anomaly::GNonadjacent };
        caught(name, registers(level), check, |h, random| {
            let reads = |o: &quorate_history::Operation<Action>| match &o.action {
                Action::Read { values, .. } => values.values().all(|v| *v > 0),
                _ => false,
            };
            let Some(i) = at(h, random, reads) else { return false };
            // Two reads at once, of the last write of one key each.
            let whole = h.operations[i].clone();
            let Action::Read { values, by } = &whole.action else { return false };
            let old = BTreeMap::from([(0, 0), (1, 0)]);
            for key in [0, 1] {
                let mut values = values.clone();
                values.insert(key, old[&key]);
                let mut by = by.clone();
                if level == Level::Strong {
                    by.node = format!("n{key}");
                }
                let mut half = whole.clone();
                half.process.0 = 50 + key as u64;
                half.action = Action::Read { values, by };
                h.operations.push(half);
            }
            true
        });
    }
}

#[test]
fn tokens() {
    use register::{Action, Promise, check};
    let whole = |seed| {
        let mut history = History::default();
        for i in 1..40 {
            let value = i as i64;
            let by = server("n2", true);
            let values = BTreeMap::from([(0, value)]);
            let steps = [
                (0, Action::Write { key: 0, value }),
                (0, Action::Give(i)),
                (1 + seed % 3, Action::Take(i)),
                (1 + seed % 3, Action::Read { values, by }),
            ];
            for (at, (process, action)) in steps.into_iter().enumerate() {
                let begin = i * 100 + at as u64 * 10;
                history.operations.push(operation(
                    process,
                    (begin, begin + 5),
                    Outcome::Ok,
                    action,
                ));
            }
        }
        history
    };
    let check = |h: &History<Action>| check(h, Promise { level: Level::Causal, staleness_ms: 0 });
    caught(Anomaly::StaleRead, whole, check, |h, random| {
        let reads =
            |o: &quorate_history::Operation<Action>| matches!(o.action, Action::Read { .. });
        let Some(i) = at(h, random, reads) else { return false };
        let Action::Read { values, .. } = &mut h.operations[i].action else { return false };
        values.values_mut().for_each(|v| *v -= 1);
        true
    });
    caught(Anomaly::Inconclusive, whole, check, |h, random| {
        let takes = |o: &quorate_history::Operation<Action>| matches!(o.action, Action::Take(_));
        let Some(i) = at(h, random, takes) else { return false };
        h.operations[i].action = Action::Take(9999);
        true
    });
}

#[test]
fn one_register() {
    use linear::Action;
    let whole = |seed| {
        let mut random = Random(seed);
        let mut history = History::default();
        let mut held = [0, 0];
        for i in 1..120 {
            let key = random.below(2) as usize;
            let span = (i * 10, i * 10 + 4 + random.below(10));
            let value = i as i64;
            let (outcome, action) = match random.below(4) {
                0 => (Outcome::Ok, Action::Write { key: key as i64, value }),
                1 => (Outcome::Ok, Action::Swap { key: key as i64, from: held[key], to: value }),
                2 => {
                    // May have happened, and did not.
                    (Outcome::Unknown, Action::Write { key: key as i64, value })
                }
                _ => (Outcome::Ok, Action::Read { key: key as i64, value: held[key] }),
            };
            if outcome == Outcome::Ok && !matches!(action, Action::Read { .. }) {
                held[key] = value;
            }
            history.operations.push(operation(random.below(6), span, outcome, action));
        }
        history
    };
    caught(Anomaly::NotLinearizable, whole, linear::check, |h, random| {
        let reads = |o: &quorate_history::Operation<Action>| {
            o.invoked.0 > 400 && matches!(o.action, Action::Read { value, .. } if value > 30)
        };
        let Some(i) = at(h, random, reads) else { return false };
        let Action::Read { value, .. } = &mut h.operations[i].action else { return false };
        *value = 0;
        true
    });
}
