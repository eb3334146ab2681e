//! The postmaster as our child, and everything of it dead before its death is announced.
//!
//! One thread per server spawns it, waits for it and buries it. The thread lives as long as the
//! [`Server`]: the kernel ties the child's death signal to the thread that forked. A postmaster
//! that was killed leaves backends behind which hold its shared memory, keep writing, and block the
//! next start; they are found by their working directory, killed and reaped first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_core::TimelineId;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::sync::{oneshot, watch};

use crate::files::{open_or_make, private_dir, remove, replace, sync_dir};
use crate::limits::{
    FAST_STOP_MAX, IMMEDIATE_STOP_MAX, LEFTOVERS_MAX, LIFELINE_RETRY, LOG_TAIL_BYTES,
    ORPHAN_POLL_MAX, ORPHAN_POLL_MIN, ORPHAN_WARN_EVERY,
};
use crate::procfs::{self, DirId};
use crate::{Error, Lifeline, ServerOptions, conf, deathsig, timelines, tool};

/// Whether the server runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// No process of it exists.
    NotRunning {
        /// How the last run ended, with the last fatal line of its log; `None` before the first.
        last_exit: Option<String>,
    },
    /// The postmaster exists; it may not accept connections yet.
    Running {
        /// Its process id.
        pid: i32,
    },
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Disconnects everybody, writes a shutdown checkpoint; becomes immediate after a limit.
    Fast,
    /// Writes nothing (the next start recovers); kills whatever is left after a second.
    Immediate,
}

/// How to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// As a standby.
    Standby,
    /// Recovering to the end of the log it has on timeline `from`, then a writer on timeline `to`.
    Promoting { from: TimelineId, to: TimelineId },
}

/// One local server. Dropping it stops the server at once.
#[derive(Debug)]
pub struct Server {
    options: Arc<ServerOptions>,
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    status: watch::Receiver<Status>,
    /// The last look, and when it was made.
    lifeline: Mutex<Option<(Instant, Arc<Lifeline>)>>,
}

enum Order {
    Start(Start, oneshot::Sender<Result<i32, Error>>),
    Stop(Mode),
    Reload,
}

impl Server {
    /// Makes the thread; starts nothing.
    ///
    /// # Errors
    /// Whatever [`ServerOptions::check`] finds, [`Error::Io`].
    pub fn new(options: Arc<ServerOptions>) -> Result<Self, Error> {
        options.check()?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::io("make an event for", &options.data_dir)(e.into()))?;
        let wake = Arc::new(wake);
        let (orders, inbox) = channel();
        let (tx, status) = watch::channel(Status::NotRunning { last_exit: None });
        let keeper = Keeper {
            options: Arc::clone(&options),
            inbox,
            wake: Arc::clone(&wake),
            status: tx,
            closed: false,
        };
        std::thread::Builder::new()
            .name("postmaster".to_owned())
            .spawn(move || keeper.run())
            .map_err(Error::io("start a thread for", &options.data_dir))?;
        Ok(Self { options, orders, wake, status, lifeline: Mutex::default() })
    }

    /// Where and as whom it runs.
    pub fn options(&self) -> &Arc<ServerOptions> {
        &self.options
    }

    /// The present status and every change of it.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// A look at the present postmaster; `None` when none runs.
    pub fn lifeline(&self) -> Option<Arc<Lifeline>> {
        let Status::Running { pid } = *self.status.borrow() else { return None };
        let mut kept = self.lifeline.lock().unwrap_or_else(PoisonError::into_inner);
        // A number is used again some time, by another process.
        let same = |l: &Lifeline| l.pid() == pid && l.is_alive();
        let good = |at: &Instant, l: &Lifeline| l.is_exact() || at.elapsed() < LIFELINE_RETRY;
        if let Some((_, line)) = kept.as_ref().filter(|(at, l)| same(l) && good(at, l)) {
            return Some(Arc::clone(line));
        }
        let line = Arc::new(Lifeline::of(pid)?);
        *kept = Some((Instant::now(), Arc::clone(&line)));
        Some(line)
    }

    /// Starts as a standby, always: `standby.signal` is made. Returns the postmaster's pid as soon
    /// as the process exists; `Admin::wait_ready` waits for connections.
    ///
    /// # Errors
    /// [`Error::Running`] when it runs already, [`Error::Directory`], [`Error::Io`].
    pub async fn start(&self) -> Result<i32, Error> {
        self.start_as(Start::Standby).await
    }

    /// Starts a server that promotes itself to exactly the timeline that was granted: recovery of
    /// the log it has on timeline `from`, which ends in a checkpoint. Nobody is let in before.
    /// Only for settings that a standby cannot run with; a promotion without a restart is quicker.
    ///
    /// # Errors
    /// As [`Server::start`]; [`Error::Promote`] when `to` cannot be reserved.
    pub async fn start_promoting(&self, from: TimelineId, to: TimelineId) -> Result<i32, Error> {
        self.start_as(Start::Promoting { from, to }).await
    }

    async fn start_as(&self, how: Start) -> Result<i32, Error> {
        let (tx, rx) = oneshot::channel();
        self.order(Order::Start(how, tx));
        rx.await.map_err(|_| Error::NotRunning("its thread ended".to_owned()))?
    }

    /// Stops, and returns when nothing of the server is left. The answer is how it ended.
    pub async fn stop(&self, mode: Mode) -> Option<String> {
        self.order(Order::Stop(mode));
        self.wait_exit().await
    }

    /// Waits until the server is not running.
    pub async fn wait_exit(&self) -> Option<String> {
        let mut status = self.status.clone();
        let stopped = |s: &Status| matches!(s, Status::NotRunning { .. });
        match status.wait_for(stopped).await.as_deref() {
            Ok(Status::NotRunning { last_exit }) => last_exit.clone(),
            _ => None,
        }
    }

    /// Makes the server read its configuration files again.
    pub fn reload(&self) {
        self.order(Order::Reload);
    }

    fn order(&self, order: Order) {
        // The thread ends only with this object.
        let _ = self.orders.send(order);
        wake(&self.wake);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.order(Order::Stop(Mode::Immediate));
        let (closed, _) = channel();
        self.orders = closed;
        wake(&self.wake);
    }
}

