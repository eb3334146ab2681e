//! Between two transactions: what the last one left in the server's session, and whether the server
//! may serve somebody else.

use std::rc::Rc;

use bytes::{BufMut, BytesMut};
use quorate_core::gateway::{Consistency, PoolMode, SynchronousCommit};

use crate::acquire::present;
use crate::client::{Block, Client, Ending, Pin};
use crate::connect::learn_functions;
use crate::floor;
use crate::limits;
use crate::read_only;
use crate::server::{Gone, Part, Server};
use crate::settings::put_literal;
use crate::visible;
use crate::worker::Worker;
use crate::world::Token;

/// What becomes of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It may serve anybody.
    Release,
    /// It stays with the client.
    Keep,
}

/// Finds out what may be left, where there is anything to ask. (PostgreSQL shows what belongs to a
/// transaction as a setting of the session once it was made in one.)
const RESIDUE: &[u8] = b"SELECT \
EXISTS (SELECT FROM pg_catalog.pg_class \
WHERE relnamespace = pg_catalog.pg_my_temp_schema()), \
EXISTS (SELECT FROM pg_catalog.pg_locks \
WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()), \
EXISTS (SELECT FROM pg_catalog.pg_listening_channels()), \
EXISTS (SELECT FROM pg_catalog.pg_cursors), \
EXISTS (SELECT FROM pg_catalog.pg_prepared_statements \
WHERE from_sql AND name <> 'quorate_xid'), \
(SELECT pg_catalog.string_agg(pg_catalog.lower(name), ',') FROM pg_catalog.pg_settings \
WHERE source = 'session' \
AND name NOT IN ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')), \
pg_catalog.current_setting('synchronous_commit')";

/// Looks after a server whose transaction is over. What is seldom needed is in boxes: each client
/// that waits has room for the rest.
pub(crate) async fn tidy(
    worker: &Rc<Worker>,
    client: &mut Client,
    server: &mut Server,
) -> Result<Next, Gone> {
    let mut block = std::mem::take(&mut client.block);
    let sees = sees(client);
    match server.part {
        // Neither what it wrote nor what it saw has moved.
        _ if block.tells_nothing => {}
        Part::Writer(_) if block.wrote || sees => {
            let here = || server.here.then(|| worker.world.acknowledged());
            client.token = client.token.max(block.position.or_else(here));
        }
        Part::Replica if sees => {
            if let Some(shown) = Box::pin(visible::shown(server)).await? {
                client.saw(&shown);
            }
            // For the next transaction, should it keep its server.
            client.served_by(server.node, &worker.view());
        }
        Part::Writer(_) | Part::Replica => {}
    }
    if block.discarded {
        discarded(client, server);
    }
    let looks = block.look || suspicious(client, &block);
    if block.reset_all || looks {
        all_settings(client, server, &mut block);
    }
    if !block.settings.is_empty() {
        Box::pin(learn(worker, client, server, &block)).await?;
    }
    if block.look {
        // Code that is not known may have forgotten what was prepared.
        server.prepared.doubt_all();
    }
    let (now, age) = match (block.defined, block.look) {
        (true, _) => (worker.now(), 0),
        // It may be known by now.
        (false, true) => (worker.now(), limits::FUNCTIONS_UNKNOWN_AGE_MS),
        (false, false) => (worker.coarse(), limits::FUNCTIONS_OLD_MS),
    };
    if client.account.lacks_functions(now, age) {
        Box::pin(learn_functions(&client.account, server, now)).await?;
    }
    if looks {
        Box::pin(look(client, server)).await?;
    }
    let floor = client.account.spec().floor;
    if server.applied.get(floor::NAME).is_some_and(|v| floor::is_below(v, floor)) {
        Box::pin(keep_floor(client, server, floor)).await?;
    }
    if client.account.spec().mode == PoolMode::Session && client.writes_at.is_none() {
        client.pin(Pin::Session);
    }
    Ok(if client.is_pinned() { Next::Keep } else { Next::Release })
}

/// The setting that a token is handed over by.
pub(crate) const TOKEN: &[u8] = b"quorate.token";

/// Whether later reads of the session must see what it saw; what it wrote they must see anyway.
pub(crate) fn sees(client: &Client) -> bool {
    matches!(client.asked.consistency, Consistency::Monotonic | Consistency::Causal)
}

/// Whether code out of sight may have run that leaves something: of a trigger, a default, a view.
pub(crate) fn suspicious(client: &Client, block: &Block) -> bool {
    let functions = client.account.functions();
    functions.suspect_views || block.wrote && (functions.suspect || functions.suspect_defaults)
}

/// DISCARD ALL: both sides begin anew. What was prepared was forgotten already.
fn discarded(client: &mut Client, server: &mut Server) {
    client.settings = Rc::clone(&client.startup);
    client.read_settings();
    server.applied = Rc::default();
    client.handle.pin.set(None);
}

