//! Who must have come before whom, and the circles in it.
//!
//! Nodes are transactions and, behind them, instants: a transaction that ended leads to the instant
//! of its end, that one to later ones, and each to the transactions that began after it. So the
//! order of time costs two edges a transaction and not one for each pair.

use std::collections::VecDeque;

use crate::limits::STARTS_MAX;

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The other one's write followed its own.
    WriteWrite,
    /// The other one read its write.
    WriteRead,
    /// It did not see the other one's write.
    ReadWrite,
    /// It had ended before the other one began.
    Time,
}

/// One reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) to: usize,
    pub(crate) kind: Kind,
    /// Key and element that it is about.
    pub(crate) about: (i64, i64),
}

/// A step of a circle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) from: usize,
    pub(crate) edge: Edge,
}

/// Which circles are searched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk {
    /// Edges that count.
    pub(crate) kinds: &'static [Kind],
    /// Whether two [`Kind::ReadWrite`] in a row are excluded.
    pub(crate) spaced: bool,
    /// One of these is in every circle that is found.
    pub(crate) with: Kind,
}

/// The graph.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    edges: Vec<Vec<Edge>>,
    /// Nodes below are transactions, the others instants.
    transactions: usize,
}

/// A node, and whether it was reached by [`Kind::ReadWrite`] where that matters.
type State = usize;

/// A state that was reached: at which cost, and from which other one by which edge.
type Reached = (State, usize, Option<(usize, Edge)>);

const NONE: usize = usize::MAX;

impl Graph {
    pub(crate) fn new(transactions: usize) -> Self {
        Self { edges: vec![Vec::new(); transactions], transactions }
    }

    pub(crate) fn add(&mut self, from: usize, to: usize, kind: Kind, about: (i64, i64)) {
        if from != to {
            self.edges[from].push(Edge { to, kind, about });
        }
    }

    /// Adds the order of time: `spans` has each transaction's beginning and, where it is known, its
    /// end.
    pub(crate) fn add_time(&mut self, spans: &[(usize, u64, Option<u64>)]) {
        let mut ends: Vec<(u64, usize)> =
            spans.iter().filter_map(|(node, _, end)| Some(((*end)?, *node))).collect();
        ends.sort_unstable();
        let first = self.edges.len();
        for (i, (_, node)) in ends.iter().enumerate() {
            let instant = first + i;
            self.edges.push(Vec::new());
            self.add(*node, instant, Kind::Time, (0, 0));
            if i > 0 {
                self.add(instant - 1, instant, Kind::Time, (0, 0));
            }
        }
        for (node, begin, _) in spans {
            let before = ends.partition_point(|(end, _)| end < begin);
            if before > 0 {
                self.add(first + before - 1, *node, Kind::Time, (0, 0));
            }
        }
    }

    /// Whether a node is a transaction.
    pub(crate) fn is_transaction(&self, node: usize) -> bool {
        node < self.transactions
    }

    /// One circle for each component that has any: the one with the fewest missed writes, and of
    /// these the shortest, as far as was searched.
    pub(crate) fn circles(&self, walk: Walk) -> Vec<Vec<Step>> {
        let component = self.components(walk);
        let mut best: Vec<Option<(usize, usize, Vec<Step>)>> = Vec::new();
        let mut starts: Vec<usize> = Vec::new();
        for state in 0..component.len() {
            let id = component[state];
            if id == NONE || !self.is_transaction(state / 2) {
                continue;
            }
            if best.len() <= id {
                best.resize(id + 1, None);
                starts.resize(id + 1, 0);
            }
            for (edge, next) in self.successors(state, walk) {
                if edge.kind != walk.with || component[next] != id || starts[id] >= STARTS_MAX {
                    continue;
                }
                starts[id] += 1;
                let first = Step { from: state / 2, edge: *edge };
                let Some(circle) = self.close(first, next, state, walk, &component) else {
                    continue;
                };
                let missed = circle.iter().filter(|s| s.edge.kind == Kind::ReadWrite).count();
                let rank = (missed, circle.len());
                if best[id].as_ref().is_none_or(|(m, l, _)| rank < (*m, *l)) {
                    best[id] = Some((rank.0, rank.1, circle));
                }
            }
        }
        best.into_iter().flatten().map(|(_, _, circle)| circle).collect()
    }

    /// The shortest way back within the component; instants cost nothing.
    fn close(
        &self,
        first: Step,
        from: State,
        to: State,
        walk: Walk,
        component: &[usize],
    ) -> Option<Vec<Step>> {
        let id = component[to];
        let mut reached: Vec<Reached> = vec![(from, 0, None)];
        let mut seen = std::collections::BTreeMap::from([(from, 0usize)]);
        let mut queue = VecDeque::from([0usize]);
        while let Some(at) = queue.pop_front() {
            let (state, cost, _) = reached[at];
            if seen.get(&state).is_some_and(|least| *least < cost) {
                continue;
            }
            if state == to {
                return Some(self.way(first, &reached, at));
            }
            for (edge, next) in self.successors(state, walk) {
                if component[next] != id {
                    continue;
                }
                let free = !self.is_transaction(state / 2);
                let cost = cost + usize::from(!free);
                if seen.get(&next).is_some_and(|least| *least <= cost) {
                    continue;
                }
                seen.insert(next, cost);
                reached.push((next, cost, Some((at, *edge))));
                if free {
                    queue.push_front(reached.len() - 1);
                } else {
                    queue.push_back(reached.len() - 1);
                }
            }
        }
        None
    }

