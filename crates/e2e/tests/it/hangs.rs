//! Things that stop without dying.

use anyhow::Result;
use rustix::process::Signal;

use crate::common::writer_is_replaced;

#[test]
fn postgres_stopped() -> Result<()> {
    writer_is_replaced(
        "the writer's PostgreSQL freezes (SIGSTOP): another node writes; what thaws later \
         acknowledges nothing and follows",
        |cluster, writer| cluster.stop_postgres(writer),
        |cluster, writer| cluster.cont_postgres(writer),
    )
}

#[test]
fn quorate_stopped() -> Result<()> {
    writer_is_replaced(
        "the writer's quorate freezes (SIGSTOP) and its PostgreSQL runs on: another node writes; what \
         thaws later acknowledges nothing of its old term and follows",
        |cluster, writer| cluster.signal_quorate(writer, Signal::STOP),
        |cluster, writer| cluster.signal_quorate(writer, Signal::CONT),
    )
}

#[test]
fn disk_stalled() -> Result<()> {
    writer_is_replaced(
        "the writer's disk hangs: it gives up, and another node writes",
        |cluster, writer| cluster.stall_disk(writer),
        |cluster, writer| cluster.release_disk(writer),
    )
}
