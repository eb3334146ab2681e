//! Sections about the nodes: who feeds whom, what each owes, who would be next, every position.

use std::collections::BTreeMap;
use std::time::Duration;

use maud::{Markup, html};
use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::because::list;
use quorate_core::candidates::Candidate;
use quorate_core::lag::Percentiles;
use quorate_core::role::Role;
use quorate_core::state::NodeKind;
use quorate_core::status::{Doing, StandbyLink};
use quorate_core::{Lsn, NodeId};

use super::limits::{CANDIDATES_OPEN_MAX, CARDS_FULL_MAX, NODES_FEW_MAX};
use super::parts::Head::{Explained, Figure, Text};
use super::parts::{head, ms, or_dash, plain, prose, sideways, tag, wide};
use super::verdict::{Level, is_heard, state};
use crate::cli::operate::{self, serving};
use crate::explain::by_number;
use quorate_core::words::bytes;

/// The writer above, what it feeds below, by zone.
pub fn map(status: &ClusterStatus) -> Markup {
    let writer = status.writer;
    let mut zones: BTreeMap<&str, Vec<(NodeId, &Member)>> = BTreeMap::new();
    for (name, member) in ordered(status).into_iter().filter(|(n, _)| writer != Some(*n)) {
        zones.entry(&member.node.zone).or_default().push((name, member));
    }
    let many = status.nodes.len() > CARDS_FULL_MAX;
    let few = status.nodes.len() <= NODES_FEW_MAX;
    html! {
        div.map.many[many].few[few] {
            @match writer.and_then(|w| Some((w, status.nodes.get(&w)?))) {
                Some((name, member)) => (source(status, name, member)),
                None => div.card.source.critical {
                    b.name { "No writer" }
                    p.line.soft { "term " (status.term) " · the next one is being elected" }
                },
            }
            ul.zones { @for (zone, members) in &zones {
                li.zone {
                    h3 { @if zone.is_empty() { "No zone named" } @else { "Zone " (zone) }
                        @if members.len() > 4 { span.soft { " · " (members.len()) " nodes" } } }
                    @let (calm, told): (Vec<_>, Vec<_>) =
                        members.iter().partition(|(n, m)| many && is_calm(status, *n, m));
                    ul.cards {
                        @for (name, member) in told { (card(status, name, member, many)) }
                    }
                    (chips(status, &calm))
                }
            } }
        }
    }
}

/// The writer.
fn source(status: &ClusterStatus, name: NodeId, member: &Member) -> Markup {
    let (level, word) = state(member);
    let level = if is_heard(status, name) { level } else { Level::Critical };
    let server = member.status.as_ref().and_then(|s| s.server.as_ref());
    html! {
        div class={ "card source " (level.word()) } id={ "node-" (name) } {
            p.line {
                b.name { (name) }
                (plain("writer"))
                (tag(level, word))
                (coordinator(status, name))
            }
            p.line.soft {
                "term " (status.term)
                @if !member.node.zone.is_empty() { " · zone " (member.node.zone) }
                @if let Some(server) = server {
                    @if let Some(timeline) = server.timeline { " · timeline " (timeline) }
                    " · log ends at " code { (server.flushed) }
                    @if !server.version.is_empty() { " · PostgreSQL " (server.version) }
                }
            }
        }
    }
}

fn coordinator(status: &ClusterStatus, name: NodeId) -> Markup {
    html! {
        @if status.leader == Some(name) {
            span.tag title="Leads consensus, and coordinates elections" { "coordinator" }
        }
    }
}

/// What the writer knows of a standby that it feeds, or what one says that another standby feeds;
/// nothing that a writer said before it was lost.
fn link(status: &ClusterStatus, name: NodeId) -> Option<StandbyLink> {
    let writer = status.writer.filter(|w| is_heard(status, *w))?;
    let writer = status.nodes.get(&writer)?.status.as_ref()?.writer.as_ref()?;
    let fed = writer.standbys.get(&name).copied();
    fed.or_else(|| upstream(status, name).map(|(_, link)| link))
}

/// The standby by way of which a node gets the log, and what it has of it.
fn upstream(status: &ClusterStatus, name: NodeId) -> Option<(NodeId, StandbyLink)> {
    status.nodes.get(&name)?.status.as_ref()?.cascaded()
}

/// How much one standby lacks of what the one that feeds it has on its disk.
fn behind(status: &ClusterStatus, name: NodeId) -> Option<(NodeId, u64)> {
    let (feeder, link) = upstream(status, name)?;
    let server = status.nodes.get(&feeder)?.status.as_ref()?.server.as_ref()?;
    Some((feeder, server.flushed.bytes_since(link.flushed)))
}

