//! Every probe that other gateways were seen to fail, and what sessions were seen to leak.

use crate::{Known, check, check_with, see};
use quorate_wire::sql::Options;

/// In each case the gateway that guesses `read` sends the statement to a standby, which refuses
/// it, or, worse, does not.
#[test]
fn what_others_sent_to_a_replica() {
    check(&[
        ("SELECT nextval('s')", "Function leaves sequence"),
        ("SELECT setval('s', 1)", "Function leaves sequence"),
        ("SELECT f_writes()", "Function leaves unknown"),
        ("WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x", "DataModifyingCte"),
        ("SELECT * FROM t FOR UPDATE", "RowLock"),
        ("SELECT * FROM (SELECT * FROM t FOR SHARE) q", "RowLock"),
        ("SELECT a INTO b FROM t", "SelectInto"),
        ("DO $$BEGIN INSERT INTO t VALUES (1); END$$", "Keyword leaves unknown"),
        ("SELECT txid_current()", "Function"),
        ("SELECT pg_current_wal_lsn()", "Function"),
        ("SELECT pg_notify('a', 'b')", "Function"),
        ("SELECT lo_create(0)", "Function"),
        ("select 1; insert into t values (1)", "Keyword"),
        ("SELECT pg_advisory_lock(1)", "Function leaves advisory"),
        ("CALL p()", "Keyword leaves unknown"),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1)", "Explain"),
        ("/* a comment */ INSERT INTO t VALUES (1)", "Keyword"),
        ("BEGIN; SELECT 1; INSERT INTO t VALUES (1)", "Transaction begins"),
        ("BEGIN READ ONLY", "read begins"),
        ("BEGIN", "Transaction begins"),
    ]);
}

/// A view that calls such a function looks like any view: PostgreSQL refuses it on a standby.
#[test]
fn a_view_that_writes_is_out_of_sight() {
    check(&[("SELECT * FROM v_writes", "read")]);
}

#[test]
fn what_leaked_from_one_client_to_another() {
    check(&[
        ("PREPARE p AS SELECT 1", "Session leaves prepared"),
        ("EXECUTE p", "Session leaves prepared"),
        ("SET search_path = a", "Session leaves setting"),
        ("SET default_transaction_read_only = on", "Session leaves setting"),
        ("CREATE TEMP TABLE t (a int)", "Keyword leaves temp"),
        ("SELECT pg_try_advisory_lock_shared(1, 2)", "Function leaves advisory"),
        ("LISTEN a", "Session leaves listen"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "Session leaves hold"),
        ("SELECT set_config('a.b', 'c', false)", "Function leaves setting"),
        ("LOAD 'auto_explain'", "Keyword leaves load"),
    ]);
}

#[test]
fn what_is_known_of_functions_decides() {
    let options = Options { functions: &Known, ..Options::default() };
    check_with(
        &[
            ("SELECT f_reads(1)", "read"),
            ("SELECT F_READS (1)", "read"),
            ("SELECT public.f_reads(1)", "read"),
            ("SELECT \"F Reads\"(1)", "read"),
            ("SELECT \"F_READS\"(1)", "Function leaves unknown"),
            ("SELECT f_writes()", "Function"),
            ("SELECT * FROM f_writes() AS w(a)", "Function"),
            ("SELECT a FROM s.V_Writes AS w(a)", "View"),
            ("SELECT 1 WHERE EXISTS (SELECT FROM t, v_writes)", "View"),
            ("TABLE ONLY v_writes", "View"),
            ("COPY v_writes TO STDOUT", "View"),
            ("SELECT * FROM \"V Writes\" JOIN t USING (a)", "View"),
            ("SELECT * FROM \"V_Writes\", \"v writes\", v_writes_not", "read"),
            ("SELECT 'v_writes' -- v_writes", "read"),
            ("DECLARE c CURSOR FOR SELECT * FROM v_writes", "View"),
            ("EXPLAIN ANALYZE SELECT * FROM v_writes", "Explain"),
            ("SELECT f_listens()", "Function leaves unknown"),
            ("SELECT f_new()", "Function leaves unknown"),
            ("CALL f_writes()", "Keyword"),
            ("INSERT INTO t SELECT f_writes()", "Keyword"),
            ("INSERT INTO t SELECT f_new()", "Keyword leaves unknown"),
            // Overloads of functions that are built in.
            ("SELECT length('a')", "Function"),
            ("SELECT pg_catalog.length('a')", "read"),
            ("SELECT lower('a')", "Function leaves unknown"),
            ("SELECT public.upper('a')", "Function leaves unknown"),
            // What is built in stays what it is.
            ("SELECT public.set_config('a', 'b', false)", "Function leaves unknown"),
        ],
        &options,
    );
}

#[test]
fn a_beginning_alone_may_do_anything() {
    let options = Options { whole: false, ..Options::default() };
    check_with(&[("SELECT 1", "NotWhole leaves unknown ends")], &options);
}

#[test]
fn comments_that_speak_to_quorate() {
    let found = |sql: &'static str| {
        see(sql).directive.map(|span| std::str::from_utf8(span.of(sql.as_bytes())).unwrap())
    };
    assert_eq!(found("/* quorate: eventual */ SELECT 1"), Some("eventual"));
    assert_eq!(found("SELECT /*quorate:bounded 2s*/ 1"), Some("bounded 2s"));
    assert_eq!(found("SELECT 1 /* quorate: a */ /* quorate: b */"), Some("a"));
    assert_eq!(found("; /* quorate: a */ ; SELECT 1"), Some("a"));
    assert_eq!(found("SELECT 1; /* quorate: late */ SELECT 2"), None);
    assert_eq!(found("SELECT '/* quorate: no */'"), None);
    assert_eq!(found("-- quorate: no\nSELECT 1"), None);
    assert_eq!(found("SELECT 1 /* other: no */"), None);
}
