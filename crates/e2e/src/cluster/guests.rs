//! Nodes that come after the cluster was made, and servers that leave it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Cluster;
use super::build::free_port;
use crate::binary::Ports;
use crate::postgres;

impl Cluster {
    /// A token that admits one node, from this node.
    pub fn token(&self, from: &str) -> Result<String> {
        self.binary.token(&self.node(from)?.dir)
    }

    /// Where a node that joins as `name` keeps its files.
    pub fn guest_dir(&self, name: &str) -> std::path::PathBuf {
        self.dir.join(format!("joining-{name}"))
    }

    /// Joins as `name` through a node's link port; does not start it. Fails as the command does.
    pub fn join_as(&self, through: &str, token: &str, name: &str) -> Result<()> {
        let address = format!("127.0.0.1:{}", self.node(through)?.ports.link);
        let ports = Ports { link: free_port()?, gateway: free_port()?, web: free_port()? };
        self.binary.join(&address, token, &self.guest_dir(name), name, ports, false)
    }

    /// Starts the server of a node that left, without Quorate, runs SQL as its superuser, and stops
    /// it. Returns the last row's first column.
    pub fn by_itself(&self, name: &str, sql: &str) -> Result<String> {
        let data = self.node(name)?.data_dir();
        let run = self.dir.join(format!("alone-{name}"));
        std::fs::create_dir(&run)?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&run, open)?;
        let pg_ctl = |action: &[&str]| -> Result<()> {
            let mut command = postgres::program("pg_ctl")?;
            command.arg("-D").arg(&data).arg("-l").arg(run.join("log")).args(["-w"]).args(action);
            let status = command.status()?;
            let log = || std::fs::read_to_string(run.join("log")).unwrap_or_default();
            ensure!(status.success(), "pg_ctl {action:?} ended with {status}: {}", log());
            Ok(())
        };
        let options = format!("-c listen_addresses= -k {} -p 5432", run.display());
        pg_ctl(&["start", "-o", &options])?;
        let answer = ask(&run, sql);
        pg_ctl(&["stop", "-m", "fast"])?;
        answer
    }
}

fn ask(socket_dir: &Path, sql: &str) -> Result<String> {
    let mut psql = postgres::program("psql")?;
    psql.args([
        "-X",
        "-At",
        "-v",
        "ON_ERROR_STOP=1",
        "-U",
        "postgres",
        "-d",
        "postgres",
        "-c",
        sql,
    ]);
    psql.arg("-h").arg(socket_dir).stdout(std::process::Stdio::piped());
    psql.stderr(std::process::Stdio::piped());
    let output = psql.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "psql: {said}");
    let out = String::from_utf8_lossy(&output.stdout);
    Ok(out.lines().next_back().context("no row")?.to_owned())
}
