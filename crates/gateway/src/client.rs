//! A client's session: what it has said, what it was promised, and what must follow it from server
//! to server.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use foldhash::{HashMap, HashMapExt};
use quorate_core::gateway::{Consistency, ReadFrom};
use quorate_core::{NodeId, Term};
use quorate_wire::backend::Status;
use quorate_wire::sql::Script;

use crate::account::Account;
use crate::full;
use crate::io::End;
use crate::metrics::Route;
use crate::route::Asked;
use crate::server::Reins;
use crate::settings::Settings;
use crate::statements::Statement;
use crate::story::Story;
use crate::timing::Micros;
use crate::visible::{Shown, Xid};
use crate::world::{Token, View};

/// Why a client keeps its server between transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pin {
    /// The pool is in session mode.
    Session,
    /// A temporary table.
    Temporary,
    /// A session-level advisory lock.
    Advisory,
    /// LISTEN.
    Listen,
    /// A cursor WITH HOLD.
    Cursor,
    /// A statement prepared by SQL.
    Prepared,
    /// A library was loaded.
    Library,
    /// A setting whose name cannot be told from the statement.
    Setting,
    /// Code ran that may have left something that cannot be looked for.
    Code,
    /// A statement that is too long to be prepared again elsewhere.
    Long,
    /// It is a replication connection.
    Replication,
}

impl Pin {
    /// All of them, for counters.
    pub(crate) const ALL: [Pin; 11] = [
        Pin::Session,
        Pin::Temporary,
        Pin::Advisory,
        Pin::Listen,
        Pin::Cursor,
        Pin::Prepared,
        Pin::Library,
        Pin::Setting,
        Pin::Code,
        Pin::Long,
        Pin::Replication,
    ];

    /// As a label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Pin::Session => "session",
            Pin::Temporary => "temporary_table",
            Pin::Advisory => "advisory_lock",
            Pin::Listen => "listen",
            Pin::Cursor => "cursor",
            Pin::Prepared => "prepare",
            Pin::Library => "library",
            Pin::Setting => "setting",
            Pin::Code => "code",
            Pin::Long => "long_statement",
            Pin::Replication => "replication",
        }
    }

    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Pin::Session => "the pool is in session mode",
            Pin::Temporary => "it has a temporary table",
            Pin::Advisory => "it holds a session-level advisory lock",
            Pin::Listen => "it listens",
            Pin::Cursor => "it has a cursor WITH HOLD",
            Pin::Prepared => "it prepared a statement with PREPARE",
            Pin::Library => "it loaded a library",
            Pin::Setting => "it made a setting that cannot be followed",
            Pin::Code => "it ran code that may have left something in the session",
            Pin::Long => "it prepared a very long statement",
            Pin::Replication => "it is a replication connection",
        }
    }
}

/// What is seen of a client from outside its task.
pub(crate) struct Handle {
    pub(crate) id: u32,
    pub(crate) secret: [u8; 32],
    pub(crate) account: Rc<Account>,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) application: RefCell<Box<[u8]>>,
    pub(crate) encrypted: bool,
    /// Milliseconds of the worker's clock.
    pub(crate) since: u64,
    pub(crate) state: Cell<State>,
    pub(crate) pin: Cell<Option<Pin>>,
    /// The server it is linked to: for cancel requests.
    pub(crate) linked: RefCell<Option<Rc<Linked>>>,
    /// Ends the session.
    pub(crate) killed: Cell<bool>,
    /// The floor under `synchronous_commit` is another one than when settings were made.
    pub(crate) raise: Cell<bool>,
    /// The session while it waits for its client.
    pub(crate) waker: Cell<Option<std::task::Waker>>,
}

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Idle,
    Waiting,
    Active,
    Replicating,
}

/// The server a client is linked to.
pub(crate) struct Linked {
    pub(crate) reins: Rc<Reins>,
    pub(crate) key: quorate_wire::CancelKey,
    pub(crate) node: quorate_core::NodeId,
    pub(crate) here: bool,
}

/// How a transaction was asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Commit,
    Rollback,
    /// In a text of several statements, or prepared, or chained.
    Other,
}

