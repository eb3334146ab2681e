//! Applications: each does one thing after the other, through some node's gateway.

use std::time::Duration;

use quorate_core::Term;

use crate::agent::Passage;
use crate::event::{ClientEvent, Event, Message};
use crate::flaw::Flaw;
use crate::wal::Point;
use crate::world::{At, World};

/// How long an application waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often an answer that the gate holds asks again.
const HOLD: Duration = Duration::from_millis(50);

/// An application, and what it does now.
#[derive(Debug, Default)]
pub(crate) struct Client {
    operation: u64,
    writes: bool,
    begun: At,
    gateway: usize,
    /// Where it is done, and in which term it began there.
    session: Option<(usize, Term)>,
    /// The answer that waits for the gate: the log up to here was written or seen.
    answer: Option<Point>,
}

impl World {
    pub(crate) fn begin_clients(&mut self, count: usize) {
        for client in 0..count {
            self.clients.push(Client::default());
            self.rest(client);
        }
    }

    /// The next operation follows after a while.
    fn rest(&mut self, client: usize) {
        let wait = self.some_us(20_000, 400_000);
        self.operations += 1;
        let operation = self.operations;
        self.clients[client].operation = operation;
        self.after(wait, Event::Client { client, operation, what: ClientEvent::Begin });
    }

    pub(crate) fn client_happens(&mut self, client: usize, operation: u64, what: ClientEvent) {
        if self.clients[client].operation != operation {
            return;
        }
        match what {
            ClientEvent::Begin => self.begin_operation(client),
            ClientEvent::GiveUp => {
                self.checks.unknown += 1;
                self.rest(client);
            }
            ClientEvent::Ask { node, life } => {
                let alive = self.hosts[node].agent.as_ref().is_some_and(|a| a.life == life);
                if alive && !self.hosts[node].stands_still() {
                    self.pass(client, node);
                } else if alive {
                    let event = Event::Client { client, operation, what };
                    self.hosts[node].deferred.push(event);
                }
            }
        }
    }

    fn begin_operation(&mut self, client: usize) {
        let gateway = self.random.below(self.hosts.len());
        let writes = self.random.chance(600);
        let operation = self.clients[client].operation;
        let target = self.writer_known_to(gateway);
        let alive = self.hosts[gateway].up && !self.hosts[gateway].stands_still();
        self.clients[client] =
            Client { operation, writes, begun: self.now, gateway, session: None, answer: None };
        let Some((writer, term)) = target.filter(|_| alive) else { return self.rest(client) };
        self.after(PATIENCE, Event::Client { client, operation, what: ClientEvent::GiveUp });
        self.send(gateway, writer, Message::Request { operation, term });
    }

    fn client_of(&self, operation: u64) -> Option<usize> {
        self.clients.iter().position(|c| c.operation == operation)
    }

    /// A request reaches the writer's node.
    pub(crate) fn request(&mut self, from: usize, to: usize, operation: u64, term: Term) {
        let Some(client) = self.client_of(operation) else { return };
        if self.clients[client].session.is_some() {
            return;
        }
        let host = &self.hosts[to];
        let admits = host.agent.as_ref().is_some_and(|a| a.gate.admits() == Some(term));
        let Some(server) = host.server.as_ref().filter(|s| admits && s.writes && !s.stopped) else {
            return self.send(to, from, Message::Reply { operation, served: false });
        };
        let shown = server.shown;
        self.clients[client].session = Some((to, term));
        if self.clients[client].writes {
            self.write_commit(to, operation);
        } else {
            let end = self.hosts[to].disk.data.end.map(|end| self.tree.prefix(end, shown));
            self.clients[client].answer = end;
            self.pass(client, to);
        }
    }

    /// PostgreSQL says that a transaction is committed.
    pub(crate) fn committed(&mut self, node: usize, operation: u64, end: Point) {
        let Some(client) = self.client_of(operation) else { return };
        self.clients[client].answer = Some(end);
        self.pass(client, node);
    }

    /// An answer asks the gate whether it may leave.
    fn pass(&mut self, client: usize, node: usize) {
        let now = self.moment(node);
        let c = &self.clients[client];
        let (Some((at, term)), Some(answer)) = (c.session, c.answer) else { return };
        let (operation, gateway, writes, begun) = (c.operation, c.gateway, c.writes, c.begun);
        let Some(agent) = self.hosts[node].agent.as_ref().filter(|_| at == node) else { return };
        let passage = match self.flaw {
            Flaw::NoGate => Passage::Pass,
            _ => agent.gate.check(term, now),
        };
        match passage {
            Passage::Cut => {}
            Passage::Hold => {
                let what = ClientEvent::Ask { node, life: agent.life };
                self.after(HOLD, Event::Client { client, operation, what });
            }
            Passage::Pass => {
                let lossy = self.is_lossy(node);
                let checks = &mut self.checks;
                if writes {
                    checks.acknowledged(self.now, &self.tree, term, answer, lossy);
                } else {
                    checks.shown(self.now, &self.tree, term, answer, begun, lossy);
                }
                self.clients[client].answer = None;
                self.send(node, gateway, Message::Reply { operation, served: true });
            }
        }
    }

    pub(crate) fn reply(&mut self, operation: u64, served: bool) {
        let Some(client) = self.client_of(operation) else { return };
        if served && self.clients[client].writes {
            self.checks.wrote(self.clients[client].begun);
        }
        self.rest(client);
    }
}
