use super::*;

fn classified(sql: &str) -> Script {
    classify(
        sql.as_bytes(),
        &Options { standard_strings: true, functions: &NoFunctions, whole: true },
    )
}

#[test]
fn reads_are_reads() {
    for sql in [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 12345",
        "select 1;",
        "SELECT 'insert into t; for update' AS \"update\", $1::text",
        "/* INSERT */ SELECT 1 -- UPDATE t",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "WITH x AS (SELECT 1), y(a, b) AS (VALUES (1, 2)) SELECT * FROM x, y",
        "VALUES (1), (2)",
        "TABLE t",
        "SELECT count(*) FILTER (WHERE a > 1), sum(x) OVER (PARTITION BY y ORDER BY z) FROM t",
        "SELECT substring('abc' for 2), extract(epoch from now()), coalesce(a, b) FROM t",
        "SELECT CAST(a AS varchar(10)), x::numeric(10, 2) FROM t WHERE id IN (1, 2)",
        "SELECT $tag$ insert into t $tag$, E'it\\'s; delete', U&'\\0061'",
        "SELECT pg_catalog.lower('X')",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "BEGIN READ ONLY",
        "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        "COPY (SELECT 1) TO STDOUT",
        "COPY t (a, b) TO STDOUT WITH (FORMAT csv)",
        "DECLARE c CURSOR FOR SELECT 1",
        "SELECT * FROM pg_class, pg_statistic",
    ] {
        let script = classified(sql);
        assert_eq!(script.access, Access::Read, "{sql}: {:?}", script.why);
        assert!(script.leaves.is_empty(), "{sql}: {:?}", script.leaves);
        assert!(!script.ends, "{sql}");
    }
}

#[test]
fn writes_are_writes() {
    for sql in [
        "INSERT INTO t VALUES (1)",
        "/* a */ -- b\n insert into t values (1)",
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
        "WITH x AS (SELECT 1), y AS (WITH z AS (DELETE FROM t RETURNING 1) SELECT * FROM z) SELECT 1",
        "SELECT * FROM t FOR UPDATE",
        "SELECT * FROM (SELECT * FROM t FOR NO KEY UPDATE) x",
        "SELECT * FROM (SELECT * FROM t FOR SHARE) x",
        "SELECT * FROM t FOR KEY SHARE",
        "SELECT 1 INTO x",
        "SELECT nextval('s')",
        "SELECT setval('s', 1)",
        "SELECT f_that_writes()",
        "SELECT \"Strange\"()",
        "SELECT public.lower_all(1)",
        "DO $$ BEGIN INSERT INTO t VALUES (1); END $$",
        "SELECT txid_current()",
        "SELECT pg_current_wal_lsn()",
        "SELECT pg_notify('a', 'b')",
        "SELECT lo_create(0)",
        "SELECT 1; INSERT INTO t VALUES (1)",
        "SELECT 'a\\'; SELECT 1; DELETE FROM t",
        "BEGIN",
        "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        "CALL p()",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
        "EXPLAIN ANALYZE EXECUTE x",
        "SELECT * FROM pg_stat_activity",
        "SELECT * FROM pg_catalog.pg_locks",
        "COPY t FROM STDIN",
        "COPY (DELETE FROM t RETURNING 1) TO STDOUT",
        "COPY t TO PROGRAM 'cat'",
        "SHOW work_mem",
        "MERGE INTO t USING u ON (t.a = u.a) WHEN MATCHED THEN DELETE",
        "TRUNCATE t",
        "SELECT 'unterminated",
        "SELECT /* unterminated",
        "SELECT $a$ unterminated",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE",
    ] {
        assert_eq!(classified(sql).access, Access::Write, "{sql}");
    }
}

