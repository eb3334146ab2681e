//! The gateway of a node: its threads, and what is common to them.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use quorate_core::gateway;
use quorate_wire::CancelKey;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::entry::{self, Visitor};
use crate::io::Io;
use crate::metrics::{self, AccountMetrics, Metrics};
use crate::session::{self, End};
use crate::tls::TlsSource;
use crate::worker::Worker;
use crate::world::World;
use crate::{Error, cancel, console, limits, replication};

/// What all threads of a gateway share.
pub(crate) struct Shared {
    pub(crate) world: Arc<dyn World>,
    pub(crate) tls: Arc<TlsSource>,
    /// Orders for each thread.
    orders: Mutex<Vec<mpsc::UnboundedSender<Order>>>,
    /// Clients of all threads.
    pub(crate) clients: AtomicUsize,
    /// Nobody is let in.
    closed: AtomicBool,
    /// Transactions and logins of all threads that wait for a writer.
    held: Arc<AtomicUsize>,
    pub(crate) replicating: replication::Places,
    random: ring::rand::SystemRandom,
    /// Makes verifiers for roles that do not exist.
    pub(crate) decoy: [u8; 32],
}

/// What others want of a thread.
pub(crate) enum Order {
    Cancel(CancelKey),
    Console(console::Ask),
    Metrics(mpsc::UnboundedSender<Vec<AccountMetrics>>),
    /// Every client is to go.
    Clear,
}

impl Shared {
    pub(crate) fn new(world: Arc<dyn World>, tls: Arc<TlsSource>) -> Arc<Self> {
        let random = ring::rand::SystemRandom::new();
        let decoy = world.secret();
        let (orders, clients) = (Mutex::default(), AtomicUsize::new(0));
        let replicating = replication::Places::default();
        let held = Arc::default();
        let closed = AtomicBool::new(false);
        Arc::new(Self { world, tls, orders, clients, closed, held, replicating, random, decoy })
    }

    /// One more thread: its orders.
    pub(crate) fn join(&self) -> mpsc::UnboundedReceiver<Order> {
        let (orders, inbox) = mpsc::unbounded_channel();
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(orders);
        inbox
    }

    pub(crate) fn random(&self, bytes: &mut [u8]) {
        if ring::rand::SecureRandom::fill(&self.random, bytes).is_err() {
            tracing::error!("the system has no random numbers");
        }
    }

    pub(crate) fn tls_required(&self) -> bool {
        self.world.view().wanted.tls == gateway::Tls::Required
    }

    /// Whether there are as many clients as there may be.
    pub(crate) fn is_full(&self, worker: &Worker) -> bool {
        self.clients.load(Ordering::Relaxed) >= worker.view().wanted.clients_max as usize
    }

    /// A place for a client that may come in; `None` when there are as many as there may be.
    pub(crate) fn place(self: &Arc<Self>, worker: &Rc<Worker>) -> Option<Place> {
        let most = worker.view().wanted.clients_max as usize;
        let more = |clients: usize| (clients < most).then_some(clients + 1);
        self.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let (worker, shared) = (Rc::clone(worker), Arc::clone(self));
        Some(Place { id: worker.client_id(), worker, shared })
    }

    /// Gives a cancel request to the thread whose client it names; false when the number is none of
    /// a thread here.
    pub(crate) fn pass(&self, key: &CancelKey) -> bool {
        let thread = (key.pid as u32) >> limits::CLIENT_ID_BITS;
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.get(thread as usize).is_some_and(|o| o.send(Order::Cancel(key.clone())).is_ok())
    }

    /// What all threads have counted; of those that answer in time.
    pub(crate) async fn metrics(&self) -> Metrics {
        let (answers, mut inbox) = mpsc::unbounded_channel();
        {
            let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            for order in orders.iter() {
                let _ = order.send(Order::Metrics(answers.clone()));
            }
        }
        drop(answers);
        let clients = self.clients.load(Ordering::Relaxed);
        let mut metrics = Metrics { clients, ..Metrics::default() };
        let collected = async {
            while let Some(thread) = inbox.recv().await {
                metrics.add(thread);
            }
        };
        let _ = tokio::time::timeout(limits::OPEN_WAIT, collected).await;
        metrics
    }

