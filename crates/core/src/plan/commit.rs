//! When a commit is acknowledged, and what it waits for.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::ask::{Domain, Loss, Needs};
use super::place::{Layout, many_of};
use super::trips::{Trips, fastest};
use super::{Contradiction, PlannedNode, as_ms, byte_words, many, time_words};
use crate::NodeId;
use crate::because::list;
use crate::document::{Document, Timing};
use crate::gateway::PoolSpec;

/// When a commit is acknowledged, and what that costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Commits {
    /// Writing transactions a second that are asked for.
    pub rate: u64,
    /// The timing.
    pub timing: Timing,
    /// Copies before a commit is acknowledged, the writer's included.
    pub copies: u8,
    /// Copies below which writes stop, where the automatic number is not the right one.
    pub min_copies: Option<u8>,
    /// Nodes that must hold every commit.
    pub sync_nodes: BTreeSet<NodeId>,
    /// Log that a failover may lose, in bytes. More than zero says nothing in `quorum` and `sync`.
    pub loss_bytes: u64,
    /// What commits cost, by the region that the writer is in: the first is its home.
    pub costs: Vec<CommitCost>,
    /// Why this timing.
    pub because: String,
    /// What one writer can do with it.
    pub writes_because: String,
}

/// What a commit costs with the writer in one region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CommitCost {
    /// Where the writer is.
    pub region: String,
    /// What replication adds to a commit.
    #[serde(rename = "added_ms", serialize_with = "as_ms")]
    pub added: Duration,
    /// The same while as much is lost as the plan survives, and the nearest was lost.
    #[serde(rename = "added_after_loss_ms", serialize_with = "as_ms")]
    pub added_after_loss: Duration,
    /// A whole commit: the writer's own disk and what replication adds.
    #[serde(rename = "commit_ms", serialize_with = "as_ms")]
    pub commit: Duration,
    /// Commits a second of one session that commits one after the other, and updates a second of
    /// one row: its lock is held until the commit is acknowledged.
    pub one_by_one: f64,
    /// Commits that are under way at a time.
    pub under_way: f64,
    /// The arithmetic.
    pub because: String,
}

/// A commit rule in the document's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitRule {
    pub(super) timing: Timing,
    pub(super) copies: u8,
    pub(super) min_copies: Option<u8>,
    pub(super) sync_nodes: BTreeSet<NodeId>,
    pub(super) because: String,
}

/// Chooses timing and copies.
pub(super) fn choose(needs: &mut Needs, layout: &Layout) -> Result<CommitRule, Contradiction> {
    let rule =
        if needs.loss == Loss::Nothing { lossless(needs, layout) } else { lossy(needs, layout) };
    check_writes(needs)?;
    check_wait(needs, layout, &rule)?;
    Ok(rule)
}

fn lossless(needs: &Needs, layout: &Layout) -> CommitRule {
    let ha = layout.ha().count();
    let worst = layout.worst_loss(|n| n.purpose == super::Purpose::Ha);
    let named: Option<NodeId> = needs
        .must_hold
        .as_ref()
        .and_then(|region| layout.ha().find(|n| n.region == *region).map(|n| n.name));
    // A named node elsewhere holds every commit anyway; the others shall be safe without it.
    let beside = usize::from(named.is_some() && needs.survive != Domain::Region);
    let copies = worst + 1 + beside;
    let lost = many_of(needs.losses, needs.survive);
    let mut because = format!(
        "No commit may be lost with {lost}, which takes at most {}: commits need one more than \
         that, the writer's own included.",
        many(worst, "copy"),
    );
    if let Some(named) = named {
        let region = needs.must_hold.as_deref().unwrap_or_default();
        because += &format!(" {region} must hold every commit, so {named} is named.");
        if beside > 0 {
            because += " One copy more lets the others do without it in an election.";
        }
    }
    let left = ha - worst;
    let are = if left == 1 { "is" } else { "are" };
    because += &format!(" Of {ha} nodes whose copies count {left} {are} left then");
    because += match left >= copies {
        true => ", enough for as many copies.",
        false => ": commits go on with fewer copies until the others are back.",
    };
    let timing = if named.is_some() { Timing::Sync } else { Timing::Quorum };
    let least = copies.min(left) as u8;
    let automatic = Document { copies: copies as u8, ..Document::default() }.least_copies(ha);
    CommitRule {
        timing,
        copies: copies as u8,
        min_copies: (least != automatic).then_some(least),
        sync_nodes: named.into_iter().collect(),
        because,
    }
}

