//! How many replicas carry the reads, with one loss to spare.

use serde::Serialize;

use super::ask::{Domain, Needs, Reads};
use super::place::{Layout, many_of};
use super::{Contradiction, PlannedNode, Purpose, many};

/// How reads are carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadCapacity {
    /// Reads a second that are asked for.
    pub rate: u64,
    /// Reads a second that one replica is given.
    pub usable: u64,
    /// Replicas that this takes.
    pub needed: usize,
    /// Replicas that answer reads when all is well.
    pub replicas: usize,
    /// How many of them are left after the losses.
    pub after_loss: usize,
    /// The arithmetic.
    pub because: String,
}

/// Adds the nodes that reads need.
pub(super) fn place(needs: &Needs, layout: &mut Layout) -> Result<ReadCapacity, Contradiction> {
    let usable = needs.usable();
    if needs.kind == Reads::Strong {
        return on_the_writer(needs, usable);
    }
    let needed = usize::try_from(needs.reads.div_ceil(usable)).unwrap_or(usize::MAX);
    let purpose = match needs.kind {
        Reads::Reporting => Purpose::Reporting,
        Reads::Fresh | Reads::Stale(_) | Reads::Strong => Purpose::Read,
    };
    let sites = needs.read_sites();
    while after_loss(layout, needs.kind) < needed {
        let reading = |region: &str, zone: Option<&str>| {
            layout.count(|n| {
                serves(n, needs.kind) && n.region == region && zone.is_none_or(|z| n.zone == z)
            })
        };
        let load = |at: usize| {
            let site = &sites[at];
            (reading(&site.region, None), reading(&site.region, Some(&site.zone)), at)
        };
        let Some(at) = (0..sites.len()).min_by_key(|at| load(*at)) else { break };
        layout.add(purpose, &sites[at]);
        layout.check_size(
            &format!("{} reads/s at {usable} each, with {} lost,", needs.reads, lost(needs)),
            "Use larger replicas (--capacity), keep frequent answers in a cache, or split the data \
             over several clusters",
        )?;
    }
    Ok(told(needs, layout, usable, needed))
}

/// Whether a node answers reads, or would if it did not write.
fn serves(node: &PlannedNode, kind: Reads) -> bool {
    match node.purpose {
        Purpose::Ha => kind != Reads::Reporting,
        Purpose::Read => true,
        Purpose::Reporting => kind == Reads::Reporting,
        Purpose::Dr | Purpose::Witness => false,
    }
}

/// Nodes that answer reads after the losses. Whoever was lost, one copy writes afterwards.
fn after_loss(layout: &Layout, kind: Reads) -> usize {
    let lost = layout.worst_loss(|n| serves(n, kind));
    (layout.count(|n| serves(n, kind)) - lost).saturating_sub(writers(kind))
}

/// How many of the nodes that serve reads write instead.
fn writers(kind: Reads) -> usize {
    usize::from(kind != Reads::Reporting)
}

fn on_the_writer(needs: &Needs, usable: u64) -> Result<ReadCapacity, Contradiction> {
    let rate = needs.reads;
    if rate > usable {
        return Err(Contradiction::new(
            format!(
                "Strong reads are answered by the writer alone, and {rate}/s are more than the \
                 {usable}/s that one machine is given"
            ),
            "Ask for less (--kind fresh sees a session's own writes on replicas), take a larger \
             machine (--capacity), or split the data over several clusters",
        ));
    }
    let because = format!(
        "Strong reads see everything acknowledged to anybody, so the writer answers all of them: \
         {rate} of the {usable} reads/s that it is given ({} % of {}). Replicas add nothing to \
         this.",
        needs.share_percent, needs.capacity,
    );
    Ok(ReadCapacity { rate, usable, needed: 0, replicas: 0, after_loss: 0, because })
}

fn told(needs: &Needs, layout: &Layout, usable: u64, needed: usize) -> ReadCapacity {
    let kind = needs.kind;
    let rate = needs.reads;
    let serving = layout.count(|n| serves(n, kind));
    let replicas = serving - writers(kind);
    let after_loss = after_loss(layout, kind);
    let extra = layout.count(|n| matches!(n.purpose, Purpose::Read | Purpose::Reporting));
    let share = match after_loss as u64 * needs.capacity {
        0 => String::new(),
        all => format!(", at {} % of what they can do", rate * 100 / all),
    };
    let are = if after_loss == 1 { "is" } else { "are" };
    let whose = match kind {
        Reads::Reporting => "reporting nodes, and no others,",
        Reads::Fresh | Reads::Stale(_) | Reads::Strong => "nodes that do not write",
    };
    let mut because = format!(
        "{rate} reads/s ÷ {usable} for each replica ({} % of {}) = {}. Of {} {whose} {after_loss} \
         {are} left after the loss of {}{share}.",
        needs.share_percent,
        needs.capacity,
        many(needed, "replica"),
        replicas,
        lost(needs),
    );
    let plain = matches!(kind, Reads::Fresh | Reads::Stale(_));
    if plain && extra == 0 {
        because += " The copies that are there for safety carry this.";
    } else if plain {
        let serve = if extra == 1 { "serves" } else { "serve" };
        because += &format!(" {extra} of the nodes {serve} nothing but reads.");
    }
    ReadCapacity { rate, usable, needed, replicas, after_loss, because }
}

fn lost(needs: &Needs) -> String {
    match (needs.losses, needs.survive) {
        (1, Domain::Host) => "one of them".to_owned(),
        (losses, domain) => many_of(losses, domain),
    }
}
