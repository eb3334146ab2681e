//! Prepared statements that follow their clients, and that clients share.

use anyhow::Result;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::{Raw, Say};

in_both_modes! {
    a_named_statement_follows_its_client_to_other_connections
    statements_of_the_same_name_are_kept_apart
    a_name_is_free_again_after_close
    a_name_is_not_given_twice
    a_name_given_behind_a_failed_part_of_a_pipeline_is_free
    a_name_closed_behind_a_failed_part_of_a_pipeline_is_not_free
    nobody_executes_what_it_did_not_prepare
    unnamed_statements_of_the_same_text_are_prepared_once
    statements_survive_a_change_of_their_table
    a_statement_in_a_block_survives_a_change_of_its_table_before_it
    statements_can_be_deallocated
    all_statements_can_be_forgotten
    statements_that_could_not_be_forgotten_are_there
    what_has_committed_is_not_done_again
    statements_are_forgotten_though_others_failed_before
    a_statement_that_cannot_be_prepared_leaves_no_name
    more_statements_than_a_connection_keeps_work
    a_simple_query_ends_the_unnamed_statement
    drivers_prepare_and_cache
}

const PID: &str = "SELECT pg_backend_pid()";

async fn prepare(raw: &mut Raw, name: &str, sql: &str) -> Result<()> {
    let answer = raw.exchange(Say::new().parse(name, sql).sync()).await?;
    assert_eq!(answer.ok().tags, "1Z");
    Ok(())
}

async fn a_named_statement_follows_its_client_to_other_connections(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 3).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT pg_backend_pid() + 0 * $1::int").await?;
    let mut pids = std::collections::BTreeSet::new();
    let mut others = Vec::new();
    for _ in 0..3 {
        let answer = raw.exchange(Say::new().run("s", &["1"])).await?;
        pids.insert(answer.value().to_owned());
        // Whoever opens a block takes the connection that was used last.
        let mut other = door.raw().await?;
        other.ask("BEGIN").await?.ok();
        others.push(other);
        if others.len() < 3 {
            let described = raw.exchange(Say::new().describe(b'S', "s").sync()).await?;
            assert_eq!(described.tags, "tTZ");
        }
    }
    assert_eq!(pids.len(), 3);
    Ok(())
}

async fn statements_of_the_same_name_are_kept_apart(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    prepare(&mut a, "s", "SELECT 'of a'").await?;
    prepare(&mut b, "s", "SELECT 'of b'").await?;
    assert_eq!(a.exchange(Say::new().run("s", &[])).await?.value(), "of a");
    assert_eq!(b.exchange(Say::new().run("s", &[])).await?.value(), "of b");
    Ok(())
}

async fn a_name_is_free_again_after_close(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "s", "SELECT 'first'").await?;
    assert_eq!(raw.exchange(Say::new().close(b'S', "s").sync()).await?.tags, "3Z");
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    prepare(&mut raw, "s", "SELECT 'second'").await?;
    let all = Say::new()
        .bind("", "s", &[])
        .execute("", 0)
        .close(b'S', "s")
        .parse("s", "SELECT 'third'")
        .run("s", &[]);
    let answer = raw.exchange(all).await?.ok();
    assert_eq!(answer.tags, "2DC312DCZ");
    assert_eq!((&answer.rows[0][0], &answer.rows[1][0]), ("second", "third"));
    // What is not there can be closed all the same.
    assert_eq!(raw.exchange(Say::new().close(b'S', "never").sync()).await?.tags, "3Z");
    // A Close behind an error is not carried out.
    let say = Say::new().statement("SELECT 1/0").close(b'S', "s").sync();
    assert_eq!(raw.exchange(say).await?.code(), "22012");
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "third");
    Ok(())
}

