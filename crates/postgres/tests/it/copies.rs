//! A second server: clone, stream, freeze, take over, rewind.

use std::path::Path;
use std::time::{Duration, Instant};

use quorate_core::{Lsn, TimelineId};
use quorate_postgres::{
    DiskProbe, Error, Mode, Retry, Rewound, StandbyPosition, clone_from, rewind_from,
};

use crate::harness::{
    Node, SOON, directory, node, node_without_data, options, report, settings, until,
};

/// A writer on timeline 7 and a standby that streams from it.
async fn pair(root: &Path) -> (Node, Node) {
    let a = node(root, "a").await;
    a.start().await;
    a.promote(7).await;
    a.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS i").await;
    let b = node_without_data(options(root, "b"));
    let begin = Instant::now();
    let (mut calls, mut last) = (0, (0, 0));
    let progress = |done, total| {
        calls += 1;
        last = (done, total);
    };
    let cloned =
        clone_from(&b.options, &settings(), &a.options.run_dir, None, progress).await.unwrap();
    report("clone", begin);
    assert!(!cloned.replaced && calls > 0 && last.0 > 0 && last.1 >= last.0 / 2, "{last:?}");
    b.follow(&a);
    b.start().await;
    b.wait_streaming().await;
    (a, b)
}

async fn wait_flushed(b: &Node, lsn: Lsn) {
    let reached = || async { (b.admin.probe().await.unwrap().received >= Some(lsn)).then_some(()) };
    until("the standby to have it all", reached).await;
}

/// Freezing stops reception for good, and the position is what was flushed. Then the standby takes
/// over and the old writer, which has more, is rewound to follow it.
#[tokio::test(flavor = "multi_thread")]
async fn clone_stream_freeze_take_over_rewind() {
    let root = directory();
    let (a, b) = pair(root.path()).await;
    let _a_disk = DiskProbe::start(&a.options).unwrap();
    let b_disk = DiskProbe::start(&b.options).unwrap();
    a.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
    let flushed = a.admin.current_flush_lsn().await.unwrap();
    wait_flushed(&b, flushed).await;
    assert!(matches!(
        b.admin.standby_position().await.unwrap(),
        StandbyPosition::NotYet("its walreceiver is still connected")
    ));
    // Replay is held up: what was received counts all the same.
    b.sql("SELECT pg_wal_replay_pause()").await;
    a.sql("INSERT INTO t SELECT generate_series(1, 1000)").await;
    let flushed = a.admin.current_flush_lsn().await.unwrap();
    wait_flushed(&b, flushed).await;
    b.cut();
    let begin = Instant::now();
    assert!(b.admin.terminate_walreceiver(SOON).await.unwrap());
    report("freeze (walreceiver gone)", begin);
    let position = b.position().await;
    report("freeze and position", begin);
    assert_eq!((position.tli, position.lsn), (TimelineId(7), flushed));
    assert_eq!(position.forks.len(), 1);
    a.sql("INSERT INTO t VALUES (-1)").await;
    assert_eq!(b.position().await, position);

    // After a restart the same is known again, with all of the log replayed.
    b.stop().await;
    b.start().await;
    assert_eq!(b.position().await, position);

    // Failover: b leaves timeline 7 behind where a went on.
    let begin = Instant::now();
    let promoted = b.promote(9).await;
    report("promote a standby to 9 (8 reserved)", begin);
    assert_eq!(promoted.fork_lsn, position.lsn);
    assert_eq!(b.sql("SELECT count(*) FROM t").await, "22000");
    b.admin.checkpoint().await.unwrap();
    a.stop().await;
    // The probes' own files in pg_wal must not be in the way.
    let felt = || async { (b_disk.health().latency.is_some()).then_some(()) };
    until("a write to pg_wal", felt).await;
    let begin = Instant::now();
    let mut lines = 0;
    let rewound =
        rewind_from(&a.options, &settings(), &b.options.run_dir, |_| lines += 1).await.unwrap();
    report("rewind", begin);
    assert!(rewound == Rewound::Done && lines > 2);
    a.follow(&b);
    a.start().await;
    a.wait_streaming().await;
    b.sql("INSERT INTO t VALUES (-2)").await;
    let flushed = b.admin.current_flush_lsn().await.unwrap();
    wait_flushed(&a, flushed).await;
    a.cut();
    a.admin.terminate_walreceiver(SOON).await.unwrap();
    let position = a.position().await;
    assert_eq!((position.tli, position.lsn), (TimelineId(9), flushed));
    assert_eq!(position.forks.len(), 2);
    assert_eq!(a.sql("SELECT min(i) FROM t").await, "-2");
    assert_eq!(a.sql("SELECT count(*) FROM t WHERE i = -1").await, "0");
    for node in [&a, &b] {
        node.stop().await;
    }
}

