//! What a copy is for, and what that means for everything that reads it.

use serde::{Deserialize, Serialize};

/// What a standby is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A copy that may become the writer.
    #[default]
    Ha,
    /// Serves reads; never part of a commit set.
    Read,
    /// Serves long reads that ask for it by name, so that they disturb nobody else.
    Reporting,
    /// The same for reads that may hold up replay for as long as they take.
    Analytics,
    /// Replays everything a fixed time later: what was deleted by mistake is still there.
    Delayed,
    /// A copy far away, for the day on which everything else is lost.
    Dr,
}

/// What a role does to a standby's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Whether the writer keeps dead rows for as long as a query here may want them
    /// (`hot_standby_feedback`).
    pub feedback: bool,
    /// Milliseconds for which a query here may hold up replay (`max_standby_streaming_delay`);
    /// `None`: for as long as it takes.
    pub conflict_delay_ms: Option<u64>,
    /// Milliseconds after which a statement here is cancelled (`statement_timeout`); 0: never.
    pub statement_timeout_ms: u64,
    /// What one gets and what one pays for it, as one sentence.
    pub trade_off: &'static str,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ha, Self::Read, Self::Reporting, Self::Analytics, Self::Delayed, Self::Dr];

    /// The word for it, as in the cluster document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ha => "ha",
            Self::Read => "read",
            Self::Reporting => "reporting",
            Self::Analytics => "analytics",
            Self::Delayed => "delayed",
            Self::Dr => "dr",
        }
    }

    /// From its word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }

    /// Whether reads that name no role may go to it.
    pub fn serves_anybody(self) -> bool {
        matches!(self, Self::Ha | Self::Read)
    }

    /// Whether reads may go to it at all. What is shown by a delayed copy is old on purpose.
    pub fn serves(self) -> bool {
        self != Self::Delayed
    }

    /// The settings of its server, unless the document says otherwise for a node.
    pub fn preset(self) -> Preset {
        const SECOND: u64 = 1000;
        match self {
            Self::Ha => Preset {
                feedback: false,
                conflict_delay_ms: Some(SECOND),
                statement_timeout_ms: 0,
                trade_off: "replay comes first, so that a failover finds everything replayed: a \
                            query that holds it up for a second is cancelled (and repeated \
                            elsewhere where that is safe)",
            },
            Self::Read => Preset {
                feedback: true,
                conflict_delay_ms: Some(5 * SECOND),
                statement_timeout_ms: 0,
                trade_off: "queries are seldom cancelled, because the writer keeps dead rows for \
                            as long as the longest query here runs: tables there can grow",
            },
            Self::Reporting => Preset {
                feedback: false,
                conflict_delay_ms: Some(10 * 60 * SECOND),
                statement_timeout_ms: 60 * 60 * SECOND,
                trade_off: "a report may hold up replay for ten minutes, so that reads here can be \
                            that old, and ends after an hour; the writer pays nothing",
            },
            Self::Analytics => Preset {
                feedback: false,
                conflict_delay_ms: None,
                statement_timeout_ms: 0,
                trade_off: "no query is cancelled for replay's sake: reads here are as old as the \
                            longest of them; the writer pays nothing",
            },
            Self::Delayed => Preset {
                feedback: false,
                conflict_delay_ms: None,
                statement_timeout_ms: 0,
                trade_off: "shows the past on purpose: no reads are sent here, and its log is kept \
                            on its own disk for as long as the delay",
            },
            Self::Dr => Preset {
                feedback: false,
                conflict_delay_ms: Some(30 * SECOND),
                statement_timeout_ms: 0,
                trade_off: "commits never wait for it, so it can lack the last of them; it writes \
                            only when a person says so",
            },
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}
