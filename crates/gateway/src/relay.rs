//! A client and a server, linked for a transaction: bytes to and fro until both are quiet.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use quorate_wire::backend::Status;
use quorate_wire::frame::put;

use crate::cap::TooLarge;
use crate::client::Client;
use crate::exchange::{Coming, Kind, SpareCuts, Stop, Undo, Whose};
use crate::gate::Verdict;
use crate::io::{Scratch, consume};
use crate::limits;
use crate::server::Server;
use crate::timing::Micros;
use crate::upstream::Up;
use crate::worker::Worker;
use crate::{cancel, cap};

/// Why a relay stopped.
#[derive(Debug)]
pub(crate) enum Event {
    /// Everything is answered and no transaction is open.
    Quiet,
    /// The client left.
    ClientLeft,
    /// What the client sends is not the protocol.
    ClientBroken(quorate_wire::Error),
    /// The server's stream ended or failed.
    ServerLost(String),
    /// The server is not any more what it was when the connection was opened.
    Cut,
    /// The lease ran out: what the server said is kept back (R12).
    Hold,
    /// A commit stopped waiting for its copies; the word of it is this long.
    CancelledWait(usize),
    /// What the client sends next does not belong on a replica.
    Elsewhere,
    /// The first thing the server said is an error with this SQLSTATE; it was not passed on.
    Refused([u8; 5]),
}

/// A client and a server.
pub(crate) struct Relay<'a> {
    pub(crate) client: &'a mut Client,
    pub(crate) server: &'a mut Server,
    pub(crate) worker: &'a Rc<Worker>,
    /// Nothing of the answer is passed on before it has surely begun.
    pub(crate) guarded: bool,
    /// Bytes that are kept back at the most until the answer has surely begun.
    pub(crate) held_max: usize,
    /// A group was passed on; the next one may have to go elsewhere.
    pub(crate) one_at_a_time: bool,
    /// A part of the group under way was passed on, or it was looked at before.
    pub(crate) looked_at: bool,
    /// A group's end was passed on.
    pub(crate) asked: bool,
    /// A group's end was passed on, and is not answered yet.
    pausing: bool,
    /// Bytes of the client that were handled.
    pub(crate) consumed: usize,
    /// The statement of the group under way may want copy data: nothing may be sent behind it.
    pub(crate) copies: bool,
    /// What the client sent next waits until everything is answered.
    pub(crate) barrier: bool,
    /// So it is once the group under way has ended.
    pub(crate) barrier_due: bool,
    /// A statement of the guarded group was taken over from what the server had prepared before.
    pub(crate) reused: Vec<Rc<crate::statements::Statement>>,
    /// The statement under way is being cancelled.
    cancelling: bool,
    /// When the server said something first of the transaction under way.
    pub(crate) first: Option<Micros>,
    /// The time, as far as it was asked for since this was polled last.
    pub(crate) stamp: Option<Micros>,
    cuts: SpareCuts,
    room: BytesMut,
    followed: bool,
}

