//! How long each transaction took: noted where it went, and told in the log when it was slow.
//!
//! Costs two looks at the clock for a transaction whose answer comes in one piece: at its first
//! request, and at the server's first word, which then is its last one, too.

use crate::client::Client;
use crate::limits;
use crate::metrics::count;
use crate::own::first_text;
use crate::server::Server;

/// Microseconds of the worker's clock.
pub(crate) type Micros = u64;

/// A transaction begins: its text is kept where it may have to be told.
pub(crate) fn begins(client: &mut Client, now: Micros) {
    client.began = Some(now);
    let spec = client.account.spec();
    client.told = None;
    if spec.log_statements && spec.slow_ms > 0 {
        let text = first_text(client).map(|(text, _)| text);
        client.told = text.map(|mut text| {
            text.truncate(limits::TOLD_MAX);
            text.into()
        });
    }
}

/// A transaction is answered: when its server said something first, and when the last.
pub(crate) fn ends(client: &mut Client, server: &Server, first: Option<Micros>, last: Micros) {
    let Some(began) = client.began.take() else { return };
    // A client that keeps its server goes on to another text.
    let told = client.told.take();
    let total = last.saturating_sub(began);
    let first = first.map_or(total, |first| first.saturating_sub(began));
    let times = client.account.times.of(client.route.get());
    times.transaction.note(total);
    times.first_byte.note(first);
    let spec = client.account.spec();
    if spec.slow_ms > 0 && total >= spec.slow_ms.saturating_mul(1000) {
        slow(client, server, (first, total), told.as_deref());
    }
}

#[cold]
fn slow(client: &Client, server: &Server, (first, total): (Micros, Micros), told: Option<&[u8]>) {
    count(&client.account.counters.slow);
    let (part, because) = client.route.get().labels();
    let pinned = client.handle.pin.get().map(|pin| pin.label()).unwrap_or_default();
    tracing::info!(
        user = %client.account.user, database = %client.account.database,
        client = %client.handle.address, node = %server.node, part, because, pinned,
        ms = total / 1000, first_byte_ms = first / 1000,
        statement = told.map(String::from_utf8_lossy).as_deref(),
        "a slow transaction"
    );
}
