//! Tokens as PostgreSQL's scanner sees them, without their values.
//!
//! Exact where it decides anything: what is a comment, a string, a quoted name, where a statement
//! ends. What PostgreSQL itself would refuse (it scans a whole string before it runs any of it)
//! may come out as any token.

use super::{
    Span,
    bytes::{self, DIGIT, IDENT, IDENT_START, OPERATOR, SPACE, is},
    keyword::Keyword,
};

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The end of the input; also what precedes the first token.
    End,
    Word,
    /// `"a name"` or `U&"a name"`.
    Quoted,
    /// Any string, bit string or number.
    Literal,
    /// `$1`.
    Param,
    Operator,
    Comma,
    Dot,
    Open,
    Close,
    CloseBracket,
    Semicolon,
    /// `::`.
    Cast,
    /// `[`, `:` and whatever else stands for itself.
    Other,
    /// Something without an end, or no token at all.
    Bad,
}

/// A token and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Of a [`Kind::Word`]; `Plain` otherwise.
    pub(super) keyword: Keyword,
    pub(super) start: u32,
    pub(super) end: u32,
    /// Of a word: its folded hash.
    pub(super) hash: u64,
}

impl Token {
    pub(super) const NONE: Self =
        Self { kind: Kind::End, keyword: Keyword::Plain, start: 0, end: 0, hash: 0 };

    /// Its bytes.
    #[inline(always)]
    pub(super) fn text<'a>(&self, sql: &'a [u8]) -> &'a [u8] {
        &sql[self.start as usize..self.end as usize]
    }

    /// Whether it can name something.
    #[inline(always)]
    pub(super) fn is_name(&self) -> bool {
        matches!(self.kind, Kind::Word | Kind::Quoted)
    }
}

