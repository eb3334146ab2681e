//! Settings: a client has its own wherever its transactions run, and nobody else's.

use anyhow::Result;
use quorate_wire::Startup;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::{Raw, Say};

in_both_modes! {
    settings_follow_their_client_and_no_other
    what_is_rolled_back_or_local_does_not_stay
    every_way_to_make_a_setting_is_followed
    a_role_is_followed
    settings_that_code_changes_are_followed
    what_is_set_behind_discard_all_in_one_pipeline_is_followed
    settings_of_the_first_packet_hold
    a_reset_leads_back_to_the_first_packet
    a_wrong_setting_of_the_first_packet_is_told_in_the_servers_words
    settings_that_cannot_be_followed_stay_with_their_client
    discard_all_leads_back_to_the_first_packet
    who_logs_in_is_told_its_own_settings
}

const WORK_MEM: &str = "SHOW work_mem";

async fn settings_follow_their_client_and_no_other(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    assert_eq!(a.ask("SET work_mem = '7MB'").await?.ok().tags, "CZ");
    a.ask("SET app.tenant = 'o''neill \\ co'").await?.ok();
    assert_eq!(b.value(WORK_MEM).await?, "4MB");
    assert_ne!(b.value("SELECT current_setting('app.tenant', true)").await?, "o'neill \\ co");
    b.exchange(Say::new().statement("SET work_mem TO '8MB'").sync()).await?.ok();
    for _ in 0..2 {
        assert_eq!(a.value(WORK_MEM).await?, "7MB");
        assert_eq!(a.value("SELECT current_setting('app.tenant')").await?, "o'neill \\ co");
        assert_eq!(b.value(WORK_MEM).await?, "8MB");
    }
    // And to a connection made anew.
    door.console().await?.ask("RECONNECT").await?.ok();
    assert_eq!(a.value(WORK_MEM).await?, "7MB");
    a.ask("RESET work_mem").await?.ok();
    assert_eq!(a.value(WORK_MEM).await?, "4MB");
    assert_eq!(b.value(WORK_MEM).await?, "8MB");
    b.ask("RESET ALL").await?.ok();
    assert_eq!(b.value(WORK_MEM).await?, "4MB");
    assert_eq!(door.raw().await?.value(WORK_MEM).await?, "4MB");
    Ok(())
}

async fn what_is_rolled_back_or_local_does_not_stay(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    for (block, value) in [
        (&["BEGIN", "SET work_mem = '7MB'", "ROLLBACK"][..], "4MB"),
        (&["BEGIN", "SET LOCAL work_mem = '7MB'", "COMMIT"], "4MB"),
        (&["BEGIN", "SET work_mem = '7MB'", "SELECT 1/0", "COMMIT"], "4MB"),
        (
            &[
                "BEGIN",
                "SET work_mem = '7MB'",
                "SAVEPOINT s",
                "SET work_mem = '9MB'",
                "ROLLBACK TO s",
                "COMMIT",
            ],
            "7MB",
        ),
        (&["BEGIN", "RESET work_mem", "ROLLBACK"], "7MB"),
        (&["SET work_mem = 'much'"], "7MB"),
        (&["BEGIN", "RESET work_mem", "COMMIT"], "4MB"),
    ] {
        for sql in block {
            a.ask(sql).await?;
        }
        assert_eq!(b.value(WORK_MEM).await?, "4MB", "{block:?}");
        assert_eq!(a.value(WORK_MEM).await?, value, "{block:?}");
    }
    Ok(())
}

async fn every_way_to_make_a_setting_is_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    for (sql, name, value) in [
        ("SET TIME ZONE 'Asia/Tokyo'", "timezone", "Asia/Tokyo"),
        ("SET SESSION TIME ZONE DEFAULT", "timezone", ""),
        ("SET NAMES 'LATIN1'", "client_encoding", "LATIN1"),
        ("SET search_path TO \"My Schema\", public", "search_path", "\"My Schema\", public"),
        ("SET SCHEMA 'pg_catalog'", "search_path", "pg_catalog"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY",
            "default_transaction_isolation",
            "serializable",
        ),
        ("SET SESSION work_mem = '7MB'", "work_mem", "7MB"),
        ("/* a comment */ set WORK_MEM=7777", "work_mem", "7777kB"),
        ("SET \"work_mem\" TO '7MB'", "work_mem", "7MB"),
        ("SET datestyle = 'German'", "datestyle", "German, DMY"),
        ("SET application_name = 'the app'", "application_name", "the app"),
        ("SET standard_conforming_strings = off", "standard_conforming_strings", "off"),
    ] {
        let (mut a, mut b) = (door.raw().await?, door.raw().await?);
        let show = format!("SHOW {name}");
        let before = b.value(&show).await?;
        a.ask(sql).await?.ok();
        assert_eq!(b.value(&show).await?, before, "{sql}");
        let value = if value.is_empty() { &before } else { value };
        let after = a.ask(&show).await?;
        assert!(after.errors.is_empty(), "{sql}: {:?}", after.errors);
        assert_eq!(after.value(), value, "{sql}");
        assert_eq!(b.value(&show).await?, before, "{sql}");
    }
    Ok(())
}

