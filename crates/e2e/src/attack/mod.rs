//! An attack: workloads of several kinds at once, through the gateways of a cluster of real
//! processes, faults by a seeded schedule under them, and the histories judged.
//!
//! ```text
//! clients ──▶ gateways ──▶ cluster ◀── nemesis
//!    │ record                            │ record
//!    └────────▶ histories ◀──────────────┘ ──▶ checks (quorate-history) ──▶ verdict
//! ```
//!
//! The same seed makes the same choices. It does not make the same history: processes and the
//! network have their own time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{Builder, Cluster, limits};

pub mod client;
pub mod nemesis;
pub mod recorder;
pub mod round;
pub mod verdict;
pub mod workloads;

pub use nemesis::Nemesis;
pub use round::{Outcome, Plan};
pub use verdict::Verdict;
pub use workloads::Kind;

/// What to attack, how, and for how long.
#[derive(Debug, Clone)]
pub struct Attack {
    /// The seed of all choices.
    pub seed: u64,
    /// How long, clusters that are made included.
    pub time: Duration,
    /// How long faults go on in each round.
    pub round: Duration,
    /// Workloads; empty: a choice that changes from round to round and has all.
    pub kinds: Vec<Kind>,
    /// Faults to choose from.
    pub nemeses: Vec<Nemesis>,
    /// Kinds of clusters, in turn.
    pub shapes: Vec<Shape>,
    /// Where histories and logs are kept of what went wrong.
    pub keep: PathBuf,
}

/// A kind of cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Three nodes with data.
    Three,
    /// Two nodes with data, and a witness.
    Witness,
}

impl Shape {
    fn builder(self) -> Builder {
        match self {
            Shape::Three => Cluster::of(3),
            Shape::Witness => Cluster::of(2).witness(),
        }
    }
}

/// Rounds on one cluster.
const ROUNDS: usize = 3;

impl Attack {
    /// Attacks, until the time is over or `stop` is raised.
    pub fn run(&self, stop: &AtomicBool) -> Result<Verdict> {
        let deadline = Instant::now() + self.time;
        let clock = client::Clock::start();
        let mut verdict = Verdict::default();
        let mut cluster: Option<Cluster> = None;
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if number > 0 && left < self.round / 2 {
                break;
            }
            if number % ROUNDS == 0 {
                drop(cluster.take());
                let shape = self.shapes[number / ROUNDS % self.shapes.len()];
                eprintln!("\n=== a new cluster: {shape:?}");
                cluster = Some(self.cluster(shape)?);
            }
            let cluster = cluster.as_mut().context("a cluster was made")?;
            let plan = self.plan(number, left);
            let kinds: Vec<_> = plan.kinds.iter().map(Kind::to_string).collect();
            eprintln!("--- round {number}, seed {}: {}", plan.seed, kinds.join(" "));
            let outcome = round::run(cluster, plan, clock, stop)
                .with_context(|| format!("round {number}"))
                .or_else(|e| cluster.explain(e))?;
            verdict.add(&outcome);
            if !outcome.is_good() {
                keep(&self.keep.join(format!("round-{number}")), cluster, &outcome)?;
            }
            number += 1;
        }
        if stop.load(Ordering::Relaxed) {
            verdict.interrupt();
        }
        Ok(verdict)
    }

    fn cluster(&self, shape: Shape) -> Result<Cluster> {
        let mut builder = shape.builder();
        let tried = std::env::temp_dir().join(format!("quorate-mount-{}", std::process::id()));
        if self.nemeses.contains(&Nemesis::DiskFull) && Cluster::can_mount(&tried) {
            builder = builder.disks(limits::DISK_MIB);
        }
        let _ = std::fs::remove_dir(&tried);
        builder.start()
    }

    fn plan(&self, number: usize, left: Duration) -> Plan {
        let kinds = if self.kinds.is_empty() { Kind::of_round(number) } else { self.kinds.clone() };
        Plan {
            number,
            seed: self.seed.wrapping_add(number as u64),
            kinds,
            nemeses: self.nemeses.clone(),
            length: self.round.min(left.max(self.round / 2)),
        }
    }
}

/// Keeps what helps to understand a round: histories, reports, logs.
fn keep(dir: &Path, cluster: &Cluster, outcome: &Outcome) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut words = format!("seed {}\n{}\n", outcome.plan.seed, outcome.trouble.join("\n"));
    for judged in &outcome.judged {
        let history =
            judged.history.write(&format!("{} of seed {}", judged.kind, outcome.plan.seed));
        std::fs::write(dir.join(format!("{}.jsonl", judged.kind)), history)?;
        words += &format!("\n{}: {}", judged.kind, judged.report);
    }
    std::fs::write(dir.join("report.txt"), words)?;
    for node in cluster.nodes() {
        std::fs::write(dir.join(format!("{}.log", node.name())), node.log())?;
    }
    std::fs::write(dir.join("cluster.txt"), cluster.portrait())?;
    eprintln!("kept {}", dir.display());
    Ok(())
}

/// Raises `stop` when the user interrupts.
pub fn stop_at_interrupt(stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    crate::runtime::runtime().spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            eprintln!("stopping");
            stop.store(true, Ordering::Relaxed);
        }
    });
}
