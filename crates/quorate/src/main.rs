//! `quorate`: parse, do, say why not.

// A binary has no outside: `pub` here means "for the other modules".
#![allow(unreachable_pub)]

mod api;
mod cli;
mod config;
mod ddl;
mod drill;
mod explain;
#[cfg(test)]
mod fixture;
mod http;
mod metrics;
mod notify;
mod page;
mod ports;
mod review;
mod tls;
mod world;

use std::process::ExitCode;

use clap::Parser;
use cli::{Cli, Command, DdlCommand};

/// Ends quietly when whoever reads the output has left, as in `quorate events | head`: the standard
/// library panics then.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<String>();
        if text.is_some_and(|t| t.contains("failed printing to") && t.contains("Broken pipe")) {
            std::process::exit(0);
        }
        usual(info);
    }));
}

fn main() -> ExitCode {
    end_with_the_reader();
    let cli = Cli::parse();
    // The store holds the cluster's private key: nothing we make is for others unless we say so.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("quorate: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let json = cli.global.json;
    let result = runtime.block_on(Box::pin(dispatch(cli)));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if json {
                eprintln!("{}", serde_json::json!({ "error": format!("{e:#}") }));
            } else {
                eprintln!("quorate: {e:#}");
            }
            let code = e.downcast_ref::<cli::reach::Failure>().map_or(1, |f| f.exit_code());
            ExitCode::from(code)
        }
    }
}

/// Threads of the async runtime. Heartbeats, the postmaster and the disk probe have their own.
const WORKERS: usize = 4;

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => cli::demo::demo(global, args).await,
        Command::Init(args) => cli::cluster::init(global, args).await,
        Command::Join(args) => cli::cluster::join(global, args).await,
        Command::Run => cli::run::run(global).await,
        Command::Status { watch } => cli::show::status(global, watch).await,
        Command::Top { once } => cli::top::top(global, once).await,
        Command::Explain { long } => cli::show::explain(global, long).await,
        Command::Alerts { command } => cli::alerts::alerts(global, command).await,
        Command::Events { last, follow } => cli::show::events(global, last, follow).await,
        Command::Switchover { to, wait } => cli::operate::switchover(global, to, wait).await,
        Command::Failover { to, allow_loss, wait } => {
            cli::operate::failover(global, to, allow_loss, wait).await
        }
        Command::Pause => cli::operate::pause(global, true).await,
        Command::Resume => cli::operate::pause(global, false).await,
        Command::Restart { node, rolling, wait } => {
            cli::operate::restart(global, node, rolling, wait).await
        }
        Command::Rebuild { node, yes } => cli::operate::rebuild(global, node, yes).await,
        Command::Remove { node, yes, wait } => cli::operate::remove(global, node, yes, wait).await,
        Command::Standalone { yes } => cli::operate::standalone(global, yes).await,
        Command::Recover(args) => cli::recover::recover(global, args).await,
        Command::Config { command } => cli::config::config(global, command).await,
        Command::Backfill(args) => cli::backfill::backfill(global, args).await,
        Command::Delayed { command } => cli::delayed::delayed(global, command).await,
        Command::Ddl { command: DdlCommand::Check { file } } => {
            cli::ddl::check(global, &file).await
        }
        Command::Drill(args) => cli::drill::drill(global, args).await,
        Command::Slots(args) => cli::slots::slots(global, args).await,
        Command::Review { strict } => cli::review::review(global, strict).await,
        Command::Validate { name } => cli::validate::validate(global, name).await,
        Command::Metrics { what } => cli::show::metrics(global, what).await,
        Command::Plan(args) => cli::plan::plan(global, &args),
        Command::Ca => cli::run::print_ca(global),
        Command::Token { minutes } => cli::operate::token(global, minutes).await,
    }
}
