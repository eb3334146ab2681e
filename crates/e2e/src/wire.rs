//! A client that speaks the protocol by hand: what a driver hides is what a proxy gets wrong.
//!
//! It sends one statement in any of the ways that drivers know ([`Mode`]), and keeps every message
//! of the answer, so that two servers' answers can be compared word by word. Values are text.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};

use crate::limits;
use crate::workload::Login;

mod dial;

pub use dial::Address;
use dial::{Duplex, connect};

/// Protocol 3.0.
const VERSION: u32 = 196_608;
/// Asks that a cancel request be taken instead of a login.
const CANCEL: u32 = 80_877_102;

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The simple protocol: psql, and most scripts.
    Simple,
    /// Parse, Bind, Describe, Execute and Sync at once, without names: libpq's `PQexecParams`.
    Unnamed,
    /// A statement that is prepared by name, run twice and closed, with a Sync after each step.
    Named,
    /// A named statement that is prepared and described with Flush before it runs: asyncpg.
    Flushed,
    /// Between two reads, all before one Sync: libpq's pipeline mode.
    Pipelined,
    /// Between two reads, each with a Sync of its own, all sent at once: tokio-postgres, node.
    Burst,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 6] =
        [Mode::Simple, Mode::Unnamed, Mode::Named, Mode::Flushed, Mode::Pipelined, Mode::Burst];

    /// How often a statement runs when it is sent so.
    pub fn runs(self) -> usize {
        if self == Mode::Named { 2 } else { 1 }
    }
}

/// A message of a server, as far as clients should care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Names and types of columns.
    Columns(Vec<(String, u32)>),
    /// A row.
    Row(Vec<Option<String>>),
    /// A statement ended: its tag.
    Done(String),
    /// An error.
    Failed {
        /// SQLSTATE.
        code: String,
        /// The primary message.
        message: String,
    },
    /// A notice: its message.
    Notice(String),
    /// The server waits for the next request: `I`, `T` or `E`.
    Ready(char),
    /// Anything else, by its tag: ParseComplete and the like.
    Other(char),
}

/// What came back for one request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer(pub Vec<Said>);

impl Answer {
    /// All rows.
    pub fn rows(&self) -> Vec<Vec<Option<String>>> {
        let row = |said: &Said| match said {
            Said::Row(row) => Some(row.clone()),
            _ => None,
        };
        self.0.iter().filter_map(row).collect()
    }

    /// The first column of the first row; nothing when that is null.
    pub fn value(&self) -> Option<String> {
        self.rows().into_iter().next()?.into_iter().next()?
    }

    /// SQLSTATE and message of the first error.
    pub fn error(&self) -> Option<(String, String)> {
        self.0.iter().find_map(|said| match said {
            Said::Failed { code, message } => Some((code.clone(), message.clone())),
            _ => None,
        })
    }

    /// SQLSTATE of the first error; empty without one.
    pub fn code(&self) -> String {
        self.error().map(|(code, _)| code).unwrap_or_default()
    }

    /// Tags of the statements that ended.
    pub fn tags(&self) -> Vec<String> {
        let tag = |said: &Said| match said {
            Said::Done(tag) => Some(tag.clone()),
            _ => None,
        };
        self.0.iter().filter_map(tag).collect()
    }

    /// The same, or its error.
    pub fn ok(self) -> Result<Self> {
        match self.error() {
            Some((code, message)) => bail!("{code} {message}"),
            None => Ok(self),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, said) in self.0.iter().enumerate() {
            let gap = if i > 0 { " " } else { "" };
            match said {
                Said::Columns(columns) => {
                    let names: Vec<_> = columns.iter().map(|(name, _)| &name[..]).collect();
                    write!(f, "{gap}columns({})", names.join(","))?;
                }
                Said::Row(row) => {
                    let values: Vec<_> =
                        row.iter().map(|v| v.as_deref().unwrap_or("null")).collect();
                    write!(f, "{gap}row({})", values.join(","))?;
                }
                Said::Done(tag) => write!(f, "{gap}done({tag})")?,
                Said::Failed { code, message } => write!(f, "{gap}failed({code} {message})")?,
                Said::Notice(message) => write!(f, "{gap}notice({message})")?,
                Said::Ready(status) => write!(f, "{gap}ready({status})")?,
                Said::Other(tag) => write!(f, "{gap}{tag}")?,
            }
        }
        Ok(())
    }
}

/// A session.
pub struct Session {
    stream: Box<dyn Duplex>,
    input: Vec<u8>,
    address: Address,
    names: u32,
    key: Vec<u8>,
    /// Settings that the server reported.
    pub reported: BTreeMap<String, String>,
    /// Notifications so far: channel and payload.
    pub notified: Vec<(String, String)>,
    /// The last status.
    pub status: char,
}

