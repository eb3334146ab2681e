//! What is wanted: as it was asked, and as it is understood.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::trips::{Trips, pair};
use super::{Contradiction, byte_words, time_words};
use crate::because::list;

/// What is assumed of what was not given.
mod assumed {
    use std::time::Duration;

    pub(super) const READS: u64 = 1000;
    pub(super) const WRITES: u64 = 100;
    /// Queries of an ordinary application on a machine of a few cores; measure yours.
    pub(super) const CAPACITY: u64 = 5000;
    /// Beyond it queues grow faster than load.
    pub(super) const SHARE_PERCENT: u8 = 70;
    /// Log of a small transaction, with some whole pages after each checkpoint.
    pub(super) const WRITE_BYTES: u64 = 2048;
    pub(super) const WITHIN: Duration = Duration::from_millis(1);
    pub(super) const BETWEEN: Duration = Duration::from_millis(80);
    pub(super) const FLUSH: Duration = Duration::from_millis(1);
    /// What replication may add to a commit where some loss is allowed.
    pub(super) const COMMIT_MAX: Duration = Duration::from_millis(5);
    pub(super) const ZONES: u8 = 3;
}

/// Assumed in any case, as no limit says it: freezing the copies, promoting one and writing its
/// marker is PostgreSQL's and the disks' time.
pub(super) const PROMOTION: Duration = Duration::from_millis(400);

/// Regions in one plan: a cluster has at most 16 nodes.
const REGIONS_MAX: usize = 8;
/// Losses at once: more need more copies than a commit rule counts.
const LOSSES_MAX: u8 = 3;

/// What reads must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Everything acknowledged to anybody.
    Strong,
    /// What the same session wrote.
    Fresh,
    /// Nothing older than this.
    Stale(Duration),
    /// Reports, on nodes of their own.
    Reporting,
}

/// What a failover may lose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing that was acknowledged.
    Nothing,
    /// So much log.
    Bytes(u64),
    /// The writes of so long.
    Time(Duration),
}

/// What is lost at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// A host.
    Host,
    /// A zone of the writer's region, such as a data centre.
    Zone,
    /// A whole region.
    Region,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Zone => "zone",
            Self::Region => "region",
        })
    }
}

/// What a person asks. Whatever is left out is assumed, and the plan says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Reads a second, all together.
    pub reads: Option<u64>,
    /// Writing transactions a second.
    pub writes: Option<u64>,
    /// The most reads a second that one replica was seen to serve.
    pub capacity: Option<u64>,
    /// Per cent of it to be used.
    pub share_percent: Option<u8>,
    /// The most writing transactions a second that one machine was seen to do.
    pub write_capacity: Option<u64>,
    /// Bytes of log that a writing transaction makes.
    pub write_bytes: Option<u64>,
    /// What reads must see.
    pub kind: Option<Reads>,
    /// Regions, the writer's first.
    pub regions: Vec<String>,
    /// Zones of the writer's region.
    pub zones: Option<u8>,
    /// A place that may hold a witness and no data.
    pub witness_in: Option<String>,
    /// Measured round-trips between two regions, or within one.
    pub round_trips: Vec<(String, String, Duration)>,
    /// How long a flush to disk takes.
    pub flush: Option<Duration>,
    /// What a failover may lose (RPO).
    pub loss: Option<Loss>,
    /// How long writes may be away (RTO).
    pub recover_within: Option<Duration>,
    /// What is lost at once without harm.
    pub survive: Option<Domain>,
    /// How many of them.
    pub losses: Option<u8>,
    /// A region that must hold every commit before it is acknowledged.
    pub must_hold: Option<String>,
    /// The most that replication may add to a commit.
    pub commit_max: Option<Duration>,
}

/// The same, complete and in itself possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) capacity: u64,
    pub(super) share_percent: u8,
    pub(super) write_capacity: Option<u64>,
    pub(super) write_bytes: u64,
    pub(super) kind: Reads,
    pub(super) regions: Vec<String>,
    pub(super) zones: u8,
    pub(super) witness_in: Option<String>,
    pub(super) trips: Trips,
    pub(super) flush: Duration,
    pub(super) loss: Loss,
    pub(super) recover_within: Option<Duration>,
    pub(super) survive: Domain,
    pub(super) losses: usize,
    pub(super) must_hold: Option<String>,
    pub(super) commit_max: Option<Duration>,
    pub(super) assumed: Vec<String>,
}

