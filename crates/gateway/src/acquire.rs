//! A server for a group of messages: which one, and the wait for it.

use std::rc::Rc;

use quorate_core::NodeId;
use quorate_core::contract::Action;
use quorate_core::gateway::{Consistency, PoolMode, SynchronousCommit};
use quorate_wire::backend::Report;
use quorate_wire::sql::Access;
use tokio::net::UnixStream;

use crate::account::Account;
use crate::client::Client;
use crate::group::Group;
use crate::io::Io;
use crate::metrics::{Route, count};
use crate::opening;
use crate::pool::Had;
use crate::route::{self, Because, Way};
use crate::server::{Fence, Gone, Part, Server};
use crate::settings::Settings;
use crate::worker::Worker;
use crate::world::{Token, View, Writer};
use crate::{floor, functions, limits, read_only, visible};

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
    // The first reign that ended at or after the token's own cut off what came later in it.
    let end = view.ends.iter().find(|(term, _)| *term >= token.term).map(|(_, end)| *end);
    match end {
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
    let since = worker.now();
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
                if !nobody_else(worker, since)? {
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

/// Opens connections that nobody waits for yet, so that a burst finds them: in every pool that was
/// used, and on the present writer for all who use any.
pub(crate) fn fill(worker: &Rc<Worker>) {
    let view = worker.view();
    for account in worker.accounts() {
        let spec = account.spec();
        let pools = account.pools();
        if spec.min_idle == 0 || pools.is_empty() || account.paused.get() || spec.disabled.is_some()
        {
            continue;
        }
        if let Some(w) = view.writer {
            keep_full(worker, &account, (w.node, w.here), Part::Writer(w.term));
        }
        let used = |node| pools.iter().any(|pool| pool.node == node);
        for r in view.replicas.iter().filter(|r| used(r.node)) {
            keep_full(worker, &account, (r.node, r.here), Part::Replica);
        }
    }
}

fn keep_full(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    at: (quorate_core::NodeId, bool),
    part: Part,
) {
    let pool = account.pool(at.0);
    if pool.filling.replace(true) {
        return;
    }
    let (worker, account) = (Rc::clone(worker), Rc::clone(account));
    tokio::task::spawn_local(async move {
        while let Some(place) = pool.spare_place(part, account.spec().min_idle) {
            match open(&worker, &account, at, part).await {
                Ok(mut server) => {
                    server.place = Some(place);
                    account.put(server);
                }
                Err(gone) => {
                    let why = gone.sentence();
                    tracing::debug!(node = %at.0, "no connection to be kept idle: {why}");
                    break;
                }
            }
        }
        pool.filling.set(false);
    });
}

/// Opens a connection and makes it ready for clients.
async fn open(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    (node, here): (quorate_core::NodeId, bool),
    part: Part,
) -> Result<Box<Server>, Gone> {
    let _turn = worker.dials.acquire().await;
    count(&account.counters.opened);
    let opening = async {
        let mut server = opened(worker, account, (node, here), part, None).await?;
        let floor = account.spec().floor;
        if part != Part::Replica && below_floor(&mut server, floor).await? {
            // Whatever resets a setting leads back to what the connection began with: it begins
            // with another one.
            tracing::info!(
                user = %account.user, database = %account.database,
                "synchronous_commit is set below gateway.synchronous_commit_floor for this role \
                 or database; raised to {}", floor.as_str()
            );
            drop(server);
            server = opened(worker, account, (node, here), part, Some(floor)).await?;
        }
        Ok(server)
    };
    tokio::select! {
        biased;
        opened = tokio::time::timeout(limits::OPEN_WAIT, opening) => {
            opened.unwrap_or_else(|_| Err(Gone::Lost(format!("{node} did not answer in time"))))
        }
        () = moved(worker, part) => Err(Gone::Lost(format!("{node} does not write any more"))),
    }
}

/// Until the writer of this term is known to write no more. A host that is lost says nothing, and
/// whoever waits for it would go on waiting while another one serves.
async fn moved(worker: &Worker, part: Part) {
    let Part::Writer(term) = part else { return std::future::pending().await };
    let mut changes = worker.world.changes();
    while worker.world.view().writer.is_some_and(|w| w.term == term) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Whether a new connection has less than the least `synchronous_commit`: by `ALTER ROLE` or
/// `ALTER DATABASE`.
async fn below_floor(server: &mut Server, floor: SynchronousCommit) -> Result<bool, Gone> {
    if floor == SynchronousCommit::Off {
        return Ok(false);
    }
    let answer = server.ask(b"SELECT pg_catalog.current_setting('synchronous_commit')").await?;
    Ok(answer.column(0, 0).is_some_and(|value| floor::is_below(value, floor)))
}

async fn opened(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    (node, here): (quorate_core::NodeId, bool),
    part: Part,
    raised: Option<SynchronousCommit>,
) -> Result<Box<Server>, Gone> {
    let startup = account.startup(part == Part::Replica, raised);
    let (io, fence) = if here {
        let local = worker.world.local().ok_or(Gone::Lost("no server on this node".into()))?;
        let gate = if part == Part::Replica { local.reads } else { local.gate };
        let Some(term) = gate.term().filter(|t| part == Part::Replica || part == Part::Writer(*t))
        else {
            return Err(Gone::Lost(format!("{node} does not serve now")));
        };
        // A standby has no commits of its own that wait.
        let alive = local.alive.filter(|_| part != Part::Replica);
        #[cfg(feature = "sabotage")]
        let alive = alive.filter(|_| !crate::sabotage::is("lifeline"));
        let fence = Fence { gate, term, clock: local.clock, alive };
        (Io::Unix(UnixStream::connect(&local.socket).await?), Some(fence))
    } else {
        let mut far = worker.world.dial(node).await.map_err(Gone::Lost)?;
        let frame = opening::session(part == Part::Replica);
        tokio::io::AsyncWriteExt::write_all(&mut far, &frame).await?;
        (Io::Far(far), None)
    };
    let mut server =
        Box::new(Server::open(io, (node, part, fence), &startup, here, worker.now()).await?);
    worker.follow(&server);
    match part {
        Part::Writer(_) => {
            account.set_reported(&server.reported);
            server.prepare_xid().await?;
        }
        Part::Replica => {
            let sql = "SELECT (1000000 * extract(epoch FROM \
                       pg_catalog.pg_postmaster_start_time()))::bigint";
            let answer = server.ask(sql.as_bytes()).await?;
            let text = answer.column(0, 0).and_then(|v| std::str::from_utf8(v).ok());
            server.incarnation = text.and_then(|v| v.parse().ok()).unwrap_or(0);
        }
    }
    let now = worker.now();
    if account.lacks_functions(now, limits::FUNCTIONS_AGE_MS) {
        learn_functions(account, &mut server, now).await?;
    }
    Ok(server)
}

/// Reads the functions of the database.
pub(crate) async fn learn_functions(
    account: &Account,
    server: &mut Server,
    now: u64,
) -> Result<(), Gone> {
    account.functions_read.set(now);
    let asked = account.asks_functions();
    let answer = server.ask(functions::QUERY.as_bytes()).await?;
    let hidden = server.ask(functions::HIDDEN.as_bytes()).await?;
    let relations = server.ask(functions::RELATIONS.as_bytes()).await?;
    match answer.failed().or(hidden.failed()).or(relations.failed()) {
        None => {
            let catalog = functions::Catalog::read(&answer, &hidden, &relations);
            account.set_functions(asked, catalog);
        }
        Some(why) => tracing::warn!(
            database = %account.database,
            "cannot read the functions of a database; statements that call them go to the writer: \
             {why}"
        ),
    }
    Ok(())
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
