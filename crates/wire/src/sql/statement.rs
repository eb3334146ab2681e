//! What kind of statement begins here.

use super::lexer::Kind;
use super::scan::Scan;
use super::{Copy, Discard, Leaves, Modes, Name, Set, Verb, Why};

impl Scan<'_> {
    /// Reads the statement that begins with the present token, to its end.
    pub(super) fn verb(&mut self) -> Verb {
        let word = self.word();
        match &*word {
            b"select" | b"values" | b"table" | b"" => {
                self.script.returns_rows = true;
                self.reads_or_other()
            }
            b"with" => {
                self.script.returns_rows = true;
                self.reads();
                Verb::With
            }
            b"insert" | b"update" | b"delete" | b"merge" => self.change(),
            b"begin" | b"start" => self.begin(),
            b"commit" | b"end" => self.commit(),
            b"rollback" | b"abort" => self.rollback(),
            b"savepoint" | b"release" => self.other(Verb::Savepoint),
            b"set" => self.set(),
            b"reset" => self.reset(),
            b"show" => self.show(),
            b"discard" => self.discard(),
            b"prepare" => self.prepare(),
            b"execute" => self.execute(),
            b"deallocate" => self.deallocate(),
            b"declare" => self.declare(),
            b"fetch" | b"move" | b"close" => {
                self.script.returns_rows = true;
                self.other(Verb::Cursor)
            }
            b"listen" | b"unlisten" => {
                self.leaves(Leaves::LISTEN);
                self.other(Verb::Listen)
            }
            b"notify" => self.other(Verb::Notify),
            b"copy" => self.copy(),
            b"lock" => self.other(Verb::Lock),
            b"call" | b"do" => {
                self.script.returns_rows = true;
                self.leaves(Leaves::UNKNOWN);
                self.other(Verb::Code)
            }
            b"load" => {
                self.leaves(Leaves::LOAD);
                self.other(Verb::Load)
            }
            b"explain" => {
                self.script.returns_rows = true;
                self.explain()
            }
            b"create" => self.create(),
            _ => {
                self.script.returns_rows = true;
                self.leaves(Leaves::UNKNOWN);
                self.other(Verb::Other)
            }
        }
    }

    /// SELECT and kin, or a parenthesis before one; anything else that is not a word.
    fn reads_or_other(&mut self) -> Verb {
        if !matches!(self.token.kind, Kind::Word | Kind::Mark(b'(')) {
            self.leaves(Leaves::UNKNOWN);
            return self.other(Verb::Other);
        }
        self.reads();
        Verb::Select
    }

    /// A statement for the writer that is not looked into.
    fn other(&mut self, verb: Verb) -> Verb {
        self.write(Why::Statement);
        self.skip();
        verb
    }

    /// INSERT and kin. Its functions matter for what they leave.
    fn change(&mut self) -> Verb {
        self.write(Why::Statement);
        self.script.returns_rows |= self.mentions(b"returning");
        // A view that makes settings when it is written to.
        if self.mentions(b"pg_settings") {
            self.leaves(Leaves::UNKNOWN_SETTING);
        }
        // The name after INTO or UPDATE may have a list of columns behind it.
        self.advance();
        while matches!(&*self.word(), b"into" | b"from" | b"only") {
            self.advance();
        }
        while matches!(self.token.kind, Kind::Word | Kind::Quoted | Kind::Mark(b'.')) {
            let next = self.lexer.ahead().kind;
            self.advance();
            if !matches!(next, Kind::Mark(b'.')) && self.token.kind != Kind::Mark(b'.') {
                break;
            }
        }
        self.reads();
        Verb::Change
    }

    /// Whether a word comes in the rest of the text.
    fn mentions(&self, word: &[u8]) -> bool {
        let mut ahead = self.lexer.clone();
        loop {
            let token = ahead.next();
            match token.kind {
                Kind::End => return false,
                Kind::Broken => return true,
                Kind::Word if ahead.sql[token.start..token.end].eq_ignore_ascii_case(word) => {
                    return true;
                }
                _ => {}
            }
        }
    }

    fn begin(&mut self) -> Verb {
        self.script.begins = true;
        self.advance();
        let modes = self.modes();
        let replica = modes.read_only == Some(true) && modes.serializable != Some(true);
        if !replica {
            self.write(Why::Statement);
        }
        Verb::Begin(modes)
    }

    /// Transaction modes, to the end of the statement.
    fn modes(&mut self) -> Modes {
        let mut modes = Modes::default();
        loop {
            let word = self.word();
            match &*word {
                b"read" => {
                    self.advance();
                    match &*self.word() {
                        b"only" => modes.read_only = Some(true),
                        b"write" => modes.read_only = Some(false),
                        // READ COMMITTED and READ UNCOMMITTED.
                        _ => modes.serializable = Some(false),
                    }
                }
                b"serializable" => modes.serializable = Some(true),
                b"repeatable" => modes.serializable = Some(false),
                _ => {}
            }
            match self.token.kind {
                Kind::End | Kind::Mark(b';') => return modes,
                Kind::Broken => {
                    self.broken();
                    return modes;
                }
                _ => drop(self.advance()),
            }
        }
    }

    fn commit(&mut self) -> Verb {
        self.write(Why::Statement);
        self.script.ends = true;
        self.advance();
        if &*self.word() == b"prepared" {
            return self.other(Verb::EndPrepared);
        }
        Verb::Commit { chain: self.chains() }
    }

    fn rollback(&mut self) -> Verb {
        self.write(Why::Statement);
        self.advance();
        if matches!(&*self.word(), b"work" | b"transaction") {
            self.advance();
        }
        match &*self.word() {
            b"to" => return self.other(Verb::Savepoint),
            b"prepared" => {
                self.script.ends = true;
                return self.other(Verb::EndPrepared);
            }
            _ => {}
        }
        self.script.ends = true;
        Verb::Rollback { chain: self.chains() }
    }

    /// AND CHAIN, to the end of the statement.
    fn chains(&mut self) -> bool {
        let mut chain = false;
        let mut no = false;
        loop {
            match &*self.word() {
                b"no" => no = true,
                b"chain" => chain = !no,
                _ => {}
            }
            match self.token.kind {
                Kind::End | Kind::Mark(b';') => return chain,
                Kind::Broken => {
                    self.broken();
                    return true;
                }
                _ => drop(self.advance()),
            }
        }
    }

    fn set(&mut self) -> Verb {
        self.write(Why::Statement);
        self.advance();
        let mut local = false;
        match &*self.word() {
            b"local" => {
                local = true;
                self.advance();
            }
            b"session" => {
                self.advance();
                match &*self.word() {
                    b"characteristics" => {
                        self.leaves(Leaves::SETTING);
                        return Verb::SetSessionCharacteristics(self.modes());
                    }
                    b"authorization" => return self.set_known("session_authorization", local),
                    _ => {}
                }
            }
            _ => {}
        }
        match &*self.word() {
            b"transaction" | b"constraints" => return self.other(Verb::SetTransaction),
            b"time" => {
                self.advance();
                return self.set_known("timezone", local);
            }
            b"xml" => {
                self.advance();
                return self.set_known("xmloption", local);
            }
            b"names" => return self.set_known("client_encoding", local),
            b"role" => return self.set_known("role", local),
            b"schema" => return self.set_known("search_path", local),
            b"session" => return self.set_known("session_authorization", local),
            _ => {}
        }
        let name = self.name();
        self.set_rest(name, local)
    }

    fn set_known(&mut self, name: &'static str, local: bool) -> Verb {
        self.advance();
        self.set_rest(Name::Known(name), local)
    }

    fn set_rest(&mut self, name: Name, local: bool) -> Verb {
        if !local {
            self.leaves(Leaves::SETTING);
        }
        if matches!(&*self.word(), b"to") || self.token.kind == Kind::Mark(b'=') {
            self.advance();
        }
        let start = self.token.start;
        self.skip();
        Verb::Set(Set { name, local, value: start as u32..self.token.start as u32 })
    }

    /// A name with dots; goes on to what follows it.
    fn name(&mut self) -> Name {
        let start = self.token.start;
        let mut end = start;
        while matches!(self.token.kind, Kind::Word | Kind::Quoted) {
            end = self.token.end;
            self.advance();
            if self.token.kind != Kind::Mark(b'.') {
                break;
            }
            self.advance();
        }
        Name::Written(start as u32..end as u32)
    }

    fn reset(&mut self) -> Verb {
        self.write(Why::Statement);
        self.leaves(Leaves::SETTING);
        self.advance();
        let name = match &*self.word() {
            b"all" => None,
            b"role" => Some(Name::Known("role")),
            b"time" => Some(Name::Known("timezone")),
            b"session" => Some(Name::Known("session_authorization")),
            b"transaction" => Some(Name::Known("transaction_isolation")),
            _ => Some(self.name()),
        };
        self.skip();
        Verb::Reset(name)
    }

    fn show(&mut self) -> Verb {
        self.write(Why::Statement);
        self.script.returns_rows = true;
        self.advance();
        let name = match &*self.word() {
            b"all" => None,
            b"time" => Some(Name::Known("timezone")),
            _ => Some(self.name()),
        };
        self.skip();
        Verb::Show(name)
    }

    fn discard(&mut self) -> Verb {
        self.advance();
        let all = &*self.word() == b"all";
        if all {
            self.leaves(Leaves::CLEARS_ALL);
        }
        self.other(Verb::Discard(if all { Discard::All } else { Discard::Some }))
    }

    fn prepare(&mut self) -> Verb {
        self.advance();
        if &*self.word() == b"transaction" && self.lexer.ahead().kind == Kind::Literal {
            self.script.ends = true;
            return self.other(Verb::PrepareTransaction);
        }
        self.leaves(Leaves::PREPARED);
        let name = self.name();
        self.other(Verb::Prepare(name))
    }

    fn execute(&mut self) -> Verb {
        self.leaves(Leaves::PREPARED);
        self.leaves(Leaves::UNKNOWN);
        self.script.returns_rows = true;
        self.advance();
        let name = self.name();
        self.other(Verb::Execute(name))
    }

    fn deallocate(&mut self) -> Verb {
        self.advance();
        if &*self.word() == b"prepare" && self.lexer.ahead().kind != Kind::End {
            self.advance();
        }
        let name = if &*self.word() == b"all" { None } else { Some(self.name()) };
        self.other(Verb::Deallocate(name))
    }

    fn declare(&mut self) -> Verb {
        let (hold, without) = (self.mentions(b"hold"), self.mentions(b"without"));
        let hold = hold && !without;
        if hold {
            self.leaves(Leaves::HOLD);
            self.write(Why::Statement);
        }
        // The name and its attributes, up to FOR.
        loop {
            self.advance();
            match self.token.kind {
                Kind::End | Kind::Mark(b';') => break,
                Kind::Broken => {
                    self.broken();
                    break;
                }
                Kind::Word if &*self.word() == b"for" => {
                    self.advance();
                    self.reads();
                    break;
                }
                _ => {}
            }
        }
        Verb::Declare { hold }
    }

    fn copy(&mut self) -> Verb {
        let out = self.mentions(b"stdout") && !self.mentions(b"program");
        if !out {
            self.script.returns_rows = true;
            return self.other(Verb::Copy(Copy::Other));
        }
        self.script.returns_rows = true;
        self.advance();
        // A table's name may have columns behind it; a query stands in parentheses.
        if self.token.kind != Kind::Mark(b'(') {
            self.name();
        }
        self.reads();
        Verb::Copy(Copy::Out)
    }

    fn explain(&mut self) -> Verb {
        self.advance();
        // Options in parentheses look like a query.
        if self.token.kind == Kind::Mark(b'(') {
            let next = self.lexer.ahead();
            let word = &self.lexer.sql[next.start..next.end];
            let query = [&b"select"[..], b"with", b"values", b"table", b"("];
            if !query.iter().any(|q| q.eq_ignore_ascii_case(word)) {
                while !matches!(self.token.kind, Kind::Mark(b')') | Kind::End | Kind::Broken) {
                    self.advance();
                }
                self.advance();
            }
        }
        while matches!(&*self.word(), b"analyze" | b"analyse" | b"verbose") {
            self.advance();
        }
        let word = self.word();
        if matches!(&*word, b"select" | b"with" | b"values" | b"table")
            || self.token.kind == Kind::Mark(b'(')
        {
            self.reads();
        } else {
            self.leaves(Leaves::UNKNOWN);
            self.other(Verb::Explain);
        }
        Verb::Explain
    }

    /// CREATE. A function's body between BEGIN ATOMIC and END has semicolons of its own.
    fn create(&mut self) -> Verb {
        self.write(Why::Statement);
        self.leaves(Leaves::UNKNOWN);
        let mut atomic = 0u32;
        let mut depth = 0u32;
        loop {
            let token = self.advance();
            match token.kind {
                Kind::End => break,
                Kind::Broken => {
                    self.broken();
                    break;
                }
                Kind::Mark(b';') if depth == 0 && atomic == 0 => break,
                Kind::Mark(b'(') => depth += 1,
                Kind::Mark(b')') => depth = depth.saturating_sub(1),
                Kind::Word => match &*self.word() {
                    b"temp" | b"temporary" | b"pg_temp" => self.leaves(Leaves::TEMP),
                    b"atomic" => atomic += 1,
                    b"case" if atomic > 0 => atomic += 1,
                    b"end" => atomic = atomic.saturating_sub(1),
                    _ => {}
                },
                _ => {}
            }
        }
        Verb::Other
    }
}
