//! PostgreSQL's own programs: psql, pgbench, pg_dump and pg_restore.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quorate_e2e::limits;
use rustix::process::{Pid, Signal, kill_process};

use crate::place::Place;
use crate::report::Driver;

/// What a program said.
struct Said {
    good: bool,
    out: String,
    err: String,
}

impl Said {
    /// Its output, when it succeeded.
    fn ok(self) -> Result<String> {
        ensure!(self.good, "{} {}", self.err.trim(), self.out.trim());
        Ok(self.out)
    }

    /// Fails unless the program failed with these words.
    fn refused(self, words: &str) -> Result<()> {
        ensure!(!self.good, "was not refused: {}", self.out.trim());
        ensure!(self.err.contains(words), "no {words:?} in: {}", self.err.trim());
        Ok(())
    }
}

/// Runs a program to its end, with this as its input.
fn fed(command: &mut Command, input: &str) -> Result<Said> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let mut stdin = child.stdin.take().context("no input")?;
    // What does not read it to its end says why in its complaints.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { good: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// psql, which stops at the first error.
fn psql_command(place: &Place<'_>) -> Result<Command> {
    let mut psql = place.program("psql")?;
    psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    Ok(psql)
}

fn psql_run(place: &Place<'_>, input: &str) -> Result<Said> {
    fed(&mut psql_command(place)?, input)
}

fn expect(found: &str, wanted: &str) -> Result<()> {
    ensure!(found == wanted, "{found:?}, not {wanted:?}");
    Ok(())
}

