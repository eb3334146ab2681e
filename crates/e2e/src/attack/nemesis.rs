//! Faults of an attack: which there are, their words, and how each is made and ended.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quorate_history::Fault;

use super::client::Clock;
use crate::random::Random;
use crate::{Cluster, limits, local, postgres};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nemesis {
    /// `quorate` is killed and started again.
    Kill,
    /// A postmaster is killed.
    KillPostmaster,
    /// One backend of PostgreSQL is killed.
    KillBackend,
    /// `quorate` alone is frozen.
    Pause,
    /// PostgreSQL alone is frozen.
    PausePostgres,
    /// Everything on a host is frozen.
    PauseHost,
    /// A host falls silent, and everything on it dies.
    HostGone,
    /// One node is cut off.
    CutOne,
    /// The network falls in two.
    CutHalf,
    /// Each node still hears its neighbours, and not everybody.
    CutRing,
    /// One node is not heard, and hears.
    OneWay,
    /// One node is cut off and mended, several times.
    Flap,
    /// Everything to and from one node is late.
    Slow,
    /// A disk is full.
    DiskFull,
    /// A disk takes no probe any more.
    DiskStall,
    /// Checkpointer and WAL writer hang.
    WriteStall,
    /// The leader of consensus is killed.
    LeaderKill,
    /// The writing is handed over, again and again.
    SwitchoverStorm,
    /// A standby is lost as soon as log of the next writer comes to it, or it becomes that writer.
    NewTimeline,
    /// The commit rule changes, and a node dies meanwhile.
    Rules,
    /// A node is removed and joins anew.
    Membership,
    /// Replay stands still on a standby.
    ReplayPause,
    /// All hosts lose their power at once.
    PowerLoss,
}

impl Nemesis {
    /// All of them.
    pub const ALL: [Nemesis; 23] = [
        Nemesis::Kill,
        Nemesis::KillPostmaster,
        Nemesis::KillBackend,
        Nemesis::Pause,
        Nemesis::PausePostgres,
        Nemesis::PauseHost,
        Nemesis::HostGone,
        Nemesis::CutOne,
        Nemesis::CutHalf,
        Nemesis::CutRing,
        Nemesis::OneWay,
        Nemesis::Flap,
        Nemesis::Slow,
        Nemesis::DiskFull,
        Nemesis::DiskStall,
        Nemesis::WriteStall,
        Nemesis::LeaderKill,
        Nemesis::SwitchoverStorm,
        Nemesis::NewTimeline,
        Nemesis::Rules,
        Nemesis::Membership,
        Nemesis::ReplayPause,
        Nemesis::PowerLoss,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Nemesis::Kill => "kill",
            Nemesis::KillPostmaster => "kill-postmaster",
            Nemesis::KillBackend => "kill-backend",
            Nemesis::Pause => "pause",
            Nemesis::PausePostgres => "pause-postgres",
            Nemesis::PauseHost => "pause-host",
            Nemesis::HostGone => "host-gone",
            Nemesis::CutOne => "cut-one",
            Nemesis::CutHalf => "cut-half",
            Nemesis::CutRing => "cut-ring",
            Nemesis::OneWay => "one-way",
            Nemesis::Flap => "flap",
            Nemesis::Slow => "slow",
            Nemesis::DiskFull => "disk-full",
            Nemesis::DiskStall => "disk-stall",
            Nemesis::WriteStall => "write-stall",
            Nemesis::LeaderKill => "leader-kill",
            Nemesis::SwitchoverStorm => "switchover-storm",
            Nemesis::NewTimeline => "new-timeline",
            Nemesis::Rules => "rules",
            Nemesis::Membership => "membership",
            Nemesis::ReplayPause => "replay-pause",
            Nemesis::PowerLoss => "power-loss",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|nemesis| nemesis.name() == name);
        known.with_context(|| {
            let all: Vec<_> = Self::ALL.iter().map(|n| n.name()).collect();
            format!("there is no nemesis {name}: there are {}", all.join(", "))
        })
    }
}

impl fmt::Display for Nemesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What makes faults in a cluster, by choice of its own.
pub struct Striker<'a> {
    /// Where.
    pub cluster: &'a mut Cluster,
    /// By which choices.
    pub random: &'a mut Random,
    /// Time of the histories.
    pub clock: Clock,
    /// Raised when it is to come to an end early.
    pub stop: &'a AtomicBool,
    /// What was done.
    pub faults: Vec<Fault>,
}

