//! Who may come in from outside at all, and the settings that a client brings along.

use std::rc::Rc;

use quorate_wire::Startup;
use quorate_wire::backend::Report;

use crate::account::Account;
use crate::acquire;
use crate::entry::Refused;
use crate::floor;
use crate::read_only;
use crate::server::{Answer, Reported, Server};
use crate::settings::Settings;
use crate::worker::Worker;

/// A setting that a client asks for in its first packet: lower-case name and value.
pub(crate) type Wish = (Box<[u8]>, Box<[u8]>);

/// How a client logs in: whether by the port that only reads, and with which settings.
pub(crate) type How = (bool, Vec<Wish>);

/// What a client is told when it logs in.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The settings it asked for.
    pub(crate) settings: Rc<Settings>,
    /// What a server with these settings reports.
    pub(crate) reported: Reported,
}

/// Finds out what a client is to be told. Only a server can say whether the settings are right, and
/// what it reports with them; the same question is asked once.
pub(crate) async fn known(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    startup: &Startup,
    reads_only: bool,
) -> Result<Rc<Known>, Refused> {
    if &*account.database == crate::console::DATABASE {
        return Ok(Rc::new(crate::console::known()));
    }
    let mut wishes = wishes(startup)?;
    // Nobody is shown there that it may write.
    wishes.retain(|(name, _)| !reads_only || !name.ends_with(b"transaction_read_only"));
    keeps_floor(account, &wishes)?;
    let how = (reads_only, wishes);
    if let Some(known) = account.login(&how) {
        return Ok(known);
    }
    let pairs = how.1.iter().map(|(name, value)| (&name[..], Some(&value[..])));
    let settings = Rc::new(Settings::default()).with(pairs);
    let mut server = made(worker, account, &settings, reads_only).await?;
    server.applied = Rc::clone(&settings);
    let mut known = Known { settings, reported: server.reported.clone() };
    if reads_only {
        read_only::reported(&mut known);
    }
    let known = Rc::new(known);
    account.put(server);
    account.remember_login(how, Rc::clone(&known));
    Ok(known)
}

/// Whether the settings that a client asks for leave `synchronous_commit` where it may be.
pub(crate) fn keeps_floor(account: &Account, wishes: &[Wish]) -> Result<(), Report> {
    let floor = account.spec().floor;
    let wish = wishes.iter().find(|(name, _)| **name == *floor::NAME);
    match wish.and_then(|(_, value)| floor::asked(value, floor)) {
        Some(lowers) => Err(fatal(lowers.report(floor))),
        None => Ok(()),
    }
}

/// A server on which these settings were made.
async fn made(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    settings: &Rc<Settings>,
    reads_only: bool,
) -> Result<Box<Server>, Refused> {
    loop {
        let found = match reads_only {
            true => acquire::any(worker, account, settings).await,
            false => acquire::writer(worker, account, settings).await,
        };
        let mut server = found.map_err(|report| fatal(*report))?;
        let Some(sql) = Settings::change(&server.applied, settings) else { return Ok(server) };
        match server.ask(&sql).await {
            Ok(Answer { error: None, .. }) => return Ok(server),
            Ok(Answer { error: Some(body), .. }) => return Err(wrong(&body).into()),
            // It had died while nobody looked; there are no more of them than places in a pool.
            Err(_) if server.pooled => {}
            Err(gone) => return Err(fatal(Report::error("57P03", gone.sentence())).into()),
        }
    }
}

fn fatal(report: Report) -> Report {
    Report { severity: quorate_wire::backend::Severity::Fatal, ..report }
}

/// A setting that the server does not take.
fn wrong(body: &[u8]) -> Report {
    let message = quorate_wire::backend::Fields::parse(body)
        .map(|fields| fields.message().to_owned())
        .unwrap_or_default();
    Report::fatal("22023", message)
        .detail("A setting in the connection's parameters cannot be made.")
        .hint("Correct the connection string or the driver's options.")
}

/// The settings in a first packet, in the order of their names; the last value of each counts.
pub(crate) fn wishes(startup: &Startup) -> Result<Vec<Wish>, Report> {
    let mut wishes = std::collections::BTreeMap::new();
    if let Some(options) = startup.get("options") {
        for (name, value) in options_in(options)? {
            wishes.insert(name, value);
        }
    }
    for (name, value) in &startup.parameters {
        let special = matches!(&name[..], b"user" | b"database" | b"replication" | b"options");
        if !special && !name.starts_with(b"_pq_.") {
            wishes.insert(name.to_ascii_lowercase().into(), Box::from(&value[..]));
        }
    }
    Ok(wishes.into_iter().collect())
}

