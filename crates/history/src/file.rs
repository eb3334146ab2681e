//! Histories as JSON lines: first what must hold, then an operation or a fault on each line.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::operation::{Fault, History, Operation};
use crate::report::{Anomaly, Report};
use crate::{ambiguous, append, bank, counter, linear, register, set};

/// What must hold, and so which check decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "workload", rename_all = "snake_case")]
pub enum Promise {
    /// See [`append`].
    Append(append::Promise),
    /// See [`set`].
    Set,
    /// See [`register`].
    Register(register::Promise),
    /// See [`linear`].
    Linear,
    /// See [`bank`].
    Bank(bank::Promise),
    /// See [`counter`].
    Counter,
    /// See [`ambiguous`].
    Ambiguous,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// What must hold.
    pub promise: Promise,
    /// What the history shows, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// What its check must find, where that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<Anomaly>,
    /// What its check must find and permit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permit: Vec<Anomaly>,
}

/// A history of any workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// See [`append`].
    Append(append::Promise, History<append::Action>),
    /// See [`set`].
    Set(History<set::Action>),
    /// See [`register`].
    Register(register::Promise, History<register::Action>),
    /// See [`linear`].
    Linear(History<linear::Action>),
    /// See [`bank`].
    Bank(bank::Promise, History<bank::Action>),
    /// See [`counter`].
    Counter(History<counter::Action>),
    /// See [`ambiguous`].
    Ambiguous(History<ambiguous::Action>),
}

/// A line that cannot be read: its number, from one on, and why.
#[derive(Debug)]
pub struct Unreadable {
    /// Its number, from one on.
    pub line: usize,
    /// Why.
    pub source: serde_json::Error,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {} is not part of a history: {}", self.line, self.source)
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl Recorded {
    /// Judges it.
    pub fn check(&self) -> Report {
        match self {
            Recorded::Append(promise, history) => append::check(history, *promise),
            Recorded::Set(history) => set::check(history),
            Recorded::Register(promise, history) => register::check(history, *promise),
            Recorded::Linear(history) => linear::check(history),
            Recorded::Bank(promise, history) => bank::check(history, promise),
            Recorded::Counter(history) => counter::check(history),
            Recorded::Ambiguous(history) => ambiguous::check(history),
        }
    }

    /// Says what was done to the cluster meanwhile.
    pub fn set_faults(&mut self, faults: Vec<Fault>) {
        match self {
            Recorded::Append(_, history) => history.faults = faults,
            Recorded::Set(history) => history.faults = faults,
            Recorded::Register(_, history) => history.faults = faults,
            Recorded::Linear(history) => history.faults = faults,
            Recorded::Bank(_, history) => history.faults = faults,
            Recorded::Counter(history) => history.faults = faults,
            Recorded::Ambiguous(history) => history.faults = faults,
        }
    }

    /// As text.
    pub fn write(&self, about: &str) -> String {
        match self {
            Recorded::Append(promise, history) => lines(Promise::Append(*promise), about, history),
            Recorded::Set(history) => lines(Promise::Set, about, history),
            Recorded::Register(promise, history) => {
                lines(Promise::Register(*promise), about, history)
            }
            Recorded::Linear(history) => lines(Promise::Linear, about, history),
            Recorded::Bank(promise, history) => {
                lines(Promise::Bank(promise.clone()), about, history)
            }
            Recorded::Counter(history) => lines(Promise::Counter, about, history),
            Recorded::Ambiguous(history) => lines(Promise::Ambiguous, about, history),
        }
    }

    /// From text.
    pub fn read(text: &str) -> Result<(Header, Self), Unreadable> {
        let first = text.lines().next().unwrap_or_default();
        let header: Header =
            serde_json::from_str(first).map_err(|source| Unreadable { line: 1, source })?;
        let recorded = match &header.promise {
            Promise::Append(promise) => Recorded::Append(*promise, history(text)?),
            Promise::Set => Recorded::Set(history(text)?),
            Promise::Register(promise) => Recorded::Register(*promise, history(text)?),
            Promise::Linear => Recorded::Linear(history(text)?),
            Promise::Bank(promise) => Recorded::Bank(promise.clone(), history(text)?),
            Promise::Counter => Recorded::Counter(history(text)?),
            Promise::Ambiguous => Recorded::Ambiguous(history(text)?),
        };
        Ok((header, recorded))
    }
}

fn lines<A: Serialize>(promise: Promise, about: &str, history: &History<A>) -> String {
    let header =
        Header { promise, about: about.to_owned(), expect: Vec::new(), permit: Vec::new() };
    // Maps with keys of numbers or text, lists and numbers: all of it has a form in JSON.
    let line = |json: serde_json::Result<String>| json.unwrap_or_default() + "\n";
    let mut text = line(serde_json::to_string(&header));
    text.extend(history.faults.iter().map(|fault| line(serde_json::to_string(fault))));
    text.extend(history.operations.iter().map(|o| line(serde_json::to_string(o))));
    text
}

fn history<A: DeserializeOwned>(text: &str) -> Result<History<A>, Unreadable> {
    let mut history = History::default();
    for (number, line) in text.lines().enumerate().skip(1) {
        if line.trim().is_empty() {
            continue;
        }
        // Only a fault has this field.
        if line.contains("\"fault\":") {
            let fault: Fault = parsed(number, line)?;
            history.faults.push(fault);
        } else {
            let operation: Operation<A> = parsed(number, line)?;
            history.operations.push(operation);
        }
    }
    Ok(history)
}

fn parsed<T: DeserializeOwned>(number: usize, line: &str) -> Result<T, Unreadable> {
    serde_json::from_str(line).map_err(|source| Unreadable { line: number + 1, source })
}
