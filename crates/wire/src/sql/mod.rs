//! What a query string is, as far as a gateway must know: does it need the writer, does it touch
//! the transaction, what may it leave in the session.
//!
//! A lexer as exact as PostgreSQL's own, and above it a shallow recogniser: the head of every
//! statement is read, its body only walked for what decides (locking clauses, `INTO`, statements
//! inside `WITH`, function calls, views about one server). It is no parser and accepts much that
//! PostgreSQL refuses; that does not matter, because PostgreSQL refuses it.
//!
//! Invariant: what is not understood needs the writer. Out of sight stay operators, casts, views,
//! column defaults, triggers and `row.function` notation: there PostgreSQL is the judge, a standby
//! answers a write with 25006. State that such code leaves in a session is not seen either, nor is
//! what expressions of `ALTER` or `CREATE INDEX` call, nor a `search_path` with `pg_temp` that comes
//! as a parameter of `set_config`.
//!
//! Nothing is allocated and nothing is copied, but the name in `SET LOCAL` when it is not written as
//! PostgreSQL keeps it; time is linear in the length of the string.

use std::fmt;

pub use set::{Name, Reset, Set, SetScope, Show};
pub use shapes::Shapes;
pub use statements::{Piece, Statement, statements};
pub use verb::{Close, CopyKind, Deallocate, Discard, Isolation, Modes, Verb};

mod bytes;
mod calls;
mod catalog;
mod copy;
mod head;
mod keyword;
mod lexer;
mod scan;
mod set;
mod shapes;
mod statements;
mod verb;
mod walk;
mod words;

/// What classification depends on besides the text.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The session's `standard_conforming_strings`: off makes `\` an escape in plain strings.
    pub standard_strings: bool,
    /// Whether the text is complete. The beginning of a longer one needs the writer and is taken
    /// to do anything. Say `false` too when `client_encoding` may have ASCII bytes inside
    /// characters (SJIS, BIG5, GBK, UHC, GB18030, JOHAB): such text cannot be read bytewise.
    pub whole: bool,
    /// What is known of functions outside `pg_catalog`, and of relations that call functions.
    pub functions: &'a dyn Functions,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { standard_strings: true, whole: true, functions: &NoFunctions }
    }
}

/// Answers questions about functions of users and extensions, procedures included.
pub trait Functions {
    /// What is known of the functions called `name` in any schema but `pg_catalog`.
    ///
    /// `name` is as in `pg_proc.proname` (folded or unquoted), without its schema. Names of
    /// built-in functions are asked for too: an overload with other arguments may exist.
    fn knowledge(&self, name: &[u8]) -> Knowledge;

    /// Whether reading a relation called `name` in any schema, as in `pg_class.relname`, calls a
    /// function that needs the writer.
    fn are_behind(&self, _name: &[u8]) -> bool {
        false
    }

    /// Whether there is any such relation.
    fn are_behind_some(&self) -> bool {
        false
    }
}

/// What is known of a name's functions; the worst of all overloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    /// No such function is known. It needs the writer and may leave anything in the session,
    /// unless `pg_catalog` has one of this name.
    Unknown,
    /// No overload is volatile: may run on a replica.
    Stable,
    /// Needs the writer, and leaves nothing in the session.
    Volatile,
    /// Needs the writer, and may leave state in the session.
    Suspect,
}

/// Knows no function.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFunctions;

impl Functions for NoFunctions {
    fn knowledge(&self, _: &[u8]) -> Knowledge {
        Knowledge::Unknown
    }
}

/// A range of bytes of the query string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes it stands for.
    pub fn of<'a>(&self, sql: &'a [u8]) -> &'a [u8] {
        &sql[self.start as usize..self.end as usize]
    }
}

/// What a query string is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// How many statements are not empty.
    pub statements: u32,
    /// The first of them.
    pub first: Verb,
    /// Who can serve the whole string.
    pub access: Access,
    /// The first thing found that needs the writer.
    pub because: Why,
    /// Whether a statement may end a transaction block.
    pub ends: bool,
    /// Whether a statement begins a transaction block.
    pub begins: bool,
    /// What the string may leave in the session, or take from it.
    pub leaves: Leaves,
    /// Whether `set_config` is called by its name.
    pub configures: bool,
    /// Whether `currval` or `lastval` is called by its name, and nothing that sets what they tell.
    pub recalls: bool,
    /// Whether what the string says in its literals had a part in this.
    pub by_values: bool,
    /// Whether a statement may return rows.
    pub returns_rows: bool,
    /// The same for strings that differ in literals, parameters, comments, spacing or case only.
    pub fingerprint: u64,
    /// What a comment `/* quorate: ... */` before or inside the first statement says, trimmed.
    pub directive: Option<Span>,
}

/// Who can serve a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A replica may. Statements that follow their transaction (`SAVEPOINT`, `FETCH`, `SET LOCAL`)
    /// are here as well.
    Read,
    /// Only the writer.
    Write,
}

