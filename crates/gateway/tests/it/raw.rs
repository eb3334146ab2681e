//! A client that speaks the protocol by hand.

use std::net::SocketAddr;
use std::ops::Index;

use anyhow::{Result, bail};
use bytes::{Buf, BufMut, BytesMut};
use quorate_gateway::BoxStream;
use quorate_wire::backend::Fields;
use quorate_wire::frame::{self, Message, put, put_cstr};
use quorate_wire::{CancelKey, Startup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::server::DEADLINE;

pub(crate) struct Raw {
    stream: BoxStream,
    buf: BytesMut,
    /// What the server reports of its settings.
    pub(crate) parameters: std::collections::BTreeMap<String, String>,
    pub(crate) key: Option<CancelKey>,
    /// Bodies of NegotiateProtocolVersion.
    pub(crate) negotiated: Vec<bytes::Bytes>,
}

/// A row; a column that is null is an empty text by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row(Vec<Option<String>>);

impl Row {
    pub(crate) fn cells(&self) -> Vec<Option<String>> {
        self.0.clone()
    }
}

impl Index<usize> for Row {
    type Output = str;

    fn index(&self, at: usize) -> &str {
        self.0[at].as_deref().unwrap_or_default()
    }
}

/// An error or a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) severity: String,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// Everything up to ReadyForQuery.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Tags of all messages but ParameterStatus.
    pub(crate) tags: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) errors: Vec<Said>,
    pub(crate) notices: Vec<Said>,
    pub(crate) commands: Vec<String>,
    /// `I`, `T` or `E`.
    pub(crate) status: char,
}

impl Answer {
    /// SQLSTATE of the only error, or nothing.
    pub(crate) fn code(&self) -> &str {
        assert!(self.errors.len() < 2, "{:?}", self.errors);
        self.errors.first().map_or("", |e| &e.code)
    }

    /// The first column of the only row.
    pub(crate) fn value(&self) -> &str {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        assert_eq!(self.rows.len(), 1, "{self:?}");
        &self.rows[0][0]
    }

    /// Fails the test if there was an error.
    pub(crate) fn ok(self) -> Answer {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        self
    }
}

/// Messages to be sent in one piece.
#[derive(Default)]
pub(crate) struct Say(pub(crate) BytesMut);

impl Say {
    pub(crate) fn new() -> Say {
        Say::default()
    }

    pub(crate) fn message(mut self, tag: u8, body: &[u8]) -> Say {
        put(&mut self.0, tag, |out| out.put_slice(body));
        self
    }

    pub(crate) fn query(mut self, sql: &str) -> Say {
        put(&mut self.0, b'Q', |out| put_cstr(out, sql.as_bytes()));
        self
    }

    pub(crate) fn parse(mut self, name: &str, sql: &str) -> Say {
        put(&mut self.0, b'P', |out| {
            put_cstr(out, name.as_bytes());
            put_cstr(out, sql.as_bytes());
            out.put_u16(0);
        });
        self
    }

    /// Parameters and results are text.
    pub(crate) fn bind(mut self, portal: &str, name: &str, values: &[&str]) -> Say {
        put(&mut self.0, b'B', |out| {
            put_cstr(out, portal.as_bytes());
            put_cstr(out, name.as_bytes());
            out.put_u16(0);
            out.put_u16(values.len() as u16);
            for value in values {
                out.put_u32(value.len() as u32);
                out.put_slice(value.as_bytes());
            }
            out.put_u16(0);
        });
        self
    }

