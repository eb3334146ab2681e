//! What an operator does on purpose, under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::workload::{Crowd, Options};
use quorate_e2e::{Cluster, Scenario, limits, local, process};
use rustix::process::Signal;

use crate::common::{flows, patient, settle, standbys, wait_pending};

#[test]
fn switchover_there_and_back() -> Result<()> {
    let scenario = Scenario::new(
        "a planned hand-over under load, and back: no write fails for sure, and the pause is short",
    );
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(Options { clients: 2, ..patient() }, &[]);
    let first = cluster.wait_healthy()?.writer.unwrap_or_default();
    let second = cluster.others(&first).swap_remove(0);
    for target in [&second, &first] {
        flows(&cluster, &workload)?;
        cluster.wait_healthy()?;
        let begun = Instant::now();
        cluster.command_until_done(&first, &["switchover", "--to", target])?;
        ensure!(cluster.wait_writer()? == *target, "{target} does not write");
        flows(&cluster, &workload)?;
        let gap = workload.snapshot().longest_gap(begun, Instant::now());
        scenario.step(format!("{target} writes; longest gap {gap:?}"));
        ensure!(gap < Duration::from_secs(5), "no write was acknowledged for {gap:?}");
    }
    settle(&scenario, &cluster, workload)
}

#[test]
fn switchover_that_is_given_up() -> Result<()> {
    let scenario = Scenario::new(
        "a switchover to a standby that does not catch up is given up: clients are let in again, the \
         writer stays, and the next switchover works",
    );
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let before = cluster.wait_healthy()?;
    let writer = before.writer.clone().unwrap_or_default();
    let target = cluster.others(&writer).swap_remove(0);
    let receiver = [cluster.walreceiver(&target)?];
    process::signal_all(&receiver, Signal::STOP);
    let given_up = cluster.command(&writer, &["switchover", "--to", &target]);
    let given_up = format!("{:#}", given_up.err().context("it took over without the log")?);
    ensure!(given_up.contains("did not catch up"), "{given_up}");
    process::signal_all(&receiver, Signal::CONT);
    flows(&cluster, &workload)?;
    // Long enough for whatever the attempt left behind to do harm.
    let since = Instant::now();
    cluster.wait_until(Duration::from_secs(20), "4 s passed", || {
        (since.elapsed() > Duration::from_secs(4)).then_some(())
    })?;
    flows(&cluster, &workload)?;
    let after = cluster.wait_healthy()?;
    ensure!(after.term == before.term, "term {} became {}", before.term, after.term);
    let late = workload.snapshot().longest_gap(since, Instant::now());
    ensure!(late < Duration::from_secs(1), "no write was acknowledged for {late:?}");
    cluster.command_until_done(&writer, &["switchover", "--to", &target])?;
    ensure!(cluster.wait_writer()? == target, "{target} does not write");
    settle(&scenario, &cluster, workload)
}

#[test]
fn standbys_with_less_than_the_writer() -> Result<()> {
    let scenario = Scenario::new(
        "one node alone was restarted with more connections and becomes the writer: replay pauses on \
         the others, and they restart with as much by themselves",
    );
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let more = cluster.others(&writer).swap_remove(0);
    cluster.apply(&writer, "[postgresql]\nmax_connections = \"150\"\n")?;
    cluster.command(&writer, &["restart", &more]).or_else(|e| cluster.explain(e))?;
    cluster.wait_healthy()?;
    cluster.command_until_done(&writer, &["switchover", "--to", &more])?;
    for name in cluster.others(&more) {
        let socket = cluster.node(&name)?.socket_dir();
        cluster.wait_until(limits::REJOIN, &format!("{name} has as much"), || {
            (local::one(&socket, "SHOW max_connections").ok()? == "150").then_some(())
        })?;
    }
    settle(&scenario, &cluster, workload)
}

