//! Plays a scenario (`scenarios/*.scn`) on real servers, with applications at work and all checks at
//! the end. The same texts are played by the simulator.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quorate_scenario::{Condition, Deed, Expectation, Scenario as Text, Shape, Step, Who};
use rustix::process::Signal;

use crate::cable::Affected;
use crate::workload::Options;
use crate::{Cluster, Scenario, Workload, check, limits, local};

/// Megabytes of each node's disk, where a scenario fills one.
const DISK_MIB: u32 = 400;
/// What a lossy network does to a connection: what is lost is sent again, and late.
const LOSSY_DELAY: Duration = Duration::from_millis(20);
/// Files of the log that a server may have in store, and more.
const SWITCHES: usize = 30;
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A cluster while a scenario is played on it.
struct Play {
    cluster: Cluster,
    /// Nodes that stand still: nobody asks them anything.
    still: BTreeSet<String>,
    /// Hosts that go on by themselves, and when.
    suspended: Vec<(Instant, String)>,
    document: Vec<(String, String)>,
}

/// Plays a scenario.
///
/// # Errors
/// What was not as the scenario says, and what the checks at the end found.
pub fn play(text: &str) -> Result<()> {
    let text: Text = text.parse()?;
    let scenario = Scenario::new(&text.intent);
    let fills = text.steps.iter().any(|s| matches!(s, Step::Do(Deed::FillDisk(_))));
    let tried = std::env::temp_dir().join(format!("qe-mount-{}", std::process::id()));
    let can_fill = !fills || Cluster::can_mount(&tried);
    let _ = std::fs::remove_dir(&tried);
    if !can_fill {
        eprintln!("not played: disks of a limited size need the right to mount");
        return Ok(());
    }
    let cluster = started(text.shape, fills)?;
    let (still, suspended, document) = Default::default();
    let mut play = Play { cluster, still, suspended, document };
    let begins = text.steps.iter().take_while(|s| matches!(s, Step::Do(Deed::Set(..)))).count();
    for step in &text.steps[..begins] {
        play.step(step)?;
    }
    play.cluster.wait_healthy()?;
    let patient =
        Options { clients: 2, connect_limit: Duration::from_secs(5), ..Options::default() };
    let workload = play.cluster.workload(patient, &[]);
    flows(&play.cluster, &workload)?;
    for step in &text.steps[begins..] {
        scenario.step(step);
        let played = play.step(step).with_context(|| step.to_string());
        played.or_else(|e| play.cluster.explain(e))?;
    }
    play.end(&scenario, workload)
}

fn started(shape: Shape, disks: bool) -> Result<Cluster> {
    let mut builder = Cluster::of(shape.data.into());
    if shape.witness {
        builder = builder.witness();
    }
    if disks {
        builder = builder.disks(DISK_MIB);
    }
    builder.start()
}

fn flows(cluster: &Cluster, workload: &Workload) -> Result<()> {
    let flowing = workload.wait_acks_since(Instant::now(), limits::RECOVER);
    flowing.or_else(|e| cluster.explain(e))
}

