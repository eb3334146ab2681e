//! What a client is told when its server is gone, and what is tried again instead (§11).
//!
//! The rule of all of it: what may have happened is never called undone, what is undone is never
//! called done, and nothing that may have happened is done again.

use std::rc::Rc;

use quorate_wire::backend::{Report, Status};
use quorate_wire::frame::put;
use quorate_wire::sql::Access;

use crate::client::{Block, Client, Ending, Lost, Pin};
use crate::exchange::{Kind, Undo};
use crate::group::Group;
use crate::metrics::count;
use crate::relay::Relay;
use crate::server::{Part, Server};
use crate::session::End;
use crate::worker::Worker;
use crate::world::{Fate, Transaction};

/// What is to be done with a group after its server answered, or did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing more.
    Done,
    /// The same again: it surely had no effect.
    Again,
    /// The same again: the connection had died before anything was sent.
    Stale,
    /// The same again, on the writer.
    OnWriter,
}

/// What an error means that nobody has seen yet: `None` when the client is to see it.
pub(crate) fn refused(relay: &mut Relay<'_>, code: [u8; 5], group: &Group) -> Option<After> {
    let account = &relay.client.account;
    if relay.server.part == Part::Replica && relay.client.writes_at.is_some() {
        // A conflict with replay, or a shutdown: another attempt finds what serves. Anything else
        // no other server would do either.
        let passes = &code != b"40001" && !code.starts_with(b"57P");
        return if passes { None } else { Some(After::Again) };
    }
    if relay.server.part == Part::Replica {
        return match &code {
            // It writes, whatever it looked like.
            b"25006" => {
                account.remember_refused(group.fingerprint);
                count(&account.counters.refused);
                Some(After::OnWriter)
            }
            // A function that wants a writer; a mode that a standby lacks; a conflict with replay;
            // a shutdown.
            b"55000" | b"0A000" | b"XX000" | b"40001" => Some(After::OnWriter),
            _ if code.starts_with(b"57P") => Some(After::OnWriter),
            _ => None,
        };
    }
    // A statement that was prepared before may fail where one prepared now does not: its tables
    // changed. Prepared anew it fails only if it must.
    if !is_stale(code) || relay.reused.is_empty() {
        return None;
    }
    for statement in std::mem::take(&mut relay.reused) {
        if relay.server.prepared.touch(&statement) {
            relay.server.prepared.remove(&statement);
            relay.server.exchange.sent(Kind::Close, true, Undo::Nothing);
            Server::put_close(&mut relay.server.end.out, &statement.name);
        }
    }
    relay.server.exchange.sent(Kind::Sync, true, Undo::Nothing);
    put(&mut relay.server.end.out, b'S', |_| {});
    Some(After::Again)
}

/// Whether a statement that was prepared before may fail so where one prepared now does not.
pub(crate) fn is_stale(code: [u8; 5]) -> bool {
    code.starts_with(b"42") || matches!(&code, b"0A000" | b"26000" | b"XX000")
}

