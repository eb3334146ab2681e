//! The state of one classification, and the loop over statements.

use super::{
    Access, Functions, Leaves, Options, Script, Verb, Why, bytes,
    keyword::Keyword,
    lexer::{Kind, Lexer, Token},
};

/// Stands for `;` in fingerprints.
const SEPARATOR: u64 = 0x3B;

/// A classification in progress.
pub(super) struct Scan<'a> {
    pub(super) sql: &'a [u8],
    pub(super) lexer: Lexer<'a>,
    pub(super) functions: &'a dyn Functions,
    /// Some relations call functions that need the writer.
    pub(super) relations: bool,
    pub(super) script: Script,
    /// Open parentheses.
    pub(super) depth: u32,
    /// Inside `BEGIN ATOMIC ... END`, where a semicolon ends no statement.
    pub(super) atomic: bool,
    /// A block `READ ONLY` was begun by this string and not ended.
    pub(super) in_read_only: bool,
    /// The token that ended the statement, once it is reached.
    stop: Option<Token>,
    whole: bool,
}

impl<'a> Scan<'a> {
    pub(super) fn new(sql: &'a [u8], options: &Options<'a>) -> Self {
        Self {
            sql,
            lexer: Lexer::new(sql, options.standard_strings),
            functions: options.functions,
            relations: options.functions.are_behind_some(),
            script: Script {
                statements: 0,
                first: Verb::Empty,
                access: Access::Read,
                because: Why::None,
                ends: false,
                begins: false,
                leaves: Leaves::NONE,
                configures: false,
                recalls: false,
                by_values: false,
                returns_rows: false,
                fingerprint: 0,
                directive: None,
            },
            depth: 0,
            atomic: false,
            in_read_only: false,
            stop: None,
            // Positions are 32 bits; nothing that PostgreSQL accepts is longer.
            whole: options.whole && u32::try_from(sql.len()).is_ok(),
        }
    }

    pub(super) fn run(mut self) -> Script {
        if u32::try_from(self.sql.len()).is_err() {
            self.doubt(Why::NotWhole);
            return self.script;
        }
        while self.statement() {}
        self.script.recalls &= !self.script.leaves.has(Leaves::SEQUENCE);
        if !self.whole {
            self.doubt(Why::NotWhole);
        }
        self.script
    }

    /// Reads one statement, empty or not; `false` after the last.
    fn statement(&mut self) -> bool {
        self.stop = None;
        let first = self.take();
        if self.stop.is_none() {
            self.script.statements = self.script.statements.saturating_add(1);
            // A separator counts only between statements that are there.
            if self.script.statements > 1 {
                self.script.fingerprint = bytes::mix(self.script.fingerprint, SEPARATOR);
            }
            let verb = self.head(first);
            while self.stop.is_none() {
                self.take();
            }
            if self.script.statements == 1 {
                self.script.first = verb;
            }
        }
        if self.script.statements <= 1 {
            self.script.directive = self.lexer.directive;
        }
        let torn = self.depth > 0 || self.atomic;
        match self.stop.map(|token| token.kind) {
            Some(Kind::Semicolon) => true,
            Some(Kind::End) if !torn => false,
            _ => {
                self.doubt(Why::Unlexable);
                false
            }
        }
    }

    /// The next token of the statement; at its end the same one again and again.
    #[inline(always)]
    pub(super) fn take(&mut self) -> Token {
        if let Some(stop) = self.stop {
            return stop;
        }
        let token = self.lexer.next();
        let value = match token.kind {
            Kind::Word => token.hash,
            Kind::Literal | Kind::Param => 1,
            Kind::Quoted | Kind::Operator => {
                bytes::hash_exact(self.sql, token.start as usize, token.end as usize)
            }
            Kind::Semicolon if self.depth == 0 && !self.atomic => {
                self.stop = Some(token);
                return token;
            }
            Kind::End | Kind::Bad => {
                self.stop = Some(token);
                return token;
            }
            _ => token.kind as u64 + 2,
        };
        self.script.fingerprint = bytes::mix(self.script.fingerprint, value);
        token
    }

    /// The token after the one taken last.
    pub(super) fn peek(&self) -> Token {
        self.stop.unwrap_or_else(|| {
            let mut ahead = self.lexer;
            ahead.next()
        })
    }

    /// Takes the next token if it is this key word.
    pub(super) fn take_if(&mut self, keyword: Keyword) -> bool {
        let found = self.peek().keyword == keyword;
        if found {
            self.take();
        }
        found
    }

    /// The string needs the writer.
    #[inline]
    pub(super) fn write(&mut self, why: Why) {
        self.script.access = Access::Write;
        if self.script.because == Why::None {
            self.script.because = why;
        }
    }

    /// Something may be left in the session.
    #[inline]
    pub(super) fn leave(&mut self, what: Leaves) {
        self.script.leaves = self.script.leaves.with(what);
    }

    /// The string may do anything.
    #[cold]
    pub(super) fn doubt(&mut self, why: Why) {
        self.write(why);
        self.leave(Leaves::UNKNOWN);
        self.script.ends = true;
        self.script.returns_rows = true;
    }

    /// Gives up on the rest of the string.
    #[cold]
    pub(super) fn give_up(&mut self, why: Why) {
        self.doubt(why);
        self.stop = Some(Token { kind: Kind::Bad, ..Token::NONE });
    }
}
