//! The floor under `synchronous_commit`: a client may not set it so low that its own acknowledged
//! commits could be lost.
//!
//! Pure. Texts are read as they pass, whichever way they would set it: `SET`, `SET LOCAL`,
//! `set_config`, an update of `pg_settings`, the body of a `DO` or of a function, a `SET` clause of
//! `CREATE FUNCTION` or `ALTER ROLE`. What a text cannot show (a name that is put together while it
//! runs) is found when the session is looked at after the transaction, and raised again.

use std::rc::Rc;

use quorate_core::gateway::SynchronousCommit;
use quorate_wire::backend::Report;
use quorate_wire::sql::{Leaves, Script, Verb};

use crate::client::Client;
use crate::settings::Settings;

/// The setting.
pub(crate) const NAME: &[u8] = b"synchronous_commit";

/// What is wrong with a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lowers {
    /// It sets the value to this.
    To(SynchronousCommit),
    /// It sets a value that the text does not tell.
    Unseen,
}

impl Lowers {
    /// For the client.
    pub(crate) fn report(self, floor: SynchronousCommit) -> Report {
        let floor = floor.as_str();
        let report = Report::error("42501", "permission denied to lower synchronous_commit");
        match self {
            Lowers::To(value) => report
                .detail(format!(
                    "\"{}\" is below \"{floor}\", the least that this cluster allows.",
                    value.as_str()
                ))
                .hint("Leave it out, or ask the operator (gateway.synchronous_commit_floor)."),
            Lowers::Unseen => report
                .detail(format!(
                    "The least that this cluster allows is \"{floor}\", and the statement does \
                     not tell which value it sets."
                ))
                .hint("Write the value as a plain literal: SET synchronous_commit = on."),
        }
    }
}

/// Whether a text sets less than the floor.
pub(crate) fn lowers(script: &Script, sql: &[u8], floor: SynchronousCommit) -> Option<Lowers> {
    if floor == SynchronousCommit::Off || !may_set(script) {
        return None;
    }
    let updates = matches!(script.first, Verb::Update) && find(sql, b"pg_settings").is_some();
    let mut at = 0;
    while let Some(found) = find(&sql[at..], NAME) {
        let from = at + found;
        at = from + NAME.len();
        let part_of_a_name = from.checked_sub(1).is_some_and(|i| is_word(sql[i]))
            || sql.get(at).is_some_and(|b| is_word(*b));
        if part_of_a_name {
            continue;
        }
        match assigned(&sql[at..], script.configures) {
            Assigned::Nothing if updates => return Some(Lowers::Unseen),
            Assigned::Nothing => {}
            Assigned::Unseen => return Some(Lowers::Unseen),
            Assigned::Value(value) if value < floor => return Some(Lowers::To(value)),
            Assigned::Value(_) => {}
        }
    }
    None
}

/// Whether the parameters of a call of `set_config` name the setting.
pub(crate) fn named_by(script: &Script, values: &[u8], floor: SynchronousCommit) -> bool {
    script.configures && floor != SynchronousCommit::Off && find(values, NAME).is_some()
}

/// What is wrong with a value that a first packet asks for.
pub(crate) fn asked(value: &[u8], floor: SynchronousCommit) -> Option<Lowers> {
    let value = std::str::from_utf8(value).ok().and_then(SynchronousCommit::from_setting)?;
    (value < floor).then_some(Lowers::To(value))
}

/// Whether a value, as PostgreSQL shows it, is below the floor.
pub(crate) fn is_below(value: &[u8], floor: SynchronousCommit) -> bool {
    let value = std::str::from_utf8(value).ok().and_then(SynchronousCommit::from_setting);
    value.is_some_and(|value| value < floor)
}

/// The settings with the floor kept.
pub(crate) fn raised(settings: &Rc<Settings>, floor: SynchronousCommit) -> Rc<Settings> {
    match settings.get(NAME) {
        Some(value) if is_below(value, floor) => {
            settings.with([(NAME, Some(floor.as_str().as_bytes()))])
        }
        _ => Rc::clone(settings),
    }
}

/// The floor is another one: what a session set before is raised to it.
pub(crate) fn raise(client: &mut Client) {
    let floor = client.account.spec().floor;
    client.settings = raised(&client.settings, floor);
    client.startup = raised(&client.startup, floor);
}

/// Whether a text can set anything. What most texts are cannot, and is not read again.
fn may_set(script: &Script) -> bool {
    script.configures
        || script.statements != 1
        || script.leaves.has(Leaves::UNKNOWN.with(Leaves::UNKNOWN_SETTING))
        || !script.first.is_plain()
            && !matches!(
                script.first,
                Verb::Begin(_)
                    | Verb::Commit { .. }
                    | Verb::Rollback { .. }
                    | Verb::Savepoint
                    | Verb::Release
                    | Verb::RollbackTo
                    | Verb::Show(_)
                    | Verb::Reset(_)
                    | Verb::Copy(_)
                    | Verb::Empty
            )
}

/// What follows the name.
enum Assigned {
    Nothing,
    Value(SynchronousCommit),
    Unseen,
}

