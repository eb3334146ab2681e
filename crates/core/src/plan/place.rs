//! Which nodes stand where, so that what may be lost at once takes neither the last copy of a
//! commit nor the majority of votes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::ask::{Domain, Loss, Needs};
use super::{Contradiction, PlannedNode, Purpose, many};
use crate::NodeId;
use crate::because::list;
use crate::limits::NODES_MAX;

/// Who votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Votes {
    /// Voters: all nodes.
    pub voters: usize,
    /// Those that hold no data.
    pub witnesses: usize,
    /// Votes that decide.
    pub majority: usize,
    /// Voters that may be lost before nothing is decided any more.
    pub may_lose: usize,
    /// The arithmetic.
    pub because: String,
}

/// A place where a node can stand.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    pub(super) region: String,
    pub(super) zone: String,
}

/// The nodes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) nodes: Vec<PlannedNode>,
    survive: Domain,
    losses: usize,
}

impl Layout {
    /// The copies that count: enough that, with the losses, every commit is somewhere, and where
    /// there is room for it, that commits can go on with as many copies as before.
    pub(super) fn copies(needs: &Needs) -> Result<Self, Contradiction> {
        let mut layout = Self { nodes: Vec::new(), survive: needs.survive, losses: needs.losses };
        let sites = needs.copy_sites();
        let domains = if needs.survive == Domain::Host { usize::MAX } else { sites.len() };
        if domains <= needs.losses {
            let (domain, lost) = (needs.survive, needs.losses);
            return Err(Contradiction::new(
                format!("{} cannot be lost where there are {domains}", many_of(lost, domain)),
                match domain {
                    Domain::Region => "Name more --regions, or ask for --survive zone or host",
                    Domain::Zone | Domain::Host => "Have more --zones, or ask for --survive host",
                },
            ));
        }
        let least = needs.losses + 1;
        let full = if needs.loss == Loss::Nothing { 2 * needs.losses + 1 } else { least };
        let count = if domains >= full { full } else { least };
        for at in 0..count {
            layout.add(Purpose::Ha, &sites[at % sites.len()]);
        }
        if let Some(region) = &needs.must_hold
            && !layout.nodes.iter().any(|n| n.region == *region)
        {
            layout.add(Purpose::Ha, &Site { region: region.clone(), zone: region.clone() });
        }
        Ok(layout)
    }

    /// Adds a node.
    pub(super) fn add(&mut self, purpose: Purpose, site: &Site) {
        let same = self.nodes.iter().filter(|n| n.purpose.has_data() == purpose.has_data());
        let letter = if purpose.has_data() { 'n' } else { 'w' };
        let name = NodeId::new(&format!("{letter}{}", same.count() + 1));
        // A letter and a number are always a name.
        let Ok(name) = name else { return };
        let Site { region, zone } = site.clone();
        self.nodes.push(PlannedNode { name, purpose, region, zone });
    }

    pub(super) fn ha(&self) -> impl Iterator<Item = &PlannedNode> {
        self.nodes.iter().filter(|n| n.purpose == Purpose::Ha)
    }

    pub(super) fn count(&self, which: impl Fn(&PlannedNode) -> bool) -> usize {
        self.nodes.iter().filter(|n| which(n)).count()
    }

    /// What is lost together with a node.
    pub(super) fn domain(&self, node: &PlannedNode) -> Site {
        let name = |text: &str| text.to_owned();
        match self.survive {
            Domain::Host => Site { region: name(&node.region), zone: node.name.to_string() },
            Domain::Zone => Site { region: name(&node.region), zone: name(&node.zone) },
            Domain::Region => Site { region: name(&node.region), zone: name(&node.region) },
        }
    }

    /// The most of these nodes that the losses can take.
    pub(super) fn worst_loss(&self, which: impl Fn(&PlannedNode) -> bool) -> usize {
        let mut groups: BTreeMap<Site, usize> = BTreeMap::new();
        for node in self.nodes.iter().filter(|n| which(n)) {
            *groups.entry(self.domain(node)).or_default() += 1;
        }
        let mut sizes: Vec<usize> = groups.into_values().collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.iter().take(self.losses).sum()
    }

    /// Refuses more nodes than a cluster can have.
    pub(super) fn check_size(&self, why: &str, change: &str) -> Result<(), Contradiction> {
        if self.nodes.len() <= NODES_MAX {
            return Ok(());
        }
        let problem = format!("{why} needs more than the {NODES_MAX} nodes of a cluster");
        Err(Contradiction::new(problem, change))
    }
}

impl Needs {
    /// Where copies that count may stand, one domain after the other.
    fn copy_sites(&self) -> Vec<Site> {
        match self.survive {
            Domain::Region => self.regions.iter().map(|r| whole(r)).collect(),
            Domain::Host | Domain::Zone => self.home_sites(),
        }
    }