/// What became of the work in progress.
enum Became {
    /// It is done; the tag of the answer.
    Did(&'static [u8]),
    /// It is undone, and the client is outside of any block.
    Undone,
    /// It is undone, and the client is still to end its block.
    UndoneInBlock,
    /// That is not known.
    Unknown,
}

/// The server is lost while the client is linked to it. Tells the client the truth.
pub(crate) async fn lost(
    worker: &Rc<Worker>,
    client: &mut Client,
    server: Box<Server>,
    why: &str,
    group: &Group,
) -> Result<After, End> {
    tracing::info!(
        user = %client.account.user, database = %client.account.database, node = %server.node,
        "a server was lost under a client: {why}"
    );
    let block = std::mem::take(&mut client.block);
    client.passing = false;
    if server.exchange.is_inside() {
        return Err(End::Cut);
    }
    let in_block = server.exchange.status != Status::Idle;
    let pinned = client.handle.pin.get().filter(|pin| *pin != Pin::Session);
    if !server.exchange.owes_client() {
        return match (pinned, in_block) {
            (Some(pin), _) => Err(End::Told(Box::new(state_lost(why, pin, in_block)))),
            (None, true) => {
                client.lost = Some(Lost::Untold(undone(why)));
                Ok(After::Done)
            }
            (None, false) => Ok(After::Done),
        };
    }
    // Drivers do not look at the answer when they close a statement: nothing that a client must
    // know may be told there.
    let owed: Vec<Kind> = server.exchange.owed().collect();
    let closing = |k: &Kind| matches!(k, Kind::Close | Kind::Closed | Kind::Sync);
    // Outside of a block a statement commits at its Sync, after its own answer: an answer that a dying
    // server still sent acknowledges nothing.
    let commits = !in_block && (block.wrote || group.access != Access::Read);
    let settled = group.only_closes || block.end.is_none() && !commits;
    let closes = settled && owed.iter().all(closing) && !server.exchange.lacks_sync();
    if pinned.is_none() && closes {
        let status = if in_block { Status::InTransaction } else { Status::Idle };
        did(client, &owed, b"", status);
        if in_block {
            client.lost = Some(Lost::Untold(undone(why)));
        }
        return Ok(After::Done);
    }
    let became = became(worker, client, &server, &block, group, in_block).await;
    tell(client, &server, &became, why);
    // The fate needs the server's connection gone; nothing of it is used below.
    drop(server);
    match pinned {
        Some(pin) => {
            let _ = client.end.drain().await;
            Err(End::Told(Box::new(state_lost(why, pin, false))))
        }
        None => Ok(After::Done),
    }
}

async fn became(
    worker: &Rc<Worker>,
    client: &Client,
    server: &Server,
    block: &Block,
    group: &Group,
    in_block: bool,
) -> Became {
    match (in_block, block.end) {
        (true, None) => Became::UndoneInBlock,
        (true, Some(Ending::Rollback)) => Became::Did(b"ROLLBACK\0"),
        (true, Some(Ending::Commit)) if server.exchange.status == Status::Failed => {
            Became::Did(b"ROLLBACK\0")
        }
        (true, Some(Ending::Commit)) => {
            if block.wrote_nothing() {
                return Became::Did(b"COMMIT\0");
            }
            committed(worker, client, server, block).await
        }
        (true, Some(Ending::Other)) => Became::Unknown,
        (false, _) if group.access == Access::Read && !block.wrote => Became::Undone,
        (false, _) if client.writes_at.is_some() => Became::Undone,
        (false, _) => Became::Unknown,
    }
}

/// Whether a COMMIT took effect whose answer was lost.
async fn committed(worker: &Rc<Worker>, client: &Client, server: &Server, block: &Block) -> Became {
    let (Some(xid), Part::Writer(term)) = (block.xid, server.part) else {
        count(&client.account.counters.fates[2]);
        return Became::Unknown;
    };
    let transaction = Transaction { xid, term, pid: server.key.pid };
    let fate = worker.world.fate(transaction).await;
    tracing::info!(xid, %term, ?fate, "the answer to a COMMIT was lost; looked up what became of it");
    count(&client.account.counters.fates[fate as usize]);
    match fate {
        Fate::Committed => Became::Did(b"COMMIT\0"),
        Fate::Aborted => Became::Undone,
        Fate::Unknown => Became::Unknown,
    }
}

/// Answers everything that the client waits for.
fn tell(client: &mut Client, server: &Server, became: &Became, why: &str) {
    let held = std::mem::take(&mut client.held);
    client.end.out.extend_from_slice(&held);
    let owed: Vec<Kind> = server.exchange.owed().collect();
    let status = match became {
        Became::UndoneInBlock => {
            client.lost = Some(Lost::Told);
            Status::Failed
        }
        Became::Did(_) | Became::Undone | Became::Unknown => Status::Idle,
    };
    let report = match became {
        Became::Did(tag) if is_one(&owed) => return did(client, &owed, tag, status),
        Became::Did(_) | Became::Unknown => unknown(why),
        Became::Undone | Became::UndoneInBlock => undone(why),
    };
    let mut told = false;
    for kind in &owed {
        if matches!(kind, Kind::Sync | Kind::Query) {
            client.end.out.extend_from_slice(&report.encode());
            ready(client, status);
            told = true;
        }
    }
    if server.exchange.lacks_sync() || !told {
        if !server.exchange.skips() {
            client.end.out.extend_from_slice(&report.encode());
        }
        client.skipping = Some(status);
    }
}

/// Whether the requests are one statement and what belongs to it.
fn is_one(owed: &[Kind]) -> bool {
    let count = |wanted: &[Kind]| owed.iter().filter(|k| wanted.contains(k)).count();
    let ends = count(&[Kind::Sync, Kind::Query]);
    ends == 1 && count(&[Kind::Execute]) + count(&[Kind::Query]) == 1
}

/// The answers of a statement that was carried out.
fn did(client: &mut Client, owed: &[Kind], tag: &[u8], status: Status) {
    for kind in owed {
        let out = &mut client.end.out;
        match kind {
            Kind::Parse | Kind::Parsed => put(out, b'1', |_| {}),
            Kind::Bind => put(out, b'2', |_| {}),
            Kind::Close | Kind::Closed => put(out, b'3', |_| {}),
            Kind::Describe => put(out, b'n', |_| {}),
            Kind::DescribeStatement => {
                put(out, b't', |out| out.extend_from_slice(&[0, 0]));
                put(out, b'n', |_| {});
            }
            Kind::Execute => put(out, b'C', |out| out.extend_from_slice(tag)),
            Kind::Query => {
                put(out, b'C', |out| out.extend_from_slice(tag));
                ready(client, status);
            }
            Kind::Sync => ready(client, status),
            Kind::CopyEnd => {}
        }
    }
}

pub(crate) fn ready(client: &mut Client, status: Status) {
    let letter: &[u8] = match status {
        Status::Idle => b"I",
        Status::InTransaction => b"T",
        Status::Failed => b"E",
    };
    put(&mut client.end.out, b'Z', |out| out.extend_from_slice(letter));
}

pub(crate) fn undone(why: &str) -> Report {
    Report::error("40001", format!("the transaction was rolled back: {why}"))
        .hint("It is safe to run the transaction again, on this connection.")
}

fn unknown(why: &str) -> Report {
    Report::error("08007", format!("the outcome is not known: {why}"))
        .detail("The statement or transaction may or may not have been committed.")
        .hint("Check whether it took effect before running it again.")
}

fn state_lost(why: &str, pin: Pin, in_block: bool) -> Report {
    let report = Report::fatal("57P01", format!("the session was lost with its server: {why}"));
    let rolled_back = if in_block { " Its transaction was rolled back." } else { "" };
    report
        .detail(format!("It could not be moved because {}.{rolled_back}", pin.words()))
        .hint("Reconnect and set the session up again.")
}
