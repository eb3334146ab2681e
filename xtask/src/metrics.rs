//! `cargo xtask metrics`: has Prometheus' own parser read the rules and the dashboard.

use anyhow::Result;

use crate::setup::{install, on_path, run};

/// Installs what is missing, and looks.
pub fn metrics() -> Result<()> {
    if !on_path("promtool") {
        install(&["prometheus"])?;
    }
    run(
        &["cargo", "test", "-q", "-p", "quorate", "--bins", "metrics::"],
        &[("QUORATE_PROMTOOL", "promtool")],
    )
}
