//! Statements that write although they look like reads, or that want the writer for another reason:
//! each must work in every mode through every node, and must have its effect exactly once a run.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use quorate_e2e::wire::{Mode, Session};

use super::rig::{Rig, Trouble};

/// Objects that hide writes.
const HIDING: &str = "
    CREATE TABLE t (id int, note text); INSERT INTO t VALUES (1, 'one');
    CREATE TABLE log (at timestamptz DEFAULT clock_timestamp());
    CREATE SEQUENCE seq;
    CREATE FUNCTION writes() RETURNS text LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO {s}.log DEFAULT VALUES; RETURN 'wrote'; END$$;
    CREATE FUNCTION \"Writes Too\"() RETURNS text LANGUAGE sql AS
        $$INSERT INTO {s}.log DEFAULT VALUES; SELECT 'wrote'$$;
    CREATE FUNCTION indirect() RETURNS text LANGUAGE sql AS $$SELECT {s}.writes()$$;
    CREATE FUNCTION public.{s}_of_row(t) RETURNS text LANGUAGE sql AS $$SELECT {s}.writes()$$;
    CREATE FUNCTION of_integer(int) RETURNS text LANGUAGE sql AS $$SELECT {s}.writes()$$;
    CREATE FUNCTION step(int, int) RETURNS int LANGUAGE sql AS
        $$INSERT INTO {s}.log DEFAULT VALUES; SELECT 1$$;
    CREATE AGGREGATE writing(int) (SFUNC = step, STYPE = int, INITCOND = '0');
    CREATE OPERATOR !!! (RIGHTARG = int, FUNCTION = of_integer);
    CREATE FUNCTION careful() RETURNS text LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO {s}.log DEFAULT VALUES; RETURN 'wrote';
          EXCEPTION WHEN OTHERS THEN RETURN 'refused'; END$$;
    CREATE FUNCTION checks(int) RETURNS boolean LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO {s}.log DEFAULT VALUES; RETURN true; END$$;
    CREATE DOMAIN checked AS int CHECK ({s}.checks(VALUE));
    CREATE VIEW view_writes AS SELECT writes();
    CREATE VIEW view_of_view AS SELECT * FROM view_writes;
    CREATE VIEW view_careful AS SELECT careful();
    CREATE VIEW view_sequence AS SELECT nextval('{s}.seq')::text AS n;
    CREATE PROCEDURE called() LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO {s}.log DEFAULT VALUES; END$$;";