async fn a_name_is_not_given_twice(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "mine", "SELECT 'first'").await?;
    let answer = raw.exchange(Say::new().parse("mine", "SELECT 'second'").sync()).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "42P05"));
    assert_eq!(answer.errors[0].message, "prepared statement \"mine\" already exists");
    let both = Say::new().parse("twice", "SELECT 'a'").parse("twice", "SELECT 'b'").sync();
    let answer = raw.exchange(both).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("1EZ", "42P05"));
    for (name, value) in [("mine", "first"), ("twice", "a")] {
        assert_eq!(raw.exchange(Say::new().run(name, &[])).await?.value(), value);
    }
    // It aborts a block, as it does in PostgreSQL.
    raw.ask("BEGIN").await?.ok();
    let answer = raw.exchange(Say::new().parse("mine", "SELECT 'second'").sync()).await?;
    assert_eq!((answer.code(), answer.status), ("42P05", 'E'));
    raw.ask("ROLLBACK").await?.ok();
    // Nothing of it stays on the connection.
    let mut other = door.raw().await?;
    prepare(&mut other, "mine", "SELECT 'of another'").await?;
    assert_eq!(other.exchange(Say::new().run("mine", &[])).await?.value(), "of another");
    let stray = "SELECT count(*) FROM pg_prepared_statements WHERE name IN ('mine', 'twice')";
    assert_eq!(other.value(stray).await?, "0");
    Ok(())
}

async fn nobody_executes_what_it_did_not_prepare(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    prepare(&mut a, "s", "SELECT 'of a'").await?;
    let answer = b.exchange(Say::new().run("s", &[])).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "26000"));
    assert_eq!(answer.errors[0].message, "prepared statement \"s\" does not exist");
    assert_eq!(b.exchange(Say::new().describe(b'S', "s").sync()).await?.code(), "26000");
    Ok(())
}

async fn unnamed_statements_of_the_same_text_are_prepared_once(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    let say = || {
        let say = Say::new().parse("", "SELECT $1::int * 2").bind("", "", &["21"]);
        say.describe(b'P', "").execute("", 0).sync()
    };
    for _ in 0..3 {
        for raw in [&mut a, &mut b] {
            let answer = raw.exchange(say()).await?;
            assert_eq!((&answer.tags[..], answer.value()), ("12TDCZ", "42"));
        }
    }
    prepare(&mut b, "named", "SELECT $1::int * 2").await?;
    assert_eq!(b.exchange(Say::new().run("named", &["3"])).await?.value(), "6");
    let count =
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1::int *%'";
    assert_eq!(a.value(count).await?, "1");
    Ok(())
}

async fn statements_survive_a_change_of_their_table(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    let mut other = door.raw().await?;
    raw.ask("CREATE TABLE t AS SELECT 1 AS a").await?.ok();
    prepare(&mut raw, "s", "SELECT * FROM t").await?;
    let unnamed = || Say::new().statement("SELECT * FROM t").sync();
    let insert = || Say::new().statement("INSERT INTO t(a) VALUES (1) RETURNING *").sync();
    for columns in 1..4 {
        for say in [Say::new().run("s", &[]), unnamed(), insert()] {
            let answer = raw.exchange(say).await?.ok();
            assert_eq!(answer.rows[0].cells().len(), columns);
        }
        other.ask(&format!("ALTER TABLE t ADD COLUMN c{columns} int")).await?.ok();
    }
    // And where it fails for good, it fails as it should.
    other.ask("DROP TABLE t").await?.ok();
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "42P01");
    assert_eq!(raw.exchange(unnamed()).await?.code(), "42P01");
    other.ask("CREATE TABLE t AS SELECT 'again' AS a").await?.ok();
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "again");
    assert_eq!(raw.exchange(unnamed()).await?.value(), "again");
    Ok(())
}

async fn a_statement_in_a_block_survives_a_change_of_its_table_before_it(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t AS SELECT 1 AS a").await?.ok();
    let unnamed = || Say::new().statement("SELECT * FROM t").sync();
    raw.exchange(unnamed()).await?.ok();
    raw.ask("ALTER TABLE t ADD COLUMN b int").await?.ok();
    raw.ask("BEGIN").await?.ok();
    assert_eq!(raw.exchange(unnamed()).await?.ok().rows[0].cells().len(), 2);
    raw.ask("COMMIT").await?.ok();
    Ok(())
}

async fn statements_can_be_deallocated(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut raw, mut other) = (door.raw().await?, door.raw().await?);
    prepare(&mut other, "s", "SELECT 'same'").await?;
    prepare(&mut raw, "s", "SELECT 'same'").await?;
    assert_eq!(raw.ask("DEALLOCATE s").await?.ok().commands, ["DEALLOCATE"]);
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
    assert_eq!(raw.ask("DEALLOCATE s").await?.code(), "26000");
    assert_eq!(other.exchange(Say::new().run("s", &[])).await?.value(), "same");
    prepare(&mut raw, "S t", "SELECT 'quoted'").await?;
    assert_eq!(raw.ask("DEALLOCATE \"S t\"").await?.ok().tags, "CZ");
    assert_eq!(raw.exchange(Say::new().run("S t", &[])).await?.code(), "26000");
    Ok(())
}

