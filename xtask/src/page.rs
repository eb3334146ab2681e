//! `cargo xtask page`: looks at the page with a browser, of a made-up cluster or of a real one.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::setup::{install, on_path, postgresql, root, run, target};

/// How the page is looked at.
#[derive(Debug, Args)]
pub struct Page {
    /// Look at a real cluster of three nodes on this machine, which is hurt and acted on meanwhile.
    #[arg(long)]
    live: bool,
    /// With --live: this program rather than one that is built first.
    #[arg(long, value_name = "FILE", requires = "live")]
    program: Option<PathBuf>,
    /// Print times and do not judge them: for a machine that is busy with something else.
    #[arg(long)]
    lenient: bool,
    /// Leave pictures in this directory.
    #[arg(long, value_name = "DIR")]
    shots: Option<String>,
}

/// Installs what is missing, and looks.
pub fn page(options: &Page) -> Result<()> {
    let missing: Vec<&str> = [("node", "nodejs"), ("chromium", "chromium")]
        .into_iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| package)
        .collect();
    if !missing.is_empty() {
        if !on_path("apt-get") {
            bail!("{} is needed: install it", missing.join(" and "));
        }
        install(&missing)?;
    }
    // Built before anything is timed.
    let mut words = if options.live { live(options)? } else { made_up()? };
    words.extend(options.lenient.then(|| "--lenient".to_owned()));
    if let Some(dir) = &options.shots {
        words.extend(["--shots".to_owned(), dir.clone()]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run(&words, &[])
}

fn script(name: &str) -> Result<Vec<String>> {
    let script = root()?.join("tools/page").join(name);
    Ok(vec!["node".to_owned(), script.display().to_string()])
}

fn made_up() -> Result<Vec<String>> {
    run(&["cargo", "test", "-q", "-p", "quorate", "--bins", "--no-run"], &[])?;
    script("browse.mjs")
}

fn live(options: &Page) -> Result<Vec<String>> {
    postgresql()?;
    let program = match &options.program {
        Some(program) => std::path::absolute(program)?,
        None => {
            run(&["cargo", "build", "-q", "--release", "-p", "quorate"], &[])?;
            target()?.join("release/quorate")
        }
    };
    let mut words = script("live.mjs")?;
    for (option, path) in [("--program", program), ("--dir", target()?.join("page-live"))] {
        words.extend([option.to_owned(), path.display().to_string()]);
    }
    Ok(words)
}