#[test]
fn what_is_left_in_the_session() {
    let leaves = |sql: &str| classified(sql).leaves;
    for (sql, what) in [
        ("SET work_mem = '4MB'", Leaves::SETTING),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Leaves::SETTING),
        ("RESET ALL", Leaves::SETTING),
        ("SELECT set_config('a.b', 'c', false)", Leaves::UNKNOWN_SETTING),
        ("SELECT set_config('a.b', 'c', x)", Leaves::UNKNOWN_SETTING),
        ("CREATE TEMP TABLE t (a int)", Leaves::TEMP),
        ("CREATE TEMPORARY VIEW v AS SELECT 1", Leaves::TEMP),
        ("SELECT 1 INTO TEMP x", Leaves::TEMP),
        ("SELECT pg_advisory_lock(1)", Leaves::ADVISORY),
        ("LISTEN x", Leaves::LISTEN),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Leaves::HOLD),
        ("PREPARE x AS SELECT 1", Leaves::PREPARED),
        ("EXECUTE x", Leaves::PREPARED),
        ("LOAD 'auto_explain'", Leaves::LOAD),
        ("DO $$ $$", Leaves::UNKNOWN),
        ("SELECT my_function(1)", Leaves::UNKNOWN),
        ("INSERT INTO t (a, b) VALUES (my_function(1), 2)", Leaves::UNKNOWN),
        ("DISCARD ALL", Leaves::CLEARS_ALL),
    ] {
        assert!(leaves(sql).has(what), "{sql}");
    }
    for sql in [
        "SET LOCAL work_mem = '4MB'",
        "SELECT set_config('a.b', 'c', true)",
        "SELECT pg_advisory_xact_lock(1)",
        "INSERT INTO t (a, b) VALUES (1, lower('X')) ON CONFLICT (a) DO UPDATE SET b = now()",
        "UPDATE t SET a = nextval('s') WHERE b IN (SELECT 1)",
        "DELETE FROM only_t WHERE a = any(array[1])",
        "NOTIFY x",
        "BEGIN",
    ] {
        assert!(leaves(sql).is_empty(), "{sql}: {:?}", leaves(sql));
    }
}

#[test]
fn transactions_begin_and_end() {
    let of = |sql: &str| {
        let s = classified(sql);
        (s.begins, s.ends)
    };
    for sql in ["COMMIT", "/**/end;", "abort", "ROLLBACK AND CHAIN", "PREPARE TRANSACTION 'x'"] {
        assert_eq!(of(sql), (false, true), "{sql}");
    }
    assert_eq!(of("ROLLBACK TO SAVEPOINT x"), (false, false));
    assert_eq!(of("rollback work to x"), (false, false));
    assert_eq!(of("begin; select 1; commit"), (true, true));
    assert_eq!(classified("COMMIT AND NO CHAIN").first, Verb::Commit { chain: false });
    assert_eq!(classified("COMMIT WORK AND CHAIN").first, Verb::Commit { chain: true });
    assert_eq!(classified("ROLLBACK PREPARED 'x'").first, Verb::EndPrepared);
    assert_eq!(classified("PREPARE transaction AS SELECT 1").leaves, Leaves::PREPARED);
}

#[test]
fn names_are_folded() {
    let name = |sql: &str| match classified(sql).first {
        Verb::Set(set) => set.name.fold(sql.as_bytes()),
        Verb::Reset(Some(name)) | Verb::Show(Some(name)) | Verb::Deallocate(Some(name)) => {
            name.fold(sql.as_bytes())
        }
        other => panic!("{sql}: {other:?}"),
    };
    for (sql, expected) in [
        ("SET Work_Mem TO '4MB'", "work_mem"),
        ("SET SESSION app . \"User\"=1", "app.User"),
        ("set local x = 1", "x"),
        ("SET TIME ZONE 'UTC'", "timezone"),
        ("SET NAMES 'UTF8'", "client_encoding"),
        ("SET ROLE x", "role"),
        ("SET SESSION ROLE x", "role"),
        ("SET SESSION AUTHORIZATION x", "session_authorization"),
        ("RESET TIME ZONE", "timezone"),
        ("RESET a.b", "a.b"),
        ("SHOW quorate.token", "quorate.token"),
        ("DEALLOCATE \"S_\"\"1\"", "S_\"1"),
        ("DEALLOCATE PREPARE abc;", "abc"),
    ] {
        assert_eq!(String::from_utf8(name(sql)).unwrap(), expected, "{sql}");
    }
    let sql = "SET a TO b, 'c' ; SELECT 1";
    let Verb::Set(set) = classified(sql).first else { panic!() };
    assert_eq!(&sql[set.value.start as usize..set.value.end as usize], "b, 'c' ");
    assert_eq!(classified(sql).statements, 2);
    assert_eq!(classified("DEALLOCATE ALL").first, Verb::Deallocate(None));
}

