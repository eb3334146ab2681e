//! The local server as the loop sees it: its process, its answers, and the steps that take time.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use quorate_core::node::{Data, Server as ServerFact};
use quorate_core::report::Report;
use quorate_core::shows::Shows;
use quorate_core::status::{Replay, ServerStatus};
use quorate_core::{Lsn, Moment, Term, TimelineId};
use quorate_link::clock;
use quorate_postgres::{
    Admin, BootstrapOptions, Directory, DiskProbe, Error, Mode, Probe, Promoted, Retry, Server,
    ServerOptions, Settings, StandbyPosition, Status,
};
use quorate_replication::{RelayOptions, RelaySocket};
use tokio::sync::{Notify, watch};

use crate::limits::{
    FREEZE_WAIT, HUNG_AFTER, POSITION_POLL, PROBE_EVERY, PROBE_WAIT, PROMOTE_WAIT, START_WAIT,
};

mod log;
mod settings;

/// Marks data that a rewind or a rebuild left in pieces.
const SPOILT: &str = "spoilt";
/// Marks data that cannot be read without the writer's log: it was rewound, or a start of its server
/// asked for that; and it has not answered since. Empty while it is known where its log ends.
const REWOUND: &str = "rewound";
/// What that mark says while the server runs on its own log alone, and has replayed all of it. Shut down
/// then, its control file tells where that ends.
const ASKS: &[u8] = b"its server asks for log\n";
/// What that mark says while the server is fed: it may have got more than it has replayed.
const FED: &[u8] = b"its server is fed\n";

/// What the last look at the server found.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The last answer.
    pub probe: Option<Probe>,
    /// When it came.
    pub answered: Option<Moment>,
    /// When it was asked for: its positions are from no earlier.
    pub asked: Moment,
    /// What the server's snapshots reach, since it started.
    pub shows: Shows,
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
    /// The last term in which the log here was found to be a piece of the writer's (R4).
    admitted: AtomicU64,
    /// Held while a server is started; true once the data is no longer Quorate's.
    retired: tokio::sync::Mutex<bool>,
    /// Whether replay has paused because this server has less of something than its writer.
    starves: AtomicBool,
    /// See [`Database::was_incomplete`].
    was_incomplete: AtomicBool,
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
            admitted: AtomicU64::new(0),
            retired: tokio::sync::Mutex::new(false),
            starves: AtomicBool::new(false),
            was_incomplete: AtomicBool::new(false),
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
                self.facts.send_modify(|facts| {
                    let same = |before: &Probe| before.started_at == probe.started_at;
                    let known = facts.probe.as_ref().filter(|before| same(before));
                    let shows = known.map(|_| facts.shows).unwrap_or_default();
                    let shows = shows.look(probe.snapshot_end, probe.next_id);
                    *facts = Facts { probe: Some(probe), answered, asked, shows };
                });
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

    /// Takes note that the writer of this term, or who feeds this node in its place, has admitted it: for
    /// as long as that one writes the log here only grows along its own.
    pub fn admit(&self, term: Term) {
        self.admitted.store(term.0, Ordering::SeqCst);
    }

    /// Whether readers find the history of this term's writer here, and nothing else.
    pub fn is_admitted(&self, term: Term) -> bool {
        self.admitted.load(Ordering::SeqCst) == term.0
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

    /// Whether the server is a standby whose readers see all that it has replayed.
    pub fn is_standby_that_shows_all(&self) -> bool {
        let follows = {
            let facts = self.facts.borrow();
            facts.probe.as_ref().is_some_and(|p| p.in_recovery) && facts.shows.all()
        };
        follows && self.fact() == ServerFact::Standby
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
            replay: if probe.in_recovery { probe.replay.clone() } else { Replay::default() },
            pending_restart: probe.pending_restart.clone(),
            kept: self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }

    /// What is in the data directory.
    pub fn data(&self) -> Data {
        if self.mark(SPOILT).exists() {
            return Data::Spoilt;
        }
        if self.is_incomplete() && !self.died_with_mark() {
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
        self.put_mark_that_says(what, b"")
    }

    fn put_mark_that_says(&self, what: &str, text: &[u8]) -> Result<(), Error> {
        let path = self.mark(what);
        let failed = |source| Error::Io { action: "make", path: path.clone(), source };
        let aside = path.with_extension(format!("{what}-new"));
        let mut file = std::fs::File::create(&aside).map_err(failed)?;
        file.write_all(text).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&aside, &path).map_err(failed)?;
        let parent = path.parent().unwrap_or(&path);
        std::fs::File::open(parent).and_then(|d| d.sync_all()).map_err(failed)
    }

    /// Whether the server died while it ran on data that lacked log, and may have more of it than its
    /// control file tells. What that is, is found out by a start that is not fed.
    fn died_with_mark(&self) -> bool {
        let runs = matches!(*self.server.status().borrow(), Status::Running { .. });
        !runs && std::fs::read(self.mark(REWOUND)).is_ok_and(|text| !text.is_empty())
    }

    /// Whether the server cannot answer without log that only a writer has.
    pub fn is_incomplete(&self) -> bool {
        self.mark(REWOUND).exists()
    }

    /// Whether it could not when it ran before, and has not answered since.
    pub fn was_incomplete(&self) -> bool {
        self.was_incomplete.load(Ordering::Relaxed)
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

    /// Where the log of a server that is not whole yet ends. One that was rewound is on the writer's
    /// history up to where the rewind read from it; one that was shut down because it asked for log had
    /// replayed all of its own.
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
        if self.is_incomplete() {
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
        if self.died_with_mark() {
            self.was_incomplete.store(true, Ordering::Relaxed);
            self.take_mark(REWOUND)?;
        } else if self.is_incomplete() {
            self.put_mark_that_says(REWOUND, FED)?;
        }
        *self.started_with.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
        self.server.start().await?;
        drop(retired);
        self.admin.wait_ready(&self.server.status(), START_WAIT).await?;
        self.refresh().await;
        self.was_incomplete.store(false, Ordering::Relaxed);
        if self.is_incomplete() {
            // Whoever fed it let nothing count of what it had.
            self.take_mark(REWOUND)?;
            self.feed.renew();
        }
        if let Err(e) = self.admin.warm().await {
            tracing::debug!(error = %e, "opening connections ahead failed");
        }
        Ok(())
    }

    /// Stops the server.
    pub async fn stop(&self, mode: Mode) -> Result<(), Error> {
        self.server.stop(mode).await;
        let asked = std::fs::read(self.mark(REWOUND)).is_ok_and(|text| text == ASKS);
        match mode {
            // Should it not have ended in good order in time, its log goes on behind that. Its feedback
            // counts for nothing in any case, and it would take as long the next time.
            Mode::Fast if asked => self.put_mark(REWOUND),
            Mode::Fast | Mode::Immediate => Ok(()),
        }
    }

    /// Stops the server for good: whatever is decided here does not start it again.
    pub async fn retire(&self) {
        *self.retired.lock().await = true;
        self.server.stop(Mode::Fast).await;
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

    /// Takes note that the server does not start without log that only a writer has.
    pub fn lacks_log(&self) -> Result<(), Error> {
        self.put_mark_that_says(REWOUND, ASKS)
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
