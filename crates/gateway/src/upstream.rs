//! From a client to its server: what each message does to the session, and what is sent instead.

use std::rc::Rc;

use bytes::{BufMut, BytesMut};
use quorate_wire::Error;
use quorate_wire::backend::{Report, Status};
use quorate_wire::frame::{HEADER, body_len, put, take_cstr};
use quorate_wire::sql::{Leaves, Script, Verb};

use crate::client::Pin;
use crate::exchange::{Kind, Undo, Whose};
use crate::floor::{self, Lowers};
use crate::full;
use crate::group::{self, Group};
use crate::limits;
use crate::relay::Relay;
use crate::server::{Part, Server};
use crate::statements::Statement;
use crate::story::Story;

/// The statement that tells the id of the transaction, as every connection to a writer has it.
pub(crate) const XID_STATEMENT: &[u8] = b"quorate_xid";
/// The same as text.
pub(crate) const XID_QUERY: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()";

/// The name of a statement that no server has.
const NO_STATEMENT: &[u8] = b"\x01quorate\0";

/// Why [`Relay::upstream`] stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Up {
    /// It needs more bytes, or what comes next has to wait.
    More,
    /// The client said goodbye.
    Left,
    /// The group that begins here does not belong on a replica.
    Elsewhere,
}

/// A message of a client, as much of it as is there.
#[derive(Clone, Copy)]
struct Message<'a> {
    tag: u8,
    /// Length of the whole body.
    len: usize,
    /// The body as far as it is there.
    body: &'a [u8],
}

impl Message<'_> {
    fn is_whole(&self) -> bool {
        self.body.len() == self.len
    }
}

/// How much of a message must be there before anything is done with it.
fn needed(tag: u8, len: usize) -> usize {
    match tag {
        b'Q' => len.min(limits::QUERY_SEEN),
        b'P' if len <= limits::PARSE_MAX => len,
        b'P' | b'B' => len.min(limits::NAMES_SEEN),
        b'D' | b'E' | b'C' | b'H' | b'S' | b'X' | b'c' => len.min(limits::NAMES_SEEN),
        _ => 0,
    }
}

