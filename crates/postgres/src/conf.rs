//! The settings that Quorate owns, and the three files they are written to.
//!
//! `quorate.conf` is included at the end of `postgresql.conf`, so it wins over what is there; the
//! users' shared parameters come first in it and may not name an owned one. What the fence rests on
//! is given on the command line as well ([`fixed`]): neither a file nor `ALTER SYSTEM` overrides
//! that.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::files::{read, replace, sync_dir};
use crate::{Error, PORT, ROLE, ServerOptions, User, tool};

/// What of the owned settings can be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How much is logged. Restart.
    pub wal_level: WalLevel,
    /// Connections that stream WAL. Restart.
    pub max_wal_senders: u32,
    /// Replication slots. Restart.
    pub max_replication_slots: u32,
    /// Whom a commit waits for; empty: nobody. Reload.
    pub synchronous_standby_names: String,
    /// What a commit waits for. Reload.
    pub synchronous_commit: SynchronousCommit,
    /// The slot of this standby on its upstream. Reload.
    pub primary_slot_name: Option<String>,
    /// Whether this standby holds back cleanup on the writer. Reload.
    pub hot_standby_feedback: bool,
    /// How long queries may hold up replay; `None`: for ever. Reload.
    pub max_standby_streaming_delay: Option<Duration>,
    /// How much later than it could this standby replays. Reload.
    pub apply_delay: Duration,
    /// WAL kept for standbys without slots, in megabytes. Reload.
    pub wal_keep_megabytes: u32,
    /// WAL that slots may hold back, in megabytes; `None`: without bound. Reload.
    pub max_slot_wal_keep_megabytes: Option<u32>,
    /// Parameters of the users' choice, by PostgreSQL's names.
    pub parameters: BTreeMap<String, String>,
}

/// PostgreSQL's `wal_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalLevel {
    /// Enough for standbys.
    Replica,
    /// Enough for change streams too.
    Logical,
}

/// PostgreSQL's `synchronous_commit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynchronousCommit {
    /// Waits for nothing: a crash loses commits.
    Off,
    /// Waits for the local disk.
    Local,
    /// Waits until a standby's operating system has it.
    RemoteWrite,
    /// Waits until a standby's disk has it.
    On,
    /// Waits until a standby shows it.
    RemoteApply,
}

/// Whether writing changed anything. Changed files take effect by `Server::reload`; what needs a
/// restart is then listed in `Probe::pending_restart`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Every file had its content already.
    Same,
    /// At least one file is new.
    Changed,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            wal_level: WalLevel::Logical,
            max_wal_senders: 32,
            max_replication_slots: 32,
            synchronous_standby_names: "ANY 1 (quorate)".to_owned(),
            synchronous_commit: SynchronousCommit::On,
            primary_slot_name: None,
            hot_standby_feedback: false,
            max_standby_streaming_delay: Some(Duration::from_secs(1)),
            apply_delay: Duration::ZERO,
            wal_keep_megabytes: 512,
            max_slot_wal_keep_megabytes: None,
            parameters: BTreeMap::new(),
        }
    }
}

/// Kinds of processes whose fatal errors end the server, as `log_line_prefix` (`%b`) names them.
pub(crate) const ENDS_SERVER: [&str; 2] = ["] startup ", "] postmaster "];

const INCLUDE: &str = "include 'quorate.conf'";

/// Parameters that are given on the command line only, because files must not say otherwise.
const COMMAND_LINE_ONLY: [&str; 7] = [
    "data_directory",
    "config_file",
    "hba_file",
    "ident_file",
    "external_pid_file",
    "primary_conninfo",
    "promote_trigger_file",
];

/// Renders and writes `quorate.conf`, its include line, `pg_hba.conf` and `pg_ident.conf`.
/// Idempotent; every file is replaced atomically and only when it differs.
///
/// # Errors
/// [`Error::Setting`] for a user parameter that is owned or malformed, [`Error::Io`].
pub fn write(options: &ServerOptions, settings: &Settings) -> Result<Written, Error> {
    write_into(&options.data_dir, options, settings)
}

