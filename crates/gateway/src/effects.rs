//! What the texts of a client do to its session and its transaction, and what the gateway asks of its
//! own because of that.

use std::rc::Rc;

use bytes::{BufMut, BytesMut};
use quorate_wire::backend::Status;
use quorate_wire::frame::put;
use quorate_wire::sql::{Access, Leaves, Name, Options, Script, Verb, Why};

use crate::client::{Ending, Pin};
use crate::exchange::{Kind, Undo};
use crate::relay::Relay;
use crate::server::Server;
use crate::statements::Statement;
use crate::upstream::XID_STATEMENT;

impl Relay<'_> {
    /// What a text does to the session.
    pub(crate) fn notes(&mut self, script: &Script, sql: &[u8]) {
        let block = &mut self.client.block;
        let control = matches!(script.first, Verb::Begin(_)) && script.statements == 1;
        if script.access == Access::Write && !script.ends && !control {
            block.writes();
        }
        if script.ends {
            block.end = Some(match script.first {
                Verb::Commit { chain: false } if script.statements == 1 => Ending::Commit,
                Verb::Rollback { chain: false } if script.statements == 1 => Ending::Rollback,
                _ => Ending::Other,
            });
        }
        // From here on texts may mean something else than they meant to others.
        let sets = matches!(
            script.first,
            Verb::Set(_)
                | Verb::Reset(_)
                | Verb::SetTransaction
                | Verb::SetSessionCharacteristics(_)
        );
        self.client.block.set |= sets || script.statements > 1 || script.why == Why::Function;
        self.copies |= matches!(script.first, Verb::Copy(_)) || script.statements > 1;
        let leaves = script.leaves;
        if leaves.is_empty() && script.first != Verb::Deallocate(None) {
            return;
        }
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
                self.client.pin(pin);
            }
        }
        if leaves.has(Leaves::UNKNOWN) {
            if contains(sql, b"set_config") {
                self.client.pin(Pin::Code);
            }
            self.client.block.look = true;
        }
        if leaves.has(Leaves::SETTING) {
            self.notes_setting(script, sql);
        }
        if script.first == Verb::Deallocate(None) {
            self.client.block.deallocated = true;
            self.barrier_due = true;
        }
        if leaves.has(Leaves::CLEARS_ALL) {
            self.client.block.discarded = true;
            self.barrier_due = true;
        }
    }

    fn notes_setting(&mut self, script: &Script, sql: &[u8]) {
        let name = |name: &Name| name.fold(sql);
        match &script.first {
            Verb::Set(set) if script.statements == 1 => {
                let name = name(&set.name);
                // Neither can be made again elsewhere.
                if matches!(&name[..], b"session_authorization" | b"seed") {
                    self.client.pin(Pin::Setting);
                }
                let range = set.value.start as usize..set.value.end as usize;
                let value = sql.get(range).unwrap_or_default().trim_ascii();
                if value.eq_ignore_ascii_case(b"default") {
                    self.client.block.resets.push(name.clone().into());
                }
                self.client.block.settings.push(name.into());
            }
            Verb::Reset(Some(reset)) if script.statements == 1 => {
                let name = name(reset);
                self.client.block.resets.push(name.clone().into());
                self.client.block.settings.push(name.into());
            }
            Verb::Reset(None) if script.statements == 1 => self.client.block.reset_all = true,
            Verb::SetSessionCharacteristics(_) if script.statements == 1 => {
                for name in ["isolation", "read_only", "deferrable"] {
                    let name = format!("default_transaction_{name}");
                    self.client.block.settings.push(name.into_bytes().into());
                }
            }
            _ => self.client.pin(Pin::Setting),
        }
    }

    /// The same statement with the server's name, when it is DEALLOCATE of one of the client's.
    pub(crate) fn deallocates(&mut self, statement: &Rc<Statement>) -> Option<Rc<Statement>> {
        let name = self.deallocated(&statement.script, &statement.text, false)?;
        let text = [b"DEALLOCATE ", &name[..]].concat();
        let functions = self.client.account.functions();
        let options = Options { standard_strings: true, functions: &*functions, whole: true };
        let of = self.client.settings.mark();
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
        let Verb::Deallocate(what) = &script.first else { return None };
        if script.statements != 1 {
            return None;
        }
        let name = what.as_ref()?;
        let statement = self.client.statements.remove(&name.fold(sql)[..])?;
        if !self.server.prepared.touch(&statement) {
            self.server.exchange.sent(Kind::Parse, true, Undo::Nothing);
            Server::put_parse(&mut self.server.end.out, &statement.name, &statement);
            if alone {
                self.server.exchange.sent(Kind::Sync, true, Undo::Nothing);
                put(&mut self.server.end.out, b'S', |_| {});
            }
        }
        self.server.prepared.remove(&statement);
        let mut quoted = BytesMut::new();
        crate::settings::put_identifier(&mut quoted, &statement.name);
        Some(quoted.to_vec())
    }

    /// Asks for the id of a transaction that may have written, behind what the client sent: the answer
    /// is known before its end is asked for.
    pub(crate) fn ask_xid(&mut self) {
        let copies = std::mem::take(&mut self.copies);
        let block = &self.client.block;
        if block.unasked
            && !copies
            && block.end.is_none()
            && block.xid.is_none()
            && self.server.exchange.status == Status::InTransaction
            && self.client.left == 0
            && self.worker.resolves()
            && self.server.asks_xid
        {
            self.put_xid(true);
        }
    }

    /// Asks for the id of a transaction before its end is passed on.
    pub(crate) fn before_end(&mut self, script: &Script) {
        if self.ends_unasked(script) {
            self.put_xid(true);
        }
    }

    /// The same inside a pipeline, where no Sync of ours may stand.
    pub(crate) fn before_end_of_pipeline(&mut self, script: &Script) {
        if self.ends_unasked(script) {
            self.put_xid(false);
        }
    }

    fn ends_unasked(&self, script: &Script) -> bool {
        let block = &self.client.block;
        // Also where nothing was seen to write: a view may hide a function that does.
        script.ends
            && block.xid.is_none()
            && (block.unasked || !block.asked_xid)
            && self.server.asks_xid
            && self.worker.resolves()
            && self.server.exchange.status == Status::InTransaction
            && self.server.exchange.is_quiet()
    }

    fn put_xid(&mut self, sync: bool) {
        self.client.block.asked_xid = true;
        self.client.block.unasked = false;
        self.client.block.xid_due += 1;
        let exchange = &mut self.server.exchange;
        for kind in [Kind::Bind, Kind::Execute, Kind::Close] {
            exchange.sent(kind, true, Undo::Nothing);
        }
        let out = &mut self.server.end.out;
        put(out, b'B', |out| {
            for name in [XID_STATEMENT, XID_STATEMENT] {
                out.put_slice(name);
                out.put_u8(0);
            }
            out.put_slice(&[0; 6]);
        });
        put(out, b'E', |out| {
            out.put_slice(XID_STATEMENT);
            out.put_slice(&[0; 5]);
        });
        put(out, b'C', |out| {
            out.put_u8(b'P');
            out.put_slice(XID_STATEMENT);
            out.put_u8(0);
        });
        if sync {
            self.server.exchange.sent(Kind::Sync, true, Undo::Nothing);
            put(&mut self.server.end.out, b'S', |_| {});
        } else {
            // So that the answer leaves the server before the transaction ends.
            put(&mut self.server.end.out, b'H', |_| {});
        }
    }
}

/// Whether a word occurs in a text, whatever the case of its letters.
fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}