impl Session {
    /// Connects and logs in.
    pub fn open(address: impl Into<Address>, login: &Login) -> Result<Self> {
        Self::with(address, login, &[])
    }

    /// The same with further startup parameters.
    pub fn with(
        address: impl Into<Address>,
        login: &Login,
        parameters: &[(&str, &str)],
    ) -> Result<Self> {
        Self::within(address, login, parameters, limits::ANSWER)
    }

    /// The same with another limit for each answer.
    pub fn within(
        address: impl Into<Address>,
        login: &Login,
        parameters: &[(&str, &str)],
        limit: Duration,
    ) -> Result<Self> {
        let address = address.into();
        let stream = connect(&address)?;
        stream.limit(limit)?;
        let mut session = Self {
            stream,
            input: Vec::new(),
            address,
            names: 0,
            key: Vec::new(),
            reported: BTreeMap::new(),
            notified: Vec::new(),
            status: 'I',
        };
        session.log_in(login, parameters)?;
        Ok(session)
    }

    /// Runs a statement in a mode; what belongs to it of the answer, without the answers to the
    /// reads that a mode puts around it.
    pub fn run(&mut self, mode: Mode, sql: &str) -> Result<Answer> {
        match mode {
            Mode::Simple => self.simple(sql),
            Mode::Unnamed => {
                self.send(&[parse("", sql), bind("", &[]), run(), sync()])?;
                self.answer()
            }
            Mode::Named => self.named(sql, &sync()),
            Mode::Flushed => self.named(sql, &framed(b'H', &[])),
            Mode::Pipelined => {
                let mut all = self.around(sql, &[]);
                all.push(sync());
                self.send(&all)?;
                Ok(between(self.answer()?))
            }
            Mode::Burst => {
                let all = self.around(sql, &sync());
                self.send(&all)?;
                let first = self.answer()?;
                let answer = self.answer()?;
                let last = self.answer()?;
                // In a transaction that failed they fail, and belong to the answer.
                let read = |answer: &Answer, text| answer.value().as_deref() == Some(text);
                if read(&first, "before") && read(&last, "after") {
                    return Ok(answer);
                }
                Ok(Answer([first.0, answer.0, last.0].concat()))
            }
        }
    }

    /// The simple protocol.
    pub fn simple(&mut self, sql: &str) -> Result<Answer> {
        self.send(&[framed(b'Q', &text(sql))])?;
        self.answer()
    }

    /// The value of a simple query that must not fail.
    pub fn value(&mut self, sql: &str) -> Result<String> {
        let answer = self.simple(sql)?.ok().with_context(|| sql.to_owned())?;
        answer.value().with_context(|| format!("no value: {sql}"))
    }

    /// Prepares a statement under a name.
    pub fn prepare(&mut self, name: &str, sql: &str) -> Result<Answer> {
        self.send(&[parse(name, sql), described(name), sync()])?;
        self.answer()
    }

    /// Runs a statement that was prepared under a name.
    pub fn execute(&mut self, name: &str, values: &[Option<&str>]) -> Result<Answer> {
        self.send(&[bind(name, values), run(), sync()])?;
        self.answer()
    }

    /// Closes a statement.
    pub fn close(&mut self, name: &str) -> Result<Answer> {
        self.send(&[closed(name), sync()])?;
        self.answer()
    }