/// The same into a directory that is not in place yet.
pub(crate) fn write_into(
    dir: &Path,
    options: &ServerOptions,
    settings: &Settings,
) -> Result<Written, Error> {
    let owner = options.run_as.as_ref();
    let me = User::current()?;
    let mut changed = false;
    let mut put = |name: &str, text: &str| -> Result<(), Error> {
        changed |= replace(&dir.join(name), text.as_bytes(), owner)?;
        Ok(())
    };
    put("quorate.conf", &render(options, settings)?)?;
    put("pg_hba.conf", HBA)?;
    put("pg_ident.conf", &render_ident(&me, owner))?;
    let main = dir.join("postgresql.conf");
    let text = read(&main).map_err(Error::io("read", &main))?;
    put("postgresql.conf", &with_include(&String::from_utf8_lossy(&text)))?;
    if changed {
        sync_dir(dir)?;
    }
    Ok(if changed { Written::Changed } else { Written::Same })
}

/// The include line, exactly once and last.
fn with_include(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().filter(|line| line.trim() != INCLUDE).collect();
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    lines.push(INCLUDE);
    lines.join("\n") + "\n"
}

/// What the command line fixes for the life of the process.
pub(crate) fn fixed(options: &ServerOptions) -> Result<Vec<(&'static str, String)>, Error> {
    let mut fixed = constant(options)?;
    let file = |name: &str| options.data_dir.join(name).to_string_lossy().into_owned();
    fixed.push(("hba_file", file("pg_hba.conf")));
    fixed.push(("ident_file", file("pg_ident.conf")));
    fixed.push(("primary_conninfo", options.primary_conninfo()));
    Ok(fixed)
}

/// What differs, for the life of the process, when it starts to promote itself. Without hot standby
/// PostgreSQL does not insist on the former writer's resources.
pub(crate) fn promoting(from: quorate_core::TimelineId) -> [(&'static str, String); 3] {
    [
        ("hot_standby", "off".to_owned()),
        // "No such file": all log is here.
        ("restore_command", "false".to_owned()),
        ("recovery_target_timeline", from.to_string()),
    ]
}

/// Owned settings without a choice.
fn constant(options: &ServerOptions) -> Result<Vec<(&'static str, String)>, Error> {
    let run_dir = options.run_dir.to_string_lossy();
    if run_dir.contains([',', '"']) {
        let reason = "must not contain a comma or a double quote".to_owned();
        return Err(Error::Directory { path: options.run_dir.clone(), reason });
    }
    let pairs = [
        ("listen_addresses", ""),
        ("unix_socket_directories", &format!("\"{run_dir}\"")),
        ("unix_socket_permissions", "0700"),
        ("port", &PORT.to_string()),
        ("hot_standby", "on"),
        ("wal_log_hints", "on"),
        ("full_page_writes", "on"),
        ("fsync", "on"),
        ("restart_after_crash", "off"),
        ("recovery_target_timeline", "latest"),
        // No target: a standby never stops, and never promotes itself, at one.
        ("recovery_target", ""),
        ("recovery_target_lsn", ""),
        ("recovery_target_name", ""),
        ("recovery_target_time", ""),
        ("recovery_target_xid", ""),
        ("recovery_end_command", ""),
        ("restore_command", ""),
        ("password_encryption", "scram-sha-256"),
        ("logging_collector", "off"),
        ("log_destination", "stderr"),
    ];
    let mut pairs = Vec::from(pairs.map(|(name, value)| (name, value.to_owned())));
    if options.install.major >= 16 {
        // For ourselves, when applications have taken all other connections.
        pairs.push(("reserved_connections", "5".to_owned()));
    }
    Ok(pairs)
}

/// Owned settings that follow from [`Settings`] or that a reload may change.
fn chosen(settings: &Settings) -> Vec<(&'static str, String)> {
    let on = |b: bool| if b { "on" } else { "off" }.to_owned();
    let megabytes = |m: Option<u32>| m.map_or("-1".to_owned(), |m| format!("{m}MB"));
    let delay = settings.max_standby_streaming_delay;
    vec![
        ("wal_level", settings.wal_level.name().to_owned()),
        ("max_wal_senders", settings.max_wal_senders.to_string()),
        ("max_replication_slots", settings.max_replication_slots.to_string()),
        ("synchronous_standby_names", settings.synchronous_standby_names.clone()),
        ("synchronous_commit", settings.synchronous_commit.name().to_owned()),
        ("primary_slot_name", settings.primary_slot_name.clone().unwrap_or_default()),
        ("hot_standby_feedback", on(settings.hot_standby_feedback)),
        (
            "max_standby_streaming_delay",
            delay.map_or("-1".to_owned(), |d| format!("{}ms", d.as_millis())),
        ),
        ("recovery_min_apply_delay", format!("{}ms", settings.apply_delay.as_millis())),
        ("wal_keep_size", megabytes(Some(settings.wal_keep_megabytes))),
        ("max_slot_wal_keep_size", megabytes(settings.max_slot_wal_keep_megabytes)),
        ("wal_retrieve_retry_interval", "5ms".to_owned()),
        ("wal_receiver_status_interval", "1s".to_owned()),
        ("wal_receiver_timeout", "10s".to_owned()),
        ("wal_sender_timeout", "10s".to_owned()),
        ("log_line_prefix", "%m [%p] %b %q%u@%d %a ".to_owned()),
    ]
}

impl WalLevel {
    fn name(self) -> &'static str {
        match self {
            Self::Replica => "replica",
            Self::Logical => "logical",
        }
    }
}

