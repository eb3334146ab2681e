//! Tokens of SQL, cut as PostgreSQL's own scanner cuts them. Nothing is allocated and nothing is
//! decoded; a token is a range of the text.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A keyword or an identifier without quotes.
    Word,
    /// An identifier in double quotes.
    Quoted,
    /// A string, bit string or number.
    Literal,
    /// `$1`.
    Parameter,
    /// One character of punctuation or of an operator.
    Mark(u8),
    /// The text ends.
    End,
    /// The text ends inside a string, comment or quoted identifier.
    Broken,
}

/// A token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Walks through a text.
#[derive(Debug, Clone)]
pub(super) struct Lexer<'a> {
    pub(super) sql: &'a [u8],
    at: usize,
    /// Backslashes in plain strings are just that.
    standard_strings: bool,
    /// The content of the first comment that speaks to the gateway.
    pub(super) directive: Option<(usize, usize)>,
}

/// How comments begin that speak to the gateway.
const DIRECTIVE: &[u8] = b"quorate:";

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

fn begins_word(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80
}

impl<'a> Lexer<'a> {
    pub(super) fn new(sql: &'a [u8], standard_strings: bool) -> Self {
        Self { sql, at: 0, standard_strings, directive: None }
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// The next token.
    pub(super) fn next(&mut self) -> Token {
        if !self.skip() {
            return self.token(Kind::Broken, self.sql.len());
        }
        let start = self.at;
        let Some(&b) = self.sql.get(self.at) else { return self.token(Kind::End, start) };
        let kind = match b {
            b'\'' => self.string(!self.standard_strings),
            b'"' => self.quoted(),
            b'$' => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_ascii_digit() => self.number(),
            _ if begins_word(b) => self.word(b),
            _ => {
                self.at += 1;
                Kind::Mark(b)
            }
        };
        self.token(kind, start)
    }

    /// What comes next, without going there.
    pub(super) fn ahead(&self) -> Token {
        self.clone().next()
    }

    /// Whether a parenthesis comes next.
    pub(super) fn calls(&self) -> bool {
        match self.peek(0) {
            b'(' => true,
            b if is_space(b) || b == b'/' || b == b'-' => self.ahead().kind == Kind::Mark(b'('),
            _ => false,
        }
    }

    fn token(&self, kind: Kind, start: usize) -> Token {
        Token { kind, start, end: self.at }
    }

    /// Skips blanks and comments; false when a comment does not end.
    fn skip(&mut self) -> bool {
        loop {
            let b = self.peek(0);
            if is_space(b) {
                self.at += 1;
            } else if b == b'-' && self.peek(1) == b'-' {
                let rest = &self.sql[self.at..];
                let line = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
                self.at += line.unwrap_or(rest.len());
            } else if b == b'/' && self.peek(1) == b'*' {
                if !self.comment() {
                    return false;
                }
            } else {
                return true;
            }
        }
    }

    fn comment(&mut self) -> bool {
        let start = self.at + 2;
        self.at = start;
        let mut depth = 1;
        while self.at < self.sql.len() {
            match (self.peek(0), self.peek(1)) {
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        self.direct(start, self.at - 2);
                        return true;
                    }
                }
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        false
    }

    /// Takes note of a comment that speaks to the gateway.
    fn direct(&mut self, mut start: usize, end: usize) {
        while start < end && is_space(self.sql[start]) {
            start += 1;
        }
        let content = &self.sql[start..end];
        let speaks = content.get(..DIRECTIVE.len()).is_some_and(|c| c == DIRECTIVE);
        if speaks && self.directive.is_none() {
            self.directive = Some((start + DIRECTIVE.len(), end));
        }
    }

    /// A string; the quote is at the present place.
    fn string(&mut self, backslashes: bool) -> Kind {
        self.at += 1;
        loop {
            let Some(&b) = self.sql.get(self.at) else { return Kind::Broken };
            match b {
                b'\'' if self.peek(1) == b'\'' => self.at += 2,
                b'\'' => {
                    self.at += 1;
                    if !self.continues() {
                        return Kind::Literal;
                    }
                }
                b'\\' if backslashes => self.at += 2,
                _ => self.at += 1,
            }
        }
    }

    /// Whether a string goes on after a line break; then its next part is entered.
    fn continues(&mut self) -> bool {
        let mut at = self.at;
        let mut broke = false;
        loop {
            match self.sql.get(at) {
                Some(b'\n' | b'\r') => {
                    broke = true;
                    at += 1;
                }
                Some(&b) if is_space(b) => at += 1,
                // A comment to the end of the line may stand between the parts.
                Some(b'-') if self.sql.get(at + 1) == Some(&b'-') => {
                    let rest = &self.sql[at..];
                    let line = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
                    at += line.unwrap_or(rest.len());
                }
                Some(b'\'') if broke => {
                    self.at = at + 1;
                    return true;
                }
                _ => return false,
            }
        }
    }

    fn quoted(&mut self) -> Kind {
        self.at += 1;
        loop {
            let Some(&b) = self.sql.get(self.at) else { return Kind::Broken };
            self.at += 1;
            if b == b'"' {
                if self.peek(0) != b'"' {
                    return Kind::Quoted;
                }
                self.at += 1;
            }
        }
    }

    fn dollar(&mut self) -> Kind {
        if self.peek(1).is_ascii_digit() {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return Kind::Parameter;
        }
        let rest = &self.sql[self.at + 1..];
        let named = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
        let tag = rest.iter().take_while(|b| named(b)).count();
        if rest.get(tag) != Some(&b'$') {
            self.at += 1;
            return Kind::Mark(b'$');
        }
        let delimiter = &self.sql[self.at..self.at + tag + 2];
        let body = self.at + delimiter.len();
        let found = self.sql[body..].windows(delimiter.len()).position(|w| w == delimiter);
        match found {
            Some(n) => {
                self.at = body + n + delimiter.len();
                Kind::Literal
            }
            None => {
                self.at = self.sql.len();
                Kind::Broken
            }
        }
    }

    fn number(&mut self) -> Kind {
        while is_word(self.peek(0)) && self.peek(0) != b'$' || self.peek(0) == b'.' {
            // `1..2` is a range of PL/pgSQL; two numbers do no harm.
            let exponent =
                matches!(self.peek(0), b'e' | b'E') && matches!(self.peek(1), b'+' | b'-');
            self.at += if exponent { 2 } else { 1 };
        }
        Kind::Literal
    }

    fn word(&mut self, first: u8) -> Kind {
        // Prefixes of strings and identifiers.
        match (first | 0x20, self.peek(1)) {
            (b'e', b'\'') => {
                self.at += 1;
                return self.string(true);
            }
            (b'b' | b'x' | b'n', b'\'') => {
                self.at += 1;
                return self.string(!self.standard_strings && first | 0x20 == b'n');
            }
            (b'u', b'&') if self.peek(2) == b'\'' => {
                self.at += 2;
                return self.string(false);
            }
            (b'u', b'&') if self.peek(2) == b'"' => {
                self.at += 2;
                return self.quoted();
            }
            _ => {}
        }
        while is_word(self.peek(0)) && self.at < self.sql.len() {
            self.at += 1;
        }
        Kind::Word
    }
}
