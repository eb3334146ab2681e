//! Write gap and lost rows for each fault.
//!
//! One three-node cluster; before each run it is healthy and its consensus leader settled. Two
//! clients write a row every 10 ms, with the limits of an impatient application (0.5 s for a login,
//! 1 s for a statement, the next gateway at once): one begins at the writer's own host, one at
//! another. A run's gap is the longest time one of them was without an acknowledged write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use quorate_e2e::binary::Binary;
use quorate_e2e::ledger::Ledger;
use quorate_e2e::workload::{Options as Load, Workload};
use quorate_e2e::{Cluster, check, limits};

use crate::table::{markdown, median, seconds};
use crate::{Build, demo, load};

/// `cargo xtask bench failover`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    build: Build,
    /// Repetitions of each fault.
    #[arg(long, default_value_t = 10)]
    runs: usize,
    /// Only this fault, and nothing else.
    #[arg(long)]
    only: Option<String>,
    /// Minutes of full processor load, during which nothing may fail over.
    #[arg(long, default_value_t = 10)]
    load_minutes: u64,
}

struct Fault {
    name: &'static str,
    /// The median and the worst gap to stay below, in milliseconds.
    target: (u64, u64),
    hurt: fn(&mut Cluster, &str) -> Result<()>,
    mend: fn(&mut Cluster, &str) -> Result<()>,
}

const FAULTS: [Fault; 7] = [
    Fault {
        name: "postmaster-killed",
        target: (600, 1500),
        hurt: |cluster, writer| cluster.kill_postmaster(writer),
        mend: |_, _| Ok(()),
    },
    Fault {
        name: "quorate-killed",
        target: (600, 1500),
        hurt: |cluster, writer| cluster.kill_quorate(writer),
        mend: |cluster, writer| cluster.restart(writer),
    },
    Fault {
        name: "host-gone",
        target: (2200, 3500),
        hurt: |cluster, writer| cluster.host_gone(writer),
        mend: |cluster, writer| cluster.restart(writer),
    },
    Fault {
        name: "partition",
        target: (2200, 3500),
        hurt: |cluster, writer| {
            cluster.cut_off(writer);
            Ok(())
        },
        mend: |cluster, _| {
            cluster.heal();
            Ok(())
        },
    },
    Fault {
        name: "postgres-stopped",
        target: (4000, 4000),
        hurt: |cluster, writer| cluster.stop_postgres(writer),
        mend: |cluster, writer| cluster.cont_postgres(writer),
    },
    Fault {
        name: "disk-stall",
        target: (6000, 6000),
        hurt: |cluster, writer| cluster.stall_disk(writer),
        mend: |cluster, writer| cluster.release_disk(writer),
    },
    Fault {
        name: "switchover",
        target: (150, 500),
        hurt: |cluster, writer| {
            let other = cluster.others(writer).swap_remove(0);
            cluster.command(writer, &["switchover", "--to", &other]).map(drop)
        },
        mend: |_, _| Ok(()),
    },
];

#[derive(Default)]
struct Measured {
    gaps: Vec<Duration>,
    acked: usize,
    missing: usize,
    from_nowhere: usize,
}

/// Runs all faults, or one.
pub(crate) fn run(options: &Options) -> Result<()> {
    let binary = options.build.binary()?;
    let names: Vec<_> = FAULTS.iter().map(|f| f.name).collect();
    let wanted = |f: &&Fault| options.only.as_deref().is_none_or(|only| only == f.name);
    let faults: Vec<_> = FAULTS.iter().filter(wanted).collect();
    anyhow::ensure!(!faults.is_empty(), "no such fault: one of {}", names.join(", "));
    println!("{}\n", machine()?);
    let mut cluster = start(&options.build, &binary)?;
    let mut rows = Vec::new();
    for fault in faults {
        let measured = repeat(&mut cluster, fault, options.runs)
            .with_context(|| fault.name)
            .or_else(|e| cluster.explain(e))?;
        rows.push(row(fault, &measured));
    }
    drop(cluster);
    let head = [
        "fault",
        "runs",
        "median gap",
        "worst gap",
        "target",
        "acknowledged",
        "missing",
        "from nowhere",
    ];
    println!("{}", markdown(&head, &rows));
    if options.only.is_none() {
        demo::run(&binary, options.build.bin_dir.as_deref(), options.runs)?;
        load::idle(&options.build, &binary, Duration::from_secs(40))?;
        load::busy(&options.build, &binary, Duration::from_secs(60 * options.load_minutes))?;
    }
    Ok(())
}

