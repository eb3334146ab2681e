//! Circles among transactions.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Isolation, Promise, told};
use crate::append::orders::Orders;
use crate::graph::{Graph, Kind, Step, Walk};
use crate::operation::{History, Outcome};
use crate::report::{Anomaly, Report};

use Kind::{ReadWrite, Time, WriteRead, WriteWrite};

/// What is searched, the worst first. Together they find a circle wherever there is one.
const WALKS: [Walk; 4] = [
    Walk { kinds: &[WriteWrite], spaced: false, with: WriteWrite },
    Walk { kinds: &[WriteWrite, WriteRead], spaced: false, with: WriteRead },
    Walk { kinds: &[WriteWrite, WriteRead, ReadWrite], spaced: true, with: ReadWrite },
    Walk { kinds: &[WriteWrite, WriteRead, ReadWrite], spaced: false, with: ReadWrite },
];

/// The same by the clock.
const TIMED: [Walk; 4] = [
    Walk { kinds: &[WriteWrite, Time], spaced: false, with: Time },
    Walk { kinds: &[WriteWrite, WriteRead, Time], spaced: false, with: Time },
    Walk { kinds: &[WriteWrite, WriteRead, ReadWrite, Time], spaced: true, with: Time },
    Walk { kinds: &[WriteWrite, WriteRead, ReadWrite, Time], spaced: false, with: Time },
];

/// Where a transaction was served that only reads: nothing for the writer.
type Place<'a> = Option<&'a str>;

/// Searches the whole history.
pub(super) fn find(
    history: &History<Action>,
    orders: &Orders<'_>,
    promise: Promise,
    report: &mut Report,
) {
    let place = |index: usize| -> Place<'_> {
        history.operations[index].action.replica.as_ref().map(|s| &s.node[..])
    };
    let places: BTreeSet<Place<'_>> =
        history.done().filter(|(_, o)| !o.action.writes()).map(|(i, _)| place(i)).collect();
    let places: BTreeSet<_> = places.into_iter().chain([None]).collect();
    let mut search = Search { history, orders, promise, report, known: BTreeSet::new() };
    for here in &places {
        let writes = |index: usize| history.operations[index].action.writes();
        // What a transaction on the writer missed, a replica may have shown before what it saw.
        let misses = |index: usize| here.is_none() || place(index) == *here;
        let graph = search.graph(|index| writes(index) || place(index) == *here, misses);
        WALKS.iter().for_each(|walk| search.walk(&graph, *walk, None));
    }
    if promise.real_time {
        let mut graph = search.graph(|index| place(index).is_none(), |_| true);
        graph.add_time(&search.spans());
        TIMED.iter().for_each(|walk| search.walk(&graph, *walk, None));
    }
    if places.len() > 1 {
        let graph = search.graph(|_| true, |_| true);
        search.walk(&graph, WALKS[2], Some(Anomaly::LongFork));
        if promise.isolation == Isolation::Serializable {
            search.walk(&graph, WALKS[3], Some(Anomaly::LongFork));
        }
    }
}

struct Search<'a> {
    history: &'a History<Action>,
    orders: &'a Orders<'a>,
    promise: Promise,
    report: &'a mut Report,
    /// Circles that were reported, by their transactions.
    known: BTreeSet<Vec<usize>>,
}

