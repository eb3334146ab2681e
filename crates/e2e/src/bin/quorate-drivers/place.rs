//! What every driver is told: where the gateways are, whom to trust, how to move the writer.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use quorate_e2e::binary::{Binary, Ports};
use quorate_e2e::{Cluster, local, postgres, workload};

/// A cluster, as an application sees it.
pub struct Place<'a> {
    pub cluster: &'a Cluster,
    /// What `quorate ca` prints.
    ca: PathBuf,
    /// What it prints in another cluster.
    other_ca: PathBuf,
    binary: Binary,
}

impl<'a> Place<'a> {
    pub fn new(cluster: &'a Cluster) -> Result<Self> {
        let binary = Binary::find()?;
        let dir = cluster.dir();
        let (ca, other_ca) = (dir.join("ca.pem"), dir.join("other-ca.pem"));
        std::fs::write(&ca, authority(&binary, cluster.nodes()[0].dir())?)?;
        // It is never started: no one is asked at these ports.
        let ports = Ports { link: 1, gateway: 2, web: 3 };
        let other = dir.join("other");
        binary.init(&other, "other", ports, &dir.join("password"))?;
        std::fs::write(&other_ca, authority(&binary, &other)?)?;
        Ok(Self { cluster, ca, other_ca, binary })
    }

    /// A program that knows all of this from its environment: libpq's variables lead to all
    /// gateways with `sslmode=verify-full`, the others are ours.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let nodes = self.cluster.nodes();
        let each = |f: &dyn Fn(&quorate_e2e::cluster::Node) -> String| {
            nodes.iter().map(f).collect::<Vec<_>>().join(",")
        };
        let login = self.cluster.login();
        let mut command = Command::new(program);
        command.env("PGHOST", each(&|n| n.gateway().ip().to_string()));
        command.env("PGPORT", each(&|n| n.gateway().port().to_string()));
        command.env("PGUSER", &login.user).env("PGPASSWORD", &login.password);
        command.env("PGDATABASE", &login.database).env("PGCONNECT_TIMEOUT", "20");
        command.env("PGSSLMODE", "verify-full").env("PGSSLROOTCERT", &self.ca);
        command.env("QUORATE_OTHER_CA", &self.other_ca);
        command.env("QUORATE_SOCKETS", each(&|n| n.socket_dir().display().to_string()));
        command.env("QUORATE_BIN", self.binary.path()).env("QUORATE_DIR", nodes[0].dir());
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    /// One of PostgreSQL's own programs.
    pub fn program(&self, name: &str) -> Result<Command> {
        Ok(self.command(postgres::bin_dir()?.join(name)))
    }

    /// The authority that did not sign these gateways' certificates.
    pub fn other_ca(&self) -> &Path {
        &self.other_ca
    }

    /// Whether a statement with this mark runs on any server.
    pub fn runs(&self, mark: &str) -> bool {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'
             AND query LIKE '%{mark}%' AND pid <> pg_backend_pid()"
        );
        let runs = |n: &quorate_e2e::cluster::Node| {
            local::one(&n.socket_dir(), &sql).is_ok_and(|count| count != "0")
        };
        self.cluster.nodes().iter().any(runs)
    }

    /// Two new databases, as connection strings: one with the writer, one through its gateway.
    pub fn suite(&self) -> Result<(String, String)> {
        let writer = self.cluster.wait_writer()?;
        let node = self.cluster.node(&writer)?;
        let login = self.cluster.login();
        for name in ["suite_server", "suite_gateway"] {
            workload::sql_through(login, node.gateway(), &format!("CREATE DATABASE {name}"))?;
        }
        let who = format!("user={} password={}", login.user, login.password);
        let server = format!(
            "host={} port=5432 sslmode=disable dbname=suite_server {who}",
            node.socket_dir().display()
        );
        let gateway =
            format!("host=127.0.0.1 port={} dbname=suite_gateway {who}", node.gateway().port());
        Ok((server, gateway))
    }
}

fn authority(binary: &Binary, dir: &Path) -> Result<Vec<u8>> {
    let output = Command::new(binary.path()).args(["ca", "--dir"]).arg(dir).output();
    let output = output.context("cannot run `quorate ca`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
