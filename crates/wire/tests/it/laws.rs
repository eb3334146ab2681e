//! Laws that hold for all strings.

use crate::see;
use proptest::prelude::*;
use quorate_wire::sql::{Access, Leaves, Options, classify};

/// Statements to vary.
const STATEMENTS: [&str; 16] = [
    "SELECT a , b . c FROM t WHERE a = 'x' AND b > 1.5 ORDER BY c",
    "SELECT count ( * ) FILTER ( WHERE a ) OVER ( PARTITION BY b ) FROM t AS u ( a , b )",
    "WITH x ( a ) AS ( VALUES ( 1 ) ) , y AS ( SELECT 2 ) SELECT lower ( a ) FROM x , y",
    "SELECT f ( 1 ) , public . g ( 'x' )",
    "SELECT * FROM t FOR NO KEY UPDATE",
    "SELECT * INTO TEMP t2 FROM t",
    "INSERT INTO t ( a , b ) VALUES ( 1 , 'x' ) ON CONFLICT ( a ) DO NOTHING RETURNING a",
    "WITH x AS ( DELETE FROM t RETURNING a ) SELECT a FROM x",
    "SET LOCAL work_mem = '1MB'",
    "BEGIN ISOLATION LEVEL REPEATABLE READ , READ ONLY",
    "SELECT set_config ( 'a.b' , 'c' , true )",
    "COPY ( SELECT 1 ) TO STDOUT WITH ( FORMAT csv )",
    "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT 1",
    "CREATE FUNCTION f ( ) RETURNS int BEGIN ATOMIC SELECT 1 ; END ; COMMIT",
    "EXPLAIN ( ANALYZE ) SELECT nextval ( 's' )",
    "SELECT a :: varchar ( 3 ) , pg_advisory_lock ( 1 ) FROM pg_locks",
];

const BLANKS: [&str; 8] =
    [" ", "\n", "\t ", "/**/", " /* x ' */ ", "--y \"\n", "/* /* ( */ ; */", " \r\n-- $$\n"];

fn blank() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&BLANKS[..])
}

fn statement() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&STATEMENTS[..])
}