#[test]
fn applications_that_take_every_connection_depose_nobody() -> Result<()> {
    let scenario = Scenario::new(
        "applications hold every connection of the writer, and Quorate loses its own: the writer stays",
    );
    let cluster = Cluster::of(3).start()?;
    let before = cluster.wait_healthy()?;
    let writer = before.writer.clone().unwrap_or_default();
    let mut crowd = Crowd::gather(cluster.login(), &cluster.node(&writer)?.socket_dir())?;
    let alone = crowd.crowd_out("quorate agent")?;
    scenario.step(format!("{} sessions are open; Quorate has none: {alone}", crowd.size()));
    let since = Instant::now();
    cluster.wait_until(Duration::from_secs(30), "8 s passed", || {
        (since.elapsed() > Duration::from_secs(8)).then_some(())
    })?;
    let after = cluster.status_of(&writer)?;
    ensure!(after.term == before.term, "term {} became {}", before.term, after.term);
    drop(crowd);
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn read_only_by_default_keeps_no_writer_from_opening() -> Result<()> {
    let scenario = Scenario::new(
        "default_transaction_read_only = on for applications: authority moves all the same",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    cluster.apply(&writer, "[postgresql]\ndefault_transaction_read_only = \"on\"\n")?;
    let home = cluster.node(&writer)?.socket_dir();
    cluster.wait_until(limits::RECOVER, "applications only read", || {
        (local::one(&home, "SHOW default_transaction_read_only").ok()? == "on").then_some(())
    })?;
    cluster.kill_postmaster(&writer)?;
    let new = cluster.wait_other_writer(&writer)?;
    scenario.step(format!("{new} writes"));
    cluster.apply(&new, "").or_else(|e| cluster.explain(e))?;
    let workload = cluster.workload(patient(), &[]);
    cluster.wait_healthy()?;
    flows(&cluster, &workload)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn rolling_restart() -> Result<()> {
    let scenario = Scenario::new("every PostgreSQL is restarted, one after the other, under load");
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let before = postmasters(&cluster)?;
    cluster.command_until_done(&writer, &["restart", "--rolling"])?;
    cluster.wait_healthy()?;
    let after = postmasters(&cluster)?;
    let same: Vec<_> = before.iter().filter(|pid| after.contains(pid)).collect();
    ensure!(same.is_empty(), "not restarted: {same:?} of {before:?}");
    settle(&scenario, &cluster, workload)
}

fn postmasters(cluster: &Cluster) -> Result<Vec<i32>> {
    let pid = |node: &quorate_e2e::cluster::Node| process::postmaster(&node.data_dir());
    cluster.data_nodes_up().map(|n| Ok(pid(n)?.as_raw_nonzero().get())).collect()
}

#[test]
fn paused_cluster_fails_over_only_after_resume() -> Result<()> {
    let scenario = Scenario::new(
        "automation is paused: a lost writer is not replaced until automation is resumed",
    );
    let mut cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let before = cluster.wait_healthy()?;
    let writer = before.writer.clone().unwrap_or_default();
    let other = standbys(&cluster)?.swap_remove(0);
    cluster.command(&other, &["pause"])?;
    cluster.wait_until(limits::RECOVER, "every node knows of the pause", || {
        cluster
            .nodes()
            .iter()
            .all(|n| cluster.status_of(n.name()).is_ok_and(|s| s.paused))
            .then_some(())
    })?;
    cluster.host_gone(&writer)?;
    // Three times as long as a failover may take.
    let lost = Instant::now();
    cluster.wait_until(Duration::from_secs(20), "10 s passed", || {
        (lost.elapsed() > Duration::from_secs(10)).then_some(())
    })?;
    let term = cluster.status_of(&other)?.term;
    ensure!(term == before.term, "a failover to term {term} although paused");
    cluster.command(&other, &["resume"])?;
    cluster.wait_other_writer(&writer)?;
    flows(&cluster, &workload)?;
    cluster.restart(&writer)?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn config_change_reaches_every_node() -> Result<()> {
    let scenario = Scenario::new(
        "the cluster document is changed under load: settings reach every server, copies = 3 becomes \
         the commit rule, and a nonsensical document is refused",
    );
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let before = cluster.wait_healthy()?;
    let writer = before.writer.clone().unwrap_or_default();
    let apply = |text| cluster.apply(&writer, text);
    let refusal = apply("copies = 99\n").err().context("copies = 99 was taken")?;
    scenario.step(format!("refused: {refusal:#}"));
    ensure!(cluster.status_of(&writer)?.document_version == before.document_version);
    apply("copies = 3\n\n[postgresql]\nwork_mem = \"9MB\"\n").or_else(|e| cluster.explain(e))?;
    for node in cluster.data_nodes_up() {
        cluster.wait_until(limits::RECOVER, "work_mem is 9MB everywhere", || {
            (local::one(&node.socket_dir(), "SHOW work_mem").ok()? == "9MB").then_some(())
        })?;
    }
    cluster.wait_until(limits::RECOVER, "three copies are the commit rule", || {
        let status = cluster.status()?;
        let [rule] = &status.authority.rules[..] else { return None };
        rule.policy.to_string().contains('3').then_some(())
    })?;
    settle(&scenario, &cluster, workload)
}

#[test]
fn resources_are_raised_and_lowered() -> Result<()> {
    let scenario = Scenario::new(
        "max_connections is raised, lowered and taken out of the document, each time with a rolling \
         restart under load: no server fails to start, and every one runs with the value",
    );
    let cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    for (text, wanted) in [
        ("[postgresql]\nmax_connections = \"150\"\n", "150"),
        ("[postgresql]\nmax_connections = \"120\"\nmax_locks_per_transaction = \"70\"\n", "120"),
        ("", "100"),
    ] {
        let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
        cluster.apply(&writer, text).or_else(|e| cluster.explain(e))?;
        cluster.wait_until(limits::RECOVER, "the writer knows that a restart is due", || {
            let status = cluster.status_of(&writer).ok()?;
            let due = &status.word(&writer)?.server.as_ref()?.pending_restart;
            due.contains(&"max_connections".to_owned()).then_some(())
        })?;
        cluster.command_until_done(&writer, &["restart", "--rolling"])?;
        cluster.wait_healthy()?;
        for node in cluster.data_nodes_up() {
            let value = local::one(&node.socket_dir(), "SHOW max_connections")?;
            ensure!(value == wanted, "{} runs with {value}, not {wanted}", node.name());
        }
        flows(&cluster, &workload)?;
        scenario.step(format!("every server runs with max_connections = {wanted}"));
    }
    settle(&scenario, &cluster, workload)
}

#[test]
fn rebuilt_and_removed() -> Result<()> {
    let scenario = Scenario::new("a standby is copied anew, then taken out of the cluster");
    let mut cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let leaving = standbys(&cluster)?.swap_remove(1);
    let watch = cluster.watch();
    cluster.command(&writer, &["rebuild", &leaving, "--yes"]).or_else(|e| cluster.explain(e))?;
    cluster.wait_until(limits::RECOVER, "the standby copies", || {
        watch.saw(&leaving, "cloning").then_some(())
    })?;
    cluster.wait_healthy()?;
    cluster.command(&writer, &["remove", &leaving, "--yes"]).or_else(|e| cluster.explain(e))?;
    cluster.wait_until(limits::RECOVER, "the node is no member and no voter any more", || {
        let status = cluster.status_of(&writer).ok()?;
        let part = status.nodes.contains_key(&leaving) || status.voters.contains(&leaving);
        (!part).then_some(())
    })?;
    cluster.kill_quorate(&leaving)?;
    wait_pending(&cluster, "even-voters/", true)?;
    settle(&scenario, &cluster, workload)
}