/// Whatever is known to be set may be something else: after RESET ALL, which does not reset a role,
/// and after code that is not known.
fn all_settings(client: &Client, server: &Server, block: &mut Block) {
    let known = [&server.applied, &client.settings, &client.startup];
    // What was set there for want of room is none of the client's.
    let own = |name: &[u8]| {
        !server.forced || name != read_only::SETTING || client.settings.get(name).is_some()
    };
    let known = known.into_iter().flat_map(|settings| settings.iter());
    for (name, _) in known.filter(|(name, _)| own(name)) {
        let name: Box<[u8]> = name.into();
        if !block.settings.contains(&name) {
            block.settings.push(name.clone());
        }
        if block.reset_all && name[..] != *b"role" && !block.resets.contains(&name) {
            block.resets.push(name);
        }
    }
}

/// `default_transaction_read_only`, if the session set it.
const READ_ONLY_SET: &[u8] = b"(SELECT setting FROM pg_catalog.pg_settings \
WHERE name = 'default_transaction_read_only' AND source = 'session')";

/// What the settings are now that the transaction may have changed: the server is asked, since it
/// alone knows what was rolled back.
async fn learn(
    worker: &Worker,
    client: &mut Client,
    server: &mut Server,
    block: &Block,
) -> Result<(), Gone> {
    let mut sql = BytesMut::new();
    sql.put_slice(b"SELECT ");
    for (i, name) in block.settings.iter().enumerate() {
        if i > 0 {
            sql.put_u8(b',');
        }
        if server.part == Part::Replica && name[..] == *b"default_transaction_read_only" {
            // Its default is another one there.
            sql.put_slice(READ_ONLY_SET);
            continue;
        }
        sql.put_slice(b"pg_catalog.current_setting(");
        put_literal(&mut sql, name);
        sql.put_slice(b",true)");
    }
    let answer = server.ask(&sql).await?;
    if let Some(why) = answer.failed() {
        return Err(Gone::Lost(format!("settings cannot be read: {why}")));
    }
    let values = |i| answer.column(0, i);
    let learnt = block.settings.iter().enumerate().map(|(i, name)| (&name[..], values(i)));
    server.applied = server.applied.with(learnt.clone());
    client.settings = client.settings.with(learnt);
    // What a client asked for when it connected is where it goes back to.
    if !block.failed && block.end != Some(Ending::Rollback) {
        let startup = Rc::clone(&client.startup);
        let back = block.resets.iter().filter_map(|n| Some((&n[..], Some(startup.get(n)?))));
        client.settings = client.settings.with(back);
    }
    client.read_settings();
    if let Some(text) = client.settings.get(TOKEN) {
        let text = std::str::from_utf8(text).unwrap_or_default();
        // Whoever takes a token keeps what it knows itself; an empty one gives all of it up.
        let (taken, ahead) = visible::token_from(text, &worker.view().cluster).unzip();
        client.ahead.set(client.ahead.get().max(ahead.flatten()));
        // One of a past that was lost stays what it is: the next read says so.
        let lost = |token: &Token| present(*token, &worker.view()).is_err();
        client.token = match taken {
            Some(taken) if lost(&taken) => Some(taken),
            taken => taken.and_then(|taken| client.token.max(Some(taken))),
        };
        // From here on it moves with the session.
        client.settings = client.settings.with([(TOKEN, None)]);
    }
    if let Some(name) = client.settings.get(b"application_name") {
        *client.handle.application.borrow_mut() = name.into();
    }
    Ok(())
}

/// Raises `synchronous_commit` again where code that nobody could read has lowered it.
async fn keep_floor(
    client: &mut Client,
    server: &mut Server,
    floor: SynchronousCommit,
) -> Result<(), Gone> {
    let value = server.applied.get(floor::NAME).unwrap_or_default();
    tracing::info!(
        user = %client.account.user, database = %client.account.database,
        "code of a client set synchronous_commit to {}, below gateway.synchronous_commit_floor; \
         raised again", String::from_utf8_lossy(value)
    );
    let to = floor.as_str();
    let sql = format!("SELECT pg_catalog.set_config('synchronous_commit', '{to}', false)");
    server.ask(sql.as_bytes()).await?;
    server.applied = floor::raised(&server.applied, floor);
    client.settings = floor::raised(&client.settings, floor);
    Ok(())
}

/// Looks for what code may have left; a client that left something keeps its server.
async fn look(client: &mut Client, server: &mut Server) -> Result<(), Gone> {
    let answer = server.ask(RESIDUE).await?;
    if let Some(why) = answer.failed() {
        return Err(Gone::Lost(format!("the session cannot be looked at: {why}")));
    }
    let pins = [Pin::Temporary, Pin::Advisory, Pin::Listen, Pin::Cursor, Pin::Prepared];
    for (column, pin) in pins.into_iter().enumerate() {
        if answer.column(0, column) == Some(b"t") {
            client.pin(pin);
        }
    }
    let made = answer.column(0, pins.len()).unwrap_or_default();
    if made.split(|b| *b == b',').any(|name| name == floor::NAME) {
        let value = answer.column(0, pins.len() + 1);
        server.applied = server.applied.with([(floor::NAME, value)]);
        client.settings = client.settings.with([(floor::NAME, value)]);
    }
    let known = |name: &[u8]| server.applied.get(name).is_some();
    if made.split(|b| *b == b',').any(|name| !name.is_empty() && !known(name)) {
        client.pin(Pin::Setting);
    }
    Ok(())
}
