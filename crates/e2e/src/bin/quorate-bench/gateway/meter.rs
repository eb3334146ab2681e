//! Processor time and memory, from `/proc`.
//!
//! Threads are read from `schedstat`, in nanoseconds; whole processes from `stat`, in ticks, because
//! only that counts threads which have ended.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_e2e::process::{self, usage};
use rustix::process::{Pid, getpid};
use serde::Serialize;

use super::rig::Via;

/// How the names of the gateway's own threads begin.
const GATEWAY_THREADS: &str = "gateway";

/// Clocks of everything that takes part, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Meters {
    at: Instant,
    quorate: Duration,
    gateway: Option<Duration>,
    pgbouncer: Duration,
    postgres: Duration,
    clients: Duration,
    own: Duration,
    machine: Duration,
}

/// Processor seconds used in a run.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Spent {
    /// Time the run took.
    pub(crate) wall: f64,
    /// Time between the two readings; somewhat longer.
    pub(crate) read: f64,
    /// All of `quorate run`, on every node.
    pub(crate) quorate: f64,
    /// Its threads named `gateway…`, when there are some.
    pub(crate) gateway: Option<f64>,
    /// PgBouncer.
    pub(crate) pgbouncer: f64,
    /// PostgreSQL, ended backends included.
    pub(crate) postgres: f64,
    /// pgbench.
    pub(crate) client: f64,
    /// Everybody else on this machine, as a share of all processors.
    pub(crate) others: f64,
    /// Load average of the last minute.
    pub(crate) load: f64,
}

impl Spent {
    /// What the proxy of this way used: the gateway's own threads where there are some.
    pub(crate) fn proxy(&self, via: Via) -> Option<f64> {
        match via {
            Via::Direct => None,
            Via::PgBouncer => Some(self.pgbouncer),
            Via::Quorate => Some(self.gateway.unwrap_or(self.quorate)),
        }
    }
}

impl Meters {
    /// Reads all clocks.
    pub(crate) fn read(quorate: &[Pid], pgbouncer: Option<Pid>, data: &[&Path]) -> Result<Self> {
        let gateways = quorate.iter().filter_map(|pid| threads(*pid, GATEWAY_THREADS));
        let me = usage(getpid())?;
        Ok(Self {
            at: Instant::now(),
            quorate: quorate.iter().map(|p| Ok(usage(*p)?.cpu)).sum::<Result<_>>()?,
            gateway: gateways.reduce(|a, b| a + b),
            pgbouncer: pgbouncer.and_then(|pid| threads(pid, "")).unwrap_or_default(),
            postgres: data.iter().map(|dir| server(dir)).sum::<Result<_>>()?,
            clients: me.reaped,
            own: me.cpu,
            machine: machine()?,
        })
    }

    /// Time since they were read.
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// What was used between two readings.
    pub(crate) fn since(&self, before: &Self, wall: Duration) -> Spent {
        let spent = |of: fn(&Self) -> Duration| of(self).saturating_sub(of(before)).as_secs_f64();
        let known = spent(|m| m.quorate)
            + spent(|m| m.pgbouncer)
            + spent(|m| m.postgres)
            + spent(|m| m.clients)
            + spent(|m| m.own);
        let read = self.at.duration_since(before.at).as_secs_f64();
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        Spent {
            wall: wall.as_secs_f64(),
            read,
            quorate: spent(|m| m.quorate),
            gateway: self.gateway.map(|_| spent(|m| m.gateway.unwrap_or_default())),
            pgbouncer: spent(|m| m.pgbouncer),
            postgres: spent(|m| m.postgres),
            client: spent(|m| m.clients),
            others: (spent(|m| m.machine) - known).max(0.0) / read / processors,
            load: load(),
        }
    }
}

/// Time of a process's living threads whose names begin so; `None` when there are none.
fn threads(pid: Pid, begin: &str) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
    let named = tasks.flatten().map(|task| task.path()).filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with(begin))
    });
    named.map(|task| ran(&task)).reduce(|a, b| a + b)
}

/// Time that a task has run, from the first number of its `schedstat`.
fn ran(task: &Path) -> Duration {
    let text = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// A server's time: its living processes, and the dead ones that its postmaster has waited for.
fn server(data: &Path) -> Result<Duration> {
    let reaped = usage(process::postmaster(data)?)?.reaped;
    let living = process::below(data);
    let of = |pid: &Pid| ran(Path::new(&format!("/proc/{}", pid.as_raw_nonzero())));
    Ok(reaped + living.iter().map(of).sum::<Duration>())
}

/// Time that all processors were busy since the start.
fn machine() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: see proc(5). What a hypervisor took
    // is counted as somebody else's.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| ticks.get(*i)).sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(busy as f64 / per_second as f64))
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// Resident memory of a process in bytes, exactly: `stat` lags by what each processor batches.
pub(crate) fn resident(pid: Pid) -> Result<u64> {
    kilobytes(&format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero()), "Rss:")
}

/// Highest resident memory since [`forget_peak`].
pub(crate) fn peak(pid: Pid) -> Result<u64> {
    kilobytes(&format!("/proc/{}/status", pid.as_raw_nonzero()), "VmHWM:")
}

/// Makes the present resident memory the highest.
pub(crate) fn forget_peak(pid: Pid) -> Result<()> {
    let file = format!("/proc/{}/clear_refs", pid.as_raw_nonzero());
    fs::write(&file, "5").with_context(|| file)
}

fn kilobytes(file: &str, field: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.with_context(|| format!("no {field} in {file}"))? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_its_own_threads_by_name() {
        let busy = std::thread::Builder::new().name("gateway-7".to_owned()).spawn(|| {
            let until = Instant::now() + Duration::from_millis(50);
            while Instant::now() < until {}
            threads(getpid(), GATEWAY_THREADS)
        });
        let time = busy.unwrap().join().unwrap().unwrap();
        assert!(time > Duration::from_millis(5), "{time:?}");
        assert_eq!(threads(getpid(), "no such thread"), None);
    }

    #[test]
    fn reads_memory() {
        let mib = 1024 * 1024;
        assert!(resident(getpid()).unwrap() > mib);
        assert!(peak(getpid()).unwrap() > mib);
    }
}
