//! A rehearsed outage: for a while nothing of some kinds passes this node's links, in silence.
//!
//! It is what a cut network does to a node, seen from both ends: bytes under way arrive late or not
//! at all, nobody is told, connections stay open until someone loses patience. It ends by itself.
//! Requests between agents always pass, so that whoever began the outage can end it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quorate_core::Moment;

use crate::{Kind, clock, limits};

/// What of a node's links is out, and until when. Clones share everything.
#[derive(Clone, Default)]
pub struct Outage {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// A bit for each kind.
    kinds: AtomicU8,
    /// [`Moment`] at which it ends.
    until: AtomicU64,
    /// Streams that wait for the end.
    waiting: Mutex<Vec<Waker>>,
}

impl Outage {
    /// Begins: nothing of these kinds passes, for so long. One that is under way is replaced. Must
    /// be called inside of a runtime, which ends it.
    pub fn begin(&self, kinds: &[Kind], lasting: Duration) {
        let lasting = lasting.min(limits::OUTAGE_MAX);
        let until = clock::now() + lasting;
        let bits = kinds.iter().filter(|k| can_be_out(**k)).fold(0, |bits, k| bits | bit(*k));
        self.shared.until.store(until.0, Ordering::SeqCst);
        self.shared.kinds.store(bits, Ordering::SeqCst);
        self.wake();
        let outage = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lasting).await;
            if outage.shared.until.load(Ordering::SeqCst) == until.0 {
                outage.end();
            }
        });
    }

    /// Ends it at once.
    pub fn end(&self) {
        self.shared.kinds.store(0, Ordering::SeqCst);
        self.wake();
    }

    /// Whether nothing of this kind passes now.
    pub fn holds(&self, kind: Kind) -> bool {
        // Nearly always zero, and asked at every read and write.
        let bits = self.shared.kinds.load(Ordering::SeqCst);
        bits != 0
            && bits & bit(kind) != 0
            && clock::now() < Moment(self.shared.until.load(Ordering::SeqCst))
    }

    /// Pending as long as nothing of this kind passes.
    pub(crate) fn poll_passes(&self, kind: Kind, cx: &mut Context<'_>) -> Poll<()> {
        if !self.holds(kind) {
            return Poll::Ready(());
        }
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        drop(waiting);
        // It may have ended before we were on the list.
        if self.holds(kind) { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Waits until something of this kind passes.
    pub(crate) async fn passes(&self, kind: Kind) {
        std::future::poll_fn(|cx| self.poll_passes(kind, cx)).await;
    }

    fn wake(&self) {
        let mut waiting = self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.drain(..).for_each(Waker::wake);
    }
}

fn bit(kind: Kind) -> u8 {
    Kind::ALL.iter().position(|k| *k == kind).map_or(0, |at| 1 << at)
}

fn can_be_out(kind: Kind) -> bool {
    match kind {
        Kind::Consensus | Kind::Heartbeat | Kind::Wal | Kind::Sql => true,
        Kind::Control | Kind::Join => false,
    }
}
