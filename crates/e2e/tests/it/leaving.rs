//! Ways into a cluster that are barred, and ways out of its protection.

use anyhow::{Context, Result, ensure};
use quorate_e2e::workload::{TABLE, sql_through};
use quorate_e2e::{Cluster, Scenario, check, limits, local};

use crate::common::{flows, patient, settle, standbys};

#[test]
fn a_token_admits_one_node_and_a_name_belongs_to_one() -> Result<()> {
    let scenario = Scenario::new(
        "a token that was used, a name that is taken and a token of another cluster are refused, \
         each with its reason, and nothing is left behind",
    );
    let cluster = Cluster::of(1).start()?;
    let other = Cluster::of(1).start()?;
    let refused = |by: &Cluster, token: &str, name: &str, reason: &str| -> Result<()> {
        let said = by.join_as("n1", token, name).err().context(format!("{name} was let in"))?;
        let said = format!("{said:#}");
        ensure!(said.contains(reason), "{said}");
        ensure!(!by.guest_dir(name).exists(), "{name} left a directory");
        scenario.step(said.lines().next_back().unwrap_or_default());
        Ok(())
    };
    let token = cluster.token("n1")?;
    cluster.join_as("n1", &token, "n2")?;
    refused(&cluster, &token, "n3", "it was used before")?;
    let token = cluster.token("n1")?;
    refused(&cluster, &token, "n1", "has a node named n1 already")?;
    // A refusal does not use the token up.
    cluster.join_as("n1", &token, "n4")?;
    refused(&cluster, &other.token("n1")?, "n5", "does not name")?;
    ensure!(cluster.wait_writer()? == "n1");
    Ok(())
}

#[test]
fn a_replica_becomes_an_ordinary_database() -> Result<()> {
    let scenario = Scenario::new(
        "standalone: a standby leaves and is an ordinary database with all rows; the cluster goes on",
    );
    let mut cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    cluster.wait_healthy()?;
    let leaving = standbys(&cluster)?.swap_remove(1);
    let answer =
        cluster.command(&leaving, &["standalone", "--yes"]).or_else(|e| cluster.explain(e))?;
    scenario.step(answer["text"].as_str().unwrap_or_default());
    cluster.kill_quorate(&leaving)?;
    let sql = format!(
        "CREATE TABLE own (id int); INSERT INTO own VALUES (1); \
         SELECT (count(*) > 0)::text || pg_catalog.pg_is_in_recovery()::text FROM {TABLE}"
    );
    let found = cluster.by_itself(&leaving, &sql)?;
    ensure!(found == "truefalse", "it has rows and is no standby: {found}");
    flows(&cluster, &workload)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn the_last_of_three_starts_a_new_epoch() -> Result<()> {
    let scenario = Scenario::new(
        "two of three hosts are lost for good: the third decides nothing by itself; a person starts \
         a new epoch with it, every acknowledged row is there, and a new node joins",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let ledger = workload.stop();
    check::copies_equal(&cluster)?;
    let [survivor, other] = &standbys(&cluster)?[..] else { anyhow::bail!("not two standbys") };
    let term = cluster.status_of(survivor)?.term;
    for lost in [&writer, other] {
        cluster.host_gone(lost)?;
    }
    let running = cluster.command(survivor, &["recover", "--force-new-epoch", "--yes"]);
    let running = format!("{:#}", running.err().context("recovered while running")?);
    ensure!(running.contains("stop it first"), "{running}");
    let received = "SELECT pg_catalog.pg_last_wal_receive_lsn()";
    let end = local::one(&cluster.node(survivor)?.socket_dir(), received)?;
    cluster.kill_quorate(survivor)?;
    let answer = cluster.command(survivor, &["recover", "--force-new-epoch", "--yes"])?;
    scenario.step(format!("{survivor} starts over: {answer}"));
    let said = answer["log_end"].as_str().unwrap_or_default();
    ensure!(said.starts_with(&format!("{end} ")), "it said {said}, and its log ended at {end}");
    cluster.restart(survivor)?;
    ensure!(cluster.wait_writer_within(limits::START)? == *survivor);
    let now = cluster.status_of(survivor)?.term;
    ensure!(now >= term + 1000, "term {now} after {term}");
    ledger.judge(&check::ids(&cluster.node(survivor)?.socket_dir())?).check()?;
    let gateway = cluster.gateways(&[survivor]).swap_remove(0);
    let write = format!("INSERT INTO {TABLE} (id, client) VALUES (1, 0)");
    sql_through(cluster.login(), gateway.addr, &write)?;
    let token = cluster.token(survivor)?;
    cluster.join_as(survivor, &token, "n9")
}