impl SynchronousCommit {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

fn render(options: &ServerOptions, settings: &Settings) -> Result<String, Error> {
    let constant = constant(options)?;
    let chosen = chosen(settings);
    let owned: Vec<&str> =
        constant.iter().chain(&chosen).map(|(name, _)| *name).chain(COMMAND_LINE_ONLY).collect();
    let mut text = String::from("# Written by Quorate; changes made here are lost.\n\n");
    for (name, value) in &settings.parameters {
        check_parameter(name, value, &owned)?;
        line(&mut text, name, value);
    }
    text.push_str("\n# Owned by Quorate.\n");
    for (name, value) in constant.iter().chain(&chosen) {
        if value.contains(['\n', '\r']) {
            let reason = "the value must be one line".to_owned();
            return Err(Error::Setting { name: (*name).to_owned(), reason });
        }
        line(&mut text, name, value);
    }
    Ok(text)
}

/// Whether users may choose this parameter's value, before any server sees it.
///
/// # Errors
/// [`Error::Setting`] for an owned or malformed one.
pub fn check(options: &ServerOptions, name: &str, value: &str) -> Result<(), Error> {
    let parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
    render(options, &Settings { parameters, ..Settings::default() }).map(drop)
}

/// Whether PostgreSQL takes this value: its own program reads it, as it would at a start.
///
/// # Errors
/// [`Error::Setting`] with PostgreSQL's reason, [`Error::Io`].
pub async fn judge(options: &ServerOptions, name: &str, value: &str) -> Result<(), Error> {
    let mut command = tool::command(options, "postgres");
    command.arg("-D").arg(&options.data_dir).args(["-C", name]);
    command.arg("-c").arg(format!("{name}={value}")).current_dir(&options.data_dir);
    let mut said = Vec::new();
    let outcome = tool::run(command, None, |line| {
        said.extend(
            ["FATAL:  ", "HINT:  "]
                .iter()
                .find_map(|mark| Some(line.split_once(mark)?.1.to_owned())),
        );
    })
    .await?;
    if outcome.status.success() {
        return Ok(());
    }
    Err(Error::Setting { name: name.to_owned(), reason: said.join(" ") })
}

fn check_parameter(name: &str, value: &str, owned: &[&str]) -> Result<(), Error> {
    let refuse =
        |reason: &str| Err(Error::Setting { name: name.to_owned(), reason: reason.to_owned() });
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') || !name.chars().all(plain)
    {
        return refuse("this is not the name of a parameter");
    }
    if name.to_ascii_lowercase().starts_with("include") {
        return refuse("files cannot be included here");
    }
    if owned.iter().any(|o| o.eq_ignore_ascii_case(name)) {
        return refuse("Quorate sets this one itself");
    }
    if value.contains(['\n', '\r', '\0']) {
        return refuse("the value must be one line");
    }
    Ok(())
}

fn line(text: &mut String, name: &str, value: &str) {
    let quoted = value.replace('\\', "\\\\").replace('\'', "''");
    let _ = writeln!(text, "{name} = '{quoted}'");
}

/// The private socket is for this process and for logins that were checked by PostgreSQL.
/// Whoever reaches the socket is PostgreSQL's own user, root, or the Quorate of this host: the
/// socket's file and directory are closed to all others. Passwords are asked by the gateway, which
/// is the only other way in.
const HBA: &str = "\
# Written by Quorate; changes made here are lost.
local  replication  quorate  peer map=quorate
local  all          quorate  peer map=quorate
local  replication  all      trust
local  all          all      trust
";

fn render_ident(me: &User, run_as: Option<&User>) -> String {
    let mut text = String::from("# Written by Quorate; changes made here are lost.\n");
    let mut names = vec![me.name.as_str()];
    names.extend(run_as.map(|user| user.name.as_str()).filter(|name| *name != me.name));
    for name in names {
        let _ = writeln!(text, "quorate  \"{name}\"  {ROLE}");
    }
    text
}

/// A libpq connection string to the server behind a socket directory, as role [`ROLE`].
pub(crate) fn conninfo(dir: &Path, application: &str) -> String {
    let dir = dir.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let host = if dir.chars().all(plain) {
        dir.into_owned()
    } else {
        format!("'{}'", dir.replace('\\', "\\\\").replace('\'', "\\'"))
    };
    format!("host={host} port={PORT} user={ROLE} application_name={application}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Install;

    fn options(dir: &Path) -> ServerOptions {
        ServerOptions {
            install: Install { bin_dir: "/x".into(), major: 15, version: "15.1".into() },
            data_dir: dir.to_owned(),
            run_dir: dir.join("run"),
            relay_dir: dir.join("relay"),
            log_file: dir.join("log"),
            run_as: None,
        }
    }

    #[test]
    fn writing_twice_changes_nothing_and_the_include_stays_last() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("postgresql.conf");
        fs::write(&main, "include 'quorate.conf'\nwork_mem = '4MB'\n\n").unwrap();
        let mut settings = Settings::default();
        settings.parameters.insert("work_mem".into(), "it's 8MB".into());
        let options = options(dir.path());
        assert_eq!(write(&options, &settings).unwrap(), Written::Changed);
        assert_eq!(write(&options, &settings).unwrap(), Written::Same);
        let text = fs::read_to_string(&main).unwrap();
        assert_eq!(text, "work_mem = '4MB'\ninclude 'quorate.conf'\n");
        let text = fs::read_to_string(dir.path().join("quorate.conf")).unwrap();
        let users = text.find("work_mem = 'it''s 8MB'").unwrap();
        assert!(users < text.find("listen_addresses = ''").unwrap());
        settings.hot_standby_feedback = true;
        assert_eq!(write(&options, &settings).unwrap(), Written::Changed);
    }

    #[test]
    fn owned_and_malformed_parameters_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("postgresql.conf"), "").unwrap();
        for (name, value) in [
            ("Listen_Addresses", "*"),
            ("primary_conninfo", "host=x"),
            ("hba_file", "/x"),
            ("include_dir", "/x"),
            ("recovery_target", "immediate"),
            ("work mem", "1"),
            ("work_mem", "1\nfsync=off"),
        ] {
            let parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let settings = Settings { parameters, ..Settings::default() };
            let err = write(&options(dir.path()), &settings).unwrap_err();
            assert!(matches!(&err, Error::Setting { name: n, .. } if n == name), "{err}");
        }
        assert!(!dir.path().join("quorate.conf").exists());
    }

    #[test]
    fn connection_strings_are_quoted_when_they_must_be() {
        let plain = conninfo(Path::new("/run/q"), "quorate");
        assert_eq!(plain, "host=/run/q port=5432 user=quorate application_name=quorate");
        assert!(conninfo(Path::new("/a b'c"), "x").starts_with("host='/a b\\'c' "));
    }
}
