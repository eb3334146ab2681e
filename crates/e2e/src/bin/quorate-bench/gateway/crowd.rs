//! Ten thousand clients that logged in, asked once, and stay.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::client::Client;
use super::meter;
use super::results::{Idle, Results};
use super::rig::{Rig, Route, Via};

/// Name, for `--only`.
const NAME: &str = "idle-clients";
/// What a client of this side holds.
const BUFFER: usize = 1024;
/// Clients that log in at once.
const AT_ONCE: usize = 8;
/// Time for the proxy to let go of what it needed for the query.
const CALM: Duration = Duration::from_secs(3);

/// Through each proxy.
pub(crate) fn run(
    rig: &Rig,
    options: &Options,
    routes: &[Route],
    results: &mut Results,
) -> Result<()> {
    if !options.wants(NAME) {
        return Ok(());
    }
    for route in routes.iter().filter(|route| route.via != Via::Direct) {
        let idle = once(rig, route, options.idle_clients)?;
        eprintln!("{NAME} {}: {idle:?}", route.label);
        results.idle.push(idle);
    }
    Ok(())
}

fn once(rig: &Rig, route: &Route, wanted: usize) -> Result<Idle> {
    let Some(proxy) = rig.proxy(route.via) else { anyhow::bail!("direct has no proxy") };
    // One comes and goes first: what the first client of all costs is not each client's.
    Client::connect(&route.address, BUFFER)?.query("SELECT 1")?;
    std::thread::sleep(Duration::from_secs(1));
    let before = meter::resident(proxy)?;
    let meters = rig.meters()?;
    let (clients, trouble) = gather(route, wanted);
    let spent = rig.meters()?.since(&meters, meters.age());
    std::thread::sleep(CALM);
    let after = meter::resident(proxy)?;
    let opened = clients.len();
    drop(clients);
    std::thread::sleep(CALM);
    let left = meter::resident(proxy)?;
    Ok(Idle {
        label: route.label.clone(),
        via: route.via,
        wanted,
        opened,
        trouble,
        seconds: spent.wall,
        proxy_cpu: spent.proxy(route.via).unwrap_or_default(),
        before,
        after,
        left,
    })
}

/// Opens sessions until there are enough, or one fails: those there are, and why not more.
fn gather(route: &Route, wanted: usize) -> (Vec<Client>, Option<String>) {
    let (next, clients) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(wanted)));
    let trouble = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < wanted {
                    match open(route) {
                        Ok(client) => locked(&clients).push(client),
                        Err(error) => {
                            locked(&trouble).get_or_insert(format!("{error:#}"));
                            next.store(wanted, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (clients, trouble) = (std::mem::take(&mut *locked(&clients)), locked(&trouble).take());
    (clients, trouble)
}

fn open(route: &Route) -> Result<Client> {
    let mut client = Client::connect(&route.address, BUFFER)?;
    client.query("SELECT 1")?;
    Ok(client)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