async fn a_role_is_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    const WHO: &str = "SELECT current_user || ' as ' || session_user";
    a.ask("SET ROLE app").await?.ok();
    assert_eq!(b.value(WHO).await?, "postgres as postgres");
    assert_eq!(a.value(WHO).await?, "app as postgres");
    // What the login role set may be more than the role could.
    a.ask("RESET ROLE").await?.ok();
    a.ask("SET log_statement = 'none'").await?.ok();
    a.ask("SET ROLE app").await?.ok();
    assert_eq!(b.value(WHO).await?, "postgres as postgres");
    b.ask("SET work_mem = '8MB'").await?.ok();
    assert_eq!(a.value(WHO).await?, "app as postgres");
    a.ask("SET ROLE NONE").await?.ok();
    assert_eq!(a.value(WHO).await?, "postgres as postgres");
    Ok(())
}

async fn login(door: &Door, more: &[(&str, &str)]) -> Result<Raw> {
    let base = [("user", "postgres"), ("database", &door.database[..])];
    let mut raw = Raw::connect(door.address, &Startup::new(&[&base, more].concat())).await?;
    raw.greeted().await?;
    Ok(raw)
}

async fn settings_of_the_first_packet_hold(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let with = [
        ("application_name", "the app"),
        ("options", "-c work_mem=7MB --statement-timeout=5min -cgeqo=off -c app.x=a\\ b"),
        ("DateStyle", "German"),
    ];
    let mut a = login(&door, &with).await?;
    let mut b = door.raw().await?;
    assert_eq!(a.parameters["application_name"], "the app");
    assert_eq!(a.parameters["DateStyle"], "German, DMY");
    for _ in 0..2 {
        assert_eq!(b.value(WORK_MEM).await?, "4MB");
        for (name, value) in [
            ("application_name", "the app"),
            ("work_mem", "7MB"),
            ("statement_timeout", "5min"),
            ("geqo", "off"),
            ("app.x", "a b"),
            ("datestyle", "German, DMY"),
        ] {
            assert_eq!(a.value(&format!("SHOW {name}")).await?, value);
        }
    }
    Ok(())
}

async fn a_reset_leads_back_to_the_first_packet(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    for back in ["RESET ALL", "DISCARD ALL"] {
        let mut a = login(&door, &[("options", "-c work_mem=7MB")]).await?;
        a.ask("SET work_mem = '9MB'").await?.ok();
        assert_eq!(a.value(WORK_MEM).await?, "9MB");
        a.ask(back).await?.ok();
        assert_eq!(a.value(WORK_MEM).await?, "7MB", "{back}");
    }
    Ok(())
}

async fn a_wrong_setting_of_the_first_packet_is_told_in_the_servers_words(
    mode: Mode,
) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let base = [("user", "postgres"), ("database", &door.database[..])];
    for (name, value, words) in [
        ("nonsense", "1", "unrecognized configuration parameter \"nonsense\""),
        ("work_mem", "much", "invalid value for parameter \"work_mem\": \"much\""),
        (
            "options",
            "-c shared_buffers=1GB",
            "parameter \"shared_buffers\" cannot be changed without restarting the server",
        ),
    ] {
        let startup = Startup::new(&[&base[..], &[(name, value)]].concat());
        let word = Raw::connect(door.address, &startup).await?.last_word().await?;
        assert_eq!((&word.severity[..], &word.message[..]), ("FATAL", words));
    }
    assert_eq!(door.raw().await?.value(WORK_MEM).await?, "4MB");
    Ok(())
}