/// What is sent, and how often a row appears in `log` for each run.
const DISGUISED: &[(&str, usize)] = &[
    ("SELECT {s}.writes()", 1),
    ("SELECT {s}.\"Writes Too\"()", 1),
    ("SELECT {s}.indirect()", 1),
    ("SELECT * FROM {s}.writes()", 1),
    ("SELECT (SELECT {s}.writes())", 1),
    ("SELECT 1 WHERE {s}.writes() = 'wrote'", 1),
    ("VALUES ({s}.writes())", 1),
    ("SELECT t.{s}_of_row FROM {s}.t", 1),
    ("SELECT {s}.writing(id) FROM {s}.t", 1),
    ("SELECT OPERATOR({s}.!!!) 1", 1),
    ("SELECT 1::{s}.checked", 1),
    ("SELECT {s}.careful()", 1),
    ("SELECT * FROM {s}.view_writes", 1),
    ("TABLE {s}.view_writes", 1),
    ("SELECT * FROM {s}.view_of_view", 1),
    ("WITH x AS (INSERT INTO {s}.log DEFAULT VALUES RETURNING 1) SELECT * FROM x", 1),
    (
        "SELECT 1 FROM (WITH a AS (SELECT {s}.writes() AS w) SELECT * FROM a) q \
         WHERE EXISTS (SELECT FROM (SELECT w) r WHERE w <> '')",
        1,
    ),
    (
        "WITH RECURSIVE a AS (SELECT 1), b AS (INSERT INTO {s}.log DEFAULT VALUES RETURNING 1) \
         SELECT * FROM a, b",
        1,
    ),
    ("/* read */ INSERT INTO {s}.log DEFAULT VALUES", 1),
    ("-- SELECT\nINSERT INTO {s}.log DEFAULT VALUES", 1),
    ("/* /* nested */ SELECT */ INSERT INTO {s}.log DEFAULT VALUES", 1),
    ("EXPLAIN ANALYZE INSERT INTO {s}.log DEFAULT VALUES", 1),
    ("EXPLAIN (ANALYZE, COSTS off) SELECT {s}.writes()", 1),
    ("EXPLAIN (COSTS off) INSERT INTO {s}.log DEFAULT VALUES", 0),
    ("CALL {s}.called()", 1),
    ("DO $$BEGIN INSERT INTO {s}.log DEFAULT VALUES; END$$", 1),
    ("SELECT nextval('{s}.seq')", 0),
    ("SELECT setval('{s}.seq', 1000)", 0),
    ("SELECT * FROM {s}.view_sequence", 0),
    ("SELECT * FROM {s}.t FOR UPDATE", 0),
    ("SELECT * FROM (SELECT * FROM {s}.t FOR SHARE) q", 0),
    ("SELECT * FROM (SELECT * FROM {s}.t FOR NO KEY UPDATE) q", 0),
    ("WITH q AS (SELECT * FROM {s}.t FOR KEY SHARE) SELECT * FROM q", 0),
    ("SELECT txid_current()", 0),
    ("SELECT pg_current_xact_id()", 0),
    ("SELECT pg_current_wal_lsn()", 0),
    ("SELECT pg_notify('nobody', 'x')", 0),
    ("SELECT lo_create(0)", 0),
    ("SELECT lo_unlink(lo_from_bytea(0, 'x'))", 0),
    ("SELECT pg_advisory_xact_lock(4711)", 0),
    ("LOCK TABLE {s}.t IN SHARE MODE", 0),
    ("NOTIFY nobody", 0),
    ("COMMENT ON TABLE {s}.t IS 'x'", 0),
    ("ANALYZE {s}.t", 0),
    ("REFRESH MATERIALIZED VIEW {s}.copy", 0),
];

#[test]
fn writes_in_disguise_are_done_once() -> Result<()> {
    let rig = Rig::shared()?;
    let schema =
        rig.schema(&format!("{HIDING} CREATE MATERIALIZED VIEW copy AS SELECT * FROM t;"))?;
    let mut trouble = Trouble::default();
    for (sql, writes) in DISGUISED {
        let sql = sql.replace("{s}", &schema);
        let counted = Mutex::new(rig.direct()?);
        let alone = |session: &mut Session, mode| {
            let mut log = counted.lock().unwrap_or_else(PoisonError::into_inner);
            once(&mut log, session, mode, &schema, &sql, *writes)
        };
        trouble.note(&sql, rig.everywhere(alone));
    }
    trouble.end()
}

fn once(
    log: &mut Session,
    session: &mut Session,
    mode: Mode,
    schema: &str,
    sql: &str,
    writes: usize,
) -> Result<()> {
    // LOCK TABLE alone is refused outside a transaction, by everybody.
    let block = sql.starts_with("LOCK");
    let before = logged(log, schema)?;
    if block {
        session.simple("BEGIN")?.ok()?;
    }
    session.run(mode, sql)?.ok()?;
    if block {
        session.simple("COMMIT")?.ok()?;
    }
    let wrote = logged(log, schema)? - before;
    let wanted = writes * mode.runs();
    ensure!(wrote == wanted, "{wrote} writes, not {wanted}");
    Ok(())
}

fn logged(log: &mut Session, schema: &str) -> Result<usize> {
    Ok(log.value(&format!("SELECT count(*) FROM {schema}.log"))?.parse()?)
}

#[test]
fn select_into_makes_a_table() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int); INSERT INTO t VALUES (1);")?;
    rig.everywhere(|session, mode| {
        let makes = format!("SELECT * INTO {schema}.made FROM {schema}.t");
        if mode == Mode::Named {
            // It runs twice: the second one finds the first one's table.
            session.prepare("into", &makes)?.ok()?;
            session.execute("into", &[])?.ok()?;
        } else {
            session.run(mode, &makes)?.ok()?;
        }
        session.simple(&format!("DROP TABLE {schema}.made"))?.ok().map(drop)
    })
}

