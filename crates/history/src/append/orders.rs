//! The order of each list's elements, and what single transactions give away.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Isolation, Step, quoted, told};
use crate::operation::{History, Outcome};
use crate::report::{Anomaly, Report};

/// Who appended an element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write {
    pub(super) by: usize,
    /// Whether it is the transaction's last one to this key.
    last: bool,
}

/// A list as a transaction read it, without what it had appended itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) by: usize,
    pub(super) key: i64,
    pub(super) list: &'a [i64],
}

/// What the history says of the lists.
#[derive(Debug)]
pub(super) struct Orders<'a> {
    history: &'a History<Action>,
    pub(super) writes: BTreeMap<(i64, i64), Write>,
    /// Elements of each key in their order, as far as anybody saw it.
    pub(super) order: BTreeMap<i64, &'a [i64]>,
    pub(super) seen: Vec<Seen<'a>>,
    /// Transactions of unknown outcome that somebody saw.
    pub(super) surfaced: BTreeSet<usize>,
}

impl<'a> Orders<'a> {
    pub(super) fn infer(
        history: &'a History<Action>,
        isolation: Isolation,
        report: &mut Report,
    ) -> Self {
        let mut orders = Self {
            history,
            writes: BTreeMap::new(),
            order: BTreeMap::new(),
            seen: Vec::new(),
            surfaced: BTreeSet::new(),
        };
        orders.note_writes(report);
        for (index, operation) in history.done() {
            orders.note_reads(index, &operation.action, isolation, report);
        }
        orders.note_order(report);
        orders.dirty(report);
        orders
    }

    fn note_writes(&mut self, report: &mut Report) {
        for (by, operation) in self.history.operations.iter().enumerate() {
            let steps = &operation.action.steps;
            for (i, step) in steps.iter().enumerate() {
                let Step::Append(key, element) = *step else { continue };
                let again = |s: &Step| matches!(s, Step::Append(k, _) if *k == key);
                let last = !steps[i + 1..].iter().any(again);
                if self.writes.insert((key, element), Write { by, last }).is_some() {
                    report.inconclusive(format!("{element} was appended to {key} twice"));
                }
            }
        }
    }

    /// Takes note of a transaction's reads, and looks whether they agree among themselves.
    fn note_reads(
        &mut self,
        by: usize,
        action: &'a Action,
        isolation: Isolation,
        report: &mut Report,
    ) {
        let mut own: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        let mut before: BTreeMap<i64, &[i64]> = BTreeMap::new();
        for step in &action.steps {
            match step {
                Step::Append(key, element) => own.entry(*key).or_default().push(*element),
                Step::Read(_, None) => {}
                Step::Read(key, Some(list)) => {
                    let own = own.get(key).map_or(&[][..], |o| o);
                    let Some(others) = list.strip_suffix(own) else {
                        let words = format!(
                            "after appending {} a transaction read {key} as {}",
                            quoted(own),
                            quoted(list)
                        );
                        report.broken(Anomaly::Internal, vec![by], self.tell(words, by));
                        continue;
                    };
                    let earlier = before.insert(*key, others);
                    let moved = earlier.is_some_and(|earlier| earlier != others);
                    if moved && isolation != Isolation::ReadCommitted {
                        let words = format!("{key} changed between two reads of one transaction");
                        report.broken(Anomaly::Internal, vec![by], self.tell(words, by));
                    }
                    self.seen.push(Seen { by, key: *key, list: others });
                    let longest = self.order.entry(*key).or_insert(list);
                    if list.len() > longest.len() {
                        *longest = list;
                    }
                }
            }
        }
    }

