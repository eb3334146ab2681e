//! What clients do all day, through the gateway.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use bytes::BufMut;
use tokio::time::timeout;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::Say;

in_both_modes! {
    who_does_not_read_is_not_read_either
    what_stands_behind_a_name_is_no_message
    what_clears_the_session_may_be_long
    queries_and_large_results_pass
    copy_passes_by_simple_query
    copy_passes_by_the_extended_protocol
    a_copy_that_fails_leaves_the_session_usable
    pipelines_of_several_syncs_are_answered_in_order
    a_flush_is_answered_before_the_sync
    a_function_call_passes
    notices_pass
    after_an_error_a_pipeline_goes_on_behind_its_sync
    portals_are_suspended_inside_a_transaction
    many_clients_share_few_connections
    whoever_waits_longest_goes_first
    nobody_waits_for_a_connection_for_ever
    a_client_that_leaves_in_a_block_leaves_nothing_open
}

async fn queries_and_large_results_pass(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut client = door.client().await?;
    let row = client.query_one("SELECT $1::int + 1, current_user::text", &[&41]).await?;
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "app"));

    let rows =
        client.query("SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i", &[]).await?;
    assert_eq!(rows.len(), 20_000);
    let big: String = client.query_one("SELECT repeat('y', 30000000)", &[]).await?.get(0);
    assert_eq!(big.len(), 30_000_000);
    let sent = "z".repeat(3_000_000);
    let back: i32 = client.query_one("SELECT length($1)", &[&sent]).await?.get(0);
    assert_eq!(back, 3_000_000);

    client.batch_execute("CREATE TABLE t(i int)").await?;
    let fill = "INSERT INTO t SELECT i / 10 FROM generate_series(0, 19999) i";
    assert_eq!(client.execute(fill, &[]).await?, 20_000);
    let one = client.prepare("SELECT count(*) FROM t WHERE i < $1").await?;
    let (a, b, c) = tokio::try_join!(
        client.query_one(&one, &[&10]),
        client.query_one(&one, &[&100]),
        client.query_one(&one, &[&2000]),
    )?;
    let counts: [i64; 3] = [a.get(0), b.get(0), c.get(0)];
    assert_eq!(counts, [100, 1000, 20_000]);

    let transaction = client.transaction().await?;
    transaction.execute("DELETE FROM t", &[]).await?;
    transaction.rollback().await?;
    let error = client.query_one("SELECT 1/0", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    let left: i64 = client.query_one("SELECT count(*) FROM t", &[]).await?.get(0);
    assert_eq!(left, 20_000);
    Ok(())
}

async fn copy_passes_by_simple_query(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    let lines = b"12345\n".repeat(5000);
    raw.say(Say::new().query("COPY t FROM STDIN")).await?;
    assert_eq!(raw.until(b'G').await?.tags, "G");
    let data = Say::new().message(b'd', &lines).message(b'd', &lines).message(b'c', b"");
    assert_eq!(raw.exchange(data).await?.tags, "CZ");
    // Without waiting for the word that data are wanted.
    let all = Say::new().query("COPY t FROM STDIN").message(b'd', &lines).message(b'c', b"");
    let answer = raw.exchange(all).await?;
    assert_eq!((&answer.tags[..], &answer.commands[0][..]), ("GCZ", "COPY 5000"));
    let out = raw.ask("COPY t TO STDOUT").await?;
    assert_eq!(out.tags.matches('d').count(), 15_000);
    // The connection is free for others.
    assert_eq!(door.raw().await?.value("SELECT count(*) FROM t").await?, "15000");
    Ok(())
}

async fn copy_passes_by_the_extended_protocol(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    let lines = b"12345\n".repeat(5000);
    let copy = || Say::new().statement("COPY t FROM STDIN");
    // As drivers do it: the first Sync is swallowed by the copy.
    raw.say(copy().sync()).await?;
    assert_eq!(raw.until(b'G').await?.tags, "12G");
    let end = Say::new().message(b'd', &lines).message(b'c', b"").sync();
    assert_eq!(raw.exchange(end).await?.tags, "CZ");
    // All at once, with and without that Sync.
    let all = copy().sync().message(b'd', &lines).message(b'c', b"").sync();
    assert_eq!(raw.exchange(all).await?.tags, "12GCZ");
    let all = copy().message(b'd', &lines).message(b'c', b"").sync();
    assert_eq!(raw.exchange(all).await?.tags, "12GCZ");
    let out = raw.exchange(Say::new().statement("COPY t TO STDOUT").sync()).await?;
    assert_eq!(out.tags.matches('d').count(), 15_000);
    assert_eq!(door.raw().await?.value("SELECT count(*) FROM t").await?, "15000");
    Ok(())
}

