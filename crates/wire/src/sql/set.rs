//! `SET`, `RESET`, `SHOW` and transaction modes.

use std::borrow::Cow;

use super::{
    Isolation, Leaves, Modes, Span, Verb, Why, bytes, calls, catalog,
    keyword::Keyword,
    lexer::{Kind, Lexer, Token},
    scan::Scan,
};

/// A name as it was written, or the name that a special form stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// In the text, perhaps quoted and of several parts.
    Written(Span),
    /// Meant by grammar: `SET TIME ZONE` sets `timezone`.
    Fixed(&'static str),
}

impl Name {
    /// The name as PostgreSQL takes it: parts without quotes as they are, others in lower case,
    /// joined by dots. `sql` is the string that was classified. Borrows where nothing changes.
    ///
    /// Names of settings do not mind case even when quoted: lower them once more.
    pub fn text<'a>(&self, sql: &'a [u8]) -> Cow<'a, [u8]> {
        let raw = match self {
            Self::Fixed(name) => return Cow::Borrowed(name.as_bytes()),
            Self::Written(span) => span.of(sql),
        };
        let plain = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.');
        if raw.iter().all(plain) { Cow::Borrowed(raw) } else { Cow::Owned(folded_name(raw)) }
    }
}

fn folded_name(raw: &[u8]) -> Vec<u8> {
    let mut lexer = Lexer::new(raw, true);
    let mut name = Vec::with_capacity(raw.len());
    loop {
        let token = lexer.next();
        let text = token.text(raw);
        match token.kind {
            Kind::End | Kind::Bad => return name,
            Kind::Quoted => unquote(text, &mut |b| name.push(b)),
            _ => name.extend(text.iter().map(u8::to_ascii_lowercase)),
        }
    }
}

/// Hands out the bytes of a quoted name.
pub(super) fn unquote(text: &[u8], put: &mut impl FnMut(u8)) {
    let inner = text.get(1..text.len().saturating_sub(1)).unwrap_or_default();
    let mut at = 0;
    while let Some(&b) = inner.get(at) {
        put(b);
        at += if b == b'"' { 2 } else { 1 };
    }
}

/// Until when a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetScope {
    /// The session.
    Session,
    /// The transaction.
    Local,
}

/// `SET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// `LOCAL` or not.
    pub scope: SetScope,
    /// What is set.
    pub name: Name,
    /// The text of the value, to the end of the statement.
    pub value: Span,
    /// The value is the key word `DEFAULT` (for `SET TIME ZONE` also `LOCAL`, for `SET ROLE`
    /// also `NONE`).
    pub default: bool,
}

/// `RESET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    /// All settings.
    All,
    /// One.
    One(Name),
}

/// `SHOW`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// All settings.
    All,
    /// One.
    One(Name),
}

