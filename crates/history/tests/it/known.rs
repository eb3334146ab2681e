//! Small histories kept as files: those in `known-bad` must be caught, as exactly what their first
//! line says; those in `known-good` are near misses and must pass.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use quorate_history::{Anomaly, Promise, Recorded};

fn each(dir: &str, mut judge: impl FnMut(&str, &Promise, BTreeSet<Anomaly>, BTreeSet<Anomaly>)) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let (header, recorded) = Recorded::read(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let report = recorded.check();
        let broken: BTreeSet<_> = report.broken.keys().copied().collect();
        let permitted: BTreeSet<_> = report.permitted.keys().copied().collect();
        let (wanted, allowed): (BTreeSet<_>, BTreeSet<_>) =
            (header.expect.into_iter().collect(), header.permit.into_iter().collect());
        assert_eq!(broken, wanted, "{name}: {report}");
        assert_eq!(permitted, allowed, "{name}: {report}");
        assert!(!header.about.is_empty(), "{name} does not say what it shows");
        judge(&name, &header.promise, wanted, allowed);
    }
}

#[test]
fn what_is_known_to_be_bad_is_caught() {
    let mut seen = BTreeSet::new();
    let mut workloads = BTreeSet::new();
    each("known-bad", |name, promise, wanted, _| {
        assert!(!wanted.is_empty(), "{name} expects nothing");
        seen.extend(wanted);
        let text = serde_json::to_value(promise).unwrap();
        workloads.insert(text["workload"].as_str().unwrap().to_owned());
    });
    let missing: Vec<_> = ALL.iter().filter(|a| !seen.contains(a)).collect();
    assert!(missing.is_empty(), "no history shows {missing:?}");
    let all = ["ambiguous", "append", "bank", "counter", "linear", "register", "set"];
    assert_eq!(workloads, all.map(str::to_owned).into());
}

#[test]
fn near_misses_pass() {
    let mut count = 0;
    each("known-good", |name, _, wanted, _| {
        assert!(wanted.is_empty(), "{name} is in the wrong place");
        count += 1;
    });
    assert!(count >= 10, "{count} near misses");
}

#[test]
fn a_history_reads_as_it_was_written() {
    for dir in ["known-bad", "known-good"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
        for entry in fs::read_dir(dir).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let (_, recorded) = Recorded::read(&text).unwrap();
            let (header, again) = Recorded::read(&recorded.write("the same")).unwrap();
            assert_eq!(recorded, again);
            assert_eq!(header.about, "the same");
        }
    }
}

const ALL: [Anomaly; 27] = [
    Anomaly::G0,
    Anomaly::G1a,
    Anomaly::G1b,
    Anomaly::G1c,
    Anomaly::GSingle,
    Anomaly::GNonadjacent,
    Anomaly::G2Item,
    Anomaly::G0RealTime,
    Anomaly::G1cRealTime,
    Anomaly::GSingleRealTime,
    Anomaly::GNonadjacentRealTime,
    Anomaly::G2ItemRealTime,
    Anomaly::LongFork,
    Anomaly::Internal,
    Anomaly::IncompatibleOrder,
    Anomaly::Duplicate,
    Anomaly::FromNowhere,
    Anomaly::Lost,
    Anomaly::FailedYetPresent,
    Anomaly::StaleRead,
    Anomaly::NonMonotonicRead,
    Anomaly::NotLinearizable,
    Anomaly::WrongSum,
    Anomaly::NegativeBalance,
    Anomaly::WrongCount,
    Anomaly::WrongAnswer,
    Anomaly::Inconclusive,
];
