//! A client of a gateway from its first byte to its last, without PostgreSQL: the servers behind the
//! gateway are tasks that answer like one, or, when the input says so, like one gone mad.

mod server;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quorate_gateway::Sessions;
use quorate_gateway::fuzz::Rig;
use quorate_wire::Startup;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::LocalSet;

use crate::knob;
use crate::memory::peak;
use server::Script;
use world::Town;

/// Room of a pipe, as of a socket.
const PIPE: usize = 32 * 1024;
/// Nobody who has said all waits longer; the clock does not wait either.
const EVER: Duration = Duration::from_secs(3_600);
/// What one client may make a gateway hold, whatever it sends and however little it reads.
const HELD_MAX: usize = 12 * 1024 * 1024;
/// What a client says over and over again that does not read.
const FLOOD: usize = 2 * 1024 * 1024;

/// How the input is used; its low two bits say who comes.
#[derive(Clone, Copy)]
pub struct How(pub u8);

impl How {
    /// Raw bytes from the first on.
    pub const STRANGER: u8 = 0;
    /// A client that is let in; the input follows its first packet.
    pub const TRUSTED: u8 = 1;
    /// The same, of the console.
    pub const CONSOLE: u8 = 2;
    /// Another node's gateway.
    pub const NODE: u8 = 3;
    /// There is a writer.
    pub const WRITER: u8 = 4;
    /// There is a replica.
    pub const REPLICA: u8 = 8;
    /// Clients keep their servers.
    pub const SESSION: u8 = 16;
    /// The servers behave as the input says.
    pub const MAD: u8 = 32;
    /// The client says its last bytes again and again, and reads nothing meanwhile.
    pub const DEAF: u8 = 64;
    /// Every gateway setting that makes more of an answer or a statement is made.
    pub const STRICT: u8 = 128;

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    fn who(self) -> u8 {
        self.0 & 3
    }
}

/// `how, chunk size, length of the servers' script, script, what the client says`.
pub fn check(mut data: &[u8]) {
    let how = How(knob(&mut data));
    let chunk = usize::from(knob(&mut data));
    let script = usize::from(knob(&mut data)).min(data.len());
    let (script, said) = data.split_at(script);
    let script = Arc::new(Script::new(if how.has(How::MAD) { script } else { &[] }));
    let (answered, held) = peak(|| run(how, chunk, script, said));
    let fair = 256 * 1024 + 1024 * said.len();
    assert!(how.has(How::DEAF) || answered <= fair, "{answered} bytes for {}", said.len());
    assert!(held <= HELD_MAX, "{held} bytes were held for {}", said.len());
}

/// The number of bytes that were answered.
fn run(how: How, chunk: usize, script: Arc<Script>, said: &[u8]) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let world = Arc::new(Town::new(how, script));
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let served = async {
            if how.who() == How::NODE {
                let sessions = Sessions::new(world, 10, Arc::new(|_| {}));
                let _ = sessions.serve(theirs).await;
            } else {
                let address = SocketAddr::from(([127, 0, 0, 1], 5432));
                Rig::new(world).visit(Box::new(theirs), address).await;
            }
        };
        let both = async { tokio::join!(served, client(how, chunk, ours, said)).1 };
        match tokio::time::timeout(EVER, both).await {
            Ok(answered) => answered,
            Err(_) => panic!("the client said all and left, and is still there"),
        }
    })
}

async fn client(how: How, chunk: usize, stream: DuplexStream, said: &[u8]) -> usize {
    let (mut from, mut to) = tokio::io::split(stream);
    let first = |user, database| Startup::new(&[("user", user), ("database", database)]).encode();
    let first = match how.who() {
        How::TRUSTED => first("app", "app"),
        How::CONSOLE => first("boss", "quorate"),
        _ => bytes::BytesMut::new(),
    };
    let says = async {
        to.write_all(&first).await?;
        for part in said.chunks(if chunk == 0 { usize::MAX } else { chunk }) {
            to.write_all(part).await?;
            if chunk > 0 {
                tokio::task::yield_now().await;
            }
        }
        if how.has(How::DEAF) && !said.is_empty() {
            for _ in 0..FLOOD / said.len().max(16) {
                // Whoever waits for this client to read may stop reading it.
                let write = to.write_all(said);
                if tokio::time::timeout(Duration::from_secs(30), write).await.is_err() {
                    break;
                }
            }
        }
        std::io::Result::Ok(())
    };
    let mut answered = 0;
    let mut room = vec![0; PIPE];
    if how.has(How::DEAF) {
        let _ = says.await;
    } else {
        // What a client does not read would keep the gateway from reading on.
        let mut says = std::pin::pin!(says);
        loop {
            tokio::select! {
                biased;
                _ = &mut says => break,
                read = from.read(&mut room) => match read {
                    Ok(n) if n > 0 => answered += n,
                    _ => break,
                },
            }
        }
    }
    let _ = to.shutdown().await;
    while let Ok(n @ 1..) = from.read(&mut room).await {
        answered += n;
    }
    answered
}
