//! What a client says to the gateway itself: in comments, and by settings called `quorate.…`.

use quorate_core::gateway::{Consistency, ReadFrom};
use quorate_wire::backend::Report;
use quorate_wire::frame::{HEADER, body_len};
use quorate_wire::sql::{Script, Verb};

use crate::client::{Client, consistency, milliseconds};
use crate::full;
use crate::group;
use crate::route::Asked;
use crate::server::{Gone, Server};
use crate::visible;
use crate::worker::Worker;

/// What a comment of a statement asks of the gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Directive {
    consistency: Option<Consistency>,
    read_from: Option<ReadFrom>,
    max_staleness_ms: Option<u64>,
    /// There is a word in it that nobody knows.
    wrong: bool,
}

impl Directive {
    /// Reads what follows `quorate:`.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut found = Self::default();
        let Ok(text) = std::str::from_utf8(text) else { return Self { wrong: true, ..found } };
        for word in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()) {
            if let Some(level) = consistency(word) {
                found.consistency = Some(level);
            } else if let Some(from) = ReadFrom::from_word(word) {
                found.read_from = Some(from);
            } else if let Some(bound) = word.strip_prefix("max_staleness=").and_then(milliseconds) {
                found.max_staleness_ms = Some(bound);
            } else {
                found.wrong = true;
            }
        }
        found
    }

    /// What is asked for where the settings ask for `asked`.
    pub(crate) fn over(self, asked: Asked) -> Asked {
        Asked {
            consistency: self.consistency.unwrap_or(asked.consistency),
            read_from: self.read_from.unwrap_or(asked.read_from),
            max_staleness_ms: self.max_staleness_ms.unwrap_or(asked.max_staleness_ms),
            ..asked
        }
    }

    /// What is wrong with it: who is not understood must not get less than he asked for.
    pub(crate) fn trouble(self) -> Option<Report> {
        let message = "a comment asks the gateway for something that it does not know";
        let hint = "Behind \"quorate:\" there may be strong, read_your_writes, monotonic, causal, \
                    bounded or eventual; writer, replica, prefer, nearest, or a role: ha, read, \
                    reporting, analytics, dr; and max_staleness=2s.";
        self.wrong.then(|| Report::error("22023", message).hint(hint))
    }
}

/// Makes the session's token known to the server, for whoever asks for it there.
pub(crate) async fn show_token(
    worker: &Worker,
    client: &Client,
    server: &mut Server,
) -> Result<(), Gone> {
    let text = visible::token_text(client, &worker.view().cluster);
    let sql = format!("SELECT pg_catalog.set_config('quorate.token', '{text}', false)");
    server.ask(sql.as_bytes()).await?;
    server.applied = server.applied.with([(&b"quorate.token"[..], Some(text.as_bytes()))]);
    Ok(())
}

/// What is wrong with a setting of the gateway's own that a group is about to make.
pub(crate) fn wrong_setting(worker: &Worker, client: &Client) -> Option<Report> {
    let (text, script) = first_text(client)?;
    let Verb::Set(set) = &script.first else { return None };
    let name = String::from_utf8(set.name.text(&text).to_ascii_lowercase()).ok()?;
    let value = text.get(set.value.start as usize..set.value.end as usize)?;
    let value = std::str::from_utf8(value).ok()?.trim().trim_matches(['\'', '"']);
    let (good, hint) = match name.as_str() {
        "quorate.consistency" => (
            consistency(value).is_some(),
            "One of strong, read_your_writes, monotonic, causal, bounded, eventual.",
        ),
        "quorate.read_from" => (
            ReadFrom::from_word(value).is_some(),
            "One of writer, replica, prefer, nearest, or a role: ha, read, reporting, analytics, dr.",
        ),
        "quorate.max_staleness" => {
            (milliseconds(value).is_some(), "A time such as 500ms, 2s or 1min.")
        }
        "quorate.token" => (
            value.is_empty() || visible::token_from(value, &worker.view().cluster).is_some(),
            "A token is what SHOW quorate.token gave on this cluster.",
        ),
        "quorate.sticky_key" => return None,
        full::SETTING => (full::flag(value).is_some(), "on or off."),
        _ => (
            false,
            "There are consistency, read_from, max_staleness, token, sticky_key and \
             allow_writes_when_full.",
        ),
    };
    if good || value.eq_ignore_ascii_case("default") {
        return None;
    }
    let message = format!("invalid value for parameter \"{name}\": \"{value}\"");
    Some(Report::error("22023", message).hint(hint))
}

/// The first statement that the client sent.
pub(crate) fn first_verb(client: &Client) -> Option<Verb> {
    let (_, script) = first_text(client)?;
    (script.statements == 1).then_some(script.first)
}

/// The first text that the client sent, or the text of the first statement it runs.
pub(crate) fn first_text(client: &Client) -> Option<(Vec<u8>, Script)> {
    let stash = &client.end.stash;
    let header = stash.first_chunk::<HEADER>()?;
    let body = stash.get(HEADER..HEADER + body_len(header).ok()?)?;
    let text = match header[0] {
        b'Q' => body,
        b'P' => {
            let at = body.iter().position(|b| *b == 0)? + 1;
            &body[at..]
        }
        b'B' => {
            let name = body.split(|b| *b == 0).nth(1)?;
            let known = match name {
                b"" => client.unnamed.as_ref(),
                name => client.statements.get(name),
            };
            let known = known?;
            return Some((known.text.to_vec(), known.script));
        }
        _ => return None,
    };
    let text = text.split(|b| *b == 0).next()?;
    let script = group::classify(client, text, true);
    Some((text.to_vec(), script))
}