/// A standby that did not diverge follows across the change of timeline by itself, through the
/// reserved ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_to_a_later_timeline_and_the_old_writer_rejoins() {
    let root = directory();
    let (a, b) = pair(root.path()).await;
    let flushed = a.admin.current_flush_lsn().await.unwrap();
    wait_flushed(&b, flushed).await;
    a.server.stop(Mode::Immediate).await;
    b.cut();
    b.admin.terminate_walreceiver(SOON).await.unwrap();
    b.promote(12).await;
    a.follow(&b);
    let begin = Instant::now();
    a.start().await;
    a.wait_streaming().await;
    report("old writer rejoins without a rewind", begin);
    b.sql("CREATE TABLE later ()").await;
    let flushed = b.admin.current_flush_lsn().await.unwrap();
    wait_flushed(&a, flushed).await;
    a.cut();
    a.admin.terminate_walreceiver(SOON).await.unwrap();
    let position = a.position().await;
    assert_eq!((position.tli, position.lsn), (TimelineId(12), flushed));
    // A rewind of what did not diverge says so and changes nothing.
    b.admin.checkpoint().await.unwrap();
    a.admin.checkpoint().await.unwrap();
    a.server.stop(Mode::Fast).await;
    let rewound = rewind_from(&a.options, &settings(), &b.options.run_dir, |_| {}).await.unwrap();
    assert_eq!(rewound, Rewound::NotRequired);
    a.start().await;
    for node in [&a, &b] {
        node.stop().await;
    }
}

/// A rewind without a source fails as such; an interrupted clone leaves the old directory alone
/// and the next one replaces it.
#[tokio::test(flavor = "multi_thread")]
async fn failed_rewinds_and_interrupted_clones() {
    let root = directory();
    let (a, b) = pair(root.path()).await;
    b.stop().await;
    let nowhere = root.path().join("nowhere");
    let err = rewind_from(&b.options, &settings(), &nowhere, |_| {}).await.unwrap_err();
    assert!(matches!(err, Error::RewindFailed { .. }), "{err}");
    assert_eq!(err.retry(), Retry::Never);

    std::fs::write(b.options.data_dir.join("old"), "x").unwrap();
    let settings = settings();
    let half = clone_from(&b.options, &settings, &a.options.run_dir, None, |_, _| {});
    let cut = tokio::time::timeout(Duration::from_millis(60), half).await;
    assert!(cut.is_err(), "the clone must be cut in the middle");
    assert!(b.options.data_dir.join("old").exists());
    assert!(a.admin.ensure_slot("b").await.unwrap());
    let cloned = clone_from(&b.options, &settings, &a.options.run_dir, Some("b"), |_, _| {});
    let cloned = cloned.await.unwrap();
    assert!(cloned.restarted && cloned.replaced);
    assert!(!b.options.data_dir.join("old").exists());
    let left: Vec<_> = std::fs::read_dir(root.path().join("b")).unwrap().flatten().collect();
    assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with("data.")), "{left:?}");
    b.start().await;
    b.wait_streaming().await;
    for node in [&a, &b] {
        node.stop().await;
    }
}