/// What happened in the transaction under way.
#[derive(Default)]
pub(crate) struct Block {
    /// It may have written.
    pub(crate) wrote: bool,
    /// It surely neither told nor changed anything of what is stored.
    pub(crate) tells_nothing: bool,
    /// Its id, once known.
    pub(crate) xid: Option<u64>,
    /// It may have written since its id was asked for.
    pub(crate) unasked: bool,
    /// The id was asked for.
    pub(crate) asked_xid: bool,
    /// So it was behind the last statement of the client's.
    pub(crate) asked_behind: bool,
    /// Such questions without their answer.
    pub(crate) xid_due: u32,
    /// For a block on a replica.
    pub(crate) story: Story,
    /// Settings it may have changed.
    pub(crate) settings: Vec<Box<[u8]>>,
    /// A setting or an object was made, for the transaction at least: texts may mean something else.
    pub(crate) set: bool,
    /// Of these, those that are set back.
    pub(crate) resets: Vec<Box<[u8]>>,
    /// It may have left something that can be looked for.
    pub(crate) look: bool,
    /// RESET ALL.
    pub(crate) reset_all: bool,
    /// It may have made functions, or what calls them.
    pub(crate) defined: bool,
    /// It left something, or cleared something away.
    pub(crate) left: bool,
    /// DISCARD ALL was sent.
    pub(crate) discards: bool,
    /// It was carried out.
    pub(crate) discarded: bool,
    /// Everything acknowledged is at or before this, by the word of a far server's node.
    pub(crate) position: Option<Token>,
    /// The client was told of an error.
    pub(crate) failed: bool,
    /// The statement that was asked to end it.
    pub(crate) end: Option<Ending>,
}

impl Block {
    /// A statement is sent; how it ends the transaction, if it does. Behind another end it belongs to
    /// a transaction of which nothing is known, and which must not be judged by the one before it.
    pub(crate) fn sends(&mut self, end: Option<Ending>) {
        self.end = match self.end {
            None => end,
            Some(_) => Some(Ending::Other),
        };
    }

    /// A statement is sent whose text is not known: it may write, or end the transaction.
    pub(crate) fn sends_unknown(&mut self) {
        self.writes();
        self.sends(Some(Ending::Other));
    }

    /// A statement is sent that may write.
    pub(crate) fn writes(&mut self) {
        self.wrote = true;
        self.tells_nothing = false;
        self.unasked = true;
    }

    /// Everything sent is answered, and a block is open. If an end was asked for, this is another
    /// transaction (or the same, whose end failed): its id and its end are still to be known.
    pub(crate) fn goes_on(&mut self) {
        if self.end.take().is_some() {
            self.xid = None;
            self.asked_xid = false;
            self.asked_behind = false;
            // What was sent in it already is asked about before its end. Until then no question of
            // ours may be its first: some statements must come before any query.
            self.unasked = false;
        }
    }

    /// Whether it surely has no transaction id, so that nothing is lost with it.
    pub(crate) fn wrote_nothing(&self) -> bool {
        self.xid.is_none() && self.asked_xid && self.xid_due == 0 && !self.unasked
    }
}

/// A client's session.
pub(crate) struct Client {
    pub(crate) end: End,
    pub(crate) account: Rc<Account>,
    pub(crate) handle: Rc<Handle>,
    /// Bytes of a message in progress, and whether they go to the server.
    pub(crate) left: usize,
    pub(crate) passing: bool,
    /// Its prepared statements by name.
    pub(crate) statements: HashMap<Box<[u8]>, Rc<Statement>>,
    /// The one without a name; and how many of these there were.
    pub(crate) unnamed: Option<Rc<Statement>>,
    pub(crate) unnamed_count: u64,
    pub(crate) settings: Rc<Settings>,
    /// What it asked for when it connected: where RESET leads back to.
    pub(crate) startup: Rc<Settings>,
    pub(crate) block: Block,
    pub(crate) token: Option<Token>,
    /// A replica has shown commits of transactions below this id, and the writer may not show them yet.
    pub(crate) ahead: Cell<Option<Xid>>,
    /// The term in which the replica that serves it, or did so last, was known to follow the writer:
    /// what it has shown is of that history.
    pub(crate) history: Cell<Term>,
    pub(crate) asked: Asked,
    /// When the transaction under way began, and where it went.
    pub(crate) began: Option<Micros>,
    pub(crate) route: Cell<Route>,
    /// A replica that serves it and is later than its contract allows, by so many milliseconds: it is
    /// to be warned.
    pub(crate) late: Cell<Option<(NodeId, u64)>>,
    /// When it was warned last.
    pub(crate) warned: Option<u64>,
    /// Its text, where it may have to be told.
    pub(crate) told: Option<Box<[u8]>>,
    /// It came in by the port that only reads: where writes are taken.
    pub(crate) writes_at: Option<Arc<str>>,
    /// `standard_conforming_strings`.
    pub(crate) standard_strings: bool,
    /// The encoding is one whose bytes a lexer can tell apart.
    pub(crate) lexable: bool,
    /// Its transactions are serializable unless they say otherwise.
    pub(crate) serializable: bool,
    /// An error was told without a server: what follows is ignored up to the next Sync, which is
    /// answered with this status.
    pub(crate) skipping: Option<Status>,
    /// Its transaction is gone; it does not know yet, or has not ended it yet.
    pub(crate) lost: Option<Lost>,
    /// Answers kept back, while the request may still be repeated elsewhere.
    pub(crate) held: BytesMut,
    /// What the first text of the group says, when it is a simple query; and its length.
    pub(crate) peeked: Option<(usize, Script)>,
    /// The group under way, to be repeated.
    pub(crate) replay: BytesMut,
}

