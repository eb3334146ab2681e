//! A cluster of which everything is known.

use std::sync::Arc;

use quorate_core::access::{AccessRule, Action, TlsNeed};
use quorate_core::gateway::{Gateway as Wanted, PoolMode, SynchronousCommit};
use quorate_core::{Lsn, NodeId, Term};
use quorate_gateway::{
    BoxFuture, BoxStream, Distance, Fate, Local, Replica, Role, Token, Transaction, View, World, Writer,
};
use tokio::sync::watch;

use super::server::{self, Script};
use super::{How, PIPE};

/// Of the password `correct horse`.
const SCRAM: &str = "SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$cZtBpicSm6RhppoV+u38WgagKbW2u05jGl0QUyy13BQ=:comUIfInZ7PIomvLpXKGbKS+dnwm2uNruLAGeGgyQrg=";
const MD5: &str = "md504a6e9cad70986782b90718777cf1414";

pub struct Town {
    view: Arc<View>,
    changes: watch::Sender<u64>,
    script: Arc<Script>,
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a name")
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

impl Town {
    pub fn new(how: How, script: Arc<Script>) -> Self {
        let mut wanted = Wanted {
            access: vec![
                rule("app", Action::Trust),
                rule("boss", Action::Trust),
                rule("no", Action::Reject),
                rule("*", Action::Password),
            ],
            hold_ms: 0,
            resolve_commits: !how.has(How::STRICT),
            synchronous_commit_floor: if how.has(How::STRICT) {
                SynchronousCommit::On
            } else {
                SynchronousCommit::Off
            },
            ..Wanted::default()
        };
        wanted.pool.wait_ms = 1;
        if how.has(How::SESSION) {
            wanted.pool.mode = PoolMode::Session;
        }
        if how.has(How::STRICT) {
            wanted.pool.reuse_unnamed = !wanted.pool.reuse_unnamed;
            wanted.pool.prepared_max = 1;
            wanted.pool.size = 1;
        }
        let term = Term(5);
        let writer = Writer { node: node("n2"), term, here: false };
        let replica = Replica {
            node: node("n3"),
            here: false,
            replayed: Lsn(100),
            term,
            incarnation: 1,
            behind_ms: 0,
            distance: Distance::Zone,
            role: quorate_core::role::Role::Ha,
            weight: 1,
            broken: None,
        };
        let view = View {
            cluster: "c1".into(),
            term,
            writer: how.has(How::WRITER).then_some(writer),
            because: "an election is under way".into(),
            replicas: how.has(How::REPLICA).then_some(replica).into_iter().collect(),
            ends: vec![(Term(4), Lsn(50))],
            wanted: Arc::new(wanted),
            ..View::default()
        };
        Self { view: Arc::new(view), changes: watch::Sender::new(0), script }
    }
}

impl World for Town {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn local(&self) -> Option<Local> {
        None
    }

    fn acknowledged(&self) -> Token {
        Token { term: Term(5), lsn: Lsn(90) }
    }

    fn dial(&self, to: NodeId) -> BoxFuture<'_, Result<BoxStream, String>> {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        tokio::spawn(server::serve(theirs, Arc::clone(&self.script), to == node("n3")));
        Box::pin(async move { Ok(Box::new(ours) as BoxStream) })
    }

    fn role(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        self.role_here(name)
    }

    fn role_here(&self, name: String) -> BoxFuture<'_, Result<Option<Role>, String>> {
        let role = |password: Option<&str>| Role {
            password: password.map(str::to_owned),
            may_log_in: true,
            expired: false,
            superuser: false,
        };
        let found = match name.as_str() {
            "app" => Ok(Some(role(None))),
            "boss" => Ok(Some(Role { superuser: true, ..role(None) })),
            "scram" => Ok(Some(role(Some(SCRAM)))),
            "old" => Ok(Some(role(Some(MD5)))),
            "odd" => Ok(Some(role(Some("plain text")))),
            "late" => Ok(Some(Role { expired: true, ..role(Some(SCRAM)) })),
            "shut" => Ok(Some(Role { may_log_in: false, ..role(None) })),
            "lost" => Err("no server answers".to_owned()),
            _ => Ok(None),
        };
        Box::pin(async move { found })
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
        Box::pin(async { Some(Fate::Committed) })
    }

    fn secret(&self) -> [u8; 32] {
        [7; 32]
    }

    fn nodes(&self) -> Vec<NodeId> {
        vec![node("n2"), node("n3")]
    }
}
