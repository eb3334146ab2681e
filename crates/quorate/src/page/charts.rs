//! What was, drawn over time: how late every standby was, how busy the gateway.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use maud::{Markup, html};
use quorate_agent::view::{ClusterStatus, Member};
use quorate_core::NodeId;
use quorate_core::lag::Point;
use quorate_core::state::{NodeKind, WallMillis};
use quorate_core::words::seconds;

use super::cluster::ordered;
use super::limits::{CHART_POINTS_MAX, CHARTS_MAX, TREND_EVERY, TREND_POINTS_MAX};
use super::parts::{ms, us};
use super::picture::{Lateness, Over};
use super::trend::Tick;

/// A chart's size in its own units; text is as large as it says where the chart is so wide.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 92.0;
/// Room for the scale, and for the times below.
const LEFT: f64 = 38.0;
const FOOT: f64 = 14.0;
const TOP: f64 = 6.0;
/// The least lag that is told apart.
const FLOOR_MS: f64 = 1.0;

/// Charts of all standbys.
pub fn charts(status: &ClusterStatus, lateness: &Lateness, over: Over, now: WallMillis) -> Markup {
    let copies = ordered(status).into_iter().filter(|(_, m)| m.node.kind == NodeKind::Data);
    let standbys: Vec<_> = copies.filter(|(n, _)| status.writer != Some(*n)).collect();
    let points = |name: &NodeId| lateness.get(name).map_or(&[][..], Vec::as_slice);
    let drawn = latest(&standbys, points);
    let (drawn, told): (Vec<_>, Vec<_>) = standbys.iter().partition(|(n, _)| drawn.contains(n));
    html! {
        nav.over aria-label="How far back" {
            @for each in Over::ALL {
                @let here = (each == over).then_some("true");
                a href=(format!("/?over={}#lag", each.word())) aria-current=[here] { (words(each)) }
            }
        }
        div.charts { @for (name, member) in drawn {
            (chart(name, member, points(&name), over, now))
        } }
        @if !told.is_empty() {
            details #lag-others { summary { (told.len()) " more, which were less late" }
                ul { @for (name, member) in told {
                    @let Caption { text, allowed } = caption(member, points(&name));
                    li { b { (name) } " " (text) span.soft { (allowed) } }
                } } }
        }
        p.soft {
            "How late what each standby shows was: the worst of each moment, on a scale on which each \
            line is ten times or more of the one below. Dashed: what its contract allows. As "
            (status.me) " remembers it."
        }
    }
}

fn words(over: Over) -> &'static str {
    match over {
        Over::Minutes => "10 minutes",
        Over::Day => "a day",
        Over::Month => "a month",
    }
}

/// Those standbys that are drawn: who breaks a contract, and who was the latest.
fn latest<'a>(
    standbys: &[(NodeId, &Member)],
    points: impl Fn(&NodeId) -> &'a [Point],
) -> BTreeSet<NodeId> {
    let rank = |(name, member): &(NodeId, &Member)| {
        let broken = member.lag.is_some_and(|lag| lag.broken_ms.is_some());
        let worst = points(name).iter().map(|p| p.replay_ms).max();
        (broken, worst.max(member.lag.map(|lag| lag.replay_ms)))
    };
    let mut order: Vec<_> = standbys.iter().collect();
    order.sort_by_key(|standby| Reverse(rank(standby)));
    order.into_iter().take(CHARTS_MAX).map(|(name, _)| *name).collect()
}

/// What a chart says in words.
struct Caption {
    text: String,
    allowed: String,
}

fn caption(member: &Member, points: &[Point]) -> Caption {
    let worst = points.iter().map(|p| p.replay_ms).max();
    // The newest point is the worst of its moment, and may be past.
    let last = points.last().map(|p| (p.replay_ms, false));
    let now_late = member.lag.map(|lag| (lag.replay_ms, lag.or_more)).or(last);
    let text = match (now_late, worst) {
        (Some((late, or_more)), Some(worst)) => {
            let least = if or_more { "≥" } else { "" };
            format!("now {least}{}, at worst {}", ms(late), ms(worst.max(late)))
        }
        _ => "nothing remembered".to_owned(),
    };
    let limit = member.contract.max_lag;
    let allowed = limit.map_or(String::new(), |l| format!(", allowed {}", seconds(l)));
    Caption { text, allowed }
}

