//! The store file: what is on disk and when it is safe. Knows bytes, not Raft.
//!
//! One redb file, three tables: `log` (index to entry), `meta` (small values by name) and
//! `snapshot` (the last one). Every write is one transaction that is on disk when it returns: redb
//! checksums each page and flips between two headers, so a single fsync commits all of it or
//! nothing. A file is created under another name and moved into place, so that a file that exists
//! is complete.
//!
//! What is *not* here: repair. A file that fails a check is refused and left alone, because a
//! voter that forgot what it acknowledged is worse than a voter less.
//!
//! One fsync has a price: when a process was killed, damage to the pages of the very last commit
//! looks like a commit that was cut short, and redb rolls it back. So a write that nothing follows
//! is *sealed* shortly after by a commit that says nothing: rolling that one back loses nothing,
//! and damage further back is noticed. What remains is damage to a write made less than
//! [`limits::SEAL_AFTER`] before the kill; it is rolled back with a warning in the log.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};

use crate::error::Error;
use crate::limits;

const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("log");
const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
const SNAPSHOT: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("snapshot");

/// Holds a number that each seal raises, and nothing else.
const SEAL: TableDefinition<'static, &'static str, u64> = TableDefinition::new("seal");

/// The name of the format version among the meta values.
const FORMAT: &str = "format";
/// The format this program writes and the only one it reads.
const FORMAT_NOW: &[u8] = b"1";

/// An open store file.
pub(crate) struct Disk {
    path: PathBuf,
    state: Mutex<State>,
    /// When the last write was made that has no seal yet.
    unsealed: Mutex<Option<Instant>>,
}

enum State {
    Open(Database),
    /// A write found no room: what stood there before it is found by opening the file anew.
    Full,
    /// Closed, so that the file is free although the Raft library still holds the store.
    Closed,
}

impl State {
    /// The file, opened anew where that is needed.
    fn database(&mut self, path: &Path) -> io::Result<&Database> {
        if let State::Full = self {
            let opened = guarded(path, || open_checked(path));
            *self = State::Open(opened.map_err(of_opening)?.0);
        }
        match self {
            State::Open(database) => Ok(database),
            State::Full | State::Closed => Err(io::Error::other("the store is closed")),
        }
    }
}

/// What the operating system said, when it is the reason.
fn of_opening(error: Error) -> io::Error {
    match error {
        Error::Io { source, .. } => source,
        other => io::Error::other(other),
    }
}

fn of_writing(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(source) => source,
        other => io::Error::other(other),
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StorageFull
}

/// All that a store file holds.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
    pub(crate) meta: BTreeMap<String, Vec<u8>>,
    pub(crate) snapshot: Option<Snapshot>,
}

/// A snapshot as it is stored.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) meta: Vec<u8>,
    pub(crate) data: Arc<Vec<u8>>,
}

