//! The statement classifier: laws that hold for all texts and need no parser.

use quorate_wire::sql::{
    Access, Close, Deallocate, Functions, Knowledge, Leaves, Name, Options, Reset, Script, Shapes,
    Show, Verb, classify,
};
use rustix::time::{ClockId, clock_gettime};

use crate::knob;
use crate::memory::peak;

/// Functions of an application.
struct Known;

impl Functions for Known {
    fn knowledge(&self, name: &[u8]) -> Knowledge {
        match name {
            b"f" | b"f_reads" => Knowledge::Stable,
            b"g" | b"length" => Knowledge::Volatile,
            b"h" | b"lower" => Knowledge::Suspect,
            _ => Knowledge::Unknown,
        }
    }
}

/// A text of this length is read in far less processor time than this, on any machine.
const LONG: usize = 16 * 1024;
const LONG_MS: u128 = 100;

/// `knobs, text`.
pub fn check(mut data: &[u8]) {
    let knobs = knob(&mut data);
    let standard_strings = knobs & 1 == 0;
    let functions: &dyn Functions = if knobs & 2 == 0 { &Known } else { &Nothing };
    let options = Options { standard_strings, functions, whole: true };
    let (script, held) = peak(|| classify(data, &options));
    assert!(held <= 2 * data.len() + 64, "{held} bytes are allocated");
    spans(data, &script);
    let see = |parts: &[&[u8]]| classify(&parts.concat(), &options);
    let write = script.access == Access::Write;
    assert!(write || script.statements as usize <= data.len());
    assert_eq!(write, script.because != quorate_wire::sql::Why::None);
    assert_eq!(script, classify(data, &options), "asked twice");

    // Blanks before and behind change nothing.
    for behind in [&b"\n"[..], b"\n /* x; ( */ ", b"\n-- y; )"] {
        assert_eq!(figures(&script), figures(&see(&[data, behind])), "{:?}", text(behind));
    }
    let later = see(&[b"/* z */ \n", data]);
    assert_eq!(figures(&script), figures(&later), "blanks before it");

    // What follows or goes before counts.
    let deletes = see(&[data, b"\n;\nDELETE FROM t"]);
    assert_eq!(deletes.access, Access::Write, "DELETE behind it");
    let more = see(&[data, b"\n;\nDO 'x'; ROLLBACK"]);
    assert!(more.ends && more.leaves.has(Leaves::UNKNOWN), "DO and ROLLBACK behind it");
    let before = see(&[b"SELECT 1; ", data]);
    assert!(!write || before.access == Access::Write, "SELECT before it");
    assert!(!script.ends || before.ends);
    assert!(!script.begins || before.begins);

    // Part of a text may do anything.
    let part = classify(data, &Options { whole: false, ..options });
    assert!(part.access == Access::Write && part.ends && part.leaves.has(Leaves::UNKNOWN));

    // Without a backslash there is nothing to escape.
    if !data.contains(&b'\\') {
        let other = Options { standard_strings: !standard_strings, ..options };
        assert_eq!(script, classify(data, &other), "standard_conforming_strings");
    }
    quoted(data, &options);
    if standard_strings {
        shapes(data, &options);
    }
    if knobs & 0xf0 == 0xf0 {
        long(data, &options);
    }
}

/// Knows no function.
struct Nothing;

