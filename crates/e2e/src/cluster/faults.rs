//! Faults, and their end. The words are those of the scenarios.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode as FileMode, mknodat};
use rustix::process::{Pid, Signal};

use super::Cluster;
use crate::cable::{Affected, Flow, Mode};
use crate::{limits, process};

impl Cluster {
    /// Kills a node's `quorate` process (SIGKILL). Its server dies with it, if the product is right.
    pub fn kill_quorate(&mut self, name: &str) -> Result<()> {
        let child = self.node_mut(name)?.child.take();
        let mut child = child.with_context(|| format!("{name} does not run"))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal to a node's `quorate` process alone.
    pub fn signal_quorate(&self, name: &str, signal: Signal) -> Result<()> {
        let pid = self.node(name)?.pid().with_context(|| format!("{name} does not run"))?;
        process::signal(pid, signal);
        Ok(())
    }

    /// Kills a node's postmaster (SIGKILL).
    pub fn kill_postmaster(&self, name: &str) -> Result<()> {
        process::signal(process::postmaster(&self.node(name)?.data_dir())?, Signal::KILL);
        Ok(())
    }

    /// Freezes a node's postmaster and all its children (SIGSTOP).
    pub fn stop_postgres(&self, name: &str) -> Result<()> {
        // The postmaster first: it must not start a child that escapes.
        let data = self.node(name)?.data_dir();
        process::signal(process::postmaster(&data)?, Signal::STOP);
        process::signal_all(&process::below(&data), Signal::STOP);
        Ok(())
    }

    /// Thaws what [`Cluster::stop_postgres`] froze, as far as it is alive.
    pub fn cont_postgres(&self, name: &str) -> Result<()> {
        process::signal_all(&process::below(&self.node(name)?.data_dir()), Signal::CONT);
        Ok(())
    }

    /// The WAL receiver of a standby.
    pub fn walreceiver(&self, name: &str) -> Result<Pid> {
        let all = process::below(&self.node(name)?.data_dir());
        let receiver = all.into_iter().find(|pid| process::title(*pid).contains("walreceiver"));
        receiver.with_context(|| format!("{name} has no walreceiver"))
    }

    /// A host is lost: silence first, then every process on it dies. Nobody gets a FIN or a RST.
    pub fn host_gone(&mut self, name: &str) -> Result<()> {
        self.gone.insert(name.to_owned());
        self.isolate_host(name);
        let node = self.node_mut(name)?;
        let child = node.child.take();
        process::kill_below(&node.dir);
        if let Some(mut child) = child {
            child.wait()?;
        }
        Ok(())
    }

    /// Starts a node's process (again). A lost host comes back with its network.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        if self.gone.remove(name) {
            self.mend_host(name);
        }
        let binary = self.binary.clone();
        let node = self.node_mut(name)?;
        anyhow::ensure!(node.child.is_none(), "{name} runs already");
        node.child = Some(binary.run(&node.dir, &node.log, &node.env)?);
        Ok(())
    }

    /// Sets an environment variable of a node for its next start.
    pub fn set_env(&mut self, name: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.node_mut(name)?.set_env(key, value);
        Ok(())
    }

    /// Splits the network between nodes: `partition("n1 | n2 n3")`. Nodes that are not named stand
    /// alone. Applications still reach every side.
    pub fn partition(&self, sides: &str) {
        self.partition_for(sides, &Affected::All);
    }

    /// As [`Cluster::partition`], for some kinds of streams.
    pub fn partition_for(&self, sides: &str, affected: &Affected) {
        let sides: Vec<Vec<&str>> =
            sides.split('|').map(|side| side.split_whitespace().collect()).collect();
        let together = |a: &str, b: &str| sides.iter().any(|s| s.contains(&a) && s.contains(&b));
        for ((from, to), cable) in &self.cables {
            if self.gone.contains(from) || self.gone.contains(to) {
                continue;
            }
            let mode = if together(from, to) { Mode::UP } else { Mode::CUT };
            cable.set_for(mode, affected.clone());
        }
    }

    /// Cuts what `from` sends to `to`; the other direction passes.
    pub fn cut_one_way(&self, from: &str, to: &str) -> Result<()> {
        let (ours, theirs) = (self.cable(from, to)?, self.cable(to, from)?);
        ours.set(Mode { there: Flow::Hold, ..ours.mode() });
        theirs.set(Mode { back: Flow::Hold, ..theirs.mode() });
        Ok(())
    }

    /// Makes everything between a node and the others late, both ways.
    pub fn slow(&self, name: &str, delay: Duration) {
        for ((from, to), cable) in &self.cables {
            if from == name || to == name {
                cable.set(Mode::slow(delay));
            }
        }
    }

    /// Cuts a node off from the others and mends it again, so many times.
    pub fn flap(&self, name: &str, times: usize, period: Duration) {
        for _ in 0..times {
            self.cut_off(name);
            std::thread::sleep(period);
            self.heal();
            std::thread::sleep(period);
        }
    }

    /// Cuts a node off from the other nodes; applications still reach it.
    pub fn cut_off(&self, name: &str) {
        for ((from, to), cable) in &self.cables {
            if from == name || to == name {
                cable.set(Mode::CUT);
            }
        }
    }

    /// Mends the network. Lost hosts stay lost.
    pub fn heal(&self) {
        for ((from, to), cable) in &self.cables {
            if !self.gone.contains(from) && !self.gone.contains(to) {
                cable.set(Mode::UP);
            }
        }
    }

    /// Makes a node's disk probe hang: its file becomes a pipe that nobody reads.
    pub fn stall_disk(&self, name: &str) -> Result<()> {
        let probe = self.node(name)?.disk_probe();
        let pipe = probe.with_extension("pipe");
        let mode = FileMode::from_raw_mode(0o666);
        mknodat(CWD, &pipe, FileType::Fifo, mode, 0).context("cannot make a pipe")?;
        std::fs::rename(&pipe, &probe)?;
        Ok(())
    }

    /// Ends what [`Cluster::stall_disk`] began.
    pub fn release_disk(&self, name: &str) -> Result<()> {
        let probe = self.node(name)?.disk_probe();
        let pipe = probe.with_extension("pipe");
        // The name goes first, so that nobody waits anew; a reader then frees whoever waits in
        // open(2), and stays until what that one writes has been taken.
        std::fs::rename(&probe, &pipe)?;
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut reader = std::fs::File::options().read(true).custom_flags(nonblock).open(&pipe)?;
        let deadline = Instant::now() + limits::STATUS;
        while !matches!(reader.read(&mut [0; 8192]), Ok(n) if n > 0) && Instant::now() < deadline {
            std::thread::sleep(limits::POLL);
        }
        std::fs::remove_file(&pipe)?;
        Ok(())
    }

    fn isolate_host(&self, name: &str) {
        self.cut_off(name);
        if let Some(door) = self.doors.get(name) {
            door.set(Mode::CUT);
        }
    }

    fn mend_host(&self, name: &str) {
        self.heal();
        if let Some(door) = self.doors.get(name) {
            door.set(Mode::UP);
        }
    }
}
