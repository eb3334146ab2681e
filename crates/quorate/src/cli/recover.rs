//! Leaving the cluster's protection on purpose: `standalone`, and `recover --force-new-epoch`.

use anyhow::{Context, Result, bail};
use axum::Json;
use quorate_agent::Node;
use serde_json::{Value, json};

use super::{Global, RecoverArgs, operate};
use crate::config::Config;

/// Makes the local server an ordinary one: it gets settings of its own and is stopped, ready to be
/// started by other means.
pub async fn release(node: &Node) -> Result<Json<Value>> {
    let database = node.parts.database.as_ref().context("no database")?;
    database.retire().await;
    quorate_postgres::release(&database.options)?;
    if let Some(home) = database.options.data_dir.parent() {
        std::fs::write(crate::cli::run::released_mark(home), b"")?;
    }
    let dir = database.options.data_dir.display().to_string();
    let text = format!(
        "this node left the cluster. Its data in {dir} is an ordinary database now: stop Quorate \
         here, then start it with PostgreSQL's own tools (`pg_ctl -D {dir} start`). It listens \
         where its postgresql.conf says."
    );
    Ok(Json(json!({ "text": text, "data_dir": dir })))
}

/// `quorate recover --force-new-epoch`.
pub async fn recover(global: &Global, args: RecoverArgs) -> Result<()> {
    let config = Config::load(global.dir())?;
    if tokio::net::UnixStream::connect(config.control()).await.is_ok() {
        bail!("node {} is running: stop it first", config.file.name);
    }
    let before = crate::cli::run::read_state(&config).await?;
    let authority = &before.authority;
    let others: Vec<_> = before.nodes.keys().filter(|n| **n != config.file.name).collect();
    let position = crate::cli::run::local_log_end(&config).await;
    let question = format!(
        "This makes {me} the only member of cluster {id} and starts a new epoch.\n\
         It forgets {others}. If any of them still runs, the cluster splits in two: make sure that \
         they never come back.\n\
         {me} knows of term {term} (writer {writer}); its log ends at {position}. What was \
         acknowledged beyond that point is lost for good.",
        me = config.file.name,
        id = before.cluster_id,
        others = quorate_core::because::list(others),
        term = authority.term,
        writer = authority.writer.map_or("unknown".to_owned(), |w| w.to_string()),
    );
    operate::confirm(&question, args.yes)?;
    let term = crate::cli::run::force_epoch(&config, before, &position).await?;
    if global.json {
        println!("{}", json!({ "term": term, "log_end": position }));
    } else {
        println!("{} starts over in term {term}; next: quorate run", config.file.name);
    }
    Ok(())
}