/// Why the writer is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// It is not.
    None,
    /// Only the beginning of the text is there.
    NotWhole,
    /// A string, comment or parenthesis without end, or a byte that begins no token.
    Unlexable,
    /// More nesting than [`crate::limits::SQL_DEPTH_MAX`].
    TooDeep,
    /// A statement that is not known.
    UnknownStatement,
    /// The kind of statement, which its first word tells.
    Keyword,
    /// `FOR UPDATE`, `FOR NO KEY UPDATE`, `FOR SHARE` or `FOR KEY SHARE`.
    RowLock,
    /// A call of a function that is not known to be safe on a replica.
    Function,
    /// A view or table behind which is a function that is not known to be safe on a replica.
    View,
    /// `SELECT ... INTO`.
    SelectInto,
    /// `INSERT`, `UPDATE`, `DELETE` or `MERGE` inside or after `WITH`.
    DataModifyingCte,
    /// `EXPLAIN` of something that needs the writer.
    Explain,
    /// A view or table whose content is about one server or one session.
    SystemView,
    /// A name written as `U&"..."`, which could be any.
    EscapedName,
    /// A setting whose value is about one server.
    ServerSetting,
    /// The beginning or end of a transaction block that is not `READ ONLY`, or a mode that a
    /// standby does not have.
    Transaction,
    /// A change of the session: `SET`, `LISTEN`, `PREPARE`, `WITH HOLD` and the like.
    Session,
}

/// What a string may leave in the session, and what it may take away. A set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Leaves(u16);

impl Leaves {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// A setting: `SET`, `RESET`, `set_config` that is not local, session characteristics, role.
    pub const SETTING: Self = Self(1);
    /// A setting by `set_config` whose name is not a plain literal.
    pub const UNKNOWN_SETTING: Self = Self(1 << 1);
    /// A temporary object.
    pub const TEMP: Self = Self(1 << 2);
    /// An advisory lock of the session.
    pub const ADVISORY: Self = Self(1 << 3);
    /// `LISTEN`.
    pub const LISTEN: Self = Self(1 << 4);
    /// A cursor `WITH HOLD`.
    pub const HOLD: Self = Self(1 << 5);
    /// A prepared statement of SQL, or its use by `EXECUTE`.
    pub const PREPARED: Self = Self(1 << 6);
    /// `LOAD` of a library.
    pub const LOAD: Self = Self(1 << 7);
    /// Anything: a function that is not known, `DO`, text that cannot be read.
    pub const UNKNOWN: Self = Self(1 << 8);
    /// The last value of a sequence, which `currval` and `lastval` tell. (`INSERT` with a default
    /// may leave one too, unseen.)
    pub const SEQUENCE: Self = Self(1 << 9);
    /// `DISCARD ALL`.
    pub const CLEARS_ALL: Self = Self(1 << 10);
    /// `RESET ALL`.
    pub const CLEARS_SETTINGS: Self = Self(1 << 11);
    /// `DISCARD TEMP`.
    pub const CLEARS_TEMP: Self = Self(1 << 12);
    /// `DEALLOCATE`.
    pub const CLEARS_PREPARED: Self = Self(1 << 13);
    /// `UNLISTEN` or `CLOSE`.
    pub const CLEARS_LISTEN_OR_HOLD: Self = Self(1 << 14);
    /// `pg_advisory_unlock` and kin.
    pub const CLEARS_ADVISORY: Self = Self(1 << 15);

    const NAMES: [(Self, &'static str); 16] = [
        (Self::SETTING, "setting"),
        (Self::UNKNOWN_SETTING, "unknown-setting"),
        (Self::TEMP, "temp"),
        (Self::ADVISORY, "advisory"),
        (Self::LISTEN, "listen"),
        (Self::HOLD, "hold"),
        (Self::PREPARED, "prepared"),
        (Self::LOAD, "load"),
        (Self::UNKNOWN, "unknown"),
        (Self::SEQUENCE, "sequence"),
        (Self::CLEARS_ALL, "clears-all"),
        (Self::CLEARS_SETTINGS, "clears-settings"),
        (Self::CLEARS_TEMP, "clears-temp"),
        (Self::CLEARS_PREPARED, "clears-prepared"),
        (Self::CLEARS_LISTEN_OR_HOLD, "clears-listen-or-hold"),
        (Self::CLEARS_ADVISORY, "clears-advisory"),
    ];

    /// All of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether anything of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether it is empty.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (bit, name) in Self::NAMES {
            if self.has(bit) {
                write!(f, "{between}{name}")?;
                between = "|";
            }
        }
        if self.is_none() { f.write_str("none") } else { Ok(()) }
    }
}

/// Says what `sql` is. Never fails: what cannot be read needs the writer and may do anything.
pub fn classify(sql: &[u8], options: &Options<'_>) -> Script {
    scan::Scan::new(sql, options).run()
}
