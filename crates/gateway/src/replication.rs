//! The gateway of a replication client: a connection of its own to the writer, from its login to its
//! end. Physical ones take the log as it is, those to a database decode it. What may leave, and when,
//! is decided on the writer's node ([`crate::sender`]).

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::BytesMut;
use quorate_wire::backend::{ERROR, Fields, KEY_DATA, READY, Report};
use quorate_wire::frame::{self, put};
use quorate_wire::{CancelKey, Event, Splitter, Startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::account::Account;
use crate::client::{Handle, Linked, Pin, State};
use crate::frontend::Shared;
use crate::io::End;
use crate::login::{self, Wish};
use crate::server::{Part, Reins};
use crate::session::CUT;
use crate::stream::BoxStream;
use crate::worker::{AccountName, Worker};
use crate::world::Writer;
use crate::{limits, opening, sender};

/// What a replication client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The log as it is.
    Physical,
    /// To decode the log of one database.
    Logical,
}

/// What stands for the database of those that have none, in access rules and in the console.
pub(crate) const DATABASE: &str = "replication";

/// What a client asks for in its first packet; `None` for an ordinary one.
pub(crate) fn asked(startup: &Startup) -> Result<Option<Kind>, Report> {
    let mut all = startup.all("replication");
    let (Some(value), None) = (all.next(), all.next()) else {
        return match startup.get("replication") {
            None => Ok(None),
            Some(_) => Err(wrong("it is given more than once")),
        };
    };
    let word = String::from_utf8_lossy(value).to_ascii_lowercase();
    match (value, &word[..]) {
        (b"database", _) => Ok(Some(Kind::Logical)),
        _ if login::is_false(value) => Ok(None),
        (_, "t" | "tr" | "tru" | "true" | "y" | "ye" | "yes" | "on" | "1") => {
            Ok(Some(Kind::Physical))
        }
        _ => Err(wrong("it is neither a boolean nor database")),
    }
}

fn wrong(why: &str) -> Report {
    Report::fatal("22023", format!("invalid value for parameter \"replication\": {why}"))
        .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\".")
}

/// The first packet to the server.
pub(crate) fn packet(account: &Account, kind: Kind, wishes: &[Wish]) -> Result<BytesMut, Report> {
    // Always said, so that it goes before what is set for the role.
    let mut startup = Startup::new(&[("application_name", "")]);
    for (name, value) in wishes {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        startup.set(&text(name), &text(value));
    }
    // Last, in place of whatever was wished: these were checked.
    startup.remove("options");
    startup.set("user", &account.user);
    match kind {
        Kind::Physical => {
            startup.remove("database");
            startup.set("replication", "true");
        }
        Kind::Logical => {
            login::keeps_floor(account, wishes)?;
            startup.set("database", &account.database);
            startup.set("replication", "database");
        }
    }
    let name = startup.get("application_name").unwrap_or_default();
    if name.trim_ascii().eq_ignore_ascii_case(sender::OURS.as_bytes()) {
        return Err(Report::fatal("42501", "this name is the cluster's own standby's")
            .hint("Choose another application_name."));
    }
    Ok(startup.encode())
}

/// Whether such a connection is served at all.
pub(crate) fn allowed(account: &Account, reads_only: bool) -> Result<(), Report> {
    if reads_only {
        let message = "replication connections are not served on the read-only port";
        return Err(Report::fatal("0A000", message).hint("Use the gateway's other port."));
    }
    if account.database.as_ref() == crate::console::DATABASE {
        let message = "the gateway's console has no log";
        return Err(Report::fatal("0A000", message).hint("Connect to a database of your own."));
    }
    match &account.spec().disabled {
        Some(because) => {
            Err(Report::fatal("57014", format!("an operator has stopped this: {because}"))
                .hint("Ask the operator of the cluster (gateway.pools, disabled)."))
        }
        None => Ok(()),
    }
}

/// Replication connections by account, of all threads of a gateway.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<AccountName, usize>>);

/// A place among an account's replication connections.
struct Place<'a>(&'a Places, AccountName);

impl Places {
    /// `None` when all of them are taken.
    fn take(&self, account: &Account) -> Option<Place<'_>> {
        let name = (account.database.clone(), account.user.clone());
        let mut taken = self.taken();
        let taken = taken.entry(name.clone()).or_default();
        if *taken >= limits::REPLICATION_ACCOUNT_MAX {
            return None;
        }
        *taken += 1;
        Some(Place(self, name))
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<AccountName, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self(places, name) = self;
        let mut all = places.taken();
        if let Some(taken) = all.get_mut(name) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(name);
            }
        }
    }
}

