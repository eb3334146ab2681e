//! Replication, reads and what an answer means.

use std::time::{Duration, Instant};

use quorate_consensus::{Compaction, Error, Kind, Retry};

use crate::harness::{Cluster, Put, id, put, until};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_replicate_whatever_node_is_asked() {
    let cluster = Cluster::of(3).await;
    for number in 0..30 {
        let asked = cluster.node(1 + number as usize % 3);
        assert_eq!(asked.propose(put(number)).await.unwrap(), number as usize + 1);
    }
    cluster.agree(0..30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn founding_twice_and_restarting_change_nothing() {
    let mut cluster = Cluster::of(1).await;
    cluster.node(1).propose(put(1)).await.unwrap();
    cluster.node(1).found().await.unwrap();
    cluster.stop(id(1)).await;
    cluster.start(1).await.unwrap();
    cluster.node(1).found().await.unwrap();
    assert_eq!(cluster.node(1).read().await.unwrap().puts.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_sees_every_write_that_was_answered_before() {
    let cluster = Cluster::of(3).await;
    for number in 0..30 {
        let (writer, reader) = (1 + number as usize % 3, 1 + (number as usize + 1) % 3);
        cluster.node(writer).propose(put(number)).await.unwrap();
        let state = cluster.node(reader).read().await.unwrap();
        assert!(state.puts.contains_key(&number), "{number} is missing on n{reader}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_follows_the_state() {
    let cluster = Cluster::of(3).await;
    let mut watch = cluster.node(3).watch();
    cluster.node(1).propose(put(7)).await.unwrap();
    let seen = watch.wait_for(|state| state.puts.contains_key(&7));
    tokio::time::timeout(crate::harness::SOON, seen).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_a_majority_neither_commits_nor_reads() {
    let mut cluster = Cluster::new();
    cluster.patience = Duration::from_secs(2);
    let cluster = cluster.grown_to(3).await;
    let old = cluster.leader().await;
    cluster.hang(old);
    let lonely = cluster.nodes[&old].clone();
    let lost = tokio::spawn({
        let lonely = lonely.clone();
        async move { lonely.propose(put(1)).await }
    });
    let err = lonely.read().await.unwrap_err();
    assert_eq!(err.kind(), Kind::NotAccepted, "{err}");
    let err = lost.await.unwrap().unwrap_err();
    assert_eq!((err.kind(), err.retry()), (Kind::Unknown, Retry::Never), "{err}");
    let new = cluster.leader_but(&[old]).await;
    cluster.nodes[&new].propose(put(2)).await.unwrap();
    until("the old leader to doubt itself", || async { (!lonely.is_leader()).then_some(()) }).await;
    cluster.heal();
    cluster.agree(2..3).await;
    assert!(!lonely.state().puts.contains_key(&1), "an entry without a majority took effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_leader_a_proposal_is_certainly_not_accepted() {
    let mut cluster = Cluster::new();
    cluster.patience = Duration::from_millis(300);
    cluster.start(1).await.unwrap();
    let err = cluster.node(1).propose(put(1)).await.unwrap_err();
    assert_eq!((err.kind(), err.retry()), (Kind::NotAccepted, Retry::Backoff), "{err}");
    cluster.node(1).shutdown().await;
    let err = cluster.node(1).propose(put(1)).await.unwrap_err();
    assert_eq!(err.kind(), Kind::Stopped, "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_too_large_never_enters_the_log() {
    let cluster = Cluster::of(1).await;
    let large = Put { number: 1, ballast: "x".repeat(2 << 20) };
    let err = cluster.node(1).propose(large).await.unwrap_err();
    assert!(matches!(err, Error::TooLarge { .. }), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_comes_back_through_a_snapshot() {
    let mut cluster = Cluster::new();
    cluster.compaction = Compaction { snapshot_every: 20, entries_kept: 5 };
    let mut cluster = cluster.grown_to(3).await;
    cluster.node(1).propose(put(0)).await.unwrap();
    cluster.agree(0..1).await;
    let before = cluster.node(3).status().last_log.unwrap();
    cluster.isolate(id(3));
    for number in 1..100 {
        // Together more than one snapshot chunk.
        let command = Put { number, ballast: "x".repeat(10_000) };
        cluster.node(1).propose(command).await.unwrap();
    }
    let purged = |status: &quorate_consensus::Status| status.purged > Some(before);
    cluster.status(1, "the log to be shortened", purged).await;
    cluster.heal();
    cluster.agree(0..100).await;
    let status = cluster.node(3).status();
    assert!(status.snapshot_index > Some(before), "{status:?}");
    // What came through the snapshot is on disk.
    cluster.stop(id(3)).await;
    cluster.start(3).await.unwrap();
    cluster.agree(0..100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_hangs_delays_nobody() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let hung = cluster.follower(leader);
    cluster.hang(hung);
    // A peer would be in the way of each; a busy machine is now and then.
    let mut slow = 0;
    for number in 0..20 {
        let start = Instant::now();
        cluster.nodes[&leader].propose(put(number)).await.unwrap();
        slow += usize::from(start.elapsed() > Duration::from_millis(150));
    }
    assert!(slow < 10, "{slow} of 20 proposals took more than 150 ms");
    cluster.heal();
    cluster.agree(0..20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_stream_ends_the_stream_only() {
    use tokio::io::AsyncWriteExt;
    let cluster = Cluster::of(1).await;
    let (mut near, far) = tokio::io::duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(cluster.node(1).serve(far).await.is_err());
    cluster.node(1).propose(put(1)).await.unwrap();
}