/// One atomic change of the file; parts apply in the order of the fields.
#[derive(Default)]
pub(crate) struct Write {
    pub(crate) cut: Option<(Bound<u64>, Bound<u64>)>,
    pub(crate) entries: Vec<(u64, Vec<u8>)>,
    pub(crate) meta: Vec<(&'static str, Vec<u8>)>,
    pub(crate) snapshot: Option<Snapshot>,
}

impl Disk {
    /// Opens the file, or creates it with these meta values when there is none.
    pub(crate) fn open(
        path: &Path,
        first: Vec<(&'static str, Vec<u8>)>,
    ) -> Result<(Self, Contents), Error> {
        if !path.try_exists().map_err(|source| io_error(path, source))? {
            create(path, first)?;
        }
        let (database, contents) = guarded(path, || open_checked(path))?;
        let state = Mutex::new(State::Open(database));
        Ok((Self { path: path.to_owned(), state, unsealed: Mutex::default() }, contents))
    }

    /// Applies a change; it is on disk when this returns. Blocks for about one fsync, or for as long as
    /// the disk is full: a node that cannot write down what it says is to be silent, and to go on when
    /// there is room.
    pub(crate) fn write(&self, write: &Write) -> io::Result<()> {
        let mut waits = false;
        loop {
            match self.write_once(write) {
                Err(err) if is_full(&err) => {
                    if !waits {
                        tracing::error!(
                            path = %self.path.display(),
                            "the disk is full: consensus waits on this node until there is room"
                        );
                    }
                    waits = true;
                    std::thread::sleep(limits::FULL_PAUSE);
                }
                Err(err) => return Err(err),
                Ok(()) => break,
            }
        }
        if waits {
            tracing::info!(path = %self.path.display(), "there is room again: consensus goes on");
        }
        *self.unsealed() = Some(Instant::now());
        Ok(())
    }

    /// The same, but fails when the disk is full.
    pub(crate) fn write_once(&self, write: &Write) -> io::Result<()> {
        self.try_write(|database| commit(database, write))
    }

    fn try_write(
        &self,
        write: impl FnOnce(&Database) -> Result<(), redb::Error>,
    ) -> io::Result<()> {
        let mut state = self
            .state
            .lock()
            .map_err(|_| io::Error::other("an earlier write of the store panicked"))?;
        let database = state.database(&self.path)?;
        let done = write(database).map_err(of_writing);
        // After any other error it is not known what is on disk: redb refuses all writes from then on.
        if done.as_ref().is_err_and(is_full) {
            *state = State::Full;
        }
        done
    }

    /// Whether the last write has been alone for long enough to be sealed.
    pub(crate) fn seal_due(&self) -> bool {
        self.unsealed().is_some_and(|at| at.elapsed() >= limits::SEAL_AFTER)
    }

    /// Seals the last write. Blocks for about one fsync. A store that was closed meanwhile was closed
    /// in order, which is better than a seal; on a disk that is full there is none.
    pub(crate) fn seal(&self) -> io::Result<()> {
        if let Ok(State::Closed) = self.state.lock().as_deref() {
            return Ok(());
        }
        *self.unsealed() = None;
        match self.try_write(commit_seal) {
            Err(err) if is_full(&err) => {
                *self.unsealed() = Some(Instant::now());
                Ok(())
            }
            done => done,
        }
    }

    fn unsealed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.unsealed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Closes the file. Later writes fail.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *state = State::Closed;
    }
}

fn commit_seal(database: &Database) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut table = transaction.open_table(SEAL)?;
        let last = table.get("last")?.map_or(0, |value| value.value());
        table.insert("last", last.wrapping_add(1))?;
    }
    transaction.commit()?;
    Ok(())
}

fn commit(database: &Database, write: &Write) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // One fsync. Two phases, and the quick repair that needs them, would cost a second one on
    // every append; the full check that a killed process leaves to the next start takes
    // milliseconds in a file of this size.
    transaction.set_two_phase_commit(false);
    transaction.set_quick_repair(false);
    if write.cut.is_some() || !write.entries.is_empty() {
        let mut log = transaction.open_table(LOG)?;
        if let Some(range) = write.cut {
            log.retain_in::<u64, _>(range, |_, _| false)?;
        }
        for (index, bytes) in &write.entries {
            log.insert(index, bytes.as_slice())?;
        }
    }
    if !write.meta.is_empty() {
        let mut meta = transaction.open_table(META)?;
        for (name, bytes) in &write.meta {
            meta.insert(name, bytes.as_slice())?;
        }
    }
    if let Some(snapshot) = &write.snapshot {
        let mut table = transaction.open_table(SNAPSHOT)?;
        table.insert("meta", snapshot.meta.as_slice())?;
        table.insert("data", snapshot.data.as_slice())?;
    }
    transaction.commit()?;
    Ok(())
}

fn create(path: &Path, first: Vec<(&'static str, Vec<u8>)>) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let fail = |source| io_error(path, source);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(fail)?;
    match fs::remove_file(&new) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(fail(err)),
        _ => {}
    }
    let database = builder().create(&new).map_err(|err| refusal(path, err))?;
    let mut meta = first;
    meta.push((FORMAT, FORMAT_NOW.to_vec()));
    let write = Write {
        // An empty range: the table exists from the start.
        cut: Some((Bound::Included(0), Bound::Excluded(0))),
        meta,
        ..Write::default()
    };
    commit(&database, &write).map_err(|err| fail(of_writing(err)))?;
    drop(database);
    fs::rename(&new, path).map_err(fail)?;
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(limits::PAGE_CACHE_BYTES);
    builder
}

