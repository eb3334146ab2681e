//! One round: workloads on a cluster, faults under them, and the judgement when all is mended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_history::ambiguous::{self, Answers};
use quorate_history::{Fault, Recorded, Report};

use super::client::{Client, Clock, PLACE, Scene, pace};
use super::nemesis::{Nemesis, Striker};
use super::workloads::{Kind, Workload};
use crate::random::Random;
use crate::{Cluster, check, limits};

/// What a round does.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its number: names of tables have it.
    pub number: usize,
    /// Its choices.
    pub seed: u64,
    /// Workloads at once.
    pub kinds: Vec<Kind>,
    /// Faults to choose from.
    pub nemeses: Vec<Nemesis>,
    /// How long faults go on.
    pub length: Duration,
}

/// One workload's outcome.
#[derive(Debug)]
pub struct Judged {
    /// Which.
    pub kind: Kind,
    /// What it did, with the faults under it.
    pub history: Recorded,
    /// The verdict.
    pub report: Report,
    /// The longest time without an acknowledged write.
    pub pause: Duration,
}

/// What a round showed.
#[derive(Debug)]
pub struct Outcome {
    /// What was to be done.
    pub plan: Plan,
    /// By workload.
    pub judged: Vec<Judged>,
    /// Faults made, by kind.
    pub struck: BTreeMap<Nemesis, usize>,
    /// Answers to COMMITs of the workload `ambiguous`.
    pub answers: Answers,
    /// Anything else that is wrong: copies that differ, a cluster that does not come back, errors in
    /// logs.
    pub trouble: Vec<String>,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.trouble.is_empty() && self.judged.iter().all(|j| j.report.is_good())
    }
}

/// A workload and its clients.
struct Running {
    kind: Kind,
    workload: Arc<dyn Workload>,
    clients: Vec<std::thread::JoinHandle<()>>,
}

/// Runs a round. An error is one of the harness; what the cluster does wrong is in the outcome.
pub fn run(cluster: &mut Cluster, plan: Plan, clock: Clock, stop: &AtomicBool) -> Result<Outcome> {
    let mut random = Random::new(plan.seed);
    let scene = Scene {
        gateways: cluster.gateways(&[]),
        login: cluster.login().clone(),
        clock,
        stop: Arc::default(),
        processes: Arc::new(AtomicU64::new(1)),
    };
    let strong = vec!["SET quorate.consistency = 'strong'".to_owned()];
    let mut reader = Client::new(&scene, 0, strong, Random::new(plan.seed));
    reader.insist(PLACE)?;
    let running = begin(&plan, &scene, &mut reader, &mut random)?;
    let mut trouble = Vec::new();
    note(&mut trouble, "at the beginning", flows(&running));
    let (struck, faults) = attack(cluster, &plan, &mut random, clock, stop, &mut trouble);
    if !stop.load(Ordering::Relaxed) {
        note(&mut trouble, "faults are over", cluster.wait_healthy().map(drop));
        note(&mut trouble, "faults are over", flows(&running));
    }
    let end = clock.now();
    scene.stop.store(true, Ordering::Relaxed);
    let mut judged = Vec::new();
    for Running { kind, workload, clients } in running {
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client of {kind} failed"))?;
        }
        let pause = workload.pulse().pause_until(end);
        let history = match workload.finish(&mut reader) {
            Ok(history) => with_faults(history, &faults),
            Err(error) => {
                trouble.push(format!("{kind} cannot be read at the end: {error:#}"));
                continue;
            }
        };
        let report = history.check();
        judged.push(Judged { kind, history, report, pause });
    }
    note(&mut trouble, "copies", check::copies_equal(cluster));
    note(&mut trouble, "logs", logs(cluster, &struck));
    let answers = judged.iter().find_map(|j| match &j.history {
        Recorded::Ambiguous(history) => Some(ambiguous::answers(history)),
        _ => None,
    });
    Ok(Outcome { plan, judged, struck, answers: answers.unwrap_or_default(), trouble })
}

