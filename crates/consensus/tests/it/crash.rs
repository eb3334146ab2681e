//! A process that is killed loses nothing that it acknowledged.
//!
//! This test binary runs itself as the process to be killed.

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_consensus::{Compaction, Dial, Dialling, Log, Options};

use crate::harness::{Tally, id, put};

const STORE: &str = "QUORATE_TEST_CRASH_STORE";
const ROUNDS: u64 = 15;

struct Nobody;

impl Dial for Nobody {
    fn dial(&self, _: quorate_core::NodeId) -> Dialling {
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }
}

async fn start(store: impl Into<std::path::PathBuf>) -> Log<Tally> {
    let mut options = Options::new(id(1), store);
    // Snapshots and purges are among what is interrupted.
    options.compaction = Compaction { snapshot_every: 25, entries_kept: 5 };
    let log = Log::start(options, Arc::new(Nobody)).await.unwrap();
    log.found().await.unwrap();
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn child_that_acknowledges_until_it_is_killed() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let log = start(store).await;
    let mut number = log.read().await.unwrap().puts.len() as u64;
    loop {
        log.propose(put(number)).await.unwrap();
        println!("acknowledged {number}");
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("consensus.redb");
    let mut acknowledged = 0;
    let mut slowest = Duration::ZERO;
    for _ in 0..ROUNDS {
        let at = store.clone();
        let last = tokio::task::spawn_blocking(move || run_and_kill(&at)).await.unwrap();
        acknowledged = last.map_or(acknowledged, |last| last + 1);
        let start_time = Instant::now();
        let log = start(&store).await;
        slowest = slowest.max(start_time.elapsed());
        let state = log.read().await.unwrap();
        let puts = state.puts.len() as u64;
        assert!(puts >= acknowledged, "{acknowledged} were acknowledged, {puts} are left");
        assert!((0..puts).all(|number| state.puts.get(&number) == Some(&1)));
        log.shutdown().await;
        acknowledged = puts;
    }
    println!("{acknowledged} entries over {ROUNDS} kills, slowest start {slowest:?}");
    assert!(acknowledged > 0);
}

/// Returns the last number that the child acknowledged, if any.
fn run_and_kill(store: &std::path::Path) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::child_that_acknowledges_until_it_is_killed", "--nocapture"])
        .env(STORE, store)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let killer = std::thread::spawn(move || {
        let random = RandomState::new().hash_one(0);
        std::thread::sleep(Duration::from_micros(100_000 + random % 700_000));
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let acknowledged =
        |line: Result<String, _>| line.ok()?.rsplit_once("acknowledged ")?.1.parse().ok();
    let last = lines.filter_map(acknowledged).last();
    killer.join().unwrap();
    last
}
