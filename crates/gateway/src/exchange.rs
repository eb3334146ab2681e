//! What a server owes: the answers to everything it was sent, in order, and what becomes of each.
//!
//! Pure. A relay that adds messages of its own (statements prepared again, settings made again) and
//! leaves others out (a statement that the server has already) must know to which request each
//! answer belongs. Requests are noted when they are sent; each message of the server is then passed
//! on, left out, or preceded by an answer that the server was not asked for.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_wire::Error;
use quorate_wire::backend::{COPY_BOTH, COPY_IN, DATA_ROW, ERROR, Fields, NOTICE, READY, Status};
use quorate_wire::frame::{HEADER, body_len, take_cstr};

use crate::cap::{Cap, TooLarge};
use crate::limits;
use crate::login::Wish;
use crate::read_only;
use crate::statements::Statement;
use crate::world::Token;

mod capped;
mod cuts;

pub(crate) use cuts::{Cuts, SpareCuts};

/// Tag of ParameterStatus.
const PARAMETER: u8 = b'S';

/// Tag of a message that no server sends: the node in front of a far server tells a [`Token`].
pub(crate) const POSITION: u8 = 1;

/// A request of which the answer is still to come.
#[derive(Debug)]
pub(crate) struct Expect {
    kind: Kind,
    /// What the client gets in place of the error that this request is sure to bring.
    instead: Option<Bytes>,
    /// The gateway's own: its answer does not reach the client.
    ours: bool,
    undo: Undo,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A simple query or a function call: everything up to ReadyForQuery.
    Query,
    Parse,
    /// A Parse that was not sent, because the server has the statement.
    Parsed,
    Bind,
    Describe,
    /// Describe of a statement, not of a portal.
    DescribeStatement,
    Execute,
    Close,
    /// A Close that was not sent, because others use the statement.
    Closed,
    /// The end of copy data, which has no answer of its own.
    CopyEnd,
    Sync,
}

/// For whom a statement is prepared.
#[derive(Debug)]
pub(crate) enum Whose {
    /// For the gateway, which knows that the client has it.
    Ours,
    /// For the client, without a name; counted, since a later one takes its place.
    Unnamed(u64),
    /// For the client, by this name.
    Named(Box<[u8]>),
}

/// What is to be put right when a request turns out not to have been carried out.
#[derive(Debug)]
pub(crate) enum Undo {
    Nothing,
    /// Whether the server has this statement is not known, and the client does not have it.
    Parse {
        statement: Rc<Statement>,
        whose: Whose,
    },
    /// Whether the server still has this statement is not known.
    Closed(Rc<Statement>),
    /// The client does not have it; the server does.
    Parsed(Whose),
    /// The client has this name no more only if the Close was carried out.
    Close {
        name: Box<[u8]>,
        statement: Rc<Statement>,
    },
}

/// Why [`Exchange::take`] stopped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It needs more bytes.
    More,
    /// A message of this length comes next: a commit stopped waiting for its copies.
    CancelledWait(usize),
    /// The server says that it ends the session, and why: no client is to end with it.
    Fatal(String),
    /// An error comes next, with this SQLSTATE, before anything of the answer was passed on.
    Refused([u8; 5]),
}

/// What was seen since the last look.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// ReadyForQuery of the client's reached it.
    pub(crate) ready: bool,
    /// ReadyForQuery of a request of ours.
    pub(crate) ours: bool,
    /// A row, or the end of a statement: the answer has begun.
    pub(crate) answered: bool,
    /// SQLSTATE of an error that reached the client.
    pub(crate) error: Option<[u8; 5]>,
    /// An error that answers a request of ours.
    pub(crate) our_error: Option<Bytes>,
    /// Settings that the server reported.
    pub(crate) parameters: Vec<Wish>,
    /// Bodies of rows that answer requests of ours.
    pub(crate) rows: Vec<Bytes>,
    /// What is to be put right.
    pub(crate) undo: Vec<Undo>,
    /// A position at or behind the end of everything acknowledged so far.
    pub(crate) position: Option<Token>,
    /// A result is larger than allowed: what is to be done about it.
    pub(crate) too_large: Option<TooLarge>,
    /// The server has forgotten every statement that it had prepared, but is to prepare these.
    pub(crate) forgot: Option<Vec<Coming>>,
    /// It has forgotten everything of its session.
    pub(crate) discarded: bool,
    /// A request of ours failed, with which a simple query was sent that is ignored now.
    pub(crate) lacks_sync: bool,
    /// A simple query of the client's is ignored, as it stands behind a failed part of a pipeline.
    pub(crate) left_out: bool,
}