    /// Asks every thread.
    pub(crate) fn ask(&self, ask: &console::Ask) {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        for order in orders.iter() {
            let _ = order.send(Order::Console(ask.clone()));
        }
    }
}

/// What a client takes up from the moment that it may come in, before it is told so: it counts, and
/// its number is its own. Dropping it gives both back.
pub(crate) struct Place {
    worker: Rc<Worker>,
    shared: Arc<Shared>,
    /// The client's number.
    pub(crate) id: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.clients.borrow_mut().remove(&self.id);
        self.shared.clients.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An address where clients come in.
pub struct Port {
    /// Where it listens; need not be without waiting.
    pub listener: std::net::TcpListener,
    /// Set for a port that only reads: where writes are taken, for those who try.
    pub writes_at: Option<Arc<str>>,
}

impl Port {
    /// A port for everything.
    pub fn new(listener: std::net::TcpListener) -> Self {
        Self { listener, writes_at: None }
    }

    fn shared(&self) -> std::io::Result<Self> {
        Ok(Self { listener: self.listener.try_clone()?, writes_at: self.writes_at.clone() })
    }
}

/// Closes a gateway for a while, without a word to anybody: for drills. Clones share everything.
#[derive(Clone)]
pub struct Door(Arc<Shared>);

impl Door {
    /// Every client is cut off, and nobody is let in.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        let orders = self.0.orders.lock().unwrap_or_else(PoisonError::into_inner);
        for order in orders.iter() {
            let _ = order.send(Order::Clear);
        }
    }

    /// Clients are let in again.
    pub fn open(&self) {
        self.0.closed.store(false, Ordering::SeqCst);
    }
}

/// Reads what a gateway has counted. Clones share everything; it reads nothing once the gateway ended.
#[derive(Clone)]
pub struct Meter(Arc<Shared>);

impl Meter {
    /// What the gateway has counted and measured since it started. Asks every thread; costs clients
    /// nothing.
    pub async fn read(&self) -> Metrics {
        self.0.metrics().await
    }
}

/// A running gateway. Dropping it ends every client.
pub struct Gateway {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Gateway {
    /// Starts threads that accept clients, and share the ports.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        world: Arc<dyn World>,
        tls: Arc<TlsSource>,
        ports: Vec<Port>,
    ) -> Result<Self, Error> {
        let workers = world.view().wanted.workers.clamp(1, limits::WORKERS_MAX);
        let shared = Shared::new(world, tls);
        let (stop, stopped) = watch::channel(false);
        let mut gateway = Self { shared, stop, threads: Vec::new() };
        for index in 0..u32::from(workers) {
            gateway.spawn(index, &ports, stopped.clone())?;
        }
        Ok(gateway)
    }

