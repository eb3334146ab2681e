//! A cluster in four sentences: where writes go, how they are copied, what reads see, what a failure of
//! the writer leads to. And what an administrator should think about.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::because::list;
use quorate_core::contract::Action;
use quorate_core::document::{Document, Level};
use quorate_core::gateway::{Consistency, ReadFrom, SynchronousCommit, Tls};
use quorate_core::lease::LeaseTiming;
use quorate_core::state::NodeKind;
use quorate_core::status::{Doing, StandbyLink};
use quorate_core::words::{bytes, seconds};
use quorate_core::{NodeId, Policy, Rule};
use serde::Serialize;

use crate::cli::operate::{self, serving};

/// Bytes of log below which a standby counts as current.
const CURRENT_BYTES: u64 = 64 * 1024;
/// Milliseconds without log that it should have below which it counts as current.
const LATE_MS: u64 = 1000;
/// Names that a sentence lists: with more it could not be read.
const NAMES_MAX: usize = 9;
/// Copies of which a sentence says how late they are.
const LATE_MAX: usize = 3;

/// The four sentences, and what to think about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Where writes go.
    pub writes: String,
    /// How they are copied, and when they are acknowledged.
    pub copies: String,
    /// Where reads go, and what they see.
    pub reads: String,
    /// What happens when the writer fails.
    pub failure: String,
    /// What an administrator should think about.
    pub worries: Vec<String>,
}

/// Explains a cluster from what one node sees of it.
pub fn explain(status: &ClusterStatus, document: &Document) -> Explanation {
    Explanation {
        writes: writes(status, document),
        copies: copies(status, document),
        reads: reads(status, document),
        failure: failure(status),
        worries: worries(status, document),
    }
}

/// What a commit needs by one rule: `2 of n1, n2 and n3`.
pub fn rule_words(rule: &Rule) -> String {
    match &rule.policy {
        Policy::Copies(n) => format!("{n} of {}", list(&rule.cohort)),
        Policy::Named { copies, all_of } => {
            format!("{copies} of {}, among them {}", list(&rule.cohort), list(all_of))
        }
        Policy::Zones { copies, zones, .. } => {
            format!("{copies} of {}, in {zones} zones", list(&rule.cohort))
        }
        Policy::WriterOnly => "the writer alone".to_owned(),
    }
}

fn writes(status: &ClusterStatus, document: &Document) -> String {
    let held = match document.gateway.hold_ms {
        0 => "what is sent meanwhile fails at once".to_owned(),
        ms => format!("gateways hold what is sent meanwhile, for up to {}", time(ms)),
    };
    let heard = |w: NodeId| status.nodes.get(&w).is_some_and(operate::is_heard);
    match (operate::writes(status), status.writer) {
        (Some(writer), _) => format!(
            "Writes go to {writer}, the writer of term {}, whichever node's gateway they come through.",
            status.term
        ),
        (None, Some(writer)) if !heard(writer) => format!(
            "Nobody is known to take writes: {writer}, the writer of term {}, is not heard; {held}.",
            status.term
        ),
        (None, Some(writer)) => format!(
            "Nobody takes writes at this moment: {writer} is becoming the writer of term {}; {held}.",
            status.term
        ),
        (None, None) => format!("Nobody takes writes: {}; {held}.", status.because.sentence),
    }
}

