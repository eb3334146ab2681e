//! What the texts of a client do to its session and its transaction, and what the gateway asks of its
//! own because of that.

use std::rc::Rc;

use bytes::{BufMut, BytesMut};
use quorate_wire::backend::Status;
use quorate_wire::frame::put;
use quorate_wire::sql::{
    Access, Deallocate, Isolation, Leaves, Name, Options, Reset, Script, Verb, Why,
};

use crate::client::{Ending, Pin};
use crate::exchange::{Kind, Undo, Whose};
use crate::relay::Relay;
use crate::server::Part;
use crate::statements::Statement;
use crate::tidy::TOKEN;
use crate::upstream::XID_STATEMENT;

impl Relay<'_> {
    /// What a text does to the session.
    pub(crate) fn notes(&mut self, script: &Script, sql: &[u8]) {
        let block = &mut self.client.block;
        // What it makes visible was noted when it was written.
        let control = script.statements == 1
            && matches!(
                script.first,
                Verb::Begin(_)
                    | Verb::Commit { .. }
                    | Verb::Rollback { .. }
                    | Verb::PrepareTransaction
            );
        if self.server.part == Part::Replica {
            block.story.add(script, sql);
        }
        block.tells_nothing &= tells_nothing(script, sql);
        let may_write = self.client.writes_at.is_none();
        if script.access == Access::Write && may_write && !control {
            block.wrote = true;
            block.unasked |= script.statements != 1 || takes_snapshot(script.first);
            block.defined |= matches!(script.first, Verb::Ddl) || script.statements > 1;
        }
        if script.access == Access::Read && matches!(self.server.part, Part::Writer(_)) {
            // A standby would have refused it.
            block.wrote |= self.client.account.functions().hidden_writes;
        }
        block.sends(script.ends.then_some(match script.first {
            Verb::Commit { chain: false } if script.statements == 1 => Ending::Commit,
            Verb::Rollback { chain: false } if script.statements == 1 => Ending::Rollback,
            _ => Ending::Other,
        }));
        // From here on texts may mean something else than they meant to others.
        let sets = matches!(
            script.first,
            Verb::Ddl
                | Verb::Set(_)
                | Verb::Reset(_)
                | Verb::SetTransaction(_)
                | Verb::SetSessionCharacteristics(_)
        );
        self.client.block.set |= sets || script.statements > 1 || script.because == Why::Function;
        self.copies |= matches!(script.first, Verb::Copy(_)) || script.statements > 1;
        let leaves = script.leaves;
        let all = Verb::Deallocate(Deallocate::All);
        if leaves.is_none() && script.first != all {
            return;
        }
        // What comes before or behind DISCARD ALL in one pipeline.
        let discards = leaves.has(Leaves::CLEARS_ALL);
        let block = &mut self.client.block;
        block.look |= if discards { block.left } else { block.discards };
        block.discards |= discards;
        block.left |= !discards;
        for (leaves_it, pin) in [
            (Leaves::TEMP, Pin::Temporary),
            (Leaves::ADVISORY, Pin::Advisory),
            (Leaves::LISTEN, Pin::Listen),
            (Leaves::HOLD, Pin::Cursor),
            (Leaves::PREPARED, Pin::Prepared),
            (Leaves::LOAD, Pin::Library),
            (Leaves::UNKNOWN_SETTING, Pin::Setting),
        ] {
            if leaves.has(leaves_it) {
                self.keeps(pin);
            }
        }
        if leaves.has(Leaves::UNKNOWN) {
            if contains(sql, b"set_config") {
                self.keeps(Pin::Code);
            }
            self.client.block.look = true;
        }
        if leaves.has(Leaves::SETTING) {
            self.notes_setting(script, sql);
        }
        let several = script.statements > 1 && leaves.has(Leaves::CLEARS_PREPARED);
        if script.first == all || several || discards {
            self.barrier_due = true;
            self.server.prepared.doubt_all();
        }
    }

    /// The client may be told what a statement returns, which is stored, too.
    pub(crate) fn tells_of(&mut self, statement: Option<&Statement>) {
        let nothing = statement.is_some_and(|s| tells_nothing(&s.script, &s.text));
        self.client.block.tells_nothing &= nothing;
    }

    /// A text may leave something by which the client has to keep its server. On a replica it was let
    /// through because it will be refused; that it was is looked at afterwards.
    fn keeps(&mut self, why: Pin) {
        match self.server.part {
            Part::Writer(_) => self.client.pin(why),
            Part::Replica => self.client.block.look = true,
        }
    }

    fn notes_setting(&mut self, script: &Script, sql: &[u8]) {
        let name = |name: &Name| name.text(sql).to_ascii_lowercase();
        match &script.first {
            Verb::Set(set) if script.statements == 1 => {
                let name = name(&set.name);
                if !moves(&name) {
                    self.keeps(Pin::Setting);
                }
                let range = set.value.start as usize..set.value.end as usize;
                let value = sql.get(range).unwrap_or_default().trim_ascii();
                if value.eq_ignore_ascii_case(b"default") {
                    self.client.block.resets.push(name.clone().into());
                }
                self.client.block.settings.push(name.into());
            }
            Verb::Reset(Reset::One(reset)) if script.statements == 1 => {
                let name = name(reset);
                self.client.block.resets.push(name.clone().into());
                self.client.block.settings.push(name.into());
            }
            Verb::Reset(Reset::All) if script.statements == 1 => self.client.block.reset_all = true,
            Verb::SetSessionCharacteristics(modes) if script.statements == 1 => {
                let made = [
                    ("isolation", modes.isolation.is_some()),
                    ("read_only", modes.read_only.is_some()),
                    ("deferrable", modes.deferrable.is_some()),
                ];
                for (name, _) in made.into_iter().filter(|(_, made)| *made || modes.other) {
                    let name = format!("default_transaction_{name}");
                    self.client.block.settings.push(name.into_bytes().into());
                }
            }
            _ => self.keeps(Pin::Setting),
        }
        // PostgreSQL sets the role back with it.
        let settings = &mut self.client.block.settings;
        if settings.last().is_some_and(|name| **name == *b"session_authorization") {
            settings.push(Box::from(&b"role"[..]));
        }
    }

    /// The same statement with the server's name, when it is DEALLOCATE of one of the client's.
    pub(crate) fn deallocates(&mut self, statement: &Rc<Statement>) -> Option<Rc<Statement>> {
        let name = self.deallocated(&statement.script, &statement.text, false)?;
        let text = [b"DEALLOCATE ", &name[..]].concat();
        let functions = self.client.account.functions();
        let options = Options { standard_strings: true, functions: &*functions, whole: true };
        let of = self.client.settings.mark() ^ functions.version;
        let statements = &mut self.worker.statements.borrow_mut();
        Some(statements.intern((&text, &statement.types, of), &options))
    }

    /// For DEALLOCATE of a statement that was prepared by protocol: its name on the server, quoted.
    pub(crate) fn deallocated(
        &mut self,
        script: &Script,
        sql: &[u8],
        alone: bool,
    ) -> Option<Vec<u8>> {
        let Verb::Deallocate(Deallocate::One(name)) = &script.first else { return None };
        if script.statements != 1 {
            return None;
        }
        let statement = self.client.statements.remove(&name.text(sql)[..])?;
        if !self.server.prepared.touch(&statement) {
            self.make(&statement, Whose::Ours);
            if alone {
                self.server.exchange.sent(Kind::Sync, true, Undo::Nothing);
                put(&mut self.server.end.out, b'S', |_| {});
            }
        }
        // It may fail, as in a block that has failed.
        self.server.prepared.perhaps(&statement);
        let mut quoted = BytesMut::new();
        crate::settings::put_identifier(&mut quoted, &statement.name);
        Some(quoted.to_vec())
    }

    /// Asks for the id of a transaction that may have written, behind what the client sent: the answer
    /// is known before its end is asked for.
    pub(crate) fn ask_behind(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        let block = &self.client.block;
        if block.unasked
            && !copies
            // The statement that asks is about to be cleared away with the others.
            && !self.barrier
            && block.end.is_none()
            && block.xid.is_none()
            && self.server.exchange.status == Status::InTransaction
            && self.client.left == 0
            && self.worker.resolves()
            && self.server.asks_xid
        {
            self.put_xid(Asks::Alone);
            self.client.block.asked_behind = true;
        }
    }

    /// Asks before a simple query is passed on; whether the query has to wait for the answer.
    ///
    /// A question behind the first write costs an answer more, for which both sides are woken. Where
    /// more statements follow as a rule, it is put together with the next of them instead.
    pub(crate) fn ask_before(&mut self, script: &Script) -> bool {
        let block = &mut self.client.block;
        if block.unasked || std::mem::take(&mut block.asked_behind) {
            self.client.account.learns_what_follows(!script.ends);
        }
        if !self.may_ask() || undoes(script) {
            return false;
        }
        let block = &self.client.block;
        if block.unasked && script.ends {
            self.put_xid(Asks::Alone);
            self.barrier = true;
            return true;
        }
        if block.unasked {
            self.put_xid(Asks::WithNext);
            // If the question fails, the server ignores the query too; no other may be behind it.
            self.barrier_due = true;
        } else if script.ends && !block.asked_xid {
            // Nothing was seen to write. A view may hide a function that does.
            self.put_xid(Asks::Alone);
        }
        false
    }

    /// Asks inside a pipeline before the end of the transaction.
    pub(crate) fn ask_before_end_of_pipeline(&mut self, script: &Script) {
        let block = &self.client.block;
        let asked = block.asked_xid && !block.unasked;
        if script.ends && !asked && !undoes(script) && self.may_ask() {
            self.put_xid(Asks::InPipeline);
        }
    }

    fn may_ask(&self) -> bool {
        self.client.block.xid.is_none()
            && self.server.asks_xid
            && self.worker.resolves()
            && self.server.exchange.status == Status::InTransaction
            && self.server.exchange.is_quiet()
    }

    fn put_xid(&mut self, asks: Asks) {
        self.client.block.asked_xid = true;
        self.client.block.unasked = false;
        self.client.block.xid_due += 1;
        let exchange = &mut self.server.exchange;
        let out = &mut self.server.end.out;
        // A simple query does away with the portal that has no name. Elsewhere that may be the client's.
        let portal = if let Asks::WithNext = asks { b"" } else { XID_STATEMENT };
        exchange.sent(Kind::Bind, true, Undo::Nothing);
        put(out, b'B', |out| {
            for name in [portal, XID_STATEMENT] {
                out.put_slice(name);
                out.put_u8(0);
            }
            out.put_slice(&[0; 6]);
        });
        exchange.sent(Kind::Execute, true, Undo::Nothing);
        put(out, b'E', |out| {
            out.put_slice(portal);
            out.put_slice(&[0; 5]);
        });
        if !portal.is_empty() {
            exchange.sent(Kind::Close, true, Undo::Nothing);
            put(out, b'C', |out| {
                out.put_u8(b'P');
                out.put_slice(portal);
                out.put_u8(0);
            });
        }
        match asks {
            Asks::WithNext => {}
            // So that the answer leaves the server before the transaction ends.
            Asks::InPipeline => put(out, b'H', |_| {}),
            Asks::Alone => {
                exchange.sent(Kind::Sync, true, Undo::Nothing);
                put(out, b'S', |_| {});
            }
        }
    }
}

