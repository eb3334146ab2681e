//! `cargo xtask bench gateway`: no proxy, PgBouncer and Quorate's gateway on the same PostgreSQL.
//!
//! ```text
//! client ── unix socket ─────────────────────────┐
//! client ── TCP ── PgBouncer ────── unix socket ─┼─ PostgreSQL of a one-node cluster
//! client ── TCP ── Quorate's gateway ─ unix socket ┘
//! ```
//!
//! Every round runs each way once, and every other round in the opposite order, so that a machine
//! that changes meanwhile is unkind to all. Processor time is read from `/proc` before and after a
//! run. The database is in memory-backed storage: Quorate insists on `fsync`, which costs nothing
//! there. What a run could not do is in the table, never left out.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::Build;

mod cases;
mod rig;

mod bulk;
mod client;
mod crowd;
mod flat;
mod meter;
mod pgbench;
mod pgbouncer;

mod report;
mod results;
mod targets;

use cases::{CASES, Case, SPLIT_CASES};
use results::{Results, Sample};
use rig::{Rig, Route};

/// Ways and cases to measure, and how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    build: Build,
    /// PgBouncer's program; Debian's when not given.
    #[arg(long)]
    pgbouncer: Option<PathBuf>,
    /// Seconds of one run.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Repetitions.
    #[arg(long, default_value_t = 3)]
    reps: usize,
    /// Only cases whose names contain one of these words.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Scale of pgbench's tables.
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Server connections of each proxy's pool.
    #[arg(long, default_value_t = 16)]
    pool: u32,
    /// Idle clients to open.
    #[arg(long, default_value_t = 10_000)]
    idle_clients: usize,
    /// Gigabytes (10^9) to COPY each way.
    #[arg(long, default_value_t = 2)]
    copy_gb: u64,
    /// Standbys beside the writer. With some, the read-mostly mix is measured with splitting on and
    /// off, instead of everything else.
    #[arg(long, default_value_t = 0)]
    replicas: usize,
    /// A field of the cluster document, as in `gateway.pool_size=16`; may be repeated.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    set: Vec<String>,
    /// Where the databases are made; memory-backed storage when there is some.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Writes every sample to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| name.contains(word.as_str()))
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// Measures, and prints tables and verdicts.
pub(crate) fn run(options: &Options) -> Result<()> {
    // Processes started from here on inherit both.
    raise_descriptors();
    let _flat = flat::Group::enter();
    let rig = Rig::start(options)?;
    println!("{}", rig.describe(options)?);
    let mut results = Results { idle_rate: rig.idle_rate()?, ..Results::default() };
    if options.replicas > 0 {
        let routes = rig.split_routes(options)?;
        rounds(&rig, options, &routes, &SPLIT_CASES, &mut results)?;
    } else {
        let routes = rig.routes();
        rounds(&rig, options, &routes, &CASES, &mut results)?;
        crowd::run(&rig, options, &routes, &mut results)?;
        bulk::run(&rig, options, &routes, &mut results)?;
    }
    ensure!(!results.is_empty(), "nothing was measured: no case has such a name");
    println!("{}", report::all(&results));
    println!("{}", targets::verdicts(&results));
    save(options, &results)
}

/// All cases one after the other, each with interleaved repetitions.
fn rounds(
    rig: &Rig,
    options: &Options,
    routes: &[Route],
    cases: &[Case],
    results: &mut Results,
) -> Result<()> {
    for case in cases.iter().filter(|case| options.wants(case.name)) {
        for round in 0..options.reps {
            let mut order: Vec<_> = routes.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for route in order {
                let sample = once(rig, options, route, case, round)
                    .with_context(|| format!("{} {}", case.name, route.label))?;
                eprintln!("{}", sample.line());
                results.samples.push(sample);
            }
        }
    }
    Ok(())
}

/// Pause after a run until what it started has ended and been counted.
const SETTLE: Duration = Duration::from_millis(200);

fn once(rig: &Rig, options: &Options, route: &Route, case: &Case, round: usize) -> Result<Sample> {
    rig.select(route)?;
    if case.writes {
        rig.tidy()?;
    }
    if round == 0 {
        // Pools fill, catalogue caches too.
        pgbench::run(rig, route, case, Duration::from_secs(1))?;
        std::thread::sleep(SETTLE);
    }
    let before = rig.meters()?;
    let outcome = pgbench::run(rig, route, case, options.seconds())?;
    let wall = before.age();
    std::thread::sleep(SETTLE);
    let spent = rig.meters()?.since(&before, wall);
    Ok(Sample::new(route, case, round, outcome, spent))
}

/// As many open files as this process may have: ten thousand clients are as many sockets here, and
/// as many in the proxy.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: maximum, maximum };
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("the limit of open files stays as it is: {error}");
    }
}

/// The samples as JSON, for whoever wants to compute something else.
fn save(options: &Options, results: &Results) -> Result<()> {
    #[derive(Serialize)]
    struct File<'a> {
        seconds: u64,
        scale: u32,
        pool: u32,
        results: &'a Results,
    }
    let Some(path) = &options.json else { return Ok(()) };
    let Options { seconds, scale, pool, .. } = *options;
    let text = serde_json::to_string_pretty(&File { seconds, scale, pool, results })?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}