fn copies(status: &ClusterStatus, document: &Document) -> String {
    let what = match document.level {
        Level::Received => "have it in memory",
        Level::Flushed => "have it on disk",
        Level::Applied => "show it to readers",
    };
    let rules: Vec<String> = status.authority.rules.iter().map(rule_words).collect();
    let alone = status.authority.rules.iter().any(|r| r.policy == Policy::WriterOnly);
    let enough = if alone {
        "a commit is acknowledged once the writer alone has it on disk, so that a failover can lose \
         what the others lack"
            .to_owned()
    } else {
        format!("a commit is acknowledged once {} {what}", rules.join(", and "))
    };
    let Some(writer) = operate::writes(status) else {
        return format!("Nothing is copied at this moment; with a writer, {enough}.");
    };
    let links = links(status, writer);
    if links.is_empty() {
        return format!("{writer} streams its log to nobody; {enough}.");
    }
    let mut late: Vec<(u64, String)> = links.keys().filter_map(|n| late(status, *n)).collect();
    if late.len() > LATE_MAX {
        late.sort_by_key(|(ms, _)| std::cmp::Reverse(*ms));
    }
    let more = late.len().saturating_sub(LATE_MAX);
    let mut late: Vec<String> = late.into_iter().take(LATE_MAX).map(|(_, told)| told).collect();
    late.extend((more > 0).then(|| format!("and {more} more are late")));
    let late = if late.is_empty() { String::new() } else { format!(" ({})", late.join(", ")) };
    let mut cascaded: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    for (name, member) in &status.nodes {
        if let Some((by, _)) = member.status.as_ref().and_then(|s| s.cascaded()) {
            cascaded.entry(by).or_default().push(*name);
        }
    }
    let cascaded = cascaded.into_iter().map(|(by, names)| (by, some(names)));
    let cascaded: String =
        cascaded.map(|(by, names)| format!(", and by way of {by} to {names}")).collect();
    format!("{writer} streams its log to {}{cascaded}{late}; {enough}.", some(links.into_keys()))
}

/// Names in a sentence, as people count: n2 before n10. Of many the first, and how many more.
fn some(names: impl IntoIterator<Item = NodeId>) -> String {
    let mut names: Vec<NodeId> = names.into_iter().collect();
    names.sort_by_cached_key(|name| by_number(*name));
    let names: Vec<String> = names.into_iter().map(|n| n.to_string()).collect();
    few(names)
}

/// So many of some words that they can be read.
fn few(mut words: Vec<String>) -> String {
    if words.len() > NAMES_MAX {
        let more = words.len() - (NAMES_MAX - 1);
        words.truncate(NAMES_MAX - 1);
        words.push(format!("{more} more"));
    }
    list(&words)
}

/// The order in which people count names.
pub fn by_number(name: NodeId) -> impl Ord {
    let name = name.as_str();
    let word = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (word.to_owned(), name[word.len()..].parse::<u64>().unwrap_or_default(), name.to_owned())
}

/// How late a standby is and what it lacks, when that is worth a word, and why.
fn late(status: &ClusterStatus, node: NodeId) -> Option<(u64, String)> {
    let member = status.nodes.get(&node)?;
    let lag = member.lag?;
    let mut words = Vec::new();
    if lag.bytes > CURRENT_BYTES {
        words.push(format!("is {} behind", bytes(lag.bytes)));
    }
    if lag.replay_ms >= LATE_MS {
        let more = if lag.or_more { " or more" } else { "" };
        words.push(format!("shows what was {}{more} ago", time(lag.replay_ms)));
    }
    let because = member.late_because.as_ref().filter(|_| !words.is_empty());
    words.extend(because.map(|b| b.evidence.clone()));
    (!words.is_empty()).then(|| (lag.replay_ms, format!("{node} {}", words.join(", "))))
}

