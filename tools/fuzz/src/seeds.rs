//! What the search begins with: real packets, real conversations, real statements.

use std::fs;
use std::path::PathBuf;

use bytes::{BufMut, BytesMut};
use quorate_wire::backend::Report;
use quorate_wire::frame::{put, put_cstr};
use quorate_wire::{CancelKey, FirstPacket, Startup, scram};

use crate::login::How;

/// Writes seeds into the directory that `QUORATE_FUZZ_SEEDS` names, when it does.
pub fn write(seeds: &[Vec<u8>]) {
    let Some(dir) = std::env::var_os("QUORATE_FUZZ_SEEDS").map(PathBuf::from) else { return };
    for (i, seed) in seeds.iter().enumerate() {
        if let Err(error) = fs::write(dir.join(format!("seed-{i:03}")), seed) {
            eprintln!("cannot write a seed into {}: {error}", dir.display());
        }
    }
}

const STATEMENTS: &[&str] = &[
    "",
    "SELECT a, b.c FROM t WHERE a = 'x' AND b > 1.5 ORDER BY c",
    "SELECT count(*) FILTER (WHERE a) OVER (PARTITION BY b) FROM t AS u (a, b)",
    "WITH x (a) AS (VALUES (1)), y AS (SELECT 2) SELECT lower(a) FROM x, y",
    "SELECT f(1), public.g('x'), pg_catalog.lower($1)",
    "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
    "SELECT * INTO TEMP t2 FROM t",
    "INSERT INTO t (a, b) VALUES (1, 'x') ON CONFLICT (a) DO NOTHING RETURNING a",
    "WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x",
    "UPDATE t SET a = 1 WHERE b = $1; DELETE FROM t; MERGE INTO t USING u ON a = b WHEN MATCHED THEN DO NOTHING",
    "SET LOCAL work_mem = '1MB'",
    "SET quorate.consistency = 'strong'",
    "SET quorate.token = 'c1.5.5A'; SHOW quorate.token",
    "SET synchronous_commit TO off",
    "SET TIME ZONE LOCAL; SET ROLE none; RESET ALL; SHOW ALL; SHOW \"Work_Mem\"",
    "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SELECT 1; COMMIT AND CHAIN",
    "START TRANSACTION READ WRITE; SAVEPOINT a; ROLLBACK TO a; RELEASE a; END",
    "SELECT set_config('a.b', 'c', true), current_setting('port')",
    "COPY (SELECT 1) TO STDOUT WITH (FORMAT csv)",
    "COPY t FROM STDIN",
    "DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT 1; FETCH ALL FROM c; CLOSE c",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; COMMIT",
    "EXPLAIN (ANALYZE) SELECT nextval('s')",
    "SELECT a::varchar(3), pg_advisory_lock(1) FROM pg_locks, \"pg_settings\"",
    "PREPARE p (int) AS SELECT $1; EXECUTE p(1); DEALLOCATE p; DISCARD ALL",
    "LISTEN a; NOTIFY a, 'b'; UNLISTEN *; LOAD 'x'; DO $$ BEGIN END $$; CALL p(1)",
    "/* quorate: eventual, max_staleness=5s */ SELECT 1",
    "/* a /* nested */ ' */ SELECT E'\\'', U&'\\0041' UESCAPE '!', $q$ ' $q$, B'01', N'x' -- '",
    "SELECT 'a'\n'b' -- c\n, U&\"f\"(1), 1.5e-3, 0x1F, .5, 1..2, $1, a[1:2], b OPERATOR(pg_catalog.+) c",
    "VALUES (1), (2); TABLE t; LOCK t; VACUUM; CHECKPOINT; TRUNCATE t",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "PREPARE TRANSACTION 'x'; COMMIT PREPARED 'x'; ROLLBACK PREPARED 'x'",
    "((((SELECT (((1))) UNION (SELECT 2)))))",
];

/// For `sql`.
pub fn sql() -> Vec<Vec<u8>> {
    let knobs = [0u8, 1, 2, 0xf0];
    let seed = |(i, sql): (usize, &&str)| [&[knobs[i % 4]], sql.as_bytes()].concat();
    STATEMENTS.iter().enumerate().map(seed).collect()
}

fn message(tag: u8, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    put(&mut out, tag, |out| out.put_slice(body));
    out
}

fn query(sql: &str) -> BytesMut {
    message(b'Q', &[sql.as_bytes(), b"\0"].concat())
}

