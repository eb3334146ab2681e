//! Pieces of markup that sections share.

use std::time::Duration;

use maud::{Markup, html};
use quorate_core::state::WallMillis;
use quorate_core::words::seconds;

use super::verdict::Level;
use crate::cli::show::clock;

/// A word whose meaning also has a colour and a sign.
pub fn tag(level: Level, word: &str) -> Markup {
    html! {
        span class={ "tag " (level.word()) } {
            span.sign aria-hidden="true" { (level.sign()) } (word)
        }
    }
}

/// A word without judgement.
pub fn plain(word: &str) -> Markup {
    html! { span.tag { (word) } }
}

/// Something wide, that can be scrolled by keyboard as well.
pub fn wide(label: &str, content: &Markup) -> Markup {
    html! { div.wide role="region" aria-label=(label) tabindex="0" { (content) } }
}

/// A table that stays one on a phone, where it is scrolled sideways.
pub fn sideways(label: &str, content: &Markup) -> Markup {
    html! { div.wide.sideways role="region" aria-label=(label) tabindex="0" { (content) } }
}

/// A column's heading.
pub enum Head {
    /// Words below it.
    Text(&'static str),
    /// Figures below it.
    Figure(&'static str),
    /// Figures, and what they mean.
    Explained(&'static str, &'static str),
}

/// The first row of a table.
pub fn head(columns: &[Head]) -> Markup {
    html! { thead { tr { @for column in columns { @match column {
        Head::Text(name) => th scope="col" { (name) },
        Head::Figure(name) => th.n scope="col" { (name) },
        Head::Explained(name, what) => th.n scope="col" title=(what) { (name) },
    } } } } }
}

/// What a cell shows when nothing is known.
pub fn or_dash(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "—".to_owned(), |value| value.to_string())
}

/// A moment, for machines too.
pub fn moment(at: WallMillis) -> Markup {
    let text = clock(at);
    let (day, time) = text.split_once(' ').unwrap_or(("", &text));
    let time = time.get(..8).unwrap_or(time);
    html! { time datetime=(text.replace(' ', "T")) title=(text) { span.day { (day) " " } (time) } }
}

/// A moment of a day that was named before.
pub fn time_of(at: WallMillis) -> Markup {
    let text = clock(at);
    html! { time datetime=(text.replace(' ', "T")) title=(text) { (time(at)) } }
}

/// The time of day of a moment, in UTC.
pub fn time(at: WallMillis) -> String {
    clock(at).split(' ').nth(1).and_then(|t| t.get(..8)).unwrap_or_default().to_owned()
}

/// A text in which what stands between backticks is what somebody types.
pub fn prose(text: &str) -> Markup {
    // A backtick without another one is only itself.
    let paired = text.matches('`').count().is_multiple_of(2);
    html! {
        @if paired { @for (i, part) in text.split('`').enumerate() {
            @if i % 2 == 1 { code { (part) } } @else { (part) }
        } } @else { (text) }
    }
}

/// A time in milliseconds.
pub fn ms(ms: u64) -> String {
    seconds(Duration::from_millis(ms))
}

/// A time in microseconds.
pub fn us(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        1000..10_000 => format!("{:.1} ms", us as f64 / 1000.0),
        _ => ms(us / 1000),
    }
}

/// A count with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_stands_out_and_is_escaped() {
        let text = prose("try `quorate <b>`, then go on").into_string();
        assert_eq!(text, "try <code>quorate &lt;b&gt;</code>, then go on");
        assert_eq!(prose("a ` alone").into_string(), "a ` alone");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(us(950), "950 µs");
        assert_eq!(us(1234), "1.2 ms");
        assert_eq!(us(45_678), "45 ms");
        assert_eq!(count(7), "7");
        assert_eq!(count(1_234_567), "1\u{2009}234\u{2009}567");
    }
}
