//! A gateway before a real server, with a cluster around it that is whatever a test says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use anyhow::Result;
use quorate_core::access::{AccessRule, Action, TlsNeed};
use quorate_core::gateway::Gateway as Wanted;
use quorate_core::{Lsn, Moment, NodeId, Term};
use quorate_gateway::{
    Alive, BoxFuture, BoxStream, Distance, Fate, Gate, Gateway, Local, Made, Metrics, Port,
    Replica, Role, Sessions, Tls, TlsSource, Token, Transaction, View, World, Writer,
};
use tokio::sync::{Semaphore, watch};
use tokio_postgres::{Client, NoTls};

use crate::raw::Raw;
use crate::server::{Server, eventually, value};

pub(crate) const TERM: Term = Term(5);
pub(crate) const FOREVER: Moment = Moment(u64::MAX);

/// All tests share one clock, which stands still: leases are before it or after it.
pub(crate) const NOW: Moment = Moment(1_000);

/// Where the writer is, as the gateway sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// On the gateway's own node.
    Local,
    /// On another one, whose sessions pass everything.
    Far,
}

/// Makes a test of each function, once for each [`Mode`].
macro_rules! in_both_modes {
    ($($name:ident)*) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> anyhow::Result<()> {
                super::$name(crate::door::Mode::Local).await
            })*
        }
        mod far {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> anyhow::Result<()> {
                super::$name(crate::door::Mode::Far).await
            })*
        }
    };
}
pub(crate) use in_both_modes;

/// What tests say in place of a cluster; all nodes see the same.
pub(crate) struct Cluster {
    view: Mutex<Arc<View>>,
    changes: watch::Sender<u64>,
    acknowledged: Mutex<Token>,
    /// What a cancelled wait comes to; `None` until a test says so.
    pub(crate) settled: watch::Sender<Option<bool>>,
    /// How often that was asked.
    pub(crate) settles: AtomicU64,
    /// What became of transactions; `None` until a test says so.
    pub(crate) fate: watch::Sender<Option<Fate>>,
    /// The transactions that were asked for.
    pub(crate) fates: Mutex<Vec<Transaction>>,
    /// Whether the writer's postmaster lives.
    pub(crate) alive: Arc<AtomicBool>,
    admin: Client,
}

/// A node.
struct Town {
    cluster: Arc<Cluster>,
    local: Option<Local>,
    others: Vec<(NodeId, Arc<Sessions>)>,
    runtime: tokio::runtime::Handle,
}

impl World for Town {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.cluster.view.lock().unwrap())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.cluster.changes.subscribe()
    }

    fn local(&self) -> Option<Local> {
        self.local.clone()
    }

    fn acknowledged(&self) -> Token {
        *self.cluster.acknowledged.lock().unwrap()
    }

    fn dial(&self, node: NodeId) -> BoxFuture<'_, Result<BoxStream, String>> {
        let found = self.others.iter().find(|(n, _)| *n == node).map(|(_, s)| Arc::clone(s));
        Box::pin(async move {
            if node == self::node(SILENT) {
                return std::future::pending().await;
            }
            let sessions = found.ok_or_else(|| format!("no way to {node}"))?;
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            self.runtime.spawn(async move { sessions.serve(theirs).await });
            Ok(Box::new(ours) as BoxStream)
        })
    }

    fn role(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        self.role_here(name)
    }

    fn role_here(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        Box::pin(async move {
            let sql = "SELECT rolpassword, rolcanlogin, coalesce(rolvaliduntil < now(), false), \
                       rolsuper \
                       FROM pg_authid WHERE rolname = $1::text";
            let row = self.cluster.admin.query_opt(sql, &[&name]).await;
            let row = row.map_err(|e| e.to_string())?;
            Ok(row.map(|row| Role {
                password: row.get(0),
                may_log_in: row.get(1),
                expired: row.get(2),
                superuser: row.get(3),
            }))
        })
    }

    fn settled(&self) -> BoxFuture<'_, bool> {
        let mut settled = self.cluster.settled.subscribe();
        self.cluster.settles.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move { settled.wait_for(Option::is_some).await.unwrap().unwrap() })
    }

    fn may_cancel(&self, pid: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let sql = format!(
                "SELECT wait_event IS DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = {pid}"
            );
            value(&self.cluster.admin, &sql).await.is_ok_and(|v| v == "t")
        })
    }

    fn may_stream(&self, pid: i32) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let sql = format!(
                "SELECT lower(application_name) <> 'quorate' FROM pg_stat_activity WHERE pid = {pid}"
            );
            value(&self.cluster.admin, &sql).await.is_ok_and(|v| v == "t")
        })
    }

    fn fate(&self, transaction: Transaction) -> BoxFuture<'_, Fate> {
        let mut fate = self.cluster.fate.subscribe();
        self.cluster.fates.lock().unwrap().push(transaction);
        Box::pin(async move { fate.wait_for(Option::is_some).await.unwrap().unwrap() })
    }

    fn fate_here(&self, _: Transaction) -> BoxFuture<'_, Option<Fate>> {
        Box::pin(async { *self.cluster.fate.borrow() })
    }

    fn secret(&self) -> [u8; 32] {
        [7; 32]
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.others.iter().map(|(node, _)| *node).collect()
    }
}