/// A person's psql.
pub fn psql(place: &Place<'_>, report: &mut Driver<'_>) -> Result<()> {
    let run = |input: &str| psql_run(place, input);
    report.check("login: SCRAM password", || {
        expect(&run("SELECT 1")?.ok()?, "1\n")?;
        fed(psql_command(place)?.env("PGPASSWORD", "wrong"), "SELECT 1")?
            .refused("password authentication failed")
    });
    report.check("TLS: verify-full", || {
        let said = run("\\conninfo")?.ok()?;
        ensure!(said.contains("TLSv1."), "{said}");
        fed(psql_command(place)?.env("PGSSLROOTCERT", place.other_ca()), "SELECT 1")?
            .refused("certificate verify failed")
    });
    report.check("TLS: channel_binding=require", || {
        let bound = || psql_command(place);
        expect(&fed(bound()?.env("PGCHANNELBINDING", "require"), "SELECT 1")?.ok()?, "1\n")?;
        let mut plain = bound()?;
        plain.env("PGCHANNELBINDING", "require").env("PGSSLMODE", "disable");
        fed(&mut plain, "SELECT 1")?.refused("channel binding")
    });
    transactions(place, report);
    report.check("prepared statements", || {
        let said = run("PREPARE p (int) AS SELECT $1 + 1; EXECUTE p (1); DEALLOCATE p;")?.ok()?;
        expect(&said, "PREPARE\n2\nDEALLOCATE\n")?;
        run("EXECUTE p (1);")?.refused("does not exist")
    });
    report.check("cancel", || cancel(place));
    report.check("COPY in and out", || {
        let said = run("CREATE TABLE IF NOT EXISTS psql_copy (a int, b text);
             TRUNCATE psql_copy;
             \\copy psql_copy FROM PROGRAM 'seq 1 10000 | sed \"s/$/\\tx/\"'
             \\copy psql_copy (a, b) FROM stdin\n-1\tlast\n\\.
             \\copy (SELECT * FROM psql_copy WHERE a < 2 ORDER BY a) TO stdout
             DROP TABLE psql_copy;")?;
        let wanted = "CREATE TABLE\nTRUNCATE TABLE\nCOPY 10000\nCOPY 1\n-1\tlast\n1\tx\n";
        expect(&said.ok()?, &format!("{wanted}DROP TABLE\n"))
    });
    report.check("rows by portions (FETCH_COUNT)", || {
        let said = run("\\set FETCH_COUNT 100\nSELECT n FROM generate_series(1, 1000) n;")?;
        let wanted: String = (1..=1000).map(|n| format!("{n}\n")).collect();
        expect(&said.ok()?, &wanted)
    });
    report.check("\\d, \\df, \\l, \\du", || {
        let said = run("\\d pg_class\n\\df lower\n\\l\n\\du\n\\dt+ *.*")?.ok()?;
        ensure!(said.contains("relname") && said.contains("postgres"), "{said}");
        Ok(())
    });
    Ok(())
}

fn transactions(place: &Place<'_>, report: &mut Driver<'_>) {
    let sum = "SELECT /* quorate: strong */ sum(id) FROM psql_rows;";
    report.check("transaction: commit", || {
        let said = psql_run(
            place,
            &format!(
                "DROP TABLE IF EXISTS psql_rows; CREATE TABLE psql_rows (id int PRIMARY KEY);
                 BEGIN; INSERT INTO psql_rows VALUES (1); COMMIT; {sum}"
            ),
        )?;
        let out = said.ok()?;
        ensure!(out.ends_with("BEGIN\nINSERT 0 1\nCOMMIT\n1\n"), "{out}");
        Ok(())
    });
    report.check("transaction: rollback", || {
        let said =
            psql_run(place, &format!("BEGIN; INSERT INTO psql_rows VALUES (2); ROLLBACK; {sum}"))?;
        expect(&said.ok()?, "BEGIN\nINSERT 0 1\nROLLBACK\n1\n")
    });
    report.check("transaction: an error inside", || {
        let fails = "BEGIN; INSERT INTO psql_rows VALUES (3); SELECT 1 / 0; COMMIT;";
        psql_run(place, fails)?.refused("division by zero")?;
        let said = psql_run(place, &format!("\\unset ON_ERROR_STOP\n{fails} {sum}"))?;
        expect(&said.out, "BEGIN\nINSERT 0 1\nROLLBACK\n1\n")?;
        // With savepoints that psql makes, only the statement is lost.
        let on = "\\unset ON_ERROR_STOP\n\\set ON_ERROR_ROLLBACK on\n";
        let said = psql_run(place, &format!("{on}{fails} {sum}"))?;
        expect(&said.out, "BEGIN\nINSERT 0 1\nCOMMIT\n4\n")
    });
}

/// Ctrl-C in a psql whose statement runs.
fn cancel(place: &Place<'_>) -> Result<()> {
    let mut psql = psql_command(place)?;
    psql.args(["-c", "SELECT pg_sleep(60) /* psql cancel */"]);
    let child = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let begun = Instant::now();
    while !place.runs("psql cancel") && begun.elapsed() < limits::RECOVER {
        std::thread::sleep(limits::POLL);
    }
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("canceling statement due to user request"), "{said}");
    ensure!(begun.elapsed() < limits::RECOVER, "it took {:?}", begun.elapsed());
    Ok(())
}

/// Clients of pgbench, and transactions of each.
const CLIENTS: u32 = 8;
const TRANSACTIONS: u32 = 100;
const BENCH: &str = "pgbench_drivers";

