//! Logical slots that standbys carry: a stream goes on when the writer is lost, and where that cannot be
//! shown the gap is told. From PostgreSQL 16 on.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::ledger::Ledger;
use quorate_e2e::wire::Session;
use quorate_e2e::workload::{Options, TABLE};
use quorate_e2e::{Builder, Cluster, Scenario, check, limits, local, postgres};
use serde_json::Value;

use crate::common::{flows, patient};
use crate::slots::{events, session, slots};

/// How long making slots on all standbys may take, and their consumer to come to their beginnings.
const READY: Duration = Duration::from_secs(90);
/// What a consumer may be told twice: what was committed so long before it had to reconnect.
const TWICE: Duration = Duration::from_secs(20);
/// Times that tables are made and dropped while a node is cut off.
const CHURN: usize = 20;
/// Pause before a consumer reconnects.
const PAUSE: Duration = Duration::from_millis(200);

/// Programs that decode on standbys; without, a test says so and ends.
pub(crate) fn programs(scenario: &Scenario) -> Result<Option<PathBuf>> {
    let found = postgres::decoding_bin_dir()?;
    if found.is_none() {
        scenario.step(
            "NOT RUN: PostgreSQL 16 or newer is needed (`cargo xtask test` fetches it, or \
             QUORATE_E2E_POSTGRES_NEW names its programs)",
        );
    }
    Ok(found)
}

fn start(builder: Builder, bin: &Path) -> Result<Cluster> {
    builder.postgres_bin("n1", bin).postgres_bin("n2", bin).postgres_bin("n3", bin).start()
}

fn adopt(cluster: &Cluster, node: &str, name: &str, more: &[&str]) -> Result<Value> {
    let whose = ["--owner", "data team", "--consumer", "the warehouse"];
    let what = ["slots", "adopt", name, "--max-bytes", "4GB"];
    cluster.command(node, &[&what[..], &whose, more].concat())
}

fn make(session: &mut Session, name: &str) -> Result<String> {
    session.value(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"))
}

/// How far the standbys are with a slot: `n2 ready n3 made`.
fn stages(cluster: &Cluster, node: &str, slot: &str) -> Option<BTreeMap<String, String>> {
    let report = cluster.command(node, &["slots"]).ok()?;
    let nodes = report["carried"][slot]["nodes"].as_object()?;
    let stage =
        |(name, told): (&String, &Value)| Some((name.clone(), told["stage"].as_str()?.to_owned()));
    nodes.iter().filter_map(stage).collect::<BTreeMap<_, _>>().into()
}

/// Waits until all standbys of a writer are so far with a slot.
fn wait_stage(cluster: &Cluster, writer: &str, slot: &str, stage: &str) -> Result<()> {
    let others = cluster.others(writer);
    let done = cluster.wait_until(READY, &format!("{slot} is {stage} on {others:?}"), || {
        let stages = stages(cluster, writer, slot)?;
        others.iter().all(|n| stages.get(n).is_some_and(|s| s == stage)).then_some(())
    });
    done.with_context(|| format!("{:?}", stages(cluster, writer, slot)))
        .or_else(|e| cluster.explain(e))
}

/// `pg_recvlogical`, begun again through the next gateway whenever it ends.
struct Consumer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
    heard: PathBuf,
    said: PathBuf,
}

impl Consumer {
    fn start(cluster: &Cluster, bin: &Path, slot: &str) -> Result<Self> {
        let (heard, said) = (cluster.dir().join("heard"), cluster.dir().join("said"));
        let stop = Arc::new(AtomicBool::new(false));
        let gateways = cluster.nodes().iter().map(|n| n.gateway().port()).collect();
        let run = Run {
            stop: Arc::clone(&stop),
            program: bin.join("pg_recvlogical"),
            gateways,
            slot: slot.to_owned(),
            heard: OpenOptions::new().create(true).append(true).open(&heard)?,
            said: OpenOptions::new().create(true).append(true).open(&said)?,
        };
        let thread = Some(std::thread::spawn(move || run.again()));
        Ok(Self { stop, thread, heard, said })
    }

