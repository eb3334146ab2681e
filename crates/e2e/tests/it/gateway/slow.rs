//! Transactions that take long, in the log and in the console of a real node.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::Session;
use quorate_e2e::{Cluster, Scenario, limits, postgres};

/// As a person asks the console.
fn psql(cluster: &Cluster, node: &str, sql: &str) -> Result<String> {
    let port = cluster.node(node)?.gateway().port().to_string();
    let mut psql = postgres::program("psql")?;
    psql.env("PGPASSWORD", "end-to-end").args(["-X", "-h", "127.0.0.1", "-p", &port]);
    psql.args(["-U", "postgres", "-d", "quorate", "-c", sql]).stdout(Stdio::piped());
    let done = psql.spawn()?.wait_with_output()?;
    ensure!(done.status.success(), "{sql}: {}", done.status);
    Ok(String::from_utf8(done.stdout)?)
}

#[test]
fn slow_transactions_are_told_without_their_text() -> Result<()> {
    let _scenario = Scenario::new("statements that take long, in log and console");
    let cluster = Cluster::of(1).start()?;
    let writer = cluster.wait_writer()?;
    let mut session = Session::open(cluster.node(&writer)?.gateway(), cluster.login())?;
    let slow = |settings: &str| -> Result<()> {
        cluster.apply(&writer, &format!("[gateway]\nslow_ms = 200\n{settings}")).map(drop)
    };
    slow("")?;
    let line = |what: &str| {
        let log = cluster.node(&writer)?.log();
        anyhow::Ok(log.lines().find(|l| l.contains(what)).map(str::to_owned))
    };
    // The document takes a moment to arrive.
    let found = cluster.wait_until(limits::RECOVER, "the log tells of it", || {
        session.simple("SELECT pg_sleep(0.3) AS private").ok()?;
        line("a slow transaction").ok()?
    })?;
    for part in ["database=postgres", "part=\"writer\"", "because=\"no_replica\""] {
        ensure!(found.contains(part), "no {part} in: {found}");
    }
    let ms = found.split(' ').find_map(|word| word.strip_prefix("ms="));
    ensure!(ms.and_then(|ms| ms.parse().ok()).is_some_and(|ms: f64| ms >= 300.0), "{found}");
    ensure!(line("private")?.is_none(), "the log tells a text: {:?}", line("private")?);
    slow("log_statements = true\n")?;
    let found = cluster.wait_until(limits::RECOVER, "the log tells the text", || {
        session.simple("SELECT pg_sleep(0.3) AS wanted").ok()?;
        line("AS wanted").ok()?
    })?;
    ensure!(found.contains("statement=\"SELECT pg_sleep(0.3) AS wanted\""), "{found}");
    let latency = psql(&cluster, &writer, "SHOW LATENCY")?;
    println!("{found}\n{latency}");
    let row =
        latency.lines().find(|l| l.contains("writer no_replica") && l.contains("transaction"));
    let max = row.and_then(|l| l.rsplit('|').next()).context("a row of the writer")?;
    ensure!(max.trim().parse::<f64>()? >= 300.0, "{latency}");
    Ok(())
}
