//! Statements about the session and the transaction, in all their forms.

use crate::{check, see};
use quorate_wire::sql::{
    Close, CopyKind, Deallocate, Discard, Isolation, Modes, Name, Reset, SetScope, Show, Verb,
};

fn name(sql: &str, name: Name) -> String {
    String::from_utf8(name.text(sql.as_bytes()).into_owned()).unwrap()
}

fn text(sql: &str, name_of: impl Fn(Verb) -> Option<Name>) -> String {
    name_of(see(sql).first).map_or_else(|| format!("{:?}", see(sql).first), |n| name(sql, n))
}

#[test]
fn set() {
    let rows = [
        ("SET search_path TO a, \"B\"", "search_path", false, "a, \"B\"", false),
        ("set Search_Path = DEFAULT ;", "search_path", false, "DEFAULT", true),
        ("SET SESSION work_mem = '1MB'", "work_mem", false, "'1MB'", false),
        ("SET LOCAL \"work_mem\" TO 10 -- x", "work_mem", true, "10", false),
        ("SET app . \"User\" = 'x'", "app.User", false, "'x'", false),
        ("SET TIME ZONE 'UTC'", "timezone", false, "'UTC'", false),
        ("SET LOCAL TIME ZONE LOCAL", "timezone", true, "LOCAL", true),
        (
            "SET TIME ZONE INTERVAL '1' HOUR TO MINUTE",
            "timezone",
            false,
            "INTERVAL '1' HOUR TO MINUTE",
            false,
        ),
        ("SET NAMES 'UTF8'", "client_encoding", false, "'UTF8'", false),
        ("SET NAMES", "client_encoding", false, "", false),
        ("SET ROLE a", "role", false, "a", false),
        ("SET SESSION ROLE NONE", "role", false, "NONE", true),
        ("SET SESSION AUTHORIZATION b", "session_authorization", false, "b", false),
        (
            "SET SESSION SESSION AUTHORIZATION DEFAULT",
            "session_authorization",
            false,
            "DEFAULT",
            true,
        ),
        ("SET LOCAL SESSION AUTHORIZATION b", "session_authorization", true, "b", false),
        ("SET SCHEMA 'x'", "search_path", false, "'x'", false),
        ("SET XML OPTION DOCUMENT", "xmloption", false, "DOCUMENT", false),
        ("SET role TO x", "role", false, "x", false),
        ("SET session.x = 1", "session.x", false, "1", false),
        ("SET local = 1", "local", false, "1", false),
        (
            "SET transaction_isolation = 'serializable'",
            "transaction_isolation",
            false,
            "'serializable'",
            false,
        ),
    ];
    for (sql, named, local, value, default) in rows {
        let Verb::Set(set) = see(sql).first else { panic!("{sql}: {:?}", see(sql).first) };
        assert_eq!(name(sql, set.name), named, "{sql}");
        assert_eq!(set.scope == SetScope::Local, local, "{sql}");
        assert_eq!(set.value.of(sql.as_bytes()), value.as_bytes(), "{sql}");
        assert_eq!(set.default, default, "{sql}");
        let line = if local { "read" } else { "Session leaves setting" };
        check(&[(sql, line)]);
    }
    check(&[
        ("SET LOCAL transaction_read_only = off", "Transaction"),
        ("SET search_path = pg_temp, a", "Session leaves setting|unknown"),
        ("SET search_path = E'pg\\x5ftemp'", "Session leaves setting|unknown"),
        ("SET CONSTRAINTS ALL DEFERRED", "Keyword"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "Session leaves setting"),
        ("SET TRANSACTION SNAPSHOT 'x'", "Transaction"),
        ("SET TRANSACTION READ WRITE", "Transaction"),
        ("SET LOCAL TRANSACTION ISOLATION LEVEL SERIALIZABLE", "Transaction"),
        ("SET", "UnknownStatement leaves unknown ends"),
        ("SET x", "UnknownStatement leaves unknown ends"),
    ]);
}

#[test]
fn quotes_in_names_are_undone() {
    let sql = "SET \"a\"\"b\" /* x */ . C = 1";
    let Verb::Set(set) = see(sql).first else { panic!() };
    assert_eq!(name(sql, set.name), "a\"b.c");
}

#[test]
fn reset_and_show() {
    let reset = |v| match v {
        Verb::Reset(Reset::One(name)) => Some(name),
        _ => None,
    };
    assert_eq!(text("RESET Work_Mem", reset), "work_mem");
    assert_eq!(text("RESET TIME ZONE", reset), "timezone");
    assert_eq!(text("RESET SESSION AUTHORIZATION", reset), "session_authorization");
    assert_eq!(text("RESET ROLE", reset), "role");
    assert_eq!(see("RESET ALL").first, Verb::Reset(Reset::All));
    check(&[
        ("RESET ALL", "Session leaves setting|clears-settings"),
        ("RESET a", "Session leaves setting"),
    ]);
    let show = |v| match v {
        Verb::Show(Show::One(name)) => Some(name),
        _ => None,
    };
    assert_eq!(text("SHOW Quorate.Token", show), "quorate.token");
    assert_eq!(text("SHOW TRANSACTION ISOLATION LEVEL", show), "transaction_isolation");
    assert_eq!(see("SHOW ALL").first, Verb::Show(Show::All));
}

