//! Queries that a new writer must answer with true: what the owners of the data look at after a change
//! of writer.
//!
//! The writer's node runs each once per term, records what came of it, and runs it again when a person
//! asks. What is told of an answer never has values of rows in it: only what was wrong with its shape,
//! and of the server's errors what cannot quote a row.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::authority::Phase;
use crate::because::{Because, list};
use crate::document::Invalid;
use crate::limits::{
    PG_NAME_MAX, VALIDATION_NAME_MAX, VALIDATION_SQL_BYTES_MAX, VALIDATION_TIMEOUT_MS_MAX,
    VALIDATION_TIMEOUT_MS_MIN, VALIDATION_WORDS_MAX, VALIDATIONS_MAX,
};
use crate::state::{State, WallMillis};
use crate::words::seconds;
use crate::{NodeId, Term};

/// How long a query may take when nobody says.
const TIMEOUT_MS: u64 = 5000;

/// One query, as the cluster document has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationSpec {
    /// The database that it is asked in.
    pub database: String,
    /// The role that asks it: one that may log in, and is neither a superuser nor a member of one.
    pub role: String,
    /// One SELECT that returns one row, whose first column is true when all is well.
    pub sql: String,
    /// How long it may take, in milliseconds: 100 to 300000.
    pub timeout_ms: u64,
}

impl Default for ValidationSpec {
    fn default() -> Self {
        Self {
            database: String::new(),
            role: String::new(),
            sql: String::new(),
            timeout_ms: TIMEOUT_MS,
        }
    }
}

impl ValidationSpec {
    /// How long it may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    fn validate(&self, path: &str, problems: &mut Vec<Invalid>) {
        let mut bad = |field: &str, problem: &str| {
            let problem = problem.to_owned();
            problems.push(Invalid { field: format!("{path}.{field}"), problem });
        };
        for (field, name) in [("database", &self.database), ("role", &self.role)] {
            if name.is_empty() {
                bad(field, "say which: there is no default");
            } else if name.len() > PG_NAME_MAX || name.contains(char::is_control) {
                bad(field, &format!("a name in PostgreSQL has at most {PG_NAME_MAX} bytes"));
            }
        }
        if self.role.starts_with("quorate") || self.role == "postgres" {
            let problem = "no superuser and no role of Quorate's own asks a query: use one that may \
                           read what it looks at, and nothing else";
            bad("role", problem);
        }
        if self.sql.len() > VALIDATION_SQL_BYTES_MAX || self.sql.contains('\0') {
            bad("sql", &format!("use a text of at most {VALIDATION_SQL_BYTES_MAX} bytes"));
        } else if !is_select(&self.sql) {
            bad("sql", "use one statement that begins with SELECT or WITH");
        }
        if !(VALIDATION_TIMEOUT_MS_MIN..=VALIDATION_TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            let (least, most) = (VALIDATION_TIMEOUT_MS_MIN, VALIDATION_TIMEOUT_MS_MAX);
            bad("timeout_ms", &format!("use {least} to {most} milliseconds"));
        }
    }
}

/// Whether a text begins as a query does. That it is one statement which changes nothing is PostgreSQL's
/// to see: it is prepared, in a transaction that only reads.
fn is_select(sql: &str) -> bool {
    let word: String = sql.trim_start().chars().take_while(char::is_ascii_alphabetic).collect();
    ["select", "with"].contains(&word.to_ascii_lowercase().as_str())
}

/// Checks what the cluster document says of queries.
pub(crate) fn validate(specs: &BTreeMap<String, ValidationSpec>, problems: &mut Vec<Invalid>) {
    let mut bad = |field: String, problem: String| problems.push(Invalid { field, problem });
    if specs.len() > VALIDATIONS_MAX {
        bad("validation".to_owned(), format!("at most {VALIDATIONS_MAX} queries can be set"));
    }
    for (name, spec) in specs {
        let path = format!("validation.{name}");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if name.is_empty() || name.len() > VALIDATION_NAME_MAX || !name.chars().all(plain) {
            let most = VALIDATION_NAME_MAX;
            let problem = format!("a name has 1 to {most} lower-case letters, digits, '-' and '_'");
            problems.push(Invalid { field: path.clone(), problem });
        }
        spec.validate(&path, problems);
    }
}

/// What a query was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// One row, and its first column is true.
    True,
    /// One row, and its first column is false.
    False,
    /// One row, and its first column is null.
    Null,
    /// No row.
    NoRow,
    /// More than one row.
    ManyRows,
    /// Its first column is of another type, which is named. It was not run.
    NotBoolean(String),
    /// It returns no columns or takes parameters: it is no query by itself. It was not run.
    NoQuery,
    /// Its role is a superuser, or a member of one. It was not run.
    Superuser,
    /// It was not answered in time.
    TimedOut,
    /// The server refused it.
    Refused {
        /// PostgreSQL's code of the error.
        sqlstate: String,
        /// Its message, where that cannot have come from rows.
        message: Option<String>,
    },
    /// The server could not be asked.
    Unreachable(String),
}

/// What a server's error may be told of.
#[derive(Debug, Clone, Copy)]
pub struct ServerError<'a> {
    /// Its code.
    pub sqlstate: &'a str,
    /// Its message.
    pub message: &'a str,
    /// The place in the server's sources that raised it.
    pub routine: Option<&'a str>,
    /// Whether it came before the query had begun to read rows: of connecting, or of preparing it.
    pub before_rows: bool,
}