/// Parse, Bind, Describe, Execute, Sync.
fn extended(name: &str, sql: &str) -> Vec<u8> {
    let n = name.as_bytes();
    [
        message(b'P', &[n, b"\0", sql.as_bytes(), b"\0\0\x01\0\0\0\x17"].concat()),
        message(b'D', &[b"S", n, b"\0"].concat()),
        message(b'B', &[b"\0", n, b"\0\0\0\0\x01\0\0\0\x011\0\0"].concat()),
        message(b'E', b"\0\0\0\0\0"),
        message(b'C', &[b"S", n, b"\0"].concat()),
        message(b'S', b""),
    ]
    .concat()
}

fn first_packets() -> Vec<Vec<u8>> {
    let secret = bytes::Bytes::from_static(&[9; 32]);
    let mut all = vec![
        FirstPacket::Ssl.encode(),
        FirstPacket::GssEnc.encode(),
        FirstPacket::Cancel(CancelKey { pid: 0, secret: secret.slice(..4) }).encode(),
        FirstPacket::Cancel(CancelKey { pid: 1 << 24, secret }).encode(),
    ];
    for user in ["app", "boss", "scram", "old", "odd", "late", "shut", "lost", "no", "quorate", ""]
    {
        all.push(Startup::new(&[("user", user), ("database", "app")]).encode());
    }
    let more = [
        ("user", "app"),
        ("options", "-c geqo=off --work-mem=4MB -cx.y=a\\ b"),
        ("_pq_.option", "1"),
        ("application_name", "psql"),
        ("client_encoding", "UTF8"),
        ("replication", "false"),
        ("synchronous_commit", "off"),
    ];
    all.push(Startup::new(&more).encode());
    let mut newer = Startup::new(&more);
    newer.version = 0x0003_0002;
    all.push(newer.encode());
    newer.version = 0x0003_0009;
    all.push(newer.encode());
    all.into_iter().map(|packet| packet.to_vec()).collect()
}

/// A client's two SCRAM messages.
fn sasl() -> Vec<u8> {
    let first = b"n,,n=,r=fyko+d2lbbFgONRv9qkxdawL";
    let mut initial = BytesMut::new();
    put_cstr(&mut initial, scram::SCRAM.as_bytes());
    initial.put_u32(first.len() as u32);
    initial.put_slice(first);
    let last =
        b"c=biws,r=fyko+d2lbbFgONRv9qkxdawLAAAA,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    [message(b'p', &initial), message(b'p', last)].concat()
}

/// For `frames`.
pub fn frames() -> Vec<Vec<u8>> {
    let with = |body: &[u8]| [&[7, 30, 64], body].concat();
    let mut seeds: Vec<_> = first_packets().iter().map(|packet| with(packet)).collect();
    seeds.push(with(&sasl()));
    seeds.push(with(&extended("a", "SELECT $1")));
    seeds.push(with(&[query("SELECT 1"), message(b'X', b"")].concat()));
    let report = Report::error("57P03", "no writer").detail("d").hint("h").encode();
    let answer = [
        message(b'R', &[0; 4]),
        message(b'K', &[0, 0, 0, 1, 2, 3, 4, 5]),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'T', b"\0\x01a\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"),
        message(b'D', b"\0\x02\0\0\0\x011\xff\xff\xff\xff"),
        message(b'C', b"SELECT 1\0"),
        message(b'N', b"SWARNING\0VWARNING\0C01000\0Fsyncrep.c\0RSyncRepWaitForLSN\0\0"),
        report.clone(),
        message(b'Z', b"I"),
    ];
    seeds.push(with(&answer.concat()));
    let identity = b"\0\x03\0\0\0\x137312345678901234567\0\0\0\x015\0\0\0\x090/3000148";
    seeds.push(with(identity));
    seeds.push(with(&message(b'd', &[&b"w"[..], &[1; 24], b"wal"].concat())));
    seeds.push(with(&message(b'd', &[&b"k"[..], &[1; 17]].concat())));
    seeds.push(with(&message(b'd', &[&b"r"[..], &[1; 33]].concat())));
    for body in [
        &report[5..],
        &[&b"k"[..], &[1; 17]].concat(),
        &[&b"r"[..], &[1; 32], &[0]].concat(),
        b"\x10n,,n=,r=fyko+d2lbbFgONRv9qkxdawL",
        b"\x17p=tls-server-end-point,,n=,r=abcc=cD10bHM,r=abc,p=AAAA",
        b"c1.5.5A",
        b"md504a6e9cad70986782b90718777cf1414",
        b"SCRAM-SHA-256$4096:DAxE/Ykp4p7N+YWaiW19rA==$cZtBpicSm6RhppoV+u38WgagKbW2u05jGl0QUyy13BQ=:comUIfInZ7PIomvLpXKGbKS+dnwm2uNruLAGeGgyQrg=",
        b"\x30\x25\x30\x10\x02\x01\x01\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\0\x03\x02\0\0",
    ] {
        seeds.push(with(body));
    }
    seeds
}

