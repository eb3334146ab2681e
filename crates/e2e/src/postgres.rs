//! PostgreSQL's own programs, as a person would run them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

/// Directory of the programs that nodes use: `QUORATE_E2E_POSTGRES_BIN`, else Debian's newest.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(other) = std::env::var_os("QUORATE_E2E_POSTGRES_BIN") {
        return Ok(other.into());
    }
    let all = std::fs::read_dir("/usr/lib/postgresql")?.flatten();
    let newest = all.max_by_key(|e| e.file_name().to_string_lossy().parse::<u32>().unwrap_or(0));
    Ok(newest.context("no PostgreSQL is installed")?.path().join("bin"))
}

/// One of them, run as the user `postgres` when we are root.
pub fn program(name: &str) -> Result<Command> {
    as_postgres(&bin_dir()?.join(name))
}

/// Any program, run as the user `postgres` when we are root.
pub fn as_postgres(program: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    if rustix::process::getuid().is_root() {
        let passwd = std::fs::read_to_string("/etc/passwd")?;
        let line =
            passwd.lines().find(|l| l.starts_with("postgres:")).context("no postgres user")?;
        let ids: Vec<u32> = line.split(':').filter_map(|f| f.parse().ok()).collect();
        command.uid(ids[0]).gid(ids[1]);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command)
}

/// The newest timeline of which a data directory has log.
pub fn newest_timeline(data: &Path) -> Result<u32> {
    let names = std::fs::read_dir(data.join("pg_wal"))?.flatten();
    let segments = names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.len() == 24);
    let timelines = segments.filter_map(|n| u32::from_str_radix(n.get(..8)?, 16).ok());
    timelines.max().context("no log")
}

/// Directory of programs that decode on standbys, from version 16 on: the ones that nodes use, else those
/// of `QUORATE_E2E_POSTGRES_NEW`. `None`: there are none here.
pub fn decoding_bin_dir() -> Result<Option<PathBuf>> {
    let usual = bin_dir()?;
    if major(&usual)? >= 16 {
        return Ok(Some(usual));
    }
    Ok(std::env::var_os("QUORATE_E2E_POSTGRES_NEW").map(PathBuf::from))
}

/// The major version of the programs in a directory.
fn major(bin: &Path) -> Result<u32> {
    let said = Command::new(bin.join("postgres")).arg("--version").output()?.stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let version = said.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
    let digits = version.and_then(|v| v.split(|c: char| !c.is_ascii_digit()).next());
    digits.and_then(|d| d.parse().ok()).with_context(|| format!("no version in {said}"))
}