impl Scan<'_> {
    /// After `SET`.
    pub(super) fn set(&mut self) -> Verb {
        let mut scope = SetScope::Session;
        let mut word = self.take();
        if matches!(word.keyword, Keyword::Session | Keyword::Local) && !self.at_assignment() {
            if word.keyword == Keyword::Local {
                scope = SetScope::Local;
            } else if self.take_if(Keyword::Characteristics) {
                return self.set_characteristics();
            }
            // `SET SESSION AUTHORIZATION` names no scope; `SET SESSION SESSION AUTHORIZATION` does.
            if self.peek().keyword != Keyword::Authorization {
                word = self.take();
            }
        }
        if !self.at_assignment() {
            match word.keyword {
                Keyword::Transaction => return self.set_transaction(),
                Keyword::Constraints => {
                    self.write(Why::Keyword);
                    return Verb::SetConstraints;
                }
                _ => {}
            }
        }
        let Some((name, gap)) = self.set_name(word) else { return self.unknown() };
        self.set_value(scope, name, gap)
    }

    /// Whether what comes next makes the word before it a setting's name.
    fn at_assignment(&self) -> bool {
        let next = self.peek();
        matches!(next.kind, Kind::Dot)
            || next.keyword == Keyword::To
            || (next.kind == Kind::Operator && next.text(self.sql) == b"=")
    }

    /// The setting that is set, and whether `TO` or `=` must follow.
    fn set_name(&mut self, word: Token) -> Option<(Name, bool)> {
        if self.at_assignment() {
            return Some((self.name(word)?, true));
        }
        Some(match word.keyword {
            Keyword::Time if self.take_if(Keyword::Zone) => (Name::Fixed("timezone"), false),
            Keyword::Names => (Name::Fixed("client_encoding"), false),
            Keyword::Role => (Name::Fixed("role"), false),
            Keyword::Schema => (Name::Fixed("search_path"), false),
            Keyword::Session if self.take_if(Keyword::Authorization) => {
                (Name::Fixed("session_authorization"), false)
            }
            // PostgreSQL calls it `xmloption`.
            Keyword::Xml if self.take_if(Keyword::Option) => (Name::Fixed("xmloption"), false),
            _ => return None,
        })
    }

    fn set_value(&mut self, scope: SetScope, name: Name, assigned: bool) -> Verb {
        if assigned {
            self.take();
        }
        let first = self.take();
        let mut last = first;
        let mut tokens = 1;
        while let Some(token) = self.take_inside() {
            last = token;
            tokens += 1;
        }
        let value = if first.kind == Kind::End || first.kind == Kind::Semicolon {
            Span { start: first.start, end: first.start }
        } else {
            Span { start: first.start, end: last.end }
        };
        let default = tokens == 1 && self.is_default(name, first);
        self.set_effects(scope, name, value);
        Verb::Set(Set { scope, name, value, default })
    }

    /// The next token unless the statement is at its end.
    fn take_inside(&mut self) -> Option<Token> {
        let token = self.take();
        let end = matches!(token.kind, Kind::End | Kind::Semicolon | Kind::Bad);
        (!end).then_some(token)
    }

    fn is_default(&self, name: Name, value: Token) -> bool {
        match (name, value.keyword) {
            (_, Keyword::Default) => true,
            (Name::Fixed("timezone"), Keyword::Local) => true,
            (Name::Fixed("role"), _) => value.text(self.sql).eq_ignore_ascii_case(b"none"),
            _ => false,
        }
    }

    fn set_effects(&mut self, scope: SetScope, name: Name, value: Span) {
        // With `pg_temp` in the path every table created is a temporary one, unseen from here.
        if calls::mentions(value.of(self.sql), b"pg_temp") {
            self.leave(Leaves::UNKNOWN);
        }
        match scope {
            SetScope::Session => {
                self.write(Why::Session);
                self.leave(Leaves::SETTING);
            }
            // A standby refuses some values of these.
            SetScope::Local => {
                const OWN: &[u8] = b"transaction_";
                let text = name.text(self.sql);
                if text.get(..OWN.len()).is_some_and(|t| t.eq_ignore_ascii_case(OWN)) {
                    self.write(Why::Transaction);
                }
            }
        }
    }

    /// After `SET SESSION CHARACTERISTICS`.
    fn set_characteristics(&mut self) -> Verb {
        self.take_if(Keyword::As);
        self.take_if(Keyword::Transaction);
        self.write(Why::Session);
        self.leave(Leaves::SETTING);
        Verb::SetSessionCharacteristics(self.modes())
    }

    /// After `SET TRANSACTION`.
    fn set_transaction(&mut self) -> Verb {
        let modes = self.modes();
        if !modes.on_standby() {
            self.write(Why::Transaction);
        }
        Verb::SetTransaction(modes)
    }

    /// Transaction modes up to the end of the statement.
    pub(super) fn modes(&mut self) -> Modes {
        let mut modes = Modes::default();
        while let Some(token) = self.take_inside() {
            match token.keyword {
                Keyword::Read if self.take_if(Keyword::Only) => modes.read_only = Some(true),
                Keyword::Read if self.take_if(Keyword::Write) => modes.read_only = Some(false),
                Keyword::Not if self.take_if(Keyword::Deferrable) => {
                    modes.deferrable = Some(false);
                }
                Keyword::Deferrable => modes.deferrable = Some(true),
                Keyword::Isolation if self.take_if(Keyword::Level) => match self.isolation() {
                    Some(level) => modes.isolation = Some(level),
                    None => modes.other = true,
                },
                _ if token.kind == Kind::Comma => {}
                _ => modes.other = true,
            }
        }
        modes
    }

    fn isolation(&mut self) -> Option<Isolation> {
        let first = self.take().keyword;
        if first == Keyword::Serializable {
            return Some(Isolation::Serializable);
        }
        let second = self.take().keyword;
        match (first, second) {
            (Keyword::Repeatable, Keyword::Read) => Some(Isolation::RepeatableRead),
            (Keyword::Read, Keyword::Committed) => Some(Isolation::ReadCommitted),
            (Keyword::Read, Keyword::Uncommitted) => Some(Isolation::ReadUncommitted),
            _ => None,
        }
    }

    /// After `RESET`.
    pub(super) fn reset(&mut self) -> Verb {
        self.write(Why::Session);
        self.leave(Leaves::SETTING);
        let word = self.take();
        if word.keyword == Keyword::All {
            self.leave(Leaves::CLEARS_SETTINGS);
            return Verb::Reset(Reset::All);
        }
        match self.shown_name(word) {
            Some(name) => Verb::Reset(Reset::One(name)),
            None => self.unknown(),
        }
    }

    /// After `SHOW`.
    pub(super) fn show(&mut self) -> Verb {
        self.script.returns_rows = true;
        let word = self.take();
        if word.keyword == Keyword::All {
            self.write(Why::ServerSetting);
            return Verb::Show(Show::All);
        }
        let Some(name) = self.shown_name(word) else { return self.unknown() };
        self.check_setting(&name.text(self.sql));
        Verb::Show(Show::One(name))
    }

    /// Reading this setting needs the writer if it tells of one server.
    pub(super) fn check_setting(&mut self, name: &[u8]) {
        let hash = bytes::hash_folded(name, 0, name.len());
        if !catalog::is_of_session(hash, name) {
            self.write(Why::ServerSetting);
        }
    }

    /// The setting that `SHOW` or `RESET` names.
    fn shown_name(&mut self, word: Token) -> Option<Name> {
        Some(match word.keyword {
            Keyword::Time if self.take_if(Keyword::Zone) => Name::Fixed("timezone"),
            Keyword::Session if self.take_if(Keyword::Authorization) => {
                Name::Fixed("session_authorization")
            }
            Keyword::Transaction if self.take_if(Keyword::Isolation) => {
                Name::Fixed("transaction_isolation")
            }
            _ => self.name(word)?,
        })
    }

    /// A name that begins with `first`, with all its parts.
    pub(super) fn name(&mut self, first: Token) -> Option<Name> {
        if !self.is_readable(first) {
            return None;
        }
        let mut last = first;
        while self.peek().kind == Kind::Dot {
            self.take();
            last = self.take();
            if !self.is_readable(last) {
                return None;
            }
        }
        Some(Name::Written(Span { start: first.start, end: last.end }))
    }

    /// Whether it is a name without Unicode escapes.
    fn is_readable(&self, token: Token) -> bool {
        token.kind == Kind::Word
            || (token.kind == Kind::Quoted && token.text(self.sql).first() == Some(&b'"'))
    }
}
