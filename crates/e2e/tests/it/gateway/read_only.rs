//! The port that only reads, of a real cluster.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::{Mode, Session};
use quorate_e2e::{Cluster, Scenario, limits, postgres};

/// Whether libpq, given both ports, takes this one for what it is asked to find.
fn finds(ports: [SocketAddr; 2], wanted: &str) -> Result<String> {
    let [normal, read_only] = ports.map(|at| at.port().to_string());
    let target = format!(
        "host=127.0.0.1,127.0.0.1 port={normal},{read_only} user=postgres dbname=postgres \
         password=end-to-end target_session_attrs={wanted}"
    );
    let mut psql = postgres::program("psql")?;
    let script = "\\echo :PORT";
    let done =
        psql.args(["-X", "-A", "-t", "-c", script, &target]).stdout(std::process::Stdio::piped());
    let done = done.spawn()?.wait_with_output()?;
    ensure!(done.status.success(), "{wanted}: {:?}", done.status);
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

#[test]
fn a_port_that_only_reads() -> Result<()> {
    let _scenario = Scenario::new("clients of the read-only port");
    let cluster = Cluster::of(2).read_only_ports().start()?;
    let writer = cluster.wait_writer()?;
    let replica = cluster.others(&writer).swap_remove(0);
    let read_only = cluster.node(&replica)?.read_only().context("a port that only reads")?;
    let mut rw = Session::open(cluster.gateways(&[&writer])[0].addr, cluster.login())?;
    rw.simple(
        "CREATE TABLE seen (id int); CREATE VIEW place AS SELECT pg_is_in_recovery() AS standby",
    )?
    .ok()?;
    let mut ro = Session::open(read_only, cluster.login()).context("a first login")?;
    cluster.wait_until(limits::RECOVER, "the replica has the view", || {
        ro.simple("SELECT standby FROM place").ok()?.ok().ok()
    })?;
    for mode in Mode::ALL {
        // One that cannot prove what it shows leaves its answers to the writer.
        cluster.wait_until(limits::RECOVER, "the replica answers", || {
            let place = ro.run(mode, "SELECT standby FROM place").ok()?.ok().ok()?;
            (place.value().as_deref() == Some("t")).then_some(())
        })?;
        for sql in ["INSERT INTO seen VALUES (1)", "CREATE TABLE other (id int)"] {
            let code = ro.run(mode, sql)?.code();
            ensure!(code == "25006", "{mode:?}: {sql}: {code:?}");
        }
    }
    for sql in ["SET default_transaction_read_only = off", "RESET ALL", "DISCARD ALL"] {
        ro.simple(sql)?.ok()?;
        let code = ro.simple("INSERT INTO seen VALUES (1)")?.code();
        ensure!(code == "25006", "after {sql}: {code:?}");
    }
    // libpq finds each by what it is asked for.
    let normal = cluster.gateways(&[&replica])[0].addr;
    for (wanted, at) in [
        ("any", normal),
        ("read-write", normal),
        ("primary", normal),
        ("read-only", read_only),
        ("standby", read_only),
        ("prefer-standby", read_only),
    ] {
        let found = finds([normal, read_only], wanted)?;
        ensure!(found == at.port().to_string(), "{wanted} found {found}");
    }
    Ok(())
}