impl Needs {
    /// Fills in what is missing and refuses what makes no sense by itself.
    pub(super) fn resolve(request: &Request) -> Result<Self, Contradiction> {
        let mut assumed = Vec::new();
        let regions = regions(request, &mut assumed)?;
        let survive = request.survive.unwrap_or_else(|| {
            assumed.push("it must survive the loss of a host (--survive)".to_owned());
            Domain::Host
        });
        let mut number = |given: Option<u64>, default: u64, what: &str| {
            given.unwrap_or_else(|| {
                assumed.push(what.to_owned());
                default
            })
        };
        let reads = number(request.reads, assumed::READS, "1000 reads/s (--reads)");
        let writes = number(request.writes, assumed::WRITES, "100 writes/s (--writes)");
        let capacity = number(
            request.capacity,
            assumed::CAPACITY,
            "a replica serves 5000 reads/s at the most: measure yours (--capacity)",
        );
        let share_percent = request.share_percent.unwrap_or_else(|| {
            assumed.push("70 % of that is used, so that queues stay short (--share)".to_owned());
            assumed::SHARE_PERCENT
        });
        let write_bytes = request.write_bytes.unwrap_or_else(|| {
            assumed.push("a write makes 2 kB of log (--write-bytes)".to_owned());
            assumed::WRITE_BYTES
        });
        let mut needs = Self {
            reads,
            writes,
            capacity,
            share_percent,
            write_capacity: request.write_capacity,
            write_bytes,
            kind: request.kind.unwrap_or_else(|| {
                assumed.push("reads must see their own session's writes (--kind)".to_owned());
                Reads::Fresh
            }),
            zones: zones(request, survive, &mut assumed),
            witness_in: request.witness_in.clone(),
            trips: trips(request, &regions, survive, &mut assumed)?,
            flush: request.flush.unwrap_or_else(|| {
                assumed.push("a flush to disk takes 1 ms (--flush)".to_owned());
                assumed::FLUSH
            }),
            loss: request.loss.unwrap_or_else(|| {
                assumed.push("no acknowledged commit may be lost (--rpo)".to_owned());
                Loss::Nothing
            }),
            recover_within: request.recover_within,
            survive,
            losses: usize::from(request.losses.unwrap_or(1)),
            must_hold: request.must_hold.clone(),
            commit_max: request.commit_max,
            regions,
            assumed,
        };
        needs.check(request)?;
        let promotion = time_words(PROMOTION);
        needs.assumed.push(format!(
            "copies are frozen, one promoted and its marker written in {promotion}, with nothing \
             left to replay"
        ));
        Ok(needs)
    }

    fn check(&self, request: &Request) -> Result<(), Contradiction> {
        let no = |problem: &str, change: &str| Err(Contradiction::new(problem, change));
        if self.capacity == 0 || !(1..=100).contains(&self.share_percent) || self.usable() == 0 {
            return no(
                "A replica that serves no read carries nothing",
                "Give what one replica was seen to serve (--capacity 8000), and 1 to 100 per cent \
                 of it (--share 70)",
            );
        }
        if !(1..=LOSSES_MAX).contains(&request.losses.unwrap_or(1)) {
            return no(
                "A plan is for 1 to 3 losses at once",
                "Name the largest thing that is lost at once instead (--survive zone or region)",
            );
        }
        let far = |place: &String| *place != self.regions[0] && self.regions.contains(place);
        if self.must_hold.as_ref().is_some_and(|place| !far(place)) {
            return no(
                "--must-hold names no other region than the writer's",
                "The writer's region holds every commit anyway: name another one of --regions",
            );
        }
        if self.must_hold.is_some() && self.loss != Loss::Nothing {
            return no(
                "A region that must hold every commit, and commits that may be lost",
                "Drop --must-hold, or ask for --rpo none",
            );
        }
        if matches!(self.kind, Reads::Stale(age) if age.is_zero()) {
            return no(
                "Reads that may be 0 s old must see everything",
                "Use --kind strong, or give an age (--kind stale:2s)",
            );
        }
        Ok(())
    }