    fn home_sites(&self) -> Vec<Site> {
        let home = &self.regions[0];
        match self.zones {
            0 | 1 => vec![whole(home)],
            zones => (1..=zones)
                .map(|i| Site { region: home.clone(), zone: format!("{home}-{i}") })
                .collect(),
        }
    }

    /// Where nodes that only read may stand.
    pub(super) fn read_sites(&self) -> Vec<Site> {
        match self.survive {
            Domain::Region => self.copy_sites(),
            Domain::Host | Domain::Zone => {
                let far = self.regions.iter().skip(1).map(|r| whole(r));
                self.home_sites().into_iter().chain(far).collect()
            }
        }
    }

    /// Where witnesses may stand, the best first.
    fn witness_sites(&self) -> Vec<Site> {
        self.witness_in.iter().map(|r| whole(r)).chain(self.copy_sites()).collect()
    }
}

/// A copy in each other region, where nobody else keeps up with the writer.
pub(super) fn disaster_copies(needs: &Needs, layout: &mut Layout) {
    for region in needs.regions.iter().skip(1) {
        let keeps_up = |n: &PlannedNode| matches!(n.purpose, Purpose::Ha | Purpose::Read);
        if layout.count(|n| n.region == *region && keeps_up(n)) == 0 {
            layout.add(Purpose::Dr, &whole(region));
        }
    }
}

/// Adds witnesses until the votes are odd in number and no loss takes their majority.
pub(super) fn votes(needs: &Needs, layout: &mut Layout) -> Result<Votes, Contradiction> {
    let sites = needs.witness_sites();
    enough_places(needs, layout, &sites)?;
    while !votes_survive(needs, layout) {
        let votes = |site: &Site| {
            layout.count(|n| match needs.survive {
                Domain::Region => n.region == site.region,
                Domain::Host | Domain::Zone => (&n.region, &n.zone) == (&site.region, &site.zone),
            })
        };
        let Some(site) = sites.iter().min_by_key(|site| votes(site)).cloned() else { break };
        layout.add(Purpose::Witness, &site);
        layout.check_size(
            "Keeping the majority of votes",
            "Name fewer --regions, or serve reads with fewer, larger replicas (--capacity)",
        )?;
    }
    let voters = layout.nodes.len();
    let witnesses = layout.count(|n| n.purpose == Purpose::Witness);
    let majority = voters / 2 + 1;
    let may_lose = voters - majority;
    let mut because = format!(
        "Every node votes: {voters} voters decide with {majority}, so {} may be away",
        many(may_lose, "voter"),
    );
    if witnesses > 0 {
        let names = list(layout.nodes.iter().filter(|n| !n.purpose.has_data()).map(|n| n.name));
        because += &format!("; {names} only {}", if witnesses == 1 { "votes" } else { "vote" });
    }
    if needs.survive != Domain::Host {
        let worst = layout.worst_loss(|_| true);
        let lost = many_of(needs.losses, needs.survive);
        because += &format!("; the loss of {lost} takes at most {}", many(worst, "vote"));
    }
    because.push('.');
    Ok(Votes { voters, witnesses, majority, may_lose, because })
}

/// With two places one of them has the majority, and its loss ends all decisions.
fn enough_places(needs: &Needs, layout: &Layout, sites: &[Site]) -> Result<(), Contradiction> {
    if needs.survive == Domain::Host {
        return Ok(());
    }
    let all = layout.nodes.iter().map(|n| layout.domain(n)).chain(sites.iter().cloned());
    let places = all.collect::<BTreeSet<Site>>().len();
    let least = 2 * needs.losses + 1;
    if places >= least {
        return Ok(());
    }
    let domain = needs.survive;
    let more = match domain {
        Domain::Region => "name another of --regions",
        Domain::Zone | Domain::Host => "have more --zones",
    };
    Err(Contradiction::new(
        format!(
            "After the loss of {} a majority of votes must remain, which takes {least} places; \
             here are {places}",
            many_of(needs.losses, domain),
        ),
        format!(
            "Name a place for a small host that only votes (--witness-in PLACE), {more}, or ask \
             for --survive host and decide by hand when a {domain} is lost"
        ),
    ))
}

fn votes_survive(needs: &Needs, layout: &Layout) -> bool {
    let voters = layout.nodes.len();
    let spare = voters.saturating_sub(1) / 2;
    let far = |region: &String| layout.count(|n| n.region == *region);
    let cut_off = needs.regions.iter().skip(1).map(far).max().unwrap_or(0);
    voters % 2 == 1 && layout.worst_loss(|_| true) <= spare && cut_off <= spare
}

fn whole(region: &str) -> Site {
    Site { region: region.to_owned(), zone: region.to_owned() }
}

/// `1 region`, `2 hosts`.
pub(super) fn many_of(count: usize, domain: Domain) -> String {
    many(count, &domain.to_string())
}
