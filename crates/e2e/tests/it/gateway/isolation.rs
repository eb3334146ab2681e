//! Nothing of one client reaches another: many clients do random things over fewer servers, and
//! each must be told, message by message, what a private server tells one that does the same.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use quorate_e2e::random::Random;
use quorate_e2e::wire::{Answer, Mode, Said, Session};
use quorate_e2e::workload::Login;

use super::rig::Rig;

/// Names the seed of a run that is to be another than [`SEED`].
const SEED_NAME: &str = "QUORATE_E2E_SEED";
/// What a change of the project is judged by does not depend on chance.
const SEED: u64 = 251_424_476;
/// More than servers in a pool.
const CLIENTS: usize = 24;
/// Steps of each client.
const STEPS: usize = 150;

/// What a transaction on a replica is told that cannot be moved any more, and would leave something
/// there. It, and what a standby refuses of such a transaction, is what no private connection is
/// told.
const NOT_THERE: &str = "a transaction on a replica cannot do this";

/// Steps before the one that failed that are shown.
const BEFORE: usize = 8;

/// A step of a client.
#[derive(Debug, Clone)]
enum Step {
    /// A statement.
    Run(Mode, String),
    /// A statement prepared by protocol, by name.
    Prepare(&'static str, String),
    Execute(&'static str),
    Close(&'static str),
    /// Rows for the client's table.
    CopyIn(&'static [&'static str]),
    /// The client leaves without a word and comes back.
    Leave,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Run(mode, sql) => write!(f, "{mode:?}: {sql}"),
            other => write!(f, "{other:?}"),
        }
    }
}

const SETTINGS: &[(&str, &[&str])] = &[
    ("work_mem", &["'5MB'", "'6MB'", "DEFAULT"]),
    ("app.name", &["'a'", "'b''c'", "'d\\e'"]),
    // A syntax error: PostgreSQL's own word.
    ("app.user", &["'a'"]),
    ("search_path", &["public", "pg_catalog, public", "\"$user\", public"]),
    ("TimeZone", &["'UTC'", "'Asia/Tokyo'", "'Europe/Paris'"]),
    ("DateStyle", &["'ISO, MDY'", "'German'", "'SQL, DMY'"]),
    ("default_transaction_isolation", &["'serializable'", "'read committed'"]),
    ("application_name", &["'one'", "'two'"]),
    ("statement_timeout", &["'19s'", "'18s'", "0"]),
    ("bytea_output", &["'escape'", "'hex'"]),
    ("client_min_messages", &["'warning'", "'notice'"]),
    ("extra_float_digits", &["0", "3"]),
];

/// Everything of a session that a statement can see.
const LOOK: &str = "SELECT current_user, current_setting('work_mem'),
    coalesce(current_setting('app.user', true), ''),
    coalesce(current_setting('app.name', true), ''), current_setting('search_path'),
    current_setting('TimeZone'), current_setting('DateStyle'),
    current_setting('default_transaction_isolation'), current_setting('transaction_isolation'),
    current_setting('application_name'), current_setting('statement_timeout'),
    current_setting('bytea_output'), current_setting('client_min_messages'),
    (SELECT count(*) FROM pg_catalog.pg_class
     WHERE relnamespace = pg_catalog.pg_my_temp_schema()),
    (SELECT pg_catalog.string_agg(name, ',' ORDER BY name) FROM pg_catalog.pg_cursors
     WHERE name IN ('held', 'c')),
    (SELECT pg_catalog.string_agg(channel, ',') FROM pg_catalog.pg_listening_channels() channel),
    (SELECT count(*) FROM pg_catalog.pg_locks
     WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid())";

