//! Checks at the end of a scenario: every acknowledged row is there, and all copies are the same.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::ledger::{Judgement, Ledger};
use crate::workload::TABLE;
use crate::{Cluster, limits, local};

/// The content of one copy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    /// Each user table with its number of rows and a hash over them.
    tables: Vec<(String, String, String)>,
}

/// Ids in the workload's table, read through a server's private socket.
pub fn ids(socket_dir: &Path) -> Result<Vec<i64>> {
    let rows = local::query(socket_dir, &format!("SELECT id FROM {TABLE}"))?;
    rows.into_iter()
        .map(|row| row.into_iter().next().flatten().context("null id")?.parse().context("id"))
        .collect()
}

/// Compares what clients were told with what the present writer holds.
pub fn judge(cluster: &Cluster, ledger: &Ledger) -> Result<Judgement> {
    let writer = cluster.wait_writer()?;
    Ok(ledger.judge(&ids(&cluster.node(&writer)?.socket_dir())?))
}

/// The whole check: promises kept, cluster healthy, copies equal, logs clean.
pub fn all(cluster: &Cluster, ledger: &Ledger) -> Result<Judgement> {
    let judgement = judge(cluster, ledger)?;
    judgement.check()?;
    copies_equal(cluster)?;
    cluster.check_logs()?;
    Ok(judgement)
}

/// Waits until every node that is up is healthy and has replayed what the writer has written, and
/// then wants the same content in every copy. Nothing may be writing meanwhile.
pub fn copies_equal(cluster: &Cluster) -> Result<()> {
    cluster.wait_healthy()?;
    let writer = cluster.wait_writer()?;
    let home = cluster.node(&writer)?.socket_dir();
    let end = local::one(&home, "SELECT pg_catalog.pg_current_wal_lsn()")?;
    let wanted = content(&home)?;
    for node in cluster.data_nodes_up().filter(|n| n.name() != writer) {
        let socket = node.socket_dir();
        let reached = format!("SELECT pg_catalog.pg_last_wal_replay_lsn() >= '{end}'");
        cluster.wait_until(
            limits::REJOIN,
            &format!("{} has replayed the writer's log up to {end}", node.name()),
            || (local::one(&socket, &reached).ok()? == "t").then_some(()),
        )?;
        let found = content(&socket)?;
        ensure!(
            found == wanted,
            "{} differs from the writer {writer}: {found:?}, not {wanted:?}",
            node.name()
        );
    }
    Ok(())
}

fn content(socket_dir: &Path) -> Result<Content> {
    let list = "SELECT pg_catalog.format('%I.%I', schemaname, tablename)
        FROM pg_catalog.pg_tables WHERE schemaname = 'public' ORDER BY 1";
    let names = local::query(socket_dir, list)?;
    let tables = names
        .into_iter()
        .filter_map(|row| row.into_iter().next().flatten())
        .map(|table| {
            // Unordered rows: a sum of hashes does not depend on their order.
            let sql = format!(
                "SELECT count(*), sum(pg_catalog.hashtextextended(t::text, 0)) FROM {table} t"
            );
            let row = local::query(socket_dir, &sql)?.into_iter().next().context("no count")?;
            let mut values = row.into_iter().map(Option::unwrap_or_default);
            let mut next = || values.next().unwrap_or_default();
            Ok((table, next(), next()))
        })
        .collect::<Result<_>>()?;
    Ok(Content { tables })
}
