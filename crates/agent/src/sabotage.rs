//! Switches that remove one safety rule, so that a test can show that its absence is noticed.
//! They exist only in builds with the `sabotage` feature, which no release has.

use std::collections::BTreeMap;

use quorate_core::Lsn;
use quorate_core::invariant::Invariant;
use quorate_core::slots::CarryNote;
use quorate_core::status::NodeStatus;
pub use quorate_gateway::sabotage::is;

/// Whether a standby without the promise stays with the writer of an older term: for a while, so
/// that what it acknowledges to that writer is acknowledged to an application too.
pub fn lingers() -> bool {
    static SINCE: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    is("promise") && SINCE.get_or_init(std::time::Instant::now).elapsed() < LINGER
}

/// What a node tells of itself, when it is to be found wrong: its clock is off by a minute, its
/// certificate expires in three days, it has seen two writers, and it is of another version.
pub fn distort(status: &mut NodeStatus) {
    if !is("vitals") {
        return;
    }
    let vitals = &mut status.vitals;
    let wall = vitals.wall.unwrap_or_default();
    vitals.certificate_until = Some(wall + 3 * 24 * 60 * 60 * 1000);
    vitals.wall = Some(wall + 60 * 1000);
    vitals.breaches.insert(Invariant::OneWriterPerTerm);
    status.version = "0.0.1".to_owned();
}

/// What a new writer goes by when it judges what it carried: every slot is taken for ready.
pub fn carries(notes: &mut BTreeMap<String, CarryNote>, remembered: &mut BTreeMap<String, Lsn>) {
    if is("carry") {
        notes.values_mut().for_each(|note| note.ready = true);
        remembered.clear();
    }
}

/// Shorter than the lease, after which an old writer answers nobody.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);