/// For `login`.
pub fn login() -> Vec<Vec<u8>> {
    let with = |how: u8, chunk: u8, script: &[u8], said: &[u8]| {
        [&[how, chunk, script.len() as u8][..], script, said].concat()
    };
    let served = How::TRUSTED | How::WRITER;
    let mut seeds = Vec::new();
    for (i, packet) in first_packets().iter().enumerate() {
        let said = [&packet[..], &sasl(), &query("SELECT 1"), &message(b'X', b"")].concat();
        seeds.push(with(How::STRANGER | (i as u8 % 2) * How::WRITER, i as u8 % 3 * 5, b"", &said));
    }
    let encrypted = [&FirstPacket::Ssl.encode()[..], &first_packets()[4]].concat();
    seeds.push(with(How::STRANGER, 0, b"", &encrypted));
    seeds.push(with(
        How::STRANGER,
        0,
        b"",
        &[&first_packets()[7][..], b"p\0\0\0\x07md5\0"].concat(),
    ));
    for (i, sql) in STATEMENTS.iter().enumerate() {
        let said = [&query(sql)[..], &extended("a", sql), &extended("", sql), &query("ROLLBACK")];
        let more = [0, How::REPLICA, How::SESSION, How::STRICT, How::REPLICA | How::MAD][i % 5];
        let script = [0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 180, 0, 0, 140, 0, 0, 188];
        seeds.push(with(served | more, i as u8 % 4 * 9, &script, &said.concat()));
    }
    let copy = [
        query("COPY t FROM STDIN"),
        message(b'd', b"1\t2\n"),
        message(b'c', b""),
        query("COPY t FROM STDIN"),
        message(b'f', b"no\0"),
        message(b'F', b"\0\0\0\x01\0\0\0\0\0\0"),
        message(b'H', b""),
        message(b'S', b""),
    ];
    seeds.push(with(served, 0, b"", &copy.concat()));
    let block = ["BEGIN READ ONLY", "SELECT 1", "INSERT INTO t VALUES (1)", "COMMIT"].map(query);
    seeds.push(with(served | How::REPLICA, 0, b"", &block.concat()));
    seeds.push(with(served | How::REPLICA | How::MAD, 3, &[0; 40], &block.concat()));
    seeds.push(with(How::TRUSTED, 0, b"", &query("SELECT 1")));
    for sql in ["SELECT 1", "SET quorate.x = 1", "COPY t FROM STDIN"] {
        seeds.push(with(served | How::DEAF, 0, b"", &query(sql)));
        seeds.push(with(How::TRUSTED | How::DEAF, 0, b"", &query(sql)));
    }
    seeds.push(with(served | How::DEAF, 0, b"", &extended("", "SELECT 1")));
    for show in ["POOLS", "CLIENTS", "SERVERS", "STATS", "DATABASES", "CONFIG", "VERSION", "HELP"] {
        seeds.push(with(How::CONSOLE | How::WRITER, 0, b"", &query(&format!("SHOW {show}"))));
    }
    let console = "SHOW LISTS; PAUSE app; RESUME; RELOAD; RECONNECT app; KILL 1; nonsense";
    seeds.push(with(How::CONSOLE, 1, b"", &[query(console), message(b'S', b"")].concat()));
    let packet = &first_packets()[4];
    seeds.push(with(How::NODE, 0, b"", &[b"\x01\0\0\0\0", &packet[..]].concat()));
    seeds.push(with(How::NODE, 0, b"", &[b"\x03\0\0\0\0", &packet[..]].concat()));
    let cancel = &first_packets()[2];
    for kind in [2, 4] {
        seeds.push(with(How::NODE, 0, b"", &[&[kind, 0, 0, 0, 16], &cancel[..]].concat()));
    }
    seeds.push(with(How::NODE, 0, b"", b"\x05\0\0\0\x05scram"));
    seeds.push(with(How::NODE, 0, b"", &[&b"\x06\0\0\0\x14"[..], &[1; 20]].concat()));
    seeds
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_wrong_with_the_seeds() {
        super::frames().iter().for_each(|seed| crate::frames::check(seed));
        super::sql().iter().for_each(|seed| crate::sql::check(seed));
        super::login().iter().for_each(|seed| crate::login::check(seed));
    }

    #[test]
    fn nothing_is_left_of_a_client() {
        let seeds = super::login();
        let all = || seeds.iter().for_each(|seed| crate::login::check(seed));
        all();
        let before = crate::memory::live();
        (0..3).for_each(|_| all());
        let left = crate::memory::live().saturating_sub(before);
        assert!(left < 64 * 1024, "{left} bytes are left");
    }
}
