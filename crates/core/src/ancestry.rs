//! What of each reign is still there: a reign goes on with the log that its writer was elected with,
//! and that need not be the last reign's. One whose writer was lost before anybody had its log is
//! passed over, and counts for nothing.

use crate::authority::{Authority, Reign};
use crate::{Lsn, Term};

impl Authority {
    /// The last reign, the one whose log it went on with, and so on, as far as they are remembered.
    fn line(&self) -> Vec<&Reign> {
        let reign = |term| self.reigns.iter().find(|r| r.term == term);
        let mut line: Vec<&Reign> = Vec::new();
        let mut next = self.reigns.last();
        while let Some(one) = next {
            line.push(one);
            next = reign(one.elected_at.wal_term).filter(|parent| parent.term < one.term);
        }
        line
    }

    /// The least id of a transaction of this term that nothing is left of: whoever has it now is
    /// somebody else. The greatest number when no other reign came behind it; `None` when it is not
    /// known.
    pub fn first_reused(&self, term: Term) -> Option<u64> {
        let own = self.reigns.iter().find(|r| r.term == term)?;
        let line = self.line();
        let later = line.iter().take_while(|r| r.term > term);
        let least = later.map(|r| r.next_xid).try_fold(u64::MAX, |least, id| Some(least.min(id?)));
        let child = line.iter().rfind(|r| r.term > term);
        match child {
            // Passed over: nothing that it assigned is left.
            Some(child) if child.elected_at.wal_term != term => Some(own.next_xid.unwrap_or(0)),
            _ => least,
        }
    }

    /// For each former reign the position up to which its log is still there, by term.
    pub fn ends(&self) -> Vec<(Term, Lsn)> {
        let line = self.line();
        let Some((_, former)) = self.reigns.split_last() else { return Vec::new() };
        let end = |reign: &Reign| {
            let later = line.iter().take_while(|r| r.term > reign.term);
            let is_passed_over = !line.iter().any(|r| r.term == reign.term);
            later.copied().chain(is_passed_over.then_some(reign)).map(began_at).min()
        };
        former.iter().filter_map(|r| Some((r.term, end(r)?))).collect()
    }
}

/// Where a reign left the log that it was elected with. One that was promoted and lost before it had
/// opened has told nobody; it had at most what it reported.
fn began_at(reign: &Reign) -> Lsn {
    reign.fork.unwrap_or(reign.elected_at.lsn)
}

/// Up to where the log of this term is still there, by what [`Authority::ends`] tells: the end of the
/// first reign that ended in it or behind it. `None`: nothing of it was lost that is remembered.
pub fn end_of(ends: &[(Term, Lsn)], term: Term) -> Option<Lsn> {
    ends.iter().find(|(ended, _)| *ended >= term).map(|(_, end)| *end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Position;
    use crate::{NodeId, TimelineId};

    fn reign(term: u64, on: u64, fork: u64, next_xid: u64) -> Reign {
        Reign {
            term: Term(term),
            node: NodeId::new("n1").unwrap(),
            timeline: TimelineId(term as u32 + 1),
            elected_at: Position { wal_term: Term(on), lsn: Lsn(fork) },
            fork: Some(Lsn(fork)),
            next_xid: Some(next_xid),
            lost_bytes: 0,
            lossy: false,
        }
    }

    fn record(reigns: Vec<Reign>) -> Authority {
        Authority { reigns, ..Authority::default() }
    }

    #[test]
    fn what_a_later_reign_lacks_is_gone() {
        let record = record(vec![reign(1, 0, 0, 3), reign(2, 1, 100, 50), reign(3, 2, 90, 45)]);
        assert_eq!(record.first_reused(Term(3)), Some(u64::MAX));
        assert_eq!(record.first_reused(Term(2)), Some(45));
        assert_eq!(record.first_reused(Term(1)), Some(45));
        assert_eq!(record.ends(), [(Term(1), Lsn(90)), (Term(2), Lsn(90))]);
    }

    #[test]
    fn a_reign_that_is_passed_over_takes_nothing_away() {
        // The writer of term 2 had less of the log of term 1, and was lost before anybody had more of
        // it; the former writer returns with all that it wrote.
        let record = record(vec![reign(1, 0, 0, 3), reign(2, 1, 100, 50), reign(3, 1, 130, 52)]);
        assert_eq!(record.first_reused(Term(1)), Some(52), "51 is there");
        assert_eq!(record.ends(), [(Term(1), Lsn(130)), (Term(2), Lsn(100))]);
        // What it assigned itself is gone: the ids are those of term 1.
        assert_eq!(record.first_reused(Term(2)), Some(50));
    }

    #[test]
    fn a_reign_that_never_opened_cuts_off_what_it_had_not() {
        // The writer of term 2 promoted and wrote, was lost before it had opened, and its log is what
        // term 3 goes on with.
        let mut record =
            record(vec![reign(1, 0, 0, 3), reign(2, 1, 100, 50), reign(3, 2, 130, 52)]);
        record.reigns[1].fork = None;
        record.reigns[1].next_xid = None;
        assert_eq!(record.ends(), [(Term(1), Lsn(100)), (Term(2), Lsn(130))]);
        assert_eq!(record.first_reused(Term(1)), None, "it may have used any id");
    }

    #[test]
    fn what_is_not_remembered_is_not_known() {
        let mut record = record(vec![reign(2, 1, 100, 50), reign(3, 2, 130, 52)]);
        assert_eq!(record.first_reused(Term(1)), None);
        record.reigns[1].next_xid = None;
        assert_eq!(record.first_reused(Term(2)), None);
        assert_eq!(record.first_reused(Term(3)), Some(u64::MAX));
        assert_eq!(Authority::default().first_reused(Term(1)), None);
        assert_eq!(Authority::default().ends(), []);
    }
}