fn assigned(rest: &[u8], configures: bool) -> Assigned {
    // The end of the quotes around the name, a body's own quotes doubled.
    let quote = rest.iter().take_while(|b| matches!(b, b'\'' | b'"')).count();
    let rest = blank(&rest[quote..]);
    let value = match rest {
        [b'=', value @ ..] => blank(value),
        // Plain PL/pgSQL and the older spelling.
        [b':', b'=', value @ ..] => blank(value),
        [t, o, value @ ..]
            if [*t, *o].eq_ignore_ascii_case(b"to")
                && !value.first().is_some_and(|b| is_word(*b)) =>
        {
            blank(value)
        }
        [b',', value @ ..] if configures || quote > 0 => {
            let value = blank(value);
            return match word(value) {
                Some(word) => setting(word),
                // A list of names, in a query over settings, is followed by another name.
                None if configures => Assigned::Unseen,
                None => Assigned::Nothing,
            };
        }
        _ => return Assigned::Nothing,
    };
    match word(value) {
        Some(word) if word.eq_ignore_ascii_case(b"default") => Assigned::Nothing,
        Some(word) => setting(word),
        None => Assigned::Unseen,
    }
}

fn setting(word: &[u8]) -> Assigned {
    let value = std::str::from_utf8(word).ok().and_then(SynchronousCommit::from_setting);
    // PostgreSQL refuses what it does not know, unless an escape spells what it knows.
    value.map_or(Assigned::Unseen, Assigned::Value)
}

/// A word, in quotes or not.
fn word(text: &[u8]) -> Option<&[u8]> {
    let quote = text.iter().take_while(|b| matches!(b, b'\'' | b'"')).count();
    let text = &text[quote..];
    let len = text.iter().take_while(|b| is_word(**b)).count();
    let (word, rest) = text.split_at(len);
    let closed = quote == 0 || matches!(rest.first(), Some(b'\'' | b'"'));
    (len > 0 && closed).then_some(word)
}

/// What follows blanks and comments.
fn blank(mut text: &[u8]) -> &[u8] {
    loop {
        text = text.trim_ascii_start();
        let end = match text {
            [b'-', b'-', ..] => text.iter().position(|b| *b == b'\n').map(|at| at + 1),
            [b'/', b'*', ..] => find(text, b"*/").map(|at| at + 2),
            _ => return text,
        };
        text = &text[end.unwrap_or(text.len())..];
    }
}

fn is_word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80
}

/// Where a word begins in a text, whatever the case of its letters.
fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|w| w.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_wire::sql::{Options, classify};

    fn judged(sql: &str, floor: SynchronousCommit) -> Option<Lowers> {
        lowers(&classify(sql.as_bytes(), &Options::default()), sql.as_bytes(), floor)
    }

    #[test]
    fn every_way_to_lower_it_is_seen() {
        use SynchronousCommit::{Local, Off, On, RemoteWrite};
        for (sql, value) in [
            ("SET synchronous_commit = off", Off),
            ("set local Synchronous_Commit to 'OFF'", Off),
            ("SET SESSION synchronous_commit TO local;", Local),
            ("SET \"synchronous_commit\"=0", Off),
            ("SET synchronous_commit /* why */ TO -- so\n remote_write", RemoteWrite),
            ("BEGIN; SET LOCAL synchronous_commit = off; COMMIT", Off),
            ("SELECT set_config('synchronous_commit', 'off', true)", Off),
            (
                "INSERT INTO t SELECT pg_catalog.set_config('synchronous_commit','local',false)",
                Local,
            ),
            (
                "WITH a AS (INSERT INTO t VALUES (1)) SELECT set_config('synchronous_commit', 'no', true)",
                Off,
            ),
            ("DO $$ BEGIN SET LOCAL synchronous_commit = off; END $$", Off),
            ("DO $$ BEGIN EXECUTE 'SET synchronous_commit = ''off'''; END $$", Off),
            (
                "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET synchronous_commit = off AS 'SELECT 1'",
                Off,
            ),
            ("ALTER ROLE app SET synchronous_commit TO off", Off),
            ("PREPARE p AS SELECT set_config('synchronous_commit', 'off', true)", Off),
        ] {
            assert_eq!(judged(sql, On), Some(Lowers::To(value)), "{sql}");
            assert_eq!(judged(sql, Off), None, "{sql}");
        }
        for sql in [
            "SELECT set_config('synchronous_commit', $1, true)",
            "SELECT set_config('synchronous_commit', 'o' || 'ff', true)",
            "SET synchronous_commit = U&'\\006fff'",
            "SET synchronous_commit = E'\\157ff'",
            "SET synchronous_commit = $$off$$",
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'",
        ] {
            assert_eq!(judged(sql, On), Some(Lowers::Unseen), "{sql}");
        }
    }

    #[test]
    fn what_does_not_lower_it_passes() {
        for sql in [
            "SET synchronous_commit = on",
            "SET synchronous_commit TO 'remote_apply'",
            "SET LOCAL synchronous_commit = DEFAULT",
            "RESET synchronous_commit",
            "SHOW synchronous_commit",
            "SELECT set_config('synchronous_commit', 'on', false)",
            "SELECT set_config('app.user', 'off', false)",
            "SET my.synchronous_commit_not = off",
            "INSERT INTO words VALUES ('SET synchronous_commit = off')",
            "SELECT name FROM pg_settings WHERE name IN ('synchronous_commit', 'off')",
            "SELECT current_setting('synchronous_commit')",
            "SELECT 1",
        ] {
            assert_eq!(judged(sql, SynchronousCommit::On), None, "{sql}");
        }
        let sql = "SET synchronous_commit = remote_write";
        assert_eq!(judged(sql, SynchronousCommit::RemoteWrite), None);
    }
}
