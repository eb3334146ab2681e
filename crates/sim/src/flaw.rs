//! Rules that a world can leave out.

/// A rule of the protocol that a world leaves out, to show that its checks notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flaw {
    /// All rules are kept.
    #[default]
    None,
    /// R3: a node that promised keeps its feed.
    NoCut,
    /// R4: a writer takes every standby, whatever its history.
    NoLineage,
    /// R10: clients are let in before the marker is held.
    NoMarker,
    /// R12: answers leave without a look at the lease.
    NoGate,
    /// R13: a new writer does not wait for the old lease.
    NoLeaseWait,
    /// Commits are acknowledged when the writer alone has them.
    EarlyAcknowledgement,
    /// What became of a transaction is looked up by its id, whoever has that now.
    ReusedIds,
    /// Every reign counts for what ids are used again, also one that is passed over.
    EveryFork,
    /// A writer that has not opened says what became of a transaction.
    UnopenedAnswers,
}

/// Every flaw with its name on the command line.
pub const FLAWS: [(&str, Flaw); 9] = [
    ("no-cut", Flaw::NoCut),
    ("no-lineage", Flaw::NoLineage),
    ("no-marker", Flaw::NoMarker),
    ("no-gate", Flaw::NoGate),
    ("no-lease-wait", Flaw::NoLeaseWait),
    ("early-acknowledgement", Flaw::EarlyAcknowledgement),
    ("reused-ids", Flaw::ReusedIds),
    ("every-fork", Flaw::EveryFork),
    ("unopened-answers", Flaw::UnopenedAnswers),
];