fn reads(status: &ClusterStatus, document: &Document) -> String {
    let gateway = &document.gateway;
    let serving = |(n, m): &(&NodeId, &Member)| status.writer != Some(**n) && is_replica(m);
    let replicas: BTreeSet<NodeId> = status
        .nodes
        .iter()
        .filter(serving)
        .filter(|(_, m)| m.role.serves_anybody() && !is_withheld(m))
        .map(|(n, _)| *n)
        .collect();
    let late = status.nodes.iter().filter(|(_, m)| is_replica(m) && is_withheld(m));
    let late: Vec<NodeId> = late.map(|(n, _)| *n).collect();
    let late = match late.len() {
        0 => String::new(),
        1 => format!("; {} gets none, because its contract is broken", some(late)),
        _ => format!("; {} get none, because their contracts are broken", some(late)),
    };
    let special = status.nodes.iter().filter(serving).filter(|(_, m)| !m.role.serves_anybody());
    let special: Vec<String> = special
        .filter(|(_, m)| m.role.serves())
        .map(|(n, m)| format!("{n} ({})", m.role))
        .collect();
    let special = match special.len() {
        0 => String::new(),
        _ => format!("; {} only what asks for that role", few(special)),
    };
    let free = "a session may ask for another level (SET quorate.consistency)";
    if !gateway.split {
        return "All reads go to the writer: gateway.split is off.".to_owned();
    }
    if gateway.consistency == Consistency::Strong || gateway.read_from == ReadFrom::Writer {
        return format!("Reads go to the writer and see every commit acknowledged before; {free}.");
    }
    if replicas.is_empty() {
        return format!(
            "Reads go to the writer, since no replica may answer now{late}{special}; {free}."
        );
    }
    let fresh = match gateway.consistency {
        Consistency::Strong | Consistency::ReadYourWrites => {
            "as far as these have what the session itself has written and seen".to_owned()
        }
        Consistency::Monotonic => "as far as these have what the session has seen".to_owned(),
        Consistency::Causal => {
            "as far as these have what the session and its token have seen".to_owned()
        }
        Consistency::Bounded => {
            format!("as far as these are at most {} behind", time(gateway.max_staleness_ms))
        }
        Consistency::Eventual => "whatever these have".to_owned(),
    };
    let otherwise = match gateway.read_from {
        ReadFrom::Replica => "otherwise they wait",
        ReadFrom::Writer | ReadFrom::Prefer | ReadFrom::Nearest => "otherwise to the writer",
        ReadFrom::Ha
        | ReadFrom::Read
        | ReadFrom::Reporting
        | ReadFrom::Analytics
        | ReadFrom::Dr => "otherwise they wait",
    };
    format!(
        "Reads go to {}, {fresh}, and {otherwise}; a replica more than {} behind gets none{late}{special}, and {free}.",
        some(replicas),
        time(gateway.max_lag_ms)
    )
}

/// Whether reads are kept away from it because it is later than agreed.
fn is_withheld(member: &Member) -> bool {
    member.contract.action == Action::RouteToWriter
        && member.lag.is_some_and(|lag| lag.broken_ms.is_some())
}

fn failure(status: &ClusterStatus) -> String {
    let Some(writer) = status.writer else {
        return format!("An election is under way: {}.", status.because.sentence);
    };
    if status.paused {
        return format!("If {writer} fails nothing happens by itself: automation is paused.");
    }
    let lease = seconds(LeaseTiming::default().length);
    let others = status.candidates.iter().filter(|c| c.node != writer);
    match others.clone().find(|c| c.eligible) {
        Some(next) => {
            let able: Vec<NodeId> = others.filter(|c| c.eligible).map(|c| c.node).collect();
            let unless = if able.len() > 1 {
                format!(", or whoever of {} has the longest log then,", some(able))
            } else {
                String::new()
            };
            format!(
                "If {writer} fails, {}{unless} becomes the writer: a majority of {} votes for a new \
                 term, the copies promise to take nothing from {writer} any more, and nobody is \
                 answered before {writer} is seen to be gone or its lease of {lease} is over.",
                next.node,
                list(&status.voters)
            )
        }
        None => {
            let why: Vec<String> = others.map(|c| format!("{}: {}", c.node, c.because)).collect();
            let why =
                if why.is_empty() { "there is no other copy".to_owned() } else { why.join("; ") };
            format!("If {writer} fails, nobody can become the writer now ({why}).")
        }
    }
}