impl Search<'_> {
    /// What follows from the lists, among the transactions that count; what a transaction did not see
    /// counts where `misses` says so.
    fn graph(&self, counts: impl Fn(usize) -> bool, misses: impl Fn(usize) -> bool) -> Graph {
        let there = |index: usize| {
            let outcome = self.history.operations[index].outcome;
            let happened = outcome == Outcome::Ok
                || outcome == Outcome::Unknown && self.orders.surfaced.contains(&index);
            happened && counts(index)
        };
        let mut graph = Graph::new(self.history.operations.len());
        let mut add = |from: usize, to: usize, kind, about| {
            if there(from) && there(to) {
                graph.add(from, to, kind, about);
            }
        };
        let writer = |key, element| self.orders.writes.get(&(key, element)).map(|w| w.by);
        for (key, order) in &self.orders.order {
            for pair in order.windows(2) {
                if let (Some(from), Some(to)) = (writer(*key, pair[0]), writer(*key, pair[1])) {
                    add(from, to, WriteWrite, (*key, pair[1]));
                }
            }
        }
        for seen in &self.orders.seen {
            if let Some(last) = seen.list.last()
                && let Some(from) = writer(seen.key, *last)
            {
                add(from, seen.by, WriteRead, (seen.key, *last));
            }
            if !misses(seen.by) {
                continue;
            }
            let order = self.orders.order[&seen.key];
            if let Some(next) = order.get(seen.list.len()).filter(|_| order.starts_with(seen.list))
                && let Some(to) = writer(seen.key, *next)
            {
                add(seen.by, to, ReadWrite, (seen.key, *next));
            }
        }
        graph
    }

    /// When the writer's transactions began and ended.
    fn spans(&self) -> Vec<(usize, u64, Option<u64>)> {
        let operations = self.history.operations.iter().enumerate();
        let counts = operations.filter(|(index, o)| {
            o.is_ok() && o.action.replica.is_none() || self.orders.surfaced.contains(index)
        });
        counts.map(|(i, o)| (i, o.invoked.0, o.ended().map(|m| m.0))).collect()
    }

    fn walk(&mut self, graph: &Graph, walk: Walk, name: Option<Anomaly>) {
        for circle in graph.circles(walk) {
            let nodes: Vec<usize> = circle.iter().map(|s| s.from).collect();
            let mut sorted = nodes.clone();
            sorted.sort_unstable();
            if !self.known.insert(sorted) {
                continue;
            }
            let anomaly = name.unwrap_or_else(|| class(&circle));
            let permits = self.promise.isolation.permits(anomaly);
            let words = self.explain(&circle);
            self.report.add(permits, anomaly, nodes, words);
        }
    }

    /// The circle, transaction by transaction and step by step.
    fn explain(&self, circle: &[Step]) -> String {
        let mut told_of = BTreeMap::new();
        for step in circle {
            told_of
                .entry(step.from)
                .or_insert_with(|| told(step.from, &self.history.operations[step.from]));
        }
        let steps = circle.iter().map(|Step { from, edge }| {
            let (to, (key, element)) = (edge.to, edge.about);
            match edge.kind {
                WriteWrite => format!(
                    "T{from} before T{to}: T{to}'s append of {element} to {key} followed its own"
                ),
                WriteRead => {
                    format!("T{from} before T{to}: T{to} saw its append of {element} to {key}")
                }
                ReadWrite => format!(
                    "T{from} before T{to}: it did not see T{to}'s append of {element} to {key}"
                ),
                Time => format!("T{from} before T{to}: it had ended when T{to} began"),
            }
        });
        let steps: Vec<_> = steps.collect();
        let transactions: Vec<_> = told_of.into_values().collect();
        format!("{}\n{}", transactions.join("\n"), steps.join("\n"))
    }
}

/// What a circle is called.
fn class(circle: &[Step]) -> Anomaly {
    let is = |at: usize, kind| circle[at % circle.len()].edge.kind == kind;
    let count = |kind| (0..circle.len()).filter(|at| is(*at, kind)).count();
    let adjacent = (0..circle.len()).any(|at| is(at, ReadWrite) && is(at + 1, ReadWrite));
    let timed = count(Time) > 0;
    let (plain, real_time) = match count(ReadWrite) {
        0 if count(WriteRead) == 0 => (Anomaly::G0, Anomaly::G0RealTime),
        0 => (Anomaly::G1c, Anomaly::G1cRealTime),
        1 => (Anomaly::GSingle, Anomaly::GSingleRealTime),
        _ if adjacent => (Anomaly::G2Item, Anomaly::G2ItemRealTime),
        _ => (Anomaly::GNonadjacent, Anomaly::GNonadjacentRealTime),
    };
    if timed { real_time } else { plain }
}
