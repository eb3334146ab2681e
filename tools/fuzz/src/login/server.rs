//! What a gateway takes for PostgreSQL.

use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{BufMut, BytesMut};
use quorate_wire::backend::Report;
use quorate_wire::frame::{self, put, put_cstr};
use quorate_wire::sql::{Options, Verb, classify};
use quorate_wire::startup;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What servers do beyond answering: a byte of the input for each message that they get.
pub struct Script {
    bytes: Vec<u8>,
    at: AtomicUsize,
}

impl Script {
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), at: AtomicUsize::new(0) }
    }

    /// The next byte; when they are used up nothing special happens any more.
    fn next(&self) -> u8 {
        self.bytes.get(self.at.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(0)
    }

    fn some(&self) -> Vec<u8> {
        let n = self.next() % 32;
        (0..n).map(|_| self.next()).collect()
    }
}

/// One connection.
struct Backend {
    stream: DuplexStream,
    script: Arc<Script>,
    stash: BytesMut,
    out: BytesMut,
    status: u8,
    /// An error was told: nothing is done until Sync.
    skips: bool,
    copies: bool,
    standby: bool,
}

pub async fn serve(stream: DuplexStream, script: Arc<Script>, standby: bool) {
    let mut backend = Backend {
        stream,
        script,
        stash: BytesMut::new(),
        out: BytesMut::new(),
        status: b'I',
        skips: false,
        copies: false,
        standby,
    };
    let _ = backend.run().await;
}

impl Backend {
    async fn more(&mut self) -> Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        match self.stream.read_buf(&mut self.stash).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn run(&mut self) -> Result<()> {
        // What the stream is for: a kind and a length, of nothing for a session.
        while self.stash.len() < 5 {
            self.more().await?;
        }
        if !matches!(self.stash[0], 1 | 3) {
            return Ok(());
        }
        let _ = self.stash.split_to(5);
        loop {
            let used = match startup::parse(&self.stash) {
                Ok(Some((_, used))) => used,
                Ok(None) => {
                    self.more().await?;
                    continue;
                }
                Err(error) => panic!("the gateway's own first packet: {error}"),
            };
            let _ = self.stash.split_to(used);
            break;
        }
        put(&mut self.out, b'R', |out| out.put_u32(0));
        for (name, value) in [("standard_conforming_strings", "on"), ("client_encoding", "UTF8")] {
            self.parameter(name, value);
        }
        put(&mut self.out, b'K', |out| out.put_slice(&[0, 0, 0, 1, 2, 3, 4, 5]));
        self.ready();
        loop {
            // Bytes of the client's pass through the gateway, but whole messages only.
            match frame::take(&mut self.stash, usize::MAX) {
                Ok(Some(message)) => self.message(message.tag, &message.body).await?,
                Ok(None) => self.more().await?,
                Err(error) => panic!("what the gateway sends to a server: {error}"),
            }
        }
    }

    fn parameter(&mut self, name: &str, value: &str) {
        put(&mut self.out, b'S', |out| {
            put_cstr(out, name.as_bytes());
            put_cstr(out, value.as_bytes());
        });
    }

    fn ready(&mut self) {
        let status = self.status;
        put(&mut self.out, b'Z', |out| out.put_u8(status));
    }

    fn row(&mut self, columns: &[&[u8]]) {
        put(&mut self.out, b'D', |out| {
            out.put_u16(columns.len() as u16);
            for column in columns {
                out.put_i32(column.len() as i32);
                out.put_slice(column);
            }
        });
    }

    fn fail(&mut self, code: &'static str) {
        self.out.put_slice(&Report::error(code, "no").encode());
        if self.status == b'T' {
            self.status = b'E';
        }
    }

