//! `quorate run`: puts a node together and keeps it going.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use quorate_agent::health::Health;
use quorate_agent::node::wall_millis;
use quorate_agent::promise::PromiseFile;
use quorate_agent::{Database, Node, Order, Parts};
use quorate_consensus::{Consensus, Dial, Dialling, Options};
use quorate_core::node::Promise;
use quorate_core::state::{Change, Command, NodeKind, State};
use quorate_core::{Answer, Because, NodeId, Term};
use quorate_gateway::{Gate, Gateway, Port, Sessions, TlsSource};
use quorate_link::{Authority, Heartbeats, Identity, Links, clock};
use quorate_postgres::{Install, Mode, ServerOptions, User};
use quorate_replication::Aggregator;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Global;
use crate::config::{Config, passable_dir, told};
use crate::drill::conduct::Conductor;
use crate::drill::faults::Faults;
use crate::page::guard::Guard;
use crate::page::web::{Caller, Web};
use crate::ports::{CERTIFICATE_VALIDITY, LinkDial};
use crate::world::Cluster;
use crate::{api, page, ports};

/// How often certificates are looked at.
const RENEWAL_LOOK: Duration = Duration::from_secs(3600);
/// How long an orderly stop may take before the server is ended.
const STOP_WAIT: Duration = Duration::from_secs(30);
/// Most sessions on the local server; PostgreSQL's max_connections usually says less.
const SESSIONS_MAX: usize = 10_000;

/// `quorate run`.
pub async fn run(global: &Global) -> Result<()> {
    start_log();
    quorate_postgres::become_subreaper()?;
    let config = Config::load(global.dir())?;
    let (node, orders) = assemble(&config).await?;
    let world = Cluster::follow(&node);
    let [tls, web_tls] = [(); 2].map(|()| Arc::new(TlsSource::new(None)));
    crate::tls::keep(&config, &node, &tls, &web_tls)?;
    let gateway = gateway(&config, &world, tls)?;
    let faults = Faults::new(Arc::clone(&node), gateway.door());
    let conductor = Conductor::new(Arc::clone(&node), faults);
    let api = api::router(Arc::clone(&node), conductor, gateway.meter());
    let cancel = gateway.cancel_client();
    let sessions = Arc::new(Sessions::new(world, SESSIONS_MAX, cancel));
    let listening = listen(&config, &node, &sessions, &api, web_tls).await?;
    tokio::spawn(follow_members(Arc::clone(&node), config.clone()));
    tokio::spawn(renew(Arc::clone(&node), config.clone()));
    tokio::spawn(quorate_agent::coordinate::run(Arc::clone(&node)));
    node.vitals.set_machine(
        std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory(),
        config.file.notify.len() as u32,
    );
    if !config.file.notify.is_empty() {
        tokio::spawn(crate::notify::run(Arc::clone(&node), config.file.notify.clone()));
    }
    let mut work = tokio::spawn(quorate_agent::run::run(Arc::clone(&node), orders));
    tracing::info!(node = %config.file.name, dir = %config.dir.display(), "node started");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut work => match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(anyhow::Error::from(e).context("the node's loop ended")),
            Err(e) => Err(anyhow::Error::from(e).context("the node's loop ended")),
        },
    };
    tracing::info!("stopping");
    stop(&node, work).await;
    drop(listening);
    tokio::task::spawn_blocking(move || drop(gateway)).await?;
    let _ = std::fs::remove_file(config.control());
    ended
}