fn lossy(needs: &mut Needs, layout: &Layout) -> CommitRule {
    let loss = needs.loss_words();
    let limit = needs.commit_max_or_assumed();
    let rule = |timing, because| CommitRule {
        timing,
        copies: Document::default().copies,
        min_copies: None,
        sync_nodes: BTreeSet::new(),
        because,
    };
    let semi_sync = rule(Timing::SemiSync, String::new());
    let nearest = layout
        .ha()
        .next()
        .map_or(Duration::ZERO, |w| added(&semi_sync, layout, w, &needs.trips, needs.flush, 0));
    let (nearest_words, limit_words) = (time_words(nearest), time_words(limit));
    if needs.losses > 1 {
        // With a commit on two copies, an election that lacks two reports cannot conclude.
        let because = format!(
            "A failover may lose {loss}. `semi_sync` survives one loss only, so commits wait for \
             no standby."
        );
        return rule(Timing::Async, because);
    }
    if nearest <= limit {
        let because = format!(
            "A failover may lose {loss}. Waiting for the nearest standby adds {nearest_words}, no \
             more than {limit_words}, and loses nothing while a standby is there; when none is \
             for {} commits go on with the writer's copy alone.",
            time_words(Duration::from_millis(Document::default().semi_sync_timeout_ms)),
        );
        return rule(Timing::SemiSync, because);
    }
    let because = format!(
        "A failover may lose {loss}. Waiting for the nearest standby would add {nearest_words}, \
         more than {limit_words}: commits wait for no standby."
    );
    rule(Timing::Async, because)
}

fn check_writes(needs: &Needs) -> Result<(), Contradiction> {
    let Some(capacity) = needs.write_capacity else { return Ok(()) };
    let usable = capacity.saturating_mul(u64::from(needs.share_percent)) / 100;
    if needs.writes <= usable {
        return Ok(());
    }
    Err(Contradiction::new(
        format!(
            "{} writes/s are more than the {usable}/s that one machine is given ({} % of \
             {capacity}), and a cluster has one writer: no number of nodes changes that",
            needs.writes, needs.share_percent,
        ),
        "Split the data over several clusters, write more rows in one transaction, or take a \
         larger machine for every node that may write (--write-capacity)",
    ))
}

fn check_wait(needs: &Needs, layout: &Layout, rule: &CommitRule) -> Result<(), Contradiction> {
    let Some(writer) = layout.ha().next() else { return Ok(()) };
    let added = added(rule, layout, writer, &needs.trips, needs.flush, 0);
    if let Some(limit) = needs.commit_max
        && added > limit
    {
        return Err(Contradiction::new(
            format!(
                "Replication adds {} to a commit, and no more than {} is wanted",
                time_words(added),
                time_words(limit),
            ),
            "Take regions that are nearer (--rtt), survive less (--survive zone or host keeps the \
             copies in one region), allow some loss (--rpo 5s), or more time (--commit-max)",
        ));
    }
    let nearest = nearest(layout, writer, &needs.trips);
    let on_the_way = needs.log_bytes(nearest);
    if rule.timing == Timing::Async && on_the_way > needs.loss_bytes() {
        return Err(Contradiction::new(
            format!(
                "A failover may lose {}, but at {} writes/s of {} some {} are on the way to the \
                 nearest standby at any time",
                needs.loss_words(),
                needs.writes,
                byte_words(needs.write_bytes),
                byte_words(on_the_way),
            ),
            "Allow more loss (--rpo), or let commits wait (--rpo none, or a larger --commit-max)",
        ));
    }
    Ok(())
}

/// What a commit of this writer waits for, beyond its own disk. With `lost`, that many of the
/// nearest are gone.
pub(super) fn added(
    rule: &CommitRule,
    layout: &Layout,
    writer: &PlannedNode,
    trips: &Trips,
    flush: Duration,
    lost: usize,
) -> Duration {
    let others = || layout.ha().filter(|n| n.name != writer.name);
    let to = |n: &PlannedNode| trips.of(&writer.region, &n.region);
    let copies = usize::from(rule.copies);
    // Fewer copies are asked for when fewer can be there.
    let possible = others().count().saturating_sub(lost);
    let of_copies = |copies: usize| match copies.min(possible) {
        0 => None,
        wanted => Some(fastest(others().map(to).collect(), wanted + lost)),
    };
    let named = others().filter(|n| rule.sync_nodes.contains(&n.name)).map(to).max();
    let waits_for = match rule.timing {
        Timing::Async => None,
        Timing::SemiSync => of_copies(1),
        Timing::Quorum => of_copies(copies - 1),
        Timing::Sync => of_copies(copies - 1).max(named),
    };
    waits_for.map_or(Duration::ZERO, |trip| trip + flush)
}

fn nearest(layout: &Layout, writer: &PlannedNode, trips: &Trips) -> Duration {
    let others = layout.ha().filter(|n| n.name != writer.name);
    fastest(others.map(|n| trips.of(&writer.region, &n.region)).collect(), 1)
}

