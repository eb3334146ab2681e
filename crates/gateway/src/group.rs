//! What a client wants next: the messages up to the one that asks for an answer, looked at before
//! any of them is passed on, so that one server can be chosen for all of them.

use std::rc::Rc;

use quorate_wire::Error;
use quorate_wire::backend::Status;
use quorate_wire::frame::{self, HEADER, body_len, take_cstr};
use quorate_wire::sql::{self, Access, Script, Verb};

use crate::client::Client;
use crate::own::Directive;
use crate::statements::Statements;
use crate::{aftermath, effects, limits};

/// Messages of a client that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Bytes, as far as they are there.
    pub(crate) len: usize,
    /// Whether all of it is there and it ends in Sync or is a simple query: it may be repeated.
    pub(crate) whole: bool,
    /// Whether a replica may serve it.
    pub(crate) access: Access,
    /// Some statement begins a transaction block.
    pub(crate) begins: bool,
    /// Some statement ends one.
    pub(crate) ends: bool,
    /// Nothing of it can commit before the end: its statements are queries and changes of rows.
    pub(crate) plain: bool,
    /// It does nothing but begin a transaction block.
    pub(crate) only_begins: bool,
    /// It does nothing but close statements and portals.
    pub(crate) only_closes: bool,
    /// It does nothing but prepare statements that some server has prepared before.
    pub(crate) only_prepares: bool,
    /// It is made of messages of the extended protocol.
    pub(crate) is_extended: bool,
    /// It shows a setting.
    pub(crate) shows: bool,
    /// It makes a setting of the gateway's own.
    pub(crate) ours: bool,
    /// It does nothing but take a token, or show a setting: it neither tells nor changes
    /// anything of what is stored.
    pub(crate) tells_nothing: bool,
    /// Statements are executed one after the other before it is answered.
    pub(crate) many: bool,
    /// It is a function call.
    pub(crate) is_call: bool,
    /// It is a request to say goodbye.
    pub(crate) leaves: bool,
    /// Statements that were looked at.
    pub(crate) texts: u32,
    /// It leaves something by which a client has to keep its server.
    pub(crate) stays: bool,
    /// On a replica it would be refused, or mean something else than on the writer.
    pub(crate) elsewhere: bool,
    /// It does nothing but ask for what a sequence gave last in a session.
    pub(crate) recalls: bool,
    /// Tells statements apart that a standby refused.
    pub(crate) fingerprint: u64,
    /// What a comment of the first statement asks of the gateway.
    pub(crate) directive: Option<Directive>,
}

impl Group {
    /// No messages at all.
    pub(crate) fn nothing() -> Self {
        Self {
            len: 0,
            whole: false,
            access: Access::Read,
            begins: false,
            ends: false,
            plain: true,
            only_begins: false,
            only_closes: false,
            only_prepares: false,
            is_extended: false,
            shows: false,
            ours: false,
            tells_nothing: false,
            many: false,
            is_call: false,
            leaves: false,
            texts: 0,
            stays: false,
            elsewhere: false,
            recalls: false,
            fingerprint: 0,
            directive: None,
        }
    }

    fn add(&mut self, script: &Script, text: &[u8]) {
        match &script.first {
            Verb::Show(_) => self.shows = true,
            Verb::Set(set) => {
                self.ours |= set.name.text(text).to_ascii_lowercase().starts_with(b"quorate.")
            }
            _ => {}
        }
        self.texts += 1;
        let alone = self.texts == 1 && script.statements == 1;
        self.only_begins = alone && matches!(script.first, Verb::Begin(_));
        self.tells_nothing = alone && effects::tells_nothing(script, text);
        self.recalls = alone && script.recalls;
        if script.access == Access::Write {
            self.access = Access::Write;
        }
        self.plain &= script.statements == 1 && script.first.is_plain();
        self.stays |= effects::stays(script, text);
        self.elsewhere |= script.access == Access::Write
            && (script.statements > 1 || !effects::is_neutral(script.first));
        if script.begins && self.texts > 1 && !self.begins {
            // What was done before belongs to the transaction, and cannot be told apart from it.
            self.access = Access::Write;
        }
        self.begins |= script.begins;
        self.ends |= script.ends;
        self.fingerprint = self.fingerprint.rotate_left(7) ^ script.fingerprint;
        if self.directive.is_none()
            && let Some(range) = script.directive
        {
            let said = text.get(range.start as usize..range.end as usize);
            self.directive = said.map(Directive::parse);
        }
    }

    fn writes(mut self, len: usize) -> Self {
        self.access = Access::Write;
        self.len = len;
        self
    }
}

/// Classifies a text for a client.
pub(crate) fn classify(client: &Client, text: &[u8], whole: bool) -> Script {
    let functions = client.account.functions();
    let options = sql::Options {
        standard_strings: client.standard_strings,
        functions: &*functions,
        whole: whole && client.lexable,
    };
    if options.standard_strings && options.whole {
        return client.account.shapes.borrow_mut().classify(text, &options);
    }
    sql::classify(text, &options)
}

/// Looks at the next group, of what a client has sent; `None` until enough of it is there.
pub(crate) fn peek(
    client: &mut Client,
    statements: &mut Statements,
) -> Result<Option<Group>, Error> {
    client.peeked = None;
    let input = std::mem::take(&mut client.end.stash);
    let mut peeked = None;
    let found = look(client, statements, &input, &mut peeked);
    client.end.stash = input;
    client.peeked = peeked;
    found
}

