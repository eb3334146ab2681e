//! Client to server, one command at a time; and the floor under `synchronous_commit`.
//!
//! A text that would lower it is refused by the same judgement as in any session ([`crate::floor`]):
//! the server gets something that fails in its place, and the client the reason. What a text does not
//! show is found before the next transaction begins, and raised again.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_core::gateway::SynchronousCommit;
use quorate_wire::backend::{DATA_ROW, ERROR, Report, Status};
use quorate_wire::frame::{Message, Part, put, put_cstr};
use quorate_wire::sql::{self, NoFunctions, Options};
use quorate_wire::{Event, Splitter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::Steps;
use crate::floor::{self, Lowers};
use crate::limits;
use crate::world::{View, World};

/// Asks what the setting is.
pub(super) const LOOK: &str = "SELECT pg_catalog.current_setting('synchronous_commit')";

/// What fails in place of a text that is refused, and a block with it. The server writes the error
/// into its log, so it is one that explains itself.
const FAILS: &str = "SELECT 'synchronous_commit may not be lowered so far \
                     (gateway.synchronous_commit_floor)'::int";

/// What fails in place of a command that would read a slot which lacks something.
const BREAKS: &str = "SELECT 'the slot lacks changes (quorate slots)'::int";

/// Commands of which PostgreSQL has no statement of SQL: none of them commits anything.
const NO_SQL: [&[u8]; 9] = [
    b"ALTER_REPLICATION_SLOT",
    b"BASE_BACKUP",
    b"CREATE_REPLICATION_SLOT",
    b"DROP_REPLICATION_SLOT",
    b"IDENTIFY_SYSTEM",
    b"READ_REPLICATION_SLOT",
    b"START_REPLICATION",
    b"TIMELINE_HISTORY",
    b"UPLOAD_MANIFEST",
];

/// A query of ours, told before the server has it.
#[derive(Debug)]
pub(super) enum Question {
    /// Its answer does not reach the client.
    Asks,
    /// It fails, and the client gets this error.
    Refuses(Report),
}

/// What a server says to a question of ours.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The first column of a row.
    pub(super) value: Option<Bytes>,
    failed: bool,
}

impl Answer {
    pub(super) fn note(&mut self, message: &Message) {
        match message.tag {
            // Two bytes of count, four of length.
            DATA_ROW => self.value = message.body.get(6..).map(Bytes::copy_from_slice),
            ERROR => self.failed = true,
            _ => {}
        }
    }
}

pub(super) fn put_query(out: &mut BytesMut, sql: &str) {
    put(out, b'Q', |out| put_cstr(out, sql.as_bytes()));
}

/// Client to server.
pub(super) struct Commands<'a, W> {
    pub(super) to: W,
    pub(super) steps: watch::Receiver<Steps>,
    /// Set where there is SQL.
    pub(super) judge: Option<Judge<'a>>,
}

/// Keeps the floor.
pub(super) struct Judge<'a> {
    pub(super) world: &'a dyn World,
    pub(super) asks: mpsc::Sender<Question>,
    pub(super) answered: mpsc::Receiver<Answer>,
}

/// There is nothing more to do with a connection.
struct Over;

