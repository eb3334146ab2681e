//! One server from nothing to writer.

use std::os::unix::process::CommandExt;
use std::time::Instant;

use quorate_core::slots::{Kept, Kind};
use quorate_core::{Lsn, NodeId, Term, TimelineId};
use quorate_postgres::{
    Cancelled, Directory, DiskProbe, Error, Marker, Mode, ServerOptions, Settings, SlotEnded,
    Status, Written, bootstrap, examine, judge_setting, read_control_data, reserve_timelines, room,
    write_settings,
};

use crate::harness::{
    SOON, bootstrap_options, directory, node, node_without_data, options, report, settings, until,
};

fn n1() -> NodeId {
    NodeId::new("n1").unwrap()
}

/// Bootstrap, start as a standby, position, promotion to a timeline that is not the next, marker,
/// restart: the life of a first writer.
#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_writer() {
    let root = directory();
    let node = node_without_data(options(root.path(), "a"));
    assert_eq!(examine(&node.options).unwrap(), Directory::Empty);
    let begin = Instant::now();
    bootstrap(&node.options, &bootstrap_options(), &settings()).await.unwrap();
    report("bootstrap", begin);
    assert_eq!(examine(&node.options).unwrap(), Directory::Present);
    assert!(bootstrap(&node.options, &bootstrap_options(), &settings()).await.is_err());

    let begin = Instant::now();
    node.start().await;
    report("start as standby until ready", begin);
    let position = node.position().await;
    report("start as standby until position", begin);
    assert_eq!((position.tli, position.forks.len()), (TimelineId(1), 0));
    let probe = node.admin.probe().await.unwrap();
    assert!(probe.in_recovery && probe.unsafe_settings.is_empty(), "{probe:?}");
    assert_eq!(probe.timeline, Some(TimelineId(1)));

    node.admin.warm().await.unwrap();
    let begin = Instant::now();
    let promoted = node.admin.promote(TimelineId(7), SOON).await.unwrap();
    report("promote to 7 (5 reserved)", begin);
    assert_eq!(promoted.tli, TimelineId(7));
    assert!(promoted.fork_lsn >= position.lsn && promoted.next_xid > 700, "{promoted:?}");
    let begin = Instant::now();
    let marker = node.admin.write_marker(Term(3), promoted.tli, n1()).await.unwrap();
    report("marker, no standby", begin);
    assert_eq!(marker, Marker::Held);
    assert_eq!(node.sql("SELECT term || node FROM quorate.term").await, "3n1");
    let older = node.admin.write_marker(Term(2), promoted.tli, n1()).await.unwrap();
    assert_eq!(older, Marker::Outdated);
    let begin = Instant::now();
    let probe = node.admin.probe().await.unwrap();
    report("probe", begin);
    assert!(!probe.in_recovery && probe.flushed > Some(Lsn(0)));
    assert_eq!(probe.timeline, Some(TimelineId(7)));
    assert!(node.admin.promote(TimelineId(9), SOON).await.is_err());

    // As a standby again, with the control file's checkpoint still on timeline 1.
    let flushed = node.admin.current_flush_lsn().await.unwrap();
    let begin = Instant::now();
    node.server.stop(Mode::Immediate).await;
    report("immediate stop", begin);
    node.start().await;
    let position = node.position().await;
    // Background work may have written a little more before the stop.
    assert!(position.tli == TimelineId(7) && position.lsn >= flushed, "{position:?}");
    assert_eq!(position.forks, [(TimelineId(1), promoted.fork_lsn)]);
    assert_eq!(node.promote(8).await.tli, TimelineId(8));
    node.admin.checkpoint().await.unwrap();
    node.server.stop(Mode::Fast).await;
    let control = read_control_data(&node.options).await.unwrap();
    assert!(control.is_clean() && control.timeline == TimelineId(8), "{control:?}");
    assert_eq!(control.system_id, probe.system_id);
}

/// A place that holds something else is refused; our own interrupted attempt is not.
#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_starts_over_its_own_half_and_refuses_what_is_foreign() {
    let root = directory();
    let options = options(root.path(), "a");
    let (chosen, settings) = (bootstrap_options(), settings());
    let half = bootstrap(&options, &chosen, &settings);
    let cut = tokio::time::timeout(std::time::Duration::from_millis(150), half).await;
    assert!(cut.is_err(), "the attempt must be cut in the middle");
    assert!(!options.data_dir.exists());
    bootstrap(&options, &chosen, &settings).await.unwrap();
    assert!(!options.run_dir.join("initdb.password").exists());

    let foreign = crate::harness::options(root.path(), "b");
    std::fs::create_dir(&foreign.data_dir).unwrap();
    std::fs::write(foreign.data_dir.join("thesis.txt"), "x").unwrap();
    let err = bootstrap(&foreign, &chosen, &settings).await.unwrap_err();
    assert!(matches!(err, Error::Directory { .. }), "{err}");
    assert!(foreign.data_dir.join("thesis.txt").exists());
}