async fn settings_that_cannot_be_followed_stay_with_their_client(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 3).await?;
    for sql in [
        "SELECT set_config('work_mem', '7MB', false)",
        "SET work_mem = '7MB'; SET geqo = off",
        "SELECT 1; SET work_mem = '7MB'",
        "DO $$ BEGIN SET work_mem = '7MB'; END $$",
        "DO $$ BEGIN PERFORM set_config('work_mem', '7MB', false); END $$",
    ] {
        let mut a = door.raw().await?;
        a.ask(sql).await?.ok();
        let mut b = door.raw().await?;
        b.ask("BEGIN").await?.ok();
        assert_eq!(b.value(WORK_MEM).await?, "4MB", "{sql}");
        assert_eq!(a.value(WORK_MEM).await?, "7MB", "{sql}");
        b.ask("COMMIT").await?.ok();
        drop(a);
        assert_eq!(b.value(WORK_MEM).await?, "4MB", "{sql}");
    }
    Ok(())
}

async fn discard_all_leads_back_to_the_first_packet(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut a = login(&door, &[("options", "-c work_mem=7MB")]).await?;
    let mut b = door.raw().await?;
    a.ask("SET geqo = off").await?.ok();
    a.ask("DISCARD ALL").await?.ok();
    assert_eq!(a.value(WORK_MEM).await?, "7MB");
    assert_eq!(a.value("SHOW geqo").await?, "on");
    assert_eq!(b.value(WORK_MEM).await?, "4MB");
    Ok(())
}

async fn who_logs_in_is_told_its_own_settings(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut a = door.raw().await?;
    let before = a.parameters["DateStyle"].clone();
    a.ask("SET datestyle = 'German'").await?.ok();
    assert_eq!(a.parameters["DateStyle"], "German, DMY", "a change is reported");
    a.ask("SET application_name = 'of a'").await?.ok();
    // Not known from an earlier login, so that a server is asked: the one that a has used.
    let b = login(&door, &[("application_name", "of b")]).await?;
    assert_eq!(b.parameters["DateStyle"], before);
    assert_eq!(b.parameters["application_name"], "of b");
    assert_eq!(door.raw().await?.parameters["application_name"], "");
    // What the server says for itself reaches its client, what the gateway does nobody.
    let mut c = door.raw().await?;
    assert_eq!(c.value("SHOW datestyle").await?, before);
    assert_eq!(c.parameters["DateStyle"], before);
    a.ask("SELECT 1").await?.ok();
    assert_eq!(a.parameters["DateStyle"], "German, DMY");
    Ok(())
}

/// Code that nobody could read changes what the client had set itself.
async fn settings_that_code_changes_are_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 2).await?;
    door.admin()
        .await?
        .batch_execute(
            "CREATE FUNCTION changes(text) RETURNS text LANGUAGE sql AS \
             $$ SELECT set_config('work_mem', $1, false) $$; \
             CREATE FUNCTION resets() RETURNS void LANGUAGE plpgsql AS \
             $$ BEGIN RESET work_mem; PERFORM set_config('x.y', '', true); END $$",
        )
        .await?;
    let (mut a, mut b) = (door.raw().await?, door.raw().await?);
    a.ask("SET work_mem = '5MB'").await?.ok();
    for (code, value) in [("changes('7MB')", "7MB"), ("resets()", "4MB"), ("changes('6MB')", "6MB")]
    {
        a.ask(&format!("SELECT {code}")).await?.ok();
        assert_eq!(b.value(WORK_MEM).await?, "4MB", "{code}");
        assert_eq!(a.value(WORK_MEM).await?, value, "{code}");
    }
    Ok(())
}

async fn what_is_set_behind_discard_all_in_one_pipeline_is_followed(mode: Mode) -> Result<()> {
    let door = Door::with(mode, |wanted| wanted.pool.size = 1).await?;
    let mut a = door.raw().await?;
    let all = Say::new()
        .statement("DISCARD ALL")
        .parse("kept", "SELECT 'kept'")
        .statement("SET work_mem = '5MB'")
        .sync();
    let answer = a.exchange(all).await?;
    // Newer servers do not let it be in a pipeline.
    if answer.errors.is_empty() {
        assert_eq!(door.raw().await?.value(WORK_MEM).await?, "4MB");
        assert_eq!(a.value(WORK_MEM).await?, "5MB");
        assert_eq!(a.exchange(Say::new().run("kept", &[])).await?.value(), "kept");
    }
    Ok(())
}
