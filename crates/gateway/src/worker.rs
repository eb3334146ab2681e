//! A thread of a gateway: its clients, its connections to servers, and what both share.
//!
//! Clients and servers of one transaction live on one thread, so that a query wakes nobody else and
//! nothing on its way is locked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quorate_core::access::{AccessRule, AccessRules, Action, TlsNeed};
use quorate_core::gateway::Gateway;
use tokio::sync::{Notify, Semaphore};

use crate::account::Account;
use crate::client::Handle;
use crate::connect;
use crate::limits;
use crate::server::{Part, Reins, Server};
use crate::statements::Statements;
use crate::world::{Role, View, World};

/// A database and a role.
pub(crate) type AccountName = (Box<str>, Box<str>);

/// What was found out about a role, and when.
type Looked = (Option<Role>, u64);

/// A connection that is to be cut when its server is not what it was.
struct Followed {
    reins: Weak<Reins>,
    part: Part,
    here: bool,
}

/// A thread of a gateway.
pub(crate) struct Worker {
    pub(crate) world: Arc<dyn World>,
    view: RefCell<Arc<View>>,
    rules: RefCell<Rc<AccessRules>>,
    pub(crate) statements: RefCell<Statements>,
    accounts: RefCell<HashMap<AccountName, Rc<Account>>>,
    pub(crate) clients: RefCell<HashMap<u32, Rc<Handle>>>,
    next_client: Cell<u32>,
    /// Connections being opened at a time: a new writer is not stormed.
    pub(crate) dials: Semaphore,
    /// Who waits for a writer, on all threads of a gateway.
    held: Arc<AtomicUsize>,
    news: Notify,
    /// Connections in use and idle, to be cut when their server is not what it was.
    servers: RefCell<Vec<Followed>>,
    roles: RefCell<HashMap<Box<str>, Looked>>,
    spare: Cell<BytesMut>,
    started: Instant,
    coarse: Cell<u64>,
    random: Cell<u64>,
    turn: Cell<usize>,
    pub(crate) index: u32,
}

impl Worker {
    pub(crate) fn new(world: Arc<dyn World>, index: u32, held: Arc<AtomicUsize>) -> Rc<Self> {
        let view = world.view();
        let rules = AccessRules::new(&view.wanted).unwrap_or_else(|_| nobody());
        Rc::new(Self {
            world,
            rules: RefCell::new(Rc::new(rules)),
            view: RefCell::new(view),
            statements: RefCell::default(),
            accounts: RefCell::default(),
            clients: RefCell::default(),
            next_client: Cell::new(0),
            dials: Semaphore::new(limits::DIALS_MAX),
            held,
            news: Notify::new(),
            servers: RefCell::default(),
            roles: RefCell::default(),
            spare: Cell::default(),
            started: Instant::now(),
            coarse: Cell::new(0),
            turn: Cell::new(0),
            random: Cell::new(0x9E37_79B9_7F4A_7C15 ^ u64::from(index)),
            index,
        })
    }

    /// What is known of the cluster.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Whether the writer takes no writes for want of room.
    pub(crate) fn is_full(&self) -> bool {
        self.view.borrow().full.is_some()
    }

    /// Who may come in.
    pub(crate) fn rules(&self) -> Rc<AccessRules> {
        Rc::clone(&self.rules.borrow())
    }

    /// Counts up: what is equal takes turns.
    pub(crate) fn turn(&self) -> usize {
        self.turn.set(self.turn.get().wrapping_add(1));
        self.turn.get()
    }

    /// Milliseconds since the view was made, rounded up.
    pub(crate) fn view_age_ms(&self) -> u64 {
        self.view.borrow().made.0.elapsed().as_millis() as u64 + 1
    }

    /// Microseconds since the thread began.
    pub(crate) fn micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Milliseconds since the thread began.
    pub(crate) fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// The same as of the last tick; costs nothing.
    pub(crate) fn coarse(&self) -> u64 {
        self.coarse.get()
    }

    /// An empty buffer.
    pub(crate) fn spare(&self) -> BytesMut {
        let mut spare = self.spare.take();
        spare.clear();
        spare
    }

    /// Keeps a buffer for the next one who needs it.
    pub(crate) fn keep_spare(&self, buffer: BytesMut) {
        self.spare.set(buffer);
    }

    /// Whether the outcome of a COMMIT is to be found out when its answer is lost.
    pub(crate) fn resolves(&self) -> bool {
        self.view.borrow().wanted.resolve_commits
    }

    /// The account of a database and a role.
    pub(crate) fn account(&self, database: &str, user: &str) -> Rc<Account> {
        let key = (Box::from(database), Box::from(user));
        let mut accounts = self.accounts.borrow_mut();
        let wanted = &self.view.borrow().wanted;
        Rc::clone(accounts.entry(key).or_insert_with(|| Account::new(database, user, wanted)))
    }

    /// All accounts, in order.
    pub(crate) fn accounts(&self) -> Vec<Rc<Account>> {
        let mut all: Vec<_> = self.accounts.borrow().values().cloned().collect();
        all.sort_by(|a, b| (&a.database, &a.user).cmp(&(&b.database, &b.user)));
        all
    }

