//! What must never be, by name: the model checker and the simulator look for it, and every node counts
//! what it sees of it in its own cluster.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::authority::Authority;
use crate::limits::{REIGNS_MAX, WAL_PAGE_BYTES};
use crate::report::Position;
use crate::status::NodeStatus;
use crate::{Lsn, NodeId, Policy, Term};

/// A promise of the authority protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// Every acknowledged commit is in the log of every later writer.
    AcknowledgedKept,
    /// What a read has shown is in the log of every later writer.
    ShownKept,
    /// No two nodes write in one term.
    OneWriterPerTerm,
    /// An old writer answers nothing once another serves.
    OldWriterSilent,
}

impl Invariant {
    /// What it says.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::AcknowledgedKept => "an acknowledged commit is never lost",
            Self::ShownKept => "what a read has shown never un-happens",
            Self::OneWriterPerTerm => "no two nodes write in one term",
            Self::OldWriterSilent => "an old writer answers nothing once another serves",
        }
    }
}

/// How often something was seen that must never be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Breach {
    /// What was broken.
    pub invariant: Invariant,
    /// How often, since this process began.
    pub times: u64,
    /// What was seen last.
    pub seen: String,
}

/// What a node has heard of writers, to notice a broken promise. It sees what heartbeats and the
/// record of authority tell, so it can miss one; what it counts has happened.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Who said that it serves in which term.
    writers: BTreeMap<Term, NodeId>,
    /// The highest position of each term that a commit set held, by its writer's word.
    held: BTreeMap<Term, Lsn>,
    /// The last term whose beginning was compared with what was held before.
    compared: Term,
    breaches: BTreeMap<Invariant, Breach>,
}

impl Watch {
    /// Takes in a node's word about itself. Returns what it breaks, once.
    pub fn hear(&mut self, word: &NodeStatus, authority: &Authority) -> Option<&Breach> {
        let writer = word.writer.as_ref().filter(|w| w.serving)?;
        let (term, node) = (writer.term, word.node);
        // Servers write whole pages, so that one may begin inside of a record that was never complete:
        // no commit ends there.
        let safe = writer.safe.filter(|safe| !safe.0.is_multiple_of(WAL_PAGE_BYTES));
        if let Some(safe) = safe
            && term == authority.term
            && !may_lose(authority)
        {
            let held = self.held.entry(term).or_default();
            *held = safe.max(*held);
            prune(&mut self.held);
        }
        let granted = authority.reigns.iter().find(|r| r.term == term).map(|r| r.node);
        let first = *self.writers.entry(term).or_insert(node);
        prune(&mut self.writers);
        let other = [Some(first), granted].into_iter().flatten().find(|n| *n != node)?;
        let seen = format!("{node} says that it serves in term {term}, which is {other}'s");
        self.count(Invariant::OneWriterPerTerm, seen)
    }

    /// Takes in the record of authority. Returns what it breaks, once.
    pub fn record(&mut self, authority: &Authority) -> Option<&Breach> {
        let reign = authority.reigns.last().filter(|r| r.term > self.compared)?;
        self.compared = reign.term;
        let (term, lsn) = self.held.range(..reign.term).next_back().map(|(t, l)| (*t, *l))?;
        let held = Position { wal_term: term, lsn };
        if held <= reign.elected_at || may_lose(authority) {
            return None;
        }
        let (begun, with) = (reign.elected_at.lsn, reign.elected_at.wal_term);
        let seen = format!(
            "{} began term {} at {begun} of term {with}, and {lsn} of term {term} was held by a \
             commit set",
            reign.node, reign.term
        );
        self.count(Invariant::AcknowledgedKept, seen)
    }

    /// All that was seen, by name.
    pub fn breaches(&self) -> Vec<Breach> {
        self.breaches.values().cloned().collect()
    }

    fn count(&mut self, invariant: Invariant, seen: String) -> Option<&Breach> {
        let never = Breach { invariant, times: 0, seen: String::new() };
        let breach = self.breaches.entry(invariant).or_insert(never);
        if breach.seen == seen {
            return None;
        }
        breach.times += 1;
        breach.seen = seen;
        Some(breach)
    }
}

/// Under a rule of the writer alone, or when a person accepts a loss, commits may be lost.
fn may_lose(authority: &Authority) -> bool {
    let alone = authority.rules.iter().any(|r| r.policy == Policy::WriterOnly);
    alone || authority.allow_loss.is_some()
}

