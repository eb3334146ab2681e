//! What a plan cannot promise. A choice that looks complete is the dangerous one.

use std::time::Duration;

use super::ask::{Domain, Needs, Reads};
use super::commit::Commits;
use super::place::{Layout, many_of};
use super::recovery::Recovery;
use super::{Purpose, byte_words, many, time_words};
use crate::because::list;
use crate::document::{Document, Timing};
use crate::limits::HEARTBEAT_EVERY;

/// The list, the most important first.
pub(super) fn cannot(
    needs: &Needs,
    layout: &Layout,
    commits: &Commits,
    recovery: &[Recovery],
) -> Vec<String> {
    let mut list = commits_cannot(needs, layout, commits);
    list.extend(regions_cannot(needs, layout, commits));
    list.extend(recovery_cannot(needs, recovery));
    list.extend(reads_cannot(needs, layout));
    list.push(
        "Writes of one cluster are what one machine can do; more replicas do not raise them. Each \
         replica replays all of them: measure its reads while it does."
            .to_owned(),
    );
    list.push(
        "Copies repeat a wrong DELETE within moments. Against that only backups help.".to_owned(),
    );
    list
}

fn commits_cannot(needs: &Needs, layout: &Layout, commits: &Commits) -> Vec<String> {
    let mut list = Vec::new();
    let loss = byte_words(commits.loss_bytes);
    match commits.timing {
        Timing::Async => list.push(format!(
            "No loss: a failover may lose up to {loss} of log ({}), and waits for a person rather \
             than lose more.",
            loss_time(needs, commits.loss_bytes),
        )),
        Timing::SemiSync => list.push(format!(
            "No loss in every case: after {} without a standby commits go on with one copy, and a \
             failover may then lose up to {loss} of log ({}).",
            time_words(Duration::from_millis(Document::default().semi_sync_timeout_ms)),
            loss_time(needs, commits.loss_bytes),
        )),
        Timing::Quorum | Timing::Sync => list.push(format!(
            "Commits that outlive the destruction of all {} that held them: that takes more than \
             {} at once.",
            many(usize::from(commits.copies), "node"),
            many_of(needs.losses, needs.survive),
        )),
    }
    for node in &commits.sync_nodes {
        list.push(format!(
            "Writes without {node}: while it is away commits wait, however long, until it is back \
             or `sync_nodes` names another."
        ));
    }
    let ha = layout.ha().count();
    let degraded =
        commits.min_copies.map_or(needs.losses + 1 == ha, |least| least < commits.copies);
    if degraded && matches!(commits.timing, Timing::Quorum | Timing::Sync) {
        list.push(format!(
            "A second loss: while {} is away commits are on what is left, and its loss in that \
             time takes them. With data in {} this is not so.",
            many_of(needs.losses, needs.survive),
            many_of(2 * needs.losses + 1, needs.survive),
        ));
    }
    list
}

/// How long it takes to write so much.
fn loss_time(needs: &Needs, bytes: u64) -> String {
    let rate = needs.log_bytes(Duration::from_secs(1));
    if rate == 0 {
        return "nothing is written".to_owned();
    }
    format!(
        "{} at {} writes/s of {}",
        time_words(Duration::from_secs_f64(bytes as f64 / rate as f64)),
        needs.writes,
        byte_words(needs.write_bytes),
    )
}

