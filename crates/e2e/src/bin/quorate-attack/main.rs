//! Attacks clusters of real processes and judges what clients saw: `cargo xtask attack`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use quorate_e2e::attack::{Attack, Kind, Nemesis, Shape, stop_at_interrupt};
use quorate_history::Recorded;

/// Attacks clusters of real processes, and says whether they kept their promises.
#[derive(Debug, Parser)]
#[command(name = "quorate-attack")]
struct Options {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Seed of all choices; default: another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these workloads, with commas; default: all, in turn.
    #[arg(long, value_delimiter = ',')]
    workload: Vec<String>,
    /// Only these faults, with commas, or `none`; default: all.
    #[arg(long, value_delimiter = ',')]
    nemesis: Vec<String>,
    /// Kind of cluster.
    #[arg(long, value_enum, default_value_t = Clusters::Both)]
    cluster: Clusters,
    /// Seconds of faults in each round.
    #[arg(long, default_value_t = 60)]
    round: u64,
    /// Where histories and logs of rounds are kept that went wrong.
    #[arg(long, default_value = "attack", value_name = "DIR")]
    keep: PathBuf,
    /// Judge this history again, and attack nothing.
    #[arg(long, value_name = "FILE", exclusive = true)]
    judge: Option<PathBuf>,
}

/// Kinds of clusters.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Clusters {
    /// Three nodes with data.
    Three,
    /// Two nodes with data, and a witness.
    Witness,
    /// One after the other.
    Both,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(file) = &options.judge {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let (header, history) = Recorded::read(&text)?;
        let report = history.check();
        println!("{}\n{report}", header.about);
        return Ok(code(report.is_good()));
    }
    let attack = attack(&options)?;
    let stop = Arc::new(AtomicBool::new(false));
    stop_at_interrupt(&stop);
    eprintln!("seed {}", attack.seed);
    let verdict = attack.run(&stop)?;
    println!("\n{verdict}\nseed: {}", attack.seed);
    Ok(code(verdict.is_good()))
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn attack(options: &Options) -> Result<Attack> {
    let nemeses = match &options.nemesis[..] {
        [] => Nemesis::ALL.to_vec(),
        [none] if none == "none" => Vec::new(),
        names => names.iter().map(|name| Nemesis::named(name)).collect::<Result<_>>()?,
    };
    let seed = options.seed.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_secs() % 1_000_000
    });
    Ok(Attack {
        seed,
        time: Duration::from_secs_f64(options.minutes * 60.0),
        round: Duration::from_secs(options.round),
        kinds: options.workload.iter().map(|name| Kind::named(name)).collect::<Result<_>>()?,
        nemeses,
        shapes: match options.cluster {
            Clusters::Three => vec![Shape::Three],
            Clusters::Witness => vec![Shape::Witness],
            Clusters::Both => vec![Shape::Three, Shape::Witness],
        },
        keep: options.keep.join(seed.to_string()),
    })
}
