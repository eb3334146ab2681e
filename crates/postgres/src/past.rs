//! The past of a delayed standby: a copy of its server, recovered up to a moment that the standby has
//! not replayed yet.
//!
//! The standby itself never gets a target: one that reached it would promote itself as soon as
//! somebody resumed replay. The copy is nobody's standby and no part of the cluster, so that it may be
//! read, promoted or thrown away, and made again up to another moment.

use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use quorate_core::Lsn;
use quorate_core::words::bytes;

use crate::bootstrap::replace_signal;
use crate::clone::copy;
use crate::files::{private_dir, read, replace, sync_dir};
use crate::limits::{PAST_POLL, PAST_START_MAX, PAUSE_MAX, READY_POLL};
use crate::reserve::room_at;
use crate::sql::{Admin, PastSpan};
use crate::{Error, ServerOptions, tool};

/// A moment of the past: everything before it, and nothing from it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A time, in PostgreSQL's words: commits before it.
    Time(String),
    /// A transaction: what committed before it did.
    Xid(u64),
    /// A position in the log.
    Lsn(Lsn),
}

impl FromStr for Target {
    type Err = String;

    /// Positions have a slash, transactions are numbers, all else is a time.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(lsn) = text.parse() {
            return Ok(Self::Lsn(lsn));
        }
        if let Ok(xid) = text.parse() {
            return Ok(Self::Xid(xid));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || " :.,+-/_".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            return Ok(Self::Time(text.to_owned()));
        }
        Err("use a time (2026-11-30 14:05:00+01), a transaction (730) or a position (0/16B3748)"
            .to_owned())
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Bytes of the standby's files, and all of them.
    Copying(u64, u64),
    /// What the copy has replayed, and where the log ends.
    Replaying(Lsn, Lsn),
}

/// A server that shows the past.
#[derive(Debug, Clone)]
pub struct Past {
    /// Where it lives.
    pub options: ServerOptions,
    /// What it shows ends here.
    pub replayed: Lsn,
    /// When the last transaction that it shows committed.
    pub last_commit: Option<String>,
    /// The target was not met in the log that there is: it shows all of that.
    pub all: bool,
}

/// Makes a copy of the standby behind `of`, in the new directory `into`, and lets it replay up to a
/// moment. Afterwards it runs as a server of its own, with `default_transaction_read_only`, and listens
/// on a socket in `into/run`. Replay of the
/// standby stands still meanwhile: the caller resumes it, whatever comes of this.
///
/// # Errors
/// [`Error::Past`] when the moment is not ahead of the standby, [`Error::Directory`] when `into` is
/// not new, [`Error::Tool`], [`Error::Sql`], [`Error::Timeout`].
pub async fn roll_forward(
    of: &ServerOptions,
    into: &Path,
    target: &Target,
    mut say: impl FnMut(Stage),
) -> Result<Past, Error> {
    let admin = Admin::new(Arc::new(of.clone()));
    hold(&admin).await?;
    let span = admin.past_span(target).await?;
    span.check(target)?;
    let options = ServerOptions {
        install: of.install.clone(),
        data_dir: into.join("data"),
        run_dir: into.join("run"),
        relay_dir: into.join("relay"),
        log_file: into.join("postgresql.log"),
        run_as: of.run_as.clone(),
    };
    options.check()?;
    if into.exists() {
        let reason = "exists already".to_owned();
        return Err(Error::Directory { path: into.to_owned(), reason });
    }
    let parent = into.parent().unwrap_or(into);
    let free = room_at(parent)?.free;
    if span.size > free {
        let (size, free) = (bytes(span.size), bytes(free));
        return Err(Error::Past {
            reason: format!("a copy takes {size}, and {} has {free} free", parent.display()),
            hint: "Name a directory on another disk.",
        });
    }
    for dir in [into, &options.run_dir, &options.data_dir] {
        private_dir(dir, options.run_as.as_ref())?;
    }
    // The log is read where the standby keeps it.
    let log = |done, total| say(Stage::Copying(done, total));
    copy(&options, &of.run_dir, (&options.data_dir, "none", None), log).await?;
    configure(of, &options, target, &span)?;
    start(&options).await?;
    replay(options, span.received, say).await
}

/// Lets the standby replay nothing more. A commit that it holds back for its delay stays held back.
async fn hold(admin: &Admin) -> Result<(), Error> {
    admin.pause_replay(true).await?;
    let deadline = Instant::now() + PAUSE_MAX;
    while !admin.replay_is_held().await? {
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: "the pause of replay", after: PAUSE_MAX });
        }
        tokio::time::sleep(READY_POLL).await;
    }
    Ok(())
}