async fn a_copy_that_fails_leaves_the_session_usable(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    let wrong = |say: Say| say.message(b'd', b"one\n").message(b'd', b"2\n").message(b'c', b"");
    let answer = raw.exchange(wrong(Say::new().query("COPY t FROM STDIN"))).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("GEZ", "22P02"));
    let answer = raw.exchange(wrong(Say::new().statement("COPY t FROM STDIN")).sync()).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("12GEZ", "22P02"));
    // The client itself gives up.
    raw.say(Say::new().query("COPY t FROM STDIN")).await?;
    raw.until(b'G').await?;
    let answer = raw.exchange(Say::new().message(b'f', b"changed my mind\0")).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "57014"));
    // There is no such table: what follows is thrown away.
    let answer = raw.exchange(wrong(Say::new().query("COPY nowhere FROM STDIN"))).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "42P01"));
    assert_eq!(raw.value("SELECT count(*) FROM t").await?, "0");
    assert_eq!(door.raw().await?.value("SELECT 7").await?, "7");
    Ok(())
}

async fn pipelines_of_several_syncs_are_answered_in_order(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let mut raw = door.raw().await?;
    let mut say = Say::new();
    for i in 0..50 {
        say = say.statement(&format!("SELECT {i}")).sync();
    }
    raw.say(say).await?;
    for i in 0..50 {
        let answer = raw.answer().await?;
        assert_eq!((&answer.tags[..], answer.value()), ("12DCZ", &i.to_string()[..]));
    }
    // Reads, writes and blocks behind one another.
    let say = Say::new()
        .query("CREATE TABLE t(i int)")
        .statement("INSERT INTO t VALUES (1)")
        .statement("INSERT INTO t VALUES (2)")
        .sync()
        .query("BEGIN; INSERT INTO t VALUES (3)")
        .query("SELECT count(*) FROM t")
        .query("ROLLBACK")
        .statement("SELECT count(*) FROM t")
        .sync();
    raw.say(say).await?;
    let mut seen = Vec::new();
    for _ in 0..6 {
        let answer = raw.answer().await?.ok();
        seen.push((answer.tags.clone(), answer.rows.first().map(|r| r[0].to_owned())));
    }
    let expected = [
        ("CZ", None),
        ("12C12CZ", None),
        ("CCZ", None),
        ("TDCZ", Some("3")),
        ("CZ", None),
        ("12DCZ", Some("2")),
    ];
    let expected: Vec<_> =
        expected.iter().map(|(t, v)| ((*t).to_owned(), v.map(str::to_owned))).collect();
    assert_eq!(seen, expected);
    Ok(())
}

async fn a_flush_is_answered_before_the_sync(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    for name in ["", "named"] {
        let prepare = Say::new().parse(name, "SELECT $1::int + 1").describe(b'S', name);
        raw.say(prepare.message(b'H', b"")).await?;
        assert_eq!(raw.until(b'T').await?.tags, "1tT");
        let answer = raw.exchange(Say::new().run(name, &["4"])).await?;
        assert_eq!((&answer.tags[..], answer.value()), ("2DCZ", "5"));
    }
    Ok(())
}

async fn a_function_call_passes(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    let mut body = bytes::BytesMut::new();
    body.put_u32(177); // int4pl
    body.put_u16(0);
    body.put_u16(2);
    for value in [b"40", b"02"] {
        body.put_u32(2);
        body.put_slice(value);
    }
    body.put_u16(0);
    raw.say(Say::new().message(b'F', &body)).await?;
    let result = raw.next().await?.unwrap();
    assert_eq!((result.tag, &result.body[4..]), (b'V', &b"42"[..]));
    assert_eq!(raw.answer().await?.tags, "Z");
    assert_eq!(door.raw().await?.value("SELECT 1").await?, "1");
    Ok(())
}

