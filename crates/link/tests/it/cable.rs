//! A cable to a node that can be cut in the ways that networks and processes end.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What the cable does with bytes and connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Whole,
    /// Takes connections and bytes, and passes nothing on, without a word.
    Silent,
    /// Ends connections, and hangs up on new ones at once.
    HangsUp,
    /// Ends connections, and does not listen.
    Closed,
}

pub(crate) struct Cable {
    /// Where this end is.
    pub(crate) address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Cable {
    pub(crate) async fn to(far: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, watch) = watch::channel(Mode::Whole);
        let task = tokio::spawn(run(listener, address, far, watch));
        Self { address, mode, task }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    listener: TcpListener,
    address: SocketAddr,
    far: SocketAddr,
    mut mode: watch::Receiver<Mode>,
) {
    let mut listener = Some(listener);
    let mut passing = JoinSet::new();
    loop {
        let now = *mode.borrow_and_update();
        match now {
            Mode::Closed => {
                listener = None;
                passing.shutdown().await;
            }
            Mode::HangsUp => passing.shutdown().await,
            Mode::Whole | Mode::Silent => {}
        }
        let Some(open) = (match now {
            Mode::Closed => None,
            _ => Some(match listener.take() {
                Some(open) => open,
                None => TcpListener::bind(address).await.unwrap(),
            }),
        }) else {
            mode.changed().await.unwrap();
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                let (near, _) = accepted.unwrap();
                if now != Mode::HangsUp {
                    passing.spawn(pass(near, far, mode.clone()));
                }
            }
            changed = mode.changed() => changed.unwrap(),
        }
        listener = Some(open);
    }
}

async fn pass(near: TcpStream, far: SocketAddr, mut mode: watch::Receiver<Mode>) {
    mode.wait_for(|m| *m == Mode::Whole).await.unwrap();
    let Ok(far) = TcpStream::connect(far).await else { return };
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::select! {
        _ = one_way(near_in, far_out, mode.clone()) => {}
        _ = one_way(far_in, near_out, mode) => {}
    }
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) -> Option<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await.ok().filter(|&n| n > 0)?;
        mode.wait_for(|m| *m == Mode::Whole).await.ok()?;
        to.write_all(&buffer[..n]).await.ok()?;
    }
}