/// Where the question for a transaction's id stands.
#[derive(Clone, Copy)]
enum Asks {
    /// It is answered by itself.
    Alone,
    /// It is answered together with the simple query behind it.
    WithNext,
    /// In a pipeline of the client's.
    InPipeline,
}

/// Whether a text does nothing but roll a transaction back: nobody needs to know its id.
fn undoes(script: &Script) -> bool {
    script.statements == 1 && matches!(script.first, Verb::Rollback { .. })
}

/// What a transaction on a replica must not leave in its session: it would keep the client there.
/// (A temporary object cannot be made there at all, and PostgreSQL says so.)
const STAYS: Leaves = Leaves::ADVISORY
    .with(Leaves::LISTEN)
    .with(Leaves::HOLD)
    .with(Leaves::PREPARED)
    .with(Leaves::LOAD)
    .with(Leaves::UNKNOWN_SETTING);

/// Whether a text leaves something by which a client has to keep its server.
pub(crate) fn stays(script: &Script, sql: &[u8]) -> bool {
    let fixed = match &script.first {
        Verb::Set(set) => !moves(&set.name.text(sql).to_ascii_lowercase()),
        _ => false,
    };
    fixed || script.leaves.has(STAYS)
}

/// Whether a setting can be made again on another server.
fn moves(name: &[u8]) -> bool {
    !matches!(name, b"session_authorization" | b"seed")
}

