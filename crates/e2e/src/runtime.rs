//! The background runtime for cables and workloads: they go on while test code blocks.

use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("e2e")
        .enable_all()
        .build()
        .expect("a runtime can be made: threads and descriptors are within the test's limits")
});

/// The runtime.
pub(crate) fn runtime() -> &'static Runtime {
    &RUNTIME
}