fn begin(
    plan: &Plan,
    scene: &Scene,
    maker: &mut Client,
    random: &mut Random,
) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for kind in &plan.kinds {
        let workload: Arc<dyn Workload> = kind.make(plan.number).into();
        for sql in workload.tables() {
            maker.insist(&sql).with_context(|| format!("tables of {kind}"))?;
        }
        // Who compares copies has no rights of its own.
        maker.insist("GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC")?;
        let clients = (0..workload.clients()).map(|number| {
            let workload = Arc::clone(&workload);
            let choices = Random::new(random.number());
            let client = Client::new(scene, number, workload.greeting(), choices);
            std::thread::spawn(move || work(&*workload, client))
        });
        let clients = clients.collect();
        running.push(Running { kind: *kind, workload, clients });
    }
    Ok(running)
}

fn work(workload: &dyn Workload, mut client: Client) {
    while !client.stopped() {
        if client.connect() {
            workload.act(&mut client);
            pace(&mut client.random);
        }
    }
}

/// Waits until every workload has a new acknowledged write.
fn flows(running: &[Running]) -> Result<()> {
    let since: Vec<usize> = running.iter().map(|r| r.workload.pulse().writes).collect();
    let deadline = Instant::now() + limits::RECOVER;
    for (running, since) in running.iter().zip(since) {
        while running.workload.pulse().writes <= since {
            anyhow::ensure!(
                Instant::now() < deadline,
                "no write of {} was acknowledged for {:?}",
                running.kind,
                limits::RECOVER
            );
            std::thread::sleep(limits::POLL);
        }
    }
    Ok(())
}

/// Makes faults until the time is over.
fn attack(
    cluster: &mut Cluster,
    plan: &Plan,
    random: &mut Random,
    clock: Clock,
    stop: &AtomicBool,
    trouble: &mut Vec<String>,
) -> (BTreeMap<Nemesis, usize>, Vec<Fault>) {
    let mut struck: BTreeMap<Nemesis, usize> = BTreeMap::new();
    let end = Instant::now() + plan.length;
    let over = || Instant::now() >= end || stop.load(Ordering::Relaxed);
    let mut left: Vec<Nemesis> = Vec::new();
    let mut striker = Striker { cluster, random, clock, stop, faults: Vec::new() };
    while !over() && !plan.nemeses.is_empty() {
        // Each once, in an order of its own, before any comes again.
        if left.is_empty() {
            left.clone_from(&plan.nemeses);
        }
        let nemesis = left.swap_remove(striker.random.below(left.len()));
        match striker.strike(nemesis) {
            Ok(true) => *struck.entry(nemesis).or_default() += 1,
            Ok(false) => {}
            Err(error) => trouble.push(format!("{error:#}")),
        }
        // Sometimes the next one comes before all have recovered.
        let recovered = if striker.random.below(2) == 0 {
            striker.cluster.wait_healthy().map(drop)
        } else {
            striker.cluster.wait_writer_within(limits::REJOIN).map(drop)
        };
        if let Err(error) = recovered
            && !stop.load(Ordering::Relaxed)
        {
            trouble.push(format!("after {nemesis}: {error:#}"));
            break;
        }
        std::thread::sleep(Duration::from_millis(striker.random.below(1500) as u64));
    }
    while !over() {
        std::thread::sleep(limits::POLL);
    }
    (struck, striker.faults)
}

fn note(trouble: &mut Vec<String>, when: &str, done: Result<()>) {
    trouble.extend(done.err().map(|error| format!("{when}: {error:#}")));
}

/// No panic, and no error that a person must look at; a disk that was full is one.
fn logs(cluster: &Cluster, struck: &BTreeMap<Nemesis, usize>) -> Result<()> {
    if struck.contains_key(&Nemesis::DiskFull) {
        for node in cluster.nodes() {
            anyhow::ensure!(!node.log().contains("panicked at"), "{} panicked", node.name());
        }
        return Ok(());
    }
    cluster.check_logs()
}

fn with_faults(history: Recorded, faults: &[Fault]) -> Recorded {
    let mut history = history;
    history.set_faults(faults.to_vec());
    history
}
