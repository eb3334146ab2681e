//! The command line of `quorate`, in one place.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::limits;

/// A built `quorate`.
#[derive(Debug, Clone)]
pub struct Binary {
    path: PathBuf,
}

/// Where a node listens, on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Other nodes.
    pub link: u16,
    /// Applications.
    pub gateway: u16,
    /// Status page.
    pub web: u16,
}

impl Binary {
    /// The binary named by `QUORATE_BIN`, else the newest one in the target directory.
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os("QUORATE_BIN") {
            return Self::at(PathBuf::from(path));
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
            PathBuf::from,
        );
        let newest = ["debug", "release"]
            .map(|profile| target.join(profile).join("quorate"))
            .into_iter()
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .max();
        let (_, path) = newest.with_context(|| {
            format!(
                "no quorate binary in {}: build it with `cargo build -p quorate`, or name one with \
                 QUORATE_BIN",
                target.display()
            )
        })?;
        Self::at(path)
    }

    /// The binary with removable fences (cargo feature `sabotage`), named by
    /// `QUORATE_SABOTAGE_BIN`. `None` when that is not set.
    pub fn find_sabotaged() -> Result<Option<Self>> {
        std::env::var_os("QUORATE_SABOTAGE_BIN").map(|path| Self::at(path.into())).transpose()
    }

    /// This binary.
    pub fn at(path: PathBuf) -> Result<Self> {
        let path = std::fs::canonicalize(&path)
            .with_context(|| format!("no quorate binary at {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the first node.
    pub fn init(&self, dir: &Path, name: &str, ports: Ports, password_file: &Path) -> Result<()> {
        let mut command = self.command("init");
        command.arg("--dir").arg(dir).arg("--name").arg(name).args(listen(ports));
        command.arg("--superuser-password-file").arg(password_file);
        output(&mut command).map(drop)
    }

    /// A token that admits one node.
    pub fn token(&self, dir: &Path) -> Result<String> {
        let answer = self.json(dir, &["token"])?;
        let token = answer["token"].as_str().context("`quorate token --json` has no token")?;
        Ok(token.to_owned())
    }

    /// Admits a node through the member whose link port is at `through`.
    pub fn join(
        &self,
        through: &str,
        token: &str,
        dir: &Path,
        name: &str,
        ports: Ports,
        witness: bool,
    ) -> Result<()> {
        let mut command = self.command("join");
        command.arg(through).arg("--token").arg(token);
        command.arg("--dir").arg(dir).arg("--name").arg(name).args(listen(ports));
        command.args(witness.then_some("--witness"));
        output(&mut command).map(drop)
    }

    /// Starts a node in the foreground of a process group of its own. Its log goes to `log`.
    pub fn run(&self, dir: &Path, log: &Path, env: &[(String, String)]) -> Result<Child> {
        use std::os::unix::process::CommandExt;
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.command("run");
        command.arg("--dir").arg(dir).current_dir(dir).process_group(0);
        command.envs(env.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("cannot run {}", self.path.display()))
    }

    /// Any other command of a running node, for its answer as JSON: the last one, where a command
    /// answers step by step.
    pub fn json(&self, dir: &Path, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args.first().copied().unwrap_or_default());
        command.args(args.get(1..).unwrap_or_default()).arg("--dir").arg(dir).arg("--json");
        let text = output(&mut command)?;
        let answers = serde_json::Deserializer::from_str(&text).into_iter();
        let answers: Vec<Value> =
            answers.collect::<Result<_, _>>().with_context(|| format!("{args:?} said: {text}"))?;
        Ok(answers.into_iter().last().unwrap_or_default())
    }

    fn command(&self, subcommand: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(subcommand).env_remove("QUORATE_SABOTAGE");
        command
    }
}

fn listen(ports: Ports) -> [String; 8] {
    let at = |port| format!("127.0.0.1:{port}");
    [
        "--advertise".to_owned(),
        "127.0.0.1".to_owned(),
        "--link".to_owned(),
        at(ports.link),
        "--gateway".to_owned(),
        at(ports.gateway),
        "--web".to_owned(),
        at(ports.web),
    ]
}

/// Runs a command to its end, within [`limits::COMMAND`], for its standard output.
fn output(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {what}"))?;
    let out = read_all(child.stdout.take());
    let err = read_all(child.stderr.take());
    let deadline = Instant::now() + limits::COMMAND;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{what} did not end within {:?}", limits::COMMAND);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let (out, err) = (joined(out), joined(err));
    anyhow::ensure!(status.success(), "{what} ended with {status}: {}{}", err.trim(), out.trim());
    Ok(out)
}

type Reading = std::thread::JoinHandle<String>;

fn read_all(pipe: Option<impl Read + Send + 'static>) -> Option<Reading> {
    pipe.map(|mut pipe| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    })
}

fn joined(reading: Option<Reading>) -> String {
    reading.and_then(|r| r.join().ok()).unwrap_or_default()
}
