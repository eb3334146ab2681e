//! The log as the Raft library wants it, over one [`Disk`]; and the opening of the whole store.
//!
//! The whole log is held decoded in memory (snapshots bound it), so the file is read only at the
//! start. Votes and entries are on disk before they are acknowledged. The committed index is not
//! worth an fsync: it rides along with the next write, and a restart re-learns the rest.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::disk::{Contents, Disk, Write, damaged, since, upto};
use crate::error::Error;
use crate::limits;
use crate::machine::Machine;
use crate::raft::{Entry, Id, LogId, StoreId, Types, Vote};
use crate::state::MachineStore;

const NODE: &str = "node";
const STORE: &str = "store";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// What opening a store gives.
pub(crate) struct Opened<M: Machine, N: Id> {
    pub(crate) log: LogStore<M, N>,
    pub(crate) machine: MachineStore<M, N>,
    pub(crate) id: StoreId,
}

/// Opens or creates the store of node `me`. Blocks.
pub(crate) fn open<M: Machine, N: Id>(path: &Path, me: N) -> Result<Opened<M, N>, Error> {
    let fresh = StoreId::fresh();
    let first = vec![(NODE, encode(path, &me)?), (STORE, encode(path, &fresh)?)];
    let (disk, contents) = Disk::open(path, first)?;
    let owner: N = required(path, &contents, NODE)?;
    if owner != me {
        return Err(Error::Foreign {
            path: path.to_owned(),
            because: format!("it belongs to node {owner}, and this is node {me}"),
        });
    }
    let id = required(path, &contents, STORE)?;
    let memory = Memory::load(path, &contents)?;
    let disk = Arc::new(disk);
    let machine = MachineStore::load(path, disk.clone(), contents.snapshot)?;
    memory.check_against(path, machine.applied())?;
    let log = LogStore {
        disk,
        memory: Arc::new(RwLock::new(memory)),
        truncations: Arc::new(AtomicU64::new(0)),
    };
    Ok(Opened { log, machine, id })
}

fn encode(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
        .map_err(|err| Error::Io { path: path.to_owned(), source: io::Error::other(err) })
}

pub(crate) fn decode<T: DeserializeOwned>(
    path: &Path,
    what: &str,
    bytes: &[u8],
) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|err| damaged(path, format!("its {what} cannot be read: {err}")))
}

fn optional<T: DeserializeOwned>(
    path: &Path,
    from: &Contents,
    n: &str,
) -> Result<Option<T>, Error> {
    from.meta.get(n).map(|bytes| decode(path, n, bytes)).transpose()
}

fn required<T: DeserializeOwned>(path: &Path, from: &Contents, name: &str) -> Result<T, Error> {
    optional(path, from, name)?.ok_or_else(|| damaged(path, format!("it has no {name}")))
}

/// The log as it is in memory.
struct Memory<M: Machine, N: Id> {
    /// Entries with their size as JSON.
    entries: BTreeMap<u64, (Entry<M, N>, usize)>,
    purged: Option<LogId<N>>,
    vote: Option<Vote<N>>,
    committed: Option<LogId<N>>,
    /// Whether `committed` is newer than on disk.
    committed_unsaved: bool,
}

impl<M: Machine, N: Id> Memory<M, N> {
    fn load(path: &Path, contents: &Contents) -> Result<Self, Error> {
        let purged: Option<LogId<N>> = optional(path, contents, PURGED)?;
        let mut entries = BTreeMap::new();
        let mut expected = purged.map_or(0, |id| id.index + 1);
        for (index, bytes) in &contents.entries {
            let entry: Entry<M, N> = decode(path, &format!("log entry {index}"), bytes)?;
            if entry.log_id.index != *index || expected != *index {
                return Err(damaged(path, format!("its log has a hole before entry {index}")));
            }
            expected = index + 1;
            entries.insert(*index, (entry, bytes.len()));
        }
        Ok(Self {
            entries,
            purged,
            vote: optional(path, contents, VOTE)?,
            committed: optional(path, contents, COMMITTED)?,
            committed_unsaved: false,
        })
    }

    /// The entries must begin where the snapshot ends, or before.
    fn check_against(&self, path: &Path, snapshot: Option<LogId<N>>) -> Result<(), Error> {
        let applied = snapshot.map_or(0, |id| id.index + 1);
        let first = self.purged.map_or(0, |id| id.index + 1);
        if first > applied {
            return Err(damaged(path, format!("entries {applied} to {first} are missing")));
        }
        Ok(())
    }

    fn last(&self) -> Option<LogId<N>> {
        self.entries.last_key_value().map(|(_, (entry, _))| entry.log_id).or(self.purged)
    }
}

