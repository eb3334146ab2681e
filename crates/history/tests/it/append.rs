//! The check of transactions against simulated databases and against another checker.

use std::collections::BTreeSet;

use adya::{Opts, Valid, Workload};
use quorate_history::append::{Action, Isolation, Promise, Step, check};
use quorate_history::{Anomaly, History, Outcome};

use crate::simulator::{Random, run};

const LEVELS: [(Isolation, &str); 3] = [
    (Isolation::ReadCommitted, "read-committed"),
    (Isolation::RepeatableRead, "snapshot-isolation"),
    (Isolation::Serializable, "serializable"),
];

fn promise(isolation: Isolation) -> Promise {
    Promise { isolation, real_time: true }
}

#[test]
fn a_database_that_keeps_a_level_passes_at_it() {
    for (isolation, _) in LEVELS {
        for seed in 0..40 {
            let report = check(&run(isolation, 200, seed), promise(isolation));
            assert!(report.is_good(), "{isolation:?}, seed {seed}: {report}");
        }
    }
}

/// Whether histories of one level, taken together, are caught when another one is asked for.
fn caught(real: Isolation, wanted: Isolation) -> BTreeSet<Anomaly> {
    let reports = (0..10).map(|seed| check(&run(real, 200, seed), promise(wanted)));
    reports.flat_map(|r| r.broken.into_keys()).collect()
}

#[test]
fn a_weaker_database_is_caught() {
    let skew = caught(Isolation::RepeatableRead, Isolation::Serializable);
    assert!(skew.contains(&Anomaly::G2Item), "{skew:?}");
    assert!(!skew.contains(&Anomaly::GSingle), "{skew:?}");
    let torn = caught(Isolation::ReadCommitted, Isolation::RepeatableRead);
    assert!(torn.contains(&Anomaly::GSingle), "{torn:?}");
    assert!(!torn.contains(&Anomaly::G1c), "{torn:?}");
}

/// In the other checker's words.
fn translated(history: &History<Action>) -> adya::History {
    let mut events: Vec<(u64, u8, String)> = Vec::new();
    for (index, operation) in history.operations.iter().enumerate() {
        let value = |answered: bool| {
            let steps = operation.action.steps.iter().map(|step| match step {
                Step::Append(key, element) => format!("[\"append\",{key},{element}]"),
                Step::Read(key, Some(list)) if answered => format!("[\"r\",{key},{list:?}]"),
                Step::Read(key, _) => format!("[\"r\",{key},null]"),
            });
            steps.collect::<Vec<_>>().join(",")
        };
        let kind = match operation.outcome {
            Outcome::Ok => "ok",
            Outcome::Failed => "fail",
            Outcome::Unknown => "info",
        };
        let line = |kind: &str, answered| {
            format!("{{\"type\":\"{kind}\",\"process\":{index},\"value\":[{}]}}\n", value(answered))
        };
        events.push((operation.invoked.0, 0, line("invoke", false)));
        events.push((operation.completed.0, 1, line(kind, operation.is_ok())));
    }
    events.sort();
    let text: String = events.into_iter().map(|(.., line)| line).collect();
    adya::History::from_json(&text).unwrap()
}

/// Makes reads forget elements, here and there, so that all kinds of anomalies come up.
fn damaged(mut history: History<Action>, random: &mut Random) -> History<Action> {
    for operation in history.operations.iter_mut().filter(|o| o.is_ok() && !o.action.last) {
        for step in &mut operation.action.steps {
            if let Step::Read(_, Some(list)) = step
                && random.below(25) == 0
            {
                list.truncate(random.below(list.len() as u64 + 1) as usize);
            }
        }
    }
    history
}

#[test]
fn another_checker_agrees() {
    let (mut passed, mut failed) = (0, 0);
    for (real, _) in LEVELS {
        for seed in 0..15 {
            let mut random = Random(seed);
            let whole = run(real, 120, seed);
            let broken = damaged(whole.clone(), &mut random);
            for history in [whole, broken] {
                for (wanted, name) in LEVELS {
                    let promise = Promise { isolation: wanted, real_time: false };
                    let ours = check(&history, promise);
                    let models = vec![name.to_owned()];
                    let opts = Opts { models, ..Opts::default() };
                    let theirs = adya::check(&translated(&history), Workload::ListAppend, &opts);
                    // The other one takes it for permitted at read committed that a transaction does
                    // not see its own writes. PostgreSQL does not.
                    let internal = ours.broken.contains_key(&Anomaly::Internal);
                    if internal && wanted == Isolation::ReadCommitted {
                        continue;
                    }
                    let agree = ours.is_good() == (theirs.valid == Valid::True);
                    assert!(
                        agree,
                        "{real:?} as {wanted:?}, seed {seed}: {ours}\n{:?} {:?}",
                        theirs.valid, theirs.anomaly_types
                    );
                    *if agree && theirs.valid == Valid::True {
                        &mut passed
                    } else {
                        &mut failed
                    } += 1;
                }
            }
        }
    }
    assert!(passed > 100 && failed > 100, "{passed} and {failed} histories prove little");
}
