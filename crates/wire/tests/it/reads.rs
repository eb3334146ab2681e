//! Queries: what stays a read, and what makes it none.

use crate::{check, see};

#[test]
fn reads() {
    let reads = [
        "SELECT 1",
        "select",
        "(SELECT 1) UNION ALL (VALUES (2), (3)) ORDER BY 1",
        "VALUES (1, lower('A'))",
        "TABLE t",
        "TABLE ONLY public.t",
        "SELECT count(*) FILTER (WHERE a > 1), sum(b) OVER (PARTITION BY a ORDER BY b) FROM t",
        "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t",
        "SELECT a FROM t GROUP BY (a), GROUPING SETS ((a), ()) HAVING count(*) > 1",
        "SELECT a FROM t GROUP BY CUBE (a, b), ROLLUP (c)",
        "SELECT rank() OVER w FROM t WINDOW w AS (PARTITION BY (a) ORDER BY (b))",
        "SELECT x::varchar(20), x::numeric(10, 2), CAST(x AS public.geometry(Point, 4326)) FROM t",
        "SELECT x::public.geometry(Point, 4326), x::character varying(3), x::bit varying(3)",
        "SELECT time(3) '10:00', interval(3) '1 s', float(3) '1'",
        "SELECT * FROM t AS u(a, b), (SELECT 1, 2) v (a, b), generate_series(1, 2) w (a)",
        "SELECT * FROM json_to_record('{}') AS x(a int, b varchar(3))",
        "SELECT * FROM t JOIN u USING (a) LEFT JOIN (SELECT 1) v ON (true) WHERE a IN (1) AND (b)",
        "SELECT * FROM t NATURAL JOIN (SELECT 1) x CROSS JOIN LATERAL (SELECT 1) y",
        "SELECT * FROM t WHERE a LIKE (b) OR a ILIKE ('x') OR a SIMILAR TO ('y')",
        "SELECT * FROM t TABLESAMPLE system (1) REPEATABLE (2)",
        "SELECT * FROM ROWS FROM (generate_series(1, 2), unnest(ARRAY[1])) WITH ORDINALITY z \
         (a, b)",
        "SELECT substring('a' FROM 1 FOR 2), trim(BOTH 'x' FROM 'y'), position('a' IN 'b')",
        "SELECT extract(year FROM now()), overlay('a' PLACING 'b' FROM 1), COALESCE(a, \
         NULLIF(b, 1))",
        "SELECT xmlelement(name a, xmlattributes(b AS c)), xmlforest(a), GREATEST(1, 2), ROW(1)",
        "SELECT a AT TIME ZONE ('utc'), (a, b) OVERLAPS (c, d), a IS DISTINCT FROM (b) FROM t",
        "SELECT a OPERATOR(pg_catalog.+) b, $1 OPERATOR(~) 'x', (a) OPERATOR(+) 1 FROM t",
        "SELECT ARRAY(SELECT 1), EXISTS (SELECT 1), a = ANY (ARRAY[1]), NOT (a), CASE WHEN (a) \
         THEN (b) END",
        "SELECT * FROM t ORDER BY (a) OFFSET (1) FETCH FIRST (2) ROWS ONLY",
        "SELECT * FROM t LIMIT (1) FOR READ ONLY",
        "WITH a AS (SELECT 1), b(x, y) AS MATERIALIZED (SELECT 2, 3), c (z) AS NOT MATERIALIZED \
         (VALUES (4)) SELECT * FROM a, b, c",
        "WITH RECURSIVE a(x) AS (SELECT 1 UNION ALL SELECT x FROM a) SEARCH DEPTH FIRST BY x SET o \
         CYCLE x SET c USING p SELECT * FROM a",
        "WITH a AS (WITH b(x) AS (SELECT 1) SELECT x FROM b) (SELECT * FROM a)",
        "SELECT random(), clock_timestamp(), gen_random_uuid(), pg_sleep(0), now(), CURRENT_USER",
        "SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a",
        "SELECT \"lower\"('A'), \"pg_catalog\".\"lower\"('A'), LOWER ('x'), lower/**/('x')",
        "SELECT t.insert, t.update, a AS delete, b AS \"into\", c AS for FROM t",
        "SELECT 'nextval(1)', \"nextval\", nextval FROM t -- nextval('s')",
        "SELECT current_setting('search_path'), current_setting('app.user', true)",
        "SHOW search_path",
        "SHOW app.tenant",
        "SHOW TIME ZONE",
        "SHOW SESSION AUTHORIZATION",
        "SHOW TRANSACTION ISOLATION LEVEL",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT 1",
        "EXPLAIN (ANALYZE, FORMAT json) (SELECT 1)",
        "EXPLAIN (SELECT count(*) FROM t)",
        "EXPLAIN (VALUES (1))",
        "COPY t TO STDOUT",
        "COPY public.t (a, b) TO STDOUT WITH (FORMAT csv)",
        "COPY (SELECT lower(a) FROM t) TO STDOUT (FORMAT binary)",
        "DECLARE c CURSOR FOR SELECT 1",
        "DECLARE c BINARY INSENSITIVE NO SCROLL CURSOR WITHOUT HOLD FOR WITH a(b) AS (SELECT 1) \
         TABLE a",
        "FETCH 10 FROM c",
        "MOVE FORWARD ALL IN c",
        "SAVEPOINT s",
        "RELEASE SAVEPOINT s",
        "ROLLBACK TO SAVEPOINT s",
        "ROLLBACK WORK TO s",
        "SET LOCAL work_mem = '1MB'",
        "SET LOCAL ROLE a",
        "SET TRANSACTION READ ONLY",
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "SELECT * FROM pgbench_accounts, pg_class, pg_stats, information_schema.tables",
        "",
        " ; ; -- nothing",
    ];
    for sql in reads {
        check(&[(sql, "read")]);
    }
}

