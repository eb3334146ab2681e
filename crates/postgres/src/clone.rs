//! Making this server a copy of another: a whole new clone, or a rewind of a diverged directory.

use std::path::{Path, PathBuf};

use crate::bootstrap::replace_signal;
use crate::files::{remove, remove_tree};
use crate::staging::Staging;
use crate::{Error, ServerOptions, Settings, conf, tool};

/// How a clone went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// An earlier clone had been interrupted; this one started over.
    pub restarted: bool,
    /// A data directory was replaced.
    pub replaced: bool,
}

/// How a rewind went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewound {
    /// The directory now continues from the source.
    Done,
    /// The directory had not diverged.
    NotRequired,
}

/// Clones the server behind `<conn_dir>/.s.PGSQL.5432` into the place of the data directory.
///
/// The copy is made beside it and renamed into place when it is complete; the old directory is
/// removed after that. Only called when another proven copy exists. `progress` gets bytes done and
/// bytes in total (an estimate that may grow). Dropping the future ends the copy.
///
/// # Errors
/// [`Error::Tool`] when `pg_basebackup` fails, [`Error::Directory`], [`Error::Io`].
pub async fn clone_from(
    options: &ServerOptions,
    settings: &Settings,
    conn_dir: &Path,
    slot: Option<&str>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Cloned, Error> {
    options.check()?;
    let staging = Staging::begin(&options.data_dir, "cloning", options.run_as.as_ref())?;
    let restarted = staging.restarted;
    if restarted {
        tracing::info!("an earlier clone was interrupted, starting over");
    }
    copy(options, conn_dir, (&staging.path(), "stream", slot), &mut progress).await?;
    conf::write_into(&staging.path(), options, settings)?;
    replace_signal(&staging.path(), options)?;
    let old = staging.install()?;
    if let Some(old) = &old {
        remove_later(old.clone()).await?;
    }
    Ok(Cloned { restarted, replaced: old.is_some() })
}

/// Copies the files of the server behind a socket into a directory, with the log that is written
/// meanwhile as `log` says.
pub(crate) async fn copy(
    options: &ServerOptions,
    conn_dir: &Path,
    (into, log, slot): (&Path, &str, Option<&str>),
    mut progress: impl FnMut(u64, u64),
) -> Result<(), Error> {
    let mut command = tool::command(options, "pg_basebackup");
    command.arg("-D").arg(into);
    command.arg("-d").arg(conf::conninfo(conn_dir, "quorate-clone"));
    command.args(["-w", "-P", "-X", log, "-c", "fast"]);
    if let Some(slot) = slot {
        command.arg("-S").arg(slot);
    }
    command.current_dir(into);
    let outcome = tool::run(command, None, |line| match parse_progress(line) {
        Some((done, total)) => progress(done, total),
        None => tracing::info!(line, "pg_basebackup"),
    })
    .await?;
    outcome.success("pg_basebackup").map(drop)
}

async fn remove_later(old: PathBuf) -> Result<(), Error> {
    let lost = Error::io("remove", &old);
    match tokio::task::spawn_blocking(move || remove_tree(&old)).await {
        Ok(result) => result,
        Err(err) => Err(lost(std::io::Error::other(err))),
    }
}

/// `  32768/45678 kB (71%), 0/1 tablespace` → bytes.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.split_once(" kB (")?;
    let (done, total) = numbers.trim().split_once('/')?;
    let bytes = |text: &str| text.trim().parse::<u64>().ok().map(|kb| kb * 1024);
    Some((bytes(done)?, bytes(total)?))
}

/// Makes a diverged, stopped directory continue from the writer behind `conn_dir` (rule R14: the
/// writer of the promised term, after a checkpoint on its new timeline). `pg_rewind` recovers a
/// crashed directory by itself first.
///
/// # Errors
/// [`Error::RewindFailed`] when it fails: the directory may be unusable, clone it anew.
pub async fn rewind_from(
    options: &ServerOptions,
    settings: &Settings,
    conn_dir: &Path,
    mut on_line: impl FnMut(&str),
) -> Result<Rewound, Error> {
    options.check()?;
    // Single-user recovery refuses to be a standby.
    remove(&options.data_dir.join("standby.signal"))?;
    let mut command = tool::command(options, "pg_rewind");
    command.arg("--target-pgdata").arg(&options.data_dir).arg("--progress");
    let source = conf::conninfo(conn_dir, "quorate-rewind");
    command.arg("--source-server").arg(format!("{source} dbname=postgres"));
    command.current_dir(&options.data_dir);
    let mut rewound = Rewound::Done;
    let outcome = tool::run(command, None, |line| {
        if line.contains("no rewind required") {
            rewound = Rewound::NotRequired;
        }
        on_line(line);
    })
    .await?;
    if !outcome.status.success() {
        let status = outcome.status.to_string();
        return Err(Error::RewindFailed { status, output: outcome.output });
    }
    // The source's files came along.
    conf::write(options, settings)?;
    replace_signal(&options.data_dir, options)?;
    Ok(rewound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read() {
        let line = " 32768/45678 kB (71%), 0/1 tablespace";
        assert_eq!(parse_progress(line), Some((32768 * 1024, 45678 * 1024)));
        let long = "12/45678 kB (0%), 0/1 tablespace (...a.cloning/data/base/1/1)";
        assert_eq!(parse_progress(long), Some((12 * 1024, 45678 * 1024)));
        assert_eq!(parse_progress("waiting for checkpoint"), None);
    }
}
