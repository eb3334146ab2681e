//! Our beats to one peer: connect, beat each interval, take answers, and connect again.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use quorate_core::{Moment, NodeId};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with, sockopt};
use rustls::ClientConnection;

use super::channel::Channel;
use super::lookup::Lookup;
use super::wake::Wake;
use super::{PeerLink, Pulse, Status};
use crate::error::Far;
use crate::greeting::Greeting;
use crate::links::handshake_error;
use crate::stream::tune;
use crate::{Error, Kind, Links, clock, limits};

pub(super) struct Outgoing {
    pub(super) links: Links,
    pub(super) peer: NodeId,
    pub(super) address: String,
    pub(super) interval: Duration,
    pub(super) pulse: Arc<dyn Pulse>,
    pub(super) lookup: Lookup,
    pub(super) wake: Arc<Wake>,
    pub(super) status: Status,
}

/// Why there is no connection.
enum Failure {
    /// The host answered that nobody is there.
    Refused(Error),
    /// The two nodes do not take each other's certificates.
    Distrust(Error),
    /// Anything else, silence above all.
    Lost(Error),
}

/// Beats that wait for their answers, oldest first.
#[derive(Default)]
struct InFlight {
    beats: VecDeque<(u64, Moment)>,
    last: u64,
}

impl Outgoing {
    pub(super) fn run(&self) {
        let mut in_flight = InFlight::default();
        for attempt in 0usize.. {
            let started = clock::now();
            let pause = match self.open(attempt) {
                Ok(mut channel) => {
                    self.note(PeerLink { connected: true, trouble: None });
                    in_flight.beats.clear();
                    let ended = self.converse(&mut channel, &mut in_flight);
                    let trouble = ended.err().map(|e| format!("the connection broke: {e}"));
                    channel.close();
                    self.note(PeerLink { connected: false, trouble });
                    limits::BEAT_RETRY
                }
                Err(failure) => self.failed(failure),
            };
            if !self.rest(started + pause) {
                break;
            }
        }
    }

    /// Notes a failed attempt, and says how long after its start the next one is due.
    fn failed(&self, failure: Failure) -> Duration {
        let (err, pause) = match failure {
            Failure::Refused(err) => {
                self.pulse.refused(self.peer);
                (err, limits::BEAT_REFUSED_RETRY)
            }
            Failure::Distrust(err) => (err, limits::BEAT_DISTRUST_RETRY),
            Failure::Lost(err) => (err, limits::BEAT_RETRY),
        };
        self.note(PeerLink { connected: false, trouble: Some(err.to_string()) });
        pause
    }

    /// Waits for the next attempt. False when there is to be none.
    fn rest(&self, until: Moment) -> bool {
        while !self.wake.stopped() {
            if clock::now() >= until {
                return true;
            }
            if self.wake.wait(None, until).is_err() {
                return false;
            }
        }
        false
    }

