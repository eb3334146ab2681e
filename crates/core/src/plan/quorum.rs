//! The quorum calculator: what N copies with R readers and W writers promise.
//!
//! For stores without a leader: a value is on N nodes, a write is acknowledged when W of them have
//! it, a read asks R of them and takes the newest answer. No hints, no nodes that stand in: such a
//! copy is not where a read looks for it, and counts for nothing here.

use std::fmt;

use serde::Serialize;

use super::{Contradiction, many};
use crate::limits::NODES_MAX;

/// N, R and W, and how many nodes are gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Quorum {
    /// Copies of each value.
    pub nodes: u8,
    /// Nodes that a read must hear.
    pub read: u8,
    /// Nodes that must have a write.
    pub write: u8,
    /// Nodes that are gone and not replaced.
    pub down: u8,
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "N={} R={} W={}", self.nodes, self.read, self.write)
    }
}

impl Quorum {
    /// Refuses numbers that do not belong together.
    ///
    /// # Errors
    /// What is wrong, and what to change.
    pub fn check(&self) -> Result<(), Contradiction> {
        let Self { nodes, read, write, down } = *self;
        let no = |problem: String, change: &str| Err(Contradiction::new(problem, change));
        if nodes == 0 || usize::from(nodes) > NODES_MAX {
            return no(
                format!("{nodes} copies are none, or more than the {NODES_MAX} nodes of a cluster"),
                "Use --nodes 3 or 5",
            );
        }
        for (name, count) in [("read", read), ("write", write)] {
            if count == 0 {
                return no(
                    format!("A {name} that needs no node reads or keeps nothing"),
                    "Use 1 or more",
                );
            }
            if count > nodes {
                return no(
                    format!("A {name} cannot need {count} of {nodes} nodes"),
                    "Use no more than --nodes, or more nodes",
                );
            }
        }
        if down >= nodes {
            return no(
                format!("With {down} of {nodes} nodes down nothing is left"),
                "Use a smaller --down",
            );
        }
        Ok(())
    }

    /// Whether every read meets every acknowledged write.
    pub fn is_strong(&self) -> bool {
        self.read + self.write > self.nodes
    }

    /// Whether two writes can both be acknowledged without a node that saw both.
    pub fn writes_can_miss(&self) -> bool {
        2 * self.write <= self.nodes
    }

    /// Nodes that may be lost before reads end.
    pub fn reads_survive(&self) -> u8 {
        self.nodes - self.read
    }

    /// Nodes that may be lost before writes end.
    pub fn writes_survive(&self) -> u8 {
        self.nodes - self.write
    }

    /// Whether reads work with `down` nodes gone.
    pub fn reads_with_down(&self) -> bool {
        self.nodes - self.down >= self.read
    }

    /// Whether writes work with `down` nodes gone.
    pub fn writes_with_down(&self) -> bool {
        self.nodes - self.down >= self.write
    }

    /// Whether a write from before can be gone with the nodes that are down.
    pub fn may_lose_with_down(&self) -> bool {
        self.down >= self.write
    }

    /// Whether reads of those that are left meet every write that was acknowledged, before or after.
    /// Reads that do not work meet nothing.
    pub fn is_strong_with_down(&self) -> bool {
        // W − D of the copies from before are left for sure, and later ones are W of those left.
        let left = self.nodes - self.down;
        let kept = self.write.saturating_sub(self.down);
        self.reads_with_down() && self.read + kept > left
    }

    /// How many of all possible reads miss a write that is on W nodes and nowhere else yet, and how
    /// many possible reads there are.
    pub fn missing_reads(&self) -> (u64, u64) {
        let outside = choose(self.nodes - self.write, self.read);
        (outside, choose(self.nodes, self.read))
    }
}

/// Ways to take `k` of `n`.
fn choose(n: u8, k: u8) -> u64 {
    if k > n {
        return 0;
    }
    // Each step leaves a whole number: the product of i numbers in a row divides by i!.
    (1..=u64::from(k)).fold(1, |ways, i| ways * (u64::from(n) - u64::from(k) + i) / i)
}

/// What a choice promises.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// The choice.
    pub quorum: Quorum,
    /// Whether every read meets every acknowledged write.
    pub strong: bool,
    /// Whether two writes can miss each other.
    pub writes_can_miss: bool,
    /// Nodes that may be lost before reads end.
    pub reads_survive: u8,
    /// Nodes that may be lost before writes end.
    pub writes_survive: u8,
    /// Nodes whose disks may be destroyed without taking an acknowledged write.
    pub copies_survive: u8,
    /// The same choice with the nodes gone that `down` says.
    pub with_down: Option<WithDown>,
    /// The arithmetic, a sentence each.
    pub because: Vec<String>,
    /// Every R and W for this N.
    pub choices: Vec<Choice>,
    /// What to take, by what there is more of.
    pub advice: Vec<Advice>,
}

/// With nodes gone for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WithDown {
    /// Whether reads work.
    pub reads: bool,
    /// Whether writes work.
    pub writes: bool,
    /// Whether reads, as long as they work, meet every acknowledged write.
    pub strong: bool,
    /// Whether an acknowledged write may be gone.
    pub may_lose: bool,
    /// Further nodes that may be lost before reads or writes end.
    pub spare: u8,
}

/// One R and W.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// R.
    pub read: u8,
    /// W.
    pub write: u8,
    /// Whether every read meets every acknowledged write; eventual otherwise.
    pub strong: bool,
    /// Whether two writes can miss each other.
    pub writes_can_miss: bool,
}

/// A choice to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// `read-heavy`, `balanced` or `write-heavy`.
    pub load: String,
    /// R.
    pub read: u8,
    /// W.
    pub write: u8,
    /// What it costs.
    pub because: String,
}

