//! Runs pgbench and reads what it says.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_e2e::postgres;
use serde::Serialize;

use super::cases::Case;
use super::rig::{PASSWORD, Rig, Route, USER};

/// How much longer than asked a run may take before it is killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What pgbench reports.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// Transactions done.
    pub(crate) transactions: u64,
    /// Transactions that failed, as pgbench counts them.
    pub(crate) failed: u64,
    /// Transactions per second, without the time to connect.
    pub(crate) tps: f64,
    /// Average latency in microseconds.
    pub(crate) latency: f64,
    /// First complaint, when the run was not clean.
    pub(crate) trouble: Option<String>,
}

/// One run. That pgbench complains is an outcome, not an error.
pub(crate) fn run(rig: &Rig, route: &Route, case: &Case, time: Duration) -> Result<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(case.clients);
    let (out, err) = (rig.dir().join("pgbench.out"), rig.dir().join("pgbench.err"));
    let mut command = postgres::program("pgbench")?;
    command.args(["-n", "-U", USER]).args(case.args).args(route.address.words());
    command.args(["-c", &case.clients.to_string(), "-j", &threads.to_string()]);
    command.args(["-T", &time.as_secs().to_string(), USER]).env("PGPASSWORD", PASSWORD);
    command.stdout(File::create(&out)?).stderr(File::create(&err)?);
    let mut child = command.spawn().context("cannot run pgbench")?;
    let deadline = Instant::now() + time + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut outcome = parse(&std::fs::read_to_string(out)?, &std::fs::read_to_string(err)?);
    match status {
        None => outcome.trouble = Some(format!("did not end within {PATIENCE:?} of its time")),
        Some(status) if !status.success() && outcome.trouble.is_none() => {
            outcome.trouble = Some(status.to_string());
        }
        Some(_) => {}
    }
    Ok(outcome)
}

fn parse(out: &str, err: &str) -> Outcome {
    let value = |begin: &str| -> Option<f64> {
        let line = out.lines().find_map(|line| line.trim().strip_prefix(begin))?;
        line.split([' ', '/']).find(|word| !word.is_empty())?.parse().ok()
    };
    let complaint = err.lines().find(|l| l.contains("error:") || l.contains("FATAL"));
    Outcome {
        transactions: value("number of transactions actually processed:").unwrap_or(0.0) as u64,
        failed: value("number of failed transactions:").unwrap_or(0.0) as u64,
        tps: value("tps =").unwrap_or(0.0),
        latency: value("latency average =").unwrap_or(0.0) * 1000.0,
        trouble: complaint.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_summary() {
        let out = "number of transactions actually processed: 12345\n\
                   number of failed transactions: 3 (0.024%)\n\
                   latency average = 0.412 ms\ninitial connection time = 9.0 ms\n\
                   tps = 1543.1 (without initial connection time)\n";
        let outcome = parse(out, "pgbench: error: client 3 aborted\n");
        assert_eq!((outcome.transactions, outcome.failed), (12345, 3));
        assert_eq!((outcome.tps, outcome.latency), (1543.1, 412.0));
        assert_eq!(outcome.trouble.as_deref(), Some("pgbench: error: client 3 aborted"));
        assert_eq!(parse("", ""), Outcome::default());
    }
}