/// The log part of the store. Clones share it.
pub(crate) struct LogStore<M: Machine, N: Id> {
    disk: Arc<Disk>,
    memory: Arc<RwLock<Memory<M, N>>>,
    truncations: Arc<AtomicU64>,
}

impl<M: Machine, N: Id> Clone for LogStore<M, N> {
    fn clone(&self) -> Self {
        Self {
            disk: self.disk.clone(),
            memory: self.memory.clone(),
            truncations: self.truncations.clone(),
        }
    }
}

impl<M: Machine, N: Id> LogStore<M, N> {
    /// Counts the times entries were taken back. A proposal during which this moved may have been
    /// in the log, and may still be in somebody else's.
    pub(crate) fn truncations(&self) -> u64 {
        self.truncations.load(Ordering::SeqCst)
    }

    /// The last entry that is on disk here, or was.
    pub(crate) fn last(&self) -> Option<LogId<N>> {
        self.memory().last()
    }

    /// Seals the last write if it is time, in the background.
    pub(crate) fn seal_if_due(&self) {
        if !self.disk.seal_due() {
            return;
        }
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(err) = disk.seal() {
                // The next write fails too, and that stops the node.
                tracing::warn!(error = %err, "could not seal the last write of the store");
            }
        });
    }

    /// Saves what no write has carried yet, and closes the file. Blocks.
    pub(crate) fn close(&self) {
        let mut write = Write::default();
        if let Err(err) = self.add_committed(&mut write) {
            tracing::warn!(error = %err, "could not encode the committed index");
        }
        if !write.meta.is_empty()
            && let Err(err) = self.disk.write_once(&write)
        {
            tracing::warn!(error = %err, "could not save the committed index");
        }
        self.disk.close();
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory<M, N>> {
        self.memory.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory<M, N>> {
        self.memory.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn add_committed(&self, write: &mut Write) -> io::Result<()> {
        let mut memory = self.memory_mut();
        if memory.committed_unsaved {
            write.meta.push((COMMITTED, serde_json::to_vec(&memory.committed)?));
            memory.committed_unsaved = false;
        }
        Ok(())
    }

    async fn write(&self, mut write: Write) -> io::Result<()> {
        self.add_committed(&mut write)?;
        write_blocking(self.disk.clone(), write).await
    }
}

pub(crate) async fn write_blocking(disk: Arc<Disk>, write: Write) -> io::Result<()> {
    tokio::task::spawn_blocking(move || disk.write(&write)).await.map_err(io::Error::other)?
}

pub(crate) fn fault<N: Id>(
    subject: ErrorSubject<N>,
    verb: ErrorVerb,
) -> impl FnOnce(io::Error) -> StorageError<N> {
    move |err| StorageIOError::new(subject, verb, openraft::AnyError::new(&err)).into()
}

impl<M: Machine, N: Id> RaftLogReader<Types<M, N>> for LogStore<M, N> {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<M, N>>, StorageError<N>> {
        let memory = self.memory();
        // A range in the wrong order is no range to a `BTreeMap`, but an empty one to the library.
        if !in_order(&range) {
            return Ok(Vec::new());
        }
        Ok(memory.entries.range(range).map(|(_, (entry, _))| entry.clone()).collect())
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<M, N>>, StorageError<N>> {
        let memory = self.memory();
        let mut batch = Vec::new();
        let mut total = 0;
        for (_, (entry, bytes)) in memory.entries.range(start..end.max(start)) {
            total += bytes;
            let full =
                batch.len() as u64 >= limits::BATCH_ENTRIES_MAX || total > limits::BATCH_BYTES_MAX;
            if full && !batch.is_empty() {
                break;
            }
            batch.push(entry.clone());
        }
        Ok(batch)
    }
}

/// Whether a range is one that a `BTreeMap` takes.
fn in_order(range: &impl RangeBounds<u64>) -> bool {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Included(a), Bound::Included(b) | Bound::Excluded(b))
        | (Bound::Excluded(a), Bound::Included(b)) => a <= b,
        (Bound::Excluded(a), Bound::Excluded(b)) => a < b,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
    }
}

impl<M: Machine, N: Id> RaftLogStorage<Types<M, N>> for LogStore<M, N> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<M, N>>, StorageError<N>> {
        let memory = self.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last() })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<N>) -> Result<(), StorageError<N>> {
        let fault = || fault(ErrorSubject::Vote, ErrorVerb::Write);
        let bytes = serde_json::to_vec(vote).map_err(|err| fault()(err.into()))?;
        let write = Write { meta: vec![(VOTE, bytes)], ..Write::default() };
        self.write(write).await.map_err(fault())?;
        self.memory_mut().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<N>>, StorageError<N>> {
        Ok(self.memory().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<N>>) -> Result<(), StorageError<N>> {
        let mut memory = self.memory_mut();
        memory.committed = committed;
        memory.committed_unsaved = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<N>>, StorageError<N>> {
        let memory = self.memory();
        // Saved with other writes, it can be ahead of a log whose tail was taken back since.
        Ok(memory.committed.filter(|id| Some(*id) <= memory.last()))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types<M, N>>,
    ) -> Result<(), StorageError<N>>
    where
        I: IntoIterator<Item = Entry<M, N>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let fault = || fault(ErrorSubject::Logs, ErrorVerb::Write);
        let entries: Vec<_> = entries.into_iter().collect();
        let mut write = Write::default();
        for entry in &entries {
            let bytes = serde_json::to_vec(entry).map_err(|err| fault()(err.into()))?;
            write.entries.push((entry.log_id.index, bytes));
        }
        let sizes: Vec<usize> = write.entries.iter().map(|(_, bytes)| bytes.len()).collect();
        self.write(write).await.map_err(fault())?;
        {
            let mut memory = self.memory_mut();
            for (entry, bytes) in entries.into_iter().zip(sizes) {
                memory.entries.insert(entry.log_id.index, (entry, bytes));
            }
        }
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<N>) -> Result<(), StorageError<N>> {
        let write = Write { cut: Some(since(from.index)), ..Write::default() };
        self.write(write).await.map_err(fault(ErrorSubject::Logs, ErrorVerb::Delete))?;
        self.memory_mut().entries.split_off(&from.index);
        self.truncations.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn purge(&mut self, to: LogId<N>) -> Result<(), StorageError<N>> {
        let fault = || fault(ErrorSubject::Logs, ErrorVerb::Delete);
        let bytes = serde_json::to_vec(&to).map_err(|err| fault()(err.into()))?;
        let write =
            Write { cut: Some(upto(to.index)), meta: vec![(PURGED, bytes)], ..Write::default() };
        self.write(write).await.map_err(fault())?;
        let mut memory = self.memory_mut();
        memory.entries = memory.entries.split_off(&(to.index + 1));
        memory.purged = Some(to);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use openraft::testing::{StoreBuilder, Suite};
    use serde::Deserialize;
    use tempfile::TempDir;

    use super::*;

    /// The library's suite makes ids of numbers.
    #[derive(
        Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
    )]
    struct Number(u64);

    impl From<u64> for Number {
        fn from(number: u64) -> Self {
            Self(number)
        }
    }

    impl fmt::Display for Number {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Display::fmt(&self.0, f)
        }
    }

    type State = quorate_core::State;
    type Log = LogStore<State, Number>;
    type Machine = MachineStore<State, Number>;

    struct Stores;

    impl StoreBuilder<Types<State, Number>, Log, Machine, TempDir> for Stores {
        async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<Number>> {
            let dir = tempfile::tempdir().unwrap();
            let opened = open(&dir.path().join("store"), Number(0)).unwrap();
            Ok((dir, opened.log, opened.machine))
        }
    }

    #[test]
    fn the_store_passes_the_librarys_own_suite() {
        Suite::test_all(Stores).unwrap();
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let vote = Vote::new(7, Number(3));
        let id = {
            let mut opened = open::<State, Number>(&path, Number(3)).unwrap();
            opened.log.save_vote(&vote).await.unwrap();
            opened.log.close();
            opened.id
        };
        let mut opened = open::<State, Number>(&path, Number(3)).unwrap();
        assert_eq!(opened.log.read_vote().await.unwrap(), Some(vote));
        assert_eq!(opened.id, id);
    }

    #[test]
    fn a_store_of_another_node_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        open::<State, Number>(&path, Number(1)).unwrap().log.close();
        let err = open::<State, Number>(&path, Number(2)).err().unwrap();
        assert!(err.to_string().contains("belongs to node 1"), "{err}");
    }

    #[test]
    fn a_log_with_a_hole_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let opened = open::<State, Number>(&path, Number(1)).unwrap();
        let entry = |index| {
            let id = openraft::testing::log_id(1, Number(1), index);
            let entry: Entry<State, Number> = openraft::entry::RaftEntry::new_blank(id);
            (index, serde_json::to_vec(&entry).unwrap())
        };
        let write = Write { entries: vec![entry(0), entry(2)], ..Write::default() };
        opened.log.disk.write(&write).unwrap();
        opened.log.close();
        let err = open::<State, Number>(&path, Number(1)).err().unwrap();
        assert!(err.to_string().contains("hole before entry 2"), "{err}");
    }
}
