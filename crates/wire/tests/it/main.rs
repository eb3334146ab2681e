//! The classifier from outside: tables of statements, and laws.

#![allow(clippy::unwrap_used)]

mod forms;
mod laws;
mod lexing;
mod probes;
mod reads;
mod shapes;

use quorate_wire::sql::{Access, Functions, Knowledge, Options, Script, classify};

/// Functions of an application, for tests.
pub(crate) struct Known;

impl Functions for Known {
    fn knowledge(&self, name: &[u8]) -> Knowledge {
        match name {
            b"f_reads" | b"F Reads" => Knowledge::Stable,
            b"f_writes" | b"length" => Knowledge::Volatile,
            b"f_listens" | b"lower" => Knowledge::Suspect,
            _ => Knowledge::Unknown,
        }
    }

    fn are_behind(&self, name: &[u8]) -> bool {
        matches!(name, b"v_writes" | b"V Writes")
    }

    fn are_behind_some(&self) -> bool {
        true
    }
}

pub(crate) fn see(sql: &str) -> Script {
    classify(sql.as_bytes(), &Options::default())
}

/// One line: `read`, or the reason for the writer; then whatever else is not usual.
pub(crate) fn line(script: &Script) -> String {
    let mut line = match script.access {
        Access::Read => "read".to_owned(),
        Access::Write => format!("{:?}", script.because),
    };
    if !script.leaves.is_none() {
        line += &format!(" leaves {:?}", script.leaves);
    }
    for (holds, word) in [(script.begins, " begins"), (script.ends, " ends")] {
        if holds {
            line += word;
        }
    }
    line
}

/// Checks rows of a statement and its line.
pub(crate) fn check(rows: &[(&str, &str)]) {
    check_with(rows, &Options::default());
}

pub(crate) fn check_with(rows: &[(&str, &str)], options: &Options<'_>) {
    let wrong: Vec<String> = rows
        .iter()
        .map(|(sql, expected)| (sql, expected, line(&classify(sql.as_bytes(), options))))
        .filter(|(_, expected, got)| *expected != got)
        .map(|(sql, expected, got)| format!("{sql}\n  expected {expected}\n  got      {got}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
