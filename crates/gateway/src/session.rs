//! A client's session after its login: wait for a request, find a server, relay, tidy up, repeat.

use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use quorate_core::words::seconds;
use quorate_wire::Error;
use quorate_wire::backend::{Report, Status};
use quorate_wire::frame::{HEADER, body_len};
use quorate_wire::sql::Access;

use crate::acquire::acquire;
use crate::aftermath::{self, After};
use crate::cap::Cap;
use crate::client::{Block, Client, State};
use crate::elsewhere;
use crate::floor;
use crate::full;
use crate::gate::Verdict;
use crate::group::{self, Group, peek};
use crate::io::{Scratch, consume};
use crate::limits;
use crate::loss::after_loss;
use crate::metrics::count;
use crate::own::{Directive, show_token, wrong_setting};
use crate::read_only;
use crate::relay::{Event, Relay};
use crate::server::{Gone, Part, Server};
use crate::settings::Settings;
use crate::tidy;
use crate::timing;
use crate::worker::Worker;

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client left.
    Left,
    /// It is told why, and the connection is closed.
    Told(Box<Report>),
    /// It cannot be told: it has got half a message.
    Cut,
}

/// Serves a client until it leaves.
pub(crate) async fn serve(worker: &Rc<Worker>, client: &mut Client) -> End {
    loop {
        client.handle.state.set(State::Idle);
        let group = match next(worker, client).await {
            Ok(Some(group)) => group,
            Ok(None) => return End::Left,
            Err(error) => return End::Told(Box::new(protocol(&error))),
        };
        if client.handle.killed.get() {
            return End::Told(Box::new(killed()));
        }
        let served = match client.lost.take() {
            Some(lost) => Box::pin(after_loss(worker, client, lost, &group)).await,
            None => transaction(worker, client, &group).await,
        };
        if let Err(end) = served {
            return end;
        }
    }
}

pub(crate) fn protocol(error: &Error) -> Report {
    Report::fatal("08P01", format!("the client does not speak the protocol: {error}"))
        .hint("Check that the driver speaks the PostgreSQL protocol, version 3.")
}

fn killed() -> Report {
    Report::fatal("57P01", "an operator ended this connection").hint("Reconnect.")
}

