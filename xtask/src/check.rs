//! The gate: formatting, lints, and the rules of this project that a machine can check.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::setup::run;

/// Crates that may name no runtime, clock, randomness or log.
const PURE: [&str; 4] = ["core", "history", "scenario", "wire"];
/// What a pure crate's sources and manifest may not name.
const IMPURE: [&str; 9] = [
    "tokio",
    "tracing",
    "rand",
    "rustix",
    "getrandom",
    "SystemTime",
    "Instant::now",
    "std::fs",
    "std::net",
];
/// Longest production source file.
const LINES_MAX: usize = 520;
/// Only these crates may use these libraries.
const OWNERS: [(&str, &[&str]); 3] =
    [("openraft", &["consensus"]), ("redb", &["consensus"]), ("rcgen", &["link"])];

/// Runs every check; changes nothing.
pub fn check() -> Result<()> {
    run(&["cargo", "fmt", "--all", "--check"], &[])?;
    run(&["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    let problems = tidy(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent")?)?;
    if problems.is_empty() {
        println!("all checks passed");
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}

/// Rules that no compiler knows.
fn tidy(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for name in PURE {
        let dir = root.join("crates").join(name);
        for file in sources(&dir.join("src"))?.into_iter().chain([dir.join("Cargo.toml")]) {
            let text = production(&file)?;
            for word in IMPURE.iter().filter(|w| names(&text, w)) {
                problems.push(format!("{}: a pure crate names {word}", file.display()));
            }
        }
    }
    for entry in fs::read_dir(root.join("crates"))? {
        let dir = entry?.path();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let manifest = fs::read_to_string(dir.join("Cargo.toml"))?;
        let manifest = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for (library, owners) in OWNERS {
            let used = manifest.lines().any(|l| l.starts_with(&format!("{library}.")));
            if used && !owners.contains(&name.as_str()) {
                problems.push(format!("crates/{name}: only {owners:?} may know {library}"));
            }
        }
        for file in sources(&dir.join("src"))? {
            let lines = production(&file)?.lines().count();
            if lines > LINES_MAX {
                problems.push(format!("{}: {lines} lines, at most {LINES_MAX}", file.display()));
            }
        }
    }
    Ok(problems)
}

/// A file without its unit tests and comments.
fn production(file: &Path) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    Ok(code.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n"))
}

/// Whether a word stands in the text by itself.
fn names(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_some_and(part);
        let after = text[at + word.len()..].chars().next().is_some_and(part);
        !before && !after
    })
}

fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(tidy(root).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn words_are_found_whole() {
        assert!(names("use tokio::sync;", "tokio"));
        assert!(!names("use operand;", "rand"));
    }
}
