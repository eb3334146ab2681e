//! Runs histories and says what came of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use quorate_sim::{FLAWS, Flaw, Outcome, Recipe, Trace};

/// Simulated clusters under faults by chance.
#[derive(Debug, Parser)]
#[command(name = "quorate-sim")]
struct Cli {
    /// How many histories.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The seed of the first one; the others follow.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Stop after so many minutes, however many histories are done.
    #[arg(long)]
    minutes: Option<u64>,
    /// Histories at once.
    #[arg(long, default_value_t = threads())]
    threads: usize,
    /// Leave a rule out, to see that it is missed.
    #[arg(long, value_parser = flaw)]
    flaw: Option<Flaw>,
    /// Print what happens in the history of this seed, and nothing else.
    #[arg(long, value_name = "SEED")]
    trace: Option<u64>,
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn flaw(name: &str) -> Result<Flaw, String> {
    let names = || FLAWS.map(|(name, _)| name).join(", ");
    let found = FLAWS.iter().find(|(known, _)| *known == name);
    found.map(|(_, flaw)| *flaw).ok_or_else(|| format!("use one of {}", names()))
}

/// What all histories together came to.
#[derive(Debug, Default)]
struct Sum {
    histories: u64,
    length: Duration,
    busy: Duration,
    acks: u64,
    reads: u64,
    unknown: u64,
    told_committed: u64,
    told_aborted: u64,
    terms: u64,
    lost: u64,
    events: u64,
    slowest: Duration,
    /// Histories that only a person can end.
    persons: u64,
    /// By kind: how often, and in how many histories.
    kinds: BTreeMap<&'static str, (u64, u64)>,
    failures: Vec<(Recipe, String)>,
}

impl Sum {
    fn add(&mut self, recipe: &Recipe, outcome: Outcome, took: Duration) {
        self.histories += 1;
        self.length += outcome.length;
        self.busy += took;
        self.acks += outcome.acks;
        self.reads += outcome.reads;
        self.unknown += outcome.unknown;
        self.told_committed += outcome.told_committed;
        self.told_aborted += outcome.told_aborted;
        self.terms += outcome.terms as u64;
        self.lost += outcome.lost_messages;
        self.events += outcome.events;
        self.slowest = self.slowest.max(outcome.recovery);
        self.persons += u64::from(outcome.needs_a_person);
        for (kind, count) in recipe.kinds() {
            let (all, histories) = self.kinds.entry(kind).or_default();
            *all += count;
            *histories += 1;
        }
        if let Some(failure) = outcome.failure {
            self.failures.push((recipe.clone(), failure));
        }
    }

    fn print(&self) {
        let hours = |time: Duration| time.as_secs_f64() / 3600.0;
        let busy = hours(self.busy);
        println!(
            "{} histories, {:.1} cluster-hours in {:.3} CPU-hours: {:.0} for one; {:.1} histories \
             per CPU-second, {} events",
            self.histories,
            hours(self.length),
            busy,
            hours(self.length) / busy,
            self.histories as f64 / self.busy.as_secs_f64(),
            self.events,
        );
        println!(
            "{} writes acknowledged, {} reads; of those without an answer {} told committed, {} \
             aborted, {} unknown; {} writers opened, {} messages lost; slowest recovery {:.1} s, {} \
             need a person",
            self.acks,
            self.reads,
            self.told_committed,
            self.told_aborted,
            self.unknown,
            self.terms,
            self.lost,
            self.slowest.as_secs_f64(),
            self.persons,
        );
        println!("\nfault              times  histories");
        for (kind, (all, histories)) in &self.kinds {
            let share = *histories as f64 * 100.0 / self.histories as f64;
            println!("{kind:<17} {all:>6}  {share:>7.1} %");
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let flaw = cli.flaw.unwrap_or_default();
    if let Some(seed) = cli.trace {
        let outcome = Recipe::of_seed(seed, flaw).run(Trace::kept());
        outcome.trace.iter().for_each(|line| println!("{line}"));
        println!("{}", outcome.failure.as_deref().unwrap_or("nothing went wrong"));
        return code(outcome.failure.is_none());
    }
    let sum = run_all(&cli, flaw);
    sum.print();
    let Some((recipe, failure)) = sum.failures.iter().min_by_key(|(r, _)| r.plan.len()) else {
        println!("\nnothing went wrong");
        return ExitCode::SUCCESS;
    };
    println!("\n{} of {} histories went wrong:", sum.failures.len(), sum.histories);
    for (recipe, failure) in sum.failures.iter().take(20) {
        println!("  seed {}: {failure}", recipe.seed);
    }
    println!("\nthe shortest of them, seed {}, without what it does not need:\n", recipe.seed);
    print!("{}", recipe.shrink().scenario(failure));
    println!("\nits history: quorate-sim --trace {}", recipe.seed);
    ExitCode::FAILURE
}

fn code(well: bool) -> ExitCode {
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_all(cli: &Cli, flaw: Flaw) -> Sum {
    let until = cli.minutes.map(|m| Instant::now() + Duration::from_secs(m * 60));
    let next = AtomicU64::new(cli.first);
    let stop = AtomicBool::new(false);
    let sum = Mutex::new(Sum::default());
    std::thread::scope(|scope| {
        for _ in 0..cli.threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = until.is_some_and(|until| Instant::now() > until);
                    if seed >= cli.first.saturating_add(cli.seeds) || late {
                        break;
                    }
                    let recipe = Recipe::of_seed(seed, flaw);
                    let began = Instant::now();
                    let outcome = recipe.run(Trace::default());
                    let found = outcome.failure.is_some() && flaw != Flaw::None;
                    stop.fetch_or(found, Ordering::Relaxed);
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.add(&recipe, outcome, began.elapsed());
                }
            });
        }
    });
    sum.into_inner().unwrap_or_else(PoisonError::into_inner)
}