fn worries(status: &ClusterStatus, document: &Document) -> Vec<String> {
    let mut worries = status.warnings.clone();
    let data: Vec<(&NodeId, &Member)> =
        status.nodes.iter().filter(|(_, m)| m.node.kind == NodeKind::Data).collect();
    if data.len() < 2 {
        worries.push("there is one copy of the data: add a node (`quorate join`)".to_owned());
    }
    if let (Some(writer), Some(rule)) = (serving(status), status.authority.rule()) {
        let held: BTreeSet<NodeId> = links(status, writer).into_keys().chain([writer]).collect();
        let without = |n: &NodeId| held.iter().copied().filter(|h| h != n).collect();
        let needed: Vec<NodeId> = held
            .iter()
            .copied()
            .filter(|n| *n != writer && !rule.is_commit_set(&without(n)))
            .collect();
        if rule.is_commit_set(&held) && !needed.is_empty() {
            let each = if needed.len() == 1 { "is" } else { "are each" };
            worries.push(format!(
                "{} {each} needed for every commit: without it commits wait",
                list(&needed)
            ));
        }
        if rule.is_commit_set(&[writer].into()) {
            worries.push(format!(
                "commits need {writer}'s copy alone: they are lost if its host is lost for good"
            ));
        }
    }
    let zones: BTreeSet<&str> = data.iter().map(|(_, m)| m.node.zone.as_str()).collect();
    if data.len() > 1 && zones.len() == 1 {
        let zone = zones.first().filter(|z| !z.is_empty());
        let named = zone.map_or("no zone is named".to_owned(), |z| format!("zone {z}"));
        worries.push(format!("all copies stand in one place as far as is known ({named})"));
    }
    for (name, member) in &status.nodes {
        let Some(lag) = member.lag.filter(|lag| lag.broken_ms.is_some()) else { continue };
        let (limits, late) = (member.contract.words(), time(lag.replay_ms));
        let recovers = member.contract.recovers(Duration::from_millis(lag.replay_ms), lag.bytes);
        if let Some(recovers) = recovers {
            worries.push(format!("{name} {recovers} ({limits}): what it shows is {late} late"));
            continue;
        }
        worries.push(format!(
            "{name} breaks its contract ({limits}): what it shows is {late} late{}",
            member.late_because.as_ref().map_or(String::new(), |c| format!("; {}", c.evidence)),
        ));
    }
    if document.gateway.tls != Tls::Required {
        worries.push("clients may connect without TLS (gateway.tls = \"required\")".to_owned());
    }
    if document.gateway.synchronous_commit_floor < SynchronousCommit::On {
        worries.push(
            "clients may lower synchronous_commit below what keeps their commits \
             (gateway.synchronous_commit_floor)"
                .to_owned(),
        );
    }
    worries
}

/// The standbys that the writer feeds.
fn links(status: &ClusterStatus, writer: NodeId) -> BTreeMap<NodeId, StandbyLink> {
    let word = status.nodes.get(&writer).and_then(|m| m.status.as_ref()?.writer.as_ref());
    word.map(|w| w.standbys.clone()).unwrap_or_default()
}

fn time(ms: u64) -> String {
    seconds(Duration::from_millis(ms))
}

fn is_replica(member: &Member) -> bool {
    let Some(word) = &member.status else { return false };
    !member.gone
        && word.doing == Doing::Following
        && word.server.as_ref().is_some_and(|server| server.reads)
}

#[cfg(test)]
mod tests {
    use quorate_core::Because;
    use quorate_core::authority::Phase;
    use quorate_core::document::Timing;
    use quorate_core::lag::{Cause, CauseKind};
    use quorate_core::status::Lag;

    use super::*;
    use crate::fixture::{candidate, good, node};

    fn careful() -> Document {
        let mut document = Document::default();
        document.gateway.tls = Tls::Required;
        document
    }

    #[test]
    fn a_good_cluster() {
        let told = explain(&good(), &careful());
        assert_eq!(
            told.writes,
            "Writes go to n1, the writer of term 3, whichever node's gateway they come through."
        );
        assert_eq!(
            told.copies,
            "n1 streams its log to n2 and n3; a commit is acknowledged once 2 of n1, n2 and n3 have it \
             on disk."
        );
        assert_eq!(
            told.reads,
            "Reads go to n2 and n3, as far as these have what the session itself has written and \
             seen, and otherwise to the writer; a replica more than 10 s behind gets none, and a \
             session may ask for another level (SET quorate.consistency)."
        );
        assert_eq!(
            told.failure,
            "If n1 fails, n2, or whoever of n2 and n3 has the longest log then, becomes the writer: a \
             majority of n1, n2 and n3 votes for a new term, the copies promise to take nothing from \
             n1 any more, and nobody is answered before n1 is seen to be gone or its lease of 1.5 s \
             is over."
        );
        assert_eq!(told.worries, Vec::<String>::new());
    }