/// A transaction block whose server is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The client is still to be told.
    Untold(quorate_wire::backend::Report),
    /// The client was told, and is still to end the block.
    Told,
}

impl Client {
    pub(crate) fn new(
        end: End,
        account: Rc<Account>,
        handle: Rc<Handle>,
        startup: Rc<Settings>,
    ) -> Self {
        let mut client = Self {
            end,
            handle,
            left: 0,
            passing: false,
            statements: HashMap::new(),
            unnamed: None,
            unnamed_count: 0,
            settings: Rc::clone(&startup),
            startup,
            block: Block::default(),
            token: None,
            ahead: Cell::new(None),
            history: Cell::new(Term(0)),
            asked: Asked {
                consistency: Consistency::default(),
                read_from: ReadFrom::default(),
                max_staleness_ms: 0,
                sticky: None,
                when_full: false,
            },
            began: None,
            route: Cell::new(Route::Replica),
            late: Cell::new(None),
            warned: None,
            told: None,
            writes_at: None,
            standard_strings: true,
            lexable: true,
            serializable: false,
            skipping: None,
            lost: None,
            held: BytesMut::new(),
            peeked: None,
            replay: BytesMut::new(),
            account,
        };
        client.read_settings();
        client
    }

    /// Takes over what the settings say about the gateway itself.
    pub(crate) fn read_settings(&mut self) {
        let spec = self.account.spec();
        let text = |name: &[u8]| {
            let value = self.settings.get(name)?;
            std::str::from_utf8(value).ok()
        };
        self.asked.consistency =
            text(b"quorate.consistency").and_then(consistency).unwrap_or(spec.consistency);
        self.asked.read_from =
            text(b"quorate.read_from").and_then(ReadFrom::from_word).unwrap_or(spec.read_from);
        self.asked.max_staleness_ms =
            text(b"quorate.max_staleness").and_then(milliseconds).unwrap_or(spec.max_staleness_ms);
        self.asked.sticky = text(b"quorate.sticky_key").filter(|k| !k.is_empty()).map(hash);
        self.asked.when_full = text(full::SETTING.as_bytes()).and_then(full::flag) == Some(true);
        self.standard_strings = text(b"standard_conforming_strings") != Some("off");
        self.lexable = text(b"client_encoding").is_none_or(is_lexable);
        self.serializable = text(b"default_transaction_isolation") == Some("serializable");
    }

    /// Its statement of this name; the empty one is that of the unnamed.
    pub(crate) fn known(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        if name.is_empty() { self.unnamed.as_ref() } else { self.statements.get(name) }
    }

    pub(crate) fn pin(&self, why: Pin) {
        if matches!(self.handle.pin.get(), None | Some(Pin::Session)) {
            self.handle.pin.set(Some(why));
        }
    }

    /// Takes note of what a replica has shown.
    pub(crate) fn saw(&mut self, shown: &Shown) {
        let token = Token { term: self.history.get(), lsn: shown.lsn };
        if Some(token) > self.token {
            self.token = Some(token);
            self.ahead.set(self.ahead.get().max(Some(shown.below)));
        }
    }

    /// Takes note of the history that a replica shows, if it is one that is known to follow.
    pub(crate) fn served_by(&self, node: NodeId, view: &View) {
        if let Some(replica) = view.replicas.iter().find(|r| r.node == node) {
            self.history.set(replica.term);
        }
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.handle.pin.get().is_some()
    }
}

/// A level by its name.
pub(crate) fn consistency(name: &str) -> Option<Consistency> {
    Some(match name {
        "strong" => Consistency::Strong,
        "read_your_writes" => Consistency::ReadYourWrites,
        "monotonic" => Consistency::Monotonic,
        "causal" => Consistency::Causal,
        "bounded" => Consistency::Bounded,
        "eventual" => Consistency::Eventual,
        _ => return None,
    })
}

/// `500`, `500ms`, `2s`, `1min`, as PostgreSQL writes times.
pub(crate) fn milliseconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// FNV-1a: the same on every node, so that a key leads to the same replica from all of them.
fn hash(key: &str) -> u64 {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    key.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Whether the encoding never uses a byte below 0x80 as part of a longer character.
fn is_lexable(encoding: &str) -> bool {
    const SUCH: [&str; 11] = [
        "UTF8", "UNICODE", "SQLASCII", "LATIN", "ISO8859", "WIN125", "WIN866", "WIN874", "KOI8",
        "EUC", "MULE",
    ];
    let plain: String = encoding.chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_uppercase();
    SUCH.iter().any(|name| plain.starts_with(name))
}
