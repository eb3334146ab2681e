//! `cargo xtask fuzz`: searches for bytes that break what `tools/fuzz` says must hold.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::setup::{root, run, target};

/// All there are.
const TARGETS: [&str; 3] = ["frames", "sql", "login"];

/// Counters at every edge, which tell libFuzzer what is new, and what is compared with what.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// Which searches.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// How long each search takes.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Where what was found interesting is kept, to go on from; default: in the target directory.
    #[arg(long, value_name = "DIR")]
    corpus: Option<PathBuf>,
    /// frames, sql, login; default: all of them, one after the other.
    targets: Vec<String>,
}

/// Builds and searches. What breaks a law is kept below `found` in the corpus and ends the search.
pub fn fuzz(options: &Fuzz) -> Result<()> {
    for name in &options.targets {
        ensure!(TARGETS.contains(&name.as_str()), "there are {TARGETS:?}, and no {name}");
    }
    let manifest = root()?.join("tools/fuzz/Cargo.toml").display().to_string();
    let dir = target()?.join("fuzz");
    let to = dir.display().to_string();
    let build = ["cargo", "build", "--release", "--locked", "--manifest-path", &manifest];
    // For a named machine, even if it is this one: the flags are not for build scripts then.
    let machine = machine()?;
    let places = ["--target", &machine, "--target-dir", &to];
    run(&[&build[..], &places].concat(), &[("RUSTFLAGS", FLAGS)])?;
    let corpus = options.corpus.clone().unwrap_or(dir.join("corpus"));
    let found = corpus.join("found");
    fs::create_dir_all(&found)?;
    let seconds = format!("-max_total_time={}", options.seconds);
    for name in TARGETS {
        if !options.targets.is_empty() && !options.targets.iter().any(|t| t == name) {
            continue;
        }
        let inputs = corpus.join(name);
        fs::create_dir_all(&inputs)?;
        let program = dir.join(&machine).join("release").join(name).display().to_string();
        let inputs = inputs.display().to_string();
        let prefix = format!("-artifact_prefix={}/{name}-", found.display());
        let words = root()?.join("tools/fuzz").join(format!("{name}.dict"));
        let words = format!("-dict={}", words.display());
        let limits = ["-max_len=8192", "-timeout=10", "-rss_limit_mb=1024", "-malloc_limit_mb=256"];
        let given = [&program, &inputs, &seconds, &prefix, &words, "-print_final_stats=1"];
        run(&[&given[..], &limits].concat(), &[("QUORATE_FUZZ_SEEDS", &inputs)])?;
    }
    Ok(())
}

/// What the compiler calls this machine.
fn machine() -> Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what it runs on")?.to_owned())
}
