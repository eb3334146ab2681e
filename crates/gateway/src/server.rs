//! A connection to a PostgreSQL server: how it is opened, what it has, and questions of our own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use quorate_core::{NodeId, Term};
use quorate_wire::backend::{AUTHENTICATION, ERROR, Fields, KEY_DATA, READY, Status};
use quorate_wire::frame::{self, put, take_cstr};
use quorate_wire::{CancelKey, Startup};

use crate::client::Linked;
use crate::exchange::{Cuts, Exchange, Kind, Stop, Undo};
use crate::fence::Fence;
use crate::io::{End, Io, Scratch};
use crate::limits;
use crate::pool::Place;
use crate::settings::Settings;
use crate::statements::{Prepared, Statement};
use crate::upstream::{XID_QUERY, XID_STATEMENT};

/// What a server does in the cluster, as its connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Takes writes in this term.
    Writer(Term),
    /// Serves reads.
    Replica,
}

/// The part of a connection that others reach while it is in use.
#[derive(Default)]
pub(crate) struct Reins {
    /// The connection is to end: what it leads to is not what it was opened to.
    cut: Cell<bool>,
    waker: Cell<Option<Waker>>,
    /// Cancel requests under way; the connection serves nobody else meanwhile.
    pub(crate) cancels: Cell<u32>,
}

impl Reins {
    pub(crate) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Ends the connection.
    pub(crate) fn cut(&self) {
        self.cut.set(true);
        self.wake();
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whom to wake.
    pub(crate) fn follow(&self, waker: &Waker) {
        self.waker.set(Some(waker.clone()));
    }
}

/// Settings that a server reports to its clients.
pub(crate) type Reported = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A connection to a server.
pub(crate) struct Server {
    pub(crate) end: End,
    pub(crate) exchange: Exchange,
    pub(crate) node: NodeId,
    pub(crate) part: Part,
    /// Whether it is on this host.
    pub(crate) here: bool,
    pub(crate) fence: Option<Fence>,
    pub(crate) reins: Rc<Reins>,
    pub(crate) key: CancelKey,
    /// The same for whoever is linked to it.
    pub(crate) linked: Rc<Linked>,
    pub(crate) prepared: Prepared,
    /// The statement without a name.
    pub(crate) unnamed: Option<Rc<Statement>>,
    pub(crate) applied: Rc<Settings>,
    pub(crate) reported: Reported,
    /// Whether the statement that asks for the transaction id is prepared.
    pub(crate) asks_xid: bool,
    /// Milliseconds of the worker's clock.
    pub(crate) opened: u64,
    pub(crate) used: u64,
    /// It served before, and may have died while nobody looked.
    pub(crate) pooled: bool,
    /// Its transactions only read for now, and nobody who uses it has said so.
    pub(crate) forced: bool,
    /// Which start of the server it leads to; for replicas.
    pub(crate) incarnation: u64,
    /// Given up with the connection.
    pub(crate) place: Option<Place>,
}

/// Why a connection cannot be had or used any more.
#[derive(Debug)]
pub(crate) enum Gone {
    /// The stream failed or ended.
    Lost(String),
    /// The server refused, in its own words: the body of an ErrorResponse.
    Refused(Bytes),
}

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        Gone::Lost(error.to_string())
    }
}

impl From<quorate_wire::Error> for Gone {
    fn from(error: quorate_wire::Error) -> Self {
        Gone::Lost(error.to_string())
    }
}

impl Gone {
    /// For logs.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Gone::Lost(why) => why.clone(),
            Gone::Refused(body) => match Fields::parse(body) {
                Ok(fields) => format!("{} ({})", fields.message(), fields.code()),
                Err(error) => error.to_string(),
            },
        }
    }
}

/// The answer to a question of ours.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Bodies of DataRow messages.
    pub(crate) rows: Vec<Bytes>,
    /// The body of an ErrorResponse.
    pub(crate) error: Option<Bytes>,
}

impl Answer {
    /// A column of a row: `None` when it is null or not there.
    pub(crate) fn column(&self, row: usize, column: usize) -> Option<&[u8]> {
        let mut body: &[u8] = self.rows.get(row)?.get(2..)?;
        for i in 0.. {
            let (len, rest) = body.split_first_chunk::<4>()?;
            let len = i32::from_be_bytes(*len);
            let value = usize::try_from(len).ok();
            if i == column {
                return rest.get(..value?);
            }
            body = rest.get(value.unwrap_or(0)..)?;
        }
        None
    }

