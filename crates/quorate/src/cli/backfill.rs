//! `quorate backfill`: a statement, portion by portion, at the pace that the copies' contracts allow.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_agent::view::ClusterStatus;
use quorate_core::NodeId;
use quorate_core::backfill::{PORTION_MAX, Throttle, used};
use quorate_core::words::seconds;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::{Global, reach};
use crate::config;
use crate::drill::encryption::Encryption;

/// Where the size of a portion stands in the statement.
const PORTION: &str = ":portion";
/// Where a gateway listens unless its node's file says otherwise.
const GATEWAY_PORT: u16 = 6432;
/// Pause between looks while a copy is too late.
const LOOK: Duration = Duration::from_millis(250);
/// Pause before a portion that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Portions in a row that may fail.
const TRIES_MAX: u32 = 10;

/// `quorate backfill`.
#[derive(Debug, Clone, clap::Args)]
pub struct BackfillArgs {
    /// The statement, which does at most `:portion` rows at a time and nothing twice, such as
    /// "UPDATE t SET b = a * 2 WHERE id IN (SELECT id FROM t WHERE b IS NULL LIMIT :portion)".
    pub sql: String,
    /// Where to connect, as libpq writes it: "host=… port=… user=… dbname=…". Default: the gateway
    /// of this node. The password comes from PGPASSWORD.
    #[arg(long, default_value = "")]
    pub dsn: String,
    /// Rows of the first portion; later ones take about a quarter of a second.
    #[arg(long, default_value_t = 1000)]
    pub first: u64,
    /// Most rows of a portion.
    #[arg(long, default_value_t = PORTION_MAX)]
    pub most: u64,
    /// Per cent of any copy's allowed lag at which it waits.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub share: u8,
}

/// What was done so far.
#[derive(Debug, Default)]
struct Done {
    rows: u64,
    portions: u64,
    waited: Duration,
}

