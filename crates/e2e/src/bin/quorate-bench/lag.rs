//! How right the lag figures are, beside what PostgreSQL itself tells of the same standby at the same
//! moment: the time of the last commit that it has replayed, by the clock of this one machine.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::process::usage;
use quorate_e2e::status::get;
use quorate_e2e::workload::sql_through;
use quorate_e2e::{Cluster, limits, local, postgres};
use serde_json::Value;

use crate::Build;
use crate::failover::start;
use crate::table::markdown;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    build: Build,
    /// Seconds of each part.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Transactions a second.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
}

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(37);

pub(crate) fn run(options: &Options) -> Result<()> {
    let cluster = start(&options.build, &options.build.binary()?)?;
    let writer = cluster.wait_healthy()?.writer.context("no writer")?;
    let standby = cluster.others(&writer).swap_remove(0);
    let gateway = cluster.node(&writer)?.gateway();
    sql_through(cluster.login(), gateway, "CREATE TABLE lag_load (at timestamptz)")?;
    let time = Duration::from_secs(options.seconds);
    let socket = cluster.node(&standby)?.socket_dir();
    let mut rows = Vec::new();
    for (what, late) in [("replays at once", false), ("replay stands still", true)] {
        let mut load = Load::start(&cluster, &writer, options.rate, time + Duration::from_secs(4))?;
        std::thread::sleep(Duration::from_secs(2));
        let cpu = |name: &str| -> Result<Duration> {
            Ok(usage(cluster.node(name)?.pid().context("it does not run")?)?.cpu)
        };
        let before = [cpu(&writer)?, cpu(&standby)?];
        let begun = Instant::now();
        if late {
            local::query(&socket, "SELECT pg_wal_replay_pause()")?;
        }
        let mut errors = Vec::new();
        while begun.elapsed() < time {
            errors.push(compare(&cluster, &writer, &standby, &socket)?);
            std::thread::sleep(LOOK);
        }
        let after = [cpu(&writer)?, cpu(&standby)?];
        if late {
            local::resume_replay(&socket)?;
        }
        load.end()?;
        errors.sort_by(f64::total_cmp);
        let at = |part: usize| errors[(errors.len() * part / 100).min(errors.len() - 1)];
        let share = |i: usize| (after[i] - before[i]).as_secs_f64() / time.as_secs_f64() * 100.0;
        let within = errors.iter().filter(|e| e.abs() <= 50.0).count() * 100 / errors.len();
        rows.push(vec![
            what.to_owned(),
            errors.len().to_string(),
            format!("{:.1} ms", at(50)),
            format!("{:.1} to {:.1} ms", at(1), at(99)),
            format!("{:.1} to {:.1} ms", errors[0], errors[errors.len() - 1]),
            format!("{within} %"),
            format!("{:.1} %, {:.1} %", share(0), share(1)),
        ]);
    }
    let head = [
        "standby",
        "looks",
        "too large by (half)",
        "98 of 100",
        "all",
        "within 50 ms",
        "processor of quorate (writer, standby)",
    ];
    println!("{} transactions a second\n\n{}", options.rate, markdown(&head, &rows));
    Ok(())
}

/// What Quorate says less what PostgreSQL says, in milliseconds. PostgreSQL is asked before and after:
/// its figure for the moment in between is the middle.
fn compare(cluster: &Cluster, writer: &str, standby: &str, socket: &Path) -> Result<f64> {
    let theirs = || -> Result<f64> {
        let sql = "SELECT extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) \
                   * 1000";
        Ok(local::one(socket, sql)?.parse()?)
    };
    let before = theirs()?;
    let status: Value = serde_json::from_str(&get(cluster.node(writer)?.web(), "/api/status")?)?;
    let after = theirs()?;
    let ours = status["nodes"][standby]["lag"]["replay_ms"].as_f64().context("no lag")?;
    Ok(ours - f64::midpoint(before, after))
}

/// pgbench beside the gateway, on the writer's own socket.
struct Load(Child);

impl Load {
    fn start(cluster: &Cluster, writer: &str, rate: u32, time: Duration) -> Result<Self> {
        let script = cluster.dir().join("lag.sql");
        std::fs::write(&script, "INSERT INTO lag_load VALUES (clock_timestamp());\n")?;
        let socket = cluster.node(writer)?.socket_dir();
        let mut command = postgres::program("pgbench")?;
        command.args(["-n", "-U", "postgres", "-h"]).arg(&socket).args(["-p", "5432"]);
        command.args(["-c", "16", "-j", "2", "-R", &rate.to_string(), "-f"]).arg(&script);
        command.args(["-T", &time.as_secs().to_string(), "postgres"]);
        Ok(Self(command.spawn().context("cannot run pgbench")?))
    }

    fn end(&mut self) -> Result<()> {
        let deadline = Instant::now() + limits::RECOVER;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                ensure!(status.success(), "pgbench ended with {status}");
                return Ok(());
            }
            std::thread::sleep(limits::POLL);
        }
        self.0.kill()?;
        anyhow::bail!("pgbench did not end")
    }
}