    /// The error as a sentence.
    pub(crate) fn failed(&self) -> Option<String> {
        self.error.clone().map(|body| Gone::Refused(body).sentence())
    }
}

impl Server {
    /// Logs in. The server asks for no password: whoever reaches its socket is one of us.
    pub(crate) async fn open(
        io: Io,
        (node, part, fence): (NodeId, Part, Option<Fence>),
        startup: &Startup,
        here: bool,
        now: u64,
    ) -> Result<Self, Gone> {
        let reins = Rc::<Reins>::default();
        let none = CancelKey { pid: 0, secret: Bytes::new() };
        let linked = Linked { reins: Rc::clone(&reins), key: none.clone(), node, here };
        let mut server = Self {
            end: End::new(io),
            exchange: Exchange::default(),
            node,
            part,
            here,
            fence,
            reins,
            key: none,
            linked: Rc::new(linked),
            prepared: Prepared::default(),
            unnamed: None,
            applied: Rc::default(),
            reported: Reported::new(),
            asks_xid: false,
            opened: now,
            used: now,
            pooled: false,
            forced: false,
            incarnation: 0,
            place: None,
        };
        server.end.out.extend_from_slice(&startup.encode());
        server.end.drain().await?;
        server.greeted().await?;
        server.linked = Rc::new(Linked {
            reins: Rc::clone(&server.reins),
            key: server.key.clone(),
            node,
            here,
        });
        server.end.slim();
        Ok(server)
    }

    /// Reads everything up to the first ReadyForQuery.
    async fn greeted(&mut self) -> Result<(), Gone> {
        loop {
            let Some(message) = frame::take(&mut self.end.stash, limits::GREETING_MAX)? else {
                if self.end.fill().await? == 0 {
                    return Err(Gone::Lost("the server closed the connection".to_owned()));
                }
                continue;
            };
            match message.tag {
                AUTHENTICATION if message.body[..] == [0; 4] => {}
                AUTHENTICATION => {
                    let why = "the server asks for a password on its private socket";
                    return Err(Gone::Lost(why.to_owned()));
                }
                ERROR => return Err(Gone::Refused(message.body)),
                KEY_DATA => self.key = CancelKey::parse(&message.body)?,
                b'S' => {
                    let mut body = &message.body[..];
                    let name = take_cstr(&mut body, "a reported setting")?;
                    let value = take_cstr(&mut body, "a reported setting")?;
                    self.reported.insert(name.into(), value.into());
                }
                READY => return Ok(()),
                _ => {}
            }
        }
    }

    /// Asks a question of our own, as a simple query. Nothing else may be under way.
    pub(crate) async fn ask(&mut self, sql: &[u8]) -> Result<Answer, Gone> {
        put(&mut self.end.out, b'Q', |out| {
            out.extend_from_slice(sql);
            out.extend_from_slice(b"\0");
        });
        self.unnamed = None;
        self.exchange.sent(Kind::Query, true, Undo::Nothing);
        let answer = tokio::time::timeout(limits::QUESTION_WAIT, self.settle()).await;
        answer.map_err(|_| Gone::Lost("the server does not answer the gateway".to_owned()))?
    }

    /// Reads until nothing is owed any more, of answers that are all ours.
    pub(crate) async fn settle(&mut self) -> Result<Answer, Gone> {
        self.exchange.seen.rows.clear();
        self.exchange.seen.our_error = None;
        self.end.drain().await?;
        let mut cuts = Cuts::default();
        while !self.exchange.is_quiet() {
            let ended = self.step(&mut cuts).await?;
            cuts.clear();
            if ended {
                return Err(Gone::Lost("the server closed the connection".to_owned()));
            }
            if std::mem::take(&mut self.exchange.seen.lacks_sync) {
                put(&mut self.end.out, b'S', |_| {});
                self.end.drain().await?;
            }
        }
        self.note_reported();
        let seen = &mut self.exchange.seen;
        seen.ours = false;
        Ok(Answer { rows: std::mem::take(&mut seen.rows), error: seen.our_error.take() })
    }

