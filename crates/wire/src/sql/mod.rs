//! What a text of SQL does, as far as a gateway must know: whether a replica may run it, whether a
//! transaction begins or ends in it, what it leaves in the session.
//!
//! A lexer and a shallow look at its tokens, not a parser. It fails closed: what it does not
//! understand needs the writer and may leave anything. It cannot see what a view or an operator
//! does; there PostgreSQL is the judge, which refuses to write on a standby.

use std::ops::Range;

mod functions;
mod lexer;
mod scan;
mod statement;

#[cfg(test)]
mod tests;

/// How a text is to be read.
pub struct Options<'a> {
    /// `standard_conforming_strings`.
    pub standard_strings: bool,
    /// Functions that are not PostgreSQL's own.
    pub functions: &'a dyn Functions,
    /// Whether the text is all of it; of a beginning nothing good is believed.
    pub whole: bool,
}

/// What is known of functions that are not PostgreSQL's own.
pub trait Functions {
    /// What is known of the functions of this name, in lower case.
    fn knowledge(&self, name: &[u8]) -> Knowledge;
}

/// What is known of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing: it may do anything.
    Unknown,
    /// It does not write: a replica may run it.
    Stable,
    /// It may write, and leaves nothing in the session.
    Volatile,
    /// It may leave something in the session.
    Suspect,
}

/// Knows no function.
pub struct NoFunctions;

impl Functions for NoFunctions {
    fn knowledge(&self, _name: &[u8]) -> Knowledge {
        Knowledge::Unknown
    }
}

/// Who may run a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A replica may.
    Read,
    /// Only the writer.
    Write,
}

/// What a text may leave in the session, as a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leaves(u16);

impl Leaves {
    /// A setting.
    pub const SETTING: Self = Self(1);
    /// A setting whose name cannot be told.
    pub const UNKNOWN_SETTING: Self = Self(1 << 1);
    /// A temporary table or kin.
    pub const TEMP: Self = Self(1 << 2);
    /// A session-level advisory lock.
    pub const ADVISORY: Self = Self(1 << 3);
    /// A channel listened to.
    pub const LISTEN: Self = Self(1 << 4);
    /// A cursor WITH HOLD.
    pub const HOLD: Self = Self(1 << 5);
    /// A statement prepared by PREPARE, or it uses one.
    pub const PREPARED: Self = Self(1 << 6);
    /// A loaded library.
    pub const LOAD: Self = Self(1 << 7);
    /// Anything: code runs that is not known.
    pub const UNKNOWN: Self = Self(1 << 8);
    /// Nothing any more: DISCARD ALL.
    pub const CLEARS_ALL: Self = Self(1 << 9);

    /// Whether any of these is in the set.
    pub fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn add(&mut self, more: Self) {
        self.0 |= more.0;
    }
}

/// A name in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// As written, in these bytes: parts with or without quotes, joined by dots.
    Written(Range<u32>),
    /// A special form that stands for this name.
    Known(&'static str),
}

/// What a transaction is asked to be; `None`: not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// READ ONLY or READ WRITE.
    pub read_only: Option<bool>,
    /// ISOLATION LEVEL SERIALIZABLE, or a lower one.
    pub serializable: Option<bool>,
}

/// `SET name = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Which setting.
    pub name: Name,
    /// For the transaction only.
    pub local: bool,
    /// The text after TO or the equals sign.
    pub value: Range<u32>,
}

/// What DISCARD discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Everything.
    All,
    /// PLANS, SEQUENCES or TEMP.
    Some,
}

/// Where COPY copies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copy {
    /// To the client.
    Out,
    /// From the client, or from and to files and programs.
    Other,
}

/// What kind of statement it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// No statement at all.
    Empty,
    /// SELECT, VALUES, TABLE, or a parenthesis before one.
    Select,
    /// WITH, whatever follows.
    With,
    /// INSERT, UPDATE, DELETE, MERGE.
    Change,
    /// EXPLAIN.
    Explain,
    /// BEGIN, START TRANSACTION.
    Begin(Modes),
    /// COMMIT, END.
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    EndPrepared,
    /// SET.
    Set(Set),
    /// SET TRANSACTION, SET CONSTRAINTS.
    SetTransaction,
    /// SET SESSION CHARACTERISTICS.
    SetSessionCharacteristics(Modes),
    /// RESET; `None`: ALL.
    Reset(Option<Name>),
    /// SHOW; `None`: ALL.
    Show(Option<Name>),
    /// DISCARD.
    Discard(Discard),
    /// PREPARE.
    Prepare(Name),
    /// EXECUTE.
    Execute(Name),
    /// DEALLOCATE; `None`: ALL.
    Deallocate(Option<Name>),
    /// DECLARE.
    Declare {
        /// WITH HOLD.
        hold: bool,
    },
    /// FETCH, MOVE, CLOSE.
    Cursor,
    /// LISTEN, UNLISTEN.
    Listen,
    /// NOTIFY.
    Notify,
    /// COPY.
    Copy(Copy),
    /// LOCK.
    Lock,
    /// CALL, DO.
    Code,
    /// LOAD.
    Load,
    /// CREATE, ALTER, DROP and everything else.
    Other,
}

/// Why a text needs the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It does not.
    Reads,
    /// It is a statement that writes, or is not known to read.
    Statement,
    /// It locks rows.
    RowLock,
    /// It makes a table of its result.
    Into,
    /// It contains INSERT, UPDATE, DELETE or MERGE.
    Change,
    /// It calls a function that may write, or is not known.
    Function,
    /// It reads what one server says of itself.
    ServerView,
    /// It cannot be read to its end.
    Broken,
}

/// What a text does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Statements that are not empty.
    pub statements: u32,
    /// The first of them.
    pub first: Verb,
    /// Who may run all of it.
    pub access: Access,
    /// Why.
    pub why: Why,
    /// Some statement may end a transaction block.
    pub ends: bool,
    /// Some statement begins a transaction block.
    pub begins: bool,
    /// What it may leave in the session.
    pub leaves: Leaves,
    /// It may return rows.
    pub returns_rows: bool,
    /// The same for texts that differ in literals, comments, spacing and case only.
    pub fingerprint: u64,
    /// What follows `quorate:` in a comment before the end of the first statement.
    pub directive: Option<Range<u32>>,
}

/// Says what a text does.
pub fn classify(sql: &[u8], options: &Options<'_>) -> Script {
    let mut scan = scan::Scan::new(sql, options);
    while scan.statement() {}
    scan.end()
}

impl Name {
    /// The name as PostgreSQL knows it: quotes removed, letters outside of quotes in lower case.
    pub fn fold(&self, sql: &[u8]) -> Vec<u8> {
        let range = match self {
            Name::Known(name) => return name.as_bytes().to_vec(),
            Name::Written(range) => range.start as usize..range.end as usize,
        };
        let mut folded = Vec::new();
        let mut quoted = false;
        let mut bytes = sql.get(range).unwrap_or_default().iter().peekable();
        while let Some(&b) = bytes.next() {
            match b {
                b'"' if quoted && bytes.peek() == Some(&&b'"') => {
                    bytes.next();
                    folded.push(b'"');
                }
                b'"' => quoted = !quoted,
                b if quoted => folded.push(b),
                b if b.is_ascii_whitespace() => {}
                b => folded.push(b.to_ascii_lowercase()),
            }
        }
        folded
    }
}
