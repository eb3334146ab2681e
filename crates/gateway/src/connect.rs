//! New connections to servers, made ready for clients.

use std::rc::Rc;

use quorate_core::NodeId;
use quorate_core::gateway::SynchronousCommit;
use tokio::net::UnixStream;

use crate::account::Account;
use crate::fence::Fence;
use crate::io::Io;
use crate::metrics::count;
use crate::server::{Gone, Part, Server};
use crate::worker::Worker;
use crate::{floor, functions, limits, opening};

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

fn keep_full(worker: &Rc<Worker>, account: &Rc<Account>, at: (NodeId, bool), part: Part) {
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
pub(crate) async fn open(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    (node, here): (NodeId, bool),
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
    (node, here): (NodeId, bool),
    part: Part,
    raised: Option<SynchronousCommit>,
) -> Result<Box<Server>, Gone> {
    let startup = account.startup(part == Part::Replica, raised);
    let (io, fence) = if here {
        let local = worker.world.local().ok_or(Gone::Lost("no server on this node".into()))?;
        let fence = Fence::before(&local, part == Part::Replica);
        let meant = |f: &Fence| part == Part::Replica || part == Part::Writer(f.term);
        let Some(fence) = fence.filter(meant) else {
            return Err(Gone::Lost(format!("{node} does not serve now")));
        };
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
