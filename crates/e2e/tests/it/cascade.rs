//! A replica that gets the log from another replica.

use anyhow::{Context, Result, ensure};
use quorate_e2e::{Cluster, Scenario, limits, local};

use crate::common::{ask, flows, patient, settle};

/// The replicas that a node's server feeds.
fn fed(cluster: &Cluster, node: &str) -> Result<Vec<String>> {
    let sql = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' \
               AND application_name <> 'quorate' ORDER BY 1";
    let rows = local::query(&cluster.node(node)?.socket_dir(), sql)?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// Waits until a node gets its log from another one, and is up to date.
fn wait_fed(cluster: &Cluster, node: &str, by: &str) -> Result<()> {
    cluster.wait_until(limits::RECOVER, &format!("{by} feeds {node}"), || {
        let streams = fed(cluster, by).ok()?.iter().any(|n| n == node);
        let follows = cluster.status()?.doing(node) == "following";
        (streams && follows).then_some(())
    })
}

#[test]
fn a_replica_follows_another_one_and_the_writer_when_that_is_lost() -> Result<()> {
    let scenario = Scenario::new(
        "n4 gets the log from n3; n3 is lost, and n4 follows the writer; n3 returns, and n4 follows it \
         again; the writer is lost, and both follow the next one",
    );
    let mut cluster = Cluster::of(4).start()?;
    ensure!(cluster.wait_healthy()?.serving() == Some("n1"), "n1 does not write");
    let document = "[nodes.n2]\npriority = 200\n[nodes.n3]\nrole = \"read\"\n\
                    [nodes.n4]\nrole = \"reporting\"\nfollow = \"n3\"\n";
    cluster.apply("n1", document).or_else(|e| cluster.explain(e))?;
    let workload = cluster.workload(patient(), &["n1", "n2"]);
    wait_fed(&cluster, "n4", "n3")?;
    flows(&cluster, &workload)?;
    ensure!(!fed(&cluster, "n1")?.contains(&"n4".to_owned()), "the writer feeds n4, too");
    let told = ask(&cluster, "n2", "/api/status").context("no status")?["nodes"]["n4"].clone();
    ensure!(told["status"]["upstream"] == "n3", "{told}");
    // Its lag is that of both hops, and no contract is broken.
    ensure!(told["lag"]["replay_ms"].as_u64() < Some(5000), "{told}");
    ensure!(told["lag"]["broken_ms"].is_null(), "{told}");
    scenario.step(format!("n3 feeds n4: lag {}", told["lag"]));

    cluster.host_gone("n3")?;
    wait_fed(&cluster, "n4", "n1")?;
    flows(&cluster, &workload)?;
    scenario.step("n3 is lost: n1 feeds n4");
    cluster.restart("n3")?;
    wait_fed(&cluster, "n4", "n3")?;
    scenario.step("n3 is back, and feeds n4");

    cluster.wait_healthy()?;
    cluster.host_gone("n1")?;
    ensure!(cluster.wait_other_writer("n1")? == "n2", "n2 does not write");
    wait_fed(&cluster, "n4", "n3")?;
    flows(&cluster, &workload)?;
    scenario.step("n2 writes, n3 feeds n4");
    cluster.restart("n1")?;
    // What n4 has, it has by way of n3.
    cluster.wait_until(limits::RECOVER, "n4 is up to date", || {
        let told = ask(&cluster, "n2", "/api/status")?["nodes"]["n4"].clone();
        let late = told["lag"]["replay_ms"].as_u64()?;
        (told["status"]["upstream"] == "n3" && late < 2000).then_some(())
    })?;
    let circle = "[nodes.n3]\nrole = \"read\"\nfollow = \"n4\"\n\
                  [nodes.n4]\nrole = \"reporting\"\nfollow = \"n3\"\n";
    let refused = cluster.apply("n2", circle).unwrap_err().to_string();
    ensure!(refused.contains("from each other"), "{refused}");
    settle(&scenario, &cluster, workload)
}
