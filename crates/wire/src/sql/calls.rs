//! Function calls: which names before `(` are calls, and what the functions may do.

use super::{
    Knowledge, Leaves, Why, bytes,
    catalog::{self, Builtin},
    keyword::Keyword,
    lexer::{Kind, Token},
    scan::Scan,
    set,
    walk::{Mode, Walk},
};
use crate::limits;

/// The bytes of a folded name.
pub(super) struct Folded {
    bytes: [u8; limits::SQL_NAME_MAX],
    len: usize,
}

impl Folded {
    /// The name as the catalog has it; `None` if it is too long or has Unicode escapes.
    pub(super) fn of(token: Token, sql: &[u8]) -> Option<Self> {
        let text = token.text(sql);
        let mut name = Self { bytes: [0; limits::SQL_NAME_MAX], len: 0 };
        let mut put = |b| {
            if let Some(place) = name.bytes.get_mut(name.len) {
                *place = b;
            }
            name.len += 1;
        };
        match token.kind {
            Kind::Quoted if text.first() != Some(&b'"') => return None,
            Kind::Quoted => set::unquote(text, &mut put),
            _ => text.iter().for_each(|b| put(b.to_ascii_lowercase())),
        }
        (name.len <= limits::SQL_NAME_MAX).then_some(name)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Where a function is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Schema {
    /// In the search path, which begins with `pg_catalog` unless it says otherwise.
    Path,
    Catalog,
    Other,
}

impl Scan<'_> {
    /// A name is followed by `(`.
    pub(super) fn maybe_call(&mut self, walk: &Walk) {
        if self.is_call(walk) {
            self.call(walk);
        }
    }

    /// Whether it is a call as far as grammar tells; doubtful ones are.
    fn is_call(&self, walk: &Walk) -> bool {
        let before = walk.before;
        // Lists of columns, types with a modifier, methods of sampling, prepared statements.
        if walk.after_operand
            || before.kind == Kind::Cast
            || matches!(
                before.keyword,
                Keyword::As
                    | Keyword::Into
                    | Keyword::Tablesample
                    | Keyword::Ordinality
                    | Keyword::Execute
            )
            || walk.names_with()
        {
            return false;
        }
        match walk.last.keyword {
            keyword if !keyword.is_free() => false,
            Keyword::By => {
                !matches!(before.keyword, Keyword::Order | Keyword::Group | Keyword::Partition)
            }
            Keyword::Sets => before.keyword != Keyword::Grouping,
            Keyword::Varying => {
                !matches!(before.keyword, Keyword::Character | Keyword::Char | Keyword::Bit)
            }
            Keyword::Zone => before.keyword != Keyword::Time,
            Keyword::First | Keyword::Next => before.keyword != Keyword::Fetch,
            Keyword::Set => before.keyword != Keyword::Update,
            _ => true,
        }
    }

    fn call(&mut self, walk: &Walk) {
        let schema = match walk.parts {
            1 => Schema::Path,
            2 if is_catalog(walk.first, self.sql) => Schema::Catalog,
            _ => Schema::Other,
        };
        // The lexer hashed the word already, unless it is quoted.
        let Some(name) = Folded::of(walk.last, self.sql) else {
            return self.unknown_call(walk);
        };
        let name = name.as_bytes();
        let known = match schema {
            Schema::Catalog => Knowledge::Unknown,
            Schema::Path | Schema::Other => self.functions.knowledge(name),
        };
        match known {
            Knowledge::Suspect => self.suspect_call(),
            Knowledge::Volatile => self.write(Why::Function),
            Knowledge::Stable | Knowledge::Unknown => {}
        }
        if schema == Schema::Other {
            if known == Knowledge::Unknown {
                self.unknown_call(walk);
            }
            return;
        }
        let hash = match walk.last.kind {
            Kind::Word => walk.last.hash,
            _ => bytes::hash_folded(name, 0, name.len()),
        };
        match catalog::function(hash, name) {
            // The table does not mind case, a quoted name does.
            Some(_) if name.iter().any(u8::is_ascii_uppercase) => self.unknown_call(walk),
            Some(Builtin::Replica) => {}
            Some(Builtin::Writer) => {
                self.write(Why::Function);
                match name {
                    b"nextval" | b"setval" => self.leave(Leaves::SEQUENCE),
                    b"currval" | b"lastval" => self.script.recalls = true,
                    _ => {}
                }
            }
            None => self.special_call(walk, name, known),
        }
    }

    /// Built-in functions that are in no list, and functions that are not built in.
    fn special_call(&mut self, walk: &Walk, name: &[u8], known: Knowledge) {
        match name {
            b"set_config" => self.set_config(),
            b"current_setting" => self.current_setting(),
            b"pg_advisory_lock"
            | b"pg_advisory_lock_shared"
            | b"pg_try_advisory_lock"
            | b"pg_try_advisory_lock_shared" => {
                self.write(Why::Function);
                self.leave(Leaves::ADVISORY);
            }
            b"pg_advisory_unlock" | b"pg_advisory_unlock_shared" | b"pg_advisory_unlock_all" => {
                self.write(Why::Function);
                self.leave(Leaves::CLEARS_ADVISORY);
            }
            b"setseed" => {
                self.write(Why::Function);
                self.leave(Leaves::UNKNOWN_SETTING);
            }
            // Built in, and not harmless: SQL given as text, replication origins, backups.
            b"query_to_xml" | b"cursor_to_xml" => self.suspect_call(),
            _ if known != Knowledge::Unknown || is_clause(walk) => {}
            _ => self.unknown_call(walk),
        }
    }

    fn suspect_call(&mut self) {
        self.write(Why::Function);
        self.leave(Leaves::UNKNOWN);
    }

    fn unknown_call(&mut self, walk: &Walk) {
        // Where little is executed, most names before `(` are no functions.
        if matches!(walk.mode, Mode::Query | Mode::Change) {
            self.suspect_call();
        }
    }

    /// `set_config(name, value, is_local)`; the opening parenthesis was taken.
    fn set_config(&mut self) {
        self.script.configures = true;
        self.script.by_values = true;
        self.write(Why::Function);
        let Some(arguments) = self.arguments() else {
            return self.leave(Leaves::SETTING.with(Leaves::UNKNOWN_SETTING));
        };
        if arguments[2].is_none_or(|token| token.keyword != Keyword::True) {
            self.leave(Leaves::SETTING);
            if arguments[0].is_none_or(|token| token.kind != Kind::Literal) {
                self.leave(Leaves::UNKNOWN_SETTING);
            }
        }
        // A path with `pg_temp` makes temporary tables that cannot be seen here. (One that comes
        // as a parameter stays out of sight.)
        let literal = |token: &Token| token.kind == Kind::Literal;
        if arguments[1].filter(literal).is_some_and(|t| mentions(t.text(self.sql), b"pg_temp")) {
            self.leave(Leaves::UNKNOWN);
        }
    }

    /// `current_setting(name [, missing_ok])`.
    fn current_setting(&mut self) {
        self.script.by_values = true;
        let mut ahead = self.lexer;
        let name = ahead.next();
        let plain =
            name.kind == Kind::Literal && matches!(ahead.next().kind, Kind::Close | Kind::Comma);
        match name.text(self.sql) {
            [b'\'', inner @ .., b'\''] if plain => {
                let mut folded = [0; limits::SQL_NAME_MAX];
                match folded.get_mut(..inner.len()) {
                    Some(place) => {
                        place.copy_from_slice(inner);
                        place.make_ascii_lowercase();
                        self.check_setting(&folded[..inner.len()]);
                    }
                    None => self.write(Why::ServerSetting),
                }
            }
            _ => self.write(Why::ServerSetting),
        }
    }

    /// The three arguments of a call, each with its token if it is only one. `None` if there are
    /// not three, or they do not end.
    fn arguments(&self) -> Option<[Option<Token>; 3]> {
        let mut ahead = self.lexer;
        let mut found = [None; 3];
        let (mut argument, mut tokens, mut depth) = (0, 0, 0u32);
        loop {
            let token = ahead.next();
            match token.kind {
                Kind::End | Kind::Bad => return None,
                Kind::Close if depth == 0 => return (argument == 2).then_some(found),
                Kind::Comma if depth == 0 => {
                    argument += 1;
                    tokens = 0;
                    continue;
                }
                Kind::Open => depth += 1,
                Kind::Close => depth -= 1,
                _ => {}
            }
            tokens += 1;
            *found.get_mut(argument)? = (tokens == 1).then_some(token);
        }
    }
}

/// `ON CONFLICT (` and `THEN INSERT (`: clauses, unless somebody has functions of these names.
fn is_clause(walk: &Walk) -> bool {
    walk.mode == Mode::Change
        && matches!(
            (walk.before.keyword, walk.last.keyword),
            (Keyword::On, Keyword::Conflict) | (Keyword::Then, Keyword::Insert)
        )
}

fn is_catalog(token: Token, sql: &[u8]) -> bool {
    let text = token.text(sql);
    text.eq_ignore_ascii_case(b"pg_catalog") || text == b"\"pg_catalog\""
}

/// Whether a literal might contain `word`; escapes can spell anything.
pub(super) fn mentions(text: &[u8], word: &[u8]) -> bool {
    text.contains(&b'\\') || text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}
