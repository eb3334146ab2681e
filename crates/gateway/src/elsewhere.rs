//! A transaction that began on a replica and has to go on at the writer.

use std::rc::Rc;

use quorate_wire::backend::Report;
use quorate_wire::sql::Access;

use crate::aftermath::{self, After};
use crate::client::{Block, Client, Lost, Pin};
use crate::group::Group;
use crate::limits;
use crate::metrics::Route;
use crate::read_only;
use crate::route::Because;
use crate::server::{Gone, Server};
use crate::session::{CUT, End, Unset, link, linked, settings};
use crate::story::Story;
use crate::tidy;
use crate::visible;
use crate::worker::Worker;

/// A transaction on a replica comes to something that does not belong there. It begins anew on the
/// writer, if nobody can tell the difference: it has read nothing yet, or each of its statements
/// sees its own snapshot anyway. Any other has failed.
pub(crate) async fn goes_on(
    worker: &Rc<Worker>,
    client: &mut Client,
    server: Box<Server>,
) -> Result<After, End> {
    let mut block = std::mem::take(&mut client.block);
    // What is made again is to be looked after again.
    let carried = Block {
        settings: std::mem::take(&mut block.settings),
        resets: std::mem::take(&mut block.resets),
        reset_all: block.reset_all,
        set: block.set,
        ..Block::default()
    };
    let moved = match roll_back(client, block, server).await {
        Err(gone) => Err(Box::new(aftermath::undone(&gone.sentence()))),
        Ok(_) if client.writes_at.is_some() => {
            let writes_at = client.writes_at.as_deref().unwrap_or_default();
            Err(Box::new(read_only::keeps_nothing(writes_at)))
        }
        Ok(Some(again)) => begun_on_writer(worker, client, &again).await,
        Ok(None) => Err(Box::new(
            Report::error("25006", "a transaction on a replica cannot do this")
                .detail("It leaves something in its session, which would stay on the replica.")
                .hint(
                    "Do it first in the transaction, outside of one, or in one that is not \
                     READ ONLY; or SET quorate.read_from = 'writer'.",
                ),
        )),
    };
    let server = match moved {
        Ok(server) => server,
        Err(report) => {
            client.lost = Some(Lost::Untold(*report));
            return Ok(After::Done);
        }
    };
    client.route.set(Route::Writer(Because::Writes));
    link(client, &server);
    client.block = carried;
    let group = Group { access: Access::Write, whole: false, ..Group::nothing() };
    let after = Box::pin(linked(worker, client, server, &group, limits::RETRIES_MAX)).await?;
    if after != After::Done {
        // Its server died before it did anything, and the transaction with it.
        client.lost = Some(Lost::Untold(aftermath::undone(CUT)));
    }
    Ok(After::Done)
}

/// A connection to the writer on which a client's transaction was made again.
async fn begun_on_writer(
    worker: &Rc<Worker>,
    client: &mut Client,
    again: &[Box<[u8]>],
) -> Result<Box<Server>, Box<Report>> {
    let reads = Group { access: Access::Read, ..Group::nothing() };
    let mut server = visible::writer(worker, client, &reads).await?;
    let begun = async {
        settings(worker, client, &mut server).await?;
        for statement in again {
            if let Some(why) = server.ask(statement).await?.failed() {
                return Ok(Some(why));
            }
        }
        Ok(None)
    };
    match begun.await {
        Ok(None) => Ok(server),
        Ok(Some(why)) => Err(Box::new(aftermath::undone(&why))),
        Err(unset) => Err(Box::new(Unset::told(unset, client))),
    }
}

/// Rolls a transaction back whose client goes on elsewhere, and gives its server back. The
/// statements by which it can be made again, if it can.
async fn roll_back(
    client: &mut Client,
    block: Block,
    mut server: Box<Server>,
) -> Result<Option<Vec<Box<[u8]>>>, Gone> {
    let account = Rc::clone(&client.account);
    // Code out of sight may have left something.
    let looks = block.look || tidy::suspicious(client, &block);
    let ended = async {
        let again = match block.story {
            Story::Told { .. } if block.failed => None,
            Story::Told { again, read: false } => Some(again),
            Story::Told { again, read: true } => {
                let level = server.ask(b"SHOW transaction_isolation").await?;
                let each = level.column(0, 0).is_some_and(|level| level.starts_with(b"read "));
                each.then_some(again)
            }
            Story::Untold | Story::Lost => None,
        };
        // What it has read so far, the rest of it must see on the writer.
        let seen = match tidy::sees(client) {
            true => visible::shown(&mut server).await?,
            false => None,
        };
        server.ask(b"ROLLBACK").await?;
        Ok::<_, Gone>((again, seen))
    };
    let late = |_| Gone::Lost("the replica did not answer in time".to_owned());
    let (again, seen) = tokio::time::timeout(limits::FINISH_WAIT, ended).await.map_err(late)??;
    if let Some(seen) = seen {
        client.saw(&seen);
    }
    if !looks {
        account.put(server);
    }
    Ok(again)
}

/// For a client whose session on a replica is not what it was, and cannot go on elsewhere.
pub(crate) fn stays(client: &Client) -> Report {
    let words = client.handle.pin.get().map_or("it left something there", Pin::words);
    Report::fatal("25006", format!("a session cannot go on from a replica: {words}"))
        .detail("A read there left this in its session, which nobody could have known before.")
        .hint("Do this outside of a READ ONLY transaction, or SET quorate.read_from = 'writer'.")
}