/// `quorate ca`.
pub fn print_ca(global: &Global) -> Result<()> {
    let config = Config::load(global.dir())?;
    let identity = Identity::load(&config.identity_dir()).map_err(|e| told(&e, e.hint()))?;
    print!("{}", identity.ca_pem);
    Ok(())
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("QUORATE_LOG")
        .unwrap_or_else(|_| "info,openraft=off,tokio_postgres=error".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = std::env::var("QUORATE_LOG_FORMAT").is_ok_and(|f| f == "json");
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let done = if json {
        builder.json().try_init()
    } else {
        builder.with_ansi(ansi).with_target(false).try_init()
    };
    if let Err(e) = done {
        eprintln!("quorate: logging is not available: {e}");
    }
}

async fn assemble(config: &Config) -> Result<(Arc<Node>, mpsc::Receiver<Order>)> {
    let me = config.file.name;
    let identity = Identity::load(&config.identity_dir()).map_err(|e| told(&e, e.hint()))?;
    let cluster = cluster_number(&config.identity_dir(), &identity)?;
    let links = Links::new(&identity)?;
    let kind = if config.file.witness { NodeKind::Witness } else { NodeKind::Data };
    let database = match kind {
        NodeKind::Witness => None,
        NodeKind::Data => Some(database(config)?),
    };
    let consensus =
        Consensus::start(Options::new(me, config.store()), Arc::new(LinkDial(links.clone())))
            .await
            .map_err(|e| told(&e, e.hint()))?;
    let gate = Arc::new(Gate::new());
    let reads = Arc::new(Gate::new());
    let promise = PromiseFile::new(config.promise(), cluster);
    let promised = match promise.read()? {
        Some(Promise::Kept(term)) => term,
        Some(Promise::Lost) | None => Term::default(),
    };
    let health = Health::new(me, promised, clock::now, Arc::clone(&gate));
    links.set_peers(peers(config, &consensus.state()));
    let pulse: Arc<dyn quorate_link::Pulse> = Arc::clone(&health) as _;
    let every = quorate_agent::limits::HEARTBEAT_EVERY;
    let heartbeats = Heartbeats::start(links.clone(), every, pulse);
    let superuser_password =
        std::fs::read_to_string(config.password_file()).ok().map(|text| text.trim_end().to_owned());
    Ok(Node::new(Parts {
        me,
        kind,
        consensus,
        links,
        heartbeats,
        health,
        gate,
        reads,
        aggregator: Aggregator::new(),
        database,
        promise,
        superuser_password,
    }))
}

/// The cluster's identity as the promise file keeps it.
fn cluster_number(dir: &std::path::Path, identity: &Identity) -> Result<u64> {
    u64::from_str_radix(&identity.cluster_id, 16)
        .with_context(|| format!("the certificate in {} names no cluster", dir.display()))
}

pub(super) fn server_options(config: &Config) -> Result<ServerOptions> {
    let file = &config.file.postgres;
    let hint = |e: quorate_postgres::Error| told(&e, e.hint());
    let install = Install::find(file.bin.as_deref()).map_err(hint)?;
    let run_as = User::for_server(file.user.as_deref()).map_err(hint)?;
    let home = config.postgres_dir();
    std::fs::create_dir_all(&home)?;
    if let Some(user) = &run_as {
        std::os::unix::fs::chown(&home, Some(user.uid), Some(user.gid))?;
    }
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700))?;
    let sockets: PathBuf = match &file.socket_dir {
        Some(dir) => {
            passable_dir(dir)?;
            dir.clone()
        }
        None => home.clone(),
    };
    if released_mark(&home).exists() {
        bail!(
            "the database in {} was released by `quorate standalone`: it is not Quorate's any \
             more; to use this host again choose another --dir",
            home.display()
        );
    }
    let options = ServerOptions {
        install,
        data_dir: home.join("data"),
        run_dir: sockets.join("run"),
        relay_dir: sockets.join("relay"),
        log_file: home.join("postgresql.log"),
        run_as,
    };
    options.check().map_err(hint)?;
    Ok(options)
}

/// Says that `quorate standalone` handed the database back.
pub fn released_mark(home: &Path) -> PathBuf {
    home.join("released")
}

fn database(config: &Config) -> Result<Arc<Database>> {
    Database::new(server_options(config)?, config.file.postgres.disk_probe.clone())
}

/// Where every member's link port is, with this node's own routes first.
fn peers(config: &Config, state: &State) -> BTreeMap<NodeId, String> {
    let route = |name: &NodeId, link: &String| {
        config.file.routes.get(name).cloned().unwrap_or_else(|| link.clone())
    };
    state.nodes.iter().map(|(n, node)| (*n, route(n, &node.link))).collect()
}

/// Opens the door for applications.
fn gateway(config: &Config, world: &Arc<Cluster>, tls: Arc<TlsSource>) -> Result<Gateway> {
    let bind = |at, what| std::net::TcpListener::bind(at).with_context(|| taken(what, at));
    let listen = &config.file.listen;
    let mut ports = vec![Port::new(bind(listen.gateway, "applications")?)];
    if let Some(at) = listen.read_only {
        let listener = bind(at, "applications that only read")?;
        ports.push(Port { listener, writes_at: Some(config.node().gateway.into()) });
    }
    let world = Arc::clone(world) as Arc<dyn quorate_gateway::World>;
    Gateway::start(world, tls, ports).map_err(|e| told(&e, e.hint()))
}

