//! One scheduling group for the benchmark.
//!
//! Where the kernel groups processes by session (autogroup), every PostgreSQL backend is a session
//! and weighs as much as a whole proxy, which flatters or hurts by the number of backends. In a
//! group of our own every process weighs the same. Only root can do this, and only where the `cpu`
//! controller of cgroup v1 is mounted: under v2, processes of services are outside of autogroups
//! anyway.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup/cpu";
/// As much as twenty ordinary processes: about what the backends would weigh without the group.
const SHARES: &str = "20480";

/// Membership of this process and of what it starts, until dropped.
#[derive(Debug)]
pub(crate) struct Group(Option<PathBuf>);

impl Group {
    /// Enters a new group, or says why not.
    pub(crate) fn enter() -> Self {
        let autogroup = fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
        if !autogroup.is_ok_and(|on| on.trim() == "1") {
            return Self(None);
        }
        let dir = Path::new(ROOT).join(format!("quorate-bench-{}", std::process::id()));
        let entered = fs::create_dir(&dir)
            .and_then(|()| fs::write(dir.join("cpu.shares"), SHARES))
            .and_then(|()| fs::write(dir.join("cgroup.procs"), std::process::id().to_string()));
        if let Err(error) = entered {
            eprintln!("no scheduling group of our own, backends may weigh more: {error}");
        }
        Self(Some(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(dir) = &self.0 else { return };
        let _ = fs::write(Path::new(ROOT).join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(dir);
    }
}
