//! Drivers that are programs of their own: they print a line for each check.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::{Driver, Outcome, parse};

/// How long a driver may take for everything.
const LIMIT: Duration = Duration::from_secs(1800);

/// A file of `crates/e2e/drivers`.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("drivers").join(name)
}

/// Runs a driver's program and takes note of what it prints.
pub fn run(command: &mut Command, report: &mut Driver<'_>) -> Result<()> {
    let begun = Instant::now();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut child = Running(child);
    let out = child.0.stdout.take().context("no output")?;
    let mut err = child.0.stderr.take().context("no output")?;
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = err.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (say, lines) = mpsc::channel();
    std::thread::spawn(move || {
        BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| say.send(line))
    });
    let ended = loop {
        match lines.recv_timeout(LIMIT.saturating_sub(begun.elapsed())) {
            Ok(line) => match parse(&line) {
                Some((check, outcome)) => report.note(&check, outcome),
                None => println!("{line}"),
            },
            Err(mpsc::RecvTimeoutError::Disconnected) => break true,
            Err(mpsc::RecvTimeoutError::Timeout) => break false,
        }
    };
    if !ended {
        report.note("ends", Outcome::Failed(format!("still running after {LIMIT:?}")));
        return Ok(());
    }
    let status = child.0.wait()?;
    let said = complaints.join().unwrap_or_default();
    if !status.success() && !report.has_failed() || report.count() == 0 {
        let why = format!("{status} after {} checks: {}", report.count(), said.trim());
        report.note("ends", Outcome::Failed(why));
    }
    Ok(())
}

/// A driver that does not outlive its turn.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
