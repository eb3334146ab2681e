//! Benchmarks. All of them print Markdown, and say what they measured and on what.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use quorate_e2e::binary::Binary;

mod demo;
mod failover;
mod gateway;
mod lag;
mod load;
mod table;

/// Measures Quorate against real processes on this machine: `cargo xtask bench …`.
#[derive(Debug, Parser)]
#[command(name = "quorate-bench")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Write gap and lost rows for each fault, time to the first row, idle cost.
    Failover(failover::Options),
    /// What the gateway costs, beside PgBouncer and no proxy at all, on the same PostgreSQL.
    Gateway(gateway::Options),
    /// How right the lag of a standby is, beside what PostgreSQL says, under load.
    Lag(lag::Options),
    /// From `quorate demo` to the first row written.
    Demo {
        #[command(flatten)]
        build: Build,
        /// Repetitions.
        #[arg(long, default_value_t = 3)]
        runs: usize,
    },
    /// Processor and memory of `quorate` while nothing happens, PostgreSQL not counted.
    Idle {
        #[command(flatten)]
        build: Build,
        /// Seconds to watch.
        #[arg(long, default_value_t = 40)]
        seconds: u64,
    },
    /// Failovers (there should be none) while all processors are busy.
    CpuLoad {
        #[command(flatten)]
        build: Build,
        /// Minutes to watch.
        #[arg(long, default_value_t = 5)]
        minutes: u64,
    },
}

/// Which programs to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Build {
    /// Measure this binary instead of building one for release.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Directory of PostgreSQL's programs.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

impl Build {
    /// The binary to measure, built if need be.
    pub(crate) fn binary(&self) -> Result<Binary> {
        if let Some(path) = &self.bin {
            return Binary::at(path.clone());
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let built = Command::new(cargo)
            .args(["build", "--release", "-p", "quorate"])
            .current_dir(&root)
            .status()
            .context("cannot run cargo")?;
        ensure!(built.success(), "the release build failed");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Binary::at(target.join("release/quorate"))
    }
}

fn main() -> Result<()> {
    match Cli::parse().bench {
        Bench::Failover(options) => failover::run(&options),
        Bench::Gateway(options) => gateway::run(&options),
        Bench::Lag(options) => lag::run(&options),
        Bench::Demo { build, runs } => demo::run(&build.binary()?, build.bin_dir.as_deref(), runs),
        Bench::Idle { build, seconds } => {
            load::idle(&build, &build.binary()?, Duration::from_secs(seconds))
        }
        Bench::CpuLoad { build, minutes } => {
            load::busy(&build, &build.binary()?, Duration::from_secs(60 * minutes))
        }
    }
}