/// How far redb's own recovery went while opening.
const CLEAN: u8 = 0;
const REPAIRED: u8 = 1;
const ROLLED_BACK: u8 = 2;

fn open_checked(path: &Path) -> Result<(Database, Contents), Error> {
    let recovery = Arc::new(AtomicU8::new(CLEAN));
    let seen = recovery.clone();
    let mut builder = builder();
    builder.set_repair_callback(move |repair| {
        // redb passes 0.3 only after it found the newest commit incomplete.
        let stage = if (0.2..0.5).contains(&repair.progress()) { ROLLED_BACK } else { REPAIRED };
        seen.fetch_max(stage, Ordering::Relaxed);
    });
    let mut database = builder.open(path).map_err(|err| refusal(path, err))?;
    match recovery.load(Ordering::Relaxed) {
        // A file that was closed is trusted by redb as it is; walk it to find what has rotted.
        CLEAN => match database.check_integrity() {
            Ok(true) => {}
            Ok(false) => tracing::warn!(path = %path.display(), "rebuilt the store's page map"),
            Err(err) => return Err(refusal(path, err)),
        },
        ROLLED_BACK => {
            tracing::warn!(path = %path.display(), "dropped an incomplete last write of the store");
        }
        _ => tracing::info!(path = %path.display(), "checked the store after an unclean stop"),
    }
    let contents = read(&database).map_err(|err| damaged(path, err.to_string()))?;
    match contents.meta.get(FORMAT).map(Vec::as_slice) {
        Some(FORMAT_NOW) => Ok((database, contents)),
        Some(other) => Err(Error::Foreign {
            path: path.to_owned(),
            because: format!(
                "it has format {}, and this program reads only {}",
                String::from_utf8_lossy(other),
                String::from_utf8_lossy(FORMAT_NOW),
            ),
        }),
        None => Err(damaged(path, "it has no format version")),
    }
}

fn read(database: &Database) -> Result<Contents, redb::Error> {
    let transaction = database.begin_read()?;
    let mut contents = Contents::default();
    for row in transaction.open_table(LOG)?.range::<u64>(..)? {
        let (index, bytes) = row?;
        contents.entries.push((index.value(), bytes.value().to_vec()));
    }
    for row in transaction.open_table(META)?.iter()? {
        let (name, bytes) = row?;
        contents.meta.insert(name.value().to_owned(), bytes.value().to_vec());
    }
    match transaction.open_table(SNAPSHOT) {
        Ok(table) => {
            if let (Some(meta), Some(data)) = (table.get("meta")?, table.get("data")?) {
                contents.snapshot = Some(Snapshot {
                    meta: meta.value().to_vec(),
                    data: Arc::new(data.value().to_vec()),
                });
            }
        }
        Err(redb::TableError::TableDoesNotExist(_)) => {}
        Err(err) => return Err(err.into()),
    }
    Ok(contents)
}

/// Runs what reads an untrusted file; redb asserts what it believes of its own files.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no reason given");
            Err(damaged(path, format!("reading it failed an assertion: {text}")))
        }
    }
}

pub(crate) fn damaged(path: &Path, because: impl Into<String>) -> Error {
    Error::Damaged { path: path.to_owned(), because: because.into() }
}

fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), source }
}

fn refusal(path: &Path, err: DatabaseError) -> Error {
    match err {
        DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        DatabaseError::UpgradeRequired(version) => Error::Foreign {
            path: path.to_owned(),
            because: format!("it is written in version {version} of the file format"),
        },
        DatabaseError::Storage(redb::StorageError::Io(source))
            if !matches!(
                source.kind(),
                // What redb makes of a wrong magic number and of a file that ends too early.
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            io_error(path, source)
        }
        other => damaged(path, other.to_string()),
    }
}

