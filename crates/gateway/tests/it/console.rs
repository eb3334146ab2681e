//! The virtual database `quorate`.

use anyhow::Result;

use crate::door::{Door, Mode, in_both_modes};
use crate::raw::Say;

in_both_modes! {
    the_console_shows_what_there_is
    a_pause_holds_what_comes_and_lets_it_go_on
    a_client_can_be_ended
}

async fn the_console_shows_what_there_is(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut raw = door.raw().await?;
    raw.ask("SET application_name = 'seen'").await?.ok();
    raw.ask("LISTEN x").await?.ok();
    let mut console = door.console().await?;
    let pools = console.ask("SHOW POOLS;").await?.ok();
    let pool = pools.rows.iter().find(|r| r[0] == door.database).unwrap();
    assert_eq!((&pool[1], &pool[3], &pool[6], &pool[8]), ("postgres", "writer", "1", "20"));
    let clients = console.ask("show clients").await?.ok();
    assert_eq!(clients.rows.len(), 2);
    let client = clients.rows.iter().find(|r| r[2] == door.database).unwrap();
    assert_eq!((&client[4], &client[7], &client[10]), ("127.0.0.1", "seen", "it listens"));
    raw.ask("DISCARD ALL").await?.ok();
    let servers = console.ask("SHOW SERVERS").await?.ok();
    let server = servers.rows.iter().find(|r| r[1] == door.database).unwrap();
    assert_eq!(&server[3], "writer of term 5");
    let stats = console.ask("SHOW STATS").await?.ok();
    let row = stats.rows.iter().find(|r| r[0] == door.database).unwrap();
    assert_eq!((&row[2], &row[11]), ("3", "1"), "transactions and logins: {row:?}");
    let version = console.ask("SHOW VERSION").await?.ok();
    assert!(version.value().starts_with("Quorate "));
    for what in ["SHOW HELP", "SHOW LISTS", "SHOW CONFIG", "SHOW DATABASES"] {
        assert!(!console.ask(what).await?.ok().rows.is_empty(), "{what}");
    }
    let answer = console.ask("DROP TABLE x").await?;
    assert_eq!((&answer.tags[..], answer.code()), ("EZ", "42601"));
    assert_eq!(console.ask(";").await?.tags, "IZ");
    // Of the extended protocol it says once that it does not speak it.
    let answer = console.exchange(Say::new().statement("SHOW POOLS").sync()).await?;
    assert_eq!(answer.errors[0].code, "0A000");
    assert_eq!(console.ask("SHOW VERSION").await?.ok().rows.len(), 1);
    Ok(())
}

async fn a_pause_holds_what_comes_and_lets_it_go_on(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut open = door.raw().await?;
    let mut raw = door.raw().await?;
    open.ask("BEGIN").await?.ok();
    let mut console = door.console().await?;
    assert_eq!(console.ask(&format!("PAUSE {}", door.database)).await?.ok().commands, ["PAUSE"]);
    raw.say(Say::new().query("SELECT 1")).await?;
    assert!(raw.is_silent().await);
    // Work that began goes on.
    assert_eq!(open.value("SELECT 2").await?, "2");
    open.ask("COMMIT").await?.ok();
    console.ask("RESUME").await?.ok();
    assert_eq!(raw.answer().await?.value(), "1");
    Ok(())
}

async fn a_client_can_be_ended(mode: Mode) -> Result<()> {
    let door = Door::open(mode).await?;
    let mut console = door.console().await?;
    // Idle, at work, waiting for somebody else's connection.
    let mut idle = door.raw().await?;
    let id = idle.key.as_ref().unwrap().pid;
    console.ask(&format!("KILL_CLIENT {id}")).await?.ok();
    assert_eq!(idle.last_word().await?.code, "57P01");
    let answer = console.ask(&format!("KILL_CLIENT {id}")).await?;
    assert_eq!(answer.code(), "42704");
    Ok(())
}