/// A statement that the server was sent and has not answered yet; and its client's name of it.
pub(crate) type Coming = (Rc<Statement>, Option<Box<[u8]>>);

/// The answers a server owes.
#[derive(Debug)]
pub(crate) struct Exchange {
    expect: VecDeque<Expect>,
    /// Bytes of the message in progress that have not come yet, and whether they are passed on.
    left: usize,
    passing: bool,
    /// An error was answered: the server ignores everything up to the next Sync.
    skipping: bool,
    /// Requests were sent that no Sync has followed.
    unsynced: bool,
    copying: bool,
    /// Errors are stopped at although an answer has begun: none of it was passed on.
    pub(crate) to_the_end: bool,
    /// A message that goes in place of the one at hand.
    instead: Option<Bytes>,
    /// What a statement may return, where that is limited.
    pub(crate) cap: Option<Box<Cap>>,
    /// For a client that only reads: where writes are taken, to be told with a refusal.
    pub(crate) writes_at: Option<Arc<str>>,
    /// What a client is told in place of a refusal to write, where that has another reason.
    pub(crate) full: Option<Bytes>,
    /// The backend's process id, and the one that the client knows.
    pub(crate) pids: (i32, i32),
    pub(crate) status: Status,
    pub(crate) seen: Seen,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            expect: VecDeque::new(),
            left: 0,
            passing: false,
            skipping: false,
            unsynced: false,
            copying: false,
            to_the_end: false,
            instead: None,
            cap: None,
            writes_at: None,
            full: None,
            pids: (0, 0),
            status: Status::Idle,
            seen: Seen::default(),
        }
    }
}

impl Exchange {
    /// A request is sent.
    pub(crate) fn sent(&mut self, kind: Kind, ours: bool, undo: Undo) {
        self.expected(Expect { kind, instead: None, ours, undo });
    }

    /// A request is sent that is sure to fail; the client gets this error.
    pub(crate) fn sent_to_fail(&mut self, error: Bytes) {
        let instead = Some(error);
        self.expected(Expect { kind: Kind::Describe, instead, ours: false, undo: Undo::Nothing });
    }

    fn expected(&mut self, expect: Expect) {
        match expect.kind {
            Kind::Sync if self.copying => return,
            Kind::Sync => {
                self.skipping = false;
                self.unsynced = false;
            }
            // It ends a pipeline that no Sync has ended.
            Kind::Query => self.unsynced = false,
            Kind::CopyEnd => {
                self.copying = false;
                if self.expect.is_empty() {
                    return;
                }
            }
            _ => self.unsynced = true,
        }
        self.expect.push_back(expect);
    }

    /// Whether the server ignores what is sent, up to the next Sync.
    pub(crate) fn skips(&self) -> bool {
        self.skipping
    }

    /// Whether everything was answered and the server waits for the next request.
    pub(crate) fn is_quiet(&self) -> bool {
        self.left == 0 && !self.unsynced && self.expect.iter().all(|e| e.kind == Kind::CopyEnd)
    }

    /// Whether the client has no answer to wait for.
    pub(crate) fn owes_client(&self) -> bool {
        self.unsynced || self.left > 0 || self.expect.iter().any(|e| !e.ours)
    }

