//! Statements out of SQL files written for psql.

use std::{fs, path::Path};

/// What the files hold.
#[derive(Default)]
pub struct Corpus {
    pub files: usize,
    pub pieces: Vec<String>,
}

/// Reads every `*.sql` below a directory.
pub fn read(directory: &Path) -> Corpus {
    let mut corpus = Corpus::default();
    walk(directory, &mut corpus);
    corpus
}

fn walk(directory: &Path, corpus: &mut Corpus) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, corpus);
        } else if path.extension().is_some_and(|e| e == "sql") {
            let Ok(bytes) = fs::read(&path) else { continue };
            corpus.files += 1;
            split(&without_psql(&String::from_utf8_lossy(&bytes)), &mut corpus.pieces);
        }
    }
}

/// Leaves out psql's own commands and the data of `COPY ... FROM STDIN`.
fn without_psql(text: &str) -> String {
    let mut out = String::new();
    let mut data = false;
    for line in text.lines() {
        if data {
            data = line != "\\.";
            continue;
        }
        let lower = line.to_lowercase();
        if line.starts_with('\\') {
            continue;
        }
        // `\gset`, `\gexec`, `\;` and kin stand at the end of a statement or between two.
        let line = match line.find(" \\g").or_else(|| line.find(" \\cross")) {
            Some(at) => format!("{};", &line[..at]),
            None => line.replace("\\;", ";"),
        };
        out.push_str(&line);
        out.push('\n');
        data = lower.starts_with("copy ") && lower.contains("from stdin") && lower.contains(';');
    }
    out
}

/// Splits by PostgreSQL's scanner, or, where it refuses the file, at empty lines.
fn split(text: &str, pieces: &mut Vec<String>) {
    let whole = pg_query::split_with_scanner(text);
    let parts: Vec<String> = match whole {
        Ok(parts) => parts.into_iter().map(str::to_owned).collect(),
        Err(_) => text
            .split("\n\n")
            .flat_map(|block| match pg_query::split_with_scanner(block) {
                Ok(parts) => parts.into_iter().map(str::to_owned).collect(),
                Err(_) => block.split(";\n").map(str::to_owned).collect::<Vec<_>>(),
            })
            .collect(),
    };
    // A body of SQL has semicolons inside: what is no statement alone may be one with the next.
    let mut at = 0;
    while at < parts.len() {
        let joined = (2..=12).find_map(|count| {
            let end = at + count;
            let text = parts.get(at..end)?.join(";");
            (pg_query::parse(&parts[at], 0).is_err() && pg_query::parse(&text, 0).is_ok())
                .then_some((text, count))
        });
        match joined {
            Some((text, count)) if text.to_lowercase().contains("atomic") => {
                pieces.push(text);
                at += count;
            }
            _ => {
                pieces.push(parts[at].clone());
                at += 1;
            }
        }
    }
}
