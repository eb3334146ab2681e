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