    /// All reads of a key must be beginnings of the longest one.
    fn note_order(&mut self, report: &mut Report) {
        for seen in &self.seen {
            let longest = self.order[&seen.key];
            if !longest.starts_with(seen.list) {
                let words = format!(
                    "{} was read as {} and as {}: there is no order of its elements",
                    seen.key,
                    quoted(seen.list),
                    quoted(longest)
                );
                report.broken(Anomaly::IncompatibleOrder, vec![seen.by], self.tell(words, seen.by));
            }
        }
        for (key, list) in &self.order {
            let distinct: BTreeSet<_> = list.iter().collect();
            if distinct.len() < list.len() {
                let words = format!("{key} was read as {}", quoted(list));
                report.broken(Anomaly::Duplicate, Vec::new(), words);
            }
        }
    }

    /// Reads of what was rolled back, of what was between two writes of one transaction, and of what
    /// nobody wrote.
    fn dirty(&mut self, report: &mut Report) {
        // What a longer read showed is told once.
        let mut told_of = BTreeSet::new();
        for at in 0..self.seen.len() {
            let Seen { by, key, list } = self.seen[at];
            for (place, element) in list.iter().enumerate() {
                let Some(write) = self.writes.get(&(key, *element)).copied() else {
                    if told_of.insert((key, *element)) {
                        let words = format!("nobody appended {element} to {key}, and it was read");
                        report.broken(Anomaly::FromNowhere, vec![by], self.tell(words, by));
                    }
                    continue;
                };
                let outcome = self.history.operations[write.by].outcome;
                if outcome == Outcome::Unknown {
                    self.surfaced.insert(write.by);
                }
                if outcome == Outcome::Failed && told_of.insert((key, *element)) {
                    let words = format!(
                        "T{} was rolled back, and its append of {element} to {key} was read",
                        write.by
                    );
                    report.broken(Anomaly::G1a, vec![write.by, by], self.tell(words, by));
                }
                if place + 1 == list.len() && !write.last && write.by != by {
                    let words = format!(
                        "{key} was read with {element} at its end, which is not the last that T{} \
                         appended to it",
                        write.by
                    );
                    report.broken(Anomaly::G1b, vec![write.by, by], self.tell(words, by));
                }
            }
        }
    }

    /// Acknowledged appends that the reading of everything does not have.
    pub(super) fn lost(&self, report: &mut Report) {
        let finals = self.history.done().filter(|(_, o)| o.action.last);
        let mut held: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
        for (_, operation) in finals {
            for step in &operation.action.steps {
                if let Step::Read(key, Some(list)) = step {
                    held.entry(*key).or_default().extend(list);
                }
            }
        }
        for ((key, element), write) in &self.writes {
            if !self.history.operations[write.by].is_ok() {
                continue;
            }
            match held.get(key) {
                Some(list) if list.contains(element) => {}
                Some(_) => {
                    let words = format!("the append of {element} to {key} is not there at the end");
                    report.broken(Anomaly::Lost, vec![write.by], self.tell(words, write.by));
                }
                None => report.inconclusive(format!("{key} was not read at the end")),
            }
        }
    }

    /// Reads by the writer that miss what had ended when their transaction began. No level permits
    /// that: a statement sees all that was there when it began.
    pub(super) fn stale(&self, report: &mut Report) {
        for Seen { by, key, list } in &self.seen {
            let operation = &self.history.operations[*by];
            let order = self.order[key];
            let missed = order.get(list.len()).filter(|_| order.starts_with(list));
            let write = missed.and_then(|element| self.writes.get(&(*key, *element)));
            let Some(write) = write.filter(|_| operation.action.replica.is_none()) else {
                continue;
            };
            let ended = self.history.operations[write.by].ended();
            if ended.is_some_and(|end| end < operation.invoked) && write.by != *by {
                let words = format!(
                    "{key} was read as {}, and what T{} appended before is missing",
                    quoted(list),
                    write.by
                );
                report.broken(Anomaly::StaleRead, vec![write.by, *by], self.tell(words, *by));
            }
        }
    }

    /// Words with the transaction they are about.
    fn tell(&self, words: String, by: usize) -> String {
        format!("{words}\n{}", told(by, &self.history.operations[by]))
    }
}
