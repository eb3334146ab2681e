//! `status` and `events`: what a person reads.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::authority::Phase;
use quorate_core::state::{DocumentVersion, Event, NodeKind};
use quorate_core::status::Doing;
use quorate_core::words::{bytes, seconds};
use quorate_core::{Lsn, NodeId};

use super::{Global, MetricsWord, reach};
use crate::explain;

/// Pause between two pictures of `--watch` and `--follow`.
const REFRESH: Duration = Duration::from_secs(1);

/// `quorate status`.
pub async fn status(global: &Global, watch: bool) -> Result<()> {
    loop {
        if global.json {
            let value: serde_json::Value = reach::get(global, "/api/status").await?;
            println!("{}", serde_json::to_string_pretty(&value)?);
        } else {
            let status: ClusterStatus = reach::get(global, "/api/status").await?;
            let text = picture(&status);
            if watch && std::io::stdout().is_terminal() {
                print!("\x1b[H\x1b[2J");
            }
            print!("{text}");
            std::io::stdout().flush()?;
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(REFRESH).await;
    }
}

/// `quorate explain`.
pub async fn explain(global: &Global, long: bool) -> Result<()> {
    let status: ClusterStatus = reach::get(global, "/api/status").await?;
    let versions: Vec<DocumentVersion> = reach::get(global, "/api/config").await?;
    let document = versions.into_iter().next_back().map(|v| v.document).unwrap_or_default();
    let told = explain::explain(&status, &document);
    if global.json {
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(());
    }
    for sentence in [&told.writes, &told.copies, &told.reads, &told.failure] {
        println!("{sentence}");
    }
    if long {
        println!();
        for worry in &told.worries {
            println!("- {worry}");
        }
        if told.worries.is_empty() {
            println!("Nothing stands out.");
        }
    }
    Ok(())
}

/// The status as text.
pub fn picture(status: &ClusterStatus) -> String {
    let mut out = String::new();
    let writer = match (status.writer, status.phase) {
        (Some(w), Phase::Serving) => format!("writer {w}"),
        (Some(w), Phase::Granted) => format!("{w} is being promoted"),
        (_, Phase::Electing) | (None, _) => "no writer: an election is under way".to_owned(),
    };
    let paused = if status.paused { " · AUTOMATION PAUSED" } else { "" };
    let _ =
        writeln!(out, "cluster {} · term {} · {writer}{paused}", status.cluster_id, status.term);
    let _ = writeln!(out, "{}", rule_words(status));
    let leader = status.leader.map_or("nobody".to_owned(), |l| l.to_string());
    let _ = writeln!(out, "coordinator {leader}: {}\n", status.because);
    out += &table(&rows(status));
    out.push('\n');
    for c in &status.candidates {
        let mark = if c.eligible { "could write" } else { "could not write" };
        let _ = writeln!(out, "{} {mark}: {}", c.node, c.because);
    }
    for warning in &status.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

fn rule_words(status: &ClusterStatus) -> String {
    let rules: Vec<String> = status.authority.rules.iter().map(explain::rule_words).collect();
    format!("a commit is acknowledged when held by {}", rules.join(", and by "))
}

fn rows(status: &ClusterStatus) -> Vec<Vec<String>> {
    let end = status
        .writer
        .and_then(|w| status.nodes.get(&w)?.status.as_ref()?.server.as_ref())
        .map(|s| s.flushed);
    let head = [
        "NODE", "ROLE", "STATE", "TIMELINE", "LOG END", "REPLAYED", "LAG", "CONTRACT", "PROMISED",
        "HEARD", "WHY",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, member) in &status.nodes {
        rows.push(row(status, *name, member, end));
    }
    rows
}

fn row(status: &ClusterStatus, name: NodeId, member: &Member, end: Option<Lsn>) -> Vec<String> {
    let dash = || "-".to_owned();
    let word = member.status.as_ref();
    let server = word.and_then(|s| s.server.as_ref());
    let state = match (member.gone, member.heard_ms, word) {
        (true, _, _) => "gone".to_owned(),
        (_, None, _) | (_, _, None) => "never heard".to_owned(),
        (_, Some(ms), _) if ms > 1000 => "silent".to_owned(),
        (_, _, Some(s)) => doing_word(s.doing).to_owned(),
    };
    let state_words = state.as_str();
    let lag = match (member.lag, end, server) {
        _ if status.writer == Some(name) => dash(),
        (Some(lag), _, _) if lag.replay_ms == 0 => bytes(lag.bytes),
        (Some(lag), _, _) => {
            let more = if lag.or_more { "≥" } else { "" };
            let late = seconds(Duration::from_millis(lag.replay_ms));
            format!("{}, {more}{late}", bytes(lag.bytes))
        }
        (None, Some(end), Some(s)) => bytes(end.bytes_since(s.replayed)),
        _ => dash(),
    };
    let contract = match member.lag {
        Some(lag) if lag.broken_ms.is_some() => {
            let late = Duration::from_millis(lag.replay_ms);
            let recovers = member.contract.recovers(late, lag.bytes).is_some();
            if recovers { "recovers" } else { "BROKEN" }.to_owned()
        }
        Some(_) => "kept".to_owned(),
        None => dash(),
    };
    vec![
        if status.writer == Some(name) { format!("{name} *") } else { name.to_string() },
        role_word(member).to_owned(),
        state.clone(),
        server.and_then(|s| s.timeline).map_or_else(dash, |t| t.to_string()),
        server.map_or_else(dash, |s| s.flushed.to_string()),
        server.map_or_else(dash, |s| s.replayed.to_string()),
        lag,
        contract,
        word.and_then(|s| s.promised).map_or_else(dash, |t| t.to_string()),
        member.heard_ms.map_or_else(dash, |ms| format!("{ms} ms")),
        word.map_or_else(String::new, |s| {
            let last = if matches!(state_words, "gone" | "silent") { "last word: " } else { "" };
            match &s.progress {
                Some(p) => format!("{last}{} ({p})", s.because.sentence),
                None => format!("{last}{}", s.because.sentence),
            }
        }),
    ]
}

fn role_word(member: &Member) -> &'static str {
    match (member.node.kind, member.role) {
        (NodeKind::Witness, _) => "witness",
        (NodeKind::Data, role) => role.as_str(),
    }
}

/// The word for a state.
pub fn doing_word(doing: Doing) -> &'static str {
    match doing {
        Doing::Starting => "starting",
        Doing::Witness => "witness",
        Doing::Recovering => "recovering",
        Doing::Freezing => "freezing",
        Doing::Frozen => "frozen",
        Doing::Promoting => "promoting",
        Doing::Opening => "opening",
        Doing::Writing => "writing",
        Doing::Following => "following",
        Doing::Detached => "detached",
        Doing::Cloning => "cloning",
        Doing::Rewinding => "rewinding",
        Doing::Fenced => "fenced",
        Doing::Broken => "BROKEN",
    }
}