pub(crate) fn look(
    client: &Client,
    statements: &mut Statements,
    input: &[u8],
    peeked: &mut Option<(usize, Script)>,
) -> Result<Option<Group>, Error> {
    let mut group = Group::nothing();
    let mut parsed: Vec<&[u8]> = Vec::new();
    let mut closes = true;
    let mut executes = 0;
    let mut prepares = true;
    let mut at = 0;
    loop {
        let Some(header) = input[at..].first_chunk::<HEADER>() else {
            return Ok((at >= limits::GROUP_MAX).then(|| group.writes(at)));
        };
        let (tag, len) = (header[0], body_len(header)?);
        let end = at + HEADER + len;
        // A text that is too long to be kept keeps its client where it is.
        group.stays |= tag == b'P' && len > limits::PARSE_MAX;
        if end > limits::GROUP_MAX {
            return Ok(Some(group.writes(input.len())));
        }
        let Some(body) = input.get(at + HEADER..end) else { return Ok(None) };
        match tag {
            b'Q' => {
                let text = body.strip_suffix(b"\0").unwrap_or(body);
                let script = classify(client, text, true);
                group.add(&script, text);
                // What only reads takes no copy data.
                group.whole = script.access == Access::Read || !copies(&script);
                group.many = script.statements > 1;
                if at == 0 {
                    *peeked = Some((text.len(), script));
                }
            }
            b'P' => {
                let (name, statement) = parse(client, statements, body)?;
                group.add(&statement.script, &statement.text);
                if copies(&statement.script) {
                    group.access = Access::Write;
                }
                prepares &= statement.proved.get()
                    && !name.is_empty()
                    && !client.statements.contains_key(name)
                    && !parsed.contains(&name);
                parsed.push(name);
            }
            b'B' => bind(client, &parsed, body, &mut group)?,
            b'F' => {
                group.access = Access::Write;
                group.is_call = true;
            }
            b'S' => {
                group.whole = true;
                group.is_extended = true;
            }
            b'X' => group.leaves = true,
            b'E' => executes += 1,
            b'D' | b'C' | b'H' | b'd' | b'c' | b'f' | b'p' => {}
            _ => return Err(Error::Invalid { what: "the kind of a message" }),
        }
        closes &= matches!(tag, b'C' | b'S');
        prepares &= matches!(tag, b'P' | b'S');
        at = end;
        if matches!(tag, b'Q' | b'F' | b'S' | b'X' | b'H') {
            group.len = at;
            group.only_closes = closes;
            group.many |= executes > 1;
            group.recalls &= executes == 1 || tag == b'Q';
            group.only_prepares = prepares && !parsed.is_empty();
            // After a Flush more may come that belongs to the same transaction, and may write.
            if tag == b'H' {
                group.access = Access::Write;
            }
            return Ok(Some(group));
        }
    }
}

/// COPY has an exchange of its own, which cannot be repeated.
fn copies(script: &Script) -> bool {
    matches!(script.first, Verb::Copy(_)) || script.statements > 1
}

/// The statement of a Parse message, and its name.
pub(crate) fn parse<'a>(
    client: &Client,
    statements: &mut Statements,
    body: &'a [u8],
) -> Result<(&'a [u8], Rc<crate::statements::Statement>), Error> {
    const WHAT: &str = "a Parse message";
    let mut rest = body;
    let name = take_cstr(&mut rest, WHAT)?;
    let text = take_cstr(&mut rest, WHAT)?;
    let functions = client.account.functions();
    let options = sql::Options {
        standard_strings: client.standard_strings,
        functions: &*functions,
        whole: client.lexable,
    };
    let of = client.settings.mark() ^ functions.version;
    Ok((name, statements.intern((text, rest, of), &options)))
}

fn bind(client: &Client, parsed: &[&[u8]], body: &[u8], group: &mut Group) -> Result<(), Error> {
    const WHAT: &str = "a Bind message";
    let mut rest = body;
    take_cstr(&mut rest, WHAT)?;
    let name = take_cstr(&mut rest, WHAT)?;
    if parsed.contains(&name) {
        return Ok(());
    }
    match client.known(name) {
        Some(statement) => {
            group.add(&statement.script, &statement.text);
            if copies(&statement.script) {
                group.access = Access::Write;
            }
        }
        None => {
            group.access = Access::Write;
            group.plain = false;
        }
    }
    Ok(())
}

/// Answers a group that only prepares what is known to be right: no server is needed for that.
pub(crate) fn prepared(
    client: &mut Client,
    statements: &mut Statements,
    group: &Group,
) -> Result<(), Error> {
    let mut left = client.end.stash.split_to(group.len);
    while let Some(message) = frame::take(&mut left, limits::GROUP_MAX)? {
        if message.tag == b'S' {
            aftermath::ready(client, Status::Idle);
            continue;
        }
        let (name, statement) = parse(client, statements, &message.body)?;
        client.statements.insert(name.into(), statement);
        frame::put(&mut client.end.out, b'1', |_| {});
    }
    client.end.slim();
    Ok(())
}