    /// Reads once; whether the stream ended.
    async fn step(&mut self, cuts: &mut Cuts) -> Result<bool, Gone> {
        std::future::poll_fn(|cx| {
            if self.reins.is_cut() {
                return Poll::Ready(Ok(true));
            }
            self.reins.follow(cx.waker());
            let mut scratch = Scratch::take();
            let n = match self.end.io.poll_read(cx, &mut scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(n) => n?,
            };
            self.end.stash.extend_from_slice(&scratch[..n]);
            loop {
                let (used, stop) = self.exchange.take(&self.end.stash, cuts, false)?;
                bytes::Buf::advance(&mut self.end.stash, used);
                match stop {
                    // What is behind it may be all that ever comes.
                    Stop::CancelledWait(len) if self.end.stash.len() >= len => {
                        bytes::Buf::advance(&mut self.end.stash, len);
                    }
                    Stop::Fatal(why) => return Poll::Ready(Err(Gone::Lost(why))),
                    Stop::More | Stop::CancelledWait(_) | Stop::Refused(_) => break,
                }
            }
            self.end.slim();
            Poll::Ready(Ok(n == 0))
        })
        .await
    }

    /// Prepares the statement that tells the id of a transaction.
    pub(crate) async fn prepare_xid(&mut self) -> Result<(), Gone> {
        let sql = format!("PREPARE {} AS {XID_QUERY}", String::from_utf8_lossy(XID_STATEMENT));
        self.asks_xid = self.ask(sql.as_bytes()).await?.error.is_none();
        Ok(())
    }

    /// Takes settings over that the server reported by the way.
    pub(crate) fn note_reported(&mut self) {
        for (name, value) in self.exchange.seen.parameters.drain(..) {
            self.reported.insert(name, value);
        }
    }

    /// Whether the gate before it has closed since it was opened.
    pub(crate) fn is_over(&self) -> bool {
        self.fence.as_ref().is_some_and(|fence| fence.gate.term() != Some(fence.term))
    }

    /// Whether it can serve somebody: nothing under way, no transaction open.
    pub(crate) fn is_clean(&self) -> bool {
        self.exchange.is_quiet()
            && self.exchange.status == Status::Idle
            && self.end.out.is_empty()
            && !self.reins.is_cut()
            && self.reins.cancels.get() == 0
    }

    /// Gives up what the server has prepared: it was told to forget it.
    pub(crate) fn forget_statements(&mut self) {
        self.prepared.clear();
        self.unnamed = None;
        self.asks_xid = false;
    }

    /// Adds the message that prepares a statement under a name.
    pub(crate) fn put_parse(out: &mut BytesMut, name: &[u8], statement: &Statement) {
        put(out, b'P', |out| {
            out.extend_from_slice(name);
            out.extend_from_slice(b"\0");
            out.extend_from_slice(&statement.text);
            out.extend_from_slice(b"\0");
            out.extend_from_slice(&statement.types);
        });
    }

    /// Adds the message that closes a statement.
    pub(crate) fn put_close(out: &mut BytesMut, name: &[u8]) {
        put(out, b'C', |out| {
            out.extend_from_slice(b"S");
            out.extend_from_slice(name);
            out.extend_from_slice(b"\0");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BufMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that greets, and answers whatever it is asked with one commit that nobody waits for
    /// any more, all at once.
    async fn answers_at_once(mut stream: tokio::io::DuplexStream) -> io::Result<()> {
        let mut ready = BytesMut::new();
        put(&mut ready, READY, |out| out.put_u8(b'I'));
        let mut heard = BytesMut::new();
        stream.read_buf(&mut heard).await?;
        let mut greeting = BytesMut::new();
        put(&mut greeting, AUTHENTICATION, |out| out.put_u32(0));
        greeting.put_slice(&ready);
        stream.write_all(&greeting).await?;
        stream.read_buf(&mut heard).await?;
        let mut answer = BytesMut::new();
        let fields = b"SWARNING\0VWARNING\0C01000\0Fsyncrep.c\0RSyncRepWaitForLSN\0\0";
        put(&mut answer, b'N', |out| out.put_slice(fields));
        put(&mut answer, b'C', |out| out.put_slice(b"COMMIT\0"));
        answer.put_slice(&ready);
        stream.write_all(&answer).await?;
        std::future::pending().await
    }

    #[tokio::test]
    async fn what_comes_with_a_cancelled_wait_is_read() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let asked = async {
            let startup = Startup::new(&[("user", "app")]);
            let part = (NodeId::default(), Part::Writer(Term(1)), None);
            let opened = Server::open(Io::Far(Box::new(ours)), part, &startup, false, 0).await;
            opened.ok()?.ask(b"COMMIT").await.ok()
        };
        let wait = std::time::Duration::from_secs(10);
        let asked = tokio::time::timeout(wait, async {
            tokio::select! {
                asked = asked => asked,
                _ = answers_at_once(theirs) => None,
            }
        });
        assert!(asked.await.expect("the rest of the answer is not awaited for ever").is_some());
    }
}