/// Everything from `index` on.
pub(crate) fn since(index: u64) -> (Bound<u64>, Bound<u64>) {
    bounds(index..)
}

/// Everything up to `index`, inclusive.
pub(crate) fn upto(index: u64) -> (Bound<u64>, Bound<u64>) {
    bounds(..=index)
}

fn bounds(range: impl RangeBounds<u64>) -> (Bound<u64>, Bound<u64>) {
    (range.start_bound().cloned(), range.end_bound().cloned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_format_of_the_future_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let (disk, _) = Disk::open(&path, Vec::new()).unwrap();
        let future = Write { meta: vec![(FORMAT, b"2".to_vec())], ..Write::default() };
        disk.write(&future).unwrap();
        disk.close();
        for _ in 0..2 {
            let err = Disk::open(&path, Vec::new()).err().unwrap();
            assert!(matches!(err, Error::Foreign { .. }), "{err}");
            assert!(err.to_string().contains("format 2"), "{err}");
        }
    }

    #[test]
    fn a_creation_cut_short_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        fs::write(dir.path().join("store.new"), b"half a file").unwrap();
        Disk::open(&path, Vec::new()).unwrap();
    }

    #[test]
    fn a_closed_store_takes_no_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::open(&dir.path().join("store"), Vec::new()).unwrap();
        disk.close();
        assert!(disk.write(&Write::default()).is_err());
    }
    /// A file on a disk that gives this error to every write.
    #[derive(Debug)]
    struct Refusing(redb::backends::FileBackend, io::ErrorKind, Arc<AtomicBool>);

    impl Refusing {
        fn check(&self) -> io::Result<()> {
            if self.2.load(Ordering::Relaxed) { Err(self.1.into()) } else { Ok(()) }
        }
    }

    impl redb::StorageBackend for Refusing {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.0.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.check()?;
            self.0.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            self.0.write(offset, data)
        }

        fn close(&self) -> io::Result<()> {
            self.0.close()
        }
    }

    fn entry(index: u64) -> Write {
        Write { entries: vec![(index, vec![7; 10_000])], ..Write::default() }
    }

    /// A store with one entry, whose disk refuses what comes then. It has room where the file is opened
    /// anew.
    fn refusing(path: &Path, kind: io::ErrorKind) -> Disk {
        let (disk, _) = Disk::open(path, Vec::new()).unwrap();
        disk.write(&entry(1)).unwrap();
        disk.close();
        let file = File::options().read(true).write(true).open(path).unwrap();
        let refuses = Arc::new(AtomicBool::new(false));
        let file = redb::backends::FileBackend::new(file).unwrap();
        let backend = Refusing(file, kind, refuses.clone());
        *disk.state.lock().unwrap() = State::Open(builder().create_with_backend(backend).unwrap());
        refuses.store(true, Ordering::Relaxed);
        disk
    }

    fn indexes(path: &Path) -> Vec<u64> {
        let (_, contents) = Disk::open(path, Vec::new()).unwrap();
        contents.entries.iter().map(|(index, _)| *index).collect()
    }

    #[test]
    fn what_a_full_disk_did_not_take_is_written_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let disk = refusing(&path, io::ErrorKind::StorageFull);
        assert!(is_full(&disk.write_once(&entry(2)).unwrap_err()));
        disk.close();
        assert_eq!(indexes(&path), [1], "nothing of it is there");
        let disk = refusing(&path, io::ErrorKind::StorageFull);
        disk.seal().unwrap();
        disk.write(&entry(2)).unwrap();
        disk.close();
        assert_eq!(indexes(&path), [1, 2]);
        let disk = refusing(&path, io::ErrorKind::StorageFull);
        disk.write(&entry(3)).unwrap();
        disk.close();
        assert_eq!(indexes(&path), [1, 2, 3]);
    }

    #[test]
    fn after_another_error_no_write_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let disk = refusing(&path, io::ErrorKind::Other);
        for _ in 0..3 {
            assert!(disk.write(&entry(2)).is_err());
        }
        disk.close();
        assert_eq!(indexes(&path), [1]);
    }
}
