//! A server for a group of messages: which one, and the wait for it.

use std::rc::Rc;

use quorate_core::NodeId;
use quorate_core::ancestry::end_of;
use quorate_core::contract::Action;
use quorate_core::gateway::{Consistency, PoolMode};
use quorate_wire::backend::Report;
use quorate_wire::sql::Access;

use crate::account::Account;
use crate::client::Client;
use crate::connect::open;
use crate::group::Group;
use crate::metrics::{Route, count};
use crate::pool::Had;
use crate::route::{self, Because, Way};
use crate::server::{Gone, Part, Server};
use crate::settings::Settings;
use crate::worker::Worker;
use crate::world::{Token, View, Writer};
use crate::{limits, read_only, visible};

/// A server, or what the client is told.
pub(crate) type Acquired = Result<Box<Server>, Box<Report>>;

/// Where a group goes.
pub(crate) fn way(
    client: &Client,
    view: &View,
    worker: &Worker,
    group: &Group,
) -> Result<Way, Box<Report>> {
    if client.writes_at.is_none() {
        if group.access == Access::Write {
            return Ok(Way::Writer(Because::Writes));
        }
        // A client that is going to keep its server begins on the writer.
        let keeps = client.is_pinned() || client.account.spec().mode == PoolMode::Session;
        if !view.wanted.split || keeps {
            return Ok(Way::Writer(Because::Asked));
        }
        if client.account.was_refused(group.fingerprint) {
            return Ok(Way::Writer(Because::Refused));
        }
    }
    if client.serializable {
        return Ok(Way::Writer(Because::Serializable));
    }
    let token = match client.token.map(|token| present(token, view)) {
        None => None,
        Some(Ok(token)) => Some(token),
        Some(Err(lost)) if client.asked.consistency != Consistency::Eventual => {
            return Err(Box::new(lost));
        }
        Some(Err(_)) => None,
    };
    let load = |node| client.account.load(node);
    let now = match view.replicas.is_empty() {
        true => (0, 0),
        false => (worker.view_age_ms(), worker.turn()),
    };
    Ok(route::read(&client.asked, token, view, now, load))
}

/// A token as a position of the present reign, when the present reign has it.
pub(crate) fn present(token: Token, view: &View) -> Result<Token, Report> {
    let Some(writer) = view.writer else { return Ok(token) };
    if token.term >= writer.term {
        return Ok(token);
    }
    match end_of(&view.ends, token.term) {
        Some(end) if token.lsn > end => {
            let message = "history lost: what this session saw was not kept by a failover";
            Err(Report::error("QR010", message)
                .detail(format!(
                    "The position {} of term {} is behind {end}, where that term ended.",
                    token.lsn, token.term
                ))
                .hint("Read again without the token: SET quorate.token = ''."))
        }
        _ => Ok(Token { term: writer.term, lsn: token.lsn }),
    }
}

/// Finds a server for a group, waiting as long as the operator allows.
pub(crate) async fn acquire(worker: &Rc<Worker>, client: &Client, group: &Group) -> Acquired {
    let spec = client.account.spec();
    if let Some(because) = &spec.disabled {
        return Err(Box::new(
            Report::error("57014", format!("an operator has stopped this: {because}"))
                .hint("Ask the operator of the cluster (gateway.pools, disabled)."),
        ));
    }
    if let Some(writes_at) = client.writes_at.as_ref().filter(|_| group.stays) {
        return Err(Box::new(read_only::keeps_nothing(writes_at)));
    }
    if group.recalls && client.account.spec().mode == PoolMode::Transaction {
        return Err(Box::new(forgotten()));
    }
    let mut view = worker.view();
    if read_only::needs_replica(client, group) && view.replicas.is_empty() {
        view = Box::pin(read_only::some_replica(worker)).await?;
    }
    let mut since = None;
    let mut tries = 0;
    loop {
        match way(client, &view, worker, group)? {
            Way::Writer(because) => {
                read_only::allows_writer(client, group)?;
                client.route.set(Route::Writer(because));
                return Box::pin(visible::writer(worker, client, group)).await;
            }
            Way::Replica { node, incarnation } => {
                let (account, settings) = (&client.account, &client.settings);
                let which = (node, incarnation);
                let found = replica(worker, (account, settings), &view, which).await;
                if let Some(server) = found {
                    client.route.set(Route::Replica);
                    client.served_by(node, &view);
                    client.late.set(lateness(&view, node));
                    return Ok(server);
                }
                if !nobody_else(worker, *since.get_or_insert_with(|| worker.now()))? {
                    read_only::allows_writer(client, group)?;
                    client.route.set(Route::Writer(Because::NoReplica));
                    return Box::pin(visible::writer(worker, client, group)).await;
                }
            }
            Way::Nobody => {
                return Err(Box::new(
                    Report::error("57P03", "no replica may serve this read now")
                        .detail("None is known to have what was asked for, or none is near enough.")
                        .hint(
                            "Try again in a moment, or allow the writer: \
                             SET quorate.read_from = prefer.",
                        ),
                ));
            }
        }
        let _held = read_only::held(worker, &view)?;
        tries += 1;
        worker.changed(worker.pause(tries)).await;
        view = worker.view();
    }
}

