//! Applications: each does one thing after the other, through some node's gateway.

use std::time::Duration;

use quorate_core::Term;

use crate::agent::Passage;
use crate::event::{ClientEvent, Event, Message};
use crate::fate::{Fate, Transaction};
use crate::flaw::Flaw;
use crate::wal::Point;
use crate::world::{At, World, nanos};

/// How long an application waits for an answer: the least and the most, in microseconds.
const PATIENCE_US: (u64, u64) = (300_000, 5_000_000);
/// How often an answer that the gate holds asks again.
const HOLD: Duration = Duration::from_millis(50);
/// How often, and how long, it is asked what became of a transaction.
const ASK_EVERY: Duration = Duration::from_millis(250);
const ASKS_FOR: Duration = Duration::from_secs(15);

/// An application, and what it does now.
#[derive(Debug, Default)]
pub(crate) struct Client {
    operation: u64,
    writes: bool,
    begun: At,
    gateway: usize,
    /// Where it is done, and in which term it began there.
    session: Option<(usize, Term)>,
    /// What it writes.
    transaction: Option<Transaction>,
    /// The answer that waits for the gate: the log up to here was written or seen.
    answer: Option<Point>,
    /// What it has seen in all its operations: in which term, and the log up to there.
    seen: Option<(Term, Point)>,
    /// Nobody answered; it is asked until then what became of the transaction.
    asks_until: Option<At>,
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
                self.clients[client].asks_until = Some(self.now + nanos(ASKS_FOR));
                self.ask_fate(client);
            }
            ClientEvent::Ask => self.ask_fate(client),
            ClientEvent::Pass { node, life } => {
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
        let Client { operation, seen, .. } = self.clients[client];
        let target = self.writer_known_to(gateway);
        let alive = self.hosts[gateway].up && !self.hosts[gateway].stands_still();
        self.clients[client] =
            Client { operation, writes, begun: self.now, gateway, seen, ..Client::default() };
        let Some((writer, term)) = target.filter(|_| alive) else { return self.rest(client) };
        let patience = self.some_us(PATIENCE_US.0, PATIENCE_US.1);
        self.after(patience, Event::Client { client, operation, what: ClientEvent::GiveUp });
        self.send(gateway, writer, Message::Request { operation, term });
    }

    fn client_of(&self, operation: u64) -> Option<usize> {
        self.clients.iter().position(|c| c.operation == operation)
    }

    /// A request reaches the writer's node.
    pub(crate) fn request(&mut self, from: usize, to: usize, operation: u64, term: Term) {
        let Some(client) = self.client_of(operation) else { return };
        if self.clients[client].session.is_some() || self.clients[client].asks_until.is_some() {
            return;
        }
        let host = &self.hosts[to];
        let admits = host.agent.as_ref().is_some_and(|a| a.gate.admits() == Some(term));
        let Some(server) = host.server.as_ref().filter(|s| admits && s.writes && !s.stopped) else {
            return self.send(to, from, Message::Reply { operation, served: false });
        };
        let shown = server.shown;
        if let Some((seen_in, seen)) = self.clients[client].seen {
            self.judge_token(to, term, seen_in, seen);
        }
        self.clients[client].session = Some((to, term));
        if self.clients[client].writes {
            self.clients[client].transaction = self.begin_transaction(to, operation, term);
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
        if c.asks_until.is_some() {
            return;
        }
        let (operation, gateway, writes, begun) = (c.operation, c.gateway, c.writes, c.begun);
        let Some(agent) = self.hosts[node].agent.as_ref().filter(|_| at == node) else { return };
        let passage = match self.flaw {
            Flaw::NoGate => Passage::Pass,
            _ => agent.gate.check(term, now),
        };
        match passage {
            Passage::Cut => {}
            Passage::Hold => {
                let what = ClientEvent::Pass { node, life: agent.life };
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
                self.clients[client].seen = Some((term, answer));
                self.send(node, gateway, Message::Reply { operation, served: true });
            }
        }
    }

    /// Asks some gateway what became of the transaction.
    fn ask_fate(&mut self, client: usize) {
        let Client { operation, transaction, asks_until, .. } = self.clients[client];
        let Some(transaction) = transaction.filter(|_| asks_until > Some(self.now)) else {
            self.checks.unknown += 1;
            return self.rest(client);
        };
        let gateway = self.random.below(self.hosts.len());
        let alive = self.hosts[gateway].up && !self.hosts[gateway].stands_still();
        let target = self.writer_known_to(gateway).filter(|(_, term)| *term >= transaction.term);
        if let Some((writer, _)) = target.filter(|_| alive) {
            self.send(gateway, writer, Message::Ask { operation, transaction });
        }
        self.after(ASK_EVERY, Event::Client { client, operation, what: ClientEvent::Ask });
    }

    /// What became of the transaction of an operation that nobody answered.
    pub(crate) fn told(&mut self, operation: u64, fate: Fate) {
        let asks = |c: &Client| c.operation == operation && c.asks_until.is_some();
        let Some(client) = self.clients.iter().position(asks) else { return };
        match fate {
            Fate::Committed => self.checks.told_committed += 1,
            Fate::Aborted => self.checks.told_aborted += 1,
            Fate::Unknown => self.checks.unknown += 1,
        }
        self.rest(client);
    }

    pub(crate) fn reply(&mut self, operation: u64, served: bool) {
        let Some(client) = self.client_of(operation) else { return };
        if served && self.clients[client].writes {
            self.checks.wrote(self.clients[client].begun);
        }
        self.rest(client);
    }
}