    /// A number for a new client.
    pub(crate) fn client_id(&self) -> u32 {
        let clients = self.clients.borrow();
        loop {
            let id = self.next_client.get().wrapping_add(1) & limits::CLIENT_ID_MASK;
            self.next_client.set(id);
            let id = id | self.index << limits::CLIENT_ID_BITS;
            if !clients.contains_key(&id) {
                return id;
            }
        }
    }

    /// A place among those who wait for a writer.
    pub(crate) fn hold(&self, max: usize) -> Option<Held<'_>> {
        let more = |held| (held < max).then_some(held + 1);
        self.held.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Held(self))
    }

    /// Lets those look again who wait for the cluster to change.
    pub(crate) fn wake_held(&self) {
        self.news.notify_waiters();
    }

    /// Waits until the cluster has changed, at most so long.
    pub(crate) async fn changed(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.news.notified()).await;
    }

    /// How long to wait before another attempt: longer each time, and not the same for everybody.
    pub(crate) fn pause(&self, tries: u32) -> Duration {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        let max =
            limits::RETRY_PAUSE.saturating_mul(1 << tries.min(6)).min(limits::RETRY_PAUSE_MAX);
        let half = max / 2;
        half + Duration::from_micros(x % (half.as_micros().max(1) as u64))
    }

    /// Remembers a connection that is to be cut when its server changes.
    pub(crate) fn follow(&self, server: &Server) {
        self.follow_reins(&server.reins, server.part, server.here);
    }

    /// The same of a connection whose reins these are.
    pub(crate) fn follow_reins(&self, reins: &Rc<Reins>, part: Part, here: bool) {
        let mut servers = self.servers.borrow_mut();
        if servers.len() >= limits::FOLLOWED_SWEPT {
            servers.retain(|s| s.reins.strong_count() > 0);
        }
        servers.push(Followed { reins: Rc::downgrade(reins), part, here });
    }

    /// What PostgreSQL knows of a role, as it was a moment ago at the most.
    pub(crate) async fn role(&self, name: &str) -> Result<Option<Role>, String> {
        let now = self.now();
        if let Some((role, at)) = self.roles.borrow().get(name)
            && now < at + limits::ROLE_AGE_MS
        {
            return Ok(role.clone());
        }
        let role = self.world.role(name.to_owned()).await?;
        let mut roles = self.roles.borrow_mut();
        if roles.len() >= limits::ROLES_MAX {
            roles.clear();
        }
        roles.insert(name.into(), (role.clone(), now));
        Ok(role)
    }

    /// Follows the cluster.
    pub(crate) async fn watch(self: Rc<Self>) {
        let mut changes = self.world.changes();
        loop {
            let before = self.view().writer;
            self.take_view();
            if self.view().writer != before {
                connect::fill(&self);
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn take_view(&self) {
        let view = self.world.view();
        let before = self.view.replace(Arc::clone(&view));
        if before.wanted != view.wanted {
            // The document was validated; one that is wrong all the same changes nothing.
            match AccessRules::new(&view.wanted) {
                Ok(rules) => *self.rules.borrow_mut() = Rc::new(rules),
                Err(problems) => tracing::error!(?problems, "the access rules are wrong"),
            }
            let now = self.now();
            for account in self.accounts() {
                account.configure(&view.wanted, now);
            }
            if before.wanted.synchronous_commit_floor < view.wanted.synchronous_commit_floor {
                self.clients.borrow().values().for_each(|client| client.raise.set(true));
            }
        }
        self.cut(&view);
        if before.writer != view.writer {
            for pool in self.accounts().iter().flat_map(|a| a.pools()) {
                pool.shake();
            }
        }
        self.news.notify_waiters();
    }

    /// Ends connections to servers that are not any more what they were.
    fn cut(&self, view: &View) {
        let local = self.world.local();
        self.servers.borrow_mut().retain(|s| {
            let Some(reins) = s.reins.upgrade() else { return false };
            let over = match (s.part, s.here, &local) {
                (Part::Writer(term), true, Some(local)) => local.gate.term() != Some(term),
                (Part::Writer(term), ..) => view.term > term,
                (Part::Replica, true, Some(local)) => local.reads.term().is_none(),
                (Part::Replica, ..) => false,
            };
            if over {
                reins.cut();
            }
            !over
        });
    }

    /// Looks after what waits and what idles.
    pub(crate) async fn tick(self: Rc<Self>) {
        let mut ticks = 0u64;
        loop {
            tokio::time::sleep(limits::TICK).await;
            let now = self.now();
            self.coarse.set(now);
            ticks += 1;
            for account in self.accounts() {
                let spec = account.spec();
                for pool in account.pools() {
                    pool.expire(now);
                    pool.relieve(now);
                    if ticks.is_multiple_of(limits::TICKS_PER_LOOK) {
                        pool.retire_idle(now, &spec);
                    }
                }
            }
            if ticks.is_multiple_of(limits::TICKS_PER_LOOK) {
                connect::fill(&self);
            }
        }
    }
}

/// Rules that let nobody in.
fn nobody() -> AccessRules {
    let all = || vec!["*".to_owned()];
    let reject = AccessRule {
        database: all(),
        role: all(),
        address: all(),
        tls: TlsNeed::Any,
        action: Action::Reject,
        because: None,
    };
    let gateway = Gateway { access: vec![reject], ..Gateway::default() };
    AccessRules::new(&gateway).unwrap_or_else(|_| unreachable!("one rule without any condition"))
}

/// A place among those who wait for a writer.
pub(crate) struct Held<'a>(&'a Worker);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}
