//! What Jepsen's own PostgreSQL suite needs (`jepsen.postgres`, `jepsen.sql`): its tables, its
//! statements as its JDBC driver sends them, its isolation levels, the errors that it knows.

use anyhow::{Context, Result, ensure};
use quorate_e2e::wire::{Answer, Session, framed, sync, text};

use super::rig::Rig;

/// Types that the driver names for its values.
const INT4: u32 = 23;
const INT8: u32 = 20;
const FLOAT8: u32 = 701;
const NUMERIC: u32 = 1700;
const VARCHAR: u32 = 1043;

/// A session of the driver: it names statements from their fifth use on.
struct Jdbc {
    session: Session,
    /// Statements in the order of their first use, and how often each was used.
    uses: Vec<(String, usize)>,
    /// A BEGIN that goes with the next statement.
    begin: bool,
    in_block: bool,
}

const THRESHOLD: usize = 5;

impl Jdbc {
    fn open(rig: &Rig, node: &str) -> Result<Self> {
        let doors = rig.doors();
        let (_, address) = doors.iter().find(|(name, _)| name == node).context("a gateway")?;
        let parameters = [
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("TimeZone", "UTC"),
            ("extra_float_digits", "2"),
        ];
        let session = Session::with(*address, rig.cluster.login(), &parameters)?;
        let mut jdbc = Self { session, uses: Vec::new(), begin: false, in_block: false };
        jdbc.run("SET extra_float_digits = 3", &[])?.ok()?;
        jdbc.run("SET application_name = 'PostgreSQL JDBC Driver'", &[])?.ok()?;
        Ok(jdbc)
    }

    /// What `with-transaction` of next.jdbc does: the level is that of the session meanwhile.
    fn begin(&mut self, isolation: &str) -> Result<String> {
        let before = self.run("SHOW TRANSACTION ISOLATION LEVEL", &[])?.ok()?.value();
        self.isolation(isolation)?;
        (self.begin, self.in_block) = (true, true);
        before.context("no isolation level")
    }

    fn isolation(&mut self, level: &str) -> Result<()> {
        let sql = format!("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}");
        self.run(&sql, &[])?.ok().map(drop)
    }

    fn end(&mut self, how: &str, before: &str) -> Result<Answer> {
        // A block in which nothing was sent was never begun.
        let answer =
            if std::mem::take(&mut self.begin) { Answer::default() } else { self.run(how, &[])? };
        self.in_block = false;
        self.isolation(before)?;
        Ok(answer)
    }

    /// A statement with values, as the driver sends it.
    fn run(&mut self, sql: &str, values: &[(u32, &str)]) -> Result<Answer> {
        let mut bytes = Vec::new();
        if std::mem::take(&mut self.begin) {
            bytes.extend(self.put("BEGIN", &[], false));
        }
        bytes.extend(self.put(sql, values, true));
        bytes.extend(sync());
        self.session.send_bytes(&bytes)?;
        self.session.answer()
    }

    fn put(&mut self, sql: &str, values: &[(u32, &str)], describe: bool) -> Vec<u8> {
        let known = self.uses.iter().position(|(text, _)| text == sql);
        let number = known.unwrap_or_else(|| {
            self.uses.push((sql.to_owned(), 0));
            self.uses.len() - 1
        });
        self.uses[number].1 += 1;
        let count = self.uses[number].1;
        let name = if count < THRESHOLD { String::new() } else { format!("S_{number}") };
        let mut bytes = Vec::new();
        if count <= THRESHOLD {
            let types = values.iter().flat_map(|(kind, _)| kind.to_be_bytes());
            let mut body = [text(&name), text(sql)].concat();
            body.extend((values.len() as u16).to_be_bytes());
            body.extend(types);
            bytes.extend(framed(b'P', &body));
        }
        let mut body = [text(""), text(&name)].concat();
        body.extend([0, 0]);
        body.extend((values.len() as u16).to_be_bytes());
        for (_, value) in values {
            body.extend((value.len() as u32).to_be_bytes());
            body.extend(value.as_bytes());
        }
        body.extend([0, 0]);
        bytes.extend(framed(b'B', &body));
        if describe {
            bytes.extend(framed(b'D', b"P\0"));
        }
        bytes.extend(framed(b'E', &[0; 5]));
        bytes
    }

    /// `append`, as an upsert and as update, insert under a savepoint, update.
    fn append(&mut self, table: &str, by: &str, key: &str, element: &str) -> Result<()> {
        let sql = format!(
            "insert into {table} as t (id, sk, val) values ($1, $2, $3) on conflict (id) do update \
             set val = CONCAT(t.val, ',', $4) where t.{by} = $5"
        );
        let (key, element) = ((INT8, key), (VARCHAR, element));
        self.run(&sql, &[key, key, element, element, key])?.ok().map(drop)
    }

