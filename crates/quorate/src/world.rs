//! The cluster as the gateway of this node sees it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use quorate_agent::Node;
use quorate_core::authority::{Authority, Phase};
use quorate_core::contract::Action;
use quorate_core::document::Document;
use quorate_core::lag::Ends;
use quorate_core::slots::DiskLevel;
use quorate_core::status::{Doing, Lag};
use quorate_core::{Lsn, NodeId, State, Term};
use quorate_gateway::remote;
use quorate_gateway::{
    Alive, BoxStream, Broken, Distance, Fate, Local, Made, Replica, Role, Token, Transaction, View,
    Writer,
};
use quorate_link::{Kind, clock};
use quorate_replication::Level;
use sha2::Digest;
use tokio::sync::{Semaphore, watch};

/// How often the view is made anew although nothing says that it changed: positions move all the
/// time.
const VIEW_EVERY: Duration = Duration::from_millis(100);
/// Pause between two looks at a transaction that is still running.
const FATE_POLL: Duration = Duration::from_millis(5);

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The cluster, for the gateway.
pub struct Cluster {
    node: Arc<Node>,
    view: RwLock<Arc<View>>,
    changes: watch::Sender<u64>,
    marks: Mutex<Marks>,
    /// Places for replication connections of clients to the server here.
    senders: Arc<Semaphore>,
}

/// Where the writer's log ended when, as far as this node heard.
#[derive(Default)]
struct Marks {
    term: Term,
    ends: Ends,
}

impl Cluster {
    /// Begins to follow the cluster.
    pub fn follow(node: &Arc<Node>) -> Arc<Self> {
        let cluster = Arc::new(Self {
            node: Arc::clone(node),
            view: RwLock::default(),
            changes: watch::Sender::new(0),
            marks: Mutex::default(),
            senders: Arc::new(Semaphore::new(quorate_gateway::limits::REPLICATION_MAX)),
        });
        cluster.refresh();
        tokio::spawn(Arc::clone(&cluster).keep());
        cluster
    }

    async fn keep(self: Arc<Self>) {
        let mut state = self.node.parts.consensus.watch();
        let mut news = self.node.parts.health.news.subscribe();
        let mut gate = self.node.parts.gate.changes();
        let mut reads = self.node.parts.reads.changes();
        loop {
            tokio::select! {
                _ = state.changed() => {}
                _ = news.changed() => {}
                _ = gate.changed() => {}
                _ = reads.changed() => {}
                () = tokio::time::sleep(VIEW_EVERY) => {}
            }
            self.refresh();
        }
    }

    fn refresh(&self) {
        let view = self.look();
        let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
        // Positions grow old even where they do not change.
        if **current != view || !view.replicas.is_empty() {
            *current = Arc::new(view);
            drop(current);
            self.changes.send_modify(|n| *n += 1);
        }
    }

    fn look(&self) -> View {
        let made = Instant::now();
        let state = self.node.parts.consensus.state();
        let authority = &state.authority;
        let (writer, because) = match self.writer(authority) {
            Ok(writer) => (Some(writer), String::new()),
            Err(because) => (None, because),
        };
        let document = state.document();
        let mut wanted = document.gateway.clone();
        wanted.synchronous_commit_floor = document.synchronous_commit_floor();
        let distance = |node| self.distance(&state, node);
        View {
            writer_distance: writer.map(|writer| distance(writer.node)),
            acknowledged: writer.and_then(|writer| self.acknowledged_by(writer)),
            made: Made(made),
            cluster: state.cluster_id.clone(),
            term: authority.term,
            writer,
            because,
            replicas: self.replicas(&state, &document),
            ends: authority.ends(),
            full: writer.and_then(|writer| self.full(writer)),
            broken_slots: broken_slots(&state),
            unjudged_slots: Arc::new(quorate_agent::slots::unjudged(&state)),
            consumers_wait: self.consumers_wait(authority, &document),
            wanted: Arc::new(wanted),
        }
    }