fn taken(what: &str, at: std::net::SocketAddr) -> String {
    format!("cannot listen on {at} for {what}: is another node or program using it?")
}

/// Opens all ports. Dropping the answer closes them.
async fn listen(
    config: &Config,
    node: &Arc<Node>,
    sessions: &Arc<Sessions>,
    api: &axum::Router,
    web_tls: Arc<TlsSource>,
) -> Result<tokio::task::JoinSet<()>> {
    let mut tasks = tokio::task::JoinSet::new();
    let ports = &config.file.listen;
    let links = node.parts.links.listen(&ports.link.to_string()).await?;
    let (n, s, a) = (Arc::clone(node), Arc::clone(sessions), api.clone());
    tasks.spawn(links.serve(move |arrival| ports::arrive(&n, &s, &a, arrival)));

    let token = std::fs::read_to_string(config.admin_token_file())
        .with_context(|| format!("cannot read {}", config.admin_token_file().display()))?;
    let web = TcpListener::bind(ports.web).await.with_context(|| taken("HTTP", ports.web))?;
    let web = Web::new(web, ports.web_tls, web_tls)?;
    let guard = Guard::new(config.file.name, token.trim());
    let guarded = page::guarded(api.clone(), guard, ports.web_tls);
    let guarded = guarded.into_make_service_with_connect_info::<Caller>();
    tasks.spawn(async move {
        if let Err(e) = axum::serve(web, guarded).await {
            tracing::error!(error = %e, "the web port closed");
        }
    });

    let path = config.control();
    let _ = std::fs::remove_file(&path);
    let control = UnixListener::bind(&path)
        .with_context(|| format!("cannot make the control socket {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let api = api.clone();
    tasks.spawn(async move {
        if let Err(e) = axum::serve(control, api).await {
            tracing::error!(error = %e, "the control socket closed");
        }
    });
    Ok(tasks)
}

/// Keeps the links' addresses as the cluster says, and our own entry as our file says.
async fn follow_members(node: Arc<Node>, config: Config) {
    let mut state = node.parts.consensus.watch();
    let mut told = false;
    let mut known: BTreeSet<NodeId> = BTreeSet::new();
    loop {
        let now = Arc::clone(&state.borrow_and_update());
        node.parts.links.set_peers(peers(&config, &now));
        let members: BTreeSet<NodeId> = now.nodes.keys().copied().collect();
        if members != known {
            known = members;
            node.wake.notify_one();
        }
        let ours = config.node();
        let differs = now.nodes.get(&config.file.name).is_some_and(|n| *n != ours);
        if differs && !told {
            let change = Change::PutNode { name: config.file.name, node: ours };
            told = node.propose(change).await.is_ok();
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// Renews this node's certificate before it expires, without a restart. Any node can sign: the
/// authority is part of the replicated state.
async fn renew(node: Arc<Node>, config: Config) {
    loop {
        if let Err(e) = renew_once(&node, &config) {
            tracing::error!(error = %e, "the certificate could not be renewed");
        }
        tokio::time::sleep(RENEWAL_LOOK).await;
    }
}

/// Memory of this host, in bytes.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// When an identity expires, in milliseconds since 1970.
fn expiry(identity: &Identity) -> u64 {
    let until = identity.expires_at().duration_since(SystemTime::UNIX_EPOCH);
    until.unwrap_or_default().as_millis() as u64
}

fn renew_once(node: &Node, config: &Config) -> Result<()> {
    let dir = config.identity_dir();
    let identity = Identity::load(&dir)?;
    node.vitals.set_certificate(expiry(&identity));
    if !identity.should_renew(clock::wall()) {
        return Ok(());
    }
    let state = node.parts.consensus.state();
    if !state.nodes.contains_key(&config.file.name) {
        bail!("this node is not a member any more");
    }
    let authority = Authority::from_pem(&state.ca.certificate, &state.ca.key)?;
    let (key, request) = Identity::request(config.file.name)?;
    let certificate = authority.issue(&request, config.file.name, CERTIFICATE_VALIDITY)?;
    let renewed = Identity::new(&certificate, &key, authority.cert_pem())?;
    renewed.save(&dir)?;
    node.parts.links.set_identity(&renewed)?;
    node.vitals.set_certificate(expiry(&renewed));
    tracing::info!("the node's certificate was renewed");
    Ok(())
}

/// An orderly stop: a writer hands over first when somebody can take over.
async fn stop(node: &Arc<Node>, work: tokio::task::JoinHandle<std::io::Result<()>>) {
    let handed = tokio::time::timeout(STOP_WAIT, hand_over(node)).await;
    if handed.is_err() {
        tracing::warn!("nobody took over in time");
    }
    work.abort();
    node.parts.gate.close();
    node.parts.aggregator.fence();
    node.parts.health.ask(None);
    if let Some(database) = &node.parts.database {
        let mode = match node.reigning.borrow().is_some() {
            // A fast stop ends the waits of commits that no copy holds yet: they would become
            // visible on this server only.
            true => Mode::Immediate,
            false => Mode::Fast,
        };
        database.server.stop(mode).await;
    }
    node.parts.heartbeats.stop();
    node.parts.consensus.shutdown().await;
}

async fn hand_over(node: &Arc<Node>) {
    let status = node.status();
    if status.writer != Some(node.parts.me) || !status.candidates.iter().any(|c| c.eligible) {
        return;
    }
    let plan = Change::PlanSwitchover { term: status.term, target: None };
    if !matches!(node.propose(plan).await, Ok(Answer::Done)) {
        return;
    }
    let mut state = node.parts.consensus.watch();
    let moved = |s: &Arc<State>| {
        s.authority.term > status.term && s.authority.writer != Some(node.parts.me)
            || s.authority.switchover.is_none() && s.authority.term == status.term
    };
    let _ = state.wait_for(moved).await;
}

/// Nobody to call: the node's store alone.
struct Alone;

impl Dial for Alone {
    fn dial(&self, _peer: NodeId) -> Dialling {
        Box::pin(async { Err(std::io::Error::other("offline")) })
    }
}

/// The state in a stopped node's store, as far as it is known to be agreed.
pub async fn read_state(config: &Config) -> Result<State> {
    let options = Options::new(config.file.name, config.store());
    let consensus = Consensus::start(options, Arc::new(Alone)).await?;
    let state = consensus.state();
    consensus.shutdown().await;
    if state.cluster_id.is_empty() {
        bail!("this node has not learnt anything of its cluster yet: there is nothing to recover");
    }
    Ok((*state).clone())
}

/// Where a stopped node's log ends, in words.
pub async fn local_log_end(config: &Config) -> String {
    let options = match server_options(config) {
        Ok(options) => options,
        Err(e) => return format!("an unknown position ({e:#})"),
    };
    let control = match quorate_postgres::read_control_data(&options).await {
        Ok(control) => control,
        Err(e) => return format!("an unknown position ({e})"),
    };
    match quorate_postgres::log_end(&options, &control).await {
        Ok(Some((timeline, end))) => format!("{end} (timeline {timeline})"),
        Ok(None) | Err(_) => {
            let least = control.min_recovery_end.max(control.redo);
            format!("{least} or later (timeline {})", control.timeline)
        }
    }
}

/// Writes a new store in which this node is alone, in a new epoch.
pub async fn force_epoch(config: &Config, before: State, position: &str) -> Result<Term> {
    let kept = config.store().with_extension(format!("before-{}", wall_millis()));
    // Complete before it takes the old one's place: interrupted, this can be done again.
    let fresh = config.store().with_extension("new");
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    let options = Options::new(config.file.name, fresh.clone());
    let consensus = Consensus::start(options, Arc::new(Alone)).await?;
    consensus.found().await?;
    let text = format!(
        "an operator started a new epoch with {} alone; its log ends at {position}; the old store \
         is kept in {}",
        config.file.name,
        kept.display()
    );
    let because = Because::new("op-recover", text);
    let survivor = config.file.name;
    for change in
        [Change::Adopt { state: Box::new(before) }, Change::ForceEpoch { survivor, because }]
    {
        match consensus.propose(Command { at: wall_millis(), change }).await? {
            Answer::Done => {}
            Answer::Refused { because } => bail!(because),
        }
    }
    let term = consensus.state().authority.term;
    consensus.shutdown().await;
    std::fs::hard_link(config.store(), &kept)?;
    std::fs::rename(&fresh, config.store())?;
    std::fs::File::open(&config.dir)?.sync_all()?;
    Ok(term)
}
