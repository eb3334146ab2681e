//! What `quorate` costs while nothing happens, and what it does while all processors are busy.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_e2e::binary::Binary;
use quorate_e2e::process::{Usage, usage};
use quorate_e2e::workload::Options as Load;
use quorate_e2e::{Cluster, check};

use crate::Build;
use crate::failover::start;
use crate::table::{markdown, seconds};

/// Processor and memory of each node's `quorate` process, PostgreSQL not counted.
pub(crate) fn idle(build: &Build, binary: &Binary, time: Duration) -> Result<()> {
    let cluster = start(build, binary)?;
    let before = usages(&cluster)?;
    std::thread::sleep(time);
    let after = usages(&cluster)?;
    let rows = before.iter().zip(&after).map(|((name, old), (_, new))| {
        let share = (new.cpu - old.cpu).as_secs_f64() / time.as_secs_f64() * 100.0;
        let mib = new.resident as f64 / 1024.0 / 1024.0;
        vec![name.clone(), format!("{share:.2} %"), format!("{mib:.1} MiB")]
    });
    let rows: Vec<_> = rows.collect();
    println!("{}", markdown(&["idle node", "of one processor", "resident"], &rows));
    Ok(())
}

fn usages(cluster: &Cluster) -> Result<Vec<(String, Usage)>> {
    let of = |node: &quorate_e2e::cluster::Node| {
        let pid = node.pid().context("the node does not run")?;
        Ok((node.name().to_owned(), usage(pid)?))
    };
    cluster.nodes_up().map(of).collect()
}

/// Counts terms and the longest gap while as many threads spin as there are processors.
pub(crate) fn busy(build: &Build, binary: &Binary, time: Duration) -> Result<()> {
    let cluster = start(build, binary)?;
    let before = cluster.wait_healthy()?;
    let workload = cluster.workload(Load::default(), &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let processors = std::thread::available_parallelism()?.get();
    let spinning: Vec<_> = (0..processors)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number = black_box(number.wrapping_mul(31).wrapping_add(1));
                }
            })
        })
        .collect();
    let begun = Instant::now();
    std::thread::sleep(time);
    stop.store(true, Ordering::Relaxed);
    for thread in spinning {
        let _ = thread.join();
    }
    let until = Instant::now();
    let after = cluster.wait_healthy()?;
    let ledger = workload.stop();
    let judgement = check::judge(&cluster, &ledger)?;
    let row = vec![
        processors.to_string(),
        seconds(time),
        (after.term - before.term).to_string(),
        seconds(ledger.longest_gap(begun, until)),
        judgement.acked.to_string(),
        judgement.missing.len().to_string(),
    ];
    let head = ["spinning threads", "time", "failovers", "longest gap", "acknowledged", "missing"];
    println!("{}", markdown(&head, &[row]));
    Ok(())
}