/// Serves a client that may come in, to its end. What it is to be told last.
pub(crate) async fn serve(
    (worker, shared): (&Rc<Worker>, &Shared),
    end: &mut End,
    handle: &Rc<Handle>,
    (packet, key): (&[u8], &CancelKey),
) -> Option<Report> {
    let account = &handle.account;
    let Some(_place) = shared.replicating.take(account) else {
        let max = limits::REPLICATION_ACCOUNT_MAX;
        let message = "too many replication connections of this role";
        let hint = format!("Each gateway takes {max} of a role to a database. End one.");
        return Some(Report::fatal("53300", message).hint(hint));
    };
    handle.state.set(State::Waiting);
    let entered = tokio::select! {
        biased;
        entered = enter(worker, packet, key) => entered,
        () = left(end) => return None,
    };
    let Entered { server, writer, reins, greeting } = match entered {
        Ok(entered) => entered,
        Err(report) => return Some(report),
    };
    end.out.extend_from_slice(&greeting.said);
    end.drain().await.ok()?;
    let server_key = greeting.key?;
    let linked = Linked { reins, key: server_key, node: writer.node, here: writer.here };
    let linked = Rc::new(linked);
    *handle.linked.borrow_mut() = Some(Rc::clone(&linked));
    handle.state.set(State::Replicating);
    handle.pin.set(Some(Pin::Replication));
    tracing::info!(
        user = %account.user, database = %account.database, client = %handle.address,
        node = %writer.node, "a replication client came"
    );
    let said = splice(end, server, greeting.rest, &linked.reins).await;
    tracing::info!(
        user = %account.user, database = %account.database, client = %handle.address,
        "a replication client left"
    );
    said
}

fn gone(why: &str) -> Report {
    Report::fatal("57P01", format!("the replication connection ended: {why}"))
        .detail("It was to the writer of this cluster, and slots are of one server.")
        .hint("Reconnect; if the writer moved and carried no slot of that name, it has to be made anew.")
}

/// A server that has greeted a client.
struct Entered {
    server: BoxStream,
    writer: Writer,
    reins: Rc<Reins>,
    greeting: Greeting,
}

/// Logs in to the writer, waiting for whatever has to be waited for: also for another writer, when
/// this one is found not to serve any more.
async fn enter(worker: &Rc<Worker>, packet: &[u8], key: &CancelKey) -> Result<Entered, Report> {
    let since = worker.now();
    let mut tries = 0;
    loop {
        let writer = writer(worker, since).await?;
        let last = match attempt(worker, writer, packet, key).await {
            Ok(entered) if !entered.greeting.passes => return Ok(entered),
            other => other,
        };
        if worker.now() >= since + worker.view().wanted.hold_ms {
            return last;
        }
        tries += 1;
        worker.changed(worker.pause(tries)).await;
    }
}

async fn attempt(
    worker: &Rc<Worker>,
    writer: Writer,
    packet: &[u8],
    key: &CancelKey,
) -> Result<Entered, Report> {
    let reins = Rc::<Reins>::default();
    worker.follow_reins(&reins, Part::Writer(writer.term), writer.here);
    let again = |why: String| Report::fatal("57P03", why).hint("Try again in a moment.");
    let mut server = stream(worker, writer).await.map_err(again)?;
    let lost = |_: std::io::Error| gone("the server was lost");
    server.write_all(packet).await.map_err(lost)?;
    server.flush().await.map_err(lost)?;
    let greeted = timeout(limits::REPLICATION_LOGIN_WAIT, greeting(&mut server, key)).await;
    let late = |_| again("no standby holds what the writer has written".to_owned());
    let greeting = greeted.map_err(late)?.map_err(lost)?;
    Ok(Entered { server, writer, reins, greeting })
}

/// Waits until a client is gone that waits itself. What it says too early is kept.
async fn left(end: &mut End) {
    while end.stash.len() < limits::PENDING_MAX {
        if !end.fill().await.is_ok_and(|n| n > 0) {
            return;
        }
    }
    // Whoever says so much is not listened to before its turn.
    std::future::pending().await
}

/// The writer, waiting while there is none.
async fn writer(worker: &Worker, since: u64) -> Result<Writer, Report> {
    loop {
        let view = worker.view();
        if let Some(writer) = view.writer {
            return Ok(writer);
        }
        let held = worker.hold(view.wanted.held_max as usize);
        if held.is_none() || worker.now() >= since + view.wanted.hold_ms {
            return Err(Report::fatal("57P03", "the cluster has no writer now")
                .detail(view.because.clone())
                .hint("Try again in a moment; quorate status tells why."));
        }
        worker.changed(limits::LOOK_AGAIN).await;
    }
}

/// A stream to the writer's node, at which a first packet is awaited.
async fn stream(worker: &Rc<Worker>, writer: Writer) -> Result<BoxStream, String> {
    if !writer.here {
        let mut far = worker.world.dial(writer.node).await?;
        let sent = far.write_all(&opening::replication()).await;
        return sent.map(|()| far).map_err(|e| e.to_string());
    }
    let (ours, mut theirs) = tokio::io::duplex(limits::CHUNK);
    let world = std::sync::Arc::clone(&worker.world);
    tokio::task::spawn_local(async move {
        let Some(local) = world.local() else { return };
        let Ok(packet) = opening::packet(&mut theirs).await else { return };
        let never = std::future::pending();
        if let Err(error) = sender::serve(&*world, &local, theirs, &packet, never).await {
            tracing::debug!(%error, "a replication connection ended");
        }
    });
    Ok(Box::new(ours))
}

