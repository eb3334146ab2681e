//! A cable between two nodes: a TCP relay whose behaviour is switched while it runs.
//!
//! A cut is silent, as with a lost host: connections are accepted and go nowhere, and neither bytes
//! nor FIN nor RST pass. What was on the way is held and passes after the cable is mended, as
//! TCP would retransmit it. While a cable is up it is transparent: a refused target resets the
//! accepted connection at once, an end or a reset of one side is passed on to the other.
//!
//! A link's streams are connections of their own, and TLS names their kind in the clear (ALPN in the
//! first message), so a fault can be limited to some kinds: the WAL passes and nothing else, or the
//! other way round.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::limits::CABLE_CHUNK;
use crate::runtime::runtime;

/// What one direction of a cable does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Passes everything on at once.
    Pass,
    /// Passes nothing, silently.
    Hold,
    /// Passes every piece of up to 64 KiB this much later.
    Delay(Duration),
}

/// What a cable does in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// From the dialling side to the target.
    pub there: Flow,
    /// From the target to the dialling side.
    pub back: Flow,
}

impl Mode {
    /// Transparent.
    pub const UP: Mode = Mode { there: Flow::Pass, back: Flow::Pass };
    /// Silent both ways.
    pub const CUT: Mode = Mode { there: Flow::Hold, back: Flow::Hold };

    /// Late both ways.
    pub fn slow(delay: Duration) -> Mode {
        Mode { there: Flow::Delay(delay), back: Flow::Delay(delay) }
    }
}

/// Which connections a mode applies to. Kinds are those of a link's streams:
/// `consensus`, `heartbeat`, `wal`, `sql`, `control`, `join`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affected {
    /// All.
    All,
    /// Those of these kinds.
    Only(BTreeSet<&'static str>),
    /// Those of other kinds than these, unknown ones included.
    Except(BTreeSet<&'static str>),
}

/// A cable. Dropping it closes every connection through it.
#[derive(Debug)]
pub struct Cable {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    policy: watch::Sender<Policy>,
}

#[derive(Debug, Clone)]
struct Policy {
    mode: Mode,
    affected: Affected,
    rest: Mode,
}

/// The kind of a connection, once its first bytes were seen.
type Kind = OnceLock<String>;

#[derive(Debug, Clone, Copy)]
enum Way {
    There,
    Back,
}

impl Policy {
    fn flow(&self, kind: &Kind, way: Way) -> Flow {
        let among = |kinds: &BTreeSet<&str>| kind.get().is_some_and(|k| kinds.contains(&k[..]));
        let affected = match &self.affected {
            Affected::All => true,
            Affected::Only(kinds) => among(kinds),
            Affected::Except(kinds) => !among(kinds),
        };
        let mode = if affected { self.mode } else { self.rest };
        match way {
            Way::There => mode.there,
            Way::Back => mode.back,
        }
    }

    /// Whether a connection can be made: that takes packets in both directions.
    fn open(&self, kind: &Kind) -> bool {
        self.flow(kind, Way::There) != Flow::Hold && self.flow(kind, Way::Back) != Flow::Hold
    }
}

impl Cable {
    /// A cable that is up, listening on a loopback port of its own.
    pub fn new(target: SocketAddr) -> Result<Self> {
        let listener = runtime()
            .block_on(TcpListener::bind(("127.0.0.1", 0)))
            .context("cannot listen for a cable")?;
        let addr = listener.local_addr()?;
        let (policy, _) =
            watch::channel(Policy { mode: Mode::UP, affected: Affected::All, rest: Mode::UP });
        let shared = Arc::new(Shared { target, policy });
        let task = runtime().spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { addr, shared, task })
    }

    /// Where the cable listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Switches the mode, for all connections.
    pub fn set(&self, mode: Mode) {
        self.set_for(mode, Affected::All);
    }

    /// Switches the mode for some connections, present and future; the others pass.
    pub fn set_for(&self, mode: Mode, affected: Affected) {
        self.set_each(mode, affected, Mode::UP);
    }

    /// Switches the mode for some connections, and another one for the rest.
    pub fn set_each(&self, mode: Mode, affected: Affected, rest: Mode) {
        self.shared.policy.send_replace(Policy { mode, affected, rest });
    }

    /// The present mode.
    pub fn mode(&self) -> Mode {
        self.shared.policy.borrow().mode
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut carrying = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(crate::limits::POLL).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        carrying.spawn(async move { carry(client, &shared).await });
        while carrying.try_join_next().is_some() {}
    }
}

