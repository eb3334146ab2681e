//! Times the classifier: `cargo run --release -p quorate-wire --example classify`.
//! With an argument, says what that statement is.

use std::{hint::black_box, time::Instant};

use quorate_wire::sql::{Options, classify};

const STATEMENTS: [&str; 12] = [
    "SELECT 1",
    "SELECT abalance FROM pgbench_accounts WHERE aid = 12345",
    "SELECT abalance FROM pgbench_accounts WHERE aid = $1",
    "UPDATE pgbench_accounts SET abalance = abalance + 101 WHERE aid = 12345",
    "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) \
     VALUES (1, 2, 3, 4, CURRENT_TIMESTAMP)",
    "BEGIN",
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    "COMMIT",
    "SET search_path TO app, public",
    "SELECT count(*), max(lower(name)) FROM users WHERE created_at > now() - interval '1 day'",
    "SELECT u.\"id\", u.\"name\", u.\"email\", o.\"total\" FROM \"users\" u \
     LEFT OUTER JOIN \"orders\" o ON o.\"user_id\" = u.\"id\" AND o.\"state\" IN ('new', 'paid') \
     WHERE u.\"deleted_at\" IS NULL AND u.\"email\" ILIKE $1 ORDER BY u.\"id\" DESC LIMIT 20",
    "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 100), \
     s AS (SELECT n, row_number() OVER (PARTITION BY n % 10 ORDER BY n) AS r FROM t) \
     SELECT sum(n) FILTER (WHERE r < 3), string_agg(n::varchar(20), ',') FROM s \
     GROUP BY r HAVING count(*) > 1 -- and a comment",
];

const ROUNDS: u32 = 200_000;

fn main() {
    let options = Options::default();
    if let Some(sql) = std::env::args().nth(1) {
        println!("{:#?}", classify(sql.as_bytes(), &options));
        return;
    }
    let bulk = format!("INSERT INTO t (a, b) VALUES {}", "(12345, 'some text'), ".repeat(50_000));
    let start = Instant::now();
    black_box(classify(black_box(bulk.as_bytes()), &options));
    let per_byte = start.elapsed().as_nanos() as f64 / bulk.len() as f64;
    println!("{per_byte:>6.2} ns a byte of {} bytes of INSERT", bulk.len());
    for sql in STATEMENTS {
        let best = (0..5)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..ROUNDS {
                    black_box(classify(black_box(sql.as_bytes()), black_box(&options)));
                }
                start.elapsed().as_nanos() / u128::from(ROUNDS)
            })
            .min();
        let script = classify(sql.as_bytes(), &options);
        let shown: String = sql.chars().take(60).collect();
        let best = best.unwrap_or_default();
        println!("{best:>6} ns  {:>4} bytes  {:?}  {shown}", sql.len(), script.access);
    }
}
