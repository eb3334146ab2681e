//! One database as one role: its pools, one for each server, and what is known about it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use quorate_core::NodeId;
use quorate_core::gateway::{Consistency, Gateway, PoolMode, ReadFrom, SynchronousCommit};
use quorate_wire::Startup;
use quorate_wire::sql::Shapes;

use crate::functions::Catalog;
use crate::limits;
use crate::login::{How, Known};
use crate::metrics::{Counters, Times};
use crate::pool::Pool;
use crate::server::{Reported, Server};

/// What the operator wants of pools and clients of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) mode: PoolMode,
    pub(crate) size: usize,
    /// Connections beyond `size`, once a client has waited for `reserve_after_ms`.
    pub(crate) reserve: usize,
    pub(crate) reserve_after_ms: u64,
    /// Connections that are there although nobody uses them.
    pub(crate) min_idle: usize,
    pub(crate) wait_ms: u64,
    pub(crate) waiting_max: usize,
    pub(crate) idle_ms: u64,
    pub(crate) lifetime_ms: u64,
    pub(crate) reuse_unnamed: bool,
    pub(crate) prepared_max: usize,
    pub(crate) consistency: Consistency,
    pub(crate) read_from: ReadFrom,
    pub(crate) max_staleness_ms: u64,
    pub(crate) statement_timeout_ms: Option<u64>,
    pub(crate) rows_max: Option<u64>,
    pub(crate) bytes_max: Option<u64>,
    /// The least `synchronous_commit` of a session.
    pub(crate) floor: SynchronousCommit,
    pub(crate) disabled: Option<String>,
    /// Transactions that take longer are told in the log; 0: none are.
    pub(crate) slow_ms: u64,
    /// With the text of their first statement.
    pub(crate) log_statements: bool,
}

impl Spec {
    fn of(wanted: &Gateway, database: &str, user: &str) -> Self {
        let pool = wanted.pool_for(database, user);
        let spec = pool.spec;
        // Zero stands for "no limit".
        let or_ever = |ms: u64| if ms == 0 { u64::MAX / 2 } else { ms };
        Self {
            mode: spec.mode,
            size: spec.size as usize,
            reserve: spec.reserve as usize,
            reserve_after_ms: spec.reserve_after_ms,
            min_idle: spec.min_idle as usize,
            wait_ms: or_ever(spec.wait_ms),
            waiting_max: spec.waiting_max as usize,
            idle_ms: or_ever(spec.idle_ms),
            lifetime_ms: or_ever(spec.lifetime_ms),
            reuse_unnamed: spec.reuse_unnamed,
            prepared_max: spec.prepared_max as usize,
            consistency: pool.consistency,
            read_from: pool.read_from,
            max_staleness_ms: wanted.max_staleness_ms,
            statement_timeout_ms: pool.statement_timeout_ms,
            rows_max: pool.rows_max,
            bytes_max: pool.bytes_max,
            floor: wanted.synchronous_commit_floor,
            disabled: pool.disabled,
            slow_ms: wanted.slow_ms,
            log_statements: wanted.log_statements,
        }
    }
}

/// A database and a role.
pub(crate) struct Account {
    pub(crate) database: Box<str>,
    pub(crate) user: Box<str>,
    spec: RefCell<Rc<Spec>>,
    pools: RefCell<BTreeMap<NodeId, Rc<Pool>>>,
    /// What the last new connection reported: what a client is told when it logs in.
    reported: RefCell<Option<Rc<Reported>>>,
    /// What clients are told who log in with these settings, by the port that only reads or not.
    logins: RefCell<HashMap<How, Rc<Known>>>,
    /// Texts that a standby refused to run, by fingerprint.
    refused: RefCell<HashSet<u64>>,
    functions: RefCell<Rc<Catalog>>,
    /// What texts are, with these functions.
    pub(crate) shapes: RefCell<Shapes>,
    /// How often they were asked for, and which of these times they were learnt.
    functions_asked: Cell<u64>,
    functions_learnt: Cell<u64>,
    pub(crate) counters: Counters,
    pub(crate) times: Times,
    /// When the functions were read last, by the clock of the worker.
    pub(crate) functions_read: Cell<u64>,
    /// How much more often transactions went on behind their first write lately than ended there.
    more_follows: Cell<i8>,
    /// Held back by an operator: PAUSE.
    pub(crate) paused: Cell<bool>,
}

impl Account {
    pub(crate) fn new(database: &str, user: &str, wanted: &Gateway) -> Rc<Self> {
        Rc::new(Self {
            database: database.into(),
            user: user.into(),
            spec: RefCell::new(Rc::new(Spec::of(wanted, database, user))),
            pools: RefCell::default(),
            reported: RefCell::default(),
            logins: RefCell::default(),
            refused: RefCell::default(),
            functions: RefCell::default(),
            shapes: RefCell::default(),
            functions_asked: Cell::new(0),
            functions_learnt: Cell::new(0),
            counters: Counters::default(),
            times: Times::default(),
            functions_read: Cell::new(0),
            more_follows: Cell::new(0),
            paused: Cell::new(false),
        })
    }

    /// What the operator wants for it.
    pub(crate) fn spec(&self) -> Rc<Spec> {
        Rc::clone(&self.spec.borrow())
    }

    /// The operator wants something else.
    pub(crate) fn configure(&self, wanted: &Gateway, now: u64) {
        let spec = Rc::new(Spec::of(wanted, &self.database, &self.user));
        for pool in self.pools.borrow().values() {
            pool.resize(&spec);
            if spec.floor > self.spec().floor {
                // What they were opened with may be below it.
                pool.renew(now);
            }
        }
        *self.spec.borrow_mut() = spec;
    }

