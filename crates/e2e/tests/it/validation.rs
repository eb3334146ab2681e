//! Queries that a new writer must answer: run by each one by itself, told when they fail, and over when
//! they pass.

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::Session;
use quorate_e2e::{Cluster, Scenario, limits};
use serde_json::Value;

use crate::common::{ask, flows, patient, settle, wait_alert};

/// A query on a table that only its role's search_path finds, and one by its full name.
const QUERIES: &str = "[validation.orders]\n\
     database = \"postgres\"\nrole = \"checker\"\nsql = \"SELECT count(*) = 2 FROM orders\"\n\
     [validation.stock]\n\
     database = \"postgres\"\nrole = \"checker\"\ntimeout_ms = 20000\n\
     sql = \"SELECT sum(pieces) >= 0 FROM shop.stock\"\n";

const TABLES: &str = "CREATE ROLE checker LOGIN PASSWORD 'c'; CREATE SCHEMA shop; \
     ALTER ROLE checker SET search_path = shop; \
     CREATE TABLE shop.orders (card text); INSERT INTO shop.orders VALUES ('4111 1111'), ('x'); \
     CREATE TABLE shop.stock (pieces int); INSERT INTO shop.stock VALUES (7); \
     GRANT USAGE ON SCHEMA shop TO checker; GRANT SELECT ON ALL TABLES IN SCHEMA shop TO checker";

/// Sentences of events of one kind in a term.
fn events(cluster: &Cluster, seen_by: &str, kind: &str, term: u64) -> Vec<String> {
    let all = ask(cluster, seen_by, "/api/events").unwrap_or_default();
    let all = all.as_array().cloned().unwrap_or_default();
    let of = all.iter().filter(|e| e["kind"] == kind && e["term"] == term);
    of.filter_map(|e| Some(e["because"]["sentence"].as_str()?.to_owned())).collect()
}

fn term(cluster: &Cluster, seen_by: &str) -> Result<u64> {
    let status = ask(cluster, seen_by, "/api/status").context("no status")?;
    status["term"].as_u64().context("no term")
}

/// The review's item, as `verdict: evidence`.
fn review(cluster: &Cluster, seen_by: &str) -> Result<String> {
    let items = ask(cluster, seen_by, "/api/review").context("no review")?;
    let item = items.as_array().into_iter().flatten().find(|i| i["id"] == "validation");
    let word = |key: &str| item.and_then(|i| i[key].as_str()).unwrap_or_default();
    Ok(format!("{}: {}", word("verdict"), word("evidence")))
}

/// Waits until both queries were run by the writer of the present term; what is told of those of a kind.
fn ran(cluster: &Cluster, seen_by: &str, kind: &str, times: usize) -> Result<Vec<String>> {
    let what = format!("{times} events {kind}");
    cluster.wait_until(limits::RECOVER, &what, || {
        let told = events(cluster, seen_by, kind, term(cluster, seen_by).ok()?);
        (told.len() == times).then_some(told)
    })
}

fn proved(cluster: &Cluster, seen_by: &str) -> Result<()> {
    let told = review(cluster, seen_by)?;
    let expected = format!("proved: orders and stock passed in term {}", term(cluster, seen_by)?);
    ensure!(told == expected, "{told}");
    Ok(())
}

#[test]
fn a_new_writer_is_asked_what_its_owners_asked_for() -> Result<()> {
    let scenario = Scenario::new(
        "queries of the document pass on the writer, and on the next one after a failover; a table is \
         dropped: the writer after that fails one, which is told until it is mended and run again",
    );
    let mut cluster = Cluster::of(3).start()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    let first = cluster.wait_writer()?;
    let third = cluster.others(&first).swap_remove(1);
    let told = review(&cluster, &third)?;
    ensure!(told.starts_with("unknown: no query is set"), "{told}");
    let mut session = Session::open(cluster.gateways(&[&third])[0].addr, cluster.login())?;
    session.simple(TABLES)?.ok()?;
    cluster.wait_healthy()?;

    let root = QUERIES.replace("\"checker\"", "\"postgres\"");
    let refused = cluster.apply(&first, &root).err().map(|e| format!("{e:#}"));
    ensure!(refused.as_ref().is_some_and(|e| e.contains("no superuser")), "{refused:?}");
    cluster.apply(&first, QUERIES)?;
    scenario.step("new queries are run at once");
    ran(&cluster, &third, "validation-passed", 2)?;
    proved(&cluster, &third)?;

    cluster.kill_quorate(&first)?;
    let second = cluster.wait_other_writer(&first)?;
    scenario.step(format!("{second} writes after a failover"));
    let told = ran(&cluster, &third, "validation-passed", 2)?;
    ensure!(told[0].contains(&format!("orders passed on {second} after ")), "{told:?}");
    proved(&cluster, &third)?;
    cluster.restart(&first)?;
    cluster.wait_healthy()?;

    // Nothing looks before the next writer does.
    let mut session = Session::open(cluster.gateways(&[&third])[0].addr, cluster.login())?;
    session.simple("DROP TABLE shop.stock")?.ok()?;
    session.simple("INSERT INTO shop.orders VALUES ('more')")?.ok()?;
    proved(&cluster, &third)?;
    cluster.wait_healthy()?;
    cluster.command_until_done(&third, &["switchover"])?;
    let told = ran(&cluster, &third, "validation-failed", 2)?;
    scenario.step(format!("after a switchover: {told:?}"));
    ensure!(told[0].ends_with("it is false"), "{told:?}");
    ensure!(told[1].ends_with("42P01: relation \"shop.stock\" does not exist"), "{told:?}");
    wait_alert(&cluster, &third, "validation-failed/orders", true)?;
    wait_alert(&cluster, &third, "validation-failed/stock", true)?;
    let told = review(&cluster, &third)?;
    ensure!(told.starts_with("refuted: orders: it is false (on "), "{told}");
    let status = ask(&cluster, &third, "/api/status").context("no status")?;
    let warned = status["warnings"].to_string();
    ensure!(warned.contains("quorate validate stock"), "{warned}");

    scenario.step("a person runs them: still wrong, then mended one by one");
    let wrong = cluster.command(&third, &["validate"]).err().map(|e| format!("{e:#}"));
    ensure!(wrong.as_ref().is_some_and(|e| e.contains("2 of 2 failed")), "{wrong:?}");
    session.simple("DELETE FROM shop.orders WHERE card = 'more'")?.ok()?;
    let answer = cluster.command(&third, &["validate", "orders"])?;
    ensure!(answer["ran"][0]["passed"] == Value::Bool(true), "{answer}");
    wait_alert(&cluster, &third, "validation-failed/orders", false)?;
    wait_alert(&cluster, &third, "validation-failed/stock", true)?;
    session
        .simple(
            "CREATE TABLE shop.stock AS SELECT 1 AS pieces; GRANT SELECT ON shop.stock TO checker",
        )?
        .ok()?;
    cluster.command(&third, &["validate"])?;
    wait_alert(&cluster, &third, "validation-failed/stock", false)?;
    proved(&cluster, &third)?;
    let unknown = cluster.command(&third, &["validate", "x"]).err().map(|e| format!("{e:#}"));
    ensure!(unknown.as_ref().is_some_and(|e| e.contains("there is no query x")), "{unknown:?}");

    let history = ask(&cluster, &third, "/api/events").context("no events")?.to_string();
    let logs: String = cluster.nodes().iter().map(|n| n.log()).collect();
    let card = "4111 1111";
    ensure!(!history.contains(card) && !logs.contains(card), "a row's value was told");
    settle(&scenario, &cluster, workload)
}
