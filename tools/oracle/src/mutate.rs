//! New statements out of old ones: wrapped, joined, spliced, with something put in.

/// A small generator; the seed is printed so that a run can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }

    fn of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const WRAPPERS: &[(&str, &str)] = &[
    ("", ""),
    ("EXPLAIN ", ""),
    ("EXPLAIN (ANALYZE, BUFFERS) ", ""),
    ("EXPLAIN ANALYZE VERBOSE ", ""),
    ("COPY (", ") TO STDOUT"),
    ("DECLARE c CURSOR FOR ", ""),
    ("DECLARE c NO SCROLL CURSOR WITH HOLD FOR ", ""),
    ("PREPARE p AS ", ""),
    ("PREPARE p (int, text) AS ", ""),
    ("WITH x AS (", ") SELECT * FROM x"),
    ("WITH RECURSIVE x(a) AS NOT MATERIALIZED (", "), y AS (SELECT 1) SELECT f(a), g(a) FROM x, y"),
    ("WITH x AS MATERIALIZED (", ") (SELECT 1) ORDER BY a, f(b)"),
    ("SELECT (", ")"),
    ("SELECT * FROM (", ") AS q(a, b)"),
    ("SELECT * FROM (", ") q (a, b) WHERE a IN (1, 2)"),
    ("CREATE TABLE t AS ", ""),
    ("CREATE TEMP TABLE t AS ", ""),
    ("CREATE MATERIALIZED VIEW v AS ", ""),
    ("CREATE VIEW v AS ", ""),
    ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC ", "; END"),
    ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; ", "; END; COMMIT"),
    ("CREATE RULE r AS ON INSERT TO t DO ALSO (", "; SELECT 2)"),
    ("INSERT INTO t (a, b) ", " RETURNING *"),
    ("INSERT INTO t (a, b) ", ""),
    ("(", ")"),
    ("(", ") UNION ALL SELECT 1"),
    ("BEGIN; ", "; COMMIT"),
    ("BEGIN READ ONLY; ", "; COMMIT"),
    ("/* a /* nested */ ' */ ", " -- '"),
    ("SELECT DISTINCT ON ((", ")) f(x) FROM t"),
    ("SELECT 'a' -- '\n'b', $q$ ' $q$, E'\\'', (", ")"),
];

const INSERTED: &[&str] = &[
    "U&\"!0066\" UESCAPE '!' (1)",
    "U&\"pg_l\\006fcks\"",
    "f(1)",
    "\"F\"(1)",
    "public . f ( a )",
    "nextval('s')",
    "pg_catalog.nextval('s')",
    "/**/pg_notify/**/('a','b')",
    "U&\"f\"(1)",
    "now()",
    "lower('X')",
    "pg_catalog.lower('X')",
    "\"Lower\"('x')",
    "public.lower('x')",
    "count(*)",
    "count(*) FILTER (WHERE f(a))",
    "sum(a) OVER (PARTITION BY f(a) ORDER BY b)",
    "(SELECT 1 FOR UPDATE)",
    "(SELECT a FROM t FOR NO KEY UPDATE OF t)",
    "(SELECT a FROM t FOR KEY SHARE SKIP LOCKED)",
    "pg_locks",
    "pg_catalog.pg_stat_activity",
    "pg_temp.t",
    "\"pg_locks\"",
    "pg_class",
    "x::varchar(3)",
    "x::numeric(3, 2)",
    "CAST(x AS foo(3))",
    "a AS f(b)",
    "f AS g(a, b)",
    "INTO t2",
    "INTO TEMP t2",
    "pg_advisory_lock(1)",
    "pg_advisory_xact_lock(1)",
    "set_config('a.b', 'c', true)",
    "set_config('a.b', 'c', false)",
    "set_config(a, b, c)",
    "set_config('a.b', f('c'), true)",
    "current_setting('a.b')",
    "current_setting('port')",
    "a OPERATOR(pg_catalog.+) f(b)",
    "OPERATOR(public.@) f(b)",
    "GROUP BY GROUPING SETS (f(a), (b))",
    "ORDER BY (f(a))",
    "ORDER BY a, f(a)",
    "CASE WHEN f(a) THEN 1 END",
    "ARRAY[f(1)]",
    "coalesce(a, f(b))",
    "a LIKE b ESCAPE f(c)",
    "a AT TIME ZONE f(b)",
    "a AT TIME ZONE ('utc')",
    "LIMIT f(1)",
    "FETCH FIRST (f(1)) ROWS ONLY",
    "LATERAL f(a)",
    "ROWS FROM (f(1), g(2)) AS q(a, b)",
    "f(1) WITH ORDINALITY AS q(a, b), g(2)",
    "t TABLESAMPLE system (f(1)) REPEATABLE (g(2))",
    "XMLELEMENT(NAME a, f(b))",
    "XMLPARSE(DOCUMENT f(a))",
    "JSON_OBJECT(KEY f(a) VALUE g(b))",
    "JSON_VALUE(a, '$' PASSING f(b) AS c)",
    "substring(a FROM f(b) FOR g(c))",
    "over(1)",
    "by(1)",
    "filter(1)",
    "sets(1)",
    "set(1)",
    "insert(1)",
    "conflict(1)",
    "zone(1)",
    "first(1)",
    "join(1)",
    "materialized(1)",
    "operator(1)",
    "update",
    "delete",
    "VALUES (f(1))",
    "TABLE pg_settings",
    "dblink_exec('x')",
    "setseed(0.1)",
    "query_to_xml('x', true, true, '')",
    "random()",
    "t.f(a)",
    "a.b.c",
    "(a).f",
    "(f(a)).b",
    "a[f(1)]",
    "a[1](2)",
    "interval '1' second(3)",
    "INTERVAL(3) '1'",
    "$1",
    "E'\\''",
    "U&'\\0041'",
    "$a$;$a$",
    "'a''b'",
    "--x\n",
    "/*;*/",
    "@-1",
    "WITH",
    "AS",
    "FOR",
    "FOR UPDATE",
    "FOR SHARE",
    ",",
    "(",
    ")",
    ";",
    ".",
    "::",
    "SELECT",
    "FROM",
    "NOT",
    "USING (a)",
    "ON CONFLICT (a) DO NOTHING",
    "RETURNING a",
    "SET (a, b) = (f(1), 2)",
    "q(a, b)",
    "\"q\" (a, b)",
    "PARTITION BY (a)",
    "WINDOW w AS (PARTITION BY f(a))",
    "END",
];