async fn all_statements_can_be_forgotten(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut raw, mut other) = (door.raw().await?, door.raw().await?);
    prepare(&mut other, "s", "SELECT 'of another'").await?;
    for word in ["DEALLOCATE ALL", "DISCARD ALL"] {
        prepare(&mut raw, "s", "SELECT 'mine'").await?;
        raw.ask(word).await?.ok();
        assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000", "{word}");
        assert_eq!(other.exchange(Say::new().run("s", &[])).await?.value(), "of another");
        prepare(&mut raw, "s", "SELECT 'mine'").await?;
        assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "mine");
        raw.exchange(Say::new().close(b'S', "s").sync()).await?.ok();
        assert_eq!(other.exchange(Say::new().run("s", &[])).await?.value(), "of another");
    }
    // One that fails forgets nothing.
    prepare(&mut raw, "s", "SELECT 'mine'").await?;
    assert_eq!(raw.ask("BEGIN; DISCARD ALL").await?.code(), "25001");
    raw.ask("ROLLBACK").await?.ok();
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "mine");
    Ok(())
}

async fn a_statement_that_cannot_be_prepared_leaves_no_name(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    let sql = "SELECT a FROM later";
    for _ in 0..2 {
        assert_eq!(raw.exchange(Say::new().parse("s", sql).sync()).await?.code(), "42P01");
        assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.code(), "26000");
        assert_eq!(raw.exchange(Say::new().statement(sql).sync()).await?.code(), "42P01");
    }
    raw.ask("CREATE TABLE later AS SELECT 'there' AS a").await?.ok();
    prepare(&mut raw, "s", sql).await?;
    assert_eq!(raw.exchange(Say::new().run("s", &[])).await?.value(), "there");
    assert_eq!(raw.exchange(Say::new().statement(sql).sync()).await?.value(), "there");
    Ok(())
}

async fn more_statements_than_a_connection_keeps_work(mode: Mode) -> Result<()> {
    // However few are wanted, one pipeline's worth is kept.
    for max in [1, 3] {
        let door = Door::with(mode, |wanted| {
            wanted.pool.size = 1;
            wanted.pool.prepared_max = max;
        })
        .await?;
        let mut raw = door.raw().await?;
        for i in 0..90 {
            prepare(&mut raw, &format!("s{i}"), &format!("SELECT {i}")).await?;
        }
        for i in [89, 0, 5, 5, 3, 0] {
            let answer = raw.exchange(Say::new().run(&format!("s{i}"), &[])).await?;
            assert_eq!((answer.code(), answer.rows.len()), ("", 1), "{max} are kept");
            assert_eq!(answer.value(), i.to_string(), "{max} are kept");
        }
        // All in one pipeline.
        let mut say = Say::new();
        for i in 0..10 {
            say = say.bind("", &format!("s{i}"), &[]).execute("", 0);
        }
        let answer = raw.exchange(say.sync()).await?.ok();
        let values: Vec<_> = answer.rows.iter().map(|r| r[0].to_owned()).collect();
        assert_eq!(values, (0..10).map(|i| i.to_string()).collect::<Vec<_>>());
        let count = "SELECT count(*) < 80 FROM pg_prepared_statements";
        assert_eq!(raw.value(count).await?, "t");
    }
    Ok(())
}

async fn a_simple_query_ends_the_unnamed_statement(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.exchange(Say::new().statement("SELECT 1").sync()).await?.ok();
    // It stays for later transactions.
    assert_eq!(raw.exchange(Say::new().run("", &[])).await?.value(), "1");
    raw.ask("SELECT 2").await?.ok();
    assert_eq!(raw.exchange(Say::new().run("", &[])).await?.code(), "26000");
    Ok(())
}