    /// Sends messages that are made already.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("cannot send")
    }

    /// `COPY … FROM STDIN` with these lines.
    pub fn copy_in(&mut self, sql: &str, lines: &[&str]) -> Result<Answer> {
        self.send(&[framed(b'Q', &text(sql))])?;
        let mut answer = self.until(&['G', 'Z'])?;
        if answer.0.last() != Some(&Said::Other('G')) {
            return Ok(answer);
        }
        let mut all: Vec<_> =
            lines.iter().map(|l| framed(b'd', format!("{l}\n").as_bytes())).collect();
        all.push(framed(b'c', &[]));
        self.send(&all)?;
        answer.0.extend(self.answer()?.0);
        Ok(answer)
    }

    /// Everything up to the next ReadyForQuery.
    pub fn answer(&mut self) -> Result<Answer> {
        self.until(&['Z'])
    }

    /// Everything up to a message with one of these tags.
    pub fn until(&mut self, tags: &[char]) -> Result<Answer> {
        let mut answer = Answer::default();
        loop {
            let (tag, body) = self.message().with_context(|| format!("after {answer}"))?;
            self.note(tag, &body, &mut answer)?;
            if tags.contains(&tag) {
                return Ok(answer);
            }
        }
    }

    /// Waits for a notification, if none is there yet.
    pub fn notification(&mut self) -> Result<(String, String)> {
        while self.notified.is_empty() {
            let (tag, body) = self.message()?;
            self.note(tag, &body, &mut Answer::default())?;
        }
        Ok(self.notified.remove(0))
    }

    /// Asks the server to cancel what this session does, over a connection of its own.
    pub fn canceller(&self) -> impl FnOnce() -> Result<()> + Send + use<> {
        let (address, key) = (self.address.clone(), self.key.clone());
        move || {
            let mut stream = connect(&address)?;
            stream.limit(limits::ANSWER)?;
            let length = (8 + key.len()) as u32;
            let request = [&length.to_be_bytes()[..], &CANCEL.to_be_bytes(), &key].concat();
            stream.write_all(&request)?;
            stream.read_to_end(&mut Vec::new()).map(drop).context("a cancel request")
        }
    }

    /// A named statement: prepared, run (twice when each step has a Sync), closed.
    fn named(&mut self, sql: &str, step: &[u8]) -> Result<Answer> {
        self.names += 1;
        let name = format!("s{}", self.names);
        let flushed = step.first() == Some(&b'H');
        self.send(&[parse(&name, sql), described(&name), step.to_vec()])?;
        let prepared = self.until(if flushed { &['T', 'n', 'E'] } else { &['Z'] })?;
        if prepared.error().is_some() {
            if flushed {
                self.send(&[sync()])?;
                self.answer()?;
            }
            return Ok(prepared);
        }
        let mut answer = Answer::default();
        for _ in 0..if flushed { 1 } else { 2 } {
            self.send(&[bind(&name, &[]), run(), sync()])?;
            answer = self.answer()?;
            if answer.error().is_some() {
                break;
            }
        }
        self.close(&name)?;
        Ok(answer)
    }

    fn around(&mut self, sql: &str, end: &[u8]) -> Vec<Vec<u8>> {
        ["SELECT 'before'", sql, "SELECT 'after'"]
            .iter()
            .flat_map(|sql| [parse("", sql), bind("", &[]), run(), end.to_vec()])
            .collect()
    }

    fn note(&mut self, tag: char, body: &[u8], answer: &mut Answer) -> Result<()> {
        match tag {
            'T' => answer.0.push(Said::Columns(columns(body)?)),
            'D' => answer.0.push(Said::Row(row(body)?)),
            'C' => answer.0.push(Said::Done(word(body))),
            'E' => {
                let (code, message) = (field(body, b'C'), plain(&field(body, b'M')));
                answer.0.push(Said::Failed { code, message });
            }
            'N' => answer.0.push(Said::Notice(field(body, b'M'))),
            'Z' => {
                self.status = body.first().copied().map_or('?', char::from);
                answer.0.push(Said::Ready(self.status));
            }
            'S' => {
                let mut words = body.split(|b| *b == 0).map(String::from_utf8_lossy);
                let name = words.next().unwrap_or_default().into_owned();
                self.reported.insert(name, words.next().unwrap_or_default().into_owned());
            }
            'A' => {
                let mut words = body[4..].split(|b| *b == 0).map(String::from_utf8_lossy);
                let channel = words.next().unwrap_or_default().into_owned();
                self.notified.push((channel, words.next().unwrap_or_default().into_owned()));
            }
            'd' => answer.0.push(Said::Row(vec![Some(word(body).trim_end().to_owned())])),
            other => answer.0.push(Said::Other(other)),
        }
        Ok(())
    }

    fn log_in(&mut self, login: &Login, parameters: &[(&str, &str)]) -> Result<()> {
        let mut names = vec![("user", &login.user[..]), ("database", &login.database)];
        names.extend(parameters);
        let words: Vec<u8> =
            names.iter().flat_map(|(name, value)| [text(name), text(value)].concat()).collect();
        let length = (4 + 4 + words.len() + 1) as u32;
        self.stream.write_all(
            &[&length.to_be_bytes()[..], &VERSION.to_be_bytes(), &words, &[0]].concat(),
        )?;
        let unsupported = ChannelBinding::unsupported();
        let mut scram = ScramSha256::new(login.password.as_bytes(), unsupported);
        loop {
            let (tag, body) = self.message()?;
            match tag {
                'R' => self.authenticate(&mut scram, &body)?,
                'K' => self.key = body,
                'E' => bail!("login: {} {}", field(&body, b'C'), field(&body, b'M')),
                'Z' => return Ok(()),
                other => self.note(other, &body, &mut Answer::default())?,
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
                self.send(&[framed(b'p', &[&text(SCRAM_SHA_256)[..], &length, first].concat())])
            }
            [0, 0, 0, 11] => {
                scram.update(content)?;
                self.send(&[framed(b'p', scram.message())])
            }
            [0, 0, 0, 12] => Ok(scram.finish(content)?),
            other => bail!("asked for authentication {other:?}"),
        }
    }

    fn send(&mut self, messages: &[Vec<u8>]) -> Result<()> {
        self.stream.write_all(&messages.concat()).context("cannot send")
    }

    /// The next message.
    fn message(&mut self) -> Result<(char, Vec<u8>)> {
        let mut chunk = [0; 64 * 1024];
        loop {
            if let Some(head) = self.input.first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if let Some(body) = self.input.get(5..1 + length) {
                    let message = (char::from(head[0]), body.to_vec());
                    self.input.drain(..=length);
                    return Ok(message);
                }
            }
            let n = self.stream.read(&mut chunk).context("no answer in time")?;
            ensure!(n > 0, "the connection ended");
            self.input.extend_from_slice(&chunk[..n]);
        }
    }
}

