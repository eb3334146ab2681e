//! The replicated state as the Raft library wants it: in memory, with its snapshots on disk.

use std::io::{self, Cursor};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    EntryPayload, ErrorSubject, ErrorVerb, OptionalSend, RaftSnapshotBuilder, SnapshotMeta,
    StorageError, StoredMembership,
};
use tokio::sync::{Mutex, watch};

use crate::disk::{Disk, Snapshot, Write};
use crate::error::Error;
use crate::machine::Machine;
use crate::raft::{Entry, Id, LogId, Member, Types};
use crate::store::{decode, fault, write_blocking};

/// The last snapshot, as the library wants it and as it is stored.
type Current<N> = Arc<Mutex<Option<(SnapshotMeta<N, Member>, Arc<Vec<u8>>)>>>;

/// The state part of the store: in memory, rebuilt from the last snapshot and the log.
pub(crate) struct MachineStore<M: Machine, N: Id> {
    disk: Arc<Disk>,
    state: Arc<M>,
    applied: Option<LogId<N>>,
    membership: StoredMembership<N, Member>,
    current: Current<N>,
    states: watch::Sender<Arc<M>>,
    indexes: watch::Sender<Option<u64>>,
}

impl<M: Machine, N: Id> MachineStore<M, N> {
    pub(crate) fn load(
        path: &Path,
        disk: Arc<Disk>,
        stored: Option<Snapshot>,
    ) -> Result<Self, Error> {
        let mut state = M::default();
        let mut current = None;
        if let Some(stored) = stored {
            state = decode(path, "snapshot", &stored.data)?;
            let meta: SnapshotMeta<N, Member> = decode(path, "snapshot's meta", &stored.meta)?;
            current = Some((meta, stored.data));
        }
        let meta = current.as_ref().map(|(meta, _)| meta.clone()).unwrap_or_default();
        let state = Arc::new(state);
        Ok(Self {
            disk,
            applied: meta.last_log_id,
            membership: meta.last_membership,
            current: Arc::new(Mutex::new(current)),
            states: watch::Sender::new(state.clone()),
            indexes: watch::Sender::new(meta.last_log_id.map(|id| id.index)),
            state,
        })
    }

    /// The last applied entry.
    pub(crate) fn applied(&self) -> Option<LogId<N>> {
        self.applied
    }

    /// The applied state.
    pub(crate) fn states(&self) -> watch::Receiver<Arc<M>> {
        self.states.subscribe()
    }

    /// The index of the last applied entry; never ahead of [`Self::states`].
    pub(crate) fn indexes(&self) -> watch::Receiver<Option<u64>> {
        self.indexes.subscribe()
    }

    fn publish(&self) {
        self.states.send_replace(self.state.clone());
        self.indexes.send_replace(self.applied.map(|id| id.index));
    }
}

impl<M: Machine, N: Id> RaftStateMachine<Types<M, N>> for MachineStore<M, N> {
    type SnapshotBuilder = Builder<M, N>;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<N>>, StoredMembership<N, Member>), StorageError<N>> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Option<M::Answer>>, StorageError<N>>
    where
        I: IntoIterator<Item = Entry<M, N>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            answers.push(match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(command) => {
                    Some(Arc::make_mut(&mut self.state).apply(&command))
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
            });
        }
        self.publish();
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder {
            disk: self.disk.clone(),
            state: self.state.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
            current: self.current.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<N>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<N, Member>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<N>> {
        let subject = || ErrorSubject::Snapshot(Some(meta.signature()));
        let data = Arc::new(snapshot.into_inner());
        let state: M = serde_json::from_slice(&data)
            .map_err(|err| fault(subject(), ErrorVerb::Read)(err.into()))?;
        save(&self.disk, &self.current, meta.clone(), data)
            .await
            .map_err(fault(subject(), ErrorVerb::Write))?;
        self.state = Arc::new(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<openraft::Snapshot<Types<M, N>>>, StorageError<N>> {
        Ok(self.current.lock().await.as_ref().map(|(meta, data)| openraft::Snapshot {
            meta: meta.clone(),
            snapshot: Box::new(Cursor::new(data.to_vec())),
        }))
    }
}

/// Takes a snapshot of the state as it was when the builder was made.
pub(crate) struct Builder<M: Machine, N: Id> {
    disk: Arc<Disk>,
    state: Arc<M>,
    applied: Option<LogId<N>>,
    membership: StoredMembership<N, Member>,
    current: Current<N>,
}

impl<M: Machine, N: Id> RaftSnapshotBuilder<Types<M, N>> for Builder<M, N> {
    async fn build_snapshot(&mut self) -> Result<openraft::Snapshot<Types<M, N>>, StorageError<N>> {
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            // The same entries give the same bytes on every node, so this names the content.
            snapshot_id: self.applied.map_or_else(|| "empty".to_owned(), |id| id.to_string()),
        };
        let fault = |verb| fault(ErrorSubject::Snapshot(Some(meta.signature())), verb);
        let state = self.state.clone();
        let data = tokio::task::spawn_blocking(move || serde_json::to_vec(&*state))
            .await
            .map_err(|err| fault(ErrorVerb::Read)(io::Error::other(err)))?
            .map_err(|err| fault(ErrorVerb::Read)(err.into()))?;
        let data = Arc::new(data);
        save(&self.disk, &self.current, meta.clone(), data.clone())
            .await
            .map_err(fault(ErrorVerb::Write))?;
        Ok(openraft::Snapshot { meta, snapshot: Box::new(Cursor::new(data.to_vec())) })
    }
}

/// Stores a snapshot unless a newer one is there: one may arrive while another is being taken.
async fn save<N: Id>(
    disk: &Arc<Disk>,
    current: &Current<N>,
    meta: SnapshotMeta<N, Member>,
    data: Arc<Vec<u8>>,
) -> io::Result<()> {
    let mut current = current.lock().await;
    if current.as_ref().is_some_and(|(newest, _)| newest.last_log_id > meta.last_log_id) {
        return Ok(());
    }
    let stored = Snapshot { meta: serde_json::to_vec(&meta)?, data: data.clone() };
    let write = Write { snapshot: Some(stored), ..Write::default() };
    write_blocking(disk.clone(), write).await?;
    *current = Some((meta, data));
    Ok(())
}