    /// What the client waits for, in order.
    pub(crate) fn owed(&self) -> impl Iterator<Item = Kind> + '_ {
        self.expect.iter().filter(|e| !e.ours).map(|e| e.kind)
    }

    /// Whether the answer to something that a Sync has followed tells what statement the client has
    /// by this name.
    pub(crate) fn decides(&self, name: &[u8]) -> bool {
        let about = |e: &Expect| match &e.undo {
            Undo::Parse { whose: Whose::Named(n), .. } | Undo::Parsed(Whose::Named(n)) => {
                **n == *name
            }
            Undo::Close { name: n, .. } => **n == *name,
            _ => false,
        };
        let ends = |e: &Expect| matches!(e.kind, Kind::Sync | Kind::Query);
        let ended = self.expect.iter().rposition(ends).unwrap_or(0);
        self.expect.iter().take(ended).any(about)
    }

    fn coming(&self) -> impl Iterator<Item = Coming> + '_ {
        self.expect.iter().filter_map(|e| match &e.undo {
            Undo::Parse { statement, whose: Whose::Named(name) } => {
                Some((Rc::clone(statement), Some(name.clone())))
            }
            Undo::Parse { statement, .. } => Some((Rc::clone(statement), None)),
            _ => None,
        })
    }

    /// Whether an end of a group is not answered yet.
    pub(crate) fn owes_end(&self) -> bool {
        self.expect.iter().any(|e| matches!(e.kind, Kind::Sync | Kind::Query))
    }

    /// Whether requests were sent that no Sync has followed.
    pub(crate) fn lacks_sync(&self) -> bool {
        self.unsynced || self.skipping
    }

    /// Whether the answer in progress is cut inside a message.
    pub(crate) fn is_inside(&self) -> bool {
        self.left > 0 && self.passing
    }

    /// Answers that the server was not asked for and whose turn has come.
    #[inline]
    pub(crate) fn virtual_answers(&mut self, cuts: &mut Cuts) {
        let due = |e: &Expect| matches!(e.kind, Kind::Parsed | Kind::Closed | Kind::CopyEnd);
        // Not inside of another message.
        if self.left == 0 && self.expect.front().is_some_and(due) {
            self.give_virtual_answers(cuts);
        }
    }

    fn give_virtual_answers(&mut self, cuts: &mut Cuts) {
        while let Some(head) = self.expect.front() {
            match head.kind {
                Kind::Parsed => cuts.own(b"1\0\0\0\x04"),
                Kind::Closed => cuts.own(b"3\0\0\0\x04"),
                Kind::CopyEnd => {}
                _ => return,
            }
            self.expect.pop_front();
        }
    }

    /// From now on nothing of what is owed reaches the client, for whom none of it was done: what is
    /// to be put right.
    pub(crate) fn abandon(&mut self) -> Vec<Undo> {
        self.seen.answered = false;
        self.expect
            .iter_mut()
            .map(|expect| {
                expect.ours = true;
                std::mem::replace(&mut expect.undo, Undo::Nothing)
            })
            .collect()
    }

    /// Walks through bytes of the server: what may pass goes to `cuts`. Returns how many bytes are
    /// done with, and why it stopped there. With `guarded`, it stops before an error that would be
    /// the first thing of an answer that the client sees.
    pub(crate) fn take(
        &mut self,
        input: &[u8],
        cuts: &mut Cuts,
        guarded: bool,
    ) -> Result<(usize, Stop), Error> {
        let mut at = 0;
        loop {
            if self.left > 0 {
                let n = self.left.min(input.len() - at);
                if self.passing {
                    cuts.pass(at, at + n);
                }
                self.left -= n;
                at += n;
                if self.left > 0 {
                    return Ok((at, Stop::More));
                }
            }
            let rest = &input[at..];
            let Some(header) = rest.first_chunk::<HEADER>() else { return Ok((at, Stop::More)) };
            let (tag, len) = (header[0], body_len(header)?);
            self.virtual_answers(cuts);
            let ours = self.expect.front().is_some_and(|e| e.ours);
            let seen = rest.get(HEADER..HEADER + len);
            if seen.is_none() && must_see(tag, len, ours) {
                return Ok((at, Stop::More));
            }
            if let Some(stop) = self.stops(tag, len, seen, guarded) {
                return Ok((at, stop));
            }
            self.passing = self.within_cap(tag, len, seen, ours)?;
            if let Some(instead) = self.instead.take() {
                cuts.own(&instead);
            }
            let n = (HEADER + len).min(rest.len());
            if self.passing {
                cuts.pass(at, at + n);
            }
            self.left = HEADER + len - n;
            at += n;
        }
    }

    fn stops(&self, tag: u8, len: usize, seen: Option<&[u8]>, guarded: bool) -> Option<Stop> {
        let fields = || seen.and_then(|body| Fields::parse(body).ok());
        match tag {
            NOTICE if fields().is_some_and(|f| f.is_cancelled_sync_wait()) => {
                Some(Stop::CancelledWait(HEADER + len))
            }
            ERROR if fields().is_some_and(|f| is_fatal(&f)) => {
                Some(Stop::Fatal(fields().map(|f| f.message().to_owned()).unwrap_or_default()))
            }
            ERROR if guarded && self.is_heard() && (!self.seen.answered || self.to_the_end) => {
                Some(Stop::Refused(fields().map_or(*b"XX000", |f| sqlstate(&f))))
            }
            _ => None,
        }
    }

    /// Whether the client hears of an error at this place: it does if what ends here is its own, even
    /// if the request that failed is not.
    fn is_heard(&self) -> bool {
        let end = self.expect.iter().find(|e| matches!(e.kind, Kind::Sync | Kind::Query));
        end.is_none_or(|e| !e.ours)
    }

    /// Takes note of a message; whether it is passed on.
    fn message(&mut self, tag: u8, seen: Option<&[u8]>, ours: bool) -> Result<bool, Error> {
        let head = self.expect.front().map(|e| e.kind);
        match tag {
            NOTICE => {
                if let Some(Expect {
                    kind: Kind::Parse, undo: Undo::Parse { statement, .. }, ..
                }) = self.expect.front()
                {
                    statement.noisy.set(true);
                }
            }
            DATA_ROW => {
                if ours {
                    self.seen.rows.extend(seen.map(Bytes::copy_from_slice));
                }
                self.seen.answered |= !ours;
                return Ok(!ours);
            }
            READY => return self.ready(seen.unwrap_or_default()),
            ERROR => return self.error(seen),
            PARAMETER => self.parameter(seen.unwrap_or_default())?,
            POSITION => {
                self.seen.position = seen.and_then(Token::parse);
                return Ok(false);
            }
            b'A' => return Ok(self.notification(seen)),
            b'C' | b'I' | b's' => {
                self.seen.answered |= !ours;
                if !ours && matches!(seen, Some(b"DEALLOCATE ALL\0" | b"DISCARD ALL\0")) {
                    self.seen.forgot = Some(self.coming().collect());
                    self.seen.discarded |= seen == Some(b"DISCARD ALL\0");
                }
                if head == Some(Kind::Execute) {
                    self.expect.pop_front();
                }
            }
            b'1' | b'2' | b'3' | b'n' | b'T' => {
                if matches!(
                    (tag, head),
                    (b'1', Some(Kind::Parse))
                        | (b'2', Some(Kind::Bind))
                        | (b'3', Some(Kind::Close))
                        | (b'n' | b'T', Some(Kind::Describe | Kind::DescribeStatement))
                ) && let Some(Expect { undo: Undo::Parse { statement, .. }, .. }) =
                    self.expect.pop_front()
                {
                    statement.proved.set(true);
                }
            }
            COPY_IN | COPY_BOTH => {
                self.seen.answered |= !ours;
                self.copy_in();
            }
            b'H' => self.seen.answered |= !ours,
            _ => {}
        }
        Ok(!ours)
    }

    fn ready(&mut self, body: &[u8]) -> Result<bool, Error> {
        self.status = Status::parse(body)?;
        self.copying = false;
        match self.expect.pop_front() {
            Some(Expect { kind: Kind::Query | Kind::Sync, ours, .. }) => {
                self.seen.ready |= !ours;
                self.seen.ours |= ours;
                Ok(!ours)
            }
            _ => Err(Error::Invalid { what: "a ReadyForQuery that nothing asked for" }),
        }
    }

    fn error(&mut self, body: Option<&[u8]>) -> Result<bool, Error> {
        self.copying = false;
        let code = body.and_then(|b| Fields::parse(b).ok()).map_or(*b"XX000", |f| sqlstate(&f));
        let ours = !self.is_heard();
        let hinted = read_only::hinted(code, body, self.writes_at.as_deref())
            .or_else(|| self.full.clone().filter(|_| code == read_only::CODE));
        if self.expect.front().is_none_or(|e| e.kind == Kind::Query) {
            let passes = self.note_error(ours, code, body);
            self.instead = hinted.filter(|_| passes);
            return Ok(passes && self.instead.is_none());
        }
        let instead = self.expect.front_mut().and_then(|e| e.instead.take()).or(hinted);
        let of_ours = self.expect.front().is_some_and(|e| e.ours);
        loop {
            match self.expect.front_mut() {
                // The server ignores it, and is not ready before it is sent a Sync.
                Some(e) if e.kind == Kind::Query && of_ours => {
                    e.kind = Kind::Sync;
                    self.seen.lacks_sync = true;
                    break;
                }
                // So it does with one that the client sent behind a part of a pipeline that failed; and
                // there is nothing that the client would be told in its place.
                Some(e) if e.kind == Kind::Query => {
                    self.seen.left_out |= !e.ours;
                }
                Some(e) if e.kind == Kind::Sync => break,
                Some(_) => {}
                None => {
                    (self.skipping, self.unsynced) = (true, true);
                    break;
                }
            }
            let undo = self.expect.pop_front().map(|e| e.undo);
            self.seen.undo.extend(undo.filter(|u| !matches!(u, Undo::Nothing)));
        }
        let passes = self.note_error(ours, code, body);
        self.instead = instead.filter(|_| passes);
        Ok(passes && self.instead.is_none())
    }

    fn note_error(&mut self, ours: bool, code: [u8; 5], body: Option<&[u8]>) -> bool {
        if ours {
            self.seen.our_error = Some(Bytes::copy_from_slice(body.unwrap_or_default()));
        } else {
            self.seen.error = Some(code);
            self.seen.answered = true;
        }
        !ours
    }

    /// A notification names the backend that sent it: to its own client, by the client's number.
    fn notification(&mut self, seen: Option<&[u8]>) -> bool {
        let (backend, client) = self.pids;
        let Some((pid, rest)) = seen.and_then(|body| body.split_first_chunk::<4>()) else {
            return true;
        };
        if i32::from_be_bytes(*pid) != backend {
            return true;
        }
        let mut message = BytesMut::new();
        quorate_wire::frame::put(&mut message, b'A', |out| {
            out.put_i32(client);
            out.put_slice(rest);
        });
        self.instead = Some(message.freeze());
        false
    }

    fn parameter(&mut self, mut body: &[u8]) -> Result<(), Error> {
        const WHAT: &str = "a reported setting";
        let name = take_cstr(&mut body, WHAT)?;
        let value = take_cstr(&mut body, WHAT)?;
        self.seen.parameters.push((name.into(), value.into()));
        Ok(())
    }

    /// Copy data is wanted. Syncs that were sent with the statement are swallowed; one after the end
    /// of the data is not.
    fn copy_in(&mut self) {
        if self.expect.front().is_none_or(|e| e.kind == Kind::Query) {
            self.copying = !self.expect.iter().any(|e| e.kind == Kind::CopyEnd);
            return;
        }
        let end = self.expect.iter().position(|e| e.kind == Kind::CopyEnd);
        let mut at = 0;
        let end_at = end.unwrap_or(self.expect.len());
        self.expect.retain(|e| {
            at += 1;
            e.kind != Kind::Sync || at > end_at
        });
        self.copying = end.is_none();
        self.unsynced = !self.expect.iter().any(|e| e.kind == Kind::Sync);
    }
}