/// Judges a choice.
///
/// # Errors
/// When the numbers do not belong together.
pub fn judge(quorum: Quorum) -> Result<Verdict, Contradiction> {
    quorum.check()?;
    let with_down = (quorum.down > 0).then(|| WithDown {
        reads: quorum.reads_with_down(),
        writes: quorum.writes_with_down(),
        strong: quorum.is_strong_with_down(),
        may_lose: quorum.may_lose_with_down(),
        spare: (quorum.nodes - quorum.down).saturating_sub(quorum.read.max(quorum.write)),
    });
    let mut because = vec![overlap(&quorum), conflict(&quorum), losses(&quorum)];
    because.extend(with_down.map(|with| down(&quorum, with)));
    let each = 1..=quorum.nodes;
    let choices = each.clone().flat_map(|read| each.clone().map(move |write| (read, write)));
    let choices = choices.map(|(read, write)| {
        let one = Quorum { read, write, ..quorum };
        Choice { read, write, strong: one.is_strong(), writes_can_miss: one.writes_can_miss() }
    });
    Ok(Verdict {
        quorum,
        strong: quorum.is_strong(),
        writes_can_miss: quorum.writes_can_miss(),
        reads_survive: quorum.reads_survive(),
        writes_survive: quorum.writes_survive(),
        copies_survive: quorum.write - 1,
        with_down,
        because,
        choices: choices.collect(),
        advice: advice(&quorum),
    })
}

fn overlap(q: &Quorum) -> String {
    let (read, write, nodes) = (q.read, q.write, q.nodes);
    let sum = read + write;
    if q.is_strong() {
        return format!(
            "Strong: R + W = {read} + {write} = {sum} > N = {nodes}, so every read asks at least {} \
             that has the newest acknowledged write.",
            many(usize::from(sum - nodes), "node"),
        );
    }
    let (miss, all) = q.missing_reads();
    format!(
        "Eventual: R + W = {read} + {write} = {sum} ≤ N = {nodes}, so a read may ask only nodes \
         without the newest write: {miss} of {all} possible reads do, until the other nodes have it.",
    )
}

fn conflict(q: &Quorum) -> String {
    let (write, nodes) = (q.write, q.nodes);
    if q.writes_can_miss() {
        return format!(
            "Two writes can miss each other: 2 × W = {} ≤ N = {nodes}, so both may be acknowledged \
             and no node saw both. Only versions that show it (siblings) or a merge tell, later.",
            2 * write,
        );
    }
    let both = 2 * write - nodes;
    format!(
        "Two writes meet: 2 × W = {} > N = {nodes}, so at least {} both and can tell. Which one \
         wins is still a matter of versions, not of quorums.",
        2 * write,
        if both == 1 { "1 node sees".to_owned() } else { format!("{both} nodes see") },
    )
}

fn losses(q: &Quorum) -> String {
    format!(
        "Reads go on with {} lost (N − R), writes with {} (N − W); an acknowledged write survives \
         the destruction of {} (W − 1).",
        many(usize::from(q.reads_survive()), "node"),
        q.writes_survive(),
        many(usize::from(q.write - 1), "disk"),
    )
}

fn down(q: &Quorum, with: WithDown) -> String {
    let left = q.nodes - q.down;
    let end = |works: bool, need: u8| match works {
        true => format!("go on (need {need})"),
        false => format!("END (need {need})"),
    };
    let mut text = format!(
        "With {} of {} down for good {left} are left: reads {}, writes {}",
        q.down,
        q.nodes,
        end(with.reads, q.read),
        end(with.writes, q.write),
    );
    text += &match (with.reads, with.may_lose) {
        (_, true) => format!(
            ". A write may have been on the lost {} alone (W = {} ≤ D = {}) and is gone then",
            many(usize::from(q.down), "node"),
            q.write,
            q.down
        ),
        (false, false) => String::new(),
        (true, false) => {
            let kept = q.write - q.down;
            let sum = q.read + kept;
            match with.strong {
                true => format!(
                    ". Still strong: at least {kept} of W = {} copies remain, and R + {kept} = \
                     {sum} > {left}",
                    q.write
                ),
                false => format!(
                    ". Eventual: {kept} of W = {} copies may be all that remain, and R + {kept} = \
                     {sum} ≤ {left}",
                    q.write
                ),
            }
        }
    };
    if with.reads && with.writes {
        text += &match with.spare {
            0 => ". The next loss ends one of the two".to_owned(),
            spare => format!(". Both go on without {}", many(usize::from(spare), "more node")),
        };
    }
    text + ". Replace what is gone: until then N is still the number that the rules count with."
}

/// Strong choices that survive what they can: one node, or as many as are down, where N allows.
fn advice(q: &Quorum) -> Vec<Advice> {
    let nodes = q.nodes;
    let majority = nodes / 2 + 1;
    let spare = q.down.max(1).min(nodes - majority);
    let most = nodes - spare;
    let least = nodes + 1 - most;
    let one = |load: &str, read: u8, write: u8, but: String| Advice {
        load: load.to_owned(),
        read,
        write,
        because: format!(
            "Reads go on with {} lost, writes with {}. {but}",
            many(usize::from(nodes - read), "node"),
            nodes - write
        ),
    };
    let reads = format!("R=1 W={nodes} asks one node for a read, and the first loss ends writes.");
    let even = "As few nodes as both can have alike.".to_owned();
    let mut writes =
        format!("R={nodes} W=1 asks one node for a write, and the first loss ends reads.");
    if 2 * least <= nodes {
        writes += " Two writes can miss each other.";
    }
    vec![
        one("read-heavy", least, most, reads),
        one("balanced", nodes + 1 - majority, majority, even),
        one("write-heavy", most, least, writes),
    ]
}