#[test]
fn row_locks() {
    for lock in ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE", "UPDATE OF t SKIP LOCKED"] {
        for sql in [
            format!("SELECT * FROM t FOR {lock}"),
            format!("SELECT * FROM t for/**/{lock} NOWAIT"),
            format!("WITH a AS (SELECT * FROM t FOR {lock}) SELECT * FROM a"),
            format!("SELECT (SELECT a FROM t LIMIT 1 FOR {lock})"),
            format!("DECLARE c CURSOR FOR SELECT * FROM t FOR {lock}"),
            format!("COPY (SELECT * FROM t FOR {lock}) TO STDOUT"),
        ] {
            check(&[(&sql, "RowLock")]);
        }
    }
}

#[test]
fn writes_inside_queries() {
    check(&[
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "DataModifyingCte"),
        ("WITH a AS (SELECT 1) UPDATE t SET a = 1", "DataModifyingCte"),
        ("WITH a AS (SELECT 1) DELETE FROM t USING a", "DataModifyingCte"),
        (
            "WITH a AS (SELECT 1) MERGE INTO t USING a ON true WHEN MATCHED THEN DELETE",
            "DataModifyingCte",
        ),
        ("WITH a AS (WITH b AS (DELETE FROM t RETURNING *) TABLE b) SELECT 1", "DataModifyingCte"),
        ("WITH a AS MATERIALIZED (UPDATE t SET a = 1 RETURNING *) SELECT 1", "DataModifyingCte"),
        ("COPY (DELETE FROM t RETURNING *) TO STDOUT", "DataModifyingCte"),
        ("EXPLAIN WITH a AS (DELETE FROM t RETURNING *) SELECT 1", "Explain"),
        ("EXPLAIN DELETE FROM t", "Explain"),
        ("EXPLAIN (COSTS off) SELECT * FROM t FOR UPDATE", "Explain"),
        ("EXPLAIN SELECT nextval('s')", "Explain leaves sequence"),
        ("EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1", "Explain"),
        ("EXPLAIN EXECUTE p", "Explain leaves prepared"),
        ("SELECT 1 INTO TEMP t", "SelectInto leaves temp"),
        ("SELECT * INTO TEMPORARY TABLE t FROM u", "SelectInto leaves temp"),
        ("SELECT * INTO LOCAL TEMP t FROM u", "SelectInto leaves temp"),
        ("SELECT * INTO pg_temp.t FROM u", "SelectInto leaves temp"),
        ("SELECT * INTO UNLOGGED t FROM u", "SelectInto"),
        // Names that could be statements; a call is none.
        ("SELECT delete(a, 'b'), update(c)", "Function leaves unknown"),
        ("SELECT update FROM t", "DataModifyingCte"),
    ]);
}

