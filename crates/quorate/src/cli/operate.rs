//! Operations on a running cluster: switchover, failover, pause, restart, rebuild, remove.

use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::NodeId;
use quorate_core::authority::Phase;
use quorate_core::state::{Event, NodeKind};
use quorate_core::status::Doing;
use serde_json::{Value, json};

use super::reach::{self, Failure};
use super::{Global, show, slots};
use crate::http::Ask;

/// Pause between looks at an operation's progress.
const LOOK: Duration = Duration::from_millis(100);

/// Asks a person before something that cannot be undone.
pub fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        bail!("{question}\nnobody is there to ask: repeat with --yes");
    }
    print!("{question}\nType yes to go on: ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() == "yes" { Ok(()) } else { bail!("nothing was done") }
}

pub(super) async fn look(global: &Global) -> Result<ClusterStatus> {
    reach::get(global, "/api/status").await
}

fn say(global: &Global, text: &str, value: Value) {
    if global.json {
        println!("{value}");
    } else {
        println!("{text}");
    }
}

/// Whether the present writer serves clients.
pub fn serving(status: &ClusterStatus) -> Option<NodeId> {
    let writer = status.writer.filter(|_| status.phase == Phase::Serving)?;
    let word = status.nodes.get(&writer)?.status.as_ref()?.writer.as_ref()?;
    (word.serving && word.term == status.term).then_some(writer)
}

/// Milliseconds without a word after which a node counts as silent.
pub const SILENT_MS: u64 = 1000;

/// Whether a node is there, as far as can be seen.
pub fn is_heard(member: &Member) -> bool {
    !member.gone && member.heard_ms.is_some_and(|ms| ms <= SILENT_MS)
}

/// Who takes writes, as far as can be seen: a writer that is not heard may have stopped.
pub fn writes(status: &ClusterStatus) -> Option<NodeId> {
    serving(status).filter(|w| status.nodes.get(w).is_some_and(is_heard))
}

/// The newest event's number: what comes later belongs to what is asked for next.
async fn newest(global: &Global) -> Result<u64> {
    let events: Vec<Event> = reach::get(global, "/api/events").await?;
    Ok(events.last().map_or(0, |e| e.seq))
}