fn regions_cannot(needs: &Needs, layout: &Layout, commits: &Commits) -> Vec<String> {
    let mut list = Vec::new();
    let home = &needs.regions[0];
    if needs.survive != Domain::Region {
        let other = layout.nodes.iter().find(|n| n.region != *home && n.purpose.has_data());
        list.push(match other {
            None => format!(
                "The loss of {home} as a whole: everything stands there. A copy elsewhere takes \
                 another of --regions."
            ),
            Some(node) if commits.sync_nodes.contains(&node.name) => format!(
                "Going on by itself after the loss of {home}: nothing is lost then, but the \
                 majority of votes is gone. A person decides (`quorate recover --force-new-epoch` \
                 on {})",
                node.name
            ) + &third_place(needs),
            Some(node) => format!(
                "The loss of {home} as a whole: the copy in {} lacks what was not sent yet, and \
                 the majority of votes is gone. A person decides (`quorate recover \
                 --force-new-epoch` on {})",
                node.region, node.name
            ) + &third_place(needs),
        });
    }
    if needs.survive == Domain::Region {
        list.push(
            "Writes that stay where they are: with one copy that counts in each region, the loss \
             of the writer's host moves them to another region."
                .to_owned(),
        );
    }
    let slow = needs.trips.known.iter().find(|(_, time)| **time >= HEARTBEAT_EVERY);
    if let Some(((a, b), time)) = slow {
        list.push(format!(
            "Steady leases between {a} and {b}: {} there and back is longer than the pace of \
             heartbeats ({}), for which the limits were made.",
            time_words(*time),
            time_words(HEARTBEAT_EVERY),
        ));
    }
    list
}

fn third_place(needs: &Needs) -> String {
    let places = needs.regions.len() + usize::from(needs.witness_in.is_some());
    match places {
        0..=2 => "; to survive it unattended takes a third place that votes (--witness-in, \
                  --survive region)."
            .to_owned(),
        _ => "; --survive region plans for it.".to_owned(),
    }
}

fn recovery_cannot(needs: &Needs, recovery: &[Recovery]) -> Vec<String> {
    let mut list = Vec::new();
    if let Some(wanted) = needs.recover_within {
        for slow in recovery.iter().filter(|r| r.at_most > wanted) {
            list.push(format!(
                "{} when {}: that can take {}.",
                time_words(wanted),
                slow.fault,
                time_words(slow.at_most),
            ));
        }
    }
    list.push(
        "These times when a standby has log left to replay, a disk is slow or the application \
         takes its time to connect again. `quorate switchover` now and then shows yours."
            .to_owned(),
    );
    list
}

fn reads_cannot(needs: &Needs, layout: &Layout) -> Vec<String> {
    let mut list = Vec::new();
    match needs.kind {
        Reads::Strong => list.push(
            "Strong reads from replicas, however many there are: only the writer has seen \
             everything."
                .to_owned(),
        ),
        Reads::Fresh => list.push(
            "Replicas for reads right after a write: until one has replayed it, that session's \
             reads go to the writer, which this plan leaves out. Sessions that write all the time \
             read there all the time."
                .to_owned(),
        ),
        Reads::Stale(age) => list.push(format!(
            "A session's own last write in its next read: an answer may be {} old. Replicas that \
             are older get no reads, and the writer has to answer.",
            time_words(age),
        )),
        Reads::Reporting => list.push(
            "Reports kept apart by the gateway: connect them, as a role `reporting`, to the \
             gateways of the reporting nodes. Other reads may still land there."
                .to_owned(),
        ),
    }
    if needs.regions.len() > 1 && needs.kind != Reads::Strong {
        list.push(
            "Reads that stay in their region: replicas of all regions count for all reads here. \
             `read_from = \"nearest\"` prefers a gateway's own zone."
                .to_owned(),
        );
    }
    let named: Vec<_> = layout
        .nodes
        .iter()
        .filter(|n| matches!(n.purpose, Purpose::Reporting | Purpose::Dr))
        .map(|n| n.name)
        .collect();
    if !named.is_empty() {
        list_role(&mut list, &named);
    }
    list
}

fn list_role(to: &mut Vec<String>, names: &[crate::NodeId]) {
    to.push(format!(
        "Roles of their own for {}: the cluster document knows `ha` and `read` only, so {}.",
        list(names),
        if names.len() == 1 { "its role is `read`" } else { "their role is `read`" },
    ));
}