impl Play {
    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Do(deed) => self.perform(deed),
            Step::Wait(time) => self.until(*time, |_| false).map(drop),
            Step::WaitUntil(condition) => {
                let within = match condition {
                    Condition::Whole | Condition::Follows(_) => limits::REJOIN,
                    Condition::Writer(_) | Condition::AnyWriter => limits::RECOVER,
                };
                let met = self.until(within, |play| play.is_so(condition))?;
                ensure!(met, "waited {within:?} in vain until it was so");
                Ok(())
            }
            Step::Expect(Expectation::Now(condition)) => {
                ensure!(self.is_so(condition), "it is not so");
                Ok(())
            }
            Step::Expect(Expectation::NoWriter) => {
                // By each node's own word: one whose lease has run out answers nobody.
                let answers = |name: &str| {
                    let own = self.cluster.status_of(name).ok();
                    own.is_some_and(|s| s.serving() == Some(name) && s.leased(name))
                };
                let up = self.cluster.nodes_up().filter(|n| !self.still.contains(n.name()));
                let writer = up.map(|n| n.name()).find(|name| answers(name));
                ensure!(writer.is_none(), "{writer:?} answers clients");
                Ok(())
            }
            // The checks at the end tell.
            Step::Expect(Expectation::NoLoss) => Ok(()),
        }
    }

    /// Waits; true as soon as it is so.
    fn until(&mut self, within: Duration, so: impl Fn(&Self) -> bool) -> Result<bool> {
        let deadline = Instant::now() + within;
        loop {
            self.wake_hosts()?;
            if so(self) {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn wake_hosts(&mut self) -> Result<()> {
        let now = Instant::now();
        let due = |(at, _): &(Instant, String)| *at <= now;
        let (due, left) = std::mem::take(&mut self.suspended).into_iter().partition(due);
        self.suspended = left;
        let due: Vec<(Instant, String)> = due;
        for (_, name) in due {
            self.cluster.resume_host(&name)?;
            self.still.remove(&name);
        }
        Ok(())
    }

    fn is_so(&self, condition: &Condition) -> bool {
        let writer = self.cluster.writer();
        match condition {
            Condition::AnyWriter => writer.is_some(),
            Condition::Writer(names) => {
                writer.is_some_and(|w| names.iter().any(|name| name.to_string() == w))
            }
            Condition::Follows(name) => {
                let name = name.to_string();
                self.cluster.status().is_some_and(|s| s.doing(&name) == "following")
            }
            Condition::Whole => {
                self.cluster.wait_healthy_within(LOOK).is_ok() && self.still.is_empty()
            }
        }
    }

    fn whom(&self, who: Who) -> Option<String> {
        match who {
            Who::Node(name) => Some(name.to_string()),
            Who::Writer => self.cluster.writer(),
            Who::Leader => self.cluster.status()?.leader,
        }
    }

    /// A node that can be asked for something.
    fn asked(&self) -> Result<String> {
        let up = self.cluster.nodes_up().map(|n| n.name().to_owned());
        up.into_iter().find(|n| !self.still.contains(n)).context("no node can be asked")
    }

    /// Does something. What does not fit the moment does nothing.
    fn perform(&mut self, deed: &Deed) -> Result<()> {
        match deed {
            Deed::LoseAll => self.cluster.power_loss(),
            Deed::StartAll => self.cluster.revive().map(drop),
            Deed::Partition(_) => {
                let words = deed.to_string();
                self.cluster.partition(words.trim_start_matches(deed.kind()));
                Ok(())
            }
            Deed::Cut(from, to) => self.cluster.cut_one_way(&from.to_string(), &to.to_string()),
            Deed::Lossy(_) => {
                for node in self.cluster.nodes() {
                    self.cluster.slow(node.name(), LOSSY_DELAY);
                }
                Ok(())
            }
            Deed::Heal => {
                self.cluster.heal();
                Ok(())
            }
            Deed::Switchover(to) => {
                let to = to.map(|to| to.to_string());
                let words: Vec<&str> = match &to {
                    Some(to) => vec!["switchover", "--to", to],
                    None => vec!["switchover"],
                };
                let _ = self.cluster.command(&self.asked()?, &words);
                Ok(())
            }
            Deed::Set(field, value) => self.set(field, value),
            Deed::Pause => self.cluster.command(&self.asked()?, &["pause"]).map(drop),
            Deed::Resume => self.cluster.command(&self.asked()?, &["resume"]).map(drop),
            Deed::Drift(..) => bail!("a clock belongs to the whole machine"),
            one => match one.whom().and_then(|who| self.whom(who)) {
                Some(name) => self.perform_on(&name, deed),
                None => Ok(()),
            },
        }
    }

    fn perform_on(&mut self, name: &str, deed: &Deed) -> Result<()> {
        let sql = |sql: &str| {
            let _ = local::one(&self.cluster.node(name)?.socket_dir(), sql);
            Ok(())
        };
        match deed {
            Deed::Kill(_) => self.cluster.kill_quorate(name),
            Deed::KillPostgres(_) => self.cluster.kill_postmaster(name),
            Deed::Lose(_) => self.cluster.host_gone(name),
            Deed::Start(_) => self.cluster.restart(name),
            Deed::Stop(_) => {
                self.still.insert(name.to_owned());
                self.cluster.signal_quorate(name, Signal::STOP)
            }
            Deed::Continue(_) => {
                self.still.remove(name);
                self.cluster.signal_quorate(name, Signal::CONT)
            }
            Deed::Suspend(_, time) => {
                self.still.insert(name.to_owned());
                self.suspended.push((Instant::now() + *time, name.to_owned()));
                self.cluster.pause_host(name)
            }
            Deed::StopPostgres(_) => self.cluster.stop_postgres(name),
            Deed::ContinuePostgres(_) => self.cluster.cont_postgres(name),
            Deed::Slow(_, time) => {
                self.cluster.slow(name, *time);
                Ok(())
            }
            Deed::Mute(_) => {
                let others = self.cluster.others(name).join(" ");
                let affected = Affected::Only(BTreeSet::from(["consensus"]));
                self.cluster.partition_for(&format!("{name} | {others}"), &affected);
                Ok(())
            }
            Deed::StallDisk(_) => self.cluster.stall_disk(name),
            Deed::FillDisk(_) => {
                self.cluster.fill_disk(name)?;
                // So that room is needed now: the log has some left in its files.
                (0..SWITCHES).try_for_each(|_| sql("SELECT pg_switch_wal()"))
            }
            Deed::FreeDisk(_) if self.cluster.has_disks() => self.cluster.free_disk(name),
            Deed::FreeDisk(_) => self.cluster.release_disk(name),
            Deed::ForgetPromise(_) => {
                let file = self.cluster.node(name)?.dir().join("promise");
                std::fs::remove_file(&file).with_context(|| file.display().to_string())
            }
            Deed::PauseReplay(_) => sql("SELECT pg_wal_replay_pause()"),
            Deed::ResumeReplay(_) => sql("SELECT pg_wal_replay_resume()"),
            Deed::OpenSlot(_) => sql("SELECT pg_create_physical_replication_slot('idle', true)"),
            Deed::DropSlot(_) => sql("SELECT pg_drop_replication_slot('idle')"),
            _ => Ok(()),
        }
    }

    /// A field of the cluster document; a word or a number.
    fn set(&mut self, field: &str, value: &str) -> Result<()> {
        let value = match value.parse::<i64>() {
            Ok(number) => number.to_string(),
            Err(_) => format!("\"{value}\""),
        };
        self.document.retain(|(f, _)| f != field);
        self.document.push((field.to_owned(), value));
        let lines: Vec<String> =
            self.document.iter().map(|(f, v)| format!("{f} = {v}\n")).collect();
        self.cluster.apply(&self.asked()?, &lines.concat()).map(drop)
    }

    /// Mends what is broken, and makes all checks.
    fn end(mut self, scenario: &Scenario, workload: Workload) -> Result<()> {
        let last = self.suspended.iter().map(|(at, _)| *at).max();
        let left = last.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        self.until(left, |_| false)?;
        self.cluster.heal();
        for name in std::mem::take(&mut self.still) {
            self.cluster.resume_host(&name)?;
        }
        self.cluster.revive()?;
        self.cluster.wait_healthy()?;
        flows(&self.cluster, &workload)?;
        let judgement = check::all(&self.cluster, &workload.stop());
        let judgement = judgement.or_else(|e| self.cluster.explain(e))?;
        scenario.step(&judgement);
        Ok(())
    }
}
