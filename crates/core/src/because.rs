//! Why something was decided: a rule id and one plain sentence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The reason for a decision. The same object goes to the log, `quorate status`, the event history
/// and reports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Because {
    /// A stable id: `R1` to `R16` of the authority protocol, or an operational rule such as `op-pause`.
    pub rule: String,
    /// One sentence a person can read.
    pub sentence: String,
}

impl Because {
    /// A reason.
    pub fn new(rule: &str, sentence: impl Into<String>) -> Self {
        Self { rule: rule.to_owned(), sentence: sentence.into() }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.sentence, self.rule)
    }
}

/// Names in a sentence: `n1, n2 and n3`, or `nobody`.
pub fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|i| i.to_string()).collect();
    match items.as_slice() {
        [] => "nobody".to_owned(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}
