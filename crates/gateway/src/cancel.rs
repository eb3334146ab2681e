//! Cancel requests: from any gateway of the cluster to the server that works for the client.

use std::rc::Rc;
use std::sync::Arc;

use quorate_wire::{CancelKey, FirstPacket};
use tokio::time::timeout;

use crate::client::Linked;
use crate::frontend::Shared;
use crate::worker::Worker;
use crate::{entry, limits, opening, remote, sessions};

/// The part of a client's secret that its version of the protocol has room for.
pub(crate) fn secret(secret: &[u8; 32], version: u32) -> &[u8] {
    if entry::short_key(version) { &secret[..4] } else { secret }
}

/// A client asks to cancel what some client of this cluster waits for.
pub(crate) async fn request(worker: &Rc<Worker>, shared: &Arc<Shared>, key: CancelKey) {
    if shared.pass(&key) {
        return;
    }
    // Not one of ours: whose it is, that gateway knows.
    let asked = async {
        for node in worker.world.nodes() {
            if let Ok(mut stream) = worker.world.dial(node).await {
                let _ = remote::ask(&mut stream, &opening::client_cancel(&key)).await;
            }
        }
    };
    let _ = timeout(limits::CANCEL_WAIT, asked).await;
}

/// Cancels what a client of this thread waits for, when the key is right.
pub(crate) async fn here(worker: Rc<Worker>, key: CancelKey) {
    let handle = worker.clients.borrow().get(&(key.pid as u32)).cloned();
    let Some(handle) = handle else { return };
    let right =
        matches!(key.secret.len(), 4 | 32) && same(&handle.secret[..key.secret.len()], &key.secret);
    if !right {
        tracing::info!(client = handle.id, "a cancel request had a wrong key");
        return;
    }
    let linked = handle.linked.borrow().clone();
    let Some(linked) = linked else { return };
    // Until the signal is sent the connection serves nobody else, who would be hit by it.
    linked.reins.cancels.set(linked.reins.cancels.get() + 1);
    if timeout(limits::CANCEL_WAIT, forward(&worker, &linked)).await.is_err() {
        tracing::debug!("a cancel request took too long");
    }
    linked.reins.cancels.set(linked.reins.cancels.get() - 1);
    linked.reins.wake();
}

/// Cancels what a server of this thread does. Until that is done it serves nobody else.
pub(crate) fn statement(worker: &Rc<Worker>, linked: &Rc<Linked>) {
    linked.reins.cancels.set(linked.reins.cancels.get() + 1);
    let (worker, linked) = (Rc::clone(worker), Rc::clone(linked));
    tokio::task::spawn_local(async move {
        if timeout(limits::CANCEL_WAIT, forward(&worker, &linked)).await.is_err() {
            tracing::debug!("a cancel request took too long");
        }
        linked.reins.cancels.set(linked.reins.cancels.get() - 1);
        linked.reins.wake();
    });
}

async fn forward(worker: &Rc<Worker>, linked: &Linked) {
    let packet = FirstPacket::Cancel(linked.key.clone()).encode();
    if linked.here {
        if let Some(local) = worker.world.local() {
            sessions::cancel(&*worker.world, &local, linked.key.pid, &packet).await;
        }
        return;
    }
    if let Ok(mut stream) = worker.world.dial(linked.node).await
        && remote::ask(&mut stream, &opening::cancel(&linked.key)).await.is_ok()
    {
        // It closes when the signal is sent.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
    }
}

/// Compares without telling by its duration where two secrets differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}
