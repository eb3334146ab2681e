//! Developer commands: `cargo xtask …`.

// A binary has no outside: `pub` here means "for the other modules".
#![allow(unreachable_pub)]

use anyhow::Result;
use clap::{Parser, Subcommand};

mod api;
mod check;
mod drivers;
mod fuzz;
mod metrics;
mod page;
mod patience;
mod setup;
mod test;

/// Developer commands of Quorate.
#[derive(Debug, Parser)]
#[command(name = "xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a working three-node cluster: installs PostgreSQL when missing, builds, runs the demo.
    Demo {
        /// Arguments for `quorate demo`; default: --hurt --seconds 40.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Pass the tests: installs PostgreSQL when missing, builds, runs everything.
    Test(test::Test),
    /// Run real drivers through the gateways of a cluster, and psycopg's own tests: fetches the
    /// drivers, prints a table.
    Drivers(drivers::Drivers),
    /// Search for bytes that break the wire protocol's readers, the classifier or a login: libFuzzer,
    /// a minute for each.
    Fuzz(fuzz::Fuzz),
    /// Look at the page with a browser, of a made-up cluster or, with --live, of a real one: installs
    /// Chromium when missing.
    Page(page::Page),
    /// Have Prometheus' own parser read the rules for it and the dashboard's expressions: installs its
    /// package when missing.
    Metrics,
    /// Compare a cluster's HTTP API with its description: installs a fuzzing client, starts the demo,
    /// hurts it.
    Api(api::Api),
    /// Simulate clusters under faults by chance: the real decisions, everything else made up.
    Sim {
        /// Arguments for the simulator, such as --seeds 20000 --minutes 5; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Attack clusters of real processes and judge what their clients saw: workloads, faults, a
    /// verdict.
    Attack {
        /// Arguments for the attack, such as `--minutes 10 --seed 7`; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Formatting, lints and the project's own rules; changes nothing.
    Check,
    /// Measure, against real processes on this machine: failover, gateway, demo, idle, cpu-load.
    Bench {
        /// Arguments for the benchmark; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Demo { args } => test::demo(&args),
        Command::Test(options) => test::test(&options),
        Command::Drivers(options) => drivers::drivers(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Page(options) => page::page(&options),
        Command::Metrics => metrics::metrics(),
        Command::Api(options) => api::api(&options),
        Command::Sim { args } => test::sim(&args),
        Command::Attack { args } => test::attack(&args),
        Command::Check => check::check(),
        Command::Bench { args } => test::bench(&args),
    }
}