/// Why a fault could not be made: what it needs is not there now.
type Struck = Result<()>;

impl Striker<'_> {
    /// Makes a fault, and ends it. Whether there was something to hit.
    pub fn strike(&mut self, nemesis: Nemesis) -> Result<bool> {
        let before = self.faults.len();
        let struck = self.make(nemesis);
        // Whatever was interrupted: no fault outlives its strike.
        self.cluster.heal();
        for node in self.cluster.revive()? {
            self.say(format!("start {node}, which had ended by itself"));
        }
        match struck {
            Ok(()) => Ok(true),
            Err(error) if self.faults.len() == before => {
                eprintln!("         {nemesis} not made: {error:#}");
                Ok(false)
            }
            Err(error) => Err(error.context(format!("{nemesis}: {:?}", self.faults.last()))),
        }
    }

    fn make(&mut self, nemesis: Nemesis) -> Struck {
        match nemesis {
            Nemesis::Kill => self.kill(),
            Nemesis::KillPostmaster => self.kill_postmaster(),
            Nemesis::KillBackend => self.kill_backend(),
            Nemesis::Pause => self.pause(),
            Nemesis::PausePostgres => self.pause_postgres(),
            Nemesis::PauseHost => self.pause_host(),
            Nemesis::HostGone => self.host_gone(),
            Nemesis::CutOne => self.cut_one(),
            Nemesis::CutHalf => self.cut_half(),
            Nemesis::CutRing => self.cut_ring(),
            Nemesis::OneWay => self.one_way(),
            Nemesis::Flap => self.flap(),
            Nemesis::Slow => self.slow(),
            Nemesis::DiskFull => self.disk_full(),
            Nemesis::DiskStall => self.disk_stall(),
            Nemesis::WriteStall => self.write_stall(),
            Nemesis::LeaderKill => self.leader_kill(),
            Nemesis::SwitchoverStorm => self.switchover_storm(),
            Nemesis::NewTimeline => self.new_timeline(),
            Nemesis::Rules => self.rules(),
            Nemesis::Membership => self.membership(),
            Nemesis::ReplayPause => self.replay_pause(),
            Nemesis::PowerLoss => self.power_loss(),
        }
    }

    /// Takes down what is done, before it is done.
    fn say(&mut self, fault: String) {
        let at = self.clock.now();
        eprintln!("{:8.3} {fault}", at.0 as f64 / 1e6);
        self.faults.push(Fault { at, fault });
    }

    /// Lets the fault last, from `least` to `most` seconds.
    fn last(&mut self, least: u64, most: u64) {
        let milliseconds = 1000 * least + self.random.below(1000 * (most - least) as usize) as u64;
        let end = Instant::now() + Duration::from_millis(milliseconds);
        while Instant::now() < end && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(limits::POLL);
        }
    }

    /// Any node, the writer every other time: it has most to lose.
    fn victim(&mut self, with_data: bool) -> Result<String> {
        let nodes = self.cluster.nodes().iter().filter(|n| !with_data || !n.is_witness());
        let names: Vec<String> = nodes.map(|n| n.name().to_owned()).collect();
        if self.random.below(2) == 0
            && let Some(writer) = self.cluster.writer()
        {
            return Ok(writer);
        }
        Ok(self.random.pick(&names).clone())
    }

    fn names(&self) -> Vec<String> {
        self.cluster.nodes().iter().map(|n| n.name().to_owned()).collect()
    }

    fn standby(&mut self) -> Result<(String, String)> {
        let writer = self.cluster.writer().context("there is no writer")?;
        let standby = self.random.pick(&self.cluster.others(&writer)).clone();
        Ok((writer, standby))
    }

    fn start(&mut self, node: &str) -> Result<()> {
        self.say(format!("start {node}"));
        self.cluster.restart(node)
    }

    fn heal(&mut self) {
        self.say("heal".to_owned());
        self.cluster.heal();
    }

    fn kill(&mut self) -> Struck {
        let node = self.victim(false)?;
        self.say(format!("kill {node}"));
        self.cluster.kill_quorate(&node)?;
        self.last(0, 4);
        self.start(&node)
    }

    fn kill_postmaster(&mut self) -> Struck {
        let node = self.victim(true)?;
        crate::process::postmaster(&self.cluster.node(&node)?.data_dir())?;
        self.say(format!("kill postmaster {node}"));
        // It may have ended a moment ago, as it was to.
        let _ = self.cluster.kill_postmaster(&node);
        self.last(1, 4);
        Ok(())
    }

    fn kill_backend(&mut self) -> Struck {
        let node = self.victim(true)?;
        let choice = self.random.below(1000);
        self.cluster.kill_backend(&node, choice)?;
        self.say(format!("kill backend {node}"));
        self.last(1, 4);
        Ok(())
    }

    fn pause(&mut self) -> Struck {
        let node = self.victim(false)?;
        self.say(format!("pause quorate {node}"));
        self.cluster.signal_quorate(&node, rustix::process::Signal::STOP)?;
        self.last(1, 8);
        self.say(format!("resume {node}"));
        self.cluster.signal_quorate(&node, rustix::process::Signal::CONT)
    }

    fn pause_postgres(&mut self) -> Struck {
        let node = self.victim(true)?;
        crate::process::postmaster(&self.cluster.node(&node)?.data_dir())?;
        self.say(format!("pause postgres {node}"));
        let stopped = self.cluster.stop_postgres(&node);
        self.last(1, 8);
        self.say(format!("resume {node}"));
        self.cluster.cont_postgres(&node)?;
        // One that ended of itself meanwhile was no fault.
        stopped.or(Ok(()))
    }

    fn pause_host(&mut self) -> Struck {
        let node = self.victim(false)?;
        self.say(format!("pause {node}"));
        self.cluster.pause_host(&node)?;
        self.last(1, 8);
        self.say(format!("resume {node}"));
        self.cluster.resume_host(&node)
    }

    fn host_gone(&mut self) -> Struck {
        let node = self.victim(false)?;
        self.say(format!("lose {node}"));
        self.cluster.host_gone(&node)?;
        self.last(2, 8);
        self.start(&node)
    }

    fn cut_one(&mut self) -> Struck {
        let node = self.victim(false)?;
        self.say(format!("cut off {node}"));
        self.cluster.cut_off(&node);
        self.last(1, 8);
        self.heal();
        Ok(())
    }

    fn cut_half(&mut self) -> Struck {
        let mut names = self.names();
        let mut side = Vec::new();
        while side.len() < names.len() {
            side.push(names.swap_remove(self.random.below(names.len())));
        }
        let sides = format!("{} | {}", side.join(" "), names.join(" "));
        self.split(&sides)
    }

    fn cut_ring(&mut self) -> Struck {
        let names = self.names();
        let pairs = (0..names.len() - 1).map(|i| format!("{} {}", names[i], names[i + 1]));
        let sides: Vec<_> = pairs.collect();
        self.split(&sides.join(" | "))
    }

    fn split(&mut self, sides: &str) -> Struck {
        self.say(format!("partition {sides}"));
        self.cluster.partition(sides);
        self.last(1, 8);
        self.heal();
        Ok(())
    }

    fn one_way(&mut self) -> Struck {
        let node = self.victim(false)?;
        let heard = self.random.below(2) == 0;
        for other in self.names().into_iter().filter(|other| *other != node) {
            let (from, to) = if heard { (&other, &node) } else { (&node, &other) };
            self.say(format!("cut {from} to {to}"));
            self.cluster.cut_one_way(from, to)?;
        }
        self.last(1, 8);
        self.heal();
        Ok(())
    }

    fn flap(&mut self) -> Struck {
        let node = self.victim(false)?;
        let times = 2 + self.random.below(4);
        let period = Duration::from_millis(100 + self.random.below(900) as u64);
        self.say(format!("flap {node} {times} times, {} ms each", period.as_millis()));
        self.cluster.flap(&node, times, period);
        Ok(())
    }

    fn slow(&mut self) -> Struck {
        let node = self.victim(false)?;
        let delay = Duration::from_millis(5 + self.random.below(120) as u64);
        self.say(format!("slow {node} {} ms", delay.as_millis()));
        self.cluster.slow(&node, delay);
        self.last(3, 8);
        self.heal();
        Ok(())
    }

    fn disk_full(&mut self) -> Struck {
        anyhow::ensure!(self.cluster.has_disks(), "no file system can be mounted here");
        let node = self.victim(true)?;
        self.say(format!("fill disk {node}"));
        self.cluster.fill_disk(&node)?;
        self.last(4, 10);
        self.say(format!("free disk {node}"));
        self.cluster.free_disk(&node)
    }

    fn disk_stall(&mut self) -> Struck {
        let node = self.victim(true)?;
        self.say(format!("stall disk {node}"));
        self.cluster.stall_disk(&node)?;
        self.last(2, 8);
        self.say(format!("release disk {node}"));
        self.cluster.release_disk(&node)
    }

    fn write_stall(&mut self) -> Struck {
        let node = self.victim(true)?;
        self.cluster.stop_disk_writers(&node)?;
        self.say(format!("pause checkpointer walwriter {node}"));
        self.last(2, 8);
        self.say(format!("resume {node}"));
        self.cluster.cont_postgres(&node)
    }

    fn leader_kill(&mut self) -> Struck {
        let leader = self.cluster.status().and_then(|s| s.leader).context("nobody leads")?;
        self.say(format!("kill {leader}, the leader"));
        self.cluster.kill_quorate(&leader)?;
        self.last(0, 4);
        self.start(&leader)
    }

    fn switchover_storm(&mut self) -> Struck {
        for _ in 0..2 + self.random.below(4) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let (writer, standby) = self.standby()?;
            self.say(format!("switchover to {standby}"));
            // Refused where it may not be: that is no fault.
            let _ = self.cluster.command(&writer, &["switchover", "--to", &standby, "--wait", "5"]);
            self.last(0, 2);
        }
        Ok(())
    }

    fn new_timeline(&mut self) -> Struck {
        let (writer, standby) = self.standby()?;
        let data = self.cluster.node(&standby)?.data_dir();
        let before = postgres::newest_timeline(&data)?;
        crate::process::postmaster(&self.cluster.node(&writer)?.data_dir())?;
        self.say(format!("kill postmaster {writer}, and lose {standby} when it has the next log"));
        let _ = self.cluster.kill_postmaster(&writer);
        let deadline = Instant::now() + limits::RECOVER;
        while postgres::newest_timeline(&data)? == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Some of the first file has come, all of it, or more.
        std::thread::sleep(Duration::from_millis(self.random.below(30) as u64));
        self.cluster.host_gone(&standby)?;
        self.last(0, 3);
        self.start(&standby)
    }

    fn rules(&mut self) -> Struck {
        let (writer, _) = self.standby()?;
        for document in ["copies = 3\n", ""] {
            self.say(format!("apply {:?}", document.trim()));
            // Without a majority nobody takes it, and it is tried again.
            let deadline = Instant::now() + limits::RECOVER;
            let nodes = self.names();
            while !nodes.iter().any(|n| self.cluster.apply(n, document).is_ok()) {
                anyhow::ensure!(Instant::now() < deadline, "no node takes the document");
            }
            if !document.is_empty() && self.random.below(2) == 0 {
                self.say(format!("kill postmaster {writer}"));
                let _ = self.cluster.kill_postmaster(&writer);
            }
            self.last(0, 3);
        }
        Ok(())
    }

    fn membership(&mut self) -> Struck {
        self.cluster.wait_healthy()?;
        let (writer, standby) = self.standby()?;
        self.say(format!("remove {standby}, join {standby}"));
        self.cluster.replace(&standby, &writer)
    }

    fn replay_pause(&mut self) -> Struck {
        let (_, standby) = self.standby()?;
        let socket = self.cluster.node(&standby)?.socket_dir();
        local::query(&socket, "SELECT pg_catalog.pg_wal_replay_pause()")?;
        self.say(format!("pause replay {standby}"));
        self.last(2, 6);
        self.say(format!("resume replay {standby}"));
        // A server that was struck meanwhile replays when it starts.
        let _ = local::resume_replay(&socket);
        Ok(())
    }

    fn power_loss(&mut self) -> Struck {
        self.say("power loss".to_owned());
        self.cluster.power_loss()?;
        self.last(0, 2);
        self.say("power on".to_owned());
        self.cluster.revive().map(drop)
    }
}