    fn writer(&self, authority: &Authority) -> Result<Writer, String> {
        let parts = &self.node.parts;
        let term = authority.term;
        let node = authority
            .writer
            .filter(|_| authority.phase != Phase::Electing)
            .ok_or_else(|| "an election is under way".to_owned())?;
        // Where its reign begins is known from here on, and so what was lost before it.
        if authority.phase != Phase::Serving {
            return Err(format!("{node} does not serve yet"));
        }
        if node == parts.me {
            return match parts.gate.term() {
                Some(open) if open == term && parts.gate.is_draining() => {
                    Err(format!("{node} hands over"))
                }
                Some(open) if open == term => Ok(Writer { node, term, here: true }),
                _ => Err(format!("{node} does not serve yet")),
            };
        }
        let word = parts.health.status_of(node).and_then(|s| s.writer);
        match word {
            Some(word) if word.serving && word.term == term => {
                Ok(Writer { node, term, here: false })
            }
            Some(word) if word.term == term && word.leased => Err(format!("{node} hands over")),
            _ => Err(format!("{node} does not serve yet")),
        }
    }

    /// Why a writer takes no writes although it serves: the disk of its log is short.
    fn full(&self, writer: Writer) -> Option<Arc<str>> {
        let parts = &self.node.parts;
        let disk = match writer.here {
            true => self.node.slots.disk()?,
            false => parts.health.status_of(writer.node)?.disk?,
        };
        (disk.level == DiskLevel::Full)
            .then(|| format!("On {}: {}.", writer.node, disk.because.sentence).into())
    }

    /// Up to where a commit set holds what a writer has written.
    fn acknowledged_by(&self, writer: Writer) -> Option<Lsn> {
        let parts = &self.node.parts;
        if writer.here {
            let quorum = parts.aggregator.quorum();
            return quorum.flush.filter(|_| quorum.term == writer.term);
        }
        let word = parts.health.status_of(writer.node).and_then(|s| s.writer);
        word.filter(|word| word.term == writer.term).and_then(|word| word.safe)
    }

    /// How far away a node is.
    fn distance(&self, state: &State, node: NodeId) -> Distance {
        let me = self.node.parts.me;
        let zone = |node: NodeId| state.nodes.get(&node).map(|n| n.zone.as_str());
        match (node == me, zone(node) == zone(me)) {
            (true, _) => Distance::Here,
            (false, true) => Distance::Zone,
            (false, false) => Distance::Far,
        }
    }

    /// Whether a replica is late whose contract wants logical consumers to wait for it.
    fn consumers_wait(&self, authority: &Authority, document: &Document) -> bool {
        let status = authority.writer.and_then(|w| self.node.parts.health.status_of(w));
        let Some(word) = status.and_then(|s| s.writer) else { return false };
        let broken = |(node, lag): (&NodeId, &Lag)| {
            lag.broken_ms.is_some()
                && document.node(*node).contract().action == Action::PauseConsumers
        };
        word.term == authority.term && word.lags.iter().any(broken)
    }

