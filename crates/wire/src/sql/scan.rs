//! One statement after the other: what its tokens give away.

use super::functions::{Builtin, builtin, is_of_server};
use super::lexer::{Kind, Lexer, Token};
use super::{Access, Knowledge, Leaves, Options, Script, Verb, Why};

/// A pass over a text.
pub(super) struct Scan<'a> {
    pub(super) lexer: Lexer<'a>,
    options: &'a Options<'a>,
    pub(super) script: Script,
    /// The present token.
    pub(super) token: Token,
    hash: u64,
}

/// Longest word that may be a keyword or a function known here.
const WORD_MAX: usize = 64;

/// A word in lower case.
pub(super) struct Lower {
    bytes: [u8; WORD_MAX],
    len: usize,
}

impl Lower {
    fn of(word: &[u8]) -> Self {
        let mut bytes = [0; WORD_MAX];
        let len = if word.len() > WORD_MAX { 0 } else { word.len() };
        for (to, from) in bytes.iter_mut().zip(&word[..len]) {
            *to = from.to_ascii_lowercase();
        }
        Self { bytes, len }
    }
}

impl std::ops::Deref for Lower {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl<'a> Scan<'a> {
    pub(super) fn new(sql: &'a [u8], options: &'a Options<'a>) -> Self {
        let lexer = Lexer::new(sql, options.standard_strings);
        let script = Script {
            statements: 0,
            first: Verb::Empty,
            access: Access::Read,
            why: Why::Reads,
            ends: false,
            begins: false,
            leaves: Leaves::default(),
            returns_rows: false,
            fingerprint: 0,
            directive: None,
        };
        let token = Token { kind: Kind::End, start: 0, end: 0 };
        Self { lexer, options, script, token, hash: 0xcbf2_9ce4_8422_2325 }
    }

    /// Takes the next token.
    pub(super) fn advance(&mut self) -> Token {
        self.token = self.lexer.next();
        match self.token.kind {
            Kind::Word => {
                for b in &self.lexer.sql[self.token.start..self.token.end] {
                    self.mix(b.to_ascii_lowercase());
                }
                self.mix(b' ');
            }
            Kind::Quoted => {
                for &b in &self.lexer.sql[self.token.start..self.token.end] {
                    self.mix(b);
                }
            }
            Kind::Literal | Kind::Parameter => self.mix(b'?'),
            Kind::Mark(b) => self.mix(b),
            Kind::End | Kind::Broken => {}
        }
        self.token
    }

    fn mix(&mut self, b: u8) {
        self.hash = (self.hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    }

    /// The present token as a word in lower case; empty when it is something else.
    pub(super) fn word(&self) -> Lower {
        match self.token.kind {
            Kind::Word => Lower::of(&self.lexer.sql[self.token.start..self.token.end]),
            _ => Lower { bytes: [0; WORD_MAX], len: 0 },
        }
    }

    pub(super) fn write(&mut self, why: Why) {
        self.script.access = Access::Write;
        if self.script.why == Why::Reads {
            self.script.why = why;
        }
    }

    pub(super) fn leaves(&mut self, what: Leaves) {
        self.script.leaves.add(what);
    }

    /// Reads a statement; false when there is none any more.
    pub(super) fn statement(&mut self) -> bool {
        let first = self.advance();
        match first.kind {
            Kind::End => return false,
            Kind::Broken => {
                self.broken();
                return false;
            }
            Kind::Mark(b';') => return true,
            _ => {}
        }
        let verb = self.verb();
        self.script.statements += 1;
        if self.script.statements == 1 {
            self.script.first = verb;
            // A later one may speak for another statement.
            self.take_directive();
            self.lexer.directive = Some((0, 0));
        }
        !matches!(self.token.kind, Kind::End | Kind::Broken)
    }

    fn take_directive(&mut self) {
        if let Some((start, end)) = self.lexer.directive
            && let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end))
        {
            self.script.directive = Some(start..end);
        }
    }

    pub(super) fn broken(&mut self) {
        self.write(Why::Broken);
        self.leaves(Leaves::UNKNOWN);
        self.script.ends = true;
        self.script.begins = true;
        self.script.returns_rows = true;
    }

    pub(super) fn end(mut self) -> Script {
        if !self.options.whole {
            self.broken();
        }
        self.script.fingerprint = self.hash;
        self.script
    }