/// Settings in the form of command line options: `-c name=value`, `-cname=value`, `--name=value`,
/// separated by blanks; a backslash takes the next character as it is.
fn options_in(text: &[u8]) -> Result<Vec<Wish>, Report> {
    let words = words(text);
    let mut found = Vec::new();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let pair = match &word[..] {
            b"-c" => rest.next().map(|w| &w[..]),
            _ => word.strip_prefix(b"-c").or_else(|| word.strip_prefix(b"--")),
        };
        let at = pair.and_then(|p| p.iter().position(|b| *b == b'=')).filter(|at| *at > 0);
        let (Some(pair), Some(at)) = (pair, at) else {
            let what = String::from_utf8_lossy(word).into_owned();
            return Err(Report::fatal("42601", format!("unknown connection option: {what}"))
                .hint("Settings are given as -c name=value."));
        };
        let name: Vec<u8> = pair[..at]
            .iter()
            .map(|b| if *b == b'-' { b'_' } else { b.to_ascii_lowercase() })
            .collect();
        found.push((name.into(), pair[at + 1..].into()));
    }
    Ok(found)
}

fn words(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = text.iter();
    while let Some(&b) = bytes.next() {
        match b {
            b'\\' => word.get_or_insert_default().extend(bytes.next()),
            b if b.is_ascii_whitespace() => words.extend(word.take()),
            b => word.get_or_insert_default().push(b),
        }
    }
    words.extend(word);
    words
}

/// Beginning of the names of Quorate's own roles. The local server lets them in without a password,
/// because the socket's peer is Quorate: an application that came in under such a name would be
/// one of us.
const RESERVED: &[u8] = b"quorate";

/// Why a login from outside is refused; `None` when PostgreSQL may judge it.
pub(crate) fn refusal(startup: &Startup) -> Option<Report> {
    // PostgreSQL takes the last value; a packet that gives several is judged by the worst.
    if startup.all("user").any(is_reserved) {
        return Some(
            Report::fatal("28000", "role names that begin with quorate cannot log in here")
                .hint("Log in as a role of your own; those roles belong to the cluster itself."),
        );
    }
    None
}

/// Stricter than PostgreSQL, which takes the name as it is and cuts it after 63 bytes: neither case,
/// quotes nor blanks make a name that looks like ours pass.
fn is_reserved(user: &[u8]) -> bool {
    let skipped = user.iter().take_while(|b| b.is_ascii_whitespace() || matches!(b, b'"' | b'\''));
    let user = &user[skipped.count()..];
    user.get(..RESERVED.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED))
}

/// The spellings of false that PostgreSQL takes for `replication`.
pub(crate) fn is_false(value: &[u8]) -> bool {
    let is_prefix_of = |word: &str, least: usize| {
        value.len() >= least
            && word.as_bytes().get(..value.len()).is_some_and(|w| w.eq_ignore_ascii_case(value))
    };
    value == b"0" || is_prefix_of("false", 1) || is_prefix_of("no", 1) || is_prefix_of("off", 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(parameters: &[(&str, &str)]) -> Option<&'static str> {
        refusal(&Startup::new(parameters)).map(|r| r.code)
    }

    #[test]
    fn options_are_settings() {
        let found = options_in(b"-c a.b=1 -cgeqo=off  --Work-Mem=4MB -c x=a\\ b\\\\").unwrap();
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
        let found: Vec<_> = found.iter().map(|(n, v)| (text(n), text(v))).collect();
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let expected =
            [pair("a.b", "1"), pair("geqo", "off"), pair("work_mem", "4MB"), pair("x", "a b\\")];
        assert_eq!(found, expected);
        for wrong in ["-c", "-c geqo", "-W 3", "geqo=off", "-c =1"] {
            assert!(options_in(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn our_own_roles_never_pass() {
        let long = format!("quorate{}", "x".repeat(100));
        for user in [
            "quorate",
            "quorate_probe",
            "QUORATE",
            "Quorate",
            "\"quorate\"",
            " quorate",
            "'quorate",
            &long,
        ] {
            assert_eq!(code(&[("user", user)]), Some("28000"), "{user}");
            assert_eq!(code(&[("user", user), ("user", "app")]), Some("28000"), "{user}");
            assert_eq!(code(&[("user", "app"), ("user", user)]), Some("28000"), "{user}");
        }
        for user in ["app", "postgres", "quorat", "my_quorate", ""] {
            assert_eq!(code(&[("user", user), ("database", "quorate")]), None, "{user}");
        }
    }
}
