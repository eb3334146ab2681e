//! Feels the WAL disk's pulse: one small synchronous write every so often, on its own thread.
//!
//! The thread that writes may hang for ever on a dead disk; whoever asks reads atomics and never
//! waits. The probe file can be anywhere: a harness puts a FIFO in its place that nobody reads,
//! which makes the thread hang in `open` exactly as a stuck disk would.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use quorate_core::Moment;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::files::open_or_make;
use crate::limits::{DISK_PROBE_BYTES, DISK_PROBE_EVERY};
use crate::{Error, ServerOptions, User};

/// What the last probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskHealth {
    /// How long the last finished write took; `None` before the first or when it failed.
    pub latency: Option<Duration>,
    /// A write that has not come back started at this moment of `CLOCK_BOOTTIME`. Set for the
    /// short time of a healthy write too: compare it with now.
    pub busy_since: Option<Moment>,
    /// The last write failed, for instance because there is no data directory yet.
    pub failed: bool,
}

/// The running probe. Dropping it ends the thread, unless the disk holds it.
#[derive(Debug)]
pub struct DiskProbe {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    /// Nanoseconds; zero: none.
    latency: AtomicU64,
    /// `Moment`; zero: idle.
    busy_since: AtomicU64,
    failed: AtomicBool,
    stop: AtomicBool,
}

impl DiskProbe {
    /// Probes the file system that holds `pg_wal`.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be had.
    pub fn start(options: &ServerOptions) -> Result<Self, Error> {
        let path = options.data_dir.join("pg_wal/quorate.probe");
        Self::start_at(&path, options.run_as.clone())
    }

    /// Probes with this file. `owner` must be the server's user inside a data directory:
    /// `pg_rewind` opens every file there.
    ///
    /// # Errors
    /// [`Error::Io`] when no thread can be had.
    pub fn start_at(path: &Path, owner: Option<User>) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let (ours, file) = (Arc::clone(&shared), path.to_owned());
        let thread = thread::Builder::new()
            .name("disk-probe".to_owned())
            .spawn(move || run(&ours, &file, owner.as_ref()))
            .map_err(Error::io("start a thread for", path))?;
        Ok(Self { shared, thread: thread.thread().clone() })
    }

    /// The present health. Never blocks.
    pub fn health(&self) -> DiskHealth {
        let some = |value: u64| (value != 0).then_some(value);
        DiskHealth {
            latency: some(self.shared.latency.load(Ordering::Acquire)).map(Duration::from_nanos),
            busy_since: some(self.shared.busy_since.load(Ordering::Acquire)).map(Moment),
            failed: self.shared.failed.load(Ordering::Acquire),
        }
    }
}

impl Drop for DiskProbe {
    fn drop(&mut self) {
        // No join: the thread may hang in the kernel.
        self.shared.stop.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

fn run(shared: &Shared, path: &Path, owner: Option<&User>) {
    while !shared.stop.load(Ordering::Acquire) {
        let start = now();
        shared.busy_since.store(start.0.max(1), Ordering::Release);
        let failed = write_once(path, owner).is_err();
        let took = u64::try_from(now().since(start).as_nanos()).unwrap_or(u64::MAX).max(1);
        shared.latency.store(if failed { 0 } else { took }, Ordering::Release);
        shared.failed.store(failed, Ordering::Release);
        shared.busy_since.store(0, Ordering::Release);
        thread::park_timeout(DISK_PROBE_EVERY);
    }
}

/// Opens anew each time: a directory that was replaced by a clone is followed.
fn write_once(path: &Path, owner: Option<&User>) -> std::io::Result<()> {
    let mut file = open_or_make(path, OpenOptions::new().write(true), OFlags::DSYNC, owner)?;
    file.write_all(&[0; DISK_PROBE_BYTES])
}

/// `CLOCK_BOOTTIME`, the clock of [`Moment`].
fn now() -> Moment {
    let t = clock_gettime(ClockId::Boottime);
    Moment(t.tv_sec.cast_unsigned() * 1_000_000_000 + t.tv_nsec.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::time::Instant;

    fn wait_for(probe: &DiskProbe, what: impl Fn(DiskHealth) -> bool) -> DiskHealth {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let health = probe.health();
            if what(health) {
                return health;
            }
            assert!(Instant::now() < deadline, "{health:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_healthy_disk_answers_a_missing_directory_fails_and_a_stuck_one_shows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/probe");
        let probe = DiskProbe::start_at(&path, None).unwrap();
        wait_for(&probe, |h| h.failed);
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        wait_for(&probe, |h| h.latency.is_some() && !h.failed);
        std::fs::remove_file(&path).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(fifo.success());
        let hung = |h: DiskHealth| {
            h.busy_since.is_some_and(|since| now().since(since) > Duration::from_millis(100))
        };
        wait_for(&probe, hung);
        // The disk comes back: somebody reads.
        let mut reader = File::open(&path).unwrap();
        std::io::Read::read_exact(&mut reader, &mut [0; 64]).unwrap();
        std::fs::remove_file(&path).ok();
        wait_for(&probe, |h| h.busy_since.is_none());
    }
}