/// Runs until a portion does nothing.
pub async fn backfill(global: &Global, args: BackfillArgs) -> Result<()> {
    if !args.sql.contains(PORTION) {
        bail!(
            "the statement must say {PORTION} where the number of rows belongs (LIMIT {PORTION})"
        );
    }
    let config = connection(global, &args.dsn)?;
    let mut throttle = Throttle::new(args.first, args.most, u64::from(args.share));
    let mut done = Done::default();
    let mut client: Option<Client> = None;
    let (begun, mut failed) = (Instant::now(), 0);
    loop {
        wait_for_copies(global, &mut throttle, &mut done).await?;
        let sql = args.sql.replace(PORTION, &throttle.portion().to_string());
        let since = Instant::now();
        let rows = match portion(&config, &mut client, &sql).await {
            Ok(rows) => rows,
            Err(error) => {
                failed += 1;
                client = None;
                if !global.json {
                    eprintln!("failed ({failed} of {TRIES_MAX}), tried again: {error:#}");
                }
                if failed >= TRIES_MAX || is_permanent(&error) {
                    progress(global, &done, &throttle, begun, true)?;
                    return Err(error.context(format!(
                        "stopped after {} rows; run it again to go on from there",
                        done.rows
                    )));
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        failed = 0;
        if rows == 0 {
            progress(global, &done, &throttle, begun, true)?;
            return Ok(());
        }
        done.rows += rows;
        done.portions += 1;
        throttle.took(since.elapsed());
        progress(global, &done, &throttle, begun, false)?;
    }
}

fn connection(global: &Global, dsn: &str) -> Result<Config> {
    let mut config: Config = dsn.parse().context("--dsn")?;
    if config.get_hosts().is_empty() {
        let port = config::Config::load(global.dir())?.file.listen.gateway.port();
        config.host("127.0.0.1").port(port);
    }
    if config.get_password().is_none()
        && let Ok(password) = std::env::var("PGPASSWORD")
    {
        config.password(password);
    }
    if config.get_user().is_none() {
        bail!("say who connects: --dsn \"user=… dbname=…\", and the password in PGPASSWORD");
    }
    config.application_name("quorate backfill");
    Ok(config)
}

/// Waits while any copy is too late for more.
async fn wait_for_copies(global: &Global, throttle: &mut Throttle, done: &mut Done) -> Result<()> {
    let since = Instant::now();
    let mut told = false;
    loop {
        let status: ClusterStatus = reach::get(global, "/api/status").await?;
        let tightest = tightest(&status);
        let waits = throttle.waits(tightest.as_ref().map_or(0, |(used, _)| *used));
        if !waits {
            done.waited += since.elapsed();
            return Ok(());
        }
        if let (false, false, Some((used, node))) = (told, global.json, tightest) {
            eprintln!("waits for {node}: {used} % of the lag that its contract allows");
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The copy that has used up most of its contract.
fn tightest(status: &ClusterStatus) -> Option<(u64, NodeId)> {
    let copies = status
        .nodes
        .iter()
        .filter_map(|(name, member)| Some((used(&member.contract, &member.lag?), *name)));
    copies.max()
}

/// A connection to the first host that answers.
async fn dial(config: &Config) -> Result<TcpStream> {
    let port = |i: usize| {
        let ports = config.get_ports();
        ports.get(i).or(ports.first()).copied().unwrap_or(GATEWAY_PORT)
    };
    let mut failed = anyhow::anyhow!("--dsn names no host that is reached by TCP");
    for (i, host) in config.get_hosts().iter().enumerate() {
        let Host::Tcp(name) = host else { continue };
        match TcpStream::connect((name.as_str(), port(i))).await {
            Ok(stream) => return Ok(stream),
            Err(e) => failed = anyhow::Error::from(e).context(format!("cannot reach {name}")),
        }
    }
    Err(failed)
}

/// Does one portion, and returns how many rows it touched.
async fn portion(config: &Config, client: &mut Option<Client>, sql: &str) -> Result<u64> {
    if client.as_ref().is_none_or(Client::is_closed) {
        let stream = dial(config).await?;
        let (new, connection) = config.connect_raw(stream, Encryption).await?;
        tokio::spawn(connection);
        *client = Some(new);
    }
    let Some(client) = client else { bail!("not connected") };
    let answers = client.simple_query(sql).await?;
    let rows = answers.iter().filter_map(|answer| match answer {
        SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
        _ => None,
    });
    Ok(rows.sum())
}

/// Whether trying again changes nothing: the statement itself is at fault.
fn is_permanent(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    // Classes: connections, rollbacks, resources, an operator's doing, the system.
    let passes = ["08", "40", "53", "55", "57", "58"];
    code.is_some_and(|code| {
        !passes.contains(&&code.code()[..2]) && *code != SqlState::READ_ONLY_SQL_TRANSACTION
    })
}

fn progress(
    global: &Global,
    done: &Done,
    throttle: &Throttle,
    begun: Instant,
    over: bool,
) -> Result<()> {
    let time = begun.elapsed();
    let rate = done.rows as f64 / time.as_secs_f64().max(0.001);
    if global.json {
        if over {
            let waited = done.waited.as_secs_f64();
            println!(
                "{}",
                json!({ "rows": done.rows, "portions": done.portions,
                    "seconds": time.as_secs_f64(), "waited_seconds": waited })
            );
        }
        return Ok(());
    }
    let line = format!(
        "{} rows in {} portions, {:.0} a second, {} of them at a time; waited {} of {}",
        done.rows,
        done.portions,
        rate,
        throttle.portion(),
        seconds(done.waited),
        seconds(time)
    );
    if over {
        println!("{line}");
    } else if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{line}");
        std::io::stderr().flush()?;
        // What follows begins a line of its own.
        if done.portions == 0 {
            eprintln!();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use quorate_core::status::Lag;

    use super::*;
    use crate::fixture::{good, node};

    #[test]
    fn the_copy_nearest_to_its_limit_sets_the_pace() {
        let mut status = good();
        assert_eq!(tightest(&status), None, "nothing is known of any");
        for (name, ms) in [("n2", 4000), ("n3", 100)] {
            let lag = Lag { replay_ms: ms, ..Lag::default() };
            status.nodes.get_mut(&node(name)).unwrap().lag = Some(lag);
        }
        assert_eq!(tightest(&status), Some((40, node("n2"))));
    }
}
