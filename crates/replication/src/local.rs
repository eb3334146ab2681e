//! A replication connection to the local server, as far as logging in and simple commands.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use quorate_wire::backend::{AUTHENTICATION, DATA_ROW, ERROR, Fields, READY};
use quorate_wire::frame::{self, Message};
use quorate_wire::{Startup, replication};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::{Error, limits};

/// Connects to a unix socket of PostgreSQL.
pub(crate) async fn connect(pg_socket: &Path) -> Result<UnixStream, Error> {
    let doing = "connecting to the local PostgreSQL";
    UnixStream::connect(pg_socket).await.map_err(Error::io(doing))
}

/// A connection that is read message by message.
pub(crate) struct Connection {
    pub(crate) stream: UnixStream,
    pub(crate) buf: BytesMut,
}

impl Connection {
    /// Connects and logs in as a physical replication client, by peer or trust authentication.
    pub(crate) async fn replication(
        pg_socket: &Path,
        user: &str,
        application_name: &str,
    ) -> Result<Self, Error> {
        const DOING: &str = "logging in to the local PostgreSQL for replication";
        let mut this = Self { stream: connect(pg_socket).await?, buf: BytesMut::new() };
        let startup = Startup::new(&[
            ("user", user),
            ("replication", "true"),
            ("application_name", application_name),
        ]);
        this.stream.write_all(&startup.encode()).await.map_err(Error::io(DOING))?;
        loop {
            let message = this.message(DOING).await?;
            match message.tag {
                READY => return Ok(this),
                AUTHENTICATION if message.body[..] != [0; 4] => {
                    return Err(Error::Server {
                        doing: DOING,
                        code: "28000".into(),
                        message: "a password is wanted on the local socket".into(),
                    });
                }
                // Parameters, the cancel key, notices.
                _ => {}
            }
        }
    }

    /// Runs a command and returns its only row.
    pub(crate) async fn query_row(
        &mut self,
        sql: &str,
        doing: &'static str,
    ) -> Result<Bytes, Error> {
        self.send_query(sql, doing).await?;
        let mut row = Bytes::new();
        loop {
            let message = self.message(doing).await?;
            match message.tag {
                DATA_ROW => row = message.body,
                READY => return Ok(row),
                _ => {}
            }
        }
    }

    pub(crate) async fn send_query(&mut self, sql: &str, doing: &'static str) -> Result<(), Error> {
        let mut out = BytesMut::new();
        replication::put_query(&mut out, sql);
        self.stream.write_all(&out).await.map_err(Error::io(doing))
    }

    /// The next message; what the server reports as an error is an error.
    pub(crate) async fn message(&mut self, doing: &'static str) -> Result<Message, Error> {
        loop {
            if let Some(message) = frame::take(&mut self.buf, limits::MESSAGE_MAX)? {
                if message.tag == ERROR {
                    let fields = Fields::parse(&message.body)?;
                    let (code, message) = (fields.code().into(), fields.message().into());
                    return Err(Error::Server { doing, code, message });
                }
                return Ok(message);
            }
            let n = self.stream.read_buf(&mut self.buf).await.map_err(Error::io(doing))?;
            if n == 0 {
                return Err(Error::Closed { doing });
            }
        }
    }
}
