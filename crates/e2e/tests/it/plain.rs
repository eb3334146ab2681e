//! The harness itself, against a single PostgreSQL without Quorate: the workload's record and its
//! judgement must be right before they can judge anything else.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::cable::{Cable, Mode};
use quorate_e2e::postgres::program;
use quorate_e2e::workload::{self, Gateway, Login, Options, TABLE, Workload, sql_through};
use quorate_e2e::{limits, process};

struct Plain {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Plain {
    fn new(name: &str) -> Result<Self> {
        let dir = PathBuf::from(format!("/tmp/qe-{name}-{:x}", std::process::id()));
        std::fs::create_dir(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut plain = Self { dir, port, child: None };
        let password = plain.dir.join("password");
        std::fs::write(&password, "plain")?;
        let mut initdb = program("initdb")?;
        initdb.args(["-U", "postgres", "-A", "scram-sha-256", "-N"]);
        initdb.arg("--pwfile").arg(&password).arg("-D").arg(plain.data());
        ensure!(initdb.status()?.success(), "initdb failed");
        plain.start()?;
        Ok(plain)
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn start(&mut self) -> Result<()> {
        let mut postgres = program("postgres")?;
        postgres.arg("-D").arg(self.data());
        postgres.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        postgres.args(["-c", &format!("port={}", self.port)]);
        self.child = Some(postgres.spawn()?);
        let deadline = Instant::now() + limits::START;
        while let Err(error) = sql_through(&login(), self.addr(), "SELECT 1") {
            ensure!(Instant::now() < deadline, "PostgreSQL does not start: {error:#}");
            std::thread::sleep(limits::POLL);
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        kill(&self.data(), self.child.take())
    }

    fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    fn ids(&self) -> Result<Vec<i64>> {
        let rows = sql_through(&login(), self.addr(), &format!("SELECT id FROM {TABLE}"))?;
        rows.iter().map(|r| Ok(r[0].as_deref().context("null")?.parse()?)).collect()
    }
}

fn kill(data: &Path, child: Option<Child>) -> Result<()> {
    process::kill_below(data);
    if let Some(mut child) = child {
        child.wait()?;
    }
    Ok(())
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn login() -> Login {
    Login { user: "postgres".into(), password: "plain".into(), database: "postgres".into() }
}

fn options() -> Options {
    Options { clients: 2, connect_limit: Duration::from_secs(5), ..Options::default() }
}

#[test]
fn the_workload_records_the_truth_through_a_crash() -> Result<()> {
    let mut plain = Plain::new("crash")?;
    workload::prepare(&login(), plain.addr())?;
    let gateways = vec![Gateway { name: "only".into(), addr: plain.addr() }];
    let running = Workload::start(options(), login(), gateways, 1);
    running.wait_acks_since(Instant::now(), limits::RECOVER)?;
    let killed = Instant::now();
    plain.kill()?;
    plain.start()?;
    running.wait_acks_since(Instant::now(), limits::RECOVER)?;
    let ledger = running.stop();
    ledger.judge(&plain.ids()?).check()?;
    ensure!(ledger.failed_logins > 0, "nobody noticed the crash");
    let gap = ledger.longest_gap(killed, Instant::now());
    ensure!(gap > Duration::from_millis(20), "no gap: {gap:?}");

    sql_through(&login(), plain.addr(), &format!("DELETE FROM {TABLE} WHERE id % 2 = 0"))?;
    let judgement = ledger.judge(&plain.ids()?);
    ensure!(!judgement.missing.is_empty() && judgement.check().is_err(), "{judgement}");
    Ok(())
}

#[test]
fn the_workload_leaves_a_silent_gateway() -> Result<()> {
    let plain = Plain::new("silent")?;
    workload::prepare(&login(), plain.addr())?;
    let cables = [Cable::new(plain.addr())?, Cable::new(plain.addr())?];
    let gateway = |i: usize| Gateway { name: format!("g{i}"), addr: cables[i].addr() };
    let one = Options { clients: 1, ..options() };
    let running = Workload::start(one, login(), vec![gateway(0), gateway(1)], 1);
    running.wait_acks_since(Instant::now(), limits::RECOVER)?;
    let cut = Instant::now();
    cables[0].set(Mode::CUT);
    running.wait_acks_since(cut + limits::STATEMENT_LIMIT, limits::RECOVER)?;
    let ledger = running.stop();
    let gap = ledger.longest_gap(cut, Instant::now());
    ensure!(gap >= limits::STATEMENT_LIMIT, "{gap:?}");
    ensure!(gap < limits::STATEMENT_LIMIT * 3, "no write was acknowledged for {gap:?}");
    ensure!(ledger.acked().last().is_some_and(|a| a.gateway == "g1"), "it never moved on");
    ledger.judge(&plain.ids()?).check()
}
