//! `quorate demo`: a real cluster of three processes on this machine, with something to watch.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_agent::view::ClusterStatus;
use quorate_core::NodeId;
use quorate_core::state::Event;
use tokio::process::{Child, Command};

use super::{DemoArgs, Global, operate, reach, show};

/// Nodes of the demo.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// A row is written this often.
const WRITE_EVERY: Duration = Duration::from_millis(10);
/// How often the demo sums up.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How long the cluster may take to come up.
const START_WAIT: Duration = Duration::from_secs(90);
/// How long one write of the workload may take.
const WRITE_WAIT: Duration = Duration::from_secs(15);
/// How long processes may take to end.
const END_WAIT: Duration = Duration::from_secs(10);
/// How often things are looked at.
const LOOK: Duration = Duration::from_millis(50);

struct Demo {
    program: PathBuf,
    dir: PathBuf,
    port: u16,
    temporary: bool,
    postgres_bin: Option<PathBuf>,
    children: Vec<(usize, Child)>,
}

impl Demo {
    fn node_dir(&self, i: usize) -> PathBuf {
        self.dir.join(NODES[i])
    }

    fn ports(&self, i: usize) -> [String; 3] {
        [0, 3, 6].map(|kind| format!("127.0.0.1:{}", self.port + kind + i as u16))
    }

    fn global(&self, i: usize) -> Global {
        Global { dir: Some(self.node_dir(i)), url: None, ca: None, admin_token: None, json: false }
    }

    async fn quorate(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(args)
            .env_remove("QUORATE_DIR")
            .env_remove("QUORATE_URL")
            .stdin(Stdio::null())
            .output()
            .await?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn node_args(&self, i: usize) -> Vec<String> {
        let [gateway, link, web] = self.ports(i);
        let dir = self.node_dir(i).display().to_string();
        let mut args: Vec<String> = [
            "--dir",
            &dir,
            "--name",
            NODES[i],
            "--advertise",
            "127.0.0.1",
            "--gateway",
            &gateway,
            "--link",
            &link,
            "--web",
            &web,
        ]
        .map(str::to_owned)
        .to_vec();
        if let Some(bin) = &self.postgres_bin {
            args.extend(["--postgres-bin".to_owned(), bin.display().to_string()]);
        }
        args
    }

    fn start(&mut self, i: usize) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{}.log", NODES[i])))?;
        let child = Command::new(&self.program)
            .arg("run")
            .arg("--dir")
            .arg(self.node_dir(i))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo: it ends its nodes itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        self.children.retain(|(n, _)| *n != i);
        self.children.push((i, child));
        Ok(())
    }

