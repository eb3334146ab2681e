//! Real drivers through the gateways of a real cluster of three nodes: `cargo xtask drivers`.
//!
//! What a driver must show is written in its own language, in `crates/e2e/drivers` and
//! `tools/drivers`; here are the cluster, PostgreSQL's own programs, and the table of results. Where
//! the drivers' packages are is said on the command line: this program fetches nothing.

// A binary has no outside: `pub` here means "for the other modules".
#![allow(unreachable_pub)]

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;
use quorate_e2e::Cluster;

mod place;
mod programs;
mod report;
mod script;

use place::Place;
use report::{Outcome, Report};

/// Shows what drivers do through the gateways of a cluster.
#[derive(Debug, Parser)]
#[command(name = "quorate-drivers")]
struct Options {
    /// A Python with the packages of `drivers/python/requirements.txt`.
    #[arg(long)]
    python: Option<PathBuf>,
    /// A directory `node_modules` with the packages of `drivers/node/package.json`.
    #[arg(long)]
    node: Option<PathBuf>,
    /// The built program of `tools/drivers`.
    #[arg(long)]
    rust: Option<PathBuf>,
    /// psycopg's source, for its own tests: a checkout of the version in `requirements.txt`.
    #[arg(long)]
    psycopg: Option<PathBuf>,
    /// Leave out psycopg's own tests.
    #[arg(long)]
    no_suite: bool,
    /// Only the drivers whose names contain this.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let cluster = Cluster::of(3).start()?;
    let place = Place::new(&cluster)?;
    let mut report = Report::default();
    for (driver, run) in DRIVERS {
        if options.only.as_ref().is_none_or(|only| driver.contains(only.as_str())) {
            cluster.wait_healthy()?;
            println!("--- {driver}");
            let done = run(&options, &place, &mut report.of(driver));
            done.or_else(|e| cluster.explain(e))?;
        }
    }
    if let Err(error) = cluster.check_logs() {
        report.of("the nodes' logs").note("no error", Outcome::failed(&error));
    }
    println!("\n{report}");
    if report.good() {
        return Ok(());
    }
    bail!("not all is well: see above\n{}", cluster.portrait())
}

type Run = fn(&Options, &Place<'_>, &mut report::Driver<'_>) -> Result<()>;

const DRIVERS: &[(&str, Run)] = &[
    ("psql", |_, place, report| programs::psql(place, report)),
    ("pgbench", |_, place, report| programs::pgbench(place, report)),
    ("pg_dump", |_, place, report| programs::pg_dump(place, report)),
    ("psycopg", |options, place, report| {
        let Some(python) = &options.python else { return report.absent("no --python") };
        script::run(place.command(python).arg(script::path("python/psycopg3.py")), report)
    }),
    ("node-postgres", |options, place, report| {
        let Some(modules) = &options.node else { return report.absent("no --node") };
        let mut node = place.command("node");
        node.env("NODE_PATH", modules).arg(script::path("node/node_postgres.js"));
        script::run(&mut node, report)
    }),
    ("tokio-postgres", |options, place, report| rust(options, place, report, "tokio-postgres")),
    ("sqlx", |options, place, report| rust(options, place, report, "sqlx")),
    ("psycopg's own tests", |options, place, report| {
        if options.no_suite {
            return Ok(());
        }
        let Some(python) = &options.python else { return report.absent("no --python") };
        let Some(source) = &options.psycopg else { return report.absent("no --psycopg") };
        let (server, gateway) = place.suite()?;
        let mut suite = place.command(python);
        suite.arg(script::path("python/suite.py")).arg(source).args([server, gateway]);
        script::run(&mut suite, report)
    }),
];

fn rust(
    options: &Options,
    place: &Place<'_>,
    report: &mut report::Driver<'_>,
    driver: &str,
) -> Result<()> {
    let Some(program) = &options.rust else { return report.absent("no --rust") };
    script::run(place.command(program).arg(driver), report)
}
