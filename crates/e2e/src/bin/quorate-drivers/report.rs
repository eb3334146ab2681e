//! What became of each check of each driver.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was as it must be.
    Good,
    /// It could not be tried, or says nothing here; why.
    Skipped(String),
    /// What was wrong.
    Failed(String),
}

impl Outcome {
    pub fn failed(error: &anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

/// Everything, in the order in which it was done.
#[derive(Debug, Default)]
pub struct Report {
    checks: Vec<(String, String, Outcome)>,
}

/// The part of one driver.
pub struct Driver<'a> {
    report: &'a mut Report,
    name: &'a str,
}

impl Report {
    pub fn of<'a>(&'a mut self, name: &'a str) -> Driver<'a> {
        Driver { report: self, name }
    }

    /// Whether something was tried and nothing failed.
    pub fn good(&self) -> bool {
        let is = |f: fn(&Outcome) -> bool| self.checks.iter().any(|(.., outcome)| f(outcome));
        is(|o| *o == Outcome::Good) && !is(|o| matches!(o, Outcome::Failed(_)))
    }
}

impl Driver<'_> {
    pub fn note(&mut self, check: &str, outcome: Outcome) {
        println!("{}", line(check, &outcome));
        self.report.checks.push((self.name.to_owned(), check.to_owned(), outcome));
    }

    /// Runs a check that is written in Rust.
    pub fn check(&mut self, check: &str, body: impl FnOnce() -> Result<()>) {
        let outcome = body().map_or_else(|error| Outcome::failed(&error), |()| Outcome::Good);
        self.note(check, outcome);
    }

    /// The driver itself is missing.
    pub fn absent(&mut self, why: &str) -> Result<()> {
        self.note("everything", Outcome::Skipped(why.to_owned()));
        Ok(())
    }

    /// How many checks it has so far.
    pub fn count(&self) -> usize {
        self.report.checks.iter().filter(|(driver, ..)| driver == self.name).count()
    }

    pub fn has_failed(&self) -> bool {
        let mine = self.report.checks.iter().filter(|(driver, ..)| driver == self.name);
        mine.into_iter().any(|(.., outcome)| matches!(outcome, Outcome::Failed(_)))
    }
}

/// A check as drivers print it.
fn line(check: &str, outcome: &Outcome) -> String {
    let flat = |why: &str| why.split_whitespace().collect::<Vec<_>>().join(" ");
    match outcome {
        Outcome::Good => format!("ok {check}"),
        Outcome::Skipped(why) => format!("skip {check} -- {}", flat(why)),
        Outcome::Failed(why) => format!("not ok {check} -- {}", flat(why)),
    }
}

/// What a driver printed about a check.
pub fn parse(line: &str) -> Option<(String, Outcome)> {
    if let Some(check) = line.strip_prefix("ok ") {
        return Some((check.to_owned(), Outcome::Good));
    }
    let bad = line.strip_prefix("not ok ");
    let rest = bad.or_else(|| line.strip_prefix("skip "))?;
    let (check, why) = rest.split_once(" -- ")?;
    let outcome = if bad.is_some() { Outcome::Failed } else { Outcome::Skipped };
    Some((check.to_owned(), outcome(why.to_owned())))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut skips: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        writeln!(f, "| driver | path | result |\n|---|---|---|")?;
        for (driver, check, outcome) in &self.checks {
            match outcome {
                Outcome::Good => writeln!(f, "| {driver} | {check} | ok |")?,
                Outcome::Failed(_) => writeln!(f, "| {driver} | {check} | FAILED |")?,
                Outcome::Skipped(why) => {
                    skips.entry(why).or_default().push(format!("{driver}: {check}"));
                }
            }
        }
        for (why, checks) in skips {
            writeln!(f, "\nskipped, {} of them: {why}", checks.len())?;
            checks.iter().try_for_each(|check| writeln!(f, "  {check}"))?;
        }
        for (driver, check, outcome) in &self.checks {
            if let Outcome::Failed(why) = outcome {
                writeln!(f, "\nFAILED: {driver}: {check}: {why}")?;
            }
        }
        let count = |f: fn(&Outcome) -> bool| self.checks.iter().filter(|c| f(&c.2)).count();
        writeln!(
            f,
            "\n{} passed, {} failed, {} skipped",
            count(|o| *o == Outcome::Good),
            count(|o| matches!(o, Outcome::Failed(_))),
            count(|o| matches!(o, Outcome::Skipped(_)))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for outcome in [
            Outcome::Good,
            Outcome::Skipped("libpq is old".to_owned()),
            Outcome::Failed("line 7: 1, not 2".to_owned()),
        ] {
            let parsed = parse(&line("TLS: verify-full", &outcome));
            assert_eq!(parsed, Some(("TLS: verify-full".to_owned(), outcome)));
        }
        assert_eq!(parse("something else"), None);
    }

    #[test]
    fn nothing_done_is_not_good() {
        let mut report = Report::default();
        assert!(!report.good());
        report.of("a").note("b", Outcome::Skipped("c".to_owned()));
        assert!(!report.good());
        report.of("a").note("b", Outcome::Good);
        assert!(report.good());
        report.of("a").note("b", Outcome::Failed("d".to_owned()));
        assert!(!report.good());
    }
}