impl<W: AsyncWrite + Unpin> Commands<'_, W> {
    /// Passes commands on; returns when the client is gone, or sent what a walsender does not take.
    /// What it has received counts only where the server was asked whose word that is.
    pub(super) async fn run(&mut self, mut from: impl AsyncRead + Unpin) {
        let sees = self.judge.is_some();
        let see = |tag| if sees && tag == b'Q' { limits::QUERY_SEEN } else { 0 };
        let mut splitter = Splitter::new();
        let mut chunk = BytesMut::with_capacity(limits::CHUNK);
        // Bytes that may not have been passed on; whether they are of a message of which it is known
        // what it is; and whether that one passes.
        let (mut begun, mut headed, mut passes) = (BytesMut::new(), false, true);
        let mut done = Done::default();
        loop {
            match from.read_buf(&mut chunk).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            let mut rest = &chunk[..];
            loop {
                let Ok(step) = splitter.step(rest, see) else { return };
                let (now, later) = rest.split_at(step.used);
                begun.put_slice(now);
                rest = later;
                match step.event {
                    Some(Event::Head(part)) => {
                        let Ok(may) = self.command(part, &mut done).await else { return };
                        (headed, passes) = (true, may);
                    }
                    Some(Event::End(_)) => {
                        self.pass(&mut begun, passes).await;
                        headed = false;
                    }
                    None => {
                        if headed {
                            self.pass(&mut begun, passes).await;
                        }
                        break;
                    }
                }
            }
            chunk.clear();
        }
    }

    async fn pass(&mut self, begun: &mut BytesMut, passes: bool) {
        if passes {
            self.send(begun).await;
        }
        begun.clear();
    }

    async fn send(&mut self, bytes: &[u8]) {
        if self.to.write_all(bytes).await.is_err() {
            // The server is gone; what it said last is still to be read by the other direction.
            std::future::pending::<()>().await;
        }
    }

    /// Waits for a message's turn; whether it is passed on.
    async fn command(&mut self, part: Part<'_>, done: &mut Done) -> Result<bool, Over> {
        let (asked, closed) = (done.asked, done.closed);
        let may = |s: &Steps| match part.tag {
            b'Q' => s.ready > asked,
            _ => s.opened > closed,
        };
        match part.tag {
            b'Q' | b'd' | b'c' | b'f' => {
                let turn = timeout(limits::STARTUP_WAIT, self.steps.wait_for(may)).await;
                let Ok(Ok(now)) = turn.map(|turn| turn.map(|s| *s)) else { return Err(Over) };
                if part.tag != b'd' {
                    done.closed = now.opened;
                }
                if part.tag != b'Q' {
                    return Ok(true);
                }
                done.asked += 1;
                self.query(part, now.status).await
            }
            b'X' => Ok(true),
            tag => {
                tracing::info!(tag, "a replication client does not speak the protocol");
                Err(Over)
            }
        }
    }

    /// A query whose turn it is; whether it is passed on.
    async fn query(&mut self, part: Part<'_>, status: Option<Status>) -> Result<bool, Over> {
        let Some(judge) = &self.judge else { return Ok(true) };
        let sql = part.seen.strip_suffix(b"\0").unwrap_or(part.seen);
        let view = judged(judge.world, sql).await;
        if let Some(report) = broken(sql, &view) {
            self.put(Question::Refuses(report), BREAKS).await?;
            return Ok(false);
        }
        let floor = view.wanted.synchronous_commit_floor;
        if floor == SynchronousCommit::Off {
            return Ok(true);
        }
        if let Some(lowers) = lowers(sql, part.is_whole(), floor) {
            self.put(Question::Refuses(lowers.report(floor)), FAILS).await?;
            return Ok(false);
        }
        let begins = status == Some(Status::Idle) && !NO_SQL.contains(&first_word(sql));
        if begins
            && let Some(value) = self.ask(LOOK).await?
            && floor::is_below(&value, floor)
        {
            let to = floor.as_str();
            tracing::info!(
                "a replication client has synchronous_commit at {}, below \
                 gateway.synchronous_commit_floor; raised to {to}",
                String::from_utf8_lossy(&value)
            );
            let raise =
                format!("SELECT pg_catalog.set_config('synchronous_commit', '{to}', false)");
            self.ask(&raise).await?;
        }
        Ok(true)
    }

    async fn ask(&mut self, sql: &str) -> Result<Option<Bytes>, Over> {
        self.put(Question::Asks, sql).await?;
        let judge = self.judge.as_mut().ok_or(Over)?;
        let answer = judge.answered.recv().await.ok_or(Over)?;
        if answer.failed {
            tracing::info!("a replication connection cannot be looked at");
            return Err(Over);
        }
        Ok(answer.value)
    }

    async fn put(&mut self, question: Question, sql: &str) -> Result<(), Over> {
        let judge = self.judge.as_mut().ok_or(Over)?;
        judge.asks.send(question).await.map_err(|_| Over)?;
        let mut out = BytesMut::new();
        put_query(&mut out, sql);
        self.send(&out).await;
        Ok(())
    }
}

/// Commands that were passed on or refused, and copies that are over.
#[derive(Debug, Default)]
struct Done {
    asked: u64,
    closed: u64,
}