/// Bits and pieces that make text near to SQL.
fn text() -> impl Strategy<Value = String> {
    let pieces = [
        "SELECT",
        "WITH",
        "AS",
        "(",
        ")",
        ",",
        ";",
        ".",
        "f",
        "\"f\"",
        "'",
        "''",
        "\"",
        "$$",
        "$a$",
        "/*",
        "*/",
        "--",
        "\n",
        "E'",
        "\\",
        "FOR",
        "UPDATE",
        "INTO",
        "TEMP",
        "INSERT",
        "1",
        "1e",
        "$1",
        "::",
        ":=",
        "+-",
        "@",
        "BEGIN",
        "ATOMIC",
        "END",
        "CREATE",
        "FUNCTION",
        "COPY",
        "TO",
        "STDOUT",
        "SET",
        "=",
        "LOCAL",
        "TIME",
        "ZONE",
        "set_config",
        "EXPLAIN",
        "DECLARE",
        "CURSOR",
        "HOLD",
        "PREPARE",
        "TRANSACTION",
        "OPERATOR",
        "DISTINCT",
        "ON",
        "BY",
        "[",
        "]",
        "U&",
        "current_setting",
        "\u{e9}",
        "\0",
        " ",
        " ",
        " ",
        " ",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|v| v.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_it_panic(
        sql in prop::collection::vec(any::<u8>(), 0..200),
        standard_strings in any::<bool>(),
        whole in any::<bool>(),
    ) {
        let options = Options { standard_strings, whole, ..Options::default() };
        let script = classify(&sql, &options);
        prop_assert!(script.access == Access::Write || script.statements as usize <= sql.len());
    }

    #[test]
    fn nothing_near_to_sql_makes_it_panic(sql in text(), standard_strings in any::<bool>()) {
        let script = classify(sql.as_bytes(), &Options { standard_strings, ..Options::default() });
        if let Some(span) = script.directive {
            prop_assert!(span.of(sql.as_bytes()).len() <= sql.len());
        }
    }

    #[test]
    fn blanks_and_case_do_not_matter(
        sql in statement(),
        blanks in prop::collection::vec(blank(), 64),
        upper in prop::collection::vec(any::<bool>(), 256),
    ) {
        let mut other = String::from(blanks[63]);
        let mut blanks = blanks.iter();
        let mut upper = upper.iter();
        for word in sql.split(' ') {
            let quoted = word.contains(['\'', '"']);
            let mut fold = |c: char| {
                let up = !quoted && *upper.next().unwrap_or(&false);
                if up { c.to_ascii_uppercase() } else { c }
            };
            other.extend(word.chars().map(&mut fold));
            other.push_str(blanks.next().unwrap_or(&" "));
        }
        let (a, b) = (see(sql), see(&other));
        prop_assert_eq!(a.fingerprint, b.fingerprint, "{}", other);
        prop_assert_eq!(crate::line(&a), crate::line(&b), "{}", &other);
        prop_assert_eq!((a.statements, a.returns_rows), (b.statements, b.returns_rows));
    }

    #[test]
    fn literals_do_not_change_the_fingerprint(
        text in "[a-z ;'(/*-]{0,20}", number in any::<u32>(), tag in "[a-z_]{0,5}",
    ) {
        let quoted = format!("'{}'", text.replace('\'', "''"));
        let first = see("SELECT f('x', 1) FROM t WHERE a = 2 AND b = 'y'");
        for (a, b) in [
            (quoted.clone(), number.to_string()),
            (format!("${tag}${text}${tag}$"), "$1".to_owned()),
            (format!("E{quoted}"), format!("{number}.5e-3")),
            (format!("U&{quoted}"), format!("0x{number:X}")),
        ] {
            let sql = format!("SELECT f({a}, {b}) FROM t WHERE a = {b} AND b = {a}");
            prop_assert_eq!(see(&sql).fingerprint, first.fingerprint, "{}", sql);
        }
    }

    #[test]
    fn what_follows_a_statement_counts(sql in statement(), blank in blank()) {
        let before = see(sql);
        let both = see(&format!("{sql};{blank}DELETE FROM t; DO 'x'; ROLLBACK"));
        prop_assert_eq!(both.access, Access::Write);
        prop_assert!(both.ends && both.leaves.has(Leaves::UNKNOWN));
        prop_assert_eq!(both.statements, before.statements + 3);
        prop_assert_eq!(both.first, before.first);
        prop_assert_ne!(both.fingerprint, before.fingerprint);
        prop_assert_eq!(see(&format!("{sql};{blank};")).fingerprint, before.fingerprint);
    }

    #[test]
    fn what_is_inside_a_literal_does_not_count(text in text()) {
        let quoted = format!("SELECT '{}'", text.replace('\'', "''").replace('\0', ""));
        prop_assert_eq!(see(&quoted).access, Access::Read, "{}", quoted);
        let named = format!("SELECT a AS \"x{}\"", text.replace('"', "\"\"").replace('\0', ""));
        prop_assert_eq!(see(&named).access, Access::Read, "{}", named);
    }
}

#[test]
fn different_statements_have_different_fingerprints() {
    let mut seen = std::collections::BTreeMap::new();
    let more = [
        "SELECT a",
        "SELECT b",
        "SELECT \"a\"",
        "SELECT \"A\"",
        "SELECT a; SELECT a",
        "SELECT a SELECT a",
        "SELECT -1",
        "SELECT 1",
        "SELECT + 1",
        "SELECT a.b",
        "SELECT a,b",
        "SELECT (a)",
        "SELECT [a]",
        "SELECT a::b",
        "SELECT a :b",
        "SELECT a <= b",
        "SELECT a >= b",
        "SELECT a <> b",
        "SELECT f(1)",
        "SELECT f(1, 2)",
        "SELECT",
        "",
    ];
    for sql in STATEMENTS.iter().chain(&more) {
        if let Some(other) = seen.insert(see(sql).fingerprint, *sql) {
            panic!("{sql}\n{other}");
        }
    }
}
