//! Where strings, names and comments end: a mistake here hides a statement.

use crate::{check, check_with, see};
use quorate_wire::sql::Options;

/// `(string, how many statements)`.
#[test]
fn statements_are_counted_as_postgresql_counts_them() {
    for (sql, count) in [
        ("", 0),
        (";;", 0),
        ("SELECT ';'; SELECT 1", 2),
        ("SELECT 'a'';'';b'", 1),
        ("SELECT 'a\\'; SELECT 1", 2),
        ("SELECT E'a\\';b'", 1),
        ("SELECT E'a\\\\'; SELECT 1", 2),
        ("SELECT e'a' \n ';\\';'", 1),
        ("SELECT E'a' -- x ';\n '\\';'", 1),
        ("SELECT E'a' /* \n */ '\\'; SELECT 1", 2),
        ("SELECT 'a'\n'\\'; SELECT 1", 2),
        ("SELECT E'a' '\\'; SELECT 1", 2),
        ("SELECT B'0;1', x'0;1', N';', U&';', U&\";\"", 1),
        ("SELECT U&'\\'; SELECT 1", 2),
        ("SELECT b'\\'; SELECT 1", 2),
        ("SELECT ne';' FROM t", 1),
        ("SELECT \"a;\"\";b\"", 1),
        ("SELECT \"a\\\"; SELECT 1", 2),
        ("SELECT $$;$$, $a$;$$;$b$;$a$", 1),
        ("SELECT $a$;$A$;$a$", 1),
        ("SELECT $\u{e9}$;$\u{e9}$", 1),
        ("SELECT a$$, b$$; SELECT 1", 2),
        ("SELECT a$b$;SELECT c$b$", 2),
        ("SELECT $1; SELECT $2", 2),
        ("SELECT $1$$;$$", 1),
        ("SELECT 1$$;$$", 1),
        ("SELECT /* ; */ 1", 1),
        ("SELECT /* /* ; */ ; */ 1", 1),
        ("SELECT /*/*/ */ ; */ 1", 1),
        ("SELECT /**/ 1; /***/ SELECT /*/**/*/ 2", 2),
        ("SELECT 1 -- ; \n; SELECT 2", 2),
        ("SELECT 1 -- ;\r; SELECT 2", 2),
        ("SELECT 1 +-- ;\n 2", 1),
        ("SELECT 2 */* ; */ 3", 1),
        ("SELECT 2 @-/* ; */ 3", 1),
        ("SELECT 2 -/- 3; SELECT 1", 2),
        ("SELECT 1e5, 1E-5, 0x1F, 1_000, .5, 1., 1.5e+3; SELECT 1", 2),
        ("SELECT a[1:2], b::text, f.c := 1; SELECT 1", 2),
        ("SELECT (1; 2)", 1),
        ("SELECT 1;--x\n/*y*/;", 1),
    ] {
        assert_eq!(see(sql).statements, count, "{sql}");
    }
}

#[test]
fn what_has_no_end_may_do_anything() {
    for sql in [
        "SELECT '",
        "SELECT 'a''",
        "SELECT E'\\'",
        "SELECT \"a",
        "SELECT $$ $",
        "SELECT $a$ $A$",
        "SELECT $a",
        "/* /* */",
        "SELECT 1 /*",
        "SELECT (1",
        "SELECT 1)",
        "SELECT \\ 1",
        "SELECT \0",
        "SELECT 'a\0b'",
        "{}",
        "SELECT 1; '",
    ] {
        let line = crate::line(&see(sql));
        assert!(line.ends_with(" leaves unknown ends"), "{sql}: {line}");
    }
    check(&[
        ("1", "UnknownStatement leaves unknown ends"),
        ("SELECT '", "Unlexable leaves unknown ends"),
    ]);
}

#[test]
fn without_standard_strings_backslashes_escape() {
    let options = Options { standard_strings: false, ..Options::default() };
    check_with(
        &[
            ("SELECT 'a\\'; DELETE FROM t; --'", "read"),
            ("SELECT N'a\\'; DELETE FROM t; --'", "read"),
            ("SELECT 'a\\\\'; DELETE FROM t", "Keyword"),
            ("SELECT b'\\'; DELETE FROM t", "Keyword"),
            ("SELECT \"a\\\"; DELETE FROM t", "Keyword"),
        ],
        &options,
    );
    check(&[("SELECT 'a\\'; DELETE FROM t; --'", "Keyword")]);
}

#[test]
fn nesting_has_a_limit() {
    let nested = |n: usize| format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n));
    check(&[
        (&nested(100), "read"),
        (&nested(130), "TooDeep leaves unknown ends"),
        (&nested(100_000), "TooDeep leaves unknown ends"),
    ]);
}

/// Each sign is an operator of its own, and none of them is looked at for each other one.
#[test]
fn a_long_run_of_signs_is_read_in_linear_time() {
    // With a step for every pair, minutes.
    let sql = format!("SELECT 1{}1", "+".repeat(512 * 1024));
    assert_eq!(crate::line(&crate::see(&sql)), "read");
    let mixed = format!("SELECT 1 <{}1", "-+".repeat(128 * 1024));
    assert_eq!(crate::line(&crate::see(&mixed)), "read");
    assert_eq!(
        crate::see("SELECT 1 *+-+ 2").fingerprint,
        crate::see("SELECT 1 * + - + 2").fingerprint
    );
    assert_ne!(
        crate::see("SELECT 1 @+-+ 2").fingerprint,
        crate::see("SELECT 1 @ + - + 2").fingerprint
    );
}
