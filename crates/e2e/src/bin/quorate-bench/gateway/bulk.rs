//! Much data through a proxy, and how much memory that takes.

use std::time::Instant;

use anyhow::Result;

use super::Options;
use super::client::Client;
use super::meter;
use super::results::{Bulk, Results};
use super::rig::{Rig, Route};

/// What a client of this side holds.
const BUFFER: usize = 256 * 1024;
/// A value of a gigabyte: close to the largest that PostgreSQL takes.
const VALUE: u64 = 1_000_000_000;
const GIGABYTE: u64 = 1_000_000_000;
/// One table for all: values go in and are removed.
const TABLE: &str = "CREATE TABLE IF NOT EXISTS bulk (line text); GRANT ALL ON bulk TO PUBLIC";

type Transfer = fn(&mut Client, u64) -> Result<()>;

/// Name, bytes (the value's, or as many as asked for), and how.
const TRANSFERS: [(&str, Option<u64>, Transfer); 4] = [
    ("value-out", Some(VALUE), |client, bytes| {
        let read = client.query(&format!("SELECT repeat('x', {bytes})"))?;
        anyhow::ensure!(read >= bytes, "only {read} bytes came");
        Ok(())
    }),
    ("value-in", Some(VALUE), |client, bytes| {
        client.with_parameter("INSERT INTO bulk VALUES ($1)", bytes)
    }),
    ("copy-out", None, |client, bytes| {
        let rows = bytes / 1000;
        let sql = format!("SELECT repeat('x', 999) FROM generate_series(1, {rows})");
        let read = client.query(&format!("COPY ({sql}) TO STDOUT"))?;
        anyhow::ensure!(read == rows * 1000, "only {read} bytes came");
        Ok(())
    }),
    // Read and taken apart, but not stored: ten gigabytes need no room.
    ("copy-in", None, |client, bytes| client.copy_in("COPY bulk FROM STDIN WHERE false", bytes)),
];

/// Each transfer through each way.
pub(crate) fn run(
    rig: &Rig,
    options: &Options,
    routes: &[Route],
    results: &mut Results,
) -> Result<()> {
    let wanted: Vec<_> = TRANSFERS.iter().filter(|(name, ..)| options.wants(name)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    rig.sql(TABLE)?;
    for (name, bytes, transfer) in wanted {
        let bytes = bytes.unwrap_or(options.copy_gb * GIGABYTE);
        for route in routes {
            let bulk = once(rig, route, name, bytes, *transfer)?;
            eprintln!("{name} {}: {bulk:?}", route.label);
            results.bulk.push(bulk);
            rig.sql("TRUNCATE bulk")?;
        }
    }
    Ok(())
}

fn once(rig: &Rig, route: &Route, name: &str, bytes: u64, transfer: Transfer) -> Result<Bulk> {
    let proxy = rig.proxy(route.via);
    if let Some(pid) = proxy {
        meter::forget_peak(pid)?;
    }
    let start = proxy.map(meter::resident).transpose()?;
    let before = rig.meters()?;
    let begun = Instant::now();
    let moved = Client::connect(&route.address, BUFFER).and_then(|mut c| transfer(&mut c, bytes));
    let seconds = begun.elapsed().as_secs_f64();
    let spent = rig.meters()?.since(&before, begun.elapsed());
    let peak = proxy.map(meter::peak).transpose()?;
    let extra = peak.zip(start).map(|(peak, start)| peak.saturating_sub(start));
    Ok(Bulk {
        name: name.to_owned(),
        label: route.label.clone(),
        via: route.via,
        bytes,
        seconds,
        proxy_cpu: spent.proxy(route.via),
        extra,
        trouble: moved.err().map(|error| format!("{error:#}")),
    })
}
