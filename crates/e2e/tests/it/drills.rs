//! Drills: what is rehearsed happens, is measured, and is put back.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use quorate_e2e::{Cluster, Scenario, limits, local};
use serde_json::Value;

#[test]
fn a_lost_host_is_rehearsed() -> Result<()> {
    let scenario = Scenario::new(
        "the loss of the writer's host is rehearsed from that very host: another node takes over, \
         nothing is lost, and everything is put back",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.context("no writer")?;
    let page = cluster.dir().join("drill.html");
    let page_name = page.to_str().context("a path of /tmp is text")?;
    let report = cluster.command(&writer, &["drill", "host-loss", "--yes", "--html", page_name])?;
    let record = &report["record"];
    scenario.step(&record["sentence"]);
    ensure!(record["outcome"] == "passed", "{record}");
    let measures = &record["measures"];
    ensure!(measures["lost"] == 0 && measures["denied"] == 0 && measures["stale"] == 0, "{record}");
    ensure!(measures["acknowledged"].as_u64() > Some(50), "hardly a client wrote: {record}");
    ensure!(measures["detection_ms"].as_u64() > Some(200), "nothing was detected: {record}");
    let text = std::fs::read_to_string(page)?;
    ensure!(text.contains("<svg") && text.contains("lose n1"), "the page lacks its picture");
    ensure!(
        !text.contains("src=") && !text.contains("href="),
        "the page asks others for something"
    );
    as_before(&cluster, &writer)?;
    let past = cluster.command(&writer, &["drill", "list"])?;
    ensure!(past["past"][0]["id"] == record["id"] && past["under_way"].is_null(), "{past}");
    Ok(())
}

#[test]
fn a_drill_is_aborted() -> Result<()> {
    let scenario = Scenario::new(
        "a drill cuts the writer off and is aborted meanwhile: it ends at once, everything is put \
         back, and while it lasts no other drill begins",
    );
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.context("no writer")?;
    let other_node = cluster.others(&writer).swap_remove(0);
    let refused = request(&cluster, &writer, "/api/drill/fault", r#"{"fault":"isolate"}"#)?;
    ensure!(refused.contains("no drill is under way"), "{refused}");
    let drill = ["drill", "partition", "--yes", "--no-html"];
    let ended = std::thread::scope(|scope| -> Result<_> {
        let drilling = scope.spawn(|| cluster.command(&writer, &drill));
        let begun = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^drill_canary_'";
        let home = cluster.node(&writer)?;
        cluster.wait_until(limits::RECOVER, "the drill's clients have a role", || {
            (local::one(&home.socket_dir(), begun).ok()? == "1").then_some(())
        })?;
        let other = cluster.command(&writer, &["drill", "switchover", "--yes", "--no-html"]);
        let why = format!("{:#}", other.err().context("two drills at once")?);
        ensure!(why.contains("drill already") || why.contains("cannot be done now"), "{why}");
        cluster.wait_until(limits::RECOVER, "another term begins", || {
            (cluster.status_of(&other_node).ok()?.term > 1).then_some(())
        })?;
        cluster.command(&other_node, &["drill", "abort"])?;
        Ok(drilling.join())
    })?;
    let ended = ended.map_err(|_| anyhow::anyhow!("the drill's command panicked"))?;
    let why = format!("{:#}", ended.err().context("an aborted drill succeeded")?);
    scenario.step(&why);
    ensure!(why.contains("aborted"), "{why}");
    as_before(&cluster, &writer)?;
    let past = cluster.command(&writer, &["drill", "list"])?;
    ensure!(past["past"][0]["outcome"] == "aborted", "{past}");
    ensure!(past["past"][0]["measures"]["lost"] == 0, "{past}");
    Ok(())
}

/// The same node writes, every other follows, and nothing of the drill's is left.
fn as_before(cluster: &Cluster, writer: &str) -> Result<()> {
    let healthy = cluster.wait_healthy()?;
    ensure!(healthy.writer.as_deref() == Some(writer), "{:?} writes", healthy.writer);
    let left = "SELECT (SELECT count(*) FROM pg_roles WHERE rolname ~ '^drill_canary_') \
                + (SELECT count(*) FROM pg_namespace WHERE nspname = 'drill_canary') \
                + (SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'drill_canary')";
    let left = local::one(&cluster.node(writer)?.socket_dir(), left)?;
    ensure!(left == "0", "{left} objects of the drill are left");
    Ok(())
}

/// What a node answers to a request at its control socket.
fn request(cluster: &Cluster, node: &str, path: &str, body: &str) -> Result<String> {
    let mut socket = UnixStream::connect(cluster.node(node)?.dir().join("control.sock"))?;
    socket.set_read_timeout(Some(limits::RECOVER))?;
    write!(
        socket,
        "POST {path} HTTP/1.1\r\nHost: quorate\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
    let value: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
    Ok(value["error"].as_str().unwrap_or_default().to_owned())
}
