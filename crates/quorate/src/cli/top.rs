//! `quorate top`: the cluster on one screen, live.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use quorate_agent::view::ClusterStatus;
use quorate_core::NodeId;
use quorate_core::lag::{Percentiles, Point};
use quorate_core::state::{Event, NodeKind};
use quorate_core::words::{bytes, seconds};
use serde::Deserialize;

use super::show::{clock, table};
use super::{Global, alerts, reach, show};

/// Pause between two pictures.
const REFRESH: Duration = Duration::from_secs(1);
/// Minutes of lag that are drawn.
const MINUTES: u64 = 10;
/// Width of the line that is drawn of them.
const SPARK: usize = 40;
/// Events that are shown.
const EVENTS: usize = 8;

/// What `/api/lag` tells.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Lag {
    points: Vec<Point>,
    lately: Option<Percentiles>,
}

/// What is on the screen.
#[derive(Debug)]
pub struct Screen {
    /// The cluster.
    pub status: ClusterStatus,
    /// The lag of each standby over time.
    pub lags: BTreeMap<NodeId, Lag>,
    /// What happened, newest last.
    pub events: Vec<Event>,
}

/// `quorate top`.
pub async fn top(global: &Global, once: bool) -> Result<()> {
    let live = !once && std::io::stdout().is_terminal();
    loop {
        let screen = look(global).await;
        if live {
            // The former picture is overwritten line by line, so that nothing flickers.
            print!("\x1b[H");
        }
        match screen {
            Ok(screen) => {
                let text = picture(&screen);
                let ends = if live { "\x1b[K\n" } else { "\n" };
                for line in text.lines() {
                    print!("{line}{ends}");
                }
            }
            // A node that restarts is back in a moment.
            Err(error) if live => println!("{error:#}\x1b[K"),
            Err(error) => return Err(error),
        }
        if !live {
            return Ok(());
        }
        print!("\x1b[J");
        std::io::stdout().flush()?;
        tokio::time::sleep(REFRESH).await;
    }
}

async fn look(global: &Global) -> Result<Screen> {
    let status: ClusterStatus = reach::get(global, "/api/status").await?;
    let mut lags = BTreeMap::new();
    for (name, member) in &status.nodes {
        if member.node.kind == NodeKind::Data && status.writer != Some(*name) {
            let path = format!("/api/lag?node={name}&minutes={MINUTES}&points={SPARK}");
            lags.insert(*name, reach::get(global, &path).await?);
        }
    }
    let events = reach::get(global, "/api/events").await?;
    Ok(Screen { status, lags, events })
}

/// The screen as text.
pub fn picture(screen: &Screen) -> String {
    let Screen { status, lags, events } = screen;
    let mut out = format!("quorate top · {} · seen by {}\n", clock(status.at), status.me);
    out += &show::picture(status);
    if !lags.is_empty() {
        let head =
            ["COPY", "OVER 10 MIN, WORST", "HALF", "99 %", "MOST", "LIMIT", "LACKS", "BECAUSE"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(lags.iter().map(|(name, lag)| lag_row(status, *name, lag)));
        let _ = write!(out, "\n{}", table(&rows));
    }
    if !status.alerts.is_empty() {
        let _ = write!(out, "\n{}", alerts::picture(&status.alerts));
    }
    out.push('\n');
    for event in events.iter().rev().take(EVENTS) {
        let _ = writeln!(out, "{}  {:<18} {}", clock(event.at), event.kind, event.because);
    }
    out
}

fn lag_row(status: &ClusterStatus, name: NodeId, lag: &Lag) -> Vec<String> {
    let time = |ms: u64| seconds(Duration::from_millis(ms));
    let member = status.nodes.get(&name);
    let limit = member.and_then(|m| m.contract.max_lag);
    let lately = lag.lately.unwrap_or_default();
    let now = member.and_then(|m| m.lag);
    vec![
        name.to_string(),
        spark(&lag.points, limit),
        time(lately.p50_ms),
        time(lately.p99_ms),
        time(lately.max_ms),
        limit.map_or("none".to_owned(), seconds),
        now.map_or("-".to_owned(), |lag| bytes(lag.bytes)),
        member
            .and_then(|m| m.late_because.as_ref())
            .map_or(String::new(), |cause| cause.evidence.clone()),
    ]
}

/// A line of bars: the tallest is the contract's limit or more, and a point above it is `!`.
fn spark(points: &[Point], limit: Option<Duration>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = points.iter().map(|p| p.replay_ms).max().unwrap_or_default();
    let top = limit.map_or(most, |l| l.as_millis() as u64).max(1);
    let bar = |p: &Point| match p.replay_ms {
        ms if limit.is_some() && ms > top => '!',
        // The scale is logarithmic: what is usual stays visible beside a limit of seconds.
        ms => {
            let part = (ms as f64 + 1.0).ln() / (top as f64 + 1.0).ln();
            BARS[((part * 8.0) as usize).min(7)]
        }
    };
    let bars: String = points.iter().map(bar).collect();
    format!("{bars:>SPARK$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{good, node};

    #[test]
    fn a_screen_shows_lag_over_time_with_its_limit() {
        let point = |i: u64, ms| Point { at: i * 250, replay_ms: ms, disk_ms: 0, bytes: 0 };
        let points = vec![point(0, 0), point(1, 50), point(2, 9_000), point(3, 12_000)];
        let lately = Some(Percentiles { p50_ms: 50, p95_ms: 0, p99_ms: 9_000, max_ms: 12_000 });
        let lags = [(node("n2"), Lag { points, lately })].into();
        let text = picture(&Screen { status: good(), lags, events: Vec::new() });
        let row = text.lines().find(|l| l.starts_with("n2 ") && l.contains('!')).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[..6], ["n2", "▁▄█!", "50", "ms", "9", "s"], "{row}");
    }
}