/// Whether a text sets less than the floor, however the session reads backslashes.
fn lowers(sql: &[u8], whole: bool, floor: SynchronousCommit) -> Option<Lowers> {
    [true, false].into_iter().find_map(|standard_strings| {
        let options = Options { standard_strings, whole, functions: &NoFunctions };
        floor::lowers(&sql::classify(sql, &options), sql, floor)
    })
}

/// The view, once the writer has said whether it has the slot that a command begins to read, or after a
/// while.
async fn judged(world: &dyn World, sql: &[u8]) -> Arc<View> {
    let (mut changes, name) = (world.changes(), started(sql));
    let open = |view: &View| name.as_ref().is_some_and(|n| view.unjudged_slots.contains(n));
    let judged = async { while open(&world.view()) && changes.changed().await.is_ok() {} };
    let _ = timeout(limits::SLOT_JUDGED_WAIT, judged).await;
    world.view()
}

/// Why a slot is not read of which nobody has acknowledged what it lacks: its consumer would go on as
/// if there had been nothing.
fn broken(sql: &[u8], view: &View) -> Option<Report> {
    if view.broken_slots.is_empty() && view.unjudged_slots.is_empty() {
        return None;
    }
    let name = started(sql)?;
    if view.unjudged_slots.contains(&name) {
        let report =
            Report::error("55000", format!("replication slot \"{name}\" is not known yet"));
        let detail = "The writer has just begun, and has not said yet whether it has all of it.";
        return Some(report.detail(detail).hint("Reconnect."));
    }
    let lacks = view.broken_slots.get(&name)?;
    Some(
        Report::error("55000", format!("replication slot \"{name}\" lacks changes"))
            .detail(lacks.clone())
            .hint(format!(
                "Begin anew from a copy of the tables. Then, for the cluster: quorate slots ack {name}"
            )),
    )
}

/// The logical slot that a command begins to read.
fn started(sql: &[u8]) -> Option<String> {
    let mut rest = sql;
    for word in [&b"START_REPLICATION"[..], b"SLOT"] {
        let first = first_word(rest);
        if !first.eq_ignore_ascii_case(word) {
            return None;
        }
        rest = &rest.trim_ascii_start()[first.len()..];
    }
    let rest = rest.trim_ascii_start();
    let name = match rest.strip_prefix(b"\"") {
        Some(quoted) => quoted.split(|b| *b == b'"').next()?.to_owned(),
        None => first_word(rest).to_ascii_lowercase(),
    };
    String::from_utf8(name).ok()
}

fn first_word(sql: &[u8]) -> &[u8] {
    let sql = sql.trim_ascii_start();
    let len = sql.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
    &sql[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_lacks_something_is_known_however_its_command_is_written() {
        for sql in [
            "START_REPLICATION SLOT cdc LOGICAL 0/0",
            "start_replication  slot\n\"cdc\" LOGICAL 0/16B (proto_version '1')",
            " START_REPLICATION SLOT CDC LOGICAL 0/0",
            "START_REPLICATION SLOT\"cdc\"LOGICAL 0/0",
        ] {
            assert_eq!(started(sql.as_bytes()).as_deref(), Some("cdc"), "{sql}");
        }
        assert_eq!(started(b"START_REPLICATION SLOT \"Cdc\" LOGICAL 0/0").as_deref(), Some("Cdc"));
        for sql in ["START_REPLICATION 0/0", "DROP_REPLICATION_SLOT cdc", "SELECT 1", ""] {
            assert_eq!(started(sql.as_bytes()), None, "{sql}");
        }
        let slots = [("cdc".to_owned(), "it lacks this".to_owned())].into();
        let view = View { broken_slots: Arc::new(slots), ..View::default() };
        let start = |name: &str| format!("START_REPLICATION SLOT {name} LOGICAL 0/0");
        let report = broken(start("cdc").as_bytes(), &view).unwrap();
        assert_eq!(report.code, "55000");
        assert!(broken(start("other").as_bytes(), &view).is_none());
        assert!(broken(start("cdc").as_bytes(), &View::default()).is_none());
        let unjudged = Arc::new(["cdc".to_owned()].into());
        let view = View { unjudged_slots: unjudged, ..View::default() };
        let report = broken(start("cdc").as_bytes(), &view).unwrap();
        assert_eq!(report.code, "55000");
        assert!(broken(start("other").as_bytes(), &view).is_none());
    }
}