/// Whether a text neither tells nor changes anything of what is stored: it takes a token, or shows a
/// setting.
pub(crate) fn tells_nothing(script: &Script, text: &[u8]) -> bool {
    let is_known = script.statements == 1 && !script.leaves.has(Leaves::UNKNOWN);
    is_known
        && match script.first {
            Verb::Set(set) => set.name.text(text).eq_ignore_ascii_case(TOKEN),
            Verb::Show(_) => true,
            _ => false,
        }
}

/// Whether a statement means the same on a replica as on the writer, though it is no read: what
/// moves about in a transaction, and what PostgreSQL itself follows.
pub(crate) fn is_neutral(verb: Verb) -> bool {
    matches!(
        verb,
        Verb::Begin(_)
            | Verb::Commit { .. }
            | Verb::Rollback { .. }
            | Verb::Savepoint
            | Verb::RollbackTo
            | Verb::Release
            | Verb::Set(_)
            | Verb::Reset(_)
            | Verb::Show(_)
            | Verb::SetSessionCharacteristics(_)
            | Verb::SetConstraints
            | Verb::Declare { .. }
            | Verb::Fetch
            | Verb::Move
            | Verb::Close(_)
            | Verb::Deallocate(_)
            | Verb::Discard(_)
            | Verb::Empty
    ) || matches!(
        verb,
        // A standby has no such level.
        Verb::SetTransaction(modes) if modes.isolation != Some(Isolation::Serializable)
    )
}

/// Whether a statement leaves its transaction with a snapshot. One that does not may still be
/// followed by what must come before any query, and a question of ours would be a query.
fn takes_snapshot(verb: Verb) -> bool {
    !matches!(
        verb,
        Verb::Set(_)
            | Verb::Reset(_)
            | Verb::Show(_)
            | Verb::SetTransaction(_)
            | Verb::SetSessionCharacteristics(_)
            | Verb::SetConstraints
            | Verb::Savepoint
            | Verb::RollbackTo
            | Verb::Release
            | Verb::Lock
            | Verb::Fetch
            | Verb::Move
            | Verb::Close(_)
            | Verb::Listen(_)
            | Verb::Unlisten { .. }
            | Verb::Notify
            | Verb::Deallocate(_)
            | Verb::Checkpoint
    )
}

/// Whether a word occurs in a text, whatever the case of its letters.
fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}