/// Keeps the newest terms.
fn prune<V>(by_term: &mut BTreeMap<Term, V>) {
    while by_term.len() > REIGNS_MAX {
        by_term.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::Reign;
    use crate::status::WriterStatus;
    use crate::{Rule, TimelineId};

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn says(name: &str, term: u64, safe: u64) -> NodeStatus {
        let mut word = NodeStatus::new(node(name));
        word.writer = Some(WriterStatus {
            term: Term(term),
            serving: true,
            rule: 1,
            safe: Some(Lsn(safe)),
            ..WriterStatus::default()
        });
        word
    }

    fn authority(policy: Policy, reigns: &[(u64, &str, u64, u64)]) -> Authority {
        let reign = |(term, name, wal_term, lsn): &(u64, &str, u64, u64)| Reign {
            term: Term(*term),
            node: node(name),
            timeline: TimelineId(*term as u32),
            elected_at: Position { wal_term: Term(*wal_term), lsn: Lsn(*lsn) },
            fork: None,
            next_xid: None,
            lost_bytes: 0,
            lossy: false,
        };
        Authority {
            term: Term(reigns.last().unwrap().0),
            rules: vec![Rule { generation: 1, cohort: [node("a"), node("b")].into(), policy }],
            reigns: reigns.iter().map(reign).collect(),
            ..Authority::default()
        }
    }

    const FIRST: (u64, &str, u64, u64) = (1, "a", 0, 0);

    #[test]
    fn a_second_writer_of_a_term_is_counted() {
        let mut watch = Watch::default();
        let record = authority(Policy::Copies(2), &[FIRST]);
        assert_eq!(watch.hear(&says("a", 1, 9), &record), None);
        let breach = watch.hear(&says("b", 1, 9), &record).unwrap();
        assert_eq!(breach.seen, "b says that it serves in term 1, which is a's");
        assert_eq!(watch.hear(&says("b", 1, 9), &record), None);
        assert!(watch.hear(&says("c", 1, 9), &record).is_some());
        assert_eq!(watch.breaches()[0].times, 2);
        // Even the first one heard is one too many when the term was granted to another.
        assert!(Watch::default().hear(&says("b", 1, 9), &record).is_some());
        // One that does not serve harms nobody.
        let mut quiet = says("b", 1, 9);
        quiet.writer.as_mut().unwrap().serving = false;
        assert_eq!(Watch::default().hear(&quiet, &record), None);
    }

    #[test]
    fn a_term_that_begins_before_what_was_held_is_counted_once() {
        let mut watch = Watch::default();
        let first = authority(Policy::Copies(2), &[FIRST]);
        watch.hear(&says("a", 1, 9), &first);
        watch.hear(&says("a", 1, 5), &first);
        assert_eq!(watch.record(&first), None);
        let good = authority(Policy::Copies(2), &[FIRST, (2, "b", 1, 9)]);
        assert_eq!(watch.clone().record(&good), None);
        let short = authority(Policy::Copies(2), &[FIRST, (2, "b", 1, 8)]);
        let breach = watch.record(&short).unwrap();
        assert_eq!(breach.invariant, Invariant::AcknowledgedKept);
        assert_eq!(watch.record(&short), None);
        // A longer log of an older term lacks all of it.
        let mut other = Watch::default();
        let second = authority(Policy::Copies(2), &[FIRST, (2, "b", 1, 3)]);
        other.record(&second);
        other.hear(&says("b", 2, 4), &second);
        let older = authority(Policy::Copies(2), &[FIRST, (2, "b", 1, 3), (3, "a", 1, 99)]);
        assert!(other.record(&older).is_some());
    }

    #[test]
    fn a_record_that_was_never_complete_is_no_breach() {
        const PAGE: u64 = WAL_PAGE_BYTES;
        let first = authority(Policy::Copies(2), &[FIRST]);
        let next = authority(Policy::Copies(2), &[FIRST, (2, "b", 1, 2 * PAGE - 100)]);
        for (held, breaks) in [(2 * PAGE, false), (2 * PAGE + 8, true), (2 * PAGE - 92, true)] {
            let mut watch = Watch::default();
            watch.hear(&says("a", 1, held), &first);
            assert_eq!(watch.record(&next).is_some(), breaks, "{held}");
        }
    }

    #[test]
    fn what_may_be_lost_is_no_breach() {
        let mut watch = Watch::default();
        let first = authority(Policy::WriterOnly, &[FIRST]);
        watch.hear(&says("a", 1, 9), &first);
        let next = authority(Policy::WriterOnly, &[FIRST, (2, "b", 1, 8)]);
        assert_eq!(watch.record(&next), None);
    }
}
