//! Reads that a standby serves, when it is known to have what they must see.

use anyhow::Result;

use crate::door::{Door, Mode, TERM, in_both_modes};
use crate::raw::{Raw, Say};
use crate::server::eventually;

in_both_modes! {
    reads_go_to_a_standby_that_has_what_they_must_see
    what_a_standby_refuses_is_done_by_the_writer
    a_standby_that_stops_serving_is_left
}

const WHERE: &str = "SELECT current_setting('transaction_read_only')";

/// Waits until reads of this client are served by a standby, or by the writer.
async fn goes(raw: &mut Raw, standby: bool) {
    eventually("it goes there", async || {
        let answer = raw.ask(WHERE).await.unwrap();
        ((answer.value() == "on") == standby).then_some(())
    })
    .await;
}

async fn reads_go_to_a_standby_that_has_what_they_must_see(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, false).await;
    door.replayed(50).await?;
    goes(&mut raw, true).await;
    let answer = raw.exchange(Say::new().statement(WHERE).sync()).await?;
    assert_eq!((&answer.tags[..], answer.value()), ("12DCZ", "on"));
    // Blocks and writes go to the writer, unless a block says that it reads only.
    raw.ask("BEGIN").await?.ok();
    assert_eq!(raw.value(WHERE).await?, "off");
    raw.ask("COMMIT").await?.ok();
    raw.ask("BEGIN READ ONLY").await?.ok();
    raw.value(WHERE).await?;
    raw.ask("COMMIT").await?.ok();
    // It must see what it wrote itself.
    door.acknowledged(TERM, 100);
    raw.ask("CREATE TABLE t(i int)").await?.ok();
    assert_eq!(raw.value(WHERE).await?, "off");
    goes(&mut door.raw().await?, true).await;
    door.replayed(99).await?;
    assert_eq!(raw.value(WHERE).await?, "off");
    door.replayed(100).await?;
    goes(&mut raw, true).await;
    // As the client asks for it.
    raw.ask("SET quorate.consistency = 'strong'").await?.ok();
    goes(&mut raw, false).await;
    raw.ask("SET quorate.consistency = 'eventual'").await?.ok();
    goes(&mut raw, true).await;
    raw.ask("SET quorate.read_from = 'writer'").await?.ok();
    goes(&mut raw, false).await;
    raw.ask("RESET ALL").await?.ok();
    door.want(|wanted| wanted.split = false);
    goes(&mut raw, false).await;
    Ok(())
}

async fn what_a_standby_refuses_is_done_by_the_writer(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    let admin = door.admin().await?;
    admin
        .batch_execute("CREATE SEQUENCE s; CREATE VIEW hidden AS SELECT nextval('s') AS n")
        .await?;
    let lsn = door.value("SELECT pg_current_wal_lsn()").await?;
    let standby = door.standby.as_ref().unwrap();
    eventually("it has the view", async || {
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        (standby.value(&sql).await.ok()? == "t").then_some(())
    })
    .await;
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, true).await;
    assert_eq!(raw.value("SELECT n FROM hidden").await?, "1");
    assert_eq!(
        raw.exchange(Say::new().statement("SELECT n FROM hidden").sync()).await?.value(),
        "2"
    );
    assert_eq!(raw.value("SELECT n FROM hidden").await?, "3");
    goes(&mut raw, true).await;
    let mut console = door.console().await?;
    let stats = console.ask("SHOW STATS").await?.ok();
    let row = stats.rows.iter().find(|r| r[0] == door.database).unwrap();
    // Both protocols: the same text is the same statement.
    assert_eq!(&row[5], "1", "refused once, remembered since: {row:?}");
    assert!(row[12].contains("refused=2"), "{row:?}");
    Ok(())
}

async fn a_standby_that_stops_serving_is_left(mode: Mode) -> Result<()> {
    let door = Door::with_standby(mode).await?;
    door.replayed(50).await?;
    let mut raw = door.raw().await?;
    goes(&mut raw, true).await;
    door.reads.close();
    door.change(|view| view.replicas.clear());
    goes(&mut raw, false).await;
    // Said to serve when it does not: the writer answers.
    door.replayed(50).await?;
    goes(&mut raw, false).await;
    Ok(())
}