const PLAIN: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "BEGIN READ ONLY",
    "START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "COMMIT",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "ROLLBACK",
    "END",
    "ABORT",
    "COMMIT AND CHAIN",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "CREATE TEMP TABLE tt (x int)",
    "INSERT INTO tt VALUES (1)",
    "SELECT count(*) FROM tt",
    "DROP TABLE tt",
    "CREATE TEMP TABLE tt ON COMMIT DROP AS SELECT 1 AS x",
    "SELECT pg_advisory_lock({c})",
    "SELECT pg_advisory_unlock({c})",
    "SELECT pg_try_advisory_xact_lock({c})",
    "SELECT pg_advisory_unlock_all()",
    "PREPARE p AS SELECT {c} + 1",
    "EXECUTE p",
    "DEALLOCATE p",
    "DEALLOCATE ALL",
    "LISTEN ch{c}",
    "NOTIFY ch{c}, 'x'",
    "UNLISTEN *",
    "SELECT pg_notify('ch{c}', 'y')",
    "DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
    "FETCH held",
    "CLOSE held",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "FETCH c",
    "CLOSE c",
    "CLOSE ALL",
    "SET ROLE clerk",
    "SET ROLE boss",
    "RESET ROLE",
    "SELECT current_user",
    "INSERT INTO t{c} VALUES (1)",
    "INSERT INTO t{c} VALUES (2) RETURNING x",
    "SELECT count(*) FROM t{c}",
    "SELECT count(*) FROM t{c}",
    "DELETE FROM t{c}",
    "SELECT count(*) FROM v{c}",
    "SELECT 1/0",
    "SELEKT",
    "SELECT * FROM nowhere",
    "SELECT 1",
    "",
    "SELECT f{c}(7)",
    "SELECT set_config('app.user', 'f', false)",
    "SELECT set_config('app.user', 'g', true)",
    "SELECT set_config('app.name', 'h', false)",
    "DO $$BEGIN PERFORM set_config('work_mem', '7MB', false); END$$",
    "COPY t{c} TO STDOUT",
    "RESET ALL",
    "DISCARD ALL",
    "DISCARD TEMP",
    "DISCARD PLANS",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SET TRANSACTION READ ONLY",
    "SET SESSION AUTHORIZATION clerk",
    "RESET SESSION AUTHORIZATION",
    "SET TIME ZONE 'UTC'",
    "SET NAMES 'UTF8'",
    "LOCK TABLE t{c}",
    "EXPLAIN (COSTS off) SELECT 1",
];

/// Statements that leave nothing in a session, for a test of what stands below all others.
const TRACELESS: &[&str] = &[
    "BEGIN",
    "BEGIN",
    "BEGIN",
    "START TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "COMMIT",
    "COMMIT",
    "COMMIT",
    "ROLLBACK",
    "ROLLBACK",
    "END",
    "ABORT",
    "COMMIT AND CHAIN",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "RELEASE s",
    "SELECT pg_try_advisory_xact_lock({c})",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 5)",
    "FETCH c",
    "CLOSE c",
    "INSERT INTO t{c} VALUES (1)",
    "INSERT INTO t{c} VALUES (2) RETURNING x",
    "SELECT count(*) FROM t{c}",
    "SELECT count(*) FROM t{c}",
    "DELETE FROM t{c}",
    "SELECT count(*) FROM v{c}",
    "SELECT 1/0",
    "SELEKT",
    "SELECT * FROM nowhere",
    "SELECT 1",
    "",
    "SELECT f{c}(7)",
    "COPY t{c} TO STDOUT",
    "LOCK TABLE t{c}",
    "EXPLAIN (COSTS off) SELECT 1",
    "DO $$BEGIN RAISE NOTICE 'hello {c}'; END$$",
    "SELECT repeat('x', 100000)",
    "VALUES ({c}), (1)",
];

const SCRIPTS: &[&str] = &[
    "BEGIN; INSERT INTO t{c} VALUES (3); COMMIT",
    "SELECT 1; SELECT 2",
    "SELECT 1; SELECT 1/0",
    "SET work_mem = '8MB'; SELECT 1",
    "BEGIN; SET work_mem = '9MB'; ROLLBACK",
    "BEGIN; SET LOCAL work_mem = '9MB'; INSERT INTO t{c} VALUES (4); COMMIT; SELECT count(*) FROM t{c}",
    "SET work_mem = '8MB'; SELECT 1/0",
    "PREPARE q AS SELECT 1; EXECUTE q; DEALLOCATE q",
];

/// Statements prepared by protocol.
const NAMES: [&str; 2] = ["a", "b"];

const COPIES: &[&[&str]] = &[&["1", "2"], &[], &["1", "wrong"]];

/// Objects of every client, in the database of the clients and in that of their models.
fn objects() -> String {
    let each = |c: usize| {
        format!(
            "CREATE TABLE t{c} (x int); GRANT ALL ON t{c} TO PUBLIC;
             CREATE FUNCTION f{c}(int) RETURNS int LANGUAGE sql AS
                 'INSERT INTO public.t{c} VALUES ($1); SELECT $1';
             CREATE VIEW v{c} AS SELECT * FROM t{c}; GRANT ALL ON v{c} TO PUBLIC;"
        )
    };
    (0..CLIENTS).map(each).collect()
}