    /// The steps up to a reached state, with instants left out.
    fn way(&self, first: Step, reached: &[Reached], mut at: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((before, edge)) = reached[at].2 {
            steps.push(Step { from: reached[before].0 / 2, edge });
            at = before;
        }
        steps.push(first);
        steps.reverse();
        let mut short: Vec<Step> = Vec::new();
        for step in steps {
            match short.last_mut() {
                Some(last) if !self.is_transaction(step.from) => last.edge.to = step.edge.to,
                _ => short.push(step),
            }
        }
        short
    }

    fn successors(&self, state: State, walk: Walk) -> impl Iterator<Item = (&Edge, State)> {
        let last_missed = state % 2 == 1;
        self.edges[state / 2].iter().filter_map(move |edge| {
            let missed = walk.spaced && edge.kind == Kind::ReadWrite;
            let allowed = walk.kinds.contains(&edge.kind) && !(missed && last_missed);
            allowed.then_some((edge, edge.to * 2 + usize::from(missed)))
        })
    }

    /// The strongly connected component of each state, numbered; [`NONE`] for one by itself. Tarjan's
    /// algorithm, without recursion.
    fn components(&self, walk: Walk) -> Vec<usize> {
        let states = self.edges.len() * 2;
        let mut component = vec![NONE; states];
        let mut index = vec![NONE; states];
        let mut low = vec![0; states];
        let mut on_stack = vec![false; states];
        let (mut stack, mut counter, mut components) = (Vec::new(), 0, 0);
        for root in 0..states {
            if index[root] != NONE {
                continue;
            }
            let mut path = vec![(root, 0usize)];
            while let Some((state, next)) = path.last().copied() {
                if next == 0 && index[state] == NONE {
                    index[state] = counter;
                    low[state] = counter;
                    counter += 1;
                    stack.push(state);
                    on_stack[state] = true;
                }
                if let Some((_, to)) = self.successors(state, walk).nth(next) {
                    if let Some(top) = path.last_mut() {
                        top.1 += 1;
                    }
                    if index[to] == NONE {
                        path.push((to, 0));
                    } else if on_stack[to] {
                        low[state] = low[state].min(index[to]);
                    }
                    continue;
                }
                path.pop();
                if let Some((parent, _)) = path.last() {
                    low[*parent] = low[*parent].min(low[state]);
                }
                if low[state] != index[state] {
                    continue;
                }
                let start = stack.iter().rposition(|s| *s == state).unwrap_or_default();
                let members = stack.split_off(start);
                members.iter().for_each(|s| on_stack[*s] = false);
                if members.len() > 1 {
                    members.iter().for_each(|s| component[*s] = components);
                    components += 1;
                }
            }
        }
        component
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Kind] = &[Kind::WriteWrite, Kind::WriteRead, Kind::ReadWrite, Kind::Time];

    fn nodes(circle: &[Step]) -> Vec<usize> {
        circle.iter().map(|s| s.from).collect()
    }

    #[test]
    fn the_shortest_circle_is_found() {
        let mut graph = Graph::new(5);
        for (from, to) in [(0, 1), (1, 2), (2, 3), (3, 0), (1, 0), (3, 4)] {
            graph.add(from, to, Kind::WriteWrite, (0, 0));
        }
        let walk = Walk { kinds: ALL, spaced: false, with: Kind::WriteWrite };
        let circles = graph.circles(walk);
        assert_eq!(circles.len(), 1);
        assert_eq!(nodes(&circles[0]), [0, 1]);
    }

    #[test]
    fn missed_writes_in_a_row_do_not_count_where_they_are_excluded() {
        let mut graph = Graph::new(4);
        graph.add(0, 1, Kind::ReadWrite, (0, 0));
        graph.add(1, 0, Kind::ReadWrite, (0, 0));
        let walk = Walk { kinds: ALL, spaced: true, with: Kind::ReadWrite };
        assert!(graph.circles(walk).is_empty());
        assert_eq!(graph.circles(Walk { spaced: false, ..walk }).len(), 1);
        graph.add(1, 2, Kind::WriteRead, (0, 0));
        graph.add(2, 3, Kind::ReadWrite, (0, 0));
        graph.add(3, 0, Kind::WriteRead, (0, 0));
        let circles = graph.circles(walk);
        assert_eq!(nodes(&circles[0]), [0, 1, 2, 3]);
    }

    #[test]
    fn time_is_an_order_too() {
        let mut graph = Graph::new(3);
        graph.add(1, 0, Kind::ReadWrite, (0, 0));
        // Ends at the moment in which another begins do not come before it.
        graph.add_time(&[(0, 0, Some(10)), (1, 11, Some(20)), (2, 20, None)]);
        let walk = Walk { kinds: ALL, spaced: true, with: Kind::Time };
        let circles = graph.circles(walk);
        assert_eq!(nodes(&circles[0]), [0, 1]);
        let mut graph = Graph::new(2);
        graph.add(1, 0, Kind::ReadWrite, (0, 0));
        graph.add_time(&[(0, 0, Some(10)), (1, 10, Some(20))]);
        assert!(graph.circles(walk).is_empty());
    }

    #[test]
    fn a_long_chain_needs_no_deep_stack() {
        let many = 100_000;
        let mut graph = Graph::new(many);
        for node in 1..many {
            graph.add(node - 1, node, Kind::WriteWrite, (0, 0));
        }
        graph.add(many - 1, 0, Kind::WriteRead, (0, 0));
        let walk = Walk { kinds: ALL, spaced: false, with: Kind::WriteRead };
        assert_eq!(graph.circles(walk)[0].len(), many);
    }
}
