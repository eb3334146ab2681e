//! Processes of a node, found by their working directory.
//!
//! `quorate` is started with its node's directory as working directory; its tools inherit that, and
//! PostgreSQL moves to its data directory below. So everything that belongs to a "host" is found
//! without knowing who started whom, orphans included.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Processes whose working directory is `dir` or below it.
pub fn below(dir: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// Sends a signal. That a process is gone already is fine.
pub fn signal(pid: Pid, signal: Signal) {
    let _ = kill_process(pid, signal);
}

/// Sends a signal to each.
pub fn signal_all(pids: &[Pid], kind: Signal) {
    for pid in pids {
        signal(*pid, kind);
    }
}

/// Kills everything below `dir`, until nothing is left: what was starting meanwhile, too.
pub fn kill_below(dir: &Path) {
    for _ in 0..50 {
        let alive: Vec<_> = below(dir).into_iter().filter(|pid| !is_zombie(*pid)).collect();
        if alive.is_empty() {
            return;
        }
        signal_all(&alive, Signal::KILL);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The postmaster of a data directory, when its pid file names a living process.
pub fn postmaster(data: &Path) -> Result<Pid> {
    let file = data.join("postmaster.pid");
    let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
    let first = text.lines().next().unwrap_or_default();
    let pid: i32 = first.trim().parse().with_context(|| format!("in {}", file.display()))?;
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).context("the postmaster is gone")?;
    anyhow::ensure!(cwd == fs::canonicalize(data)?, "process {pid} is not that postmaster");
    Pid::from_raw(pid).context("pid zero")
}

/// The command line, or title, of a process; empty when it is gone.
pub fn title(pid: Pid) -> String {
    let bytes = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

fn is_zombie(pid: Pid) -> bool {
    stat_fields(pid).is_none_or(|fields| fields.first().is_none_or(|state| state == "Z"))
}

/// Processor time used so far, and resident memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// The same of children that ended and were waited for, with theirs.
    pub reaped: Duration,
    /// Resident set.
    pub resident: u64,
}

/// What a process has used.
pub fn usage(pid: Pid) -> Result<Usage> {
    let fields = stat_fields(pid).context("the process is gone")?;
    let number = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or_default();
    // Counted from the state: utime, stime, cutime and cstime are fields 14 to 17, rss is 24
    // (proc(5)).
    let per_second = rustix::param::clock_ticks_per_second();
    let time = |ticks: u64| Duration::from_secs_f64(ticks as f64 / per_second as f64);
    Ok(Usage {
        cpu: time(number(11) + number(12)),
        reaped: time(number(13) + number(14)),
        resident: number(21) * rustix::param::page_size() as u64,
    })
}

/// Fields of `/proc/<pid>/stat` from the state on; the name before may hold blanks.
fn stat_fields(pid: Pid) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn finds_and_kills_by_working_directory() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&inner).spawn().unwrap();
        assert_eq!(below(dir.path()), [Pid::from_child(&child)]);
        kill_below(dir.path());
        assert!(!child.wait().unwrap().success());
        assert_eq!(below(dir.path()), []);
    }

    #[test]
    fn reads_its_own_usage() {
        let usage = usage(rustix::process::getpid()).unwrap();
        assert!(usage.resident > 1024 * 1024, "{usage:?}");
    }
}
