//! The only unsafe code: what a child does between fork and exec, so that it dies with us.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{
    Pid, Signal, getpid, getppid, set_child_subreaper, set_parent_process_death_signal,
};

use crate::Error;

/// Makes the child receive `signal` when the *thread* that spawns it ends, however it ends.
///
/// The order matters: the kernel forgets the wish when the child changes its user, and the standard
/// library runs this after it did so. A parent that died before the wish was made is noticed.
pub(crate) fn arm(command: &mut Command, signal: Signal) {
    let parent = getpid();
    let wish = move || -> io::Result<()> {
        set_parent_process_death_signal(Some(signal))?;
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::from(rustix::io::Errno::SRCH))
        }
    };
    // SAFETY: the closure runs in the forked child. It makes two system calls and builds an error
    // from a number: no allocation, no lock, nothing that another thread may have left half-done.
    unsafe { command.pre_exec(wish) };
}

/// Makes orphaned descendants this process's children, so that they can be ended and reaped.
/// Called once by `main`.
///
/// # Errors
/// [`Error::Io`] when the kernel refuses.
pub fn become_subreaper() -> Result<(), Error> {
    set_child_subreaper(Some(Pid::INIT)).map_err(|errno| {
        Error::io("become the reaper of", std::path::Path::new("/proc/self"))(errno.into())
    })
}
