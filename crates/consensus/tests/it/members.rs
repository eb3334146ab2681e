//! Who votes.

use std::collections::BTreeSet;
use std::fs;

use quorate_consensus::{Error, Kind};

use crate::harness::{Cluster, id, put};

fn voters(numbers: &[usize]) -> BTreeSet<quorate_core::NodeId> {
    numbers.iter().map(|number| id(*number)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_from_any_node_and_twice_is_once() {
    let mut cluster = Cluster::of(2).await;
    cluster.start(3).await.unwrap();
    let leader = cluster.leader().await;
    let follower = cluster.nodes[&cluster.follower(leader)].clone();
    for _ in 0..2 {
        follower.add(id(3)).await.unwrap();
        follower.propose(put(1)).await.unwrap();
        assert_eq!(cluster.nodes[&leader].status().voters, voters(&[1, 2, 3]));
    }
    for _ in 0..2 {
        follower.remove(id(3)).await.unwrap();
        assert_eq!(cluster.nodes[&leader].status().voters, voters(&[1, 2]));
        assert!(cluster.nodes[&leader].status().learners.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_can_be_removed_and_another_goes_on() {
    let cluster = Cluster::of(3).await;
    let old = cluster.leader().await;
    cluster.nodes[&old].remove(old).await.unwrap();
    let new = cluster.leader_but(&[old]).await;
    cluster.nodes[&new].propose(put(1)).await.unwrap();
    let status = cluster.nodes[&new].status();
    assert!(!status.voters.contains(&old), "{status:?}");
    assert!(!status.changing, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_stays_and_an_absent_node_cannot_join() {
    let cluster = Cluster::of(1).await;
    let err = cluster.node(1).remove(id(1)).await.unwrap_err();
    assert!(matches!(err, Error::LastVoter { .. }), "{err}");
    let adding = cluster.node(1).add(id(2));
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(1), adding).await.is_err(),
        "a node that is not there was added"
    );
    assert_eq!(cluster.node(1).status().voters, voters(&[1]));
    assert!(cluster.node(1).status().learners.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_reported_by_the_leader() {
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    cluster.nodes[&leader].propose(put(1)).await.unwrap();
    let number: usize = leader.as_str()[1..].parse().unwrap();
    let status = cluster
        .status(number, "both followers to have the whole log", |status| {
            status.progress.len() == 2 && status.progress.values().all(|at| *at == status.last_log)
        })
        .await;
    assert_eq!(status.last_applied, status.last_log);
    assert!(status.fault.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_lost_its_store_does_not_count_until_it_joined_again() {
    let mut cluster = Cluster::new();
    cluster.patience = std::time::Duration::from_secs(2);
    let mut cluster = cluster.grown_to(3).await;
    let leader = cluster.leader().await;
    let lost = cluster.follower(leader);
    let lost_number: usize = lost.as_str()[1..].parse().unwrap();
    let other = *cluster.nodes.keys().find(|node| ![leader, lost].contains(node)).unwrap();
    cluster.nodes[&leader].propose(put(1)).await.unwrap();
    cluster.agree(1..2).await;
    cluster.stop(lost).await;
    fs::remove_file(cluster.path(lost_number)).unwrap();
    cluster.start(lost_number).await.unwrap();
    let err = cluster.nodes[&other].add(lost).await.unwrap_err();
    assert_eq!(err.kind(), Kind::Replaced, "{err}");
    // Without the other voter, the one with the new store must not make a majority.
    cluster.isolate(other);
    let err = cluster.nodes[&leader].propose(put(2)).await.unwrap_err();
    assert_eq!(err.kind(), Kind::Unknown, "{err}");
    assert!(cluster.nodes[&lost].state().puts.is_empty());
    cluster.heal();
    cluster.leader().await;
    cluster.nodes[&other].remove(lost).await.unwrap();
    cluster.nodes[&other].add(lost).await.unwrap();
    cluster.nodes[&lost].propose(put(3)).await.unwrap();
    cluster.agree([1, 3].into_iter()).await;
}