    fn note(&self, link: PeerLink) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        // Once we are stopped, the entry belongs to our successor, if there is one.
        if !self.wake.stopped() {
            status.insert(self.peer, link);
        }
    }

    /// Beats and takes answers until the connection breaks, ends or stays silent.
    fn converse(&self, channel: &mut Channel, in_flight: &mut InFlight) -> io::Result<()> {
        // With a long interval, silence is what lasts longer than a few beats.
        let silence = limits::BEAT_SILENCE.max(self.interval * 3);
        let mut heard = clock::now();
        let mut next_beat = heard;
        while !self.wake.stopped() {
            while let Some((sequence, answer)) = channel.take_message()? {
                heard = clock::now();
                let out = self.links.outage().holds(Kind::Heartbeat);
                if let Some(sent_at) = in_flight.answered(sequence).filter(|_| !out) {
                    self.pulse.answered(self.peer, sent_at, &answer);
                }
            }
            let now = clock::now();
            if channel.ended() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if now.since(heard) >= silence {
                return Err(ErrorKind::TimedOut.into());
            }
            let kicked = self.wake.take_kick();
            if kicked || now >= next_beat {
                // A full socket gets no second beat: the first has not left.
                if !channel.backlogged() && !self.links.outage().holds(Kind::Heartbeat) {
                    let beat = self.pulse.beat(self.peer);
                    channel.send(in_flight.sent(now), &beat)?;
                }
                next_beat = now + self.interval;
            }
            channel.turn(&self.wake, next_beat.min(heard + silence), false)?;
        }
        Ok(())
    }

    /// A connection past its greeting, on any of the peer's addresses, within the limit.
    fn open(&self, attempt: usize) -> Result<Channel, Failure> {
        let deadline = clock::now() + limits::BEAT_CONNECT_TIMEOUT;
        let mut addresses = self.lookup.addresses(&self.address);
        if addresses.is_empty() {
            let source = io::Error::new(ErrorKind::NotFound, "the name has no address yet");
            return Err(Failure::Lost(Error::Unreachable { far: self.far(), source }));
        }
        // A silent address uses up the whole limit: begin with another one each time.
        let first = attempt % addresses.len();
        addresses.rotate_left(first);
        let mut failure = None;
        for address in addresses {
            match self.open_at(address, deadline) {
                Ok(channel) => return Ok(channel),
                // Refused counts only when every address refuses.
                Err(Failure::Refused(_)) if failure.is_some() => {}
                Err(other) => failure = Some(other),
            }
        }
        Err(failure.unwrap_or(Failure::Lost(Error::UnknownPeer(self.peer))))
    }

    fn open_at(&self, address: SocketAddr, deadline: Moment) -> Result<Channel, Failure> {
        let socket = self.connect(address, deadline)?;
        let call = self.links.tls().call(self.peer, Kind::Heartbeat).map_err(Failure::Lost)?;
        let tls = ClientConnection::new(Arc::clone(&call.config), call.name.clone())
            .map_err(|e| Failure::Lost(Error::Certificate(e.to_string())))?;
        let mut channel = Channel::new(socket, tls.into());
        loop {
            let turned = channel.turn(&self.wake, deadline, false);
            let greeting = if channel.is_handshaking() { None } else { channel.take_greeting() };
            match greeting {
                Some(Greeting::Accepted) => return Ok(channel),
                Some(Greeting::Refused(reason)) => {
                    return Err(Failure::Distrust(Error::Refused { far: self.far(), reason }));
                }
                None => {}
            }
            let hung_up = turned.is_ok() && channel.ended();
            if let Some(source) = turned.err().or(hung_up.then(|| ErrorKind::UnexpectedEof.into()))
            {
                return Err(self.broken(&call, &channel, source));
            }
            if self.wake.stopped() || clock::now() >= deadline {
                return Err(Failure::Lost(self.timed_out()));
            }
        }
    }

    fn broken(&self, call: &crate::trust::Call, channel: &Channel, source: io::Error) -> Failure {
        let hung_up = matches!(
            source.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        );
        if hung_up && !channel.heard_anything() {
            // A proxy or a kernel took the connection, but the process behind it did not.
            return Failure::Refused(Error::Unreachable { far: self.far(), source });
        }
        match handshake_error(call, &self.far(), source) {
            err @ (Error::Distrusted { .. } | Error::Refused { .. }) => Failure::Distrust(err),
            err => Failure::Lost(err),
        }
    }

    fn connect(&self, address: SocketAddr, deadline: Moment) -> Result<TcpStream, Failure> {
        let lost = |source: io::Error| {
            let err = Error::Unreachable { far: self.far(), source };
            match &err {
                Error::Unreachable { source, .. }
                    if source.kind() == ErrorKind::ConnectionRefused =>
                {
                    Failure::Refused(err)
                }
                _ => Failure::Lost(err),
            }
        };
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)
            .map_err(|e| Failure::Lost(Error::System(e.into())))?;
        tune(&socket).map_err(|e| Failure::Lost(Error::System(e)))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::INPROGRESS) => {
                self.connected(&socket, deadline)?;
                sockopt::socket_error(&socket)
                    .and_then(|outcome| outcome)
                    .map_err(|e| lost(e.into()))?;
            }
            Err(err) => return Err(lost(err.into())),
        }
        let socket = TcpStream::from(socket);
        // On one host, calling a port that nobody listens on can connect a socket to itself.
        if socket.local_addr().ok() == Some(address) {
            return Err(lost(ErrorKind::ConnectionRefused.into()));
        }
        Ok(socket)
    }

    /// Waits until a connection attempt has an outcome.
    fn connected(&self, socket: &impl AsFd, deadline: Moment) -> Result<(), Failure> {
        loop {
            let ready = self
                .wake
                .wait(Some((socket.as_fd(), PollFlags::OUT)), deadline)
                .map_err(|e| Failure::Lost(Error::System(e)))?;
            if !ready.is_empty() {
                return Ok(());
            }
            if self.wake.stopped() || clock::now() >= deadline {
                return Err(Failure::Lost(self.timed_out()));
            }
        }
    }

    fn timed_out(&self) -> Error {
        let limit_ms = limits::BEAT_CONNECT_TIMEOUT.as_millis();
        Error::TimedOut { far: self.far(), limit_ms }
    }

    fn far(&self) -> Box<Far> {
        Far::new(Some(self.peer), &self.address)
    }
}

impl InFlight {
    fn sent(&mut self, at: Moment) -> u64 {
        self.last += 1;
        if self.beats.len() == limits::BEATS_IN_FLIGHT_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back((self.last, at));
        self.last
    }

    /// When the beat was sent, if its answer is still awaited.
    fn answered(&mut self, sequence: u64) -> Option<Moment> {
        let at = self.beats.iter().position(|(s, _)| *s == sequence)?;
        // Answers come in order, so older beats will not be answered any more.
        self.beats.drain(..=at).next_back().map(|(_, sent_at)| sent_at)
    }
}