    /// Goes on to the end of the statement without looking.
    pub(super) fn skip(&mut self) {
        let mut depth = 0u32;
        loop {
            match self.token.kind {
                Kind::End => return,
                Kind::Broken => return self.broken(),
                Kind::Mark(b';') if depth == 0 => return,
                Kind::Mark(b'(') => depth += 1,
                Kind::Mark(b')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.advance();
        }
    }

    /// Goes on to the end of a statement that should only read, and looks for what does not.
    pub(super) fn reads(&mut self) {
        let mut depth = 0u32;
        // What stood before the present token: a word after AS or WITH names something.
        let mut names = false;
        let mut dotted = false;
        loop {
            let mut names_next = false;
            let mut dotted_next = false;
            match self.token.kind {
                Kind::End => return,
                Kind::Broken => return self.broken(),
                Kind::Mark(b';') if depth == 0 => return,
                Kind::Mark(b'(') => depth += 1,
                Kind::Mark(b')') => depth = depth.saturating_sub(1),
                Kind::Mark(b'.') => dotted_next = true,
                Kind::Word => {
                    names_next = self.reads_word(names, dotted);
                    // The word may have been the last: `FOR UPDATE` takes two.
                    if matches!(self.token.kind, Kind::End | Kind::Broken | Kind::Mark(_)) {
                        continue;
                    }
                }
                Kind::Quoted if self.lexer.calls() && !names => self.calls_quoted(),
                Kind::Quoted | Kind::Literal | Kind::Parameter | Kind::Mark(_) => {}
            }
            names = names_next;
            dotted = dotted_next;
            self.advance();
        }
    }

    /// Looks at a word of a statement that should only read; whether the next one is a name.
    fn reads_word(&mut self, names: bool, dotted: bool) -> bool {
        let word = self.word();
        if !dotted {
            match &*word {
                b"into" => {
                    self.write(Why::Into);
                    self.advance();
                    if matches!(&*self.word(), b"temp" | b"temporary" | b"local" | b"global") {
                        self.leaves(Leaves::TEMP);
                    }
                    return false;
                }
                b"for" => {
                    let next = self.lexer.ahead();
                    let next = Lower::of(&self.lexer.sql[next.start..next.end]);
                    if matches!(&*next, b"update" | b"no" | b"share" | b"key") {
                        self.write(Why::RowLock);
                        self.advance();
                    }
                    return false;
                }
                b"insert" | b"update" | b"delete" | b"merge" => {
                    self.write(Why::Change);
                    return false;
                }
                b"as" | b"with" | b"recursive" => return true,
                _ => {}
            }
        }
        if word.starts_with(b"pg_") && is_of_server(&word) {
            self.write(Why::ServerView);
        }
        if !names && self.lexer.calls() {
            self.calls(&word);
        }
        false
    }

    /// A function of this name is called, or it is grammar that looks like that.
    fn calls(&mut self, name: &[u8]) {
        let known = builtin(name);
        if known == Builtin::Grammar {
            return;
        }
        let own = self.options.functions.knowledge(name);
        match (known, own) {
            (_, Knowledge::Suspect) => self.runs(Leaves::UNKNOWN),
            (Builtin::Safe, Knowledge::Unknown | Knowledge::Stable)
            | (Builtin::Other, Knowledge::Stable) => {}
            (Builtin::Advisory, _) => self.runs(Leaves::ADVISORY),
            (Builtin::SetConfig, _) => self.sets(),
            (Builtin::Seed, _) => self.runs(Leaves::UNKNOWN_SETTING),
            (Builtin::Other, Knowledge::Unknown) if self.names_columns() => {}
            (Builtin::Other, Knowledge::Unknown) => self.runs(Leaves::UNKNOWN),
            (Builtin::Writer, _) | (_, Knowledge::Volatile) => self.runs(Leaves::default()),
            (Builtin::Grammar, _) => {}
        }
    }

    /// Whether the parenthesis that comes names the columns of a common table expression:
    /// `name (…) AS [[NOT] MATERIALIZED] (SELECT`.
    fn names_columns(&self) -> bool {
        let mut ahead = self.lexer.clone();
        let is = |token: Token, words: &[&[u8]]| {
            token.kind == Kind::Word
                && words
                    .iter()
                    .any(|w| w.eq_ignore_ascii_case(&self.lexer.sql[token.start..token.end]))
        };
        ahead.next();
        loop {
            match ahead.next().kind {
                Kind::Word | Kind::Quoted | Kind::Mark(b',') => {}
                Kind::Mark(b')') => break,
                _ => return false,
            }
        }
        if !is(ahead.next(), &[b"as"]) {
            return false;
        }
        let mut token = ahead.next();
        while is(token, &[b"not", b"materialized"]) {
            token = ahead.next();
        }
        let body: [&[u8]; 8] =
            [b"select", b"with", b"values", b"table", b"insert", b"update", b"delete", b"merge"];
        token.kind == Kind::Mark(b'(') && is(ahead.next(), &body)
    }

    fn calls_quoted(&mut self) {
        let text = &self.lexer.sql[self.token.start..self.token.end];
        let name = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
        let plain = name.iter().all(|b| !b.is_ascii_uppercase() && *b != b'"');
        // A quoted word is never grammar.
        let grammar = builtin(name) == Builtin::Grammar;
        match self.options.functions.knowledge(name) {
            Knowledge::Stable if plain => {}
            Knowledge::Volatile if plain => self.runs(Leaves::default()),
            _ if plain && !grammar => self.calls(name),
            _ => self.runs(Leaves::UNKNOWN),
        }
    }

    fn runs(&mut self, leaves: Leaves) {
        self.write(Why::Function);
        self.leaves(leaves);
    }

    /// `set_config(name, value, local)`: only one that is surely local leaves nothing.
    fn sets(&mut self) {
        self.write(Why::Function);
        let mut ahead = self.lexer.clone();
        let (mut depth, mut commas) = (0u32, 0);
        let mut last: &[u8] = b"";
        loop {
            let token = ahead.next();
            match token.kind {
                Kind::End | Kind::Broken => break,
                Kind::Mark(b'(' | b'[') => depth += 1,
                Kind::Mark(b')' | b']') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        let local = last.eq_ignore_ascii_case(b"true")
                            || last.eq_ignore_ascii_case(b"'true'")
                            || last.eq_ignore_ascii_case(b"'t'");
                        if commas == 2 && local {
                            return;
                        }
                        break;
                    }
                }
                Kind::Mark(b',') if depth == 1 => {
                    commas += 1;
                    last = b"";
                }
                _ if depth == 1 && commas == 2 => {
                    // More than one token is an expression.
                    let text = &ahead.sql[token.start..token.end];
                    last = if last.is_empty() { text } else { b"?" };
                }
                _ => {}
            }
        }
        self.leaves(Leaves::UNKNOWN_SETTING);
    }
}
