//! File systems of nodes: full ones, and what hangs on one that does not answer.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Cluster;
use crate::process;

/// The file that fills a disk.
const FILLER: &str = "filler";
/// Titles of the server's processes that write what nobody waits for, and what all wait for.
const WRITERS: [&str; 3] = ["checkpointer", "walwriter", "background writer"];

impl Cluster {
    /// Whether file systems can be mounted here: on a directory that has nothing in it.
    pub fn can_mount(dir: &Path) -> bool {
        std::fs::create_dir_all(dir).is_ok()
            && mount(dir, 1).is_ok()
            && run(Command::new("umount").arg(dir)).is_ok()
    }

    /// Gives each data node a file system of its own.
    pub(super) fn mount_disks(&mut self, mib: u32) -> Result<()> {
        let dirs: Vec<_> =
            self.nodes.iter().filter(|n| !n.witness).map(|n| n.dir.clone()).collect();
        for dir in dirs {
            std::fs::create_dir(&dir)?;
            mount(&dir, mib)?;
            self.mounted.push(dir);
        }
        Ok(())
    }

    /// Takes them away, when nothing runs any more.
    pub(super) fn unmount_disks(&mut self) {
        for dir in self.mounted.drain(..) {
            // What still holds it is gone by the time it lets go.
            let _ = run(Command::new("umount").arg("--lazy").arg(&dir));
        }
    }

    /// Whether nodes have disks that can be filled.
    pub fn has_disks(&self) -> bool {
        !self.mounted.is_empty()
    }

    /// Fills a node's disk to the last byte.
    pub fn fill_disk(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        ensure!(self.mounted.contains(&node.dir), "{name} has no disk of its own");
        let mut filler = std::fs::File::create(node.dir.join(FILLER))?;
        let (mut size, most) = (1 << 20, vec![0; 1 << 20]);
        while size > 0 {
            match filler.write_all(&most[..size]) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => size /= 2,
                Err(error) => return Err(error).context("cannot fill a disk"),
            }
        }
        Ok(())
    }

    /// Ends what [`Cluster::fill_disk`] began.
    pub fn free_disk(&self, name: &str) -> Result<()> {
        let filler = self.node(name)?.dir.join(FILLER);
        std::fs::remove_file(&filler).with_context(|| filler.display().to_string())
    }

    /// Freezes those processes of a node's server that write behind the others' backs, as a disk
    /// does that takes nothing any more. [`Cluster::cont_postgres`] ends it.
    pub fn stop_disk_writers(&self, name: &str) -> Result<()> {
        let all = process::below(&self.node(name)?.data_dir());
        let writers: Vec<_> = all
            .into_iter()
            .filter(|pid| WRITERS.iter().any(|word| process::title(*pid).contains(word)))
            .collect();
        ensure!(!writers.is_empty(), "{name} has no such process");
        process::signal_all(&writers, Signal::STOP);
        Ok(())
    }
}

fn mount(dir: &Path, mib: u32) -> Result<()> {
    let options = format!("size={mib}m,mode=755");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "quorate-e2e"]).arg(dir))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}