/// An error of the server. Messages of a query that runs may quote rows (`invalid input syntax for type
/// integer: "…"`, what a function raises), so that only those are told which name nothing but objects.
pub fn refusal(error: ServerError<'_>) -> Finding {
    let names_objects = error.before_rows || error.routine == Some("aclcheck_error");
    let message = names_objects.then(|| {
        let line = error.message.lines().next().unwrap_or_default();
        line.chars().filter(|c| !c.is_control()).take(VALIDATION_WORDS_MAX).collect()
    });
    Finding::Refused { sqlstate: error.sqlstate.to_owned(), message }
}

/// What came of a query, with the rule and the sentence of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Whether it was answered with true.
    pub passed: bool,
    /// How it was answered.
    pub because: Because,
}

/// Judges an answer.
pub fn judge(spec: &ValidationSpec, finding: &Finding) -> Judged {
    let (rule, sentence) = match finding {
        Finding::True => {
            return Judged { passed: true, because: Because::new("validation-01", "it is true") };
        }
        Finding::False => ("validation-02", "it is false".to_owned()),
        Finding::Null => ("validation-02", "it is null, and must be true".to_owned()),
        Finding::NoRow => ("validation-03", "it returned no row, and must return one".to_owned()),
        Finding::ManyRows => {
            ("validation-03", "it returned more than one row, and must return one".to_owned())
        }
        Finding::NotBoolean(kind) => {
            ("validation-03", format!("its first column is of type {kind}, and must be boolean"))
        }
        Finding::NoQuery => {
            ("validation-03", "it is no query: use one SELECT without parameters".to_owned())
        }
        Finding::Superuser => (
            "validation-04",
            format!(
                "role {} is a superuser or a member of one: use a role that may read what it looks \
                 at, and nothing else",
                spec.role
            ),
        ),
        Finding::TimedOut => {
            ("validation-05", format!("it was not answered within {}", seconds(spec.timeout())))
        }
        Finding::Refused { sqlstate, message: Some(message) } => {
            ("validation-06", format!("{sqlstate}: {message}"))
        }
        Finding::Refused { sqlstate, message: None } => (
            "validation-06",
            format!("error {sqlstate} while it ran (its message may quote rows: run it by hand)"),
        ),
        Finding::Unreachable(why) => {
            let why: String = why.chars().take(VALIDATION_WORDS_MAX).collect();
            ("validation-07", format!("the server could not be asked: {why}"))
        }
    };
    Judged { passed: false, because: Because::new(rule, sentence) }
}

/// What came of a query last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validated {
    /// The term whose writer was asked.
    pub term: Term,
    /// That writer.
    pub node: NodeId,
    /// When, by its wall clock.
    pub at: WallMillis,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// What came of it.
    #[serde(flatten)]
    pub judged: Judged,
}

impl Validated {
    /// What is wrong, for a person who does not know where it was run.
    pub fn failure(&self) -> Option<String> {
        let Self { term, node, judged, .. } = self;
        (!judged.passed).then(|| format!("{} (on {node} in term {term})", judged.because.sentence))
    }
}

/// The event of a query that was run.
pub(crate) fn event(name: &str, ran: &Validated) -> (&'static str, Because) {
    let Validated { node, took_ms, judged, .. } = ran;
    let because = &judged.because;
    let (kind, word) = match judged.passed {
        true => ("validation-passed", "passed"),
        false => ("validation-failed", "failed"),
    };
    let text = format!("{name} {word} on {node} after {took_ms} ms: {}", because.sentence);
    (kind, Because::new(&because.rule, text))
}

/// Queries that the writer of a term has still to run, with the version of the document that has them.
pub fn due(state: &State, term: Term) -> (u64, BTreeMap<String, ValidationSpec>) {
    let mut specs = state.document().validation;
    let authority = &state.authority;
    if authority.term != term || authority.phase != Phase::Serving {
        specs.clear();
    }
    specs.retain(|name, _| state.validations.get(name).is_none_or(|ran| ran.term != term));
    (state.document_version(), specs)
}

/// Queries that failed when they were run last, with what was wrong.
pub fn failed(state: &State) -> BTreeMap<&str, String> {
    let failed = state.validations.iter();
    failed.filter_map(|(name, ran)| Some((name.as_str(), ran.failure()?))).collect()
}

/// What all queries together show of the writer of a term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// None is set.
    None,
    /// All passed in this term.
    Passed(String),
    /// Some were not run in this term.
    Unknown(String),
    /// Some failed when they were run last.
    Failed(String),
}

/// What the queries of a document show of the writer of a term.
pub fn standing(
    specs: &BTreeMap<String, ValidationSpec>,
    ran: &BTreeMap<String, Validated>,
    term: Term,
) -> Standing {
    let of = |name: &String| ran.get(name);
    let failed = specs.keys().filter_map(|n| Some(format!("{n}: {}", of(n)?.failure()?)));
    let failed: Vec<String> = failed.collect();
    let missing: Vec<&String> =
        specs.keys().filter(|n| of(n).is_none_or(|r| r.term != term)).collect();
    match (specs.is_empty(), failed.is_empty(), missing.is_empty()) {
        (true, ..) => Standing::None,
        (false, false, _) => Standing::Failed(failed.join("; ")),
        (false, true, false) => {
            Standing::Unknown(format!("{} not run in term {term} yet", list(missing)))
        }
        (false, true, true) => {
            Standing::Passed(format!("{} passed in term {term}", list(specs.keys())))
        }
    }
}

#[cfg(test)]
mod tests;