/// Whether replicas that could not be reached are tried again, because there is no writer that could
/// serve what they were to.
fn nobody_else(worker: &Worker, since: u64) -> Result<bool, Box<Report>> {
    let view = worker.view();
    if view.writer.is_none() && worker.now() >= since + view.wanted.hold_ms {
        return Err(Box::new(no_writer(&view, None)));
    }
    Ok(view.writer.is_none())
}

/// How late a replica is that serves although its contract is broken and wants its readers warned.
fn lateness(view: &View, node: NodeId) -> Option<(NodeId, u64)> {
    let broken = view.replicas.iter().find(|r| r.node == node)?.broken.as_ref()?;
    (broken.action == Action::WarnReader).then_some((node, broken.late_ms))
}

/// The writer, for a session whose past it has: it may be another one than when the group came.
pub(crate) async fn present_writer(
    worker: &Rc<Worker>,
    client: &Client,
    group: &Group,
) -> Acquired {
    let server = writer(worker, &client.account, &client.settings).await?;
    if let Some(token) = client.token
        && group.access == Access::Read
        && client.asked.consistency != Consistency::Eventual
    {
        present(token, &worker.view())?;
    }
    Ok(server)
}

/// For a client that asks for what belongs to a session of which it has no part any more: it would be
/// told what a sequence gave somebody else.
fn forgotten() -> Report {
    let message = "lastval and currval tell nothing here: outside of a transaction block clients \
                   share their connections";
    Report::error("55000", message).hint(
        "Use INSERT ... RETURNING, or make both statements one transaction, or give the role \
         connections of its own (gateway.pools, mode = \"session\").",
    )
}

/// A connection to the writer; waits while there is none.
pub(crate) async fn writer(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    settings: &Rc<Settings>,
) -> Acquired {
    waited(worker, account, settings, false).await
}

/// A connection to a replica, or else to the writer; waits while there is none of either.
pub(crate) async fn any(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    settings: &Rc<Settings>,
) -> Acquired {
    waited(worker, account, settings, true).await
}

async fn waited(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    settings: &Rc<Settings>,
    replicas_first: bool,
) -> Acquired {
    let mut since = None;
    let mut refused = None;
    let mut tries = 0;
    loop {
        if replicas_first && let Some(server) = any_replica(worker, account, settings).await {
            return Ok(server);
        }
        let view = worker.view();
        if let Some(at) = view.writer.filter(|_| !account.paused.get()) {
            match connection(worker, account, settings, at).await {
                Ok(server) => return Ok(server),
                Err(Failed::Told(report)) => return Err(report),
                Err(Failed::Later(why)) => refused = Some(why),
            }
            tries += 1;
        }
        let since = *since.get_or_insert_with(|| worker.now());
        if worker.now() >= since + view.wanted.hold_ms {
            return Err(Box::new(no_writer(&view, refused)));
        }
        let Some(_held) = worker.hold(view.wanted.held_max as usize) else {
            return Err(Box::new(
                Report::error("53300", "too many transactions wait for a writer")
                    .hint("Try again in a moment."),
            ));
        };
        worker.changed(if tries > 0 { worker.pause(tries) } else { limits::LOOK_AGAIN }).await;
    }
}

fn no_writer(view: &View, refused: Option<String>) -> Report {
    let report = Report::error("57P03", "the cluster has no writer now");
    let because = match (refused, view.because.as_str()) {
        (Some(refused), _) => Some(refused),
        (None, "") => None,
        (None, because) => Some(because.to_owned()),
    };
    let report = match because {
        Some(because) => report.detail(because),
        None => report,
    };
    report.hint("Nothing was executed. Try again in a moment; quorate status tells why.")
}

