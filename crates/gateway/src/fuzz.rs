//! A gateway without threads and sockets, for `tools/fuzz`: whoever comes is a pipe in memory.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::frontend::{self, Shared};
use crate::io::Io;
use crate::stream::BoxStream;
use crate::tls::TlsSource;
use crate::worker::Worker;
use crate::world::World;

/// What one thread of a gateway does, on the caller's thread.
pub struct Rig {
    shared: Arc<Shared>,
    worker: Rc<Worker>,
}

impl Rig {
    /// Begins; within a `LocalSet`.
    pub fn new(world: Arc<dyn World>) -> Self {
        let shared = Shared::new(world, Arc::new(TlsSource::default()));
        let inbox = shared.join();
        let worker = frontend::begin(&shared, 0, inbox);
        Self { shared, worker }
    }

    /// A client from beginning to end.
    pub async fn visit(&self, client: BoxStream, address: SocketAddr) {
        let (worker, shared) = (Rc::clone(&self.worker), Arc::clone(&self.shared));
        Box::pin(frontend::client(worker, shared, Io::Far(client), (address, None))).await;
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Idle connections hold their pool, which outlives them in a gateway and must not here.
        for pool in self.worker.accounts().iter().flat_map(|account| account.pools()) {
            pool.retire(|_| false);
        }
    }
}