/// A node that takes connections and says nothing.
pub(crate) const SILENT: &str = "n9";

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// A gateway and what is behind it.
pub(crate) struct Door {
    /// Clients go before the server does.
    gateway: Gateway,
    pub(crate) server: Arc<Server>,
    pub(crate) standby: Option<Server>,
    pub(crate) database: String,
    pub(crate) mode: Mode,
    pub(crate) gate: Arc<Gate>,
    /// Of the standby.
    pub(crate) reads: Arc<Gate>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) address: SocketAddr,
    /// The port that only reads.
    pub(crate) read_only: SocketAddr,
}

/// A server that tests share; it ends with the last of them.
async fn shared() -> Result<Arc<Server>> {
    static SHARED: tokio::sync::Mutex<Weak<Server>> = tokio::sync::Mutex::const_new(Weak::new());
    let mut shared = SHARED.lock().await;
    if let Some(server) = shared.upgrade() {
        return Ok(server);
    }
    let server = Arc::new(Server::primary(&["max_connections=300"]).await?);
    *shared = Arc::downgrade(&server);
    Ok(server)
}

fn rule(role: &str, action: Action) -> AccessRule {
    AccessRule {
        database: vec!["*".into()],
        role: vec![role.into()],
        address: vec!["local".into()],
        tls: TlsNeed::Any,
        action,
        because: None,
    }
}

/// Tests by hand come as `postgres`, on their word; everybody else with a password.
pub(crate) fn wanted() -> Wanted {
    let access = vec![rule("postgres", Action::Trust), rule("*", Action::Password)];
    Wanted { access, ..Wanted::default() }
}

impl Door {
    /// An open door to the shared server.
    pub(crate) async fn open(mode: Mode) -> Result<Door> {
        Door::with(mode, |_| {}).await
    }

    /// The same, as a document wants it.
    pub(crate) async fn with(mode: Mode, want: impl FnOnce(&mut Wanted)) -> Result<Door> {
        let mut wanted = wanted();
        want(&mut wanted);
        Door::before(shared().await?, mode, wanted, None).await
    }

    /// An open door to a server.
    pub(crate) async fn before(
        server: Arc<Server>,
        mode: Mode,
        wanted: Wanted,
        tls: Option<Tls>,
    ) -> Result<Door> {
        Door::built(server, None, mode, wanted, tls).await
    }

    /// The same with a standby of the server, which is where the writer is not.
    pub(crate) async fn with_standby(mode: Mode) -> Result<Door> {
        let server = Arc::new(Server::primary(&[]).await?);
        let standby = Server::standby(&server, server.dir.path()).await?;
        // However long a test takes: what it knows of the standby grows older.
        let wanted = Wanted { max_lag_ms: u64::MAX, ..wanted() };
        let door = Door::built(server, Some(standby), mode, wanted, None).await?;
        // A view tells where a statement ran without giving away that it depends on it.
        let sql = "CREATE VIEW place AS SELECT \
                   CASE WHEN pg_is_in_recovery() THEN 'on' ELSE 'off' END AS standby";
        door.raw().await?.ask(sql).await?.ok();
        Ok(door)
    }

