//! What all rounds of an attack showed, for a reader.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use quorate_history::ambiguous::Answers;
use quorate_history::{Anomaly, Report, Tally};

use super::nemesis::Nemesis;
use super::round::Outcome;
use super::workloads::Kind;

/// Sums over rounds.
#[derive(Debug, Default)]
pub struct Verdict {
    rounds: usize,
    workloads: BTreeMap<Kind, Row>,
    struck: BTreeMap<Nemesis, usize>,
    answers: Answers,
    trouble: Vec<String>,
    interrupted: bool,
}

#[derive(Debug, Default)]
struct Row {
    tally: Tally,
    broken: BTreeMap<Anomaly, usize>,
    permitted: BTreeMap<Anomaly, usize>,
    pause: Duration,
}

impl Row {
    fn add(&mut self, report: &Report, pause: Duration) {
        self.tally.ok += report.tally.ok;
        self.tally.failed += report.tally.failed;
        self.tally.unknown += report.tally.unknown;
        for (anomaly, found) in &report.broken {
            *self.broken.entry(*anomaly).or_default() += found.count;
        }
        for (anomaly, found) in &report.permitted {
            *self.permitted.entry(*anomaly).or_default() += found.count;
        }
        self.pause = self.pause.max(pause);
    }
}

impl Verdict {
    /// Adds a round.
    pub fn add(&mut self, outcome: &Outcome) {
        self.rounds += 1;
        for judged in &outcome.judged {
            self.workloads.entry(judged.kind).or_default().add(&judged.report, judged.pause);
        }
        for (nemesis, times) in &outcome.struck {
            *self.struck.entry(*nemesis).or_default() += times;
        }
        self.answers.sent += outcome.answers.sent;
        self.answers.committed += outcome.answers.committed;
        self.answers.rolled_back += outcome.answers.rolled_back;
        self.answers.unknown += outcome.answers.unknown;
        self.answers.wrong += outcome.answers.wrong;
        let number = outcome.plan.number;
        let seed = outcome.plan.seed;
        let trouble = outcome.trouble.iter();
        self.trouble.extend(trouble.map(|t| format!("round {number} (seed {seed}): {t}")));
    }

    /// Says that it came to an end before its time.
    pub fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// Whether nothing is wrong, and anything was shown at all.
    pub fn is_good(&self) -> bool {
        self.rounds > 0
            && self.trouble.is_empty()
            && self.workloads.values().all(|row| row.broken.is_empty())
    }

    /// The verdict in a sentence.
    pub fn sentence(&self) -> String {
        let rows = self.workloads.values();
        let operations: usize = rows.map(|r| r.tally.ok + r.tally.failed + r.tally.unknown).sum();
        let faults: usize = self.struck.values().sum();
        let what = format!(
            "{} rounds, {operations} operations, {faults} faults{}",
            self.rounds,
            if self.interrupted { ", interrupted" } else { "" }
        );
        if self.is_good() {
            return format!(
                "KEPT: in {what}, nothing acknowledged was lost, no answer to a COMMIT was wrong, and \
                 nothing was seen that a level forbids."
            );
        }
        let mut broken: BTreeMap<Anomaly, usize> = BTreeMap::new();
        for row in self.workloads.values() {
            row.broken.iter().for_each(|(a, n)| *broken.entry(*a).or_default() += n);
        }
        let mut wrong: Vec<String> = broken.iter().map(|(a, n)| format!("{a} ({n})")).collect();
        wrong
            .extend((!self.trouble.is_empty()).then(|| format!("{} troubles", self.trouble.len())));
        wrong.extend((self.rounds == 0).then(|| "no round came to its end".to_owned()));
        format!("BROKEN: in {what}: {}.", wrong.join(", "))
    }
}

fn counted(anomalies: &BTreeMap<Anomaly, usize>) -> String {
    if anomalies.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<_> = anomalies.iter().map(|(a, n)| format!("{a} {n}")).collect();
    words.join(", ")
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| {:<25} | {:>8} | {:>6} | {:>7} | {:>13} | {:<20} | permitted, and seen",
            "workload", "ok", "failed", "unknown", "longest pause", "broken"
        )?;
        let line = |n: usize| "-".repeat(n + 2);
        let widths = [25, 8, 6, 7, 13, 20, 19].map(line);
        writeln!(f, "|{}", widths.join("|"))?;
        for (kind, row) in &self.workloads {
            writeln!(
                f,
                "| {kind:<25} | {:>8} | {:>6} | {:>7} | {:>11.1} s | {:<20} | {}",
                row.tally.ok,
                row.tally.failed,
                row.tally.unknown,
                row.pause.as_secs_f64(),
                counted(&row.broken),
                counted(&row.permitted)
            )?;
        }
        let struck: Vec<_> = self.struck.iter().map(|(n, times)| format!("{n} {times}")).collect();
        writeln!(f, "\nfaults: {}", struck.join(", "))?;
        let Answers { sent, committed, rolled_back, unknown, wrong } = self.answers;
        writeln!(
            f,
            "COMMITs of the workload ambiguous: {sent} sent; answered committed {committed}, rolled \
             back {rolled_back}, unknown {unknown}; wrong {wrong}"
        )?;
        for trouble in &self.trouble {
            writeln!(f, "trouble: {trouble}")?;
        }
        write!(f, "\n{}", self.sentence())
    }
}
