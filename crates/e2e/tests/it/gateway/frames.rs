//! Sequences of messages that drivers, or their bugs, send: a gateway must answer each as the server
//! does, although it leaves messages out, adds some, and sends some again.
//!
//! A sequence is written as text: steps, each of messages parted by ` / `: a letter, as in the
//! protocol, and what it carries (`P name|sql`, `B name|value`, `E portal|rows`). After `#` stands
//! how many times the server gets ready.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::{Said, Session, framed, text};

use super::rig::{Rig, Trouble};

/// One after the other on one session. `{t}` is a table of one integer.
const SEQUENCES: &[(&str, &[&str])] = &[
    ("copy in a block", &["Q begin #1", "Q copy {t} from stdin / d 1\n / c #1", "Q commit #1"]),
    (
        "copy in a block that wrote",
        &[
            "Q begin #1",
            "Q insert into {t} values (1) #1",
            "Q copy {t} from stdin / d 1\n / c #1",
            "Q select count(*) from {t} #1",
            "Q rollback #1",
        ],
    ),
    ("copy given up", &["Q copy {t} from stdin / d 1\n / f no #1", "Q select 1 #1"]),
    (
        "copy given up in a block",
        &["Q begin #1", "Q copy {t} from stdin / f no #1", "Q select 1 #1", "Q rollback #1"],
    ),
    (
        "copy by Execute",
        &["P |copy {t} from stdin / B / E / S / d 1\n / c / S #1", "Q select 1 #1"],
    ),
    (
        "copy by Execute in a block",
        &["Q begin #1", "P |copy {t} from stdin / B / E / S / d 1\n / c / S #1", "Q commit #1"],
    ),
    ("copy without a Sync before", &["P |copy {t} from stdin / B / E / d 1\n / c / S #1"]),
    (
        "copy of bad rows",
        &["P |copy {t} from stdin / B / E / S / d x\n / d y\n / c / S #1", "Q select 1 #1"],
    ),
    ("copy that cannot begin", &["P |copy nope from stdin / B / E / S / d x\n / c / S #2"]),
    (
        "two copies in one text",
        &["Q copy {t} from stdin; copy {t} from stdin / d 1\n / c / d 2\n / c #1"],
    ),
    ("copy out by Execute", &["P |copy (select generate_series(1, 3)) to stdout / B / E / S #1"]),
    ("a portal in pieces", &["P |select generate_series(1, 5) / B / E |2 / E |2 / E |2 / S #1"]),
    (
        "a portal across a Sync",
        &[
            "Q begin #1",
            "P |select generate_series(1, 5) / B / E |2 / S #1",
            "E |2 / S #1",
            "Q commit #1",
        ],
    ),
    ("a portal that ended with its Sync", &["P |select 1 / B / E |1 / S #1", "E |2 / S #1"]),
    (
        "nothing by these names",
        &["B nope / E / S #1", "D Snope / S #1", "C Snope / C Pnope / S #1"],
    ),
    (
        "an error skips up to its Sync",
        &["P |select 1/0 / B / E / P |select 2 / B / E / S #1", "Q select 1 #1"],
    ),
    ("and no further", &["P |select 1/0 / B / E / S / P |select 2 / B / E / S #2"]),
    (
        "a name after a failure",
        &["P a|selekt / S #1", "P a|select 7 / B a / E / S #1", "B a / E / S #1"],
    ),
    ("a name twice", &["P a|select 7 / S #1", "P a|select 8 / B a / E / S #1", "B a / E / S #1"]),
    (
        "a name twice in a block",
        &[
            "Q begin #1",
            "P a|select 7 / S #1",
            "P a|select 8 / S #1",
            "Q rollback #1",
            "B a / E / S #1",
        ],
    ),
    (
        "a Close that was skipped",
        &["P a|select 7 / S #1", "P |select 1/0 / B / E / C Sa / S #1", "B a / E / S #1"],
    ),
    (
        "prepared in a failed block",
        &[
            "P |select 7 / S #1",
            "P c|select 7 / S #1",
            "Q begin #1",
            "Q select 1/0 #1",
            "P b|select 7 / S #1",
            "Q rollback #1",
            "B b / E / S #1",
            "P b|select 7 / S #1",
        ],
    ),
    (
        "without a name, later",
        &["P |select $1::int + 1 / S #1", "B |4 / E / S #1", "B |5 / E / S #1"],
    ),
    ("without a name, after a query", &["P |select 3 / S #1", "Q select 1 #1", "B / E / S #1"]),
    (
        "without a name, after a failure",
        &["P |select 3 / S #1", "P |selekt / S #1", "B / E / S #1"],
    ),
    ("Flush", &["P |select 1 / D S / H / B / E / H / S #1"]),
    ("an empty text", &["P | / B / D P / E / S #1"]),
    (
        "queries at once",
        &[
            "Q select 1 / Q insert into {t} values (1) / Q begin / Q select 3 / Q commit / Q select 4 #6",
        ],
    ),
    (
        "a block in a pipeline",
        &["P |begin / B / E / P |insert into {t} values (2) / B / E / P |commit / B / E / S #1"],
    ),
    (
        "a block in a burst",
        &[
            "P |begin / B / E / S / P |insert into {t} values (2) / B / E / S / P |commit / B / E / S / P |select 1 / B / E / S #4",
        ],
    ),
    (
        "a burst whose middle fails",
        &["P |begin / B / E / S / P |select 1/0 / B / E / S / P |commit / B / E / S #3"],
    ),
    ("a query before the Sync", &["P |select 1 / B / E / Q select 2 / S #2", "Q select 3 #1"]),
    (
        "a read-only block by Execute",
        &["P |begin read only / B / E / S #1", "P |select 1 / B / E / S #1", "Q commit #1"],
    ),
    ("Syncs alone", &["S / S #2"]),
    ("a Sync in a failed block", &["Q begin / Q select 1/0 / S #3", "Q rollback #1"]),
    ("too few values", &["P |select $1::int / B / E / S #1", "Q select 1 #1"]),
    ("a bad value", &["P a|select $1::int / S #1", "B a|x / E / S #1", "B a|1 / E / S #1"]),
    (
        "savepoints at once",
        &["Q begin / Q savepoint a / Q select 1/0 / Q rollback to a / Q select 1 / Q commit #6"],
    ),
];