    async fn built(
        server: Arc<Server>,
        standby: Option<Server>,
        mode: Mode,
        wanted: Wanted,
        tls: Option<Tls>,
    ) -> Result<Door> {
        let (admin, database) = database(&server).await?;
        let gate = Arc::new(Gate::new());
        gate.open(TERM);
        gate.renew(TERM, FOREVER);
        let cluster = Arc::new(Cluster {
            view: Mutex::default(),
            changes: watch::Sender::new(0),
            acknowledged: Mutex::new(Token { term: TERM, lsn: Lsn(1) }),
            settled: watch::Sender::new(None),
            settles: AtomicU64::new(0),
            fate: watch::Sender::new(None),
            fates: Mutex::default(),
            alive: Arc::new(AtomicBool::new(true)),
            admin,
        });
        let town = |local, others| Town {
            cluster: Arc::clone(&cluster),
            local,
            others,
            runtime: tokio::runtime::Handle::current(),
        };
        let sessions = |town| Arc::new(Sessions::new(Arc::new(town), 1_000, Arc::new(|_| {})));
        let writer =
            Some(local(server.socket(), Arc::clone(&gate), Arc::new(Gate::new()), &cluster));
        let reads = Arc::new(Gate::new());
        reads.open(Term(1));
        reads.renew(Term(1), FOREVER);
        let replica = standby.as_ref().map(|standby| {
            local(standby.socket(), Arc::new(Gate::new()), Arc::clone(&reads), &cluster)
        });
        let (here, there) = match mode {
            Mode::Local => (writer, replica),
            Mode::Far => (replica, writer),
        };
        let others = there.map(|there| (node("n2"), sessions(town(Some(there), Vec::new()))));
        let world = Arc::new(town(here, others.into_iter().collect()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let door_view = View { wanted: Arc::new(wanted), ..View::default() };
        *cluster.view.lock().unwrap() = Arc::new(door_view);
        set_writer(&cluster, mode, TERM);
        let reading = std::net::TcpListener::bind("127.0.0.1:0")?;
        let read_only = reading.local_addr()?;
        let writes_at = Some(address.to_string().into());
        let ports = vec![Port::new(listener), Port { listener: reading, writes_at }];
        let gateway = Gateway::start(world, Arc::new(TlsSource::new(tls)), ports)?;
        Ok(Door {
            gateway,
            server,
            standby,
            database,
            mode,
            gate,
            reads,
            cluster,
            address,
            read_only,
        })
    }

    /// Changes what the gateway knows.
    pub(crate) fn change(&self, change: impl FnOnce(&mut View)) {
        self.cluster.change(|view| {
            view.made = Made::default();
            change(view);
        });
    }

    /// Changes what the document wants.
    pub(crate) fn want(&self, want: impl FnOnce(&mut Wanted)) {
        self.change(|view| want(Arc::make_mut(&mut view.wanted)));
    }

    /// The writer is gone, and no other is known.
    pub(crate) fn no_writer(&self) {
        self.gate.close();
        self.change(|view| {
            view.writer = None;
            view.because = "an election is under way".to_owned();
        });
    }

    /// The server takes writes in this term.
    pub(crate) fn writer(&self, term: Term) {
        self.gate.open(term);
        self.gate.renew(term, FOREVER);
        set_writer(&self.cluster, self.mode, term);
    }

    /// A node writes that says nothing any more.
    pub(crate) fn silent_writer(&self, term: Term) {
        self.gate.close();
        self.change(|view| {
            view.term = term;
            view.writer = Some(Writer { node: node(SILENT), term, here: false });
        });
    }

    /// The newest term that the gateway knows.
    pub(crate) fn cluster_term(&self) -> Term {
        self.cluster.view.lock().unwrap().term
    }

    /// Every commit acknowledged is at or before this.
    pub(crate) fn acknowledged(&self, term: Term, lsn: u64) {
        *self.cluster.acknowledged.lock().unwrap() = Token { term, lsn: Lsn(lsn) };
    }

    /// The standby serves reads, and has replayed so much.
    pub(crate) async fn replayed(&self, lsn: u64) -> Result<()> {
        let sql = "SELECT (1000000 * extract(epoch FROM pg_postmaster_start_time()))::bigint";
        let standby = self.standby.as_ref().unwrap();
        let incarnation = standby.value(sql).await?.parse()?;
        let here = self.mode == Mode::Far;
        self.change(|view| {
            view.replicas = vec![Replica {
                node: node(if here { "n1" } else { "n2" }),
                here,
                replayed: Lsn(lsn),
                term: view.term,
                incarnation,
                behind_ms: 0,
                distance: Distance::Zone,
                role: quorate_core::role::Role::Ha,
                weight: 10,
                broken: None,
            }];
        });
        Ok(())
    }

    pub(crate) fn config(&self, user: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.address.port()).user(user).dbname(&self.database);
        config.password("secret");
        config
    }

    /// A client through the gateway, with a password.
    pub(crate) async fn client(&self) -> Result<Client> {
        let (client, connection) = self.config("app").connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A client by hand, ready for a query.
    pub(crate) async fn raw(&self) -> Result<Raw> {
        Raw::session(self.address, &[("user", "postgres"), ("database", &self.database)]).await
    }

    /// Makes these through the gateway. It knows them when the session's next statement is answered.
    pub(crate) async fn define(&self, sql: &str) -> Result<()> {
        let mut raw = self.raw().await?;
        raw.ask(sql).await?.ok();
        raw.ask("SELECT 1").await.map(|answer| drop(answer.ok()))
    }

    /// Waits until the standby has what the writer has.
    pub(crate) async fn standby_follows(&self) -> Result<()> {
        let lsn = self.value("SELECT pg_current_wal_lsn()").await?;
        let standby = self.standby.as_ref().unwrap();
        eventually("the standby has it", async || {
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
            (standby.value(&sql).await.ok()? == "t").then_some(())
        })
        .await;
        Ok(())
    }

    /// A client of the console.
    pub(crate) async fn console(&self) -> Result<Raw> {
        Raw::session(self.address, &[("user", "postgres"), ("database", "quorate")]).await
    }

    /// A client of the server itself, whose commits do not wait for copies.
    pub(crate) async fn admin(&self) -> Result<Client> {
        connect(&self.server, &self.database).await
    }

    /// The first column of the first row, from the server itself.
    pub(crate) async fn value(&self, sql: &str) -> Result<String> {
        value(&self.admin().await?, sql).await
    }

    /// Waits until some backend of this test's database is so.
    pub(crate) async fn in_server(&self, condition: &str) {
        let sql = format!(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = '{}' \
             AND pid <> pg_backend_pid() AND {condition}",
            self.database
        );
        let admin = self.admin().await.unwrap();
        let ask = async || (value(&admin, &sql).await.ok()? == "t").then_some(());
        eventually(condition, ask).await;
    }

    /// Waits until so many clients wait for a server connection.
    pub(crate) async fn waiting(&self, n: usize) {
        let mut console = self.console().await.unwrap();
        eventually("clients wait", async || {
            let pools = console.ask("SHOW POOLS").await.ok()?;
            let waiting: usize = pools.rows.iter().map(|r| r[5].parse::<usize>().unwrap()).sum();
            (waiting == n).then_some(())
        })
        .await;
    }

    /// Waits until so many clients are held in this state.
    pub(crate) async fn states(&self, state: &str, n: usize) {
        let mut console = self.console().await.unwrap();
        eventually(state, async || {
            let clients = console.ask("SHOW CLIENTS").await.ok()?;
            let mine = |r: &&Vec<Option<String>>| r[2].as_deref() != Some("quorate");
            let all = clients.rows.iter().map(|r| r.cells()).collect::<Vec<_>>();
            let there = all.iter().filter(mine).filter(|r| r[3].as_deref() == Some(state)).count();
            (there == n).then_some(())
        })
        .await;
    }

    /// What the gateway has counted.
    pub(crate) async fn metrics(&self) -> Metrics {
        self.gateway.metrics().await
    }

    /// Clients that are connected.
    pub(crate) fn clients(&self) -> usize {
        self.gateway.clients()
    }
}

impl Cluster {
    fn change(&self, change: impl FnOnce(&mut View)) {
        change(Arc::make_mut(&mut self.view.lock().unwrap()));
        self.changes.send_modify(|n| *n += 1);
    }
}

fn set_writer(cluster: &Cluster, mode: Mode, term: Term) {
    let here = mode == Mode::Local;
    cluster.change(|view| {
        view.term = term;
        view.because.clear();
        let node = node(if here { "n1" } else { "n2" });
        view.writer = Some(Writer { node, term, here });
    });
}

fn local(socket: PathBuf, gate: Arc<Gate>, reads: Arc<Gate>, cluster: &Cluster) -> Local {
    let lives = Arc::clone(&cluster.alive);
    let alive: Alive = Arc::new(move || lives.load(Ordering::SeqCst));
    let senders = Arc::new(Semaphore::new(quorate_gateway::limits::REPLICATION_MAX));
    Local { socket, gate, reads, clock: || NOW, alive: Some(alive), senders }
}

async fn connect(server: &Server, database: &str) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(server.dir.path()).user("postgres").dbname(database);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("SET synchronous_commit = local").await?;
    Ok(client)
}

/// A database of its own for a test, and a way to its server that no gateway knows.
async fn database(server: &Server) -> Result<(Client, String)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!("t{}", COUNT.fetch_add(1, Ordering::SeqCst));
    let admin = connect(server, "postgres").await?;
    let role = "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app') THEN \
                CREATE ROLE app LOGIN PASSWORD 'secret'; END IF; \
                EXCEPTION WHEN unique_violation OR duplicate_object THEN NULL; END $$";
    admin.batch_execute(role).await?;
    admin.batch_execute(&format!("CREATE DATABASE {name} OWNER app")).await?;
    Ok((admin, name))
}
