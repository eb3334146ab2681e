//! One short round of an attack. `cargo xtask attack` makes long ones.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use quorate_e2e::attack::client::Clock;
use quorate_e2e::attack::{Kind, Nemesis, Plan, Verdict, round};
use quorate_e2e::wire::Session;
use quorate_e2e::{Cluster, Scenario, limits, local};

#[test]
fn a_mixed_round_keeps_every_promise() -> Result<()> {
    let scenario = Scenario::new(
        "workloads of all kinds at once under faults of several kinds: the histories of what clients \
         saw show nothing that a promise forbids",
    );
    let mut cluster = Cluster::of(3).start()?;
    let nemeses = vec![
        Nemesis::KillPostmaster,
        Nemesis::CutOne,
        Nemesis::SwitchoverStorm,
        Nemesis::ReplayPause,
        Nemesis::PauseHost,
        Nemesis::KillBackend,
    ];
    let plan = Plan {
        number: 0,
        seed: 1,
        kinds: Kind::of_round(0),
        nemeses,
        length: Duration::from_secs(30),
    };
    let outcome = round::run(&mut cluster, plan, Clock::start(), &AtomicBool::new(false))
        .or_else(|e| cluster.explain(e))?;
    let mut verdict = Verdict::default();
    verdict.add(&outcome);
    scenario.step(format!("\n{verdict}"));
    for judged in outcome.judged.iter().filter(|j| !j.report.is_good()) {
        scenario.step(format!("{}: {}", judged.kind, judged.report));
    }
    ensure!(outcome.is_good(), "{}\n{}", verdict.sentence(), cluster.portrait());
    let struck: usize = outcome.struck.values().sum();
    ensure!(struck >= 3, "waited 30s in vain until three faults had struck: {:?}", outcome.struck);
    Ok(())
}

#[test]
fn a_round_in_which_rows_vanish_is_caught() -> Result<()> {
    let scenario = Scenario::new(
        "somebody deletes what was acknowledged, past every gateway: the attack says so",
    );
    let mut cluster = Cluster::of(3).start()?;
    let plan = Plan {
        number: 0,
        seed: 2,
        kinds: vec![Kind::Set, Kind::Bank, Kind::Counter, Kind::Ambiguous],
        nemeses: Vec::new(),
        length: Duration::from_secs(12),
    };
    let writer = cluster.wait_writer()?;
    let socket = cluster.node(&writer)?.socket_dir();
    let login = cluster.login().clone();
    let thief = std::thread::spawn(move || {
        let sql = "DELETE FROM rows_0 WHERE id = 3; DELETE FROM commits_0 WHERE id = 3;
                   UPDATE bank_0 SET balance = balance - 1 WHERE id = 1;
                   UPDATE counter_0 SET n = n - 1 WHERE n > 0";
        let enough = "SELECT (SELECT count(*) FROM rows_0 WHERE id = 3)
                           + (SELECT count(*) FROM commits_0 WHERE id = 3)
                           + (SELECT count(*) FROM counter_0 WHERE n > 50)";
        let deadline = Instant::now() + limits::RECOVER;
        while !local::one(&socket, enough).is_ok_and(|n| n == "4") {
            ensure!(Instant::now() < deadline, "there is nothing to steal");
            std::thread::sleep(limits::POLL);
        }
        Session::open(&*socket, &login)?.simple(sql)?.ok().map(drop)
    });
    let outcome = round::run(&mut cluster, plan, Clock::start(), &AtomicBool::new(false))
        .or_else(|e| cluster.explain(e))?;
    thief.join().map_err(|_| anyhow::anyhow!("nothing was stolen"))??;
    ensure!(outcome.trouble.is_empty(), "{:?}", outcome.trouble);
    for judged in &outcome.judged {
        scenario.step(format!("{}: {}", judged.kind, judged.report));
        ensure!(!judged.report.is_good(), "{} passed", judged.kind);
    }
    Ok(())
}
