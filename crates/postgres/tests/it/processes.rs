//! Crashes, hangs and leftovers: nothing of a server outlives its keeper.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use quorate_postgres::{Mode, Status, kill_leftovers};
use rustix::process::Signal;

use crate::harness::{alive, directory, node, options, report, signal, until};

/// Set for the copy of this program that plays the agent that dies.
const VICTIM: &str = "QUORATE_TEST_VICTIM";

fn family(postmaster: i32) -> Vec<i32> {
    let out = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &postmaster.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let children = text.split_whitespace().map(|pid| pid.parse().unwrap());
    children.chain([postmaster]).collect()
}

/// A killed postmaster leaves backends behind; the death is announced when they are gone, and the
/// next start is not in their way.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_postmaster_is_announced_when_its_orphans_are_gone() {
    quorate_postgres::become_subreaper().unwrap();
    let root = directory();
    let node = node(root.path(), "a").await;
    let pid = node.start().await;
    let client = node.client().await.unwrap();
    let _busy = tokio::spawn(async move { client.simple_query("SELECT pg_sleep(1000)").await });
    let sleeping = || async {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        (node.sql(count).await == "1").then_some(())
    };
    until("a busy backend", sleeping).await;
    let family = family(pid);
    assert!(family.len() > 3, "{family:?}");
    let begin = Instant::now();
    signal(pid, Signal::KILL);
    let how = node.server.wait_exit().await.unwrap();
    report("SIGKILL of the postmaster until all is gone", begin);
    assert!(how.contains("signal: 9"), "{how}");
    for member in family {
        assert!(!std::path::Path::new(&format!("/proc/{member}")).exists(), "{member} is left");
    }
    let begin = Instant::now();
    node.start().await;
    report("start after a crash", begin);
    node.stop().await;
}

/// The pipe by which backends learn of the postmaster's death is found, and ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_postmasters_death_is_seen_as_early_as_by_its_backends() {
    let root = directory();
    let node = node(root.path(), "a").await;
    let pid = node.start().await;
    let line = node.server.lifeline().unwrap();
    assert!(line.is_exact() && line.is_alive(), "{line:?}");
    signal(pid, Signal::KILL);
    while line.is_alive() {
        std::thread::yield_now();
    }
    node.server.wait_exit().await.unwrap();
    assert!(node.server.lifeline().is_none());
    node.start().await;
    assert!(!line.is_alive() && node.server.lifeline().unwrap().is_alive());
    node.stop().await;
}

/// A backend that has just been forked still holds both ends of the pipe: it is found all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_postmasters_pipe_is_found_while_backends_are_forked() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let root = directory();
    let node = node(root.path(), "a").await;
    let pid = node.start().await;
    let socket = node.options.socket();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let storm = (0..4).map(|_| {
        let (socket, stop) = (socket.clone(), std::sync::Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                drop(std::os::unix::net::UnixStream::connect(&socket));
            }
        })
    });
    let storm: Vec<_> = storm.collect();
    for look in 0..30 {
        let line = quorate_postgres::Lifeline::of(pid).unwrap();
        assert!(line.is_exact(), "look {look}: {line:?}");
    }
    stop.store(true, Ordering::Relaxed);
    for thread in storm {
        thread.join().unwrap();
    }
    node.stop().await;
}

/// Signals do not reach a stopped postmaster; death does.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_postmaster_can_be_ended() {
    let root = directory();
    let node = node(root.path(), "a").await;
    let pid = node.start().await;
    let family = family(pid);
    for member in &family {
        signal(*member, Signal::STOP);
    }
    let begin = Instant::now();
    node.server.stop(Mode::Immediate).await;
    report("immediate stop of a stopped server", begin);
    assert!(family.into_iter().all(|member| !alive(member)));
    node.start().await;
    node.stop().await;
}

/// The reason of an exit is the server's own last word.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_says_why() {
    let root = directory();
    let node = node(root.path(), "a").await;
    let mut settings = crate::harness::settings();
    settings.parameters.insert("shared_preload_libraries".into(), "no_such_library".into());
    let node = node.with_settings(&settings);
    node.server.start().await.unwrap();
    let how = node.server.wait_exit().await.unwrap();
    assert!(how.contains("no_such_library"), "{how}");
    assert!(matches!(&*node.server.status().borrow(), Status::NotRunning { .. }));
}

/// Processes of an agent that could not take its server with it.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_an_earlier_agent_are_killed() {
    use std::os::unix::process::CommandExt;
    let root = directory();
    let node = node(root.path(), "a").await;
    let user = node.options.run_as.clone();
    let mut stray = Command::new(node.options.install.tool("postgres"));
    stray.arg("-D").arg(&node.options.data_dir);
    // As a daemon would: through a parent that is gone.
    let line = format!("exec setsid {stray:?} >/dev/null 2>&1 &");
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &line]).current_dir("/tmp");
    if let Some(user) = &user {
        std::fs::create_dir_all(&node.options.run_dir).unwrap();
        std::os::unix::fs::chown(&node.options.run_dir, Some(user.uid), Some(user.gid)).unwrap();
        shell.gid(user.gid).uid(user.uid);
    }
    shell.status().unwrap();
    until("the stray server", || async { node.admin.probe().await.ok() }).await;
    assert!(node.server.start().await.is_err(), "two servers on one directory");
    let options = node.options.clone();
    let killed =
        tokio::task::spawn_blocking(move || kill_leftovers(&options)).await.unwrap().unwrap();
    assert!(killed > 3, "{killed}");
    node.start().await;
    node.stop().await;
}

/// This program again, as an agent: the kernel ends PostgreSQL when it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_agent_is_the_death_of_its_server() {
    if let Some(root) = std::env::var_os(VICTIM) {
        return play_the_victim(std::path::Path::new(&root)).await;
    }
    let root = directory();
    drop(node(root.path(), "a").await);
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::the_death_of_the_agent_is_the_death_of_its_server"])
        .args(["--nocapture"])
        .env(VICTIM, root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let pid: i32 = lines
        .find_map(|line| line.unwrap().split_once("postmaster=")?.1.parse().ok())
        .expect("the agent starts its server");
    // Its processes come one after the other, and the one that recovers goes.
    let whole = || async {
        let family = family(pid);
        (family.len() > 3 && family.iter().all(|member| alive(*member))).then_some(family)
    };
    let family = until("the server's processes", whole).await;
    let begin = Instant::now();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let gone = || async { family.iter().all(|member| !alive(*member)).then_some(()) };
    until("the server's death", gone).await;
    report("SIGKILL of the agent until its server is gone", begin);
}

async fn play_the_victim(root: &std::path::Path) {
    let node = crate::harness::node_without_data(options(root, "a"));
    let pid = node.start().await;
    println!("\npostmaster={pid}");
    std::future::pending::<()>().await;
}