/// pgbench's TPC-B in its three protocol modes: nothing failed, and the sums agree.
pub fn pgbench(place: &Place<'_>, report: &mut Driver<'_>) -> Result<()> {
    report.check("initialisation (COPY, keys, vacuum)", || {
        psql_run(place, &format!("CREATE DATABASE {BENCH}"))?.ok()?;
        let mut pgbench = place.program("pgbench")?;
        fed(pgbench.args(["-i", "-s", "2", "--foreign-keys", "-q", BENCH]), "")?.ok().map(drop)
    });
    for (i, mode) in (1..).zip(["simple", "extended", "prepared"]) {
        report.check(&format!("TPC-B, {mode} protocol"), || {
            let mut pgbench = place.program("pgbench")?;
            pgbench.args(["-n", "-M", mode, "-c", &CLIENTS.to_string(), "-j", "2"]);
            pgbench.args(["-t", &TRANSACTIONS.to_string(), BENCH]);
            let said = fed(&mut pgbench, "")?;
            ensure!(!said.err.contains("error"), "{}", said.err);
            let all = CLIENTS * TRANSACTIONS;
            let out = said.ok()?;
            ensure!(out.contains(&format!("actually processed: {all}/{all}")), "{out}");
            let sums = "SELECT /* quorate: strong */ count(*), sum(delta)
                - (SELECT sum(abalance) FROM pgbench_accounts),
                sum(delta) - (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history";
            let said = fed(psql_command(place)?.args(["-d", BENCH]), sums)?.ok()?;
            expect(&said, &format!("{}|0|0\n", i * all))
        });
    }
    Ok(())
}

/// A whole database out of one gateway and into another database, in two formats.
pub fn pg_dump(place: &Place<'_>, report: &mut Driver<'_>) -> Result<()> {
    let made = "DROP DATABASE IF EXISTS dump_from;\nCREATE DATABASE dump_from;\n\\c dump_from
        CREATE SCHEMA s; CREATE TYPE s.mood AS ENUM ('sad', 'ok');
        CREATE TABLE s.t (id bigserial PRIMARY KEY, m s.mood DEFAULT 'ok', v text);
        INSERT INTO s.t (v) SELECT repeat(n::text, 20) FROM generate_series(1, 20000) n;
        CREATE INDEX ON s.t (v); CREATE VIEW s.v AS SELECT count(*) FROM s.t;
        CREATE FUNCTION s.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
        SELECT lo_from_bytea(4711, 'large');";
    report.check("something to dump", || psql_run(place, made)?.ok().map(drop));
    report.check("pg_dump | pg_restore", || {
        restored(place, |dump, restore| {
            let dump = dump.args(["-Fc", "dump_from"]).stdout(Stdio::piped()).spawn()?;
            let from = dump.stdout.context("no output")?;
            restore.args(["-d", "dump_to"]);
            let output = restore.stdin(from).stderr(Stdio::piped()).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success() && said.is_empty(), "{said}");
            Ok(())
        })
    });
    report.check("pg_dump --jobs=2, pg_restore --jobs=2", || {
        let dir = place.cluster.dir().join("dump");
        restored(place, |dump, restore| {
            fed(dump.args(["-Fd", "-j", "2", "dump_from", "-f"]).arg(&dir), "")?.ok()?;
            fed(restore.args(["-j", "2", "-d", "dump_to"]).arg(&dir), "")?.ok().map(drop)
        })
    });
    Ok(())
}

/// Dumps and restores somehow; the copy must be dumped to the same text.
fn restored(
    place: &Place<'_>,
    way: impl FnOnce(&mut Command, &mut Command) -> Result<()>,
) -> Result<()> {
    // The gateways' pools keep idle connections with the first copy.
    let made = "DROP DATABASE IF EXISTS dump_to WITH (FORCE);\nCREATE DATABASE dump_to;";
    psql_run(place, made)?.ok()?;
    way(&mut place.program("pg_dump")?, &mut place.program("pg_restore")?)?;
    let text = |name: &str| -> Result<String> {
        let out = fed(place.program("pg_dump")?.args(["--inserts", name]), "")?.ok()?;
        // A random word that keeps psql's own commands out of a dump differs each time.
        let same =
            |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        Ok(out.lines().filter(same).collect::<Vec<_>>().join("\n"))
    };
    let (from, to) = (text("dump_from")?, text("dump_to")?);
    ensure!(from.len() > 2_000_000, "the dump has only {} bytes", from.len());
    ensure!(from == to, "dumps of {} and {} bytes differ", from.len(), to.len());
    Ok(())
}
