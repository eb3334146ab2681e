//! A client that keeps nothing: it logs in, sends, and lets answers go by.
//!
//! Not a driver: one statement at a time, no TLS, no types. Real drivers would hold a gigabyte in
//! memory to receive a gigabyte, and ten thousand of them would need more memory than the proxy.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

use super::rig::{Address, PASSWORD, USER};

/// How long one read or write may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of an answer that are kept: the longest that is looked into is an error.
const KEPT_MAX: usize = 64 * 1024;
/// Bytes that are sent at once.
const CHUNK: usize = 256 * 1024;
/// Length of a row of `COPY`, its line feed included.
const ROW: usize = 1000;

trait Duplex: Read + Write + Send {}
impl Duplex for TcpStream {}
impl Duplex for UnixStream {}

/// A session.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Duplex>>,
}

/// A message from the server: its type, its length, and the beginning of its content.
struct Message {
    kind: u8,
    length: u64,
    begin: Vec<u8>,
}

impl Client {
    /// Connects and logs in. `buffer` is what this side holds for reading.
    pub(crate) fn connect(address: &Address, buffer: usize) -> Result<Self> {
        let stream: Box<dyn Duplex> = match address {
            Address::Socket(dir) => {
                let stream = UnixStream::connect(dir.join(".s.PGSQL.5432"))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let mut client = Self { stream: BufReader::with_capacity(buffer, stream) };
        client.log_in()?;
        Ok(client)
    }

    /// Runs one statement; the bytes of its rows.
    pub(crate) fn query(&mut self, sql: &str) -> Result<u64> {
        self.send(&framed(b'Q', &text(sql)))?;
        self.until(b'Z')
    }

    /// Runs a statement with one text parameter of so many bytes.
    pub(crate) fn with_parameter(&mut self, sql: &str, bytes: u64) -> Result<()> {
        let parse = [&text("")[..], &text(sql), &0_u16.to_be_bytes()].concat();
        // Portal, statement, formats, one value; what follows the value: no result formats.
        let begin =
            [&text("")[..], &text(""), &[0, 0, 0, 1], &(bytes as u32).to_be_bytes()].concat();
        let length = 4 + begin.len() as u64 + bytes + 2;
        let bind = [&b"B"[..], &(length as u32).to_be_bytes(), &begin].concat();
        self.send(&[framed(b'P', &parse), bind].concat())?;
        self.stream_out(bytes)?;
        let execute = framed(b'E', &[&text("")[..], &0_u32.to_be_bytes()].concat());
        self.send(&[vec![0, 0], execute, framed(b'S', &[])].concat())?;
        self.until(b'Z').map(drop)
    }

    /// Sends so many bytes of rows to `COPY … FROM STDIN`.
    pub(crate) fn copy_in(&mut self, sql: &str, bytes: u64) -> Result<()> {
        self.send(&framed(b'Q', &text(sql)))?;
        self.until(b'G')?;
        let mut row = vec![b'x'; ROW];
        row[ROW - 1] = b'\n';
        let rows = framed(b'd', &row).repeat(CHUNK / ROW);
        for _ in 0..bytes / (CHUNK / ROW * ROW) as u64 {
            self.send(&rows)?;
        }
        self.send(&framed(b'c', &[]))?;
        self.until(b'Z').map(drop)
    }

    fn log_in(&mut self) -> Result<()> {
        let version = 196_608_u32.to_be_bytes();
        let names = ["user", USER, "database", USER].map(text).concat();
        let length = (4 + version.len() + names.len() + 1) as u32;
        self.send(&[&length.to_be_bytes()[..], &version, &names, &[0]].concat())?;
        let mut scram = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        loop {
            let message = self.receive()?;
            if message.kind == b'Z' {
                return Ok(());
            }
            if message.kind == b'R' {
                self.authenticate(&mut scram, &message.begin)?;
            }
        }
    }

    fn authenticate(&mut self, scram: &mut ScramSha256, request: &[u8]) -> Result<()> {
        let (code, content) = request.split_at_checked(4).context("a short request")?;
        match code {
            [0, 0, 0, 0] => Ok(()),
            [0, 0, 0, 10] => {
                let first = scram.message();
                let length = (first.len() as u32).to_be_bytes();
                self.send(&framed(b'p', &[&text(SCRAM_SHA_256)[..], &length, first].concat()))
            }
            [0, 0, 0, 11] => {
                scram.update(content)?;
                self.send(&framed(b'p', scram.message()))
            }
            [0, 0, 0, 12] => Ok(scram.finish(content)?),
            other => bail!("asked for authentication {other:?}"),
        }
    }

    /// Reads on until a message of this type; the bytes of rows on the way.
    fn until(&mut self, kind: u8) -> Result<u64> {
        let mut bytes = 0;
        loop {
            let message = self.receive()?;
            match message.kind {
                b'D' | b'd' => bytes += message.length,
                other if other == kind => return Ok(bytes),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> Result<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).context("the connection ended")?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = u64::from(length.checked_sub(4).context("a length below four")?);
        let mut begin = vec![0; KEPT_MAX.min(length as usize)];
        self.stream.read_exact(&mut begin)?;
        self.skip(length - begin.len() as u64)?;
        ensure!(head[0] != b'E', "{}", error(&begin));
        Ok(Message { kind: head[0], length, begin })
    }

    fn skip(&mut self, mut rest: u64) -> Result<()> {
        while rest > 0 {
            let had = self.stream.fill_buf()?.len() as u64;
            ensure!(had > 0, "the connection ended within a message");
            let step = had.min(rest);
            self.stream.consume(step as usize);
            rest -= step;
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("cannot send")
    }

    fn stream_out(&mut self, mut rest: u64) -> Result<()> {
        let chunk = vec![b'x'; CHUNK];
        while rest > 0 {
            let step = rest.min(CHUNK as u64);
            self.send(&chunk[..step as usize])?;
            rest -= step;
        }
        Ok(())
    }
}

fn framed(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32 + 4).to_be_bytes();
    [&[kind][..], &length, content].concat()
}

/// A string with its zero.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Code and message of an error.
fn error(content: &[u8]) -> String {
    let fields = content.split(|byte| *byte == 0);
    let of = |kind: u8| {
        let field = fields.clone().find(|field| field.first() == Some(&kind));
        String::from_utf8_lossy(field.and_then(|f| f.get(1..)).unwrap_or_default()).into_owned()
    };
    format!("{} {}", of(b'C'), of(b'M'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_count_themselves() {
        assert_eq!(framed(b'Q', &text("x")), [b'Q', 0, 0, 0, 6, b'x', 0]);
    }

    #[test]
    fn errors_are_readable() {
        let content = b"SFATAL\0C53300\0Mtoo many clients\0\0";
        assert_eq!(error(content), "53300 too many clients");
    }
}
