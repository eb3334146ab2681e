//! What reads see, at each level of consistency, while one replica lags.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_e2e::workload::{Gateway, Login, sql_through};
use quorate_e2e::{Cluster, Scenario, local};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Pairs of a write and a read at each level; more with `QUORATE_E2E_PAIRS`, and not at all levels
/// with `QUORATE_E2E_LEVEL`.
const PAIRS: u64 = 300;
/// How long replay stands still on one replica, again and again.
const DELAY: Duration = Duration::from_secs(2);

/// What was seen at a level.
#[derive(Default)]
struct Seen {
    pairs: AtomicU64,
    /// Reads that a replica served.
    replica: AtomicU64,
    /// Reads that broke the promise.
    broken: AtomicU64,
    /// Reads that did not see the session's own last write; allowed at some levels.
    stale: AtomicU64,
}

async fn connect(login: &Login, gateway: &Gateway) -> Result<Client> {
    let mut config = login.config();
    config.host(gateway.addr.ip().to_string()).port(gateway.addr.port());
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

async fn value(client: &Client, sql: &str) -> Result<Vec<String>> {
    for message in client.simple_query(sql).await? {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect());
        }
    }
    anyhow::bail!("no row: {sql}")
}

/// The read of every session: the value, and whether a standby answered.
async fn read(client: &Client, key: usize) -> Result<(i64, bool)> {
    let sql = format!("SELECT v, standby FROM kv, place WHERE k = {key}");
    let row = value(client, &sql).await?;
    Ok((row[0].parse()?, row[1] == "t"))
}

/// Writes and reads of one key by one application, at a level.
struct Pairs {
    level: &'static str,
    key: usize,
    login: Login,
    gateways: Vec<Gateway>,
    seen: Arc<Seen>,
    wanted: u64,
}

impl Pairs {
    /// One connection that writes, and another.
    async fn connections(&self) -> Result<[Client; 2]> {
        let n = self.gateways.len();
        let writer = connect(&self.login, &self.gateways[self.key % n]).await?;
        let other = connect(&self.login, &self.gateways[(self.key + 1) % n]).await?;
        for client in [&writer, &other] {
            let set = format!("SET quorate.consistency = '{}'", self.level);
            client.batch_execute(&set).await?;
            client.batch_execute("SET quorate.max_staleness = '1s'").await?;
        }
        Ok([writer, other])
    }

    async fn run(self, [writer, other]: [Client; 2]) -> Result<()> {
        // When each value was acknowledged.
        let mut acknowledged = vec![(Instant::now(), 0i64)];
        let mut newest_seen = 0;
        let mut i = 0;
        while self.seen.pairs.fetch_add(1, Ordering::Relaxed) < self.wanted {
            i += 1;
            let write = format!("UPDATE kv SET v = {i} WHERE k = {}", self.key);
            writer.batch_execute(&write).await?;
            acknowledged.push((Instant::now(), i));
            // Some reads come later than others, so that replicas may have caught up.
            let pause = [0, 0, 0, 5, 40, 350][i as usize % 6];
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let reader = match self.level {
                "causal" => {
                    let token = value(&writer, "SHOW quorate.token").await?.remove(0);
                    other.batch_execute(&format!("SET quorate.token = '{token}'")).await?;
                    &other
                }
                "strong" => &other,
                _ => &writer,
            };
            let asked = Instant::now();
            let (v, by_replica) = read(reader, self.key).await?;
            self.judge(v, i, asked, by_replica, newest_seen, &acknowledged);
            newest_seen = newest_seen.max(v);
        }
        Ok(())
    }