    fn replicas(&self, state: &State, document: &Document) -> Vec<Replica> {
        let parts = &self.node.parts;
        let authority = &state.authority;
        let now = clock::now();
        let peers = parts.health.peers();
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((term, end, at)) = authority.writer.and_then(|w| parts.health.log_end(w))
            && term == authority.term
        {
            if marks.term != term {
                *marks = Marks { term, ends: Ends::default() };
            }
            marks.ends.note(end, at);
        }
        let word = authority.writer.and_then(|w| peers.get(&w)?.status.as_ref()?.writer.as_ref());
        let lags = word.filter(|w| w.term == authority.term).map(|w| &w.lags);
        let mut replicas = Vec::new();
        for (node, peer) in &peers {
            let Some(status) = &peer.status else { continue };
            let Some(server) = &status.server else { continue };
            let here = *node == parts.me;
            let admitted =
                || parts.database.as_ref().is_some_and(|d| d.is_admitted(authority.term));
            // Only one that was admitted in this term is known to be on the writer's history (R4): who
            // asks for log may have some that no other node has.
            let open = match here {
                true => parts.reads.term().is_some() && admitted(),
                false => server.reads,
            };
            let follows = status.doing == Doing::Following && status.term == authority.term;
            if !open || !server.in_recovery || !follows {
                continue;
            }
            let spec = document.node(*node);
            if !spec.role.serves() {
                continue;
            }
            let age = marks.ends.age(server.replayed, now);
            let lag = lags.and_then(|l| l.get(node)).filter(|lag| lag.broken_ms.is_some());
            let distance = self.distance(state, *node);
            replicas.push(Replica {
                node: *node,
                here,
                replayed: server.replayed,
                term: status.term,
                incarnation: server.started_us,
                behind_ms: age.map_or(u64::MAX, |age| age.as_millis() as u64 + 1),
                distance,
                role: spec.role,
                weight: spec.weight,
                broken: lag.map(|lag| {
                    let contract = spec.contract();
                    let (action, limits) = (contract.action, contract.words());
                    Broken { action, late_ms: lag.replay_ms, limits }
                }),
            });
        }
        replicas
    }

    async fn looked_up(&self, transaction: Transaction) -> Option<Fate> {
        let state = self.node.parts.consensus.state();
        let authority = &state.authority;
        // Only the reign that serves answers: another one may yet be passed over, and what it lacks
        // be there again. A later one is asked anew.
        let serves = || self.node.parts.gate.term() == Some(authority.term);
        if !serves() {
            return None;
        }
        let first = authority.first_reused(transaction.term);
        #[cfg(feature = "sabotage")]
        let first = if quorate_gateway::sabotage::is("xid") { Some(u64::MAX) } else { first };
        match first {
            // A reign is forgotten, or what it assigned was never told.
            None => return Some(Fate::Unknown),
            // No log of it survived: whoever has this id now is somebody else (§11, 3).
            Some(first) if transaction.xid >= first => return Some(Fate::Aborted),
            Some(_) => {}
        }
        let database = self.node.parts.database.as_ref()?;
        let status = database.admin.transaction_status(transaction.xid).await.ok()?;
        match status.as_deref() {
            Some("committed") => {
                let end = database.admin.current_flush_lsn().await.ok()?;
                let held = self.node.parts.aggregator.wait_for(end, Level::Flush).await;
                (held && serves()).then_some(Fate::Committed)
            }
            Some("aborted") => serves().then_some(Fate::Aborted),
            // Its backend may still be about to end it.
            Some("in progress") => None,
            _ => Some(Fate::Unknown),
        }
    }