/// The messages of a step, and how often the server gets ready.
fn messages(step: &str, table: &str) -> Result<(Vec<u8>, usize)> {
    let step = step.replace("{t}", table);
    let (messages, ready) = step.rsplit_once(" #").context("no number")?;
    let all: Vec<_> = messages.split(" / ").map(message).collect();
    Ok((all.concat(), ready.parse()?))
}

fn message(written: &str) -> Vec<u8> {
    let (tag, rest) = written.split_at(1);
    let rest = rest.strip_prefix(' ').unwrap_or(rest);
    let (first, second) = rest.split_once('|').unwrap_or((rest, ""));
    let body = match tag {
        "Q" | "f" => text(rest),
        "d" => rest.as_bytes().to_vec(),
        "P" => [&text(first)[..], &text(second), &[0, 0]].concat(),
        "B" => {
            let value = match second {
                "" => vec![0, 0],
                v => [&[0, 1][..], &(v.len() as u32).to_be_bytes(), v.as_bytes()].concat(),
            };
            [&text("")[..], &text(first), &[0, 0], &value, &[0, 0]].concat()
        }
        "E" => [&text(first)[..], &second.parse::<u32>().unwrap_or(0).to_be_bytes()].concat(),
        "D" | "C" => text(rest),
        _ => Vec::new(),
    };
    framed(tag.as_bytes()[0], &body)
}

/// All answers of a session to a sequence, without its notices.
fn answers(session: &mut Session, steps: &[&str], table: &str) -> Result<Vec<String>> {
    let mut told = Vec::new();
    for step in steps {
        let (bytes, ready) = messages(step, table)?;
        session.send_bytes(&bytes)?;
        for _ in 0..ready {
            let mut answer = session.answer().with_context(|| (*step).to_owned())?;
            answer.0.retain(|said| !matches!(said, Said::Notice(_)));
            told.push(format!("{step}: {answer}"));
        }
    }
    Ok(told)
}

#[test]
fn sequences_are_answered_as_by_the_server() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    let table = format!("{schema}.t");
    let mut trouble = Trouble::default();
    for (name, steps) in SEQUENCES {
        let clear = || rig.direct()?.simple(&format!("TRUNCATE {table}"))?.ok();
        clear()?;
        let wanted = answers(&mut rig.direct()?, steps, &table).context(*name)?;
        for (door, address) in rig.doors() {
            clear()?;
            let done = Session::open(address, rig.cluster.login())
                .and_then(|mut session| answers(&mut session, steps, &table))
                .and_then(|got| same(&got, &wanted));
            trouble.note(&format!("{name} through {door}"), done);
        }
    }
    trouble.end()
}

fn same(got: &[String], wanted: &[String]) -> Result<()> {
    for (got, wanted) in got.iter().zip(wanted) {
        ensure!(got == wanted, "{got}\n      not {wanted}");
    }
    Ok(())
}

