//! The walk over a statement's body: everything that can turn a read into something else.

use super::{
    Leaves, Why, bytes,
    calls::Folded,
    catalog,
    keyword::Keyword,
    lexer::{Kind, Token},
    scan::Scan,
};
use crate::limits;

/// What is walked over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Something that reads: every function that is called counts.
    Query,
    /// The body of `INSERT`, `UPDATE`, `DELETE` or `MERGE`: functions count, and some words are
    /// syntax that are names elsewhere.
    Change,
    /// Any other statement: a name before `(` is seldom a function that is called now.
    Utility,
    /// The end of `COPY`: options, then perhaps a condition, whose functions count.
    Options,
    /// `CREATE FUNCTION` or `CREATE PROCEDURE`: like `Utility`, and a body of SQL may follow.
    Routine,
}

/// Where a walk ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// At the end of the statement.
    End,
    /// After the parenthesis that closes what is open.
    Close,
}

/// What is known in the middle of a walk.
pub(super) struct Walk {
    pub(super) mode: Mode,
    /// The token before.
    pub(super) last: Token,
    /// The token before the name that `last` is the end of.
    pub(super) before: Token,
    /// First part of that name, and how many parts it has.
    pub(super) first: Token,
    pub(super) parts: u32,
    /// An operand ended right before the name, so the name is no function.
    pub(super) after_operand: bool,
    /// A bit per open parenthesis, the innermost lowest: it followed `ON` or `OPERATOR`, so that
    /// an expression may come after it.
    led: u128,
    /// The parenthesis closed last was such a one.
    led_closed: bool,
    /// A bit per open parenthesis: names of common table expressions are being given there.
    with: u128,
    /// A name that may be a view about this server, if no `(` follows.
    suspect: bool,
    /// `RETURNING` was seen.
    returning: bool,
    /// The statement after `WITH` is no query.
    changes: bool,
}

/// What a walk found besides its effects on the script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Walked {
    /// The statement may return rows.
    pub(super) rows: bool,
}

impl Walk {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            last: Token::NONE,
            before: Token::NONE,
            first: Token::NONE,
            parts: 0,
            after_operand: false,
            led: 0,
            led_closed: false,
            with: 0,
            suspect: false,
            returning: false,
            changes: mode == Mode::Change,
        }
    }

    /// Whether the last token certainly ends an operand, after which no function can be named.
    fn at_operand_end(&self) -> bool {
        match self.last.kind {
            Kind::Word => self.last.keyword == Keyword::Plain,
            Kind::Quoted | Kind::Literal | Kind::Param | Kind::CloseBracket => true,
            Kind::Close => !self.led_closed,
            _ => false,
        }
    }

    /// Whether the name before `(` stands where common table expressions get their names.
    pub(super) fn names_with(&self) -> bool {
        self.with & 1 != 0
            && (matches!(self.before.keyword, Keyword::With | Keyword::Recursive)
                || self.before.kind == Kind::Comma)
    }
}