    fn append_by_hand(&mut self, table: &str, by: &str, key: &str, element: &str) -> Result<()> {
        let update = format!("update {table} set val = CONCAT(val, ',', $1) where {by} = $2");
        let (k, e) = ((INT8, key), (VARCHAR, element));
        if self.run(&update, &[e, k])?.ok()?.tags().last().map(String::as_str) == Some("UPDATE 1") {
            return Ok(());
        }
        let insert = format!("INSERT INTO {table} (id, sk, val) VALUES ($1, $2, $3)");
        if !self.in_block {
            return self.run(&insert, &[k, k, e])?.ok().map(drop);
        }
        self.run("SAVEPOINT UPSERT", &[])?.ok()?;
        self.run(&insert, &[k, k, e])?.ok()?;
        self.run("RELEASE SAVEPOINT upsert", &[])?.ok()?;
        // Once more: the key is there now, and the savepoint saves the block.
        self.run("SAVEPOINT UPSERT", &[])?.ok()?;
        let again = self.run(&insert, &[k, k, e])?;
        let (code, message) = again.error().context("a key was inserted twice")?;
        ensure!(code == "23505" && message.starts_with("duplicate key value"), "{code} {message}");
        self.run("ROLLBACK TO SAVEPOINT upsert", &[])?.ok().map(drop)
    }

    fn read(&mut self, table: &str, by: &str, key: &str) -> Result<Option<String>> {
        let sql = format!("SELECT (val) FROM {table} WHERE {by} = $1");
        Ok(self.run(&sql, &[(INT8, key)])?.ok()?.value())
    }
}

fn value(found: Option<String>, wanted: &str) -> Result<()> {
    ensure!(found.as_deref() == Some(wanted), "{found:?}, not {wanted}");
    Ok(())
}

#[test]
fn its_append_workload() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("")?;
    for (door, (node, _)) in rig.doors().into_iter().enumerate() {
        let mut jdbc = Jdbc::open(&rig, &node)?;
        jdbc.isolation("SERIALIZABLE")?;
        let table = format!("{schema}.txn{door}");
        for _ in 0..2 {
            let sql = format!(
                "create table if not exists {table} (id int not null primary key, sk int not null, \
                 val text)"
            );
            jdbc.run(&sql, &[])?.ok()?;
        }
        for round in 0..8 {
            let by = ["id", "sk"][round % 2];
            let key = round.to_string();
            let before = jdbc.begin("SERIALIZABLE")?;
            ensure!(before == "serializable", "the session was {before}");
            value(jdbc.run("SHOW transaction_isolation", &[])?.ok()?.value(), "serializable")?;
            ensure!(jdbc.read(&table, by, &key)?.is_none());
            jdbc.append_by_hand(&table, by, &key, "1")?;
            jdbc.append(&table, by, &key, "2")?;
            value(jdbc.read(&table, by, &key)?, "1,2")?;
            ensure!(jdbc.end("COMMIT", &before)?.tags() == ["COMMIT"]);
            // Outside of a block, as transactions of one operation are.
            jdbc.append(&table, by, &key, "3")?;
            jdbc.append_by_hand(&table, by, &key, "4")?;
            value(jdbc.read(&table, by, &key)?, "1,2,3,4")?;
        }
        jdbc.run(&format!("drop table if exists {table}"), &[])?.ok()?;
    }
    Ok(())
}

#[test]
fn its_indirection() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("")?;
    let mut jdbc = Jdbc::open(&rig, &rig.replica)?;
    let (table, indirect) = (format!("{schema}.txn0"), format!("{schema}.txn_indir0"));
    let sql = format!("create table if not exists {table} (id int primary key, sk int, val text)");
    jdbc.run(&sql, &[])?.ok()?;
    let sql = format!("CREATE TABLE IF NOT EXISTS {indirect} (id int primary key, target_id int)");
    jdbc.run(&sql, &[])?.ok()?;
    for round in 0..7 {
        let key = (INT8, &*round.to_string());
        let before = jdbc.begin("REPEATABLE READ")?;
        jdbc.append(&table, "id", key.1, "1")?;
        let sql = format!(
            "INSERT INTO {indirect} AS t (id, target_id) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE \
             SET target_id = $3 WHERE t.id = $4"
        );
        jdbc.run(&sql, &[key, key, key, key])?.ok()?;
        jdbc.run(&format!("DELETE FROM {indirect} WHERE id = $1"), &[key])?.ok()?;
        let sql = format!("INSERT INTO {indirect} (id, target_id) VALUES ($1, $2)");
        jdbc.run(&sql, &[key, key])?.ok()?;
        let sql = format!(
            "SELECT {table}.val FROM {indirect} INNER JOIN {table} \
             ON {indirect}.target_id = {table}.id WHERE {indirect}.id = $1"
        );
        value(jdbc.run(&sql, &[key])?.ok()?.value(), "1")?;
        ensure!(jdbc.end("COMMIT", &before)?.tags() == ["COMMIT"]);
    }
    Ok(())
}