/// A healthy cluster of three.
pub(crate) fn start(build: &Build, binary: &Binary) -> Result<Cluster> {
    let mut builder = Cluster::of(3).binary(binary.clone());
    if let Some(bin) = &build.bin_dir {
        for node in ["n1", "n2", "n3"] {
            builder = builder.postgres_bin(node, bin);
        }
    }
    builder.start()
}

fn repeat(cluster: &mut Cluster, fault: &Fault, runs: usize) -> Result<Measured> {
    let mut measured = Measured::default();
    let mut told = Ledger::default();
    for run in 1..=runs {
        let writer = settled(cluster)?;
        let other = cluster.others(&writer).swap_remove(0);
        let third = cluster.others(&writer).swap_remove(1);
        let lists = [[&writer[..], &other, &third], [&other, &third, &writer]];
        let clients = lists.map(|gateways| cluster.workload(Load::default(), &gateways));
        all_write(&clients, Instant::now())?;
        let hurt = Instant::now();
        (fault.hurt)(cluster, &writer)?;
        cluster.wait_other_writer(&writer)?;
        all_write(&clients, Instant::now())?;
        let until = Instant::now();
        let gap = |c: &Workload| c.snapshot().longest_gap(hurt, until);
        let gap = clients.iter().map(gap).max().unwrap_or_default();
        eprintln!("{} {run}/{runs}: {}", fault.name, seconds(gap));
        measured.gaps.push(gap);
        (fault.mend)(cluster, &writer)?;
        cluster.wait_healthy()?;
        for client in clients {
            told.attempts.extend(client.stop().attempts);
        }
    }
    judge(cluster, &told, &mut measured)?;
    Ok(measured)
}

fn all_write(clients: &[Workload], since: Instant) -> Result<()> {
    clients.iter().try_for_each(|client| client.wait_acks_since(since, limits::RECOVER))
}

/// Rows of this fault's runs only: earlier ones have ids that were not tried here.
fn judge(cluster: &Cluster, told: &Ledger, measured: &mut Measured) -> Result<()> {
    check::copies_equal(cluster)?;
    let writer = cluster.wait_writer()?;
    let rows = check::ids(&cluster.node(&writer)?.socket_dir())?;
    let first = told.attempts.iter().map(|a| a.id).min().unwrap_or_default();
    let rows: Vec<_> = rows.into_iter().filter(|id| *id >= first).collect();
    let judgement = told.judge(&rows);
    measured.acked = judgement.acked;
    measured.missing = judgement.missing.len();
    measured.from_nowhere = judgement.from_nowhere.len() + judgement.doubled.len();
    Ok(())
}

/// Waits until the cluster is healthy and looks the same for a while; returns the writer.
fn settled(cluster: &Cluster) -> Result<String> {
    const CALM: Duration = Duration::from_secs(3);
    let mut since = Instant::now();
    let mut last = (0, None);
    cluster.wait_until(limits::REJOIN, "term and leader are settled", || {
        let status = cluster.wait_healthy().ok()?;
        let now = (status.term, status.leader.clone());
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > CALM).then_some(status.writer).flatten()
    })
}

/// What it was measured on.
pub(crate) fn machine() -> Result<String> {
    let processors = std::thread::available_parallelism()?;
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next());
    let gib = kib.and_then(|k| k.parse::<u64>().ok()).unwrap_or_default() / 1024 / 1024;
    Ok(format!("{processors} processors, {gib} GiB of memory, all nodes and clients on them"))
}

fn row(fault: &Fault, measured: &Measured) -> Vec<String> {
    vec![
        fault.name.to_owned(),
        measured.gaps.len().to_string(),
        seconds(median(&measured.gaps)),
        seconds(measured.gaps.iter().copied().max().unwrap_or_default()),
        format!(
            "{} / {}",
            seconds(Duration::from_millis(fault.target.0)),
            seconds(Duration::from_millis(fault.target.1))
        ),
        measured.acked.to_string(),
        measured.missing.to_string(),
        measured.from_nowhere.to_string(),
    ]
}
