//! The cluster document of a plan.

use std::collections::BTreeMap;

use super::Purpose;
use super::ask::{Needs, Reads};
use super::commit::Commits;
use super::place::Layout;
use crate::document::{Document, NodeSpec, Timing};
use crate::gateway::{Consistency, Gateway, PoolRule, PoolSpec, ReadFrom};
use crate::role::Role;

/// What `quorate config apply` takes once the nodes are there.
pub(super) fn of(needs: &Needs, layout: &Layout, commits: &Commits) -> Document {
    let default = Document::default();
    let nodes = layout.nodes.iter().filter(|n| n.purpose.has_data() && n.purpose != Purpose::Ha);
    let nodes: BTreeMap<_, _> =
        nodes.map(|n| (n.name, NodeSpec { role: Role::Read, ..NodeSpec::default() })).collect();
    let max_lag_on_failover = match commits.timing {
        Timing::Async | Timing::SemiSync => commits.loss_bytes,
        Timing::Quorum | Timing::Sync => default.max_lag_on_failover,
    };
    Document {
        timing: commits.timing,
        copies: commits.copies,
        min_copies: commits.min_copies,
        sync_nodes: commits.sync_nodes.clone(),
        max_lag_on_failover,
        nodes,
        gateway: gateway(needs, commits),
        ..default
    }
}

fn gateway(needs: &Needs, commits: &Commits) -> Gateway {
    let mut gateway = Gateway { pool: pool(commits), ..Gateway::default() };
    match needs.kind {
        Reads::Strong => gateway.consistency = Consistency::Strong,
        Reads::Fresh => {}
        Reads::Stale(age) => {
            gateway.consistency = Consistency::Bounded;
            gateway.max_staleness_ms = (age.as_millis() as u64).max(1);
            // A replica as old as may be answered from is of use.
            gateway.max_lag_ms = gateway.max_lag_ms.max(gateway.max_staleness_ms);
        }
        Reads::Reporting => gateway.pools.push(PoolRule {
            role: vec!["reporting".to_owned()],
            read_from: Some(ReadFrom::Nearest),
            consistency: Some(Consistency::Eventual),
            ..PoolRule::default()
        }),
    }
    gateway
}

/// Half as many again as commits are under way at a time on average, for when they come in bursts.
fn pool(commits: &Commits) -> PoolSpec {
    let default = PoolSpec::default();
    let under_way = commits.costs.first().map_or(0.0, |c| c.under_way.ceil());
    let size = match under_way > f64::from(default.size) {
        true => (under_way * 1.5).ceil().min(10_000.0) as u32,
        false => default.size,
    };
    PoolSpec { size, ..default }
}
