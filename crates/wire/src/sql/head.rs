//! Heads of statements: the first words, which say what a statement is.

use super::{
    Close, Deallocate, Discard, Leaves, Verb, Why,
    keyword::Keyword,
    lexer::{Kind, Token},
    scan::Scan,
    walk::{Mode, Until},
};

impl Scan<'_> {
    /// Reads a statement whose first token was taken.
    #[inline]
    pub(super) fn head(&mut self, first: Token) -> Verb {
        let verb = match (first.kind, first.keyword) {
            (_, Keyword::Select) | (Kind::Open, _) => Verb::Select,
            (_, Keyword::Values) => Verb::Values,
            (_, Keyword::Table) => Verb::Table,
            (_, Keyword::With) => Verb::With,
            (_, Keyword::Insert) => return self.change(first, Verb::Insert),
            (_, Keyword::Update) => return self.change(first, Verb::Update),
            (_, Keyword::Delete) => return self.change(first, Verb::Delete),
            (_, Keyword::Merge) => return self.change(first, Verb::Merge),
            (Kind::Word, _) => return self.utility(first),
            _ => return self.unknown(),
        };
        if first.keyword == Keyword::Table {
            let name = self.take();
            self.check_relation(name);
        }
        let walked = self.walk_after(first, Mode::Query);
        self.script.returns_rows |= walked.rows;
        verb
    }

    fn change(&mut self, first: Token, verb: Verb) -> Verb {
        self.write(Why::Keyword);
        let walked = self.walk_after(first, Mode::Change);
        self.script.returns_rows |= walked.rows;
        verb
    }

    /// Statements of one keyword each, in the order of [`Verb`].
    fn utility(&mut self, first: Token) -> Verb {
        match first.keyword {
            Keyword::Explain => self.explain(),
            Keyword::Begin | Keyword::Start => self.begin(first),
            Keyword::Commit | Keyword::End => self.commit(),
            Keyword::Rollback | Keyword::Abort => self.rollback(),
            Keyword::Savepoint => Verb::Savepoint,
            Keyword::Release => Verb::Release,
            Keyword::Set => self.set(),
            Keyword::Reset => self.reset(),
            Keyword::Show => self.show(),
            Keyword::Discard => self.discard(),
            Keyword::Prepare => self.prepare(),
            Keyword::Execute => self.execute(),
            Keyword::Deallocate => self.deallocate(),
            Keyword::Declare => self.declare(),
            Keyword::Fetch => {
                self.script.returns_rows = true;
                Verb::Fetch
            }
            Keyword::Move => Verb::Move,
            Keyword::Close => self.close_cursor(),
            Keyword::Listen => self.listen(),
            Keyword::Unlisten => self.unlisten(),
            Keyword::Copy => self.copy(),
            Keyword::Call => self.procedure(),
            Keyword::Do => self.session(Leaves::UNKNOWN, Verb::Do),
            Keyword::Load => self.session(Leaves::LOAD, Verb::Load),
            Keyword::Create => self.create(),
            Keyword::Notify => self.plain_write(Verb::Notify),
            Keyword::Lock => self.plain_write(Verb::Lock),
            Keyword::Checkpoint => self.plain_write(Verb::Checkpoint),
            Keyword::Vacuum
            | Keyword::Analyze
            | Keyword::Analyse
            | Keyword::Cluster
            | Keyword::Reindex => self.plain_write(Verb::Vacuum),
            Keyword::Alter
            | Keyword::Drop
            | Keyword::Truncate
            | Keyword::Comment
            | Keyword::Grant
            | Keyword::Revoke
            | Keyword::Security
            | Keyword::Reassign
            | Keyword::Import
            | Keyword::Refresh => self.plain_write(Verb::Ddl),
            _ => self.unknown(),
        }
    }

    /// A statement that is not known may do anything.
    #[cold]
    pub(super) fn unknown(&mut self) -> Verb {
        self.doubt(Why::UnknownStatement);
        self.walk(Mode::Query, Until::End);
        Verb::Other
    }

    fn plain_write(&mut self, verb: Verb) -> Verb {
        self.write(Why::Keyword);
        self.walk(Mode::Utility, Until::End);
        verb
    }

    fn session(&mut self, leaves: Leaves, verb: Verb) -> Verb {
        self.write(Why::Keyword);
        self.leave(leaves);
        verb
    }

    /// After `EXPLAIN`: options, then a statement that decides.
    fn explain(&mut self) -> Verb {
        let mut analyze = false;
        if self.peek().kind == Kind::Open && !self.opens_query() {
            loop {
                let token = self.take();
                match token.kind {
                    Kind::Close => break,
                    Kind::End | Kind::Bad | Kind::Semicolon => return self.unknown(),
                    _ => analyze |= is_analyze(token),
                }
            }
        } else {
            if is_analyze(self.peek()) {
                analyze = true;
                self.take();
            }
            self.take_if(Keyword::Verbose);
        }
        // One reason for all writes below, whatever makes them writes.
        let before = (self.script.access, self.script.because);
        let first = self.take();
        match first.keyword {
            Keyword::Explain => return self.unknown(),
            _ => self.head(first),
        };
        if before != (self.script.access, self.script.because) {
            (self.script.access, self.script.because) = before;
            self.write(Why::Explain);
        }
        self.script.returns_rows = true;
        Verb::Explain { analyze }
    }

    /// Whether the parenthesis that comes next holds a query, not options.
    fn opens_query(&self) -> bool {
        let mut ahead = self.lexer;
        ahead.next();
        let inner = ahead.next();
        inner.kind == Kind::Open
            || matches!(
                inner.keyword,
                Keyword::Select | Keyword::Values | Keyword::Table | Keyword::With
            )
    }

    /// After `BEGIN` or `START`.
    fn begin(&mut self, first: Token) -> Verb {
        self.script.begins = true;
        if first.keyword == Keyword::Begin {
            let _ = self.take_if(Keyword::Work) || self.take_if(Keyword::Transaction);
        } else if !self.take_if(Keyword::Transaction) {
            return self.unknown();
        }
        let modes = self.modes();
        if modes.read_only == Some(true) && modes.on_standby() {
            self.in_read_only = true;
        } else {
            self.write(Why::Transaction);
        }
        Verb::Begin(modes)
    }

    /// After `COMMIT` or `END`.
    fn commit(&mut self) -> Verb {
        self.script.ends = true;
        if self.take_if(Keyword::Prepared) {
            self.write(Why::Keyword);
            return Verb::CommitPrepared;
        }
        let chain = self.chain();
        self.end_block(chain);
        Verb::Commit { chain }
    }

    /// After `ROLLBACK` or `ABORT`.
    fn rollback(&mut self) -> Verb {
        if self.take_if(Keyword::Prepared) {
            self.script.ends = true;
            self.write(Why::Keyword);
            return Verb::RollbackPrepared;
        }
        let _ = self.take_if(Keyword::Work) || self.take_if(Keyword::Transaction);
        if self.take_if(Keyword::To) {
            return Verb::RollbackTo;
        }
        self.script.ends = true;
        let chain = self.chain();
        self.end_block(chain);
        Verb::Rollback { chain }
    }

    /// `[WORK | TRANSACTION] [AND [NO] CHAIN]`.
    fn chain(&mut self) -> bool {
        let _ = self.take_if(Keyword::Work) || self.take_if(Keyword::Transaction);
        self.take_if(Keyword::And) && self.take_if(Keyword::Chain)
    }

    /// The end of a block is a read only if the same string began it as one.
    fn end_block(&mut self, chain: bool) {
        if chain {
            self.script.begins = true;
        }
        if chain || !self.in_read_only {
            self.write(Why::Transaction);
        }
        self.in_read_only = false;
    }

    /// After `DISCARD`.
    fn discard(&mut self) -> Verb {
        self.write(Why::Session);
        let (what, leaves) = match self.take().keyword {
            Keyword::All => (Discard::All, Leaves::CLEARS_ALL),
            Keyword::Plans => (Discard::Plans, Leaves::NONE),
            Keyword::Sequences => (Discard::Sequences, Leaves::NONE),
            Keyword::Temp | Keyword::Temporary => (Discard::Temp, Leaves::CLEARS_TEMP),
            _ => return self.unknown(),
        };
        self.leave(leaves);
        Verb::Discard(what)
    }

    /// After `PREPARE`: a prepared transaction, or a statement. What the statement would leave
    /// behind counts here, because `EXECUTE` does not show it.
    fn prepare(&mut self) -> Verb {
        if self.peek().keyword == Keyword::Transaction {
            let mut ahead = self.lexer;
            ahead.next();
            if ahead.next().kind == Kind::Literal {
                self.script.ends = true;
                self.write(Why::Keyword);
                return Verb::PrepareTransaction;
            }
        }
        self.write(Why::Session);
        self.leave(Leaves::PREPARED);
        let word = self.take();
        let Some(name) = self.name(word) else { return self.unknown() };
        // Types of parameters.
        let mut token = self.take();
        while !matches!(token.kind, Kind::End | Kind::Bad | Kind::Semicolon)
            && token.keyword != Keyword::As
        {
            token = self.take();
        }
        let rows = self.script.returns_rows;
        let first = self.take();
        self.head(first);
        self.script.returns_rows = rows;
        Verb::Prepare(name)
    }

    /// After `EXECUTE`.
    fn execute(&mut self) -> Verb {
        self.write(Why::Session);
        self.leave(Leaves::PREPARED);
        self.script.returns_rows = true;
        let word = self.take();
        let Some(name) = self.name(word) else { return self.unknown() };
        self.walk(Mode::Query, Until::End);
        Verb::Execute(name)
    }

    /// After `DEALLOCATE`.
    fn deallocate(&mut self) -> Verb {
        self.write(Why::Session);
        self.leave(Leaves::CLEARS_PREPARED);
        let mut word = self.take();
        if word.keyword == Keyword::Prepare && self.peek().is_name() {
            word = self.take();
        }
        if word.keyword == Keyword::All {
            return Verb::Deallocate(Deallocate::All);
        }
        match self.name(word) {
            Some(name) => Verb::Deallocate(Deallocate::One(name)),
            None => self.unknown(),
        }
    }

    /// After `DECLARE`: `name options CURSOR [WITH HOLD | WITHOUT HOLD] FOR query`.
    fn declare(&mut self) -> Verb {
        let word = self.take();
        let Some(name) = self.name(word) else { return self.unknown() };
        let mut hold = false;
        let mut before = word;
        loop {
            let token = self.take();
            match token.keyword {
                Keyword::For => break,
                Keyword::Hold => hold |= before.keyword == Keyword::With,
                _ if token.kind != Kind::Word => return self.unknown(),
                _ => {}
            }
            before = token;
        }
        if hold {
            self.write(Why::Session);
            self.leave(Leaves::HOLD);
        }
        let rows = self.script.returns_rows;
        let first = self.take();
        let query = matches!(
            first.keyword,
            Keyword::Select | Keyword::Values | Keyword::Table | Keyword::With
        );
        if !query && first.kind != Kind::Open {
            return self.unknown();
        }
        self.head(first);
        self.script.returns_rows = rows;
        Verb::Declare { name, hold }
    }

    /// After `CLOSE`.
    fn close_cursor(&mut self) -> Verb {
        self.leave(Leaves::CLEARS_LISTEN_OR_HOLD);
        let word = self.take();
        if word.keyword == Keyword::All {
            return Verb::Close(Close::All);
        }
        match self.name(word) {
            Some(name) => Verb::Close(Close::One(name)),
            None => self.unknown(),
        }
    }

    /// After `LISTEN`.
    fn listen(&mut self) -> Verb {
        self.write(Why::Session);
        self.leave(Leaves::LISTEN);
        let word = self.take();
        match self.name(word) {
            Some(name) => Verb::Listen(name),
            None => self.unknown(),
        }
    }

    /// After `UNLISTEN`.
    fn unlisten(&mut self) -> Verb {
        self.write(Why::Session);
        self.leave(Leaves::CLEARS_LISTEN_OR_HOLD);
        Verb::Unlisten { all: self.take().text(self.sql) == b"*" }
    }

    /// After `CALL`: a procedure is a function here, known or not.
    fn procedure(&mut self) -> Verb {
        self.write(Why::Keyword);
        self.script.returns_rows = true;
        self.walk(Mode::Query, Until::End);
        Verb::Call
    }

    /// After `CREATE`.
    fn create(&mut self) -> Verb {
        self.write(Why::Keyword);
        let mut mode = Mode::Utility;
        loop {
            match self.peek().keyword {
                Keyword::Temp | Keyword::Temporary => self.leave(Leaves::TEMP),
                Keyword::Or | Keyword::Replace | Keyword::Local | Keyword::Global => {}
                Keyword::Function | Keyword::Procedure => {
                    mode = Mode::Routine;
                    break;
                }
                _ => break,
            }
            self.take();
        }
        if self.peek().keyword == Keyword::View {
            // Its query is stored, not run.
            mode = Mode::Routine;
        }
        self.walk(mode, Until::End);
        Verb::Ddl
    }
}

fn is_analyze(token: Token) -> bool {
    matches!(token.keyword, Keyword::Analyze | Keyword::Analyse)
}