    /// How often each row was heard of. A column of text is `t`, its length and its bytes.
    fn rows(&self) -> Result<BTreeMap<i64, u32>> {
        let bytes = std::fs::read(&self.heard)?;
        let mut rows = BTreeMap::new();
        for at in bytes.iter().enumerate().filter(|(_, b)| **b == b't').map(|(at, _)| at) {
            let Some(length) = bytes.get(at + 1..at + 5) else { continue };
            let length = u32::from_be_bytes(length.try_into()?) as usize;
            let text = bytes.get(at + 5..at + 5 + length).filter(|t| (10..20).contains(&t.len()));
            let id = text.and_then(|t| std::str::from_utf8(t).ok()).and_then(|t| t.parse().ok());
            if let Some(id) = id {
                *rows.entry(id).or_default() += 1;
            }
        }
        Ok(rows)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Run {
    stop: Arc<AtomicBool>,
    program: PathBuf,
    gateways: Vec<u16>,
    slot: String,
    heard: File,
    said: File,
}

impl Run {
    fn again(&self) -> Result<()> {
        for port in self.gateways.iter().cycle() {
            let mut tool = postgres::as_postgres(&self.program)?;
            tool.env("PGPASSWORD", "end-to-end").env("PGCONNECT_TIMEOUT", "10");
            tool.args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"]);
            tool.args(["-p", &port.to_string(), "-S", &self.slot, "--start", "-n", "-f", "-"]);
            tool.args(["-s", "1", "-o", "proto_version=1", "-o", "publication_names=rows"]);
            tool.stdout(self.heard.try_clone()?).stderr(Stdio::from(self.said.try_clone()?));
            let mut child = tool.spawn()?;
            while child.try_wait()?.is_none() {
                if self.stop.load(Ordering::Relaxed) {
                    child.kill()?;
                    child.wait()?;
                    return Ok(());
                }
                std::thread::sleep(limits::POLL);
            }
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

#[test]
fn a_stream_goes_on_when_the_writer_is_lost() -> Result<()> {
    let scenario = Scenario::new(
        "a consumer reads a carried slot while writers are killed, until a former one writes again: \
         it is told every acknowledged row",
    );
    let Some(bin) = programs(&scenario)? else { return Ok(()) };
    let mut cluster = start(Cluster::of(3), &bin)?;
    let mut writer = cluster.wait_writer()?;
    let mut session = session(&cluster, &writer)?;
    session.simple(&format!("CREATE PUBLICATION rows FOR TABLE {TABLE}"))?.ok()?;
    adopt(&cluster, &writer, "cdc", &[])?;
    make(&mut session, "cdc")?;
    drop(session);
    let workload = cluster.workload(Options { clients: 2, ..patient() }, &[]);
    flows(&cluster, &workload)?;
    let consumer = Consumer::start(&cluster, &bin, "cdc")?;
    wait_stage(&cluster, &writer, "cdc", "ready").with_context(|| consumer.said())?;
    let mut wrote = vec![writer.clone()];
    let mut moves = Vec::new();
    loop {
        let begun = Instant::now();
        cluster.kill_quorate(&writer)?;
        let new = cluster.wait_other_writer(&writer)?;
        flows(&cluster, &workload)?;
        moves.push((begun, Instant::now()));
        let carried = cluster.wait_until(limits::RECOVER, "the slot goes on", || {
            let told = events(&cluster, &new, "slot-carried").ok()?;
            (told.len() == moves.len()).then(|| told.last().cloned())?
        });
        let lost = events(&cluster, &new, "slot-lost")?;
        scenario.step(carried.with_context(|| format!("{lost:?}"))?);
        ensure!(lost.is_empty(), "{lost:?}");
        cluster.restart(&writer)?;
        cluster.wait_healthy()?;
        let old = std::mem::replace(&mut writer, new);
        wait_stage(&cluster, &writer, "cdc", "ready").with_context(|| consumer.said())?;
        // A rewind leaves no slots; otherwise it had the one that it wrote with.
        let log = cluster.node(&old)?.log();
        let anew = log.contains("made anew: it is left from an earlier reign");
        let rewound = log.contains("rewinding to=");
        scenario.step(format!("{old} was rewound: {rewound}; made its slot anew: {anew}"));
        ensure!(anew || rewound, "{old} goes on with the slot that it had");
        if wrote.contains(&writer) {
            break;
        }
        wrote.push(writer.clone());
    }
    let ledger = workload.stop();
    let judgement = check::all(&cluster, &ledger).or_else(|e| cluster.explain(e))?;
    scenario.step(format!("{judgement}; the writers were {wrote:?}, then {writer}"));
    hears_all(&cluster, &consumer, &ledger)?;
    let rows = consumer.rows()?;
    let twice: Vec<_> =
        ledger.acked().filter(|a| rows.get(&a.id).is_some_and(|times| *times > 1)).collect();
    let (acked, more) = (ledger.acked().count(), twice.len());
    scenario.step(format!("{acked} acknowledged rows were heard of, {more} of them twice"));
    let late = |at: Instant| {
        moves.iter().any(|(begun, ended)| at + TWICE >= *begun && at <= *ended + limits::RECOVER)
    };
    ensure!(twice.iter().all(|a| late(a.ended)), "rows of long ago were heard of twice");
    cluster.check_logs()
}

#[test]
fn what_cannot_be_shown_to_be_whole_is_told_as_a_gap() -> Result<()> {
    let scenario = Scenario::new(
        "a slot that nobody reads is not ready on the standbys, and another is not carried: both are \
         told as lost when the writer is, and what is left of them is not taken for whole",
    );
    let Some(bin) = programs(&scenario)? else { return Ok(()) };
    let mut cluster = start(Cluster::of(3), &bin)?;
    let old = cluster.wait_writer()?;
    let workload = cluster.workload(patient(), &[]);
    flows(&cluster, &workload)?;
    adopt(&cluster, &old, "cdc", &[])?;
    adopt(&cluster, &old, "plain", &["--carry", "false"])?;
    let mut first = session(&cluster, &old)?;
    make(&mut first, "cdc")?;
    make(&mut first, "plain")?;
    make(&mut first, "stray")?;
    drop(first);
    wait_stage(&cluster, &old, "cdc", "made")?;
    ensure!(stages(&cluster, &old, "plain").is_none(), "it is not to be carried");
    for node in ["n1", "n2", "n3"] {
        let consumer = cluster.command(node, &["slots"])?["carried"]["cdc"]["consumer"].take();
        ensure!(consumer.is_string(), "{node} does not know how far its consumer is: {consumer}");
    }
    for node in cluster.others(&old) {
        ensure!(slots(&cluster, &node)? == "cdc", "on {node}: {}", slots(&cluster, &node)?);
        let feedback = local::one(&cluster.node(&node)?.socket_dir(), "SHOW hot_standby_feedback")?;
        ensure!(feedback == "on", "{feedback}");
    }
    let held =
        "SELECT count(backend_xmin) FROM pg_stat_replication WHERE application_name <> 'quorate'";
    let held = local::one(&cluster.node(&old)?.socket_dir(), held)?;
    ensure!(held == "2", "{held} standbys hold rows on the writer");
    cluster.kill_quorate(&old)?;
    // It is there before the new writer has judged what it carried.
    let eager = Consumer::start(&cluster, &bin, "cdc")?;
    let new = cluster.wait_other_writer(&old)?;
    flows(&cluster, &workload)?;
    let lost = |cluster: &Cluster, node: &str, many: usize| {
        cluster.wait_until(limits::RECOVER, "the gaps are told", || {
            events(cluster, node, "slot-lost").ok().filter(|told| told.len() >= many)
        })
    };
    let told = lost(&cluster, &new, 2)?;
    scenario.step(told.join("\n"));
    let has = |told: &[String], parts: [&str; 2]| {
        told.iter().any(|t| parts.iter().all(|part| t.contains(part)))
    };
    ensure!(has(&told, ["slot cdc", "was not ready, and begins at"]), "{told:?}");
    ensure!(has(&told, ["slot plain", &format!("from {old} to {new}")]), "{told:?}");
    cluster.wait_until(limits::RECOVER, "its reader is refused", || {
        eager.said().contains("lacks changes").then_some(())
    })?;
    ensure!(eager.rows()?.is_empty(), "a slot that is not whole was read");
    drop(eager);
    cluster.wait_until(limits::RECOVER, "what was carried in vain is dropped", || {
        slots(&cluster, &new).ok()?.is_empty().then_some(())
    })?;
    cluster.command(&new, &["slots", "ack", "cdc"])?;
    cluster.command(&new, &["slots", "ack", "plain"])?;
    cluster.restart(&old)?;
    cluster.wait_healthy()?;
    // Planned, so that nothing is rewound: a rewind leaves no slots.
    let mut second = session(&cluster, &new)?;
    for name in ["cdc", "plain", "stray"] {
        make(&mut second, name)?;
    }
    drop(second);
    let is_made = |cluster: &Cluster, writer: &str, on: &str| {
        let what = format!("{on} has made its slot anew");
        cluster.wait_until(READY, &what, || {
            (stages(cluster, writer, "cdc")?.get(on)? == "made").then_some(())
        })
    };
    is_made(&cluster, &new, &old)?;
    cluster.command_until_done(&new, &["switchover", "--to", &old])?;
    flows(&cluster, &workload)?;
    let told = lost(&cluster, &old, 4)?;
    ensure!(has(&told[2..], ["slot cdc", "was not ready, and begins at"]), "{:?}", &told[2..]);
    ensure!(has(&told[2..], ["slot plain", "quorate slots ack"]), "{:?}", &told[2..]);
    // Where nothing was rewound it has the one of its first reign still.
    if slots(&cluster, &old)?.contains("plain") {
        cluster.command(&old, &["slots", "drop", "plain", "--yes"])?;
    }
    cluster.command(&old, &["slots", "ack", "plain"])?;
    cluster.wait_until(limits::RECOVER, "what was carried in vain is dropped", || {
        (!slots(&cluster, &old).ok()?.contains("cdc")).then_some(())
    })?;
    cluster.command(&old, &["slots", "ack", "cdc"])?;
    make(&mut session(&cluster, &old)?, "cdc")?;
    is_made(&cluster, &old, &new)?;
    let left = slots(&cluster, &new)?;
    ensure!(left == "cdc plain stray", "of the former writer only cdc is made anew: {left}");
    let anew = events(&cluster, &old, "slot-anew")?;
    let of_new = |t: &&String| t.starts_with(&new) && t.contains("left from an earlier reign");
    ensure!(anew.iter().filter(of_new).count() == 1, "{anew:?}");
    cluster.command_until_done(&old, &["switchover", "--to", &new])?;
    flows(&cluster, &workload)?;
    let told = lost(&cluster, &new, 6)?;
    scenario.step(told[4..].join("\n"));
    ensure!(has(&told[4..], ["slot cdc", "was not ready, and begins at"]), "{told:?}");
    ensure!(has(&told[4..], ["slot plain", "is left from an earlier reign"]), "{told:?}");
    let carried = events(&cluster, &new, "slot-carried")?;
    ensure!(carried.is_empty(), "{carried:?}");
    let ledger = workload.stop();
    check::all(&cluster, &ledger).or_else(|e| cluster.explain(e))?;
    cluster.check_logs()
}

/// Waits until a consumer has heard of every acknowledged row.
fn hears_all(cluster: &Cluster, consumer: &Consumer, ledger: &Ledger) -> Result<()> {
    let missing = || {
        let rows = consumer.rows().ok()?;
        Some(ledger.acked().map(|a| a.id).filter(|id| !rows.contains_key(id)).collect::<Vec<_>>())
    };
    let heard = cluster.wait_until(limits::RECOVER, "the consumer has heard of every row", || {
        missing()?.is_empty().then_some(())
    });
    heard.with_context(|| {
        let missing = missing().unwrap_or_default();
        let first = missing.iter().take(limits::NAMED_MAX).collect::<Vec<_>>();
        format!("{} rows are missing, such as {first:?}: {}", missing.len(), consumer.said())
    })
}

#[test]
fn a_slot_that_is_invalidated_is_made_anew_and_a_planned_move_takes_it_along() -> Result<()> {
    let scenario = Scenario::new(
        "rows that a carried slot needs are removed while its node is cut off: it is made anew; then \
         a rolling restart that lowers a setting moves the writer, and the stream goes on",
    );
    let Some(bin) = programs(&scenario)? else { return Ok(()) };
    let cluster = start(Cluster::of(3), &bin)?;
    let writer = cluster.wait_writer()?;
    let mut sql = session(&cluster, &writer)?;
    sql.simple(&format!("CREATE PUBLICATION rows FOR TABLE {TABLE}"))?.ok()?;
    adopt(&cluster, &writer, "cdc", &[])?;
    make(&mut sql, "cdc")?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    let consumer = Consumer::start(&cluster, &bin, "cdc")?;
    wait_stage(&cluster, &writer, "cdc", "ready").with_context(|| consumer.said())?;
    let away = cluster.others(&writer).swap_remove(1);
    cluster.cut_off(&away);
    // Until the slots of the others need the old rows no more, and they are gone.
    for number in 0..CHURN {
        sql.simple(&format!("CREATE TABLE churn_{number} (x int)"))?.ok()?;
        sql.simple(&format!("DROP TABLE churn_{number}"))?.ok()?;
        sql.simple("SELECT pg_log_standby_snapshot()")?.ok()?;
        std::thread::sleep(Duration::from_secs(1));
        sql.simple("VACUUM pg_class, pg_attribute, pg_type, pg_depend")?.ok()?;
    }
    cluster.heal();
    cluster.wait_healthy()?;
    let anew = cluster.wait_until(limits::RECOVER, "it is made anew", || {
        events(&cluster, &writer, "slot-anew").ok()?.into_iter().find(|t| t.starts_with(&away))
    });
    scenario.step(anew.or_else(|e| cluster.explain(e))?);
    wait_stage(&cluster, &writer, "cdc", "ready").with_context(|| consumer.said())?;
    let document = "[postgresql]\nmax_connections = \"90\"\n\n[slots.cdc]\nowner = \"data team\"\n\
                    consumer = \"the warehouse\"\nmax_bytes = 4294967296\n";
    cluster.apply(&writer, document)?;
    cluster.wait_until(limits::RECOVER, "a restart is due", || {
        let status = cluster.status_of(&writer).ok()?;
        let due = &status.word(&writer)?.server.as_ref()?.pending_restart;
        due.contains(&"max_connections".to_owned()).then_some(())
    })?;
    cluster.command_until_done(&writer, &["restart", "--rolling"])?;
    let new = cluster.wait_other_writer(&writer)?;
    flows(&cluster, &workload)?;
    let carried = cluster.wait_until(limits::RECOVER, "the slot goes on", || {
        events(&cluster, &new, "slot-carried").ok()?.pop()
    });
    scenario.step(carried.or_else(|e| cluster.explain(e))?);
    let ledger = workload.stop();
    hears_all(&cluster, &consumer, &ledger)?;
    cluster.wait_healthy()?;
    check::all(&cluster, &ledger).or_else(|e| cluster.explain(e))?;
    cluster.check_logs()
}

/// What a consumer is not told, and nobody either: a slot whose consumer had not come to its beginning.
pub(crate) fn untold(builder: Builder) -> Result<usize> {
    let scenario = Scenario::new("a slot that is carried and not ready, when the writer is lost");
    let Some(bin) = programs(&scenario)? else { return Ok(0) };
    let mut cluster = start(builder, &bin)?;
    let old = cluster.wait_writer()?;
    let mut first = session(&cluster, &old)?;
    first.simple(&format!("CREATE PUBLICATION rows FOR TABLE {TABLE}"))?.ok()?;
    adopt(&cluster, &old, "cdc", &[])?;
    make(&mut first, "cdc")?;
    drop(first);
    let workload = cluster.workload(patient(), &[]);
    wait_stage(&cluster, &old, "cdc", "made")?;
    flows(&cluster, &workload)?;
    cluster.kill_quorate(&old)?;
    let new = cluster.wait_other_writer(&old)?;
    flows(&cluster, &workload)?;
    let ledger = workload.stop();
    let whole = cluster.wait_until(limits::RECOVER, "it is judged", || {
        let told = |kind| events(&cluster, &new, kind).ok().map(|told| !told.is_empty());
        match (told("slot-lost")?, told("slot-carried")?) {
            (true, _) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        }
    })?;
    if !whole {
        return Ok(0);
    }
    let consumer = Consumer::start(&cluster, &bin, "cdc")?;
    let last = ledger.acked().map(|a| a.id).max().context("nothing was written")?;
    cluster.wait_until(limits::RECOVER, "the consumer has come to the end", || {
        consumer.rows().ok()?.contains_key(&last).then_some(())
    })?;
    let rows = consumer.rows()?;
    Ok(ledger.acked().filter(|a| !rows.contains_key(&a.id)).count())
}