impl Scan<'_> {
    /// Walks to the end of the statement or of the parenthesis.
    pub(super) fn walk(&mut self, mode: Mode, until: Until) -> Walked {
        self.walk_from(Walk::new(mode), until)
    }

    /// Walks on after the first word of a statement, which was taken already.
    pub(super) fn walk_after(&mut self, first: Token, mode: Mode) -> Walked {
        let mut walk = Walk::new(mode);
        if first.kind == Kind::Open {
            self.depth = 1;
            walk.led = 0;
        } else if first.keyword == Keyword::With {
            walk.with = 1;
        }
        walk.last = first;
        self.walk_from(walk, Until::End)
    }

    fn walk_from(&mut self, mut walk: Walk, until: Until) -> Walked {
        loop {
            let mut token = self.take();
            if walk.suspect && token.kind != Kind::Open {
                walk.suspect = false;
                self.write(Why::SystemView);
            }
            match token.kind {
                Kind::Word => self.word(&mut walk, &mut token),
                Kind::Quoted => {
                    self.begin_name(&mut walk, token);
                    self.check_escapes(token);
                }
                Kind::Open => self.open(&mut walk),
                Kind::Close => {
                    if !self.close(&mut walk) {
                        break;
                    }
                    if until == Until::Close && self.depth == 0 {
                        break;
                    }
                }
                Kind::End | Kind::Bad => break,
                Kind::Semicolon if self.depth == 0 && !self.atomic => break,
                _ => {}
            }
            walk.last = token;
        }
        Walked { rows: walk.returning || !walk.changes }
    }

    #[inline(always)]
    fn word(&mut self, walk: &mut Walk, token: &mut Token) {
        // After a dot or `AS` any key word is a name (`AS (` and `AS NOT MATERIALIZED (` remain).
        let named = walk.last.kind == Kind::Dot
            || (walk.last.keyword == Keyword::As && self.names_follow_as(walk));
        if named {
            token.keyword = Keyword::Plain;
        }
        self.begin_name(walk, *token);
        if token.keyword != Keyword::Plain {
            self.keyword(walk, *token);
        }
    }

    /// In a body `AS` gives a name; in `CREATE TABLE ... AS` a query follows.
    fn names_follow_as(&self, walk: &Walk) -> bool {
        matches!(walk.mode, Mode::Query | Mode::Change) || self.atomic || self.depth > 0
    }

    /// Notes where a name begins, or that it goes on.
    #[inline(always)]
    fn begin_name(&mut self, walk: &mut Walk, token: Token) {
        if walk.last.kind == Kind::Dot && walk.parts > 0 {
            walk.parts += 1;
        } else {
            walk.after_operand = walk.at_operand_end();
            walk.before = walk.last;
            walk.first = token;
            walk.parts = 1;
        }
        if self.relations && matches!(walk.mode, Mode::Query | Mode::Change) {
            self.check_behind(token);
        }
        if token.keyword == Keyword::Plain && self.is_local(token) {
            walk.suspect = matches!(walk.mode, Mode::Query | Mode::Change);
            // A view that makes settings when it is written to.
            let settings = folded_prefix(token.text(self.sql), b"pg_settings");
            if settings && walk.mode == Mode::Change {
                self.leave(Leaves::UNKNOWN_SETTING);
            }
            let temporary = folded_prefix(token.text(self.sql), b"pg_temp");
            if temporary && matches!(walk.mode, Mode::Utility | Mode::Routine) {
                self.leave(Leaves::TEMP);
            }
        }
    }

    /// Whether a name begins with `pg_` and is not one of the relations that are the same on
    /// every server.
    #[inline(always)]
    fn is_local(&self, token: Token) -> bool {
        let text = token.text(self.sql);
        // Few names begin so.
        if !matches!(text.first(), Some(b'p' | b'P' | b'"')) || !folded_prefix(text, b"pg_") {
            return false;
        }
        let name = text.strip_prefix(b"\"").map_or(text, |t| t.strip_suffix(b"\"").unwrap_or(t));
        !catalog::is_replicated(bytes::hash_folded(name, 0, name.len()), name)
    }

    /// Names with Unicode escapes are not read: they could be of anything.
    fn check_escapes(&mut self, token: Token) {
        if token.kind == Kind::Quoted && token.text(self.sql).first() != Some(&b'"') {
            self.write(Why::EscapedName);
            self.leave(Leaves::UNKNOWN);
        }
    }

    /// Needs the writer if reading the relation calls what does. Whatever else has its name is
    /// taken for it.
    #[cold]
    fn check_behind(&mut self, token: Token) {
        let name = Folded::of(token, self.sql);
        if name.is_some_and(|name| self.functions.are_behind(name.as_bytes())) {
            self.write(Why::View);
        }
    }

    /// Needs the writer if the relation is about one server, or calls what does.
    pub(super) fn check_relation(&mut self, token: Token) {
        self.check_escapes(token);
        if self.relations {
            self.check_behind(token);
        }
        if self.is_local(token) {
            self.write(Why::SystemView);
        }
    }

    fn open(&mut self, walk: &mut Walk) {
        walk.suspect = false;
        if walk.last.is_name() {
            self.maybe_call(walk);
        }
        // `WITH x AS (...) (SELECT ...)`: the names are all given.
        if walk.last.kind == Kind::Close {
            walk.with &= !1;
        }
        if self.depth >= limits::SQL_DEPTH_MAX {
            self.give_up(Why::TooDeep);
            return;
        }
        self.depth += 1;
        let led = matches!(walk.last.keyword, Keyword::On | Keyword::Operator);
        walk.led = (walk.led << 1) | u128::from(led);
        walk.with <<= 1;
        self.enter_query(walk, Keyword::Plain, Kind::Open);
    }

    fn close(&mut self, walk: &mut Walk) -> bool {
        if self.depth == 0 {
            self.give_up(Why::Unlexable);
            return false;
        }
        self.depth -= 1;
        walk.led_closed = walk.led & 1 != 0;
        walk.led >>= 1;
        walk.with >>= 1;
        true
    }

    fn keyword(&mut self, walk: &mut Walk, token: Token) {
        let after_for = walk.last.keyword == Keyword::For;
        match token.keyword {
            Keyword::With => {
                if matches!(walk.last.kind, Kind::End | Kind::Open) {
                    walk.with |= 1;
                }
                self.enter_query(walk, Keyword::With, Kind::Word);
            }
            Keyword::Select | Keyword::Values | Keyword::Table | Keyword::Execute => {
                walk.with &= !1;
                self.enter_query(walk, token.keyword, Kind::Word);
            }
            Keyword::Update | Keyword::Share | Keyword::No | Keyword::Key if after_for => {
                self.write(Why::RowLock);
            }
            // No such statement goes on with a parenthesis, but a function may have the name.
            Keyword::Insert | Keyword::Update | Keyword::Delete | Keyword::Merge
                if self.peek().kind != Kind::Open =>
            {
                self.changes(walk);
            }
            Keyword::Into => self.into(walk),
            Keyword::Returning if self.depth == 0 => walk.returning = true,
            Keyword::Where if walk.mode == Mode::Options => walk.mode = Mode::Query,
            Keyword::Temp | Keyword::Temporary if walk.last.keyword == Keyword::Create => {
                self.leave(Leaves::TEMP);
            }
            Keyword::Atomic | Keyword::End if walk.mode == Mode::Routine => {
                self.routine_body(walk, token);
            }
            _ => {}
        }
    }

    /// A statement that changes rows inside another, or after `WITH`.
    fn changes(&mut self, walk: &mut Walk) {
        if !matches!(walk.mode, Mode::Query | Mode::Change) {
            return;
        }
        self.write(Why::DataModifyingCte);
        if walk.with & 1 != 0 && self.depth == 0 && walk.last.kind == Kind::Close {
            walk.changes = true;
        }
        walk.with &= !1;
    }

    fn into(&mut self, walk: &Walk) {
        if matches!(walk.last.keyword, Keyword::Insert | Keyword::Merge) {
            return;
        }
        self.write(Why::SelectInto);
        let next = self.peek();
        let temporary = matches!(
            next.keyword,
            Keyword::Temp | Keyword::Temporary | Keyword::Local | Keyword::Global
        );
        if temporary || folded_prefix(next.text(self.sql), b"pg_temp") {
            self.leave(Leaves::TEMP);
        }
    }

    /// The query of `CREATE TABLE ... AS` is executed: from here its functions count.
    fn enter_query(&mut self, walk: &mut Walk, keyword: Keyword, kind: Kind) {
        if walk.mode != Mode::Utility || walk.last.keyword != Keyword::As {
            return;
        }
        if self.depth == u32::from(kind == Kind::Open) {
            walk.mode = Mode::Query;
            if keyword == Keyword::Execute {
                self.leave(Leaves::PREPARED);
            }
            if keyword == Keyword::With {
                walk.with |= 1;
            }
        }
    }

    /// `BEGIN ATOMIC` opens a body whose statements end in semicolons. No such statement begins
    /// with `END`, so an `END` after a semicolon closes it.
    fn routine_body(&mut self, walk: &Walk, token: Token) {
        if token.keyword == Keyword::Atomic {
            self.atomic |= self.depth == 0 && walk.last.keyword == Keyword::Begin;
        } else if self.depth == 0
            && (walk.last.kind == Kind::Semicolon || walk.last.keyword == Keyword::Atomic)
        {
            self.atomic = false;
        }
    }
}

/// Whether a name, quoted or not, begins with `prefix` in any case.
#[inline(always)]
fn folded_prefix(text: &[u8], prefix: &[u8]) -> bool {
    let text = text.strip_prefix(b"\"").unwrap_or(text);
    text.get(..prefix.len()).is_some_and(|t| t.eq_ignore_ascii_case(prefix))
}
