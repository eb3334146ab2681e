//! `quorate review`: the checklist, with an exit code for pipelines.

use anyhow::Result;
use serde_json::Value;

use super::reach::Failure;
use super::{Global, reach};
use crate::review::{Item, Verdict};

/// `quorate review`.
pub async fn review(global: &Global, strict: bool) -> Result<()> {
    let items: Vec<Item> = reach::get(global, "/api/review").await?;
    if global.json {
        let value: Value = serde_json::to_value(&items)?;
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print!("{}", picture(&items));
    }
    let count = |verdict| items.iter().filter(|i| i.verdict == verdict).count();
    let (refuted, unknown) = (count(Verdict::Refuted), count(Verdict::Unknown));
    if refuted > 0 || strict && unknown > 0 {
        let text = format!("{refuted} refuted, {unknown} unknown");
        return Err(Failure::Refused(text).into());
    }
    Ok(())
}

/// The checklist as text: what is wrong first.
pub fn picture(items: &[Item]) -> String {
    let mut sorted: Vec<&Item> = items.iter().collect();
    sorted.sort_by_key(|item| item.verdict);
    let mut out = String::new();
    for item in sorted {
        let verdict = match item.verdict {
            Verdict::Refuted => "REFUTED",
            Verdict::Unknown => "unknown",
            Verdict::Proved => "proved ",
        };
        out += &format!("{verdict}  {} ({})\n", item.title, item.id);
        out += &format!("         {}\n", item.evidence);
        if !item.todo.is_empty() {
            out += &format!("         -> {}\n", item.todo);
        }
    }
    let count = |verdict| items.iter().filter(|i| i.verdict == verdict).count();
    out += &format!(
        "\n{} proved, {} refuted, {} unknown\n",
        count(Verdict::Proved),
        count(Verdict::Refuted),
        count(Verdict::Unknown)
    );
    out
}