/// Where the writer's log ends.
pub fn end(status: &ClusterStatus) -> Option<Lsn> {
    let writer = status.nodes.get(&status.writer?)?;
    Some(writer.status.as_ref()?.server.as_ref()?.flushed)
}

/// Whether there is nothing to say of a node but how late it is.
fn is_calm(status: &ClusterStatus, name: NodeId, member: &Member) -> bool {
    let well = state(member).0 == Level::Good && status.writer.is_some_and(|w| is_heard(status, w));
    let fed = link(status, name).is_some() || member.node.kind == NodeKind::Witness;
    let broken = member.lag.is_some_and(|lag| lag.broken_ms.is_some());
    well && fed && !broken && next(status) != Some(name) && status.leader != Some(name)
}

/// Nodes of which there is nothing more to say, where there are many.
fn chips(status: &ClusterStatus, nodes: &[(NodeId, &Member)]) -> Markup {
    let chip = |name: NodeId, member: &Member| {
        let witness = member.node.kind == NodeKind::Witness;
        let role = if witness { "witness" } else { member.role.as_str() };
        let lag = member.lag.map(|lag| (ms(lag.replay_ms), bytes(lag.bytes)));
        let title = lag.as_ref().map(|(late, bytes)| format!("shows {late} ago, {bytes} behind"));
        html! { li.chip.good id={ "node-" (name) } title=[title] {
            b { (name) }
            @if witness || member.role != Role::Ha { " " span.soft { (role) } }
            @if let Some((feeder, _)) = upstream(status, name) { " " span.soft { "via " (feeder) } }
            @if let Some((late, _)) = lag { " " (late) }
        } }
    };
    html! { @if !nodes.is_empty() {
        p.soft.calm { (nodes.len()) " as they should be, and how late each is:" }
        ul.chips { @for (name, member) in nodes { (chip(*name, member)) } }
    } }
}

/// Who would write if the writer failed now.
fn next(status: &ClusterStatus) -> Option<NodeId> {
    status.candidates.iter().find(|c| c.eligible).map(|c| c.node)
}

/// A node that does not write.
fn card(status: &ClusterStatus, name: NodeId, member: &Member, many: bool) -> Markup {
    let (level, word) = state(member);
    // Who follows a lost writer is not as it should be, whatever it says.
    let lost = status.writer.is_some_and(|w| !is_heard(status, w));
    let level = if lost { level.max(Level::Notice) } else { level };
    let broken = member.lag.is_some_and(|lag| lag.broken_ms.is_some());
    let worst = if broken { level.max(Level::Warning) } else { level };
    let fed = link(status, name).is_some();
    let witness = member.node.kind == NodeKind::Witness;
    let next = next(status) == Some(name);
    let server = member.status.as_ref().and_then(|s| s.server.as_ref());
    html! {
        li class={ "card " (worst.word()) @if !fed && !witness { " cut" } } id={ "node-" (name) } {
            p.line {
                b.name { (name) }
                (plain(if witness { "witness" } else { member.role.as_str() }))
                (tag(level, word))
                @if next { span.tag title="Would be the writer if this one failed now" { "next" } }
                (coordinator(status, name))
            }
            @if !witness { (hop(status, name, member)) }
            @if broken { p.line { (tag(Level::Warning, "contract broken")) } }
            @if !many && !witness { @if let Some(server) = server {
                p.line.soft.positions {
                    "has " code { (server.flushed) } " shows " code { (server.replayed) }
                }
            } }
        }
    }
}

/// What is on its way from the writer to a standby.
fn hop(status: &ClusterStatus, name: NodeId, member: &Member) -> Markup {
    let Some(link) = link(status, name) else { return no_hop(status, member) };
    let missing = end(status).map(|end| end.bytes_since(link.flushed));
    html! {
        p.line.hop {
            span.arrow aria-hidden="true" { "→" }
            span {
                @if let Some((feeder, behind)) = behind(status, name) {
                    span.tag
                        title={ "Gets the log from " (feeder) ", and lacks so much of what that has" } {
                        "by way of " (feeder) @if behind > 0 { ", " (bytes(behind)) " behind it" }
                    } " "
                }
                @if let Some(lag) = member.lag {
                    span title="How late what it shows is, and how much log it has not replayed" {
                        "shows " b { @if lag.or_more { "≥" } (ms(lag.replay_ms)) } " ago"
                        @if lag.bytes > 0 { ", " (bytes(lag.bytes)) span.more { " behind" } }
                    }
                } @else if let Some(missing) = missing {
                    span title="Log that is not on its disk" { (bytes(missing)) " behind" }
                }
            }
        }
    }
}

