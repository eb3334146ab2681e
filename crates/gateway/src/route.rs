//! Which server a read may go to: pure decisions, each with its reason.
//!
//! A replica serves a read only if the promise asked for can be proved from what is known: how far
//! its server had replayed (it never goes back while that server runs), and what the session has
//! seen or written. Everything else goes to the writer.

use quorate_core::NodeId;
use quorate_core::contract::Action;
use quorate_core::gateway::{Consistency, ReadFrom};

use crate::world::{Replica, Token, View};

/// What a session asks of its reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) consistency: Consistency,
    pub(crate) read_from: ReadFrom,
    /// For `bounded`.
    pub(crate) max_staleness_ms: u64,
    /// Reads of the same key go to the same replica while it may serve them.
    pub(crate) sticky: Option<u64>,
    /// It writes although the writer's disk is short: to make room, as a rule.
    pub(crate) when_full: bool,
}

/// Where a transaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Writer(Because),
    /// This replica, which said that it runs as this incarnation.
    Replica {
        node: NodeId,
        incarnation: u64,
    },
    /// Nobody may serve it; for reads that must not go to the writer.
    Nobody,
}

/// Why the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Because {
    /// It may write.
    Writes,
    /// Reads are not split off, or the session asked for the writer.
    Asked,
    /// The level can only be had from the writer.
    Strong,
    /// No replica is known.
    NoReplica,
    /// No replica is known to have replayed what the session wrote or saw.
    NotReplayed,
    /// Every replica is further behind than allowed.
    Lag,
    /// A standby refused this statement before.
    Refused,
    /// The session's transactions are serializable, which those of a standby cannot be.
    Serializable,
}

impl Because {
    /// All of them, for counters.
    pub(crate) const ALL: [Because; 8] = [
        Because::Writes,
        Because::Asked,
        Because::Strong,
        Because::NoReplica,
        Because::NotReplayed,
        Because::Lag,
        Because::Refused,
        Because::Serializable,
    ];

    /// As a label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Because::Writes => "writes",
            Because::Asked => "asked",
            Because::Strong => "strong",
            Because::NoReplica => "no_replica",
            Because::NotReplayed => "not_replayed",
            Because::Lag => "lag",
            Because::Refused => "refused",
            Because::Serializable => "serializable",
        }
    }
}

/// Where a read goes. `age_ms` is how long ago the view was made, `turn` breaks ties, `load` is what
/// a replica has to do already, in transactions.
pub(crate) fn read(
    asked: &Asked,
    token: Option<Token>,
    view: &View,
    (age_ms, turn): (u64, usize),
    load: impl Fn(NodeId) -> usize,
) -> Way {
    let named = asked.read_from.role();
    let is_meant = |r: &&Replica| match named {
        Some(role) => r.role == role,
        None => r.role.serves_anybody(),
    };
    let withheld = |r: &Replica| {
        r.broken.as_ref().is_some_and(|broken| broken.action == Action::RouteToWriter)
    };
    let otherwise = |because| match asked.read_from {
        ReadFrom::Writer | ReadFrom::Prefer | ReadFrom::Nearest => Way::Writer(because),
        // Who names a role wants no other, unless that role's own contract sends them away.
        _ if named.is_some() && view.replicas.iter().filter(is_meant).any(withheld) => {
            Way::Writer(because)
        }
        _ => Way::Nobody,
    };
    if asked.read_from == ReadFrom::Writer {
        return Way::Writer(Because::Asked);
    }
    if asked.consistency == Consistency::Strong {
        return Way::Writer(Because::Strong);
    }
    if !view.replicas.iter().any(|r| is_meant(&r)) {
        return otherwise(Because::NoReplica);
    }
    let lag = lag_allowed(asked, view);
    let fresh = |r: &&Replica| !withheld(r) && r.behind_ms.saturating_add(age_ms) <= lag;
    let meant = || view.replicas.iter().filter(is_meant).filter(fresh);
    if meant().next().is_none() {
        return otherwise(Because::Lag);
    }
    let may = meant().filter(|r| has(asked, token, r, view));
    let best = match asked.sticky {
        Some(key) => may.enumerate().max_by_key(|(_, r)| mix(key, r.node)),
        None => may.enumerate().min_by_key(|(i, r)| {
            let far = (asked.read_from == ReadFrom::Nearest).then_some(r.distance);
            let turn = (i + turn) % view.replicas.len();
            (far, share(load(r.node), r.weight), turn)
        }),
    };
    let nearer = |r: &Replica| view.writer_distance.is_some_and(|writer| writer < r.distance);
    match best {
        Some((_, r)) if asked.read_from == ReadFrom::Nearest && nearer(r) => {
            Way::Writer(Because::Asked)
        }
        Some((_, r)) => Way::Replica { node: r.node, incarnation: r.incarnation },
        None => otherwise(Because::NotReplayed),
    }
}

/// What one transaction more would make of a replica's load, against its weight.
fn share(load: usize, weight: u8) -> usize {
    // Finer than a transaction, so that weights tell before there are many.
    (load + 1).saturating_mul(1000) / usize::from(weight.max(1))
}

fn lag_allowed(asked: &Asked, view: &View) -> u64 {
    // Roles that are asked for by name have contracts of their own.
    let limit = match asked.read_from {
        ReadFrom::Reporting | ReadFrom::Analytics | ReadFrom::Dr => u64::MAX,
        ReadFrom::Writer
        | ReadFrom::Replica
        | ReadFrom::Prefer
        | ReadFrom::Nearest
        | ReadFrom::Ha
        | ReadFrom::Read => view.wanted.max_lag_ms,
    };
    match asked.consistency {
        Consistency::Bounded => asked.max_staleness_ms.min(limit),
        Consistency::Strong
        | Consistency::ReadYourWrites
        | Consistency::Monotonic
        | Consistency::Causal
        | Consistency::Eventual => limit,
    }
}

/// Whether a replica is known to have what the session must see.
fn has(asked: &Asked, token: Option<Token>, replica: &Replica, view: &View) -> bool {
    match asked.consistency {
        Consistency::Strong => false,
        Consistency::Bounded | Consistency::Eventual => true,
        Consistency::ReadYourWrites | Consistency::Monotonic | Consistency::Causal => {
            let Some(token) = token else { return true };
            // A token of an earlier reign is a position in what the present one inherited, as far
            // as that is known: the caller turned it into one of the present term.
            view.writer.is_some_and(|w| w.term == token.term && replica.term == w.term)
                && replica.replayed >= token.lsn
        }
    }
}

/// Rendezvous hashing: each key has an order of the nodes, and takes the first that may serve it.
fn mix(key: u64, node: NodeId) -> u64 {
    let name = node.to_string();
    let step = |x: u64, b: u8| (x ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
    let mut x = name.bytes().fold(key, step);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