/// Waits for a writer in a later term than `term`, or for the reason why not, among the events after
/// `since`.
async fn new_writer(global: &Global, term: u64, since: u64, wait: u64) -> Result<(NodeId, u64)> {
    let deadline = Instant::now() + Duration::from_secs(wait);
    loop {
        // The node that was asked may be the one that restarts.
        if let Ok(status) = look(global).await {
            if status.term.0 > term
                && let Some(writer) = serving(&status)
            {
                return Ok((writer, status.term.0));
            }
            if status.term.0 == term && status.authority.switchover.is_none() {
                let events: Vec<Event> = reach::get(global, "/api/events").await?;
                let dropped =
                    events.iter().find(|e| e.seq > since && e.kind == "switchover-dropped");
                if let Some(event) = dropped {
                    return Err(Failure::Refused(event.because.sentence.clone()).into());
                }
            }
            if Instant::now() >= deadline {
                bail!("no new writer after {wait} s: {}", status.because);
            }
        }
        if Instant::now() >= deadline {
            bail!("no new writer after {wait} s, and the node does not answer");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `quorate switchover`.
pub async fn switchover(global: &Global, to: Option<NodeId>, wait: u64) -> Result<()> {
    slots::warn_of_move(global, to).await;
    let since = newest(global).await?;
    let answer = reach::call(global, Ask::post("/api/switchover", json!({ "to": to }))).await?;
    let term = answer["term"].as_u64().unwrap_or(0);
    let (writer, term) = new_writer(global, term, since, wait).await?;
    if to.is_some_and(|t| t != writer) {
        let text = format!(
            "{writer} writes now (term {term}), not {}: its log was more advanced at the hand-over",
            to.map_or_else(String::new, |t| t.to_string())
        );
        return Err(Failure::Refused(text).into());
    }
    let value = json!({ "writer": writer, "term": term });
    say(global, &format!("{writer} writes now (term {term})"), value);
    Ok(())
}

/// `quorate failover`.
pub async fn failover(
    global: &Global,
    to: Option<NodeId>,
    allow_loss: Option<u64>,
    wait: u64,
) -> Result<()> {
    let since = newest(global).await?;
    let body = json!({ "to": to, "allow_loss": allow_loss });
    let answer = reach::call(global, Ask::post("/api/failover", body)).await?;
    let term = answer["term"].as_u64().unwrap_or(0);
    let (writer, term) = new_writer(global, term, since, wait).await?;
    let status = look(global).await?;
    let lost = status.authority.reigns.last().map_or(0, |r| r.lost_bytes);
    let text = if lost > 0 {
        format!("{writer} writes now (term {term}); {lost} bytes of log were lost")
    } else {
        format!("{writer} writes now (term {term}); nothing was lost")
    };
    say(global, &text, json!({ "writer": writer, "term": term, "lost_bytes": lost }));
    Ok(())
}

/// `quorate pause` and `quorate resume`.
pub async fn pause(global: &Global, paused: bool) -> Result<()> {
    let path = if paused { "/api/pause" } else { "/api/resume" };
    reach::call(global, Ask::post(path, json!({}))).await?;
    let text = if paused {
        "automation is paused: there will be no failover until `quorate resume`"
    } else {
        "automation goes on"
    };
    say(global, text, json!({ "paused": paused }));
    Ok(())
}

async fn restart_one(global: &Global, node: Option<NodeId>, wait: u64) -> Result<()> {
    let body = json!({ "node": node, "wait_seconds": wait });
    let answer = reach::call(global, Ask::post("/api/restart", body)).await?;
    let name = answer["node"].as_str().unwrap_or("?").to_owned();
    say(global, &format!("{name} restarted"), answer);
    Ok(())
}

/// `quorate restart`.
pub async fn restart(
    global: &Global,
    node: Option<NodeId>,
    rolling: bool,
    wait: u64,
) -> Result<()> {
    if !rolling {
        return restart_one(global, node, wait).await;
    }
    let status = look(global).await?;
    let writer = serving(&status).ok_or_else(|| {
        Failure::Refused("no writer serves: wait until the cluster is healthy".to_owned())
    })?;
    let data = |kind: NodeKind| kind == NodeKind::Data;
    let standbys: Vec<NodeId> = status
        .nodes
        .iter()
        .filter(|(n, m)| **n != writer && data(m.node.kind))
        .map(|(n, _)| *n)
        .collect();
    for node in &standbys {
        restart_one(global, Some(*node), wait).await?;
        wait_following(global, *node, wait).await?;
    }
    if standbys.is_empty() {
        return restart_one(global, Some(writer), wait).await;
    }
    switchover(global, None, wait).await?;
    restart_one(global, Some(writer), wait).await?;
    wait_following(global, writer, wait).await?;
    for node in keeping(&look(global).await?) {
        restart_one(global, Some(node), wait).await?;
        wait_following(global, node, wait).await?;
    }
    Ok(())
}

/// Standbys that were started with more of something than the document says, because their writer
/// had more: the new one's is lowered, so theirs can be.
fn keeping(status: &ClusterStatus) -> Vec<NodeId> {
    let keeps = |m: &Member| {
        m.status.as_ref().and_then(|s| s.server.as_ref()).is_some_and(|s| !s.kept.is_empty())
    };
    let standby = |n: &NodeId| status.writer != Some(*n);
    status.nodes.iter().filter(|(n, m)| standby(n) && keeps(m)).map(|(n, _)| *n).collect()
}

/// Waits until a standby is attached to the writer again.
async fn wait_following(global: &Global, node: NodeId, wait: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(wait);
    loop {
        let status = look(global).await?;
        let attached = serving(&status)
            .and_then(|w| status.nodes.get(&w)?.status.as_ref()?.writer.as_ref())
            .is_some_and(|w| w.standbys.contains_key(&node));
        let follows = status
            .nodes
            .get(&node)
            .and_then(|m| m.status.as_ref())
            .is_some_and(|s| s.doing == Doing::Following);
        if attached && follows {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("{node} does not follow the writer after {wait} s: see `quorate status`");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// `quorate rebuild`.
pub async fn rebuild(global: &Global, node: NodeId, yes: bool) -> Result<()> {
    let question = format!(
        "The data of {node} will be thrown away and copied from the writer again. Until that is \
         done there is one copy less."
    );
    confirm(&question, yes)?;
    let answer = reach::call(global, Ask::post("/api/rebuild", json!({ "node": node }))).await?;
    say(global, &format!("{node} is being rebuilt: see `quorate status --watch`"), answer);
    Ok(())
}

/// `quorate remove`.
pub async fn remove(global: &Global, node: NodeId, yes: bool, wait: u64) -> Result<()> {
    let question = format!(
        "{node} will leave the cluster. Its data stays on its disk; to come back it must join \
         again with a token."
    );
    confirm(&question, yes)?;
    let body = json!({ "node": node, "wait_seconds": wait });
    let answer = reach::call(global, Ask::post("/api/remove", body)).await?;
    say(global, &format!("{node} is no member any more"), answer);
    Ok(())
}

/// `quorate standalone`.
pub async fn standalone(global: &Global, yes: bool) -> Result<()> {
    let status = look(global).await?;
    let question = format!(
        "{} will leave the cluster and become a database of its own, with the data it has now. \
         The cluster goes on without it.",
        status.me
    );
    confirm(&question, yes)?;
    let answer = reach::call(global, Ask::post("/api/standalone", json!({}))).await?;
    let text = answer["text"].as_str().unwrap_or("done").to_owned();
    say(global, &text, answer);
    Ok(())
}

/// `quorate token`.
pub async fn token(global: &Global, minutes: u64) -> Result<()> {
    let answer =
        reach::call(global, Ask::post("/api/token", json!({ "minutes": minutes }))).await?;
    if global.json {
        println!("{answer}");
        return Ok(());
    }
    let token = answer["token"].as_str().unwrap_or("");
    println!("{token}");
    if std::io::stdout().is_terminal() {
        let link = answer["link"].as_str().unwrap_or("host:6433");
        eprintln!("\nIt admits one node within {minutes} minutes. On the new host:");
        eprintln!("  quorate join {link} --token {token}");
        eprintln!("  quorate run");
    }
    Ok(())
}

/// Shows how an operation stands, for the demo.
pub async fn print_status(global: &Global) -> Result<()> {
    print!("{}", show::picture(&look(global).await?));
    Ok(())
}
