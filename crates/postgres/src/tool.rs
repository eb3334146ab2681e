//! Runs one of PostgreSQL's programs to its end, and never lets it outlive us or its caller.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::sync::{mpsc, oneshot};

use crate::limits::{TOOL_LINES_QUEUED, TOOL_TAIL_LINES};
use crate::{Error, ServerOptions, User, deathsig, procfs};

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    /// The end of what it printed, on both outputs.
    pub(crate) output: String,
}

/// A program of the installed PostgreSQL, with a clean environment, as the server's user.
pub(crate) fn command(options: &ServerOptions, tool: &str) -> Command {
    let mut command = Command::new(options.install.tool(tool));
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C");
    become_user(&mut command, options.run_as.as_ref());
    command
}

/// The standard library sets the group before the user and drops other groups of root.
pub(crate) fn become_user(command: &mut Command, user: Option<&User>) {
    if let Some(user) = user {
        command.gid(user.gid).uid(user.uid);
    }
}

/// Runs to the end. `on_line` sees every line (and every carriage-return update) as it comes.
/// Dropping the future kills the program and its process group.
///
/// # Errors
/// [`Error::Io`] when it cannot be started. A bad exit is an [`Outcome`], not an error.
pub(crate) async fn run(
    mut command: Command,
    input: Option<String>,
    mut on_line: impl FnMut(&str),
) -> Result<Outcome, Error> {
    let program = command.get_program().to_owned();
    let io = move |err| Error::io("run", Path::new(&program))(err);
    let (lines_tx, mut lines) = mpsc::channel::<String>(TOOL_LINES_QUEUED);
    let (started_tx, started) = oneshot::channel();
    let (ended_tx, ended) = oneshot::channel();
    // The thread that forks must outlive the child: its end is the child's death signal.
    let body = move || {
        let spawned = spawn(&mut command, input.is_some());
        drop(command);
        let (mut child, output, guard) = match spawned {
            Ok(spawned) => spawned,
            Err(err) => return drop(started_tx.send(Err(err))),
        };
        let pid = child.id().cast_signed();
        let _ = started_tx.send(Ok(guard));
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            // A program that ended early says why on its output.
            let _ = stdin.write_all(text.as_bytes());
        }
        forward(output, &lines_tx);
        let status = child.wait();
        procfs::forget(pid);
        let _ = ended_tx.send(status);
    };
    std::thread::Builder::new().name("pg-tool".to_owned()).spawn(body).map_err(&io)?;
    let lost = || std::io::Error::other("its thread ended");
    let mut guard = started.await.map_err(|_| io(lost()))?.map_err(&io)?;
    let mut tail = VecDeque::new();
    while let Some(line) = lines.recv().await {
        on_line(&line);
        tail.push_back(line);
        if tail.len() > TOOL_TAIL_LINES {
            tail.pop_front();
        }
    }
    let status = ended.await.map_err(|_| io(lost()))?.map_err(&io)?;
    guard.done = true;
    Ok(Outcome { status, output: Vec::from(tail).join("; ") })
}

fn spawn(
    command: &mut Command,
    with_input: bool,
) -> std::io::Result<(std::process::Child, PipeReader, KillOnDrop)> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(if with_input { Stdio::piped() } else { Stdio::null() });
    command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
    deathsig::arm(command, Signal::KILL);
    let child = procfs::spawn(command)?;
    let pid = Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    Ok((child, reader, KillOnDrop { pid, pidfd, done: false }))
}

/// Splits at line ends and carriage returns until every writer is gone.
fn forward(output: PipeReader, lines: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        let (used, complete) = match reader.fill_buf() {
            Ok([]) | Err(_) => break,
            Ok(bytes) => match bytes.iter().position(|b| matches!(b, b'\n' | b'\r')) {
                Some(at) => {
                    line.extend_from_slice(&bytes[..at]);
                    (at + 1, true)
                }
                None => {
                    line.extend_from_slice(bytes);
                    (bytes.len(), false)
                }
            },
        };
        reader.consume(used);
        if complete && !line.is_empty() {
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            if !text.is_empty() && lines.blocking_send(text).is_err() {
                break;
            }
        }
    }
    // Nobody listens any more, but a full pipe must not keep the program from dying.
    let _ = std::io::copy(&mut reader.by_ref(), &mut std::io::sink());
    if !line.is_empty() {
        let _ = lines.blocking_send(String::from_utf8_lossy(&line).trim().to_owned());
    }
}

/// Ends the program with its process group when its caller goes away.
struct KillOnDrop {
    pid: Pid,
    pidfd: OwnedFd,
    done: bool,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // The pidfd knows whether the process is still the one we started; its group then is too.
        if !self.done && rustix::process::pidfd_send_signal(&self.pidfd, Signal::STOP).is_ok() {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
    }
}

impl Outcome {
    /// The output of a program that had to succeed.
    pub(crate) fn success(self, tool: &'static str) -> Result<String, Error> {
        if self.status.success() {
            return Ok(self.output);
        }
        Err(Error::Tool { tool, status: self.status.to_string(), output: self.output })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_seen_line_by_line_and_failure_is_an_outcome() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read x; printf 'a\\rb\\n'; echo $x >&2; exit 3"]);
        let mut seen = Vec::new();
        let outcome = run(command, Some("in\n".into()), |l| seen.push(l.to_owned())).await.unwrap();
        assert_eq!(seen, ["a", "b", "in"]);
        let err = outcome.success("sh").unwrap_err().to_string();
        assert!(err.contains("exit status: 3") && err.contains("a; b; in"), "{err}");
    }

    #[tokio::test]
    async fn dropping_the_future_ends_the_program_and_its_children() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 1000 & echo $$ $!; wait"]);
        let (tx, mut rx) = mpsc::unbounded_channel();
        let task = tokio::spawn(run(command, None, move |l| tx.send(l.to_owned()).unwrap()));
        let line = rx.recv().await.unwrap();
        let pids: Vec<i32> = line.split(' ').map(|p| p.parse().unwrap()).collect();
        task.abort();
        let _ = task.await;
        for pid in pids {
            let alive = || procfs::process(pid).is_some_and(|p| p.state != 'Z');
            while alive() {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        }
    }
}
