//! `quorate validate`: runs the cluster document's queries on the writer, with an exit code for
//! pipelines.

use anyhow::{Context, Result, bail};
use quorate_agent::validation::Ran;
use serde::Deserialize;
use serde_json::json;

use super::{Global, reach};
use crate::http::Ask;

#[derive(Deserialize)]
struct Answer {
    ran: Vec<Ran>,
}

/// `quorate validate`.
pub async fn validate(global: &Global, name: Option<String>) -> Result<()> {
    let value = reach::call(global, Ask::post("/api/validate", json!({ "name": name }))).await?;
    let read = serde_json::from_value(value.clone());
    let Answer { ran } = read.context("the node's answer is of another version of Quorate")?;
    if global.json {
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print!("{}", picture(&ran));
    }
    let failed = ran.iter().filter(|r| !r.ran.judged.passed).count();
    match failed {
        0 => Ok(()),
        n => bail!("{n} of {} failed: the runbook is validation-failed", ran.len()),
    }
}

fn picture(all: &[Ran]) -> String {
    if all.is_empty() {
        return "no query is set: [validation.NAME] in the cluster document (`quorate config edit`)\n"
            .to_owned();
    }
    let line = |Ran { name, ran }: &Ran| {
        let word = if ran.judged.passed { "passed" } else { "FAILED" };
        let (ms, node, sentence) = (ran.took_ms, ran.node, &ran.judged.because.sentence);
        format!("{word}  {name} on {node} in term {}, after {ms} ms: {sentence}\n", ran.term)
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use quorate_core::Term;
    use quorate_core::validation::{Finding, Validated, ValidationSpec, judge};

    use super::*;
    use crate::fixture::node;

    #[test]
    fn each_query_has_a_line() {
        let ran = |name: &str, finding: &Finding| {
            let judged = judge(&ValidationSpec::default(), finding);
            let (term, node) = (Term(4), node("n2"));
            Ran { name: name.to_owned(), ran: Validated { term, node, at: 1, took_ms: 7, judged } }
        };
        assert_eq!(
            picture(&[ran("orders", &Finding::True), ran("stock", &Finding::NoRow)]),
            "passed  orders on n2 in term 4, after 7 ms: it is true\n\
             FAILED  stock on n2 in term 4, after 7 ms: it returned no row, and must return one\n"
        );
        assert!(picture(&[]).starts_with("no query is set"));
    }
}
