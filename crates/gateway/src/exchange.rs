//! What a server owes: the answers to everything it was sent, in order, and what becomes of each.
//!
//! Pure. A relay that adds messages of its own (statements prepared again, settings made again) and
//! leaves others out (a statement that the server has already) must know to which request each
//! answer belongs. Requests are noted when they are sent; each message of the server is then passed
//! on, left out, or preceded by an answer that the server was not asked for.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_wire::Error;
use quorate_wire::backend::{COPY_BOTH, COPY_IN, DATA_ROW, ERROR, Fields, NOTICE, READY, Status};
use quorate_wire::frame::{HEADER, body_len, take_cstr};

use crate::limits;
use crate::login::Wish;
use crate::statements::Statement;
use crate::world::Token;

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
    /// For the client, without a name.
    Unnamed,
    /// For the client, by this name.
    Named(Box<[u8]>),
}

/// What is to be put right when a request turns out not to have been carried out.
#[derive(Debug)]
pub(crate) enum Undo {
    Nothing,
    /// The server does not have this statement, and the client does not.
    Parse {
        statement: Rc<Statement>,
        whose: Whose,
    },
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
}

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
    /// A message that goes in place of the one at hand.
    instead: Option<Bytes>,
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
            instead: None,
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

    /// Whether requests were sent that no Sync has followed.
    pub(crate) fn lacks_sync(&self) -> bool {
        self.unsynced || self.skipping
    }

    /// Whether the answer in progress is cut inside a message.
    pub(crate) fn is_inside(&self) -> bool {
        self.left > 0 && self.passing
    }

    /// Answers that the server was not asked for and whose turn has come.
    pub(crate) fn virtual_answers(&mut self, cuts: &mut Cuts) {
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
            if let Some(stop) = self.stops(tag, len, seen, guarded, ours) {
                return Ok((at, stop));
            }
            self.passing = self.message(tag, seen, ours)?;
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

    fn stops(
        &self,
        tag: u8,
        len: usize,
        seen: Option<&[u8]>,
        guarded: bool,
        ours: bool,
    ) -> Option<Stop> {
        let fields = || seen.and_then(|body| Fields::parse(body).ok());
        match tag {
            NOTICE if fields().is_some_and(|f| f.is_cancelled_sync_wait()) => {
                Some(Stop::CancelledWait(HEADER + len))
            }
            ERROR if fields().is_some_and(|f| is_fatal(&f)) => {
                Some(Stop::Fatal(fields().map(|f| f.message().to_owned()).unwrap_or_default()))
            }
            ERROR if guarded && !ours && !self.seen.answered => {
                Some(Stop::Refused(fields().map_or(*b"XX000", |f| sqlstate(&f))))
            }
            _ => None,
        }
    }

    /// Takes note of a message; whether it is passed on.
    fn message(&mut self, tag: u8, seen: Option<&[u8]>, ours: bool) -> Result<bool, Error> {
        let head = self.expect.front().map(|e| e.kind);
        match tag {
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
                        | (b'n' | b'T', Some(Kind::Describe))
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
        if self.expect.front().is_none_or(|e| e.kind == Kind::Query) {
            let ours = self.expect.front().is_some_and(|e| e.ours);
            return Ok(self.note_error(ours, code, body));
        }
        let mut ours = false;
        let instead = self.expect.front_mut().and_then(|e| e.instead.take());
        loop {
            match self.expect.front() {
                Some(e) if matches!(e.kind, Kind::Sync | Kind::Query) => {
                    ours = e.ours;
                    break;
                }
                Some(_) => {}
                None => {
                    self.skipping = true;
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
        ERROR | NOTICE | b'A' => len <= limits::REPORT_SEEN,
        DATA_ROW => ours,
        _ => false,
    }
}

/// Which bytes of an input go on, and what goes between them.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    pieces: Vec<Piece>,
    own: BytesMut,
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Input(usize, usize),
    Own(usize, usize),
}

impl Cuts {
    fn pass(&mut self, from: usize, to: usize) {
        match self.pieces.last_mut() {
            Some(Piece::Input(_, end)) if *end == from => *end = to,
            _ if from == to => {}
            _ => self.pieces.push(Piece::Input(from, to)),
        }
    }

    /// A message of ours goes here.
    pub(crate) fn own(&mut self, message: &[u8]) {
        let from = self.own.len();
        self.own.put_slice(message);
        self.pieces.push(Piece::Own(from, self.own.len()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The bytes as one slice; `room` holds them where they are not one already.
    pub(crate) fn join<'a>(&'a self, input: &'a [u8], room: &'a mut BytesMut) -> &'a [u8] {
        if let [Piece::Input(from, to)] = self.pieces[..] {
            return &input[from..to];
        }
        for piece in &self.pieces {
            room.put_slice(match *piece {
                Piece::Input(from, to) => &input[from..to],
                Piece::Own(from, to) => &self.own[from..to],
            });
        }
        room
    }

    /// Forgets everything and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.own.clear();
    }
}

thread_local! {
    static SPARE: Cell<Option<Cuts>> = const { Cell::new(None) };
}

/// Cuts whose memory is used again.
#[derive(Debug)]
pub(crate) struct SpareCuts(Cuts);

impl SpareCuts {
    pub(crate) fn take() -> Self {
        Self(SPARE.with(Cell::take).unwrap_or_default())
    }
}

impl Drop for SpareCuts {
    fn drop(&mut self) {
        self.0.clear();
        SPARE.with(|spare| spare.set(Some(std::mem::take(&mut self.0))));
    }
}

impl std::ops::Deref for SpareCuts {
    type Target = Cuts;

    fn deref(&self) -> &Cuts {
        &self.0
    }
}

impl std::ops::DerefMut for SpareCuts {
    fn deref_mut(&mut self) -> &mut Cuts {
        &mut self.0
    }
}