fn traceless(random: &mut Random, client: usize) -> Step {
    let c = client.to_string();
    let fill = |text: &str| text.replace("{c}", &c);
    match random.below(20) {
        0 => {
            let texts = ["SELECT {c}", "SELECT count(*) FROM t{c}", "INSERT INTO t{c} VALUES (5)"];
            Step::Prepare(random.pick::<&str>(&NAMES), fill(random.pick::<&str>(&texts)))
        }
        1..=4 => Step::Execute(random.pick::<&str>(&NAMES)),
        5 if random.below(2) == 0 => Step::Close(random.pick::<&str>(&NAMES)),
        6 if random.below(2) == 0 => Step::CopyIn(random.pick::<&[&str]>(COPIES)),
        7 if random.below(6) == 0 => Step::Leave,
        _ => Step::Run(*random.pick(&Mode::ALL), fill(random.pick::<&str>(TRACELESS))),
    }
}

fn step(random: &mut Random, client: usize) -> Step {
    let c = client.to_string();
    let fill = |text: &str| text.replace("{c}", &c);
    match random.below(20) {
        0..=2 => {
            let (name, values) = *random.pick(SETTINGS);
            let value = *random.pick(values);
            let sql = match random.below(6) {
                0 => format!("RESET {name}"),
                // Of a name that no session made PostgreSQL says nothing or an error, depending on
                // what was once in this server: see docs/gateway.md.
                1 if name.contains('.') => LOOK.to_owned(),
                1 => format!("SHOW {name}"),
                2 => format!("SET LOCAL {name} TO {value}"),
                _ => format!("SET {name} TO {value}"),
            };
            Step::Run(*random.pick(&Mode::ALL), sql)
        }
        3 => Step::Run(*random.pick(&Mode::ALL), LOOK.to_owned()),
        4 => Step::Run(Mode::Simple, fill(random.pick::<&str>(SCRIPTS))),
        5 => {
            let texts = ["SELECT {c}", "SELECT count(*) FROM t{c}", "INSERT INTO t{c} VALUES (5)"];
            Step::Prepare(random.pick::<&str>(&NAMES), fill(random.pick::<&str>(&texts)))
        }
        6..=7 => Step::Execute(random.pick::<&str>(&NAMES)),
        8 if random.below(3) == 0 => Step::Close(random.pick::<&str>(&NAMES)),
        9 if random.below(3) == 0 => Step::CopyIn(random.pick::<&[&str]>(COPIES)),
        10 if random.below(6) == 0 => Step::Leave,
        _ => Step::Run(*random.pick(&Mode::ALL), fill(random.pick::<&str>(PLAIN))),
    }
}

/// Ways to a database, for a client and for its model.
#[derive(Clone)]
struct Ways {
    gateway: SocketAddr,
    direct: PathBuf,
    login: Login,
}

impl Ways {
    fn open(&self) -> Result<[Session; 2]> {
        let login = |database: &str| Login { database: database.to_owned(), ..self.login.clone() };
        Ok([
            Session::open(&*self.direct, &login("model"))?,
            Session::open(self.gateway, &login("shared"))?,
        ])
    }

    /// Makes steps; the first that is told something else than the model is an error.
    fn walk(&self, client: usize, steps: &[Step], stop: &AtomicBool) -> Result<()> {
        let mut both = self.open()?;
        for (i, step) in steps.iter().enumerate() {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if matches!(step, Step::Leave) {
                drop(both);
                both = self.open()?;
                continue;
            }
            let [model, session] = &mut both;
            let mut wanted = take(model, client, step).context("the model")?;
            let mut got =
                take(session, client, step).with_context(|| format!("step {i}: {step}"))?;
            let refused = got.code() == "25006" && wanted.error().is_none();
            let refused = refused && model.value("SHOW transaction_read_only")? == "on";
            if refused || got.error().is_some_and(|(_, message)| message == NOT_THERE) {
                both = self.open()?;
                continue;
            }
            for answer in [&mut wanted, &mut got] {
                read_only(answer);
            }
            ensure!(
                got == wanted,
                "step {i}: {step}\n  was answered {got}\n  and not      {wanted}\n  after {}",
                steps[i.saturating_sub(BEFORE)..i]
                    .iter()
                    .map(Step::to_string)
                    .collect::<Vec<_>>()
                    .join("\n        ")
            );
            let (got, wanted) = (&session.reported, &model.reported);
            ensure!(got == wanted, "step {i}: {step}\n  reported {got:?}\n  and not {wanted:?}");
        }
        Ok(())
    }
}