    /// Starts a node again whose process was killed: what a service manager does.
    fn revive(&mut self) -> Result<()> {
        for (i, name) in NODES.iter().enumerate() {
            let dead = self
                .children
                .iter_mut()
                .find(|(n, _)| *n == i)
                .is_none_or(|(_, child)| matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
            if dead {
                say(&format!("the Quorate process of {name} ended: starting it again"));
                self.start(i)?;
            }
        }
        Ok(())
    }

    /// The status as any living node sees it.
    async fn status(&self) -> Option<ClusterStatus> {
        for i in 0..NODES.len() {
            if let Ok(status) = reach::get(&self.global(i), "/api/status").await {
                return Some(status);
            }
        }
        None
    }

    async fn events(&self) -> Vec<Event> {
        let mut newest: Vec<Event> = Vec::new();
        for i in 0..NODES.len() {
            if let Ok(events) = reach::get::<Vec<Event>>(&self.global(i), "/api/events").await
                && events.last().map(|e| e.seq) > newest.last().map(|e| e.seq)
            {
                newest = events;
            }
        }
        newest
    }

    fn postmaster_file(&self, node: &str) -> PathBuf {
        self.dir.join(node).join("pg/data/postmaster.pid")
    }

    /// Ends every process that the demo started, and waits for their servers.
    async fn end(&mut self) {
        for (_, child) in &mut self.children {
            let _ = child.start_kill();
        }
        for (_, child) in &mut self.children {
            let _ = child.wait().await;
        }
        let deadline = Instant::now() + END_WAIT;
        for node in NODES {
            while running(&self.postmaster_file(node)) && Instant::now() < deadline {
                tokio::time::sleep(LOOK).await;
            }
        }
        if self.temporary {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Whether the process that a postmaster.pid names still works in that directory.
fn running(file: &Path) -> bool {
    let pid = fs::read_to_string(file).ok().and_then(|t| t.lines().next().map(str::to_owned));
    let Some(pid) = pid else { return false };
    fs::read_link(format!("/proc/{}/cwd", pid.trim()))
        .is_ok_and(|dir| Some(dir.as_path()) == file.parent())
}

fn say(text: &str) {
    println!("{text}");
    let _ = std::io::stdout().flush();
}

/// Whoever has one of the ports already would be taken for a part of the demo.
fn free(first: u16) -> Result<()> {
    let last = first.checked_add(3 * NODES.len() as u16 - 1).context("--port is too high")?;
    for port in first..=last {
        std::net::TcpListener::bind(("127.0.0.1", port)).with_context(|| {
            format!(
                "port {port} of 127.0.0.1 cannot be had, and the demo needs {first} to {last}: end \
                 what listens there, or choose others with --port"
            )
        })?;
    }
    Ok(())
}

/// `quorate demo`.
pub async fn demo(global: &Global, args: DemoArgs) -> Result<()> {
    free(args.port)?;
    let began = Instant::now();
    let (dir, temporary) = match &global.dir {
        Some(dir) => {
            if dir.join(crate::config::FILE).exists() {
                bail!("{} holds a node: choose another --dir for the demo", dir.display());
            }
            fs::create_dir_all(dir)?;
            (fs::canonicalize(dir)?, false)
        }
        None => (std::env::temp_dir().join(format!("quorate-demo-{}", std::process::id())), true),
    };
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let mut demo = Demo {
        program: std::env::current_exe()?,
        dir,
        port: args.port,
        temporary,
        postgres_bin: args.postgres_bin.clone(),
        children: Vec::new(),
    };
    say(&format!("three nodes on this machine, in {}", demo.dir.display()));
    let result = tokio::select! {
        result = play(&mut demo, &args, began) => result,
        _ = tokio::signal::ctrl_c() => Ok(()),
        _ = terminated() => Ok(()),
    };
    say("\nending the demo");
    demo.end().await;
    result
}

async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}

async fn play(demo: &mut Demo, args: &DemoArgs, began: Instant) -> Result<()> {
    raise(demo).await?;
    let password = fs::read_to_string(demo.node_dir(0).join("superuser.password"))?;
    let password = password.trim().to_owned();
    let workload = Workload::start(demo, &password);
    workload.first_row().await?;
    say(&format!("first row written after {:.1} s", began.elapsed().as_secs_f64()));
    join_others(demo).await?;
    healthy(demo).await?;
    say(&format!("three copies after {:.1} s\n", began.elapsed().as_secs_f64()));
    operate::print_status(&demo.global(0)).await?;
    guide(demo, &password).await;
    watch(demo, args, &workload).await
}

/// The first node.
async fn raise(demo: &mut Demo) -> Result<()> {
    if !demo.node_dir(0).join("quorate.toml").exists() {
        let args = demo.node_args(0);
        let mut words: Vec<&str> = vec!["init"];
        words.extend(args.iter().map(String::as_str));
        demo.quorate(&words).await?;
    }
    // Nodes that were kept from an earlier demo are needed for a majority.
    for i in 0..NODES.len() {
        if demo.node_dir(i).join("quorate.toml").exists() {
            demo.start(i)?;
        }
    }
    Ok(())
}

/// The other nodes, each with a token of its own.
async fn join_others(demo: &mut Demo) -> Result<()> {
    let first = demo.node_dir(0).display().to_string();
    for i in 1..NODES.len() {
        if !demo.node_dir(i).join("quorate.toml").exists() {
            let token = demo.quorate(&["token", "--dir", &first]).await?;
            let [_, link, _] = demo.ports(0);
            let args = demo.node_args(i);
            let mut words: Vec<&str> = vec!["join", &link, "--token", &token];
            words.extend(args.iter().map(String::as_str));
            demo.quorate(&words).await?;
            demo.start(i)?;
        }
    }
    Ok(())
}

/// Waits until every node is in the commit rule.
async fn healthy(demo: &Demo) -> Result<()> {
    let deadline = Instant::now() + START_WAIT;
    loop {
        if let Some(status) = demo.status().await {
            let cohort = status.authority.cohort();
            if operate::serving(&status).is_some()
                && cohort.len() == NODES.len()
                && status.voters.len() == NODES.len()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the cluster is not complete:\n{}", show::picture(&status));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn guide(demo: &Demo, password: &str) {
    let [gateway, _, _] = demo.ports(0);
    let port = gateway.rsplit(':').next().unwrap_or_default().to_owned();
    let dir = demo.node_dir(0).display().to_string();
    let program = demo.program.display();
    say("\nconnect (any of the three gateways leads to the writer):");
    say(&format!("  PGPASSWORD={password} psql -h 127.0.0.1 -p {port} -U postgres"));
    say("look:");
    say(&format!("  {program} status --watch --dir {dir}"));
    say("move the writer:");
    say(&format!("  {program} switchover --dir {dir}"));
    say("hurt it:");
    if let Some(writer) = demo.status().await.and_then(|s| s.writer) {
        let file = demo.postmaster_file(writer.as_str());
        say(&format!("  kill -9 $(head -1 {})   # PostgreSQL of the writer", file.display()));
        let pid = demo
            .children
            .iter()
            .find(|(i, _)| NODES[*i] == writer.as_str())
            .and_then(|(_, child)| child.id());
        if let Some(pid) = pid {
            say(&format!("  kill -9 {pid}   # Quorate of the writer, and its PostgreSQL with it"));
        }
    }
    say("end: Ctrl-C\n");
}

/// Shows events as they come, and what the workload sees.
async fn watch(demo: &mut Demo, args: &DemoArgs, workload: &Workload) -> Result<()> {
    let until = args.seconds.map(|s| Instant::now() + Duration::from_secs(s));
    let mut seen = demo.events().await.last().map_or(0, |e| e.seq);
    let mut next_report = Instant::now() + REPORT_EVERY;
    let mut hurt = args.hurt.then(|| Instant::now() + REPORT_EVERY);
    workload.forget_pause();
    loop {
        demo.revive()?;
        for event in demo.events().await {
            if event.seq <= seen {
                continue;
            }
            seen = event.seq;
            let at = show::clock(event.at);
            let time = at.split(' ').nth(1).unwrap_or_default();
            say(&format!("{time} term {} {}: {}", event.term, event.kind, event.because));
        }
        if hurt.is_some_and(|at| Instant::now() >= at) {
            hurt = None;
            strike(demo).await;
        }
        if Instant::now() >= next_report {
            next_report += REPORT_EVERY;
            let writer = demo.status().await.and_then(|s| operate::serving(&s));
            let writer = writer.map_or("nobody".to_owned(), |w: NodeId| w.to_string());
            let (rows, pause) = workload.sum();
            say(&format!(
                "{rows} rows written, longest pause so far {:.2} s, {writer} writes",
                pause.as_secs_f64()
            ));
        }
        if until.is_some_and(|at| Instant::now() >= at) {
            return workload.verify(demo).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn strike(demo: &Demo) {
    let Some(writer) = demo.status().await.and_then(|s| s.writer) else { return };
    let Ok(text) = fs::read_to_string(demo.postmaster_file(writer.as_str())) else { return };
    let pid = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        say(&format!("--- kill -9 of the writer's PostgreSQL ({writer})"));
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// One client that writes a row every few milliseconds, through all gateways in turn.
struct Workload {
    shared: std::sync::Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
    password: String,
}

#[derive(Default)]
struct Shared {
    acknowledged: std::sync::Mutex<Vec<i64>>,
    pause: std::sync::Mutex<(Option<Instant>, Duration)>,
    first: tokio::sync::Notify,
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn acknowledge(&self, id: i64) {
        let mut acknowledged =
            self.acknowledged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        acknowledged.push(id);
        if acknowledged.len() == 1 {
            self.first.notify_one();
        }
        let mut pause = self.pause.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let gap = pause.0.map_or(Duration::ZERO, |last| last.elapsed());
        *pause = (Some(Instant::now()), pause.1.max(gap));
    }
}

impl Workload {
    fn start(demo: &Demo, password: &str) -> Self {
        let shared = std::sync::Arc::new(Shared::default());
        let gateways: Vec<u16> = (0..NODES.len() as u16).map(|i| demo.port + i).collect();
        let task =
            tokio::spawn(work(gateways, password.to_owned(), std::sync::Arc::clone(&shared)));
        Self { shared, task, password: password.to_owned() }
    }

    async fn first_row(&self) -> Result<()> {
        tokio::time::timeout(START_WAIT, self.shared.first.notified())
            .await
            .context("no row could be written: see the nodes' log files")
    }

    fn forget_pause(&self) {
        self.shared.pause.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1 =
            Duration::ZERO;
    }

    fn sum(&self) -> (usize, Duration) {
        let rows = self
            .shared
            .acknowledged
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .len();
        let pause = self.shared.pause.lock().unwrap_or_else(std::sync::PoisonError::into_inner).1;
        (rows, pause)
    }

    /// Looks for every acknowledged row.
    async fn verify(&self, demo: &Demo) -> Result<()> {
        self.task.abort();
        let ids = self
            .shared
            .acknowledged
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let client = connect(demo.port, &self.password).await?;
        let rows = client.query("SELECT id FROM demo", &[]).await?;
        let found: std::collections::BTreeSet<i64> = rows.iter().map(|r| r.get(0)).collect();
        let missing = ids.iter().filter(|id| !found.contains(id)).count();
        let (_, pause) = self.sum();
        say(&format!(
            "\n{} rows were acknowledged, {missing} of them are missing; longest pause {:.2} s",
            ids.len(),
            pause.as_secs_f64()
        ));
        if missing > 0 { bail!("acknowledged rows are missing") } else { Ok(()) }
    }
}

async fn connect(port: u16, password: &str) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(password).dbname("postgres");
    config.application_name("quorate demo").connect_timeout(WRITE_WAIT);
    let connecting = config.connect(tokio_postgres::NoTls);
    let (client, connection) = tokio::time::timeout(WRITE_WAIT, connecting).await??;
    tokio::spawn(connection);
    Ok(client)
}

async fn work(gateways: Vec<u16>, password: String, shared: std::sync::Arc<Shared>) {
    let mut id: i64 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_micros() as i64);
    for turn in 0.. {
        let port = gateways[turn % gateways.len()];
        let Ok(client) = connect(port, &password).await else {
            tokio::time::sleep(WRITE_EVERY).await;
            continue;
        };
        let made =
            client.batch_execute("CREATE TABLE IF NOT EXISTS demo (id bigint PRIMARY KEY)").await;
        if made.is_err() {
            continue;
        }
        loop {
            id += 1;
            let row: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&id];
            let write = client.execute("INSERT INTO demo VALUES ($1)", &row);
            match tokio::time::timeout(WRITE_WAIT, write).await {
                Ok(Ok(_)) => shared.acknowledge(id),
                Ok(Err(_)) | Err(_) => break,
            }
            tokio::time::sleep(WRITE_EVERY).await;
        }
    }
}
