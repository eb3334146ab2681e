//! Nodes for tests: a bootstrapped directory copied for each, and a relay that is a link.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_core::TimelineId;
use quorate_postgres::{
    Admin, BootstrapOptions, Install, Mode, Position, Promoted, Server, ServerOptions, Settings,
    StandbyPosition, User, bootstrap, write_settings,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

pub(crate) const PASSWORD: &str = "only-for-tests";

/// Generous: other work shares the machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) struct Node {
    pub(crate) options: Arc<ServerOptions>,
    pub(crate) server: Server,
    pub(crate) admin: Admin,
}

/// A directory that the server's user can pass through.
pub(crate) fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("qpg").tempdir_in("/tmp").unwrap();
    open_to_all(dir.path());
    dir
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The installed PostgreSQL, or another version's programs by `QUORATE_TEST_BIN_DIR`.
fn install() -> Install {
    let chosen = std::env::var_os("QUORATE_TEST_BIN_DIR").map(PathBuf::from);
    Install::find(chosen.as_deref()).unwrap()
}

pub(crate) fn options(root: &Path, name: &str) -> ServerOptions {
    let home = root.join(name);
    for dir in [&home, &home.join("relay")] {
        std::fs::create_dir_all(dir).unwrap();
        open_to_all(dir);
    }
    ServerOptions {
        install: install(),
        data_dir: home.join("data"),
        run_dir: home.join("run"),
        relay_dir: home.join("relay"),
        log_file: home.join("log"),
        run_as: User::for_server(None).unwrap(),
    }
}

/// No synchronous standby: tests of one server must not wait for one.
pub(crate) fn settings() -> Settings {
    let mut settings = Settings {
        synchronous_standby_names: String::new(),
        wal_keep_megabytes: 64,
        ..Settings::default()
    };
    settings.parameters.insert("shared_buffers".into(), "16MB".into());
    settings
}

pub(crate) fn bootstrap_options() -> BootstrapOptions {
    BootstrapOptions { superuser_password: PASSWORD.into(), ..BootstrapOptions::default() }
}

/// One bootstrap serves every test of the process: the directory is copied.
async fn template() -> &'static Path {
    static TEMPLATE: OnceCell<PathBuf> = OnceCell::const_new();
    let make = || async {
        let prefix = "qpg-template-";
        // A static is never dropped: each run removes what finished ones left.
        for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(prefix).and_then(|pid| pid.parse().ok());
            if owner.is_some_and(|pid| !alive(pid)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let root = PathBuf::from(format!("/tmp/{prefix}{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        open_to_all(&root);
        let options = options(&root, "t");
        bootstrap(&options, &bootstrap_options(), &settings()).await.unwrap();
        options.data_dir
    };
    TEMPLATE.get_or_init(make).await
}

/// A bootstrapped node that is not running.
pub(crate) async fn node(root: &Path, name: &str) -> Node {
    let options = options(root, name);
    let copied =
        Command::new("cp").arg("-a").args([template().await, &options.data_dir]).status().unwrap();
    assert!(copied.success());
    node_without_data(options).with_settings(&settings())
}

pub(crate) fn node_without_data(options: ServerOptions) -> Node {
    let options = Arc::new(options);
    let server = Server::new(Arc::clone(&options)).unwrap();
    Node { admin: Admin::new(Arc::clone(&options)), server, options }
}

impl Node {
    pub(crate) fn with_settings(self, settings: &Settings) -> Self {
        write_settings(&self.options, settings).unwrap();
        self
    }

    /// Starts and waits for connections; returns the postmaster's pid.
    pub(crate) async fn start(&self) -> i32 {
        let pid = self.server.start().await.unwrap();
        let ready = self.admin.wait_ready(&self.server.status(), SOON).await;
        ready.unwrap_or_else(|err| panic!("{err}\n{}", self.log()));
        pid
    }

    pub(crate) async fn position(&self) -> Position {
        let asking = || async {
            match self.admin.standby_position().await.unwrap() {
                StandbyPosition::At(position) => Some(position),
                StandbyPosition::NotYet(_) => None,
            }
        };
        until("a position", asking).await
    }

    pub(crate) async fn promote(&self, tli: u32) -> Promoted {
        self.position().await;
        let promoted = self.admin.promote(TimelineId(tli), SOON).await;
        promoted.unwrap_or_else(|err| panic!("{err}\n{}", self.log()))
    }

    /// Runs statements as the superuser; the first column of the first row.
    pub(crate) async fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).await.unwrap()
    }

    pub(crate) async fn try_sql(&self, sql: &str) -> Result<String, tokio_postgres::Error> {
        let client = self.client().await?;
        let messages = client.simple_query(sql).await?;
        let row = messages.into_iter().find_map(|m| match m {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(row.unwrap_or_default())
    }

    pub(crate) async fn client(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(&self.options.run_dir)
            .user("postgres")
            .password(PASSWORD)
            .dbname("postgres")
            .connect(tokio_postgres::NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Lets this node's walreceiver reach another's server.
    pub(crate) fn follow(&self, writer: &Node) {
        self.cut();
        std::os::unix::fs::symlink(writer.options.socket(), self.options.relay_socket()).unwrap();
    }

    /// Closes the relay for new connections.
    pub(crate) fn cut(&self) {
        let _ = std::fs::remove_file(self.options.relay_socket());
    }

    pub(crate) async fn wait_streaming(&self) {
        let streaming = || async {
            let probe = self.admin.probe().await.unwrap();
            let receiver = probe.walreceiver?;
            (receiver.status.as_deref() == Some("streaming")).then_some(())
        };
        until("streaming", streaming).await;
    }

    pub(crate) async fn stop(&self) {
        self.server.stop(Mode::Immediate).await;
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.options.log_file).unwrap_or_default()
    }
}

/// Asks until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A process that is there and not a zombie.
pub(crate) fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'))
}

/// Signals a process, which may have ended by itself: a server has some that come and go.
pub(crate) fn signal(pid: i32, signal: rustix::process::Signal) {
    let sent = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal);
    assert!(matches!(sent, Ok(()) | Err(rustix::io::Errno::SRCH)), "{sent:?}");
}

/// Prints a measured time; shown with `--nocapture`.
pub(crate) fn report(what: &str, since: Instant) {
    println!("measured: {what}: {:.1} ms", since.elapsed().as_secs_f64() * 1000.0);
}
