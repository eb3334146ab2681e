//! Whole hosts: frozen, without power, replaced, started again when they fell.

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::Cluster;
use crate::process;

impl Cluster {
    /// Freezes everything on a host (SIGSTOP).
    pub fn pause_host(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        // Its parents first: they must not start a child that escapes.
        self.signal_quorate(name, Signal::STOP)?;
        if let Ok(postmaster) = process::postmaster(&node.data_dir()) {
            process::signal(postmaster, Signal::STOP);
        }
        process::signal_all(&process::below(&node.dir), Signal::STOP);
        Ok(())
    }

    /// Thaws what [`Cluster::pause_host`] froze, as far as it is alive.
    pub fn resume_host(&self, name: &str) -> Result<()> {
        process::signal_all(&process::below(&self.node(name)?.dir), Signal::CONT);
        Ok(())
    }

    /// Kills one of the processes that serve clients of a node's server (SIGKILL); `choice` says
    /// which.
    pub fn kill_backend(&self, name: &str, choice: usize) -> Result<()> {
        let all = process::below(&self.node(name)?.data_dir());
        let backends: Vec<_> =
            all.into_iter().filter(|pid| process::title(*pid).contains("[local]")).collect();
        anyhow::ensure!(!backends.is_empty(), "{name} serves nobody");
        process::signal(backends[choice % backends.len()], Signal::KILL);
        Ok(())
    }

    /// All hosts lose their power at once.
    pub fn power_loss(&mut self) -> Result<()> {
        let pids: Vec<_> = self.nodes.iter().flat_map(|n| process::below(&n.dir)).collect();
        process::signal_all(&pids, Signal::KILL);
        for node in &mut self.nodes {
            process::kill_below(&node.dir);
            if let Some(mut child) = node.child.take() {
                child.wait()?;
            }
        }
        Ok(())
    }

    /// Starts every node that does not run: those that were lost, and those that ended by
    /// themselves, as a service manager would. Names of the latter.
    pub fn revive(&mut self) -> Result<Vec<String>> {
        let mut ended = Vec::new();
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child
                && child.try_wait()?.is_some()
            {
                node.child = None;
                ended.push(node.name.clone());
            }
        }
        let down: Vec<_> =
            self.nodes.iter().filter(|n| n.child.is_none()).map(|n| n.name.clone()).collect();
        for name in down {
            self.restart(&name)?;
        }
        Ok(ended)
    }

    /// Removes a node from the cluster through another one, throws its files away, and lets it join
    /// again under its name.
    pub fn replace(&mut self, name: &str, through: &str) -> Result<()> {
        self.command(through, &["remove", name, "--yes"])?;
        self.kill_quorate(name)?;
        let dir = self.node(name)?.dir.clone();
        process::kill_below(&dir);
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let gone = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            gone.with_context(|| path.display().to_string())?;
        }
        let builder = self.builder.clone();
        builder.admit_through(self, name, through)
    }
}
