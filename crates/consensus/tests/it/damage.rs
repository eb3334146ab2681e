//! A store that cannot be trusted is refused with advice, and never panics or starts afresh.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use quorate_consensus::{Dial, Dialling, Error, Kind, Log, Options, Retry};
use quorate_core::NodeId;

use crate::harness::{Cluster, Tally, id, put, until};

struct Nobody;

impl Dial for Nobody {
    fn dial(&self, _: NodeId) -> Dialling {
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
    }
}

async fn open(path: &Path) -> Result<Log<Tally>, Error> {
    Log::start(Options::new(id(1), path), Arc::new(Nobody)).await
}

/// A closed store with some entries in it.
async fn sound(path: &Path) -> Vec<u8> {
    let log = open(path).await.unwrap();
    log.found().await.unwrap();
    for number in 0..40 {
        log.propose(put(number)).await.unwrap();
    }
    log.shutdown().await;
    fs::read(path).unwrap()
}

async fn refused(path: &Path, what: &str) {
    let err = open(path).await.err().unwrap_or_else(|| panic!("{what} was accepted"));
    assert_eq!((err.kind(), err.retry()), (Kind::Damaged, Retry::Operator), "{what}: {err}");
    assert!(err.to_string().contains("consensus.redb"), "{err}");
    assert!(err.hint().contains("join again"), "{}", err.hint());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("consensus.redb");
    let sound = sound(&path).await;
    let length = sound.len();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("an empty file", Vec::new()),
        ("another file", b"not a store at all, but long enough to have a header".repeat(100)),
        ("a wrong magic number", flipped(&sound, 0..1)),
        ("a damaged header", flipped(&sound, 0..320)),
        ("zeroes", vec![0; length]),
        ("half a file", sound[..length / 2].to_vec()),
        ("a header only", sound[..4096].to_vec()),
        ("a short tail", sound[..length - 4096].to_vec()),
        ("a damaged body", flipped(&sound, 4096..length)),
    ];
    for (what, bytes) in cases {
        fs::write(&path, &bytes).unwrap();
        refused(&path, what).await;
        assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64, "{what} was changed");
    }
    fs::write(&path, &sound).unwrap();
    let log = open(&path).await.unwrap();
    assert_eq!(log.read().await.unwrap().puts.len(), 40);
    log.shutdown().await;
}

/// Wherever a byte flips, the store is either refused or complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("consensus.redb");
    let sound = sound(&path).await;
    let mut noticed = 0;
    for at in places(&sound) {
        fs::write(&path, flipped(&sound, at..at + 1)).unwrap();
        match open(&path).await {
            Ok(log) => {
                let found = log.read().await.unwrap().puts.len();
                assert_eq!(found, 40, "byte {at} lost entries silently");
                log.shutdown().await;
            }
            Err(err) => {
                let refused = matches!(err.kind(), Kind::Damaged | Kind::Foreign);
                assert!(refused, "byte {at}: {err}");
                noticed += 1;
            }
        }
    }
    println!("{noticed} flips noticed in {} bytes", sound.len());
    assert!(noticed > 10);
}

/// The same for the file of a process that was killed. Damage to a write made just before cannot
/// be told from a write that was cut short, so it may be dropped; anything older is noticed.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_after_a_kill_costs_the_write_before_it_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("consensus.redb");
    let log = open(&path).await.unwrap();
    log.found().await.unwrap();
    for number in 0..40 {
        log.propose(put(number)).await.unwrap();
    }
    let at_once = fs::read(&path).unwrap();
    // The write is sealed when the file changes once more without a proposal.
    until("the seal", || async { (fs::read(&path).unwrap() != at_once).then_some(()) }).await;
    let sealed = settled(&path).await;
    log.shutdown().await;
    flip_each(&path, &at_once, 39).await;
    flip_each(&path, &sealed, 40).await;
}

/// The file once it no longer changes.
async fn settled(path: &Path) -> Vec<u8> {
    let mut last = Vec::new();
    until("the file to settle", || {
        let now = fs::read(path).unwrap();
        let same = (now == last).then(|| now.clone());
        last = now;
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            same
        }
    })
    .await
}

/// Flips bytes of a killed node's file one by one; it must be refused or have this many entries.
async fn flip_each(path: &Path, killed: &[u8], least: usize) {
    let (mut refused, mut dropped) = (0, 0);
    for at in places(killed) {
        fs::write(path, flipped(killed, at..at + 1)).unwrap();
        match open(path).await {
            Ok(log) => {
                log.found().await.unwrap();
                let found = log.read().await.unwrap().puts.len();
                assert!(found >= least, "byte {at} left {found} entries");
                dropped += usize::from(found == 39);
                log.shutdown().await;
            }
            Err(err) => {
                assert!(matches!(err.kind(), Kind::Damaged | Kind::Foreign), "byte {at}: {err}");
                refused += 1;
            }
        }
    }
    println!("after a kill: {refused} flips refused, {dropped} cost the last write");
    assert!(refused > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_in_use_is_not_shared() {
    let mut cluster = Cluster::of(1).await;
    let err = cluster.start(1).await.err().unwrap();
    assert_eq!(err.kind(), Kind::InUse, "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_node_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("consensus.redb");
    sound(&path).await;
    let err =
        Log::<Tally>::start(Options::new(id(2), &path), Arc::new(Nobody)).await.err().unwrap();
    assert_eq!(err.kind(), Kind::Foreign, "{err}");
    assert!(err.to_string().contains("belongs to node n1"), "{err}");
}

/// Bytes of the header and of pages that are or were in use.
fn places(file: &[u8]) -> Vec<usize> {
    let used: Vec<usize> = (4096..file.len()).filter(|at| file[*at] != 0).collect();
    let header = (0..320).step_by(5);
    header.chain(used.iter().copied().step_by((used.len() / 150).max(1))).collect()
}

fn flipped(bytes: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[range].iter_mut().for_each(|byte| *byte ^= 0xA5);
    bytes
}