    /// Functions of the database.
    pub(crate) fn functions(&self) -> Rc<Catalog> {
        Rc::clone(&self.functions.borrow())
    }

    /// Whether they are not known, or were read as long ago as this.
    pub(crate) fn lacks_functions(&self, now: u64, age_ms: u64) -> bool {
        !self.functions.borrow().known || now >= self.functions_read.get() + age_ms
    }

    /// They are asked for: which time this is.
    pub(crate) fn asks_functions(&self) -> u64 {
        self.functions_asked.set(self.functions_asked.get() + 1);
        self.functions_asked.get()
    }

    /// They were learnt. An answer to an earlier question may come later, and is older.
    pub(crate) fn set_functions(&self, asked: u64, mut catalog: Catalog) {
        if asked < self.functions_learnt.get() {
            return;
        }
        self.functions_learnt.set(asked);
        let known = self.functions();
        catalog.version = known.version;
        if catalog != *known {
            // What was said of texts before may not hold any more.
            catalog.version += 1;
            *self.functions.borrow_mut() = Rc::new(catalog);
            *self.shapes.borrow_mut() = Shapes::default();
        }
    }

    /// The pool of a server.
    pub(crate) fn pool(&self, node: NodeId) -> Rc<Pool> {
        let spec = self.spec();
        let mut pools = self.pools.borrow_mut();
        Rc::clone(pools.entry(node).or_insert_with(|| {
            let pool = Pool::new(node, spec.size);
            pool.resize(&spec);
            pool
        }))
    }

    /// All pools.
    pub(crate) fn pools(&self) -> Vec<Rc<Pool>> {
        self.pools.borrow().values().cloned().collect()
    }

    /// Transactions that a server has to do for this account, and clients that wait for it.
    pub(crate) fn load(&self, node: NodeId) -> usize {
        let pools = self.pools.borrow();
        pools.get(&node).map_or(0, |pool| {
            let (idle, open, waiting) = pool.counts();
            open - idle.min(open) + waiting
        })
    }

    /// A transaction went on, or was ended, behind its first write.
    pub(crate) fn learns_what_follows(&self, more: bool) {
        let step = if more { 1 } else { -1 };
        let lead = self.more_follows.get() + step;
        self.more_follows.set(lead.clamp(-limits::FOLLOWS_LEAD, limits::FOLLOWS_LEAD));
    }

    /// Whether transactions go on behind their first write as a rule.
    pub(crate) fn more_follows(&self) -> bool {
        self.more_follows.get() > 0
    }

    /// Takes a connection back that served a transaction.
    pub(crate) fn put(&self, server: Box<Server>) {
        let pool = self.pools.borrow().get(&server.node).cloned();
        if let Some(pool) = pool {
            pool.put(server);
        }
    }

    /// Takes note of what a new connection reported.
    pub(crate) fn set_reported(&self, reported: &Reported) {
        let known = self.reported.borrow().as_ref().is_some_and(|known| **known == *reported);
        if !known {
            *self.reported.borrow_mut() = Some(Rc::new(reported.clone()));
            self.logins.borrow_mut().clear();
        }
    }

    /// What clients are told who log in with these settings, when that is known.
    pub(crate) fn login(&self, how: &How) -> Option<Rc<Known>> {
        self.logins.borrow().get(how).cloned()
    }

    pub(crate) fn remember_login(&self, how: How, known: Rc<Known>) {
        let mut logins = self.logins.borrow_mut();
        if logins.len() >= limits::LOGINS_KNOWN_MAX {
            logins.clear();
        }
        logins.insert(how, known);
    }

    /// Whether a standby refused this text.
    pub(crate) fn was_refused(&self, fingerprint: u64) -> bool {
        let refused = self.refused.borrow();
        !refused.is_empty() && refused.contains(&fingerprint)
    }

    /// A standby refused this text.
    pub(crate) fn remember_refused(&self, fingerprint: u64) {
        let mut refused = self.refused.borrow_mut();
        if refused.len() >= limits::REFUSED_MAX {
            refused.clear();
        }
        refused.insert(fingerprint);
    }

    /// The first packet to a server. `raised` is a `synchronous_commit` that goes before what is set
    /// for the role or the database.
    pub(crate) fn startup(&self, read_only: bool, raised: Option<SynchronousCommit>) -> Startup {
        let mut startup = Startup::new(&[("user", &self.user), ("database", &self.database)]);
        let mut options = String::new();
        if read_only {
            // A standby refuses writes anyway, as long as it is one.
            options.push_str("-c default_transaction_read_only=on");
        }
        if let Some(limit) = self.spec().statement_timeout_ms {
            options.push_str(&format!(" -c statement_timeout={limit}"));
        }
        if let Some(raised) = raised {
            options.push_str(&format!(" -c synchronous_commit={}", raised.as_str()));
        }
        if !options.is_empty() {
            startup.set("options", &options);
        }
        startup
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_answer_about_functions_does_not_replace_a_newer_one() {
        let account = Account::new("d", "u", &Gateway::default());
        let (first, second) = (account.asks_functions(), account.asks_functions());
        let of = |hidden_writes| {
            let mut catalog = Catalog::default();
            catalog.hidden_writes = hidden_writes;
            catalog
        };
        account.set_functions(second, of(true));
        account.set_functions(first, of(false));
        assert!(account.functions().hidden_writes);
        account.set_functions(account.asks_functions(), of(false));
        assert!(!account.functions().hidden_writes);
    }
}