async fn notices_pass(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    let answer = raw.ask("DO $$ BEGIN RAISE NOTICE 'hear'; RAISE NOTICE 'this'; END $$").await?;
    assert_eq!(answer.tags, "NNCZ");
    assert_eq!(answer.notices[1].message, "this");
    Ok(())
}

async fn after_an_error_a_pipeline_goes_on_behind_its_sync(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    let say = Say::new()
        .statement("INSERT INTO t VALUES (1)")
        .statement("SELECT 1/(random() * 0)::int")
        .parse("kept", "SELECT 'never'")
        .statement("INSERT INTO t VALUES (2)")
        .sync()
        .statement("SELECT count(*) FROM t")
        .sync()
        .run("kept", &[]);
    raw.say(say).await?;
    let answer = raw.answer().await?;
    assert_eq!((&answer.tags[..], answer.code()), ("12C12EZ", "22012"));
    let answer = raw.answer().await?;
    assert_eq!((&answer.tags[..], answer.value()), ("12DCZ", "0"), "the whole pipeline is undone");
    assert_eq!(raw.answer().await?.code(), "26000", "the statement was never prepared");
    let answer = raw.exchange(Say::new().parse("kept", "SELECT 'now'").run("kept", &[])).await?;
    assert_eq!(answer.value(), "now");
    Ok(())
}

async fn portals_are_suspended_inside_a_transaction(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut raw = door.raw().await?;
    raw.ask("BEGIN").await?.ok();
    let open = Say::new()
        .parse("", "SELECT * FROM generate_series(1, 5)")
        .bind("p", "", &[])
        .execute("p", 2)
        .sync();
    let answer = raw.exchange(open).await?;
    assert_eq!((&answer.tags[..], answer.status), ("12DDsZ", 'T'));
    let answer = raw.exchange(Say::new().execute("p", 2).sync()).await?;
    assert_eq!((&answer.tags[..], &answer.rows[1][0]), ("DDsZ", "4"));
    assert_eq!(raw.exchange(Say::new().execute("p", 0).sync()).await?.tags, "DCZ");
    assert_eq!(raw.ask("COMMIT").await?.status, 'I');
    let answer = raw.exchange(Say::new().execute("p", 0).sync()).await?;
    assert_eq!(answer.code(), "34000", "the portal ended with its transaction");
    assert_eq!(door.raw().await?.value("SELECT 1").await?, "1");
    Ok(())
}

async fn many_clients_share_few_connections(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    let mut all = Vec::new();
    for i in 0..20 {
        let mut raw = door.raw().await?;
        all.push(tokio::spawn(async move {
            let mut pids = BTreeSet::new();
            for j in 0..20 {
                raw.ask("BEGIN").await?.ok();
                pids.insert(raw.value("SELECT pg_backend_pid()").await?);
                let mine = format!("{i} {j}");
                assert_eq!(raw.value(&format!("SELECT '{mine}'")).await?, mine);
                assert_eq!(raw.ask("COMMIT").await?.ok().status, 'I');
            }
            anyhow::Ok(pids)
        }));
    }
    let mut pids = BTreeSet::new();
    for one in all {
        pids.extend(one.await??);
    }
    assert!(pids.len() <= 2, "{pids:?}");
    Ok(())
}

async fn whoever_waits_longest_goes_first(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut first = door.raw().await?;
    first.ask("CREATE TABLE t(n serial, i int)").await?.ok();
    let mut others = Vec::new();
    for _ in 0..6 {
        others.push(door.raw().await?);
    }
    first.ask("BEGIN").await?.ok();
    for (i, other) in others.iter_mut().enumerate() {
        other.say(Say::new().query(&format!("INSERT INTO t(i) VALUES ({i})"))).await?;
        door.waiting(i + 1).await;
    }
    // One of them gives up: nobody waits behind it.
    drop(others.remove(2));
    first.ask("COMMIT").await?.ok();
    for other in &mut others {
        other.answer().await?.ok();
    }
    // Whether the one that left was served is its own business.
    let order = "SELECT string_agg(i::text, ' ' ORDER BY n) FROM t WHERE i <> 2";
    assert_eq!(first.value(order).await?, "0 1 3 4 5");
    Ok(())
}