/// Whether an error ends the session. The field that no locale translates tells.
fn is_fatal(fields: &Fields<'_>) -> bool {
    matches!(fields.get(b'V'), Some(b"FATAL" | b"PANIC"))
}

fn sqlstate(fields: &Fields<'_>) -> [u8; 5] {
    fields.code().as_bytes().try_into().unwrap_or(*b"XX000")
}

/// Whether a message must be there as a whole before anything is decided about it.
fn must_see(tag: u8, len: usize, ours: bool) -> bool {
    match tag {
        READY | PARAMETER | POSITION => true,
        ERROR | NOTICE | b'A' | b'C' => len <= limits::REPORT_SEEN,
        DATA_ROW => ours,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quorate_wire::frame::put;

    /// A request of a group, with the rows of its answer.
    #[derive(Debug, Clone, Copy)]
    struct Request {
        kind: Kind,
        ours: bool,
        rows: usize,
    }

    /// Requests up to a Sync or a simple query, and which of them fails.
    #[derive(Debug, Clone)]
    struct Group {
        requests: Vec<Request>,
        fails: Option<usize>,
        query: bool,
    }

    fn request() -> impl Strategy<Value = Request> {
        const KINDS: &[Kind] = &[
            Kind::Parse,
            Kind::Parsed,
            Kind::Bind,
            Kind::Describe,
            Kind::Execute,
            Kind::Close,
            Kind::Closed,
        ];
        (proptest::sample::select(KINDS), any::<bool>(), 0..4usize).prop_map(
            |(kind, ours, rows)| {
                // What is not sent is never the gateway's own.
                let ours = ours && !matches!(kind, Kind::Parsed | Kind::Closed);
                Request { kind, ours, rows }
            },
        )
    }

    fn group() -> impl Strategy<Value = Group> {
        let requests = proptest::collection::vec(request(), 0..6);
        let fails = proptest::option::of(0..6usize);
        (requests, fails, any::<bool>()).prop_map(|(requests, fails, query)| {
            // Only the server fails, in what it is sent.
            let sent = |r: &&Request| !matches!(r.kind, Kind::Parsed | Kind::Closed);
            let fails = fails.filter(|at| requests.get(*at).is_some_and(|r| sent(&r)));
            Group { requests, fails, query }
        })
    }

    fn message(out: &mut BytesMut, tag: u8, body: &[u8]) {
        put(out, tag, |out| out.put_slice(body));
    }

    const FAILED: &[u8] = b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0";

    /// What the server says to a request it carries out.
    fn answer(out: &mut BytesMut, request: Request) {
        match request.kind {
            Kind::Parse => message(out, b'1', b""),
            Kind::Bind => message(out, b'2', b""),
            Kind::Describe | Kind::DescribeStatement => message(out, b'n', b""),
            Kind::Close => message(out, b'3', b""),
            Kind::Execute => {
                for i in 0..request.rows {
                    message(out, DATA_ROW, &vec![i as u8; 10 * i + 2]);
                }
                message(out, NOTICE, b"SNOTICE\0VNOTICE\0C00000\0Mby the way\0\0");
                message(out, b'C', b"SELECT 1\0");
            }
            Kind::Parsed | Kind::Closed => {}
            Kind::Query | Kind::CopyEnd | Kind::Sync => unreachable!(),
        }
    }

    /// Everything sent, what the server says, what the client is to get, and what is to be undone.
    struct Story {
        exchange: Exchange,
        server: BytesMut,
        client: BytesMut,
        undo: Vec<Vec<u8>>,
    }

    fn story(groups: &[Group], abandoned: bool) -> Story {
        let mut exchange = Exchange::default();
        let (mut server, mut client) = (BytesMut::new(), BytesMut::new());
        let mut undo = Vec::new();
        // The server leaves out what comes up to the next Sync.
        let mut skips = false;
        for (g, group) in groups.iter().enumerate() {
            let mut ours_failed = false;
            for (i, request) in group.requests.iter().enumerate() {
                let name = vec![g as u8 + 1, i as u8 + 1];
                let noted = Undo::Parsed(Whose::Named(name.clone().into()));
                exchange.sent(request.kind, request.ours, noted);
                if !skips && group.fails == Some(i) {
                    message(&mut server, ERROR, FAILED);
                    message(&mut client, ERROR, FAILED);
                    (skips, ours_failed) = (true, request.ours);
                }
                if skips {
                    undo.push(name);
                    continue;
                }
                answer(&mut server, *request);
                match request.kind {
                    Kind::Parsed => message(&mut client, b'1', b""),
                    Kind::Closed => message(&mut client, b'3', b""),
                    _ if request.ours => {}
                    _ => answer(&mut client, *request),
                }
            }
            let end = if group.query { Kind::Query } else { Kind::Sync };
            exchange.sent(end, false, Undo::Nothing);
            // A query behind a request of ours that failed, or that is ours to see to the end, is given
            // a Sync in its place.
            skips &= group.query && !abandoned && !ours_failed;
            if !skips {
                message(&mut server, READY, b"I");
                message(&mut client, READY, b"I");
            }
        }
        if skips {
            exchange.sent(Kind::Sync, false, Undo::Nothing);
            message(&mut server, READY, b"I");
            message(&mut client, READY, b"I");
        }
        Story { exchange, server, client, undo }
    }

    /// Gives the server's bytes in pieces of these sizes: what the client gets.
    fn taken(exchange: &mut Exchange, server: &[u8], sizes: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut cuts = Cuts::default();
        let mut room = BytesMut::new();
        let mut stash = Vec::new();
        let mut sizes = sizes.iter().cycle();
        let mut rest = server;
        while !rest.is_empty() {
            let n = (*sizes.next().unwrap_or(&usize::MAX)).min(rest.len());
            stash.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
            let (used, stop) = exchange.take(&stash, &mut cuts, false).unwrap();
            assert_eq!(stop, Stop::More);
            exchange.virtual_answers(&mut cuts);
            room.clear();
            out.extend_from_slice(cuts.join(&stash, &mut room));
            cuts.clear();
            stash.drain(..used);
        }
        assert!(stash.is_empty(), "everything is done with");
        out
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(
            groups in proptest::collection::vec(group(), 0..5),
            sizes in proptest::collection::vec(1..40usize, 1..6),
        ) {
            for sizes in [&sizes[..], &[usize::MAX], &[1]] {
                let mut story = story(&groups, false);
                let out = taken(&mut story.exchange, &story.server, sizes);
                prop_assert_eq!(&out[..], &story.client[..]);
                prop_assert!(story.exchange.is_quiet() && !story.exchange.owes_client());
                let undone: Vec<Vec<u8>> = story
                    .exchange
                    .seen
                    .undo
                    .iter()
                    .map(|undo| match undo {
                        Undo::Parsed(Whose::Named(name)) => name.to_vec(),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                prop_assert_eq!(&undone, &story.undo);
            }
        }

        #[test]
        fn what_is_abandoned_never_reaches_the_client(
            groups in proptest::collection::vec(group(), 1..4),
            sizes in proptest::collection::vec(1..40usize, 1..6),
        ) {
            let mut story = story(&groups, true);
            let all: usize = groups.iter().map(|g| g.requests.len()).sum();
            let undo = story.exchange.abandon();
            let named = undo.iter().filter(|u| matches!(u, Undo::Parsed(_))).count();
            prop_assert_eq!(named, all);
            let mut out = taken(&mut story.exchange, &story.server, &sizes);
            // What was not sent to the server has nothing to be abandoned from.
            out.retain(|b| !matches!(b, b'1' | b'3' | 0 | 4));
            prop_assert_eq!(&out[..], b"");
            prop_assert!(story.exchange.is_quiet());
        }
    }

    #[test]
    fn a_guarded_answer_stops_before_its_error_only() {
        let groups = |rows| {
            let request = |kind| Request { kind, ours: false, rows };
            let requests = vec![request(Kind::Parse), request(Kind::Execute), request(Kind::Bind)];
            [Group { requests, fails: Some(if rows > 0 { 2 } else { 0 }), query: false }]
        };
        let mut early = story(&groups(0), false);
        let mut cuts = Cuts::default();
        let (used, stop) = early.exchange.take(&early.server, &mut cuts, true).unwrap();
        assert_eq!((used, stop), (0, Stop::Refused(*b"22012")));
        let mut late = story(&groups(1), false);
        let (used, stop) = late.exchange.take(&late.server, &mut cuts, true).unwrap();
        assert_eq!((used, stop), (late.server.len(), Stop::More));
    }

    #[test]
    fn words_that_no_client_may_see_stop_the_walk() {
        let notice = b"SWARNING\0VWARNING\0C01000\0Mcancelled\0Fsyncrep.c\0L281\0\
            RSyncRepWaitForLSN\0\0";
        let mut exchange = Exchange::default();
        exchange.sent(Kind::Query, false, Undo::Nothing);
        let mut server = BytesMut::new();
        message(&mut server, NOTICE, notice);
        let len = server.len();
        message(&mut server, ERROR, b"SFATAL\0VFATAL\0C57P01\0Mgoing down\0\0");
        let mut cuts = Cuts::default();
        for n in 0..len {
            let (used, stop) = exchange.take(&server[..n], &mut cuts, false).unwrap();
            assert_eq!((used, stop), (0, Stop::More), "not before all of it is there");
        }
        let (used, stop) = exchange.take(&server, &mut cuts, false).unwrap();
        assert_eq!((used, stop), (0, Stop::CancelledWait(len)));
        let (used, stop) = exchange.take(&server[len..], &mut cuts, false).unwrap();
        assert_eq!((used, stop), (0, Stop::Fatal("going down".to_owned())));
        assert!(cuts.is_empty());
    }
}
