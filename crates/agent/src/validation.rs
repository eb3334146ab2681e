//! The queries that a new writer must answer: run beside the loop, told to the cluster.
//!
//! Nothing waits for them: clients are served while they run, and a failed one tells people and stops
//! nobody.

use std::sync::Arc;

use quorate_core::state::{Change, State};
use quorate_core::validation::{Validated, ValidationSpec, due, judge};
use quorate_core::{Answer, Term};
use quorate_link::clock;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::database::Database;
use crate::limits::{VALIDATE_EVERY, VALIDATE_RETRY, VALIDATE_STOP_POLL};
use crate::node::{Node, wall_millis};

/// One query of this node runs at a time, whoever asked for it.
#[derive(Debug, Default)]
pub struct Turn(Mutex<()>);

/// A query that was run because a person asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// Its name.
    pub name: String,
    /// What came of it.
    #[serde(flatten)]
    pub ran: Validated,
}

/// Runs until the process ends.
pub async fn run(node: Arc<Node>) {
    let Some(database) = node.parts.database.clone() else { return };
    loop {
        let state = node.parts.consensus.state();
        if let Some(term) = node.serves(&state).filter(|_| !node.parts.gate.is_draining()) {
            let _turn = node.validation.0.lock().await;
            // What a person had run meanwhile is not due any more.
            look(&node, &database, term).await;
        }
        tokio::time::sleep(VALIDATE_EVERY).await;
    }
}

async fn look(node: &Node, database: &Database, term: Term) {
    let (document, specs) = due(&node.parts.consensus.state(), term);
    for (name, spec) in specs {
        let Some(ran) = ask(node, database, term, &name, &spec).await else { return };
        // It is told until the cluster takes it: run anew, it would not be run once.
        while serving(node, term) {
            let change = Change::Validate { name: name.clone(), document, ran: ran.clone() };
            match node.propose(change).await {
                Ok(Answer::Done) => break,
                Ok(Answer::Refused { because }) => {
                    tracing::debug!(because, "the answer to a query was refused");
                    break;
                }
                Err(e) => {
                    tracing::debug!(error = %e, "the answer to a query could not be agreed");
                    tokio::time::sleep(VALIDATE_RETRY).await;
                }
            }
        }
    }
}

fn serving(node: &Node, term: Term) -> bool {
    let state: Arc<State> = node.parts.consensus.state();
    node.serves(&state) == Some(term)
}

/// Asks one query, unless the reign ends meanwhile.
async fn ask(
    node: &Node,
    database: &Database,
    term: Term,
    name: &str,
    spec: &ValidationSpec,
) -> Option<Validated> {
    // A hand-over waits for what runs here, and what it would show is out of date then.
    let over = async {
        while serving(node, term) && !node.parts.gate.is_draining() {
            tokio::time::sleep(VALIDATE_STOP_POLL).await;
        }
    };
    let began = clock::now();
    let finding = database.admin.validate(spec, over).await?;
    let took_ms = clock::now().since(began).as_millis() as u64;
    let judged = judge(spec, &finding);
    let (rule, sentence) = (&judged.because.rule, &judged.because.sentence);
    match judged.passed {
        true => tracing::info!(query = name, rule, took_ms, "a validation query passed"),
        false => {
            tracing::warn!(query = name, rule, took_ms, "a validation query failed: {sentence}");
        }
    }
    Some(Validated { term, node: node.parts.me, at: wall_millis(), took_ms, judged })
}

/// Runs all queries of the document, or one, because a person asked. On the writer's node.
///
/// # Errors
/// One sentence of why not.
pub async fn run_for_person(node: &Node, name: Option<&str>) -> Result<Vec<Ran>, String> {
    let me = node.parts.me;
    let database = node.parts.database.as_ref();
    let database = database.ok_or_else(|| format!("{me} is a witness: it has no database"))?;
    let _turn = node.validation.0.lock().await;
    let state = node.parts.consensus.state();
    let term = node.serves(&state);
    let term = term.ok_or_else(|| format!("{me} is not the writer: try again"))?;
    let mut specs = state.document().validation;
    if let Some(name) = name {
        specs.retain(|known, _| known == name);
        if specs.is_empty() {
            return Err(format!("there is no query {name}: [validation.{name}] would set it"));
        }
    }
    let document = state.document_version();
    let mut all = Vec::new();
    for (name, spec) in specs {
        let asked = ask(node, database, term, &name, &spec).await;
        let ran = asked.ok_or_else(|| format!("the reign of {me} ends: ask the next writer"))?;
        let change = Change::Validate { name: name.clone(), document, ran: ran.clone() };
        match node.propose(change).await {
            Ok(Answer::Done) => all.push(Ran { name, ran }),
            Ok(Answer::Refused { because }) => return Err(because),
            Err(e) => return Err(format!("{e}. {}", e.hint())),
        }
    }
    Ok(all)
}
