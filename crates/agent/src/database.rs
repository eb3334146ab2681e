//! The local server as the loop sees it: its process, its answers, and the steps that take time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quorate_core::document::Document;
use quorate_core::node::{Data, Server as ServerFact};
use quorate_core::report::Report;
use quorate_core::status::ServerStatus;
use quorate_core::{Lsn, Moment, Term, TimelineId};
use quorate_link::clock;
use quorate_postgres::{
    Admin, BootstrapOptions, ControlData, Directory, DiskProbe, Error, Mode, Probe, Promoted,
    Retry, Server, ServerOptions, Settings, StandbyPosition, Status, SynchronousCommit,
};
use quorate_replication::{RelayOptions, RelaySocket};
use tokio::sync::{Notify, watch};

use crate::limits::{
    FREEZE_WAIT, HUNG_AFTER, KEPT_TAIL_BYTES_MAX, KEPT_TAILS_MAX, POSITION_POLL, PROBE_EVERY,
    PROBE_WAIT, PROMOTE_WAIT, START_WAIT,
};

/// Marks data that a rewind or a rebuild left in pieces.
const SPOILT: &str = "spoilt";
/// Marks data that was rewound and has not answered since.
const REWOUND: &str = "rewound";

/// What the last look at the server found.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The last answer.
    pub probe: Option<Probe>,
    /// When it came.
    pub answered: Option<Moment>,
    /// When it was asked for: its positions are from no earlier.
    pub asked: Moment,
}

/// The local server.
pub struct Database {
    /// The process.
    pub server: Server,
    /// Questions and orders.
    pub admin: Admin,
    /// Where it is.
    pub options: Arc<ServerOptions>,
    /// Latency of its disk.
    pub disk: DiskProbe,
    /// Leads the local walreceiver to the writer.
    pub feed: RelaySocket,
    /// Leads `pg_basebackup` and `pg_rewind` to the writer.
    pub copy: RelaySocket,
    facts: watch::Sender<Facts>,
    /// Held while a server is started; true once the data is no longer Quorate's.
    retired: tokio::sync::Mutex<bool>,
    /// Whether replay has paused because this server has less of something than its writer.
    starves: AtomicBool,
    /// What the server was started with.
    started_with: Mutex<Option<Settings>>,
    /// Settings that this server keeps above the document's, because its writer has more.
    kept: Mutex<Vec<String>>,
    look: Notify,
    segment_bytes: OnceLock<u64>,
}

impl Database {
    /// Takes charge of the server's directory; starts nothing but the disk probe.
    pub fn new(options: ServerOptions, disk_probe: Option<PathBuf>) -> anyhow::Result<Arc<Self>> {
        let options = Arc::new(options);
        quorate_postgres::kill_leftovers(&options)?;
        let owner = options.run_as.as_ref().map(|u| (u.uid, u.gid));
        let relay = |dir: PathBuf| RelaySocket::bind(&RelayOptions { dir, owner });
        let disk = match disk_probe {
            Some(path) => DiskProbe::start_at(&path, options.run_as.clone())?,
            None => DiskProbe::start(&options)?,
        };
        Ok(Arc::new(Self {
            server: Server::new(Arc::clone(&options))?,
            admin: Admin::new(Arc::clone(&options)),
            disk,
            feed: relay(options.relay_dir.clone())?,
            copy: relay(copy_dir(&options))?,
            facts: watch::Sender::new(Facts::default()),
            retired: tokio::sync::Mutex::new(false),
            starves: AtomicBool::new(false),
            started_with: Mutex::default(),
            kept: Mutex::default(),
            look: Notify::new(),
            segment_bytes: OnceLock::new(),
            options,
        }))
    }

