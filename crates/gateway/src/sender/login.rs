//! How a replication connection to the local server is opened.

use std::io;
use std::path::Path;

use bytes::{BufMut, BytesMut};
use quorate_core::gateway::SynchronousCommit;
use quorate_wire::backend::{ERROR, READY};
use quorate_wire::frame::{self, Message, put};
use quorate_wire::{FirstPacket, startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::commands::{Answer, LOOK, put_query};
use crate::{floor, limits};

/// Opens one, and what the server has said so far. With a floor its `synchronous_commit` begins there
/// at the least: whatever resets a setting leads back to what the connection began with.
pub(super) async fn open(
    socket: &Path,
    packet: &[u8],
    floor: Option<SynchronousCommit>,
) -> io::Result<(UnixStream, BytesMut)> {
    let mut server = connected(socket, packet).await?;
    let Some(floor) = floor.filter(|floor| *floor != SynchronousCommit::Off) else {
        return Ok((server, BytesMut::new()));
    };
    let mut greeting = BytesMut::new();
    if !greeted(&mut server, &mut greeting).await? {
        return Ok((server, greeting));
    }
    let value = ask(&mut server, LOOK).await?.value;
    if !value.is_some_and(|value| floor::is_below(&value, floor)) {
        return Ok((server, greeting));
    }
    let Ok(Some((FirstPacket::Startup(mut startup), _))) = startup::parse(packet) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    tracing::info!(
        "synchronous_commit is set below gateway.synchronous_commit_floor for a replication client; \
         raised to {}",
        floor.as_str()
    );
    startup.set("synchronous_commit", floor.as_str());
    drop(server);
    let mut server = connected(socket, &startup.encode()).await?;
    greeting.clear();
    greeted(&mut server, &mut greeting).await?;
    Ok((server, greeting))
}

async fn connected(socket: &Path, packet: &[u8]) -> io::Result<UnixStream> {
    let mut server = UnixStream::connect(socket).await?;
    server.write_all(packet).await?;
    Ok(server)
}

/// Reads all that a server says to who comes in; whether it lets it in.
async fn greeted(server: &mut UnixStream, greeting: &mut BytesMut) -> io::Result<bool> {
    let mut buf = BytesMut::new();
    loop {
        let message = next(server, &mut buf).await?;
        put(greeting, message.tag, |out| out.put_slice(&message.body));
        if matches!(message.tag, ERROR | READY) {
            greeting.put_slice(&buf);
            return Ok(message.tag == READY);
        }
    }
}

async fn ask(server: &mut UnixStream, sql: &str) -> io::Result<Answer> {
    let mut out = BytesMut::new();
    put_query(&mut out, sql);
    server.write_all(&out).await?;
    let (mut buf, mut answer) = (BytesMut::new(), Answer::default());
    loop {
        let message = next(server, &mut buf).await?;
        if message.tag == READY {
            return Ok(answer);
        }
        answer.note(&message);
    }
}

async fn next(server: &mut UnixStream, buf: &mut BytesMut) -> io::Result<Message> {
    loop {
        if let Some(message) = frame::take(buf, limits::GREETING_MAX).map_err(io::Error::other)? {
            return Ok(message);
        }
        if server.read_buf(buf).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