impl Relay<'_> {
    /// Handles bytes of the client: how many are done with.
    pub(crate) fn upstream(&mut self, input: &[u8]) -> Result<(usize, Up), Error> {
        let mut at = 0;
        loop {
            if self.client.left > 0 {
                let n = self.client.left.min(input.len() - at);
                if self.client.passing {
                    self.server.end.out.put_slice(&input[at..at + n]);
                }
                self.client.left -= n;
                at += n;
            }
            let full = self.server.end.out.len() >= limits::PENDING_MAX;
            if self.client.left > 0 || full || self.is_barred() || self.pauses() {
                return Ok((at, Up::More));
            }
            let rest = &input[at..];
            let Some(header) = rest.first_chunk::<HEADER>() else { return Ok((at, Up::More)) };
            let (tag, len) = (header[0], body_len(header)?);
            if rest.len() < HEADER + needed(tag, len) {
                return Ok((at, Up::More));
            }
            let n = (HEADER + len).min(rest.len());
            let message = Message { tag, len, body: &rest[HEADER..n] };
            if tag == b'X' {
                return Ok((at + n, Up::Left));
            }
            if self.must_wait(&message) || self.asks_before(&message) {
                return Ok((at, Up::More));
            }
            if !self.looked_at && self.server.part == Part::Replica {
                match self.next_group(rest)? {
                    None => return Ok((at, Up::More)),
                    Some(group) if self.belongs_elsewhere(&group) => {
                        return Ok((at, Up::Elsewhere));
                    }
                    Some(_) => self.looked_at = true,
                }
            }
            self.client.left = HEADER + len - n;
            // What is still to come of it goes only where its beginning went.
            self.client.passing = false;
            at += n;
            self.message(message)?;
        }
    }

    fn next_group(&mut self, input: &[u8]) -> Result<Option<Group>, Error> {
        let statements = &mut self.worker.statements.borrow_mut();
        group::look(self.client, statements, input, &mut None)
    }

    /// Whether a group of a transaction on a replica has to go to the writer: one that would keep
    /// the client there; and one that may write, as long as the transaction can be moved.
    fn belongs_elsewhere(&self, group: &Group) -> bool {
        let block = &self.client.block;
        let reads_only = self.client.writes_at.is_some();
        self.server.exchange.status == Status::InTransaction
            && (group.stays
                || !reads_only && group.elsewhere && matches!(block.story, Story::Told { .. }))
    }

    /// Whether a message clears what the answers under way still refer to, or gives a name of which
    /// they decide whether it is free.
    fn must_wait(&self, message: &Message<'_>) -> bool {
        if !self.server.exchange.owes_end() {
            return false;
        }
        let clears = |script: &Script| {
            matches!(script.first, Verb::Discard(_) | Verb::Deallocate(_))
                || script.leaves.has(Leaves::CLEARS_ALL)
        };
        let mut strings = message.body.split(|b| *b == 0);
        match message.tag {
            b'Q' => {
                let first = message.body.first();
                first.is_some_and(|b| !b.is_ascii_alphabetic() || b | 0x20 == b'd')
                    && clears(&group::classify(self.client, text(message.body), message.is_whole()))
            }
            b'P' => {
                let name = strings.next().unwrap_or_default();
                !name.is_empty() && self.server.exchange.decides(name)
            }
            b'B' => {
                let name = strings.nth(1).unwrap_or_default();
                self.client.known(name).is_some_and(|statement| clears(&statement.script))
            }
            _ => false,
        }
    }

    /// Whether a query waits, because the id of its transaction is asked for before it.
    fn asks_before(&mut self, message: &Message<'_>) -> bool {
        let block = &self.client.block;
        let in_block = self.server.exchange.status == Status::InTransaction;
        if message.tag != b'Q' || !in_block || block.xid.is_some() && !block.asked_behind {
            return false;
        }
        let sql = text(message.body);
        let script = group::classify(self.client, sql, message.is_whole());
        let waits = self.ask_before(&script);
        self.client.peeked = Some((sql.len(), script));
        waits
    }

    fn message(&mut self, message: Message<'_>) -> Result<(), Error> {
        if self.server.exchange.skips() && message.tag != b'S' {
            return Ok(());
        }
        match message.tag {
            b'Q' => self.query(message),
            b'F' => {
                self.server.exchange.sent(Kind::Query, false, Undo::Nothing);
                self.client.block.writes();
                self.ends_group();
                self.pass(message);
            }
            b'P' => self.parse(message)?,
            b'B' => self.bind(message)?,
            b'D' => self.describe(message)?,
            b'C' => self.close(message)?,
            b'E' => self.extended(Kind::Execute, message),
            b'S' => self.sync(message),
            b'c' | b'f' => {
                self.server.exchange.sent(Kind::CopyEnd, false, Undo::Nothing);
                self.pass(message);
            }
            b'H' | b'd' => self.pass(message),
            b'p' => {}
            _ => return Err(Error::Invalid { what: "the kind of a message" }),
        }
        Ok(())
    }

    /// Sends a message as it is; the rest of its body follows as it comes.
    fn pass(&mut self, message: Message<'_>) {
        self.client.passing = true;
        put_header(&mut self.server.end.out, message.tag, message.len);
        self.server.end.out.put_slice(message.body);
    }

    fn extended(&mut self, kind: Kind, message: Message<'_>) {
        self.server.exchange.sent(kind, false, Undo::Nothing);
        self.pass(message);
    }

    fn query(&mut self, message: Message<'_>) {
        let sql = text(message.body);
        let script = match self.client.peeked.take() {
            Some((len, script)) if len == sql.len() && message.is_whole() => script,
            _ => group::classify(self.client, sql, message.is_whole()),
        };
        self.client.unnamed = None;
        self.server.unnamed = None;
        if let Some(lowers) = floor::lowers(&script, sql, self.client.account.spec().floor) {
            self.below_floor(lowers);
            self.server.exchange.sent(Kind::Sync, false, Undo::Nothing);
            put(&mut self.server.end.out, b'S', |_| {});
            self.ends_group();
            return;
        }
        if let Some(report) = self.has_no_room(&script) {
            self.fail(&report);
            self.server.exchange.sent(Kind::Sync, false, Undo::Nothing);
            put(&mut self.server.end.out, b'S', |_| {});
            self.ends_group();
            return;
        }
        self.notes(&script, sql);
        // It may send something itself.
        let deallocated = match message.is_whole() {
            true => self.deallocated(&script, sql, true),
            false => None,
        };
        let in_pipeline = self.server.exchange.lacks_sync();
        self.server.exchange.sent(Kind::Query, false, Undo::Nothing);
        self.ends_group();
        match deallocated {
            Some(name) => put(&mut self.server.end.out, b'Q', |out| {
                out.put_slice(b"DEALLOCATE ");
                out.put_slice(&name);
                out.put_u8(0);
            }),
            None => self.pass(message),
        }
        // The question has a Sync: if the part before the query fails, the server leaves out what the
        // client sends up to its own.
        if in_pipeline || self.client.account.more_follows() {
            self.copies = false;
        } else {
            self.ask_behind();
        }
    }

    fn sync(&mut self, message: Message<'_>) {
        self.server.exchange.sent(Kind::Sync, false, Undo::Nothing);
        self.ends_group();
        self.pass(message);
        self.ask_behind();
    }

    fn parse(&mut self, message: Message<'_>) -> Result<(), Error> {
        if !message.is_whole() {
            // Too long to be kept: the server keeps it, and the client keeps the server.
            self.client.pin(Pin::Long);
            self.client.block.sends_unknown();
            self.client.unnamed = None;
            self.server.unnamed = None;
            self.extended(Kind::Parse, message);
            return Ok(());
        }
        let worker = Rc::clone(self.worker);
        let (name, mut statement) =
            group::parse(self.client, &mut worker.statements.borrow_mut(), message.body)?;
        self.tells_of(Some(&statement));
        let floor = self.client.account.spec().floor;
        if let Some(lowers) = floor::lowers(&statement.script, &statement.text, floor) {
            self.below_floor(lowers);
            return Ok(());
        }
        // At its Bind there is an answer to wait for.
        self.ask_before_end_of_pipeline(&statement.script);
        if let Some(instead) = self.deallocates(&statement) {
            statement = instead;
        }
        if name.is_empty() {
            self.client.unnamed = Some(Rc::clone(&statement));
            self.client.unnamed_count += 1;
            if self.shares(&statement) {
                self.prepare(&statement, Whose::Unnamed(self.client.unnamed_count));
            } else {
                self.prepare_unnamed(&statement, false);
            }
            return Ok(());
        }
        if self.client.statements.contains_key(name)
            && self.server.exchange.status == Status::Failed
            && !statement.script.ends
        {
            // That the block has failed is said first.
            self.server.unnamed = None;
            self.server.exchange.sent(Kind::Parse, false, Undo::Nothing);
            Server::put_parse(&mut self.server.end.out, b"", &statement);
            return Ok(());
        }
        if self.client.statements.contains_key(name) {
            // The server knows how to say it: it has no such name, or it has one that is the
            // client's own business.
            self.duplicate(name);
            return Ok(());
        }
        self.client.statements.insert(name.into(), Rc::clone(&statement));
        self.prepare(&statement, Whose::Named(name.into()));
        Ok(())
    }

    /// Whether an unnamed statement may be one that the server keeps. A kept statement may fail
    /// where a new one would not: when the tables changed and it returns rows. Outside a transaction
    /// that is repaired; inside one it could not be.
    fn shares(&self, statement: &Statement) -> bool {
        self.client.account.spec().reuse_unnamed
            && (!statement.script.returns_rows || self.guarded)
            && !self.client.block.set
            && statement.parse_len() <= limits::SHARED_MAX
    }

    /// Sees that the server has the statement under its shared name; answers the client's Parse.
    ///
    /// One that the server has already may be out of date, and fail where a new one would not, or
    /// otherwise: it is used where a failure can be repaired, and in a block, where all is as it was.
    fn prepare(&mut self, statement: &Rc<Statement>, whose: Whose) {
        let has = self.server.prepared.touch(statement);
        let status = self.server.exchange.status;
        let plain = statement.script.first.is_plain()
            && !statement.noisy.get()
            && !self.client.block.set
            && !self.server.prepared.is_doubted(statement);
        if has && plain && (self.guarded || status == Status::InTransaction) {
            self.reused.push(Rc::clone(statement));
            self.server.exchange.sent(Kind::Parsed, false, Undo::Parsed(whose));
            return;
        }
        if has && status == Status::Failed {
            // Nothing can be prepared there, and the server says so; what it has it keeps.
            self.server.unnamed = None;
            self.server.exchange.sent(Kind::Parse, false, Undo::Parsed(whose));
            Server::put_parse(&mut self.server.end.out, b"", statement);
            return;
        }
        self.make(statement, whose);
    }

    /// Lets the server prepare a statement under its shared name.
    pub(crate) fn make(&mut self, statement: &Rc<Statement>, whose: Whose) {
        if self.server.prepared.may_be_there(statement) {
            self.close_shared(statement);
        }
        self.server.prepared.insert(statement);
        let ours = matches!(whose, Whose::Ours);
        let undo = Undo::Parse { statement: Rc::clone(statement), whose };
        self.server.exchange.sent(Kind::Parse, ours, undo);
        Server::put_parse(&mut self.server.end.out, &statement.name, statement);
        self.evict();
    }

    /// Lets the server forget a statement.
    fn close_shared(&mut self, statement: &Rc<Statement>) {
        self.server.exchange.sent(Kind::Close, true, Undo::Closed(Rc::clone(statement)));
        Server::put_close(&mut self.server.end.out, &statement.name);
    }

    fn prepare_unnamed(&mut self, statement: &Rc<Statement>, ours: bool) {
        self.server.unnamed = Some(Rc::clone(statement));
        let whose = Whose::Unnamed(self.client.unnamed_count);
        let undo = if ours { Undo::Nothing } else { Undo::Parsed(whose) };
        self.server.exchange.sent(Kind::Parse, ours, undo);
        Server::put_parse(&mut self.server.end.out, b"", statement);
    }

    fn evict(&mut self) {
        // Fewer could be less than one pipeline uses.
        let max = self.client.account.spec().prepared_max.max(limits::PREPARED_MIN);
        for old in self.server.prepared.evict(max) {
            self.close_shared(&old);
        }
    }

    /// The name under which the server has a statement of the client's, made known to it if need be.
    fn on_server(&mut self, name: &[u8]) -> Option<Box<[u8]>> {
        let statement = self.client.known(name).cloned()?;
        if name.is_empty()
            && self.server.unnamed.as_ref().is_some_and(|s| Rc::ptr_eq(s, &statement))
        {
            return Some(Box::from(&b""[..]));
        }
        if self.server.prepared.touch(&statement) {
            self.reused.push(Rc::clone(&statement));
        } else if name.is_empty() && !self.shares(&statement) {
            self.prepare_unnamed(&statement, true);
            return Some(Box::from(&b""[..]));
        } else {
            self.make(&statement, Whose::Ours);
        }
        Some(statement.name.clone())
    }

    fn bind(&mut self, message: Message<'_>) -> Result<(), Error> {
        const WHAT: &str = "a Bind message";
        let mut rest = message.body;
        let portal = take_cstr(&mut rest, WHAT)?;
        let name = take_cstr(&mut rest, WHAT)?;
        match self.client.known(name).cloned() {
            Some(statement)
                if floor::named_by(&statement.script, rest, self.client.account.spec().floor) =>
            {
                self.below_floor(Lowers::Unseen);
                return Ok(());
            }
            Some(statement) => {
                if let Some(report) = self.has_no_room(&statement.script) {
                    self.fail(&report);
                    return Ok(());
                }
                self.ask_before_end_of_pipeline(&statement.script);
                self.notes(&statement.script, &statement.text);
            }
            None => self.client.block.sends_unknown(),
        }
        let Some(server_name) = self.on_server(name) else {
            if self.is_foreign(name) {
                self.unknown(name);
            } else {
                self.extended(Kind::Bind, message);
            }
            return Ok(());
        };
        self.server.exchange.sent(Kind::Bind, false, Undo::Nothing);
        self.client.passing = true;
        let len = message.len - name.len() + server_name.len();
        let out = &mut self.server.end.out;
        put_header(out, b'B', len);
        out.put_slice(portal);
        out.put_u8(0);
        out.put_slice(&server_name);
        out.put_u8(0);
        out.put_slice(rest);
        Ok(())
    }

    fn describe(&mut self, message: Message<'_>) -> Result<(), Error> {
        if let Some((b'S', mut rest)) = message.body.split_first().map(|(k, r)| (*k, r)) {
            let name = take_cstr(&mut rest, "a Describe message")?;
            let statement = self.client.known(name).cloned();
            self.tells_of(statement.as_deref());
            if let Some(server_name) = self.on_server(name) {
                self.server.exchange.sent(Kind::DescribeStatement, false, Undo::Nothing);
                put(&mut self.server.end.out, b'D', |out| {
                    out.put_u8(b'S');
                    out.put_slice(&server_name);
                    out.put_u8(0);
                });
                return Ok(());
            }
            if self.is_foreign(name) {
                self.unknown(name);
                return Ok(());
            }
        }
        self.extended(Kind::Describe, message);
        Ok(())
    }

    fn close(&mut self, message: Message<'_>) -> Result<(), Error> {
        if let Some((b'S', mut rest)) = message.body.split_first().map(|(k, r)| (*k, r)) {
            let name = take_cstr(&mut rest, "a Close message")?;
            if name.is_empty() {
                self.client.unnamed = None;
                self.server.unnamed = None;
            } else if let Some(statement) = self.client.statements.remove(name) {
                let undo = Undo::Close { name: name.into(), statement };
                self.server.exchange.sent(Kind::Closed, false, undo);
                return Ok(());
            } else if self.is_foreign(name) {
                self.server.exchange.sent(Kind::Closed, false, Undo::Nothing);
                return Ok(());
            }
        }
        self.extended(Kind::Close, message);
        Ok(())
    }

    /// A statement that would lower `synchronous_commit` too far.
    fn below_floor(&mut self, lowers: Lowers) {
        let floor = self.client.account.spec().floor;
        self.fail(&lowers.report(floor));
    }

    /// Why a statement that surely writes is not passed on while the writer's disk is short. In a
    /// block that began before, or of a client that keeps its server, nobody else would stop it.
    fn has_no_room(&self, script: &Script) -> Option<Report> {
        let stops = full::grows(script)
            && self.worker.is_full()
            && matches!(self.server.part, Part::Writer(_))
            && !self.client.asked.when_full;
        if stops { full::report(self.worker) } else { None }
    }

    /// A second statement under one name.
    fn duplicate(&mut self, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        let message = format!("prepared statement \"{name}\" already exists");
        self.fail(&Report::error("42P05", message));
    }

    /// A statement that the client does not have.
    fn unknown(&mut self, name: &[u8]) {
        let name = String::from_utf8_lossy(name);
        let message = match &*name {
            "" => "unnamed prepared statement does not exist".to_owned(),
            name => format!("prepared statement \"{name}\" does not exist"),
        };
        self.fail(&Report::error("26000", message));
    }

    /// Whether a name is not the client's to use: the server's names are the gateway's own, unless
    /// the client keeps its server and may have made some there.
    fn is_foreign(&self, name: &[u8]) -> bool {
        let made =
            matches!(self.client.handle.pin.get(), Some(Pin::Prepared | Pin::Long | Pin::Code));
        !made || name.is_empty() || name.starts_with(b"quorate_")
    }

    /// Lets the server fail, as it would have failed by itself, and tells the client why.
    fn fail(&mut self, report: &Report) {
        self.server.exchange.sent_to_fail(report.encode().freeze());
        put(&mut self.server.end.out, b'D', |out| {
            out.put_u8(b'S');
            out.put_slice(NO_STATEMENT);
        });
    }
}

fn put_header(out: &mut BytesMut, tag: u8, len: usize) {
    out.put_u8(tag);
    out.put_u32(u32::try_from(len + 4).unwrap_or(u32::MAX));
}

/// A query without its terminating zero.
fn text(body: &[u8]) -> &[u8] {
    body.strip_suffix(b"\0").unwrap_or(body)
}