/// What the rule costs in this layout.
pub(super) fn cost(
    needs: &Needs,
    layout: &Layout,
    rule: CommitRule,
) -> Result<Commits, Contradiction> {
    let mut costs: Vec<CommitCost> = Vec::new();
    for writer in layout.ha() {
        if !costs.iter().any(|c| c.region == writer.region) {
            costs.push(cost_of(needs, layout, &rule, writer));
        }
    }
    let writes_because = writes_words(needs, layout, costs.first());
    let CommitRule { timing, copies, min_copies, sync_nodes, because } = rule;
    Ok(Commits {
        rate: needs.writes,
        timing,
        copies,
        min_copies,
        sync_nodes,
        loss_bytes: needs.loss_bytes(),
        costs,
        because,
        writes_because,
    })
}

fn cost_of(needs: &Needs, layout: &Layout, rule: &CommitRule, writer: &PlannedNode) -> CommitCost {
    let (trips, flush) = (&needs.trips, needs.flush);
    let added_now = added(rule, layout, writer, trips, flush, 0);
    let added_after_loss = added(rule, layout, writer, trips, flush, needs.losses);
    let commit = flush + added_now;
    // A flush of nothing at a distance of nothing would allow anything.
    let seconds = commit.as_secs_f64().max(1e-6);
    let because = wait_words(rule, layout, writer, needs, added_now, added_after_loss);
    CommitCost {
        region: writer.region.clone(),
        added: added_now,
        added_after_loss,
        commit,
        one_by_one: 1.0 / seconds,
        under_way: needs.writes as f64 * seconds,
        because,
    }
}

fn wait_words(
    rule: &CommitRule,
    layout: &Layout,
    writer: &PlannedNode,
    needs: &Needs,
    added_now: Duration,
    after_loss: Duration,
) -> String {
    let region = &writer.region;
    if rule.timing == Timing::Async {
        return format!("Writer in {region}: commits wait for no standby, 0 ms are added.");
    }
    let others = layout.ha().filter(|n| n.name != writer.name);
    let mut trips: Vec<Duration> = others.map(|n| needs.trips.of(region, &n.region)).collect();
    trips.sort_unstable();
    let named: Vec<&NodeId> = rule.sync_nodes.iter().filter(|n| **n != writer.name).collect();
    let whom = match named.is_empty() {
        true => String::new(),
        false => format!("the slower of {} and ", list(named)),
    };
    let nth = match (rule.timing, rule.copies) {
        (Timing::SemiSync, _) | (_, 2) => "the nearest".to_owned(),
        (_, copies) => format!("the {}", ordinal(usize::from(copies) - 1)),
    };
    let mut text = format!(
        "Writer in {region}: a commit waits for {whom}{nth} of the round-trips {} and a flush of \
         {}: {} are added",
        list(trips.iter().map(|t| time_words(*t))),
        time_words(needs.flush),
        time_words(added_now),
    );
    if after_loss > added_now {
        text += &format!("; {} while the nearest is lost", time_words(after_loss));
    }
    text + "."
}

fn ordinal(n: usize) -> String {
    match n {
        1 => "nearest".to_owned(),
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        n => format!("{n}th"),
    }
}

fn writes_words(needs: &Needs, layout: &Layout, home: Option<&CommitCost>) -> String {
    let Some(home) = home else { return String::new() };
    let pool = PoolSpec::default().size;
    let (rate, commit) = (needs.writes, time_words(home.commit));
    let one_by_one = home.one_by_one.floor();
    let under_way = home.under_way.ceil().max(1.0);
    let mut text = format!(
        "All {rate} writes/s go to the one writer. A commit takes {commit} ({} for its own disk), \
         so {rate}/s keep about {} under way at a time",
        time_words(needs.flush),
        many(under_way as usize, "commit"),
    );
    text += &match under_way > f64::from(pool) {
        true => format!(
            ", more than a pool of {pool} has connections: raise gateway.pool.size to {:.0}, and \
             max_connections above what all pools take together",
            (under_way * 1.5).ceil()
        ),
        false => format!("; a pool of {pool} connections is enough"),
    };
    text += &format!(
        ". One session that commits one by one does {one_by_one:.0}/s at the most, and one row \
         can be updated as often: its lock is held until the commit is acknowledged.",
    );
    let standbys = layout.count(|n| n.purpose.has_data()) - 1;
    text += &match needs.write_capacity {
        Some(capacity) => format!(
            " One machine is given {} of {capacity} writes/s ({} %).",
            capacity.saturating_mul(u64::from(needs.share_percent)) / 100,
            needs.share_percent,
        ),
        None => " Whether one machine can do this was not asked (--write-capacity).".to_owned(),
    };
    let sent = needs.log_bytes(Duration::from_secs(1)) * standbys as u64;
    text += &format!(
        " Its network sends {} of log a second, to {}.",
        byte_words(sent),
        many(standbys, "standby"),
    );
    text
}