/// One new string; it need not be SQL.
pub fn mutate(pieces: &[String], random: &mut Random) -> String {
    let mut sql = piece(pieces, random);
    for _ in 0..1 + random.below(3) {
        sql = match random.below(7) {
            0 | 1 => {
                let (before, after) = WRAPPERS[random.below(WRAPPERS.len())];
                format!("{before}{sql}{after}")
            }
            2 => format!("{sql};{}", piece(pieces, random)),
            3 => splice(&sql, &piece(pieces, random), random),
            _ => insert(&sql, random),
        };
    }
    sql
}

/// Mostly queries: the others need the writer anyhow.
fn piece(pieces: &[String], random: &mut Random) -> String {
    for _ in 0..8 {
        let piece = &pieces[random.below(pieces.len())];
        let query = piece.len() > 6 && piece[..].to_lowercase().contains("select");
        if piece.len() < 600 && (query || random.below(4) == 0) {
            return piece.trim().trim_end_matches(';').to_owned();
        }
    }
    "SELECT a, b FROM t".to_owned()
}

/// Byte ranges of PostgreSQL's tokens.
fn tokens(sql: &str) -> Vec<(usize, usize)> {
    let scanned = pg_query::scan(sql).map(|s| s.tokens).unwrap_or_default();
    scanned.iter().map(|t| (t.start as usize, t.end as usize)).collect()
}

/// Puts something before, after or in place of a token.
fn insert(sql: &str, random: &mut Random) -> String {
    let tokens = tokens(sql);
    let Some(&(start, end)) = tokens.get(random.below(tokens.len())) else {
        return sql.to_owned();
    };
    let (from, to) = match random.below(4) {
        0 => (start, start),
        1 => (end, end),
        _ => (start, end),
    };
    let space = random.of(&[" ", " ", "", "/**/", "\n"]);
    match (sql.get(..from), sql.get(to..)) {
        (Some(a), Some(b)) => format!("{a}{space}{}{space}{b}", random.of(INSERTED)),
        _ => sql.to_owned(),
    }
}

/// The beginning of one and the end of another.
fn splice(a: &str, b: &str, random: &mut Random) -> String {
    let (left, right) = (tokens(a), tokens(b));
    let cut = left.get(random.below(left.len())).map_or(0, |t| t.1);
    let from = right.get(random.below(right.len())).map_or(0, |t| t.0);
    format!("{} {}", a.get(..cut).unwrap_or(a), b.get(from..).unwrap_or(b))
}

const SOUP: &[&str] = &[
    "'", "'", "''", "\"", "\"\"", "\\", "\\'", "$$", "$a$", "$A$", "$a", "$1", "$", "E'", "e'",
    "U&'", "U&\"", "B'", "x'", "N'", "n", "E", "u&", "/*", "*/", "/*", "*/", "--", "-", "/", "*",
    "+", "@", "<=", "!", "\n", "\n", "\r", " ", " ", "\t", ";select ", ";select ", ";select ", "a",
    "b$", "_", "\u{e9}", "1", "1e", "1.", ".5", "..", "0x1", "1_0", ":", "::", ":=", "(", ")", "[",
    "]", ",", ".", "=", "%", "|", "UESCAPE", "'!'", "select", "\u{b}", "\u{c}", "\u{a0}",
];

/// Text that only a scanner can make sense of; every statement begins with `select`.
pub fn soup(random: &mut Random) -> String {
    let soup: String = (0..2 + random.below(18)).map(|_| random.of(SOUP)).collect();
    format!("select {soup}")
}