async fn nobody_waits_for_a_connection_for_ever(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| {
        wanted.pool.size = 1;
        wanted.pool.wait_ms = 100;
        wanted.pool.waiting_max = 1;
    })
    .await?;
    let mut first = door.raw().await?;
    let mut second = door.raw().await?;
    let mut third = door.raw().await?;
    first.ask("BEGIN").await?.ok();
    let answer = second.ask("CREATE TABLE t()").await?;
    assert_eq!((answer.code(), answer.status), ("53300", 'I'));
    let answer = second.exchange(Say::new().statement("CREATE TABLE t()").sync()).await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "53300"));
    door.want(|wanted| wanted.pool.wait_ms = 60_000);
    // The second one waits, the third one finds no room to.
    second.say(Say::new().query("SELECT to_regclass('t') IS NULL")).await?;
    door.waiting(1).await;
    assert_eq!(third.ask("SELECT 1").await?.code(), "53300");
    first.ask("COMMIT").await?.ok();
    assert_eq!(second.answer().await?.value(), "t", "nothing was executed");
    assert_eq!(third.value("SELECT 1").await?, "1");
    Ok(())
}

async fn a_client_that_leaves_in_a_block_leaves_nothing_open(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut first = door.raw().await?;
    first.ask("CREATE TABLE t(i int)").await?.ok();
    first.ask("BEGIN; INSERT INTO t VALUES (1)").await?.ok();
    drop(first);
    let mut second = door.raw().await?;
    assert_eq!(second.value("SELECT count(*) FROM t").await?, "0");
    assert_eq!(door.clients(), 1);
    Ok(())
}

/// What needs no server is answered at once: the answers must not pile up in the gateway.
async fn who_does_not_read_is_not_read_either(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut client = door.raw().await?;
    let wrong = format!("SET quorate.consistency = '{}'", "x".repeat(8 * 1024));
    let wrong = Say::new().query(&wrong).0;
    // Far more than sockets have room for.
    let mut said = 0;
    while let Ok(done) = timeout(Duration::from_secs(2), client.bytes(&wrong)).await {
        done?;
        said += 1;
        assert!(said < 8 * 1024, "{said} answers wait in the gateway");
    }
    Ok(())
}

/// A message that is replaced is dropped to its end: what stands there is nothing of its own.
async fn what_stands_behind_a_name_is_no_message(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut client = door.raw().await?;
    let hidden = Say::new().query("CREATE TABLE hidden ()").0;
    for (kind, named, seen) in
        [(b'D', &b"Sa\0"[..], 300), (b'C', b"Sa\0", 300), (b'Q', b"DEALLOCATE a", 64 * 1024)]
    {
        client.exchange(Say::new().close(b'S', "a").parse("a", "SELECT 1").sync()).await?.ok();
        client.ask("BEGIN").await?.ok();
        let mut body = named.to_vec();
        body.resize(seen, b' ');
        body.extend_from_slice(&hidden);
        let message = Say::new().message(kind, &body).0;
        let (head, tail) = message.split_at(5 + seen);
        client.bytes(head).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        client.bytes(tail).await?;
        let tags = match kind {
            b'D' | b'C' => client.exchange(Say::new().sync()).await?.ok().tags,
            // The server itself finds that it has bytes too many.
            _ => client.answer().await?.tags,
        };
        let expected = match kind {
            b'D' => "tTZ",
            b'C' => "3Z",
            _ => "EZ",
        };
        assert_eq!(tags, expected);
        client.ask("COMMIT").await?;
        assert_eq!(client.value("SELECT 5").await?, "5");
    }
    let made = "SELECT count(*) FROM pg_class WHERE relname = 'hidden'";
    assert_eq!(door.value(made).await?, "0");
    Ok(())
}

/// The next request waits for the answer to such a statement; its own end does not.
async fn what_clears_the_session_may_be_long(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut client = door.raw().await?;
    for sql in ["DISCARD ALL", "DEALLOCATE ALL", "BEGIN; DEALLOCATE ALL; COMMIT"] {
        client.exchange(Say::new().parse("a", "SELECT 1").sync()).await?.ok();
        let long = format!("{sql}{}", " ".repeat(1024 * 1024));
        client.ask(&long).await?.ok();
        assert_eq!(client.value("SELECT 5").await?, "5");
    }
    Ok(())
}
