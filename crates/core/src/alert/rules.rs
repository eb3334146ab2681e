//! The built-in rules: one table, from which the documentation, Prometheus' rules and the page are made.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Severity;

/// What may be wrong. The word for it is also the name of its runbook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Nobody takes writes.
    WriterDown,
    /// The writer changed without anybody having asked for it.
    FailoverHappened,
    /// Something that must never be.
    TwoWriters,
    /// A node is not heard.
    NodeDown,
    /// A copy does not follow the writer.
    ReplicationBroken,
    /// A copy is later than its contract allows.
    LagOverContract,
    /// Commits wait for copies.
    CommitsWait,
    /// Commits need fewer copies than wanted.
    ClusterDegraded,
    /// An even number of voters.
    EvenVoters,
    /// A disk fills up.
    Disk,
    /// A node's certificate is about to expire.
    CertificateExpiry,
    /// A node's wall clock is wrong.
    Clock,
    /// Automation is paused.
    AutomationPaused,
    /// Nodes run different versions.
    VersionSkew,
    /// The writer takes no writes, for want of room.
    WritesStopped,
    /// A slot keeps more log than it may, or cannot be used any more.
    SlotOverBudget,
    /// A slot is near its budget, or its consumer is late.
    SlotNearBudget,
    /// Nobody answers for a slot.
    SlotUnknown,
    /// A stream of changes lacks something.
    SlotGap,
    /// A query that a new writer must answer with true was not.
    ValidationFailed,
}

/// What a rule is.
#[derive(Debug, Clone, Copy)]
pub struct AlertRule {
    /// Which.
    pub rule: Rule,
    /// The worst that it tells.
    pub severity: Severity,
    /// How long its condition must hold before it fires.
    pub hold: Duration,
    /// How long its condition must be over before it is resolved.
    pub resolve: Duration,
    /// What it tells, as a short sentence.
    pub summary: &'static str,
}

const fn rule(
    rule: Rule,
    severity: Severity,
    hold_seconds: u64,
    resolve_seconds: u64,
    summary: &'static str,
) -> AlertRule {
    let hold = Duration::from_secs(hold_seconds);
    AlertRule { rule, severity, hold, resolve: Duration::from_secs(resolve_seconds), summary }
}

/// All rules. The holds are longer than what the cluster mends by itself takes.
pub const RULES: &[AlertRule] = &[
    rule(Rule::WriterDown, Severity::Critical, 10, 3, "nobody takes writes"),
    rule(Rule::FailoverHappened, Severity::Info, 0, 0, "the writer changed unasked"),
    rule(Rule::TwoWriters, Severity::Critical, 0, 60, "something was seen that must never be"),
    rule(Rule::NodeDown, Severity::Warning, 20, 5, "a node is not heard"),
    rule(Rule::ReplicationBroken, Severity::Warning, 20, 5, "a copy does not follow the writer"),
    rule(Rule::LagOverContract, Severity::Critical, 1, 0, "a copy is later than agreed"),
    rule(Rule::CommitsWait, Severity::Critical, 5, 3, "commits wait for copies"),
    rule(Rule::ClusterDegraded, Severity::Warning, 10, 5, "commits need fewer copies than wanted"),
    rule(Rule::EvenVoters, Severity::Warning, 300, 0, "an even number of voters"),
    rule(Rule::Disk, Severity::Critical, 30, 30, "a disk fills up"),
    rule(Rule::CertificateExpiry, Severity::Critical, 60, 0, "a certificate is about to expire"),
    rule(Rule::Clock, Severity::Warning, 30, 30, "a wall clock is wrong"),
    rule(Rule::AutomationPaused, Severity::Warning, 900, 0, "automation is paused"),
    rule(Rule::VersionSkew, Severity::Warning, 3600, 0, "nodes run different versions"),
    rule(Rule::WritesStopped, Severity::Critical, 0, 3, "writes have stopped for want of room"),
    rule(Rule::SlotOverBudget, Severity::Critical, 0, 5, "a slot keeps more log than it may"),
    rule(Rule::SlotNearBudget, Severity::Warning, 5, 5, "a slot is near its limits"),
    rule(Rule::SlotUnknown, Severity::Warning, 60, 0, "nobody answers for a slot"),
    rule(Rule::SlotGap, Severity::Critical, 0, 0, "a stream of changes lacks something"),
    rule(Rule::ValidationFailed, Severity::Critical, 0, 0, "the data failed a validation query"),
];

impl Rule {
    /// The word for it: its name everywhere, and that of its runbook.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WriterDown => "writer-down",
            Self::FailoverHappened => "failover-happened",
            Self::TwoWriters => "two-writers",
            Self::NodeDown => "node-down",
            Self::ReplicationBroken => "replication-broken",
            Self::LagOverContract => "lag-over-contract",
            Self::CommitsWait => "commits-wait",
            Self::ClusterDegraded => "cluster-degraded",
            Self::EvenVoters => "even-voters",
            Self::Disk => "disk",
            Self::CertificateExpiry => "certificate-expiry",
            Self::Clock => "clock",
            Self::AutomationPaused => "automation-paused",
            Self::VersionSkew => "version-skew",
            Self::WritesStopped => "writes-stopped",
            Self::SlotOverBudget => "slot-over-budget",
            Self::SlotNearBudget => "slot-near-budget",
            Self::SlotUnknown => "slot-unknown",
            Self::SlotGap => "slot-gap",
            Self::ValidationFailed => "validation-failed",
        }
    }

    /// From its word.
    pub fn from_word(word: &str) -> Option<Self> {
        RULES.iter().map(|r| r.rule).find(|r| r.as_str() == word)
    }

    /// What it is.
    pub fn definition(self) -> &'static AlertRule {
        // Every rule is in the table: a test goes through them.
        RULES.iter().find(|r| r.rule == self).unwrap_or(&RULES[0])
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
