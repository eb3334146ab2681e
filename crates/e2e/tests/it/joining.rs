//! New copies.

use std::time::Duration;

use anyhow::Result;
use quorate_e2e::workload::sql_through;
use quorate_e2e::{Cluster, Scenario, limits};

use crate::common::{flows, patient, settle};

#[test]
fn interrupted_clone_is_begun_again() -> Result<()> {
    let scenario = Scenario::new(
        "a node is killed in the middle of copying a large database: started again, it completes",
    );
    let mut cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_writer()?;
    let joining = cluster.others(&writer).swap_remove(1);
    let gateway = cluster.gateways(&[&writer]).swap_remove(0);
    let large = "CREATE TABLE public.large AS SELECT i AS id, pg_catalog.md5(i::text) AS text \
                 FROM pg_catalog.generate_series(1, 400000) i;
                 GRANT SELECT ON public.large TO PUBLIC";
    sql_through(cluster.login(), gateway.addr, large)?;
    let workload = cluster.workload(patient(), &[&writer]);
    flows(&cluster, &workload)?;
    // A slow line keeps the copy under way for long enough to be hit.
    cluster.slow(&joining, Duration::from_millis(10));
    cluster.command(&writer, &["rebuild", &joining, "--yes"])?;
    let copying = || {
        let status = cluster.status_of(&joining).ok()?;
        (status.doing(&joining) == "cloning").then_some(())
    };
    cluster.wait_until(limits::RECOVER, "the node is copying", copying)?;
    let data = cluster.node(&joining)?.dir().join("pg");
    cluster.wait_until(limits::RECOVER, "a part is copied", || {
        (size_of(&data) > 4 * 1024 * 1024).then_some(())
    })?;
    cluster.kill_quorate(&joining)?;
    scenario.step(format!("{joining} was killed with {} bytes copied", size_of(&data)));
    cluster.heal();
    cluster.restart(&joining)?;
    settle(&scenario, &cluster, workload)
}

fn size_of(dir: &std::path::Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
