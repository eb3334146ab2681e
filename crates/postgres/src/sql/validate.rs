//! A query of a person's, asked as a role of theirs.
//!
//! The session is that role's from its login on, as an application's would be: its settings and those of
//! the database hold (`search_path`), and nothing that the query does can lead back to a role that may do
//! more. It is prepared before it is run, which takes one statement only, and runs in a transaction that
//! reads and is rolled back.

use std::time::{Duration, Instant};

use quorate_core::validation::{Finding, ServerError, ValidationSpec, refusal};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, Transaction};

use super::Admin;
use crate::PORT;
use crate::limits::{CONNECT_TIMEOUT, VALIDATION_GRACE};

/// Rows that are fetched: a second one is one too many, and more say nothing more.
const ROWS_FETCHED_MAX: i32 = 2;

/// Counts the superusers that the role of this session is or could become.
const SUPERUSERS: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_roles \
                          WHERE rolsuper AND pg_catalog.pg_has_role(session_user, oid, 'MEMBER')";

impl Admin {
    /// Asks a query. Dropped before it is answered, it leaves the server to end it at its time limit:
    /// `stop` ends it at once, and then there is no answer.
    pub async fn validate(
        &self,
        spec: &ValidationSpec,
        stop: impl Future<Output = ()>,
    ) -> Option<Finding> {
        let mut config = Config::new();
        config
            .host_path(&self.options.run_dir)
            .port(PORT)
            .user(&spec.role)
            .dbname(&spec.database)
            .application_name("quorate validation")
            .connect_timeout(CONNECT_TIMEOUT);
        let (mut client, connection) = match config.connect(NoTls).await {
            Ok(connected) => connected,
            Err(e) => return Some(failed(&e, true, None)),
        };
        let driver = tokio::spawn(connection);
        let cancel = client.cancel_token();
        // The server's own limit holds for each statement; this one for all that is asked of it.
        let answer = timeout(spec.timeout() + VALIDATION_GRACE, ask(&mut client, spec));
        let finding = tokio::select! {
            answered = answer => Some(answered.unwrap_or(Finding::TimedOut)),
            () = stop => None,
        };
        if matches!(finding, None | Some(Finding::TimedOut)) {
            let _ = timeout(CONNECT_TIMEOUT, cancel.cancel_query(NoTls)).await;
        }
        driver.abort();
        finding
    }
}

async fn ask(client: &mut Client, spec: &ValidationSpec) -> Finding {
    let began = Instant::now();
    match attempt(client, spec, began).await {
        Ok(finding) | Err(finding) => finding,
    }
}

/// Both are findings: the second one ends the attempt early.
async fn attempt(
    client: &mut Client,
    spec: &ValidationSpec,
    began: Instant,
) -> Result<Finding, Finding> {
    let limit = Some((spec.timeout(), began));
    let early = |e: tokio_postgres::Error| failed(&e, true, limit);
    let transaction = client.build_transaction().read_only(true).start().await.map_err(early)?;
    let bound = format!("SET LOCAL statement_timeout = {}", spec.timeout_ms);
    transaction.batch_execute(&bound).await.map_err(early)?;
    if may_become_superuser(&transaction).await.map_err(early)? {
        return Ok(Finding::Superuser);
    }
    let statement = transaction.prepare(&spec.sql).await.map_err(early)?;
    let Some(first) = statement.columns().first().filter(|_| statement.params().is_empty()) else {
        return Ok(Finding::NoQuery);
    };
    if *first.type_() != Type::BOOL {
        return Ok(Finding::NotBoolean(first.type_().name().to_owned()));
    }
    let late = |e: tokio_postgres::Error| failed(&e, false, limit);
    let portal = transaction.bind(&statement, &[]).await.map_err(late)?;
    let rows = transaction.query_portal(&portal, ROWS_FETCHED_MAX).await.map_err(late)?;
    let finding = match rows.as_slice() {
        [] => Finding::NoRow,
        [row] => match row.try_get(0).map_err(late)? {
            Some(true) => Finding::True,
            Some(false) => Finding::False,
            None => Finding::Null,
        },
        [..] => Finding::ManyRows,
    };
    let _ = transaction.rollback().await;
    Ok(finding)
}

async fn may_become_superuser(
    transaction: &Transaction<'_>,
) -> Result<bool, tokio_postgres::Error> {
    let answer = transaction.simple_query(SUPERUSERS).await?;
    let count = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    // In doubt it may.
    Ok(count != Some("0"))
}

/// What a failed attempt shows. `limit`: how long it might take, and since when it does.
fn failed(
    error: &tokio_postgres::Error,
    before_rows: bool,
    limit: Option<(Duration, Instant)>,
) -> Finding {
    let Some(said) = error.as_db_error() else {
        // The driver's own words, which know nothing of rows.
        return Finding::Unreachable(error.to_string());
    };
    let late = limit.is_some_and(|(limit, since)| since.elapsed() >= limit);
    if late && *said.code() == SqlState::QUERY_CANCELED {
        return Finding::TimedOut;
    }
    refusal(ServerError {
        sqlstate: said.code().code(),
        message: said.message(),
        routine: said.routine(),
        before_rows,
    })
}