#[test]
fn several_statements_in_one_message() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    let mut trouble = Trouble::default();
    for (door, address) in rig.doors() {
        let mut session = Session::open(address, rig.cluster.login())?;
        let scripts = [
            ("SELECT 1; INSERT INTO {s}.t VALUES (1)", "SELECT 1|INSERT 0 1"),
            (
                "SELECT ';'; SELECT $x$;$x$; INSERT INTO {s}.t VALUES (1); SELECT 2",
                "SELECT 1|SELECT 1|INSERT 0 1|SELECT 1",
            ),
            (
                "BEGIN; SELECT 1; INSERT INTO {s}.t VALUES (2); COMMIT; SELECT 3",
                "BEGIN|SELECT 1|INSERT 0 1|COMMIT|SELECT 1",
            ),
            ("SELECT 1;;; -- nothing\n; DELETE FROM {s}.t", "SELECT 1|DELETE 3"),
        ];
        for (sql, tags) in scripts {
            let answer = session.simple(&sql.replace("{s}", &schema))?;
            let same = answer.tags().join("|") == tags;
            let done = if same { Ok(()) } else { Err(anyhow::anyhow!("{answer}")) };
            trouble.note(&format!("{sql} through {door}"), done);
        }
        let failed = format!("INSERT INTO {schema}.t VALUES (9); SELECT 1/0");
        let code = session.simple(&failed)?.code();
        ensure!(code == "22012", "{code}");
        let left = session.value(&format!("SELECT count(*) FROM {schema}.t WHERE id = 9"))?;
        ensure!(left == "0", "the first of two statements stayed although the second failed");
    }
    trouble.end()
}

#[test]
fn a_function_that_begins_to_write_is_found_out() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema(
        "CREATE TABLE log (x int);
         CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
         CREATE VIEW v AS SELECT f();",
    )?;
    let mut session = rig.session()?;
    session.simple(&format!("SELECT {schema}.f()"))?.ok()?;
    let other = "CREATE OR REPLACE FUNCTION {s}.f() RETURNS int VOLATILE LANGUAGE sql AS
        'INSERT INTO {s}.log VALUES (1); SELECT 2'";
    rig.direct()?.simple(&other.replace("{s}", &schema))?.ok()?;
    rig.replayed()?;
    for sql in ["SELECT {s}.f()", "SELECT * FROM {s}.v"] {
        let sql = sql.replace("{s}", &schema);
        rig.everywhere(|session, mode| {
            let answer = session.run(mode, &sql)?.ok()?;
            ensure!(answer.value().as_deref() == Some("2"), "{answer}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_pipeline_of_reads_and_writes() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    let mut trouble = Trouble::default();
    for (door, address) in rig.doors() {
        let mut session = Session::open(address, rig.cluster.login())?;
        trouble.note(&door, pipeline(&mut session, &schema));
    }
    trouble.end()
}

/// Every write is seen by the read behind it, although all are sent at once.
fn pipeline(session: &mut Session, schema: &str) -> Result<()> {
    use quorate_e2e::wire::{bind, parse, run, sync};
    session.simple(&format!("TRUNCATE {schema}.t"))?.ok()?;
    for syncs in [true, false] {
        session.simple(&format!("TRUNCATE {schema}.t"))?.ok()?;
        let mut all = Vec::new();
        for i in 0..50 {
            for sql in [
                format!("INSERT INTO {schema}.t VALUES ({i})"),
                format!("SELECT count(*) FROM {schema}.t"),
            ] {
                all.extend([parse("", &sql), bind("", &[]), run()].concat());
                if syncs {
                    all.extend(sync());
                }
            }
        }
        if !syncs {
            all.extend(sync());
        }
        session.send_bytes(&all)?;
        let mut counts = Vec::new();
        for _ in 0..if syncs { 100 } else { 1 } {
            counts.extend(session.answer()?.ok()?.rows());
        }
        for (i, row) in counts.iter().enumerate() {
            let wanted = (i + 1).to_string();
            ensure!(row[0].as_deref() == Some(&wanted), "read {i} saw {row:?}, syncs {syncs}");
        }
        ensure!(counts.len() == 50, "{} reads answered", counts.len());
    }
    Ok(())
}