#[test]
fn calls_wherever_they_stand() {
    for sql in [
        "SELECT f(1)",
        "SELECT \"f\"(1)",
        "SELECT a.f(1)",
        "SELECT a . f /* x */ (1)",
        "SELECT b.a.f(1)",
        "VALUES (f(1))",
        "SELECT * FROM f(1)",
        "SELECT * FROM t, f(1)",
        "SELECT * FROM ROWS FROM (f(1))",
        "SELECT * FROM lower('a') WITH ORDINALITY, f(1)",
        "SELECT * FROM t, LATERAL f(1)",
        "SELECT DISTINCT ON (a) f(1) FROM t",
        "SELECT DISTINCT ON ((a)) f(1) FROM t",
        "SELECT a OPERATOR(pg_catalog.+) f(1)",
        "SELECT a + f(1), -f(1), @f(1)",
        "SELECT a FROM t ORDER BY f(1)",
        "SELECT a FROM t GROUP BY f(1)",
        "SELECT sum(a) OVER (PARTITION BY f(1)) FROM t",
        "SELECT a LIKE b ESCAPE f(1)",
        "SELECT a AT TIME ZONE f(1)",
        "SELECT a BETWEEN f(1) AND 2",
        "SELECT CASE f(1) WHEN 1 THEN 2 END",
        "SELECT CASE WHEN a THEN 1 ELSE f(1) END",
        "SELECT a[f(1)], ARRAY[f(1)]",
        "SELECT (f(1)).a",
        "SELECT lower(f(1))",
        "SELECT coalesce(1, f(1))",
        "SELECT xmlelement(name a, f(1))",
        "SELECT xmlparse(document f(1))",
        "SELECT json_object(KEY f(1) VALUE 2)",
        "SELECT lower(VARIADIC f(1))",
        "SELECT g.lower(1)",
        "SELECT 1 LIMIT f(1)",
        "SELECT 1 OFFSET f(1)",
        "SELECT * FROM t TABLESAMPLE system (f(1))",
        "SELECT * FROM t TABLESAMPLE system (1) REPEATABLE (f(1))",
        "SELECT over(1)",
        "SELECT filter(1)",
        "SELECT by(1)",
        "SELECT sets(1)",
        "SELECT materialized(1)",
        "SELECT set(1)",
        "SELECT insert(1)",
        "SELECT conflict(1)",
        "SELECT operator(1)",
        "SELECT operator(*)",
        "SELECT * FROM operator(a = 1)",
        "SELECT zone(1)",
        "SELECT first(1)",
        "SELECT \"Lower\"('x')",
        "WITH a AS (SELECT 1), b(x) AS (SELECT f(1)) SELECT 1",
        "WITH a AS (SELECT 1) SELECT 1, f(1)",
        "WITH a AS (SELECT 1) (SELECT 1) ORDER BY 1, f(1)",
        "COPY (SELECT f(1)) TO STDOUT",
        "DECLARE c CURSOR FOR SELECT f(1)",
    ] {
        check(&[(sql, "Function leaves unknown")]);
    }
}

#[test]
fn names_with_escapes() {
    for sql in [
        "SELECT U&\"f\"(1)",
        "SELECT U&\"!0066\" UESCAPE '!' (1)",
        "SELECT * FROM u&\"pg_l\\006fcks\"",
        "TABLE U&\"x\"",
        "COPY U&\"x\" TO STDOUT",
    ] {
        check(&[(sql, "EscapedName leaves unknown")]);
    }
    check(&[
        ("SET U&\"x\" = 1", "UnknownStatement leaves unknown ends"),
        ("SHOW U&\"x\"", "UnknownStatement leaves unknown ends"),
        ("SELECT U&'\\0066'", "read"),
    ]);
}

#[test]
fn built_in_functions() {
    check(&[
        ("SELECT pg_catalog.nextval('s')", "Function leaves sequence"),
        ("SELECT currval('s'), lastval()", "Function"),
        ("SELECT pg_advisory_xact_lock(1)", "Function"),
        ("SELECT pg_advisory_unlock(1)", "Function leaves clears-advisory"),
        ("SELECT pg_is_in_recovery()", "Function"),
        ("SELECT pg_last_wal_replay_lsn()", "Function"),
        ("SELECT pg_walfile_name('0/0')", "Function"),
        ("SELECT pg_backend_pid()", "Function"),
        ("SELECT pg_export_snapshot()", "Function"),
        ("SELECT pg_stat_get_db_xact_commit(1)", "Function"),
        ("SELECT pg_terminate_backend(1)", "Function"),
        ("SELECT inet_server_addr()", "Function"),
        ("SELECT lo_get(1), lo_open(1, 2)", "Function"),
        ("SELECT setseed(0.1)", "Function leaves unknown-setting"),
        ("SELECT query_to_xml('select f()', true, true, '')", "Function leaves unknown"),
        ("SELECT * FROM ts_stat('select f()')", "Function leaves unknown"),
        ("SELECT pg_replication_origin_session_setup('a')", "Function leaves unknown"),
        ("SELECT pg_create_physical_replication_slot('a', true, true)", "Function leaves unknown"),
        ("SELECT dblink_connect('a')", "Function leaves unknown"),
    ]);
}

