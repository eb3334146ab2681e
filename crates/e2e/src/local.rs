//! Queries through a server's private socket, past the gateway: what a node really holds.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

use crate::limits;
use crate::runtime::runtime;

/// Rows of text.
pub type Rows = Vec<Vec<Option<String>>>;

/// Runs SQL as the local operating system's user, for the rows of all its statements.
pub fn query(socket_dir: &Path, sql: &str) -> Result<Rows> {
    query_within(socket_dir, sql, limits::LOCAL_QUERY)
}

/// As [`query`], with a limit of its own.
pub fn query_within(socket_dir: &Path, sql: &str, limit: Duration) -> Result<Rows> {
    let mut config = Config::new();
    config.host_path(socket_dir).port(5432).user("quorate").dbname("postgres");
    config.connect_timeout(limit);
    run(&config, sql, limit).with_context(|| format!("at {}", socket_dir.display()))
}

/// The first column of the first row.
pub fn one(socket_dir: &Path, sql: &str) -> Result<String> {
    let rows = query(socket_dir, sql)?;
    let value = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    value.with_context(|| format!("no value: {sql}"))
}

/// Lets a standby's replay go on.
pub fn resume_replay(socket_dir: &Path) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..limits::RESUMES {
        // Replay that goes on cancels what is in its way, this query too.
        last = query(socket_dir, "SELECT pg_catalog.pg_wal_replay_resume()").map(drop);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Connects, runs SQL, and leaves.
pub fn run(config: &Config, sql: &str, limit: Duration) -> Result<Rows> {
    let task = async {
        let (client, connection) = config.connect(NoTls).await?;
        let driver = tokio::spawn(connection);
        let answer = client.simple_query(sql).await;
        driver.abort();
        anyhow::Ok(answer?)
    };
    let answer = runtime().block_on(async { tokio::time::timeout(limit, task).await });
    let Ok(messages) = answer else { bail!("no answer within {limit:?}: {sql}") };
    let messages = messages.with_context(|| sql.to_owned())?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
        }
        _ => None,
    });
    Ok(rows.collect())
}