    async fn fate_now(&self, transaction: Transaction) -> Option<Fate> {
        let writer = self.view().writer.filter(|w| w.term >= transaction.term)?;
        if writer.here {
            return self.looked_up(transaction).await;
        }
        let stream = self.node.parts.links.dial(writer.node, Kind::Sql).await.ok()?;
        remote::fate(stream, transaction).await.ok().flatten()
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Slots whose consumers lack something that nobody has acknowledged.
fn broken_slots(state: &State) -> Arc<BTreeMap<String, String>> {
    let gaps = quorate_agent::slots::gaps(state).into_iter();
    Arc::new(gaps.map(|(name, gap)| (name, format!("{}.", gap.because.sentence))).collect())
}

impl quorate_gateway::World for Cluster {
    fn view(&self) -> Arc<View> {
        self.view()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn local(&self) -> Option<Local> {
        let database = self.node.parts.database.as_ref()?;
        let line = database.server.lifeline();
        let alive: Alive = match line.filter(|line| line.is_exact()) {
            Some(line) => Arc::new(move || line.is_alive()),
            // Its pipe is found a moment later, or must not be seen: then the process has to do.
            None => {
                let database = Arc::clone(database);
                Arc::new(move || database.server.lifeline().is_some_and(|l| l.is_alive()))
            }
        };
        Some(Local {
            socket: database.options.socket(),
            gate: Arc::clone(&self.node.parts.gate),
            reads: Arc::clone(&self.node.parts.reads),
            clock: clock::now,
            alive: Some(alive),
            senders: Arc::clone(&self.senders),
        })
    }

    fn acknowledged(&self) -> Token {
        let quorum = self.node.parts.aggregator.quorum();
        // Whatever level commits wait for: this is the farthest of the three.
        Token { term: quorum.term, lsn: quorum.write.unwrap_or_default() }
    }

    fn dial(&self, node: NodeId) -> BoxFuture<'_, Result<BoxStream, String>> {
        Box::pin(async move {
            let stream = self.node.parts.links.dial(node, Kind::Sql).await;
            stream.map(|s| Box::new(s) as BoxStream).map_err(|e| e.to_string())
        })
    }

    fn role(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        Box::pin(async move {
            let view = self.view();
            let far = view.writer.filter(|w| !w.here);
            // The writer knows best. Without one, what was replicated so far has to do.
            if let Some(writer) = far
                && let Ok(stream) = self.node.parts.links.dial(writer.node, Kind::Sql).await
                && let Ok(role) = remote::role(stream, &name).await
            {
                return Ok(role);
            }
            self.role_here(name).await
        })
    }

    fn role_here(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        Box::pin(async move {
            let database = self.node.parts.database.as_ref().ok_or("this node has no database")?;
            let login = database.admin.login(&name).await.map_err(|e| e.to_string())?;
            Ok(login.map(|l| Role {
                password: l.password,
                may_log_in: l.may_log_in,
                expired: l.expired,
                superuser: l.superuser,
            }))
        })
    }

    fn settled(&self) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(database) = &self.node.parts.database else { return false };
            match database.admin.current_flush_lsn().await {
                Ok(end) => self.node.parts.aggregator.wait_for(end, Level::Flush).await,
                Err(_) => false,
            }
        })
    }

    fn may_cancel(&self, pid: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(database) = &self.node.parts.database else { return false };
            match database.admin.wait_event_of(pid).await {
                Ok(event) => event.as_deref() != Some("SyncRep"),
                Err(_) => false,
            }
        })
    }

    fn may_stream(&self, pid: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let Some(database) = &self.node.parts.database else { return false };
            match database.admin.application_of(pid).await {
                Ok(Some(name)) => !name.eq_ignore_ascii_case(quorate_replication::VIRTUAL_STANDBY),
                Ok(None) | Err(_) => false,
            }
        })
    }

    fn fate(&self, transaction: Transaction) -> BoxFuture<'_, Fate> {
        Box::pin(async move {
            let hold = Duration::from_millis(self.view().wanted.hold_ms);
            let found = async {
                loop {
                    if let Some(fate) = self.fate_now(transaction).await {
                        return fate;
                    }
                    tokio::time::sleep(FATE_POLL).await;
                }
            };
            tokio::time::timeout(hold, found).await.unwrap_or(Fate::Unknown)
        })
    }

    fn fate_here(&self, transaction: Transaction) -> BoxFuture<'_, Option<Fate>> {
        Box::pin(async move {
            let here = self.view().writer.is_some_and(|w| w.here && w.term >= transaction.term);
            if here { self.looked_up(transaction).await } else { None }
        })
    }

    fn secret(&self) -> [u8; 32] {
        let state = self.node.parts.consensus.state();
        let hash = sha2::Sha256::new().chain_update(b"gateway").chain_update(&state.ca.key);
        hash.finalize().into()
    }

    fn nodes(&self) -> Vec<NodeId> {
        let state = self.node.parts.consensus.state();
        state.nodes.keys().copied().filter(|n| *n != self.node.parts.me).collect()
    }
}
