//! What a proposal costs with real files: printed, and only roughly asserted.

use std::time::{Duration, Instant};

use crate::harness::{Cluster, put};

#[tokio::test(flavor = "multi_thread")]
async fn proposals_are_quick() {
    let rounds = if std::env::var_os("QUORATE_SLOW_TESTS").is_some() { 2000 } else { 100 };
    let cluster = Cluster::of(3).await;
    let leader = cluster.leader().await;
    for asked in [leader, cluster.follower(leader)] {
        let mut taken: Vec<Duration> = Vec::new();
        for number in 0..rounds {
            let start = Instant::now();
            cluster.nodes[&asked].propose(put(number)).await.unwrap();
            taken.push(start.elapsed());
        }
        taken.sort();
        let at = |percent: usize| taken[(taken.len() - 1) * percent / 100];
        let who = if asked == leader { "the leader" } else { "a follower" };
        println!("proposed on {who}: median {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100));
        assert!(at(50) < Duration::from_millis(500));
    }
}