async fn drivers_prepare_and_cache(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let mut all = Vec::new();
    for i in 0..8i32 {
        let client = door.client().await?;
        all.push(tokio::spawn(async move {
            let statement = client.prepare("SELECT $1::int + $2::int").await?;
            for j in 0..30i32 {
                let row = client.query_one(&statement, &[&i, &j]).await?;
                assert_eq!(row.get::<_, i32>(0), i + j);
                let row = client.query_one("SELECT $1::text", &[&format!("{i}.{j}")]).await?;
                assert_eq!(row.get::<_, &str>(0), format!("{i}.{j}"));
            }
            anyhow::Ok(())
        }));
    }
    for one in all {
        one.await??;
    }
    let mut raw = door.raw().await?;
    assert!(!raw.value(PID).await?.is_empty());
    Ok(())
}

/// The server skips what comes behind an error up to the next Sync, and who sends on without waiting
/// does not know that yet.
async fn a_name_given_behind_a_failed_part_of_a_pipeline_is_free(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    let fails = Say::new().statement("SELECT 1 / 0").parse("a", "SELECT 'old'").sync();
    raw.say(fails.parse("a", "SELECT 'new'").sync().run("a", &[])).await?;
    assert_eq!(raw.answer().await?.code(), "22012");
    assert_eq!(raw.answer().await?.ok().tags, "1Z");
    assert_eq!(raw.answer().await?.ok().value(), "new");
    Ok(())
}

async fn a_name_closed_behind_a_failed_part_of_a_pipeline_is_not_free(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "a", "SELECT 'old'").await?;
    let fails = Say::new().statement("SELECT 1 / 0").close(b'S', "a").sync();
    raw.say(fails.parse("a", "SELECT 'new'").sync().run("a", &[])).await?;
    assert_eq!(raw.answer().await?.code(), "22012");
    assert_eq!(raw.answer().await?.code(), "42P05");
    assert_eq!(raw.answer().await?.ok().value(), "old");
    Ok(())
}

/// In a block that has failed nothing is forgotten, however the error and its end arrive.
async fn statements_that_could_not_be_forgotten_are_there(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "a", "SELECT 'a'").await?;
    for text in ["DEALLOCATE ALL", "DISCARD ALL"] {
        for _ in 0..20 {
            raw.ask("BEGIN").await?.ok();
            assert_eq!(raw.ask("SELECT 1 / 0").await?.code(), "22012");
            assert_eq!(raw.exchange(Say::new().statement(text).sync()).await?.code(), "25P02");
            raw.ask("ROLLBACK").await?.ok();
            assert_eq!(raw.exchange(Say::new().run("a", &[])).await?.ok().value(), "a");
        }
    }
    Ok(())
}

async fn statements_are_forgotten_though_others_failed_before(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    for text in ["DEALLOCATE ALL", "DISCARD ALL"] {
        prepare(&mut raw, "a", "SELECT 'a'").await?;
        let failing = Say::new().statement("SELECT 1 / 0").sync();
        raw.say(failing.statement(text).sync().parse("a", "SELECT 'new'").sync()).await?;
        assert_eq!(raw.answer().await?.code(), "22012");
        raw.answer().await?.ok();
        assert_eq!(raw.answer().await?.ok().tags, "1Z", "{text}");
        assert_eq!(raw.exchange(Say::new().run("a", &[])).await?.ok().value(), "new");
        raw.exchange(Say::new().close(b'S', "a").sync()).await?.ok();
    }
    Ok(())
}

/// A procedure may commit before a later statement of the same pipeline fails.
async fn what_has_committed_is_not_done_again(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    door.admin()
        .await?
        .batch_execute(
            "CREATE TABLE t(i int);
             CREATE PROCEDURE p() LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO t VALUES (1); COMMIT; END $$",
        )
        .await?;
    let mut raw = door.raw().await?;
    prepare(&mut raw, "p", "CALL p()").await?;
    prepare(&mut raw, "i", "INSERT INTO t VALUES (1)").await?;
    raw.exchange(Say::new().run("p", &[])).await?.ok();
    raw.exchange(Say::new().run("i", &[])).await?.ok();
    let failing = |say: Say| say.statement("SELECT FROM missing").sync();
    let call = Say::new().bind("", "p", &[]).execute("", 0);
    assert_eq!(raw.exchange(failing(call)).await?.code(), "42P01");
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "3");
    let insert = Say::new().bind("", "i", &[]).execute("", 0).statement("COMMIT");
    assert_eq!(raw.exchange(failing(insert)).await?.code(), "42P01");
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "4");
    Ok(())
}
