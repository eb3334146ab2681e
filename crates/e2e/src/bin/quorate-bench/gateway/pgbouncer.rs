//! A PgBouncer beside the gateway.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::{limits, postgres};
use rustix::process::Pid;

use super::rig::{PASSWORD, USER};

/// Where Debian's package has it.
const DEBIAN: &str = "/usr/sbin/pgbouncer";
/// How long it may take to listen.
const START: Duration = Duration::from_secs(10);

/// A running PgBouncer; killed when dropped.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    child: Child,
    program: PathBuf,
    address: SocketAddr,
}

impl PgBouncer {
    /// Starts one before the server whose private socket is there. It runs as the server's user: it
    /// refuses to be root, and the socket is private.
    pub(crate) fn start(
        program: Option<&Path>,
        dir: &Path,
        socket_dir: &Path,
        pool: u32,
        clients: usize,
    ) -> Result<Self> {
        let program = program.unwrap_or(Path::new(DEBIAN)).to_owned();
        ensure!(
            program.exists(),
            "no PgBouncer at {}: install the package `pgbouncer`, or name one with --pgbouncer",
            program.display()
        );
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let users = dir.join("pgbouncer.users");
        readable(&users, &format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let ini = dir.join("pgbouncer.ini");
        readable(&ini, &settings(&users, socket_dir, port, pool, clients))?;
        let log = std::fs::File::create(dir.join("pgbouncer.log"))?;
        let mut command = postgres::as_postgres(&program)?;
        command.arg(&ini).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context("cannot run PgBouncer")?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut started = Self { child, program, address };
        started.wait(dir)?;
        Ok(started)
    }

    fn wait(&mut self, dir: &Path) -> Result<()> {
        let deadline = Instant::now() + START;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(dir.join("pgbouncer.log")).unwrap_or_default();
                anyhow::bail!("PgBouncer does not listen ({ended:?}): {log}");
            }
            std::thread::sleep(limits::POLL);
        }
        Ok(())
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it says of itself.
    pub(crate) fn version(&self) -> Result<String> {
        let output = Command::new(&self.program).arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or("PgBouncer of an unknown version").to_owned())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Defaults, except for what every proxy here is given, and no line in the log for each login.
fn settings(users: &Path, socket_dir: &Path, port: u16, pool: u32, clients: usize) -> String {
    format!(
        "[databases]\n\
         {USER} = host={} port=5432 dbname={USER}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = scram-sha-256\n\
         auth_file = {}\n\
         pool_mode = transaction\n\
         default_pool_size = {pool}\n\
         max_client_conn = {clients}\n\
         log_connections = 0\n\
         log_disconnections = 0\n",
        socket_dir.display(),
        users.display()
    )
}

fn readable(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text)?;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644))?;
    Ok(())
}
