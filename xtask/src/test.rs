//! The two commands of the README: show it, and pass the tests.

use anyhow::{Context, Result};
use clap::Args;

use crate::drivers::{Drivers, drivers};
use crate::patience::cargo_test;
use crate::setup::{other_version, pgbouncer, postgresql, run, target};

/// The version for tests that the installed one may be too old for.
const NEWER: u32 = 18;

/// Which tests.
#[derive(Debug, Args)]
pub struct Test {
    /// Leave out the end-to-end tests.
    #[arg(long)]
    quick: bool,
    /// Only the end-to-end tests whose names contain this.
    #[arg(long)]
    only: Option<String>,
    /// Run the end-to-end tests on this major version of PostgreSQL (16 or 18), fetched as a
    /// Python wheel, instead of the installed one.
    #[arg(long)]
    postgres: Option<u32>,
}

/// `cargo xtask demo`.
pub fn demo(args: &[String]) -> Result<()> {
    postgresql()?;
    // Not a release, which is linked for many minutes: nobody should wait so long to see it work.
    run(&["cargo", "build", "-p", "quorate"], &[])?;
    let program = target()?.join("debug/quorate").display().to_string();
    let default = ["--hurt", "--seconds", "40"].map(str::to_owned);
    let args = if args.is_empty() { &default[..] } else { args };
    let mut words = vec![program.as_str(), "demo"];
    words.extend(args.iter().map(String::as_str));
    run(&words, &[])
}

/// `cargo xtask test`.
pub fn test(options: &Test) -> Result<()> {
    postgresql()?;
    if options.only.is_none() && options.postgres.is_none() {
        run(&["cargo", "test", "--workspace", "--exclude", "quorate-e2e"], &[])?;
    }
    if options.quick {
        return Ok(());
    }
    // The same program twice: with removable fences, for the tests that show that their absence is
    // noticed, and as it is. One target directory: only what knows the feature is built twice.
    let program = target()?.join("debug/quorate");
    let sabotaged = target()?.join("debug/quorate-sabotaged");
    run(&["cargo", "build", "-p", "quorate", "--features", "sabotage"], &[])?;
    std::fs::copy(&program, &sabotaged).context("cannot keep the program without fences")?;
    run(&["cargo", "build", "-p", "quorate"], &[])?;
    let (program, sabotaged) = (program.display().to_string(), sabotaged.display().to_string());
    let mut env = vec![("QUORATE_BIN", program.as_str()), ("QUORATE_SABOTAGE_BIN", &sabotaged)];
    let other = options.postgres.map(other_version).transpose()?;
    if let Some(bin) = &other {
        env.push(("QUORATE_E2E_POSTGRES_BIN", bin));
    }
    // What this machine's PostgreSQL may be too old for.
    let newer = match &other {
        Some(_) => None,
        None => other_version(NEWER)
            .inspect_err(|e| println!("tests that need PostgreSQL {NEWER} are NOT RUN: {e:#}"))
            .ok(),
    };
    if let Some(bin) = &newer {
        env.push(("QUORATE_E2E_POSTGRES_NEW", bin));
    }
    let only = options.only.as_deref();
    cargo_test(&["-p", "quorate-e2e"], only.as_slice(), &env)?;
    if options.only.is_none() && options.postgres.is_none() {
        drivers(&Drivers::of_test())?;
    }
    Ok(())
}

/// `cargo xtask sim`.
pub fn sim(args: &[String]) -> Result<()> {
    let mut words = vec!["cargo", "run", "--release", "-p", "quorate-sim", "--"];
    words.extend(args.iter().map(String::as_str));
    run(&words, &[])
}

/// `cargo xtask bench`.
pub fn bench(args: &[String]) -> Result<()> {
    postgresql()?;
    let given = args.iter().any(|arg| arg == "--pgbouncer" || arg.starts_with("--pgbouncer="));
    if args.first().is_some_and(|bench| bench == "gateway") && !given {
        pgbouncer()?;
    }
    let mut words =
        vec!["cargo", "run", "--release", "-p", "quorate-e2e", "--bin", "quorate-bench", "--"];
    words.extend(args.iter().map(String::as_str));
    run(&words, &[])
}

/// `cargo xtask attack`. `QUORATE_BIN` names another program than the release that is built here.
pub fn attack(args: &[String]) -> Result<()> {
    postgresql()?;
    let program = match std::env::var("QUORATE_BIN") {
        Ok(program) => program,
        Err(_) => {
            run(&["cargo", "build", "--release", "-p", "quorate"], &[])?;
            target()?.join("release/quorate").display().to_string()
        }
    };
    let keep = target()?.join("attack").display().to_string();
    let mut words = vec!["cargo", "run", "-p", "quorate-e2e", "--bin", "quorate-attack", "--"];
    if !args.iter().any(|arg| arg.starts_with("--keep") || arg.starts_with("--judge")) {
        words.extend(["--keep", &keep]);
    }
    words.extend(args.iter().map(String::as_str));
    run(&words, &[("QUORATE_BIN", &program)])
}
