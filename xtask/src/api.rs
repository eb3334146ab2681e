//! `cargo xtask api`: a demo cluster, and a client that makes up requests from the description of its
//! HTTP API.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::drivers::python;
use crate::setup::{postgresql, quiet, root, run, target};

/// How requests are made up.
#[derive(Debug, Args)]
pub struct Api {
    /// Made-up requests for each route, besides those at the edges of what is described.
    #[arg(long, default_value_t = 30)]
    examples: u32,
    /// Makes the same requests again.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// First of the nine ports of 127.0.0.1 that the demo takes.
    #[arg(long, default_value_t = 19432)]
    port: u16,
    /// The program to look at, instead of the one that is built here.
    #[arg(long, env = "QUORATE_BIN", value_name = "FILE")]
    program: Option<PathBuf>,
}

/// How long the demo may take until it has three copies.
const START_WAIT: Duration = Duration::from_secs(120);
/// What the demo says once it has.
const READY: &str = "end: Ctrl-C";

/// Starts a cluster, and looks.
pub fn api(options: &Api) -> Result<()> {
    postgresql()?;
    let (there, tools) = (target()?.join("api"), root()?.join("tools/api"));
    fs::create_dir_all(&there)?;
    let python = python(&tools.join("requirements.txt"), &there.join("python"))?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => {
            run(&["cargo", "build", "-p", "quorate"], &[])?;
            target()?.join("debug/quorate")
        }
    };
    let demo = Demo::start(&program, options.port, &there)?;
    let words = [
        python.display().to_string(),
        tools.join("check.py").display().to_string(),
        format!("--dir={}", demo.dir.display()),
        format!("--port={}", options.port),
        format!("--work={}", there.display()),
        format!("--examples={}", options.examples),
        format!("--seed={}", options.seed),
    ];
    run(&words.each_ref().map(String::as_str), &[])
}

/// A running demo, which ends with this.
struct Demo {
    child: Child,
    dir: PathBuf,
    /// Where its logs are left.
    logs: PathBuf,
}

impl Demo {
    /// Waits until its cluster is whole.
    fn start(program: &Path, port: u16, logs: &Path) -> Result<Self> {
        // Not under `target`: PostgreSQL's own user must reach it.
        let dir = std::env::temp_dir().join(format!("quorate-api-{}", std::process::id()));
        println!("$ {} demo --dir {} --port {port}", program.display(), dir.display());
        let log = logs.join("demo.log");
        let output = File::create(&log)?;
        let child = Command::new(program)
            .args(["demo", "--port", &port.to_string(), "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stderr(output.try_clone()?)
            .stdout(output)
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let mut demo = Self { child, dir, logs: logs.to_owned() };
        let began = Instant::now();
        loop {
            let said = fs::read_to_string(&log)?;
            if said.contains(READY) {
                return Ok(demo);
            }
            if let Some(status) = demo.child.try_wait()? {
                bail!("the demo ended ({status}): {}", said.trim());
            }
            if began.elapsed() > START_WAIT {
                bail!("the demo is not ready after {} s: {}", START_WAIT.as_secs(), said.trim());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It ends its nodes itself when it is asked to; killed, it could not.
        quiet(&["kill", "-TERM", &self.child.id().to_string()]);
        let _ = self.child.wait();
        for node in ["n1.log", "n2.log", "n3.log"] {
            let _ = fs::copy(self.dir.join(node), self.logs.join(node));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
