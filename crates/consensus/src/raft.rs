//! The Raft library's types, fixed to ours. Nothing here leaves the crate.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Cursor;
use std::marker::PhantomData;

use openraft::RaftTypeConfig;
use openraft::impls::OneshotResponder;
use quorate_core::NodeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::machine::Machine;

pub(crate) type Raft<M> = openraft::Raft<Types<M>>;
pub(crate) type Entry<M, N> = openraft::Entry<Types<M, N>>;
pub(crate) type LogId<N> = openraft::LogId<N>;
pub(crate) type Vote<N> = openraft::Vote<N>;

/// The library's type configuration. `N` is a node's id; only the store's tests use another.
pub(crate) struct Types<M, N = Name>(PhantomData<fn() -> (M, N)>);

/// What an id must be for the Raft library.
pub(crate) trait Id: openraft::NodeId + Copy {}
impl<T: openraft::NodeId + Copy> Id for T {}

impl<M: Machine, N: Id> RaftTypeConfig for Types<M, N> {
    type D = M::Command;
    /// `None` for entries that are not commands.
    type R = Option<M::Answer>;
    type NodeId = N;
    type Node = Member;
    type Entry = openraft::Entry<Self>;
    type SnapshotData = Cursor<Vec<u8>>;
    type AsyncRuntime = openraft::TokioRuntime;
    type Responder = OneshotResponder<Self>;
}

/// A node's name as the Raft library keeps it. Unlike others it may be empty: the library gives
/// the very first entry of a log the default id.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name(pub(crate) NodeId);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// What the membership says of a node besides its name: which store it had when it joined.
///
/// No address: where a node is, is the caller's business.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) store: StoreId,
}

/// Names one store file for ever, so that a replaced one is not mistaken for it: a voter whose
/// file was lost has forgotten its vote and what it acknowledged, and must not count.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StoreId(u128);

impl StoreId {
    /// A new one. The hash seeds are the process's randomness; uniqueness is all that is needed.
    pub(crate) fn fresh() -> Self {
        let half = || u128::from(RandomState::new().hash_one(std::process::id()));
        Self(half() << 64 | half())
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for StoreId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StoreId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        u128::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

// The library asks all of these of a type that is never instantiated; deriving them would ask
// them of `M` too.
impl<M, N> fmt::Debug for Types<M, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}
impl<M, N> Clone for Types<M, N> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<M, N> Copy for Types<M, N> {}
impl<M, N> Default for Types<M, N> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<M, N> PartialEq for Types<M, N> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<M, N> Eq for Types<M, N> {}
impl<M, N> PartialOrd for Types<M, N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<M, N> Ord for Types<M, N> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