/// What a server says to who comes in.
struct Greeting {
    /// For the client, with its own key in place of the server's.
    said: BytesMut,
    /// What came behind it.
    rest: BytesMut,
    /// The server's key; `None` when the client was refused.
    key: Option<CancelKey>,
    /// It was refused by a server that starts, ends, or does not serve.
    passes: bool,
}

async fn greeting(server: &mut BoxStream, key: &CancelKey) -> std::io::Result<Greeting> {
    let mut rest = BytesMut::new();
    let mut said = BytesMut::new();
    let mut server_key = CancelKey { pid: 0, secret: bytes::Bytes::new() };
    loop {
        let taken = frame::take(&mut rest, limits::GREETING_MAX).map_err(std::io::Error::other)?;
        let Some(message) = taken else {
            if server.read_buf(&mut rest).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        match message.tag {
            KEY_DATA => {
                server_key = CancelKey::parse(&message.body).map_err(std::io::Error::other)?;
                put(&mut said, KEY_DATA, |out| {
                    out.extend_from_slice(&key.pid.to_be_bytes());
                    out.extend_from_slice(&key.secret);
                });
            }
            tag => put(&mut said, tag, |out| out.extend_from_slice(&message.body)),
        }
        match message.tag {
            ERROR => {
                let fields = Fields::parse(&message.body);
                let passes = fields.is_ok_and(|f| f.code().starts_with("57P"));
                return Ok(Greeting { said, rest, key: None, passes });
            }
            READY => {
                return Ok(Greeting { said, rest, key: Some(server_key), passes: false });
            }
            _ => {}
        }
    }
}

/// Passes bytes to and fro; what the client is to be told last, if it can be.
async fn splice(
    end: &mut End,
    server: BoxStream,
    early: BytesMut,
    reins: &Reins,
) -> Option<Report> {
    let stash = std::mem::take(&mut end.stash);
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let (mut from_client, mut to_client) = tokio::io::split(&mut end.io);
    let mut whole = Whole::default();
    let down = async {
        let mut chunk = early;
        loop {
            // Unless all of it is written.
            whole.broken = true;
            if whole.note(&chunk).is_err()
                || to_client.write_all(&chunk).await.is_err()
                || to_client.flush().await.is_err()
            {
                return;
            }
            whole.broken = false;
            chunk.clear();
            chunk.reserve(limits::CHUNK);
            if !from_server.read_buf(&mut chunk).await.is_ok_and(|n| n > 0) {
                return;
            }
        }
    };
    let up = async {
        let mut chunk = stash;
        loop {
            if to_server.write_all(&chunk).await.is_err() || to_server.flush().await.is_err() {
                // What the server said last is still to be passed on.
                std::future::pending::<()>().await;
            }
            chunk.clear();
            chunk.reserve(limits::CHUNK);
            if !from_client.read_buf(&mut chunk).await.is_ok_and(|n| n > 0) {
                return;
            }
        }
    };
    let cut = std::future::poll_fn(|cx| {
        reins.follow(cx.waker());
        if reins.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    });
    let why = tokio::select! {
        biased;
        () = down => "the server was lost, or the writer moved",
        () = up => return None,
        () = cut => CUT,
    };
    let tell = whole.splitter.at_boundary() && !whole.broken && !whole.erred;
    tell.then(|| gone(why))
}

/// Whether a client has got whole messages only.
#[derive(Default)]
struct Whole {
    splitter: Splitter,
    /// The last one was an error.
    erred: bool,
    /// It takes nothing any more, is in the middle of taking something, or what it got was not the
    /// protocol.
    broken: bool,
}

impl Whole {
    fn note(&mut self, mut bytes: &[u8]) -> Result<(), quorate_wire::Error> {
        loop {
            let step = self.splitter.step(bytes, |_| 0)?;
            bytes = &bytes[step.used..];
            match step.event {
                None => return Ok(()),
                Some(Event::Head(part)) => self.erred = part.tag == ERROR,
                Some(Event::End(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Result<Option<Kind>, &'static str> {
        let pairs: Vec<_> = values.iter().map(|v| ("replication", *v)).collect();
        asked(&Startup::new(&pairs)).map_err(|r| r.code)
    }

    #[test]
    fn what_is_wanted_is_known_however_it_is_spelt() {
        for value in ["true", "on", "1", "yes", "t", "TRUE"] {
            assert_eq!(of(&[value]), Ok(Some(Kind::Physical)), "{value}");
        }
        for value in ["false", "off", "no", "0", "F"] {
            assert_eq!(of(&[value]), Ok(None), "{value}");
        }
        assert_eq!(of(&["database"]), Ok(Some(Kind::Logical)));
        assert_eq!(of(&[]), Ok(None));
        for values in [&["DATABASE"][..], &[""], &["o"], &["true", "database"], &["false", "on"]] {
            assert_eq!(of(values), Err("22023"), "{values:?}");
        }
    }
}
