//! The first data directory of a cluster: `initdb`, then what Quorate needs in it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{private_dir, remove, replace, sync_dir};
use crate::staging::{Staging, is_empty};
use crate::{Error, ServerOptions, Settings, conf, tool};

/// What is chosen once for the whole cluster.
#[derive(Clone)]
pub struct BootstrapOptions {
    /// Password of the superuser `postgres`.
    pub superuser_password: String,
    /// Locale of the databases.
    pub locale: String,
    /// Megabytes of one WAL segment: a power of two from 1 to 1024.
    pub wal_segment_megabytes: u32,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
}

/// What is in the place of a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Directory {
    /// Nothing: it can be bootstrapped or cloned into.
    Empty,
    /// A data directory of this major version.
    Present,
}

/// In PostgreSQL's single-user mode one line is one statement.
const SETUP: [&str; 11] = [
    "CREATE ROLE quorate LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE",
    "GRANT pg_monitor, pg_signal_backend, pg_checkpoint TO quorate",
    // The gateway checks passwords by the verifiers that the server keeps.
    "GRANT SELECT (rolname, rolpassword, rolcanlogin, rolvaliduntil, rolsuper) ON pg_catalog.pg_authid \
     TO quorate",
    "GRANT EXECUTE ON FUNCTION pg_promote(boolean, integer), pg_wal_replay_pause(), \
     pg_wal_replay_resume(), pg_switch_wal() TO quorate",
    // What pg_rewind reads its source with.
    "GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), \
     pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean) TO quorate",
    // From version 16 on.
    "DO $$ BEGIN IF to_regprocedure('pg_catalog.pg_log_standby_snapshot()') IS NOT NULL THEN \
     GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO quorate; END IF; END $$",
    "DO $$ BEGIN IF to_regrole('pg_use_reserved_connections') IS NOT NULL THEN \
     GRANT pg_use_reserved_connections TO quorate; END IF; END $$",
    "CREATE SCHEMA quorate AUTHORIZATION quorate",
    "CREATE TABLE quorate.term (term bigint NOT NULL, timeline int NOT NULL, \
     node text NOT NULL, at timestamptz NOT NULL)",
    "CREATE UNIQUE INDEX term_has_one_row ON quorate.term ((true))",
    "ALTER TABLE quorate.term OWNER TO quorate",
];

impl Default for BootstrapOptions {
    fn default() -> Self {
        Self {
            superuser_password: String::new(),
            locale: "C.UTF-8".to_owned(),
            wal_segment_megabytes: 4,
            data_checksums: true,
        }
    }
}

impl std::fmt::Debug for BootstrapOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootstrapOptions").field("locale", &self.locale).finish_non_exhaustive()
    }
}

/// What a directory holds.
///
/// # Errors
/// [`Error::Directory`] when it is something else than nothing or a data directory of this version.
pub fn examine(options: &ServerOptions) -> Result<Directory, Error> {
    let dir = &options.data_dir;
    let foreign = |reason: String| Err(Error::Directory { path: dir.clone(), reason });
    match fs::read_to_string(dir.join("PG_VERSION")) {
        Ok(version) if version.trim() == options.install.major.to_string() => {
            Ok(Directory::Present)
        }
        Ok(version) => foreign(format!("holds data of PostgreSQL {}", version.trim())),
        Err(_) if is_empty(dir)? => Ok(Directory::Empty),
        Err(_) => foreign("is not empty and not a PostgreSQL data directory".to_owned()),
    }
}

/// Makes the data directory, with the role and the table that Quorate works with. It is made
/// beside its place and renamed: there is no half-done one, and an interrupted attempt of ours
/// starts over.
///
/// # Errors
/// [`Error::Directory`] when the place is not empty, [`Error::Tool`], [`Error::Io`].
pub async fn bootstrap(
    options: &ServerOptions,
    chosen: &BootstrapOptions,
    settings: &Settings,
) -> Result<(), Error> {
    options.check()?;
    if examine(options)? == Directory::Present {
        let reason = "holds a database already".to_owned();
        return Err(Error::Directory { path: options.data_dir.clone(), reason });
    }
    if chosen.superuser_password.is_empty() || chosen.superuser_password.contains(['\n', '\r']) {
        let reason = "one line that is not empty is needed".to_owned();
        return Err(Error::Setting { name: "superuser password".to_owned(), reason });
    }
    let owner = options.run_as.as_ref();
    let staging = Staging::begin(&options.data_dir, "bootstrapping", owner)?;
    if staging.restarted {
        tracing::info!("an earlier bootstrap was interrupted, starting over");
    }
    private_dir(&options.run_dir, owner)?;
    let password = PasswordFile::write(options, &chosen.superuser_password)?;
    initdb(options, chosen, &staging.path(), &password.0).await?;
    drop(password);
    set_up(options, &staging.path()).await?;
    conf::write_into(&staging.path(), options, settings)?;
    replace_signal(&staging.path(), options)?;
    staging.install()?;
    tracing::info!(data_dir = %options.data_dir.display(), "data directory made");
    Ok(())
}

async fn initdb(
    options: &ServerOptions,
    chosen: &BootstrapOptions,
    dir: &Path,
    password: &Path,
) -> Result<(), Error> {
    let mut command = tool::command(options, "initdb");
    command.arg("-D").arg(dir).arg("--pwfile").arg(password);
    command.args([
        "-U",
        crate::SUPERUSER,
        "-E",
        "UTF8",
        "--no-instructions",
        "-A",
        "scram-sha-256",
    ]);
    command.arg(format!("--locale={}", chosen.locale));
    command.arg(format!("--wal-segsize={}", chosen.wal_segment_megabytes));
    if chosen.data_checksums {
        command.arg("--data-checksums");
    } else if options.install.major >= 18 {
        command.arg("--no-data-checksums");
    }
    command.current_dir(dir);
    tool::run(command, None, |line| tracing::debug!(line, "initdb")).await?.success("initdb")?;
    Ok(())
}

/// Grants on functions hold in one database: Quorate connects to `postgres`.
async fn set_up(options: &ServerOptions, dir: &Path) -> Result<(), Error> {
    let mut command = tool::command(options, "postgres");
    command.arg("--single").arg("-D").arg(dir);
    command.args(["-c", "exit_on_error=on", "-c", "search_path=pg_catalog", "postgres"]);
    command.current_dir(dir);
    let outcome = tool::run(command, Some(SETUP.join("\n") + "\n"), |_| {}).await?;
    outcome.success("postgres --single")?;
    Ok(())
}

/// Every server starts as a standby, the first one too.
pub(crate) fn replace_signal(dir: &Path, options: &ServerOptions) -> Result<(), Error> {
    replace(&dir.join("standby.signal"), b"", options.run_as.as_ref())?;
    sync_dir(dir)
}

/// Removed however the bootstrap ends.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn write(options: &ServerOptions, password: &str) -> Result<Self, Error> {
        let path = options.run_dir.join("initdb.password");
        replace(&path, format!("{password}\n").as_bytes(), options.run_as.as_ref())?;
        Ok(Self(path))
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        if let Err(err) = remove(&self.0) {
            tracing::error!(error = %err, "a password file is left behind");
        }
    }
}