/// How a connection to a server ended, for its client.
fn ended(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

impl<'a> Relay<'a> {
    pub(crate) fn new(
        client: &'a mut Client,
        server: &'a mut Server,
        worker: &'a Rc<Worker>,
        guarded: bool,
        one_at_a_time: bool,
    ) -> Self {
        server.exchange.pids = (server.key.pid, client.handle.id as i32);
        Self {
            client,
            server,
            worker,
            guarded,
            held_max: limits::HELD_MAX,
            one_at_a_time,
            looked_at: true,
            asked: false,
            pausing: false,
            consumed: 0,
            copies: false,
            barrier: false,
            barrier_due: false,
            reused: Vec::new(),
            cancelling: false,
            first: None,
            stamp: None,
            cuts: SpareCuts::take(),
            room: BytesMut::new(),
            followed: false,
        }
    }

    /// Passes bytes until something happens.
    pub(crate) async fn run(&mut self) -> Event {
        self.followed = false;
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if !self.followed {
            self.server.reins.follow(cx.waker());
            self.followed = true;
        }
        self.stamp = None;
        let mut scratch = Scratch::take();
        loop {
            if self.server.reins.is_cut() {
                return Poll::Ready(Event::Cut);
            }
            let down = match self.down(cx, &mut scratch) {
                Ok(moved) => moved,
                Err(event) => return Poll::Ready(event),
            };
            if self.asked && self.is_quiet() {
                return Poll::Ready(Event::Quiet);
            }
            let up = match self.up(cx, &mut scratch) {
                Ok(moved) => moved,
                Err(event) => return Poll::Ready(event),
            };
            if !down && !up {
                return Poll::Pending;
            }
        }
    }

    /// Whether the transaction is over and nothing is owed.
    fn is_quiet(&self) -> bool {
        self.server.exchange.is_quiet()
            && self.server.exchange.status == Status::Idle
            && self.client.left == 0
            && self.server.end.out.is_empty()
    }

    /// Server to client: whether anything moved.
    fn down(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Event> {
        match self.client.end.poll_drain(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Err(Event::ClientLeft),
            Poll::Pending if self.client.end.out.len() > limits::PENDING_MAX => return Ok(false),
            Poll::Pending => {}
        }
        if !self.server.end.stash.is_empty() && self.stashed(cx)? {
            return Ok(true);
        }
        let n = match self.server.end.io.poll_read(cx, scratch) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => return Err(Event::ServerLost("it closed the connection".into())),
            Poll::Ready(Err(error)) => return Err(Event::ServerLost(ended(&error))),
            Poll::Ready(Ok(n)) => n,
        };
        if self.server.end.stash.is_empty() {
            let used = self.answers(cx, &scratch[..n])?;
            self.server.end.stash.extend_from_slice(&scratch[used..n]);
        } else {
            self.server.end.stash.extend_from_slice(&scratch[..n]);
            self.stashed(cx)?;
        }
        Ok(true)
    }

    /// Handles what is stashed of the server; whether any of it could be.
    fn stashed(&mut self, cx: &mut Context<'_>) -> Result<bool, Event> {
        let stash = std::mem::take(&mut self.server.end.stash);
        let used = self.answers(cx, &stash);
        self.server.end.stash = stash;
        match used {
            Ok(used) => {
                consume(&mut self.server.end.stash, used);
                self.server.end.slim();
                Ok(used > 0)
            }
            Err(event) => Err(event),
        }
    }

    /// Handles bytes of the server; how many of them are done with. An event that leaves bytes
    /// undone has put them into the stash.
    fn answers(&mut self, cx: &mut Context<'_>, input: &[u8]) -> Result<usize, Event> {
        // R12: asked after PostgreSQL produced the bytes, before they leave.
        if let Some(fence) = &self.server.fence {
            match fence.check() {
                Verdict::Pass => {}
                Verdict::Hold => return Err(self.keep(input, Event::Hold)),
                Verdict::Cut => return Err(Event::Cut),
            }
        }
        if self.first.is_none() && self.client.began.is_some() {
            self.first = Some(self.now());
        }
        let exchange = &mut self.server.exchange;
        let (used, stop) = match exchange.take(input, &mut self.cuts, self.guarded) {
            Ok(taken) => taken,
            Err(error) => return Err(Event::ServerLost(error.to_string())),
        };
        exchange.virtual_answers(&mut self.cuts);
        let sent = self.reply(cx, input);
        self.cuts.clear();
        sent.map_err(|_| Event::ClientLeft)?;
        self.settle_seen();
        match stop {
            Stop::More => Ok(used),
            Stop::Fatal(why) => Err(Event::ServerLost(why)),
            Stop::Refused(code) => Err(self.keep(&input[used..], Event::Refused(code))),
            Stop::CancelledWait(len) => Err(self.keep(&input[used..], Event::CancelledWait(len))),
        }
    }

    /// Stashes what an event leaves undone.
    fn keep(&mut self, rest: &[u8], event: Event) -> Event {
        self.server.end.stash = BytesMut::from(rest);
        event
    }

    /// Sends what the cuts say, or keeps it back while the answer has not surely begun.
    fn reply(&mut self, cx: &mut Context<'_>, input: &[u8]) -> io::Result<()> {
        let exchange = &mut self.server.exchange;
        let begun = exchange.seen.ready
            || exchange.seen.answered && !exchange.to_the_end
            || self.client.held.len() > self.held_max;
        if self.guarded && begun {
            self.guarded = false;
            exchange.to_the_end = false;
            self.worker.keep_spare(std::mem::take(&mut self.client.replay));
        }
        if self.cuts.is_empty() && (self.guarded || self.client.held.is_empty()) {
            return Ok(());
        }
        self.room.clear();
        let bytes = self.cuts.join(input, &mut self.room);
        if self.guarded {
            self.client.held.extend_from_slice(bytes);
            return Ok(());
        }
        if !self.client.held.is_empty() {
            let held = std::mem::take(&mut self.client.held);
            // One write for both where that is cheap.
            if held.len() + bytes.len() <= limits::CHUNK {
                let mut both = held;
                both.extend_from_slice(bytes);
                return self.client.end.send(cx, &both);
            }
            self.client.end.send(cx, &held)?;
        }
        self.client.end.send(cx, bytes)
    }

    /// Takes note of what the server said by the way.
    fn settle_seen(&mut self) {
        let seen = &mut self.server.exchange.seen;
        if seen.ready {
            seen.answered = false;
            self.pausing = false;
        }
        let mut goes_on = false;
        if std::mem::take(&mut seen.ready) | std::mem::take(&mut seen.ours) {
            let quiet = self.server.exchange.is_quiet();
            self.barrier &= !quiet;
            goes_on = quiet && self.server.exchange.status != Status::Idle;
        }
        let seen = &mut self.server.exchange.seen;
        if let Some(coming) = seen.forgot.take() {
            self.client.block.discarded |= std::mem::take(&mut seen.discarded);
            self.forget_statements(&coming);
        }
        let seen = &mut self.server.exchange.seen;
        if let Some(what) = seen.too_large.take() {
            self.too_large(what);
        }
        let seen = &mut self.server.exchange.seen;
        if !seen.parameters.is_empty() {
            self.server.note_reported();
        }
        let seen = &mut self.server.exchange.seen;
        seen.our_error = None;
        // The only rows of ours here are transaction ids: two bytes of count, four of length.
        for row in std::mem::take(&mut seen.rows) {
            let xid = row.get(6..).and_then(number);
            self.client.block.xid = self.client.block.xid.or(xid);
            self.client.block.xid_due = self.client.block.xid_due.saturating_sub(1);
        }
        if goes_on {
            // Behind the ids: those are of what ended.
            self.client.block.goes_on();
        }
        if std::mem::take(&mut seen.left_out) {
            // No answer is to come for which anything would have to wait.
            (self.pausing, self.barrier) = (false, false);
        }
        if std::mem::take(&mut seen.lacks_sync) {
            put(&mut self.server.end.out, b'S', |_| {});
        }
        if let Some(position) = seen.position.take() {
            self.client.block.position = Some(position);
        }
        if let Some(code) = seen.error.take() {
            self.client.block.failed = true;
            // Whether it is there depends on where in a pipeline the error was.
            self.server.unnamed = None;
            if crate::aftermath::is_stale(code) {
                self.reused.iter().for_each(|s| self.server.prepared.doubt(s));
            }
        }
        if !seen.undo.is_empty() {
            let undo = std::mem::take(&mut seen.undo);
            self.undo(undo);
        }
    }

    /// A result is larger than allowed: the server is to end it, or the block that it was in.
    fn too_large(&mut self, what: TooLarge) {
        match what {
            TooLarge::Cancel => {
                self.cancelling = true;
                cancel::statement(self.worker, &self.server.linked);
            }
            TooLarge::Fail => {
                self.server.exchange.sent(Kind::Query, false, Undo::Nothing);
                put(&mut self.server.end.out, b'Q', |out| {
                    out.extend_from_slice(cap::FAILS);
                    out.extend_from_slice(b"\0");
                });
            }
        }
    }

    /// The server has forgotten every statement but those that it was told to prepare since.
    fn forget_statements(&mut self, coming: &[Coming]) {
        let named = |n: &[u8]| coming.iter().any(|(_, name)| name.as_deref() == Some(n));
        self.client.statements.retain(|name, _| named(name));
        self.server.forget_statements();
        coming.iter().for_each(|(statement, _)| self.server.prepared.insert(statement));
    }

    /// Puts right what requests did that were not carried out.
    fn undo(&mut self, undo: Vec<Undo>) {
        for undo in undo {
            match undo {
                Undo::Nothing => {}
                Undo::Parse { statement, whose } => {
                    self.server.prepared.perhaps(&statement);
                    self.forget(whose);
                }
                Undo::Closed(statement) => self.server.prepared.perhaps(&statement),
                Undo::Parsed(whose) => self.forget(whose),
                Undo::Close { name, statement } => {
                    self.client.statements.insert(name, statement);
                }
            }
        }
    }

    /// The client does not have a statement after all.
    fn forget(&mut self, whose: Whose) {
        match whose {
            Whose::Ours => {}
            // A later one may have been sent meanwhile.
            Whose::Unnamed(which) if which < self.client.unnamed_count => {}
            Whose::Unnamed(_) => self.client.unnamed = None,
            Whose::Named(name) => drop(self.client.statements.remove(&name)),
        }
    }

    /// Forgets the attempt: nothing of what was sent reaches the client. Everything that was asked
    /// will be asked again.
    pub(crate) fn rewind(&mut self) {
        self.client.held.clear();
        self.guarded = false;
        self.server.exchange.to_the_end = false;
        let undo = self.server.exchange.abandon();
        self.undo(undo);
        // Whether it is there depends on what became of the attempt.
        self.server.unnamed = None;
        let mut again = std::mem::take(&mut self.client.replay);
        // What of it was not passed on is still there.
        let left = again.len().saturating_sub(self.consumed).min(self.client.end.stash.len());
        consume(&mut self.client.end.stash, left);
        again.extend_from_slice(&self.client.end.stash);
        self.client.end.stash = again;
    }

    /// Client to server: whether anything moved.
    fn up(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Event> {
        let lost = |error: io::Error| Event::ServerLost(error.to_string());
        match self.server.end.poll_drain(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return self.last_words(error),
            Poll::Pending => return Ok(false),
        }
        if self.cancelling {
            // It must not hit what comes next.
            if self.server.reins.cancels.get() > 0 {
                return Ok(false);
            }
            self.cancelling = false;
        }
        // What has begun is passed to its end: no answer comes before.
        if self.is_barred() && self.client.left == 0 || self.waits_for_end() {
            return self.listen(cx, scratch);
        }
        let mut moved = false;
        if !self.client.end.stash.is_empty() {
            let stash = std::mem::take(&mut self.client.end.stash);
            let up = self.requests(&stash);
            self.client.end.stash = stash;
            let used = up?;
            consume(&mut self.client.end.stash, used);
            self.client.end.slim();
            moved = used > 0;
        }
        // A question of ours goes first.
        if !moved && self.server.end.out.is_empty() {
            let n = match self.client.end.io.poll_read(cx, scratch) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0) | Err(_)) => return Err(Event::ClientLeft),
                Poll::Ready(Ok(n)) => n,
            };
            moved = true;
            if self.client.end.stash.is_empty() {
                let up = self.requests(&scratch[..n]);
                let used = if let Err(Event::Elsewhere) = up { 0 } else { up? };
                self.client.end.stash.extend_from_slice(&scratch[used..n]);
            } else {
                self.client.end.stash.extend_from_slice(&scratch[..n]);
            }
        }
        match self.server.end.poll_drain(cx) {
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(error)) => return Err(lost(error)),
        }
        self.server.exchange.virtual_answers(&mut self.cuts);
        if !self.cuts.is_empty() {
            let sent = self.reply(cx, &[]);
            self.cuts.clear();
            sent.map_err(|_| Event::ClientLeft)?;
        }
        Ok(moved)
    }

    /// Hears of a client that leaves while its next group would wait; whether it said something
    /// instead.
    fn listen(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Event> {
        if !self.client.end.stash.is_empty() {
            return Ok(false);
        }
        match self.client.end.io.poll_read(cx, scratch) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0) | Err(_)) => Err(Event::ClientLeft),
            Poll::Ready(Ok(n)) => {
                self.client.end.stash.extend_from_slice(&scratch[..n]);
                Ok(true)
            }
        }
    }

    fn now(&mut self) -> Micros {
        *self.stamp.get_or_insert_with(|| self.worker.micros())
    }

    /// A group's end is passed on.
    pub(crate) fn ends_group(&mut self) {
        self.asked = true;
        self.looked_at = false;
        self.pausing = true;
        self.barrier |= std::mem::take(&mut self.barrier_due);
    }

    /// Whether what the client sent next waits for answers. Copy data is what they wait for.
    pub(crate) fn is_barred(&self) -> bool {
        self.barrier && !self.server.exchange.wants_copy_data()
    }

    /// Whether a group has to be answered before the next one is looked at.
    pub(crate) fn pauses(&self) -> bool {
        (self.one_at_a_time || self.guarded)
            && self.pausing
            && !self.server.exchange.wants_copy_data()
    }

    /// Whether the next group waits, because it may belong to another server.
    fn waits_for_end(&self) -> bool {
        self.pauses() && self.client.left == 0
    }

    fn requests(&mut self, input: &[u8]) -> Result<usize, Event> {
        match self.upstream(input) {
            Ok((0, Up::Elsewhere)) => Err(Event::Elsewhere),
            // What comes before such a group is done with; it is looked at again.
            Ok((used, Up::More | Up::Elsewhere)) => {
                self.consumed += used;
                if used > 0 && self.client.began.is_none() {
                    self.client.began = Some(self.now());
                }
                Ok(used)
            }
            Ok((_, Up::Left)) => Err(Event::ClientLeft),
            Err(error) => Err(Event::ClientBroken(error)),
        }
    }

    /// The server takes nothing any more; what it said last is read first.
    fn last_words(&mut self, error: io::Error) -> Result<bool, Event> {
        self.server.end.out.clear();
        Err(Event::ServerLost(error.to_string()))
    }
}

/// A number in text form.
fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
