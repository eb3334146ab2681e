//! Drivers written in Rust, through the gateways of a cluster. Started by `cargo xtask drivers`, which
//! says in the environment where everything is.
//!
//! For each check a line is printed: `ok <name>` or `not ok <name> -- <why>`.

use std::future::Future;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::NoTls;

mod sqlx_driver;
mod tokio_postgres_driver;

/// How long things that are waited for may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Runs checks and prints what became of them.
#[derive(Default)]
struct Checks {
    failed: usize,
}

impl Checks {
    async fn check(&mut self, name: &str, body: impl Future<Output = Result<()>>) {
        match body.await {
            Ok(()) => println!("ok {name}"),
            Err(error) => {
                self.failed += 1;
                let why = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
                println!("not ok {name} -- {why}");
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut checks = Checks::default();
    match std::env::args().nth(1).as_deref() {
        Some("tokio-postgres") => tokio_postgres_driver::run(&mut checks).await?,
        Some("sqlx") => sqlx_driver::run(&mut checks).await?,
        other => bail!("which driver? tokio-postgres or sqlx, not {other:?}"),
    }
    ensure!(checks.failed == 0, "{} checks failed", checks.failed);
    Ok(())
}

/// What `quorate-drivers` says.
fn told(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set"))
}

fn ports() -> Result<Vec<u16>> {
    told("PGPORT")?.split(',').map(|port| Ok(port.parse()?)).collect()
}

/// Asks a server itself, past every gateway.
async fn direct(socket: &str, sql: &str) -> Result<String> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket).port(5432).user(told("PGUSER")?).password(told("PGPASSWORD")?);
    config.dbname(told("PGDATABASE")?);
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(connection);
    let row = client.query_one(sql, &[]).await;
    driver.abort();
    Ok(row?.get(0))
}

/// Waits until a statement with this mark runs on any server.
async fn runs(mark: &str) -> Result<()> {
    let sql = format!(
        "SELECT count(*)::text FROM pg_stat_activity WHERE state = 'active'
         AND query LIKE '%{mark}%' AND pid <> pg_backend_pid()"
    );
    let begun = Instant::now();
    while begun.elapsed() < WITHIN {
        for socket in told("QUORATE_SOCKETS")?.split(',') {
            if direct(socket, &sql).await? != "0" {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("waited {WITHIN:?} in vain until {mark} runs")
}

/// Moves the writer.
async fn switchover() -> Result<()> {
    let mut command = tokio::process::Command::new(told("QUORATE_BIN")?);
    command.args(["switchover", "--dir", &told("QUORATE_DIR")?]).stdin(Stdio::null());
    let output = command.output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(())
}