fn wake(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// The thread's own state.
struct Keeper {
    options: Arc<ServerOptions>,
    inbox: Receiver<Order>,
    wake: Arc<OwnedFd>,
    status: watch::Sender<Status>,
    closed: bool,
}

/// A running postmaster.
struct Postmaster {
    child: Child,
    pidfd: OwnedFd,
    dir: DirId,
    /// Where this run's part of the log begins.
    log_from: u64,
    /// A stop is under way: when to become ruder, and from which mode.
    stopping: Option<(Mode, Instant)>,
}

impl Keeper {
    fn run(mut self) {
        let mut running: Option<Postmaster> = None;
        while running.is_some() || !self.closed {
            self.wait(running.as_ref());
            loop {
                match self.inbox.try_recv() {
                    Ok(order) => self.obey(order, &mut running),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        self.closed = true;
                        break;
                    }
                }
            }
            if let Some(mut postmaster) = running.take() {
                match postmaster.child.try_wait() {
                    Ok(Some(status)) => self.bury(&postmaster, &status.to_string()),
                    _ => {
                        self.escalate(&mut postmaster);
                        running = Some(postmaster);
                    }
                }
            }
        }
    }

    /// Until an order comes, the child ends or patience does.
    fn wait(&self, running: Option<&Postmaster>) {
        let mut fds = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
        let mut timeout = None;
        if let Some(postmaster) = running {
            fds.push(PollFd::from_borrowed_fd(postmaster.pidfd.as_fd(), PollFlags::IN));
            timeout = postmaster.stopping.map(|(_, at)| {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 })
            });
        }
        let _ = poll(&mut fds, timeout.as_ref());
        let mut drained = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut drained);
    }

    fn obey(&mut self, order: Order, running: &mut Option<Postmaster>) {
        match (order, running.as_mut()) {
            (Order::Start(_, answer), Some(p)) => {
                let _ = answer.send(Err(Error::Running(p.pid())));
            }
            (Order::Start(how, answer), None) => {
                let result = self.start(how).map(|postmaster| {
                    let pid = running.insert(postmaster).pid();
                    tracing::info!(pid, "postgresql started");
                    self.status.send_replace(Status::Running { pid });
                    pid
                });
                let _ = answer.send(result);
            }
            (Order::Stop(mode), Some(p)) => {
                if p.stopping.is_none_or(|(now, _)| now == Mode::Fast && mode != now) {
                    p.stop(mode);
                }
            }
            (Order::Reload, Some(p)) => p.signal(Signal::HUP),
            (Order::Stop(_) | Order::Reload, None) => {}
        }
    }

    fn start(&self, how: Start) -> Result<Postmaster, Error> {
        let options = &*self.options;
        let dir = DirId::of(&options.data_dir).ok_or_else(|| Error::Directory {
            path: options.data_dir.clone(),
            reason: "does not exist".to_owned(),
        })?;
        if let Some(pid) = procfs::living_in(dir).first() {
            return Err(Error::Running(*pid));
        }
        prepare(options, how)?;
        let log_from = fs::metadata(&options.log_file).map_or(0, |m| m.len());
        let mut child = spawn(options, how)?;
        // An unreaped child keeps its pid, so this cannot open another's.
        let opened = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let pidfd = opened.map_err(|errno| {
            let _ = child.kill().and_then(|()| child.wait());
            procfs::forget(child.id().cast_signed());
            Error::io("watch the server of", &options.data_dir)(errno.into())
        })?;
        Ok(Postmaster { child, pidfd, dir, log_from, stopping: None })
    }

    fn escalate(&self, postmaster: &mut Postmaster) {
        match postmaster.stopping {
            Some((mode, at)) if Instant::now() >= at => {
                tracing::warn!(pid = postmaster.pid(), ?mode, "postgresql does not stop in time");
                match mode {
                    Mode::Fast => postmaster.stop(Mode::Immediate),
                    Mode::Immediate => {
                        procfs::kill(postmaster.pid());
                        procfs::living_in(postmaster.dir).into_iter().for_each(procfs::kill);
                        postmaster.stopping = Some((mode, Instant::now() + IMMEDIATE_STOP_MAX));
                    }
                }
            }
            _ => {}
        }
    }

    /// Ends and reaps what the postmaster left behind, then says that it is gone.
    fn bury(&self, postmaster: &Postmaster, how: &str) {
        procfs::forget(postmaster.pid());
        if let Err(pid) = clear(postmaster.dir, None) {
            tracing::error!(pid, "a process of postgresql cannot be killed");
        }
        remove_locks(&self.options);
        let mut last_exit = how.to_owned();
        if let Some(line) = last_fatal(&self.options.log_file, postmaster.log_from) {
            last_exit = format!("{last_exit}: {line}");
        }
        tracing::info!(pid = postmaster.pid(), how = last_exit, "postgresql ended");
        self.status.send_replace(Status::NotRunning { last_exit: Some(last_exit) });
    }
}

