//! Sessions of the port that only reads, and why nothing can be written through it.
//!
//! Their statements run on standbys, which cannot write whatever a session sets. Where a level wants
//! the writer, or no standby may serve, the writer answers what is known to read, outside of blocks
//! and each in a transaction that was made read-only for it; it does nothing else for them.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use quorate_wire::backend::{ERROR, Fields, Report};
use quorate_wire::frame::put;
use quorate_wire::sql::Access;

use crate::client::Client;
use crate::group::Group;
use crate::limits;
use crate::login::Known;
use crate::server::{Gone, Server};
use crate::worker::{Held, Worker};
use crate::world::View;

/// SQLSTATE of a write where nothing may be written.
pub(crate) const CODE: [u8; 5] = *b"25006";

/// The setting that such sessions are shown as on.
pub(crate) const SETTING: &[u8] = b"default_transaction_read_only";

/// What a client does about a write.
fn hint(writes_at: &str) -> String {
    format!("This port only reads. Writes are taken at {writes_at}.")
}

/// Whether a client may have this from a replica only: on this port, all but what reads and can be
/// in no other transaction than the one that is made for it.
fn is_bound(client: &Client, group: &Group) -> bool {
    let lone_read = group.access == Access::Read && !group.begins && !group.ends;
    client.writes_at.is_some() && !lone_read
}

/// Whether a client waits for a replica with this, as others wait for a writer. What no replica
/// would do need not wait.
pub(crate) fn needs_replica(client: &Client, group: &Group) -> bool {
    is_bound(client, group) && !group.elsewhere
}

/// Waits until there is some replica, as long as others wait for a writer.
pub(crate) async fn some_replica(worker: &Worker) -> Result<Arc<View>, Box<Report>> {
    let since = worker.now();
    loop {
        let view = worker.view();
        if !view.replicas.is_empty() || worker.now() >= since + view.wanted.hold_ms {
            return Ok(view);
        }
        let _held = held(worker, &view)?;
        worker.changed(limits::LOOK_AGAIN).await;
    }
}

/// A place among those who wait for a replica.
pub(crate) fn held<'a>(worker: &'a Worker, view: &View) -> Result<Held<'a>, Box<Report>> {
    worker.hold(view.wanted.held_max as usize).ok_or_else(|| {
        Box::new(
            Report::error("53300", "too many transactions wait for a replica")
                .hint("Try again in a moment."),
        )
    })
}

/// Whether the writer may do this for a client; anything for one of the other port.
pub(crate) fn allows_writer(client: &Client, group: &Group) -> Result<(), Box<Report>> {
    let Some(writes_at) = client.writes_at.as_ref().filter(|_| is_bound(client, group)) else {
        return Ok(());
    };
    let code = if group.elsewhere { "25006" } else { "57P03" };
    Err(Box::new(
        Report::error(code, "no replica may serve this now, and this port only reads")
            .detail("The writer answers here what is known to read, outside of blocks.")
            .hint(hint(writes_at)),
    ))
}

/// For a client that would have to keep its server.
pub(crate) fn keeps_nothing(writes_at: &str) -> Report {
    Report::error("25006", "a session of the read-only port cannot do this")
        .detail(
            "It would stay in the session of one server, and the next statement may need another.",
        )
        .hint(hint(writes_at))
}

/// Makes the next transaction on the writer a read-only one. Asked for each time: what the session
/// was before may have been changed by code that nobody saw.
pub(crate) async fn force(server: &mut Server) -> Result<(), Gone> {
    let answer = server.ask(b"SET default_transaction_read_only = on").await?;
    if let Some(why) = answer.failed() {
        return Err(Gone::Lost(why));
    }
    server.applied = server.applied.with([(SETTING, Some(&b"on"[..]))]);
    Ok(())
}

/// As such clients are told it when they log in: what drivers choose a server by.
pub(crate) fn reported(known: &mut Known) {
    for name in [SETTING, b"in_hot_standby"] {
        known.reported.insert(name.into(), b"on"[..].into());
    }
}

/// A refusal to write with where to write instead, if its server gave no hint.
pub(crate) fn hinted(code: [u8; 5], body: Option<&[u8]>, writes_at: Option<&str>) -> Option<Bytes> {
    let (body, writes_at) = (body?, writes_at.filter(|_| code == CODE)?);
    let given = Fields::parse(body).ok()?.get(b'H').is_some();
    let fields = body.strip_suffix(b"\0").filter(|_| !given)?;
    let mut message = BytesMut::new();
    put(&mut message, ERROR, |out| {
        out.put_slice(fields);
        out.put_u8(b'H');
        out.put_slice(hint(writes_at).as_bytes());
        out.put_slice(b"\0\0");
    });
    Some(message.freeze())
}
