//! Processes by what `/proc` says of them, and the register of our own children.
//!
//! Orphans of a dead postmaster are found by their working directory: PostgreSQL's processes live
//! in the data directory. Zombies have no directory any more; those that became our children are
//! reaped unless the register says that somebody waits for them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) state: char,
    pub(crate) name: String,
}

/// A directory as the kernel knows it: it keeps its identity when it is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirId {
    device: u64,
    inode: u64,
}

impl DirId {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { device: meta.dev(), inode: meta.ino() })
    }
}

/// Children that this crate spawned and will wait for itself.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn children() -> MutexGuard<'static, BTreeSet<i32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns and registers in one step, so that nobody reaps the child in between.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let mut children = children();
    let child = command.spawn()?;
    children.insert(child.id().cast_signed());
    Ok(child)
}

/// Says that a child spawned by [`spawn`] was waited for.
pub(crate) fn forget(pid: i32) {
    children().remove(&pid);
}

/// One process; `None` when there is none with this id.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold spaces and parentheses: it ends at the last one.
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Process { pid, parent: fields.next()?.parse().ok()?, state, name: name.to_owned() })
}

/// Every process that can be seen.
pub(crate) fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(process).collect()
}

/// PostgreSQL's processes at work in this directory, and helpers of theirs that we adopted.
///
/// Somebody's shell that happens to stand in the directory is neither. An orphan of ours that is
/// about to become a zombie has lost its directory already; it counts for whoever asks.
pub(crate) fn living_in(dir: DirId) -> Vec<i32> {
    let us = getpid().as_raw_nonzero().get();
    let known = children().clone();
    let theirs = |p: &Process| {
        let program = fs::read_link(format!("/proc/{}/exe", p.pid)).unwrap_or_default();
        p.parent == us || p.name == "postgres" || program.ends_with("postgres")
    };
    let inside = |p: &Process| match DirId::of(Path::new(&format!("/proc/{}/cwd", p.pid))) {
        Some(found) => found == dir && theirs(p),
        None => p.parent == us && p.name == "postgres" && !known.contains(&p.pid),
    };
    let alive = processes().into_iter().filter(|p| p.state != 'Z' && p.pid != us);
    alive.filter(inside).map(|p| p.pid).collect()
}

/// Ends one process for good; a stopped one too.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // Already gone is what is wanted.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Reaps dead `postgres` processes that became our children because their parent died.
pub(crate) fn reap_adopted() {
    let us = getpid().as_raw_nonzero().get();
    let dead = |p: &Process| p.state == 'Z' && p.parent == us && p.name == "postgres";
    let zombies: Vec<i32> = processes().into_iter().filter(dead).map(|p| p.pid).collect();
    let children = children();
    for pid in zombies.into_iter().filter(|pid| !children.contains(pid)) {
        let _ = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_of_ours_are_found_and_somebody_elses_shell_is_not() {
        let me = process(getpid().as_raw_nonzero().get()).unwrap();
        assert!(me.parent > 0 && me.state != 'Z');
        let path = tempfile::tempdir().unwrap();
        let dir = DirId::of(path.path()).unwrap();
        // The shell stands elsewhere, its child in the directory; the shell tells when.
        let script = "(cd \"$1\" && echo in && exec cat) <&0";
        let mut other = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(path.path())
            .current_dir("/")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
        assert_eq!(living_in(dir), Vec::<i32>::new());
        drop(other.stdin.take());
        other.wait().unwrap();
        let mut ours = Command::new("sleep").arg("1000").current_dir(&path).spawn().unwrap();
        assert_eq!(living_in(dir), [ours.id().cast_signed()]);
        kill(ours.id().cast_signed());
        ours.wait().unwrap();
    }
}