/// Why there is no connection.
enum Failed {
    /// The client is to know.
    Told(Box<Report>),
    /// It may work in a moment.
    Later(String),
}

/// A connection to this writer.
async fn connection(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    settings: &Rc<Settings>,
    at: Writer,
) -> Result<Box<Server>, Failed> {
    let pool = account.pool(at.node);
    let part = Part::Writer(at.term);
    let spec = account.spec();
    let wait = (|| worker.now(), spec.wait_ms);
    match pool.take(part, settings, spec.waiting_max, wait).await {
        // The gate knows before the news gets here; what was sent now would be cut without an answer.
        Had::Server(server) if server.is_over() => {
            Err(Failed::Later("the writer's term has just ended".to_owned()))
        }
        Had::Server(server) => Ok(server),
        Had::Place(place) => {
            let opened = Box::pin(open(worker, account, (at.node, at.here), part)).await;
            match opened {
                Ok(mut server) => {
                    server.place = Some(place);
                    Ok(server)
                }
                Err(gone) => Err(failed(gone, account)),
            }
        }
        Had::Expired => {
            count(&account.counters.expired);
            Err(Failed::Told(Box::new(
                Report::error("53300", "no server connection was free in time")
                    .detail(format!(
                        "All {} connections of {} in {} were busy for {} ms.",
                        spec.size, account.user, account.database, spec.wait_ms
                    ))
                    .hint(
                        "Nothing was executed. Raise gateway.pool.size, or shorten transactions.",
                    ),
            )))
        }
        Had::Crowded => Err(Failed::Told(Box::new(
            Report::error("53300", "too many clients wait for a server connection")
                .hint("Nothing was executed. Raise gateway.pool.size or gateway.pool.waiting_max."),
        ))),
    }
}

/// What a failed attempt to log in means.
fn failed(gone: Gone, account: &Account) -> Failed {
    let Gone::Refused(body) = &gone else { return Failed::Later(gone.sentence()) };
    let fields = quorate_wire::backend::Fields::parse(body);
    let code = fields.as_ref().map_or("", |f| f.code());
    // Starting up, shutting down, full: that passes.
    if code.starts_with("57P") || code.starts_with("53") || code.is_empty() {
        return Failed::Later(gone.sentence());
    }
    tracing::info!(
        user = %account.user, database = %account.database,
        "the server refused a login: {}", gone.sentence()
    );
    let message = fields.map(|f| f.message().to_owned()).unwrap_or_default();
    let code = match code {
        "3D000" => "3D000",
        "42501" => "42501",
        "28000" => "28000",
        "28P01" => "28P01",
        _ => "08004",
    };
    Failed::Told(Box::new(Report::error(code, message)))
}

/// A connection to any replica; `None` when there is none now.
async fn any_replica(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    settings: &Rc<Settings>,
) -> Option<Box<Server>> {
    let view = worker.view();
    for r in &view.replicas {
        let which = (r.node, r.incarnation);
        if let Some(server) = replica(worker, (account, settings), &view, which).await {
            return Some(server);
        }
    }
    None
}

/// A connection to a replica that can prove what was asked of it; `None` when there is none now.
pub(crate) async fn replica(
    worker: &Rc<Worker>,
    (account, settings): (&Rc<Account>, &Rc<Settings>),
    view: &View,
    (node, incarnation): (quorate_core::NodeId, u64),
) -> Option<Box<Server>> {
    let here = view.replicas.iter().find(|r| r.node == node)?.here;
    let pool = account.pool(node);
    let spec = account.spec();
    let wait = || (|| worker.now(), spec.wait_ms);
    loop {
        match pool.take(Part::Replica, settings, spec.waiting_max, wait()).await {
            // What is known was said of another start of that server.
            Had::Server(server) if server.incarnation != incarnation => drop(server),
            Had::Server(server) => return Some(server),
            Had::Place(place) => {
                let opening = Box::pin(open(worker, account, (node, here), Part::Replica));
                let mut server = match opening.await {
                    Ok(server) => server,
                    Err(gone) => {
                        tracing::debug!(%node, "no connection to a replica: {}", gone.sentence());
                        return None;
                    }
                };
                server.place = Some(place);
                return (server.incarnation == incarnation).then_some(server);
            }
            Had::Expired | Had::Crowded => return None,
        }
    }
}
