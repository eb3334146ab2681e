//! Whether a standby shows every commit that it has replayed.
//!
//! A standby that starts takes its first snapshot from what the log says of the transactions that ran
//! at its starting point. A commit that waited for copies just then has its record in the log before
//! that point, so that nothing of it is replayed any more; and the snapshot ends before its id, because
//! nothing had *ended* there with an id as high. PostgreSQL shows it once a transaction with a higher id
//! has ended. Until then "replayed up to the commit" does not mean that a reader sees it.

/// What is known of one start of a standby's server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shows {
    /// Ids from here on were not known when it was asked first: their ends are replayed, and shown.
    until: Option<u64>,
    all: bool,
}

impl Shows {
    /// After a look: `end` is the first id that a snapshot does not reach, `next` the first that is not
    /// known to the server.
    #[must_use]
    pub fn look(self, end: u64, next: u64) -> Self {
        let until = self.until.unwrap_or(next);
        Self { until: Some(until), all: self.all || end >= until }
    }

    /// Whether it shows every commit that it has replayed.
    pub fn all(self) -> bool {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_must_have_come_to_what_was_known_at_first() {
        // Nothing runs.
        assert!(Shows::default().look(750, 750).all());
        // 748 and 749 run, or have committed unseen.
        let first = Shows::default().look(748, 750);
        assert!(!first.all());
        assert!(!first.look(749, 760).all());
        // 749 has ended; what began since does not matter.
        let whole = first.look(750, 760);
        assert!(whole.all());
        assert!(whole.look(750, 900).all(), "for as long as this server runs");
    }
}