#[test]
fn blocks() {
    let modes = |sql: &str| match see(sql).first {
        Verb::Begin(m) | Verb::SetTransaction(m) | Verb::SetSessionCharacteristics(m) => m,
        other => panic!("{sql}: {other:?}"),
    };
    assert_eq!(modes("BEGIN"), Modes::default());
    assert_eq!(modes("BEGIN WORK READ ONLY").read_only, Some(true));
    let all = modes("START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY DEFERRABLE");
    assert_eq!(all.isolation, Some(Isolation::Serializable));
    assert_eq!((all.read_only, all.deferrable, all.other), (Some(true), Some(true), false));
    let some = modes("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE, NOT DEFERRABLE");
    assert_eq!(some.isolation, Some(Isolation::ReadCommitted));
    assert_eq!((some.read_only, some.deferrable), (Some(false), Some(false)));
    assert!(modes("BEGIN whatever").other);
    check(&[
        ("BEGIN READ ONLY", "read begins"),
        ("BEGIN READ WRITE", "Transaction begins"),
        ("BEGIN READ ONLY, READ WRITE", "Transaction begins"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY", "Transaction begins"),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY", "read begins"),
        ("COMMIT", "Transaction ends"),
        ("END WORK", "Transaction ends"),
        ("COMMIT AND CHAIN", "Transaction begins ends"),
        ("ROLLBACK", "Transaction ends"),
        ("ABORT TRANSACTION AND NO CHAIN", "Transaction ends"),
        ("ROLLBACK TO s", "read"),
        ("PREPARE TRANSACTION 'x'", "Keyword ends"),
        ("COMMIT PREPARED 'x'", "Keyword ends"),
        ("ROLLBACK PREPARED 'x'", "Keyword ends"),
        ("BEGIN READ ONLY; SELECT 1; COMMIT", "read begins ends"),
        ("BEGIN READ ONLY; SELECT 1; ROLLBACK; COMMIT", "Transaction begins ends"),
        ("BEGIN READ ONLY; SELECT 1; COMMIT AND CHAIN", "Transaction begins ends"),
    ]);
    assert_eq!(see("COMMIT AND CHAIN").first, Verb::Commit { chain: true });
    assert_eq!(see("ABORT AND NO CHAIN").first, Verb::Rollback { chain: false });
}

#[test]
fn prepared_statements() {
    let named = |v| match v {
        Verb::Prepare(n) | Verb::Execute(n) | Verb::Deallocate(Deallocate::One(n)) => Some(n),
        _ => None,
    };
    assert_eq!(text("PREPARE \"P 1\" (int, text) AS SELECT 1", named), "P 1");
    assert_eq!(text("EXECUTE Foo(1, 2)", named), "foo");
    assert_eq!(text("DEALLOCATE PREPARE bar", named), "bar");
    assert_eq!(text("DEALLOCATE prepare", named), "prepare");
    assert_eq!(see("DEALLOCATE PREPARE ALL").first, Verb::Deallocate(Deallocate::All));
    check(&[
        ("PREPARE p AS INSERT INTO t VALUES (1)", "Session leaves prepared"),
        // What an EXECUTE will leave cannot be seen then.
        ("PREPARE p AS SELECT set_config('a.b', $1, false)", "Session leaves setting|prepared"),
        ("EXECUTE p (f(1))", "Session leaves prepared|unknown"),
        ("CREATE TABLE t AS EXECUTE p(1)", "Keyword leaves prepared"),
        ("DEALLOCATE ALL", "Session leaves clears-prepared"),
    ]);
}

