//! How a heartbeat thread waits: on its socket, on a nudge from another thread, and on the clock.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_core::Moment;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::clock;

/// Wakes one thread, to beat at once or to end.
pub(super) struct Wake {
    event: OwnedFd,
    kicked: AtomicBool,
    stopped: AtomicBool,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, kicked: AtomicBool::new(false), stopped: AtomicBool::new(false) })
    }

    pub(super) fn kick(&self) {
        // A kick that was not taken yet has rung the bell, or will be seen before the next wait.
        if !self.kicked.swap(true, Ordering::SeqCst) {
            self.ring();
        }
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Whether there was a kick since the last call.
    pub(super) fn take_kick(&self) -> bool {
        self.kicked.swap(false, Ordering::SeqCst)
    }

    /// Waits until the socket is ready, somebody nudges, or the moment has come. Returns what the
    /// socket is ready for.
    pub(super) fn wait(
        &self,
        socket: Option<(BorrowedFd<'_>, PollFlags)>,
        until: Moment,
    ) -> io::Result<PollFlags> {
        let left = until.since(clock::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let bell = PollFd::new(&self.event, PollFlags::IN);
        let (ready, rung) = match socket {
            Some((socket, interest)) => {
                let mut fds = [PollFd::from_borrowed_fd(socket, interest), bell];
                poll_once(&mut fds, &timeout)?;
                (fds[0].revents(), !fds[1].revents().is_empty())
            }
            None => {
                let mut fds = [bell];
                poll_once(&mut fds, &timeout)?;
                (PollFlags::empty(), !fds[0].revents().is_empty())
            }
        };
        if rung {
            // Silenced before the flags are looked at, so that no later nudge is lost.
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        Ok(ready)
    }

    fn ring(&self) {
        // Fails only when the counter is full, and then the bell rings already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

fn poll_once(fds: &mut [PollFd<'_>], timeout: &Timespec) -> io::Result<()> {
    match poll(fds, Some(timeout)) {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => {
            // A signal: as if nothing had happened; the caller looks at the clock again.
            fds.iter_mut().for_each(PollFd::clear_revents);
            Ok(())
        }
        Err(err) => Err(err.into()),
    }
}
