//! A real PostgreSQL server in a temporary directory, on a unix socket only.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

const BIN: &str = "/usr/lib/postgresql/15/bin";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The user that servers run as: PostgreSQL refuses root.
pub(crate) fn owner() -> (u32, u32) {
    static OWNER: OnceLock<(u32, u32)> = OnceLock::new();
    *OWNER.get_or_init(|| {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|l| l.starts_with("postgres:")).expect("user postgres");
        let mut fields = line.split(':').skip(2).map(|f| f.parse().unwrap());
        (fields.next().unwrap(), fields.next().unwrap())
    })
}

pub(crate) fn command(program: &str) -> Command {
    let (uid, gid) = owner();
    let mut command = Command::new(format!("{BIN}/{program}"));
    command.uid(uid).gid(gid).current_dir("/").env_clear().stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let out = command.output()?;
    ensure!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

pub(crate) fn private_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("qt").tempdir().unwrap();
    let (uid, gid) = owner();
    chown(dir.path(), Some(uid), Some(gid)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

/// A data directory made once per test binary; servers get copies.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let dir = TEMPLATE.get_or_init(|| {
        let dir = private_dir();
        let data = dir.path().join("data");
        let args = ["-N", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "-D"];
        run(command("initdb").args(args).arg(&data)).unwrap();
        let conf = "listen_addresses=''\nfsync=off\nwal_log_hints=on\nmax_wal_senders=20\n\
            wal_retrieve_retry_interval=50ms\nhot_standby=on\nwal_receiver_status_interval=1s\n\
            shared_buffers=16MB\nautovacuum=off\nlogging_collector=off\nrestart_after_crash=off\n";
        let mut text = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        text.push_str(conf);
        std::fs::write(data.join("postgresql.conf"), text).unwrap();
        dir
    });
    dir.path()
}

pub(crate) struct Server {
    pub(crate) dir: TempDir,
    child: Child,
}

impl Server {
    /// A new primary with these settings, with role `quorate`.
    pub(crate) async fn primary(settings: &[&str]) -> Result<Server> {
        let dir = private_dir();
        let copy =
            Command::new("cp").arg("-a").arg(template().join("data")).arg(dir.path()).status()?;
        ensure!(copy.success(), "copying the template");
        let server = Server::start(dir, settings).await?;
        let sql = server.sql("postgres").await?;
        // The role must exist whatever the settings make commits wait for.
        sql.batch_execute(
            "SET synchronous_commit = local; CREATE ROLE quorate SUPERUSER LOGIN REPLICATION",
        )
        .await?;
        Ok(server)
    }

    /// A copy of a primary that follows whatever listens in `relay_dir`.
    pub(crate) async fn standby(of: &Server, relay_dir: &Path) -> Result<Server> {
        let dir = private_dir();
        let data = dir.path().join("data");
        run(command("pg_basebackup")
            .args(["-X", "stream", "-c", "fast", "--no-sync", "-U", "quorate", "-h"])
            .arg(of.dir.path())
            .arg("-D")
            .arg(&data))?;
        std::fs::write(data.join("standby.signal"), "")?;
        let conninfo = format!(
            "primary_conninfo=host={} port=5432 user=quorate application_name=quorate",
            relay_dir.display()
        );
        Server::start(dir, &[&conninfo]).await
    }

    async fn start(dir: TempDir, settings: &[&str]) -> Result<Server> {
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut command = command("postgres");
        command.arg("-D").arg(dir.path().join("data"));
        command.arg("-c").arg(format!("unix_socket_directories={}", dir.path().display()));
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let server = Server { dir, child };
        let sql = eventually("the server accepts connections", async || {
            server.sql("postgres").await.ok()
        })
        .await;
        sql.simple_query("SELECT 1").await.with_context(|| server.log())?;
        Ok(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(".s.PGSQL.5432")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) async fn sql(&self, user: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.dir.path()).user(user).dbname("postgres");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The first column of the first row, as text.
    pub(crate) async fn value(&self, sql: &str) -> Result<String> {
        value(&self.sql("postgres").await?, sql).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        let _ = self.child.wait();
    }
}

pub(crate) async fn value(client: &Client, sql: &str) -> Result<String> {
    for message in client.simple_query(sql).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            return Ok(row.get(0).unwrap_or("").to_owned());
        }
    }
    anyhow::bail!("no row from {sql}")
}

/// Asks again until there is an answer, and fails the test when there is none in time.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let ask = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(DEADLINE, ask).await {
        Ok(answer) => answer,
        Err(_) => panic!("never: {what}"),
    }
}