    fn judge(
        &self,
        v: i64,
        written: i64,
        asked: Instant,
        by_replica: bool,
        newest_seen: i64,
        acknowledged: &[(Instant, i64)],
    ) {
        let stale = v < written;
        let broken = match self.level {
            "strong" | "read_your_writes" | "causal" => stale,
            "monotonic" => v < newest_seen,
            "bounded" => {
                let least = acknowledged
                    .iter()
                    .rev()
                    .find(|(at, _)| asked.duration_since(*at) > Duration::from_secs(1));
                least.is_some_and(|(_, least)| v < *least)
            }
            _ => false,
        };
        let count = |counter: &AtomicU64, is: bool| counter.fetch_add(is.into(), Ordering::Relaxed);
        count(&self.seen.replica, by_replica);
        count(&self.seen.stale, stale);
        count(&self.seen.broken, broken);
    }
}

/// Lets replay of a standby stand still for a while, over and over.
fn lag(socket: std::path::PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            local::query(&socket, "SELECT pg_wal_replay_pause()")?;
            let since = Instant::now();
            while since.elapsed() < DELAY && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            local::resume_replay(&socket)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

#[test]
fn every_level_keeps_its_promise_while_a_replica_lags() -> Result<()> {
    let scenario = Scenario::new(
        "writes and reads at every level of consistency, through every gateway, with replay on one \
         replica 2 s late: no promise is broken, and replicas serve what the level allows",
    );
    let wanted = std::env::var("QUORATE_E2E_PAIRS").ok().and_then(|v| v.parse().ok());
    let wanted = wanted.unwrap_or(PAIRS);
    let sessions = (wanted / 400).clamp(8, 64);
    let cluster = Cluster::of(3).start()?;
    let writer = cluster.wait_healthy()?.writer.unwrap_or_default();
    let late = cluster.others(&writer).swap_remove(0);
    let gateways = cluster.gateways(&[]);
    // The view tells where a read ran without giving away that it depends on it.
    let sql = "CREATE VIEW place AS SELECT pg_is_in_recovery() AS standby;
               CREATE TABLE kv (k int PRIMARY KEY, v bigint NOT NULL);
               INSERT INTO kv SELECT i, 0 FROM generate_series(0, 399) i";
    sql_through(cluster.login(), gateways[0].addr, sql)?;
    let stop = Arc::new(AtomicBool::new(false));
    let lagging = lag(cluster.node(&late)?.socket_dir(), Arc::clone(&stop));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = AtomicI64::new(0);
    let only = std::env::var("QUORATE_E2E_LEVEL").ok();
    for level in ["strong", "read_your_writes", "monotonic", "causal", "bounded", "eventual"] {
        if only.as_ref().is_some_and(|only| !only.split(',').any(|name| name == level)) {
            continue;
        }
        let seen = Arc::new(Seen::default());
        let pairs = (0..sessions).map(|_| Pairs {
            level,
            key: key.fetch_add(1, Ordering::Relaxed) as usize,
            login: cluster.login().clone(),
            gateways: gateways.clone(),
            seen: Arc::clone(&seen),
            wanted,
        });
        let all = runtime.block_on(async {
            // One after the other: a login costs this side more than the gateway.
            let mut tasks = Vec::new();
            for pairs in pairs {
                let connections = pairs.connections().await?;
                tasks.push(tokio::task::spawn(pairs.run(connections)));
            }
            for task in tasks {
                task.await??;
            }
            anyhow::Ok(())
        });
        all.with_context(|| level.to_owned()).or_else(|e| cluster.explain(e))?;
        let n = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let (replica, stale, broken) = (n(&seen.replica), n(&seen.stale), n(&seen.broken));
        let percent = replica * 100 / wanted.max(1);
        scenario.step(format!(
            "{level}: {wanted} pairs, {percent} % read on replicas, {stale} did not see the last \
             write, {broken} broke the promise"
        ));
        ensure!(broken == 0, "{level}: {broken} reads broke the promise");
        ensure!((level == "strong") == (replica == 0), "{level}: {replica} reads on replicas");
    }
    stop.store(true, Ordering::Relaxed);
    lagging.join().map_err(|_| anyhow::anyhow!("the lagging thread failed"))??;
    Ok(())
}