/// What one client could not prepare any more, another finds prepared on the same server.
#[test]
fn a_pipeline_that_failed_leaves_no_wrong_statement() -> Result<()> {
    let rig = Rig::shared()?;
    let unnamed = |sql: &str| format!("P |{sql} / B / E");
    let [first, after] = ["select 'first'", "select 'after'"].map(unnamed);
    for (_, address) in rig.doors() {
        let failing = format!("{first} / {} / {after} / S #1", unnamed("select 1/0"));
        let fine = format!("{first} / {} / {after} / S #1", unnamed("commit"));
        let mut one = Session::open(address, rig.cluster.login())?;
        answers(&mut one, &["Q begin #1", &failing, "P s|rollback / B s / E / S #1"], "")?;
        let mut other = Session::open(address, rig.cluster.login())?;
        let got = answers(&mut other, &[&fine], "")?;
        let wanted = answers(&mut rig.direct()?, &[&fine], "")?;
        same(&got, &wanted)?;
    }
    Ok(())
}

/// A second statement under one name is refused, and leaves nothing behind.
#[test]
fn names_are_not_seen_by_others() -> Result<()> {
    let rig = Rig::shared()?;
    for (_, address) in rig.doors() {
        let mut one = Session::open(address, rig.cluster.login())?;
        let twice = ["P zz|select 7 / S #1", "Q begin #1", "P zz|select 7 / S #1"];
        answers(&mut one, &twice, "")?;
        drop(one);
        let mut other = Session::open(address, rig.cluster.login())?;
        for name in (1..20).map(|i| format!("quorate_{i:x}")).chain(["zz".to_owned()]) {
            for _ in 0..3 {
                let answer = other.execute(&name, &[])?;
                ensure!(answer.code() == "26000", "{name}, of another client: {answer}");
            }
        }
    }
    Ok(())
}

/// A connection of the pool that died while it was idle is noticed by nobody.
#[test]
fn a_server_that_died_idle_is_not_noticed() -> Result<()> {
    let rig = Rig::new("servers of the pool end while they are idle")?;
    let schema = rig.schema("CREATE TABLE t (id int);")?;
    let mut trouble = Trouble::default();
    let insert = format!("INSERT INTO {schema}.t VALUES (1)");
    let firsts = [("SELECT 'one'", "SELECT 1"), ("BEGIN", "BEGIN"), (&insert[..], "INSERT 0 1")];
    for (door, address) in rig.doors() {
        for (first, tag) in firsts {
            let mut session = Session::open(address, rig.cluster.login())?;
            session.simple("SELECT 1")?.ok()?;
            session.simple("BEGIN; COMMIT")?.ok()?;
            end_all(&rig)?;
            let done = died(&mut session, first, tag);
            trouble.note(&format!("{first} through {door}"), done);
        }
    }
    trouble.end()
}

fn died(session: &mut Session, first: &str, tag: &str) -> Result<()> {
    let answer = session.simple(first)?.ok()?;
    ensure!(answer.tags() == [tag], "{answer}");
    let answer = session.simple("SELECT 'two'")?.ok()?;
    ensure!(answer.value().as_deref() == Some("two"), "the next statement: {answer}");
    session.simple("COMMIT")?.ok()?;
    ensure!(session.status == 'I', "a transaction is open still");
    Ok(())
}

/// Ends every client's server process on every node.
fn end_all(rig: &Rig) -> Result<()> {
    let theirs = "FROM pg_stat_activity WHERE backend_type = 'client backend'
        AND usename = 'postgres' AND pid <> pg_backend_pid()";
    for node in [&rig.writer, &rig.replica] {
        let mut admin = Session::open(&*rig.socket(node)?, rig.cluster.login())?;
        admin.simple(&format!("SELECT pg_terminate_backend(pid) {theirs}"))?.ok()?;
        rig.cluster.wait_until(Duration::from_secs(10), "they are gone", || {
            (admin.value(&format!("SELECT count(*) {theirs}")).ok()? == "0").then_some(())
        })?;
    }
    Ok(())
}

/// A server that says goodbye in the middle: one error, and the session goes on or ends; never both.
#[test]
fn a_server_that_ends_is_told_once() -> Result<()> {
    let rig = Rig::new("servers end themselves under their clients")?;
    for (_, address) in rig.doors() {
        for before in [&[][..], &["BEGIN"][..]] {
            let mut session = Session::open(address, rig.cluster.login())?;
            for sql in before {
                session.simple(sql)?.ok()?;
            }
            let answer = session.simple("SELECT pg_terminate_backend(pg_backend_pid())")?;
            let errors = answer.0.iter().filter(|s| matches!(s, Said::Failed { .. })).count();
            ensure!(errors == 1, "{errors} errors, and the session goes on: {answer}");
            ensure!(!answer.to_string().contains("http"), "internal words: {answer}");
        }
    }
    Ok(())
}
