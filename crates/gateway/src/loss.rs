//! Clients whose transaction block is lost with its server: what they are told, and how they get out
//! of the block.

use std::rc::Rc;

use quorate_wire::Error;
use quorate_wire::backend::{Report, Status};
use quorate_wire::frame::put;
use quorate_wire::sql::{Access, Verb};

use crate::acquire::writer;
use crate::aftermath::{self, After};
use crate::client::{Block, Client, Lost};
use crate::group::{self, Group};
use crate::limits;
use crate::metrics::Route;
use crate::own::first_verb;
use crate::route::Because;
use crate::session::{End, Unset, link, linked, protocol, refuse, settings};
use crate::worker::Worker;

/// The first word of a client whose transaction block was lost with its server.
pub(crate) async fn after_loss(
    worker: &Rc<Worker>,
    client: &mut Client,
    lost: Lost,
    group: &Group,
) -> Result<(), End> {
    let first = first_verb(client);
    let rolls_back = matches!(first, Some(Verb::Rollback { chain: false }));
    match lost {
        Lost::Untold(report) if group.only_closes => {
            closes(client, group);
            client.lost = Some(Lost::Untold(report));
            return Ok(());
        }
        Lost::Untold(report) if !rolls_back => {
            let ends = matches!(first, Some(Verb::Commit { .. }));
            if !ends {
                client.lost = Some(Lost::Told);
            }
            let status = if ends { Status::Idle } else { Status::Failed };
            refuse(client, group, &report, status);
            return Ok(());
        }
        Lost::Untold(_) | Lost::Told => {}
    }
    let ends = rolls_back || matches!(first, Some(Verb::Commit { chain: false }));
    if ends && group.whole && group.texts == 1 {
        if !ended(worker, client, group).map_err(|e| End::Told(Box::new(protocol(&e))))? {
            client.lost = Some(Lost::Told);
        }
        return Ok(());
    }
    if client.writes_at.is_some() {
        // Nothing that it says reaches the writer unseen.
        let report = Report::error(
            "25P02",
            "current transaction is aborted, commands ignored until end of transaction block",
        )
        .hint("End it with ROLLBACK alone.");
        client.lost = Some(Lost::Told);
        refuse(client, group, &report, Status::Failed);
        return Ok(());
    }
    // A real transaction block that has failed answers everything as PostgreSQL would.
    let doomed = async {
        let mut server = writer(worker, &client.account, &client.settings).await?;
        let failed = async {
            settings(worker, client, &mut server).await?;
            server.ask(b"BEGIN").await?;
            server.ask(b"SELECT 1/0").await.map_err(Unset::Gone)
        };
        match failed.await {
            Ok(_) => Ok(server),
            Err(unset) => Err(Box::new(Unset::told(unset, client))),
        }
    };
    match doomed.await {
        Ok(server) => {
            link(client, &server);
            client.route.set(Route::Writer(Because::Writes));
            client.block = Block::default();
            client.began = Some(worker.micros());
            let group = Group { access: Access::Write, whole: false, ..*group };
            let after = linked(worker, client, server, &group, limits::RETRIES_MAX).await;
            *client.handle.linked.borrow_mut() = None;
            if after? != After::Done {
                client.lost = Some(Lost::Told);
            }
            Ok(())
        }
        Err(report) => {
            client.lost = Some(Lost::Told);
            refuse(client, group, &report, Status::Failed);
            Ok(())
        }
    }
}

/// Answers a group that only closes statements and portals, in a block that is lost with its server.
fn closes(client: &mut Client, group: &Group) {
    let mut left = client.end.stash.split_to(group.len);
    while let Ok(Some(message)) = quorate_wire::frame::take(&mut left, limits::GROUP_MAX) {
        match message.tag {
            b'C' => {
                if let [b'S', name @ .., 0] = &message.body[..] {
                    client.statements.remove(name);
                }
                put(&mut client.end.out, b'3', |_| {});
            }
            b'S' => aftermath::ready(client, Status::InTransaction),
            _ => {}
        }
    }
    client.end.slim();
}

/// Answers a group that ends a block which is lost with its server, as PostgreSQL answers the end of
/// a block that has failed. Nobody else is needed for that. Whether the end was executed, and not
/// only prepared.
fn ended(worker: &Worker, client: &mut Client, group: &Group) -> Result<bool, Error> {
    const TAG: &[u8] = b"ROLLBACK\0";
    let mut left = client.end.stash.split_to(group.len);
    let mut executed = false;
    let after = |executed| if executed { Status::Idle } else { Status::Failed };
    while let Some(message) = quorate_wire::frame::take(&mut left, limits::GROUP_MAX)? {
        let out = &mut client.end.out;
        match message.tag {
            b'Q' => {
                executed = true;
                put(out, b'C', |out| out.extend_from_slice(TAG));
                aftermath::ready(client, Status::Idle);
            }
            b'P' => {
                put(out, b'1', |_| {});
                let statements = &mut worker.statements.borrow_mut();
                let (name, statement) = group::parse(client, statements, &message.body)?;
                match name {
                    b"" => client.unnamed = Some(statement),
                    name => drop(client.statements.insert(name.into(), statement)),
                }
            }
            b'B' => put(out, b'2', |_| {}),
            b'D' => {
                if message.body.first() == Some(&b'S') {
                    put(out, b't', |out| out.extend_from_slice(&[0, 0]));
                }
                put(out, b'n', |_| {});
            }
            b'E' => {
                executed = true;
                put(out, b'C', |out| out.extend_from_slice(TAG));
            }
            b'C' => put(out, b'3', |_| {}),
            b'S' => aftermath::ready(client, after(executed)),
            _ => {}
        }
    }
    client.end.slim();
    Ok(executed)
}
