//! `quorate ddl check`: what a migration would do.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use quorate_core::document::Document;
use quorate_core::state::DocumentVersion;

use super::reach::Failure;
use super::{Global, reach};
use crate::ddl::{self, Finding, Weight};

/// `quorate ddl check`.
pub async fn check(global: &Global, file: &str) -> Result<()> {
    let text = match file {
        "-" => std::io::read_to_string(std::io::stdin())?,
        path => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
    };
    // A cluster makes the answer more exact, and is not needed for it.
    let document = document(global).await.ok();
    let findings = ddl::check(&text, document.as_ref())?;
    if global.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        print!("{}", picture(&findings));
    }
    let worst = findings.iter().map(|f| f.weight).max();
    if worst >= Some(Weight::Unknown) {
        let text = "something here makes others wait, or is not known: see above";
        return Err(Failure::Refused(text.to_owned()).into());
    }
    Ok(())
}

async fn document(global: &Global) -> Result<Document> {
    let versions: Vec<DocumentVersion> = reach::get(global, "/api/config").await?;
    Ok(versions.into_iter().next_back().map(|v| v.document).unwrap_or_default())
}

/// Findings as text; harmless statements in one line.
fn picture(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let weight = match finding.weight {
            Weight::Harmless => "ok     ",
            Weight::Moment => "moment ",
            Weight::Unknown => "UNKNOWN",
            Weight::Heavy => "HEAVY  ",
        };
        let _ = writeln!(out, "{weight}  line {}: {}", finding.line, finding.statement);
        if finding.weight == Weight::Harmless {
            continue;
        }
        let _ = writeln!(out, "         {}", finding.locks);
        for (name, words) in [
            ("meanwhile", &finding.work),
            ("replicas", &finding.replicas),
            ("subscribers", &finding.subscribers),
            ("instead", &finding.instead),
        ] {
            if !words.is_empty() {
                let _ = writeln!(out, "         {name}: {words}");
            }
        }
    }
    out
}