fn chart(name: NodeId, member: &Member, points: &[Point], over: Over, now: WallMillis) -> Markup {
    let limit = member.contract.max_lag.map(|l| l.as_millis() as f64);
    let worst = points.iter().map(|p| p.replay_ms).max();
    let Caption { text: caption, allowed } = caption(member, points);
    let late = points.iter().map(|p| (p.at, p.replay_ms as f64)).collect::<Vec<_>>();
    let most = (worst.unwrap_or_default() as f64).max(limit.unwrap_or_default() * 1.6);
    let span = Span { length: over.length(), now, steps: CHART_POINTS_MAX };
    let scale = Scale::new(span, FLOOR_MS, most.max(100.0));
    let label = format!("Lag of {name} over {}: {caption}{allowed}", words(over));
    let lines = [("late", late)];
    html! {
        figure.chart {
            figcaption { b { (name) } " " span.soft { (caption) (allowed) } }
            (scale.picture(&label, TIMES, limit, &lines, words(over)))
        }
    }
}

/// How busy a gateway was, and how long its writing transactions took.
pub fn trend(ticks: &[Tick], now: WallMillis) -> Markup {
    let span = Span { length: TREND_EVERY * TREND_POINTS_MAX as u32, now, steps: TREND_POINTS_MAX };
    let rate: Line = ticks.iter().map(|t| (t.at, t.rate)).collect();
    let times = |of: fn(&Tick) -> Option<u64>| -> Line {
        ticks.iter().filter_map(|t| Some((t.at, of(t)? as f64 / 1000.0))).collect()
    };
    let (half, most) = (times(|t| t.half_us), times(|t| t.most_us));
    let top = |line: &Line| line.iter().map(|(_, v)| *v).fold(0.0, f64::max);
    let rates = Scale::new(span, 1.0, top(&rate).max(100.0));
    let busy = rate
        .last()
        .map_or(String::new(), |(_, r)| format!("now {r:.0}, at most {:.0}", top(&rate)));
    let slow = Scale::new(span, 0.1, top(&most).max(100.0));
    let took = ticks.last().and_then(|t| Some((t.half_us?, t.most_us?))).map_or_else(
        || "none now".to_owned(),
        |(half, most)| format!("half within {}, 99 % {}", us(half), us(most)),
    );
    html! {
        div.charts {
            figure.chart {
                figcaption { b { "Transactions per second" } " " span.soft { (busy) } }
                @let label = format!("Transactions per second: {busy}");
                (rates.picture(&label, RATES, None, &[("late", rate)], HALF_HOUR))
            }
            figure.chart {
                figcaption { b { "Writing transactions" } " " span.soft { (took) } }
                (slow.picture(&format!("Writing transactions took: {took}"), TIMES, None,
                    &[("late", half), ("most", most)], HALF_HOUR))
            }
        }
    }
}

const HALF_HOUR: &str = "30 minutes";

/// Values over time.
type Line = Vec<(WallMillis, f64)>;

/// Labels of a scale, from the least on.
type Labels = &'static [(f64, &'static str)];

/// Milliseconds.
const TIMES: Labels = &[
    (0.1, "0.1 ms"),
    (1.0, "1 ms"),
    (10.0, "10 ms"),
    (100.0, "0.1 s"),
    (1000.0, "1 s"),
    (10_000.0, "10 s"),
    (60_000.0, "1 min"),
    (600_000.0, "10 min"),
    (3_600_000.0, "1 h"),
    (36_000_000.0, "10 h"),
    (360_000_000.0, "100 h"),
];

/// In each second.
const RATES: Labels = &[
    (1.0, "1"),
    (10.0, "10"),
    (100.0, "100"),
    (1000.0, "1 000"),
    (10_000.0, "10 000"),
    (100_000.0, "100 000"),
];

/// The time that a picture shows.
#[derive(Debug, Clone, Copy)]
struct Span {
    length: Duration,
    now: WallMillis,
    /// Points that there are when nothing is missing.
    steps: usize,
}

