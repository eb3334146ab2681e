//! `quorate drill`: says what will be done, asks, follows it, writes the report.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quorate_core::drill::{Drill, Measures, Millis, Outcome, Record, Running};
use serde::Deserialize;
use serde_json::json;

use super::reach::{self, Failure};
use quorate_core::words::bytes;

use super::show::{clock, table};
use super::{DrillArgs, DrillWord, Global, operate};
use crate::drill::plan::{Plan, words};
use crate::drill::{Progress, Report, page};
use crate::http::Ask;

/// Pause between two looks at a drill's progress.
const LOOK: Duration = Duration::from_millis(200);
/// How long a conductor may be silent: the node that was asked may be the one that is hurt.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How long the next drill waits until every node is in its place.
const PLACE_WAIT: Duration = Duration::from_secs(60);

/// `quorate drill`.
pub async fn drill(global: &Global, args: DrillArgs) -> Result<()> {
    match args.what {
        DrillWord::List => list(global).await,
        DrillWord::Abort => abort(global).await,
        DrillWord::One(drill) => {
            let plan = plan(global, drill).await?;
            announce(global, &[plan]);
            if args.dry_run {
                return Ok(());
            }
            operate::confirm("This is done to the running cluster.", args.yes)?;
            let report = one(global, drill, &args).await?;
            verdict(&[report.record])
        }
        DrillWord::All => all(global, &args).await,
    }
}

async fn plan(global: &Global, drill: Drill) -> Result<Plan> {
    let value =
        reach::call(global, Ask::post("/api/drill/plan", json!({ "drill": drill }))).await?;
    serde_json::from_value(value).context("the node's answer is of another version of Quorate")
}

fn announce(global: &Global, plans: &[Plan]) {
    if global.json {
        return;
    }
    for plan in plans {
        println!("{}", words(plan));
    }
}

/// All drills that can be done now, one after the other; the others are told with the reason.
async fn all(global: &Global, args: &DrillArgs) -> Result<()> {
    let mut plans = Vec::new();
    for drill in Drill::ALL {
        match plan(global, drill).await {
            Ok(plan) => plans.push(plan),
            Err(error) if error.downcast_ref::<Failure>().is_some_and(Failure::is_refusal) => {
                eprintln!("left out: {error:#}");
            }
            Err(error) => return Err(error),
        }
    }
    if plans.is_empty() {
        bail!("no drill can be done now");
    }
    announce(global, &plans);
    if args.dry_run {
        return Ok(());
    }
    operate::confirm("All this is done to the running cluster, one after the other.", args.yes)?;
    let mut records = Vec::new();
    let mut stopped = None;
    for plan in plans {
        match in_turn(global, plan.drill, args).await {
            Ok(report) => records.push(report.record),
            Err(error) => stopped = Some(error),
        }
        if stopped.is_some() || records.last().is_some_and(|r| r.outcome == Outcome::Aborted) {
            break;
        }
    }
    if !global.json && !records.is_empty() {
        println!("\n{}", table(&rows(&records)));
    }
    match stopped {
        Some(error) => Err(error.context("the drills end here")),
        None => verdict(&records),
    }
}

/// Runs a drill that could be done at first, once it can be done again: a server that has just been
/// given back its place may start once more on a busy machine.
async fn in_turn(global: &Global, drill: Drill, args: &DrillArgs) -> Result<Report> {
    let began = Instant::now();
    while let Err(error) = plan(global, drill).await {
        let refused = error.downcast_ref::<Failure>().is_some_and(Failure::is_refusal);
        if !refused || began.elapsed() > PLACE_WAIT {
            return Err(error);
        }
        tokio::time::sleep(LOOK).await;
    }
    one(global, drill, args).await
}

/// Runs one drill to its end, and tells of it.
async fn one(global: &Global, drill: Drill, args: &DrillArgs) -> Result<Report> {
    let body = json!({ "drill": drill, "wait_seconds": args.wait });
    let began = reach::call(global, Ask::post("/api/drill", body)).await?;
    let id = began["id"].as_u64().context("the node's answer has no number")?;
    let node = json!({ "node": began["conductor"] });
    let mut told = 0;
    let mut heard = Instant::now();
    let report = loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => {
                eprintln!("aborting: everything is put back first");
                let _ = reach::call(global, Ask::post("/api/drill/abort", node.clone())).await;
            }
        }
        let asked = reach::call(global, Ask::post("/api/drill/progress", node.clone())).await;
        let progress: Progress = match asked {
            Ok(value) => serde_json::from_value(value)?,
            Err(error) if heard.elapsed() > SILENCE_MAX => return Err(error),
            Err(_) => continue,
        };
        heard = Instant::now();
        if progress.id != id {
            bail!("drill {id} is not known to its conductor any more: see `quorate drill list`");
        }
        for line in progress.course.iter().skip(told).filter(|_| !global.json) {
            println!("  {:>6.1} s  {}", line.ms as f64 / 1000.0, line.text);
        }
        told = progress.course.len();
        if let Some(report) = progress.report {
            break *report;
        }
    };
    if global.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print!("{}", account(&report.record));
    }
    if !args.no_html {
        let file = file(args, &report.record);
        std::fs::write(&file, page::page(&report, None))
            .with_context(|| format!("cannot write the report to {}", file.display()))?;
        if !global.json {
            println!("\n  report: {}", file.display());
        }
    }
    Ok(report)
}