async fn carry(mut client: TcpStream, shared: &Shared) {
    let mut policy = shared.policy.subscribe();
    let kind = Kind::new();
    let held = !policy.borrow_and_update().open(&kind);
    if held && !passes_in_time(&client, &kind, &mut policy).await {
        return;
    }
    let Ok(mut server) = TcpStream::connect(shared.target).await else {
        reset(&client);
        return;
    };
    // A relay must not add delays of its own.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = Pump { kind: &kind, way: Way::There, policy: policy.clone() };
        let back = Pump { kind: &kind, way: Way::Back, policy };
        tokio::try_join!(there.run(from_client, to_server), back.run(from_server, to_client))
    };
    if ended.is_err() {
        reset(&client);
        reset(&server);
    }
}

/// Waits until a connection made during a cut may be made. False: the dialling side closed
/// meanwhile.
async fn passes_in_time(
    client: &TcpStream,
    kind: &Kind,
    policy: &mut watch::Receiver<Policy>,
) -> bool {
    // Its kind may free it from the cut; both kinds of clients speak first.
    let mut first = vec![0; CABLE_CHUNK];
    let mut waiting = policy.clone();
    tokio::select! {
        read = client.peek(&mut first) => name_kind(kind, &first[..read.unwrap_or_default()]),
        _ = waiting.wait_for(|p| p.open(kind)) => {}
    }
    policy.wait_for(|p| p.open(kind)).await.is_ok() && !gave_up(client).await
}

/// Learns a connection's kind from the first bytes of its dialling side.
fn name_kind(kind: &Kind, first: &[u8]) {
    const MARK: &[u8] = b"quorate/";
    let mark = first.windows(MARK.len()).position(|w| w == MARK);
    let name = mark.map_or(&b"other"[..], |at| {
        let rest = &first[at + MARK.len()..];
        rest.split(|b| *b == b'/').next().unwrap_or_default()
    });
    kind.get_or_init(|| String::from_utf8_lossy(name).into_owned());
}

/// Whether the dialling side has closed meanwhile: its retransmitted SYN would find nobody.
async fn gave_up(client: &TcpStream) -> bool {
    match client.ready(Interest::READABLE | Interest::WRITABLE).await {
        Ok(ready) => ready.is_read_closed(),
        Err(_) => true,
    }
}

/// Makes the coming close a reset.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

struct Pump<'a> {
    kind: &'a Kind,
    way: Way,
    policy: watch::Receiver<Policy>,
}