/// Walks over the tokens of a string. Copying it is looking ahead.
#[derive(Clone, Copy)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    standard_strings: bool,
    /// Up to here stand signs of which each is an operator of its own: they are not looked at again.
    signs: usize,
    /// The first `/* quorate: ... */` seen so far.
    pub(super) directive: Option<Span>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], standard_strings: bool) -> Self {
        Self { text, at: 0, standard_strings, signs: 0, directive: None }
    }

    /// The next token.
    #[inline]
    pub(super) fn next(&mut self) -> Token {
        if !self.skip_blank() {
            return self.bad();
        }
        let start = self.at;
        let Some(&byte) = self.text.get(start) else { return self.token(Kind::End, start) };
        if is(byte, IDENT_START) {
            return self.word(start, byte);
        }
        match byte {
            b'\'' => self.string(start, self.standard_strings),
            b'"' => self.quoted(start),
            b'0'..=b'9' => self.number(start),
            b'$' => self.dollar(start),
            b'.' => match self.peek(1) {
                Some(b) if is(b, DIGIT) => self.number(start),
                _ => self.one(Kind::Dot),
            },
            b',' => self.one(Kind::Comma),
            b'(' => self.one(Kind::Open),
            b')' => self.one(Kind::Close),
            b'[' => self.one(Kind::Other),
            b']' => self.one(Kind::CloseBracket),
            b';' => self.one(Kind::Semicolon),
            b':' => self.colon(start),
            _ if is(byte, OPERATOR) => self.operator(start),
            _ => self.bad(),
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.get(self.at + ahead).copied()
    }

    #[inline(always)]
    fn token(&self, kind: Kind, start: usize) -> Token {
        Token { kind, start: start as u32, end: self.at as u32, ..Token::NONE }
    }

    #[inline(always)]
    fn one(&mut self, kind: Kind) -> Token {
        let start = self.at;
        self.at += 1;
        self.token(kind, start)
    }

    /// Nothing after something unreadable can be trusted, so the input ends here.
    #[cold]
    fn bad(&mut self) -> Token {
        let start = self.at.min(self.text.len());
        self.at = self.text.len();
        self.token(Kind::Bad, start)
    }

    /// Passes over white space and comments; `false` if a comment has no end.
    #[inline(always)]
    fn skip_blank(&mut self) -> bool {
        loop {
            match self.peek(0) {
                Some(b) if is(b, SPACE) => self.at += 1,
                Some(b'-') if self.peek(1) == Some(b'-') => self.line_comment(),
                Some(b'/') if self.peek(1) == Some(b'*') => {
                    if !self.block_comment() {
                        return false;
                    }
                }
                _ => return true,
            }
        }
    }

    fn line_comment(&mut self) {
        while self.peek(0).is_some_and(|b| b != b'\n' && b != b'\r') {
            self.at += 1;
        }
    }

    fn block_comment(&mut self) -> bool {
        let start = self.at + 2;
        let mut depth = 1u32;
        self.at = start;
        while depth > 0 {
            match (self.peek(0), self.peek(1)) {
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                }
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return false,
            }
        }
        if self.directive.is_none() {
            self.directive = directive(self.text, start, self.at - 2);
        }
        true
    }

    #[inline(always)]
    fn word(&mut self, start: usize, first: u8) -> Token {
        let rest = &self.text[start + 1..];
        let len = rest.iter().position(|&b| !is(b, IDENT)).unwrap_or(rest.len());
        self.at = start + 1 + len;
        match (self.peek(0), self.at - start) {
            (Some(b'\''), 1) => match first | 0x20 {
                b'e' => return self.string(start, false),
                b'b' | b'x' => return self.string(start, true),
                b'n' => return self.string(start, self.standard_strings),
                _ => {}
            },
            (Some(b'&'), 1) if first | 0x20 == b'u' => match self.peek(1) {
                Some(b'\'') => {
                    self.at += 1;
                    return self.string(start, true);
                }
                Some(b'"') => {
                    self.at += 1;
                    return self.quoted(start);
                }
                _ => {}
            },
            _ => {}
        }
        let hash = bytes::hash_folded(self.text, start, self.at);
        let keyword = Keyword::of(hash, self.text, start, self.at);
        Token { keyword, hash, ..self.token(Kind::Word, start) }
    }

    /// A string whose opening quote is next, with its continuations on later lines.
    fn string(&mut self, start: usize, plain: bool) -> Token {
        loop {
            self.at += 1;
            if !self.until_quote(b'\'', plain) {
                return self.bad();
            }
            match continuation(&self.text[self.at..]) {
                Some(gap) => self.at += gap,
                None => return self.token(Kind::Literal, start),
            }
        }
    }

    fn quoted(&mut self, start: usize) -> Token {
        self.at += 1;
        if !self.until_quote(b'"', true) {
            return self.bad();
        }
        self.token(Kind::Quoted, start)
    }

    /// Goes past the closing `quote`; a doubled one does not close. `false` if there is none.
    #[inline]
    fn until_quote(&mut self, quote: u8, plain: bool) -> bool {
        while let Some(byte) = self.peek(0) {
            self.at += 1;
            if byte == quote {
                if self.peek(0) != Some(quote) {
                    return true;
                }
                self.at += 1;
            } else if byte == b'\\' && !plain {
                self.at += 1;
            } else if byte == 0 {
                return false;
            }
        }
        false
    }

    fn number(&mut self, start: usize) -> Token {
        let decimal = !matches!(self.peek(1), Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B'));
        self.digits(decimal);
        // `1..2` is a range of two whole numbers.
        if decimal && self.peek(0) == Some(b'.') && self.peek(1) != Some(b'.') {
            self.at += 1;
            self.digits(decimal);
        }
        self.token(Kind::Literal, start)
    }

    /// Digits with whatever letters PostgreSQL takes or refuses there, and an exponent.
    fn digits(&mut self, decimal: bool) {
        while let Some(byte) = self.peek(0) {
            if byte == b'$' || !is(byte, IDENT) {
                return;
            }
            self.at += 1;
            let signed = matches!(self.peek(0), Some(b'+' | b'-'))
                && self.peek(1).is_some_and(|b| is(b, DIGIT));
            if decimal && byte | 0x20 == b'e' && signed {
                self.at += 1;
            }
        }
    }

    /// `$1`, `$$text$$` or `$tag$text$tag$`.
    fn dollar(&mut self, start: usize) -> Token {
        self.at += 1;
        if self.peek(0).is_some_and(|b| is(b, DIGIT)) {
            while self.peek(0).is_some_and(|b| is(b, DIGIT)) {
                self.at += 1;
            }
            return self.token(Kind::Param, start);
        }
        while self.peek(0).is_some_and(|b| b != b'$' && is(b, IDENT)) {
            self.at += 1;
        }
        if self.peek(0) != Some(b'$') {
            return self.bad();
        }
        self.at += 1;
        let delimiter = &self.text[start..self.at];
        while let Some(byte) = self.peek(0) {
            if byte == b'$' && self.text[self.at..].starts_with(delimiter) {
                self.at += delimiter.len();
                return self.token(Kind::Literal, start);
            }
            self.at += 1;
        }
        self.bad()
    }

    fn colon(&mut self, start: usize) -> Token {
        self.at += 1;
        let kind = match self.peek(0) {
            Some(b':') => Kind::Cast,
            Some(b'=') => Kind::Operator,
            _ => return self.token(Kind::Other, start),
        };
        self.at += 1;
        self.token(kind, start)
    }

    /// The longest run of operator characters, up to a comment; a trailing `+` or `-` belongs to
    /// what follows unless the operator has a character that standard SQL does not use.
    fn operator(&mut self, start: usize) -> Token {
        if start < self.signs {
            return self.one(Kind::Operator);
        }
        let mut special = false;
        while let Some(byte) = self.peek(0) {
            let comment = matches!((byte, self.peek(1)), (b'-', Some(b'-')) | (b'/', Some(b'*')));
            if !is(byte, OPERATOR) || (comment && self.at > start) {
                break;
            }
            special |= matches!(byte, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`');
            special |= matches!(byte, b'?' | b'%');
            self.at += 1;
        }
        let end = self.at;
        while !special && self.at > start + 1 && matches!(self.text[self.at - 1], b'+' | b'-') {
            self.at -= 1;
        }
        if self.at < end {
            self.signs = end;
        }
        self.token(Kind::Operator, start)
    }
}

/// Length of the blank between a string and its continuation: white space with a line break, in
/// which only `--` comments may stand. `None` if what follows is no continuation.
#[inline]
fn continuation(rest: &[u8]) -> Option<usize> {
    // Nearly every string is followed by something else.
    if !rest.first().is_some_and(|&b| is(b, SPACE) || b == b'-') {
        return None;
    }
    let (mut at, mut broken) = (0, false);
    loop {
        match rest.get(at)? {
            b'\n' | b'\r' => {
                broken = true;
                at += 1;
            }
            b'\'' if broken => return Some(at),
            b'-' if rest.get(at + 1) == Some(&b'-') => {
                at += rest[at..].iter().position(|&b| b == b'\n' || b == b'\r')?;
            }
            &b if is(b, SPACE) => at += 1,
            _ => return None,
        }
    }
}

/// The content of a comment that speaks to Quorate, trimmed.
fn directive(text: &[u8], start: usize, end: usize) -> Option<Span> {
    let body = &text[start..end];
    let inner = body.trim_ascii().strip_prefix(b"quorate:")?.trim_ascii();
    let skipped = inner.as_ptr() as usize - body.as_ptr() as usize;
    let start = start + skipped;
    Some(Span { start: start as u32, end: (start + inner.len()) as u32 })
}