/// Why nothing is on its way, in a standby's own words.
fn no_hop(status: &ClusterStatus, member: &Member) -> Markup {
    let said = member.status.as_ref().filter(|_| operate::is_heard(member));
    // Who does what it should has nothing to explain.
    let why = said.map(|s| &s.because).filter(|b| b.rule != "following");
    let why = why.map(|b| b.sentence.as_str()).filter(|s| !s.is_empty());
    let ready = said.is_some_and(|s| s.doing == Doing::Following)
        && status.writer.is_some_and(|w| is_heard(status, w));
    let line = match (status.writer, why) {
        // Without a writer nobody is fed.
        (None, None) => return html! {},
        (None, Some(why)) => html! { (prose(why)) },
        (Some(_), _) if ready => html! { "not fed yet" },
        (Some(_), None) => html! { "not fed" },
        (Some(_), Some(why)) => html! { "not fed: " (prose(why)) },
    };
    html! { p.line.hop { span.arrow aria-hidden="true" { "⇢" } span { (line) } } }
}

/// Members as people count: n2 before n10.
pub fn ordered(status: &ClusterStatus) -> Vec<(NodeId, &Member)> {
    let mut members: Vec<(NodeId, &Member)> = status.nodes.iter().map(|(n, m)| (*n, m)).collect();
    members.sort_by_cached_key(|(name, _)| by_number(*name));
    members
}

/// What every copy is for, what it owes, and whether it keeps that.
pub fn contracts(status: &ClusterStatus) -> Markup {
    let copies = ordered(status).into_iter().filter(|(_, m)| m.node.kind == NodeKind::Data);
    let many = status.nodes.len() > CARDS_FULL_MAX;
    let kept = |name: NodeId, member: &Member| {
        status.writer == Some(name) || member.lag.is_some_and(|lag| lag.broken_ms.is_none())
    };
    let (calm, told): (Vec<_>, Vec<_>) = copies.partition(|(n, m)| many && kept(*n, m));
    let (unknown, told): (Vec<_>, Vec<_>) =
        told.into_iter().partition(|(_, m)| many && m.lag.is_none());
    let table = |copies: &[(NodeId, &Member)]| {
        html! { table {
            (head(&[
                Text("Copy"), Text("For"), Text("May be"), Figure("Is"), Text("Contract"),
                Explained("Last 10 min: 50 · 95 · 99 % · max", LATELY),
            ]))
            tbody { @for (name, member) in copies { (contract(status, *name, member)) } }
        } }
    };
    html! {
        @if !told.is_empty() { (wide("Contracts", &table(&told))) }
        @if !unknown.is_empty() {
            p { "Of " (list(unknown.iter().map(|(name, _)| name))) " it is not known." }
        }
        @if !calm.is_empty() {
            details #contracts-kept { summary { (calm.len()) " that keep theirs" } (alike(&calm)) }
        }
    }
}

/// Copies that owe the same, with how late each is.
fn alike(copies: &[(NodeId, &Member)]) -> Markup {
    let mut kinds: BTreeMap<_, Vec<&(NodeId, &Member)>> = BTreeMap::new();
    for copy in copies {
        let contract = &copy.1.contract;
        let kind = (contract.purpose.as_str(), contract.owner.as_str(), contract.words());
        kinds.entry(kind).or_default().push(copy);
    }
    html! { ul { @for ((purpose, owner, limits), copies) in kinds { li {
        (purpose) @if !owner.is_empty() { span.soft { " (" (owner) ")" } } ", " (limits) ": "
        @for (i, (name, member)) in copies.into_iter().enumerate() {
            @if i > 0 { ", " }
            b { (name) } @match member.lag {
                Some(lag) => { " " @if lag.or_more { "≥" } (ms(lag.replay_ms)) }
                None => " writes",
            }
        }
    } } } }
}

const LATELY: &str =
    "No later in half, 95 and 99 of 100 parts of the last ten minutes, and at worst";

fn lately(late: Percentiles) -> String {
    [late.p50_ms, late.p95_ms, late.p99_ms, late.max_ms].map(ms).join(" · ")
}