/// A transaction that is read-only refuses a write by the same SQLSTATE on a replica, where some
/// commands say "during recovery" instead of "in a read-only transaction".
fn read_only(answer: &mut Answer) {
    for said in &mut answer.0 {
        if let Said::Failed { code, message } = said
            && code == "25006"
        {
            *message = message.replace("during recovery", "in a read-only transaction");
            *message = message.replace("COPY FROM", "COPY");
        }
    }
}

fn take(session: &mut Session, client: usize, step: &Step) -> Result<Answer> {
    match step {
        Step::Run(mode, sql) => session.run(*mode, sql),
        Step::Prepare(name, sql) => session.prepare(name, sql),
        Step::Execute(name) => session.execute(name, &[]),
        Step::Close(name) => session.close(name),
        Step::CopyIn(lines) => session.copy_in(&format!("COPY t{client} FROM STDIN"), lines),
        Step::Leave => Ok(Answer::default()),
    }
}

#[test]
fn clients_do_not_notice_each_other() -> Result<()> {
    at_random("everything that a session can do", step)
}

#[test]
fn transactions_at_random() -> Result<()> {
    at_random("transactions that leave nothing behind", traceless)
}

fn at_random(what: &str, step: impl Fn(&mut Random, usize) -> Step) -> Result<()> {
    let seed = std::env::var(SEED_NAME).map_or(Ok(SEED), |seed| seed.parse())?;
    let rig =
        Rig::new(&format!("{what}, by {CLIENTS} clients at random, seed {seed} ({SEED_NAME})"))?;
    prepare(&rig)?;
    let mut random = Random::new(seed);
    let doors = rig.doors();
    let ways = |i: usize| -> Result<Ways> {
        Ok(Ways {
            gateway: doors[i % doors.len()].1,
            direct: rig.socket(&rig.writer)?,
            login: rig.cluster.login().clone(),
        })
    };
    let plans: Vec<Vec<Step>> =
        (0..CLIENTS).map(|c| (0..STEPS).map(|_| step(&mut random, c)).collect()).collect();
    let stop = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| -> Result<_> {
        let mut threads = Vec::new();
        for (client, plan) in plans.iter().enumerate() {
            let (ways, stop) = (ways(client)?, &stop);
            threads.push(scope.spawn(move || {
                let walked = ways.walk(client, plan, stop);
                if walked.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                walked
            }));
        }
        let results = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("panicked")));
        Ok(results.enumerate().find_map(|(client, r)| r.err().map(|e| (client, e))))
    })?;
    let Some((client, error)) = failed else { return Ok(()) };
    prepare(&rig)?;
    let story = shrunk(&ways(client)?, client, &plans[client]);
    bail!("seed {seed}, client {client}: {error:#}\n{story}")
}

fn prepare(rig: &Rig) -> Result<()> {
    let mut admin = rig.direct()?;
    for role in ["clerk", "boss"] {
        // The second time they are there.
        admin.simple(&format!("CREATE ROLE {role}"))?;
    }
    for database in ["model", "shared"] {
        admin.simple(&format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)"))?.ok()?;
        admin.simple(&format!("CREATE DATABASE {database}"))?.ok()?;
        let login = Login { database: database.to_owned(), ..rig.cluster.login().clone() };
        Session::open(&*rig.socket(&rig.writer)?, &login)?.simple(&objects())?.ok()?;
    }
    rig.replayed()
}

/// The shortest part of a plan that still fails when the client is alone, as text.
fn shrunk(ways: &Ways, client: usize, plan: &[Step]) -> String {
    let stop = AtomicBool::new(false);
    let fails = |steps: &[Step]| ways.walk(client, steps, &stop).err();
    let mut steps = plan.to_vec();
    let Some(mut error) = fails(&steps) else {
        let all: Vec<_> = plan.iter().map(Step::to_string).collect();
        return format!("alone it does not fail; its steps:\n{}", all.join("\n"));
    };
    let mut i = steps.len();
    while i > 0 {
        i -= 1;
        let mut fewer = steps.clone();
        fewer.remove(i);
        if let Some(e) = fails(&fewer) {
            (steps, error) = (fewer, e);
            i = i.min(steps.len());
        }
    }
    let all: Vec<_> = steps.iter().map(Step::to_string).collect();
    format!("alone, the shortest that fails: {error:#}\n{}", all.join("\n"))
}
