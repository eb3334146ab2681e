//! What a commit waits for, how long statements took, and where the gateway sent them.

use std::collections::BTreeSet;

use maud::{Markup, html};
use quorate_agent::view::ClusterStatus;
use quorate_core::document::{Document, Level as Wanted};
use quorate_core::{Lsn, NodeId};

use super::charts::trend;
use super::cluster::end;
use super::parts::Head::{Explained, Figure, Text};
use super::parts::{count, head, or_dash, plain, tag, us, wide};
use super::picture::{PoolLine, RouteLine, Traffic};
use super::verdict::Level;
use crate::explain::rule_words;
use quorate_core::words::bytes;

/// What commits wait for.
pub fn commits(status: &ClusterStatus, document: &Document, traffic: Option<&Traffic>) -> Markup {
    let done = match document.level {
        Wanted::Received => "have it in memory",
        Wanted::Flushed => "have it on disk",
        Wanted::Applied => "show it to readers",
    };
    let rules: Vec<String> = status.authority.rules.iter().map(rule_words).collect();
    let changing = status.authority.rules.len() > 1;
    let writes = traffic.and_then(|t| t.routes.iter().find(|r| r.because == "writes"));
    html! {
        p { "A commit is acknowledged once " b { (rules.join(", and ")) } " " (done) "."
            @if changing { " " (tag(Level::Notice, "the rule is changing")) } }
        (waits(status, document))
        @if let Some(writes) = writes {
            p {
                "Writing transactions through this node's gateway: half took "
                b { (us(writes.p50_us)) } " or less, 99 % " b { (us(writes.p99_us)) }
                ", the longest " b { (us(writes.max_us)) } "."
            }
        }
    }
}

/// Each copy of the rule, and how far it is.
fn waits(status: &ClusterStatus, document: &Document) -> Markup {
    let Some(writer) = status.writer else { return html! {} };
    let word = status.nodes.get(&writer).and_then(|m| m.status.as_ref()?.writer.as_ref());
    let Some(rule) = status.authority.rule() else { return html! {} };
    let held: BTreeSet<NodeId> =
        word.iter().flat_map(|w| w.standbys.keys().copied()).chain([writer]).collect();
    let needed = |node: &NodeId| {
        let without = held.iter().copied().filter(|n| n != node).collect();
        rule.is_commit_set(&held) && !rule.is_commit_set(&without)
    };
    let table = html! { table {
        (head(&[
            Text("Copy"), Text("Commits"), Figure("Not there yet"), Figure("Disk answers in"),
        ]))
        tbody { @for node in rule.cohort.iter().filter(|n| **n != writer) {
            @let link = word.and_then(|w| w.standbys.get(node));
            @let reached = link.map(|l| match document.level {
                Wanted::Received => l.written,
                Wanted::Flushed => l.flushed,
                Wanted::Applied => l.applied,
            });
            tr {
                th scope="row" data-label="Copy" { (node) }
                td data-label="Commits" {
                    @if link.is_none() { (tag(Level::Warning, "does not count")) " it is not fed" }
                    @else if needed(node) { (tag(Level::Notice, "needed for each")) }
                    @else { (plain("counts")) }
                }
                td.n data-label="Not there yet" { (missing(end(status), reached)) }
                td.n data-label="Disk answers in" { (disk(status, node)) }
            }
        } }
    } };
    wide("Copies that commits wait for", &table)
}

fn missing(end: Option<Lsn>, reached: Option<Lsn>) -> String {
    or_dash(end.zip(reached).map(|(end, reached)| bytes(end.bytes_since(reached))))
}

fn disk(status: &ClusterStatus, node: &NodeId) -> String {
    or_dash(status.nodes.get(node).and_then(|m| m.status.as_ref()?.disk_ms).map(super::parts::ms))
}

/// Pools and routes of the asked node's gateway.
pub fn gateway(status: &ClusterStatus, traffic: Option<&Traffic>) -> Markup {
    let Some(traffic) = traffic else {
        let text = format!("The gateway of {} did not say in time what it counted.", status.me);
        return html! { p { (text) } };
    };
    let clients = if traffic.clients == 1 { "client is" } else { "clients are" };
    html! {
        p {
            b { (count(traffic.clients as u64)) } " " (clients) " connected to the gateway of "
            b { (status.me) } ". Every node's gateway counts for itself."
        }
        @if traffic.routes.is_empty() {
            p.soft { "No transaction came through it since it started." }
        } @else { (wide("Routes", &routes(&traffic.routes))) }
        @if !traffic.trend.is_empty() { (trend(&traffic.trend, status.at)) }
        @if !traffic.pools.is_empty() { (wide("Pools", &pools(&traffic.pools))) }
        @if traffic.more > 0 {
            p.soft {
                (traffic.more) " more pools, less used: " code { "SHOW POOLS" } " in the console."
            }
        }
    }
}

fn routes(routes: &[RouteLine]) -> Markup {
    let all = routes.iter().map(|r| r.count).sum::<u64>().max(1);
    html! { table {
        (head(&[
            Text("Route"), Figure("Transactions"), Figure("Share"), Figure("50 %"),
            Figure("99 %"), Figure("Longest"),
        ]))
        tbody { @for route in routes { tr {
            th scope="row" data-label="Route" { (route.part)
                @if !route.because.is_empty() { span.soft { " " (reason(route.because)) } } }
            td.n data-label="Transactions" { (count(route.count)) }
            td.n data-label="Share" { (route.count * 100 / all) " %" }
            td.n data-label="50 %" { (us(route.p50_us)) }
            td.n data-label="99 %" { (us(route.p99_us)) }
            td.n data-label="Longest" { (us(route.max_us)) }
        } } }
    } }
}

/// Why the writer, in words.
fn reason(label: &str) -> &str {
    match label {
        "writes" => "it may write",
        "asked" => "the session asked for it, or reads are not split off",
        "strong" => "the read must see everything",
        "no_replica" => "no replica answers",
        "not_replayed" => "no replica has what the session saw",
        "lag" => "every replica is too late",
        "refused" => "a replica refused it before",
        "serializable" => "the transaction is serializable",
        other => other,
    }
}

fn pools(pools: &[PoolLine]) -> Markup {
    html! { table {
        (head(&[
            Text("Pool"), Text("Server"), Figure("Busy"), Figure("Open"), Figure("At most"),
            Figure("Waiting"),
            Explained("Queue, 99 %", "99 of 100 clients waited no longer for a connection"),
        ]))
        tbody { @for pool in pools { tr {
            th scope="row" data-label="Pool" { (pool.database) span.soft { " as " (pool.user) } }
            td data-label="Server" { (pool.node) }
            td.n data-label="Busy" { (pool.busy) }
            td.n data-label="Open" { (pool.open) }
            td.n data-label="At most" { (pool.size) }
            td.n data-label="Waiting" {
                @if pool.waiting > 0 { (tag(Level::Warning, &pool.waiting.to_string())) }
                @else { "0" }
            }
            td.n data-label="Queue, 99 %" { (us(pool.queue_p99_us)) }
        } } }
    } }
}