    /// Something that a server should not do, or does rarely. Whether the message is answered.
    async fn mad(&mut self, extended: bool) -> Result<bool> {
        let code = match self.script.next() {
            0..=127 => return Ok(false),
            128..=135 => "25006",
            136..=143 => "40001",
            144..=147 => "57014",
            148..=151 => "26000",
            152..=155 => "0A000",
            156..=159 => "25P02",
            160..=163 => {
                self.out.put_slice(&Report::fatal("57P01", "bye").encode());
                self.stream.write_all(&self.out).await?;
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            164..=171 => return Err(std::io::ErrorKind::BrokenPipe.into()),
            172..=179 => {
                let fields = b"SWARNING\0VWARNING\0C01000\0Fsyncrep.c\0RSyncRepWaitForLSN\0\0";
                put(&mut self.out, b'N', |out| out.put_slice(fields));
                return Ok(false);
            }
            180..=187 => {
                put(&mut self.out, b'A', |out| out.put_slice(b"\0\0\0\x01channel\0hello\0"));
                return Ok(false);
            }
            188..=195 => {
                let value = if self.script.next() & 1 == 0 { "off" } else { "on" };
                self.parameter("standard_conforming_strings", value);
                self.parameter("client_encoding", if value == "on" { "UTF8" } else { "SJIS" });
                return Ok(false);
            }
            196..=203 => {
                let some = self.script.some();
                self.out.put_slice(&some);
                return Ok(false);
            }
            204..=215 => {
                let (tag, some) = (self.script.next(), self.script.some());
                put(&mut self.out, tag, |out| out.put_slice(&some));
                return Ok(false);
            }
            216..=219 => return Ok(true),
            220..=227 => {
                self.row(&[&[b'x'; 70_000]]);
                return Ok(false);
            }
            228..=235 => {
                self.status = self.script.next();
                return Ok(false);
            }
            236..=239 => {
                // The beginning of a row, and no more.
                self.out.put_slice(b"D\0\0\0\x20\0\x01");
                self.stream.write_all(&self.out).await?;
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            _ => "XX000",
        };
        self.fail(code);
        self.skips = extended;
        if !extended {
            self.ready();
        }
        Ok(true)
    }

    async fn message(&mut self, tag: u8, body: &[u8]) -> Result<()> {
        if tag == b'X' {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if self.copies {
            match tag {
                b'c' => put(&mut self.out, b'C', |out| out.put_slice(b"COPY 0\0")),
                b'f' => self.fail("57014"),
                b'd' | b'H' | b'S' => return Ok(()),
                // PostgreSQL does not know any more where messages begin.
                _ => {
                    self.out.put_slice(&Report::fatal("08P01", "lost").encode());
                    self.stream.write_all(&self.out).await?;
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
            }
            self.copies = false;
            self.ready();
            return Ok(());
        }
        if tag == b'S' {
            self.skips = false;
            let _ = self.mad(true).await?;
            self.skips = false;
            self.ready();
            return Ok(());
        }
        if self.skips || matches!(tag, b'H' | b'd' | b'c' | b'f') {
            return Ok(());
        }
        if self.mad(!matches!(tag, b'Q' | b'F')).await? {
            return Ok(());
        }
        match tag {
            b'Q' => self.query(body.strip_suffix(b"\0").unwrap_or(body)),
            b'F' => {
                put(&mut self.out, b'V', |out| out.put_i32(-1));
                self.ready();
            }
            b'P' => put(&mut self.out, b'1', |_| {}),
            b'B' => put(&mut self.out, b'2', |_| {}),
            b'C' => put(&mut self.out, b'3', |_| {}),
            b'D' if body.starts_with(b"S\x01quorate") => {
                self.fail("26000");
                self.skips = true;
            }
            b'D' => {
                if body.first() == Some(&b'S') {
                    put(&mut self.out, b't', |out| out.put_u16(0));
                }
                put(&mut self.out, b'n', |_| {});
            }
            b'E' => {
                self.row(&[b"1"]);
                put(&mut self.out, b'C', |out| out.put_slice(b"SELECT 1\0"));
            }
            other => panic!("the gateway sends a server the message {other}"),
        }
        Ok(())
    }

    fn query(&mut self, sql: &[u8]) {
        let script = classify(sql, &Options::default());
        let has = |what: &[u8]| sql.windows(what.len()).any(|w| w == what);
        let rows: &[&[u8]] = match () {
            () if has(b"pg_attrdef") => &[b"f", b"t"],
            () if has(b"pg_proc") => &[b"g", b"t", b"f"],
            () if has(b"postmaster_start_time") => &[b"1"],
            () if has(b"current_setting('synchronous_commit')") => &[b"on"],
            () => &[b"1"],
        };
        if self.status == b'E' && !script.ends {
            self.fail("25P02");
            return self.ready();
        }
        match script.first {
            Verb::Empty => put(&mut self.out, b'I', |_| {}),
            Verb::Begin(_) => {
                self.status = b'T';
                put(&mut self.out, b'C', |out| out.put_slice(b"BEGIN\0"));
            }
            Verb::Commit { .. } | Verb::Rollback { .. } => {
                self.status = b'I';
                put(&mut self.out, b'C', |out| out.put_slice(b"COMMIT\0"));
            }
            Verb::Copy(quorate_wire::sql::CopyKind::FromStdin) => {
                self.copies = true;
                put(&mut self.out, b'G', |out| out.put_slice(b"\0\0\0"));
                return;
            }
            Verb::Insert | Verb::Update | Verb::Delete if self.standby => self.fail("25006"),
            Verb::Set(_) => put(&mut self.out, b'C', |out| out.put_slice(b"SET\0")),
            _ => {
                put(&mut self.out, b'T', |out| out.put_slice(b"\0\0"));
                self.row(rows);
                put(&mut self.out, b'C', |out| out.put_slice(b"SELECT 1\0"));
            }
        }
        self.ready();
    }
}