#[test]
fn its_register_workload_in_all_encodings() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("")?;
    let kinds = [
        ("integer", INT4, "7", "8"),
        ("double precision", FLOAT8, "7", "8"),
        ("decimal(32, 16)", NUMERIC, "7", "0.8"),
        ("character(32)", VARCHAR, "7", "8"),
        ("character varying(32)", VARCHAR, "7", "8"),
        ("text", VARCHAR, "7", "8"),
    ];
    let mut jdbc = Jdbc::open(&rig, &rig.replica)?;
    for (i, (kind, oid, key, val)) in kinds.into_iter().enumerate() {
        let table = format!("{schema}.rw{i}");
        let sql = format!(
            "create table if not exists {table} (id {kind} not null primary key, sk {kind} not null, \
             val {kind})"
        );
        jdbc.run(&sql, &[])?.ok()?;
        let (key, val) = ((oid, key), (oid, val));
        let before = jdbc.begin("READ COMMITTED")?;
        let sql = format!("UPDATE {table} SET val = $1 WHERE sk = $2");
        ensure!(jdbc.run(&sql, &[val, key])?.ok()?.tags().last().is_some_and(|t| t == "UPDATE 0"));
        let sql = format!(
            "INSERT INTO {table} AS t (id, sk, val) VALUES ($1, $2, $3) ON CONFLICT (id) DO UPDATE \
             SET val = $4 WHERE t.sk = $5"
        );
        jdbc.run(&sql, &[key, key, val, val, key])?.ok()?;
        jdbc.run(&sql, &[key, key, key, val, key])?.ok()?;
        let sql = format!("SELECT (val) FROM {table} WHERE id = $1");
        let found = jdbc.run(&sql, &[key])?.ok()?.value().context("no value")?;
        ensure!(found.trim().starts_with(val.1), "{kind}: {found}");
        jdbc.end("COMMIT", &before)?;
    }
    Ok(())
}

#[test]
fn the_errors_that_it_knows() -> Result<()> {
    let rig = Rig::shared()?;
    let schema = rig.schema("CREATE TABLE txn (id int PRIMARY KEY, sk int, val text)")?;
    let table = format!("{schema}.txn");
    let mut one = Jdbc::open(&rig, &rig.writer)?;
    let mut two = Jdbc::open(&rig, &rig.replica)?;
    one.append(&table, "id", "1", "1")?;
    one.append(&table, "id", "2", "1")?;
    // Two transactions that update one row at repeatable read.
    let levels = [one.begin("REPEATABLE READ")?, two.begin("REPEATABLE READ")?];
    value(one.read(&table, "id", "1")?, "1")?;
    value(two.read(&table, "id", "1")?, "1")?;
    one.append(&table, "id", "1", "2")?;
    one.end("COMMIT", &levels[0])?;
    let failed = two.append(&table, "id", "1", "3").err().context("a lost update")?.to_string();
    ensure!(failed.contains("could not serialize access"), "{failed}");
    let aborted = two.read(&table, "id", "1").err().context("the block goes on")?.to_string();
    ensure!(aborted.contains("current transaction is aborted"), "{aborted}");
    two.end("ROLLBACK", &levels[1])?;
    // Two transactions that skew at serializable: one of them fails.
    let levels = [one.begin("SERIALIZABLE")?, two.begin("SERIALIZABLE")?];
    for jdbc in [&mut one, &mut two] {
        jdbc.read(&table, "id", "1")?;
        jdbc.read(&table, "id", "2")?;
    }
    let first = one.append(&table, "id", "1", "4").and_then(|()| one.end("COMMIT", &levels[0]));
    let second = two.append(&table, "id", "2", "4").and_then(|()| two.end("COMMIT", &levels[1]));
    let failed: Vec<_> = [first, second]
        .into_iter()
        .filter_map(|ended| match ended {
            Ok(answer) => answer.error().map(|(_, message)| message),
            Err(error) => Some(error.to_string()),
        })
        .collect();
    ensure!(failed.iter().any(|f| f.contains("could not serialize access")), "{failed:?}");
    Ok(())
}