/// Reserved timelines above the highest real one would keep a server from starting.
#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_that_did_not_happen_leaves_nothing_in_the_way() {
    let root = directory();
    let node = node(root.path(), "a").await;
    node.start().await;
    assert_eq!(reserve_timelines(&node.options, TimelineId(7)).unwrap(), 5);
    // The running standby sees them and stays where it is.
    let seen = || async { node.log().contains("is not a child").then_some(()) };
    until("the standby to see the files", seen).await;
    assert_eq!(node.position().await.tli, TimelineId(1));
    node.stop().await;
    node.start().await;
    assert_eq!(node.position().await.tli, TimelineId(1));
    assert_eq!(node.promote(5).await.tli, TimelineId(5));
    node.stop().await;
}

/// Settings take effect by reload or are reported to need a restart; nothing is written twice.
#[tokio::test(flavor = "multi_thread")]
async fn settings_reload_or_say_that_they_wait_for_a_restart() {
    let root = directory();
    let node = node(root.path(), "a").await;
    node.start().await;
    assert_eq!(write_settings(&node.options, &settings()).unwrap(), Written::Same);
    let changed = Settings { max_wal_senders: 33, hot_standby_feedback: true, ..settings() };
    assert_eq!(write_settings(&node.options, &changed).unwrap(), Written::Changed);
    node.server.reload();
    let pending = || async {
        let probe = node.admin.probe().await.unwrap();
        (!probe.pending_restart.is_empty()).then_some(probe.pending_restart)
    };
    assert_eq!(until("the reload", pending).await, ["max_wal_senders"]);
    assert_eq!(node.sql("SHOW hot_standby_feedback").await, "on");
    node.stop().await;
    node.start().await;
    assert_eq!(node.sql("SHOW max_wal_senders").await, "33");
    for (name, value, reason) in [
        ("work_mem", "64megabytes", "Valid units"),
        ("work_mem", "900TB", "range"),
        ("log_min_messages", "foo", "Available values"),
    ] {
        let err = judge_setting(&node.options, name, value).await.unwrap_err().to_string();
        assert!(err.contains(value) && err.contains(reason), "{err}");
    }
    judge_setting(&node.options, "work_mem", "64 MB").await.unwrap();
    // What the fence rests on is beyond the superuser.
    node.promote(2).await;
    node.sql("ALTER SYSTEM SET listen_addresses = '*'").await;
    node.stop().await;
    node.start().await;
    assert_eq!(node.sql("SHOW listen_addresses").await, "");
    let catalog = node.admin.settings_catalog().await.unwrap();
    let work_mem = catalog.iter().find(|s| s.name == "work_mem").unwrap();
    assert_eq!((work_mem.kind.as_str(), work_mem.unit.as_deref()), ("integer", Some("kB")));
    node.stop().await;
}

/// PostgreSQL starts no standby with fewer connections than its writer had. A promotion by a restart
/// lowers them, on exactly the granted timeline and without losing log.
#[tokio::test(flavor = "multi_thread")]
async fn fewer_connections_take_effect_by_promoting_anew() {
    let with = |connections: &str| {
        let mut settings = settings();
        settings.parameters.insert("max_connections".into(), connections.into());
        settings
    };
    let root = directory();
    let node = node(root.path(), "a").await.with_settings(&with("150"));
    node.start().await;
    node.promote(3).await;
    node.sql("CREATE TABLE kept (id int)").await;
    node.sql("INSERT INTO kept VALUES (7)").await;
    node.server.stop(Mode::Immediate).await;
    let node = node.with_settings(&with("60"));
    node.server.start().await.unwrap();
    let refused = node.admin.wait_ready(&node.server.status(), SOON).await.unwrap_err();
    assert!(refused.to_string().contains("insufficient parameter"), "{refused}");
    node.server.start_promoting(TimelineId(3), TimelineId(6)).await.unwrap();
    node.admin.wait_ready(&node.server.status(), SOON).await.unwrap();
    let promoted = node.admin.self_promoted(TimelineId(6), SOON).await.unwrap();
    assert_eq!(promoted.tli, TimelineId(6));
    assert_eq!(node.sql("SHOW max_connections").await, "60");
    assert_eq!(node.sql("SELECT id FROM kept").await, "7");
    // As a standby again, with the lowered value.
    node.stop().await;
    node.start().await;
    assert_eq!(node.position().await.tli, TimelineId(6));
    assert_eq!(node.sql("SHOW max_connections").await, "60");
    assert!(node.admin.probe().await.unwrap().unsafe_settings.is_empty());
    node.stop().await;
}

