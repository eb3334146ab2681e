//! `cargo xtask drivers`: fetches the drivers' packages and shows what the drivers do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::setup::{install, on_path, postgresql, quiet, root, run, target};

/// Which drivers.
#[derive(Debug, Default, Args)]
pub struct Drivers {
    /// psycopg's source, for its own tests: a checkout, or a repository to fetch the tag from. The
    /// package has no tests.
    #[arg(long, value_name = "DIR|URL", default_value = "https://github.com/psycopg/psycopg")]
    psycopg: String,
    /// Leave out psycopg's own tests.
    #[arg(long)]
    no_suite: bool,
    /// Only the drivers whose names contain this.
    #[arg(long)]
    only: Option<String>,
}

impl Drivers {
    /// What is part of `cargo xtask test`: all that the package registries have.
    pub fn of_test() -> Self {
        Self { no_suite: true, ..Self::default() }
    }
}

/// Runs them through the gateways of a cluster.
pub fn drivers(options: &Drivers) -> Result<()> {
    postgresql()?;
    let here = root()?.join("crates/e2e/drivers");
    let there = target()?.join("drivers");
    fs::create_dir_all(&there)?;
    let python = python(&here.join("python/requirements.txt"), &there.join("python"))?;
    let node = node(&here.join("node/package.json"), &there.join("node"))?;
    let rust = rust(&there.join("rust"))?;
    run(&["cargo", "build", "-p", "quorate"], &[])?;
    let mut words = ["cargo", "run", "-p", "quorate-e2e", "--bin", "quorate-drivers", "--"]
        .map(String::from)
        .to_vec();
    for (option, value) in [("--python", &python), ("--node", &node), ("--rust", &rust)] {
        words.extend([option.to_owned(), value.display().to_string()]);
    }
    if options.no_suite {
        words.push("--no-suite".to_owned());
    } else {
        let source = psycopg(&options.psycopg, &here.join("python/requirements.txt"), &there)?;
        words.extend(["--psycopg".to_owned(), source.display().to_string()]);
    }
    if let Some(only) = &options.only {
        words.extend(["--only".to_owned(), only.clone()]);
    }
    let program = target()?.join("debug/quorate").display().to_string();
    run(&words.iter().map(String::as_str).collect::<Vec<_>>(), &[("QUORATE_BIN", &program)])
}

/// A virtual environment with these packages; its interpreter.
pub fn python(requirements: &Path, dir: &Path) -> Result<PathBuf> {
    let (interpreter, done) = (dir.join("bin/python"), dir.join("requirements.txt"));
    if same(requirements, &done) {
        return Ok(interpreter);
    }
    if !on_path("python3") {
        install(&["python3", "python3-venv"])?;
    }
    let new = "import sys; sys.exit(sys.version_info < (3, 10))";
    ensure!(quiet(&["python3", "-c", new]), "Python 3.10 or newer is needed as `python3`");
    // Debian's python3 comes without what a virtual environment needs.
    if !quiet(&["python3", "-c", "import ensurepip, venv"]) {
        install(&["python3-venv"])?;
    }
    let (to, list) = (dir.display().to_string(), requirements.display().to_string());
    run(&["python3", "-m", "venv", "--clear", &to], &[])?;
    let program = interpreter.display().to_string();
    run(
        &[&program, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", &list],
        &[],
    )?;
    fs::copy(requirements, done)?;
    Ok(interpreter)
}

/// A directory with these packages of node; its `node_modules`.
fn node(package: &Path, dir: &Path) -> Result<PathBuf> {
    let (modules, done) = (dir.join("node_modules"), dir.join("installed.json"));
    if same(package, &done) {
        return Ok(modules);
    }
    if !on_path("node") || !on_path("npm") {
        install(&["nodejs", "npm"])?;
    }
    fs::create_dir_all(dir)?;
    fs::copy(package, dir.join("package.json"))?;
    let to = dir.display().to_string();
    let quiet = ["--no-audit", "--no-fund", "--no-package-lock"];
    run(&[&["npm", "install", "--prefix", &to], &quiet[..]].concat(), &[])?;
    fs::copy(package, done)?;
    Ok(modules)
}

/// The program of `tools/drivers`, which stands outside of the workspace.
fn rust(dir: &Path) -> Result<PathBuf> {
    let manifest = root()?.join("tools/drivers/Cargo.toml").display().to_string();
    let to = dir.display().to_string();
    run(&["cargo", "build", "--locked", "--manifest-path", &manifest, "--target-dir", &to], &[])?;
    Ok(dir.join("debug/quorate-drivers-rust"))
}

/// psycopg's source, of the version that is installed.
fn psycopg(from: &str, requirements: &Path, dir: &Path) -> Result<PathBuf> {
    let checkout = Path::new(from);
    if checkout.join("tests/conftest.py").exists() {
        return Ok(checkout.canonicalize()?);
    }
    let list = fs::read_to_string(requirements)?;
    let version = list.lines().find_map(|line| line.strip_prefix("psycopg[binary]=="));
    let version = version.context("requirements.txt has no version of psycopg")?;
    let source = dir.join(format!("psycopg-{version}"));
    if source.join("tests/conftest.py").exists() {
        return Ok(source);
    }
    let to = source.display().to_string();
    let clone = ["git", "clone", "-q", "-c", "advice.detachedHead=false", "--depth", "1"];
    let clone = [&clone[..], &["--branch", version, from, &to]].concat();
    if let Err(error) = run(&clone, &[("GIT_TERMINAL_PROMPT", "0")]) {
        bail!(
            "{error:#}\npsycopg's own tests need its source: name a checkout of the tag {version} with \
             --psycopg, or leave them out with --no-suite"
        );
    }
    Ok(source)
}

/// Whether two files say the same.
fn same(one: &Path, other: &Path) -> bool {
    matches!((fs::read(one), fs::read(other)), (Ok(a), Ok(b)) if a == b)
}
