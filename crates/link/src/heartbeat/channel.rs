//! Heartbeat messages over TLS on a non-blocking socket, without a runtime.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

use quorate_core::Moment;
use rustix::event::PollFlags;
use rustls::Connection;

use super::wake::Wake;
use crate::greeting::Greeting;
use crate::limits;

const LENGTH: usize = 4;
const SEQUENCE: usize = 8;

/// One connection. Nothing here waits, except `wait`.
pub(super) struct Channel {
    socket: TcpStream,
    tls: Connection,
    inbox: Vec<u8>,
    ended: bool,
    heard_anything: bool,
}

impl Channel {
    /// `socket` must be non-blocking.
    pub(super) fn new(socket: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(limits::BEAT_UNSENT_BYTES_MAX));
        Self { socket, tls, inbox: Vec::new(), ended: false, heard_anything: false }
    }

    /// Sends what is queued, then waits for the socket, a nudge or the moment, then reads what has
    /// come unless `deaf`. Fails when the connection is broken; see `ended` for its end.
    pub(super) fn turn(&mut self, wake: &Wake, until: Moment, deaf: bool) -> io::Result<()> {
        self.flush()?;
        let mut interest = PollFlags::empty();
        interest.set(PollFlags::IN, !deaf);
        interest.set(PollFlags::OUT, self.tls.wants_write());
        let ready = wake.wait(Some((self.socket.as_fd(), interest)), until)?;
        if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.fill()?;
        }
        if ready.contains(PollFlags::OUT) {
            self.flush()?;
        }
        Ok(())
    }

    /// Whether the other side will say nothing more.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Whether a single byte has ever come.
    pub(super) fn heard_anything(&self) -> bool {
        self.heard_anything
    }

    /// Whether bytes wait for the socket, so that nothing more should be queued.
    pub(super) fn backlogged(&self) -> bool {
        self.tls.wants_write()
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Takes what is already decrypted; a connection from the runtime may hold some.
    pub(super) fn take_plaintext(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.tls.reader().read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(());
                }
                Ok(n) => self.inbox.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                    self.ended = true;
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The server's greeting, once it has come.
    pub(super) fn take_greeting(&mut self) -> Option<Greeting> {
        let (greeting, used) = Greeting::decode(&self.inbox)?;
        self.inbox.drain(..used);
        Some(greeting)
    }

    /// The next whole message: its sequence number and bytes.
    pub(super) fn take_message(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let Some((length, rest)) = self.inbox.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > limits::BEAT_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "a heartbeat is too long"));
        }
        let Some((sequence, rest)) = rest.split_first_chunk::<SEQUENCE>() else {
            return Ok(None);
        };
        let sequence = u64::from_be_bytes(*sequence);
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let body = body.to_vec();
        self.inbox.drain(..LENGTH + SEQUENCE + length);
        Ok(Some((sequence, body)))
    }

    /// Queues a message and sends as much as the socket takes. One that is too long is not sent.
    pub(super) fn send(&mut self, sequence: u64, body: &[u8]) -> io::Result<()> {
        if body.len() > limits::BEAT_BYTES_MAX {
            return Ok(());
        }
        let mut message = Vec::with_capacity(LENGTH + SEQUENCE + body.len());
        message.extend_from_slice(&(body.len() as u32).to_be_bytes());
        message.extend_from_slice(&sequence.to_be_bytes());
        message.extend_from_slice(body);
        self.tls.writer().write_all(&message)?;
        self.flush()
    }

    /// Says goodbye, if the socket takes it.
    pub(super) fn close(mut self) {
        self.tls.send_close_notify();
        let _ = self.flush();
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn fill(&mut self) -> io::Result<()> {
        for _ in 0..limits::BEAT_READS_MAX {
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(());
                }
                Ok(_) => self.heard_anything = true,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            if let Err(err) = self.tls.process_new_packets() {
                let _ = self.flush(); // The alert that says why.
                return Err(io::Error::new(ErrorKind::InvalidData, err));
            }
            self.take_plaintext()?;
        }
        Ok(())
    }
}
