//! Queries of people, asked as roles of theirs.

use std::future::{pending, ready};
use std::time::{Duration, Instant};

use quorate_core::validation::{Finding, ValidationSpec};

use crate::harness::{Node, directory, node, until};

fn spec(sql: &str) -> ValidationSpec {
    ValidationSpec {
        database: "shop".to_owned(),
        role: "checker".to_owned(),
        sql: sql.to_owned(),
        timeout_ms: 2000,
    }
}

async fn shop() -> (tempfile::TempDir, Node) {
    let root = directory();
    let node = node(root.path(), "a").await;
    node.start().await;
    node.promote(2).await;
    for sql in [
        "CREATE DATABASE shop",
        "CREATE ROLE checker LOGIN; ALTER ROLE checker SET search_path = own, public",
        "CREATE ROLE boss LOGIN; GRANT postgres TO boss",
        "CREATE ROLE mute NOLOGIN",
    ] {
        node.sql(sql).await;
    }
    let client = connect(&node, "postgres").await;
    client
        .batch_execute(
            "CREATE SCHEMA own; CREATE TABLE own.orders (id int, word text); \
             INSERT INTO own.orders VALUES (1, 'secret-word'), (2, '22'); \
             CREATE TABLE own.hidden (id int); \
             GRANT USAGE ON SCHEMA own TO checker; GRANT SELECT ON own.orders TO checker; \
             GRANT INSERT ON own.orders TO checker; CREATE SEQUENCE own.seq; \
             GRANT ALL ON own.seq TO checker",
        )
        .await
        .unwrap();
    (root, node)
}

async fn connect(node: &Node, user: &str) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config.host_path(&node.options.run_dir).user(user).dbname("shop");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn refused(sqlstate: &str, message: Option<&str>) -> Finding {
    Finding::Refused { sqlstate: sqlstate.to_owned(), message: message.map(str::to_owned) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_asked_as_its_role_and_can_only_read() {
    let (_root, node) = shop().await;
    let ask = async |spec: ValidationSpec| node.admin.validate(&spec, pending()).await.unwrap();
    for (sql, finding) in [
        // Its role's search_path holds, and names that are written in full do anyway.
        ("SELECT count(*) = 2, 'more' FROM orders", Finding::True),
        ("WITH o AS (SELECT * FROM own.orders) SELECT count(*) = 3 FROM o", Finding::False),
        ("SELECT session_user = 'checker' AND current_user = 'checker'", Finding::True),
        ("SELECT current_setting('transaction_read_only') = 'on'", Finding::True),
        ("SELECT NULL::bool", Finding::Null),
        ("SELECT true WHERE false", Finding::NoRow),
        ("SELECT true FROM pg_class a, pg_class b, pg_class c", Finding::ManyRows),
        ("SELECT 1", Finding::NotBoolean("int4".to_owned())),
        ("SELECT id = $1 FROM orders", Finding::NoQuery),
        ("SELECT", Finding::NoQuery),
        ("SELECT true FROM gone", refused("42P01", Some("relation \"gone\" does not exist"))),
        (
            "SELECT true; SELECT true",
            refused("42601", Some("cannot insert multiple commands into a prepared statement")),
        ),
        (
            "SELECT true FROM own.hidden",
            refused("42501", Some("permission denied for table hidden")),
        ),
        ("SELECT nextval('own.seq') > 0", refused("25006", None)),
        (
            "WITH n AS (INSERT INTO orders VALUES (3, 'x') RETURNING true AS t) SELECT t FROM n",
            refused("25006", None),
        ),
        // A row's value is in the server's message.
        ("SELECT bool_and(word::int > 0) FROM orders", refused("22P02", None)),
        // What leads back to another role needs to be a member of it.
        ("SELECT set_config('role', 'postgres', true) = 'postgres'", refused("22023", None)),
    ] {
        let found = ask(spec(sql)).await;
        // Which code this is depends on the version.
        let by_role = sql.contains("set_config");
        match (by_role, &found) {
            (true, Finding::Refused { message: None, .. }) => {}
            (true, other) => panic!("{sql}: {other:?}"),
            (false, _) => assert_eq!(found, finding, "{sql}"),
        }
    }
    assert_eq!(node_rows(&node).await, 2, "nothing was written");
    let of = |role: &str| ValidationSpec { role: role.to_owned(), ..spec("SELECT true") };
    assert_eq!(ask(of("postgres")).await, Finding::Superuser);
    assert_eq!(ask(of("boss")).await, Finding::Superuser, "it could become one");
    let none = refused("28000", Some("role \"nobody\" does not exist"));
    assert_eq!(ask(of("nobody")).await, none);
    let mute = refused("28000", Some("role \"mute\" is not permitted to log in"));
    assert_eq!(ask(of("mute")).await, mute);
    let elsewhere = ValidationSpec { database: "x".to_owned(), ..spec("SELECT true") };
    let none = refused("3D000", Some("database \"x\" does not exist"));
    assert_eq!(ask(elsewhere).await, none);
    node.stop().await;
    let found = ask(spec("SELECT true")).await;
    assert!(matches!(found, Finding::Unreachable(_)), "{found:?}");
}

async fn node_rows(node: &Node) -> i64 {
    let client = connect(node, "postgres").await;
    client.query_one("SELECT count(*) FROM own.orders", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_in_time_and_when_it_is_told_to() {
    let (_root, node) = shop().await;
    let began = Instant::now();
    let slow = ValidationSpec { timeout_ms: 300, ..spec("SELECT pg_sleep(60) IS NULL") };
    assert_eq!(node.admin.validate(&slow, pending()).await, Some(Finding::TimedOut));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());

    let slow = ValidationSpec { timeout_ms: 60_000, ..slow };
    let busy = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
                   AND application_name = 'quorate validation'";
        node.sql(sql).await
    };
    let seen = async {
        until("the query to run", async || (busy().await == "1").then_some(())).await;
    };
    assert_eq!(node.admin.validate(&slow, seen).await, None);
    until("the query to end", async || (busy().await == "0").then_some(())).await;
    assert_eq!(node.admin.validate(&slow, ready(())).await, None);
    node.stop().await;
}