    /// Reads a second that a plan gives to one replica.
    pub(super) fn usable(&self) -> u64 {
        self.capacity.saturating_mul(u64::from(self.share_percent)) / 100
    }

    /// Log that is made in this time.
    pub(super) fn log_bytes(&self, time: Duration) -> u64 {
        (self.writes as f64 * self.write_bytes as f64 * time.as_secs_f64()).ceil() as u64
    }

    /// Log that a failover may lose.
    pub(super) fn loss_bytes(&self) -> u64 {
        match self.loss {
            Loss::Nothing => 0,
            Loss::Bytes(bytes) => bytes,
            Loss::Time(time) => self.log_bytes(time),
        }
    }

    /// What replication may add to a commit; assumed when asked for and not given.
    pub(super) fn commit_max_or_assumed(&mut self) -> Duration {
        self.commit_max.unwrap_or_else(|| {
            self.assumed.push(
                "where some loss is allowed replication may add 5 ms to a commit (--commit-max)"
                    .to_owned(),
            );
            assumed::COMMIT_MAX
        })
    }

    /// What may be lost, for a sentence.
    pub(super) fn loss_words(&self) -> String {
        match self.loss {
            Loss::Nothing => "nothing".to_owned(),
            Loss::Bytes(bytes) => byte_words(bytes),
            Loss::Time(time) => {
                let bytes = byte_words(self.loss_bytes());
                format!("the writes of {} ({bytes} of log)", time_words(time))
            }
        }
    }
}

fn regions(request: &Request, assumed: &mut Vec<String>) -> Result<Vec<String>, Contradiction> {
    let names = if request.regions.is_empty() {
        assumed.push("one region (--regions)".to_owned());
        vec!["home".to_owned()]
    } else {
        request.regions.clone()
    };
    let places: Vec<&String> = names.iter().chain(&request.witness_in).collect();
    let different: BTreeSet<&String> = places.iter().copied().collect();
    if different.len() < places.len() {
        return Err(Contradiction::new(
            "A place is named twice",
            "Give each region once (--regions eu,us), and --witness-in a place that is none of them",
        ));
    }
    if names.len() > REGIONS_MAX {
        return Err(Contradiction::new(
            format!("{} regions are more than a plan is made for ({REGIONS_MAX})", names.len()),
            "Leave out those that need no copy of their own",
        ));
    }
    Ok(names)
}

fn zones(request: &Request, survive: Domain, assumed: &mut Vec<String>) -> u8 {
    match (request.zones, survive) {
        (Some(zones), _) => zones.max(1),
        (None, Domain::Zone) => {
            assumed.push("the writer's region has 3 zones (--zones)".to_owned());
            assumed::ZONES
        }
        (None, Domain::Host | Domain::Region) => 1,
    }
}

fn trips(
    request: &Request,
    regions: &[String],
    survive: Domain,
    assumed: &mut Vec<String>,
) -> Result<Trips, Contradiction> {
    let places: Vec<&String> = regions.iter().chain(&request.witness_in).collect();
    let mut trips =
        Trips { known: Default::default(), within: assumed::WITHIN, between: assumed::BETWEEN };
    for (a, b, time) in &request.round_trips {
        if let Some(unknown) = [a, b].into_iter().find(|p| !places.contains(p)) {
            return Err(Contradiction::new(
                format!("--rtt names {unknown}, which is no region of this plan"),
                format!("Name two of {}, or add it to --regions", list(&places)),
            ));
        }
        trips.known.insert(pair(a, b), *time);
    }
    let unknown = |a: &String, b: &String| !trips.known.contains_key(&pair(a, b));
    let inside: Vec<&String> = regions.iter().filter(|r| unknown(r, r)).collect();
    // Where copies stand in different regions, no commit depends on what is within one.
    if survive != Domain::Region && inside.contains(&&regions[0]) {
        assumed.push(format!("1 ms there and back within {0} (--rtt {0}:{0}=1ms)", regions[0]));
    }
    for (at, a) in places.iter().enumerate() {
        for b in places.iter().skip(at + 1).filter(|b| unknown(a, b)) {
            assumed.push(format!("80 ms there and back between {a} and {b} (--rtt {a}:{b}=80ms)"));
        }
    }
    Ok(trips)
}
