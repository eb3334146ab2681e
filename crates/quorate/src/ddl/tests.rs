use quorate_core::role::Role;

use super::*;

fn one(sql: &str) -> Finding {
    let mut all = check(sql, None).unwrap();
    assert_eq!(all.len(), 1, "{sql}");
    all.remove(0)
}

/// Weight and lock of each, as PostgreSQL's documentation has them.
#[test]
fn locks_and_rewrites() {
    use Lock::{All, None, Rows, Shape, Unknown as NotKnown, Writes, WritesAndSelf};
    use Weight::{Harmless, Heavy, Moment, Unknown};
    for (sql, weight, lock) in [
        ("ALTER TABLE t ADD COLUMN a int", Moment, All),
        ("ALTER TABLE t ADD COLUMN a int DEFAULT 7", Moment, All),
        ("alter table only s.t add a timestamptz default now()", Moment, All),
        ("ALTER TABLE t ADD COLUMN a uuid DEFAULT gen_random_uuid()", Heavy, All),
        ("ALTER TABLE t ADD COLUMN a timestamptz DEFAULT clock_timestamp()", Heavy, All),
        ("ALTER TABLE t ADD COLUMN a bigserial", Heavy, All),
        ("ALTER TABLE t ADD COLUMN a int GENERATED ALWAYS AS (b * 2) STORED", Heavy, All),
        ("ALTER TABLE t ADD COLUMN a int UNIQUE", Heavy, All),
        ("ALTER TABLE t ADD a int DEFAULT 5 CHECK (a > 0)", Moment, All),
        ("ALTER TABLE t ADD a int DEFAULT 5 REFERENCES u (id)", Moment, All),
        ("ALTER TABLE t ALTER COLUMN a TYPE bigint", Heavy, All),
        ("ALTER TABLE t ALTER a SET NOT NULL", Heavy, All),
        ("ALTER TABLE t ALTER a SET DEFAULT 5", Moment, All),
        ("ALTER TABLE t ALTER a SET STATISTICS 500", Moment, Shape),
        ("ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)", Heavy, All),
        ("ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID", Moment, All),
        ("ALTER TABLE t ADD CONSTRAINT c FOREIGN KEY (a) REFERENCES u (id)", Heavy, WritesAndSelf),
        ("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES u (id) NOT VALID", Moment, WritesAndSelf),
        ("ALTER TABLE t VALIDATE CONSTRAINT c", Moment, Shape),
        ("ALTER TABLE t ADD PRIMARY KEY (a, b)", Heavy, All),
        ("ALTER TABLE t ADD CONSTRAINT c UNIQUE USING INDEX i", Moment, All),
        ("ALTER TABLE t DROP COLUMN a, ADD COLUMN b int", Moment, All),
        ("ALTER TABLE t ADD b int, ALTER a TYPE text", Heavy, All),
        ("ALTER TABLE t SET LOGGED", Heavy, All),
        ("ALTER TABLE t SET (fillfactor = 70)", Moment, Shape),
        ("ALTER TABLE p ATTACH PARTITION t FOR VALUES IN (1)", Heavy, Shape),
        ("ALTER TABLE p DETACH PARTITION t", Moment, All),
        ("ALTER TABLE p DETACH PARTITION t CONCURRENTLY", Moment, Shape),
        ("ALTER TABLE \"my table\".\"t, u\" RENAME TO v", Moment, All),
        ("ALTER SYSTEM SET work_mem = '1GB'", Heavy, None),
        ("CREATE INDEX i ON t (a)", Heavy, Writes),
        ("CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)", Moment, Shape),
        ("DROP INDEX i", Moment, All),
        ("DROP INDEX CONCURRENTLY i", Moment, Shape),
        ("REINDEX TABLE t", Heavy, Writes),
        ("VACUUM FULL t", Heavy, All),
        ("VACUUM t", Harmless, Shape),
        ("TRUNCATE t", Moment, All),
        ("CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f()", Moment, WritesAndSelf),
        ("CREATE TABLE t (a int)", Harmless, None),
        ("UPDATE t SET a = 1", Heavy, Rows),
        ("UPDATE t SET a = 1 WHERE id < 1000", Moment, Rows),
        ("SELECT 1", Harmless, None),
        ("DO $$ BEGIN DROP TABLE t; END $$", Unknown, NotKnown),
        ("WITH x AS (DELETE FROM t) SELECT 1", Unknown, NotKnown),
    ] {
        let text = sql.to_owned();
        let statement = &sql::statements(text.as_bytes()).unwrap()[0];
        let effect = effect(&Words::of(text.as_bytes(), statement));
        assert_eq!((effect.weight, effect.lock), (weight, lock), "{sql}");
    }
}

#[test]
fn what_is_heavy_says_what_to_do_instead() {
    for sql in ["CREATE INDEX i ON t (a)", "ALTER TABLE t ADD a int UNIQUE", "DELETE FROM t"] {
        let finding = one(sql);
        assert!(!finding.instead.is_empty() && !finding.work.is_empty(), "{finding:?}");
    }
    assert!(one("ALTER TABLE t ADD a int").instead.contains("lock_timeout"));
    let set = check("SET lock_timeout = '2s'; ALTER TABLE t ADD a int;", None).unwrap();
    assert_eq!(set[1].instead, "", "it is set already");
}

#[test]
fn a_lock_before_something_slow_in_a_transaction_is_told() {
    let text =
        "BEGIN;\nALTER TABLE t ADD a int;\nUPDATE t SET a = 1;\nCOMMIT;\nUPDATE t SET a = 2;";
    let all = check(text, None).unwrap();
    assert_eq!(all.iter().map(|f| f.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(all[2].locks.contains("held as long"), "{}", all[2].locks);
    assert!(!all[4].locks.contains("held as long"), "{}", all[4].locks);
}

#[test]
fn replicas_suffer_by_their_roles() {
    let mut document = Document::default();
    for (name, role) in [("n3", Role::Reporting), ("n4", Role::Analytics)] {
        document.nodes.entry(NodeId::new(name).unwrap()).or_default().role = role;
    }
    let finding = &check("DROP TABLE t", Some(&document)).unwrap()[0];
    assert_eq!(
        finding.replicas,
        "the lock is replayed: on n3 (reporting) queries of the table hold up replay for 10 min, then \
         end, on n4 (analytics) queries of the table hold up replay until they end; on all others for \
         a second"
    );
    assert_eq!(check("SELECT 'x", None), Err(Unreadable::Unended));
}