    pub(crate) fn describe(self, kind: u8, name: &str) -> Say {
        self.message(b'D', &[&[kind], name.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn close(self, kind: u8, name: &str) -> Say {
        self.message(b'C', &[&[kind], name.as_bytes(), b"\0"].concat())
    }

    pub(crate) fn execute(mut self, portal: &str, rows: u32) -> Say {
        put(&mut self.0, b'E', |out| {
            put_cstr(out, portal.as_bytes());
            out.put_u32(rows);
        });
        self
    }

    pub(crate) fn sync(self) -> Say {
        self.message(b'S', b"")
    }

    /// A statement from beginning to end, and no Sync.
    pub(crate) fn statement(self, sql: &str) -> Say {
        self.parse("", sql).bind("", "", &[]).execute("", 0)
    }

    /// A named statement from Bind to Sync.
    pub(crate) fn run(self, name: &str, values: &[&str]) -> Say {
        self.bind("", name, values).execute("", 0).sync()
    }
}

impl Raw {
    pub(crate) fn new(stream: BoxStream) -> Raw {
        Raw {
            stream,
            buf: BytesMut::new(),
            parameters: Default::default(),
            key: None,
            negotiated: Vec::new(),
        }
    }

    /// A client that has sent its first packet.
    pub(crate) async fn connect(address: SocketAddr, startup: &Startup) -> Result<Raw> {
        let mut raw = Raw::new(Box::new(TcpStream::connect(address).await?));
        raw.bytes(&startup.encode()).await?;
        Ok(raw)
    }

    /// A client that needs no password; ready for a query.
    pub(crate) async fn session(address: SocketAddr, with: &[(&str, &str)]) -> Result<Raw> {
        let mut raw = Raw::connect(address, &Startup::new(with)).await?;
        raw.greeted().await?;
        Ok(raw)
    }

    /// Reads what a client is told when it is let in.
    pub(crate) async fn greeted(&mut self) -> Result<()> {
        let answer = self.answer().await?;
        if let Some(error) = answer.errors.first() {
            bail!("{}: {}", error.code, error.message);
        }
        Ok(())
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        Ok(self.stream.flush().await?)
    }

    pub(crate) async fn say(&mut self, say: Say) -> Result<()> {
        self.bytes(&say.0).await
    }

    /// Sends messages, and reads up to ReadyForQuery.
    pub(crate) async fn exchange(&mut self, say: Say) -> Result<Answer> {
        self.say(say).await?;
        self.answer().await
    }

    /// A simple query.
    pub(crate) async fn ask(&mut self, sql: &str) -> Result<Answer> {
        self.exchange(Say::new().query(sql)).await
    }

    /// A simple query that must have one row.
    pub(crate) async fn value(&mut self, sql: &str) -> Result<String> {
        Ok(self.ask(sql).await?.value().to_owned())
    }

    /// The next message; `None` when the connection is closed.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>> {
        loop {
            if let Some(message) = frame::take(&mut self.buf, 1 << 26)? {
                return Ok(Some(message));
            }
            if timeout(DEADLINE, self.stream.read_buf(&mut self.buf)).await?? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads up to and with the first message of this kind.
    pub(crate) async fn until(&mut self, tag: u8) -> Result<Answer> {
        let mut answer = Answer { status: ' ', ..Answer::default() };
        loop {
            let Some(message) = self.next().await? else { bail!("closed after {answer:?}") };
            self.note(&mut answer, &message)?;
            if message.tag == tag {
                return Ok(answer);
            }
        }
    }

    /// Reads up to ReadyForQuery, or to the end of the connection if a last word came.
    pub(crate) async fn answer(&mut self) -> Result<Answer> {
        let mut answer = Answer { status: ' ', ..Answer::default() };
        loop {
            let Some(message) = self.next().await? else {
                if answer.errors.is_empty() {
                    bail!("closed after {answer:?}");
                }
                return Ok(answer);
            };
            self.note(&mut answer, &message)?;
            if message.tag == b'Z' {
                return Ok(answer);
            }
        }
    }

    fn note(&mut self, answer: &mut Answer, message: &Message) -> Result<()> {
        let mut body = &message.body[..];
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        if message.tag == b'S' {
            let name = text(frame::take_cstr(&mut body, "a name")?);
            self.parameters.insert(name, text(frame::take_cstr(&mut body, "a value")?));
            return Ok(());
        }
        answer.tags.push(char::from(message.tag));
        match message.tag {
            b'D' => {
                let mut row = Vec::new();
                for _ in 0..body.get_u16() {
                    let len = usize::try_from(body.get_i32()).ok();
                    row.push(len.map(|len| text(&body[..len])));
                    body.advance(len.unwrap_or(0));
                }
                answer.rows.push(Row(row));
            }
            b'E' | b'N' => {
                let fields = Fields::parse(body)?;
                let said = Said {
                    severity: text(fields.get(b'V').unwrap_or_default()),
                    code: fields.code().to_owned(),
                    message: fields.message().to_owned(),
                    hint: text(fields.get(b'H').unwrap_or_default()),
                };
                match message.tag {
                    b'E' => answer.errors.push(said),
                    _ => answer.notices.push(said),
                }
            }
            b'C' => answer.commands.push(text(frame::take_cstr(&mut body, "a command")?)),
            b'Z' => answer.status = char::from(body[0]),
            b'K' => self.key = Some(CancelKey::parse(body)?),
            b'v' => self.negotiated.push(message.body.clone()),
            _ => {}
        }
        Ok(())
    }

    /// The last word, which must be all that is left, before the connection is closed.
    pub(crate) async fn last_word(&mut self) -> Result<Said> {
        let Some(message) = self.next().await? else { bail!("closed without a word") };
        assert_eq!(message.tag, b'E', "{message:?}");
        let mut answer = Answer::default();
        self.note(&mut answer, &message)?;
        assert_eq!(self.next().await?, None, "nothing follows the last word");
        Ok(answer.errors.remove(0))
    }

    /// Whether nothing arrives for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        timeout(std::time::Duration::from_millis(100), self.next()).await.is_err()
    }

    /// Reads to the end of the connection; the number of bytes.
    pub(crate) async fn rest(&mut self) -> Result<usize> {
        let mut all = self.buf.len();
        loop {
            self.buf.clear();
            let n = timeout(DEADLINE, self.stream.read_buf(&mut self.buf)).await?.unwrap_or(0);
            all += n;
            if n == 0 {
                return Ok(all);
            }
        }
    }
}
