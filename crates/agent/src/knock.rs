//! Wakes a postmaster that sleeps over a request for a walreceiver.
//!
//! Until PostgreSQL 16 a signal that reaches the postmaster after it let signals in, and before it waits,
//! is handled and then slept over: when the end of one walreceiver and the request for the next come
//! together, as they do when a standby was frozen, the next one starts only when something else wakes the
//! postmaster, or when the startup process asks again after ten seconds. With no copy to spare, writes
//! wait for that. Any connection wakes it.

use std::sync::Arc;

use quorate_core::node::Server as ServerFact;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use crate::database::Database;
use crate::limits::{KNOCK_EVERY, KNOCK_PAUSE_MAX};

/// The first version whose postmaster does not need it.
const AWAKE_SINCE: u32 = 16;

/// Runs until the process ends.
pub(crate) async fn run(database: Arc<Database>) {
    if database.options.install.major >= AWAKE_SINCE {
        return;
    }
    let mut pause = KNOCK_EVERY;
    loop {
        sleep(pause).await;
        if database.fact() != ServerFact::Standby || !database.feed.is_unused() {
            pause = KNOCK_EVERY;
            continue;
        }
        // One that replays what it has asks for no log yet, for however long that takes.
        pause = (pause * 2).min(KNOCK_PAUSE_MAX);
        let knocked =
            timeout(KNOCK_PAUSE_MAX, UnixStream::connect(database.options.socket())).await;
        if !matches!(knocked, Ok(Ok(_))) {
            tracing::debug!("the postmaster takes no connection");
        }
    }
}