fn file(args: &DrillArgs, record: &Record) -> PathBuf {
    match &args.html {
        // One page for each drill.
        Some(file) if args.what == DrillWord::All => {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            file.with_file_name(format!("{stem}-{}.html", record.drill))
        }
        Some(file) => file.clone(),
        None => format!("drill-{}-{}.html", record.id, record.drill).into(),
    }
}

/// A drill's result for the terminal.
fn account(record: &Record) -> String {
    let mut out = format!("\ndrill {}: {}\n", record.drill, record.sentence);
    for check in &record.checks {
        let mark = if check.held { "ok    " } else { "NOT SO" };
        out += &format!("  {mark}  {}: {}\n", check.claim, check.seen);
    }
    let times: Vec<String> = times(&record.measures)
        .into_iter()
        .map(|(what, value)| format!("{what} {value}"))
        .collect();
    if !times.is_empty() {
        out += &format!("  after the failure began: {}\n", times.join(", "));
    }
    let m = &record.measures;
    if let Some(kept) = m.kept_bytes {
        out += &format!("  the slot kept {}\n", bytes(kept));
    }
    if let Some(lag) = m.lag_bytes {
        out += &format!("  furthest that a standby's replay was behind: {}\n", bytes(lag));
    }
    out
}

fn times(m: &Measures) -> Vec<(&'static str, Millis)> {
    [
        ("election", m.detection_ms),
        ("decision", m.decision_ms),
        ("opened", m.promotion_ms),
        ("first new write", m.first_write_ms),
        ("all as before", m.whole_ms),
    ]
    .into_iter()
    .filter_map(|(what, ms)| Some((what, Millis(ms?))))
    .collect()
}

fn verdict(records: &[Record]) -> Result<()> {
    let bad: Vec<String> = records
        .iter()
        .filter(|r| r.outcome != Outcome::Passed)
        .map(|r| format!("{}: {}", r.drill, r.sentence))
        .collect();
    if bad.is_empty() { Ok(()) } else { bail!("{}", bad.join("; ")) }
}

#[derive(Deserialize)]
struct Drills {
    under_way: Option<Running>,
    past: VecDeque<Record>,
}

/// `quorate drill list`.
async fn list(global: &Global) -> Result<()> {
    let value = reach::call(global, Ask::get("/api/drills")).await?;
    if global.json {
        println!("{value}");
        return Ok(());
    }
    let drills: Drills = serde_json::from_value(value)?;
    if let Some(running) = drills.under_way {
        println!(
            "under way: {} (number {}), by {}\n",
            running.drill, running.id, running.conductor
        );
    }
    if drills.past.is_empty() {
        println!("no drill was ever done here: `quorate drill all --dry-run` shows what could be");
        return Ok(());
    }
    print!("{}", table(&rows(&drills.past)));
    Ok(())
}

fn rows<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<Vec<String>> {
    let head = ["NUMBER", "DRILL", "WHEN", "RESULT", "LOST", "PAUSE", "ERRORS", "TOOK"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for record in records {
        let m = &record.measures;
        rows.push(vec![
            record.id.to_string(),
            record.drill.to_string(),
            clock(record.at),
            record.outcome.word().to_owned(),
            m.lost.to_string(),
            Millis(m.write_gap_ms).to_string(),
            (m.refused + m.unknown + m.logins_failed).to_string(),
            format!("{} s", record.seconds),
        ]);
    }
    rows
}

/// `quorate drill abort`.
async fn abort(global: &Global) -> Result<()> {
    let answer = reach::call(global, Ask::post("/api/drill/abort", json!({}))).await?;
    if global.json {
        println!("{answer}");
    } else {
        println!("the drill ends, and puts everything back: see `quorate drill list`");
    }
    Ok(())
}