/// What differs from the standby whose files these are. Later lines win.
fn configure(
    of: &ServerOptions,
    options: &ServerOptions,
    target: &Target,
    span: &PastSpan,
) -> Result<(), Error> {
    let log = of.data_dir.join("pg_wal");
    let log = log.to_string_lossy();
    if log.contains(['"', '\'', '\\', '$', '`', '%']) {
        let reason = "has a character in its name that a shell would take for its own".to_owned();
        return Err(Error::Directory { path: of.data_dir.clone(), reason });
    }
    let (name, value) = match target {
        Target::Time(text) => ("recovery_target_time", span.time.as_ref().unwrap_or(text).clone()),
        Target::Xid(xid) => ("recovery_target_xid", xid.to_string()),
        Target::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
    };
    let sockets = format!("\"{}\"", options.run_dir.to_string_lossy());
    let lines = [
        ("unix_socket_directories", sockets.as_str()),
        ("recovery_min_apply_delay", "0"),
        ("restore_command", &format!("cp \"{log}/%f\" \"%p\"")),
        ("wal_retrieve_retry_interval", "1s"),
        // A standby that stops there still holds the locks of what was under way: nobody could read
        // the table that is about to be dropped.
        ("recovery_target_action", "promote"),
        ("recovery_target_inclusive", "off"),
        (name, &value),
        // It has no copies, its log is nobody's, and nobody is to take it for the database.
        ("default_transaction_read_only", "on"),
        ("synchronous_standby_names", ""),
        ("archive_mode", "off"),
    ];
    let file = options.data_dir.join("quorate.conf");
    let text = read(&file).map_err(Error::io("read", &file))?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    text.push_str("\n# This is a copy of a delayed standby.\n");
    for (name, value) in lines {
        let _ = writeln!(text, "{name} = '{}'", value.replace('\'', "''"));
    }
    replace(&file, text.as_bytes(), options.run_as.as_ref())?;
    // As a standby it waits at the end of the log instead of ending when its target is not there.
    replace_signal(&options.data_dir, options)?;
    sync_dir(&options.data_dir)
}

/// Starts it as a server of its own, which outlives us.
async fn start(options: &ServerOptions) -> Result<(), Error> {
    let mut command = tool::command(options, "pg_ctl");
    command.arg("start").arg("-D").arg(&options.data_dir).arg("-l").arg(&options.log_file);
    command.args(["-w", "-t", &PAST_START_MAX.as_secs().to_string()]);
    command.current_dir(&options.data_dir);
    let outcome = tool::run(command, None, |_| {}).await?;
    outcome.success("pg_ctl start").map(drop)
}

async fn replay(
    options: ServerOptions,
    end: Lsn,
    mut say: impl FnMut(Stage),
) -> Result<Past, Error> {
    let admin = Admin::new(Arc::new(options.clone()));
    let mut all = false;
    loop {
        let state = admin.past_state().await?;
        say(Stage::Replaying(state.replayed, end));
        if state.ended {
            let (replayed, last_commit) = (state.replayed, state.last_commit);
            return Ok(Past { options, replayed, last_commit, all });
        }
        if !all && state.replayed >= end {
            all = true;
            admin.end_past().await?;
        }
        tokio::time::sleep(PAST_POLL).await;
    }
}

impl PastSpan {
    /// Whether the moment is still ahead of the standby, and in the log that it has.
    fn check(&self, target: &Target) -> Result<(), Error> {
        let wrong = |reason: String, hint| Err(Error::Past { reason, hint });
        let last = match &self.last_commit {
            Some(at) => format!("{} ({at})", self.replayed),
            None => self.replayed.to_string(),
        };
        if self.passed {
            return wrong(
                format!("this standby has replayed beyond that, up to {last}"),
                "What was before is gone here: choose a later moment, or restore a backup.",
            );
        }
        if self.to_come {
            return wrong(
                match target {
                    Target::Time(_) => "that time is still to come".to_owned(),
                    Target::Xid(_) | Target::Lsn(_) => {
                        format!("the log that this standby has ends at {}", self.received)
                    }
                },
                "Choose an earlier moment.",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_apart_by_how_they_are_written() {
        let lsn = Lsn(0x16B_3748);
        assert_eq!("0/16B3748".parse(), Ok(Target::Lsn(lsn)));
        assert_eq!("730".parse(), Ok(Target::Xid(730)));
        let time = "2026-11-30 14:05:00.25+01";
        assert_eq!(time.parse(), Ok(Target::Time(time.to_owned())));
        assert_eq!("yesterday 14:00".parse(), Ok(Target::Time("yesterday 14:00".to_owned())));
        for wrong in ["", "now'; DROP TABLE t; --", "a\nb", "$(id)"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_moment_that_is_not_ahead_is_refused() {
        let span = PastSpan {
            replayed: Lsn(10),
            received: Lsn(20),
            size: 0,
            last_commit: Some("2026-11-30 14:00:00+00".to_owned()),
            time: None,
            passed: false,
            to_come: false,
        };
        assert!(span.check(&Target::Lsn(Lsn(15))).is_ok());
        let passed = PastSpan { passed: true, ..span.clone() };
        let error = passed.check(&Target::Lsn(Lsn(5))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "this standby has replayed beyond that, up to 0/A (2026-11-30 14:00:00+00)"
        );
        let early = PastSpan { to_come: true, ..span };
        assert!(early.check(&Target::Time("tomorrow".to_owned())).is_err());
        assert!(early.check(&Target::Lsn(Lsn(50))).is_err());
    }
}
