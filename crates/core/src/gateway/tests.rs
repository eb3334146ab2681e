use super::*;
use crate::document::{Document, Level};

fn document(text: &str) -> Document {
    toml::from_str(text).unwrap()
}

const EXAMPLE: &str = r#"
[gateway]
tls = "required"
consistency = "bounded"
max_staleness_ms = 2000
synchronous_commit_floor = "remote_write"

[gateway.pool]
size = 40

[[gateway.access]]
database = ["shop", "shop_*"]
role = ["app"]
address = ["10.0.0.0/8", "::1/128", "local"]
tls = "required"
action = "password"
because = "the shop's own servers"

[[gateway.access]]
action = "reject"

[[gateway.pools]]
role = ["batch"]
disabled = "batch jobs are off until Monday"

[[gateway.pools]]
database = ["shop"]
size = 10
mode = "session"
rows_max = 1000

[[gateway.pools]]
size = 5
read_from = "nearest"
rows_max = 9
"#;

#[test]
fn documents_from_before_the_section_are_read_and_written_as_they_were() {
    let old = document("copies = 3\n[nodes.n1]\npriority = 200\n");
    assert!(old.gateway.is_default());
    assert_eq!(old.validate(), []);
    let text = toml::to_string_pretty(&old).unwrap();
    assert!(!text.contains("gateway"), "{text}");
    let json = serde_json::to_string(&Document::default()).unwrap();
    assert!(!json.contains("gateway"), "{json}");
}

#[test]
fn the_section_survives_toml_and_json() {
    let document = document(EXAMPLE);
    assert_eq!(document.validate(), []);
    let text = toml::to_string_pretty(&document).unwrap();
    assert_eq!(toml::from_str::<Document>(&text).unwrap(), document, "{text}");
    let json = serde_json::to_string(&document).unwrap();
    assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
}

#[test]
fn unknown_fields_and_words_are_refused() {
    for bad in [
        "[gateway]\nspeed = 1",
        "[gateway]\ntls = \"maybe\"",
        "[gateway.pool]\nsizes = 1",
        "[[gateway.pools]]\nsizes = 1",
        "[[gateway.access]]\naction = \"password\"\nroles = [\"x\"]",
        "[[gateway.access]]\naction = \"scram\"",
        "[[gateway.access]]\nrole = [\"an action is missing\"]",
    ] {
        assert!(toml::from_str::<Document>(bad).is_err(), "{bad}");
    }
}

#[test]
fn each_field_of_a_pool_comes_from_the_first_rule_that_sets_it() {
    let gateway = document(EXAMPLE).gateway;
    let batch = gateway.pool_for("shop", "batch");
    assert_eq!(batch.disabled.as_deref(), Some("batch jobs are off until Monday"));
    assert_eq!((batch.spec.size, batch.spec.mode), (10, PoolMode::Session));
    assert_eq!((batch.rows_max, batch.read_from), (Some(1000), ReadFrom::Nearest));
    let other = gateway.pool_for("other", "app");
    assert_eq!((other.spec.size, other.spec.mode), (5, PoolMode::Transaction));
    assert_eq!((other.rows_max, other.disabled), (Some(9), None));
    assert_eq!((other.consistency, other.spec.prepared_max), (Consistency::Bounded, 500));
    assert_eq!(Gateway::default().pool_for("a", "b").spec, PoolSpec::default());
}

#[test]
fn idle_connections_never_exceed_the_pool() {
    let gateway = document(
        "[[gateway.pools]]\nrole = [\"a\"]\nmin_idle = 15\n[[gateway.pools]]\nsize = 10\n",
    )
    .gateway;
    assert_eq!(gateway.validate(), []);
    assert_eq!(gateway.pool_for("d", "a").spec.min_idle, 10);
}

#[test]
fn all_problems_are_told_at_once_with_their_paths() {
    let document = document(
        r#"
        [gateway]
        workers = 0
        clients_max = 0
        hold_ms = 600001
        max_lag_ms = 0

        [gateway.pool]
        size = 0
        min_idle = 1

        [[gateway.pools]]
        database = []
        role = ["a*b"]
        size = 10
        min_idle = 11
        statement_timeout_ms = 0
        disabled = " "

        [[gateway.pools]]
        role = ["nothing"]

        [[gateway.access]]
        action = "trust"
        "#,
    );
    let fields: Vec<_> = document.validate().into_iter().map(|problem| problem.field).collect();
    let expected = [
        "gateway.max_lag_ms",
        "gateway.hold_ms",
        "gateway.workers",
        "gateway.clients_max",
        "gateway.pool.size",
        "gateway.pool.min_idle",
        "gateway.pools[0].database",
        "gateway.pools[0].role",
        "gateway.pools[0].min_idle",
        "gateway.pools[0].statement_timeout_ms",
        "gateway.pools[0].disabled",
        "gateway.pools[1].database",
        "gateway.access[0].action",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn the_floor_is_never_above_what_commits_have_by_themselves() {
    let floor = |level, wanted| {
        let gateway = Gateway { synchronous_commit_floor: wanted, ..Gateway::default() };
        Document { level, gateway, ..Document::default() }.synchronous_commit_floor()
    };
    use SynchronousCommit::{Off, On, RemoteApply, RemoteWrite};
    assert_eq!(floor(Level::Flushed, On), On);
    assert_eq!(floor(Level::Received, On), RemoteWrite);
    assert_eq!(floor(Level::Applied, On), On);
    assert_eq!(floor(Level::Flushed, RemoteApply), On);
    assert_eq!(floor(Level::Applied, Off), Off);
}

#[test]
fn synchronous_commit_is_read_as_postgresql_does() {
    use SynchronousCommit::{Local, Off, On, RemoteApply, RemoteWrite};
    for setting in [Off, Local, RemoteWrite, On, RemoteApply] {
        assert_eq!(SynchronousCommit::from_setting(setting.as_str()), Some(setting));
        assert_eq!(serde_json::to_string(&setting).unwrap(), format!("\"{}\"", setting.as_str()));
    }
    assert_eq!(SynchronousCommit::from_setting("TRUE"), Some(On));
    assert_eq!(SynchronousCommit::from_setting("0"), Some(Off));
    assert_eq!(SynchronousCommit::from_setting("remote"), None);
    assert!(Off < Local && Local < RemoteWrite && RemoteWrite < On && On < RemoteApply);
}