/// Of the answers in one pipeline: what stands between the rows of the reads around it.
fn between(answer: Answer) -> Answer {
    let is = |said: &Said, text: &str| *said == Said::Row(vec![Some(text.to_owned())]);
    let all = answer.0;
    let begin = all.iter().position(|s| is(s, "before")).map_or(0, |i| i + 2);
    let end = all.iter().position(|s| is(s, "after")).map_or(all.len(), |i| i - 3);
    Answer(all.get(begin..end).unwrap_or_default().to_vec())
}

/// A message of this kind.
pub fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// A string with its zero.
pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Parse.
pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    framed(b'P', &[&text(name)[..], &text(sql), &[0, 0]].concat())
}

/// Bind of the portal without a name, values as text.
pub fn bind(name: &str, values: &[Option<&str>]) -> Vec<u8> {
    let mut body = [&text("")[..], &text(name), &[0, 0]].concat();
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        let length = value.map_or(-1, |v| v.len() as i32);
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(value.unwrap_or_default().as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    framed(b'B', &body)
}

/// Describe and Execute of the portal without a name.
pub fn run() -> Vec<u8> {
    [framed(b'D', b"P\0"), framed(b'E', &[0; 5])].concat()
}

/// Describe of a statement.
pub fn described(name: &str) -> Vec<u8> {
    framed(b'D', &[b"S", &text(name)[..]].concat())
}

/// Close of a statement.
pub fn closed(name: &str) -> Vec<u8> {
    framed(b'C', &[b"S", &text(name)[..]].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    framed(b'S', &[])
}

fn columns(body: &[u8]) -> Result<Vec<(String, u32)>> {
    let mut columns = Vec::new();
    let mut rest = body.get(2..).context("a short row description")?;
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == 0).context("a name without an end")?;
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let fixed = rest.get(end + 1..end + 19).context("a short column")?;
        let kind = u32::from_be_bytes([fixed[6], fixed[7], fixed[8], fixed[9]]);
        columns.push((name, kind));
        rest = &rest[end + 19..];
    }
    Ok(columns)
}

fn row(body: &[u8]) -> Result<Vec<Option<String>>> {
    let mut values = Vec::new();
    let mut rest = body.get(2..).context("a short row")?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let value = after.get(..length.unwrap_or(0)).context("a short value")?;
        values.push(length.map(|_| String::from_utf8_lossy(value).into_owned()));
        rest = &after[value.len()..];
    }
    Ok(values)
}

fn word(body: &[u8]) -> String {
    let text = body.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// A field of an error or a notice.
fn field(body: &[u8], kind: u8) -> String {
    let found = body.split(|b| *b == 0).find(|f| f.first() == Some(&kind));
    String::from_utf8_lossy(found.and_then(|f| f.get(1..)).unwrap_or_default()).into_owned()
}

/// A message without the name that a gateway gives a statement which the client left unnamed.
fn plain(message: &str) -> String {
    const OURS: &str = "\"quorate_";
    let Some(at) = message.find(OURS) else { return message.to_owned() };
    let rest = &message[at + OURS.len()..];
    let name = rest.find('"').unwrap_or(rest.len());
    format!("{}\"{}", &message[..at], &rest[name..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_read() {
        let body = [&[0, 2][..], &[0, 0, 0, 1], b"x", &[255; 4]].concat();
        assert_eq!(row(&body).unwrap(), [Some("x".to_owned()), None]);
        let body = [&[0, 1][..], b"a\0", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 25], &[0; 8]].concat();
        assert_eq!(columns(&body).unwrap(), [("a".to_owned(), 25)]);
    }

    #[test]
    fn the_reads_around_a_statement_are_left_out() {
        let read = |t: &str| {
            let row = Said::Row(vec![Some(t.to_owned())]);
            [Said::Other('1'), Said::Other('2'), Said::Other('T'), row, Said::Done("S".into())]
        };
        let own = [Said::Other('1'), Said::Other('2'), Said::Done("INSERT 0 1".into())];
        let all = [&read("before")[..], &own, &read("after")].concat();
        assert_eq!(between(Answer(all)), Answer(own.to_vec()));
    }
}