impl Pump<'_> {
    /// Carries one direction until its end. An error means that the connection must be reset.
    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> std::io::Result<()> {
        let mut chunk = vec![0; CABLE_CHUNK];
        loop {
            let read = from.read(&mut chunk).await;
            if let (Way::There, Ok(n)) = (self.way, &read) {
                name_kind(self.kind, &chunk[..*n]);
            }
            self.passage().await;
            match read? {
                0 => return to.shutdown().await,
                n => to.write_all(&chunk[..n]).await?,
            }
        }
    }

    /// Waits until this direction passes, for as long as it is late.
    async fn passage(&mut self) {
        let (kind, way) = (self.kind, self.way);
        let flow = self.policy.borrow_and_update().flow(kind, way);
        if let Flow::Delay(delay) = flow {
            tokio::time::sleep(delay).await;
        }
        // The sender lives as long as the cable, and this task not longer.
        let _ = self.policy.wait_for(|p| p.flow(kind, way) != Flow::Hold).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(10);

    fn pair() -> (Cable, TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Cable::new(listener.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(cable.addr()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(LONG)).unwrap();
        }
        (cable, client, server, listener)
    }

    fn arrives(stream: &mut TcpStream, word: &[u8; 4]) {
        let mut got = [0; 4];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, word);
    }

    fn silent(stream: &mut TcpStream) {
        stream.set_read_timeout(Some(SHORT)).unwrap();
        let got = stream.read(&mut [0; 4]);
        assert_eq!(got.unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_read_timeout(Some(LONG)).unwrap();
    }

    #[test]
    fn carries_both_ways() {
        let (_cable, mut client, mut server, _l) = pair();
        client.write_all(b"ping").unwrap();
        arrives(&mut server, b"ping");
        server.write_all(b"pong").unwrap();
        arrives(&mut client, b"pong");
    }

    #[test]
    fn a_cut_is_silent_and_what_was_sent_arrives_after_it() {
        let (cable, mut client, mut server, _l) = pair();
        cable.set(Mode::CUT);
        client.write_all(b"held").unwrap();
        silent(&mut server);
        drop(client);
        silent(&mut server);
        cable.set(Mode::UP);
        arrives(&mut server, b"held");
        assert_eq!(server.read(&mut [0; 4]).unwrap(), 0, "the end passes after the cut");
    }

    #[test]
    fn a_connection_made_during_a_cut_goes_nowhere_until_it_is_mended() {
        let (cable, _c, _s, listener) = pair();
        cable.set(Mode::CUT);
        let abandoned = TcpStream::connect(cable.addr()).unwrap();
        drop(abandoned);
        let mut waiting = TcpStream::connect(cable.addr()).unwrap();
        waiting.write_all(b"late").unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::sleep(SHORT);
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        cable.set(Mode::UP);
        listener.set_nonblocking(false).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        arrives(&mut server, b"late");
    }

    #[test]
    fn a_one_way_cut_still_carries_the_other_way() {
        let (cable, mut client, mut server, _l) = pair();
        cable.set(Mode { there: Flow::Hold, back: Flow::Pass });
        client.write_all(b"held").unwrap();
        server.write_all(b"pass").unwrap();
        arrives(&mut client, b"pass");
        silent(&mut server);
    }

    #[test]
    fn a_slow_cable_is_late() {
        let (cable, mut client, mut server, _l) = pair();
        cable.set(Mode::slow(SHORT));
        let sent = std::time::Instant::now();
        client.write_all(b"slow").unwrap();
        arrives(&mut server, b"slow");
        assert!(sent.elapsed() >= SHORT);
    }

    #[test]
    fn a_refused_target_resets_at_once() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Cable::new(free.local_addr().unwrap()).unwrap();
        drop(free);
        let mut client = TcpStream::connect(cable.addr()).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        let got = client.read(&mut [0; 1]);
        assert_eq!(got.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_reset_is_passed_on() {
        let (_cable, client, mut server, _l) = pair();
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        let got = server.read(&mut [0; 1]);
        assert_eq!(got.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_cut_can_spare_a_kind_of_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Cable::new(listener.local_addr().unwrap()).unwrap();
        cable.set_for(Mode::CUT, Affected::Except(BTreeSet::from(["wal"])));
        let mut other = TcpStream::connect(cable.addr()).unwrap();
        other.write_all(b"\x16..quorate/heartbeat/1..").unwrap();
        let mut wal = TcpStream::connect(cable.addr()).unwrap();
        wal.write_all(b"\x16..quorate/wal/1..").unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut got = [0; 16];
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"\x16..quorate/wal/1");
        cable.set_for(Mode::CUT, Affected::Only(BTreeSet::from(["wal"])));
        let (mut server, _) = listener.accept().unwrap();
        server.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"\x16..quorate/heart");
    }
}