impl Functions for Nothing {
    fn knowledge(&self, _: &[u8]) -> Knowledge {
        Knowledge::Unknown
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// All but positions.
fn figures(s: &Script) -> impl PartialEq + std::fmt::Debug + use<> {
    let kind = std::mem::discriminant(&s.first);
    (
        (s.statements, kind, s.access, s.because, s.ends, s.begins, s.leaves),
        (s.configures, s.recalls, s.by_values, s.returns_rows, s.fingerprint),
    )
}

/// A text that is told by its shape is what it is when it is read, whatever came before it.
fn shapes(data: &[u8], options: &Options<'_>) {
    const HEAD: &[u8] = b"SELECT a FROM t WHERE b = ";
    // The same with other values, or with one byte another.
    let other = |at: usize| {
        let mut other = data.to_vec();
        match other.get_mut(at) {
            Some(byte) => *byte = data[data.len() - 1 - at],
            None => other.iter_mut().filter(|b| b.is_ascii_digit()).for_each(|b| *b ^= 1),
        }
        other
    };
    let texts = [usize::MAX, data.len() / 2, data.len() / 3, 0].map(other);
    for first in &texts {
        let mut shapes = Shapes::default();
        for text in [first, &data.to_vec()].into_iter().chain(&texts) {
            for text in [text.clone(), [HEAD, text].concat()] {
                let told = shapes.classify(&text, options);
                assert_eq!(told, classify(&text, options), "{:?}", String::from_utf8_lossy(&text));
            }
        }
    }
}

/// Every range is one of the text.
fn spans(sql: &[u8], script: &Script) {
    if let Some(span) = script.directive {
        assert!(span.of(sql).len() <= sql.len());
    }
    let name = |name: &Name| assert!(name.text(sql).len() <= sql.len().max(64));
    match &script.first {
        Verb::Set(set) => {
            name(&set.name);
            assert!(set.value.of(sql).len() <= sql.len());
        }
        Verb::Reset(Reset::One(n)) | Verb::Show(Show::One(n)) => name(n),
        Verb::Prepare(n) | Verb::Execute(n) | Verb::Listen(n) => name(n),
        Verb::Deallocate(Deallocate::One(n)) | Verb::Close(Close::One(n)) => name(n),
        Verb::Declare { name: n, .. } => name(n),
        _ => {}
    }
}

/// What is inside of a literal, a name or a comment does not count.
fn quoted(data: &[u8], options: &Options<'_>) {
    let data: Vec<u8> = data.iter().copied().filter(|&b| b != 0).collect();
    let doubled = |quote: u8| -> Vec<u8> {
        let twice = |&b: &u8| std::iter::repeat_n(b, if b == quote { 2 } else { 1 });
        data.iter().flat_map(twice).collect()
    };
    let reads = |before: &[u8], inside: &[u8], behind: &[u8], options: &Options<'_>| {
        let sql = [before, inside, behind].concat();
        let script = classify(&sql, options);
        assert_eq!(script.access, Access::Read, "{}", text(&sql));
        assert_eq!(script.statements, 1, "{}", text(&sql));
        script
    };
    let standard = Options { standard_strings: true, ..*options };
    let literal = reads(b"SELECT '", &doubled(b'\''), b"'", &standard);
    reads(b"SELECT a AS \"x", &doubled(b'"'), b"\"", options);
    let dollar = [&data[..], b"$zq$"].concat();
    if dollar.windows(4).position(|w| w == b"$zq$") == Some(data.len()) {
        let other = reads(b"SELECT $zq$", &dollar, b"", options);
        assert_eq!(literal.fingerprint, other.fingerprint, "a literal is a literal");
    }
    if !data.windows(2).any(|w| w == b"/*" || w == b"*/") {
        let commented = reads(b"SELECT '' /* ", &data, b" */", options);
        assert_eq!(literal.fingerprint, commented.fingerprint, "a comment is nothing");
    }
    if !data.contains(&b'\n') && !data.contains(&b'\r') {
        reads(b"SELECT '' --", &data, b"\n", options);
    }
}

/// Time grows with the length, not with its square.
fn long(data: &[u8], options: &Options<'_>) {
    if data.is_empty() {
        return;
    }
    let sql: Vec<u8> = data.iter().copied().cycle().take(LONG).collect();
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as u128 * 1_000 + time.tv_nsec as u128 / 1_000_000
    };
    let began = now();
    classify(&sql, options);
    let took = now() - began;
    assert!(took < LONG_MS, "{took} ms for {LONG} bytes");
}