#[test]
fn what_sequences_gave_last() {
    for (sql, recalls) in [
        ("SELECT lastval()", true),
        ("SELECT pg_catalog.currval('s')", true),
        ("INSERT INTO child VALUES (currval('parent_id_seq'))", true),
        ("SELECT nextval('s'), currval('s')", false),
        ("SELECT currval('s'), nextval('s')", false),
        ("SELECT lastval FROM t", false),
        ("SELECT 'lastval()'", false),
    ] {
        assert_eq!(see(sql).recalls, recalls, "{sql}");
    }
}

#[test]
fn settings_by_function() {
    check(&[
        ("SELECT set_config('a.b', 'c', true)", "Function"),
        ("SELECT pg_catalog.set_config ('a.b', $1, TRUE)", "Function"),
        ("SELECT set_config('a.b', f_x || 'c', true)", "Function"),
        ("SELECT set_config('a.b', 'c', 't')", "Function leaves setting"),
        ("SELECT set_config('a.b', 'c', $1)", "Function leaves setting"),
        ("SELECT set_config('a.b', 'c', true OR false)", "Function leaves setting"),
        ("SELECT set_config($1, 'c', false)", "Function leaves setting|unknown-setting"),
        ("SELECT set_config('a' || 'b', 'c', false)", "Function leaves setting|unknown-setting"),
        ("SELECT set_config($1, $2, true)", "Function"),
        ("SELECT set_config('search_path', 'pg_temp', true)", "Function leaves unknown"),
        ("SELECT set_config('search_path', 'a', true)", "Function"),
        ("SELECT set_config(a => 'x', b => 'y')", "Function leaves setting|unknown-setting"),
        ("INSERT INTO t SELECT set_config('a.b', 'c', false)", "Keyword leaves setting"),
        ("SELECT current_setting('port')", "ServerSetting"),
        ("SELECT current_setting('transaction_read_only')", "ServerSetting"),
        ("SELECT current_setting($1)", "ServerSetting"),
        ("SELECT current_setting('a.' || 'b')", "ServerSetting"),
        ("SHOW ALL", "ServerSetting"),
        ("SHOW data_directory", "ServerSetting"),
        ("SHOW quorate.token", "ServerSetting"),
    ]);
}

#[test]
fn views_about_one_server() {
    for view in [
        "pg_stat_activity",
        "pg_catalog.pg_stat_activity",
        "PG_LOCKS",
        "\"pg_locks\"",
        "pg_cursors",
        "pg_prepared_statements",
        "pg_settings",
        "pg_replication_slots",
        "pg_stat_statements",
        "pg_hba_file_rules",
        "pg_statio_user_tables",
        "pg_stat_replication",
        "pg_temp.t",
    ] {
        for sql in [
            format!("SELECT * FROM {view}"),
            format!("SELECT 1 WHERE EXISTS (SELECT FROM t, {view} x WHERE x.a = 1)"),
            format!("TABLE {view}"),
            format!("COPY {view} TO STDOUT"),
        ] {
            check(&[(&sql, "SystemView")]);
        }
    }
    check(&[("SELECT pg_stat_reset()", "Function")]);
}

#[test]
fn rows() {
    for sql in [
        "SELECT 1",
        "SHOW a",
        "EXPLAIN DELETE FROM t",
        "FETCH 1 FROM c",
        "EXECUTE p",
        "CALL p()",
        "INSERT INTO t VALUES (1) RETURNING a",
        "WITH a AS (SELECT 1) TABLE a",
        "WITH a AS (SELECT 1) DELETE FROM t RETURNING *",
        "DELETE FROM t; SELECT 1",
        "'",
    ] {
        assert!(see(sql).returns_rows, "{sql}");
    }
    for sql in [
        "INSERT INTO t VALUES (1)",
        "UPDATE t SET a = 1",
        "DELETE FROM t",
        "BEGIN",
        "SET a = 1",
        "WITH a AS (SELECT 1) INSERT INTO t TABLE a",
        "CREATE TABLE t ()",
        "LISTEN a",
        "",
        "MOVE 1 IN c",
        "WITH a AS (DELETE FROM t RETURNING *) INSERT INTO t TABLE a",
        "DECLARE c CURSOR FOR SELECT 1",
    ] {
        assert!(!see(sql).returns_rows, "{sql}");
    }
}
