//! Compares `quorate_wire::sql::classify` with PostgreSQL's own parser.
//!
//! `quorate-oracle DIRECTORY [mutations] [seed]`: reads every `*.sql` below the directory, compares
//! each statement, then that many mutations of them. Exits with 1 if a law is broken.

mod corpus;
mod law;
mod mutate;
mod tree;

use std::{collections::BTreeMap, process::ExitCode};

use quorate_wire::sql::{Access, Options, Why, classify};

/// What was compared and found.
#[derive(Default)]
struct Report {
    compared: u64,
    broken: Vec<(String, &'static str)>,
    reads: u64,
    reads_to_writer: u64,
    reasons: BTreeMap<String, (u64, Vec<String>)>,
}

impl Report {
    /// Compares one string; `false` if PostgreSQL does not parse it.
    fn compare(&mut self, sql: &str) -> bool {
        let Some(seen) = tree::see(sql) else { return false };
        self.compared += 1;
        let script = classify(sql.as_bytes(), &Options::default());
        for law in law::broken(&script, &seen) {
            self.broken.push((sql.to_owned(), law));
        }
        if !seen.query {
            return true;
        }
        self.reads += 1;
        if script.access == Access::Write {
            self.reads_to_writer += 1;
            let mut why = format!("{:?}", script.because);
            if script.because == Why::Function {
                let safe = seen.functions.iter().all(law::is_safe_function);
                why += if safe { " (all are known)" } else { " (of users, or the writer's)" };
            }
            let entry = self.reasons.entry(why).or_default();
            entry.0 += 1;
            if entry.1.len() < 400 {
                entry.1.push(sql.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
        true
    }

    fn print(&self, what: &str, examples: usize) {
        println!("{what}: {} compared, {} laws broken", self.compared, self.broken.len());
        let share = 100.0 * self.reads_to_writer as f64 / self.reads.max(1) as f64;
        let to_writer = self.reads_to_writer;
        println!("  {to_writer} of {} queries ({share:.1} %) need the writer:", self.reads);
        for (why, (count, shown)) in &self.reasons {
            println!("  {count:>7} {why}");
            for sql in shown.iter().take(examples) {
                println!("            {}", sql.chars().take(150).collect::<String>());
            }
        }
        let mut by_law: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (sql, law) in &self.broken {
            by_law.entry(law).or_default().push(sql);
        }
        for (law, found) in by_law {
            println!("  BROKEN {} times: {law}", found.len());
            for sql in found.iter().take(12) {
                println!("    | {}", sql.chars().take(400).collect::<String>());
            }
        }
    }
}

/// Compares where statements end in text that need not be SQL; returns the disagreements.
fn scan_apart(count: u64, random: &mut mutate::Random) -> usize {
    let (mut compared, mut unreadable, mut apart) = (0u64, 0u64, Vec::new());
    while compared < count {
        let sql = mutate::soup(random);
        let Some(statements) = tree::scanned_statements(&sql) else { continue };
        compared += 1;
        let script = classify(sql.as_bytes(), &Options::default());
        // Queries end no block: only what cannot be read does.
        if script.ends {
            unreadable += 1;
        } else if script.statements as usize != statements {
            apart.push(sql);
        }
    }
    println!("scanner: {compared} compared, {} apart, {unreadable} unreadable here", apart.len());
    apart.iter().take(12).for_each(|sql| println!("    | {sql:?}"));
    apart.len()
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(directory) = args.next() else {
        eprintln!("usage: quorate-oracle DIRECTORY [mutations] [seed]");
        return ExitCode::from(2);
    };
    let mutations: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(0);
    let seed: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    let examples = std::env::var("EXAMPLES").ok().and_then(|e| e.parse().ok()).unwrap_or(3);

    let corpus = corpus::read(directory.as_ref());
    println!("{} pieces in {} files", corpus.pieces.len(), corpus.files);
    let mut plain = Report::default();
    let unparsed = corpus.pieces.iter().filter(|sql| !plain.compare(sql)).count();
    println!("{unparsed} not accepted by the parser");
    plain.print("statements", examples);

    let mut random = mutate::Random::new(seed);
    let mut mutated = Report::default();
    let mut tried = 0u64;
    while mutated.compared < mutations && tried < mutations * 50 {
        tried += 1;
        mutated.compare(&mutate::mutate(&corpus.pieces, &mut random));
    }
    if mutations > 0 {
        println!("{tried} mutations made with seed {seed}");
        mutated.print("mutations", examples.saturating_sub(3));
    }
    let apart = scan_apart(mutations, &mut random);
    ExitCode::from(u8::from(apart > 0 || !plain.broken.is_empty() || !mutated.broken.is_empty()))
}