impl Postmaster {
    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    fn stop(&mut self, mode: Mode) {
        let (signal, patience) = match mode {
            Mode::Fast => (Signal::INT, FAST_STOP_MAX),
            Mode::Immediate => (Signal::QUIT, IMMEDIATE_STOP_MAX),
        };
        self.stopping = Some((mode, Instant::now() + patience));
        self.signal(signal);
    }
}

/// Kills what lives in a data directory until nothing does; `Err` is a survivor at the limit.
fn clear(dir: DirId, limit: Option<Duration>) -> Result<usize, i32> {
    let (begin, mut pause, mut warned, mut killed) =
        (Instant::now(), ORPHAN_POLL_MIN, ORPHAN_WARN_EVERY, 0);
    loop {
        let left = procfs::living_in(dir);
        procfs::reap_adopted();
        let Some(&pid) = left.first() else { return Ok(killed) };
        killed = killed.max(left.len());
        left.into_iter().for_each(procfs::kill);
        if limit.is_some_and(|limit| begin.elapsed() > limit) {
            return Err(pid);
        }
        if begin.elapsed() > warned {
            warned += ORPHAN_WARN_EVERY;
            tracing::warn!(pid, "a killed process of postgresql is still there");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(ORPHAN_POLL_MAX);
    }
}

/// Ends everything that an earlier agent left running in this data directory, and removes its
/// lock files. Blocks; called before the first start. Returns how many processes were killed.
///
/// # Errors
/// [`Error::Leftover`] when a process cannot be killed or examined.
pub fn kill_leftovers(options: &ServerOptions) -> Result<usize, Error> {
    let Some(dir) = DirId::of(&options.data_dir) else { return Ok(0) };
    let killed = clear(dir, Some(LEFTOVERS_MAX)).map_err(|pid| {
        let reason = "it does not die".to_owned();
        Error::Leftover { pid, reason }
    })?;
    let pid_file = fs::read_to_string(options.data_dir.join("postmaster.pid")).unwrap_or_default();
    let named = pid_file.lines().next().and_then(|pid| pid.trim().parse().ok());
    if let Some(found) = named.and_then(procfs::process) {
        let unseen = fs::metadata(format!("/proc/{}/cwd", found.pid)).is_err();
        if found.name == "postgres" && found.state != 'Z' && unseen {
            let reason = "it belongs to another user".to_owned();
            return Err(Error::Leftover { pid: found.pid, reason });
        }
    }
    remove_locks(options);
    if killed > 0 {
        tracing::warn!(killed, "killed processes of an earlier run");
    }
    Ok(killed)
}

/// Lock files name a pid that somebody else may have by now. Nothing of the server is alive here.
fn remove_locks(options: &ServerOptions) {
    let socket = options.socket();
    let lock = crate::files::with_suffix(&socket, ".lock");
    for path in [options.data_dir.join("postmaster.pid"), socket, lock] {
        if let Err(err) = remove(&path) {
            tracing::warn!(error = %err, "cannot remove a lock file");
        }
    }
}

/// Directories, the mark of what it shall be, and no reserved timeline in the way.
fn prepare(options: &ServerOptions, how: Start) -> Result<(), Error> {
    let owner = options.run_as.as_ref();
    let version = options.data_dir.join("PG_VERSION");
    let found = fs::read_to_string(&version).map_err(Error::io("read", &version))?;
    if found.trim() != options.install.major.to_string() {
        let reason = format!(
            "was made by PostgreSQL {}, the programs are version {}",
            found.trim(),
            options.install.version
        );
        return Err(Error::Directory { path: options.data_dir.clone(), reason });
    }
    private_dir(&options.run_dir, owner)?;
    let (standby, recovery) =
        (options.data_dir.join("standby.signal"), options.data_dir.join("recovery.signal"));
    // A promotion that was asked for before a crash must not happen now.
    remove(&options.data_dir.join("promote"))?;
    let dropped = timelines::drop_dangling(&options.data_dir)?;
    if dropped > 0 {
        tracing::info!(dropped, "removed reserved timelines of a promotion that did not happen");
    }
    match how {
        Start::Standby => {
            replace(&standby, b"", owner)?;
            remove(&recovery)?;
        }
        Start::Promoting { to, .. } => {
            timelines::reserve(options, to)?;
            replace(&recovery, b"", owner)?;
            remove(&standby)?;
        }
    }
    sync_dir(&options.data_dir)
}

fn spawn(options: &ServerOptions, how: Start) -> Result<Child, Error> {
    let log = open_log(options).map_err(Error::io("open", &options.log_file))?;
    let err = log.try_clone().map_err(Error::io("open", &options.log_file))?;
    let mut command = Command::new(options.install.tool("postgres"));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command.arg("-D").arg(&options.data_dir);
    let mut fixed = conf::fixed(options)?;
    if let Start::Promoting { from, .. } = how {
        fixed.extend(conf::promoting(from));
    }
    for (name, value) in fixed {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    command.stdin(Stdio::null()).stdout(log).stderr(err);
    // Ctrl-C in a terminal is for us; what to do about the server is ours to decide.
    command.process_group(0).current_dir(&options.data_dir);
    tool::become_user(&mut command, options.run_as.as_ref());
    deathsig::arm(&mut command, Signal::QUIT);
    procfs::spawn(&mut command).map_err(Error::io("run", &options.install.tool("postgres")))
}

fn open_log(options: &ServerOptions) -> io::Result<File> {
    if let Some(dir) = options.log_file.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut append = OpenOptions::new();
    append.append(true);
    open_or_make(&options.log_file, &mut append, OFlags::empty(), options.run_as.as_ref())
}

/// The last line of this run's log that tells why it ended. Clients and walreceivers have fatal
/// errors of their own; the server ends by those of its own processes, and by any panic.
fn last_fatal(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(LOG_TAIL_BYTES)))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().rev().find_map(reason).map(str::to_owned)
}

/// The part of a log line from the severity on, when it is a server's last word.
fn reason(line: &str) -> Option<&str> {
    if let Some(at) = line.find("PANIC:") {
        return Some(&line[at..]);
    }
    let at = line.find("FATAL:")?;
    let head = &line[..at];
    // Before the configuration is read a line has no prefix.
    let ours = !head.contains("] ") || conf::ENDS_SERVER.iter().any(|kind| head.contains(kind));
    ours.then(|| &line[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_error_is_no_reason_for_an_exit() {
        let line = |kind: &str| format!("2026-11-21 03:49:58.1 UTC [7] {kind} FATAL:  because");
        assert_eq!(reason(&line("startup")), Some("FATAL:  because"));
        assert_eq!(reason("FATAL:  could not load"), Some("FATAL:  could not load"));
        assert_eq!(reason(&line("client backend u@d psql")), None);
        assert_eq!(reason(&line("walreceiver")), None);
        assert_eq!(reason("x [7] checkpointer PANIC:  disk"), Some("PANIC:  disk"));
    }
}
