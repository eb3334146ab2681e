use super::*;
use crate::document::Document;

fn spec(sql: &str) -> ValidationSpec {
    ValidationSpec {
        database: "shop".to_owned(),
        role: "checker".to_owned(),
        sql: sql.to_owned(),
        ..ValidationSpec::default()
    }
}

fn problems(name: &str, spec: ValidationSpec) -> Vec<String> {
    let validation = [(name.to_owned(), spec)].into();
    let document = Document { validation, ..Document::default() };
    document.validate().iter().map(ToString::to_string).collect()
}

fn ran(term: u64, finding: &Finding) -> Validated {
    Validated {
        term: Term(term),
        node: NodeId::new("n2").unwrap(),
        at: 1,
        took_ms: 3,
        judged: judge(&spec("SELECT true"), finding),
    }
}

#[test]
fn a_document_says_what_is_missing_all_at_once() {
    assert_eq!(problems("orders", spec("\n  with x AS (SELECT 1) SELECT true FROM x")), [""; 0]);
    assert_eq!(
        problems("Orders", ValidationSpec { timeout_ms: 99, ..ValidationSpec::default() }),
        [
            "validation.Orders: a name has 1 to 63 lower-case letters, digits, '-' and '_'",
            "validation.Orders.database: say which: there is no default",
            "validation.Orders.role: say which: there is no default",
            "validation.Orders.sql: use one statement that begins with SELECT or WITH",
            "validation.Orders.timeout_ms: use 100 to 300000 milliseconds",
        ]
    );
    for sql in ["", "DELETE FROM t", "selection", "SET role postgres", "SELECT '\0'"] {
        assert_eq!(problems("q", spec(sql)).len(), 1, "{sql:?}");
    }
    for role in ["postgres", "quorate", "quorate_x", &"r".repeat(64)] {
        let spec = ValidationSpec { role: role.to_owned(), ..spec("SELECT true") };
        assert_eq!(problems("q", spec).len(), 1, "{role}");
    }
    let many = (0..=VALIDATIONS_MAX).map(|i| (format!("q{i}"), spec("SELECT true"))).collect();
    let document = Document { validation: many, ..Document::default() };
    assert!(document.validate()[0].to_string().contains("at most 32 queries"));
}

#[test]
fn only_true_passes_and_each_answer_has_its_rule_and_sentence() {
    let spec = spec("SELECT true");
    let told = |finding: &Finding| {
        let judged = judge(&spec, finding);
        assert_eq!(judged.passed, *finding == Finding::True);
        judged.because.to_string()
    };
    let refused = |message: Option<&str>| Finding::Refused {
        sqlstate: "42P01".to_owned(),
        message: message.map(str::to_owned),
    };
    for (finding, words) in [
        (Finding::True, "it is true (validation-01)"),
        (Finding::False, "it is false (validation-02)"),
        (Finding::Null, "it is null, and must be true (validation-02)"),
        (Finding::NoRow, "it returned no row, and must return one (validation-03)"),
        (Finding::ManyRows, "it returned more than one row, and must return one (validation-03)"),
        (
            Finding::NotBoolean("int4".to_owned()),
            "its first column is of type int4, and must be boolean (validation-03)",
        ),
        (Finding::NoQuery, "it is no query: use one SELECT without parameters (validation-03)"),
        (
            Finding::Superuser,
            "role checker is a superuser or a member of one: use a role that may read what it looks \
             at, and nothing else (validation-04)",
        ),
        (Finding::TimedOut, "it was not answered within 5 s (validation-05)"),
        (refused(Some("there is no x")), "42P01: there is no x (validation-06)"),
        (
            refused(None),
            "error 42P01 while it ran (its message may quote rows: run it by hand) (validation-06)",
        ),
        (
            Finding::Unreachable("it is gone".to_owned()),
            "the server could not be asked: it is gone (validation-07)",
        ),
    ] {
        assert_eq!(told(&finding), words);
    }
}

#[test]
fn what_a_row_may_have_put_into_an_error_is_not_told() {
    let error = ServerError {
        sqlstate: "22P02",
        message: "invalid input syntax for type integer: \"4111 1111\"\nand more",
        routine: Some("pg_strtoint32"),
        before_rows: false,
    };
    let message = |error| match refusal(error) {
        Finding::Refused { message, .. } => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(message(error), None);
    // The same of a constant in the query's own text, which is seen before it reads anything.
    let early = message(ServerError { before_rows: true, ..error });
    assert_eq!(early.unwrap(), "invalid input syntax for type integer: \"4111 1111\"");
    let denied = ServerError {
        sqlstate: "42501",
        message: "permission denied for table orders",
        routine: Some("aclcheck_error"),
        ..error
    };
    assert_eq!(message(denied).unwrap(), "permission denied for table orders");
    // A function can raise any code with any words.
    assert_eq!(message(ServerError { routine: Some("exec_stmt_raise"), ..denied }), None);
    let long = "x".repeat(10_000);
    let told = message(ServerError { message: &long, before_rows: true, ..error });
    assert_eq!(told.unwrap().len(), VALIDATION_WORDS_MAX);
}

#[test]
fn all_must_have_passed_in_the_present_term() {
    let specs: BTreeMap<String, ValidationSpec> =
        ["a", "b"].map(|n| (n.to_owned(), spec("SELECT true"))).into();
    let now = |ran: &[(&str, Validated)]| {
        let ran = ran.iter().map(|(n, r)| ((*n).to_owned(), r.clone())).collect();
        standing(&specs, &ran, Term(4))
    };
    let good = ran(4, &Finding::True);
    assert_eq!(standing(&BTreeMap::new(), &BTreeMap::new(), Term(4)), Standing::None);
    let passed = "a and b passed in term 4".to_owned();
    assert_eq!(now(&[("a", good.clone()), ("b", good.clone())]), Standing::Passed(passed));
    let old = [("a", good.clone()), ("b", ran(3, &Finding::True))];
    assert_eq!(now(&old), Standing::Unknown("b not run in term 4 yet".to_owned()));
    assert_eq!(now(&[]), Standing::Unknown("a and b not run in term 4 yet".to_owned()));
    // What failed under an earlier writer is not known to be well again.
    let bad = [("a", good), ("b", ran(3, &Finding::False))];
    assert_eq!(now(&bad), Standing::Failed("b: it is false (on n2 in term 3)".to_owned()));
}
