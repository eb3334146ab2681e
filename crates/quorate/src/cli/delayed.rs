//! `quorate delayed`: what was there before, from a copy that replays later.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use quorate_core::role::Role;
use quorate_core::words::bytes;
use quorate_postgres::{Admin, Past, Stage, Target, roll_forward};
use serde_json::json;

use super::{Global, operate, run};
use crate::config::{Config, told};

/// `quorate delayed …`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum DelayedCommand {
    /// On the host of a node of role `delayed`: make a copy of its data, replay that up to a moment
    /// which the node has not replayed yet, and leave it running, to read or to dump what was lost.
    /// The node itself stays what it is, so that other moments can be tried.
    RollForward(RollForwardArgs),
}

/// `quorate delayed roll-forward`.
#[derive(Debug, Clone, clap::Args)]
pub struct RollForwardArgs {
    /// The moment: a time ("2026-11-30 14:05:00+01"), a transaction (730), or a position in the log
    /// (0/16B3748). What committed before it is shown, it and what came later is not.
    #[arg(long, value_parser = target)]
    pub to: Target,
    /// A new directory for the copy, on a disk with room for the whole database.
    #[arg(long)]
    pub into: PathBuf,
}

fn target(text: &str) -> Result<Target, String> {
    text.parse()
}

/// Runs one of them.
pub async fn delayed(global: &Global, command: DelayedCommand) -> Result<()> {
    let DelayedCommand::RollForward(args) = command;
    let config = Config::load(global.dir())?;
    let me = config.file.name;
    let status = operate::look(global).await?;
    let role = status.nodes.get(&me).map(|member| member.role);
    if role != Some(Role::Delayed) {
        bail!(
            "{me} is no delayed copy (its role is {}): run this on the host of one. Roles are in \
             the cluster document: quorate config edit",
            role.unwrap_or_default()
        );
    }
    let into = std::path::absolute(&args.into)?;
    let options = run::server_options(&config)?;
    let admin = Admin::new(Arc::new(options.clone()));
    let rolled = tokio::select! {
        rolled = roll_forward(&options, &into, &args.to, |stage| progress(global, stage)) => rolled,
        _ = tokio::signal::ctrl_c() => {
            resume(&admin).await;
            bail!("stopped; {} can be removed", into.display());
        }
    };
    resume(&admin).await;
    end_of_line(global);
    let past = rolled.map_err(|e| match std::error::Error::source(&e) {
        Some(source) => told(&format!("{e}: {source}"), e.hint()),
        None => told(&e, e.hint()),
    })?;
    tell(global, &past)
}

/// Replay goes on where it was held, after the node's delay.
async fn resume(admin: &Admin) {
    if let Err(e) = admin.pause_replay(false).await {
        eprintln!(
            "quorate: replay of this node is still paused ({e}): SELECT pg_wal_replay_resume() on \
             its private socket lets it go on"
        );
    }
}

fn progress(global: &Global, stage: Stage) {
    if global.json || !std::io::stderr().is_terminal() {
        return;
    }
    let line = match stage {
        Stage::Copying(done, total) => format!("copying: {} of {}", bytes(done), bytes(total)),
        Stage::Replaying(at, end) => {
            format!("replaying: at {at}, {} to the end of the log", bytes(end.bytes_since(at)))
        }
    };
    eprint!("\r\x1b[K{line}");
    let _ = std::io::stderr().flush();
}

fn end_of_line(global: &Global) {
    if !global.json && std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn tell(global: &Global, past: &Past) -> Result<()> {
    let (data, socket) = (&past.options.data_dir, &past.options.run_dir);
    if global.json {
        let told = json!({ "data_dir": data, "socket_dir": socket, "replayed": past.replayed,
            "last_commit": past.last_commit, "whole_log": past.all });
        println!("{told}");
        return Ok(());
    }
    let last = match &past.last_commit {
        Some(at) => format!("the last transaction that it shows committed at {at}"),
        None => format!("it shows everything before {}", past.replayed),
    };
    println!("A copy of this node shows the past: {last}.");
    if past.all {
        println!("Nothing was committed from that moment on: it shows all there is.");
    }
    let (data, socket) = (data.display(), socket.display());
    let bin = past.options.install.bin_dir.display();
    println!("Look:   psql -h {socket} -U postgres");
    println!("Take:   pg_dump -h {socket} -U postgres -t <table> <database> | psql <the cluster>");
    println!("Write:  SET default_transaction_read_only = off (nothing of it reaches the cluster)");
    println!("Forget: {bin}/pg_ctl stop -m fast -D {data}, then remove its directory");
    Ok(())
}
