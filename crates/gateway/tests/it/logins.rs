//! Logins that wait for a writer.

use std::time::{Duration, Instant};

use anyhow::Result;
use quorate_gateway::FrontendOptions;

use crate::door::{Door, Raw};
use crate::server::{Server, eventually};

const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];

async fn door(login_hold: Duration, logins_held_max: usize) -> Result<Door> {
    let options = FrontendOptions { login_hold, logins_held_max, ..Default::default() };
    let door = Door::before(Server::primary(&[]).await?, options, true, 100).await?;
    door.way.writer.send_replace(false);
    Ok(door)
}

async fn held(door: &Door, n: usize) {
    eventually("logins are held", async || (door.frontend.held() == n).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_wait_for_a_writer() -> Result<()> {
    let door = door(Duration::from_secs(60), 3).await?;
    let mut first = Raw::connect(door.address, &LOGIN).await?;
    held(&door, 1).await;
    let leaves = Raw::connect(door.address, &LOGIN).await?;
    held(&door, 2).await;
    let mut third = Raw::connect(door.address, &LOGIN).await?;
    held(&door, 3).await;
    assert_eq!(Raw::connect(door.address, &LOGIN).await?.last_word().await?, "53300");
    drop(leaves);
    held(&door, 2).await;
    assert!(first.is_silent().await);
    let begin = Instant::now();
    door.way.writer.send_replace(true);
    first.until(b'Z').await?;
    third.until(b'Z').await?;
    println!("held logins were through after {:?}", begin.elapsed());
    assert_eq!(door.frontend.held(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_does_not_wait_for_ever() -> Result<()> {
    let door = door(Duration::from_millis(100), 3).await?;
    let mut raw = Raw::connect(door.address, &LOGIN).await?;
    assert_eq!(raw.last_word().await?, "57P03");
    assert_eq!(door.frontend.held(), 0);
    Ok(())
}
