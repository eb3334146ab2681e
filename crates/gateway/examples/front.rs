//! A gateway before one PostgreSQL server, for measurements: `front SOCKET PORT [VERIFIER]`. It lets in
//! whoever comes, or whoever knows the password of this verifier (`pg_authid.rolpassword`); the server
//! must trust its socket.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use quorate_core::access::{AccessRule, Action, TlsNeed};
use quorate_core::gateway::Gateway;
use quorate_core::{Lsn, Moment, NodeId, Term};
use quorate_gateway::{
    BoxFuture, BoxStream, Fate, Gate, Gateway as Front, Local, Port, Role, TlsSource, Token,
    Transaction, View, World, Writer,
};
use tokio::sync::watch;

struct One {
    local: Local,
    password: Option<String>,
    view: Arc<View>,
    changes: watch::Sender<u64>,
}

impl World for One {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
    fn local(&self) -> Option<Local> {
        Some(self.local.clone())
    }
    fn acknowledged(&self) -> Token {
        Token { term: Term(1), lsn: Lsn(1) }
    }
    fn dial(&self, _: NodeId) -> BoxFuture<'_, Result<BoxStream, String>> {
        Box::pin(async { Err("alone".to_owned()) })
    }
    fn role(&self, _: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        let password = self.password.clone();
        let role = Role { password, may_log_in: true, ..Role::default() };
        Box::pin(async { Ok(Some(role)) })
    }
    fn role_here(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        self.role(name)
    }
    fn settled(&self) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }
    fn may_cancel(&self, _: i32) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }
    fn may_stream(&self, _: i32) -> BoxFuture<'_, bool> {
        Box::pin(async { true })
    }
    fn fate(&self, _: Transaction) -> BoxFuture<'_, Fate> {
        Box::pin(async { Fate::Unknown })
    }
    fn fate_here(&self, _: Transaction) -> BoxFuture<'_, Option<Fate>> {
        Box::pin(async { None })
    }
    fn secret(&self) -> [u8; 32] {
        [7; 32]
    }
    fn nodes(&self) -> Vec<NodeId> {
        Vec::new()
    }
}

/// The standard library's clock, so that it also runs under valgrind.
fn clock() -> Moment {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    Moment(START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let socket = args.next().unwrap();
    let port = args.next().unwrap();
    let password = args.next();
    let gate = Arc::new(Gate::new());
    gate.open(Term(1));
    gate.renew(Term(1), Moment(u64::MAX));
    let node = NodeId::new("n1").unwrap();
    let rule = AccessRule {
        database: vec!["*".into()],
        role: vec!["*".into()],
        address: vec!["local".into()],
        tls: TlsNeed::Any,
        action: if password.is_some() { Action::Password } else { Action::Trust },
        because: None,
    };
    let mut wanted = Gateway::default();
    wanted.access.push(rule);
    wanted.pool.size = 16;
    wanted.clients_max = 20_000;
    let view = View {
        wanted: Arc::new(wanted),
        term: Term(1),
        writer: Some(Writer { node, term: Term(1), here: true }),
        ..View::default()
    };
    let senders = Arc::new(tokio::sync::Semaphore::new(1));
    let local = Local {
        socket: socket.into(),
        gate,
        reads: Arc::new(Gate::new()),
        clock,
        alive: None,
        senders,
    };
    let world = One { local, password, view: Arc::new(view), changes: watch::Sender::new(0) };
    let listener = std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let _gateway =
        Front::start(Arc::new(world), Arc::new(TlsSource::new(None)), vec![Port::new(listener)])
            .unwrap();
    loop {
        std::thread::park();
    }
}
