//! The key words of SQL as PostgreSQL knows them.
//!
//! A word followed by `(` is a function call unless grammar says otherwise, so two things matter
//! of a key word: whether it can be the name of a function at all, and, for a few, which it is.
//! The lists come from `pg_get_keywords()` of PostgreSQL 15 with the words of newer versions added.

use super::words::{self, Slot};

macro_rules! keywords {
    (reserved { $($r:ident = $rt:literal,)* } free { $($f:ident = $ft:literal,)* }) => {
        /// A word of the grammar. The order matters: see [`Keyword::is_free`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Keyword {
            /// No key word.
            Plain,
            /// A key word that is never the name of a function, and that nothing here asks for.
            Reserved,
            $($r,)*
            /// A key word that may be a name, and that nothing here asks for.
            Free,
            $($f,)*
        }

        const fn named(mut table: Table) -> Table {
            $(table = words::add(table, $rt, Keyword::$r);)*
            $(table = words::add(table, $ft, Keyword::$f);)*
            table
        }
    };
}

type Table = [Slot<Keyword>; 2048];

static TABLE: Table = named(words::add(
    words::add([Slot::empty(Keyword::Plain); 2048], RESERVED, Keyword::Reserved),
    FREE,
    Keyword::Free,
));

impl Keyword {
    /// The key word that `text[from..to]` is; `hash` is its folded hash.
    #[inline(always)]
    pub(super) fn of(hash: u64, text: &[u8], from: usize, to: usize) -> Self {
        words::find(&TABLE, hash, text, from, to).unwrap_or(Self::Plain)
    }

    /// Whether a function may have this name without quotes.
    #[inline(always)]
    pub(super) fn is_free(self) -> bool {
        self == Self::Plain || self as u8 >= Self::Free as u8
    }
}

keywords! {
    reserved {
        All = "all",
        Analyse = "analyse",
        Analyze = "analyze",
        And = "and",
        As = "as",
        Bit = "bit",
        Char = "char",
        Character = "character",
        Create = "create",
        Default = "default",
        Deferrable = "deferrable",
        Do = "do",
        End = "end",
        Fetch = "fetch",
        For = "for",
        From = "from",
        Grant = "grant",
        Group = "group",
        Grouping = "grouping",
        Into = "into",
        Not = "not",
        On = "on",
        Only = "only",
        Or = "or",
        Order = "order",
        Returning = "returning",
        Select = "select",
        Table = "table",
        Then = "then",
        Time = "time",
        To = "to",
        True = "true",
        Values = "values",
        Where = "where",
        With = "with",
    }
    free {
        Abort = "abort",
        Alter = "alter",
        Atomic = "atomic",
        Authorization = "authorization",
        Begin = "begin",
        By = "by",
        Call = "call",
        Chain = "chain",
        Characteristics = "characteristics",
        Checkpoint = "checkpoint",
        Close = "close",
        Cluster = "cluster",
        Comment = "comment",
        Commit = "commit",
        Committed = "committed",
        Conflict = "conflict",
        Constraints = "constraints",
        Copy = "copy",
        Deallocate = "deallocate",
        Declare = "declare",
        Delete = "delete",
        Discard = "discard",
        Drop = "drop",
        Execute = "execute",
        Explain = "explain",
        First = "first",
        Function = "function",
        Global = "global",
        Hold = "hold",
        Import = "import",
        Insert = "insert",
        Isolation = "isolation",
        Key = "key",
        Level = "level",
        Listen = "listen",
        Load = "load",
        Local = "local",
        Lock = "lock",
        Merge = "merge",
        Move = "move",
        Names = "names",
        Next = "next",
        No = "no",
        Notify = "notify",
        Operator = "operator",
        Option = "option",
        Ordinality = "ordinality",
        Partition = "partition",
        Plans = "plans",
        Prepare = "prepare",
        Prepared = "prepared",
        Procedure = "procedure",
        Read = "read",
        Reassign = "reassign",
        Recursive = "recursive",
        Refresh = "refresh",
        Reindex = "reindex",
        Release = "release",
        Repeatable = "repeatable",
        Replace = "replace",
        Reset = "reset",
        Revoke = "revoke",
        Role = "role",
        Rollback = "rollback",
        Savepoint = "savepoint",
        Schema = "schema",
        Security = "security",
        Sequences = "sequences",
        Serializable = "serializable",
        Session = "session",
        Set = "set",
        Sets = "sets",
        Share = "share",
        Show = "show",
        Start = "start",
        Stdin = "stdin",
        Stdout = "stdout",
        Tablesample = "tablesample",
        Temp = "temp",
        Temporary = "temporary",
        Transaction = "transaction",
        Truncate = "truncate",
        Uncommitted = "uncommitted",
        Unlisten = "unlisten",
        Update = "update",
        Vacuum = "vacuum",
        Varying = "varying",
        Verbose = "verbose",
        View = "view",
        Work = "work",
        Write = "write",
        Xml = "xml",
        Zone = "zone",
    }
}

const RESERVED: &str = "\
    any array asc asymmetric between bigint boolean both case cast check coalesce collate column \
    constraint current_catalog current_date current_role current_time current_timestamp \
    current_user dec decimal desc distinct else except exists extract false float foreign \
    greatest having in initially inout int integer intersect interval lateral leading least \
    limit localtime localtimestamp national nchar none normalize null nullif numeric offset out \
    overlay placing position precision primary real references row session_user setof smallint \
    some substring symmetric timestamp trailing treat trim union unique user using varchar \
    variadic when window xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces \
    xmlparse xmlpi xmlroot xmlserialize xmltable";

const FREE: &str = "\
    absent absolute access action add admin after aggregate also always asensitive assertion \
    assignment at attach attribute backward before binary breadth cache called cascade cascaded \
    catalog class collation columns comments compression concurrently conditional configuration \
    connection content continue conversion cost cross csv cube current current_schema cursor \
    cycle data database day defaults deferred definer delimiter delimiters depends depth \
    destination detach dictionary disable document domain double each edge empty enable encoding \
    encrypted enforced enum error escape event exclude excluding exclusive expression extension \
    external family filter finalize following force format forward freeze full functions \
    generated granted graph groups handler header hour identity if ignore ilike immediate \
    immutable implicit include including increment indent index indexes inherit inherits inline \
    inner input insensitive instead invoker is isnull join json keep keys label language large \
    last leakproof left like location locked logged mapping match matched materialized maxvalue \
    method minute minvalue mode month name natural nested new nfc nfd nfkc nfkd node normalized \
    nothing notnull nowait nulls object objects of off oids old omit omitted options others \
    outer over overlaps overriding owned owner parallel parameter parser partial passing \
    password path period periods plan policy preceding preserve prior privileges procedural \
    procedures program properties property publication quote quotes range recheck ref \
    referencing relationship relative rename repack replica respect restart restrict return \
    returns right rollup routine routines rows rule scalar schemas scroll search second sequence \
    server similar simple skip snapshot source sql stable standalone statement statistics \
    storage stored strict string strip subscription support sysid system tables tablespace \
    target template text ties transform trigger trusted type types uescape unbounded \
    unconditional unencrypted unknown unlogged until valid validate validator value version \
    vertex views virtual volatile wait whitespace within without wrapper year yes";
