//! Who leads, and how quickly another does.

use std::time::{Duration, Instant};

use crate::harness::{Cluster, id, put, until};

/// Runs what must take less than this; again, if a machine that is busy was in the way.
async fn within(limit: Duration, once: impl AsyncFn() -> Duration) {
    let mut all = Vec::new();
    while all.iter().all(|taken| *taken >= limit) {
        assert!(all.len() < 3, "each took {limit:?} or more: {all:?}");
        all.push(once().await);
    }
    println!("took {all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_dies_another_leads_within_a_bound() {
    // Twice what the timing promises.
    within(Duration::from_millis(2 * 1400), async || {
        let mut cluster = Cluster::of(3).await;
        let old = cluster.leader().await;
        cluster.nodes[&old].propose(put(1)).await.unwrap();
        let start = Instant::now();
        cluster.stop(old).await;
        let new = cluster.leader_but(&[old]).await;
        let taken = start.elapsed();
        cluster.nodes[&new].propose(put(2)).await.unwrap();
        cluster.agree(1..3).await;
        taken
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn electing_at_once_is_quicker_than_waiting() {
    within(Duration::from_millis(2 * 650), async || {
        let mut cluster = Cluster::of(3).await;
        let old = cluster.leader().await;
        let start = Instant::now();
        cluster.stop(old).await;
        for log in cluster.nodes.values() {
            log.elect_now();
        }
        cluster.leader_but(&[old]).await;
        start.elapsed()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn electing_at_once_disturbs_no_living_leader() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let term = cluster.nodes[&leader].status().raft_term;
    cluster.nodes[&leader].elect_now();
    cluster.nodes[&leader].propose(put(1)).await.unwrap();
    assert_eq!(cluster.nodes[&leader].status().raft_term, term);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reluctant_leader_hands_over_and_stays_away() {
    let cluster = Cluster::of(3).await;
    let old = cluster.leader().await;
    cluster.nodes[&old].reluctant(true);
    let new = cluster.leader_but(&[old]).await;
    for number in 0..20 {
        cluster.nodes[&old].propose(put(number)).await.unwrap();
    }
    assert_eq!(cluster.leader().await, new);
    until("the old leader to follow", || async {
        (*cluster.nodes[&old].leader().borrow() == Some(new)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_voter_leads_however_reluctant() {
    let mut cluster = Cluster::of(1).await;
    cluster.node(1).reluctant(true);
    cluster.node(1).propose(put(1)).await.unwrap();
    cluster.stop(id(1)).await;
    cluster.start(1).await.unwrap();
    cluster.node(1).reluctant(true);
    cluster.node(1).propose(put(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_reluctant_one_leads_all_the_same() {
    let mut cluster = Cluster::of(3).await;
    let old = cluster.leader().await;
    for log in cluster.nodes.values() {
        log.reluctant(true);
    }
    cluster.stop(old).await;
    let new = cluster.leader_but(&[old]).await;
    cluster.nodes[&new].propose(put(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_returns_deposes_nobody() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let term = cluster.nodes[&leader].status().raft_term;
    let away = cluster.follower(leader);
    cluster.isolate(away);
    let mut seen = cluster.nodes[&away].leader();
    let unknown = seen.wait_for(Option::is_none);
    tokio::time::timeout(crate::harness::SOON, unknown).await.unwrap().unwrap();
    // Long enough for several campaigns.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.nodes[&away].status().raft_term, term);
    cluster.heal();
    cluster.nodes[&away].propose(put(1)).await.unwrap();
    cluster.agree(1..2).await;
    let status = cluster.nodes[&leader].status();
    assert_eq!((status.leader, status.raft_term), (Some(leader), term));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_cut_off_knows_that_it_knows_no_leader() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.follower(leader);
    cluster.hang(follower);
    let mut seen = cluster.nodes[&follower].leader();
    let unknown = seen.wait_for(Option::is_none);
    tokio::time::timeout(crate::harness::SOON, unknown).await.unwrap().unwrap();
    cluster.heal();
    let known = seen.wait_for(Option::is_some);
    tokio::time::timeout(crate::harness::SOON, known).await.unwrap().unwrap();
}
