//! The shared cluster, sessions to it, and a replica that is always behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_e2e::wire::{Answer, Mode, Session};
use quorate_e2e::{Cluster, Scenario, limits, local};

static SHARED: Mutex<Weak<Rig>> = Mutex::new(Weak::new());
static SCHEMAS: AtomicU32 = AtomicU32::new(0);

/// A writer and a replica.
pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    pub(crate) writer: String,
    pub(crate) replica: String,
    _scenario: Scenario,
}

impl Rig {
    /// The cluster of all tests that run now.
    pub(crate) fn shared() -> Result<Arc<Rig>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rig) = shared.upgrade() {
            return Ok(rig);
        }
        let rig = Arc::new(Self::new("statements through the gateways of two nodes")?);
        *shared = Arc::downgrade(&rig);
        Ok(rig)
    }

    /// A cluster of its own.
    pub(crate) fn new(intent: &str) -> Result<Rig> {
        let scenario = Scenario::new(intent);
        let cluster = Cluster::of(2).start()?;
        let writer = cluster.wait_writer()?;
        let replica = cluster.others(&writer).swap_remove(0);
        Ok(Rig { cluster, writer, replica, _scenario: scenario })
    }

    /// Both gateways: the writer's node first.
    pub(crate) fn doors(&self) -> Vec<(String, SocketAddr)> {
        let gateways = self.cluster.gateways(&[&self.writer, &self.replica]);
        gateways.into_iter().map(|g| (g.name, g.addr)).collect()
    }

    /// A session through the writer's gateway.
    pub(crate) fn session(&self) -> Result<Session> {
        let doors = self.doors();
        let (_, address) = doors.first().context("a gateway")?;
        Session::open(*address, self.cluster.login())
    }

    /// A private session with the writer, past every gateway.
    pub(crate) fn direct(&self) -> Result<Session> {
        Session::open(&*self.socket(&self.writer)?, self.cluster.login())
    }

    /// Directory of a node's private socket.
    pub(crate) fn socket(&self, node: &str) -> Result<PathBuf> {
        Ok(self.cluster.node(node)?.socket_dir())
    }

    /// A new schema with these objects; the replica has them too.
    pub(crate) fn schema(&self, sql: &str) -> Result<String> {
        let name = format!("t{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
        let sql = sql.replace("{s}", &name);
        // What looks from outside, as a user without rights, may look.
        let made = format!(
            "CREATE SCHEMA {name}; GRANT USAGE ON SCHEMA {name} TO PUBLIC;
             ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT SELECT ON TABLES TO PUBLIC;
             SET search_path = {name}; {sql}"
        );
        self.direct()?.simple(&made)?.ok().with_context(|| made.clone())?;
        self.replayed()?;
        Ok(name)
    }

    /// Waits until the replica has replayed all that the writer has written.
    pub(crate) fn replayed(&self) -> Result<()> {
        replayed(&self.socket(&self.writer)?, &self.socket(&self.replica)?)
    }

    /// Waits until a replica answers, of what may ask one and asks where it runs. That a replica
    /// answers is never promised: one that has just started, or that a busy machine holds up, cannot
    /// prove what it shows, and the writer answers for it.
    pub(crate) fn by_replica(&self, mut asks: impl FnMut() -> Result<Answer>) -> Result<()> {
        let mut place = || {
            let answer = asks()?.ok()?;
            let place = answer.value();
            ensure!(matches!(place.as_deref(), Some("t" | "f")), "not a place: {answer}");
            Ok(place.as_deref() == Some("t"))
        };
        self.cluster.wait_until(limits::RECOVER, "a replica answers", || {
            place().map(|there| there.then_some(())).transpose()
        })?
    }

    /// Runs a step in every mode through both gateways, each with a session of its own.
    pub(crate) fn everywhere(&self, step: impl Fn(&mut Session, Mode) -> Result<()>) -> Result<()> {
        let mut trouble = Trouble::default();
        for (door, address) in self.doors() {
            for mode in Mode::ALL {
                let done = Session::open(address, self.cluster.login())
                    .and_then(|mut session| step(&mut session, mode));
                trouble.note(&format!("{mode:?} through {door}"), done);
            }
        }
        trouble.end()
    }
}

fn replayed(writer: &std::path::Path, replica: &std::path::Path) -> Result<()> {
    let end = local::one(writer, "SELECT pg_catalog.pg_current_wal_insert_lsn()")?;
    let sql = format!("SELECT pg_catalog.pg_last_wal_replay_lsn() >= '{end}'");
    let deadline = Instant::now() + limits::RECOVER;
    while local::one(replica, &sql)? != "t" {
        ensure!(Instant::now() < deadline, "the replica does not replay up to {end}");
        std::thread::sleep(limits::POLL);
    }
    Ok(())
}

/// Everything that went wrong, so that one run tells all of it.
#[derive(Default)]
pub(crate) struct Trouble {
    /// By error: where it happened.
    all: BTreeMap<String, Vec<String>>,
    tried: usize,
}

impl Trouble {
    /// Takes note of how something went.
    pub(crate) fn note(&mut self, what: &str, done: Result<()>) {
        self.tried += 1;
        if let Err(error) = done {
            self.all.entry(format!("{error:#}")).or_default().push(what.to_owned());
        }
    }

    /// Fails when anything went wrong.
    pub(crate) fn end(self) -> Result<()> {
        if self.all.is_empty() {
            return Ok(());
        }
        let all =
            self.all.iter().map(|(error, where_)| format!("{}:\n    {error}", where_.join(", ")));
        let failed: usize = self.all.values().map(Vec::len).sum();
        bail!("{failed} of {} went wrong\n{}", self.tried, all.collect::<Vec<_>>().join("\n"))
    }
}

/// Fails unless an answer has this value.
pub(crate) fn expect_value(answer: &Answer, value: &str) -> Result<()> {
    ensure!(answer.value().as_deref() == Some(value), "not {value}: {answer}");
    Ok(())
}

/// Keeps a replica two seconds behind, as `recovery_min_apply_delay` would: replay stands still,
/// catches up with what was written until a moment ago, and stands still again.
pub(crate) struct Behind {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    replica: PathBuf,
}

/// How far it is behind, at the most.
const DELAY: Duration = Duration::from_secs(2);

impl Behind {
    pub(crate) fn keep(rig: &Rig) -> Result<Self> {
        let (writer, replica) = (rig.socket(&rig.writer)?, rig.socket(&rig.replica)?);
        local::query(&replica, "SELECT pg_catalog.pg_wal_replay_pause()")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, there) = (Arc::clone(&stop), replica.clone());
        let thread = std::thread::spawn(move || {
            let mut since = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(limits::POLL);
                if since.elapsed() >= DELAY {
                    // A cluster that ends takes its servers with it.
                    let _ = catch_up(&writer, &there);
                    since = Instant::now();
                }
            }
        });
        Ok(Self { stop, thread: Some(thread), replica })
    }
}

fn catch_up(writer: &std::path::Path, replica: &std::path::Path) -> Result<()> {
    local::resume_replay(replica)?;
    replayed(writer, replica)?;
    local::query(replica, "SELECT pg_catalog.pg_wal_replay_pause()").map(drop)
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = local::resume_replay(&self.replica);
    }
}
