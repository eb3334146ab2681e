//! A client of an attack: one session at a time, through the gateways of its list in turn, and every
//! answer told apart by what it says of the statement's effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_history::{Moment, Outcome, Process, Server};

use crate::limits;
use crate::random::Random;
use crate::wire::{Answer, Mode, Session};
use crate::workload::{Gateway, Login};

/// Microseconds since the attack began, for all its histories.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        Moment(self.0.elapsed().as_micros() as u64)
    }
}

/// What all clients of a round share.
#[derive(Debug, Clone)]
pub struct Scene {
    /// Ways in.
    pub gateways: Vec<Gateway>,
    /// As whom.
    pub login: Login,
    /// Time.
    pub clock: Clock,
    /// Raised when clients are to stop.
    pub stop: Arc<AtomicBool>,
    /// The next session's number.
    pub processes: Arc<AtomicU64>,
}

/// The answer to a statement, by what it says of its effect.
#[derive(Debug)]
pub enum Told {
    /// It was carried out.
    Done(Answer),
    /// It surely had no effect: SQLSTATE and message.
    Refused(String),
    /// It may have had its effect: SQLSTATE and message, or what became of the connection.
    Open(String),
}

/// A client.
pub struct Client {
    /// Its number in its workload.
    pub number: usize,
    /// Its choices.
    pub random: Random,
    scene: Scene,
    at: usize,
    greeting: Vec<String>,
    session: Option<Session>,
    process: Process,
}

/// Answers that leave the outcome of a statement open. After `57P03` nothing was begun.
fn is_open(code: &str) -> bool {
    code.starts_with("08") || code.starts_with("57") && code != "57P03"
}

impl Client {
    /// A client that begins each session with these statements.
    pub fn new(scene: &Scene, number: usize, greeting: Vec<String>, random: Random) -> Self {
        Self {
            number,
            random,
            at: number % scene.gateways.len().max(1),
            scene: scene.clone(),
            greeting,
            session: None,
            process: Process(0),
        }
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        self.scene.clock.now()
    }

    /// The present session.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Whether it is to stop.
    pub fn stopped(&self) -> bool {
        self.scene.stop.load(Ordering::Relaxed)
    }

    /// Makes sure that there is a session: through the next gateway, when this one fails.
    pub fn connect(&mut self) -> bool {
        if self.session.is_some() {
            return true;
        }
        match self.open() {
            Ok(session) => {
                self.session = Some(session);
                self.process = Process(self.scene.processes.fetch_add(1, Ordering::Relaxed));
                true
            }
            Err(_) => {
                self.at = (self.at + 1) % self.scene.gateways.len();
                std::thread::sleep(limits::LOGIN_PAUSE);
                false
            }
        }
    }

    fn open(&mut self) -> Result<Session> {
        let gateway = self.scene.gateways.get(self.at).context("no gateway")?.addr;
        // Some are less patient than the gateway, which holds them while there is no writer.
        let limit = *self.random.pick(&limits::PATIENCE);
        let name = [("application_name", "attack")];
        let mut session = Session::within(gateway, &self.scene.login, &name, limit)?;
        for statement in &self.greeting {
            session.simple(statement)?.ok()?;
        }
        Ok(session)
    }

    /// Ends the session, and goes on with the next gateway.
    pub fn leave(&mut self) {
        self.session = None;
        self.at = (self.at + 1) % self.scene.gateways.len().max(1);
    }

    /// Runs a statement, in one of the protocol's two ways.
    pub fn ask(&mut self, sql: &str) -> Told {
        let mode = if self.random.below(2) == 0 { Mode::Simple } else { Mode::Unnamed };
        let Some(session) = &mut self.session else {
            return Told::Refused("there is no session".to_owned());
        };
        let answer = match session.run(mode, sql) {
            Ok(answer) => answer,
            Err(error) => {
                self.leave();
                return Told::Open(format!("{error:#}"));
            }
        };
        match answer.error() {
            None => Told::Done(answer),
            Some((code, message)) if is_open(&code) => Told::Open(format!("{code} {message}")),
            Some((code, message)) => Told::Refused(format!("{code} {message}")),
        }
    }

