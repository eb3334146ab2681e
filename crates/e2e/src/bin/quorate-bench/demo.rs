//! From `quorate demo` to the first row written.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_e2e::binary::Binary;
use quorate_e2e::local;
use rustix::process::{Pid, Signal, kill_process};

use crate::table::{markdown, median, seconds};

const LIMIT: Duration = Duration::from_secs(120);

/// Measures so many times, and prints a line.
pub(crate) fn run(binary: &Binary, bin_dir: Option<&Path>, runs: usize) -> Result<()> {
    let times = (0..runs).map(|_| once(binary, bin_dir)).collect::<Result<Vec<_>>>()?;
    let worst = times.iter().copied().max().unwrap_or_default();
    let row = vec![runs.to_string(), seconds(median(&times)), seconds(worst)];
    println!("{}", markdown(&["`quorate demo` to first row: runs", "median", "worst"], &[row]));
    Ok(())
}

/// Ends the demo as Ctrl-C does, so that it stops its own processes.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::INT);
        let _ = self.0.wait();
    }
}

fn once(binary: &Binary, bin_dir: Option<&Path>) -> Result<Duration> {
    let begun = Instant::now();
    let mut command = Command::new(binary.path());
    command.arg("demo").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(dir) = bin_dir {
        command.arg("--postgres-bin").arg(dir);
    }
    let mut demo = Demo(command.spawn().context("cannot run the demo")?);
    let address = address(&mut demo.0)?;
    let config: tokio_postgres::Config = address.parse().context(address.clone())?;
    let sql = "CREATE TABLE first (id int); INSERT INTO first VALUES (1)";
    loop {
        match local::run(&config, sql, Duration::from_secs(2)) {
            Ok(_) => return Ok(begun.elapsed()),
            Err(error) if begun.elapsed() > LIMIT => return Err(error.context(address)),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// How to connect, from the first `psql` line that the demo prints.
fn address(demo: &mut Child) -> Result<String> {
    let out = BufReader::new(demo.stdout.take().context("no output")?);
    let (found, wait) = mpsc::channel();
    std::thread::spawn(move || {
        // Reads on to the end, so that the demo never blocks on a full pipe.
        for line in out.lines().map_while(Result::ok) {
            if let Some(address) = address_in(&line) {
                let _ = found.send(address);
            }
        }
    });
    match wait.recv_timeout(LIMIT) {
        Ok(address) => Ok(address),
        Err(_) => bail!("the demo printed no psql line within {LIMIT:?}"),
    }
}

/// The settings in `PGPASSWORD=… psql -h … -p … -U …`, as a connection string.
fn address_in(line: &str) -> Option<String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let psql = words.iter().position(|w| *w == "psql")?;
    let password = words[..psql].last()?.strip_prefix("PGPASSWORD=")?;
    let option = |name| words[psql..].windows(2).find(|w| w[0] == name).map(|w| w[1]);
    let (host, port, user) = (option("-h")?, option("-p")?, option("-U")?);
    Some(format!("host={host} port={port} user={user} password={password} dbname=postgres"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_address_in_a_line() {
        let line = "  PGPASSWORD=secret psql -h 127.0.0.1 -p 7432 -U postgres";
        let address = address_in(line).unwrap();
        assert_eq!(
            address,
            "host=127.0.0.1 port=7432 user=postgres password=secret dbname=postgres"
        );
        assert!(address_in("nothing here").is_none());
    }
}