#[test]
fn statements_are_split_where_postgresql_splits_them() {
    let n = |sql: &str| classified(sql).statements;
    assert_eq!(n(";;"), 0);
    assert_eq!(n("SELECT 1;; SELECT 2;"), 2);
    assert_eq!(n("SELECT 'a;b', $x$;$x$, \"c;d\" -- ;\n"), 1);
    assert_eq!(n("CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2); SELECT 3"), 2);
    assert_eq!(
        n("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; \
           SELECT 2; END; SELECT 3"),
        2
    );
}

#[test]
fn fingerprints_and_directives() {
    let print = |sql: &str| classified(sql).fingerprint;
    assert_eq!(
        print("SELECT a FROM t WHERE b = 1"),
        print("select A /* x */ from T\nwhere b=  'y'")
    );
    assert_ne!(print("SELECT a FROM t"), print("SELECT b FROM t"));
    let sql = "/* quorate: eventual */ SELECT 1; /* quorate: strong */ SELECT 2";
    let at = classified(sql).directive.unwrap();
    assert_eq!(sql[at.start as usize..at.end as usize].trim(), "eventual");
    assert_eq!(classified("SELECT 1; /* quorate: strong */ SELECT 2").directive, None);
}

#[test]
fn backslashes_count_where_they_do() {
    let sql = b"SELECT 'a\\'; DELETE FROM t; --'";
    let options =
        |standard| Options { standard_strings: standard, functions: &NoFunctions, whole: true };
    assert_eq!(classify(sql, &options(true)).statements, 2);
    assert_eq!(classify(sql, &options(false)).statements, 1);
}

mod laws {
    use super::*;
    use proptest::prelude::*;

    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("select"),
            Just("from"),
            Just("t"),
            Just("'x''y'"),
            Just("\"q\""),
            Just("1.5e3"),
            Just("("),
            Just(")"),
            Just(","),
            Just("update"),
            Just("for"),
            Just("$1"),
            Just("$$z;$$"),
            Just("+"),
            Just("into"),
            Just("now()"),
            Just("f(1)"),
            Just("as"),
            Just("where"),
        ];
        prop::collection::vec(piece, 1..12).prop_map(|v| format!("select {}", v.join(" ")))
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(sql in prop::collection::vec(any::<u8>(), 0..120)) {
            for standard_strings in [true, false] {
                let options = Options { standard_strings, functions: &NoFunctions, whole: true };
                classify(&sql, &options);
            }
        }

        #[test]
        fn comments_spacing_and_case_change_nothing(sql in pieces()) {
            let spaced = sql.replace(' ', " /* a ' /* b */ ; */ -- it's\n ");
            let (a, b) = (classified(&sql), classified(&spaced));
            prop_assert_eq!((a.access, a.leaves, a.statements), (b.access, b.leaves, b.statements));
            prop_assert_eq!(a.fingerprint, b.fingerprint);
            prop_assert_eq!(classified(&sql.to_uppercase()).access, a.access);
        }

        #[test]
        fn a_write_behind_it_makes_it_a_write(sql in pieces()) {
            let both = format!("{sql}; delete from t");
            prop_assert_eq!(classified(&both).access, Access::Write);
        }
    }
}