/// A commit waits while the synchronous standby is away; a wait that is cut short is told apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_marker_waits_for_its_standby_and_knows_when_it_was_not_held() {
    let root = directory();
    let node = node(root.path(), "a").await;
    node.start().await;
    node.promote(2).await;
    write_settings(&node.options, &Settings::default()).unwrap();
    node.server.reload();
    let names = || async {
        let probe = node.admin.probe().await.unwrap();
        (probe.synchronous_standby_names == "ANY 1 (quorate)").then_some(())
    };
    until("the reload", names).await;
    let waiting = "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let judge = async {
        let find = || async {
            let pid: i32 = node.sql(waiting).await.parse().unwrap();
            (pid > 0).then_some(pid)
        };
        let pid = until("the marker to wait", find).await;
        let event = node.admin.wait_event_of(pid).await.unwrap();
        assert_eq!(event.as_deref(), Some("SyncRep"));
        assert_eq!(node.admin.cancel_backend(pid).await.unwrap(), Cancelled::WaitsForStandby);
        node.sql(&format!("SELECT pg_cancel_backend({pid})")).await;
    };
    let (marker, ()) = tokio::join!(node.admin.write_marker(Term(1), TimelineId(2), n1()), judge);
    assert_eq!(marker.unwrap(), Marker::LocalOnly);
    // A program that speaks for the standby releases the next one.
    let mut receiver = std::process::Command::new(node.options.install.tool("pg_receivewal"))
        .arg(format!("--dbname=host={} user=quorate", node.options.run_dir.display()))
        .args(["--synchronous", "--no-loop", "-D"])
        .arg(root.path())
        .env("PGAPPNAME", "quorate")
        .spawn()
        .unwrap();
    let begin = Instant::now();
    let marker = node.admin.write_marker(Term(2), TimelineId(2), n1()).await.unwrap();
    report("marker, from the start of its standby", begin);
    assert_eq!(marker, Marker::Held);
    receiver.kill().unwrap();
    receiver.wait().unwrap();
    assert_eq!(node.admin.cancel_backend(1).await.unwrap(), Cancelled::Gone);
    node.stop().await;
}

/// The role is small: what Quorate does not need it cannot do.
#[tokio::test(flavor = "multi_thread")]
async fn slots_are_kept_and_the_disk_is_felt() {
    let root = directory();
    let node = node(root.path(), "a").await;
    node.start().await;
    node.promote(2).await;
    assert!(node.admin.ensure_slot("n2").await.unwrap());
    assert!(!node.admin.ensure_slot("n2").await.unwrap());
    let slots = node.admin.slots().await.unwrap();
    assert_eq!((slots.len(), slots[0].name.as_str()), (1, "n2"));
    assert!(slots[0].restart_lsn.is_some() && !slots[0].lost && slots[0].active_pid.is_none());
    assert!(
        node.admin.drop_slot("n2").await.unwrap() && !node.admin.drop_slot("n2").await.unwrap()
    );
    assert_eq!(node.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'quorate'").await, "f");
    let probe = DiskProbe::start(&node.options).unwrap();
    let felt = || async { probe.health().latency };
    until("a write to pg_wal", felt).await;
    assert!(matches!(&*node.server.status().borrow(), Status::Running { .. }));
    node.stop().await;
}

/// Whoever made a slot and whoever reads it: it is seen, and can be ended.
#[tokio::test(flavor = "multi_thread")]
async fn slots_of_others_are_seen_and_ended() {
    let root = directory();
    let node = node(root.path(), "a").await;
    node.start().await;
    assert_eq!(node.admin.all_slots().await.unwrap().slots, [], "on a standby, too");
    node.promote(2).await;
    assert!(room(&node.options).unwrap().free > 0);
    node.sql("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')").await;
    node.sql("SELECT pg_create_physical_replication_slot('stray', true)").await;
    let seen = node.admin.all_slots().await.unwrap();
    let [cdc, stray] = &seen.slots[..] else { panic!("{seen:?}") };
    assert_eq!((cdc.kind, stray.kind), (Kind::Logical, Kind::Physical));
    assert_eq!((cdc.kept, stray.kept), (Kept::Held, Kept::Held));
    assert_eq!(cdc.database.as_deref(), Some("postgres"));
    assert!(cdc.reached() <= Some(seen.end) && stray.restart <= Some(seen.end), "{seen:?}");
    // Read by a superuser, whom Quorate's own role could not end.
    let mut receive =
        std::process::Command::new(node.options.install.bin_dir.join("pg_receivewal"));
    receive.args(["-U", "postgres", "-p", "5432", "-S", "stray", "-n", "-h"]);
    receive.arg(&node.options.run_dir).arg("-D").arg(&node.options.run_dir).current_dir("/");
    receive.stderr(std::process::Stdio::null());
    let mut receiving = as_server(&mut receive, &node.options).spawn().unwrap();
    let active = || async {
        let slots = node.admin.all_slots().await.unwrap().slots;
        slots.iter().find(|s| s.name == "stray")?.active_pid
    };
    until("somebody reads it", active).await;
    assert_eq!(node.admin.end_slot("stray").await.unwrap(), SlotEnded::Dropped);
    assert_eq!(node.admin.end_slot("stray").await.unwrap(), SlotEnded::NotThere);
    assert!(!receiving.wait().unwrap().success(), "it goes on without its slot");
    assert_eq!(node.admin.end_slot("cdc").await.unwrap(), SlotEnded::Dropped);
    node.stop().await;
}

/// The same program as the server's user, where we are root.
fn as_server<'a>(
    command: &'a mut std::process::Command,
    options: &ServerOptions,
) -> &'a mut std::process::Command {
    if let Some(user) = &options.run_as {
        command.uid(user.uid).gid(user.gid);
    }
    command
}