    /// Follows what looks at the server find.
    pub fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// Looks again at once.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// Looks now, so that what is decided next is decided from the present.
    async fn refresh(&self) {
        let asked = clock::now();
        match tokio::time::timeout(PROBE_WAIT, self.admin.probe()).await {
            Ok(Ok(probe)) => {
                self.feel_hunger(&probe).await;
                let answered = Some(clock::now());
                self.facts.send_replace(Facts { probe: Some(probe), answered, asked });
            }
            // A server whose connections are all taken is busy, not hung.
            Ok(Err(e)) if e.is_server_full() => {
                self.facts.send_modify(|facts| {
                    facts.answered = facts.probe.is_some().then(clock::now);
                });
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }

    /// Whether the server should be started anew with as much as its writer has.
    pub fn starves(&self) -> bool {
        self.starves.load(Ordering::Relaxed)
    }

    /// PostgreSQL pauses replay when the log says that the writer has more of something. A person
    /// may have paused it as well: the control file, which names what the log said, tells.
    async fn feel_hunger(&self, probe: &Probe) {
        let paused = probe.startup_wait.as_deref() == Some("RecoveryPause");
        let with = self.started_with.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let starves = match with.filter(|_| paused) {
            Some(settings) => self.lowers(&settings).await.unwrap_or(false),
            None => false,
        };
        if starves && !self.starves.swap(starves, Ordering::Relaxed) {
            tracing::warn!("replay has paused: the writer has more of a resource than this server");
        }
        self.starves.store(starves, Ordering::Relaxed);
    }

    /// Looks at the server for ever.
    pub async fn watch_server(self: Arc<Self>) {
        let mut status = self.server.status();
        let mut last = None;
        loop {
            let running = match *status.borrow_and_update() {
                Status::Running { pid } => Some(pid),
                Status::NotRunning { .. } => None,
            };
            // What another process answered says nothing of this one, however quickly it came.
            if running != last {
                self.facts.send_replace(Facts::default());
            }
            last = running;
            if running.is_some() {
                self.refresh().await;
            }
            tokio::select! {
                () = tokio::time::sleep(PROBE_EVERY) => {}
                () = self.look.notified() => {}
                _ = status.changed() => {}
            }
        }
    }

    /// The server as the decision sees it.
    pub fn fact(&self) -> ServerFact {
        let status = self.server.status();
        if matches!(*status.borrow(), Status::NotRunning { .. }) {
            return ServerFact::Down;
        }
        let facts = self.facts.borrow();
        let (Some(probe), Some(answered)) = (&facts.probe, facts.answered) else {
            return ServerFact::Starting;
        };
        if clock::now().since(answered) > HUNG_AFTER {
            return ServerFact::Hung;
        }
        match (probe.in_recovery, probe.timeline) {
            (true, _) => ServerFact::Standby,
            (false, Some(timeline)) => ServerFact::Writer(timeline),
            (false, None) => ServerFact::Starting,
        }
    }

    /// The server as others are told of it.
    pub fn status(&self) -> Option<ServerStatus> {
        let facts = self.facts.borrow();
        let probe = facts.probe.as_ref()?;
        let received = probe.received.max(probe.replayed);
        Some(ServerStatus {
            version: self.options.install.version.clone(),
            in_recovery: probe.in_recovery,
            timeline: probe.timeline,
            flushed: probe.flushed.or(received).unwrap_or_default(),
            // What a writer once replayed as a standby is long past.
            replayed: probe.flushed.or(probe.replayed).unwrap_or_default(),
            started_us: (probe.started_at * 1e6).round() as u64,
            sampled: facts.asked,
            reads: false,
            pending_restart: probe.pending_restart.clone(),
            kept: self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }

    /// What is in the data directory.
    pub fn data(&self) -> Data {
        if self.mark(SPOILT).exists() {
            return Data::Spoilt;
        }
        if self.mark(REWOUND).exists() {
            return Data::Incomplete;
        }
        match quorate_postgres::examine(&self.options) {
            Ok(Directory::Empty) => Data::Missing,
            Ok(Directory::Present) => Data::Ready,
            Err(e) => Data::Refused(format!("{e}: {}", e.hint())),
        }
    }

    /// A file beside the data directory that says something of it.
    fn mark(&self, what: &str) -> PathBuf {
        self.options.data_dir.with_extension(what)
    }

    /// Marks the data as not to be started.
    pub fn spoil(&self) -> Result<(), Error> {
        self.put_mark(SPOILT)
    }

    fn put_mark(&self, what: &str) -> Result<(), Error> {
        let path = self.mark(what);
        let failed = |source| Error::Io { action: "make", path: path.clone(), source };
        std::fs::write(&path, b"").map_err(failed)?;
        let parent = path.parent().unwrap_or(&path);
        std::fs::File::open(parent).and_then(|d| d.sync_all()).map_err(failed)
    }

    fn take_mark(&self, what: &str) -> Result<(), Error> {
        let path = self.mark(what);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { action: "remove", path, source: e })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Where a rewound server that is not whole yet stands: on the writer's history, at least to
    /// where the rewind read from it.
    async fn rewound_end(&self, term: Term) -> Result<Report, Error> {
        let control = quorate_postgres::read_control_data(&self.options).await?;
        let (timeline, lsn) = match control.min_recovery_timeline {
            TimelineId(0) => (control.timeline, control.redo),
            timeline => (timeline, control.min_recovery_end),
        };
        let forks = quorate_postgres::history(&self.options, timeline)?;
        Ok(Report { term, timeline, lsn, forks })
    }

    /// The log end with its owner, for the writer's lineage check: the end of the last complete
    /// record once replay has come to it. A torn record behind it never counts.
    pub async fn lineage(&self, term: Term) -> Result<Option<Report>, Error> {
        if self.mark(REWOUND).exists() {
            return self.rewound_end(term).await.map(Some);
        }
        let probe = self.admin.probe().await?;
        let exhausted = probe.is_exhausted();
        let Some(mut report) = self.report(term).await? else {
            return Ok(None);
        };
        if exhausted && let Some(replayed) = probe.replayed {
            report.lsn = report.lsn.min(replayed);
        }
        Ok(Some(report))
    }

    async fn report(&self, term: Term) -> Result<Option<Report>, Error> {
        match self.admin.standby_position().await? {
            StandbyPosition::At(at) => {
                Ok(Some(Report { term, timeline: at.tli, lsn: at.lsn, forks: at.forks }))
            }
            StandbyPosition::NotYet(why) => {
                tracing::debug!(why, "the log's end is not known yet");
                Ok(None)
            }
        }
    }

    /// Starts the server as a standby and waits until it answers.
    pub async fn start(&self, settings: &Settings) -> Result<(), Error> {
        let settings = self.at_least_the_writers(settings).await?;
        let retired = self.retired.lock().await;
        if *retired {
            return Err(Error::NotRunning("it was released by `quorate standalone`".to_owned()));
        }
        quorate_postgres::write_settings(&self.options, &settings)?;
        *self.started_with.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        self.server.start().await?;
        drop(retired);
        self.admin.wait_ready(&self.server.status(), START_WAIT).await?;
        self.refresh().await;
        self.take_mark(REWOUND)?;
        if let Err(e) = self.admin.warm().await {
            tracing::debug!(error = %e, "opening connections ahead failed");
        }
        Ok(())
    }

    /// Stops the server for good: whatever is decided here does not start it again.
    pub async fn retire(&self) {
        *self.retired.lock().await = true;
        self.server.stop(Mode::Fast).await;
    }

    /// A standby that has less of some resources than its writer does not start: a lowered setting
    /// takes effect on the writer first, and here when the log says so.
    async fn at_least_the_writers(&self, settings: &Settings) -> Result<Settings, Error> {
        let mut settings = settings.clone();
        let control = quorate_postgres::read_control_data(&self.options).await?;
        let _ = self.segment_bytes.set(control.segment_bytes);
        let lowered = lowered(&settings, &control);
        for (name, least) in &lowered {
            tracing::info!(name, least, "kept at the writer's value until that one is lowered");
            settings.parameters.insert((*name).to_owned(), least.to_string());
        }
        let names = lowered.into_iter().map(|(name, _)| name.to_owned()).collect();
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = names;
        Ok(settings)
    }

    /// Whether this server still has the log from `lsn` on. In doubt it has: PostgreSQL says so
    /// itself in the end.
    pub fn has_log(&self, lsn: Lsn) -> bool {
        let Some(bytes) = self.segment_bytes.get().copied() else { return true };
        let Ok(files) = std::fs::read_dir(self.options.data_dir.join("pg_wal")) else {
            return true;
        };
        let oldest = files.flatten().filter_map(|e| segment(e.file_name().to_str()?, bytes)).min();
        oldest.is_none_or(|oldest| lsn.0 / bytes >= oldest)
    }

    /// Keeps a copy of the log that a rewind or a clone is about to drop: commits in it may be
    /// wanted for reconciliation. Older copies beyond a few are removed.
    pub async fn keep_tail(&self, term: Term, fork: Lsn) -> Result<PathBuf, Error> {
        let control = quorate_postgres::read_control_data(&self.options).await?;
        let from = self.options.data_dir.join("pg_wal");
        let home = self.options.data_dir.with_file_name("lost-log");
        let to = home.join(format!("before-term-{term}"));
        let bytes = control.segment_bytes;
        let first = fork.0 / bytes;
        let path = to.clone();
        let copy = move || -> std::io::Result<()> {
            std::fs::create_dir_all(&to)?;
            let mut names: Vec<_> = std::fs::read_dir(&from)?.flatten().collect();
            names.retain(|e| {
                e.file_name().to_str().and_then(|n| segment(n, bytes)).is_some_and(|s| s >= first)
            });
            let most = (KEPT_TAIL_BYTES_MAX / bytes).max(1) as usize;
            for entry in names.iter().take(most) {
                std::fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
            let mut kept: Vec<_> = std::fs::read_dir(&home)?.flatten().collect();
            kept.sort_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
            for old in kept.iter().rev().skip(KEPT_TAILS_MAX) {
                std::fs::remove_dir_all(old.path())?;
            }
            Ok(())
        };
        let failed = |source| Error::Io { action: "keep log in", path: path.clone(), source };
        match tokio::task::spawn_blocking(copy).await {
            Ok(done) => done.map_err(failed)?,
            Err(e) => return Err(failed(std::io::Error::other(e))),
        }
        Ok(path)
    }

    /// Cuts the walreceiver off and reads the log's end (R3). The feed must be closed.
    pub async fn freeze(&self, term: Term) -> Result<Report, Error> {
        self.admin.terminate_walreceiver(FREEZE_WAIT).await?;
        loop {
            if let Some(report) = self.report(term).await? {
                return Ok(report);
            }
            tokio::time::sleep(POSITION_POLL).await;
        }
    }

    /// Promotes to exactly this timeline.
    pub async fn promote(&self, timeline: TimelineId) -> Result<Promoted, Error> {
        let promoted = self.admin.promote(timeline, PROMOTE_WAIT).await?;
        self.refresh().await;
        Ok(promoted)
    }

    /// Whether a promotion would have to restart the server to put these settings into effect.
    pub async fn lowers(&self, settings: &Settings) -> Result<bool, Error> {
        let control = quorate_postgres::read_control_data(&self.options).await?;
        Ok(!lowered(settings, &control).is_empty())
    }

    /// Promotes a frozen standby by starting it anew with settings that a standby of its former
    /// writer could not have.
    pub async fn promote_anew(
        &self,
        from: TimelineId,
        timeline: TimelineId,
        settings: &Settings,
    ) -> Result<Promoted, Error> {
        let end = self.whole_end().await?;
        self.server.stop(Mode::Fast).await;
        quorate_postgres::write_settings(&self.options, settings)?;
        *self.started_with.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings.clone());
        self.server.start_promoting(from, timeline).await?;
        self.admin.wait_ready(&self.server.status(), PROMOTE_WAIT).await?;
        let promoted = self.admin.self_promoted(timeline, PROMOTE_WAIT).await?;
        if promoted.fork_lsn < end {
            let reason = format!("it recovered to {} only, and had {end}", promoted.fork_lsn);
            return Err(Error::Promote { target: timeline.0, reason });
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.refresh().await;
        Ok(promoted)
    }

    /// The end of the last whole record of a frozen standby: where replay comes to its end.
    async fn whole_end(&self) -> Result<Lsn, Error> {
        let deadline = clock::now() + PROMOTE_WAIT;
        loop {
            let probe = self.admin.probe().await?;
            if let Some(replayed) = probe.replayed.filter(|_| probe.is_exhausted()) {
                return Ok(replayed);
            }
            if clock::now() > deadline {
                return Err(Error::Timeout { what: "replay's end", after: PROMOTE_WAIT });
            }
            tokio::time::sleep(POSITION_POLL).await;
        }
    }

    /// Makes the first database.
    pub async fn bootstrap(&self, password: &str, settings: &Settings) -> Result<(), Error> {
        let chosen =
            BootstrapOptions { superuser_password: password.to_owned(), ..Default::default() };
        quorate_postgres::bootstrap(&self.options, &chosen, settings).await
    }

    /// Copies the whole database through the copy relay.
    pub async fn clone_from(
        &self,
        settings: &Settings,
        progress: impl FnMut(u64, u64),
    ) -> Result<(), Error> {
        self.server.stop(Mode::Immediate).await;
        let dir = copy_dir(&self.options);
        quorate_postgres::clone_from(&self.options, settings, &dir, None, progress).await?;
        self.take_mark(REWOUND)?;
        self.take_mark(SPOILT)
    }

    /// Rewinds to the writer's history through the copy relay.
    pub async fn rewind(&self, settings: &Settings, line: impl FnMut(&str)) -> Result<(), Error> {
        self.server.stop(Mode::Fast).await;
        let dir = copy_dir(&self.options);
        checkpoint_source(&dir).await?;
        self.spoil()?;
        match quorate_postgres::rewind_from(&self.options, settings, &dir, line).await {
            Ok(_) => {
                self.put_mark(REWOUND)?;
                self.take_mark(SPOILT)
            }
            Err(e) if matches!(e.retry(), Retry::Never) => Err(e),
            Err(e) => {
                // It has not begun.
                self.take_mark(SPOILT)?;
                Err(e)
            }
        }
    }

    /// How long the disk has been stuck.
    pub fn disk_stuck_for(&self) -> Duration {
        self.disk.health().busy_since.map_or(Duration::ZERO, |at| clock::now().since(at))
    }
}

/// Resources of which a standby needs as much as its writer, by their names in the control file and
/// as settings, with PostgreSQL's defaults. What Quorate chooses itself never changes.
const AS_MUCH: [(&str, &str, u64); 4] = [
    ("max_connections", "max_connections", 100),
    ("max_worker_processes", "max_worker_processes", 8),
    ("max_prepared_xacts", "max_prepared_transactions", 0),
    ("max_locks_per_xact", "max_locks_per_transaction", 64),
];

/// Settings that ask for less than the log's writer had, with what that was.
fn lowered(settings: &Settings, control: &ControlData) -> Vec<(&'static str, u64)> {
    let asked = |name: &str, default: u64| match settings.parameters.get(name) {
        Some(value) => value.trim().parse::<u64>().ok(),
        None => Some(default),
    };
    AS_MUCH
        .iter()
        .filter_map(|(in_control, name, default)| {
            let had = *control.least.get(in_control)?;
            // What PostgreSQL reads otherwise (`0x32`) is taken for too little.
            asked(name, *default).is_none_or(|v| v < had).then_some((*name, had))
        })
        .collect()
}

/// The number of a log segment, from its file's name.
fn segment(name: &str, bytes: u64) -> Option<u64> {
    let hex = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    let per_id = 0x1_0000_0000_u64.checked_div(bytes)?;
    (name.len() == 24).then_some(())?;
    Some(hex(8..16)? * per_id + hex(16..24)?)
}

fn copy_dir(options: &ServerOptions) -> PathBuf {
    let mut name = options.relay_dir.file_name().unwrap_or_default().to_owned();
    name.push("-copy");
    options.relay_dir.with_file_name(name)
}

/// PostgreSQL 15's `pg_rewind` looks at the source's control file for its timeline, which names the
/// new one only after a checkpoint (R14).
async fn checkpoint_source(dir: &std::path::Path) -> Result<(), Error> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(dir).port(quorate_postgres::PORT).user(quorate_postgres::ROLE);
    config.dbname("postgres").application_name("quorate rewind");
    let (client, connection) =
        config.connect(tokio_postgres::NoTls).await.map_err(Error::Connect)?;
    let driver = tokio::spawn(connection);
    let done = client.batch_execute("CHECKPOINT").await.map_err(Error::Connect);
    driver.abort();
    done
}

/// The settings that the cluster document asks for.
pub fn settings(document: &Document) -> Settings {
    Settings {
        synchronous_commit: match document.level {
            quorate_core::document::Level::Received => SynchronousCommit::RemoteWrite,
            quorate_core::document::Level::Flushed => SynchronousCommit::On,
            quorate_core::document::Level::Applied => SynchronousCommit::RemoteApply,
        },
        parameters: document.postgresql.clone(),
        ..Settings::default()
    }
}