/// Columns as wide as their widest cell.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// `quorate metrics`.
pub async fn metrics(global: &Global, what: MetricsWord) -> Result<()> {
    match what {
        MetricsWord::Show => {
            let text: String = reach::get(global, "/api/metrics").await?;
            print!("{text}");
        }
        MetricsWord::Rules => print!("{}", crate::metrics::rules()),
        MetricsWord::Dashboard => {
            println!("{}", serde_json::to_string_pretty(&crate::metrics::dashboard())?);
        }
    }
    Ok(())
}

/// `quorate events`.
pub async fn events(global: &Global, last: usize, follow: bool) -> Result<()> {
    let mut seen = 0;
    let mut first = true;
    loop {
        let events: Vec<Event> = reach::get(global, "/api/events").await?;
        let skip = if first { events.len().saturating_sub(last) } else { 0 };
        first = false;
        for event in events.iter().skip(skip).filter(|e| e.seq > seen) {
            println!("{}", line(global, event)?);
        }
        seen = events.last().map_or(seen, |e| e.seq);
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(REFRESH).await;
    }
}

fn line(global: &Global, event: &Event) -> Result<String> {
    if global.json {
        return Ok(serde_json::to_string(event)?);
    }
    Ok(format!("{}  term {:<4} {:<18} {}", clock(event.at), event.term, event.kind, event.because))
}

/// Wall-clock time in UTC, to the millisecond.
pub fn clock(at: u64) -> String {
    let (days, ms) = (at / 86_400_000, at % 86_400_000);
    // Civil date from days since 1970 (Howard Hinnant, "chrono-compatible low-level date
    // algorithms").
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02} {h:02}:{m:02}:{s:02}.{:03}Z", ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(clock(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(clock(1_795_226_096_789), "2026-11-21 01:54:56.789Z");
    }
}