    /// n3 is away, n2 is late.
    fn degraded() -> ClusterStatus {
        let mut status = good();
        if let Some(word) = status.nodes.get_mut(&node("n1")).and_then(|m| m.status.as_mut()) {
            let writer = word.writer.as_mut().unwrap();
            writer.standbys.remove(&node("n3"));
        }
        let n2 = status.nodes.get_mut(&node("n2")).unwrap();
        n2.lag = Some(Lag { replay_ms: 2345, bytes: 3 << 20, ..Lag::default() });
        n2.late_because = Some(Cause { kind: CauseKind::Replay, evidence: "busy".to_owned() });
        let n3 = status.nodes.get_mut(&node("n3")).unwrap();
        n3.gone = true;
        status.candidates[1] = candidate("n3", false, "not heard");
        status
    }

    #[test]
    fn many_nodes_are_a_few_names_and_a_number() {
        let picture = crate::page::fixture::huge();
        let told = explain(&picture.status, &careful());
        let copies = "n1 streams its log to n2, n3, n4, n5, n6, n12, n14, n15 and 26 more, and by way of \
                      n2 to n8, n9, n10, n38 and n44 (n17 ";
        assert!(told.copies.starts_with(copies), "{}", told.copies);
        assert!(told.copies.contains(" more are late); a commit"), "{}", told.copies);
        let all = told.writes.len() + told.copies.len() + told.reads.len() + told.failure.len();
        assert!(all < 2000, "{all} bytes");
    }

    #[test]
    fn a_degraded_cluster() {
        let told = explain(&degraded(), &careful());
        assert_eq!(
            told.copies,
            "n1 streams its log to n2 (n2 is 3.0 MB behind, shows what was 2.3 s ago, busy); a commit is \
             acknowledged once 2 of n1, n2 and n3 have it on disk."
        );
        assert!(told.reads.starts_with("Reads go to n2, as far"), "{}", told.reads);
        assert!(
            told.failure.starts_with("If n1 fails, n2 becomes the writer: "),
            "{}",
            told.failure
        );
        assert_eq!(
            told.worries,
            ["n2 is needed for every commit: without it commits wait"].map(str::to_owned)
        );
        let mut paused = degraded();
        paused.paused = true;
        assert_eq!(
            explain(&paused, &careful()).failure,
            "If n1 fails nothing happens by itself: automation is paused."
        );
    }

    #[test]
    fn a_writer_that_is_not_heard_is_not_said_to_write() {
        let mut status = good();
        let writer = status.writer.unwrap();
        status.nodes.get_mut(&writer).unwrap().gone = true;
        let told = explain(&status, &careful());
        assert_eq!(
            told.writes,
            "Nobody is known to take writes: n1, the writer of term 3, is not heard; gateways hold \
             what is sent meanwhile, for up to 10 s."
        );
        assert!(told.copies.starts_with("Nothing is copied"), "{}", told.copies);
    }

    #[test]
    fn a_cluster_without_a_writer() {
        let mut status = good();
        status.phase = Phase::Electing;
        status.writer = None;
        status.because = Because::new("R5", "term 4: not enough promises");
        let told = explain(&status, &careful());
        assert_eq!(
            told.writes,
            "Nobody takes writes: term 4: not enough promises; gateways hold what is sent meanwhile, \
             for up to 10 s."
        );
        assert_eq!(told.failure, "An election is under way: term 4: not enough promises.");
    }

    #[test]
    fn a_badly_configured_cluster() {
        let mut status = good();
        for member in status.nodes.values_mut() {
            member.node.zone = String::new();
        }
        status.authority.rules[0].policy = Policy::WriterOnly;
        status.candidates.iter_mut().for_each(|c| c.eligible = false);
        let mut document = Document { timing: Timing::Async, ..Document::default() };
        document.gateway.split = false;
        document.gateway.synchronous_commit_floor = SynchronousCommit::Off;
        let told = explain(&status, &document);
        assert!(told.copies.contains("once the writer alone has it on disk"), "{}", told.copies);
        assert_eq!(told.reads, "All reads go to the writer: gateway.split is off.");
        assert_eq!(
            told.failure,
            "If n1 fails, nobody can become the writer now (n2: follows; n3: follows)."
        );
        let worries = told.worries.join("\n");
        for worry in ["n1's copy alone", "(no zone is named)", "without TLS", "synchronous_commit"]
        {
            assert!(worries.contains(worry), "{worry}: {worries}");
        }
    }
}
