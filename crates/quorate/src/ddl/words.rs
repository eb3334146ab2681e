//! The words of a statement, to be looked for.

use quorate_wire::sql::{Piece, Statement};

/// A statement as its words in lower case, with what is in brackets marked.
#[derive(Debug)]
pub(super) struct Words {
    all: Vec<Word>,
}

#[derive(Debug)]
struct Word {
    piece: Piece,
    text: String,
    /// Brackets around it.
    depth: u32,
}

impl Words {
    pub(super) fn of(text: &[u8], statement: &Statement) -> Self {
        let mut depth = 0;
        let all = statement.pieces.iter().map(|(piece, span)| {
            let bytes = String::from_utf8_lossy(span.of(text));
            let text = match piece {
                Piece::Word => bytes.to_lowercase(),
                _ => bytes.into_owned(),
            };
            if *piece == Piece::Close {
                depth = u32::saturating_sub(depth, 1);
            }
            let word = Word { piece: *piece, text, depth };
            if *piece == Piece::Open {
                depth += 1;
            }
            word
        });
        Self { all: all.collect() }
    }

    /// The first word; empty when it begins with something else.
    pub(super) fn first(&self) -> &str {
        self.all.first().filter(|w| w.piece == Piece::Word).map_or("", |w| &w.text)
    }

    /// Whether it begins with these words.
    pub(super) fn begins(&self, words: &[&str]) -> bool {
        self.all.len() >= words.len()
            && self.all.iter().zip(words).all(|(w, word)| w.piece == Piece::Word && w.text == *word)
    }

    /// Whether it begins in one of these ways.
    pub(super) fn begins_any(&self, ways: &[&[&str]]) -> bool {
        ways.iter().any(|words| self.begins(words))
    }

    /// Whether a word stands in it outside of brackets.
    pub(super) fn has(&self, word: &str) -> bool {
        self.all.iter().any(|w| w.piece == Piece::Word && w.depth == 0 && w.text == word)
    }

    /// What stands between commas outside of brackets, behind the first `skip` pieces: the actions of an
    /// ALTER TABLE.
    pub(super) fn parts(&self, skip: usize) -> Vec<Part<'_>> {
        let rest = self.all.get(skip..).unwrap_or_default();
        let is_comma = |w: &Word| w.piece == Piece::Comma && w.depth == 0;
        rest.split(is_comma).map(|words| Part { words }).collect()
    }

    /// Where the words begin that follow a name which may have a schema, after `at` pieces.
    pub(super) fn after_name(&self, mut at: usize) -> usize {
        let is_name = |w: &Word| matches!(w.piece, Piece::Word | Piece::Quoted);
        while self.all.get(at).is_some_and(is_name)
            && self.all.get(at + 1).is_some_and(|w| w.piece == Piece::Dot)
        {
            at += 2;
        }
        at + 1
    }

    /// The word at a place.
    pub(super) fn at(&self, at: usize) -> &str {
        self.all.get(at).filter(|w| w.piece == Piece::Word).map_or("", |w| &w.text)
    }
}

/// One action of an ALTER TABLE.
#[derive(Debug)]
pub(super) struct Part<'a> {
    words: &'a [Word],
}

impl Part<'_> {
    /// Its words outside of brackets that are not quoted, from the first on.
    pub(super) fn begins(&self, words: &[&str]) -> bool {
        self.words.len() >= words.len()
            && self
                .words
                .iter()
                .zip(words)
                .all(|(w, word)| w.piece == Piece::Word && w.text == *word)
    }

    /// Whether a word stands in it outside of brackets.
    pub(super) fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w.piece == Piece::Word && w.depth == 0 && w.text == word)
    }

    /// Whether these words stand in it one after the other.
    pub(super) fn has_run(&self, run: &[&str]) -> bool {
        self.words.windows(run.len()).any(|window| {
            window.iter().zip(run).all(|(w, word)| w.piece == Piece::Word && w.text == *word)
        })
    }

    /// The expression behind a word, up to one of the words that end it.
    pub(super) fn behind(&self, word: &str, ends: &[&str]) -> Option<Part<'_>> {
        let at = self.words.iter().position(|w| w.piece == Piece::Word && w.text == word)?;
        let rest = &self.words[at + 1..];
        let is_end =
            |w: &Word| w.piece == Piece::Word && w.depth == 0 && ends.contains(&w.text.as_str());
        let end = rest.iter().position(is_end).unwrap_or(rest.len());
        Some(Part { words: &rest[..end] })
    }

    /// Whether it calls a function whose name is not one of these.
    pub(super) fn calls_other_than(&self, known: &[&str]) -> bool {
        self.words.windows(2).any(|pair| {
            matches!(pair[0].piece, Piece::Word | Piece::Quoted)
                && pair[1].piece == Piece::Open
                && !known.contains(&pair[0].text.as_str())
        })
    }
}
