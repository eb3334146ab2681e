//! Consumers of decoded changes, of a real cluster: they learn of nothing that a failover may lose.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use quorate_e2e::process::signal;
use quorate_e2e::wire::Session;
use quorate_e2e::{Cluster, Scenario, limits, postgres};
use rustix::process::Signal;

/// Long enough for a commit to arrive many times over.
const NOT_COMING: Duration = Duration::from_secs(3);

fn tool(name: &str, port: u16) -> Result<Command> {
    let mut tool = postgres::program(name)?;
    tool.env("PGPASSWORD", "end-to-end");
    tool.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()]);
    Ok(tool)
}

/// A consumer that runs until it is dropped.
struct Consumer(Child, std::path::PathBuf);

impl Consumer {
    fn start(cluster: &Cluster, node: &str, slot: &str) -> Result<Self> {
        let port = cluster.node(node)?.gateway().port();
        let at = ["-d", "postgres", "-S", slot];
        let made = tool("pg_recvlogical", port)?.args(at).arg("--create-slot").status()?;
        ensure!(made.success(), "the slot: {made}");
        let file = cluster.dir().join(format!("{slot}.out"));
        let out = std::fs::File::create(&file)?;
        let mut start = tool("pg_recvlogical", port)?;
        start.args(at).args(["--start", "-n", "-s", "1", "-f", "-"]);
        let child = start.stdout(out.try_clone()?).stderr(Stdio::from(out)).spawn()?;
        Ok(Self(child, file))
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.1).unwrap_or_default()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn consumers_hear_of_no_commit_before_a_standby_holds_it() -> Result<()> {
    let _scenario = Scenario::new("decoded changes while the only standby is frozen");
    let mut cluster = Cluster::of(2).start()?;
    let writer = cluster.wait_writer()?;
    let replica = cluster.others(&writer).swap_remove(0);
    cluster.apply(&writer, "min_copies = 2\n")?;
    let door = cluster.gateways(&[&writer])[0].addr;
    let mut session = Session::open(door, cluster.login())?;
    session.simple("CREATE TABLE heard (word text)")?.ok()?;
    // Through both nodes' gateways.
    let here = Consumer::start(&cluster, &writer, "here")?;
    let there = Consumer::start(&cluster, &replica, "there")?;
    let hear = |word: &str| {
        cluster.wait_until(limits::RECOVER, "consumers hear of it", || {
            [&here, &there].iter().all(|c| c.said().contains(word)).then_some(())
        })
    };
    session.simple("INSERT INTO heard VALUES ('held')")?.ok()?;
    hear("held")?;
    // Not the whole server: one that is frozen is found out, and started again.
    let receiver = cluster.walreceiver(&replica)?;
    signal(receiver, Signal::STOP);
    let commit = std::thread::spawn(move || -> Result<()> {
        session.simple("INSERT INTO heard VALUES ('alone')")?.ok().map(drop)
    });
    std::thread::sleep(NOT_COMING);
    for consumer in [&here, &there] {
        let said = consumer.said();
        ensure!(!said.contains("alone"), "heard of a commit that no standby holds: {said}");
    }
    ensure!(receiver == cluster.walreceiver(&replica)?, "another one took its place");
    signal(receiver, Signal::CONT);
    hear("alone")?;
    commit.join().map_err(|_| anyhow::anyhow!("the session panicked"))??;
    // Where the writer's own copy is enough for its clients, it is for consumers.
    cluster.apply(&writer, "timing = \"async\"\n")?;
    cluster.wait_healthy()?;
    cluster.stop_postgres(&replica)?;
    let mut session = Session::open(door, cluster.login())?;
    session.simple("INSERT INTO heard VALUES ('by one')")?.ok()?;
    hear("by one")?;
    cluster.cont_postgres(&replica)?;
    // A change of writer ends them, with a word.
    cluster.kill_quorate(&writer)?;
    cluster.wait_until(limits::RECOVER, "the consumers are told", || {
        there.said().contains("replication connection ended").then_some(())
    })
}