/// Waits for the next group of messages. Holds little memory while it waits.
async fn next(worker: &Rc<Worker>, client: &mut Client) -> Result<Option<Group>, Error> {
    loop {
        discard(client)?;
        // Whoever does not read is answered no further.
        if client.end.out.len() >= limits::PENDING_MAX {
            match heard(client).await {
                Ok(true) => {}
                Ok(false) => return Ok(Some(Group::nothing())),
                Err(std::io::Error { .. }) => return Ok(None),
            }
        }
        if client.skipping.is_none() && client.left == 0 && !client.end.stash.is_empty() {
            let found = peek(client, &mut worker.statements.borrow_mut())?;
            match found {
                Some(group) if group.leaves => return Ok(None),
                Some(group) => return Ok(Some(group)),
                None => {}
            }
        }
        let read = std::future::poll_fn(|cx| {
            if client.handle.killed.get() {
                return Poll::Ready(Ok(None));
            }
            if client.end.poll_drain(cx)?.is_pending() {
                // What is read meanwhile waits with it.
            }
            let mut scratch = Scratch::take();
            match client.end.io.poll_read(cx, &mut scratch) {
                Poll::Pending => {
                    client.handle.waker.set(Some(cx.waker().clone()));
                    Poll::Pending
                }
                Poll::Ready(Ok(n)) => {
                    client.end.stash.extend_from_slice(&scratch[..n]);
                    Poll::Ready(Ok(Some(n)))
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            }
        });
        match read.await {
            Ok(Some(n)) if n > 0 => {}
            Ok(None) => return Ok(Some(Group::nothing())),
            Ok(Some(_)) | Err(std::io::Error { .. }) => return Ok(None),
        }
    }
}

/// Waits until a client has taken all that it was told; false when it is to be ended.
async fn heard(client: &mut Client) -> std::io::Result<bool> {
    std::future::poll_fn(|cx| {
        if client.handle.killed.get() {
            return Poll::Ready(Ok(false));
        }
        client.handle.waker.set(Some(cx.waker().clone()));
        client.end.poll_drain(cx).map_ok(|()| true)
    })
    .await
}

/// Drops the rest of a message that goes nowhere, and what the client sends after an error that was
/// told without a server, up to its Sync.
fn discard(client: &mut Client) -> Result<(), Error> {
    loop {
        let n = client.left.min(client.end.stash.len());
        consume(&mut client.end.stash, n);
        client.left -= n;
        let Some(status) = client.skipping.filter(|_| client.left == 0) else { break };
        let Some(header) = client.end.stash.first_chunk::<HEADER>() else { break };
        let (tag, len) = (header[0], body_len(header)?);
        match tag {
            // Whoever says goodbye is heard.
            b'X' => {
                client.skipping = None;
                break;
            }
            b'S' => {
                client.skipping = None;
                aftermath::ready(client, status);
            }
            _ => {}
        }
        client.left = HEADER + len;
    }
    client.end.slim();
    Ok(())
}

/// Answers a group with an error, without a server.
pub(crate) fn refuse(client: &mut Client, group: &Group, report: &Report, status: Status) {
    client.end.out.extend_from_slice(&report.encode());
    let len = group.len.min(client.end.stash.len());
    let ends_query = group.whole || group.is_call;
    if ends_query && len == group.len {
        consume(&mut client.end.stash, len);
        aftermath::ready(client, status);
        client.end.slim();
        return;
    }
    // A long simple query has no Sync behind it: it is dropped by its own length.
    if let Some(header) = client.end.stash.first_chunk::<HEADER>()
        && matches!(header[0], b'Q' | b'F')
        && let Ok(body) = body_len(header)
    {
        let total = HEADER + body;
        let there = total.min(client.end.stash.len());
        consume(&mut client.end.stash, there);
        client.left = total - there;
        client.passing = false;
        aftermath::ready(client, status);
        return;
    }
    client.skipping = Some(status);
}

/// Serves one transaction, or one statement outside of any.
async fn transaction(worker: &Rc<Worker>, client: &mut Client, group: &Group) -> Result<(), End> {
    if let Some(directive) = group.directive {
        client.asked = directive.over(client.asked);
    }
    timing::begins(client, worker.micros());
    let mut group = *group;
    let mut retries = 0;
    let result = loop {
        match once(worker, client, &group, retries).await {
            Ok(After::Done) => break Ok(()),
            Ok(After::OnWriter) => group.access = Access::Write,
            Ok(After::Again) => {}
            // There are no more of them than places in a pool.
            Ok(After::Stale) => continue,
            Err(end) => break Err(end),
        }
        retries += 1;
        count(&client.account.counters.repeated);
    };
    if group.directive.is_some() {
        // As the settings say, which the transaction may have changed.
        client.read_settings();
    }
    result
}

async fn once(
    worker: &Rc<Worker>,
    client: &mut Client,
    group: &Group,
    retries: u32,
) -> Result<After, End> {
    let wrong = group.directive.and_then(Directive::trouble);
    let wrong = wrong.or_else(|| if group.ours { wrong_setting(worker, client) } else { None });
    if let Some(report) = wrong {
        refuse(client, group, &report, Status::Idle);
        return Ok(After::Done);
    }
    if group.only_prepares {
        let statements = &mut worker.statements.borrow_mut();
        let done = group::prepared(client, statements, group);
        return done.map(|()| After::Done).map_err(|e| End::Told(Box::new(protocol(&e))));
    }
    client.handle.state.set(State::Waiting);
    let mut server = match acquire(worker, client, group).await {
        Ok(server) => server,
        Err(report) => {
            refuse(client, group, &report, Status::Idle);
            return Ok(After::Done);
        }
    };
    match settings(worker, client, &mut server).await {
        Ok(()) => {}
        Err(Unset::Gone(gone)) if server.pooled || retries < limits::RETRIES_MAX => {
            tracing::debug!("a server was lost before it was used: {}", gone.sentence());
            return Ok(unused(&server));
        }
        // A role of that server's, or what it was left with, may stand against it there.
        Err(Unset::Wrong(why)) if server.part == Part::Replica && client.writes_at.is_none() => {
            tracing::debug!("a replica does not take a session's settings: {why}");
            return Ok(After::OnWriter);
        }
        Err(unset) => {
            let report = unset.told(client);
            refuse(client, group, &report, Status::Idle);
            return Ok(After::Done);
        }
    }
    if full::stops(worker, client, &server) {
        if read_only::force(&mut server).await.is_err() {
            return Ok(unused(&server));
        }
        server.forced = true;
    }
    if group.shows && show_token(worker, client, &mut server).await.is_err() {
        return Ok(unused(&server));
    }
    warn(worker, client);
    link(client, &server);
    // A standby refused it, or would have: it may write, whatever it looks like.
    let wrote = client.writes_at.is_none()
        && (group.access == Access::Write && retries > 0
            || client.account.was_refused(group.fingerprint));
    client.block = Block { wrote, tells_nothing: group.tells_nothing, ..Block::default() };
    let after = linked(worker, client, server, group, retries).await;
    *client.handle.linked.borrow_mut() = None;
    after
}

/// Tells a client that what it is about to read is later than agreed: now and then, as it may read
/// often.
fn warn(worker: &Worker, client: &mut Client) {
    let Some((node, late_ms)) = client.late.take() else { return };
    let now = worker.now();
    if client.warned.is_some_and(|at| now < at + limits::WARN_AGAIN_MS) {
        return;
    }
    client.warned = Some(now);
    let late = seconds(Duration::from_millis(late_ms));
    let limits = worker.view().replicas.iter().find(|r| r.node == node).and_then(|r| {
        let broken = r.broken.as_ref()?;
        Some(format!("Its contract: {}.", broken.limits))
    });
    let report = Report::warning("01000", format!("what {node} shows is {late} late"));
    let report = match limits {
        Some(limits) => report.detail(limits),
        None => report,
    };
    let hint = "For newer data SET quorate.read_from = writer, or quorate.consistency = strong.";
    client.end.out.extend_from_slice(&report.hint(hint).encode());
}

/// What follows when a server is lost before anything was sent to it.
fn unused(server: &Server) -> After {
    if server.pooled { After::Stale } else { After::Again }
}

/// Makes the client's settings on the server, and what else it needs.
pub(crate) async fn settings(
    worker: &Worker,
    client: &mut Client,
    server: &mut Server,
) -> Result<(), Unset> {
    if client.handle.raise.replace(false) {
        floor::raise(client);
    }
    if !server.asks_xid && matches!(server.part, Part::Writer(_)) && worker.resolves() {
        server.prepare_xid().await?;
    }
    if let Some(sql) = Settings::change(&server.applied, &client.settings)
        && let Some(why) = server.ask(&sql).await?.failed()
    {
        // The server is in an unknown state now.
        return Err(Unset::Wrong(why));
    }
    server.applied = Rc::clone(&client.settings);
    (server.forced, server.exchange.full) = (false, None);
    if client.writes_at.is_some() && server.part != Part::Replica {
        read_only::force(server).await?;
    }
    Ok(())
}

/// Why a server cannot be used for a client.
pub(crate) enum Unset {
    /// It is lost.
    Gone(Gone),
    /// A setting that the client made before cannot be made again.
    Wrong(String),
}

impl From<Gone> for Unset {
    fn from(gone: Gone) -> Self {
        Unset::Gone(gone)
    }
}

impl Unset {
    /// What the client is told. With settings that no server takes any more it begins anew.
    pub(crate) fn told(self, client: &mut Client) -> Report {
        match self {
            Unset::Gone(_) => Report::error("57P03", "the server was lost before it was used")
                .hint("Nothing was executed. Try again in a moment."),
            Unset::Wrong(why) => {
                client.settings = Rc::clone(&client.startup);
                client.read_settings();
                let message = format!("the session's settings cannot be made again: {why}");
                Report::error("55000", message)
                    .detail("Its settings are those of its login now. Nothing was executed.")
                    .hint("Make the settings that are still wanted, and go on.")
            }
        }
    }
}

pub(crate) fn link(client: &Client, server: &Server) {
    client.handle.state.set(State::Active);
    *client.handle.linked.borrow_mut() = Some(Rc::clone(&server.linked));
}

/// Relays until the transaction is over, and longer for a client that keeps its server. What is
/// seldom needed is in boxes, as in [`tidy`]: each client that waits has room for the rest.
pub(crate) async fn linked(
    worker: &Rc<Worker>,
    client: &mut Client,
    mut server: Box<Server>,
    group: &Group,
    retries: u32,
) -> Result<After, End> {
    let on_writer = matches!(server.part, Part::Writer(_));
    let alone = client.end.stash.len() == group.len;
    // Without effect, whether it was executed or not.
    let reads_only = client.writes_at.is_some();
    let repeatable = group.access == Access::Read || group.only_begins || reads_only && !on_writer;
    let guarded = group.whole
        && retries < limits::RETRIES_MAX
        && (!on_writer || alone)
        && group.len <= limits::REPLAY_MAX
        && (repeatable || group.is_extended && group.plain);
    if guarded {
        client.replay = worker.spare();
        client.replay.extend_from_slice(&client.end.stash[..group.len]);
    }
    // A replica may still cancel what it has begun to answer.
    server.exchange.to_the_end = guarded && (group.many || !on_writer);
    let spec = client.account.spec();
    server.exchange.cap = Cap::of(spec.rows_max, spec.bytes_max);
    // A result is known to be too large only when it is there: nothing is sent behind it.
    let one_at_a_time = !on_writer || server.exchange.cap.is_some() || reads_only;
    server.exchange.writes_at = client.writes_at.clone();
    server.exchange.full = full::refusal(worker, server.forced);
    let mut relay = Relay::new(client, &mut server, worker, guarded, one_at_a_time);
    relay.held_max = if group.many { limits::HELD_MAX } else { limits::HELD_READ_MAX };
    loop {
        let event = relay.run().await;
        match event {
            Event::Quiet => {
                relay.client.account.counters.served(relay.client.route.get());
                let last = relay.stamp.unwrap_or_else(|| worker.micros());
                timing::ends(relay.client, relay.server, relay.first.take(), last);
                match tidy::tidy(worker, relay.client, relay.server).await {
                    Ok(tidy::Next::Release) => {
                        let account = Rc::clone(&client.account);
                        server.used = worker.coarse();
                        account.put(server);
                        return Ok(After::Done);
                    }
                    Ok(tidy::Next::Keep) if !on_writer || reads_only => {
                        drop(server);
                        return Err(End::Told(Box::new(elsewhere::stays(client))));
                    }
                    Ok(tidy::Next::Keep) => {
                        // What was set back goes back to where this client began.
                        match settings(worker, relay.client, relay.server).await {
                            Ok(()) => {}
                            Err(Unset::Wrong(why)) => {
                                tracing::info!("a client's settings cannot be made again: {why}");
                                Unset::Wrong(why).told(relay.client);
                            }
                            Err(Unset::Gone(gone)) => {
                                let why = gone.sentence();
                                return Box::pin(aftermath::lost(
                                    worker, client, server, &why, group,
                                ))
                                .await;
                            }
                        }
                        relay.asked = false;
                        relay.barrier = false;
                        relay.reused.clear();
                        relay.client.handle.state.set(State::Idle);
                    }
                    Err(gone) => {
                        let why = gone.sentence();
                        return Box::pin(aftermath::lost(worker, client, server, &why, group))
                            .await;
                    }
                }
            }
            Event::Hold => hold(&relay).await,
            Event::CancelledWait(len) => {
                tracing::info!("a commit stopped waiting for copies; its answer waits");
                if !worker.world.settled().await {
                    return Box::pin(aftermath::lost(worker, client, server, CUT, group)).await;
                }
                let stash = &mut relay.server.end.stash;
                consume(stash, len);
            }
            Event::Elsewhere => return Box::pin(elsewhere::goes_on(worker, client, server)).await,
            Event::Refused(code) => match aftermath::refused(&mut relay, code, group) {
                Some(after) => {
                    relay.rewind();
                    Box::pin(finish(client, server)).await;
                    return Ok(after);
                }
                None => {
                    relay.guarded = false;
                    relay.server.exchange.to_the_end = false;
                }
            },
            Event::ClientLeft => {
                Box::pin(leave(client, server)).await;
                return Err(End::Left);
            }
            Event::ClientBroken(error) => {
                drop(server);
                return Err(End::Told(Box::new(protocol(&error))));
            }
            Event::ServerLost(why) => {
                if relay.consumed == 0 {
                    relay.rewind();
                    return Ok(unused(&server));
                }
                if relay.guarded && repeatable {
                    relay.rewind();
                    return Ok(After::Again);
                }
                return Box::pin(aftermath::lost(worker, client, server, &why, group)).await;
            }
            Event::Cut => {
                if relay.consumed == 0 {
                    relay.rewind();
                    return Ok(unused(&server));
                }
                if relay.guarded && repeatable {
                    relay.rewind();
                    return Ok(After::Again);
                }
                return Box::pin(aftermath::lost(worker, client, server, CUT, group)).await;
            }
        }
    }
}

/// Why a server is cut off.
pub(crate) const CUT: &str = "the writer of this cluster moved";

/// Waits until the lease is renewed, or its term is over.
async fn hold(relay: &Relay<'_>) {
    if let Some(fence) = relay.server.fence.clone() {
        while fence.check() == Verdict::Hold {
            fence.passed().await;
        }
    }
}

/// Lets a server finish what nobody waits for any more, and gives it back.
async fn finish(client: &Client, mut server: Box<Server>) {
    let account = Rc::clone(&client.account);
    let settled = tokio::time::timeout(limits::FINISH_WAIT, server.settle()).await;
    let leaves = client.block.look || tidy::suspicious(client, &client.block);
    if matches!(settled, Ok(Ok(_))) && !leaves {
        account.put(server);
    }
}

/// The client left: what it left open is rolled back, what it left running goes on to its end.
async fn leave(client: &mut Client, mut server: Box<Server>) {
    if !server.exchange.is_quiet() || client.left > 0 {
        return;
    }
    let account = Rc::clone(&client.account);
    let clean = async {
        if server.exchange.status != Status::Idle {
            server.ask(b"ROLLBACK").await?;
        }
        let block = &client.block;
        let leaves = block.look || block.reset_all || tidy::suspicious(client, block);
        if client.is_pinned() || leaves || !block.settings.is_empty() {
            let cleared = server.ask(b"DISCARD ALL").await?.failed().is_none();
            server.forget_statements();
            server.applied = Rc::default();
            return Ok(cleared);
        }
        Ok::<_, Gone>(true)
    };
    if matches!(tokio::time::timeout(limits::FINISH_WAIT, clean).await, Ok(Ok(true))) {
        account.put(server);
    }
}
