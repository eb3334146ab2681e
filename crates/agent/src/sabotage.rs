//! Switches that remove one safety rule, so that a test can show that its absence is noticed.
//! They exist only in builds with the `sabotage` feature, which no release has.

pub use quorate_gateway::sabotage::is;

/// Whether a standby without the promise stays with the writer of an older term: for a while, so
/// that what it acknowledges to that writer is acknowledged to an application too.
pub fn lingers() -> bool {
    static SINCE: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    is("promise") && SINCE.get_or_init(std::time::Instant::now).elapsed() < LINGER
}

/// Shorter than the lease, after which an old writer answers nobody.
const LINGER: std::time::Duration = std::time::Duration::from_secs(1);