    /// Runs a block of statements that `body` sends; what became of all of it. `Failed` says whether
    /// it was the COMMIT that failed.
    pub fn block(
        &mut self,
        begin: &str,
        body: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Ended {
        let began = self.ask(begin);
        let done = match began {
            Told::Done(_) => body(self),
            Told::Refused(words) | Told::Open(words) => Err(words),
        };
        if let Err(words) = done {
            self.roll_back();
            return Ended { outcome: Outcome::Failed, at_commit: false, note: words };
        }
        let (outcome, note) = match self.ask("COMMIT") {
            Told::Done(answer) if answer.tags() == ["COMMIT"] => (Outcome::Ok, String::new()),
            Told::Done(answer) => (Outcome::Failed, answer.to_string()),
            Told::Refused(words) => (Outcome::Failed, words),
            Told::Open(words) => (Outcome::Unknown, words),
        };
        if outcome != Outcome::Ok {
            self.roll_back();
        }
        Ended { outcome, at_commit: true, note }
    }

    /// Ends a block that has failed; where that fails too, the session ends.
    fn roll_back(&mut self) {
        if self.session.is_some() && !matches!(self.ask("ROLLBACK"), Told::Done(_)) {
            self.leave();
        }
    }

    /// The rows of a statement, tried again until it succeeds. It may then have been done twice.
    pub fn insist(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let deadline = Instant::now() + limits::RECOVER;
        let mut last = "no session".to_owned();
        while Instant::now() < deadline {
            if !self.connect() {
                continue;
            }
            match self.ask(sql) {
                Told::Done(answer) => return Ok(answer.rows()),
                Told::Refused(words) | Told::Open(words) => last = words,
            }
            std::thread::sleep(limits::POLL);
        }
        bail!("{sql}: {last}")
    }
}

/// What became of a block.
#[derive(Debug)]
pub struct Ended {
    /// Whether it took effect.
    pub outcome: Outcome,
    /// Whether that is the answer to its COMMIT.
    pub at_commit: bool,
    /// An error's words.
    pub note: String,
}

impl Told {
    /// What it says of a statement outside of a block that must have this tag.
    pub fn outcome(self, tag: &str) -> (Outcome, String) {
        match self {
            Told::Done(answer) if answer.tags() == [tag] => (Outcome::Ok, String::new()),
            Told::Done(answer) => (Outcome::Failed, answer.to_string()),
            Told::Refused(words) => (Outcome::Failed, words),
            Told::Open(words) => (Outcome::Unknown, words),
        }
    }

    /// The answer, or words.
    pub fn answer(self) -> Result<Answer, String> {
        match self {
            Told::Done(answer) => Ok(answer),
            Told::Refused(words) | Told::Open(words) => Err(words),
        }
    }
}

/// The view that tells which server answers, without giving away to a gateway that it does.
pub const PLACE: &str = "CREATE OR REPLACE VIEW public.place AS
    SELECT pg_catalog.pg_is_in_recovery() AS standby,
           pg_catalog.current_setting('data_directory') AS directory";

/// The server of a row's two columns of [`PLACE`]. A data directory is that of its node's directory.
pub fn server(standby: &Option<String>, directory: &Option<String>) -> Server {
    let node = directory.as_deref().unwrap_or_default().rsplit('/').nth(2).unwrap_or_default();
    Server { node: node.to_owned(), replica: standby.as_deref() == Some("t") }
}

/// A number in a row; zero where there is none.
pub fn number(value: &Option<String>) -> i64 {
    value.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default()
}

/// Pause of a client between two operations.
pub fn pace(random: &mut Random) {
    let most = limits::PACE.as_micros() as usize;
    std::thread::sleep(Duration::from_micros(random.below(most) as u64));
}
