//! Host names for heartbeats, looked up elsewhere: the system's resolver may block for seconds and
//! reads files, so it gets short-lived threads of its own and the heartbeats use its last answer.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use quorate_core::Moment;

use crate::{clock, limits};

#[derive(Clone, Default)]
pub(super) struct Lookup {
    known: Arc<Mutex<BTreeMap<String, Known>>>,
}

#[derive(Default)]
struct Known {
    addresses: Vec<SocketAddr>,
    asked_at: Option<Moment>,
    pending: bool,
}

impl Lookup {
    /// The addresses of `host:port` as far as they are known now. Never waits.
    pub(super) fn addresses(&self, name: &str) -> Vec<SocketAddr> {
        if let Ok(address) = name.parse() {
            return vec![address];
        }
        let mut all = self.known();
        let known = all.entry(name.to_owned()).or_default();
        let now = clock::now();
        let fresh = known.asked_at.is_some_and(|at| now.since(at) < limits::BEAT_LOOKUP_AGE);
        if !known.pending && (!fresh || known.addresses.is_empty()) {
            known.pending = self.ask(name);
            known.asked_at = Some(now);
        }
        known.addresses.clone()
    }

    fn ask(&self, name: &str) -> bool {
        let (lookup, name) = (self.clone(), name.to_owned());
        let body = move || {
            let found = name.to_socket_addrs().map(Vec::from_iter).unwrap_or_default();
            if let Some(known) = lookup.known().get_mut(&name) {
                known.pending = false;
                // An old address is better than none while the name service is away.
                if !found.is_empty() {
                    known.addresses = found;
                }
            }
        };
        thread::Builder::new().name("hb-names".into()).spawn(body).is_ok()
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