#[test]
fn the_session() {
    check(&[
        ("DISCARD ALL", "Session leaves clears-all"),
        ("DISCARD TEMPORARY", "Session leaves clears-temp"),
        ("DISCARD PLANS", "Session"),
        ("DISCARD nothing", "Session leaves unknown ends"),
        ("UNLISTEN *", "Session leaves clears-listen-or-hold"),
        ("NOTIFY a, 'b'", "Keyword"),
        ("CLOSE ALL", "read leaves clears-listen-or-hold"),
        ("LOCK TABLE t", "Keyword"),
        ("VACUUM (ANALYZE) t", "Keyword"),
        ("CHECKPOINT", "Keyword"),
        ("WAIT FOR LSN '0/0'", "UnknownStatement leaves unknown ends"),
    ]);
    assert_eq!(see("DISCARD SEQUENCES").first, Verb::Discard(Discard::Sequences));
    assert_eq!(see("UNLISTEN a").first, Verb::Unlisten { all: false });
    assert_eq!(see("UNLISTEN *").first, Verb::Unlisten { all: true });
    assert_eq!(see("CLOSE ALL").first, Verb::Close(Close::All));
    let hold = |sql| matches!(see(sql).first, Verb::Declare { hold: true, .. });
    assert!(hold("DECLARE hold SCROLL CURSOR WITH HOLD FOR SELECT 1"));
    assert!(!hold("DECLARE hold CURSOR WITHOUT HOLD FOR SELECT 1"));
}

#[test]
fn copy() {
    let kind = |sql: &str| see(sql).first;
    assert_eq!(kind("COPY t FROM STDIN"), Verb::Copy(CopyKind::FromStdin));
    assert_eq!(kind("COPY BINARY t TO STDOUT"), Verb::Copy(CopyKind::ToStdout));
    assert_eq!(kind("COPY t TO 'file'"), Verb::Copy(CopyKind::Other));
    assert_eq!(kind("COPY (SELECT 1) TO PROGRAM 'x'"), Verb::Copy(CopyKind::Other));
    check(&[
        ("COPY t (a) FROM STDIN WITH (FORCE_NULL (a)) WHERE lower(a) > 'x'", "Keyword"),
        ("COPY t (a) FROM STDIN WHERE f(a)", "Keyword leaves unknown"),
        ("COPY t TO 'file'", "Keyword"),
        ("COPY t FROM '/file'", "Keyword"),
        ("COPY t TO PROGRAM 'x'", "Keyword"),
    ]);
}

#[test]
fn definitions() {
    check(&[
        ("CREATE TABLE t (a varchar(3) DEFAULT f(1), PRIMARY KEY (a))", "Keyword"),
        ("CREATE LOCAL TEMPORARY VIEW v AS SELECT 1", "Keyword leaves temp"),
        ("CREATE OR REPLACE TEMP VIEW v AS SELECT 1", "Keyword leaves temp"),
        ("CREATE TABLE pg_temp.t (a int)", "Keyword leaves temp"),
        ("CREATE FUNCTION pg_temp.f() RETURNS int RETURN 1", "Keyword leaves temp"),
        ("CREATE TABLE t AS SELECT f(1)", "Keyword leaves unknown"),
        ("CREATE TABLE t AS (WITH a(b) AS (SELECT 1) SELECT b FROM a)", "Keyword"),
        ("CREATE TABLE t AS WITH a AS (SELECT 1), b(c) AS (SELECT 1) TABLE b", "Keyword"),
        ("CREATE MATERIALIZED VIEW v AS SELECT f(1)", "Keyword leaves unknown"),
        ("CREATE VIEW v AS SELECT f(1)", "Keyword"),
        ("INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET (a, b) = (1, 2)", "Keyword"),
        ("INSERT INTO s.t AS x (a) OVERRIDING USER VALUE SELECT 1", "Keyword"),
        ("UPDATE t SET (a, b) = ROW (1, 2) WHERE CURRENT OF c", "Keyword"),
        ("UPDATE t SET a = conflict(1)", "Keyword leaves unknown"),
        ("MERGE INTO t USING u ON (true) WHEN NOT MATCHED THEN INSERT (a) VALUES (1)", "Keyword"),
        ("INSERT INTO temp VALUES (1)", "Keyword"),
        ("TRUNCATE t", "Keyword"),
        ("ALTER SYSTEM SET a = 1", "Keyword"),
    ]);
}

#[test]
fn bodies_and_rules_keep_their_semicolons() {
    let body = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2 end; END";
    check(&[(body, "Keyword")]);
    assert_eq!(see(body).statements, 1);
    let after = format!("{body}; COMMIT");
    check(&[(&after, "Keyword ends")]);
    assert_eq!(see(&after).statements, 2);
    for (sql, count) in [
        ("CREATE PROCEDURE p() BEGIN ATOMIC END; SELECT 1", 2),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; END; END", 2),
        // A table called `begin`, and labels that look like the grammar of the body.
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 FROM begin atomic; END; \
             COMMIT; END",
            3,
        ),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 case; END; COMMIT; END", 3),
        ("CREATE RULE r AS ON INSERT TO t DO ALSO (SELECT 1; SELECT 2); SELECT 3", 2),
        ("CREATE TABLE t (begin atomic); SELECT 1", 2),
    ] {
        assert_eq!(see(sql).statements, count, "{sql}");
    }
    check(&[(
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1",
        "Keyword leaves unknown ends",
    )]);
}
