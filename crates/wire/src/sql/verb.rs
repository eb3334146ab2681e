//! The kinds of statements.

use super::{Name, Reset, Set, Show};

/// What a statement is, by its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// There is no statement.
    Empty,
    /// `SELECT`, also in parentheses.
    Select,
    /// `VALUES`.
    Values,
    /// `TABLE name`.
    Table,
    /// `WITH` before any other.
    With,
    /// `INSERT`.
    Insert,
    /// `UPDATE`.
    Update,
    /// `DELETE`.
    Delete,
    /// `MERGE`.
    Merge,
    /// `EXPLAIN`.
    Explain {
        /// The statement is executed (or might be: `ANALYZE off` counts).
        analyze: bool,
    },
    /// `BEGIN` or `START TRANSACTION`.
    Begin(Modes),
    /// `COMMIT` or `END`.
    Commit {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `ROLLBACK` or `ABORT` of the whole block.
    Rollback {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `SAVEPOINT`.
    Savepoint,
    /// `ROLLBACK TO`.
    RollbackTo,
    /// `RELEASE`.
    Release,
    /// `PREPARE TRANSACTION`.
    PrepareTransaction,
    /// `COMMIT PREPARED`.
    CommitPrepared,
    /// `ROLLBACK PREPARED`.
    RollbackPrepared,
    /// `SET` of a setting.
    Set(Set),
    /// `SET TRANSACTION`.
    SetTransaction(Modes),
    /// `SET SESSION CHARACTERISTICS AS TRANSACTION`.
    SetSessionCharacteristics(Modes),
    /// `SET CONSTRAINTS`.
    SetConstraints,
    /// `RESET`.
    Reset(Reset),
    /// `SHOW`.
    Show(Show),
    /// `DISCARD`.
    Discard(Discard),
    /// `PREPARE name`.
    Prepare(Name),
    /// `EXECUTE name`.
    Execute(Name),
    /// `DEALLOCATE`.
    Deallocate(Deallocate),
    /// `DECLARE`.
    Declare {
        /// The cursor's name.
        name: Name,
        /// `WITH HOLD`.
        hold: bool,
    },
    /// `FETCH`.
    Fetch,
    /// `MOVE`.
    Move,
    /// `CLOSE`.
    Close(Close),
    /// `LISTEN`.
    Listen(Name),
    /// `UNLISTEN`.
    Unlisten {
        /// `UNLISTEN *`.
        all: bool,
    },
    /// `NOTIFY`.
    Notify,
    /// `COPY`.
    Copy(CopyKind),
    /// `LOCK`.
    Lock,
    /// `CALL`.
    Call,
    /// `DO`.
    Do,
    /// `LOAD`.
    Load,
    /// `VACUUM`, `ANALYZE`, `CLUSTER` or `REINDEX`.
    Vacuum,
    /// `CREATE`, `ALTER`, `DROP`, `TRUNCATE`, `GRANT` and all others that change the schema.
    Ddl,
    /// `CHECKPOINT`.
    Checkpoint,
    /// None of these, or not readable.
    Other,
}

impl Verb {
    /// Whether such a statement is planned like a query, and nothing else. It names nothing here.
    pub fn is_plain(self) -> bool {
        matches!(
            self,
            Verb::Select
                | Verb::Values
                | Verb::Table
                | Verb::With
                | Verb::Insert
                | Verb::Update
                | Verb::Delete
                | Verb::Merge
        )
    }
}

/// Modes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// `READ ONLY` or `READ WRITE`.
    pub read_only: Option<bool>,
    /// `ISOLATION LEVEL`.
    pub isolation: Option<Isolation>,
    /// `DEFERRABLE` or `NOT DEFERRABLE`.
    pub deferrable: Option<bool>,
    /// `SET TRANSACTION SNAPSHOT`, or anything that was not understood.
    pub other: bool,
}

impl Modes {
    /// Whether a standby can have a transaction of these modes.
    pub fn on_standby(&self) -> bool {
        self.isolation != Some(Isolation::Serializable)
            && self.read_only != Some(false)
            && !self.other
    }
}

/// Isolation levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// `READ UNCOMMITTED`; PostgreSQL treats it as the next.
    ReadUncommitted,
    /// `READ COMMITTED`.
    ReadCommitted,
    /// `REPEATABLE READ`.
    RepeatableRead,
    /// `SERIALIZABLE`; a standby refuses it.
    Serializable,
}

/// What `DISCARD` discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discard {
    /// Everything.
    All,
    /// Cached plans.
    Plans,
    /// Values of sequences.
    Sequences,
    /// Temporary tables.
    Temp,
}

/// What `DEALLOCATE` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deallocate {
    /// All prepared statements.
    All,
    /// One.
    One(Name),
}

/// What `CLOSE` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// All cursors.
    All,
    /// One.
    One(Name),
}

/// Where `COPY` copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyKind {
    /// To the client.
    ToStdout,
    /// From the client.
    FromStdin,
    /// Files, programs, or not understood.
    Other,
}