fn contract(status: &ClusterStatus, name: NodeId, member: &Member) -> Markup {
    let contract = &member.contract;
    let writes = status.writer == Some(name);
    html! { tr {
        th scope="row" data-label="Copy" { (name) " " span.soft { (member.role) } }
        td data-label="For" { (contract.purpose)
            @if !contract.owner.is_empty() { span.soft { " (" (contract.owner) ")" } } }
        td data-label="May be" { (contract.words()) }
        td.n data-label="Is" { @match member.lag {
            Some(lag) => { @if lag.or_more { "≥" } (ms(lag.replay_ms)) " late" }
            None => "—",
        } }
        td data-label="Contract" {
            @match member.lag {
                _ if writes => span.soft { "writes" },
                None => span.soft { "not known" },
                Some(lag) => @match lag.broken_ms {
                    None => (tag(Level::Good, "kept")),
                    Some(broken) => {
                        (tag(Level::Warning, "broken")) " for " (ms(broken / 1000 * 1000))
                        span.soft { ", then: " (contract.action.as_str().replace('_', " ")) }
                        @if let Some(recovers) =
                            contract.recovers(Duration::from_millis(lag.replay_ms), lag.bytes)
                        { div.evidence { "It " (recovers) "." } }
                    }
                }
            }
            @if let Some(cause) = &member.late_because { div.evidence { (prose(&cause.evidence)) } }
        }
        td.n data-label="Last 10 min" {
            (or_dash(member.lately.map(lately)))
        }
    } }
}

/// Who would write next, and why not the others.
pub fn candidates(status: &ClusterStatus) -> Markup {
    let all: Vec<(usize, &Candidate)> = status.candidates.iter().enumerate().collect();
    let few = all.len() <= CANDIDATES_OPEN_MAX;
    // Whose role is another one is not expected to.
    let matters = |c: &Candidate| few || c.eligible || is_meant(status, c.node);
    let (mut told, mut folded): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, c)| matters(c));
    folded.splice(0..0, told.split_off(told.len().min(CANDIDATES_OPEN_MAX)));
    folded.sort_by_key(|(place, _)| *place);
    let lines = |candidates: &[(usize, &Candidate)]| {
        html! { ol.next { @for (place, candidate) in candidates {
            li value=(place + 1) {
                b.name { (candidate.node) } " "
                @if candidate.eligible { (tag(Level::Good, "could write")) }
                @else if is_meant(status, candidate.node) { (tag(Level::Warning, "could not")) }
                @else { (plain("could not")) }
                " " span { (candidate.because) }
            }
        } } }
    };
    html! {
        @if status.candidates.is_empty() { p { "There is no other copy that could write." } }
        (lines(&told))
        @if !folded.is_empty() {
            details #next-others { summary { (folded.len()) " more" } (lines(&folded)) }
        }
        @if status.paused {
            p { (tag(Level::Warning, "automation is paused")) " nobody takes over by itself" }
        }
    }
}

/// Whether a copy is there to take over: that it could not is something to look at.
fn is_meant(status: &ClusterStatus, node: NodeId) -> bool {
    status.nodes.get(&node).is_some_and(|m| m.role == Role::Ha)
}

/// Every node with what it last said of itself.
pub fn nodes(status: &ClusterStatus) -> Markup {
    let table = html! { table {
        (head(&[
            Text("Node"), Text("State"), Figure("Timeline"), Figure("Log end"),
            Figure("Replayed"), Explained("Promised", "The newest term it promised to follow"),
            Explained("Disk", "How long its last probe write took"), Text("Version"),
            Text("Why"),
        ]))
        tbody { @for (name, member) in ordered(status) { (node(status, name, member)) } }
    } };
    // So many would be a very long way on a phone.
    let framed = match status.nodes.len() > CARDS_FULL_MAX {
        true => sideways("Every node", &table),
        false => wide("Every node", &table),
    };
    html! { details { summary { "Positions, promises, versions" } (framed) } }
}

