//! Whether a postmaster lives, known no later than to its own backends.
//!
//! A backend whose commit waits for a standby stops waiting when the postmaster dies: the commit
//! becomes visible to other backends, which go on until they notice it themselves, and no copy may
//! hold it. Whatever they answer from then on must not be heard. They notice the death by the end of a
//! pipe that only the postmaster holds open; we look at the same pipe.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::procfs;

/// A look at one postmaster.
#[derive(Debug)]
pub struct Lifeline {
    pid: i32,
    /// Tells a moment too late: the kernel closes a process's files before it calls it ended.
    process: OwnedFd,
    /// The pipe; `None` where the system does not let us open it, or backends do not exist yet.
    pipe: Option<File>,
}

/// What a process has open of a pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    /// Its descriptor's number.
    number: String,
    /// The pipe.
    pipe: String,
    writes: bool,
}

impl Lifeline {
    /// A look at the process with this id; `None` when there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, process, pipe: death_pipe(pid) })
    }

    /// Whether it looks at the pipe.
    pub fn is_exact(&self) -> bool {
        self.pipe.is_some()
    }

    /// The process it looks at.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the postmaster lives. Whatever a backend did because it does not is later than the
    /// moment from which on this says so.
    pub fn is_alive(&self) -> bool {
        let mut fds = [match &self.pipe {
            // Its end is told without being asked for.
            Some(pipe) => PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::empty()),
            None => PollFd::from_borrowed_fd(self.process.as_fd(), PollFlags::IN),
        }];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match poll(&mut fds, Some(&now)) {
                Ok(ready) => return ready == 0,
                Err(rustix::io::Errno::INTR) => {}
                // Nothing is known: nothing may pass.
                Err(_) => return false,
            }
        }
    }
}

/// Opens the pipe whose end tells backends of the postmaster's death: the postmaster has both ends
/// open, backends only the one that reads. One that has just been forked still has both.
fn death_pipe(postmaster: i32) -> Option<File> {
    let ends = pipes(postmaster);
    let reads = |e: &&End| !e.writes && ends.iter().any(|o| o.pipe == e.pipe && o.writes);
    let children: Vec<Vec<End>> = procfs::processes()
        .into_iter()
        .filter(|p| p.parent == postmaster)
        .map(|p| pipes(p.pid))
        .filter(|ends| !ends.is_empty())
        .collect();
    let shared = |e: &&End| {
        let has =
            |child: &Vec<End>, writes| child.iter().any(|o| o.pipe == e.pipe && o.writes == writes);
        children.iter().any(|c| has(c, false) && !has(c, true))
    };
    let end = ends.iter().filter(reads).find(shared)?;
    let path = format!("/proc/{postmaster}/fd/{}", end.number);
    let flags = OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
}

fn pipes(pid: i32) -> Vec<End> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| end(&entry.path())).collect()
}

fn end(path: &Path) -> Option<End> {
    let pipe = fs::read_link(path).ok()?.to_str()?.to_owned();
    // A link's own permissions say how its file was opened.
    let mode = fs::symlink_metadata(path).ok()?.permissions().mode();
    let number = path.file_name()?.to_str()?.to_owned();
    pipe.starts_with("pipe:").then_some(End { number, pipe, writes: mode & 0o200 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let line = Lifeline::of(child.id().cast_signed()).unwrap();
        assert!(line.is_alive());
        assert!(!line.is_exact(), "it has no pipe of its own");
        child.kill().unwrap();
        while line.is_alive() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!line.is_alive());
    }
}