/// From times and values to places in the picture; values by their logarithms.
struct Scale {
    from: f64,
    length: f64,
    /// Decimal logarithms of the least and the greatest value that has a place.
    bottom: f64,
    top: f64,
    /// Points farther apart than this are not joined: nothing is known between them.
    gap: f64,
}

impl Scale {
    fn new(span: Span, least: f64, most: f64) -> Self {
        let length = span.length.as_millis() as f64;
        let gap = (length / span.steps as f64 * 4.0).max(20_000.0);
        let (bottom, top) = (least.log10(), most.log10());
        Self { from: span.now as f64 - length, length, bottom, top, gap }
    }

    fn x(&self, at: WallMillis) -> f64 {
        let part = (at as f64 - self.from) / self.length;
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value.max(1e-9).log10() - self.bottom) / (self.top - self.bottom);
        TOP + (1.0 - part.clamp(0.0, 1.0)) * (HEIGHT - FOOT - TOP)
    }

    /// Those labels that have a place, few enough to be read.
    fn labels(&self, all: Labels) -> Vec<(f64, &'static str)> {
        let mut labels = Vec::new();
        let mut below = HEIGHT * 2.0;
        let inside = |v: f64| (self.bottom..=self.top).contains(&v.log10());
        for (value, label) in all.iter().copied().filter(|(v, _)| inside(*v)) {
            if below - self.y(value) >= 15.0 {
                below = self.y(value);
                labels.push((value, label));
            }
        }
        labels
    }

    fn path(&self, points: &[(WallMillis, f64)]) -> String {
        let mut path = String::new();
        let mut before: Option<WallMillis> = None;
        for (at, value) in points {
            let near = before.is_some_and(|b| at.saturating_sub(b) as f64 <= self.gap);
            path.push(if near { 'L' } else { 'M' });
            path += &format!("{} {}", px(self.x(*at)), px(self.y(*value)));
            before = Some(*at);
        }
        path
    }

    fn picture(
        &self,
        label: &str,
        labels: Labels,
        limit: Option<f64>,
        lines: &[(&str, Line)],
        ago: &str,
    ) -> Markup {
        let across = |class: &str, value: f64| {
            let y = px(self.y(value));
            html! { line class=(class) x1=(px(LEFT)) x2=(px(WIDTH)) y1=(y) y2=(y) {} }
        };
        html! {
            svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
                @for (value, label) in self.labels(labels) {
                    (across("grid", value))
                    text x=(px(LEFT - 4.0)) y=(px(self.y(value) + 3.5)) text-anchor="end" {
                        (label)
                    }
                }
                @if let Some(limit) = limit { (across("limit", limit)) }
                @for (class, line) in lines { path class=(class) d=(self.path(line)) {} }
                text x=(px(LEFT)) y=(px(HEIGHT - 3.0)) { "−" (ago) }
                text x=(px(WIDTH)) y=(px(HEIGHT - 3.0)) text-anchor="end" { "now" }
            }
        }
    }
}

/// Tenths of a unit are finer than a screen.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallMillis = 1_800_000_000_000;

    fn scale(most: f64) -> Scale {
        let length = Over::Minutes.length();
        Scale::new(Span { length, now: NOW, steps: CHART_POINTS_MAX }, FLOOR_MS, most)
    }

    #[test]
    fn times_without_word_are_left_open() {
        let path = scale(100.0).path(&[(NOW - 10_000, 1.0), (NOW - 5_000, 5.0), (NOW, 1.0)]);
        assert_eq!(path.matches('M').count(), 1);
        let path = scale(100.0).path(&[(NOW - 100_000, 1.0), (NOW, 1.0)]);
        assert_eq!(path.matches('M').count(), 2);
    }

    #[test]
    fn the_least_and_the_most_are_in_the_picture() {
        let scale = scale(90_000.0);
        assert!(scale.y(90_000.0) >= TOP - 0.01);
        assert!(scale.y(10_000.0) > scale.y(90_000.0));
        assert!(scale.y(0.0) <= HEIGHT - FOOT + 0.01);
        let labels = scale.labels(TIMES);
        assert!(labels.len() >= 3 && labels.len() <= 6, "{labels:?}");
        assert_eq!(labels[0].1, "1 ms");
    }
}
