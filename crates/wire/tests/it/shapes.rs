//! Texts told by their shape are what they are when they are read.

use std::cell::Cell;

use proptest::prelude::*;
use quorate_wire::limits::{SHAPE_TEXT_MAX, SHAPES};
use quorate_wire::sql::{Functions, Knowledge, Options, Shapes, classify};

/// What may stand between the beginning and the end of a query.
const PIECES: [&str; 44] = [
    "1",
    "23",
    "0",
    "1.5",
    "1e3",
    "0x1",
    "'a'",
    "'b c'",
    "''",
    "'x''y'",
    "E'z'",
    "U&'q'",
    "$$d$$",
    "$t$e$t$",
    "$1",
    "$2",
    "'",
    "\"",
    "-",
    "--",
    "/*",
    "*/",
    "\n",
    " ",
    " ",
    ",",
    "(",
    ")",
    ".",
    ";",
    "a",
    "f",
    "e",
    "n",
    "U&",
    "set_config(",
    "current_setting(",
    "'work_mem'",
    "'server_version'",
    "FOR UPDATE",
    "INTO t",
    "/* quorate: strong */",
    "\0",
    "\\",
];

const HEADS: [&str; 4] = [
    "SELECT a, b, c FROM t WHERE d = ",
    "INSERT INTO t VALUES (1, ",
    "UPDATE t SET a = 5, b = ",
    "SELECT set_config('a.b', ",
];

fn piece() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&PIECES[..])
}

/// Texts that differ in a piece or two.
fn texts() -> impl Strategy<Value = Vec<String>> {
    let pieces = prop::collection::vec(piece(), 1..8);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), piece()), 1..12);
    (prop::sample::select(&HEADS[..]), pieces, changes).prop_map(|(head, mut pieces, changes)| {
        let mut texts = vec![format!("{head}{}", pieces.concat())];
        for (at, piece) in changes {
            let at = at.index(pieces.len());
            pieces[at] = piece;
            texts.push(format!("{head}{}", pieces.concat()));
        }
        texts
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn a_shape_says_what_reading_says(texts in texts()) {
        // Each text both as the first of its shape and after others.
        for first in 0..texts.len() {
            let mut shapes = Shapes::default();
            for text in texts[first..].iter().chain(&texts[..first]) {
                let read = classify(text.as_bytes(), &Options::default());
                let told = shapes.classify(text.as_bytes(), &Options::default());
                prop_assert_eq!(told, read, "{:?} after {:?}", text, texts);
            }
        }
    }
}

/// Counts how often a text is read.
#[derive(Default)]
struct Counting(Cell<usize>);

impl Functions for Counting {
    fn knowledge(&self, _: &[u8]) -> Knowledge {
        self.0.set(self.0.get() + 1);
        Knowledge::Stable
    }
}

/// How many of these texts are read.
fn reads(texts: impl IntoIterator<Item = String>) -> usize {
    let mut shapes = Shapes::default();
    let functions = Counting::default();
    let options = Options { functions: &functions, ..Options::default() };
    for text in texts {
        shapes.classify(text.as_bytes(), &options);
    }
    functions.0.get()
}

#[test]
fn a_text_with_other_values_is_not_read() {
    let text =
        |i: usize| format!("SELECT my_f(a) FROM t WHERE b = {} AND c = 'x{i}' LIMIT {i}", i * i);
    assert_eq!(reads((0..100).map(text)), 1);
    // A value of another kind is another shape.
    let text = |i: usize| match i % 2 {
        0 => format!("SELECT my_f(a) FROM t WHERE b = {i}"),
        _ => format!("SELECT my_f(a) FROM t WHERE b = '{i}'"),
    };
    assert_eq!(reads((0..10).map(text)), 10 - 4);
    // What depends on a value is always read.
    let text = |i: usize| format!("SELECT my_f(current_setting('work_mem')) WHERE b = {i}");
    assert_eq!(reads((0..10).map(text)), 20);
}

#[test]
fn shapes_in_turns_do_not_push_each_other_out_each_time() {
    let text = |i: usize| format!("SELECT my_f(a), c{} FROM t WHERE b = {i}", i % 2);
    assert!(reads((0..100).map(text)) <= 60);
}

#[test]
fn shapes_take_little_memory() {
    let kept = |len: usize| {
        let mut shapes = Shapes::default();
        for i in 0..1_000 {
            let text = format!("SELECT a{i}, {}", "x".repeat(len));
            shapes.classify(text.as_bytes(), &Options::default());
        }
        format!("{shapes:?}").matches("text: ").count()
    };
    assert!((1..=SHAPES).contains(&kept(40)));
    assert_eq!(kept(SHAPE_TEXT_MAX), 0, "none that is long");
}