    fn spawn(
        &mut self,
        index: u32,
        ports: &[Port],
        stopped: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        const DOING: &str = "starting a thread of the gateway";
        let ports: std::io::Result<Vec<_>> = ports.iter().map(Port::shared).collect();
        let ports = ports.map_err(Error::io(DOING))?;
        let inbox = self.shared.join();
        let shared = Arc::clone(&self.shared);
        let (begun, begins) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("gateway-{index}"))
            .spawn(move || {
                // A runtime whose tasks never leave its thread cannot be made in another.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .event_interval(limits::EVENT_INTERVAL)
                    .build_local(tokio::runtime::LocalOptions::default());
                match runtime {
                    Ok(runtime) => {
                        let _ = begun.send(Ok(()));
                        runtime.block_on(run(shared, index, ports, inbox, stopped));
                    }
                    Err(error) => drop(begun.send(Err(error))),
                }
            })
            .map_err(Error::io(DOING))?;
        self.threads.push(thread);
        let begun = begins.recv().unwrap_or_else(|lost| Err(std::io::Error::other(lost)));
        begun.map_err(Error::io(DOING))
    }

    /// Cancels what a client here waits for, when the key is its own.
    pub fn cancel_client(&self) -> crate::sessions::CancelClient {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |key| {
            shared.pass(&key);
        })
    }

    /// What closes it for a while.
    pub fn door(&self) -> Door {
        Door(Arc::clone(&self.shared))
    }

    /// What reads its counts.
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.shared))
    }

    /// What it has counted and measured since it started. Asks every thread; costs clients nothing.
    pub async fn metrics(&self) -> Metrics {
        self.shared.metrics().await
    }

    /// Clients that are connected.
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::Relaxed)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The life of a thread.
async fn run(
    shared: Arc<Shared>,
    index: u32,
    ports: Vec<Port>,
    inbox: mpsc::UnboundedReceiver<Order>,
    mut stopped: watch::Receiver<bool>,
) {
    let worker = begin(&shared, index, inbox);
    for Port { listener, writes_at } in ports {
        let set = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        match set {
            Ok(listener) => {
                let accepting =
                    accept(Rc::clone(&worker), Arc::clone(&shared), listener, writes_at);
                tokio::task::spawn_local(accepting);
            }
            Err(error) => tracing::error!(%error, "cannot listen"),
        }
    }
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// What a thread does besides accepting clients.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    index: u32,
    inbox: mpsc::UnboundedReceiver<Order>,
) -> Rc<Worker> {
    let held = Arc::clone(&shared.held);
    let worker = Worker::new(Arc::clone(&shared.world), index, held);
    tokio::task::spawn_local(Rc::clone(&worker).watch());
    tokio::task::spawn_local(Rc::clone(&worker).tick());
    tokio::task::spawn_local(obey(Rc::clone(&worker), inbox));
    worker
}

async fn obey(worker: Rc<Worker>, mut inbox: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = inbox.recv().await {
        match order {
            Order::Cancel(key) => {
                tokio::task::spawn_local(cancel::here(Rc::clone(&worker), key));
            }
            Order::Console(ask) => ask.answer(&worker),
            Order::Metrics(answers) => drop(answers.send(metrics::of(&worker))),
            Order::Clear => {
                worker.clients.borrow().values().for_each(|client| console::cut(client));
            }
        }
    }
}

async fn accept(
    worker: Rc<Worker>,
    shared: Arc<Shared>,
    listener: TcpListener,
    writes_at: Option<Arc<str>>,
) {
    loop {
        match listener.accept().await {
            // What dropping it says is what a host says that has no such process.
            Ok(_) if shared.closed.load(Ordering::SeqCst) => {}
            Ok((tcp, address)) => {
                let from = (address, writes_at.clone());
                let client = client(Rc::clone(&worker), Arc::clone(&shared), Io::Tcp(tcp), from);
                tokio::task::spawn_local(client);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept clients");
                tokio::time::sleep(limits::ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

/// A client from beginning to end. What is needed only at the beginning is not kept.
pub(crate) async fn client(
    worker: Rc<Worker>,
    shared: Arc<Shared>,
    io: Io,
    from: (SocketAddr, Option<Arc<str>>),
) {
    let address = from.0;
    let entered = Box::pin(entry::enter(&worker, &shared, io, from)).await;
    let (visitor, place) = match entered {
        Ok(Some(entered)) => entered,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(%address, %error, "a client did not log in");
            return;
        }
    };
    if shared.closed.load(Ordering::SeqCst) {
        return;
    }
    match visitor {
        Visitor::Client(mut client) => {
            let end = session::serve(&worker, &mut client).await;
            drop(place);
            if let End::Told(report) = end {
                Box::pin(entry::say(&mut client.end, &report)).await;
            }
        }
        Visitor::Replication(visitor) => {
            let (mut end, handle, packet, key) = *visitor;
            let with = (&packet[..], &key);
            let to = (&worker, &*shared);
            let said = Box::pin(replication::serve(to, &mut end, &handle, with)).await;
            drop(place);
            if let Some(report) = said {
                Box::pin(entry::say(&mut end, &report)).await;
            }
        }
        Visitor::Console(console) => {
            let (mut end, handle) = *console;
            Box::pin(console::serve(&worker, &shared, &mut end, &handle)).await;
        }
    }
}