fn node(status: &ClusterStatus, name: NodeId, member: &Member) -> Markup {
    let (level, word) = state(member);
    let said = member.status.as_ref();
    let server = said.and_then(|s| s.server.as_ref());
    let writes = serving(status) == Some(name);
    let label = |text| (status.nodes.len() <= CARDS_FULL_MAX).then_some(text);
    html! { tr {
        th scope="row" data-label=[label("Node")] { (name) @if writes { " " (plain("writer")) } }
        td data-label=[label("State")] { (tag(level, word)) }
        td.n data-label=[label("Timeline")] { (or_dash(server.and_then(|s| s.timeline))) }
        td.n data-label=[label("Log end")] { code { (or_dash(server.map(|s| s.flushed))) } }
        td.n data-label=[label("Replayed")] { code { (or_dash(server.map(|s| s.replayed))) } }
        td.n data-label=[label("Promised")] { (or_dash(said.and_then(|s| s.promised))) }
        td.n data-label=[label("Disk")] { (or_dash(said.and_then(|s| s.disk_ms).map(ms))) }
        td data-label=[label("Version")] {
            (said.map_or("", |s| s.version.as_str()))
            @if let Some(server) = server.filter(|s| !s.version.is_empty()) {
                " / PostgreSQL " (server.version)
            }
        }
        td data-label=[label("Why")] { (said.map_or("", |s| s.because.sentence.as_str())) }
    } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture::{huge, large, troubled};

    #[test]
    fn nodes_are_in_the_order_of_their_numbers() {
        let picture = large(12);
        let names: Vec<String> =
            ordered(&picture.status).into_iter().map(|(n, _)| n.to_string()).collect();
        assert_eq!(names[..3], ["n1", "n2", "n3"]);
        assert_eq!(names[9..], ["n10", "n11", "n12"]);
    }

    #[test]
    fn a_node_that_gets_nothing_says_so() {
        let map = map(&troubled().status).into_string();
        let card = |name: &str| {
            let at = map.find(&format!("id=\"node-{name}\"")).unwrap();
            map[..at].rsplit("<li").next().unwrap().to_owned()
                + map[at..].split("</li>").next().unwrap()
        };
        assert!(card("n2").contains("cut") && card("n2").contains("not fed<"), "{}", card("n2"));
        assert!(card("n4").contains("not fed: copies the database from n1"), "{}", card("n4"));
        assert!(card("n3").contains("contract broken") && !card("n3").contains("cut"));
        assert!(!card("n6").contains("not fed"), "a witness is fed nothing");
    }

    #[test]
    fn of_many_nodes_those_stand_out_that_are_not_well() {
        let status = huge().status;
        let map = map(&status).into_string();
        for name in status.nodes.keys() {
            assert_eq!(
                map.matches(&format!("id=\"node-{name}\"")).count(),
                1,
                "{name} is there once"
            );
        }
        let cards = map.matches("class=\"card ").count();
        assert!((10..20).contains(&cards), "{cards} cards");
        for name in ["n7", "n13", "n31", "n38", "n41"] {
            assert!(
                !map.contains(&format!("<li class=\"chip good\" id=\"node-{name}\"")),
                "{name}"
            );
        }
        assert!(map.contains("Zone us-east-1") && map.contains("via n2"), "{map}");
        let contracts = contracts(&status).into_string();
        let (open, folded) = contracts.split_once("<details").unwrap();
        assert_eq!(open.matches("<tr>").count(), 4, "three are broken: {open}");
        assert!(open.contains("Of n7, n11, n13,") && open.contains(">broken<"), "{open}");
        assert!(!folded.contains(">broken<"));
        let next = candidates(&status).into_string();
        let (open, folded) = next.split_once("<details").unwrap();
        assert_eq!(open.matches("<li ").count(), CANDIDATES_OPEN_MAX);
        assert_eq!(folded.matches("<li ").count(), status.candidates.len() - CANDIDATES_OPEN_MAX);
    }

    #[test]
    fn an_election_shows_what_each_copy_does_for_it() {
        let mut status = troubled().status;
        status.writer = None;
        let n3 = status.nodes.get_mut(&crate::fixture::node("n3")).unwrap();
        let said = n3.status.as_mut().unwrap();
        said.doing = Doing::Freezing;
        said.because = quorate_core::Because::new("R3", "freezing to report for term 4");
        let map = map(&status).into_string();
        assert!(map.contains("No writer") && !map.contains("not fed"), "{map}");
        assert!(map.contains("<span>freezing to report for term 4</span>"), "{map}");
    }

    #[test]
    fn a_lost_writer_feeds_nobody() {
        let mut status = troubled().status;
        status.nodes.get_mut(&crate::fixture::node("n1")).unwrap().gone = true;
        let map = map(&status).into_string();
        assert!(map.contains("card source critical"), "{map}");
        assert!(!map.contains("</b> ago"), "nobody knows: {map}");
        assert!(!map.contains("not fed yet"), "nobody will: {map}");
        assert!(!map.contains("card good"), "nothing is as it should be: {map}");
    }
}
